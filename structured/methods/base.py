"""What a method is, and the learner that carries out one run of it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from structured.models import ModelConfig, Models, build_models, evaluating

SearchSpace: TypeAlias = Mapping[str, Sequence[Any]]
"""Option -> values; a dot reaches into a part, as in ``primary.samples``."""


class Method(ABC):
    """How models are trained: numbers and small objects, no state.

    Subclasses are frozen dataclasses; `structured.methods.to_dict` writes them as JSON values.
    """

    reweights: ClassVar[bool] = False
    """Whether the energy corrects the network's distribution: ``p(y | x) ~ A(y | x) e^{-E(x, y)}``.

    Then `structured.joint.JointExpectedF1` can decode with both; where not, labels are independent.
    """

    search_space: ClassVar[SearchSpace] = {}
    """Option -> the values a search on validation data draws from; a dot reaches into a part, as in
    ``primary.samples``.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """A short name for tables and folders, such as "cross-entropy"."""

    def build(self, n_features: int, n_labels: int, config: ModelConfig, seed: int) -> Models:
        """Make the models this method trains, freshly initialised: by default `build_models`.

        A method with an energy of its own keeps the network, so that all methods start from the
        same one, and replaces the energy. All that is trained has to be in these two modules: they
        are what is averaged, saved and given to `predict`.

        Args:
            n_features: the size of x, D.
            n_labels: how many labels, L.
            config: their sizes.
            seed: decides the initial parameters, and nothing else does; torch's own random state is
                left as it was.
        """
        return build_models(n_features, n_labels, config, seed)

    def predict(self, models: Models, x: Tensor) -> Tensor:
        """Return points of the relaxed space for inputs: by default one pass of the network.

        Args:
            models: trained, in evaluation mode.
            x: inputs, ``[B, ...]``.

        Returns:
            ``[B, *event]``, probabilities for labels; no gradient passes.
        """
        with torch.no_grad():
            return models.space.relax(models.network(x))

    @abstractmethod
    def learner(
        self,
        models: Models,
        *,
        steps_per_epoch: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> Learner:
        """Start a run: a learner that owns `models`, which it moves to `device`.

        Args:
            models: what to train; parameters are changed in place.
            steps_per_epoch: how many calls of `Learner.step` make an epoch.
            seed: of all noise that the learner draws (dropout, samples).
            device: where the parameters and the minibatches are.
        """


class Learner(ABC):
    """One run of a method: it takes minibatches, keeps its optimizers, and can be saved.

    Args:
        method: whose run it is.
        models: what is trained.
        seed: of the learner's own generator, from which all noise is drawn.
        device: where the parameters and the minibatches are.

    Attributes:
        method: whose run it is.
        models: what is trained.
        epoch: epochs completed.
        device: where the parameters are.
        generator: the source of all noise.
    """

    mixed_precision: ClassVar[bool] = False
    """Whether `step` may run under ``torch.autocast`` without losing what it computes."""

    def __init__(
        self, method: Method, models: Models, *, seed: int, device: torch.device | str
    ) -> None:
        self.method = method
        self.models = models
        self.epoch = 0
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        for module in self._modules().values():
            module.to(self.device)

    @property
    @abstractmethod
    def phase(self) -> str:
        """What `step` does at present, such as "pretraining"; constant within an epoch."""

    @property
    @abstractmethod
    def preparation(self) -> int:
        """How many epochs go by before the last phase begins: 0 where there is but one.

        A run never stops early within them.
        """

    @property
    @abstractmethod
    def notice(self) -> str:
        """One sentence on the last step that a user should read; empty if there is none."""

    @abstractmethod
    def step(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Learn from one minibatch.

        Args:
            x: inputs, ``[B, ...]``.
            y: gold outputs, ``[B, *event]``.

        Returns:
            Figures of this minibatch by name, all finite. Which ones depends on the phase.
        """

    @abstractmethod
    def _progress(self) -> dict[str, Any]:
        """Return what is to be saved besides models, generator and epoch."""

    @abstractmethod
    def _load_progress(self, state: dict[str, Any]) -> None:
        """Take over what `_progress` returned; models, generator and epoch are in place."""

    def end_epoch(self) -> None:
        """Note that an epoch is over; the next step may be of another phase."""
        self.epoch += 1

    def predict(self, x: Tensor) -> Tensor:
        """Return what the method predicts with the present weights, without dropout.

        Args:
            x: inputs, ``[B, ...]``.

        Returns:
            A point of the relaxed space, ``[B, *event]``; no gradient passes.
        """
        with evaluating(self.models):
            return self.method.predict(self.models, x)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all that a learner of the same method needs to go on bit for bit.

        Dicts (keys: texts or integers), lists, tuples, tensors and plain values; what
        `structured.checkpoint.save_state` takes.
        """
        modules = {name: module.state_dict() for name, module in self._modules().items()}
        return copy.deepcopy(
            {
                "method": self.method.name,
                "epoch": self.epoch,
                "generator": self.generator.get_state(),
                "modules": {name: dict(state) for name, state in modules.items()},
                "progress": self._progress(),
            }
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken; refused whole if it does not fit.

        Raises:
            ValueError: if it is the state of another method or of models of other sizes.
        """
        found = state.get("method")
        if found != self.method.name:
            raise ValueError(f"state: is of the method {found!r}, wanted {self.method.name!r}")
        before = self.state_dict()
        try:
            self._load(copy.deepcopy(state))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            self._load(before)
            raise ValueError(
                f"state: does not fit these models and this method, nothing was loaded: {error}"
            ) from error

    def _load(self, state: dict[str, Any]) -> None:
        for name, module in self._modules().items():
            module.load_state_dict(state["modules"][name])
        self.generator.set_state(state["generator"].cpu())
        self.epoch = int(state["epoch"])
        self._load_progress(state["progress"])

    def _modules(self) -> dict[str, nn.Module]:
        modules = {"network": self.models.network}
        if self.models.energy is not None:
            modules["energy"] = self.models.energy
        return modules
