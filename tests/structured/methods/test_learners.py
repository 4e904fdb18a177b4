"""Runs: phases, figures, states, and what switching the gradient changes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bilevel
from structured import costs
from structured._state import flatten_state, unflatten_state
from structured.energies import ChainEnergy, ConvolutionalEnergy
from structured.methods import (
    ContrastiveDivergence,
    CrossEntropy,
    Implicit,
    Learner,
    Margin,
    Method,
    Value,
    unroll,
)
from structured.methods._objectives import Minibatch
from structured.models import ModelConfig, Models, build_models
from structured.networks import MLP, BiLSTMTagger, UNet
from structured.sampling import (
    DetachedHard,
    DetachedSoft,
    GumbelStraightThrough,
    Sampler,
    Soft,
    StraightThrough,
)
from structured.spaces import Mask, Tags

CONFIG = ModelConfig(hidden=(8,), energy_hidden=(6,), global_size=3)
GRADIENTS = ("direct", "implicit", "unrolled")
PRIMARIES = (Margin(), ContrastiveDivergence(4), Value())
STEPS = 4


def implicit(**options: Any) -> Implicit:
    """The method with a step on the energy on every minibatch, unless said otherwise."""
    return Implicit(**{"outer_every": 1, "energy_start": "cross_entropy", **options})


def batches(count: int = STEPS, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(5, 6, generator=generator),
            (torch.rand(5, 4, generator=generator) < 0.4).float(),
        )
        for _ in range(count)
    ]


def start(method: Method, config: ModelConfig = CONFIG) -> Learner:
    return method.learner(build_models(6, 4, config, seed=0), steps_per_epoch=STEPS, seed=1)


def run(learner: Learner, epochs: int, seed: int = 0) -> list[dict[str, float]]:
    figures = []
    for _ in range(epochs):
        figures += [learner.step(x, y) for x, y in batches(seed=seed)]
        learner.end_epoch()
    return figures


def same(left: nn.Module | None, right: nn.Module | None) -> bool:
    assert left is not None
    assert right is not None
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def test_cross_entropy_learns_and_predicts_without_dropout() -> None:
    learner = start(CrossEntropy(lr=1e-2))
    figures = run(learner, 30)
    assert figures[-1]["cross_entropy"] < 0.95 * figures[0]["cross_entropy"]
    assert learner.phase == "cross-entropy"
    assert learner.notice == ""
    assert learner.mixed_precision
    x, _ = batches(1)[0]
    first, second = learner.predict(x), learner.predict(x)
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert learner.models.network.training
    learner.models.network.eval()
    torch.testing.assert_close(first, torch.sigmoid(learner.models.network(x)).detach())


def test_a_method_without_an_energy_and_one_with_a_frozen_one_take_equal_steps() -> None:
    """The joint phase with the energy's weight gone is cross-entropy training, mask for mask."""
    plain = start(CrossEntropy(lr=1e-2))
    pretraining = start(implicit(pretrain_epochs=5, pretrain_lr=1e-2))
    for x, y in batches():
        plain.step(x, y)
        pretraining.step(x, y)
    assert same(plain.models.network, pretraining.models.network)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("primary", PRIMARIES, ids=lambda primary: primary.name)
def test_every_figure_of_every_step_is_finite(gradient: Any, primary: Any) -> None:
    learner = start(implicit(primary=primary, gradient=gradient, pretrain_epochs=1))
    *_, pretrained = run(learner, 1)
    assert set(pretrained) == {"cross_entropy", "energy_cross_entropy"}
    for figures in run(learner, 2):
        assert all(math.isfinite(value) for value in figures.values())
        always = {
            "primary",
            "auxiliary",
            "cross_entropy",
            "inner_gradient",
            "direct_norm",
            "implicit_norm",
            "energy_gap",
            "active_hinges",
        }
        assert always <= set(figures)
        solved = {"residual", "relative_residual", "trust"}
        assert solved <= set(figures) if gradient == "implicit" else not solved & set(figures)


@pytest.mark.parametrize("primary", PRIMARIES, ids=lambda primary: primary.name)
def test_switching_the_gradient_changes_neither_noise_nor_steps_on_the_network(
    primary: Any,
) -> None:
    learners = {
        gradient: start(
            implicit(
                primary=primary,
                gradient=gradient,
                pretrain_epochs=1,
                inner_steps=2,
                outer_lr=0.0,
                unroll_rate=0.1,
            )
        )
        for gradient in GRADIENTS
    }
    shared = ("primary", "auxiliary", "cross_entropy", "direct_norm", "inner_gradient")
    figures = {gradient: run(learner, 2) for gradient, learner in learners.items()}
    direct = learners["direct"]
    for gradient, learner in learners.items():
        assert same(learner.models.network, direct.models.network)
        assert torch.equal(learner.generator.get_state(), direct.generator.get_state())
        for mine, its in zip(figures[gradient], figures["direct"], strict=True):
            assert [mine.get(name) for name in shared] == [its.get(name) for name in shared]
    assert figures["direct"][-1]["implicit_norm"] == 0.0
    assert figures["implicit"][-1]["implicit_norm"] > 0.0
    assert figures["unrolled"][-1]["implicit_norm"] > 0.0


def test_the_first_step_on_the_network_is_the_same_and_the_first_on_the_energy_is_not() -> None:
    options: dict[str, Any] = {"primary": Value(), "pretrain_epochs": 0, "unroll_rate": 0.5}
    learners = [start(implicit(gradient=gradient, **options)) for gradient in GRADIENTS]
    for learner in learners:
        learner.step(*batches(1)[0])
    direct, through, unrolled = (learner.models for learner in learners)
    assert same(direct.network, through.network)
    assert same(direct.network, unrolled.network)
    assert not same(direct.energy, through.energy)
    assert not same(direct.energy, unrolled.energy)
    assert not same(through.energy, unrolled.energy)


def test_with_plain_steps_the_unrolled_gradient_is_that_of_the_steps_really_taken() -> None:
    rate, steps = 0.2, 3
    config = ModelConfig((8,), 0.0, 0.0, "tanh", (6,), "tanh", 3)
    method = implicit(
        primary=Value(),
        gradient="unrolled",
        inner_optimizer="sgd",
        inner_lr=rate,
        inner_steps=steps,
        pretrain_epochs=0,
    )
    learner = start(method, config)
    x, y = batches(1)[0]
    models = copy.deepcopy(learner.models)
    assert models.energy is not None
    learner.step(x, y)
    phi, theta = (
        {name: leaf.detach() for name, leaf in module.named_parameters()}
        for module in (models.energy, models.network)
    )
    path = [(Minibatch(x, y),)] * steps
    reached = unroll(method.objectives(models).inner, phi, theta, path, rate)
    for name, leaf in learner.models.network.named_parameters():
        torch.testing.assert_close(leaf.detach(), reached[name])


def test_phases_follow_one_another_and_direct_epochs_come_before_implicit_ones() -> None:
    learner = start(implicit(primary=Value(), pretrain_epochs=1, implicit_after=2))
    seen = []
    for _ in range(5):
        seen.append(learner.phase)
        *_, figures = run(learner, 1)
        if learner.epoch > 1:
            assert (figures["implicit_norm"] > 0) == (seen[-1] == "implicit")
    assert seen == ["pretraining", "direct", "direct", "implicit", "implicit"]
    assert learner.epoch == 5


def test_between_steps_on_the_energy_the_network_alone_moves() -> None:
    learner = start(implicit(primary=Value(), pretrain_epochs=0, outer_every=3))
    moved = []
    for x, y in batches(6):
        before = copy.deepcopy(learner.models)
        figures = learner.step(x, y)
        assert not same(before.network, learner.models.network)
        moved.append(not same(before.energy, learner.models.energy))
        assert ("implicit_norm" in figures) == moved[-1]
    assert moved == [False, False, True] * 2


SAVED = {
    "cross-entropy": CrossEntropy(lr=1e-2),
    "implicit": implicit(primary=ContrastiveDivergence(3), pretrain_epochs=1, warm_start=True),
    "state of the solver": implicit(
        primary=Value(),
        pretrain_epochs=1,
        solver=bilevel.Neumann(3),
        reuse_state=3,
        implicit_after=1,
        outer_every=2,
    ),
    "unrolled": implicit(gradient="unrolled", pretrain_epochs=1, inner_steps=2, max_norm=0.1),
    "direct, plain steps": implicit(gradient="direct", pretrain_epochs=0, inner_optimizer="sgd"),
}


@pytest.mark.parametrize("epochs", [0, 1, 2])
@pytest.mark.parametrize("more", [0, 2])
@pytest.mark.parametrize("method", SAVED.values(), ids=SAVED)
def test_a_restored_learner_goes_on_bit_for_bit(method: Method, epochs: int, more: int) -> None:
    learner = start(method)
    run(learner, epochs)
    for x, y in batches(more, seed=7):
        learner.step(x, y)
    value, tensors = flatten_state(learner.state_dict())
    state = unflatten_state(value, tensors)
    expected = run(learner, 2, seed=8)
    restored = start(method)
    run(restored, 1, seed=9)
    restored.load_state_dict(state)
    assert restored.epoch == epochs
    assert run(restored, 2, seed=8) == expected
    assert same(restored.models.network, learner.models.network)
    assert same(restored.models.energy, learner.models.energy)


@pytest.mark.parametrize("epochs", [0, 2])
def test_a_state_that_does_not_fit_is_refused_whole(epochs: int) -> None:
    method = implicit(primary=Value(), pretrain_epochs=1)
    learner = start(method)
    run(learner, epochs)
    before, figures = copy.deepcopy(learner.state_dict()), None
    other = start(method, ModelConfig(hidden=(9,), energy_hidden=(6,), global_size=3)).state_dict()
    with pytest.raises(ValueError, match="nothing was loaded"):
        learner.load_state_dict(other)
    cut = copy.deepcopy(before)
    del cut["progress"]
    with pytest.raises(ValueError, match="nothing was loaded"):
        learner.load_state_dict(cut)
    with pytest.raises(ValueError, match="is of the method 'cross-entropy', wanted 'implicit-"):
        learner.load_state_dict(start(CrossEntropy()).state_dict())
    figures = run(learner, 2)
    untouched = start(method)
    untouched.load_state_dict(before)
    assert run(untouched, 2) == figures


@pytest.mark.parametrize(("reuse", "products"), [(None, 8 + 4 * 3), (1, 4 * (8 + 3))])
def test_a_solver_is_prepared_once_an_epoch_unless_said_otherwise(
    reuse: int | None, products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight Lanczos steps find a Neumann series its step; each of its terms takes a product."""
    spent = []
    problem = bilevel.ImplicitProblem.implicit_grad

    def counted(*args: Any, **options: Any) -> Any:
        gradient, info = problem(*args, **options)
        spent.append(info.solution.stats.products)
        return gradient, info

    monkeypatch.setattr(bilevel.ImplicitProblem, "implicit_grad", counted)
    method = implicit(
        primary=Value(), pretrain_epochs=0, solver=bilevel.Neumann(3), reuse_state=reuse
    )
    run(start(method), 1)
    assert sum(spent) == products


def test_a_divergent_solver_is_noticed_and_said() -> None:
    learner = start(
        implicit(primary=Value(), pretrain_epochs=0, solver=bilevel.Neumann(4, step=500.0))
    )
    figures = learner.step(*batches(1)[0])
    assert figures["trust"] == 0.0
    assert "The implicit term cannot be trusted: the linear solve ended as DIVERGED" in (
        learner.notice
    )
    calm = start(implicit(primary=Value(), pretrain_epochs=0))
    assert calm.step(*batches(1)[0])["trust"] == 1.0
    assert calm.notice == ""


def test_an_energy_that_starts_from_the_network_has_minus_its_logits_for_unaries() -> None:
    config = ModelConfig(hidden=(8,), energy_hidden=None, energy_activation=None)
    learner = start(implicit(pretrain_epochs=1, energy_start="network", outer_lr=0.0), config)
    run(learner, 1)
    network = copy.deepcopy(learner.models.network).eval()
    learner.step(*batches(1)[0])
    x, _ = batches(1)[0]
    assert learner.models.energy is not None
    unaries = learner.models.energy.unaries
    assert isinstance(unaries, MLP)
    torch.testing.assert_close(unaries(x), -network(x))


@pytest.mark.parametrize(
    "sampler",
    [Soft(), DetachedSoft(), StraightThrough(), GumbelStraightThrough(), DetachedHard()],
    ids=repr,
)
def test_a_sampler_without_a_path_leaves_no_implicit_term(sampler: Sampler) -> None:
    learner = start(implicit(primary=Value(), sampler=sampler, pretrain_epochs=0))
    figures = learner.step(*batches(1)[0])
    assert (figures["implicit_norm"] > 0.0) == sampler.passes_gradient


def test_a_network_of_any_kind_will_do() -> None:
    models = build_models(6, 4, CONFIG, seed=0)
    plain = Models(models.space, nn.Linear(6, 4), models.energy)
    learner = implicit(primary=Value(), pretrain_epochs=1).learner(plain, steps_per_epoch=STEPS)
    assert run(learner, 2)[-1]["implicit_norm"] > 0.0


def test_the_method_trains_tags_and_masks_as_well() -> None:
    torch.manual_seed(0)
    tags = Models(Tags(3), BiLSTMTagger(2, 3, hidden=4, dropout=0.2), ChainEnergy(2, 3, hidden=4))
    gold = nn.functional.one_hot(torch.randint(3, (2, 5)), 3).float()
    masks = Models(Mask(8, 8), UNet(1, width=4, depth=1), ConvolutionalEnergy(1, width=4, depth=1))
    cases: list[tuple[Models, Any, Tensor, Tensor]] = [
        (tags, costs.token_error, torch.randn(2, 5, 2), gold),
        (masks, costs.soft_iou, torch.randn(2, 1, 8, 8), (torch.rand(2, 8, 8) < 0.5).float()),
    ]
    for models, cost, x, y in cases:
        for primary in PRIMARIES:
            method = implicit(primary=primary, cost=cost, pretrain_epochs=0, max_norm=1.0)
            figures = method.learner(models, steps_per_epoch=1).step(x, y)
            assert all(math.isfinite(value) for value in figures.values())


def test_names_tell_methods_apart() -> None:
    assert CrossEntropy().name == "cross-entropy"
    assert Implicit().name == "implicit-margin"
    method = implicit(primary=ContrastiveDivergence(), gradient="direct")
    assert method.name == "direct-contrastive-divergence"


def assert_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_options_that_do_not_fit_are_refused() -> None:
    soft = {"primary": ContrastiveDivergence(4), "sampler": Soft()}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"gradient": "exact"}, "gradient: found 'exact', wanted one of direct, implicit"),
        ({"energy_start": "zero"}, "energy_start: found 'zero'"),
        ({"inner_optimizer": "rmsprop"}, "inner_optimizer: found 'rmsprop'"),
        ({"inner_steps": 0}, "inner_steps: found 0, wanted an integer of at least 1"),
        ({"outer_every": 0}, "outer_every: found 0"),
        ({"pretrain_epochs": -1}, "pretrain_epochs: found -1"),
        ({"damping": -1.0}, "damping: found -1.0, wanted a finite number at least 0"),
        ({"inner_lr": math.inf}, "inner_lr: found inf"),
        ({"inner_lr": "fast"}, "inner_lr: found 'fast', wanted a finite number at least 0"),
        ({"max_norm": 0.0}, "max_norm: found 0.0, wanted a finite number above 0"),
        (soft, r"samples: found 4 with the sampler Soft\(\), whose candidates are all the same"),
    ]
    for options, message in cases:
        assert_refused(lambda options=options: implicit(**options), message)
    assert_refused(lambda: CrossEntropy(lr=0.0), "lr: found 0.0")
    models = build_models(6, 4, CONFIG, seed=0)
    bare = Models(models.space, models.network)
    assert_refused(lambda: implicit().learner(bare, steps_per_epoch=1), "models: found no energy")
    plain = Models(models.space, models.network, nn.Linear(1, 1))
    assert_refused(lambda: implicit().learner(plain, steps_per_epoch=1), "Linear has no `unaries`")
