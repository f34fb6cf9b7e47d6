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
# # The benchmark
#
# How well do the two formulations classify texts of ten public sets that they were not trained on?
# This page puts our runs beside the figures that others have published, and says what differs.
#
# It computes nothing anew.
# Every number below is read from a record of `results/` or, for published figures, from `results/published/`.

# %% tags=["parameters"]
out: str = ""
profile: str = "smoke"
evidence: str = "bench"  # profile whose records fill the tables of the ten sets
local: str = ""  # profile whose records fill the table of the shipped corpus; empty for none

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from gliznet.data.registry import BENCHMARK, spec
from gliznet.evaluation import mean_over_seeds
from gliznet.lab import records
from gliznet.lab.figures import COLOURS, show, use_style
from gliznet.lab.fingerprints import records_sha256
from gliznet.lab.records import Reporter
from gliznet.lab.tables import interval, paste, paste_table, published

use_style()
report = Reporter(out)
found = {key: r for key, r in records.load(evidence).items() if r.notebook == "evaluate"}
number, joint = records_sha256(evidence)
report.data(f"records:{evidence}", rows=number, sha256=joint)
SETS = list(BENCHMARK)
WORDINGS = ["readable", "published"]
TITLES = {name: spec(name).title for name in SETS}


def model_of(key):
    """`math`, `card` or `untrained`: the part of a run's id before the seed."""
    return key.split("/")[1].rsplit("-s", 1)[0]


cells = pd.DataFrame(
    [
        (model_of(key), key, wording, name, metric.value, metric.low, metric.high, metric.n)
        for key, record in found.items()
        for wording in WORDINGS
        for name in SETS
        if (metric := record.metrics.get(f"macro_f1/{wording}/{name}"))
    ],
    columns=["model", "run", "wording", "set", "value", "low", "high", "n"],
)

# %% [markdown]
# ## What was run
#
# A model name with several runs is the same recipe with several seeds.
# The seed changes the rows drawn, the order of the data and of the candidates.
# Evaluations read here: {glue:text}`bench_runs:s`; a table below is empty as long as there is none.

# %% tags=["hide-input"]
runs = cells.groupby("model").agg(runs=("run", "nunique"), cells=("value", "size"))
runs

# %% [markdown]
# The recipes keep what defines each formulation and change some of its settings.
# This table shows, for each training run, the settings that matter and every field that differs from the preset.

# %% tags=["hide-input"]
settings = pd.DataFrame(
    {
        key.removeprefix("train/"): {
            "rows": f"{record.parameters['rows']} of {record.parameters['data']}",
            "learning rate": f"{record.parameters['learning_rate']:g}",
            "factor for new parameters": f"{record.parameters['head_lr_multiplier']:g}",
            "rows per step": str(
                record.parameters["batch_size"] * record.parameters["gradient_accumulation"]
            ),
            "differs from the preset": ", ".join(
                f"`{k}={v}`" for k, v in record.parameters["config"].items()
            ),
        }
        for key, record in records.load(evidence).items()
        if record.notebook == "train"
    }
).T
settings.index.name = "run"
paste_table("benchmark-settings", settings, "Training runs and their settings.")

# %% [markdown]
# ```{glue:md} benchmark-settings
# :format: myst
# ```
#
# ## Ten sets, readable labels
#
# For a model with several seeds a cell is the mean over seeds with its 95 % interval (Student's t over seeds).
# For a single run it is the value with a 95 % bootstrap interval over texts.
# The two intervals answer different questions: would another training run do as well, and would other texts give the same score.


# %% tags=["hide-input"]
def summarise(group):
    """Mean over seeds with its interval; a single run keeps its interval over texts."""
    if len(group) > 1:
        e = mean_over_seeds(list(group["value"]))
        return e.value, e.low, e.high
    return tuple(group[["value", "low", "high"]].iloc[0])


def table_of(wording):
    """Rows: sets and their mean; columns: our models."""
    chosen = cells[cells["wording"] == wording]
    columns = {}
    for model, of_model in chosen.groupby("model"):
        column = {
            TITLES[name]: interval(*summarise(of_model[of_model["set"] == name]))
            for name in SETS
            if (of_model["set"] == name).any()
        }
        complete = of_model.groupby("run")["set"].nunique() == len(SETS)
        means = of_model.groupby("run")["value"].mean()[complete]
        if len(means) > 1:
            e = mean_over_seeds(list(means))
            column["mean of ten"] = interval(e.value, e.low, e.high)
        elif len(means) == 1:
            column["mean of ten"] = f"{means.iloc[0]:.3f}"
        columns[model] = column
    table = pd.DataFrame(columns, index=[*TITLES.values(), "mean of ten"]).fillna("not run")
    table.index.name = "set"
    return table


readable = table_of("readable")
paste_table("benchmark-readable", readable, "Macro F1 on the ten sets, readable labels.")

# %% [markdown]
# ```{glue:md} benchmark-readable
# :format: myst
# ```
#
# ## The published wording
#
# The published evaluations take label names as the data sets write them: `neg` and `pos`, newsgroup names, `Sci/Tech`.
# Where a set has the same strings in both wordings, its row is the same in both tables.

# %% tags=["hide-input"]
as_published = table_of("published")
paste_table("benchmark-published", as_published, "Macro F1 on the ten sets, published labels.")

# %% [markdown]
# ```{glue:md} benchmark-published
# :format: myst
# ```
#
# ## Beside the figures of others
#
# These figures are copied from the model card of GliZNet, with their source in `results/published/gliznet_card.csv`.
# They are not comparable line by line: their backbones are larger than ours, the training data differ, and some of our sets hold other rows (see below).
# They say where a small model trained on a small mix stands.

# %% tags=["hide-input"]
card = published("gliznet_card")
card = card[(card["revision"] == "card-2") & (card["quantity"] == "macro_f1")]
others = card.pivot(index="dataset", columns="model", values="value")
names = {**TITLES, "average": "mean of ten"}
others = others[others.index.isin(names)].rename(index=names)
others = others.reindex([*TITLES.values(), "mean of ten"])
others.index.name = "set"
paste_table("benchmark-others", others, "Macro F1 as printed by the GliZNet model card.")

# %% [markdown]
# ```{glue:md} benchmark-others
# :format: myst
# ```

# %% mystnb={"figure": {"caption": "Macro F1 per set, readable labels. Dots are runs, bars their bootstrap intervals over texts; diamonds are the figures of the GliZNet card.", "name": "fig-benchmark"}, "image": {"alt": "Dot plot of macro F1 for each of the ten sets, our models and the published GliZNet figure."}}
figure, axis = plt.subplots(figsize=(8, 4.2))
shown = cells[cells["wording"] == "readable"]
for offset, (model, of_model) in zip(
    np.linspace(-0.25, 0.25, 3), shown.groupby("model"), strict=False
):
    for k, (_, of_run) in enumerate(of_model.groupby("run")):
        x = [SETS.index(s) + offset + 0.06 * k for s in of_run["set"]]
        spread = [of_run["value"] - of_run["low"], of_run["high"] - of_run["value"]]
        axis.errorbar(
            x,
            of_run["value"],
            yerr=np.array(spread),
            fmt="o",
            markersize=3,
            linewidth=0.8,
            color=COLOURS.get(model, COLOURS["accent"]),
            label=model if k == 0 else None,
        )
ours = [c for c in others.columns if c.startswith("gliznet")]
axis.plot(
    range(len(SETS)),
    others.loc[list(TITLES.values()), ours[0]].astype(float),
    "D",
    markersize=4,
    color=COLOURS["published"],
    label="GliZNet card (DeBERTa-v3-base)",
)
axis.set_xticks(range(len(SETS)), TITLES.values(), rotation=30, ha="right")
axis.set(ylabel="macro F1", ylim=(0, 1))
axis.legend(frameon=False, fontsize=8)
show(figure)

# %% [markdown]
# ## How the local sets differ
#
# Every difference between the rows we score and the published ones, as the registry states it.

# %% tags=["hide-input"]
differences = pd.DataFrame({"difference": {TITLES[n]: spec(n).differences or "none" for n in SETS}})
differences.index.name = "set"
paste_table("benchmark-differences", differences, "Local rows against published rows.")

# %% [markdown]
# ```{glue:md} benchmark-differences
# :format: myst
# ```
#
# ## The shipped corpus
#
# The models of this profile on the test texts of `hardset-mini`.
# A model trained on rows of the corpus is in its domain here, and the mix of the bench profile holds some.
# The rows called *without text* score the same candidates with the text left out: what they reach is no reading.

# %% tags=["hide-input"]
corpus = {}
for key, record in (records.load(local) if local else {}).items():
    if record.notebook != "evaluate":
        continue
    for name, metric in record.metrics.items():
        if name.startswith("hardset-mini/test/"):
            shown_name = name.removeprefix("hardset-mini/test/")
            corpus.setdefault(shown_name, {})[key.removeprefix("evaluate/")] = interval(
                metric.value, metric.low, metric.high
            )
if corpus:
    on_corpus = pd.DataFrame(corpus).T
else:
    on_corpus = pd.DataFrame({"note": ["this profile evaluates no model on the corpus"]})
on_corpus.index.name = "metric"
paste_table("benchmark-corpus", on_corpus, "Test texts of hardset-mini, 95 % bootstrap over texts.")

# %% [markdown]
# ```{glue:md} benchmark-corpus
# :format: myst
# ```

# %% tags=["hide-input"]
counted = ", ".join(f"{name} {n}" for name, n in runs["runs"].items())
paste("bench_runs", counted or "none")
for model in ("untrained", "math", "card"):
    mean = readable[model]["mean of ten"] if model in readable else "not run yet"
    paste(f"bench_{model}_mean", mean)
    chosen = cells[(cells["model"] == model) & (cells["wording"] == "readable")]
    complete = chosen.groupby("run").filter(lambda run: len(run) == len(SETS))
    if len(complete):
        report.metric(f"mean_of_ten/{model}", float(complete["value"].mean()), n=len(complete))
report.close()
