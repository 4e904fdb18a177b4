"""Losses: pure functions of energies and costs, one value per example.

Low energies are good, costs are at least zero, and the gold output's energy always comes first.
None of these functions averages over the batch: the caller takes the mean.
"""

from structured.losses.compound import compound_energy_loss, compound_network_loss
from structured.losses.contrastive_divergence import contrastive_divergence
from structured.losses.cross_entropy import label_cross_entropy, tag_cross_entropy
from structured.losses.fenchel_young import (
    binary_negative_entropy,
    fenchel_young,
    half_squared_norm,
    negative_entropy,
)
from structured.losses.margin import contrastive_margin, margin, perceptron, slack_rescaling
from structured.losses.nce import nce_binary, nce_ranking
from structured.losses.value import value_cross_entropy, value_squared

__all__ = [
    "binary_negative_entropy",
    "compound_energy_loss",
    "compound_network_loss",
    "contrastive_divergence",
    "contrastive_margin",
    "fenchel_young",
    "half_squared_norm",
    "label_cross_entropy",
    "margin",
    "nce_binary",
    "nce_ranking",
    "negative_entropy",
    "perceptron",
    "slack_rescaling",
    "tag_cross_entropy",
    "value_cross_entropy",
    "value_squared",
]
