"""Initial weights that keep energies of order one."""

from __future__ import annotations

import torch
from torch import nn


def spread_output(layer: nn.Linear, terms: int) -> None:
    """Initialise a layer whose outputs are summed over `terms` entries, so that the sum is O(1)."""
    with torch.no_grad():
        layer.weight.normal_(std=(layer.in_features * terms) ** -0.5)
        layer.bias.zero_()
