# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The data
#
# Three kinds of text appear in this book.
# A small corpus ships with the package, so that everything runs without a download.
# Ten public sets make the benchmark; no model ever trains on them.
# A mix of other public sets trains the models of the `bench` profile.
#
# This page describes all three and checks what can be checked.

# %% tags=["parameters"]
out: str = ""
profile: str = "smoke"
local: str = ""  # profile whose evaluations show the baseline and the trained model; empty: none
mix: str = "broad"
mix_rows: int = 0  # rows of the mix to draw and check against the benchmark; needs the data
mix_changes: dict = {}  # fields of the mix that the training runs change

# %% tags=["hide-input"]
from collections import Counter
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.pipeline import make_pipeline

from gliznet.data.corpus import SPLITS, hardset_mini
from gliznet.data.loading import load
from gliznet.data.registry import BENCHMARK, registry
from gliznet.data.sampling import assert_no_overlap, mixes
from gliznet.data.sources import training_examples
from gliznet.data.types import examples_sha256
from gliznet.lab import records
from gliznet.lab.figures import COLOURS, show, use_style
from gliznet.lab.records import Reporter
from gliznet.lab.tables import interval, paste, paste_table

use_style()
report = Reporter(out)
corpus = {split: list(hardset_mini(split)) for split in SPLITS}
for split, examples in corpus.items():
    report.data(f"hardset-mini/{split}", rows=len(examples), sha256=examples_sha256(examples))

# %% [markdown]
# ## hardset-mini, the shipped corpus
#
# Each text has a few true labels and several hard negatives: labels that a careless reader would accept.
# Labels name topics, intents, sentiments, emotions, registers and claims.
# The texts were written for this project and carry the licence CC-BY-4.0.

# %% tags=["hide-input"]
example = corpus["validation"][0]
print(example.text)
print("true: ", ", ".join(example.labels))
print("false:", ", ".join(example.not_labels))


# %% tags=["hide-input"]
def labels_of(examples):
    return [label for e in examples for label in (*e.labels, *e.not_labels)]


seen = set(labels_of(corpus["train"]))
facts = {}
for split, examples in corpus.items():
    words = [len(e.text.split()) for e in examples]
    distinct = set(labels_of(examples))
    facts[split] = {
        "texts": len(examples),
        "fields of life": len({e.source for e in examples}),
        "words, fewest": min(words),
        "words, mean": round(sum(words) / len(words), 1),
        "words, most": max(words),
        "true labels per text": round(sum(len(e.labels) for e in examples) / len(examples), 2),
        "false labels per text": round(sum(len(e.not_labels) for e in examples) / len(examples), 2),
        "distinct labels": len(distinct),
        "labels unseen in training": f"{100 * len(distinct - seen) / len(distinct):.0f} %",
    }
    report.metric(f"unseen_labels/{split}", len(distinct - seen) / len(distinct), n=len(distinct))
sizes = pd.DataFrame(facts)
sizes.index.name = "hardset-mini"
paste_table("data-corpus", sizes, "The three splits of the shipped corpus.")

# %% [markdown]
# ```{glue:md} data-corpus
# :format: myst
# ```
#
# ## Quality report
#
# Could a model score well without reading?
# Three ways to cheat are measured: repeated texts, texts that nearly repeat across splits, and labels that are always true or always false.


# %% tags=["hide-input"]
def shingles(text, size=5):
    words = text.lower().split()
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}


everything = [(split, e) for split, examples in corpus.items() for e in examples]
texts = Counter(" ".join(e.text.lower().split()) for _, e in everything)
pieces = [(split, shingles(e.text)) for split, e in everything]
near = max(
    len(a & b) / max(1, min(len(a), len(b)))
    for (split_a, a), (split_b, b) in combinations(pieces, 2)
    if split_a != split_b
)
true = Counter(label for e in corpus["train"] for label in e.labels)
false = Counter(label for e in corpus["train"] for label in e.not_labels)
guessable = [
    (label in e.labels) == (true[label] > false[label])
    for e in corpus["test"]
    for label in (*e.labels, *e.not_labels)
    if label in seen
]
checks = pd.DataFrame(
    {
        "value": {
            "texts that occur twice": str(sum(n > 1 for n in texts.values())),
            "largest overlap of 5-word pieces across splits": f"{near:.3f}",
            "training labels that are true in one text and false in another": str(
                sum(label in false for label in true)
            ),
            "test candidates whose label occurs in training": f"{len(guessable)}",
            "of these, right by the label's majority in training alone": f"{100 * sum(guessable) / len(guessable):.0f} %",
        }
    }
)
checks.index.name = "check"
paste_table("data-quality", checks, "Ways to score without reading.")
report.metric("duplicate_texts", sum(n > 1 for n in texts.values()), n=len(everything))
report.metric("largest_cross_split_overlap", near)

# %% [markdown]
# ```{glue:md} data-quality
# :format: myst
# ```
#
# Some labels can be guessed from their wording alone.
# The next check measures how far that goes, also for labels that never occur in training: a linear model on the letters of the label, which never sees a text.


# %% tags=["hide-input"]
def label_only_map(train, test):
    """Mean average precision of a model that sees labels and no text."""
    labels = labels_of(train)
    truth = [label in e.labels for e in train for label in (*e.labels, *e.not_labels)]
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    guess = make_pipeline(letters, LogisticRegression(max_iter=1000)).fit(labels, truth)
    values = []
    for e in test:
        target = [1] * len(e.labels) + [0] * len(e.not_labels)
        scores = guess.predict_proba([*e.labels, *e.not_labels])[:, 1]
        values.append(average_precision_score(target, scores))
    return float(np.mean(values))


def random_map(test, draws=200):
    """Mean average precision of scores drawn at random."""
    rng = np.random.default_rng(0)
    values = [
        average_precision_score([1] * len(e.labels) + [0] * len(e.not_labels), rng.random(k))
        for e in test
        if (k := len(e.labels) + len(e.not_labels))
        for _ in range(draws // 10)
    ]
    return float(np.mean(values))


blind = {
    "random scores": random_map(corpus["test"]),
    "label wording only": label_only_map(corpus["train"], corpus["test"]),
}
for name, value in blind.items():
    report.metric(f"map/{name}", value, n=len(corpus["test"]))
shortcuts = pd.DataFrame({"mean average precision": {k: f"{v:.3f}" for k, v in blind.items()}})
shortcuts.index.name = "without the text"
paste_table("data-shortcuts", shortcuts, "What can be had on the test texts without reading them.")

# %% [markdown]
# ```{glue:md} data-shortcuts
# :format: myst
# ```
#
# What lies between these two rows is a weakness of the corpus: strong emotions, refunds and formal letters are still false more often than true.
# A test keeps the gap small.
# Read every score on `hardset-mini` against the second row, not against the first.

# %% mystnb={"figure": {"caption": "Training labels that occur at least five times: how often each is true and how often it is a hard negative.", "name": "fig-data-labels"}, "image": {"alt": "Scatter plot of true against false counts of frequent training labels."}}
frequent = [label for label in true | false if true[label] + false[label] >= 5]
figure, axis = plt.subplots(figsize=(5.5, 4))
axis.scatter(
    [true[label] for label in frequent],
    [false[label] for label in frequent],
    s=14,
    color=COLOURS["math"],
    alpha=0.6,
)
for label in sorted(frequent, key=lambda label: -(true[label] + false[label]))[:6]:
    axis.annotate(
        label, (true[label], false[label]), xytext=(4, 3), textcoords="offset points", fontsize=8
    )
axis.set(xlabel="texts where it is true", ylabel="texts where it is false")
show(figure)

# %% [markdown]
# ## Does training help?
#
# An untrained model takes its scores from the geometry of its backbone.
# Mean average precision and the reciprocal rank compare orders; the F1 values depend on the threshold one half, which an untrained model passes with every label.
# The rows called *without text* give the model the same candidates and an empty text.

# %% tags=["hide-input"]
rows = {}
for key, record in (records.load(local) if local else {}).items():
    if record.notebook == "evaluate":
        found = {
            name.removeprefix("hardset-mini/test/"): interval(m.value, m.low, m.high)
            for name, m in record.metrics.items()
            if name.startswith("hardset-mini/test/")
        }
        if found:
            rows[key.removeprefix("evaluate/")] = found
baseline = pd.DataFrame(rows) if rows else pd.DataFrame({"note": ["no model in this profile"]})
baseline.index.name = "metric on the test texts"
paste_table("data-baseline", baseline, "Untrained and trained models, 95 % bootstrap over texts.")

# %% [markdown]
# ```{glue:md} data-baseline
# :format: myst
# ```
#
# ## The benchmark
#
# The ten sets of the model card, with the label names of the published evaluation and a readable second wording.
# The registry names, for each, the data set on the Hub and what is known of its licence.

# %% tags=["hide-input"]
benchmark = {name: registry()[name] for name in BENCHMARK}
listing = pd.DataFrame(
    {
        s.title: {
            "task": s.task,
            "labels": str(len(s.labels)) if s.labels else "",
            "Hub id": f"`{s.hub.id}`",
            "licence": s.licence,
        }
        for s in benchmark.values()
    }
).T
listing.index.name = "set"
paste_table("data-benchmark", listing, "Benchmark sets in the registry.")

# %% [markdown]
# ```{glue:md} data-benchmark
# :format: myst
# ```
#
# ## The training mix
#
# A mix is a list of sources with weights.
# Rows are drawn evenly over the labels of a source, and a row keeps its true labels and gets false ones from the same source, sometimes from another.
# Where a source has several wordings of its labels, each row uses one.
# {doc}`recipe` says what else can be mixed in, and what was.
# Development sets are held out whole, under label names that no source uses; every choice of recipe is made on them.

# %% tags=["hide-input"]
chosen = mixes()[mix]
total = sum(s.weight for s in chosen.sources.values())
weights = pd.DataFrame(
    {
        name: {
            "task": registry()[name].task,
            "share": f"{100 * s.weight / total:.1f} %",
            "wordings": str(len(s.wordings) + s.original),
        }
        for name, s in sorted(chosen.sources.items(), key=lambda item: -item[1].weight)
    }
).T
weights.index.name = "source"
paste_table("data-mix", weights, "Sources of the mix, by share of rows.")
paste("data_development", ", ".join(chosen.development))
needed = [*chosen.sources, *chosen.development]
local_only = [name for name in needed if registry()[name].hub is None]
paste("data_local_only", f"{len(local_only)} of {len(needed)}")

# %% [markdown]
# ```{glue:md} data-mix
# :format: myst
# ```
#
# Development sets: {glue:text}`data_development:s`.
#
# Sources and development sets that the registry finds on no Hub in a loadable form: {glue:text}`data_local_only:s`.
# They must come from a local folder (see {doc}`../reproduce`).
#
# ## No benchmark text in training
#
# No row is drawn whose text is a benchmark text, by fingerprint: the words in lower case, without punctuation.
# The benchmark group of the registry is larger than the ten sets, and all of it counts.
# Here the rows of one seed are compared once more with every such text; a single match stops this notebook.

# %% tags=["hide-input"]
if mix_rows:
    drawn = training_examples(f"mix:{mix}", mix_rows, 1, mix_changes)
    everything = [name for name, s in registry().items() if s.group == "benchmark"]
    compared = assert_no_overlap(drawn, (load(name) for name in everything))
    report.metric("overlap", 0.0, n=compared)
    print(f"{len(drawn)} training rows against {compared} benchmark texts: no text in common")
else:
    print("Not run here: this profile has no mix. The bench profile runs it.")
report.close()
