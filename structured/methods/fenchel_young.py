"""Generalized Fenchel-Young losses: network and coupling learn through inference in labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from structured import costs
from structured.fenchel_young import (
    ConvexCoupling,
    Coupling,
    GeneralizedFenchelYoung,
    InputCoupling,
    NegativeEntropy,
    NetworkCoupling,
    NoCoupling,
    PairwiseCoupling,
    Prediction,
    Regularizer,
    SquaredNorm,
    augmented,
)
from structured.inference import EnergyFunction, SlopedEnergy
from structured.methods._objectives import Cost, training_logits
from structured.methods._optimizer import (
    check_choice,
    check_count,
    check_rate,
    descend,
    make_optimizer,
)
from structured.methods._parts import check_cost
from structured.methods.base import Learner, Method, SearchSpace
from structured.methods.registry import register
from structured.models import ModelConfig, Models
from structured.spaces import Space

EnergyName = Literal["unary", "pairwise", "spen", "concave_spen", "linear_concave"]
RegularizerName = Literal["entropy", "squared_norm"]

_COUPLINGS: dict[str, Callable[[int, int, ModelConfig], Coupling]] = {
    "unary": lambda features, labels, sizes: NoCoupling(),
    "pairwise": lambda features, labels, sizes: PairwiseCoupling(
        labels, min(sizes.global_size, labels)
    ),
    "spen": lambda features, labels, sizes: NetworkCoupling(labels, sizes.global_size),
    "concave_spen": lambda features, labels, sizes: ConvexCoupling(labels, sizes.global_size),
    "linear_concave": lambda features, labels, sizes: InputCoupling(
        features, labels, sizes.global_size, standardize=sizes.standardize
    ),
}
_REGULARIZERS: dict[str, type[Regularizer]] = {
    "entropy": NegativeEntropy,
    "squared_norm": SquaredNorm,
}

# From this share of the loss on, the distance of inference from its end is worth a word.
_NOTICEABLE_GAP = 0.1


@register("fenchel_young")
@dataclass(frozen=True)
class FenchelYoung(Method):
    """Train ``E(x, p) = -<A(x), p> + coupling(x, p)`` with a generalized Fenchel-Young loss.

    Objective: ``mean [E(y) + Omega(y)] - min_p [E(p) + Omega(p)]`` over the network's and the
    coupling's parameters, with p in the hypercube. Prediction is that minimiser p*, a point of
    label probabilities. With ``energy="unary"`` and the entropy it is cross-entropy training.

    Gradient of the energy: ``dE(y) - dE(p*)`` at fixed p*. Nothing is dropped: by the envelope
    theorem that is the whole gradient where inference reaches the minimum, and the figure
    "inner_gap" says how far from it inference ended (for "spen", which is not convex in p, only
    how far from a stationary point).

    Args:
        energy: what couples the labels (signs as in the paper, where Phi = -E is maximised):
            "unary", nothing; "pairwise" (default), a concave quadratic of low rank; "spen", a
            network of p; "concave_spen", an input-concave network of p; "linear_concave",
            quadratics whose weights depend on x. ``ModelConfig.global_size`` is their size.
        regularizer: Omega: "entropy" (default), with damped mean field, or "squared_norm", with
            projected gradient, as in the paper's experiments: probabilities of exactly 0 and 1.
        weight: gamma, which multiplies Omega.
        steps: of inference, in training and prediction; accelerated where it pays. Without a
            coupling one is enough, and one is taken.
        tolerance: refuse to go on where an example's inner gap is larger; None never does.
        cost: Delta, one of `structured.costs` or a function like them.
        cost_weight: of the cost that inference in training adds (cost-augmented loss); 0 (default)
            is the plain loss.
        lr: of Adam on the network.
        energy_lr: of Adam on the coupling.
        weight_decay: decoupled, of both.

    Raises:
        ValueError: if an option does not fit.

    Example:
        >>> import torch
        >>> from structured.models import ModelConfig
        >>> method = FenchelYoung(energy="concave_spen", tolerance=1e-2)
        >>> models = method.build(4, 3, ModelConfig(hidden=(8,)), seed=0)
        >>> learner = method.learner(models, steps_per_epoch=10)
        >>> sorted(learner.step(torch.randn(2, 4), torch.ones(2, 3)))
        ['fenchel_young', 'inner_gap', 'largest_gap']

    Reference:
        Blondel, Llinares-López, Dadashi, Hussenot and Geist, Learning Energy Networks with
        Generalized Fenchel-Young Losses, 2022.
    """

    search_space: ClassVar[SearchSpace] = {
        "lr": (3e-4, 1e-3, 3e-3),
        "energy_lr": (3e-4, 1e-3, 3e-3),
        "weight": (0.5, 1.0, 2.0),
        "cost_weight": (0.0, 0.3, 1.0),
        "weight_decay": (0.0, 1e-2),
    }

    energy: EnergyName = "pairwise"
    regularizer: RegularizerName = "entropy"
    weight: float = 1.0
    steps: int = 30
    tolerance: float | None = None
    cost: Cost = costs.hamming
    cost_weight: float = 0.0
    lr: float = 1e-3
    energy_lr: float = 1e-3
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_choice("energy", self.energy, get_args(EnergyName))
        check_choice("regularizer", self.regularizer, get_args(RegularizerName))
        check_cost(self.cost)
        check_count("steps", self.steps, 1)
        for name in ("weight", "lr", "energy_lr"):
            check_rate(name, getattr(self, name))
        for name in ("cost_weight", "weight_decay"):
            check_rate(name, getattr(self, name), zero=True)
        if self.tolerance is not None:
            check_rate("tolerance", self.tolerance)

    @property
    def name(self) -> str:
        return f"fenchel-young-{self.energy.replace('_', '-')}"

    def build(self, n_features: int, n_labels: int, config: ModelConfig, seed: int) -> Models:
        """Make the common network, and the coupling for an energy."""
        models = super().build(n_features, n_labels, config, seed)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            coupling = _COUPLINGS[self.energy](n_features, n_labels, config)
        return replace(models, energy=coupling)

    def loss(self, space: Space, coupling: Coupling) -> GeneralizedFenchelYoung:
        """Return the loss with its inference."""
        return GeneralizedFenchelYoung(
            space,
            _REGULARIZERS[self.regularizer](self.weight),
            steps=1 if self.energy == "unary" else self.steps,
            accelerated=None if coupling.convex else False,
            tolerance=self.tolerance,
        )

    def infer(
        self, models: Models, energy_fn: EnergyFunction, logits: Tensor
    ) -> tuple[GeneralizedFenchelYoung, Prediction]:
        """Return the loss and p*, found from what would be p* without a coupling.

        Args:
            models: a network and its coupling.
            energy_fn: E as a function of p, with or without a cost.
            logits: A(x), ``[B, *event]``.
        """
        coupling = coupling_of(models)
        loss = self.loss(models.space, coupling)
        start = loss.regularizer.linear(logits.detach(), models.space)
        return loss, loss.predict(energy_fn, start, curvature=coupling.curvature())

    def predict(self, models: Models, x: Tensor) -> Tensor:
        """Return p*; see `Method.predict`."""
        with torch.no_grad():
            logits = models.network(x)
            _, found = self.infer(models, joint_energy(models, x, logits), logits)
        return found.point

    def learner(
        self,
        models: Models,
        *,
        steps_per_epoch: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> FenchelYoungLearner:
        return FenchelYoungLearner(self, models, seed=seed, device=device)


class FenchelYoungLearner(Learner):
    """See `FenchelYoung`."""

    def __init__(
        self, method: FenchelYoung, models: Models, *, seed: int, device: torch.device | str
    ) -> None:
        coupling = coupling_of(models)
        super().__init__(method, models, seed=seed, device=device)
        self._method, self._notice = method, ""
        self._optimizer = make_optimizer(
            "adam", models.network.parameters(), method.lr, method.weight_decay
        )
        if coupled := list(coupling.parameters()):
            self._optimizer.add_param_group({"params": coupled, "lr": method.energy_lr})

    @property
    def phase(self) -> str:
        return "fenchel-young"

    @property
    def preparation(self) -> int:
        return 0

    @property
    def notice(self) -> str:
        return self._notice

    def step(self, x: Tensor, y: Tensor) -> dict[str, float]:
        method, models = self._method, self.models
        logits = training_logits(models.network, x, self.generator)
        energy_fn = joint_energy(models, x, logits)
        if method.cost_weight:
            energy_fn = augmented(energy_fn, self._weighted_cost, y)
        loss, found = method.infer(models, energy_fn, logits)
        value = loss(energy_fn, y, found.point).mean()
        descend(self._optimizer, value)
        figures = {
            "fenchel_young": float(value.detach()),
            "inner_gap": float(found.gap.mean()),
            "largest_gap": float(found.gap.max()),
        }
        self._notice = self._say(figures)
        return figures

    def _weighted_cost(self, point: Tensor, gold: Tensor) -> Tensor:
        return self._method.cost_weight * self._method.cost(point, gold)

    @staticmethod
    def _say(figures: dict[str, float]) -> str:
        gap, value = figures["inner_gap"], figures["fenchel_young"]
        if gap <= _NOTICEABLE_GAP * value:
            return ""
        return (
            f"Inference ends {gap:.1e} from its optimum (its bound), the loss being {value:.1e}, "
            "so that the gradient is off; take more steps or a larger weight."
        )

    def _progress(self) -> dict[str, Any]:
        return {"optimizer": self._optimizer.state_dict()}

    def _load_progress(self, state: dict[str, Any]) -> None:
        self._notice = ""
        self._optimizer.load_state_dict(state["optimizer"])


def joint_energy(models: Models, x: Tensor, logits: Tensor) -> EnergyFunction:
    """Return ``p -> -<logits, p> + coupling(x, p)``."""
    coupling, dims = coupling_of(models), tuple(range(-models.space.event_dims, 0))
    slope = coupling.slope(x)
    return SlopedEnergy(
        lambda point: coupling(x, point) - (logits * point).sum(dim=dims),
        lambda point: slope(point) - logits,
    )


def coupling_of(models: Models) -> Coupling:
    """Return the energy, which has to be a coupling."""
    if not isinstance(models.energy, Coupling):
        raise ValueError(
            f"models: found the energy {type(models.energy).__name__}, wanted a coupling of "
            "`structured.fenchel_young`; make the models with the method's `build`"
        )
    return models.energy
