"""Energies E(x, y): low is good. Called ``energy(x, y)`` with ``y [..., B, *event]``.

What depends on the input alone is computed once, however many points ``y`` holds in its leading
dimensions: to compare the gold output with samples, stack them and call the energy once.
"""

from structured.energies._unaries import unaries_from_network
from structured.energies.cardinality import Cardinality
from structured.energies.chain import ChainEnergy
from structured.energies.convolutional import ConvolutionalEnergy
from structured.energies.multilabel import MultiLabelEnergy
from structured.energies.pairwise import PairwiseEnergy

__all__ = [
    "Cardinality",
    "ChainEnergy",
    "ConvolutionalEnergy",
    "MultiLabelEnergy",
    "PairwiseEnergy",
    "unaries_from_network",
]
