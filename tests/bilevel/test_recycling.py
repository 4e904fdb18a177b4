"""What ``Auto`` learns in a solve, and what the next solve makes of it."""

from __future__ import annotations

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import bilevel
from bilevel import Result
from bilevel.solvers._recycling import Recycled
from tests.bilevel.arrays import error, normal, spd, with_spectrum
from tests.bilevel.systems import F64

recycling = importlib.import_module("bilevel.solvers._recycling")
SIZE = 200


def decaying(condition: float, dtype: torch.dtype = F64) -> Tensor:
    steps = torch.arange(SIZE, dtype=F64) / 20
    return with_spectrum(10.0 ** (-3 * steps) + 1 / condition, 3).to(dtype)


def moved(A: Tensor, size: float, seed: int) -> Tensor:
    """A matrix near another one: every eigenvalue moves by a part of about ``size`` at most."""
    root = torch.linalg.cholesky(A)
    drift = normal(SIZE, SIZE, seed=seed).to(A)
    drift = 0.5 * size * (drift + drift.T) / SIZE**0.5 / 2**0.5
    found = root @ (torch.eye(SIZE, dtype=A.dtype) + drift) @ root.T
    return 0.5 * (found + found.T)


def solve(A: Tensor, b: Tensor, rtol: float = 1e-6, **kwargs: object) -> bilevel.Solution:
    solver = bilevel.Auto(rtol=rtol, max_steps=1000)
    return bilevel.solve(bilevel.Matrix(A), b, solver, **kwargs)  # type: ignore[arg-type]


def updated(pairs: list[tuple[Tensor, Tensor]], level: float) -> Tensor:
    """The BFGS inverse, pair by pair, as textbooks write it."""
    H, eye = level * torch.eye(SIZE, dtype=F64), torch.eye(SIZE, dtype=F64)
    for s, y in pairs:
        weight = 1 / (s @ y)
        turn = eye - weight * torch.outer(s, y)
        H = turn @ H @ turn.T + weight * torch.outer(s, s)
    return H


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
def test_along_a_drift_each_solve_takes_a_fraction_of_the_first(condition: float) -> None:
    A, state, products = decaying(condition), None, []
    for step in range(6):
        b = normal(SIZE, seed=step) + normal(SIZE, seed=99)
        found = solve(moved(A, 0.01, step), b, state=state)
        assert found.result is Result.SUCCESS
        assert found.recyclable
        state = found.state
        products.append(found.stats.products)
        wanted = torch.linalg.solve(moved(A, 0.01, step), b)
        assert error(found.value, wanted) < 1e-5 * condition**0.5
    assert max(products[2:]) < products[0] / 2


def test_single_precision_gains_too() -> None:
    A, state, products = decaying(1e4, torch.float32), None, []
    for step in range(5):
        b = normal(SIZE, seed=step).float()
        found = solve(moved(A, 0.01, step), b, 1e-3, state=state)
        assert found.result is Result.SUCCESS
        state = found.state
        products.append(found.stats.products)
    assert max(products[1:]) < products[0] / 2


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), high=st.floats(2.0, 1e4), dtype=st.sampled_from(["64", "32"]))
def test_the_state_of_quite_another_operator_leads_to_the_same_answer(
    seed: int, high: float, dtype: str
) -> None:
    kind = getattr(torch, f"float{dtype}")
    rtol = 1e-9 if kind == F64 else 1e-3
    other, b = spd(SIZE, seed, 1.0, high).to(kind), normal(SIZE, seed=seed + 1).to(kind)
    state = solve(1e3 * decaying(1e4, kind), b, rtol).state
    found = solve(other, b, rtol, state=state)
    assert found.result is Result.SUCCESS
    # Judged in double precision, not by the solver's own figures.
    residual = b.double() - other.double() @ found.value.double()
    assert torch.linalg.vector_norm(residual) <= 1.1 * rtol * torch.linalg.vector_norm(b.double())


def test_where_recycled_vectors_are_in_the_way_the_solve_goes_on_without_them() -> None:
    A, b = decaying(1e2), normal(SIZE, seed=1)
    first = solve(A, b)
    wrong = {**first.state, "level": -first.state["level"]}  # no longer positive definite
    found = solve(A, b, state=wrong)
    assert found.result is Result.SUCCESS
    assert error(found.value, first.value) < 1e-4
    assert float(found.state["level"]) > 0
    # Nor may it use up the steps of the solve.
    wrong = {**first.state, "upper": torch.eye(len(first.state["upper"]), dtype=F64)}
    found = bilevel.solve(bilevel.Matrix(A), b, bilevel.Auto(rtol=1e-6, max_steps=60), state=wrong)
    assert found.result is Result.SUCCESS


def test_the_pairs_are_directions_and_their_images() -> None:
    A, b = decaying(1e4), normal(SIZE, seed=1)
    state = solve(A, b).state
    S, Y = state["directions"], state["images"]
    torch.testing.assert_close(Y, S @ A, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(S @ Y.T, torch.eye(len(S), dtype=F64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("solves", [1, 2, 4])
def test_the_preconditioner_is_the_bfgs_inverse_of_all_pairs(solves: int) -> None:
    A, state = decaying(1e2), None
    for step in range(solves):
        state = solve(moved(A, 0.05, step), normal(SIZE, seed=step), 1e-3, state=state).state
    assert state is not None
    pairs = list(zip(state["directions"], state["images"], strict=True))
    wanted = updated(pairs, float(state["level"]))
    found = Recycled().apply(state, torch.eye(SIZE, dtype=F64))
    assert error(found, wanted) < 1e-9
    assert float(torch.linalg.eigvalsh(0.5 * (found + found.T))[0]) > 0


def test_only_the_latest_pairs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recycling, "_PAIRS", 25)
    A, state = decaying(1e4), None
    for step in range(4):
        before = state
        state = solve(moved(A, 0.1, step), normal(SIZE, seed=step), state=before).state
        assert state["directions"].shape == state["images"].shape == (25, SIZE)
        assert state["upper"].shape == state["gram"].shape == (25, 25)
        torch.testing.assert_close(
            state["upper"], (state["directions"] @ state["images"].T).triu(), rtol=0, atol=1e-9
        )


def test_where_there_is_room_for_few_residuals_those_are_recycled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reorthogonalized = importlib.import_module("bilevel.solvers._reorthogonalized_cg")
    monkeypatch.setattr(reorthogonalized, "_ENTRIES", SIZE * 32)
    A, b = decaying(1e4), normal(SIZE, seed=1)
    state = solve(A, b, 1e-10).state
    assert len(state["directions"]) == 31
    torch.testing.assert_close(state["images"], state["directions"] @ A, rtol=1e-6, atol=1e-8)


def test_curvature_below_zero_is_passed_with_a_state_as_without() -> None:
    A, b = decaying(1e2), normal(SIZE, seed=1)
    state = solve(A, b).state
    indefinite = A - 0.5 * torch.eye(SIZE, dtype=F64)
    found = solve(indefinite, b, 1e-8, state=state)
    assert found.result is Result.SUCCESS
    assert error(found.value, torch.linalg.solve(indefinite, b)) < 1e-5


def test_a_first_guess_that_fits_leaves_the_state_as_it_was() -> None:
    A, b = decaying(1e2), normal(SIZE, seed=1)
    first = solve(A, b)
    again = solve(A, b, initial=first.value, state=first.state)
    assert again.stats.iterations == 0
    assert again.recyclable
    assert again.state.keys() == first.state.keys()


def test_a_fixed_budget_several_right_hand_sides_and_small_problems_learn_nothing() -> None:
    A, b = decaying(1e2), normal(SIZE, seed=1)
    fixed = bilevel.solve(bilevel.Matrix(A), b, bilevel.Auto(rtol=None, max_steps=5))
    assert not fixed.recyclable
    several = bilevel.solve(bilevel.Matrix(A), torch.stack([b, 2 * b], 1), bilevel.Auto())
    assert several.state == {}
    small = bilevel.solve(bilevel.Matrix(spd(20, 1)), normal(20, seed=1))
    assert not small.recyclable


def test_a_state_of_another_size_is_refused_by_name() -> None:
    state = solve(decaying(1e2), normal(SIZE, seed=1)).state
    with pytest.raises(bilevel.InputError, match="state is of a problem with 200 unknowns, this"):
        bilevel.solve(bilevel.Matrix(spd(150, 1)), normal(150, seed=1), state=state)
    factor = bilevel.solve(bilevel.Matrix(spd(20, 1)), normal(20, seed=1)).state
    with pytest.raises(bilevel.InputError, match="20 unknowns"):
        bilevel.solve(bilevel.Matrix(spd(30, 1)), normal(30, seed=1), state=factor)


def _loop(**options: object) -> bilevel.BilevelOptimizer:
    A = decaying(1e3)
    phi, theta = (torch.zeros(SIZE, dtype=F64, requires_grad=True) for _ in range(2))
    goal = normal(SIZE, seed=5)
    problem = bilevel.ImplicitProblem(
        outer=lambda p, t: (t[0] - goal).square().sum(),
        inner=lambda p, t: 0.5 * (t[0] * p[0].exp()) @ A @ (t[0] * p[0].exp()) - t[0].sum(),
    )
    outer = torch.optim.SGD([phi], lr=1e-6)
    inner = torch.optim.SGD([theta], lr=1e-3)
    return bilevel.BilevelOptimizer(problem, outer, inner, **options)  # type: ignore[arg-type]


def test_the_loop_recycles_the_vectors_of_its_solves() -> None:
    loop, fresh = _loop(), _loop(warm_start=False)
    products, without = (
        [each.step().solution.stats.products for _ in range(8)] for each in (loop, fresh)
    )
    assert max(products[2:]) < min(without) / 2


def test_the_loop_resumes_what_it_recycles_to_the_same_numbers() -> None:
    loop, again = _loop(), _loop()
    for _ in range(3):
        loop.step()
    again.load_state_dict(loop.state_dict())
    for _ in range(3):
        one, other = loop.step(), again.step()
        assert one.solution.stats == other.solution.stats
        assert torch.equal(one.adjoint[0], other.adjoint[0])


def test_another_solver_begins_without_what_the_last_one_left() -> None:
    preconditioned = bilevel.CG(preconditioner=bilevel.NystromPreconditioner(5))
    loop, again = _loop(), _loop(reuse_state=3)
    for _ in range(3):
        loop.step()
    state = loop.state_dict()
    for each in (loop, again):
        problem = each.problem
        each.problem = bilevel.ImplicitProblem(problem.outer, problem.inner, solver=preconditioned)
    again.load_state_dict(state)
    for each in (loop, again):
        assert [each.step().solution.result for _ in range(2)] == [Result.SUCCESS] * 2


def test_nothing_is_made_of_a_solve_that_nobody_asks_about(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    reorthogonalized = importlib.import_module("bilevel.solvers._reorthogonalized_cg")
    monkeypatch.setattr(reorthogonalized, "recycled", lambda *_: asked.append(True) or {})
    A, theta = decaying(1e2), torch.zeros(SIZE, dtype=F64)
    problem = bilevel.ImplicitProblem(
        outer=lambda p, t: (t - 1).square().sum(), inner=lambda p, t: 0.5 * t @ A @ t - t @ p
    )
    problem.implicit_grad(torch.ones(SIZE, dtype=F64), theta)
    assert not asked
    problem.implicit_grad(torch.ones(SIZE, dtype=F64), theta, return_info=True)
    assert asked


def test_steps_taken_between_two_looks_at_the_residual_are_not_recycled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = importlib.import_module("bilevel.solvers.base")
    A, b = decaying(1e2), normal(SIZE, seed=1)
    wanted = solve(A, b).state
    monkeypatch.setattr(base, "check_interval", lambda device: 8)  # as on an accelerator
    found = solve(A, b).state
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor)


def test_what_rounding_has_blurred_is_not_recycled() -> None:
    values = torch.logspace(-9, 0, SIZE)
    found = bilevel.solve(
        bilevel.Diagonal(values),
        normal(SIZE, seed=1).float(),
        bilevel.Auto(1e-4),
        on_failure="ignore",
    )
    S, Y = found.state["directions"], found.state["images"]
    blurred = torch.finfo(torch.float32).eps * S.square().sum(1) * Y.square().sum(1).max()
    assert 0 < len(S) < found.stats.iterations
    assert float(blurred.max()) < 0.01
