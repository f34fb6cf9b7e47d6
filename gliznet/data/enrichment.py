"""Labels that no annotator gave: key phrases of texts, and the nearest wrong labels of a set."""

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer
from transformers import AutoModel, AutoTokenizer

from gliznet.backbones import EMBEDDED, resolve
from gliznet.data.types import Example

PHRASE_WORDS = 3
PHRASE_TEXTS = 3  # a phrase of fewer texts is a name or an accident, not a label


def with_key_phrases(
    examples: Sequence[Example], rate: float, seed: int, max_candidates: int
) -> list[Example]:
    """Gives a share of the examples a key phrase of their own text as one more true label.

    A key phrase is the run of one to three words, none a stop word, with the highest TF-IDF weight
    among those that several texts share. The same example gets one key phrase of another text,
    which its own text does not hold, as a false label. The last false labels make room.

    Args:
        examples: training examples.
        rate: share of the examples; those whose text has no key phrase stay as they are, and those
            with no room for it beside their true labels and one false label.
        seed: of the choice.
        max_candidates: candidates of an example at most.
    """
    rng = random.Random(f"{seed}:key phrases")
    phrases = key_phrases([e.text for e in examples])
    pool = sorted({phrase for phrase in phrases if phrase})
    enriched = []
    for example, phrase in zip(examples, phrases, strict=True):
        taken = {c.casefold() for c in (*example.labels, *example.not_labels)}
        room = max_candidates - len(example.labels) - 1
        if rng.random() >= rate or not phrase or phrase in taken or room < 1:
            enriched.append(example)
            continue
        other = rng.choice(pool)
        fits = room > 1 and other not in taken and other not in _runs(example.text)
        false = [other] if fits else []
        enriched.append(
            replace(
                example,
                labels=(*example.labels, phrase),
                not_labels=(*example.not_labels[: room - len(false)], *false),
            )
        )
    return enriched


def key_phrases(texts: Sequence[str]) -> list[str]:
    """The key phrase of each text, lower case, empty where a text shares none with others."""
    vectorizer = TfidfVectorizer(analyzer=_runs, min_df=min(PHRASE_TEXTS, len(texts)))
    try:
        weights = vectorizer.fit_transform(texts)
    except ValueError:  # scikit-learn's word for: no phrase is common enough
        return [""] * len(texts)
    names = vectorizer.get_feature_names_out()
    best = np.asarray(weights.argmax(axis=1)).ravel()
    return [str(names[j]) if weights[i, j] > 0 else "" for i, j in enumerate(best)]


def _runs(text: str) -> list[str]:
    """Runs of one to three neighbouring words of three letters or more, none a stop word."""
    found = []
    for clause in re.split(r"[^\w\s'-]+", text.lower()):
        words = clause.split()
        good = [w.isalpha() and len(w) > 2 and w not in ENGLISH_STOP_WORDS for w in words]
        for size in range(1, PHRASE_WORDS + 1):
            found += [
                " ".join(words[i : i + size])
                for i in range(len(words) - size + 1)
                if all(good[i : i + size])
            ]
    return found


@cache
def nearest_labels(labels: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The other labels of a set in falling order of similarity to each label.

    Similarity is the cosine of mean-pooled hidden states of the embedded sentence encoder, the same
    whatever backbone is trained.
    """
    path = resolve(EMBEDDED, "")
    tokenizer, encoder = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()
    batch = tokenizer(list(labels), padding=True, truncation=True, return_tensors="pt")
    mask = batch["attention_mask"].unsqueeze(-1)
    with torch.no_grad():
        hidden = encoder(**batch).last_hidden_state
    vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    order = (vectors @ vectors.T).fill_diagonal_(-2.0).argsort(dim=1, descending=True, stable=True)
    return {
        label: tuple(labels[j] for j in row[:-1])
        for label, row in zip(labels, order.tolist(), strict=True)
    }
