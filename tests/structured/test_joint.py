"""Decoding with network and energy together."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from structured.data import MultiLabelData, digit_strips
from structured.decoding import ExpectedF1, SampledExpectedF1
from structured.evaluation import JOINT, evaluate, with_joint
from structured.joint import SCALES, JointExpectedF1, systematic_samples
from structured.methods import CrossEntropy, Implicit, Method
from structured.metrics import example_f1
from structured.models import ModelConfig, Models
from structured.spaces import Labels
from structured.train_config import TrainConfig
from structured.training import RunResult, train

LABELS = 5
SETS = torch.tensor(list(itertools.product([0.0, 1.0], repeat=LABELS)))


class Pairs(nn.Module):
    """An energy that rewards the labels 0 and 1 for being equal, and 2 and 3."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        different = (y[..., 0] - y[..., 1]).square() + (y[..., 2] - y[..., 3]).square()
        return self.strength * different


def models(strength: float = 3.0, seed: int = 0) -> Models:
    torch.manual_seed(seed)
    return Models(Labels(LABELS), nn.Linear(3, LABELS), Pairs(strength))


def enumerated(found: Models, x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The expected F1 of all sets ``[B, 2^L]`` under all, and the probability of all."""
    assert found.energy is not None
    p = torch.sigmoid(found.network(x).detach()).double()[:, None]
    sets = SETS.double()
    log_p = (sets * p.log() + (1 - sets) * (1 - p).log()).sum(-1)
    energies = found.energy(x, SETS[:, None].expand(-1, len(x), -1)).T.double()
    probability = torch.softmax(log_p - scale * energies, dim=-1)
    both, total = sets @ sets.T, sets.sum(-1)[:, None] + sets.sum(-1)
    f1 = torch.where(total > 0, 2 * both / total.clamp(min=1), 1.0)
    return probability @ f1, probability


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_the_set_is_the_best_of_all_under_the_joint_distribution(scale: float) -> None:
    found, x = models(), torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    worth, _ = enumerated(found, x, scale)
    sets = JointExpectedF1(scale, samples=20_000).decode(found, x.numpy())
    index = (sets @ (2.0 ** torch.arange(LABELS - 1, -1, -1))).long()
    reached = worth.gather(1, index[:, None])[:, 0]
    assert bool((SETS[index] == sets).all())
    assert float((worth.amax(dim=1) - reached).max()) < 0.01


def test_an_energy_that_knows_which_labels_go_together_decodes_better_at_scale_one() -> None:
    found, x = models(4.0), torch.randn(600, 3, generator=torch.Generator().manual_seed(2))
    _, probability = enumerated(found, x, 1.0)
    gold = SETS[torch.multinomial(probability, 1, generator=torch.Generator().manual_seed(3))[:, 0]]
    decoder = JointExpectedF1().fit(found, x.numpy(), gold)
    assert decoder.scale >= 0.5
    independent = ExpectedF1().decode(torch.sigmoid(found.network(x)).detach())
    together = decoder.decode(found, x.numpy())
    assert example_f1(together, gold) > example_f1(independent, gold) + 0.01


def test_an_energy_that_misleads_is_left_out() -> None:
    found, x = models(-4.0), torch.randn(600, 3, generator=torch.Generator().manual_seed(2))
    _, probability = enumerated(models(4.0), x, 1.0)
    gold = SETS[torch.multinomial(probability, 1, generator=torch.Generator().manual_seed(3))[:, 0]]
    assert JointExpectedF1().fit(found, x.numpy(), gold).scale == 0.0


def test_without_the_energy_the_joint_decoder_is_that_of_independent_labels() -> None:
    found, x = models(), torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
    p = torch.sigmoid(found.network(x)).detach()
    same = JointExpectedF1(0.0, samples=5000).decode(found, x.numpy()) == ExpectedF1().decode(p)
    assert float(same.all(dim=1).float().mean()) > 0.9


def test_every_label_is_drawn_as_often_as_its_probability_says() -> None:
    p = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
    p[0, 0], p[1, 1] = 0.0, 1.0
    samples = systematic_samples(p, 64, torch.Generator().manual_seed(1))
    assert set(samples.unique().tolist()) == {0.0, 1.0}
    assert float((samples.mean(dim=0) - p).abs().max()) <= 1 / 64 + 1e-6


def test_labels_are_drawn_independently_of_each_other() -> None:
    p = torch.full((1, 3), 0.5)
    samples = systematic_samples(p, 20_000, torch.Generator().manual_seed(1))[:, 0]
    covariance = torch.cov(samples.T)
    assert float((covariance - torch.diag(covariance.diag())).abs().max()) < 0.01


def test_decoding_again_gives_the_same_sets() -> None:
    found, x = models(), np.eye(3, dtype=np.float32)
    decoder = JointExpectedF1(samples=10)
    assert torch.equal(decoder.decode(found, x), decoder.decode(found, x))
    assert found.network.training


def test_models_without_an_energy_are_refused() -> None:
    with pytest.raises(ValueError, match="models: found no energy"):
        JointExpectedF1().decode(replace(models(), energy=None), np.eye(3, dtype=np.float32))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"scale": -1.0}, "scale"), ({"samples": 0}, "samples"), ({"chunk": 0}, "chunk")],
)
def test_values_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JointExpectedF1(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("power", [0.2, 1.0, 4.0, 30.0])
def test_the_best_set_is_found_among_all_sizes_of_many_labels(power: float) -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(4, 120, generator=generator) ** power
    samples = (torch.rand(30, 4, 120, generator=generator) < p).double()
    weights = torch.rand(30, 4, generator=generator, dtype=torch.float64) ** power
    weights = weights / weights.sum(dim=0)
    found = SampledExpectedF1().decode(samples, weights)
    sizes = samples.sum(-1)
    for b in range(4):
        best = float(weights[sizes[:, b] == 0, b].sum())
        for k in range(1, 121):
            worth = (weights[:, b, None] * samples[:, b] * 2 / (k + sizes[:, b, None])).sum(0)
            best = max(best, float(worth.topk(k).values.sum()))
        both = (samples[:, b] * found[b]).sum(-1)
        total = sizes[:, b] + found[b].sum()
        f1 = torch.where(total > 0, 2 * both / total.clamp(min=1), 1.0)
        assert float((weights[:, b] * f1).sum()) == pytest.approx(best, abs=1e-12)


def test_a_method_of_independent_labels_has_the_expected_f1_as_its_joint_one() -> None:
    found, x = models(4.0), torch.randn(50, 3, generator=torch.Generator().manual_seed(2))
    parts = {"validation": x.numpy(), "test": x.numpy()}
    gold = {part: SETS[torch.arange(50) % 32] for part in parts}
    p = {part: torch.sigmoid(found.network(x)).detach() for part in parts}
    plain = evaluate(p, gold)
    alone = with_joint(plain, CrossEntropy(), found, parts, gold)
    assert alone.scores["test"][JOINT] == alone.scores["test"]["expected F1"]
    assert JOINT not in alone.thresholds
    joint = with_joint(plain, Implicit(), found, parts, gold)
    assert joint.thresholds[JOINT] in SCALES
    assert joint.scores["test"].keys() == alone.scores["test"].keys()


def test_the_scale_is_fitted_with_the_models_that_never_saw_the_validation_part() -> None:
    right, wrong = models(4.0), models(-4.0)
    x = torch.randn(300, 3, generator=torch.Generator().manual_seed(2))
    _, probability = enumerated(right, x, 1.0)
    gold = SETS[torch.multinomial(probability, 1, generator=torch.Generator().manual_seed(3))[:, 0]]
    inputs, labels = {"validation": x.numpy()}, {"validation": gold}
    plain = evaluate({"validation": torch.sigmoid(right.network(x)).detach()}, labels)
    found = with_joint(plain, Implicit(), right, inputs, labels, held_out=wrong)
    assert found.thresholds[JOINT] == 0.0
    assert with_joint(plain, Implicit(), right, inputs, labels).thresholds[JOINT] > 0.0


def _trained(method: Method) -> tuple[RunResult, MultiLabelData]:
    parts = digit_strips(60, 30, 10).split("disjoint_images")
    config = TrainConfig(epochs=3, batch_size=20, monitor="f1_joint", average=0.0, device="cpu")
    sizes = ModelConfig(hidden=(8,), energy_hidden=(4,))
    result = train(method, parts["train"], parts["validation"], config, model=sizes)
    return result, parts["validation"]


def test_training_can_watch_what_the_joint_decoder_makes_of_the_epoch() -> None:
    result, validation = _trained(Implicit(pretrain_epochs=1, outer_every=1, outer_lr=0.1))
    gold = torch.from_numpy(validation.Y.toarray()).float()
    sets = JointExpectedF1(samples=200).decode(result.models, validation.X)
    assert result.best_value == example_f1(sets, gold)
    watched = [record["validation_f1_joint"] for record in result.history]
    assert result.best_value == max(watched)


def test_where_labels_are_independent_training_watches_the_expected_f1() -> None:
    result, _ = _trained(CrossEntropy())
    for record in result.history:
        assert record["validation_f1_joint"] == record["validation_f1_expected"]


def test_the_labels_of_a_row_depend_on_that_row_alone() -> None:
    found = models()
    x = torch.randn(90, 3, generator=torch.Generator().manual_seed(2)).numpy()
    together = JointExpectedF1(samples=60).decode(found, x)
    assert torch.equal(JointExpectedF1(samples=60).decode(found, x[::-1].copy()).flip(0), together)
    assert torch.equal(JointExpectedF1(samples=60, chunk=7).decode(found, x), together)
    alone = [JointExpectedF1(samples=60).decode(found, x[i : i + 1]) for i in range(20)]
    assert torch.equal(torch.cat(alone), together[:20])
