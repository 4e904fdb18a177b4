"""A running average of the weights: what is validated, kept and used, while training goes on."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from structured.model_file import set_weights, weights_of
from structured.models import Models


class WeightAverage:
    """An exponential moving average of the parameters of models in training.

    After step t the average takes in the present weights with the share ``1 - min(decay, (1 + t) /
    (10 + t))``, so that the first steps are forgotten soon. Averaged weights lie nearer the middle
    of what a constant learning rate wanders around.

    Args:
        trained: the models that learn; they are only read.
        decay: in [0, 1); about ``1 / (1 - decay)`` steps are averaged. 0 averages nothing.

    Attributes:
        models: with the averaged weights; `trained` itself if `decay` is 0.

    Example:
        >>> from structured.models import ModelConfig, build_models
        >>> trained = build_models(2, 1, ModelConfig(hidden=()), seed=0)
        >>> average = WeightAverage(trained, 0.9)
        >>> _ = nn.init.ones_(trained.network.output.bias)
        >>> for _ in range(200):
        ...     average.update()
        >>> average.models.network.output.bias.detach()
        tensor([1.0000])

    Reference:
        Polyak & Juditsky 1992; Izmailov et al. 2018 for networks.
    """

    def __init__(self, trained: Models, decay: float) -> None:
        self.models = copy.deepcopy(trained) if decay else trained
        self._decay, self._steps = decay, 0
        own, watched = _parts(self.models), _parts(trained)
        self._pairs = list(zip(own.parameters(), watched.parameters(), strict=True))
        self._buffers = list(zip(own.buffers(), watched.buffers(), strict=True))

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step of training."""
        if not self._decay:
            return
        self._steps += 1
        kept = min(self._decay, (1 + self._steps) / (10 + self._steps))
        averages: list[Tensor] = [average for average, _ in self._pairs]
        weights: list[Tensor] = [weight for _, weight in self._pairs]
        # One call for all leaves, as in torch.optim.swa_utils.
        torch._foreach_lerp_(averages, weights, 1.0 - kept)  # pyright: ignore[reportPrivateImportUsage]
        for average, value in self._buffers:
            average.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes."""
        weights = weights_of(self.models) if self._decay else {}
        return {"steps": self._steps, "weights": weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was called."""
        self._steps = int(state["steps"])
        if self._decay:
            set_weights(self.models, state["weights"])


def _parts(models: Models) -> nn.ModuleList:
    # One module of both: what they share is then counted once.
    return nn.ModuleList(part for part in (models.network, models.energy) if part is not None)
