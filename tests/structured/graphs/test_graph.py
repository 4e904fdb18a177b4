from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch

from structured.graphs import (
    GraphEnergy,
    LabelGraph,
    maximum_spanning_tree,
    mutual_information,
    strongest_pairs,
    sum_product,
)
from tests.structured.graphs.problems import FORESTS, LABELS, PAIRS, problem

graphs = pytest.mark.parametrize("name", PAIRS)


@graphs
def test_tables_of_beliefs_sum_to_one_and_to_the_labels_beliefs(name: str) -> None:
    graph = problem(name).graph
    y = torch.rand(3, LABELS, dtype=torch.float64)
    single, pairs = graph.tables(graph.beliefs(y))
    torch.testing.assert_close(single.sum(dim=-1), torch.ones(3, LABELS).double())
    torch.testing.assert_close(pairs.sum(dim=-1), single[:, graph.pairs[:, 0]])
    torch.testing.assert_close(pairs.sum(dim=-2), single[:, graph.pairs[:, 1]])
    assert not graph.violation(graph.beliefs(y)).any()


def test_what_lies_outside_the_polytope_is_told_by_how_much() -> None:
    graph = LabelGraph(2, torch.tensor([[0, 1]]))
    beliefs = torch.tensor([[0.5, 0.5, 0.75], [0.75, 0.5, 0.125], [0.5, 0.25, -0.5], [1.25, 0, 0]])
    torch.testing.assert_close(graph.violation(beliefs), torch.tensor([0.25, 0.125, 0.5, 0.25]))


@graphs
def test_appearances_are_shares_of_all_spanning_trees(name: str) -> None:
    graph = problem(name).graph
    pairs = graph.pairs.tolist()
    size = len(pairs) - (0 if name in FORESTS else 1)
    trees = [
        kept
        for kept in combinations(range(len(pairs)), size)
        if LabelGraph(LABELS, graph.pairs[list(kept)]).forest
    ]
    counts = [sum(pair in tree for tree in trees) / len(trees) for pair in range(len(pairs))]
    torch.testing.assert_close(graph.appearance, torch.tensor(counts).double(), rtol=1e-5, atol=0)
    assert graph.forest == (name in FORESTS)


@graphs
def test_the_entropy_is_zero_on_label_sets_and_concave_between_beliefs(name: str) -> None:
    made = problem(name)
    entropies = made.graph.entropy(made.beliefs_of_sets)
    torch.testing.assert_close(entropies, torch.zeros(2**LABELS).double())
    left, _ = sum_product(made.graph, made.theta)
    right, _ = sum_product(made.graph, -made.theta)
    for share in (0.2, 0.5, 0.7):
        chord = share * made.graph.entropy(left) + (1 - share) * made.graph.entropy(right)
        assert bool((made.graph.entropy(torch.lerp(right, left, share)) >= chord).all())


def test_a_graph_without_pairs_has_independent_labels() -> None:
    graph = LabelGraph(3, torch.zeros(0, 2, dtype=torch.long))
    assert graph.forest
    assert graph.size == 3
    p = torch.tensor([[0.2, 0.5, 1.0]])
    expected = torch.special.entr(p) + torch.special.entr(1 - p)
    torch.testing.assert_close(graph.entropy(graph.beliefs(p)), expected.sum(dim=-1))


@pytest.mark.parametrize(
    "pairs", [[[0, 0]], [[0, 3]], [[-1, 1]], [[0, 1], [1, 0]], [[0, 1, 2]], [[0.0, 1.0]], [0, 1]]
)
def test_what_is_no_set_of_pairs_is_refused(pairs: Any) -> None:
    with pytest.raises(ValueError, match="pairs: found"):
        LabelGraph(3, torch.tensor(pairs))


def test_mutual_information_is_that_of_the_counted_tables() -> None:
    y = (torch.rand(50, 4, generator=torch.Generator().manual_seed(0)) < 0.4).double()
    y[:, 1] = torch.where(torch.arange(50) % 5 == 0, 1 - y[:, 0], y[:, 0])
    found = mutual_information(y.T @ y, 50)
    for i, j in combinations(range(4), 2):
        expected = 0.0
        for a in (0, 1):
            for b in (0, 1):
                both = ((y[:, i] == a) & (y[:, j] == b)).double().mean()
                apart = (y[:, i] == a).double().mean() * (y[:, j] == b).double().mean()
                expected += float(torch.where(both > 0, both * (both / apart).log(), 0.0))
        assert float(found[i, j]) == pytest.approx(expected, abs=1e-12)
        assert float(found[i, j]) == pytest.approx(float(found[j, i]))
    assert not found.diagonal().any()
    assert strongest_pairs(found, 1).tolist() == [[0, 1]]


def test_the_tree_is_the_heaviest_of_all() -> None:
    weights = torch.rand(LABELS, LABELS, generator=torch.Generator().manual_seed(3))
    weights = weights + weights.T
    pairs = list(combinations(range(LABELS), 2))
    trees = [
        kept
        for kept in combinations(pairs, LABELS - 1)
        if LabelGraph(LABELS, torch.tensor(kept)).forest
    ]
    heaviest = max(trees, key=lambda tree: sum(float(weights[i, j]) for i, j in tree))
    assert maximum_spanning_tree(weights).tolist() == [list(pair) for pair in heaviest]
    flat = maximum_spanning_tree(torch.zeros(4, 4))
    assert LabelGraph(4, flat).forest
    assert len(flat) == 3
    assert len(maximum_spanning_tree(torch.zeros(1, 1))) == 0


def test_no_more_pairs_than_there_are_can_be_asked_for() -> None:
    assert len(strongest_pairs(torch.zeros(3, 3), 3)) == 3
    with pytest.raises(ValueError, match="count: found 4, wanted 0 to 3"):
        strongest_pairs(torch.zeros(3, 3), 4)
    with pytest.raises(ValueError, match="pairs: found 4, wanted at most 3"):
        GraphEnergy(3, pairs=4)


def test_the_energy_is_the_printed_formula_and_zero_at_first() -> None:
    torch.manual_seed(0)
    energy = GraphEnergy(LABELS, pairs=4, size=3).double()
    x, y = torch.zeros(3, 2).double(), (torch.rand(2, 3, LABELS) < 0.5).double()
    assert not energy(x, y).any()
    energy.connect(torch.tensor(PAIRS["star"]))
    with torch.no_grad():
        for leaf in energy.parameters():
            leaf.normal_()
    expected = energy.global_term(x, energy.graph.beliefs(y))
    for weight, (i, j) in zip(energy.couplings, PAIRS["star"], strict=True):
        expected = expected - weight * y[..., i] * y[..., j]
    torch.testing.assert_close(energy(x, y), expected)
    logits = torch.randn(3, LABELS).double()
    scores = (energy.potentials(logits) * energy.graph.beliefs(y)).sum(dim=-1)
    local = (logits * y).sum(dim=-1) + energy.global_term(x, energy.graph.beliefs(y))
    torch.testing.assert_close(scores, local - energy(x, y))


def test_the_graph_is_made_anew_only_when_the_buffers_change() -> None:
    energy = GraphEnergy(4, pairs=3, size=2)
    first = energy.graph
    assert energy.graph is first
    pairs = torch.tensor([[0, 3], [1, 3], [2, 3]])
    energy.connect(pairs)
    assert torch.equal(energy.graph.pairs, pairs)
    assert not torch.equal(first.pairs, pairs)
    assert energy.double().graph.appearance.dtype == torch.float64


def test_the_pairs_are_saved_with_the_weights() -> None:
    energy, other = GraphEnergy(LABELS, pairs=5), GraphEnergy(LABELS, pairs=5)
    energy.connect(torch.tensor(PAIRS["cycle"]))
    other.load_state_dict(energy.state_dict())
    assert torch.equal(other.graph.pairs, torch.tensor(PAIRS["cycle"]))
    torch.testing.assert_close(other.graph.appearance, torch.full((5,), 0.8))
