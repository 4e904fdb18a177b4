"""A network that proposes, and an energy that is right nearby: ALEN and iALEN, reconstructed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from structured.methods._alternating import Alternating, AlternatingLearner
from structured.methods._gradient_inference import Descent, energy_of_points
from structured.methods._objectives import (
    Compared,
    EnergyObjectives,
    Parameters,
    fixed,
    trained_energy,
)
from structured.methods._optimizer import check_count, check_rate, check_weights
from structured.methods._staged import Stage
from structured.methods.base import SearchSpace
from structured.methods.figures import comparison_figures
from structured.methods.primaries import Margin
from structured.methods.registry import register
from structured.models import Models


@register("ialen")
@dataclass(frozen=True)
class IALEN(Alternating):
    """ALEN without refinement: the network's proposal is the candidate. A RECONSTRUCTION.

    The network descends ``energy_weight E(x, A(x)) + ce_weight CE(A, y)``, the energy fixed; the
    energy descends the margin ``[Delta(A, y) - E(A) + E(y)]_+``, the network fixed. The network
    alone predicts. See `ALEN`, of whose options it has all but those of the steps.

    *Gradient of the energy:* that of the margin in phi at a fixed A(x). *Dropped:* the way phi
    moves A, ``dA/dphi``: it is the direct gradient of `Implicit` with a step of the energy for one
    of the network.

    Options that are not listed here, given by name, are those of `Alternating`.

    Args:
        energy_weight: of the energy in the network's loss.
        ce_weight: of cross-entropy in the network's loss.

    Raises:
        ValueError: if an option does not fit.

    Example:
        >>> import torch
        >>> from structured.models import ModelConfig, build_models
        >>> models = build_models(4, 3, ModelConfig(hidden=(8,), energy_hidden=(8,)), seed=0)
        >>> learner = IALEN(pretrain_epochs=0).learner(models, steps_per_epoch=10)
        >>> x = torch.randn(2, 4)
        >>> _ = learner.step(x, torch.ones(2, 3))
        >>> bool((learner.predict(x) == models.space.relax(models.network.eval()(x))).all())
        True

    Reference:
        Pan, Liu, Yan, Yang & Yang 2020, Adversarial Localized Energy Network for Structured
        Prediction.
    """

    search_space: ClassVar[SearchSpace] = {
        **Alternating.search_space,
        "energy_weight": (0.1, 0.3, 1.0, 3.0),
    }

    energy_weight: float = 1.0
    ce_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weights(self, "energy_weight", "ce_weight")

    @property
    def name(self) -> str:
        return "ialen"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What is trained when."""
        return self.pretraining, Stage("joint", None, self.rules)

    @property
    def descent(self) -> Descent | None:
        """How a proposal is refined: here it is not."""
        return None

    def refine(self, models: Models, x: Tensor, logits: Tensor) -> Tensor:
        """Return the refined points of proposals, ``[B, *event]``; no gradient passes.

        Args:
            models: whose energy is descended.
            x: inputs, ``[B, ...]``.
            logits: of the proposals, ``[B, *event]``.
        """
        energy, descent = trained_energy(models), self.descent
        if descent is None:
            return models.space.relax(logits.detach())
        return descent.end(energy_of_points(energy, x), logits, models.space)

    def predict(self, models: Models, x: Tensor) -> Tensor:
        """Return the network's proposals, refined as in training.

        Args:
            models: trained, in evaluation mode.
            x: inputs, ``[B, ...]``.

        Returns:
            ``[B, *event]``, probabilities for labels; no gradient passes.
        """
        with torch.no_grad():
            return self.refine(models, x, models.network(x))

    def objectives(self, models: Models) -> LocalizedObjectives:
        """Return what network and energy descend, as functions of phi and outputs."""
        return LocalizedObjectives(models, self.cost, self.energy_weight, self.ce_weight)

    def learner(
        self,
        models: Models,
        *,
        steps_per_epoch: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> LocalizedLearner:
        return LocalizedLearner(self, models, seed=seed, device=device)


@register("alen")
@dataclass(frozen=True)
class ALEN(IALEN):
    """Let a network propose, and a few gradient steps on the energy refine. A RECONSTRUCTION.

    Written from what the paper's abstract and the tables of others say of adversarial localized
    energy networks; no published code was at hand, and the losses are this package's choice.

    The network descends ``energy_weight E(x, A(x)) + ce_weight CE(A, y)``, the energy fixed. The
    energy descends the margin ``[Delta(y_T, y) - E(y_T) + E(y)]_+`` at y_T, which `refine_steps`
    mirror steps of `refine_rate` down the energy lead to from A(x); so it has to be right only near
    what the network proposes. Predictions are refined the same way.

    *Gradient of the energy:* that of the margin in phi at a fixed y_T, nothing where the hinge is
    inactive. *Dropped:* both ways phi moves y_T, through the steps (``dy_T/dphi``, what end-to-end
    training keeps) and through the network (``dA/dphi``). The network's gradient, too, is that of
    E at its own proposal, not of what the steps make of it.

    Options that are not listed here, given by name, are those of `IALEN`, and of `Alternating`.

    Args:
        refine_steps: T; with 0 this is `IALEN`, step for step.
        refine_rate: size of these steps, in logits by unit of gradient.

    Raises:
        ValueError: if an option does not fit.

    Example:
        >>> import torch
        >>> from structured.models import ModelConfig, build_models
        >>> models = build_models(4, 3, ModelConfig(hidden=(8,), energy_hidden=(8,)), seed=0)
        >>> learner = ALEN(pretrain_epochs=0).learner(models, steps_per_epoch=10)
        >>> sorted(learner.step(torch.randn(2, 4), torch.ones(2, 3)))[:4]
        ['active_hinges', 'auxiliary', 'cross_entropy', 'energy_gap']
        >>> learner.predict(torch.randn(2, 4)).shape
        torch.Size([2, 3])

    Reference:
        Pan, Liu, Yan, Yang & Yang 2020, Adversarial Localized Energy Network for Structured
        Prediction.
    """

    search_space: ClassVar[SearchSpace] = {
        **IALEN.search_space,
        "refine_rate": (0.03, 0.1, 0.3),
    }

    refine_steps: int = 3
    refine_rate: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("refine_steps", self.refine_steps, 0)
        check_rate("refine_rate", self.refine_rate)

    @property
    def name(self) -> str:
        return "alen"

    @property
    def descent(self) -> Descent | None:
        """How a proposal is refined; None without steps."""
        if not self.refine_steps:
            return None
        return Descent(self.refine_steps, self.refine_rate, "mirror", 0.0)


@dataclass(frozen=True)
class LocalizedObjectives(EnergyObjectives):
    """What the network and the energy descend.

    Attributes:
        energy_weight: of the energy in the network's loss.
        ce_weight: of cross-entropy in the network's loss.
    """

    energy_weight: float
    ce_weight: float

    def network(self, phi: Parameters, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """Return the network's loss, mean over the minibatch."""
        space = self.models.space
        values = -self.ce_weight * space.log_prob(logits, y)
        return (values + self.energy_weight * self.energies(phi, x, space.relax(logits))).mean()

    def energy(self, found: Compared) -> Tensor:
        """Return the margin, mean over the minibatch."""
        return Margin().loss(found.gold_energy, found.energies, found.costs).mean()


class LocalizedLearner(AlternatingLearner):
    """See `ALEN` and `IALEN`."""

    def __init__(
        self, method: IALEN, models: Models, *, seed: int, device: torch.device | str
    ) -> None:
        super().__init__(method, models, seed=seed, device=device)
        self._method, self._objectives = method, method.objectives(models)

    def _step_network(self, x: Tensor, y: Tensor) -> dict[str, float]:
        value = self._objectives.network(fixed(self._phi), x, y, self._logits(x))
        self._descend(value, "network")
        return {"auxiliary": float(value.detach())}

    def _step_energy(self, x: Tensor, y: Tensor) -> dict[str, float]:
        objectives, space = self._objectives, self.models.space
        with torch.no_grad():
            logits = self._logits(x)
            point = self._method.refine(self.models, x, logits)
        found = objectives.compare(self._phi, x, y, logits, point[None])
        loss = objectives.energy(found)
        self._descend(loss, "energy")
        distance = (point - space.relax(logits)).abs().flatten(start_dim=1).mean()
        return {
            "primary": float(loss.detach()),
            "cross_entropy": float(-space.log_prob(logits, y).mean()),
            "refined_by": float(distance),
            **comparison_figures(found),
        }
