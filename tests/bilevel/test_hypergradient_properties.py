"""Properties of hypergradients over random problems."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import bilevel
from tests.bilevel.arrays import error, flat, normal, spd
from tests.bilevel.problems import Quadratic
from tests.bilevel.shapes import strided

F64 = torch.float64
few = settings(max_examples=25)
seeds = st.integers(0, 10_000)
sizes = st.integers(1, 10)


LINEAR: dict[str, bilevel.Solver] = {
    "Exact": bilevel.Exact(),
    "Nystrom": bilevel.Nystrom(rank=4),
    "Neumann": bilevel.Neumann(terms=9),
    "Chebyshev": bilevel.Chebyshev(rtol=None, max_steps=9),
    "ScaledIdentity": bilevel.ScaledIdentity(0.3),
}
TO_TOLERANCE: dict[str, bilevel.Solver] = {
    "CG": bilevel.CG(rtol=1e-12),
    "MINRES": bilevel.MINRES(rtol=1e-12),
    "GMRES": bilevel.GMRES(rtol=1e-12),
    "BiCGStab": bilevel.BiCGStab(rtol=1e-11, max_steps=500),
    "Auto": bilevel.Auto(rtol=1e-12),
}


@few
@given(seeds, st.integers(1, 30))
def test_the_truncated_hypergradient_is_off_by_the_neumann_error(seed: int, terms: int) -> None:
    data, phi = Quadratic.random(5, 3, seed), normal(3, seed=seed + 50)
    theta, step = data.solution(phi), 0.2
    solver = bilevel.Neumann(terms, step=step)
    found = bilevel.implicit_grad(data.outer, data.inner, phi, theta, solver=solver)
    slope = data.F @ theta + data.K.T @ phi + data.f
    shrink = torch.linalg.matrix_power(torch.eye(5, dtype=F64) - step * data.A, terms)
    wanted = data.gradient(phi) + data.C.T @ shrink @ torch.linalg.solve(data.A, slope)
    assert error(found, wanted) < 1e-10


@settings(max_examples=10)
@given(seeds, st.sampled_from([1e-12, 1e12]))
def test_scaling_the_outer_objective_scales_the_hypergradient_and_nothing_else(
    seed: int, scale: float
) -> None:
    data, phi = Quadratic.random(6, 4, seed), normal(4, seed=seed + 50)
    theta = data.solution(phi)
    for name, solver in (LINEAR | TO_TOLERANCE).items():

        def run(factor: float, solver: bilevel.Solver = solver) -> Any:
            return bilevel.implicit_grad(
                lambda p, t: factor * data.outer(p, t),
                data.inner,
                phi,
                theta,
                solver=solver,
                on_failure="ignore",
                return_info=True,
            )

        (plain, before), (scaled, after) = run(1.0), run(scale)
        assert error(scaled / scale, plain) < 1e-12, name
        assert after.solution.stats.iterations == before.solution.stats.iterations
        assert after.solution.result is before.solution.result


@settings(max_examples=10)
@given(seeds, st.sampled_from([1e-12, 1e12]))
def test_scaling_the_inner_objective_changes_nothing(seed: int, scale: float) -> None:
    data, phi = Quadratic.random(6, 4, seed), normal(4, seed=seed + 50)
    theta = data.solution(phi)
    for solver in (None, bilevel.CG(rtol=1e-12), bilevel.Neumann(9), bilevel.Nystrom(6)):
        plain = bilevel.implicit_grad(data.outer, data.inner, phi, theta, solver=solver)
        scaled = bilevel.implicit_grad(
            data.outer, lambda p, t: scale * data.inner(p, t), phi, theta, solver=solver
        )
        assert error(scaled, plain) < 1e-8


@st.composite
def layouts(draw: st.DrawFn, size: int) -> Any:
    """A random way to lay a vector out as a tree: its pieces, their order, shape and nesting."""
    cuts = sorted(draw(st.sets(st.integers(0, size), max_size=4)))
    edges = [0, *cuts, size]
    pieces = list(pairwise(edges))
    order = draw(st.permutations(range(len(pieces))))
    kinds = draw(st.lists(st.sampled_from(["plain", "strided", "matrix"]), min_size=6, max_size=6))
    nested = draw(st.booleans())

    def pack(vector: Tensor) -> Any:
        leaves = {}
        for index in order:
            start, stop = pieces[index]
            leaf = vector[start:stop]
            if kinds[index] == "strided":
                leaf = strided(leaf)
            elif kinds[index] == "matrix":
                leaf = leaf.reshape(1, -1).T
            leaves[f"leaf {index}"] = (leaf,) if nested else leaf
        return [leaves] if nested else leaves

    def unpack(tree: Any) -> Tensor:
        leaves = tree[0] if nested else tree
        named = [leaves[f"leaf {index}"] for index in range(len(pieces))]
        return torch.cat([(leaf[0] if nested else leaf).reshape(-1) for leaf in named])

    return pack, unpack


@few
@given(layouts(4), layouts(6), seeds)
def test_tree_shape_and_leaf_order_do_not_change_the_answer(
    phi_layout: Any, theta_layout: Any, seed: int
) -> None:
    (pack_phi, unpack_phi), (pack, unpack) = phi_layout, theta_layout
    data, phi = Quadratic.random(6, 4, seed), normal(4, seed=seed + 50)
    theta = data.solution(phi)
    for solver in (
        None,
        bilevel.CG(rtol=1e-12),
        bilevel.GMRES(rtol=1e-12),
        bilevel.Neumann(5, 0.1),
    ):
        plain = bilevel.implicit_grad(data.outer, data.inner, phi, theta, solver=solver)
        found = bilevel.implicit_grad(
            lambda p, t: data.outer(unpack_phi(p), unpack(t)),
            lambda p, t: data.inner(unpack_phi(p), unpack(t)),
            pack_phi(phi),
            pack(theta),
            solver=solver,
        )
        assert error(unpack_phi(found), plain) < 1e-10


class Smooth:
    """Strongly convex, not quadratic: ``sum softplus(B t + C p) + t'At/2 + sin(p)'D t``."""

    def __init__(self, n: int, p: int, seed: int) -> None:
        self.A = spd(n, seed, 0.5, 4.0)
        self.B, self.C = normal(8, n, seed=seed + 1), normal(8, p, seed=seed + 2)
        self.D, self.goal = normal(p, n, seed=seed + 3), normal(n, seed=seed + 4)

    def inner(self, p: Tensor, t: Tensor) -> Tensor:
        bent = torch.nn.functional.softplus(self.B @ t + self.C @ p).sum()
        return bent + t @ self.A @ t / 2 + p.sin() @ self.D @ t

    def outer(self, p: Tensor, t: Tensor) -> Tensor:
        return ((t - self.goal) ** 4).sum() / 4 + (p * p.sin()).sum() * t.cos().sum()

    def solution(self, p: Tensor) -> Tensor:
        """By Newton's method on the derivatives written out, to a gradient of 1e-12."""
        t = torch.zeros_like(self.goal)
        for _ in range(60):
            s = torch.sigmoid(self.B @ t + self.C @ p)
            gradient = self.B.T @ s + self.A @ t + p.sin() @ self.D
            if float(gradient.norm()) < 1e-13:
                break
            t = t - torch.linalg.solve(
                self.B.T @ ((s * (1 - s)).unsqueeze(1) * self.B) + self.A, gradient
            )
        assert float(gradient.norm()) < 1e-12
        return t

    def value(self, p: Tensor) -> float:
        return float(self.outer(p, self.solution(p)))


@few
@given(st.integers(1, 5), st.integers(1, 4), seeds)
def test_implicit_grad_equals_central_differences_of_the_outer_objective(
    n: int, p: int, seed: int
) -> None:
    problem, phi = Smooth(n, p, seed), normal(p, seed=seed + 9)
    theta = problem.solution(phi)
    found = bilevel.implicit_grad(problem.outer, problem.inner, phi, theta)
    wanted = []
    for unit in torch.eye(p, dtype=F64):
        h = 1e-3
        near = problem.value(phi + h * unit) - problem.value(phi - h * unit)
        far = problem.value(phi + 2 * h * unit) - problem.value(phi - 2 * h * unit)
        wanted.append((8 * near - far) / (12 * h))  # fourth order
    difference = float((found - torch.tensor(wanted, dtype=F64)).norm())
    assert difference < 1e-6 * (1 + float(found.norm()))


@few
@given(st.integers(1, 5), st.integers(1, 4), seeds)
def test_every_product_and_entry_gives_the_same_hypergradient(n: int, p: int, seed: int) -> None:
    problem, phi = Smooth(n, p, seed), normal(p, seed=seed + 9)
    theta = problem.solution(phi)
    first = bilevel.implicit_grad(problem.outer, problem.inner, phi, theta)
    size = 1 + float(first.norm())
    hvps: list[Any] = ["reverse", "forward_over_reverse", "finite_difference"]
    for hvp in hvps:
        again = bilevel.implicit_grad(problem.outer, problem.inner, phi, theta, hvp=hvp)
        tolerance = 1e-7 if hvp == "finite_difference" else 1e-9
        assert float((again - first).norm()) < tolerance * size, hvp
    moving = phi.clone().requires_grad_()
    value = problem.outer(moving, bilevel.argmin(problem.inner, moving, theta))
    assert float((flat(torch.autograd.grad(value, moving)) - first).norm()) < 1e-9 * size


@few
@given(st.integers(1, 5), st.integers(1, 4), seeds)
def test_refine_finds_the_solution_it_is_defined_by(n: int, p: int, seed: int) -> None:
    problem, phi = Smooth(n, p, seed), normal(p, seed=seed + 9)
    whole = bilevel.ImplicitProblem(problem.outer, problem.inner)
    start = normal(n, seed=seed + 8)
    found = whole.refine(phi, start, tolerance=1e-10)
    assert whole.stationarity(phi, found) <= 1e-10
    assert float((found - problem.solution(phi)).norm()) < 1e-9


@few
@given(sizes, seeds, st.floats(0.0, 10.0))
def test_damping_adds_itself_to_the_operator_once(n: int, seed: int, damping: float) -> None:
    A, b = spd(n, seed), normal(n, seed=seed)
    problem = bilevel.ImplicitProblem(
        lambda p, t: b @ t + p.sum(), lambda p, t: t @ A @ t / 2 - p @ t, damping=damping
    )
    _, info = problem.implicit_grad(b, torch.linalg.solve(A, b), return_info=True)
    damped = A + damping * torch.eye(len(b), dtype=F64)
    assert error(info.adjoint, torch.linalg.solve(damped, b)) < 1e-9
