"""Intervals against scipy and against their own promise, and the answers at their borders."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from kdbench.suite.statistics import (
    EVERY,
    Answer,
    Share,
    bca_bootstrap,
    chance,
    interval,
    judge,
    judge_mean,
    judge_share,
    student_t,
)

HOLDS, NOT_SHOWN, CONTRADICTED = Answer.HOLDS, Answer.NOT_SHOWN, Answer.CONTRADICTED
samples = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30)


def by_pair(*margins):
    return {str(pair): (margin,) for pair, margin in enumerate(margins)}


@given(samples, st.floats(0.5, 0.999))
def test_the_t_interval_is_scipys(values, level):
    assume(np.std(values) > 1e-6)
    expected = stats.t.interval(level, len(values) - 1, np.mean(values), stats.sem(values))
    found = interval(values, level)
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.sd == pytest.approx(np.std(values, ddof=1))
    assert (found.method, found.pairs, found.level) == ("t", len(values), level)


@pytest.mark.parametrize("draw", ["exponential", "normal", "standard_t"])
def test_the_bootstrap_is_scipys_bca(draw):
    generator = np.random.default_rng(3)
    values = generator.standard_t(5, 150) if draw == "standard_t" else getattr(generator, draw)(size=150)
    expected = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=generator).confidence_interval
    found = interval(values)
    assert found.method == "bootstrap"
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.03 * width)
    assert found.high == pytest.approx(expected.high, abs=0.03 * width)


def test_the_bootstrap_follows_the_skew_where_t_is_symmetric():
    values = np.random.default_rng(5).lognormal(sigma=1.2, size=200)
    found = interval(values)
    assert found.high - found.mean > 1.15 * (found.mean - found.low)


def test_the_bootstrap_is_the_same_each_time_and_for_each_order_of_the_pairs():
    values = np.random.default_rng(6).choice([-1.0, 0.0, 1.0], size=300)
    assert interval(values) == interval(values[::-1].copy()) == interval(np.sort(values))


def test_the_memory_of_the_bootstrap_is_bounded_and_nothing_is_lost_at_the_seams(monkeypatch):
    values = np.random.default_rng(7).normal(size=101)
    whole = bca_bootstrap(values, 0.95)
    monkeypatch.setattr("kdbench.suite.statistics._AT_ONCE", 101 * 333)
    assert bca_bootstrap(values, 0.95) == whole


@pytest.mark.parametrize(
    ("values", "method", "bounds"),
    [
        (lambda generator: generator.normal(1.0, size=5), student_t, (0.92, 0.975)),
        (lambda generator: generator.uniform(0.0, 2.0, size=5), student_t, (0.90, 0.975)),
        (lambda generator: generator.exponential(1.0, size=120), bca_bootstrap, (0.90, 0.98)),
        (lambda generator: generator.choice([0.0, 20.0], p=[0.95, 0.05], size=400), bca_bootstrap, (0.90, 0.98)),
    ],
    ids=["normal, 5", "uniform, 5", "exponential, 120", "rare, 400"],
)
def test_an_interval_of_95_covers_the_mean_about_so_often(values, method, bounds):
    generator = np.random.default_rng(11)
    trials = 600 if method is student_t else 250
    ends = [
        method(
            values(generator), 0.95, *(() if method is student_t else (1000,))
        )  # fewer resamples: a test of a second
        for _ in range(trials)
    ]
    covered = sum(low <= 1.0 <= high for low, high in ends) / trials
    assert bounds[0] <= covered <= bounds[1]


def test_a_bootstrap_of_five_values_is_too_narrow_which_is_why_t_is_used():
    generator = np.random.default_rng(12)
    ends = [bca_bootstrap(generator.normal(size=5), 0.95, 1000) for _ in range(400)]
    assert sum(low <= 0 <= high for low, high in ends) / 400 < 0.9


def test_a_true_tie_is_seldom_taken_for_a_claim_that_holds():
    generator = np.random.default_rng(13)
    answers = [judge_mean([generator.normal(size=5)], [True])[0] for _ in range(600)]
    assert answers.count(HOLDS) / 600 < 0.045, "2.5% in the long run"
    assert answers.count(CONTRADICTED) / 600 < 0.045
    chains = [judge_mean(generator.normal(size=(3, 5)), [True] * 3)[0] for _ in range(600)]
    assert chains.count(CONTRADICTED) / 600 < 0.045, "three links together err no more often than one"


def test_one_value_bounds_nothing_and_equal_values_leave_no_doubt():
    single = interval([0.3])
    assert (single.mean, single.sd, single.low, single.high) == (0.3, None, -math.inf, math.inf)
    equal = interval([0.1] * 7)
    assert (equal.mean, equal.sd, equal.low, equal.high) == (0.1, 0.0, 0.1, 0.1)
    assert interval([0.1] * 200).high == 0.1


@pytest.mark.parametrize(("values", "level"), [([], 0.9), ([1.0, math.nan], 0.9), ([math.inf], 0.9), ([1.0], 1.0)])
def test_an_interval_needs_finite_values_and_a_level(values, level):
    with pytest.raises(ValueError, match=r"finite|level"):
        interval(values, level)


@given(samples, st.booleans())
def test_the_answer_turns_with_the_margins(values, strict):
    answer, _ = judge_mean([values], [strict])
    turned, _ = judge_mean([[-value for value in values]], [not strict])
    assert {HOLDS: CONTRADICTED, CONTRADICTED: HOLDS, NOT_SHOWN: NOT_SHOWN}[answer] is turned


@given(samples)
def test_what_holds_at_a_level_holds_at_each_lower_one(values):
    answers = [judge_mean([values], [True], level)[0] for level in (0.99, 0.95, 0.8)]
    for higher, lower in itertools.pairwise(answers):
        assert higher is NOT_SHOWN or higher is lower


@pytest.mark.parametrize(
    ("margins", "strict", "answer"),
    [
        ([1.0, 1.1, 0.9, 1.0, 1.05], True, HOLDS),
        ([-1.0, -1.1, -0.9, -1.0, -1.05], True, CONTRADICTED),
        ([1.0, -0.2, 0.9, 2.0, -0.1], True, NOT_SHOWN),
        ([1.0, 1.2], True, NOT_SHOWN),
        ([1.0], True, NOT_SHOWN),
        ([], True, NOT_SHOWN),
        ([0.0] * 5, True, CONTRADICTED),
        ([0.0] * 5, False, HOLDS),
        ([0.0] * 150, True, CONTRADICTED),
        ([1.0, 1.1, 0.9, math.nan, 1.05], True, NOT_SHOWN),
        ([-1.0, -1.1, -0.9, math.nan], True, NOT_SHOWN),
        ([1.0, 1.1, 0.9, math.inf, 1.05], True, NOT_SHOWN),
    ],
)
def test_the_mean_at_its_borders(margins, strict, answer):
    assert judge(by_pair(*margins), [strict]).answer is answer


def test_few_pairs_show_what_more_would_not_need():
    assert judge_mean([[0.1, 0.3, 0.2]], [True])[0] is NOT_SHOWN
    assert judge_mean([[0.1, 0.3, 0.2, 0.1, 0.3, 0.2]], [True])[0] is HOLDS


def test_each_link_of_a_chain_must_hold_and_one_may_contradict_it():
    good, bad, open_ = [1.0, 1.1, 0.9, 1.0], [-1.0, -1.1, -0.9, -1.0], [1.0, -1.0, 0.5, -0.4]
    assert judge_mean([good, good], [True, True])[0] is HOLDS
    assert judge_mean([good, open_], [True, True])[0] is NOT_SHOWN
    assert judge_mean([good, bad], [True, True])[0] is CONTRADICTED
    _, intervals = judge_mean([good, open_], [True, True], 0.95)
    assert [each.level for each in intervals] == pytest.approx([0.975, 0.975])


@pytest.mark.parametrize(
    ("truths", "share", "answer"),
    [
        ([True] * 5, EVERY, HOLDS),
        ([True] * 4 + [False], EVERY, CONTRADICTED),
        ([True] * 4 + [None], EVERY, NOT_SHOWN),
        ([None] * 5, EVERY, NOT_SHOWN),
        ([], EVERY, NOT_SHOWN),
        ([True] * 4 + [False], Share(4, 5), HOLDS),
        ([True] * 4 + [None], Share(4, 5), HOLDS),
        ([True] * 3 + [False] * 2, Share(4, 5), NOT_SHOWN),
        ([True] * 3 + [None] * 2, Share(4, 5), NOT_SHOWN),
        ([True] + [False] * 4, Share(4, 5), CONTRADICTED),
        ([None] + [False] * 4, Share(4, 5), CONTRADICTED),
        ([True, True] + [False] * 3, Share(4, 5), NOT_SHOWN),
        ([True] * 4, Share(4, 5), NOT_SHOWN),
        ([False] * 4, Share(4, 5), NOT_SHOWN),
        ([True] * 8 + [False] * 2, Share(4, 5), HOLDS),
        ([True] * 7 + [False] * 3, Share(4, 5), NOT_SHOWN),
        ([True] * 5, Share(5, 5), HOLDS),
        ([True] * 4 + [False], Share(5, 5), NOT_SHOWN),
    ],
)
def test_counted_pairs_at_their_borders(truths, share, answer):
    assert judge_share(truths, share) is answer


@given(st.lists(st.sampled_from([True, False, None]), max_size=12), st.integers(2, 9), st.data())
def test_a_failed_pair_never_helps(truths, of, data):
    share = Share(data.draw(st.integers(of // 2 + 1, of)), of)
    answer = judge_share(truths, share)
    if None in truths:
        mended = [truth is not False for truth in truths]
        assert answer is not HOLDS or judge_share(mended, share) is HOLDS
    turned = judge_share([None if truth is None else not truth for truth in truths], share)
    assert {HOLDS: CONTRADICTED, CONTRADICTED: HOLDS, NOT_SHOWN: NOT_SHOWN}[answer] is turned


@given(st.integers(1, 40), st.data())
def test_chance_is_scipys_binomial_test(pairs, data):
    count = data.draw(st.integers(0, pairs))
    assert chance(count, pairs) == pytest.approx(stats.binomtest(count, pairs, alternative="greater").pvalue)


def test_a_verdict_names_the_pairs_that_failed():
    verdict = judge(by_pair(1.0, math.nan, 2.0), [True], EVERY)
    assert (verdict.answer, verdict.satisfied, verdict.pairs, verdict.failed) == (NOT_SHOWN, 2, ("0", "1", "2"), ("1",))
    assert verdict.notes[0].startswith("Failed, and counted as such: 1.")
    assert verdict.intervals[0].pairs == 2, "for what it tells"
    assert verdict.evidence == "2 of 3 pairs"
    many = judge(by_pair(*[math.nan] * 7), [True])
    assert many.notes == (
        "Failed, and counted as such: 0, 1, 2, 3, 4 and 2 more. A value there is missing or not a number.",
    )


def test_a_verdict_tells_what_it_rests_on():
    assert (
        judge(by_pair(*[1.0] * 4, -1.0), [True], Share(4, 5)).evidence
        == "4 of 5 pairs; a coin does as well in 19% of cases"
    )
    told = judge(by_pair(1.0, 2.0, 3.0, 4.0, 5.0), [True]).evidence
    assert told == "+3 ± 1.6, 0.95 interval (t) [+1.037, +4.963] over 5 pairs"
    assert judge(by_pair(1.0), [True]).evidence == "+1 in one pair"
    nothing = judge({}, [True, True])
    assert (nothing.evidence, nothing.notes) == ("no pair has a margin", ("There is no run yet.",))


def test_an_infinite_margin_counts_by_its_sign_and_has_no_mean():
    margins = by_pair(math.inf, 1.0, math.inf, 1.0, 2.0)
    assert judge(margins, [True], EVERY).answer is HOLDS
    verdict = judge(margins, [True])
    assert verdict.answer is NOT_SHOWN
    assert "judge pair by pair" in verdict.notes[0]
    assert verdict.failed == ()
