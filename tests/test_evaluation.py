"""Metrics against scikit-learn and naive loops, intervals against closed forms and coverage."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import average_precision_score, classification_report, f1_score

from gliznet.data.types import Example, LabelledTexts
from gliznet.evaluation import (
    Estimate,
    bootstrap,
    macro_f1,
    mean_over_seeds,
    mean_over_sets,
    per_class,
    ranking_metrics,
    score_examples,
    score_single_label,
)
from gliznet.predictor import ZeroShotClassificationPipeline

CASES = settings(max_examples=10, deadline=None, derandomize=True)


class Oracle(ZeroShotClassificationPipeline):
    """A pipeline without a model: a label's logit is its length minus the text's."""

    def __init__(self):
        self.classification_type = "multi-label"
        self.batch_size = 4

    def _scored(self, pairs):
        for text, labels in pairs:
            yield torch.tensor([float(len(label) - len(text)) for label in labels]), 0

    def _probabilities(self, logits):
        return logits.sigmoid().tolist()


@st.composite
def single_label_cases(draw):
    classes = draw(st.integers(2, 6))
    n = draw(st.integers(1, 25))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    # Few classes are used, so that some are neither predicted nor true.
    used = draw(st.integers(1, classes))
    return rng.normal(size=(n, classes)) * (np.arange(classes) < used), rng.integers(0, used, n)


# Single-label sets


@given(single_label_cases())
@CASES
def test_macro_f1_is_that_of_scikit_learn_over_all_candidates(case):
    scores, truth = case
    estimate = macro_f1(scores, truth)
    wanted = f1_score(
        truth,
        scores.argmax(axis=1),
        labels=range(scores.shape[1]),
        average="macro",
        zero_division=0,
    )
    assert estimate.value == pytest.approx(wanted, abs=1e-12)
    assert estimate.n == len(truth)
    assert 0 <= estimate.low <= estimate.high <= 1


def test_a_class_that_never_occurs_counts_zero():
    scores = np.eye(3)[[0, 1, 0, 1]]
    assert macro_f1(scores, np.array([0, 1, 0, 1])).value == pytest.approx(2 / 3)


def test_every_resample_counts_every_class():
    rng = np.random.default_rng(0)
    scores, truth = rng.normal(size=(12, 4)), rng.integers(0, 4, 12)
    rows = np.random.default_rng(7)
    values = []
    predicted = scores.argmax(axis=1)
    for _ in range(1000):
        chosen = rows.integers(0, 12, 12)
        t, p = truth[chosen], predicted[chosen]
        hits = [int(((t == k) & (p == k)).sum()) for k in range(4)]
        sizes = [int((t == k).sum() + (p == k).sum()) for k in range(4)]
        values.append(sum(2 * h / m for h, m in zip(hits, sizes, strict=True) if m) / 4)
    estimate = macro_f1(scores, truth, seed=7)
    assert estimate.low == pytest.approx(np.quantile(values, 0.025), abs=1e-12)
    assert estimate.high == pytest.approx(np.quantile(values, 0.975), abs=1e-12)


@given(single_label_cases())
@CASES
def test_the_per_class_table_is_the_report_of_scikit_learn(case):
    scores, truth = case
    names = [f"label {k}" for k in range(scores.shape[1])]
    table = per_class(scores, truth, names)
    report = classification_report(
        truth,
        scores.argmax(axis=1),
        labels=range(len(names)),
        target_names=names,
        output_dict=True,
        zero_division=0,
    )
    assert list(table["label"]) == names
    for k, name in enumerate(names):
        row = table.iloc[k]
        assert row["precision"] == pytest.approx(report[name]["precision"])
        assert row["recall"] == pytest.approx(report[name]["recall"])
        assert row["f1"] == pytest.approx(report[name]["f1-score"])
        assert row["support"] == (truth == k).sum()
        assert row["predicted"] == (scores.argmax(axis=1) == k).sum()
    assert table["predicted"].sum() == table["support"].sum() == len(truth)
    assert table["f1"].mean() == pytest.approx(report["macro avg"]["f1-score"])


def test_single_label_scores_stand_in_the_order_of_the_candidates():
    names = ("cc", "a", "bbbb")
    data = LabelledTexts("toy", ("x", "xyz"), (("bbbb",), ("cc",)), names)
    scores, truth = score_single_label(Oracle(), data)
    assert scores.tolist() == [[1.0, 0.0, 3.0], [-1.0, -2.0, 1.0]]
    assert truth.tolist() == [2, 0]
    with pytest.raises(ValueError, match="toy has rows with several labels"):
        score_single_label(Oracle(), LabelledTexts("toy", ("x",), (("a", "cc"),), names, True))


# Bootstrap


def test_the_bootstrap_is_the_percentile_interval_of_resampled_rows():
    values = np.array([1.0, 4.0, 9.0, 16.0, 25.0])
    estimate = bootstrap(lambda rows: float(values[rows].mean()), 5, seed=3, samples=500)
    rng = np.random.default_rng(3)
    drawn = sorted(values[rng.integers(0, 5, 5)].mean() for _ in range(500))
    assert estimate.value == 11.0 and estimate.n == 5
    # numpy's linear rule: position q · (n − 1) in the sorted values.
    for q, bound in ((0.025, estimate.low), (0.975, estimate.high)):
        position = q * 499
        below = math.floor(position)
        share = position - below
        wanted = drawn[below] * (1 - share) + drawn[below + 1] * share
        assert bound == pytest.approx(wanted)


def test_the_bootstrap_depends_on_the_seed_only():
    def interval(seed):
        values = np.arange(20.0)
        return bootstrap(lambda rows: float(values[rows].mean()), 20, seed, samples=100)

    assert interval(1) == interval(1) != interval(2)


def test_the_interval_covers_the_mean_of_a_known_distribution():
    # 95 % of 200 intervals of the mean of 60 exponential values (mean 1). The percentile interval
    # of a skewed mean covers about 0.93; 0.87 and 0.99 are four standard errors from it.
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        values = rng.exponential(size=60)
        estimate = bootstrap(
            lambda rows, v=values: float(v[rows].mean()), 60, seed=seed, samples=150
        )
        covered += estimate.low <= 1.0 <= estimate.high
    assert 0.87 <= covered / 200 <= 0.99


def test_the_interval_has_the_width_of_the_normal_one():
    values = np.random.default_rng(1).normal(size=2000)
    estimate = bootstrap(lambda rows: float(values[rows].mean()), 2000, samples=1000)
    half = 1.96 * values.std() / math.sqrt(2000)
    assert (estimate.high - estimate.low) / 2 == pytest.approx(half, rel=0.08)
    assert (estimate.high + estimate.low) / 2 == pytest.approx(values.mean(), abs=0.1 * half)


@pytest.mark.parametrize("n", [0, -1])
def test_no_text_is_an_error(n):
    with pytest.raises(ValueError, match=f"n is {n}: there is no text"):
        bootstrap(lambda rows: 0.0, n)


# Multi-label sets


@st.composite
def scored_tables(draw):
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    rows = []
    for example in range(draw(st.integers(1, 8))):
        size = int(rng.integers(1, 9))
        target = rng.integers(0, 2, size)
        target[rng.integers(0, size)] = 1
        # Scores on a coarse grid have ties, also at the threshold.
        score = rng.choice(
            [0.0, 0.25, 0.5, 0.75, 1.0] if draw(st.booleans()) else rng.random(9), size
        )
        rows += [(example, f"l{j}", int(target[j]), float(score[j])) for j in range(size)]
    return pd.DataFrame(rows, columns=["example", "label", "target", "score"])


@given(scored_tables())
@CASES
def test_ranking_metrics_are_those_of_scikit_learn(scored):
    metrics = ranking_metrics(scored)
    groups = [group for _, group in scored.groupby("example")]
    micro = f1_score(scored["target"], scored["score"] >= 0.5, zero_division=0)
    macro = np.mean([f1_score(g["target"], g["score"] >= 0.5, zero_division=0) for g in groups])
    precision = np.mean([average_precision_score(g["target"], g["score"]) for g in groups])
    assert metrics["micro_f1"].value == pytest.approx(micro)
    assert metrics["macro_f1"].value == pytest.approx(macro)
    assert metrics["map"].value == pytest.approx(precision)
    assert set(metrics) == {"micro_f1", "macro_f1", "map", "mrr"}
    for estimate in metrics.values():
        assert estimate.n == len(groups)
        assert 0 <= estimate.low <= estimate.high <= 1


@given(scored_tables())
@CASES
def test_mrr_and_map_are_the_naive_ones_without_ties(scored):
    scored["score"] += np.arange(len(scored)) * 1e-6
    metrics = ranking_metrics(scored)
    reciprocal, precisions = [], []
    for _, group in scored.groupby("example"):
        ranked = group.sort_values("score", ascending=False)["target"].tolist()
        reciprocal.append(1 / (1 + ranked.index(1)))
        hits = [k for k, target in enumerate(ranked, start=1) if target]
        precisions.append(sum(sum(ranked[:k]) / k for k in hits) / len(hits))
    assert metrics["mrr"].value == pytest.approx(np.mean(reciprocal))
    assert metrics["map"].value == pytest.approx(np.mean(precisions))


def test_ranks_of_a_worked_example():
    scored = pd.DataFrame(
        [(0, "a", 0, 0.9), (0, "b", 1, 0.8), (0, "c", 1, 0.1), (1, "a", 1, 0.2), (1, "d", 0, 0.7)],
        columns=["example", "label", "target", "score"],
    )
    metrics = ranking_metrics(scored)
    assert metrics["mrr"].value == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert metrics["map"].value == pytest.approx(((1 / 2 + 2 / 3) / 2 + 1 / 2) / 2)
    # At 0.5: one hit of three predicted and three true pairs; by text 2 · 1 / (2 + 2) and 0.
    assert metrics["micro_f1"].value == pytest.approx(2 / 6)
    assert metrics["macro_f1"].value == pytest.approx((0.5 + 0) / 2)
    assert ranking_metrics(scored, threshold=0.15)["micro_f1"].value == pytest.approx(4 / 7)


def test_a_tie_does_not_favour_the_true_label_that_stands_first():
    # score_examples lists true labels first: a constant model must not get a perfect MRR.
    scored = pd.DataFrame(
        [(0, "a", 1, 0.5), (0, "b", 0, 0.5), (0, "c", 0, 0.5), (0, "d", 0, 0.5)],
        columns=["example", "label", "target", "score"],
    )
    metrics = ranking_metrics(scored)
    assert metrics["map"].value == pytest.approx(1 / 4)
    assert metrics["mrr"].value == pytest.approx(1 / 4)


def test_a_text_without_a_true_label_is_an_error():
    scored = pd.DataFrame(
        [(0, "a", 1, 0.9), (1, "a", 0, 0.9)], columns=["example", "label", "target", "score"]
    )
    with pytest.raises(ValueError, match="a text has no true label"):
        ranking_metrics(scored)


def test_scored_examples_hold_each_candidate_once_with_its_target():
    examples = [Example("xx", ("aaa", "b"), ("cc",)), Example("y", ("d",), ("ee", "fff"))]
    scored = score_examples(Oracle(), examples)
    assert list(scored.columns) == ["example", "label", "target", "score"]
    wanted = [
        (0, "aaa", 1, 1),
        (0, "b", 1, -1),
        (0, "cc", 0, 0),
        (1, "d", 1, 0),
        (1, "ee", 0, 1),
        (1, "fff", 0, 2),
    ]
    rows = scored.sort_values(["example", "label"]).itertuples()
    for row, (example, label, target, logit) in zip(rows, wanted, strict=True):
        assert (row.example, row.label, row.target) == (example, label, target)
        assert row.score == pytest.approx(1 / (1 + math.exp(-logit)))


def test_the_place_of_a_candidate_says_nothing_about_its_truth():
    examples = [Example("x", ("a", "b", "c"), ("d", "e", "f")) for _ in range(400)]
    scored = score_examples(Oracle(), examples)
    place = scored.groupby("example").cumcount()
    rates = scored.groupby(place)["target"].mean()
    assert rates.between(0.4, 0.6).all()
    assert scored.equals(score_examples(Oracle(), examples))


# Means


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=9))
@CASES
def test_the_interval_over_seeds_is_that_of_scipy(values):
    assume(np.std(values) > 1e-6)
    estimate = mean_over_seeds(values)
    low, high = stats.t.interval(
        0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values)
    )
    assert estimate.value == pytest.approx(np.mean(values))
    assert estimate.low == pytest.approx(low) and estimate.high == pytest.approx(high)
    assert estimate.n == len(values)


def test_the_interval_of_two_seeds_is_the_closed_form():
    # With one degree of freedom Student's t is Cauchy's: its quantile is tan(π (p − ½)).
    half = math.tan(math.pi * 0.475) * (0.2 / math.sqrt(2)) / math.sqrt(2)
    estimate = mean_over_seeds([0.4, 0.6])
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx(
        (0.5, 0.5 - half, 0.5 + half)
    )
    assert isinstance(estimate, Estimate) and estimate.n == 2


@pytest.mark.parametrize("values", [[], [0.5]])
def test_fewer_than_two_seeds_are_an_error(values):
    with pytest.raises(ValueError, match=f"{len(values)} seed: an interval"):
        mean_over_seeds(values)


def test_the_mean_over_sets_is_unweighted():
    assert mean_over_sets([0.2, 0.4, 0.9]) == pytest.approx(0.5)
