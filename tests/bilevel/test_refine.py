"""Polishing theta: to the tolerance, from anywhere sensible, without touching the start."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import bilevel
from tests.bilevel.cubes import OnceDifferentiableBowl


def logistic(phi: Tensor, theta: dict[str, Tensor]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    y = (x[:, 0] > 0).double()
    logits = x @ theta["w"] + theta["b"]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y)
    return loss + 0.5 * phi.exp() * ((theta["w"] ** 2).sum() + theta["b"] ** 2)


def start() -> dict[str, Tensor]:
    return {"w": torch.zeros(4, dtype=torch.float64), "b": torch.ones((), dtype=torch.float64)}


PHI = torch.tensor(-3.0, dtype=torch.float64)
PROBLEM = bilevel.ImplicitProblem(lambda phi, theta: theta["w"].sum() + phi, logistic)


@pytest.mark.parametrize(
    ("optimizer", "max_steps"),
    [
        (None, 100),
        (
            lambda leaves: torch.optim.LBFGS(
                leaves, line_search_fn="strong_wolfe", tolerance_grad=0.0, tolerance_change=0.0
            ),
            50,
        ),
        (lambda leaves: torch.optim.SGD(leaves, lr=1.0), 3000),
    ],
    ids=["newton", "lbfgs", "sgd"],
)
def test_every_way_reaches_the_tolerance(
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer] | None, max_steps: int
) -> None:
    theta = PROBLEM.refine(PHI, start(), tolerance=1e-7, optimizer=optimizer, max_steps=max_steps)
    assert PROBLEM.stationarity(PHI, theta) <= 1e-7


def test_newton_gets_to_rounding_in_double_precision() -> None:
    theta = PROBLEM.refine(PHI, start(), tolerance=1e-13)
    assert PROBLEM.stationarity(PHI, theta) <= 1e-13


def test_the_start_is_not_changed_and_the_answer_needs_no_grad() -> None:
    theta = start()
    refined = PROBLEM.refine(PHI, theta)
    assert all(torch.equal(leaf, start()[name]) for name, leaf in theta.items())
    assert not any(leaf.requires_grad for leaf in refined.values())


def test_it_descends_from_a_start_of_negative_curvature() -> None:
    problem = bilevel.ImplicitProblem(
        lambda phi, theta: theta.sum(), lambda phi, theta: ((theta**2 - phi) ** 2).sum()
    )
    phi = torch.ones(3, dtype=torch.float64)
    theta = problem.refine(phi, torch.full((3,), 0.1, dtype=torch.float64), tolerance=1e-10)
    torch.testing.assert_close(theta, torch.ones(3, dtype=torch.float64))


def test_a_missed_tolerance_warns_with_both_figures() -> None:
    with pytest.warns(bilevel.ConvergenceWarning, match=r"refine stopped.*tolerance 1.00e-12"):
        PROBLEM.refine(PHI, start(), tolerance=1e-12, max_steps=1)


def test_a_minimum_is_left_where_it_is() -> None:
    theta = PROBLEM.refine(PHI, start(), tolerance=1e-12)
    again = PROBLEM.refine(PHI, theta, tolerance=1e-11)
    assert all(torch.equal(leaf, again[name]) for name, leaf in theta.items())


def test_an_objective_that_becomes_infinite_is_named() -> None:
    problem = bilevel.ImplicitProblem(
        lambda phi, theta: theta.sum(), lambda phi, theta: (phi * theta).log().sum()
    )
    with pytest.raises(bilevel.NonFiniteError):
        problem.refine(torch.ones(2), torch.full((2,), -1.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "max_steps must be an integer of at least 1, found 0"),
        ({"max_steps": 1.5}, "max_steps must be an integer of at least 1, found 1.5"),
        ({"max_steps": True}, "max_steps must be an integer of at least 1, found True"),
        ({"tolerance": -1.0}, "tolerance must be a finite number"),
        ({"tolerance": float("nan")}, "tolerance must be a finite number"),
        ({"tolerance": float("inf")}, "tolerance must be a finite number"),
        ({"optimizer": "newton"}, "optimizer must be a function from leaves"),
        ({"optimizer": torch.optim.SGD([torch.zeros(1)], lr=1.0)}, "optimizer must be a function"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(bilevel.InputError, match=message):
        PROBLEM.refine(PHI, start(), **options)


def _rosenbrock(phi: Tensor, theta: list[Tensor]) -> Tensor:
    x = torch.cat([leaf.reshape(-1) for leaf in theta])
    return (phi * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


@pytest.mark.parametrize("hvp", ["auto", "reverse", "forward_over_reverse", "finite_difference"])
def test_newton_goes_round_a_bend_from_a_start_that_is_not_convex(hvp: Any) -> None:
    problem = bilevel.ImplicitProblem(lambda p, t: t[0].sum(), _rosenbrock, hvp=hvp)
    phi = torch.tensor(100.0, dtype=torch.float64)
    theta = [torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor(-0.5).double()]
    assert float(torch.linalg.eigvalsh(problem.operator(phi, theta).to_dense())[0]) < 0
    found = problem.refine(phi, theta, tolerance=1e-9, max_steps=200)
    for leaf in found:
        torch.testing.assert_close(leaf, torch.ones_like(leaf), rtol=1e-7, atol=0)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_scale_of_the_objective_changes_nothing_but_the_stationarity(scale: float) -> None:
    problem = bilevel.ImplicitProblem(
        lambda p, t: t["w"].sum(), lambda p, t: scale * logistic(p, t)
    )
    theta = problem.refine(PHI, start())
    wanted = PROBLEM.refine(PHI, start(), tolerance=1e-13)
    for name, leaf in wanted.items():
        torch.testing.assert_close(theta[name], leaf, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_default_tolerance_can_be_met_in_every_precision(dtype: torch.dtype) -> None:
    def ridge(phi: Tensor, theta: Tensor) -> Tensor:
        x = torch.linspace(-1, 1, 20, dtype=dtype).unsqueeze(1) ** torch.arange(4)
        return ((x @ theta - x[:, 1].sin()) ** 2).mean() + phi.exp() * (theta**2).sum()

    problem = bilevel.ImplicitProblem(lambda p, t: t.sum(), ridge)
    phi = torch.tensor(-4.0, dtype=dtype)
    theta = problem.refine(phi, torch.full((4,), 3.0, dtype=dtype))
    again = problem.refine(phi, theta)  # also from there, with a tolerance of its own
    torch.testing.assert_close(theta, again, rtol=1e-2, atol=1e-3)
    assert problem.stationarity(phi, again) < 1e-3


def test_damping_does_not_move_the_minimum() -> None:
    damped = bilevel.ImplicitProblem(PROBLEM.outer, logistic, damping=0.1)
    theta = damped.refine(PHI, start(), tolerance=1e-10)
    assert PROBLEM.stationarity(PHI, theta) <= 1e-10


def test_a_fallback_of_the_products_is_warned_of_once() -> None:
    def inner(phi: Tensor, theta: Tensor) -> Tensor:
        cubed: Any = OnceDifferentiableBowl.apply(theta)
        return cubed.sum() + ((theta - phi) ** 2).sum()

    problem = bilevel.ImplicitProblem(lambda p, t: t.sum(), inner)
    phi = torch.tensor([2.0, -5.0], dtype=torch.float64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        theta = problem.refine(phi, torch.zeros(2, dtype=torch.float64), tolerance=1e-8)
    assert [one.category for one in caught] == [bilevel.ProductWarning]
    # 3 |t| t + 2 (t - p) = 0
    wanted = phi.sign() * ((1 + 6 * phi.abs()).sqrt() - 1) / 3
    torch.testing.assert_close(theta, wanted, rtol=1e-8, atol=0)


def test_a_diverging_optimizer_is_named() -> None:
    with pytest.raises(bilevel.NonFiniteError, match="learning rate"):
        PROBLEM.refine(
            PHI, start(), optimizer=lambda leaves: torch.optim.SGD(leaves, lr=1e9), max_steps=500
        )


def test_an_optimizer_that_stalls_is_warned_of_and_its_point_returned() -> None:
    with pytest.warns(bilevel.ConvergenceWarning, match="Raise max_steps"):
        theta = PROBLEM.refine(
            PHI, start(), optimizer=lambda leaves: torch.optim.SGD(leaves, lr=1e-3), max_steps=3
        )
    assert PROBLEM.stationarity(PHI, theta) < PROBLEM.stationarity(PHI, start())


@pytest.mark.parametrize("optimizer", [None, lambda leaves: torch.optim.LBFGS(leaves)])
def test_an_objective_that_autograd_cannot_follow_is_named(optimizer: Any) -> None:
    problem = bilevel.ImplicitProblem(lambda p, t: t.sum(), lambda p, t: (t.detach() ** 2).sum())
    with pytest.raises(bilevel.InputError, match="inner does not depend on its theta argument"):
        problem.refine(PHI, torch.ones(2, dtype=torch.float64), optimizer=optimizer)


def test_leaves_that_the_objective_does_not_use_and_empty_ones_stay_as_they_are() -> None:
    theta = [torch.full((2,), 5.0), torch.full((3,), 7.0), torch.zeros(0, 2)]
    problem = bilevel.ImplicitProblem(
        lambda p, t: t[0].sum(), lambda p, t: ((t[0] - p) ** 2).sum() + t[2].sum()
    )
    found = problem.refine(torch.tensor(1.0), theta)
    torch.testing.assert_close(found[0], torch.ones(2))
    assert torch.equal(found[1], theta[1])
    assert found[2].shape == (0, 2)


@pytest.mark.parametrize("optimizer", [None, lambda leaves: torch.optim.Rprop(leaves)])
def test_parameters_their_gradients_and_versions_are_left_alone(optimizer: Any) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 1, dtype=torch.float64)
    for leaf in layer.parameters():
        leaf.grad = torch.full_like(leaf, 7.0)
    theta = dict(layer.named_parameters())
    versions = [leaf._version for leaf in theta.values()]
    values = [leaf.detach().clone() for leaf in theta.values()]
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
    problem = bilevel.ImplicitProblem(
        lambda p, t: t["bias"].sum(),
        lambda p, t: (
            torch.func.functional_call(layer, t, (x,)).square().mean()
            + 0.1 * (t["weight"] ** 2).sum()
        ),
    )
    found = problem.refine(PHI, theta, optimizer=optimizer, tolerance=1e-4)
    assert problem.stationarity(PHI, found) <= 1e-4
    for leaf, value, version in zip(theta.values(), values, versions, strict=True):
        assert torch.equal(leaf, value)
        assert leaf._version == version
        assert leaf.grad is not None
        assert bool((leaf.grad == 7.0).all())


def test_the_default_tolerance_follows_the_scale_of_the_objective() -> None:
    problem = bilevel.ImplicitProblem(
        lambda phi, theta: theta.sum(), lambda phi, theta: 1e-12 * ((theta - phi) ** 2).sum()
    )
    phi = torch.full((2,), 2.0, dtype=torch.float64)
    theta = problem.refine(phi, torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(theta, phi)
    near = problem.refine(phi, phi + 1e-9)  # a start that is nearly there is no failure
    torch.testing.assert_close(near, phi)


def _stiffness(phi: Tensor, theta: Tensor) -> Tensor:
    """An objective that differentiates an energy in phi by itself; it is least at 2 - phi."""
    energy = (phi**2 / 2 + phi * theta).sum()
    (force,) = torch.autograd.grad(energy, phi, create_graph=True)
    return ((force - 2) ** 2).sum()


@pytest.mark.parametrize("optimizer", [None, lambda leaves: torch.optim.SGD(leaves, lr=0.5)])
@pytest.mark.parametrize("hvp", ["auto", "reverse", "finite_difference"])
def test_an_objective_may_differentiate_in_phi_by_itself(optimizer: Any, hvp: Any) -> None:
    phi = torch.tensor([0.5, -1.0], dtype=torch.float64)
    problem = bilevel.ImplicitProblem(lambda p, t: (t**2).sum(), _stiffness, hvp=hvp)
    theta = problem.refine(phi, torch.zeros_like(phi), optimizer=optimizer)
    torch.testing.assert_close(theta, 2 - phi, rtol=1e-6, atol=0.0)
    assert not theta.requires_grad
    assert not phi.requires_grad
    check = bilevel.check_gradient(problem, phi, theta)
    assert check.ok, check


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.LBFGS])
def test_a_loop_may_have_an_objective_that_differentiates_in_phi_by_itself(kind: Any) -> None:
    phi = torch.tensor([0.5, -1.0], dtype=torch.float64, requires_grad=True)
    theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    loop = bilevel.BilevelOptimizer(
        bilevel.ImplicitProblem(
            lambda p, t: (t[0] ** 2).sum(), lambda p, t: _stiffness(p[0], t[0])
        ),
        torch.optim.SGD([phi], lr=0.1),
        kind([theta], lr=0.5),
    )
    loop.step()  # to 2 - phi, where the hypergradient is -2 theta
    moved = torch.tensor([0.5 + 0.1 * 2 * 1.5, -1.0 + 0.1 * 2 * 3.0], dtype=torch.float64)
    torch.testing.assert_close(phi.detach(), moved, rtol=1e-4, atol=0.0)
    assert phi.grad is None
    assert theta.grad is None
