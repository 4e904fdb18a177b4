"""What ``Auto`` does beyond choosing: conjugate gradients that forget nothing."""

from __future__ import annotations

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import bilevel
from bilevel import Result
from tests.bilevel.arrays import error, normal, spd, with_spectrum
from tests.bilevel.systems import F64, Counting

reorthogonalized = importlib.import_module("bilevel.solvers._reorthogonalized_cg")


def decaying(n: int, condition: float, head: int, dtype: torch.dtype = F64) -> Tensor:
    """A matrix whose leading eigenvalues fall to a floor of ``1 / condition``."""
    steps = torch.arange(n, dtype=F64) / head
    return with_spectrum(10.0 ** (-3 * steps) + 1 / condition, 3).to(dtype)


@pytest.mark.parametrize("condition", [1e4, 1e6])
def test_a_decaying_spectrum_takes_a_third_of_the_products_of_cg(condition: float) -> None:
    A, b = bilevel.Matrix(decaying(300, condition, 40)), normal(300, seed=2)
    plain = bilevel.solve(A, b, bilevel.CG(rtol=1e-8, max_steps=3000))
    found = bilevel.solve(A, b, bilevel.Auto(rtol=1e-8, max_steps=3000))
    assert found.result is plain.result is Result.SUCCESS
    assert found.stats.products < plain.stats.products / 3
    assert error(found.value, torch.linalg.solve(A.to_dense(), b)) < 1e-7 * condition


def test_single_precision_gains_as_much() -> None:
    A = bilevel.Matrix(decaying(300, 1e4, 40, torch.float32))
    b = normal(300, seed=2).float()
    plain = bilevel.solve(A, b, bilevel.CG(rtol=1e-3, max_steps=3000))
    found = bilevel.solve(A, b, bilevel.Auto(rtol=1e-3, max_steps=3000))
    assert found.result is Result.SUCCESS
    assert found.stats.products < plain.stats.products / 2


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), high=st.floats(2.0, 1e4), columns=st.integers(1, 3))
def test_it_never_needs_more_products_than_cg_and_finds_the_same(
    seed: int, high: float, columns: int
) -> None:
    A, b = bilevel.Matrix(spd(140, seed, 1.0, high)), normal(140, columns, seed=seed + 1)
    plain = bilevel.solve(A, b, bilevel.CG(rtol=1e-9, max_steps=2000))
    found = bilevel.solve(A, b, bilevel.Auto(rtol=1e-9, max_steps=2000))
    assert found.result is Result.SUCCESS
    assert found.stats.products <= plain.stats.products + 1
    assert error(found.value, plain.value) < 1e-7 * high


def test_each_of_several_right_hand_sides_is_solved_as_if_alone() -> None:
    A = decaying(150, 1e4, 20)
    easy = torch.linalg.eigh(A).eigenvectors[:, -1]  # arrives after one step and then stands still
    b = torch.stack([normal(150, seed=1), easy, torch.zeros(150, dtype=F64)], dim=1)
    together = bilevel.solve(bilevel.Matrix(A), b, bilevel.Auto(rtol=1e-8))
    for index in range(3):
        alone = bilevel.solve(bilevel.Matrix(A), b[:, index], bilevel.Auto(rtol=1e-8))
        assert together.stats.columns[index].iterations == alone.stats.iterations
        torch.testing.assert_close(together.value[:, index], alone.value, rtol=1e-9, atol=1e-12)


def test_a_batch_of_matrices_keeps_the_residuals_of_each() -> None:
    matrices = torch.stack([decaying(140, 1e4, 20), decaying(140, 1e2, 10)])
    b = normal(2, 140, seed=3)
    found = bilevel.solve(bilevel.Matrix(matrices), b, bilevel.Auto(rtol=1e-10))
    wanted = torch.linalg.solve(matrices, b.unsqueeze(-1)).squeeze(-1)
    assert error(found.value, wanted) < 1e-7


def test_where_there_is_room_for_few_residuals_it_is_plain_cg(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reorthogonalized, "_ENTRIES", 150 * 31)
    A, b = bilevel.Matrix(decaying(150, 1e4, 20)), normal(150, seed=2)
    plain = bilevel.solve(A, b, bilevel.CG(rtol=1e-8))
    found = bilevel.solve(A, b, bilevel.Auto(rtol=1e-8))
    assert torch.equal(found.value, plain.value)
    assert found.stats == plain.stats


def test_when_the_room_is_full_it_goes_on_to_the_same_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    A, b = decaying(300, 1e6, 40), normal(300, seed=2)
    products = []
    for room in (32, 60, 300):
        monkeypatch.setattr(reorthogonalized, "_ENTRIES", 300 * room)
        counting = Counting(A)
        found = bilevel.solve(counting.operator, b, bilevel.Auto(rtol=1e-8, max_steps=3000))
        assert found.result is Result.SUCCESS
        products.append(counting.calls)
    assert products == sorted(products, reverse=True)


def test_a_fixed_budget_takes_the_steps_of_cg() -> None:
    A, b = bilevel.Matrix(spd(150, 1)), normal(150, seed=2)
    plain = bilevel.solve(A, b, bilevel.CG(rtol=None, max_steps=10))
    found = bilevel.solve(A, b, bilevel.Auto(rtol=None, max_steps=10))
    assert found.result is Result.TRUNCATED
    assert found.stats.products == plain.stats.products
    torch.testing.assert_close(found.value, plain.value, rtol=1e-12, atol=1e-12)


def test_the_ritz_values_are_those_of_the_spectrum() -> None:
    A = decaying(150, 1e3, 30)
    found = bilevel.solve(bilevel.Matrix(A), normal(150, seed=2), bilevel.Auto(rtol=1e-12))
    values = torch.linalg.eigvalsh(A)
    assert found.stats.ritz is not None
    assert found.stats.ritz[0] == pytest.approx(float(values[0]), rel=1e-3)
    assert found.stats.ritz[1] == pytest.approx(float(values[-1]), rel=1e-10)
