"""How long to train, on what, what to watch and what to write."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

MONITORS: Mapping[str, bool] = {
    "f1_expected": True,
    "f1_tuned": True,
    "f1_half": True,
    "f1_joint": True,
    "cross_entropy": False,
}
"""What early stopping can watch on validation data -> whether high is good.

The first four are example-F1 under the decoders of `structured.evaluation`: expected F1, tuned
threshold, threshold 0.5, and joint expected F1 (with the energy as it is, scale 1, and fewer
samples than the final decoder; it is measured only if it is watched). For a method whose labels are
independent the last one is the first.
"""


@dataclass(frozen=True)
class TrainConfig:
    """The trainer's settings; plain values only, so that they can be written as JSON.

    Args:
        epochs: the most epochs.
        batch_size: rows of a minibatch.
        seed: decides the initial parameters, the order of the rows and all noise; at least 0.
        patience: epochs without improvement on validation after which training stops; None never
            stops early. Counted anew when the method enters another phase; before the last one,
            training never stops.
        monitor: what is watched on validation data, a name in `MONITORS`.
        last_phase_only: forget the best epoch when the method enters another phase, so that the
            weights kept are of its last one. By default they are of the best epoch of all.
        average: decay of a running average of the weights, which is what is validated and kept
            (`structured.averaging.WeightAverage`); 0 keeps the weights as they are.
        refit: once the best number of epochs is known, train anew for so many epochs on the
            training and the validation part together; decoders stay fitted on validation rows as
            the first model, which never saw them, predicts them.
        device: "auto" takes an accelerator if there is one; or "cpu", "cuda", "cuda:1", ...
        mixed_precision: bfloat16 where the method says it is safe; needs an accelerator.
        checkpoint_seconds: a checkpoint is saved after the first step that ends this long after the
            last one; a killed run repeats no more than that. 0 saves after every step.
        log_steps: also write ``steps.csv``, a row per minibatch.
        tensorboard: also write TensorBoard events (needs the package ``tensorboard``).

    Raises:
        ValueError: if a value is out of range.

    Example:
        >>> TrainConfig.from_dict(TrainConfig(epochs=3).to_dict()).epochs
        3
    """

    epochs: int = 100
    batch_size: int = 32
    seed: int = 0
    patience: int | None = 10
    monitor: str = "f1_expected"
    last_phase_only: bool = False
    average: float = 0.999
    refit: bool = False
    device: str = "auto"
    mixed_precision: bool = False
    checkpoint_seconds: float = 30.0
    log_steps: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0), ("patience", 1)):
            found = getattr(self, name)
            if name == "patience" and found is None:
                continue
            if type(found) is not int or found < least:
                raise ValueError(f"{name}: found {found!r}, wanted an integer of at least {least}")
        if isinstance(self.average, bool) or not 0.0 <= self.average < 1.0:
            raise ValueError(f"average: found {self.average!r}, wanted a decay in [0, 1)")
        if self.monitor not in MONITORS:
            raise ValueError(
                f"monitor: found {self.monitor!r}, wanted one of {', '.join(MONITORS)}"
            )
        if not self.checkpoint_seconds >= 0:
            raise ValueError(
                f"checkpoint_seconds: found {self.checkpoint_seconds}, wanted at least 0"
            )
        try:
            torch.device("cpu" if self.device == "auto" else self.device)
        except RuntimeError as error:
            raise ValueError(
                f'device: found {self.device!r}, wanted "auto", "cpu" or a device such as "cuda:0"'
            ) from error

    def torch_device(self) -> torch.device:
        """Return the device to train on.

        Raises:
            ValueError: if this machine does not have it.
        """
        if self.device == "auto":
            return torch.accelerator.current_accelerator(check_available=True) or torch.device(
                "cpu"
            )
        device = torch.device(self.device)
        if device.type == "cpu":
            return device
        found = torch.accelerator.current_accelerator(check_available=True)
        count = torch.accelerator.device_count() if found else 0
        if found is None or found.type != device.type or (device.index or 0) >= count:
            there = f"{count} of type {found.type}" if found else "no accelerator"
            raise ValueError(
                f'device: found {self.device!r}, but this machine has {there}; take "auto" or "cpu"'
            )
        return device

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` undoes it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Make a configuration of what `to_dict` returned; missing keys take their defaults.

        Raises:
            ValueError: if a key is unknown or a value does not fit.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [key for key in values if key not in known]
        if unknown:
            raise ValueError(
                f"training configuration: found unknown {', '.join(map(repr, unknown))}, wanted "
                f"{', '.join(known)}"
            )
        return cls(**values)
