"""`argmin`, `root`, `fixed_point` and `implicit_grad` under torch.autograd and torch.func."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.autograd.functional import jacobian
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import bilevel
from tests.bilevel.problems import normal, spd

F64 = torch.float64
N, P = 3, 2
A, C, M = spd(N, seed=0), normal(N, P, seed=1), normal(N, N, seed=2)
W = normal(N, seed=3)
PHI = normal(P, seed=4)
PHIS = normal(4, P, seed=5)
SCALE = torch.tensor(1.3, dtype=F64)


def inner(phi: Tensor, theta: Tensor, scale: Tensor = SCALE) -> Tensor:
    """Convex in theta; no derivative of any order is constant."""
    quadratic = (theta @ A @ theta) / 2 + (theta @ C @ phi.sin()) * scale
    return quadratic + (theta**4).sum() / 4 + (phi[0].exp() * theta**2).sum() / 3


def condition(phi: Tensor, x: Tensor, scale: Tensor = SCALE) -> Tensor:
    """Its Jacobian is not symmetric."""
    return _condition_field(phi, x, scale)[0]


def contraction(phi: Tensor, x: Tensor, scale: Tensor = SCALE) -> Tensor:
    return 0.4 * torch.tanh(M @ x / 2 + C @ phi * scale) + phi[0].sin() / 2


def outer(phi: Tensor, theta: Tensor) -> Tensor:
    return (W * theta).sum().sin() + (theta**2).sum() * phi[1] + (phi**3).sum()


def _inner_field(phi: Tensor, theta: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of inner and its Hessian, by hand."""
    curvature = 2 / 3 * phi[0].exp()
    slope = A @ theta + C @ phi.sin() * scale + theta**3 + curvature * theta
    return slope, A + torch.diag(3 * theta**2) + curvature * torch.eye(N, dtype=F64)


def _condition_field(phi: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    slope, matrix = _inner_field(phi, x, scale)
    bend = torch.tanh(M @ x)
    more = 0.3 * phi[1].cos() * (1 - bend**2).unsqueeze(1) * M
    return slope + 0.3 * bend * phi[1].cos(), matrix + more


def _contraction_field(phi: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    bend = torch.tanh(M @ x / 2 + C @ phi * scale)
    matrix = torch.eye(N, dtype=F64) - 0.2 * (1 - bend**2).unsqueeze(1) * M
    return x - 0.4 * bend - phi[0].sin() / 2, matrix


@dataclass(frozen=True)
class Case:
    """A solution attached by the package, and the field (with its Jacobian) it is the root of."""

    name: str
    field: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    function: Callable[..., Tensor]
    attach: Callable[..., Tensor]

    def solution(self, phi: Tensor, scale: Tensor = SCALE) -> Tensor:
        """Newton's method to rounding, in operations that every transform carries."""
        phi, scale = phi.detach(), scale.detach()
        x = torch.zeros(N, dtype=F64)
        for _ in range(12):
            x = self._newton(phi, x, scale)
        return x

    def attached(self, phi: Tensor, scale: Tensor = SCALE, **options: Any) -> Tensor:
        """The package's answer."""
        return self.attach(self.function, phi, self.solution(phi, scale), args=(scale,), **options)

    def exact(self, phi: Tensor, scale: Tensor = SCALE) -> Tensor:
        """The same by two Newton steps from the root: right to the third order of derivatives."""
        x = self.solution(phi, scale)
        return self._newton(phi, self._newton(phi, x, scale), scale)

    def _newton(self, phi: Tensor, x: Tensor, scale: Tensor) -> Tensor:
        value, matrix = self.field(phi, x, scale)
        # Not torch.linalg.solve: vmap of its forward derivative is wrong in torch 2.13.
        return x - torch.linalg.inv(matrix) @ value


ARGMIN = Case("argmin", _inner_field, inner, bilevel.argmin)
ROOT = Case("root", _condition_field, condition, bilevel.root)
FIXED_POINT = Case("fixed_point", _contraction_field, contraction, bilevel.fixed_point)
CASES = (ARGMIN, ROOT, FIXED_POINT)
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)

GENERAL: dict[str, bilevel.Solver] = {
    "Auto": bilevel.Auto(),
    "GMRES": bilevel.GMRES(rtol=1e-13),
    "BiCGStab": bilevel.BiCGStab(rtol=1e-13),
    "Neumann": bilevel.Neumann(terms=400, step=0.1, rtol=1e-13),
}
SYMMETRIC: dict[str, bilevel.Solver] = {
    "CG": bilevel.CG(rtol=1e-13),
    "preconditioned CG": bilevel.CG(rtol=1e-13, preconditioner=bilevel.Jacobi()),
    "MINRES": bilevel.MINRES(rtol=1e-13),
    "Chebyshev": bilevel.Chebyshev(rtol=1e-13),
    "Neumann with automatic step": bilevel.Neumann(terms=2000, rtol=1e-13),
}
TRUNCATED: dict[str, bilevel.Solver] = {
    "ScaledIdentity": bilevel.ScaledIdentity(0.1),
    "three Neumann terms": bilevel.Neumann(terms=3, step=0.1),
    "two CG steps": bilevel.CG(rtol=None, max_steps=2),
    "two GMRES steps": bilevel.GMRES(rtol=None, max_steps=2),
}


def close(found: Any, wanted: Any, rtol: float = 1e-9) -> None:
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=1e-10)


def fits(case: Case) -> list[bilevel.Solver]:
    return [*GENERAL.values(), *(SYMMETRIC.values() if case is ARGMIN else ())]


# --- torch.autograd --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "solver"),
    [(case, solver) for case in CASES for solver in fits(case)],
    ids=lambda item: item.name if isinstance(item, Case) else type(item).__name__,
)
def test_first_and_second_derivatives_pass_gradcheck_with_the_problem_solved_anew(
    case: Case, solver: bilevel.Solver
) -> None:
    def attached(phi: Tensor, scale: Tensor) -> Tensor:
        return case.attached(phi, scale, solver=solver)

    inputs = (PHI.clone().requires_grad_(), SCALE.clone().requires_grad_())
    assert gradcheck(attached, inputs)
    assert gradgradcheck(attached, inputs)


@every_case
def test_forward_derivatives_pass_gradcheck(case: Case) -> None:
    inputs = (PHI.clone().requires_grad_(), SCALE.clone().requires_grad_())
    assert gradcheck(case.attached, inputs, check_forward_ad=True)
    assert gradgradcheck(case.attached, inputs, check_fwd_over_rev=True)


@every_case
def test_forward_mode_works_where_nothing_requires_grad(case: Case) -> None:
    tangent = normal(P, seed=6)
    with forward_ad.dual_level():
        attached = case.attached(forward_ad.make_dual(PHI, tangent))
        found = forward_ad.unpack_dual(attached).tangent
    close(found, jacrev(case.exact)(PHI) @ tangent)


def test_trees_of_any_shape_pass_gradcheck() -> None:
    def attached(first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        phi = torch.stack([first, second[0, 0]])
        theta = ARGMIN.solution(phi)
        tree = {"a": theta[0], "b": [theta[1:].unsqueeze(1), theta[:0]]}
        found = bilevel.argmin(
            lambda p, t: inner(
                torch.stack([p[0], p[1]["x"][0, 0]]), torch.cat([t["a"].view(1), t["b"][0].view(2)])
            ),
            (first, {"x": second}),
            tree,
        )
        assert found["b"][1].shape == (0,)
        return found["a"], found["b"][0]

    inputs = (PHI[0].clone().requires_grad_(), PHI[1:].view(1, 1).clone().requires_grad_())
    assert gradcheck(attached, inputs, check_forward_ad=True)
    assert gradgradcheck(attached, inputs)


@every_case
def test_a_third_derivative_is_right_under_autograd(case: Case) -> None:
    def derivative(function: Callable[[Tensor], Tensor]) -> Tensor:
        phi = PHI.clone().requires_grad_()
        value = (W * function(phi)).sum()
        for weights in (normal(P, seed=7), normal(P, seed=8)):
            (slope,) = torch.autograd.grad(value, phi, create_graph=True)
            value = (slope * weights).sum()
        return torch.autograd.grad(value, phi)[0]

    close(derivative(case.attached), derivative(case.exact))


def test_a_solution_feeds_any_differentiable_code() -> None:
    phi = PHI.clone().requires_grad_()
    layer = nn.Linear(N, 2, dtype=F64)
    loss = layer(ARGMIN.attached(phi * 2)).square().sum() + phi.sum()
    loss.backward()
    again = PHI.clone().requires_grad_()
    (layer(ARGMIN.exact(again * 2)).square().sum() + again.sum()).backward()
    assert phi.grad is not None
    assert again.grad is not None
    close(phi.grad, again.grad)


def test_damping_is_part_of_the_derivative_at_first_and_second_order() -> None:
    # inner = a t^2 / 2 - p t: dt/dp = 1 / (a + damping), its derivative in a is -1 / (...)^2.
    def slope(a: Tensor) -> Tensor:
        p = torch.tensor(2.0, dtype=F64, requires_grad=True)
        theta = (p / a).detach()
        attached = bilevel.argmin(
            lambda p, t, a: a * t**2 / 2 - p * t, p, theta, args=(a,), damping=0.5
        )
        return torch.autograd.grad(attached, p, create_graph=True)[0]

    a = torch.tensor(3.0, dtype=F64, requires_grad=True)
    close(slope(a), torch.tensor(1 / 3.5, dtype=F64))
    close(torch.autograd.grad(slope(a), a)[0], torch.tensor(-1 / 3.5**2, dtype=F64))


# --- torch.func ------------------------------------------------------------------------------

Function = Callable[[Tensor], Tensor]

TRANSFORMS: dict[str, Callable[[Function], Tensor]] = {
    "grad": lambda f: grad(f)(PHI),
    "jacrev": lambda f: jacrev(f)(PHI),
    "jacfwd": lambda f: jacfwd(f)(PHI),
    "jvp": lambda f: jvp(f, (PHI,), (normal(P, seed=9),))[1],
    "hessian": lambda f: hessian(f)(PHI),
    "jacrev of jacrev": lambda f: jacrev(jacrev(f))(PHI),
    "jacrev of jacfwd": lambda f: jacrev(jacfwd(f))(PHI),
    "grad of grad": lambda f: grad(lambda p: grad(f)(p).square().sum())(PHI),
    "grad of jvp": lambda f: grad(lambda p: jvp(f, (p,), (normal(P, seed=9),))[1])(PHI),
    "jvp of grad": lambda f: jvp(grad(f), (PHI,), (normal(P, seed=9),))[1],
    "third order": lambda f: jacrev(jacrev(jacrev(f)))(PHI),
    "jacfwd of jacrev of jacrev": lambda f: jacfwd(jacrev(jacrev(f)))(PHI),
    "vmap": lambda f: vmap(f)(PHIS),
    "vmap of vmap": lambda f: vmap(vmap(f))(PHIS.view(2, 2, P)),
    "vmap of grad": lambda f: vmap(grad(f))(PHIS),
    "vmap of vmap of grad": lambda f: vmap(vmap(grad(f)))(PHIS.view(2, 2, P)),
    "vmap of jacfwd": lambda f: vmap(jacfwd(f))(PHIS),
    "vmap of hessian": lambda f: vmap(hessian(f))(PHIS),
    "vmap of jacrev of jacrev": lambda f: vmap(jacrev(jacrev(f)))(PHIS),
    "grad of vmap": lambda f: grad(lambda p: vmap(f)(p).square().sum())(PHIS),
    "grad of vmap of grad": lambda f: grad(lambda p: vmap(grad(f))(p).square().sum())(PHIS),
    "jvp of vmap": lambda f: jvp(vmap(f), (PHIS,), (PHIS.cos(),))[1],
    "jacrev of vmap": lambda f: jacrev(vmap(f))(PHIS),
    "hessian of vmap": lambda f: hessian(lambda p: vmap(f)(p).square().sum())(PHIS[:2]),
    "vmap over the tangents": lambda f: vmap(lambda t: jvp(f, (PHI,), (t,))[1])(PHIS),
    "vmap over axis 1": lambda f: vmap(grad(f), in_dims=1, out_dims=1)(PHIS.T.contiguous()),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@every_case
def test_every_transform_gives_the_derivatives_of_the_exact_solution(
    case: Case, transform: Callable[[Function], Tensor]
) -> None:
    def of(solution: Callable[[Tensor], Tensor]) -> Function:
        return lambda phi: outer(phi, solution(phi))

    close(transform(of(case.attached)), transform(of(case.exact)))


@every_case
def test_a_pullback_can_be_used_after_its_transform_is_over(case: Case) -> None:
    value, pull = vjp(case.attached, PHI)[:2]
    jacobian = jacrev(case.exact)(PHI)
    close(value, case.exact(PHI))
    close(pull(W)[0], W @ jacobian)
    close(pull(2 * W)[0], 2 * W @ jacobian)
    cotangents = normal(4, N, seed=10)
    close(vmap(lambda row: pull(row)[0])(cotangents), cotangents @ jacobian)


@every_case
def test_a_pullback_depends_on_what_requires_grad_outside(case: Case) -> None:
    def pulled(solution: Callable[..., Tensor]) -> Tensor:
        scale = SCALE.clone().requires_grad_()
        pull = vjp(lambda phi: solution(phi, scale), PHI)[1]
        return torch.autograd.grad((pull(W)[0] ** 2).sum(), scale)[0]

    close(pulled(case.attached), pulled(case.exact))


@pytest.mark.parametrize("batched", ["phi", "scale", "both"])
@every_case
def test_vmap_over_some_of_the_inputs_equals_the_loop(case: Case, batched: str) -> None:
    phis = PHIS if batched != "scale" else PHI.expand(4, P)
    scales = normal(4, seed=11) if batched != "phi" else SCALE.expand(4)
    in_dims = (0 if batched != "scale" else None, 0 if batched != "phi" else None)
    inputs = (phis if in_dims[0] == 0 else PHI, scales if in_dims[1] == 0 else SCALE)

    def slopes(phi: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        both = jacrev(case.attached, (0, 1))(phi, scale)
        return *both, hessian(lambda p: (W * case.attached(p, scale)).sum())(phi)

    together = vmap(slopes, in_dims)(*inputs)
    apart = [slopes(phi, scale) for phi, scale in zip(phis, scales, strict=True)]
    close(together, tuple(torch.stack(list(column)) for column in zip(*apart, strict=True)))


@pytest.mark.parametrize("dims", [(0, None), (None, 0), (0, 0), (1, 0), (0, 1)])
def test_vmap_over_phi_or_a_given_theta_equals_the_loop(dims: tuple[int | None, ...]) -> None:
    phis, thetas = PHIS, normal(4, N, seed=12)

    def slope(phi: Tensor, theta: Tensor) -> Tensor:
        return grad(lambda p: outer(p, bilevel.argmin(inner, p, theta)))(phi)

    batches = [
        values[0] if dim is None else values.movedim(0, dim)
        for values, dim in zip((phis, thetas), dims, strict=True)
    ]
    together = vmap(slope, dims)(*batches)
    apart = [
        slope(phis[0 if dims[0] is None else i], thetas[0 if dims[1] is None else i])
        for i in range(4)
    ]
    close(together, torch.stack(apart))


EVERY_SOLVER = {**GENERAL, **SYMMETRIC, **TRUNCATED}


@pytest.mark.parametrize("solver", EVERY_SOLVER.values(), ids=EVERY_SOLVER)
@pytest.mark.parametrize("transform", [grad, lambda f: vmap(grad(f))], ids=["vmap", "vmap twice"])
def test_vmap_equals_the_loop_for_every_solver(
    solver: bilevel.Solver, transform: Callable[..., Any]
) -> None:
    # Points of very different conditioning, which converge after different numbers of steps.
    phis = torch.stack([PHI, PHI + 3.0, PHI - 3.0, PHI + 1.0])
    thetas = torch.stack([ARGMIN.solution(phi) for phi in phis])

    def slope(phi: Tensor, theta: Tensor) -> Tensor:
        return grad(
            lambda p: outer(p, bilevel.argmin(inner, p, theta, solver=solver, on_failure="ignore"))
        )(phi)

    if transform is grad:
        together = vmap(slope)(phis, thetas)
    else:
        together = vmap(vmap(slope))(phis.view(2, 2, P), thetas.view(2, 2, N)).view(4, P)
    apart = torch.stack([slope(phi, theta) for phi, theta in zip(phis, thetas, strict=True)])
    close(together, apart, rtol=1e-8)


def test_a_solver_that_takes_one_matrix_at_a_time_says_so_under_vmap() -> None:
    solver = bilevel.Nystrom(rank=3)
    close(grad(lambda p: (W * ARGMIN.attached(p, solver=solver)).sum())(PHI).shape, (P,))
    with pytest.raises(bilevel.InputError, match="one matrix at a time"):
        vmap(grad(lambda p: ARGMIN.attached(p, solver=solver).sum()))(PHIS)


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.integers(1, 6), st.booleans())
def test_jvp_and_vjp_are_adjoint(seed: int, n: int, large: bool) -> None:
    matrix = (0.4 if large else 0.1) * normal(n, n, seed=seed)
    b, u, w = normal(3, n, seed=seed + 1)
    z = torch.linalg.solve(torch.eye(n, dtype=F64) - matrix, b)

    def solution(b: Tensor) -> Tensor:
        return bilevel.fixed_point(lambda p, z: matrix @ z + p, b, z)

    forward = u @ jvp(solution, (b,), (w,))[1]
    backward = vjp(solution, b)[1](u)[0] @ w
    scale = torch.linalg.cond(torch.eye(n, dtype=F64) - matrix) * u.norm() * w.norm()
    assert abs(forward - backward) <= 1e-12 * scale


# --- implicit_grad inside transforms -------------------------------------------------------------


def hypergradient(phi: Tensor, theta: Tensor, **options: Any) -> Tensor:
    return bilevel.implicit_grad(outer, inner, phi, theta, **options)


@pytest.mark.parametrize("solver", [None, bilevel.CG(rtol=1e-13)])
def test_implicit_grad_under_vmap_equals_the_loop(solver: bilevel.Solver | None) -> None:
    thetas = torch.stack([ARGMIN.solution(phi) for phi in PHIS])
    together = vmap(lambda p, t: hypergradient(p, t, solver=solver))(PHIS, thetas)
    apart = [hypergradient(p, t, solver=solver) for p, t in zip(PHIS, thetas, strict=True)]
    close(together, torch.stack(apart))


def test_implicit_grad_under_vmap_batches_its_arguments() -> None:
    scales = normal(4, seed=13)
    thetas = torch.stack([ARGMIN.solution(PHI, scale) for scale in scales])
    targets = normal(4, N, seed=14)

    def one(theta: Tensor, scale: Tensor, target: Tensor) -> Tensor:
        return bilevel.implicit_grad(
            lambda phi, theta, y: ((theta - y) ** 2).sum(),
            inner,
            PHI,
            theta,
            outer_args=(target,),
            inner_args=(scale,),
        )

    apart = [one(*item) for item in zip(thetas, scales, targets, strict=True)]
    close(vmap(one)(thetas, scales, targets), torch.stack(apart))


def test_the_derivative_of_implicit_grad_is_the_hessian_of_the_outer_value() -> None:
    def through(phi: Tensor) -> Tensor:
        return hypergradient(phi, ARGMIN.solution(phi))

    wanted = hessian(lambda phi: outer(phi, ARGMIN.exact(phi)))(PHI)
    close(jacrev(through)(PHI), wanted)
    close(jacfwd(through)(PHI), wanted)
    close(vmap(jacrev(through))(PHI.unsqueeze(0))[0], wanted)


def test_implicit_grad_inside_a_transform_keeps_its_options() -> None:
    theta = ARGMIN.solution(PHI)
    for options in (
        {"damping": 0.7},
        {"solver": bilevel.Neumann(terms=3, step=0.1)},
        {"hvp": "reverse"},
    ):
        together = vmap(lambda p, o=options: hypergradient(p, theta, **o))(PHI.unsqueeze(0))
        close(together[0], hypergradient(PHI, theta, **options))


@pytest.mark.parametrize(
    "options", [{"return_info": True}, {"initial": torch.zeros(N, dtype=F64)}, {"state": {}}]
)
def test_what_a_transform_cannot_carry_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(bilevel.TransformError, match="return_info, initial and state"):
        vmap(lambda p: hypergradient(p, W, **options))(PHIS)


@pytest.mark.parametrize(
    "options",
    [
        {"hvp": "finite_difference"},
        {"curvature": bilevel.GaussNewton(lambda p, t: t, lambda p, z: (z**2).sum())},
    ],
)
def test_products_that_are_not_the_hessians_own_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(bilevel.InputError, match="exact Hessian"):
        vmap(lambda p: hypergradient(p, W, **options))(PHIS)


def _scaled_by(phi: Tensor) -> bilevel.LinearOperator:
    return bilevel.FunctionOperator(lambda v: phi.sum() * v, N, symmetric=True, dtype=F64)


@pytest.mark.parametrize(
    "call",
    [
        lambda p: bilevel.solve(bilevel.Matrix(A), A @ C @ p).value,
        lambda p: bilevel.solve(_scaled_by(p), W).value,
        lambda p: bilevel.solve(_scaled_by(p), W, bilevel.CG(rtol=None, max_steps=1)).value,
        lambda p: bilevel.hessian(lambda t: inner(p, t), W).to_dense(),
        lambda p: bilevel.jacobian(lambda t: condition(p, t), W).to_dense(),
        lambda p: bilevel.ImplicitProblem(outer, inner).operator(p, W).to_dense(),
        lambda p: bilevel.ImplicitProblem(outer, inner).refine(p, W),
        lambda p: torch.tensor(bilevel.ImplicitProblem(outer, inner).stationarity(p, W)),
    ],
    ids=[
        "solve",
        "solve by closure",
        "solve by CG",
        "hessian",
        "jacobian",
        "operator",
        "refine",
        "stationarity",
    ],
)
@pytest.mark.parametrize("transform", [vmap, jacrev, jacfwd])
def test_functions_no_transform_can_enter_are_refused(
    transform: Callable[..., Any], call: Function
) -> None:
    points = PHIS if transform is vmap else PHI
    with pytest.raises(bilevel.TransformError, match="inside"):
        transform(call)(points)


def test_the_older_vmap_of_torch_autograd_is_refused() -> None:
    phi = PHI.clone().requires_grad_()
    eye = torch.eye(N, dtype=F64)
    for call in (
        lambda: torch.autograd.grad(ARGMIN.attached(phi), phi, eye, is_grads_batched=True),
        lambda: jacobian(ARGMIN.attached, phi, vectorize=True),
        lambda: jacobian(ARGMIN.attached, phi, vectorize=True, strategy="forward-mode"),
    ):
        with pytest.raises(bilevel.TransformError, match="vectorize"):
            call()
    close(jacobian(ARGMIN.attached, phi), jacrev(ARGMIN.exact)(PHI))


def test_implicit_grad_refuses_tangents_that_it_would_drop() -> None:
    with forward_ad.dual_level():
        phi = forward_ad.make_dual(PHI, PHI)
        with pytest.raises(bilevel.TransformError, match="jvp"):
            hypergradient(phi, ARGMIN.solution(PHI))


def test_a_forward_derivative_of_a_forward_derivative_is_refused() -> None:
    def value(phi: Tensor) -> Tensor:
        return (W * ARGMIN.attached(phi)).sum()

    ones = torch.ones(P, dtype=F64)
    for call in (
        lambda: jacfwd(jacfwd(value))(PHI),
        lambda: jvp(lambda p: jvp(value, (p,), (ones,))[1], (PHI,), (ones,)),
        lambda: vmap(jacfwd(jacfwd(value)))(PHIS),
        lambda: jacfwd(lambda p: grad(lambda q: jacfwd(value)(q).sum())(p))(PHI),
    ):
        with pytest.raises(bilevel.TransformError, match="forward derivative of a forward"):
            call()


# --- tensors that come in behind the arguments -----------------------------------------------

HIDDEN = torch.tensor([1.5, -0.5], dtype=F64)
HIDDENS = torch.stack([HIDDEN, 2 * HIDDEN])


def _argmin_with(hidden: Tensor) -> Callable[[Tensor], Tensor]:
    def solution(phi: Tensor) -> Tensor:
        return bilevel.argmin(lambda p, t: inner(p * hidden, t), phi, W).sum()

    return solution


def _root_with(hidden: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda phi: bilevel.root(lambda p, t: condition(p * hidden, t), phi, W).sum()


def _map_with(hidden: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda phi: bilevel.fixed_point(lambda p, t: contraction(p * hidden, t), phi, W).sum()


def _hypergradient_with(hidden: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda phi: bilevel.implicit_grad(outer, lambda p, t: inner(p * hidden, t), phi, W).sum()


def _under_a_dual_level(use: Callable[[Tensor], Function]) -> Any:
    with forward_ad.dual_level():
        return use(forward_ad.make_dual(HIDDEN, HIDDEN))(PHI)


LEAKS: dict[str, Callable[[Callable[[Tensor], Function]], Any]] = {
    "grad": lambda use: grad(lambda c: use(c)(PHI))(HIDDEN),
    "jvp": lambda use: jvp(lambda c: use(c)(PHI), (HIDDEN,), (HIDDEN,)),
    "vmap": lambda use: vmap(lambda c: use(c)(PHI))(HIDDENS),
    "grad of vmap": lambda use: grad(lambda c: vmap(use(c))(PHIS).sum())(HIDDEN),
    "jvp of vmap": lambda use: jvp(lambda c: vmap(use(c))(PHIS), (HIDDEN,), (HIDDEN,)),
    "vmap of grad": lambda use: vmap(lambda c: grad(use(c))(PHI))(HIDDENS),
    "vmap of vmap": lambda use: vmap(lambda c: vmap(use(c))(PHIS[:2]))(HIDDENS),
    "grad of grad": lambda use: grad(lambda c: grad(use(c))(PHI).sum())(HIDDEN),
    "jvp of grad": lambda use: jvp(lambda c: grad(use(c))(PHI), (HIDDEN,), (HIDDEN,)),
    "jvp of vmap of grad": lambda use: jvp(
        lambda c: vmap(grad(use(c)))(PHIS), (HIDDEN,), (HIDDEN,)
    ),
    "grad of jvp": lambda use: grad(lambda c: jvp(use(c), (PHI,), (PHI,))[1])(HIDDEN),
    "autograd under vmap": lambda use: vmap(use(HIDDEN.clone().requires_grad_()))(PHIS),
    "autograd under grad": lambda use: grad(use(HIDDEN.clone().requires_grad_()))(PHI),
}


@pytest.mark.parametrize("leak", LEAKS.values(), ids=LEAKS)
@pytest.mark.parametrize("use", [_argmin_with, _root_with, _map_with, _hypergradient_with])
def test_a_tensor_that_a_transform_follows_and_that_is_no_argument_is_refused(
    use: Callable[[Tensor], Function], leak: Callable[..., Any]
) -> None:
    with pytest.raises(bilevel.TransformError, match="neither phi nor args"):
        leak(use)


@pytest.mark.parametrize("use", [_argmin_with, _root_with, _map_with])
def test_a_tensor_that_autograd_follows_and_that_is_no_argument_is_refused(
    use: Callable[[Tensor], Function],
) -> None:
    for hidden in (HIDDEN.clone().requires_grad_(), HIDDEN.clone().requires_grad_() * 2):
        with pytest.raises(bilevel.InputError, match="requires grad but is part of neither"):
            use(hidden)(PHI)
    with pytest.raises(bilevel.InputError, match="forward derivative but is part of neither"):
        _under_a_dual_level(use)
    with torch.no_grad():  # nothing is differentiated, so nothing can be lost
        assert torch.equal(use(HIDDEN.clone().requires_grad_())(PHI), W.sum())


def test_frozen_parameters_are_no_such_tensors() -> None:
    layer = nn.Linear(P, P, dtype=F64)
    phi = PHI.clone().requires_grad_()

    def solution(phi: Tensor) -> Tensor:
        return bilevel.argmin(lambda p, t: inner(layer(p), t), phi, W)

    with pytest.raises(bilevel.InputError, match="frozen"):
        solution(phi)
    layer.requires_grad_(False)
    close(
        torch.autograd.grad(solution(phi).sum(), phi)[0],
        grad(lambda p: solution(p).sum())(PHI),
    )


def test_tensors_that_a_function_makes_for_itself_are_no_such_tensors() -> None:
    def penalised(phi: Tensor, theta: Tensor) -> Tensor:
        x = (C @ PHI).detach().requires_grad_()  # a gradient penalty in an input
        (slope,) = torch.autograd.grad((x * theta * phi[0]).sin().sum(), x, create_graph=True)
        return inner(phi, theta) + (slope**2).sum()

    def written_out(phi: Tensor, theta: Tensor) -> Tensor:
        factor = theta * phi[0]
        return inner(phi, theta) + ((factor * (C @ PHI * factor).cos()) ** 2).sum()

    phi, theta = PHI.clone().requires_grad_(), normal(N, seed=15)
    found, wanted = (
        torch.autograd.grad(bilevel.argmin(function, phi, theta).sum(), phi)[0]
        for function in (penalised, written_out)
    )
    close(found, wanted)


def test_an_outer_objective_may_close_over_anything() -> None:
    theta = ARGMIN.solution(PHI)

    def value(weights: Tensor) -> Tensor:
        objective = lambda p, t: outer(p, t * weights)  # noqa: E731
        return bilevel.implicit_grad(objective, inner, PHI, theta)

    weights = normal(4, N, seed=16)
    close(vmap(value)(weights), torch.stack([value(row) for row in weights]))
    numeric = (value(weights[0] + 1e-6 * W) - value(weights[0] - 1e-6 * W)) / 2e-6
    close(jvp(value, (weights[0],), (W,))[1], numeric, rtol=1e-6)


# --- problems with structure -----------------------------------------------------------------


def test_an_inner_problem_may_contain_another() -> None:
    # s*(t) = argmin_s (s - t^2)^2 + s^2 = t^2 / 2;  theta*(p) = argmin_t (t - p)^2 + s*(t).
    def lower(t: Tensor, s: Tensor) -> Tensor:
        return ((s - t**2) ** 2 + s**2).sum()

    def upper(p: Tensor, t: Tensor) -> Tensor:
        s = bilevel.argmin(lower, t, (t**2 / 2).detach())
        return ((t - p) ** 2 + s).sum()

    phi = torch.tensor([0.5, 2.0], dtype=F64)
    theta = phi / 1.5  # 2 (t - p) + t = 0
    thirds = torch.full((2,), 2 / 3, dtype=F64)
    found = bilevel.implicit_grad(lambda p, t: t.sum(), upper, phi, theta)
    close(found, thirds)
    solver = bilevel.CG(rtol=1e-12)
    close(bilevel.implicit_grad(lambda p, t: t.sum(), upper, phi, theta, solver=solver), thirds)
    close(grad(lambda p: bilevel.argmin(upper, p, theta).sum())(phi), thirds)
    assert gradcheck(
        lambda p: bilevel.argmin(upper, p, (p / 1.5).detach()), phi.clone().requires_grad_()
    )
    per_problem = vmap(
        lambda p, t: bilevel.implicit_grad(lambda p, t: t.sum(), upper, p.view(1), t.view(1))
    )
    close(per_problem(phi, theta).squeeze(1), thirds)


def test_a_model_called_through_functional_call_works_under_every_transform() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    theta = {name: leaf.detach() for name, leaf in model.named_parameters()}
    x, labels = normal(6, 2, seed=17), torch.arange(6) % 3

    def loss(phi: Tensor, theta: dict[str, Tensor], x: Tensor, labels: Tensor) -> Tensor:
        logits = functional_call(model, theta, (x,))
        penalty = sum((leaf**2).sum() for leaf in theta.values())
        return nn.functional.cross_entropy(logits, labels) + phi.exp() * penalty

    def value(phi: Tensor, theta: dict[str, Tensor], x: Tensor) -> Tensor:
        solved = bilevel.argmin(loss, phi, theta, args=(x, labels), damping=1.0)
        return torch.cat([leaf.reshape(-1) for leaf in solved.values()]).square().sum()

    phi = torch.tensor(-1.0, dtype=F64)
    points = torch.stack([phi, phi + 1])
    inputs = torch.stack([x, -x])
    slope = grad(value)
    together = vmap(slope, (0, None, 0))(points, theta, inputs)
    apart = [slope(p, theta, rows) for p, rows in zip(points, inputs, strict=True)]
    close(together, torch.stack(apart))
    with_info = bilevel.implicit_grad(
        lambda p, t, *rest: torch.cat([leaf.reshape(-1) for leaf in t.values()]).square().sum(),
        loss,
        phi,
        theta,
        inner_args=(x, labels),
        damping=1.0,
    )
    close(with_info, slope(phi, theta, x))
    close(jacfwd(value)(phi, theta, x), with_info)


def test_arguments_may_be_integers_masks_strings_and_none() -> None:
    index, mask = torch.tensor([2, 0, 1]), torch.tensor([True, False, True])

    def picked(phi: Tensor, theta: Tensor, *args: Any) -> Tensor:
        index, options, nothing = args
        assert nothing is None
        assert options["kind"] == "masked"
        moved = torch.where(options["mask"], theta[index], theta)
        return inner(phi, theta, options["scale"]) + (moved**2).sum() / 4

    def attached(phi: Tensor, scale: Tensor) -> Tensor:
        options = {"mask": mask, "kind": "masked", "scale": scale}
        return bilevel.argmin(picked, phi, W, args=[index, options, None])

    phi, scale = PHI.clone().requires_grad_(), SCALE.clone().requires_grad_()
    found = torch.autograd.grad(attached(phi, scale).sum(), (phi, scale), create_graph=True)
    close(found, grad(lambda phi, scale: attached(phi, scale).sum(), (0, 1))(PHI, SCALE))
    torch.autograd.grad((found[0].sum(), found[1]), (phi, scale))
    tangent = jvp(attached, (PHI, SCALE), (PHI, SCALE))[1]
    numeric = found[0] @ PHI + found[1] * SCALE
    close(tangent.sum(), numeric.detach())
    indices = torch.stack([index, index.flip(0)])
    together = vmap(
        grad(
            lambda p, i: bilevel.argmin(
                picked, p, W, args=(i, {"mask": mask, "kind": "masked", "scale": SCALE}, None)
            ).sum()
        ),
        (None, 0),
    )(PHI, indices)
    close(together[0], found[0].detach())


def test_the_same_dropout_mask_is_drawn_under_vmap_as_in_the_loop() -> None:
    def dropped(phi: Tensor, theta: Tensor) -> Tensor:
        return inner(phi, nn.functional.dropout(theta, 0.5)) + (theta**2).sum()

    def slope(phi: Tensor) -> Tensor:
        return grad(lambda p: bilevel.argmin(dropped, p, W).sum())(phi)

    torch.manual_seed(0)
    together = vmap(slope, randomness="same")(PHIS)
    torch.manual_seed(0)
    close(together, torch.stack([slope(phi) for phi in PHIS]))
    torch.manual_seed(1)
    assert not torch.allclose(together, torch.stack([slope(phi) for phi in PHIS]))
