"""Methods: ways to train a network, alone or with an energy; a composition of the parts below.

A method is a frozen dataclass of numbers and small objects. `Method.learner` starts a run of it,
which takes minibatches and can be saved and restored.
"""

from structured.methods.base import Learner, Method
from structured.methods.cross_entropy import CrossEntropy, CrossEntropyLearner
from structured.methods.description import from_dict, to_dict
from structured.methods.figures import TrustLimits
from structured.methods.hypergradient import NoAdjoint, UnrolledProblem, unroll
from structured.methods.implicit import Implicit
from structured.methods.implicit_learner import ImplicitLearner
from structured.methods.primaries import ContrastiveDivergence, Margin, Primary, Value
from structured.methods.registry import known, register

__all__ = [
    "ContrastiveDivergence",
    "CrossEntropy",
    "CrossEntropyLearner",
    "Implicit",
    "ImplicitLearner",
    "Learner",
    "Margin",
    "Method",
    "NoAdjoint",
    "Primary",
    "TrustLimits",
    "UnrolledProblem",
    "Value",
    "from_dict",
    "known",
    "register",
    "to_dict",
    "unroll",
]
