"""Coupled labels: inference, its certificate, and the loss with the gradient at a fixed p*."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear, minimize
from torch import Tensor

from structured.costs import hamming
from structured.fenchel_young import (
    ConvexCoupling,
    Coupling,
    GeneralizedFenchelYoung,
    InnerGapError,
    InputCoupling,
    NegativeEntropy,
    NetworkCoupling,
    PairwiseCoupling,
    Prediction,
    Regularizer,
    SquaredNorm,
    augmented,
    coordinate_ascent,
)
from structured.inference import brute_force
from structured.spaces import Labels

LABELS, SPACE = 4, Labels(4)
CONVEX = {
    "pairwise": lambda: PairwiseCoupling(LABELS, rank=2),
    "input-convex": lambda: ConvexCoupling(LABELS, size=3),
    "linear-concave": lambda: InputCoupling(2, LABELS, rank=3),
}
COUPLINGS = CONVEX | {"network": lambda: NetworkCoupling(LABELS, size=3)}
convex = pytest.mark.parametrize("kind", CONVEX)
regularizers = pytest.mark.parametrize(
    "regularizer", [SquaredNorm(0.7), NegativeEntropy(0.5)], ids=["norm", "entropy"]
)
seeds = st.integers(0, 2**32 - 1)


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


class Problem:
    """A coupling with random parameters, some local terms, and the loss over them."""

    def __init__(self, kind: str, regularizer: Regularizer, *, seed: int = 0, **options: Any):
        torch.manual_seed(seed)
        self.coupling: Coupling = COUPLINGS[kind]().double()
        self.u, self.x = 2.0 * randn(3, LABELS, seed=seed), randn(3, 2, seed=seed + 1)
        self.loss = GeneralizedFenchelYoung(SPACE, regularizer, **{"steps": 150, **options})

    def energy(self, p: Tensor) -> Tensor:
        return -(self.u * p).sum(dim=-1) + self.coupling(self.x, p)

    def objective(self, p: Tensor) -> Tensor:
        return self.energy(p).detach() + self.loss.regularizer.value(p, SPACE)

    def predict(self) -> Prediction:
        start = SPACE.uniform((3,), dtype=torch.float64)
        return self.loss.predict(self.energy, start, curvature=self.coupling.curvature())

    def value(self, gold: Tensor) -> Tensor:
        return self.loss(self.energy, gold, self.predict().point)


@regularizers
@pytest.mark.parametrize("kind", COUPLINGS)
def test_inference_ends_where_no_other_optimizer_finds_less(
    kind: str, regularizer: Regularizer
) -> None:
    problem = Problem(kind, regularizer)
    found = problem.predict()
    value = problem.objective(found.point)
    assert bool((found.gap < 1e-6).all())
    for row in range(3):

        def single(p: np.ndarray, row: int = row) -> float:
            points = found.point.clone()
            points[row] = torch.from_numpy(p)
            return float(problem.objective(points)[row])

        others = [
            minimize(single, start, bounds=[(0.0, 1.0)] * LABELS, method="L-BFGS-B").fun
            for start in np.random.default_rng(0).uniform(size=(3, LABELS))
        ]
        assert float(value[row]) < min(others) + 1e-6


def test_the_pairwise_model_solves_a_bounded_least_squares_problem() -> None:
    problem = Problem("pairwise", SquaredNorm(0.7))
    point = problem.predict().point
    assert isinstance(problem.coupling, PairwiseCoupling)
    factors = problem.coupling.factors.detach()
    ascended = coordinate_ascent(
        problem.u, factors, torch.zeros(3, LABELS).double(), weight=0.7, sweeps=60
    )
    for row in range(3):
        # 1/2 ||A p - b||^2 with A'A = BB' + 0.7 I and A'b = u.
        root = torch.linalg.cholesky(factors @ factors.T + 0.7 * torch.eye(LABELS).double()).T
        target = torch.linalg.solve(root.T, problem.u[row])
        exact = lsq_linear(root.numpy(), target.numpy(), bounds=(0, 1), tol=1e-14).x
        np.testing.assert_allclose(point[row].numpy(), exact, atol=1e-7)
        np.testing.assert_allclose(ascended[row].numpy(), exact, atol=1e-9)


@given(seed=seeds, weight=st.floats(0.2, 3.0))
@settings(max_examples=20)
def test_every_sweep_of_coordinate_ascent_ascends_and_per_example_factors_fit(
    seed: int, weight: float
) -> None:
    u, factors = 2.0 * randn(3, LABELS, seed=seed), randn(3, LABELS, 2, seed=seed + 1)

    def value(p: Tensor) -> Tensor:
        image = torch.einsum("bl,blm->bm", p, factors)
        return (u * p).sum(-1) - 0.5 * image.square().sum(-1) - weight / 2 * p.square().sum(-1)

    start = torch.rand(3, LABELS, dtype=torch.float64)
    values = [value(start)]
    for sweeps in (1, 2, 4):
        point = coordinate_ascent(u, factors, start, weight=weight, sweeps=sweeps)
        assert bool(((point >= 0) & (point <= 1)).all())
        values.append(value(point))
    assert bool((torch.stack(values).diff(dim=0) >= -1e-12).all())
    alone = coordinate_ascent(u[1], factors[1], start[1], weight=weight, sweeps=4)
    torch.testing.assert_close(alone, point[1])


@regularizers
@convex
@given(seed=seeds, steps=st.integers(1, 30), accelerated=st.booleans())
@settings(max_examples=5)
def test_the_gap_bounds_how_far_inference_is_from_the_minimum(
    kind: str, regularizer: Regularizer, seed: int, steps: int, accelerated: bool
) -> None:
    early = Problem(kind, regularizer, seed=seed, steps=steps, accelerated=accelerated)
    least = early.objective(Problem(kind, regularizer, seed=seed, steps=200).predict().point)
    found = early.predict()
    assert bool((early.objective(found.point) <= least + found.gap + 1e-9).all())


@regularizers
@pytest.mark.parametrize("kind", COUPLINGS)
def test_plain_inference_descends_at_every_step(kind: str, regularizer: Regularizer) -> None:
    values = [
        Problem(kind, regularizer, steps=steps, accelerated=False) for steps in (1, 2, 3, 5, 9)
    ]
    objectives = torch.stack([one.objective(one.predict().point) for one in values])
    assert bool((objectives.diff(dim=0) <= 1e-12).all())


def test_a_gap_past_the_tolerance_is_refused_and_so_is_one_that_is_no_number() -> None:
    assert Problem("pairwise", SquaredNorm(), tolerance=1e-6).predict().gap.max() < 1e-6
    with pytest.raises(InnerGapError, match="take more steps"):
        Problem("pairwise", SquaredNorm(), steps=1, tolerance=1e-6).predict()
    loss = GeneralizedFenchelYoung(SPACE, tolerance=1.0)
    with pytest.raises(InnerGapError):
        loss.certify(lambda p: p.sum(dim=-1) * float("nan"), torch.zeros(1, LABELS))


@regularizers
@convex
def test_the_loss_is_at_least_zero_on_every_label_set_and_grows_away_from_the_prediction(
    kind: str, regularizer: Regularizer
) -> None:
    problem = Problem(kind, regularizer)
    point = problem.predict().point
    strength = regularizer.strength(SPACE)
    sets = brute_force(problem.energy, LABELS, batch=3, dtype=torch.float64).points
    for gold in sets[:, None].expand(-1, 3, -1):
        value = problem.loss(problem.energy, gold, point)
        least = 0.5 * strength * (gold - point).square().sum(dim=-1)
        assert bool((value >= least - 1e-7).all())


@regularizers
@pytest.mark.parametrize("kind", COUPLINGS)
def test_the_loss_is_zero_at_the_prediction(kind: str, regularizer: Regularizer) -> None:
    problem = Problem(kind, regularizer)
    assert not problem.value(problem.predict().point).any()


@regularizers
@convex
def test_the_gradient_is_that_of_the_loss_solved_anew_by_central_differences(
    kind: str, regularizer: Regularizer
) -> None:
    problem = Problem(kind, regularizer)
    gold = (randn(3, LABELS, seed=5) > 0).double()
    problem.u.requires_grad_()
    leaves = [problem.u, *problem.coupling.parameters()]
    gradients = torch.autograd.grad(problem.value(gold).sum(), leaves)
    starts = [leaf.detach().clone() for leaf in leaves]
    for seed in range(3):
        directions = [randn(*leaf.shape, seed=10 * seed + n) for n, leaf in enumerate(leaves)]
        values = []
        for step in (1e-4, -1e-4):
            with torch.no_grad():
                for leaf, start, direction in zip(leaves, starts, directions, strict=True):
                    leaf.copy_(start + step * direction)
            values.append(problem.value(gold).sum().item())
        difference = (values[0] - values[1]) / 2e-4
        slope = sum((g * d).sum().item() for g, d in zip(gradients, directions, strict=True))
        assert slope == pytest.approx(difference, rel=1e-5, abs=1e-6)


def test_no_gradient_passes_through_the_prediction() -> None:
    problem = Problem("pairwise", SquaredNorm())
    assert isinstance(problem.coupling, PairwiseCoupling)
    gold = torch.zeros(3, LABELS, dtype=torch.float64)
    point = problem.predict().point
    value = problem.loss(problem.energy, gold, point.clone().requires_grad_())
    (gradient,) = torch.autograd.grad(value.sum(), problem.coupling.factors)
    image = point.T @ (point @ problem.coupling.factors.detach())
    torch.testing.assert_close(gradient, -image)


@given(seed=seeds, share=st.floats(0.0, 1.0))
@settings(max_examples=8)
def test_a_linear_concave_energy_has_a_loss_convex_in_all_its_coefficients(
    seed: int, share: float
) -> None:
    directions, gold = randn(3, LABELS, seed=seed), (randn(2, LABELS, seed=seed + 1) > 0).double()
    bound = float(torch.linalg.matrix_norm(directions, ord=2) ** 2)
    loss = GeneralizedFenchelYoung(SPACE, steps=200)

    def at(u: Tensor, w: Tensor) -> Tensor:
        def energy(p: Tensor) -> Tensor:
            return 0.5 * (w * (p @ directions.T).square()).sum(-1) - (u * p).sum(-1)

        start = SPACE.uniform((2,), dtype=torch.float64)
        return loss(energy, gold, loss.predict(energy, start, curvature=bound).point)

    left, right = ((2 * randn(2, LABELS, seed=s), randn(2, 3, seed=s).sigmoid()) for s in (2, seed))
    middle = [share * a + (1 - share) * b for a, b in zip(left, right, strict=True)]
    assert bool((at(*middle) <= share * at(*left) + (1 - share) * at(*right) + 1e-6).all())


@convex
def test_a_cost_makes_the_loss_no_smaller(kind: str) -> None:
    problem, gold = Problem(kind, SquaredNorm()), torch.eye(LABELS).double()[:3]
    harder = augmented(problem.energy, lambda p, y: 3.0 * hamming(p, y), gold)
    start = SPACE.uniform((3,), dtype=torch.float64)
    found = problem.loss.predict(harder, start, curvature=problem.coupling.curvature())
    plain = problem.value(gold)
    assert bool((problem.loss(harder, gold, found.point) >= plain - 1e-9).all())
    assert bool((found.gap < 1e-6).all())


def test_acceleration_is_taken_where_the_curvature_is_large() -> None:
    loss = GeneralizedFenchelYoung(SPACE, SquaredNorm(), steps=30)
    assert not loss._acceleration_pays(0.0)
    assert not loss._acceleration_pays(2.0)
    assert loss._acceleration_pays(50.0)


@pytest.mark.parametrize(
    ("options", "match"),
    [({"steps": 0}, "steps"), ({"tolerance": 0.0}, "tolerance"), ({"tolerance": -1.0}, "toler")],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        GeneralizedFenchelYoung(SPACE, **options)
    with pytest.raises(ValueError, match="weight"):
        SquaredNorm(0.0)
    with pytest.raises(ValueError, match="curvature"):
        GeneralizedFenchelYoung(SPACE).predict(
            lambda p: p.sum(-1), torch.zeros(1, LABELS), curvature=-1.0
        )
    with pytest.raises(ValueError, match="sweeps"):
        coordinate_ascent(torch.zeros(2), torch.zeros(2, 1), torch.zeros(2), sweeps=0)
