"""Graph structured prediction energy networks: beliefs about labels and pairs of labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from structured.graphs import (
    BestBeliefs,
    GraphEnergy,
    frank_wolfe,
    maximum_spanning_tree,
    mirror_ascent,
    mutual_information,
    strongest_pairs,
)
from structured.inference import SlopedEnergy
from structured.methods._optimizer import check_count, check_rate
from structured.methods._staged import DescentLearner, Rule, Stage, pretraining
from structured.methods.base import Method, SearchSpace
from structured.methods.registry import register
from structured.models import ModelConfig, Models

InferenceName = Literal["mirror", "frank_wolfe"]
GRAPH = "gspen"

# From this share of the loss on, the distance of inference from its end is worth a word.
_NOTICEABLE_GAP = 0.1


@register("gspen")
@dataclass(frozen=True)
class GSPEN(Method):
    """Train ``S(b) = entropy (<theta, b> + T(b) + H(b))`` over beliefs b; predict the best ones.

    Beliefs lie in the local marginal polytope: b_i of every label, b_ij of some pairs. The
    potentials theta are the network's logits and a number for each pair; T is a network of all
    beliefs. The entropy multiplies all of S, so that without pairs and T the best beliefs are the
    network's own probabilities; in the paper it multiplies H, which is the same but for the units
    of the rest. First the network is trained with cross-entropy, while labels are counted; then the
    pairs are chosen by their mutual information, and all is trained together.

    Objective: ``mean max_b [S(b) + margin * (wrong labels under b)] - S(y)``, at least 0. With a
    margin it is a structured hinge. With ``margin=0`` it is, but for the factor `entropy` and for
    T, the negative log-likelihood of a conditional random field: exact on a tree, above it with
    cycles.

    Gradient of the energy ``-S``: that at y less that at the best b, held fixed: the whole gradient
    where inference reaches the maximum (envelope theorem). T is not concave, so inference may miss
    it; the figure "inner_gap" says how far from a stationary point it ended.

    Args:
        pairs_per_label: how many pairs there are for each label, the strongest of all; None
            (default) takes the maximum spanning tree, on which sum-product is exact.
        margin: what each wrong label costs. 1, with this entropy, is a hinge ten logits wide, which
            leaves no calibrated probabilities; the default is one logit.
        entropy: weight of the entropy; the paper's 0.1. Only its ratio to `margin` matters.
        inference: "mirror" (structured entropic mirror ascent by sum-product) or "frank_wolfe"
            (vertices by max-product on the tree, by a linear program an example elsewhere).
        steps: of inference; Frank and Wolfe's takes many more, some hundred.
        rate: step size of mirror ascent.
        iterations: the most that sum-product takes in each step.
        pretrain_epochs: with cross-entropy, at least 1: pairs are counted meanwhile.
        pretrain_lr: of Adam in pretraining.
        lr: of Adam on the network afterwards.
        energy_lr: of Adam on pair potentials and T.
        weight_decay: decoupled, of both afterwards.

    Raises:
        ValueError: if an option does not fit.

    Example:
        >>> import torch
        >>> from structured.models import ModelConfig
        >>> method = GSPEN(pretrain_epochs=1)
        >>> models = method.build(4, 3, ModelConfig(hidden=(8,)), seed=0)
        >>> learner = method.learner(models, steps_per_epoch=1)
        >>> for phase in ("pretraining", "gspen"):
        ...     assert learner.phase == phase
        ...     figures = learner.step(torch.randn(2, 4), torch.ones(2, 3))
        ...     learner.end_epoch()
        >>> sorted(figures)
        ['inner_gap', 'largest_gap', 'structured_loss']

    Reference:
        Graber & Schwing, Graph Structured Prediction Energy Networks, 2019. How pairs are chosen,
        the entropy with cycles (tree-reweighted) and all rates are choices made here.
    """

    search_space: ClassVar[SearchSpace] = {
        "pretrain_epochs": (10, 20),
        "pretrain_lr": (3e-4, 1e-3, 3e-3),
        "lr": (3e-4, 1e-3, 3e-3),
        "energy_lr": (3e-4, 1e-3, 3e-3),
        "margin": (0.0, 0.1, 0.3),
    }

    pairs_per_label: int | None = None
    margin: float = 0.1
    entropy: float = 0.1
    inference: InferenceName = "mirror"
    steps: int = 5
    rate: float = 0.5
    iterations: int = 30
    pretrain_epochs: int = 10
    pretrain_lr: float = 1e-3
    lr: float = 1e-3
    energy_lr: float = 1e-3
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.inference not in ("mirror", "frank_wolfe"):
            raise ValueError(
                f'inference: found {self.inference!r}, wanted "mirror" or "frank_wolfe"'
            )
        if self.pairs_per_label is not None:
            check_count("pairs_per_label", self.pairs_per_label, 1)
        for name in ("steps", "iterations", "pretrain_epochs"):
            check_count(name, getattr(self, name), 1)
        for name in ("entropy", "rate", "pretrain_lr", "lr", "energy_lr"):
            check_rate(name, getattr(self, name))
        for name in ("margin", "weight_decay"):
            check_rate(name, getattr(self, name), zero=True)

    @property
    def name(self) -> str:
        return "gspen"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What is trained when."""
        network, energy = (Rule(rate, self.weight_decay) for rate in (self.lr, self.energy_lr))
        return (
            pretraining(self.pretrain_epochs, self.pretrain_lr),
            Stage(GRAPH, None, {"network": network, "energy": energy}),
        )

    def build(self, n_features: int, n_labels: int, config: ModelConfig, seed: int) -> Models:
        """Make the common network, and an energy of as many pairs as there will be."""
        models = super().build(n_features, n_labels, config, seed)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            energy = GraphEnergy(n_labels, self._count(n_labels), config.global_size)
        return replace(models, energy=energy)

    def choose(self, together: Tensor, rows: int) -> Tensor:
        """Return the pairs ``[P, 2]``, given how many of so many rows have both labels."""
        weights = mutual_information(together, rows)
        if self.pairs_per_label is None:
            return maximum_spanning_tree(weights)
        return strongest_pairs(weights, self._count(len(weights)))

    def infer(self, models: Models, logits: Tensor, gold: Tensor | None = None) -> BestBeliefs:
        """Return the best beliefs.

        Args:
            models: a network and its `GraphEnergy`.
            logits: A(x), ``[B, L]``.
            gold: y, ``[B, L]``: then each label wrong under b is worth the margin.
        """
        energy = energy_of(models)
        graph = energy.graph
        with torch.no_grad():
            if gold is not None:
                logits = logits + self._cost * (1.0 - 2.0 * gold)
            theta = energy.potentials(logits)
        function = _global_term(energy, logits)
        if self.inference == "frank_wolfe":
            return frank_wolfe(graph, theta, function, entropy=1.0, steps=self.steps)
        return mirror_ascent(
            graph, theta, function, steps=self.steps, rate=self.rate, iterations=self.iterations
        )

    def loss(self, models: Models, logits: Tensor, gold: Tensor, beliefs: Tensor) -> Tensor:
        """Return ``S(b) + margin * (wrong labels) - S(y)``, ``[B]``, b held fixed.

        Args:
            models: a network and its `GraphEnergy`.
            logits: A(x), ``[B, L]``.
            gold: y, ``[B, L]``.
            beliefs: b, the best ones given y, ``[B, L + P]``.
        """
        energy = energy_of(models)
        graph, theta = energy.graph, energy.potentials(logits)
        at_gold = graph.beliefs(gold)
        found, true = _global_term(energy, logits)(torch.stack([beliefs, at_gold]))
        single = beliefs[..., : energy.labels]
        wrong = (single + gold - 2.0 * single * gold).sum(dim=-1)
        linear = (theta * (beliefs - at_gold)).sum(dim=-1)
        # A label set has no entropy.
        score = linear + found - true + graph.entropy(beliefs)
        return self.entropy * score + self.margin * wrong

    def predict(self, models: Models, x: Tensor) -> Tensor:
        """Return the labels' beliefs; see `Method.predict`."""
        with torch.no_grad():
            logits = models.network(x)
            return self.infer(models, logits).point[..., : logits.shape[-1]]

    def learner(
        self,
        models: Models,
        *,
        steps_per_epoch: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> GSPENLearner:
        return GSPENLearner(self, models, seed=seed, device=device)

    @property
    def _cost(self) -> float:
        """The margin in the units of S without its factor."""
        return self.margin / self.entropy

    def _count(self, labels: int) -> int:
        """P."""
        if self.pairs_per_label is None:
            return labels - 1
        return min(self.pairs_per_label * labels, labels * (labels - 1) // 2)


class GSPENLearner(DescentLearner):
    """See `GSPEN`."""

    def __init__(
        self, method: GSPEN, models: Models, *, seed: int, device: torch.device | str
    ) -> None:
        labels = energy_of(models).labels
        super().__init__(method, models, method.stages, seed=seed, device=device)
        self._method = method
        # How many rows had each pair of labels, of how many rows.
        self._together = torch.zeros(labels, labels, device=self.device)
        self._rows = 0

    def _pretrain(self, x: Tensor, y: Tensor) -> dict[str, float]:
        self._together += y.T @ y
        self._rows += len(y)
        return super()._pretrain(x, y)

    def _enter(self, stage: Stage) -> None:
        super()._enter(stage)
        if stage.name == GRAPH:
            pairs = self._method.choose(self._together, self._rows)
            energy_of(self.models).connect(pairs)

    def _loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, float]]:
        method, logits = self._method, self._logits(x)
        found = method.infer(self.models, logits, y)
        loss = method.loss(self.models, logits, y, found.point).mean()
        figures = {
            "structured_loss": float(loss.detach()),
            "inner_gap": method.entropy * float(found.gap.mean()),
            "largest_gap": method.entropy * float(found.gap.max()),
        }
        self._notice = self._say(figures)
        return loss, figures

    @staticmethod
    def _say(figures: dict[str, float]) -> str:
        gap, value = figures["inner_gap"], figures["structured_loss"]
        if gap <= _NOTICEABLE_GAP * value:
            return ""
        return (
            f"Inference ends {gap:.1e} from its optimum (its bound), the loss being {value:.1e}, "
            'so that the gradient is off; take more steps, or inference="mirror".'
        )

    def _progress(self) -> dict[str, Any]:
        return {**super()._progress(), "together": self._together, "rows": self._rows}

    def _load_progress(self, state: dict[str, Any]) -> None:
        super()._load_progress(state)
        self._together.copy_(state["together"])
        self._rows = int(state["rows"])


def energy_of(models: Models) -> GraphEnergy:
    """Return the energy, which has to be that of a graph."""
    if not isinstance(models.energy, GraphEnergy):
        raise ValueError(
            f"models: found the energy {type(models.energy).__name__}, wanted a GraphEnergy; make "
            "the models with the method's `build`"
        )
    return models.energy


def _global_term(energy: GraphEnergy, x: Tensor) -> SlopedEnergy:
    """Return T: the term of the energy that is not linear, high is good."""
    slope = energy.global_term.slope(x)
    return SlopedEnergy(
        lambda beliefs: -energy.global_term(x, beliefs), lambda beliefs: -slope(beliefs)
    )
