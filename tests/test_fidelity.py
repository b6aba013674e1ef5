"""Planted truths: a proxy of known quality is told as such."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kdsearch import fidelity
from kdsearch.fidelity import Agreement, Estimate, Fidelity, agreement, as_a_seed, bins, ceiling, in_words, regret

REFERENCE = (0.5, 1.0)
SCORES = st.lists(st.tuples(*[st.integers(0, 6)] * 2), min_size=3, max_size=15)


def planted(noise: float, count: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Proxy, full and latency: quality that has nothing to do with latency, and a proxy that sees it through noise."""
    random = np.random.default_rng(seed)
    quality = random.normal(size=count)
    return quality + noise * random.normal(size=count), quality, random.uniform(0.05, 0.5, count)


@given(SCORES)
def test_both_are_scipy_s(points: list[tuple[int, int]]) -> None:
    x, y = zip(*points, strict=True)
    found = agreement(x, y, np.arange(len(x)))
    if min(len(set(x)), len(set(y))) == 1:
        assert found.tau.value is found.rho.value is None
    else:
        assert found.tau.value == pytest.approx(stats.kendalltau(x, y).statistic)
        assert found.rho.value == pytest.approx(stats.spearmanr(x, y).statistic)


@given(SCORES)
def test_a_resample_counts_a_candidate_as_often_as_it_is_drawn(points: list[tuple[int, int]]) -> None:
    x, y = np.array(points, dtype=float).T
    weights = np.random.default_rng(len(points)).multinomial(len(x), np.full(len(x), 1 / len(x)), 1).astype(float)
    drawn = np.repeat(np.arange(len(x)), weights[0].astype(int))
    for ours, theirs in ((fidelity._tau, stats.kendalltau), (fidelity._rho, stats.spearmanr)):
        (found,) = ours(weights, x, y, np.ones((len(x), len(x)), dtype=bool))
        alike = min(len(set(x[drawn])), len(set(y[drawn]))) == 1
        assert np.isnan(found) if alike else found == pytest.approx(theirs(x[drawn], y[drawn]).statistic)


def test_pairs_within_bins_are_counted_one_by_one() -> None:
    proxy, full, latency = planted(1.0, 13)
    group = bins(latency)
    assert sorted(np.bincount(group)) == [4, 4, 5]
    assert all(latency[group == one].max() < latency[group == one + 1].min() for one in (0, 1))
    pairs = [(i, j) for i, j in itertools.combinations(range(13), 2) if group[i] == group[j]]
    signs = [np.sign(proxy[i] - proxy[j]) * np.sign(full[i] - full[j]) for i, j in pairs]
    assert agreement(proxy, full, latency).tau_within.value == pytest.approx(np.mean(signs))


@pytest.mark.parametrize(("noise", "rho"), [(0.5, 1 / np.hypot(1, 0.5)), (1.0, 1 / np.hypot(1, 1)), (2.0, 1 / np.hypot(1, 2))])
def test_a_planted_correlation_lies_within_its_interval(noise: float, rho: float) -> None:
    # of two normal variables of correlation r: tau = 2 / pi arcsin(r), rho = 6 / pi arcsin(r / 2)
    inside = 0
    for seed in range(40):
        found = agreement(*planted(noise, 50, seed))
        assert found.tau.low is not None
        assert found.tau.high is not None
        inside += found.tau.low <= 2 / np.pi * np.arcsin(rho) <= found.tau.high
    assert inside >= 34


def test_a_perfect_proxy_has_1_and_noise_about_0() -> None:
    _, full, latency = planted(0.0)
    perfect = agreement(np.exp(full), full, latency)
    assert perfect.tau == perfect.tau_within == Estimate(1.0, 1.0, 1.0)
    assert perfect.rho.value == pytest.approx(1.0)
    assert perfect.rho_within.low == pytest.approx(1.0)
    noise = agreement(np.random.default_rng(9).normal(size=60), full, latency)
    for one in (noise.tau, noise.rho, noise.tau_within, noise.rho_within):
        assert one.value is not None
        assert abs(one.value) < 0.2
        assert one.low < 0 < one.high


def test_a_proxy_that_knows_size_alone_ranks_well_over_all_and_not_within_bins() -> None:
    random = np.random.default_rng(3)
    latency = np.sort(np.repeat(np.linspace(0.05, 0.5, 15), 4) + random.uniform(0, 1e-4, 60))
    full = np.repeat(np.arange(15.0), 4) + random.uniform(0, 0.5, 60)
    found = agreement(latency, full, latency)
    assert found.tau.value > 0.9
    assert abs(found.tau_within.value) < 0.25
    assert found.tau_within.low < 0 < found.tau_within.high


def test_few_or_like_candidates_tell_nothing() -> None:
    assert agreement([1, 2], [1, 2], [1, 2]) == Agreement(Estimate(), Estimate(), Estimate(), Estimate())
    assert agreement([], [], []).tau == Estimate()
    seven = agreement(range(7), range(7), range(7))
    assert seven.tau.value == pytest.approx(1.0)
    assert seven.tau_within == Estimate()  # one bin is no bin
    assert agreement([1, 1, 1], [1, 2, 3], [1, 2, 3]).tau == Estimate()


def test_the_ceiling_is_what_seeds_agree_by() -> None:
    _, full, latency = planted(0.0)
    assert ceiling(np.stack([full, full + 5, 2 * full], axis=1)) == pytest.approx(1.0)
    random = np.random.default_rng(1)
    seeds = full[:, None] + random.normal(size=(60, 3))
    taus = [stats.kendalltau(seeds[:, a], seeds[:, b]).statistic for a, b in ((0, 1), (0, 2), (1, 2))]
    assert ceiling(seeds) == pytest.approx(np.mean(taus))
    assert ceiling(seeds, latency) != ceiling(seeds)
    assert ceiling(full[:, None]) is None


def test_a_perfect_choice_has_no_regret() -> None:
    latency = np.array([0.1, 0.2, 0.3, 0.4])
    full = np.array([0.6, 0.7, 0.65, 0.8])
    assert regret(full, full, latency, REFERENCE) == pytest.approx(0.0)
    # the proxy takes the first, third and fourth: 0.1 * 0.2 + 0.15 * 0.1 + 0.3 * 0.6 of 0.1 * 0.1 + 0.2 * 0.2 + 0.3 * 0.6
    assert regret([0.6, 0.5, 0.65, 0.7], full, latency, REFERENCE) == pytest.approx(1 - 0.215 / 0.23)
    assert regret(full, [0.4] * 4, latency, REFERENCE) is None


@given(st.lists(st.tuples(st.floats(0.5, 1), st.floats(0.5, 1), st.floats(0.01, 0.99)), min_size=1, max_size=10))
def test_regret_is_a_share(points: list[tuple[float, float, float]]) -> None:
    proxy, full, latency = zip(*points, strict=True)
    found = regret(proxy, full, latency, (0.4, 1.0))
    assert found is not None
    assert -1e-12 <= found < 1


def test_a_proxy_as_noisy_as_a_seed_agrees_with_one_as_seeds_agree_and_with_their_mean_better() -> None:
    _, full, latency = planted(0.0)
    random = np.random.default_rng(1)
    seeds, proxy = full[:, None] + random.normal(size=(60, 3)), full + random.normal(size=60)
    alone = as_a_seed(proxy, seeds)
    assert alone == pytest.approx(np.mean([stats.kendalltau(proxy, seeds[:, seed]).statistic for seed in range(3)]))
    assert agreement(proxy, seeds.mean(1), latency).tau.value > alone + 0.05
    assert ceiling(seeds) == pytest.approx(alone, abs=0.1)
    assert as_a_seed(proxy, seeds, latency) != alone


def told(proxy: Agreement, sizes: Agreement, top: float | None, loss: float | None = 0.02) -> str:
    return " ".join(in_words(Fidelity(300, 20, proxy, sizes, sizes, top, proxy.tau.value, loss, REFERENCE)))


GOOD = agreement(*planted(0.05))
POOR = agreement(*planted(2.0))
NOISE = agreement(np.random.default_rng(4).normal(size=60), *planted(0.0)[1:])


def test_a_good_proxy_is_told_as_one() -> None:
    said = told(GOOD, NOISE, 0.9)
    assert "ranks better than size alone" in said
    assert "not clearly" not in said
    assert f"the proxy agrees with one of them with tau {GOOD.tau.value:.2f}, and comes up to that" in said
    assert "98.0% of the hypervolume of the best one among these students (regret 0.020, down to accuracy 0.500" in said
    assert "longer proxy" not in said


def test_a_poor_proxy_is_told_as_one_and_what_to_do() -> None:
    said = told(POOR, GOOD, 0.9)
    assert "ranks no better than size alone" in said
    assert f", and is {0.9 - POOR.tau.value:.2f} below that" in said
    assert "longer proxy, such as proxy.steps: 600" in said
    assert "longer proxy" not in told(POOR, GOOD, POOR.tau.value + 0.04)  # seeds agree no better
    assert "longer proxy" in told(POOR, GOOD, None)
    assert "--seeds 2" in told(POOR, GOOD, None)
    assert "but not clearly" in told(POOR, replace(POOR, tau_within=Estimate(POOR.tau_within.low + 0.01, 0.0, 0.5)), 0.9)


def test_an_interval_that_holds_everything_is_no_verdict() -> None:
    few = agreement([1, 2, 3, 4], [1, 3, 2, 4], [1, 1, 1, 1])
    said = told(few, few, 0.9)
    assert "20 students are too few to tell whether the proxy is good enough" in said
    assert "longer proxy" not in said


def test_what_is_unknown_is_told_as_unknown() -> None:
    few = agreement(range(5), range(5), range(5))
    said = told(few, few, None, None)
    assert "tau is unknown" in said
    assert "too few students to compare the proxy with their size" in said
    assert "regret" not in said
    assert in_words(Fidelity(300, 2, *[agreement([1, 2], [1, 2], [1, 2])] * 3, None, None, None, REFERENCE)) == [
        "2 students were trained in full: too few, or too much alike, to say how well the proxy ranks."
    ]
