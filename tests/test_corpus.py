"""The shipped corpus: sizes, lengths, labels, and no leak between its splits."""

import json
import re
from importlib.resources import files
from itertools import combinations

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.pipeline import make_pipeline

from gliznet.data.corpus import SPLITS, hardset_mini

MINIMUM = {"train": 600, "validation": 120, "test": 200}


def grams(text: str, n: int) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def lines(split: str) -> list[dict]:
    text = (files("gliznet.data") / "hardset_mini" / f"{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


EVERY = [(split, i, e) for split in SPLITS for i, e in enumerate(hardset_mini(split))]


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_has_its_rows_and_the_reader_keeps_their_content(split):
    rows = lines(split)
    assert len(rows) == len(hardset_mini(split)) >= MINIMUM[split]
    for row, example in zip(rows, hardset_mini(split), strict=True):
        assert row["text"] == example.text
        assert tuple(row["labels"]) == example.labels
        assert tuple(row["not_labels"]) == example.not_labels
        assert row["field"] == example.source
    assert len({row["id"] for row in rows}) == len(rows)


def test_the_texts_come_from_60_fields():
    assert len({e.source.casefold() for _, _, e in EVERY}) >= 60
    assert all(e.source.strip() for _, _, e in EVERY)


def test_a_text_has_20_to_120_words():
    assert not [(s, i, n) for s, i, e in EVERY if not 20 <= (n := len(e.text.split())) <= 120]


def test_a_row_has_3_to_6_true_and_5_to_9_false_labels():
    assert not [(s, i) for s, i, e in EVERY if not 3 <= len(e.labels) <= 6]
    assert not [(s, i) for s, i, e in EVERY if not 5 <= len(e.not_labels) <= 9]


def test_a_label_has_1_to_5_words_and_no_stray_space():
    wrong = [
        (split, i, label)
        for split, i, e in EVERY
        for label in (*e.labels, *e.not_labels)
        if not 1 <= len(label.split()) <= 5 or label != " ".join(label.split())
    ]
    assert not wrong


def test_no_label_occurs_twice_in_a_row_whether_true_or_false():
    wrong = []
    for split, i, e in EVERY:
        folded = [label.casefold() for label in (*e.labels, *e.not_labels)]
        if len(set(folded)) < len(folded):
            wrong.append((split, i))
    assert not wrong


def test_two_fifths_of_the_test_labels_are_unseen_in_training():
    def labels(split):
        rows = hardset_mini(split)
        return {label.casefold() for e in rows for label in (*e.labels, *e.not_labels)}

    def true_labels(split):
        return {label.casefold() for e in hardset_mini(split) for label in e.labels}

    seen = labels("train")
    assert len(labels("test") - seen) >= 0.4 * len(labels("test"))
    assert len(true_labels("test") - seen) >= 0.4 * len(true_labels("test"))


def test_labels_are_true_in_some_row_and_false_in_another():
    # Else a model could learn which labels are the true kind without reading the text.
    rows = hardset_mini("train")
    true = {label.casefold() for e in rows for label in e.labels}
    false = {label.casefold() for e in rows for label in e.not_labels}
    assert len(true & false) >= 100


def test_no_text_occurs_twice():
    normal = [" ".join(re.findall(r"\w+", e.text.lower())) for _, _, e in EVERY]
    assert len(set(normal)) == len(normal)


@pytest.mark.parametrize(("first", "second"), list(combinations(SPLITS, 2)))
def test_no_run_of_8_words_occurs_in_two_splits(first, second):
    owner = {g: i for i, e in enumerate(hardset_mini(first)) for g in grams(e.text, 8)}
    shared = [
        (owner[g], i, " ".join(g))
        for i, e in enumerate(hardset_mini(second))
        for g in grams(e.text, 8)
        if g in owner
    ]
    assert not shared


def test_no_two_texts_are_nearly_the_same():
    # Half of the 3-word runs of the shorter text in another one.
    texts = [grams(e.text, 3) for _, _, e in EVERY]
    index: dict[tuple[str, ...], list[int]] = {}
    for i, text in enumerate(texts):
        for gram in text:
            index.setdefault(gram, []).append(i)
    common: dict[tuple[int, int], int] = {}
    for holders in index.values():
        for pair in combinations(holders, 2):
            common[pair] = common.get(pair, 0) + 1
    near = [
        (EVERY[i][:2], EVERY[j][:2])
        for (i, j), n in common.items()
        if n >= 0.5 * min(len(texts[i]), len(texts[j]))
    ]
    assert not near


def test_the_near_duplicate_measure_sees_a_copied_sentence():
    text = hardset_mini("train")[0].text
    assert grams(text, 8) & grams("Yes, and then: " + text.upper() + " The end.", 8)
    assert not grams(text, 8) & grams(hardset_mini("train")[1].text, 8)


def test_an_unknown_split_is_an_error():
    with pytest.raises(ValueError, match="split is 'dev': choose one of"):
        hardset_mini("dev")


def test_the_wording_of_a_label_says_little_about_its_truth():
    """A classifier of label strings alone, without the texts, must stay near chance."""
    rows = [(label, 1) for e in hardset_mini("train") for label in e.labels]
    rows += [(label, 0) for e in hardset_mini("train") for label in e.not_labels]
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    model = make_pipeline(letters, LogisticRegression(max_iter=2000))
    model.fit(*zip(*rows, strict=True))
    blind, chance = [], []
    for e in hardset_mini("test"):
        truth = [1] * len(e.labels) + [0] * len(e.not_labels)
        scores = model.predict_proba([*e.labels, *e.not_labels])[:, 1]
        blind.append(average_precision_score(truth, scores))
        # The mean over all orders, see Bestgen 2015, "Exact expected average precision".
        n, r = len(truth), len(e.labels)
        harmonic = sum(1 / i for i in range(1, n + 1))
        chance.append((r - 1) / (n - 1) + (n - r) / (n * (n - 1)) * harmonic)
    assert sum(blind) / len(blind) - sum(chance) / len(chance) < 0.12
