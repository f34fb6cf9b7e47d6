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
# # Evaluate one model
#
# This notebook scores one model on labelled sets and writes every score.
# The record holds the metrics, the predictions file holds the logits of each text, so any other metric can be computed without the model.
#
# A set is scored with its labels in the published order.
# The predicted label is the one with the highest logit.

# %% tags=["parameters"]
out: str = ""
profile: str = "smoke"
model: str = ""  # folder of a trained model; empty means untrained
backbone: str = "tiny-random"  # of an untrained model
formulation: str = "math"  # of an untrained model
corpus: str = "validation"  # split of hardset-mini to score, empty for none
corpus_rows: int = 20  # 0: all
development: str = ""  # mix whose development sets are scored, empty for none
development_rows: int = 250  # per development set
sets: list = []  # benchmark sets by name
wordings: list = ["readable"]
sample_rows: dict = {}  # name of a set: seeded sample of so many rows instead of all
max_length: int = 384
batch_size: int = 32

# %%
import random
import time
from dataclasses import replace

import numpy as np
import pandas as pd

from gliznet import ZeroShotClassificationPipeline
from gliznet.backbones import fingerprint, load_or_build, resolve
from gliznet.data.corpus import hardset_mini
from gliznet.data.loading import load
from gliznet.data.sampling import development_sets, mixes
from gliznet.data.types import examples_sha256
from gliznet.evaluation import (
    macro_f1,
    mean_over_sets,
    per_class,
    ranking_metrics,
    score_examples,
    score_single_label,
)
from gliznet.lab.figures import quiet
from gliznet.lab.records import Reporter

quiet()
report = Reporter(out)
gliznet, tokenizer = load_or_build(model, backbone, formulation, report.out, max_length)
pipeline = ZeroShotClassificationPipeline(gliznet, tokenizer, batch_size=batch_size)
report.backbone(model or backbone, fingerprint(model or resolve(backbone, report.out)))


def add(name, e):
    """Reports an estimate and returns it as a row of a table."""
    interval = "95 % bootstrap over texts"
    report.metric(name, e.value, low=e.low, high=e.high, n=e.n, interval=interval)
    return e.value, e.low, e.high, e.n


# %% [markdown]
# ## The shipped corpus
#
# Every text of `hardset-mini` has several true labels and several hard negatives.
# Micro F1 counts (text, candidate) pairs at the threshold one half; mean average precision and the reciprocal rank look at the order only.

# %%
rows = []
if corpus:
    examples = list(hardset_mini(corpus))
    report.data(f"hardset-mini/{corpus}", rows=len(examples), sha256=examples_sha256(examples))
    examples = examples[: corpus_rows or None]
    scored = score_examples(pipeline, examples)
    report.predictions(scored, f"hardset-mini-{corpus}")
    for name, e in ranking_metrics(scored).items():
        rows.append((name, *add(f"hardset-mini/{corpus}/{name}", e)))
    # The same candidates with an empty text: what this reaches is no reading.
    blind = [replace(e, text="") for e in examples]
    e = ranking_metrics(score_examples(pipeline, blind))["map"]
    rows.append(("map without text", *add(f"hardset-mini/{corpus}/map without text", e)))
pd.DataFrame(rows, columns=["metric", "value", "low", "high", "texts"]).round(3)

# %% [markdown]
# ## The development sets
#
# Recipes are chosen here and nowhere else.
# The texts come from sources that no training row comes from, under label names that no source uses; a text that a training source also holds is left out.

# %%
held_out = []
if development:
    for data in development_sets(mixes()[development], development_rows, 0, load):
        report.data(f"development:{data.name}", rows=len(data), sha256=data.sha256)
        e = macro_f1(*score_single_label(pipeline, data))
        held_out.append((data.name, *add(f"development/{data.name}", e)))
    mean = mean_over_sets([row[1] for row in held_out])
    report.metric("development/mean", mean, n=len(held_out), unit="sets")
pd.DataFrame(held_out, columns=["set", "macro F1", "low", "high", "texts"]).round(3)

# %% [markdown]
# ## The benchmark sets
#
# Two wordings of the same labels are two different inputs.
# Where both wordings are the same strings the scores are the same, and the set is scored once.

# %%
results = []
done: dict = {}
seconds = 0.0
for name in sets:
    for wording in wordings:
        data = load(name, wording)
        report.data(f"{name}/{wording}", rows=len(data), sha256=data.sha256)
        if name in sample_rows:
            chosen = sorted(random.Random(0).sample(range(len(data)), sample_rows[name]))
            data = data.take(chosen)
        key = (name, data.label_names)
        if key not in done:
            started = time.perf_counter()
            logits, truth = score_single_label(pipeline, data)
            seconds += time.perf_counter() - started
            done[key] = logits, truth
            table = pd.DataFrame(
                {"truth": truth.astype(np.int16), "logits": [row.tolist() for row in logits]}
            )
            report.predictions(table, f"{name}-{wording}")
        logits, truth = done[key]
        estimate = macro_f1(logits, truth)
        results.append((name, wording, *add(f"macro_f1/{wording}/{name}", estimate)))
if sets:
    for wording in wordings:
        values = [r[2] for r in results if r[1] == wording]
        report.metric(
            f"macro_f1/{wording}/mean", mean_over_sets(values), n=len(values), unit="sets"
        )
    report.cost("evaluation_seconds", seconds)
pd.DataFrame(results, columns=["set", "wording", "macro F1", "low", "high", "texts"]).round(3)

# %% [markdown]
# ## Per class
#
# The last set in detail: which labels are found, and which are predicted too often.

# %%
report.close()
if results:
    detail = per_class(logits, truth, data.label_names).round(3)
else:
    detail = pd.DataFrame({"note": ["no benchmark set in this run"]})
detail
