"""Key phrases as labels, and the nearest wrong labels of a set."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from gliznet.backbones import resolve
from gliznet.data.enrichment import key_phrases, nearest_labels, with_key_phrases
from gliznet.data.types import Example

TEXTS = [
    "The battery life is poor. The screen is bright.",
    "Great battery life, and the delivery was fast!",
    "Poor battery life.",
    "The delivery man was late; the delivery came at night.",
    "A bright screen and a fast delivery",
    "screen screen screen",
]


def test_a_key_phrase_is_the_heaviest_shared_phrase():
    """Only phrases of three texts compete, all of one rarity here, so their counts decide."""
    phrases = key_phrases(TEXTS)
    shared = {"battery", "life", "battery life", "screen", "delivery"}
    assert {sum(p in t.lower() for t in TEXTS) for p in shared} == {3}
    assert set(phrases) <= shared
    assert phrases[3] == "delivery"
    assert phrases[5] == "screen"
    assert phrases[2] in {"battery", "life", "battery life"}


def test_phrases_hold_no_stop_word_number_short_word_or_clause_boundary():
    texts = ["Go to the red door. Blue window, 7th time, x-ray"] * 3
    (phrase,) = set(key_phrases(texts))
    assert phrase in {"red", "door", "red door", "blue", "window", "blue window", "time"}


@pytest.mark.parametrize("texts", [["one red door", "two blue windows"], ["", ""], ["the of and"]])
def test_texts_without_a_shared_phrase_have_none(texts):
    found = key_phrases(texts)
    assert len(found) == len(texts)
    if len(texts) > 1 and texts[0]:
        assert all(f in t for f, t in zip(found, texts, strict=True))
    else:
        assert set(found) == {""}


@settings(max_examples=40, deadline=None)
@given(rate=st.floats(0, 1), seed=st.integers(0, 99), most=st.integers(2, 8))
def test_key_phrase_labels_are_true_false_and_distinct(rate, seed, most):
    plain = [Example(t, ("review",), ("news", "poem", "speech"), "toy") for t in TEXTS * 5]
    enriched = with_key_phrases(plain, rate, seed, most)
    assert with_key_phrases(plain, rate, seed, most) == enriched
    for before, after in zip(plain, enriched, strict=True):
        if after == before:
            continue
        assert most >= 3
        (phrase,) = after.labels[1:]
        assert phrase in after.text.lower()
        assert after.labels[:1] == before.labels
        assert after.not_labels[0] == "news"
        added = set(after.not_labels) - set(before.not_labels)
        assert all(label not in after.text.lower() for label in added)
        assert len({*after.labels, *after.not_labels}) == len(after.labels) + len(after.not_labels)
        assert len(after.labels) + len(after.not_labels) <= most
        assert (after.text, after.source) == (before.text, before.source)


def test_the_rate_is_a_share_of_the_examples():
    plain = [Example(t, ("review",), ("news", "poem"), "toy") for t in TEXTS * 200]
    assert with_key_phrases(plain, 0.0, 1, 8) == plain
    for rate in (0.3, 1.0):
        changed = Counter(len(e.labels) for e in with_key_phrases(plain, rate, 1, 8))[2]
        assert changed / len(plain) == pytest.approx(rate, abs=0.04)


def test_a_phrase_that_is_a_label_already_is_not_added_again():
    plain = [Example(t, ("Screen",), ("news",), "toy") for t in ["screen screen"] * 3]
    assert with_key_phrases(plain, 1.0, 0, 8) == plain


def test_nearest_labels_are_those_of_sentence_transformers():
    labels = ("joy", "happiness", "anger", "card payment", "credit card fee", "rain")
    vectors = SentenceTransformer(resolve("minilm-l6", ""), device="cpu").encode(
        list(labels), normalize_embeddings=True
    )
    nearest = nearest_labels(labels)
    assert nearest["joy"][0] == "happiness"
    for i, label in enumerate(labels):
        expected = [labels[j] for j in np.argsort(-(vectors @ vectors[i])) if j != i]
        assert list(nearest[label]) == expected
