"""Functions without a second derivative: the fallback, its warning, and the refusals."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import bilevel
from bilevel.products import HVP
from tests.bilevel.cubes import CUBE_PHI, CUBE_THETA, OnceDifferentiable, OutsideAutograd
from tests.bilevel.problems import normal
from tests.bilevel.products_cases import (
    EXACT,
    F64,
    assert_near,
)


class _Slope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(grad, x)
        return grad * 3 * x**2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        grad, x = ctx.saved_tensors
        return grads[0] * 3 * x**2, grads[0] * grad * 6 * x


class Nested(torch.autograd.Function):
    """A cube whose backward is another such function; vmap can enter neither."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _Slope.apply(grads[0], ctx.saved_tensors[0])


class Constant(torch.autograd.Function):
    """A staircase: its gradient is zero and stays it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.zeros_like(grads[0])


def with_cube(cube: Callable[[Tensor], Any]) -> Callable[..., Tensor]:
    return lambda p, t: cube(t).sum() / 6 + ((t - p) ** 2).sum()


def _attention(p: Tensor, t: Tensor) -> Tensor:
    queries = normal(1, 2, 4, 8, seed=9) * t.sum()
    keys = normal(1, 2, 4, 8, seed=10)
    attended = F.scaled_dot_product_attention(queries, keys, keys)
    return attended.square().mean() + (p.exp() * t**2).sum()


@pytest.mark.parametrize("cube", [OnceDifferentiable, OutsideAutograd])
@pytest.mark.parametrize("solver", [bilevel.Exact(), bilevel.CG(rtol=1e-7)])
def test_auto_falls_back_to_finite_differences_with_one_warning_that_names_the_operation(
    cube: Any, solver: bilevel.Solver
) -> None:
    def hypergradient(cube: Any, **options: Any) -> Any:
        return bilevel.implicit_grad(
            lambda p, t: (t**2).sum(), with_cube(cube), CUBE_PHI, CUBE_THETA, **options
        )

    wanted = hypergradient(lambda t: t**3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found, info = hypergradient(cube.apply, solver=solver, return_info=True)
    assert [one.category for one in caught] == [bilevel.ProductWarning]
    assert cube.__name__ in str(caught[0].message)
    assert "inner" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert info.hvp == "finite_difference"
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
    assert_near(hypergradient(cube.apply, hvp="finite_difference"), found, "finite_difference")


def test_auto_falls_back_for_a_kernel_of_the_framework_too() -> None:
    theta, phi = normal(3, seed=11), torch.tensor(0.3, dtype=F64)

    def hypergradient(**options: Any) -> Any:
        return bilevel.implicit_grad(lambda p, t: t.sum(), _attention, phi, theta, **options)

    with sdpa_kernel(SDPBackend.MATH):
        wanted = hypergradient()
    with (
        sdpa_kernel(SDPBackend.FLASH_ATTENTION),
        pytest.warns(bilevel.ProductWarning, match="flash_attention") as caught,
    ):
        found, info = hypergradient(return_info=True)
    assert len(caught) == 1
    assert info.hvp == "finite_difference"
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("cube", [OnceDifferentiable, OutsideAutograd])
def test_a_second_derivative_that_does_not_exist_is_an_error_where_it_was_asked_for(
    cube: Any,
) -> None:
    function = with_cube(cube.apply)
    with pytest.raises(RuntimeError, match=f"{cube.__name__}.* not differentiable twice"):
        bilevel.implicit_grad(lambda p, t: t.sum(), function, CUBE_PHI, CUBE_THETA, hvp="reverse")
    phi = CUBE_PHI.clone().requires_grad_()
    attached = bilevel.argmin(function, phi, CUBE_THETA)
    with pytest.raises(RuntimeError, match=f"{cube.__name__}.* not differentiable twice"):
        torch.autograd.grad(attached.sum(), phi)


class OnceInTransforms(torch.autograd.Function):
    """A cube that transforms can enter, marked as not differentiable twice."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * 3 * ctx.saved_tensors[0] ** 2


def test_a_second_derivative_that_does_not_exist_is_an_error_inside_transforms_too() -> None:
    function = with_cube(OnceInTransforms.apply)
    for call in (
        lambda p: bilevel.argmin(function, p, CUBE_THETA),
        lambda p: bilevel.implicit_grad(lambda p, t: t.sum(), function, p, CUBE_THETA),
    ):
        for transform in (torch.func.vmap, torch.func.jacrev, torch.func.jacfwd):
            with pytest.raises(RuntimeError, match=r"OnceInTransforms.* not differentiable twice"):
                transform(call)(CUBE_PHI.unsqueeze(0) if transform is torch.func.vmap else CUBE_PHI)


@pytest.mark.parametrize("cube", [OnceDifferentiable, OutsideAutograd])
def test_a_root_needs_one_derivative_of_its_condition_and_a_second_one_needs_two(
    cube: Any,
) -> None:
    phi, x = torch.tensor([8.0], dtype=F64), torch.tensor([2.0], dtype=F64)
    attached = phi.clone().requires_grad_()
    found = bilevel.root(lambda p, x: cube.apply(x) - p, attached, x)
    (first,) = torch.autograd.grad(found, attached, create_graph=True)
    assert_near(first, torch.tensor([1 / 12], dtype=F64))
    with pytest.raises(RuntimeError, match=f"{cube.__name__}.* not differentiable twice"):
        torch.autograd.grad(first, attached)
    jacobian = bilevel.jacobian(cube.apply, x)
    assert_near(jacobian.T @ x, 12 * x)
    with pytest.raises(RuntimeError, match=f"{cube.__name__}.* not differentiable twice"):
        jacobian.__matmul__(x)


def test_functions_that_vmap_cannot_enter_are_multiplied_row_by_row() -> None:
    wanted, found = (
        bilevel.implicit_grad(
            lambda p, t: (t**2).sum(), with_cube(cube), CUBE_PHI, CUBE_THETA, solver=bilevel.Exact()
        )
        for cube in (lambda t: t**3, Nested.apply)
    )
    assert_near(found, wanted)
    phi = CUBE_PHI.clone().requires_grad_()
    slopes = (
        torch.autograd.grad(bilevel.argmin(with_cube(cube), phi, CUBE_THETA).sum(), phi)[0]
        for cube in (lambda t: t**3, Nested.apply)
    )
    assert_near(next(slopes), next(slopes))


def test_a_gradient_that_is_zero_by_right_is_no_missing_second_derivative() -> None:
    found, info = bilevel.implicit_grad(
        lambda p, t: (t**2).sum(), with_cube(Constant.apply), CUBE_PHI, CUBE_THETA, return_info=True
    )
    assert info.hvp == "reverse"
    assert_near(found, 2 * CUBE_THETA)


def test_an_error_of_the_users_own_is_not_taken_for_a_missing_derivative() -> None:
    class Failing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            raise RuntimeError("no such file")

    with pytest.raises(RuntimeError, match="no such file"):
        bilevel.implicit_grad(lambda p, t: t.sum(), with_cube(Failing.apply), CUBE_PHI, CUBE_THETA)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_finite_differences_are_refused_in_half_precision(dtype: torch.dtype) -> None:
    theta, phi = CUBE_THETA.to(dtype), CUBE_PHI.to(dtype)
    with pytest.raises(bilevel.InputError, match=f"finite_difference.* refuses {dtype}"):
        bilevel.implicit_grad(
            lambda p, t: t.sum(), with_cube(lambda t: t**3), phi, theta, hvp="finite_difference"
        )
    with pytest.raises(bilevel.InputError, match=f"refuses {dtype}"):  # also after a fallback
        bilevel.implicit_grad(lambda p, t: t.sum(), with_cube(OnceDifferentiable.apply), phi, theta)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("hvp", EXACT)
def test_exact_products_work_in_half_precision(dtype: torch.dtype, hvp: HVP) -> None:
    theta, phi = CUBE_THETA.to(dtype), CUBE_PHI.to(dtype)
    found = bilevel.implicit_grad(
        lambda p, t: (t**2).sum(), with_cube(lambda t: t**3), phi, theta, hvp=hvp
    )
    assert found.dtype == dtype
    wanted = 4 * CUBE_THETA / (CUBE_THETA + 2)
    torch.testing.assert_close(found.double(), wanted, rtol=3e-2, atol=3e-2)


class OutsideSquare(torch.autograd.Function):
    """A square whose backward is a constant to autograd; its forward derivative is right."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**2

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0].detach() * grads[0].detach()

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * tangent


class InsideSquare(OutsideSquare):
    """The same with a backward that autograd can follow."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grads[0]


def test_a_backward_that_leaves_autograd_is_named_where_it_is_differentiated_forward() -> None:
    phi = theta = torch.tensor([1.0, 2.0], dtype=F64)

    def gradient(square: Any, hvp: HVP) -> Tensor:
        return bilevel.implicit_grad(
            lambda p, t: t.sum(),
            lambda p, t: (square.apply(t) + t**2 - 4 * p * t).sum(),
            phi,
            theta,
            hvp=hvp,
        )

    hvps: tuple[HVP, ...] = ("reverse", "forward_over_reverse")
    for hvp in hvps:
        with pytest.raises(RuntimeError, match=r"OutsideSquare.* in inner is not differentiable"):
            gradient(OutsideSquare, hvp)
        torch.testing.assert_close(gradient(InsideSquare, hvp), torch.ones_like(phi))
    with pytest.raises(RuntimeError, match=r"OutsideSquare.* in objective is not"):
        bilevel.hessian(lambda t: OutsideSquare.apply(t).sum(), theta, hvp="forward_over_reverse")  # type: ignore[union-attr]


def test_a_product_by_differences_inside_a_transform_is_refused_by_name() -> None:
    theta, rows = torch.ones(2, dtype=F64), torch.eye(2, dtype=F64)
    by_choice = bilevel.hessian(lambda t: (t**3).sum(), theta, hvp="finite_difference")
    with pytest.warns(bilevel.ProductWarning):
        by_need = bilevel.hessian(lambda t: OnceDifferentiable.apply(t).sum(), theta)  # type: ignore[union-attr]
    for H in (by_choice, by_need):
        for call in (
            lambda H=H: torch.func.vmap(lambda v: H @ v)(rows),
            lambda H=H: torch.func.grad(lambda v: (H @ v).sum())(rows[0]),
            lambda H=H: torch.func.jvp(lambda v: H @ v, (rows[0],), (rows[1],)),
        ):
            with pytest.raises(bilevel.TransformError, match="a product by finite differences"):
                call()
        torch.testing.assert_close(H @ rows, 6 * rows)
