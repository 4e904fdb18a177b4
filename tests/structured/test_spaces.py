from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from structured.spaces import Labels, Mask, Space, Tags

torch_seed = st.integers(0, 2**32 - 1)
REAL = torch.tensor([[True, True, True], [True, False, False]])
SPACES: dict[str, tuple[Space, tuple[int, ...]]] = {
    "labels": (Labels(4), (2, 4)),
    "mask": (Mask(2, 3), (2, 2, 3)),
    "tags": (Tags(3), (2, 3, 3)),
    "tags with padding": (Tags(3, REAL), (2, 3, 3)),
}
spaces = pytest.mark.parametrize(("space", "shape"), SPACES.values(), ids=SPACES)


def randn(shape: tuple[int, ...], seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def inside(space: Space, point: Tensor) -> bool:
    """Whether a point lies in the space; padded positions of tags are zero."""
    if not isinstance(space, Tags):
        return bool(((point >= 0) & (point <= 1)).all())
    sums = point.sum(dim=-1)
    real = torch.ones_like(sums, dtype=torch.bool) if space.mask is None else space.mask
    return bool((point >= 0).all()) and torch.allclose(sums, real.to(sums.dtype).expand_as(sums))


@spaces
@given(seed=torch_seed, scale=st.sampled_from([1.0, 30.0, 1e4]))
def test_relaxing_projecting_rounding_and_stepping_all_stay_inside(
    space: Space, shape: tuple[int, ...], seed: int, scale: float
) -> None:
    logits = randn((5, *shape), seed, scale)
    point = space.relax(logits)
    for value in (
        point,
        space.project(logits),
        space.round(point),
        space.hard(logits),
        space.mirror_step(point, logits, rate=0.7),
        space.mirror_step(space.round(point), logits, rate=0.7, entropy=0.1),
    ):
        assert inside(space, value)


@spaces
def test_an_entropic_mirror_step_stays_strictly_inside(
    space: Space, shape: tuple[int, ...]
) -> None:
    moved = space.mirror_step(space.relax(randn(shape)), randn(shape, 1), rate=2.0)
    real = space.uniform(shape[: -space.event_dims] if not isinstance(space, Tags) else shape[:-1])
    assert bool(((moved > 0) & (moved < 1))[real > 0].all())


@spaces
def test_the_dual_of_a_point_relaxes_back_to_it(space: Space, shape: tuple[int, ...]) -> None:
    point = space.relax(randn(shape))
    torch.testing.assert_close(space.relax(space.dual(point)), point)


@spaces
@given(seed=torch_seed)
def test_projection_is_the_nearest_point_of_the_space(
    space: Space, shape: tuple[int, ...], seed: int
) -> None:
    outside = randn(shape, seed, 2.0)
    nearest = space.project(outside)
    torch.testing.assert_close(space.project(nearest), nearest)
    # Optimality: <outside - nearest, z - nearest> <= 0 for all z, that is a Frank-Wolfe gap of 0.
    gradient = torch.where(nearest.sum(-1, keepdim=True) == 0, 0.0, nearest - outside)
    if not isinstance(space, Tags):
        gradient = nearest - outside
    torch.testing.assert_close(
        space.gap(nearest, gradient), torch.zeros(shape[0], dtype=torch.float64)
    )


@spaces
@given(seed=torch_seed)
def test_the_gap_is_never_negative_and_bounds_a_linear_energy_exactly(
    space: Space, shape: tuple[int, ...], seed: int
) -> None:
    gradient = randn(shape, seed)
    best = space.hard(-gradient)
    dims = tuple(range(-space.event_dims, 0))
    torch.testing.assert_close(space.linear_minimum(gradient), (gradient * best).sum(dim=dims))
    point = space.relax(randn(shape, seed + 1))
    assert bool((space.gap(point, gradient) >= 0).all())
    torch.testing.assert_close(
        space.gap(point, gradient), (gradient * (point - best)).sum(dim=dims)
    )


@spaces
def test_the_mirror_step_minimises_its_own_objective(space: Space, shape: tuple[int, ...]) -> None:
    point, gradient = space.relax(randn(shape)), randn(shape, 1)
    rate, entropy = 0.3, 0.4
    logits = space.dual(space.mirror_step(point, gradient, rate, entropy)).requires_grad_()
    new = space.relax(logits)
    dims = tuple(range(-space.event_dims, 0))
    # KL(new || point) = -H(new) - <new, log point> up to what normalises both.
    divergence = -space.entropy(logits) - space.log_prob(space.dual(point), new)
    objective = (gradient * new).sum(dim=dims) - entropy * space.entropy(logits) + divergence / rate
    (slope,) = torch.autograd.grad(objective.sum(), logits)
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-8, rtol=0.0)


def test_spens_published_update_is_the_mirror_step_with_twice_the_rate() -> None:
    space, eta, weight = Labels(4), 0.1, 0.5
    y, gradient = space.relax(randn((2, 4))), randn((2, 4), 1)
    published = torch.sigmoid((torch.logit(y) - 2 * eta * gradient) / (1 + 2 * eta * weight))
    torch.testing.assert_close(space.mirror_step(y, gradient, 2 * eta, weight), published)


def outputs_of(space: Space, shape: tuple[int, ...]) -> Tensor:
    """Every hard output of a small space, ``[count, 1, *event]``."""
    if isinstance(space, Tags):
        rows = product(range(shape[-1]), repeat=shape[-2])
        return torch.stack([torch.eye(shape[-1])[list(row)] for row in rows])[:, None].double()
    bits = product([0.0, 1.0], repeat=int(torch.tensor(shape[1:]).prod()))
    return torch.tensor(list(bits), dtype=torch.float64).reshape(-1, 1, *shape[1:])


@pytest.mark.parametrize(
    ("space", "shape"), [(Labels(3), (1, 3)), (Mask(2, 2), (1, 2, 2)), (Tags(3), (1, 2, 3))]
)
def test_probabilities_sum_to_one_and_entropy_is_minus_the_mean_log_probability(
    space: Space, shape: tuple[int, ...]
) -> None:
    logits = randn(shape)
    outputs = outputs_of(space, shape)
    logs = space.log_prob(logits, outputs)
    one = torch.ones(1, dtype=torch.float64)
    torch.testing.assert_close(logs.exp().sum(dim=0), one)
    torch.testing.assert_close(space.entropy(logits), -(logs.exp() * logs).sum(dim=0))
    mean = (logs.exp().reshape(-1, *[1] * len(shape)) * outputs).sum(dim=0)
    torch.testing.assert_close(space.relax(logits), mean)


@spaces
def test_entropy_and_log_probability_are_finite_with_finite_gradients_at_huge_logits(
    space: Space, shape: tuple[int, ...]
) -> None:
    logits = randn(shape, 0, 1e4).float().requires_grad_()
    value = space.entropy(logits) + space.log_prob(logits, space.hard(-logits.detach()))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert bool(value.isfinite().all() and gradient.isfinite().all())


@spaces
def test_the_centre_has_the_largest_entropy(space: Space, shape: tuple[int, ...]) -> None:
    leading = shape[:-1] if isinstance(space, Tags) else shape[: -space.event_dims]
    centre = space.uniform(leading, dtype=torch.float64)
    assert centre.shape == shape
    assert inside(space, centre)
    largest = space.entropy(space.dual(centre))
    assert bool((space.entropy(randn(shape)) < largest).all())


def test_padding_changes_no_tag_quantity_of_the_real_positions() -> None:
    logits, y = randn((2, 3, 3)), Tags(3).round(randn((2, 3, 3), 1))
    padded = Tags(3, REAL)
    for b, length in enumerate([3, 1]):
        alone, part = Tags(3), slice(b, b + 1)
        own = logits[part, :length]
        torch.testing.assert_close(padded.entropy(logits)[part], alone.entropy(own))
        torch.testing.assert_close(padded.relax(logits)[part, :length], alone.relax(own))
        torch.testing.assert_close(
            padded.log_prob(logits, y)[part], alone.log_prob(own, y[part, :length])
        )
    assert not padded.relax(logits)[1, 1:].any()


@pytest.mark.parametrize(
    ("space", "shape"), [(Labels(4), (2, 5)), (Mask(2, 3), (2, 3, 2)), (Tags(3, REAL), (2, 4, 3))]
)
def test_a_wrong_shape_is_refused_with_both_shapes_named(
    space: Space, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=rf"logits: found shape \({shape[0]}, .*wanted \["):
        space.relax(torch.zeros(shape))


def test_impossible_spaces_are_refused() -> None:
    with pytest.raises(ValueError, match="n: found 0"):
        Labels(0)
    with pytest.raises(ValueError, match="width: found 0"):
        Mask(3, 0)
    with pytest.raises(ValueError, match="n_tags: found 1"):
        Tags(1)
    with pytest.raises(ValueError, match=r"mask: found torch\.float32"):
        Tags(3, torch.ones(2, 2))


def test_spaces_compare_by_size_not_by_the_batch_they_are_used_on() -> None:
    assert Labels(3) == Labels(3) != Labels(4)
    assert Tags(3) == Tags(3).with_mask(REAL)
