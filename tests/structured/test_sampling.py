from __future__ import annotations

import pytest
import torch

from structured import sampling
from structured.sampling import (
    DetachedHard,
    DetachedSoft,
    Gumbel,
    GumbelStraightThrough,
    Sampler,
    Soft,
    StraightThrough,
)
from structured.spaces import Labels, Mask, Space, Tags

SAMPLERS = [
    Soft(),
    StraightThrough(),
    Gumbel(0.5),
    GumbelStraightThrough(0.5),
    DetachedHard(),
    DetachedSoft(),
]
HARD = [StraightThrough(), GumbelStraightThrough(0.5), DetachedHard()]
SPACES: list[tuple[Space, tuple[int, ...]]] = [
    (Labels(3), (2, 3)),
    (Mask(2, 2), (2, 2, 2)),
    (Tags(3, torch.tensor([[True, True], [True, False]])), (2, 2, 3)),
]
samplers = pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
hard_samplers = pytest.mark.parametrize("sampler", HARD, ids=str)
spaces = pytest.mark.parametrize(("space", "shape"), SPACES, ids=["labels", "mask", "tags"])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits_of(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=generator(), dtype=torch.float64)


def test_every_sampler_is_tested_here() -> None:
    offered = {
        value
        for value in vars(sampling).values()
        if isinstance(value, type) and issubclass(value, Sampler) and value is not Sampler
    }
    assert {type(sampler) for sampler in SAMPLERS} == offered


@samplers
@spaces
def test_a_sampler_passes_no_gradient_exactly_when_its_name_says_so(
    sampler: Sampler, space: Space, shape: tuple[int, ...]
) -> None:
    logits = logits_of(shape).requires_grad_()
    drawn = space.sample(logits, 4, sampler, generator=generator())
    assert drawn.requires_grad == sampler.passes_gradient
    assert sampler.passes_gradient == (not type(sampler).__name__.startswith("Detached"))
    if sampler.passes_gradient:
        weight = torch.randn(drawn.shape, generator=generator(1), dtype=drawn.dtype)
        (gradient,) = torch.autograd.grad((weight * drawn).sum(), logits)
        assert bool(gradient.abs().sum() > 0)


@samplers
@spaces
def test_samples_come_along_a_new_first_dimension_and_lie_in_the_space(
    sampler: Sampler, space: Space, shape: tuple[int, ...]
) -> None:
    drawn = space.sample(logits_of(shape), 4, sampler, generator=generator())
    assert drawn.shape == (4, *shape)
    torch.testing.assert_close(space.project(drawn), drawn)


@samplers
@spaces
def test_the_same_noise_gives_the_same_samples(
    sampler: Sampler, space: Space, shape: tuple[int, ...]
) -> None:
    logits = logits_of(shape)
    noise = space.noise((4, *shape), generator=generator(), dtype=torch.float64)
    first = space.sample(logits, 4, sampler, noise=noise)
    assert torch.equal(first, space.sample(logits, 4, sampler, noise=noise))
    assert torch.equal(first, space.sample(logits, 4, sampler, generator=generator()))


@hard_samplers
@spaces
def test_hard_samples_have_the_probabilities_of_the_factorised_distribution(
    sampler: Sampler, space: Space, shape: tuple[int, ...]
) -> None:
    count = 40_000
    logits = logits_of(shape)
    drawn = space.sample(logits, count, sampler, generator=generator())
    assert torch.equal(drawn, space.round(drawn))
    # Four standard deviations of a mean of `count` draws.
    torch.testing.assert_close(
        drawn.mean(dim=0), space.relax(logits), rtol=0.0, atol=4 * 0.5 / count**0.5
    )


def test_straight_through_has_the_gradient_of_the_relaxed_point() -> None:
    space, logits = Labels(3), logits_of((2, 3)).requires_grad_()
    drawn = space.sample(logits, 1, StraightThrough(), generator=generator())
    (gradient,) = torch.autograd.grad(drawn.sum(), logits)
    p = torch.sigmoid(logits.detach())
    torch.testing.assert_close(gradient, p * (1 - p))


def test_straight_through_gumbel_lends_the_gradient_of_the_gumbel_sample() -> None:
    space, logits = Labels(3), logits_of((2, 3)).requires_grad_()
    noise = space.noise((5, 2, 3), generator=generator(), dtype=torch.float64)
    gradients = [
        torch.autograd.grad(space.sample(logits, 5, sampler, noise=noise).sum(), logits)[0]
        for sampler in (Gumbel(0.5), GumbelStraightThrough(0.5))
    ]
    torch.testing.assert_close(*gradients)


def test_cold_gumbel_samples_are_the_hard_samples_of_the_same_noise() -> None:
    for space, shape in SPACES:
        logits = logits_of(shape)
        noise = space.noise((50, *shape), generator=generator(), dtype=torch.float64)
        cold = space.sample(logits, 50, Gumbel(1e-6), noise=noise)
        torch.testing.assert_close(cold, space.sample(logits, 50, DetachedHard(), noise=noise))


def test_sampling_composes_with_torch_func_at_fixed_noise() -> None:
    space, logits = Labels(3), logits_of((2, 3))
    noise = space.noise((4, 2, 3), generator=generator(), dtype=torch.float64)

    def energy(z: torch.Tensor) -> torch.Tensor:
        return space.sample(z, 4, Gumbel(0.7), noise=noise).square().sum()

    hessian = torch.func.jacrev(torch.func.grad(energy))(logits).reshape(6, 6)
    torch.testing.assert_close(hessian, hessian.T)
    plain = torch.autograd.functional.hessian(energy, logits)
    assert isinstance(plain, torch.Tensor)
    torch.testing.assert_close(hessian, plain.reshape(6, 6))


def test_noise_is_finite_in_single_precision() -> None:
    for space in (Labels(3), Tags(3)):
        noise = space.noise((1000, 1000, 3), generator=generator())
        assert bool(noise.isfinite().all())


def test_impossible_draws_are_refused() -> None:
    space, logits = Labels(3), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="count: found 0"):
        space.sample(logits, 0, DetachedHard())
    with pytest.raises(ValueError, match=r"noise: found shape \(2, 3\), wanted \(4, 2, 3\)"):
        space.sample(logits, 4, DetachedHard(), noise=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="noise: found None"):
        DetachedHard().draw(space, logits, 4, None)
    for sampler in (Gumbel, GumbelStraightThrough):
        with pytest.raises(ValueError, match=r"temperature: found 0\.0"):
            sampler(0.0)
