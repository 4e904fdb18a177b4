"""The ways to multiply by a Hessian agree, and refuse what they cannot do."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

import bilevel
from bilevel.products import HVP
from tests.bilevel.problems import normal

F64 = torch.float64
EXACT: tuple[HVP, ...] = ("auto", "reverse", "forward_over_reverse")
MODES: tuple[HVP, ...] = (*EXACT, "finite_difference")
every_mode = pytest.mark.parametrize("hvp", MODES)

X, Y = normal(8, 3, seed=1), normal(8, 2, seed=2)
PHI = {"log_penalty": torch.tensor(-0.5, dtype=F64), "targets": [Y, torch.zeros(0, dtype=F64)]}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


NETWORK = network()
THETA = {name: leaf.detach() for name, leaf in NETWORK.named_parameters()}


def inner(phi: Any, theta: dict[str, Tensor]) -> Tensor:
    error = functional_call(NETWORK, theta, (X,)) - phi["targets"][0]
    return (error**2).mean() + phi["log_penalty"].exp() * flat(theta).square().sum()


def outer(phi: Any, theta: dict[str, Tensor]) -> Tensor:
    return functional_call(NETWORK, theta, (X,)).sin().mean() + phi["log_penalty"] ** 2


def flat(tree: Any) -> Tensor:
    return torch.cat([leaf.reshape(-1) for leaf in tree_leaves(tree)])


def close(found: Any, wanted: Any, hvp: HVP = "reverse", rtol: float = 1e-10) -> None:
    differenced = hvp == "finite_difference"
    torch.testing.assert_close(
        found, wanted, rtol=1e-6 if differenced else rtol, atol=1e-7 if differenced else 1e-12
    )


def dense(objective: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    return torch.as_tensor(hessian(objective)(theta))


# --- agreement -------------------------------------------------------------------------------


@every_mode
def test_the_operator_is_the_hessian(hvp: HVP) -> None:
    problem = bilevel.ImplicitProblem(outer, inner, hvp=hvp, damping=0.25)
    n = flat(THETA).numel()

    def of_flat(vector: Tensor) -> Tensor:
        pieces = vector.split([leaf.numel() for leaf in THETA.values()])
        shaped = [piece.view_as(leaf) for piece, leaf in zip(pieces, THETA.values(), strict=True)]
        return inner(PHI, dict(zip(THETA, shaped, strict=True)))

    wanted = dense(of_flat, flat(THETA)) + 0.25 * torch.eye(n, dtype=F64)
    operator = problem.operator(PHI, THETA)
    close(operator.to_dense(), wanted, hvp)
    close(flat(operator @ THETA), wanted @ flat(THETA), hvp)
    block = normal(n, 3, seed=3)
    close(operator @ block, wanted @ block, hvp)


@every_mode
@pytest.mark.parametrize("solver", [bilevel.Exact(), bilevel.CG(rtol=1e-12, atol=1e-300)])
def test_the_hypergradient_is_the_same_however_products_are_made(
    hvp: HVP, solver: bilevel.Solver
) -> None:
    wanted = bilevel.implicit_grad(outer, inner, PHI, THETA, damping=1.0)
    found, info = bilevel.implicit_grad(
        outer, inner, PHI, THETA, damping=1.0, hvp=hvp, return_info=True,
        solver=solver, on_failure="ignore",
    )  # fmt: skip
    close(flat(found), flat(wanted), hvp)
    assert info.hvp == ("reverse" if hvp == "auto" else hvp)
    assert info.solution.stats.products > 0


@every_mode
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_scale_of_theta_and_of_the_outer_value_changes_no_digit_but_rounding(
    hvp: HVP, dtype: torch.dtype
) -> None:
    # inner = a t^2 / 2 - p t at any scale of t; outer = s t, so the answer is s / a.
    a = torch.tensor([2.0, 5.0], dtype=dtype)
    for scale in (1e-12, 1.0, 1e12):
        for size in (1e-6, 1.0, 1e6):
            phi = torch.full((2,), size, dtype=dtype)
            found = bilevel.implicit_grad(
                lambda p, t, s=scale: (s * t).sum(),
                lambda p, t: (a * t**2).sum() / 2 - (p * t).sum(),
                phi,
                phi / a,
                hvp=hvp,
            )
            rtol = 1e-8 if dtype == F64 else 3e-4
            torch.testing.assert_close(found, scale / a, rtol=rtol, atol=0)


def test_a_kept_graph_evaluates_each_function_once() -> None:
    counts = {"inner": 0, "outer": 0}

    def counted(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any) -> Tensor:
            counts[name] += 1
            return function(*args)

        return call

    functions = counted("outer", outer), counted("inner", inner)
    bilevel.implicit_grad(*functions, PHI, THETA, solver=bilevel.CG(rtol=1e-6), damping=1.0)
    assert counts == {"inner": 1, "outer": 1}


@every_mode
def test_unused_leaves_of_phi_get_zeros_and_an_unused_phi_is_refused(hvp: HVP) -> None:
    phi, theta = [PHI["log_penalty"], torch.ones(2, 2, dtype=F64)], normal(3, seed=4)
    gradient = bilevel.implicit_grad(
        lambda p, t: t.sum(), lambda p, t: (t**2).sum() * p[0].exp(), phi, theta, hvp=hvp
    )
    assert torch.equal(gradient[1], torch.zeros(2, 2, dtype=F64))
    assert bool(gradient[0].isfinite())
    with pytest.raises(bilevel.InputError, match="depends on phi"):
        bilevel.implicit_grad(lambda p, t: t.sum(), lambda p, t: (t**2).sum(), phi, theta, hvp=hvp)


@every_mode
def test_an_objective_linear_in_theta_has_a_zero_hessian(hvp: HVP) -> None:
    theta, phi = normal(3, seed=5), normal(3, seed=6)
    problem = bilevel.ImplicitProblem(
        lambda p, t: (t**2).sum(), lambda p, t: (p.sin() * t).sum(), hvp=hvp, damping=2.0
    )
    close(problem.operator(phi, theta).to_dense(), 2 * torch.eye(3, dtype=F64), hvp)
    close(problem.implicit_grad(phi, theta), -phi.cos() * theta, hvp)


@every_mode
def test_empty_and_scalar_thetas_have_products(hvp: HVP) -> None:
    def value(p: Tensor, t: Any) -> Tensor:
        return ((t[0] - p) ** 2).sum() + (t[1] ** 2).sum()

    theta = [torch.tensor(2.0, dtype=F64), torch.zeros(0, 3, dtype=F64)]
    phi = torch.tensor(2.0, dtype=F64)
    found = bilevel.implicit_grad(lambda p, t: t[0] ** 2, value, phi, theta, hvp=hvp)
    close(found, torch.tensor(4.0, dtype=F64), hvp)
    nothing = torch.zeros(0, dtype=F64)
    found = bilevel.implicit_grad(
        lambda p, t: t.sum() + p**2, lambda p, t: (t**2).sum() * p, phi, nothing, hvp=hvp
    )
    close(found, 2 * phi, hvp)


# --- what has no second derivative -----------------------------------------------------------


class OnceDifferentiable(torch.autograd.Function):
    """A cube whose backward is marked as not differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * 3 * ctx.saved_tensors[0] ** 2


class OutsideAutograd(torch.autograd.Function):
    """A cube whose backward is a kernel autograd knows nothing of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x = ctx.saved_tensors[0].detach().numpy()
        return torch.from_numpy(grads[0].detach().numpy() * 3 * x**2)


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


CUBE_THETA = normal(3, seed=7).abs()
CUBE_PHI = normal(3, seed=8)


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
    close(hypergradient(cube.apply, hvp="finite_difference"), found, "finite_difference")


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


@pytest.mark.parametrize("cube", [OnceDifferentiable, OutsideAutograd])
def test_a_root_needs_one_derivative_of_its_condition_and_a_second_one_needs_two(
    cube: Any,
) -> None:
    phi, x = torch.tensor([8.0], dtype=F64), torch.tensor([2.0], dtype=F64)
    attached = phi.clone().requires_grad_()
    found = bilevel.root(lambda p, x: cube.apply(x) - p, attached, x)
    (first,) = torch.autograd.grad(found, attached, create_graph=True)
    close(first, torch.tensor([1 / 12], dtype=F64))
    with pytest.raises(RuntimeError, match=f"{cube.__name__}.* not differentiable twice"):
        torch.autograd.grad(first, attached)
    jacobian = bilevel.jacobian(cube.apply, x)
    close(jacobian.T @ x, 12 * x)
    with pytest.raises(RuntimeError, match=f"{cube.__name__}.* not differentiable twice"):
        jacobian.__matmul__(x)


def test_functions_that_vmap_cannot_enter_are_multiplied_row_by_row() -> None:
    wanted, found = (
        bilevel.implicit_grad(
            lambda p, t: (t**2).sum(), with_cube(cube), CUBE_PHI, CUBE_THETA, solver=bilevel.Exact()
        )
        for cube in (lambda t: t**3, Nested.apply)
    )
    close(found, wanted)
    phi = CUBE_PHI.clone().requires_grad_()
    slopes = (
        torch.autograd.grad(bilevel.argmin(with_cube(cube), phi, CUBE_THETA).sum(), phi)[0]
        for cube in (lambda t: t**3, Nested.apply)
    )
    close(next(slopes), next(slopes))


def test_a_gradient_that_is_zero_by_right_is_no_missing_second_derivative() -> None:
    found, info = bilevel.implicit_grad(
        lambda p, t: (t**2).sum(), with_cube(Constant.apply), CUBE_PHI, CUBE_THETA, return_info=True
    )
    assert info.hvp == "reverse"
    close(found, 2 * CUBE_THETA)


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


# --- functions that differentiate by themselves ----------------------------------------------


def _input_penalty(p: Tensor, t: Tensor) -> Tensor:
    x = X.clone().requires_grad_()
    out = torch.tanh(x @ t) * p[0]
    (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    return (out**2).mean() + (slope**2).sum() + p[1].exp() * (t**2).sum()


def _input_penalty_by_hand(p: Tensor, t: Tensor) -> Tensor:
    out = torch.tanh(X @ t) * p[0]
    slope = (p[0] * (1 - torch.tanh(X @ t) ** 2)).unsqueeze(1) * t
    return (out**2).mean() + (slope**2).sum() + p[1].exp() * (t**2).sum()


def _theta_penalty(p: Tensor, t: Tensor) -> Tensor:
    (slope,) = torch.autograd.grad((p[0].sin() * t**3).sum(), t, create_graph=True)
    return (slope**2).sum() + p[1].exp() * (t**2).sum()


def _theta_penalty_by_hand(p: Tensor, t: Tensor) -> Tensor:
    return ((3 * p[0].sin() * t**2) ** 2).sum() + p[1].exp() * (t**2).sum()


@pytest.mark.parametrize(
    ("penalised", "by_hand"),
    [(_input_penalty, _input_penalty_by_hand), (_theta_penalty, _theta_penalty_by_hand)],
    ids=["in an input", "in theta"],
)
@pytest.mark.parametrize("hvp", ["auto", "reverse", "finite_difference"])
def test_a_gradient_penalty_inside_inner_is_differentiated_through(
    penalised: Callable[..., Tensor], by_hand: Callable[..., Tensor], hvp: HVP
) -> None:
    theta, phi = normal(3, seed=12), torch.tensor([0.7, 0.4], dtype=F64)
    found, wanted = (
        bilevel.implicit_grad(
            lambda p, t: (t**2).sum(), function, phi, theta, hvp=hvp, on_failure="ignore"
        )
        for function in (penalised, by_hand)
    )
    close(found, wanted, hvp)
    attached = phi.clone().requires_grad_()
    slopes = [
        torch.autograd.grad(
            bilevel.argmin(function, attached, theta, on_failure="ignore").sum(), attached
        )[0]
        for function in (penalised, by_hand)
    ]
    close(slopes[0], slopes[1])


def test_forward_over_reverse_refuses_a_gradient_penalty() -> None:
    theta, phi = normal(3, seed=12), torch.tensor([0.7, 0.4], dtype=F64)
    for function in (_input_penalty, _theta_penalty):
        with pytest.raises(RuntimeError, match=r"requires_grad|require grad"):
            bilevel.implicit_grad(
                lambda p, t: t.sum(), function, phi, theta, hvp="forward_over_reverse"
            )


# --- randomness ------------------------------------------------------------------------------


def _dropped(p: Tensor, t: Tensor) -> Tensor:
    return (F.dropout(t, 0.5) * p).square().sum() + (t**2).sum() / 2 - (p * t).sum()


@every_mode
@pytest.mark.parametrize("solver", [bilevel.Exact(), bilevel.CG(rtol=1e-8)])
def test_one_dropout_mask_is_seen_by_the_adjoint_the_hessian_and_the_mixed_product(
    hvp: HVP, solver: bilevel.Solver
) -> None:
    theta, phi = normal(12, seed=13), normal(12, seed=14)
    torch.manual_seed(3)
    mask = F.dropout(torch.ones(12, dtype=F64), 0.5)
    assert set(mask.tolist()) == {0.0, 2.0}
    torch.manual_seed(3)
    found = bilevel.implicit_grad(
        lambda p, t: (F.dropout(t, 0.5) ** 2).sum(), _dropped, phi, theta, hvp=hvp, solver=solver
    )
    # Everything is diagonal: v = d_t outer / H, and the answer is -(d_t d_p inner) v.
    adjoint = 2 * mask**2 * theta / (2 * mask**2 * phi**2 + 1)
    close(found, -(4 * mask**2 * phi * theta - 1) * adjoint, hvp, rtol=1e-7)


# --- torch.compile ---------------------------------------------------------------------------


@pytest.fixture
def compiled() -> Iterator[tuple[Callable[..., Tensor], Callable[..., Tensor], list[str]]]:
    """Both functions compiled to graphs whose backward is compiled too, and a log of their runs."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch._aot_autograd.utils import make_boxed_func

    log: list[str] = []

    def compiler(module: Any, _: Any) -> Any:
        def run(*args: Any) -> Any:
            log.append("run")
            return module(*args)

        log.append("compiled")
        return make_boxed_func(run)

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=compiler)
    yield (
        torch.compile(lambda p, t: (X @ t).sin().mean() + p.sum(), backend=backend),
        torch.compile(_input_penalty_by_hand, backend=backend),
        log,
    )
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_functions_are_right_and_stay_compiled(compiled: Any) -> None:
    outer, inner, log = compiled
    theta, phi = normal(3, seed=15), torch.tensor([0.5, 0.2], dtype=F64)
    plain = lambda p, t: (X @ t).sin().mean() + p.sum()  # noqa: E731
    wanted = bilevel.implicit_grad(plain, _input_penalty_by_hand, phi, theta)
    for hvp in MODES:
        close(bilevel.implicit_grad(outer, inner, phi, theta, hvp=hvp), wanted, hvp)
    problem = bilevel.ImplicitProblem(outer, inner)
    close(
        problem.operator(phi, theta).to_dense(),
        dense(lambda t: _input_penalty_by_hand(phi, t), theta),
    )
    attached = phi.clone().requires_grad_()
    slopes = [
        torch.autograd.grad(bilevel.argmin(function, attached, theta).sum(), attached)[0]
        for function in (inner, _input_penalty_by_hand)
    ]
    close(slopes[0], slopes[1])
    close(
        torch.func.vmap(lambda p: bilevel.implicit_grad(outer, inner, p, theta))(phi[None])[0],
        wanted,
    )
    # None of this has made the compiler give up on them.
    log.clear()
    tracked = theta.clone().requires_grad_()
    (inner(phi, tracked) + outer(phi, tracked)).backward()
    assert log.count("run") >= 4
    assert tracked.grad is not None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_inside_gauss_newton_is_right(compiled: Any) -> None:
    theta, phi = normal(3, seed=15), torch.tensor([0.5, 0.2], dtype=F64)
    split = (
        lambda p, t: torch.tanh(X @ t) * p[0],
        lambda p, z: (z**2).mean(),
        lambda p, t: p[1].exp() * (t**2).sum(),
    )
    found, wanted = (
        bilevel.ImplicitProblem(
            lambda p, t: t.sum(), _input_penalty_by_hand, curvature=bilevel.GaussNewton(*functions)
        ).implicit_grad(phi, theta)
        for functions in (
            [torch.compile(function, backend="aot_eager") for function in split],
            split,
        )
    )
    close(found, wanted)


# --- Gauss-Newton ----------------------------------------------------------------------------


def _model(phi: Any, theta: dict[str, Tensor]) -> Tensor:
    return functional_call(NETWORK, theta, (X,))


def _loss(phi: Any, outputs: Tensor) -> Tensor:
    return F.softplus(outputs - phi["targets"][0]).sum() + (outputs**4).mean()


def _penalty(phi: Any, theta: dict[str, Tensor]) -> Tensor:
    return phi["log_penalty"].exp() * flat(theta).square().sum()


def _whole(phi: Any, theta: dict[str, Tensor]) -> Tensor:
    return _loss(phi, _model(phi, theta)) + _penalty(phi, theta)


def _jacobian() -> Tensor:
    """``[outputs, parameters]``."""
    columns = torch.func.jacrev(lambda theta: _model(PHI, theta).reshape(-1))(THETA)
    assert isinstance(columns, dict)
    return torch.cat([columns[name].reshape(X.shape[0] * 2, -1) for name in THETA], dim=1)


def test_gauss_newton_is_the_jacobian_around_the_hessian_of_the_loss() -> None:
    outputs = _model(PHI, THETA)
    middle = dense(lambda z: _loss(PHI, z.view_as(outputs)), outputs.reshape(-1))
    jacobian = _jacobian()
    penalty = 2 * PHI["log_penalty"].exp() * torch.eye(jacobian.shape[1], dtype=F64)
    for regularizer, extra in ((None, 0 * penalty), (_penalty, penalty)):
        split = bilevel.GaussNewton(_model, _loss, regularizer)
        problem = bilevel.ImplicitProblem(outer, _whole, curvature=split, damping=0.5)
        wanted = jacobian.T @ middle @ jacobian + extra + 0.5 * torch.eye(len(extra), dtype=F64)
        operator = problem.operator(PHI, THETA)
        close(operator.to_dense(), wanted)
        block = normal(len(extra), 2, seed=16)
        close(operator @ block, wanted @ block)


def test_gauss_newton_changes_the_curvature_and_keeps_the_mixed_derivative() -> None:
    split = bilevel.GaussNewton(_model, _loss, _penalty)
    problem = bilevel.ImplicitProblem(outer, _whole, curvature=split)
    gradient, info = problem.implicit_grad(PHI, THETA, return_info=True)
    matrix = problem.operator(PHI, THETA).to_dense()
    slope = torch.func.grad(outer, 1)(PHI, THETA)
    adjoint = torch.linalg.solve(matrix, flat(slope))
    close(flat(info.adjoint), adjoint, rtol=1e-8)

    def along(phi: Any) -> Tensor:
        return flat(torch.func.grad(_whole, 1)(phi, THETA)) @ adjoint

    mixed = torch.func.grad(along)(PHI)
    close(flat(gradient), flat(torch.func.grad(outer)(PHI, THETA)) - flat(mixed), rtol=1e-8)


def test_gauss_newton_is_positive_where_the_hessian_is_not() -> None:
    theta = {"w": torch.tensor([1.5, 0.3], dtype=F64)}
    split = bilevel.GaussNewton(
        lambda p, t: torch.stack([t["w"][0].sin(), t["w"].sum()]), lambda p, z: (z**2).sum() / 2
    )

    def inner(p: Tensor, t: dict[str, Tensor]) -> Tensor:
        return split.loss(p, split.model(p, t)) - (p * t["w"]).sum() + 3 * t["w"][0].cos()

    phi = torch.ones(2, dtype=F64)
    plain = bilevel.ImplicitProblem(lambda p, t: t["w"].sum(), inner)
    safe = bilevel.ImplicitProblem(lambda p, t: t["w"].sum(), inner, curvature=split)
    assert torch.linalg.eigvalsh(plain.operator(phi, theta).to_dense())[0] < 0
    assert torch.linalg.eigvalsh(safe.operator(phi, theta).to_dense())[0] > 0
    with pytest.warns(bilevel.CurvatureWarning):
        plain.implicit_grad(phi, theta)
    safe.implicit_grad(phi, theta)


def test_gauss_newton_is_the_hessian_of_a_linear_model() -> None:
    theta, phi = normal(3, seed=17), torch.tensor(0.1, dtype=F64)
    split = bilevel.GaussNewton(
        lambda p, t, x, y: x @ t,
        lambda p, z, x, y: ((z - y) ** 2).sum(),
        lambda p, t, x, y: p.exp() * (t**2).sum(),
    )

    def ridge(p: Tensor, t: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return ((x @ t - y) ** 2).sum() + p.exp() * (t**2).sum()

    found, wanted = (
        bilevel.implicit_grad(
            lambda p, t: (t**3).sum(), ridge, phi, theta, inner_args=(X, Y[:, 0]), curvature=curve
        )
        for curve in (split, None)
    )
    close(found, wanted)


@pytest.mark.parametrize("cube", [OnceDifferentiable, OutsideAutograd])
@pytest.mark.parametrize("where", ["model", "loss", "regularizer"])
def test_a_split_that_is_not_differentiable_twice_is_named(cube: Any, where: str) -> None:
    parts: dict[str, Callable[[Tensor], Any]] = dict.fromkeys(
        ("model", "loss", "regularizer"), lambda x: x**3
    )
    parts[where] = cube.apply
    split = bilevel.GaussNewton(
        lambda p, t: parts["model"](t),
        lambda p, z: parts["loss"](z).sum(),
        lambda p, t: parts["regularizer"](t).sum(),
    )
    with pytest.raises(RuntimeError, match=f"GaussNewton: {where} is not differentiable twice"):
        bilevel.implicit_grad(
            lambda p, t: t.sum(),
            lambda p, t: ((t - p) ** 2).sum(),
            CUBE_PHI,
            CUBE_THETA,
            curvature=split,
        )


@pytest.mark.parametrize(
    ("model", "loss", "message"),
    [
        (lambda p, t: [t], lambda p, z: z[0].sum(), "model must return a tensor"),
        (lambda p, t: t.detach(), lambda p, z: z.sum(), "depends on its theta argument"),
        (lambda p, t: t, lambda p, z: z**2, "loss returned a tensor of shape"),
        (lambda p, t: t, lambda p, z: 1.0, "loss returned a float"),
        (lambda p, t: t, lambda p, z: p.sum(), "loss does not depend on"),
    ],
)
def test_a_split_that_does_not_fit_is_named(model: Any, loss: Any, message: str) -> None:
    with pytest.raises(bilevel.InputError, match=f"GaussNewton: .*{message}"):
        bilevel.implicit_grad(
            lambda p, t: t.sum(),
            lambda p, t: ((t - p) ** 2).sum(),
            CUBE_PHI,
            CUBE_THETA,
            curvature=bilevel.GaussNewton(model, loss),
        )
