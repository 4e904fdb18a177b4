from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from structured.energies import ChainEnergy, MultiLabelEnergy, PairwiseEnergy
from structured.inference import (
    EnergyFunction,
    InferenceResult,
    SlopedEnergy,
    brute_force,
    mirror_descent,
    projected_gradient,
)
from structured.spaces import Labels, Mask, Space, Tags

METHODS = {"projected": projected_gradient, "mirror": mirror_descent}
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
seeds = st.integers(0, 2**32 - 1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def centre(batch: int, labels: int) -> Tensor:
    return Labels(labels).uniform((batch,), dtype=torch.float64)


def quadratic(target: Tensor) -> EnergyFunction:
    return lambda y: 0.5 * (y - target).square().sum(dim=-1)


@pytest.mark.parametrize("steps", [0, 1, 2, 7])
def test_steps_on_a_linear_energy_move_exactly_steps_times_the_rate(steps: int) -> None:
    """One step moves one step: the published trap is a loop that steps twice and cancels itself."""
    slope = randn(3, 4)
    rate = 0.4 / (7 * float(slope.abs().max()))
    found = projected_gradient(
        lambda y: (y * slope).sum(dim=-1), centre(3, 4), Labels(4), steps=steps, rate=rate
    )
    torch.testing.assert_close(found.point, 0.5 - steps * rate * slope, atol=1e-14, rtol=0.0)
    assert found.trace.shape == (steps + 1, 3)


@pytest.mark.parametrize("steps", [0, 1, 2, 7])
def test_mirror_steps_on_a_linear_energy_move_logits_exactly_steps_times_the_rate(
    steps: int,
) -> None:
    slope = randn(3, 4)
    found = mirror_descent(
        lambda y: (y * slope).sum(dim=-1), centre(3, 4), Labels(4), steps=steps, rate=0.3
    )
    torch.testing.assert_close(found.point, torch.sigmoid(-steps * 0.3 * slope))


def test_mirror_descent_takes_the_steps_of_the_space() -> None:
    target, space = randn(2, 4), Labels(4)
    point = space.relax(randn(2, 4, seed=1))
    found = mirror_descent(quadratic(target), point, space, steps=3, rate=0.5, entropy=0.2)
    for _ in range(3):
        point = space.mirror_step(point, point - target, 0.5, 0.2)
    torch.testing.assert_close(found.point, point)


def test_with_an_entropy_bonus_mirror_descent_ends_at_the_entropic_optimum() -> None:
    slope = randn(2, 4)
    found = mirror_descent(
        lambda y: (y * slope).sum(dim=-1), centre(2, 4), Labels(4), steps=200, entropy=0.5
    )
    torch.testing.assert_close(found.point, torch.sigmoid(-slope / 0.5))


@methods
@pytest.mark.parametrize("accelerated", [False, True])
def test_a_convex_energy_is_minimised_over_the_box(method, accelerated: bool) -> None:
    target = 2.0 * randn(3, 5)
    found = method(
        quadratic(target), centre(3, 5), Labels(5), steps=400, rate=0.9, accelerated=accelerated
    )
    torch.testing.assert_close(found.point, target.clamp(0.0, 1.0), atol=1e-3, rtol=0.0)
    assert float(found.gap.max()) < 1e-2
    assert bool((found.energy <= found.trace[0]).all())


@methods
def test_the_gap_bounds_the_distance_to_the_minimum_of_a_convex_energy(method) -> None:
    target = randn(3, 5)
    least = quadratic(target)(target.clamp(0.0, 1.0))
    for steps in (1, 5, 25):
        found = method(quadratic(target), centre(3, 5), Labels(5), steps=steps, rate=0.2)
        assert bool((found.energy - least <= found.gap + 1e-12).all())


@methods
def test_acceleration_helps_an_ill_conditioned_energy(method) -> None:
    scale = torch.logspace(-3, 0, 6, dtype=torch.float64)
    target = torch.full((1, 6), 0.8, dtype=torch.float64)

    def energy(y: Tensor) -> Tensor:
        return 0.5 * (scale * (y - target).square()).sum(dim=-1)

    plain, fast = (
        method(energy, centre(1, 6), Labels(6), steps=60, rate=1.0, accelerated=accelerated)
        for accelerated in (False, True)
    )
    assert float(fast.energy) < 0.5 * float(plain.energy)


@methods
@given(seed=seeds)
def test_a_pairwise_energy_is_never_below_its_brute_force_minimum(method, seed: int) -> None:
    """Linear in each label, it has its least value at a vertex; with restarts that is found."""
    torch.manual_seed(seed)
    energy = PairwiseEnergy(3, 5, hidden=(4,)).double()
    x = randn(2, 3, seed=seed)

    def energy_fn(y: Tensor) -> Tensor:
        return energy(x, y)

    exact = brute_force(energy_fn, 5, batch=2, dtype=torch.float64)
    found = method(energy_fn, centre(2, 5), Labels(5), steps=15, rate=2.0, restarts=3)
    assert bool((found.trace >= exact.energy - 1e-12).all())
    assert bool((energy_fn(found.point.round()) >= exact.energy - 1e-12).all())


@methods
def test_restarts_find_the_argmin_of_a_pairwise_energy(method) -> None:
    torch.manual_seed(0)
    energy = PairwiseEnergy(3, 8, hidden=(4,)).double()
    with torch.no_grad():
        energy.coupling.weight.mul_(8.0)  # type: ignore[operator]
    x = randn(4, 3)

    def energy_fn(y: Tensor) -> Tensor:
        return energy(x, y)

    exact = brute_force(energy_fn, 8, batch=4, dtype=torch.float64)
    found = method(
        energy_fn, centre(4, 8), Labels(8), steps=100, rate=0.5, restarts=30, generator=generator()
    )
    assert torch.equal(Labels(8).round(found.point), exact.point)


@methods
def test_restarts_return_the_best_end_of_each_example(method) -> None:
    def energy(y: Tensor) -> Tensor:
        return -(y - 0.4).square().sum(dim=-1)  # the better end of every label is 1

    single = method(energy, 0.3 + 0 * centre(3, 2), Labels(2), steps=60, rate=0.5)
    several = method(
        energy, 0.3 + 0 * centre(3, 2), Labels(2), steps=60, rate=0.5, restarts=40,
        generator=generator(),
    )  # fmt: skip
    assert not Labels(2).round(single.point).any()
    assert bool(Labels(2).round(several.point).all())
    torch.testing.assert_close(several.energy, energy(several.point))
    torch.testing.assert_close(several.trace[-1], several.energy)
    assert several.point.shape == (3, 2)
    assert several.gap.shape == (3,)


def model_and_inputs() -> tuple[MultiLabelEnergy, Tensor]:
    torch.manual_seed(0)
    return MultiLabelEnergy(3, 4, hidden=(5,), global_size=6).double(), randn(5, 3)


@methods
@pytest.mark.parametrize("accelerated", [False, True])
def test_batching_changes_no_example(method, accelerated: bool) -> None:
    energy, x = model_and_inputs()

    def solve(rows: Tensor) -> InferenceResult:
        return method(
            lambda y: energy(rows, y), centre(len(rows), 4), Labels(4), accelerated=accelerated
        )

    together = solve(x)
    for i in range(len(x)):
        alone = solve(x[i : i + 1])
        torch.testing.assert_close(together.point[i : i + 1], alone.point)
        torch.testing.assert_close(together.trace[:, i : i + 1], alone.trace)
        torch.testing.assert_close(together.gap[i : i + 1], alone.gap)


@methods
def test_leading_dimensions_are_independent_too(method) -> None:
    energy, x = model_and_inputs()
    starts = Labels(4).relax(randn(6, 5, 4))
    together = method(lambda y: energy(x, y), starts, Labels(4), steps=5)
    assert together.point.shape == starts.shape
    alone = method(lambda y: energy(x, y), starts[2], Labels(4), steps=5)
    torch.testing.assert_close(together.point[2], alone.point)


@methods
def test_without_unrolling_the_result_is_detached_from_every_parameter(method) -> None:
    energy, x = model_and_inputs()
    found = method(lambda y: energy(x, y), centre(5, 4), Labels(4), steps=3)
    for value in (found.point, found.energy, found.trace, found.gap):
        assert not value.requires_grad
    assert all(parameter.grad is None for parameter in energy.parameters())


@methods
@pytest.mark.parametrize("accelerated", [False, True])
def test_unrolling_differentiates_through_the_steps(method, accelerated: bool) -> None:
    energy, x = model_and_inputs()
    phi = {name: value.detach() for name, value in energy.named_parameters()}

    def end(matrix: Tensor) -> Tensor:
        parameters = phi | {"global_matrix": matrix}
        found = method(
            lambda y: torch.func.functional_call(energy, parameters, (x, y)),
            centre(5, 4), Labels(4), steps=4, rate=0.1, accelerated=accelerated, unroll=True,
        )  # fmt: skip
        return found.point

    matrix = phi["global_matrix"].clone().requires_grad_()
    assert torch.autograd.gradcheck(end, (matrix,))
    reverse = torch.func.grad(lambda value: end(value).sum())(matrix.detach())
    torch.testing.assert_close(reverse, torch.autograd.grad(end(matrix).sum(), matrix)[0])


@methods
@pytest.mark.parametrize("accelerated", [False, True])
def test_a_formula_for_the_gradient_changes_no_value_and_is_unrolled_too(
    method, accelerated: bool
) -> None:
    target = randn(5, 4).requires_grad_()
    plain = quadratic(target)
    found = [
        method(energy, centre(5, 4), Labels(4), steps=4, accelerated=accelerated, unroll=True)
        for energy in (plain, SlopedEnergy(plain, lambda y: y - target))
    ]
    for name in ("point", "energy", "trace", "gap"):
        torch.testing.assert_close(*(getattr(one, name) for one in found))
    slopes = [torch.autograd.grad(one.point.square().sum(), target)[0] for one in found]
    torch.testing.assert_close(*slopes)


@methods
def test_unrolling_changes_no_value_and_the_start_is_differentiated_too(method) -> None:
    energy, x = model_and_inputs()
    start = Labels(4).relax(randn(5, 4)).requires_grad_()
    plain, unrolled = (
        method(lambda y: energy(x, y), start, Labels(4), steps=4, unroll=unroll)
        for unroll in (False, True)
    )
    torch.testing.assert_close(plain.point, unrolled.point.detach())
    torch.testing.assert_close(plain.trace, unrolled.trace.detach())
    (gradient,) = torch.autograd.grad(unrolled.energy.sum(), start)
    assert bool(gradient.any())


MASK = torch.tensor([[True, True, True], [True, False, False]])


@methods
@pytest.mark.parametrize(
    ("space", "start"),
    [
        (Labels(4), torch.full((2, 4), 0.5)),
        (Mask(2, 3), torch.full((2, 2, 3), 0.5)),
        (Tags(3, MASK), Tags(3, MASK).uniform((2, 3))),
    ],
    ids=["labels", "mask", "tags"],
)
def test_every_space_is_descended_and_never_left(method, space: Space, start: Tensor) -> None:
    slope = torch.randn(start.shape, generator=generator())
    dims = tuple(range(-space.event_dims, 0))
    found = method(
        lambda y: (slope * y).sum(dim=dims), start, space, steps=300, rate=0.5, restarts=2,
        generator=generator(),
    )  # fmt: skip
    torch.testing.assert_close(found.point, space.project(found.point))
    torch.testing.assert_close(found.energy, space.linear_minimum(slope), atol=1e-2, rtol=0.0)


def test_a_chain_energy_is_descended_to_its_enumerated_minimum() -> None:
    torch.manual_seed(0)
    energy, x = ChainEnergy(2, 2, hidden=3).double(), randn(1, 4, 2)
    with torch.no_grad():
        energy.transitions.copy_(2.0 * randn(2, 2))
    rows = torch.cartesian_prod(*[torch.arange(2)] * 4)
    tags = torch.nn.functional.one_hot(rows, 2).double()
    with torch.no_grad():
        least = energy(x, tags[:, None]).min()
    start = Tags(2).uniform((1, 4), dtype=torch.float64)
    found = mirror_descent(
        lambda y: energy(x, y), start, Tags(2), steps=200, restarts=20, generator=generator()
    )
    with torch.no_grad():
        rounded = energy(x, Tags(2).round(found.point))
    torch.testing.assert_close(rounded.squeeze(), least)


def test_brute_force_visits_every_set_once_and_returns_the_least() -> None:
    energy, x = model_and_inputs()
    found = brute_force(lambda y: energy(x, y), 4, batch=5, dtype=torch.float64)
    assert len(found.points.unique(dim=0)) == 16
    assert found.energies.shape == (16, 5)
    torch.testing.assert_close(found.energy, found.energies.amin(dim=0))
    torch.testing.assert_close(energy(x, found.point).detach(), found.energy)


def test_impossible_requests_are_refused() -> None:
    def energy(y: Tensor) -> Tensor:
        return y.sum(dim=-1)

    for n in (0, 13):
        with pytest.raises(ValueError, match=f"n: found {n}, wanted 1 to 12"):
            brute_force(energy, n)
    for wrong in ({"steps": -1}, {"rate": 0.0}, {"restarts": 0}):
        with pytest.raises(ValueError, match="wanted steps >= 0, rate > 0 and restarts >= 1"):
            projected_gradient(energy, centre(1, 2), Labels(2), **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="entropy: found -1"):
        mirror_descent(energy, centre(1, 2), Labels(2), entropy=-1)
    with pytest.raises(ValueError, match=r"start: found shape \(1, 3\)"):
        mirror_descent(energy, centre(1, 3), Labels(2))
    with pytest.raises(ValueError, match="energy_fn: returned shape"):
        projected_gradient(lambda y: y.sum(), centre(1, 2), Labels(2))
