"""``compile=True``: the same numbers, programs used again where they may be, and a way back.

The traced graphs run as they are here; what the compiler makes of them is for test_machine_code.
"""

from __future__ import annotations

import gc
import os
import random
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bilevel
from bilevel._compiling import dispatch, graphs, programs
from bilevel.solvers import Solver
from tests.bilevel.problems import MINIMA, Problem, quadratic
from tests.bilevel.shapes import SHAPES
from tests.bilevel.traces import PHI, Untouched, parameters, penalised, predicted

F64 = torch.float64
SCALE = 2.0

SOLVERS: dict[str, Solver | None] = {
    "Auto": None,
    "CG": bilevel.CG(rtol=1e-12),
    "CG, fixed": bilevel.CG(rtol=None, max_steps=4),
    "CG, fixed, in blocks": bilevel.CG(rtol=None, max_steps=12),
    "CG, fixed, Jacobi": bilevel.CG(rtol=None, max_steps=3, preconditioner=bilevel.Jacobi()),
    "Neumann": bilevel.Neumann(6, step=0.05),
    "Neumann, own step": bilevel.Neumann(6),
    "MINRES": bilevel.MINRES(),
    "ScaledIdentity": bilevel.ScaledIdentity(0.1),
}


class Traces(list[int]):
    """The number of inputs of every computation that was traced."""


@pytest.fixture(autouse=True)
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[Traces]:
    """Graphs run as they are; what was traced is listed."""
    log = Traces()
    original = graphs.trace

    def noted(function: Any, inputs: Any, known: Any) -> Any:
        log.append(len(inputs))
        return original(function, inputs, known)

    monkeypatch.setattr(programs, "trace", noted)
    monkeypatch.setattr(programs, "compiled", lambda graph, inputs: graph)
    dispatch.forget()
    yield log
    dispatch.forget()


def both(
    problem: Problem, solver: Solver | None, **options: Any
) -> tuple[tuple[Any, bilevel.HypergradientInfo], tuple[Any, bilevel.HypergradientInfo]]:
    """By a program that had been made before, and the plain way."""
    arguments = (problem.outer, problem.inner, problem.phi, problem.theta)
    options = {"solver": solver, "on_failure": "ignore", "return_info": True, **options}
    bilevel.implicit_grad(*arguments, compile=True, **options)
    return (
        bilevel.implicit_grad(*arguments, compile=True, **options),
        bilevel.implicit_grad(*arguments, **options),
    )


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("problem", [MINIMA[3], MINIMA[-1]], ids=lambda p: p.name)
def test_a_program_gives_the_plain_answer_and_the_plain_report(problem: Problem, name: str) -> None:
    (found, info), (wanted, plain) = both(problem, SOLVERS[name])
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(info.adjoint, plain.adjoint, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(info.direct, plain.direct)
    assert info.outer_value == pytest.approx(plain.outer_value)
    assert info.stationarity == pytest.approx(plain.stationarity, abs=1e-12)
    stats, expected = info.solution.stats, plain.solution.stats
    assert (stats.products, stats.iterations) == (expected.products, expected.iterations)
    assert stats.smallest_curvature == pytest.approx(expected.smallest_curvature)
    assert stats.ritz == (None if expected.ritz is None else pytest.approx(expected.ritz))
    assert info.solution.result is plain.solution.result
    assert (info.compile_seconds, plain.compile_seconds) == (0.0, None)


@pytest.mark.parametrize("solver", ["CG", "CG, fixed", "Neumann, own step"])
def test_damping_a_first_guess_and_a_kept_state_are_carried(solver: str) -> None:
    problem = quadratic()
    _, info = bilevel.implicit_grad(
        problem.outer, problem.inner, problem.phi, problem.theta, return_info=True, damping=0.2,
        solver=SOLVERS[solver], on_failure="ignore",
    )  # fmt: skip
    options = {"damping": 0.3, "initial": info.adjoint * 0.9, "state": info.state}
    (found, report), (wanted, plain) = both(problem, SOLVERS[solver], **options)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)
    assert report.solution.stats.products == plain.solution.stats.products


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_trees_of_every_shape_come_back_as_they_are(shape: Any) -> None:
    problem = quadratic().in_shape(shape)
    (found, _), (wanted, _) = both(problem, bilevel.Neumann(2, step=0.05))
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


def _inner(phi: Tensor, theta: Tensor, x: Tensor, y: Tensor, weight: float = 1.0) -> Tensor:
    return weight * ((x @ theta - y) ** 2).mean() + (phi.exp() * theta**2).sum()


def _outer(phi: Tensor, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return ((x @ theta - y) ** 2).mean()


def _data(seed: int, rows: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    make = lambda *shape: torch.randn(*shape, generator=generator, dtype=F64)  # noqa: E731
    return make(rows, 3), make(rows)


def assert_as_eager(
    inner: Callable[..., Tensor], seed: int = 0, solver: Solver | None = None, **options: Any
) -> None:
    phi, theta = _data(100 + seed, 3)[1], _data(200 + seed, 3)[1]
    options = {
        "solver": solver or bilevel.Neumann(5, step=0.05),
        "outer_args": _data(seed),
        "inner_args": _data(seed + 1),
        "on_failure": "ignore",
        **options,
    }
    found = bilevel.implicit_grad(_outer, inner, phi, theta, compile=True, **options)
    wanted = bilevel.implicit_grad(_outer, inner, phi, theta, **options)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("solver", [None, bilevel.CG(rtol=1e-10)])
def test_one_program_serves_every_point_and_every_batch_of_a_shape(
    solver: Solver | None, traced: Traces
) -> None:
    for seed in range(5):
        assert_as_eager(_inner, seed, solver)
    assert len(traced) == 1
    assert_as_eager(_inner, inner_args=_data(1, rows=9))
    assert len(traced) == 2


def test_a_function_made_anew_from_the_same_code_uses_the_same_program(traced: Traces) -> None:
    for seed in range(4):
        assert_as_eager(lambda p, t, x, y: _inner(p, t, x, y), seed)
    assert len(traced) == 1


def test_what_a_closure_holds_is_seen_to_change(traced: Traces) -> None:
    held = {"weight": 1.0, "shift": torch.ones(3, dtype=F64)}
    inner = lambda p, t, x, y: _inner(p, t + held["shift"], x, y, held["weight"])  # noqa: E731
    assert_as_eager(inner)
    held["shift"].mul_(3.0)  # the program takes the tensor itself
    assert_as_eager(inner)
    assert len(traced) == 1
    held["shift"] = torch.zeros(3, dtype=F64)
    assert_as_eager(inner)
    held["weight"] = 2.5
    assert_as_eager(inner)
    assert len(traced) == 3


def _named(phi: Tensor, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return _inner(phi, theta, x, y, SCALE)


def test_a_global_is_seen_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_as_eager(_named)
    monkeypatch.setattr(f"{__name__}.SCALE", 3.0)
    assert_as_eager(_named)


class _Settings:
    rate = 1.0

    def inner(self, phi: Tensor, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return _inner(phi, theta, x, y, self.rate)


def test_a_setting_of_an_object_or_of_its_class_is_seen_to_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = _Settings()
    assert_as_eager(settings.inner)
    monkeypatch.setattr(_Settings, "rate", 2.0)
    assert_as_eager(settings.inner)
    settings.rate = 3.0
    assert_as_eager(settings.inner)


def test_the_mode_of_a_module_is_seen_to_change_and_nothing_of_it_is_touched() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    theta = parameters(network)
    options: dict[str, Any] = {"solver": bilevel.Neumann(3, step=0.01), "on_failure": "ignore"}
    functions = (
        lambda p, t: predicted(network, p, t),
        lambda p, t: penalised(network, p, t),
    )
    for training in (False, True, False):
        network.train(training)
        untouched = Untouched(network, PHI)
        for _ in range(2):
            found = bilevel.implicit_grad(*functions, PHI, theta, compile=True, **options)
            wanted = bilevel.implicit_grad(*functions, PHI, theta, **options)
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
        untouched.check()


def _random(p: Tensor, t: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return _inner(p, nn.functional.dropout(t, 0.5), x, y)


def _reading(p: Tensor, t: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return _inner(p, t, x, y, 1.0 + float(x.sum().item() > 0))


def _deciding(p: Tensor, t: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return _inner(p, t, x, y, 2.0 if t.sum() > 0 else 1.0)


def _drawing(p: Tensor, t: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return _inner(p, t, x, y) + random.random()


def _making(p: Tensor, t: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return _inner(p, t, x, y) + torch.arange(3.0, dtype=F64).numpy().sum() * t.sum()


_RECURRENT = nn.RNN(1, 1, bias=False, batch_first=True, dtype=F64)


def _recurring(p: Tensor, t: Tensor, x: Tensor, y: Tensor) -> Tensor:
    weights = {"weight_ih_l0": t[:1, None], "weight_hh_l0": t[1:2, None]}
    states = torch.func.functional_call(_RECURRENT, weights, (x[..., None],))[0]
    return _inner(p, t, x, y) + states.square().mean()


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        (_recurring, "a recurrent layer"),
        (_random, "random"),
        (_reading, "reads a number"),
        (_deciding, "decides by the value"),
        (_drawing, "differently when it runs twice"),
        (_making, "array"),
    ],
)
def test_what_cannot_be_compiled_is_computed_plainly_with_one_warning(
    inner: Callable[..., Tensor], reason: str
) -> None:
    phi, theta = _data(1, 3)[1], _data(2, 3)[1]
    options: dict[str, Any] = {
        "solver": bilevel.Neumann(4, step=0.05),
        "outer_args": _data(3),
        "inner_args": _data(4),
        "on_failure": "ignore",
    }
    torch.manual_seed(0)
    wanted = bilevel.implicit_grad(_outer, inner, phi, theta, **options)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            torch.manual_seed(0)
            found = bilevel.implicit_grad(_outer, inner, phi, theta, compile=True, **options)
            torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)
    assert [warning.category for warning in seen] == [bilevel.CompileWarning]
    assert reason in str(seen[0].message)
    assert inner.__name__ in str(seen[0].message)
    assert seen[0].filename == __file__


def _weather(p: Tensor, t: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return _inner(p, t, x, y, float(os.environ["BILEVEL_TEST_WEIGHT"]))


def test_a_change_that_no_one_can_see_is_found_out_by_the_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BILEVEL_TEST_WEIGHT", "1.0")
    assert_as_eager(_weather)
    monkeypatch.setenv("BILEVEL_TEST_WEIGHT", "4.0")
    with pytest.warns(bilevel.CompileWarning, match="cannot be seen from outside"):
        assert_as_eager(_weather)
    assert_as_eager(_weather)


def test_shapes_that_keep_changing_are_no_longer_compiled(traced: Traces) -> None:
    for rows in range(4, 12):
        assert_as_eager(_inner, inner_args=_data(1, rows))
    with pytest.warns(bilevel.CompileWarning, match="another kind 8 times"):
        assert_as_eager(_inner, inner_args=_data(1, 20))
    for rows in range(21, 40):
        assert_as_eager(_inner, inner_args=_data(1, rows))
    assert len(traced) == 8


def test_shapes_that_come_again_may_be_many(traced: Traces) -> None:
    for rows in range(4, 16):
        for seed in range(2):
            assert_as_eager(_inner, seed, inner_args=_data(1, rows))
    assert len(traced) == 12


def test_programs_are_dropped_and_what_they_held_goes_with_them() -> None:
    big = torch.ones(3, dtype=F64)
    gone = weakref.ref(big)
    assert_as_eager(lambda p, t, x, y, big=big: _inner(p, t * big, x, y))
    del big
    batches = [_data(1), _data(2)]
    held = [weakref.ref(tensor) for batch in batches for tensor in batch]
    assert_as_eager(_inner, outer_args=batches[0], inner_args=batches[1])
    del batches
    gc.collect()
    assert all(reference() is None for reference in held)
    assert gone() is not None
    dispatch.forget()
    gc.collect()
    assert gone() is None


def test_what_the_plain_way_refuses_is_refused_at_every_call() -> None:
    problem = quadratic()
    options: dict[str, Any] = {"solver": bilevel.Neumann(3, step=0.05), "compile": True}
    arguments = (problem.outer, problem.inner)
    bilevel.implicit_grad(*arguments, problem.phi, problem.theta, **options)
    bad = problem.theta.clone()
    bad[0] = torch.nan
    with pytest.raises(bilevel.NonFiniteError, match="theta"):
        bilevel.implicit_grad(*arguments, problem.phi, bad, **options)
    with pytest.raises(bilevel.InputError, match="float32"):
        bilevel.implicit_grad(*arguments, problem.phi.float(), problem.theta, **options)
    leaf = problem.theta.clone().requires_grad_()
    with pytest.raises(bilevel.InputError, match="past its arguments"):
        bilevel.implicit_grad(
            problem.outer, lambda p, t: problem.inner(p, t + leaf), problem.phi, leaf, **options
        )


def test_divergence_and_negative_curvature_are_said_as_ever() -> None:
    problem = quadratic()
    for _ in range(3):
        with pytest.warns(bilevel.ConvergenceWarning, match="DIVERGED"):
            bilevel.implicit_grad(
                problem.outer, problem.inner, problem.phi, problem.theta, compile=True,
                solver=bilevel.Neumann(10, step=1.0),
            )  # fmt: skip


def test_options_that_have_no_compiled_form_are_refused() -> None:
    with pytest.raises(bilevel.InputError, match="compile=True"):
        bilevel.ImplicitProblem(_outer, _inner, hvp="finite_difference", compile=True)
