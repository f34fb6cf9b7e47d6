"""Metrics with intervals: macro F1 by argmax, multi-label F1, mAP and MRR, per-class tables."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import average_precision_score, f1_score, precision_recall_fscore_support

from gliznet.data.types import Example, LabelledTexts
from gliznet.predictor import ZeroShotClassificationPipeline

Scores = NDArray[np.floating]
BOOTSTRAP_SAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A metric with the 95 % interval of a bootstrap over texts, and the number of texts."""

    value: float
    low: float
    high: float
    n: int


def bootstrap(
    statistic: Callable[[NDArray[np.intp]], float],
    n: int,
    seed: int = 0,
    samples: int = BOOTSTRAP_SAMPLES,
) -> Estimate:
    """Percentile bootstrap over texts of a statistic that need not be a mean of text scores.

    Args:
        statistic: value for an array of row numbers.
        n: number of texts.
        seed: of the resampling.
        samples: resamples.

    Raises:
        ValueError: `n` below 1.
    """
    if n < 1:
        raise ValueError(f"n is {n}: there is no text to resample")
    rng = np.random.default_rng(seed)
    drawn = [statistic(rng.integers(0, n, n)) for _ in range(samples)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(statistic(np.arange(n)), float(low), float(high), n)


def score_single_label(
    pipeline: ZeroShotClassificationPipeline, data: LabelledTexts
) -> tuple[Scores, NDArray[np.intp]]:
    """Logits `(N, K)` and true label numbers `(N,)` of a single-label set.

    Raises:
        ValueError: the set has a row with several labels.
    """
    if any(len(labels) != 1 for labels in data.labels):
        raise ValueError(f"{data.name} has rows with several labels: use the multi-label metrics")
    logits = pipeline.logits(data.texts, list(data.label_names))
    number = {label: k for k, label in enumerate(data.label_names)}
    return np.stack([row.numpy() for row in logits]), np.array([number[r[0]] for r in data.labels])


def macro_f1(scores: Scores, truth: NDArray[np.intp], seed: int = 0) -> Estimate:
    """Macro F1 of the argmax over all K candidates, the benchmark's number (card "Performance").

    A class that is neither predicted nor true counts 0, in every resample too.
    """
    classes = scores.shape[1]
    predicted = scores.argmax(axis=1)
    confusion = predicted * classes + truth

    def statistic(rows: NDArray[np.intp]) -> float:
        counts = np.bincount(confusion[rows], minlength=classes * classes)
        table = counts.reshape(classes, classes)
        total = table.sum(axis=0) + table.sum(axis=1)
        return float(np.mean(2 * table.diagonal() / np.maximum(total, 1)))

    return bootstrap(statistic, len(truth), seed)


def per_class(scores: Scores, truth: NDArray[np.intp], label_names: Sequence[str]) -> pd.DataFrame:
    """Precision, recall, F1, support and number of predictions of each label."""
    predicted = scores.argmax(axis=1)
    numbers = range(len(label_names))
    precision, recall, f1, support = precision_recall_fscore_support(
        truth, predicted, labels=numbers, zero_division=0
    )
    return pd.DataFrame(
        {
            "label": list(label_names),
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "support": support,
            "predicted": [int((predicted == k).sum()) for k in numbers],
        }
    )


def score_examples(
    pipeline: ZeroShotClassificationPipeline, examples: Sequence[Example]
) -> pd.DataFrame:
    """Probability of every candidate of every example: columns example, label, target, score.

    The candidates stand in a seeded random order, since a model may favour a position.
    """
    candidates = [[*e.labels, *e.not_labels] for e in examples]
    for i, labels in enumerate(candidates):
        random.Random(i).shuffle(labels)
    results = pipeline([e.text for e in examples], candidates)
    return pd.DataFrame(
        [
            (i, entry.label, int(entry.label in example.labels), entry.score)
            for i, (example, result) in enumerate(zip(examples, results, strict=True))
            for entry in result.labels
        ],
        columns=["example", "label", "target", "score"],
    )


def ranking_metrics(
    scored: pd.DataFrame, threshold: float = 0.5, seed: int = 0
) -> dict[str, Estimate]:
    """Multi-label metrics of `score_examples`, each with its interval over texts.

    micro_f1: over all (text, candidate) pairs at `threshold`. macro_f1: mean over texts of the F1
    of their candidates at `threshold`. map: mean over texts of the average precision. mrr: mean
    reciprocal rank of the first true label. Candidate sets differ between texts, so a mean over
    labels would be a mean over labels seen once.

    Raises:
        ValueError: a text without a true label, for which average precision is undefined.
    """
    groups = [
        (g["target"].to_numpy(), g["score"].to_numpy())
        for _, g in scored.groupby("example", sort=True)
    ]
    if any(target.sum() == 0 for target, _ in groups):
        raise ValueError("a text has no true label: average precision is undefined for it")
    counts = np.array(
        [((s >= threshold)[t == 1].sum(), (s >= threshold).sum(), t.sum()) for t, s in groups]
    )
    per_text = {
        "macro_f1": np.array([f1_score(t, s >= threshold, zero_division=0) for t, s in groups]),
        "map": np.array([average_precision_score(t, s) for t, s in groups]),
        # The true label ranks last among equal scores, as in average precision.
        "mrr": np.array([1 / (1 + (s[t == 0] >= s[t == 1].max()).sum()) for t, s in groups]),
    }

    def micro(rows: NDArray[np.intp]) -> float:
        hits, predicted, true = counts[rows].sum(axis=0)
        return float(2 * hits / (predicted + true))

    n = len(groups)
    return {"micro_f1": bootstrap(micro, n, seed)} | {
        name: bootstrap(lambda rows, v=values: float(v[rows].mean()), n, seed)
        for name, values in per_text.items()
    }


def mean_over_sets(values: Sequence[float]) -> float:
    """Unweighted mean over data sets, the card's AVERAGE row."""
    return float(np.mean(values))


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """Mean over seeds with the 95 % interval of Student's t over seeds.

    Raises:
        ValueError: fewer than two seeds, which give no interval.
    """
    n = len(values)
    if n < 2:
        raise ValueError(f"{n} seed: an interval over seeds needs at least two")
    mean = float(np.mean(values))
    half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return Estimate(mean, mean - half, mean + half, n)
