"""A potential on how many labels are present."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Cardinality(nn.Module):
    """``g(sum_i y_i)``: a free value for every number of labels, linear in between; low is good.

    What no function of few projections of y says well: that there is at least one label, or seldom
    more than five. Above `most` labels the potential stays what it is there. It starts at zero.

    Args:
        most: the largest number with a value of its own, M.

    Attributes:
        values: g at 0, 1, ..., M, ``[M + 1]``.

    Raises:
        ValueError: if `most` is below 1.

    Example:
        >>> import torch
        >>> potential = Cardinality(3)
        >>> potential.values.data = torch.tensor([4.0, 0.0, 1.0, 3.0])
        >>> potential(torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.5]])).detach()
        tensor([4.0000, 0.0000, 0.5000])

    Reference:
        Tarlow, Swersky, Zemel, Adams & Frey 2012, Fast exact inference for recursive cardinality
        models, on such potentials.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        if most < 1:
            raise ValueError(f"most: found {most}, wanted at least 1")
        self.values = nn.Parameter(torch.zeros(most + 1))

    def forward(self, y: Tensor) -> Tensor:
        """Return ``g(sum y)``, ``[...]``, given points ``[..., L]``."""
        most = len(self.values) - 1
        count = y.sum(dim=-1).clamp(max=most)
        below = count.detach().floor().clamp(max=most - 1).long()
        return torch.lerp(self.values[below], self.values[below + 1], count - below)
