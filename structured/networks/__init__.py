"""Inference networks: from an input to the logits of an output space.

Every network returns logits; `structured.spaces` turns them into points. Each has its last linear
layer under the name ``output``, which `structured.energies.unaries_from_network` relies on.
"""

from structured.networks.bilstm import BiLSTMTagger
from structured.networks.mlp import MLP
from structured.networks.scaling import InputScaling, fit_inputs
from structured.networks.unet import UNet

__all__ = ["MLP", "BiLSTMTagger", "InputScaling", "UNet", "fit_inputs"]
