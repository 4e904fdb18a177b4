"""Labels joined by pairs: beliefs in the local marginal polytope, and how to find the best ones.

*Beliefs* say of every label how probable it is, and of every pair how probable both labels are:
vectors ``[..., B, L + P]`` of ``b_i(1)``, then ``b_ij(1, 1)``, from which all other entries follow
(`LabelGraph.tables`). *Potentials* have the same shape, and HIGH is good: ``<theta, b>``.
"""

from structured.graphs.energy import GraphEnergy
from structured.graphs.graph import LabelGraph
from structured.graphs.inference import BestBeliefs, frank_wolfe, mirror_ascent
from structured.graphs.oracles import best_labels, linear_program
from structured.graphs.selection import (
    maximum_spanning_tree,
    mutual_information,
    strongest_pairs,
)
from structured.graphs.sum_product import pair_beliefs, sum_product

__all__ = [
    "BestBeliefs",
    "GraphEnergy",
    "LabelGraph",
    "best_labels",
    "frank_wolfe",
    "linear_program",
    "maximum_spanning_tree",
    "mirror_ascent",
    "mutual_information",
    "pair_beliefs",
    "strongest_pairs",
    "sum_product",
]
