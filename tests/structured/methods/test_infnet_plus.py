"""InfNet+: what is truncated and what is not, and what the two networks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from structured.energies import MultiLabelEnergy
from structured.methods._augmented import Parameterization, augmented
from structured.methods._objectives import Compared
from structured.methods.infnet_plus import InfNetPlus, InfNetPlusLearner
from structured.models import ModelConfig, Models, build_models
from structured.networks import BiLSTMTagger, UNet
from structured.spaces import Labels, Mask, Tags

Make = Callable[..., Any]
KINDS: tuple[Parameterization, ...] = get_args(Parameterization)
CONFIG = ModelConfig(hidden=(8,), energy_hidden=(6,), global_size=3)
PLAIN = ModelConfig((8,), 0.0, 0.0, energy_hidden=(6,), global_size=3)
BODY = {"hidden.0.weight", "hidden.0.bias"}
LAST = {"output.weight", "output.bias"}


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 6, generator=generator)
    return x, (torch.rand(5, 4, generator=generator) < 0.4).float()


def start(config: ModelConfig = CONFIG, **options: Any) -> InfNetPlusLearner:
    method = InfNetPlus(**{"pretrain_epochs": 0, **options})
    return method.learner(build_models(6, 4, config, seed=0), steps_per_epoch=1, seed=1)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def reached(output: Tensor, module: nn.Module) -> set[str]:
    """Return the names of the parameters of a module that the output depends on."""
    names, leaves = zip(*module.named_parameters(), strict=True)
    found = torch.autograd.grad(output.square().sum(), leaves, allow_unused=True)
    return {name for name, slope in zip(names, found, strict=True) if slope is not None}


def moved(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def compared(gold: float, augmented: float, predicted: float, cost: float) -> Compared:
    """One example with given energies, as leaves."""

    def one(value: float) -> Tensor:
        return torch.tensor([value], dtype=torch.float64)

    energies = torch.stack([one(augmented), one(predicted)]).requires_grad_()
    costs = torch.stack([one(cost), one(9.0)]).requires_grad_()
    logits = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    return Compared(logits, one(gold).requires_grad_(), energies, costs)


@pytest.mark.parametrize(
    ("augmented", "predicted", "slope_gold", "slopes"),
    [
        (1.0, -1.0, 1.0 + 0.5, [-1.0, -0.5]),  # both hinges active
        (9.0, -1.0, 0.5, [0.0, -0.5]),  # that of F is not
        (1.0, 9.0, 1.0, [-1.0, 0.0]),  # that of A is not
        (9.0, 9.0, 0.0, [0.0, 0.0]),  # neither
    ],
)
def test_the_energy_sees_active_hinges_alone_and_the_networks_see_all(
    augmented: float, predicted: float, slope_gold: float, slopes: list[float]
) -> None:
    objectives = InfNetPlus(weight=0.5, ce_weight=2.0).objectives(Models(Labels(2), nn.Identity()))
    found = compared(0.0, augmented, predicted, cost=1.5)
    by_hand = max(0.0, 1.5 - augmented) + 0.5 * max(0.0, -predicted)
    loss = objectives.energy(found)
    assert loss.item() == pytest.approx(by_hand)
    gold, energies = torch.autograd.grad(loss, [found.gold_energy, found.energies])
    assert gold.item() == slope_gold
    assert energies.flatten().tolist() == slopes

    found, y = compared(0.0, augmented, predicted, cost=1.5), torch.ones(1, 2).double()
    value = objectives.networks(found, y)
    entropy = 2 * torch.log(torch.tensor(2.0)).item()
    assert value.item() == pytest.approx(-(1.5 - augmented) + 0.5 * predicted + 2.0 * entropy)
    energies, cost, logits = torch.autograd.grad(value, [found.energies, found.costs, found.logits])
    assert energies.flatten().tolist() == [1.0, 0.5]
    assert cost.flatten().tolist() == [-1.0, 0.0]
    assert logits.flatten().tolist() == [-1.0, -1.0]  # 2 (sigma(0) - y)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_both_losses_are_those_of_central_differences(
    kind: Parameterization, make_models: Make, make_batch: Make
) -> None:
    models: Any = make_models()
    batch = make_batch()
    objectives = InfNetPlus(kind, weight=0.7, ce_weight=0.3).objectives(models)
    own = augmented(kind, models.network, models.space)
    own.begin(models.network)
    phi = dict(models.energy.named_parameters())

    def judged() -> Compared:
        logits, violating = own.both(models.network, batch.x, batch.y, generator())
        candidates = objectives.candidates(logits, violating)
        return objectives.compare(phi, batch.x, batch.y, logits, candidates)

    def networks() -> Tensor:
        return objectives.networks(judged(), batch.y)

    def energy() -> Tensor:
        return objectives.energy(judged())

    cases: list[tuple[Callable[[], Tensor], list[nn.Parameter]]] = [
        (networks, [*models.network.parameters(), *own.parameters()]),
        (energy, list(models.energy.parameters())),
    ]
    torch.manual_seed(0)
    for value, leaves in cases:
        slopes = torch.autograd.grad(value(), leaves)
        directions = [torch.randn_like(leaf) for leaf in leaves]
        found = torch.stack([(s * d).sum() for s, d in zip(slopes, directions, strict=True)]).sum()
        step, ends = 1e-6, []
        for sign in (1, -2, 1):
            with torch.no_grad():
                for leaf, direction in zip(leaves, directions, strict=True):
                    leaf.add_(direction, alpha=sign * step)
                ends.append(value())
        torch.testing.assert_close(found, (ends[0] - ends[1]) / (2 * step), rtol=1e-7, atol=1e-8)


SHARED: dict[Parameterization, set[str]] = {
    "separate": set(),
    "shared": BODY,
    "stacked": BODY | LAST,
}
OWN: dict[Parameterization, set[str]] = {
    "separate": {f"network.{name}" for name in BODY | LAST},
    "shared": LAST,
    "stacked": {"mix.weight", "mix.bias"},
}


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_parameterizations_share_exactly_what_they_say(
    kind: Parameterization, detach: bool
) -> None:
    network = build_models(6, 4, CONFIG, seed=0).network
    own = augmented(kind, network, Labels(4), detach=detach)
    assert {name for name, _ in own.named_parameters()} == OWN[kind]
    ids = {id(leaf) for leaf in network.parameters()}
    assert not ids & {id(leaf) for leaf in own.parameters()}
    predicted, candidate = own.both(network, *data(), generator())
    assert reached(predicted, network) == BODY | LAST
    assert reached(predicted, own) == set()
    predicted, candidate = own.both(network, *data(), generator())
    if detach or kind == "separate":
        leaves = list(network.parameters())
        with pytest.raises(RuntimeError, match="not have been used in the graph"):
            torch.autograd.grad(candidate.sum(), leaves)
    else:
        assert reached(candidate, network) == SHARED[kind]
        predicted, candidate = own.both(network, *data(), generator())
    assert reached(candidate, own) == OWN[kind]


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_without_terms_of_its_own_the_predicting_network_moves_by_what_it_shares(
    kind: Parameterization, detach: bool
) -> None:
    learner = start(parameterization=kind, detach=detach, weight=0.0, ce_weight=0.0)
    own = learner._augmented
    learner.step(*data())
    before, own_before = weights(learner.models.network), weights(own)
    learner.step(*data())
    assert moved(learner.models.network, before) == (set() if detach else SHARED[kind])
    assert moved(own, own_before) == OWN[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_the_augmented_network_begins_as_the_pretrained_one(kind: Parameterization) -> None:
    models = build_models(6, 4, PLAIN, seed=0)
    network = models.network
    own = augmented(kind, network, models.space)
    with torch.no_grad():
        for leaf in network.parameters():  # pretraining
            leaf.add_(torch.randn(leaf.shape, generator=generator()))
    own.begin(network)
    x, y = data()
    predicted, candidate = (z.detach() for z in own.both(network, x, y, generator()))
    if kind == "stacked":
        torch.testing.assert_close(candidate, 4.0 * torch.sigmoid(predicted) - 2.0)
        assert torch.equal(models.space.hard(candidate), models.space.hard(predicted))
    else:
        assert torch.equal(candidate, predicted)


def test_stacked_alone_looks_at_the_gold_output() -> None:
    network = build_models(6, 4, CONFIG, seed=0).network
    x, y = data()
    for kind in KINDS:
        own = augmented(kind, network, Labels(4))
        one, other = (own.both(network, x, gold, generator()) for gold in (y, 1.0 - y))
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1]) == (kind != "stacked")


def test_stacked_suits_tags_and_masks() -> None:
    x, pixels = torch.randn(2, 5, 4), torch.randn(2, 1, 8, 8)
    tags, image = BiLSTMTagger(4, 3, hidden=5), UNet(1, width=4, depth=1)
    gold = torch.eye(3)[torch.randint(3, (2, 5), generator=generator())]
    mask = (torch.rand(2, 8, 8, generator=generator()) < 0.5).float()
    for network, space, inputs, y, sizes in (
        (tags, Tags(3), x, gold, (3, 6)),
        (image, Mask(8, 8), pixels, mask, (1, 2)),
    ):
        own = augmented("stacked", network, space)
        own.begin(network)
        predicted, candidate = own.both(network, inputs, y, generator())
        assert candidate.shape == predicted.shape == y.shape
        assert own.get_submodule("mix").weight.shape == sizes
        assert torch.equal(space.hard(candidate), space.hard(predicted))


def test_a_network_without_a_last_layer_cannot_share_its_body() -> None:
    models = build_models(6, 4, CONFIG, seed=0)
    plain = Models(models.space, nn.Linear(6, 4), models.energy)
    for kind in ("separate", "stacked"):
        learner = InfNetPlus(kind, pretrain_epochs=0).learner(plain, steps_per_epoch=1)
        learner.step(*data())
    with pytest.raises(ValueError, match="found 'shared' with Linear, wanted a network with its"):
        InfNetPlus("shared").learner(plain, steps_per_epoch=1)


def test_making_the_augmented_network_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    for kind in KINDS:
        start(parameterization=kind)
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", KINDS)
def test_the_augmented_network_is_saved_with_the_learner(kind: Parameterization) -> None:
    learner = start(parameterization=kind)
    learner.step(*data())
    saved = learner.state_dict()["modules"]["augmented"]
    assert set(saved) == OWN[kind]
    other = start(parameterization=kind)
    other.load_state_dict(learner.state_dict())
    assert not moved(other._augmented, saved)


def test_each_side_lowers_its_own_loss_on_a_minibatch_seen_again() -> None:
    x, y = data()
    found = {}
    for who, rates in {"network": (1e-2, 1e-12), "energy": (1e-12, 1e-2)}.items():
        learner = start(PLAIN, network_lr=rates[0], energy_lr=rates[1])
        figures = [learner.step(x, y) for _ in range(20)]
        name = {"network": "auxiliary", "energy": "primary"}[who]
        found[who] = figures[-1][name] - figures[0][name]
    assert max(found.values()) < -0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parameterization": "joined"}, "parameterization: found 'joined', wanted one of sepa"),
        ({"weight": -1.0}, "weight: found -1.0"),
        ({"ce_weight": -1.0}, "ce_weight: found -1.0"),
        ({"network_steps": 0}, "network_steps: found 0"),
        ({"network_lr": 0.0}, "network_lr: found 0.0"),
        ({"energy_start": "zero"}, "energy_start: found 'zero'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InfNetPlus(**options)


def test_an_energy_of_the_users_own_will_do() -> None:
    models = build_models(6, 4, CONFIG, seed=0)
    own = Models(models.space, models.network, MultiLabelEnergy(6, 4, hidden=()))
    learner = InfNetPlus(pretrain_epochs=0).learner(own, steps_per_epoch=1)
    assert learner.step(*data())["primary"] >= 0.0
