"""Methods: ways to train a network, alone or with an energy; a composition of the parts below.

A method is a frozen dataclass of numbers and small objects. `Method.learner` starts a run of it,
which takes minibatches and can be saved and restored.
"""

from structured.methods._alternating import Alternating
from structured.methods.alen import ALEN, IALEN
from structured.methods.base import Learner, Method
from structured.methods.cross_entropy import CrossEntropy, CrossEntropyLearner
from structured.methods.description import from_dict, to_dict, with_options
from structured.methods.dvn import DVN
from structured.methods.fenchel_young import FenchelYoung
from structured.methods.figures import TrustLimits
from structured.methods.gspen import GSPEN
from structured.methods.hypergradient import NoAdjoint, UnrolledProblem, unroll
from structured.methods.implicit import Implicit
from structured.methods.implicit_learner import ImplicitLearner
from structured.methods.infnet import InfNet
from structured.methods.infnet_plus import InfNetPlus
from structured.methods.nce import NCE
from structured.methods.primaries import ContrastiveDivergence, Margin, Primary, Value
from structured.methods.registry import known, register
from structured.methods.seal import SEAL
from structured.methods.spen import SPEN
from structured.methods.spen_e2e import EndToEndSPEN

__all__ = [
    "ALEN",
    "DVN",
    "GSPEN",
    "IALEN",
    "NCE",
    "SEAL",
    "SPEN",
    "Alternating",
    "ContrastiveDivergence",
    "CrossEntropy",
    "CrossEntropyLearner",
    "EndToEndSPEN",
    "FenchelYoung",
    "Implicit",
    "ImplicitLearner",
    "InfNet",
    "InfNetPlus",
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
    "with_options",
]
