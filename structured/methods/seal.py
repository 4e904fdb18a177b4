"""A structured energy network as a loss: SEAL, static and dynamic (Lee et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from structured.losses import nce_ranking
from structured.methods._alternating import Alternating, AlternatingLearner
from structured.methods._objectives import Compared, EnergyObjectives, Parameters, fixed
from structured.methods._optimizer import check_choice, check_count, check_weights
from structured.methods._staged import PRETRAINING, EnergyStart, Stage
from structured.methods.base import SearchSpace
from structured.methods.figures import comparison_figures
from structured.methods.primaries import Margin, Value
from structured.methods.registry import register
from structured.models import Models
from structured.sampling import DetachedHard, DetachedSoft

SEALMode = Literal["dynamic", "static"]
SEALLoss = Literal["ranking", "margin", "value"]
ENERGY = "energy"


@register("seal")
@dataclass(frozen=True)
class SEAL(Alternating):
    """Train the network with cross-entropy plus an energy that is learned as a loss for it.

    The network descends ``CE(A, y) + energy_weight E(x, A(x))``, the energy fixed. The energy
    descends a loss of its own, the network fixed: "ranking", noise-contrastive estimation of y
    among `samples` drawn from A(x), ``-log softmax(-E - log p_A)`` at y; "margin", ``[Delta(A, y)
    - E(A) + E(y)]_+``; or "value", the cross-entropy between ``sigma(-E)`` and the score ``1 -
    Delta``, at A(x) and y.

    "static": pretraining of the network, then of the energy beside the network it leaves as it is,
    and then the network alone: the energy never moves again. "dynamic": after the network's
    pretraining both learn by turns, the energy always from what the network is now.

    *Gradient of the energy:* that of its own loss in phi, at fixed samples or a fixed A(x), and
    ``log p_A`` a constant. *Dropped:* that the network was trained on this energy, ``dA/dphi``,
    altogether; the energy is not trained to be a good loss, but a good energy.

    Options that are not listed here, given by name, are those of `Alternating`.

    Args:
        mode: "dynamic" or "static".
        energy_loss: "ranking" (default), "margin" or "value".
        samples: of A(x), for each example, with "ranking" (40 to 80 in the published code).
        energy_weight: w, of the energy in the network's loss. What suits it depends on the
            energy's scale: "ranking" makes E as large as ``-log p(y)``, so that 1 counts labels
            twice. The published code has 9.2 on bibtex and 1.0 on delicious, with other energies.
        network_steps: steps on the network on each minibatch.
        energy_steps: steps on the energy before each on the network (the published code nests them
            so, 9 in 10 on bibtex and 3 in 5 on delicious: up to a hundred steps on a minibatch).
        energy_epochs: of the energy, in "static" mode; "dynamic" has no use for them. They count
            as pretraining.
        energy_start: "random" (default) leaves the energy as it is; "cross_entropy" pretrains its
            local term as a classifier beside the network; "network" makes it minus the pretrained
            logits and wants equal sizes.
        cost: Delta, of "margin" and "value".

    Raises:
        ValueError: if an option does not fit.

    Example:
        >>> import torch
        >>> from structured.models import ModelConfig, build_models
        >>> models = build_models(4, 3, ModelConfig(hidden=(8,), energy_hidden=(8,)), seed=0)
        >>> learner = SEAL(pretrain_epochs=0).learner(models, steps_per_epoch=10)
        >>> sorted(learner.step(torch.randn(2, 4), torch.ones(2, 3)))
        ['active_hinges', 'auxiliary', 'cross_entropy', 'energy_gap', 'primary']

    Reference:
        Lee, Patel, Goyal, Zhao, Xu & McCallum 2022, Structured Energy Network As a Loss.
    """

    search_space: ClassVar[SearchSpace] = {
        **Alternating.search_space,
        "energy_weight": (0.03, 0.1, 0.3, 1.0),
        "samples": (20, 40),
    }

    mode: SEALMode = "dynamic"
    energy_loss: SEALLoss = "ranking"
    samples: int = 40
    energy_weight: float = 0.1
    energy_steps: int = 1
    energy_epochs: int = 5
    energy_start: EnergyStart = field(default="random", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("mode", self.mode, get_args(SEALMode))
        check_choice("energy_loss", self.energy_loss, get_args(SEALLoss))
        check_count("samples", self.samples, 1)
        check_count("energy_steps", self.energy_steps, 1)
        check_count("energy_epochs", self.energy_epochs, 0)
        check_weights(self, "energy_weight")

    @property
    def name(self) -> str:
        return f"seal-{self.mode}-{self.energy_loss}"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What is trained when."""
        if self.mode == "dynamic":
            return self.pretraining, Stage("dynamic", None, self.rules)
        return (
            self.pretraining,
            Stage(ENERGY, self.energy_epochs, {"energy": self.rules["energy"]}),
            Stage("static", None, {"network": self.rules["network"]}),
        )

    def objectives(self, models: Models) -> SEALObjectives:
        """Return what network and energy descend, as functions of their parameters."""
        return SEALObjectives(models, self.cost, self.energy_loss, self.samples, self.energy_weight)

    def learner(
        self,
        models: Models,
        *,
        steps_per_epoch: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> SEALLearner:
        return SEALLearner(self, models, seed=seed, device=device)


@dataclass(frozen=True)
class SEALObjectives(EnergyObjectives):
    """What the network and the energy descend.

    Attributes:
        loss: of the energy.
        samples: how many candidates "ranking" draws.
        energy_weight: w.
    """

    loss: SEALLoss
    samples: int
    energy_weight: float

    def candidates(self, logits: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return what the gold output is compared with, detached, ``[K, B, *event]``.

        Args:
            logits: of the network, ``[B, *event]``.
            noise: of the samples of "ranking"; see `Space.sample`.
        """
        sampler, count = DetachedSoft(), 1
        if self.loss == "ranking":
            sampler, count = DetachedHard(), self.samples
        return self.models.space.sample(logits, count, sampler, noise=noise)

    def energy(self, found: Compared, y: Tensor, candidates: Tensor) -> Tensor:
        """Return the energy's own loss, mean over the minibatch."""
        if self.loss == "ranking":
            space, logits = self.models.space, found.logits.detach()
            gold, drawn = space.log_prob(logits, y), space.log_prob(logits, candidates)
            return nce_ranking(found.gold_energy, found.energies, gold, drawn).mean()
        primary = Margin() if self.loss == "margin" else Value()
        return primary.loss(found.gold_energy, found.energies, found.costs).mean()

    def network(self, phi: Parameters, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """Return ``CE(A, y) + w E(x, A(x))``, mean over the minibatch."""
        space = self.models.space
        values = self.energy_weight * self.energies(phi, x, space.relax(logits))
        return (values - space.log_prob(logits, y)).mean()


class SEALLearner(AlternatingLearner):
    """See `SEAL`."""

    def __init__(
        self, method: SEAL, models: Models, *, seed: int, device: torch.device | str
    ) -> None:
        super().__init__(method, models, seed=seed, device=device)
        self._energy_steps, self._objectives = method.energy_steps, method.objectives(models)

    @property
    def phase(self) -> str:
        # The energy's stage, too, only prepares: its epochs show nothing on validation data.
        stage = self._stage.name
        return PRETRAINING if stage == ENERGY else stage

    def _train(self, stage: Stage, x: Tensor, y: Tensor) -> dict[str, float]:
        figures: dict[str, float] = {}
        for _ in range(self._network_steps if "network" in stage.moves else 1):
            if "energy" in stage.moves:
                for _ in range(self._energy_steps):
                    figures |= self._step_energy(x, y)
            if "network" in stage.moves:
                figures |= self._step_network(x, y)
        return figures

    def _step_energy(self, x: Tensor, y: Tensor) -> dict[str, float]:
        objectives, space = self._objectives, self.models.space
        with torch.no_grad():
            logits, noise = self._logits(x), None
            if objectives.loss == "ranking":
                shape = (objectives.samples, *logits.shape)
                noise = space.noise(
                    shape, generator=self.generator, dtype=logits.dtype, device=logits.device
                )
            candidates = objectives.candidates(logits, noise)
        found = objectives.compare(self._phi, x, y, logits, candidates)
        loss = objectives.energy(found, y, candidates)
        self._descend(loss, "energy")
        return {"primary": float(loss.detach()), **comparison_figures(found)}

    def _step_network(self, x: Tensor, y: Tensor) -> dict[str, float]:
        logits = self._logits(x)
        value = self._objectives.network(fixed(self._phi), x, y, logits)
        self._descend(value, "network")
        entropy = -self.models.space.log_prob(logits.detach(), y).mean()
        return {"auxiliary": float(value.detach()), "cross_entropy": float(entropy)}
