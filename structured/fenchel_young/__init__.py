"""Generalized Fenchel-Young losses (Blondel et al. 2022): learning through inference, not past it.

The paper maximises Phi(v, p) - Omega(p), HIGH is good. Here as everywhere energies are LOW where
good: ``Phi = -E``, so that the prediction is ``p* = argmin_p E(p) + Omega(p)`` over the space, and

    L(y) = [E(y) + Omega(y)] - [E(p*) + Omega(p*)] >= 0,

with equality exactly where y is the minimiser (for a unique one). Its gradient in whatever E
depends on is ``dE(y) - dE(p*)`` at a fixed p*: nothing is differentiated through the inference.

- `GeneralizedFenchelYoung`: the loss with its inference, for any energy that is a function of p;
- `SquaredNorm`, `NegativeEntropy`: Omega;
- `structured.fenchel_young.couplings`: energies beyond ``-<u, p>``, convex ones among them;
- `coordinate_ascent`: exact inference for quadratic energies; any other point will do, too, since
  `GeneralizedFenchelYoung.certify` says how far from optimal it is;
- `augmented`: the variant with a cost.
"""

from structured.fenchel_young.coordinate import coordinate_ascent
from structured.fenchel_young.couplings import (
    ConvexCoupling,
    Coupling,
    InputCoupling,
    NetworkCoupling,
    NoCoupling,
    PairwiseCoupling,
)
from structured.fenchel_young.loss import (
    GeneralizedFenchelYoung,
    InnerGapError,
    Prediction,
    augmented,
)
from structured.fenchel_young.regularizers import NegativeEntropy, Regularizer, SquaredNorm

__all__ = [
    "ConvexCoupling",
    "Coupling",
    "GeneralizedFenchelYoung",
    "InnerGapError",
    "InputCoupling",
    "NegativeEntropy",
    "NetworkCoupling",
    "NoCoupling",
    "PairwiseCoupling",
    "Prediction",
    "Regularizer",
    "SquaredNorm",
    "augmented",
    "coordinate_ascent",
]
