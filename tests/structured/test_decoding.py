from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from structured._expected_f1 import size_curve
from structured.costs import soft_f1
from structured.decoding import ExpectedF1, SampledExpectedF1, Threshold, TunedThreshold
from structured.metrics import example_f1, macro_f1

seeds = st.integers(0, 2**32 - 1)


def probabilities_of(count: int, labels: int, seed: int, spread: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((count, labels), generator=generator, dtype=torch.float64)
    return torch.sigmoid(spread * logits - 1.0)


def draw(probabilities: Tensor, seed: int) -> Tensor:
    return torch.bernoulli(probabilities, generator=torch.Generator().manual_seed(seed))


def all_sets(labels: int) -> Tensor:
    """Every label set, ``[2^L, L]``."""
    numbers = torch.arange(2**labels)
    return ((numbers[:, None] >> torch.arange(labels)) & 1).double()


def expected_f1_of_all_sets(probabilities: Tensor) -> Tensor:
    """The expected F1 of predicting each set, by summing over every gold set: ``[2^L, N]``."""
    sets = all_sets(probabilities.shape[-1])
    chances = torch.where(sets[:, None] == 1, probabilities, 1 - probabilities).prod(dim=-1)
    f1 = 1 - soft_f1(sets[:, None], sets)
    return f1 @ chances


def expected_f1_of(prediction: Tensor, probabilities: Tensor) -> Tensor:
    powers = 2 ** torch.arange(prediction.shape[-1])
    index = (prediction.long() * powers).sum(dim=-1)
    return expected_f1_of_all_sets(probabilities).gather(0, index[None]).squeeze(0)


@given(seed=seeds, labels=st.integers(1, 7), spread=st.sampled_from([0.1, 2.0, 30.0]))
def test_the_expected_f1_decoder_finds_the_best_of_all_sets(
    seed: int, labels: int, spread: float
) -> None:
    p = probabilities_of(5, labels, seed, spread)
    best = expected_f1_of_all_sets(p).max(dim=0).values
    torch.testing.assert_close(ExpectedF1().expected(p), best)
    torch.testing.assert_close(expected_f1_of(ExpectedF1().decode(p), p), best)


def test_the_expected_f1_decoder_agrees_with_enumeration_at_ten_labels() -> None:
    p = probabilities_of(6, 10, seed=0)
    best = expected_f1_of_all_sets(p).max(dim=0).values
    torch.testing.assert_close(ExpectedF1().expected(p), best, atol=1e-12, rtol=0.0)
    torch.testing.assert_close(expected_f1_of(ExpectedF1().decode(p), p), best)


@given(seed=seeds, labels=st.integers(1, 7), threshold=st.floats(0.0, 1.0))
def test_expected_f1_is_never_below_any_threshold_in_expectation(
    seed: int, labels: int, threshold: float
) -> None:
    p = probabilities_of(5, labels, seed)
    other = expected_f1_of(Threshold(threshold).decode(p), p)
    assert bool((ExpectedF1().expected(p) >= other - 1e-12).all())


def test_certain_labels_are_predicted_as_they_are() -> None:
    gold = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    assert torch.equal(ExpectedF1().decode(gold), gold)
    assert torch.equal(ExpectedF1().expected(gold), torch.ones(3, dtype=torch.float64))


def test_the_empty_set_is_predicted_when_it_is_likely_enough() -> None:
    p = torch.tensor([[0.1, 0.1]])
    assert not ExpectedF1().decode(p).any()
    torch.testing.assert_close(ExpectedF1().expected(p), torch.tensor([0.81], dtype=torch.float64))
    assert ExpectedF1().decode(torch.tensor([[0.4, 0.4]])).any()


@pytest.mark.parametrize("mean", [0.5, 8.0, 40.0])
def test_growing_only_uncertified_examples_changes_nothing(mean: float) -> None:
    """With 200 labels most sizes are never tried; all of them tried give the same."""
    generator = torch.Generator().manual_seed(1)
    p = torch.rand((8, 200), generator=generator, dtype=torch.float64) ** 4
    p = (p * mean / p.sum(dim=-1, keepdim=True)).clamp(max=1.0)
    full = size_curve(p.sort(dim=-1, descending=True).values, 200, 1e-15)
    torch.testing.assert_close(ExpectedF1().expected(p), full.max(dim=-1).values)
    assert torch.equal(ExpectedF1().decode(p).sum(dim=-1).long(), full.argmax(dim=-1))


@pytest.mark.parametrize("tolerance", [1e-3, 1e-8])
def test_cutting_the_count_distribution_errs_by_less_than_the_stated_bound(
    tolerance: float,
) -> None:
    p = torch.full((1, 500), 0.02, dtype=torch.float64)
    exact, cut = size_curve(p, 20, 1e-300), size_curve(p, 20, tolerance)
    error = (exact - cut).abs().max()
    assert 0.0 < float(error) <= tolerance


@pytest.mark.slow
def test_a_delicious_sized_problem_decodes_in_seconds() -> None:
    import time

    generator = torch.Generator().manual_seed(0)
    p = torch.sigmoid(2.0 * torch.randn((3000, 983), generator=generator) - 5.5)
    began = time.perf_counter()
    decoded = ExpectedF1().decode(p)
    assert time.perf_counter() - began < 20.0
    assert decoded.shape == p.shape


def f1_at(threshold: float, p: Tensor, gold: Tensor) -> float:
    return example_f1(Threshold(threshold).decode(p), gold)


@given(seed=seeds, labels=st.integers(1, 6), grain=st.sampled_from([3, 10, 10**9]))
def test_the_tuned_threshold_is_the_best_of_all_thresholds(
    seed: int, labels: int, grain: int
) -> None:
    # A coarse grain makes ties, within examples and between them.
    p = (probabilities_of(8, labels, seed) * grain).round() / grain
    gold = draw(probabilities_of(8, labels, seed + 1), seed)
    values = p.unique().tolist()
    best = max(f1_at(threshold, p, gold) for threshold in [0.0, *values, 2.0])
    tuned = TunedThreshold().fit(p, gold)
    assert f1_at(tuned.value, p, gold) == pytest.approx(best, abs=1e-12)


def test_a_tuned_threshold_separates_neighbouring_single_precision_numbers() -> None:
    low = torch.tensor(0.3)
    high = torch.nextafter(low, torch.tensor(1.0))
    p, gold = torch.stack([high, low])[None], torch.tensor([[1.0, 0.0]])
    assert torch.equal(TunedThreshold().fit(p, gold).decode(p), gold)
    # Half way between two neighbouring doubles rounds to the one or the other by turns.
    for below in (0.3, math.nextafter(0.3, 1.0)):
        double = torch.tensor([[math.nextafter(below, 1.0), below]], dtype=torch.float64)
        assert torch.equal(TunedThreshold().fit(double, gold).decode(double).float(), gold)


def test_a_threshold_may_predict_nothing_or_everything() -> None:
    p = torch.tensor([[0.9, 1.0], [0.2, 0.0]])
    nothing, everything = torch.zeros(2, 2), torch.ones(2, 2)
    for gold in (nothing, everything):
        assert torch.equal(TunedThreshold().fit(p, gold).decode(p), gold)


def test_thresholds_are_tuned_on_the_data_fitted_on_never_on_the_data_decoded() -> None:
    """The published trap: what `fit` returns is a constant that sees no gold labels any more."""
    p, gold = probabilities_of(50, 4, seed=3), draw(probabilities_of(50, 4, seed=3), 4)
    tuned = TunedThreshold().fit(p, gold)
    test = probabilities_of(50, 4, seed=5, spread=1.0)
    assert torch.equal(tuned.decode(test), (test >= tuned.value).double())
    assert tuned.fit(test, draw(test, 6)) == tuned
    assert not hasattr(TunedThreshold(), "decode")


def test_the_tuned_metric_is_averaged_over_examples_not_over_labels() -> None:
    p = torch.tensor([[0.9, 0.6], [0.8, 0.1], [0.7, 0.2], [0.3, 0.55]])
    gold = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    tuned = TunedThreshold().fit(p, gold)
    thresholds = torch.linspace(0.05, 0.95, 91).tolist()
    assert f1_at(tuned.value, p, gold) == max(f1_at(t, p, gold) for t in thresholds)
    best_macro = max(thresholds, key=lambda t: macro_f1(Threshold(t).decode(p), gold))
    assert f1_at(tuned.value, p, gold) >= f1_at(best_macro, p, gold)


def mean_f1(prediction: Tensor, samples: Tensor, weights: Tensor) -> Tensor:
    return (weights * (1 - soft_f1(prediction, samples))).sum(dim=0) / weights.sum(dim=0)


@given(seed=seeds, labels=st.integers(1, 6), rate=st.sampled_from([0.05, 0.3, 0.9]))
def test_the_sampled_decoder_finds_the_best_of_all_sets(
    seed: int, labels: int, rate: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    samples = (torch.rand((9, 5, labels), generator=generator) < rate).double()
    weights = torch.rand((9, 5), generator=generator, dtype=torch.float64)
    for given_weights in (None, weights):
        decoded = SampledExpectedF1(chunk=2).decode(samples, given_weights)
        used = torch.ones_like(weights) if given_weights is None else given_weights
        candidates = all_sets(labels)[:, None].expand(-1, 5, -1)
        best = torch.stack([mean_f1(one, samples, used) for one in candidates]).amax(dim=0)
        torch.testing.assert_close(mean_f1(decoded, samples, used), best)


def test_many_independent_samples_decode_like_their_probabilities() -> None:
    p = probabilities_of(6, 5, seed=7)
    samples = draw(p.expand(20_000, -1, -1), 8)
    decoded = SampledExpectedF1().decode(samples)
    regret = ExpectedF1().expected(p) - expected_f1_of(decoded, p)
    assert float(regret.max()) < 0.01


@pytest.mark.parametrize("count", range(1, 41))
def test_what_all_samples_hold_is_predicted_whole(count: int) -> None:
    """The bound on the size is then the size itself, and weights that sum to one only nearly."""
    generator = torch.Generator().manual_seed(count)
    samples = (torch.arange(45) < count).float().expand(500, 1, -1)
    weights = torch.rand((500, 1), generator=generator)
    assert torch.equal(SampledExpectedF1().decode(samples, weights), samples[0])


def test_dependent_labels_are_decoded_by_their_joint_distribution() -> None:
    """Labels 0 and 1 exclude each other: their marginals alone would predict both."""
    samples = torch.tensor([[[1.0, 0.0, 1.0]], [[0.0, 1.0, 1.0]]]).repeat(5, 1, 1)
    weights = torch.tensor([[0.6], [0.4]]).repeat(5, 1)
    prediction = SampledExpectedF1().decode(samples, weights)
    values = [float(mean_f1(one[None], samples.double(), weights.double())) for one in all_sets(3)]
    assert float(mean_f1(prediction.double(), samples.double(), weights)) == pytest.approx(
        max(values)
    )


def test_decoders_keep_the_type_and_refuse_what_is_no_probability() -> None:
    p = torch.tensor([[0.2, 0.7]])
    for decoder in (Threshold(), ExpectedF1()):
        assert decoder.decode(p).dtype == torch.float32
        assert decoder.fit(p, p) == decoder
        for wrong in (torch.tensor([[1.5]]), torch.tensor([[math.nan]])):
            with pytest.raises(ValueError, match=r"probabilities: found an entry outside \[0, 1\]"):
                decoder.decode(wrong)
        with pytest.raises(ValueError, match=r"wanted \[N, L\]"):
            decoder.decode(torch.zeros(3))


def test_impossible_settings_and_data_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tolerance: found 0\.0"):
        ExpectedF1(0.0)
    with pytest.raises(ValueError, match="chunk: found 0"):
        SampledExpectedF1(0)
    with pytest.raises(ValueError, match=r"y: found shape \(1, 3\)"):
        TunedThreshold().fit(torch.zeros(1, 2), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="at least one example"):
        TunedThreshold().fit(torch.zeros(0, 2), torch.zeros(0, 2))
    with pytest.raises(ValueError, match=r"samples: found shape \(2, 3\)"):
        SampledExpectedF1().decode(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"weights: found shape \(2,\)"):
        SampledExpectedF1().decode(torch.zeros(2, 1, 3), torch.ones(2))
    with pytest.raises(ValueError, match="weights sum to zero"):
        SampledExpectedF1().decode(torch.zeros(2, 1, 3), torch.zeros(2, 1))
