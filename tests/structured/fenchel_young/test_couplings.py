from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from structured.fenchel_young import (
    ConvexCoupling,
    Coupling,
    InputCoupling,
    NetworkCoupling,
    NoCoupling,
    PairwiseCoupling,
)

LABELS, FEATURES = 5, 3
MAKERS: dict[str, Callable[[], Coupling]] = {
    "unary": NoCoupling,
    "pairwise": lambda: PairwiseCoupling(LABELS, rank=2),
    "full pairwise": lambda: PairwiseCoupling(LABELS, rank=LABELS + 2),
    "network": lambda: NetworkCoupling(LABELS, size=4),
    "input-convex": lambda: ConvexCoupling(LABELS, size=4),
    "linear-concave": lambda: InputCoupling(FEATURES, LABELS, rank=4),
}
kinds = pytest.mark.parametrize("kind", MAKERS)
seeds = st.integers(0, 2**32 - 1)


def make(kind: str, seed: int = 0, scale: float = 2.0) -> tuple[Coupling, Tensor]:
    torch.manual_seed(seed)
    coupling = MAKERS[kind]().double()
    with torch.no_grad():
        for leaf in coupling.parameters():
            leaf.mul_(scale).add_(0.3 * torch.randn_like(leaf))
    return coupling, torch.randn(2, FEATURES, dtype=torch.float64)


@kinds
@given(seed=seeds)
@settings(max_examples=20)
def test_no_eigenvalue_of_the_hessian_exceeds_the_curvature(kind: str, seed: int) -> None:
    coupling, x = make(kind, seed)
    p = torch.rand(LABELS, dtype=torch.float64)
    bound = coupling.curvature()
    for row in x.split(1):

        def value(point: Tensor, x: Tensor = row) -> Tensor:
            # No coupling has no graph; the second term brings one.
            return coupling(x, point[None]).sum() + 0.0 * point.square().sum()

        values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(value, p))
        assert float(values[-1]) <= bound * (1 + 1e-9) + 1e-12
        if coupling.convex:
            assert float(values[0]) >= -1e-9


@kinds
def test_points_in_front_of_the_batch_are_evaluated_one_by_one(kind: str) -> None:
    coupling, x = make(kind)
    points = torch.rand(3, 2, LABELS, dtype=torch.float64)
    together = coupling(x, points)
    assert together.shape == (3, 2)
    torch.testing.assert_close(together, torch.stack([coupling(x, p) for p in points]))


@kinds
@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_the_slope_is_the_gradient_in_the_point(kind: str, seed: int) -> None:
    coupling, x = make(kind, seed)
    points = torch.rand(3, 2, LABELS, dtype=torch.float64, requires_grad=True)
    total = coupling(x, points).sum() + 0.0 * points.sum()  # no coupling has no graph
    (expected,) = torch.autograd.grad(total, points)
    torch.testing.assert_close(coupling.slope(x)(points.detach()), expected)


def test_the_pairwise_coupling_is_a_concave_quadratic_in_the_papers_sign() -> None:
    coupling, x = make("pairwise")
    assert isinstance(coupling, PairwiseCoupling)
    p = torch.rand(2, LABELS, dtype=torch.float64)
    negative = -coupling.factors @ coupling.factors.T
    torch.testing.assert_close(-coupling(x, p), 0.5 * torch.einsum("bi,ij,bj->b", p, negative, p))
    values = torch.linalg.eigvalsh(negative.detach())
    assert float(values[-1]) < 1e-12
    assert coupling.curvature() == pytest.approx(-float(values[0]))


def test_two_labels_may_attract_each_other_under_a_convex_coupling() -> None:
    coupling = PairwiseCoupling(2, rank=1)
    with torch.no_grad():
        coupling.factors.copy_(torch.tensor([[1.0], [-1.0]]))
    none, first, second, both = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    values = coupling(torch.zeros(1, 1), torch.stack([none, first, second, both])[:, None])
    together, apart = values[[0, 3]].sum(), values[[1, 2]].sum()
    assert bool(together < apart)


def test_only_the_linear_concave_coupling_sees_the_input() -> None:
    for kind in MAKERS:
        coupling, x = make(kind)
        p = torch.rand(2, LABELS, dtype=torch.float64)
        same = torch.equal(coupling(x, p), coupling(x + 1.0, p))
        assert same == (kind != "linear-concave")


@kinds
def test_a_coupling_starts_at_order_one_whatever_the_number_of_labels(kind: str) -> None:
    torch.manual_seed(0)
    sizes = {"unary": NoCoupling(), "pairwise": PairwiseCoupling(400, 16)}
    sizes |= {"full pairwise": PairwiseCoupling(400, 400), "network": NetworkCoupling(400)}
    sizes |= {"input-convex": ConvexCoupling(400), "linear-concave": InputCoupling(3, 400)}
    assert sizes[kind].curvature() < 10.0


@pytest.mark.parametrize("cls", [PairwiseCoupling, NetworkCoupling, ConvexCoupling])
def test_a_size_below_one_is_refused(cls: Callable[[int, int], Coupling]) -> None:
    with pytest.raises(ValueError, match="wanted at least 1"):
        cls(3, 0)
