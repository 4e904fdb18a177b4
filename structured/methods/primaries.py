"""Primary losses: what the energy is trained for.

Those of the paper's section on their design. Each compares the energy of the gold output with the
energies of K candidates, the network's soft output or samples from it. The formulas themselves are
in `structured.losses`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from structured import losses
from structured.sampling import Sampler, Soft, StraightThrough


class Primary(ABC):
    """A loss of energies and costs, and how many candidates it wants."""

    #: How many candidates are drawn for each example, K.
    samples: int
    #: How candidates are drawn unless the method says otherwise.
    default_sampler: ClassVar[Sampler]

    @property
    @abstractmethod
    def name(self) -> str:
        """A short name for tables."""

    @abstractmethod
    def loss(self, gold_energy: Tensor, energies: Tensor, costs: Tensor) -> Tensor:
        """Return one value per example, ``[B]``.

        Args:
            gold_energy: E(x, y), ``[B]``.
            energies: E(x, yhat_k), ``[K, B]``.
            costs: Delta(yhat_k, y), ``[K, B]``.
        """


@dataclass(frozen=True)
class Margin(Primary):
    """The structured hinge ``[Delta - E(yhat) + E(y)]_+``, averaged over candidates.

    Args:
        samples: candidates for each example; 1 (default) with the soft output.

    Example:
        >>> import torch
        >>> Margin().loss(torch.ones(1), torch.ones(1, 1), torch.full((1, 1), 0.5))
        tensor([0.5000])
    """

    samples: int = 1
    default_sampler: ClassVar[Sampler] = Soft()

    def __post_init__(self) -> None:
        _check_samples(self.samples)

    @property
    def name(self) -> str:
        return "margin"

    def loss(self, gold_energy: Tensor, energies: Tensor, costs: Tensor) -> Tensor:
        return losses.margin(gold_energy, energies, costs).mean(dim=0)


@dataclass(frozen=True)
class ContrastiveDivergence(Primary):
    """``-log(e^{-E(y)} / (e^{-E(y)} + sum_k e^{Delta_k - E(yhat_k)}))`` of K samples.

    Args:
        samples: K, 10 by default; the paper does not say how many it draws.

    Example:
        >>> import torch
        >>> zero = torch.zeros(1)
        >>> ContrastiveDivergence(3).loss(zero, torch.zeros(3, 1), torch.zeros(3, 1)).exp()
        tensor([4.])
    """

    samples: int = 10
    default_sampler: ClassVar[Sampler] = StraightThrough()

    def __post_init__(self) -> None:
        _check_samples(self.samples)

    @property
    def name(self) -> str:
        return "contrastive-divergence"

    def loss(self, gold_energy: Tensor, energies: Tensor, costs: Tensor) -> Tensor:
        return losses.contrastive_divergence(gold_energy, energies, costs)


@dataclass(frozen=True)
class Value(Primary):
    """The value loss of deep value networks: sigma(-E(yhat)) is to equal the score ``1 - Delta``.

    The target is a function of the candidate, and the gradient passes through it.

    Args:
        samples: candidates for each example; 1 (default) with the soft output.
        kind: "cross_entropy" (Gygli et al. 2017) or "squared".
        gold: also fit the gold output, whose score is 1.

    Example:
        >>> import torch
        >>> Value(kind="squared", gold=False).loss(
        ...     torch.zeros(1), torch.zeros(1, 1), torch.zeros(1, 1)
        ... )
        tensor([0.2500])
    """

    samples: int = 1
    kind: Literal["cross_entropy", "squared"] = "cross_entropy"
    gold: bool = True
    default_sampler: ClassVar[Sampler] = Soft()

    def __post_init__(self) -> None:
        _check_samples(self.samples)
        if self.kind not in ("cross_entropy", "squared"):
            raise ValueError(f'kind: found {self.kind!r}, wanted "cross_entropy" or "squared"')

    @property
    def name(self) -> str:
        return "value"

    def loss(self, gold_energy: Tensor, energies: Tensor, costs: Tensor) -> Tensor:
        fit = losses.value_squared if self.kind == "squared" else losses.value_cross_entropy
        value = fit(energies, 1.0 - costs).mean(dim=0)
        if self.gold:
            value = value + fit(gold_energy, gold_energy.new_ones(()))
        return value


def _check_samples(samples: int) -> None:
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise ValueError(f"samples: found {samples!r}, wanted an integer of at least 1")
