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
# # Train one model
#
# This notebook is one training run.
# Papermill sets its parameters, so every model in this book comes from the same page.
# It draws training rows, builds an untrained GliZNet over a pretrained encoder, trains it, and saves it next to its record.
#
# The parameters below are the smallest run that makes sense.
# The cell after them, if there is one, is what this run used instead.

# %% tags=["parameters"]
out: str = ""  # folder of this run; empty means a temporary one
profile: str = "smoke"
formulation: str = "math"  # or "card"
backbone: str = "tiny-random"  # or "minilm-l6", a path, a Hub id
data: str = "hardset-mini"  # or "mix:NAME" of gliznet/data/mix.yaml
rows: int = 40  # 0: all rows of hardset-mini
seed: int = 1
epochs: float = 1.0
learning_rate: float = 0.001
head_lr_multiplier: float = 1.0  # of projections, head and temperatures
batch_size: int = 8
gradient_accumulation: int = 1
max_length: int = 384  # training window in tokens
max_labels: int = 20  # candidates per training row
backbone_dropout: float = 0.0  # of the encoder during this run
attn_implementation: str = "sdpa"
bf16: bool = False
trained_share: float = 1.0  # of the trained weights in the saved model, the rest as at the start
mix: dict = {}  # fields of the mix that differ from mix.yaml
config: dict = {}  # fields of GliZNetConfig that differ from the preset

# %% [markdown]
# ## The rows
#
# The same seed gives the same rows with the same candidates in the same order.
# Their fingerprint goes into the record, and so do those of the data sets that a mix draws from.

# %%
import time

import pandas as pd
import torch
from transformers import set_seed

from gliznet import GliZNetForSequenceClassification, GliZNETTokenizer
from gliznet.backbones import fingerprint, resolve
from gliznet.data.sources import mix_sources, training_examples
from gliznet.data.types import examples_sha256
from gliznet.lab.figures import COLOURS, quiet, show, use_style
from gliznet.lab.records import Reporter
from gliznet.training import interpolate, train

quiet()
use_style()
report = Reporter(out)
examples = training_examples(data, rows, seed, mix)
report.data(data, rows=len(examples), sha256=examples_sha256(examples))
for source in mix_sources(data):
    report.data(f"{source.name}/readable", rows=len(source), sha256=source.sha256)
pd.DataFrame(
    {
        "rows": [len(examples)],
        "sources": [len({e.source for e in examples})],
        "distinct labels": [len({c for e in examples for c in (*e.labels, *e.not_labels)})],
        "candidates per row": [
            round(sum(len(e.labels) + len(e.not_labels) for e in examples) / len(examples), 1)
        ],
    }
)

# %% [markdown]
# ## The untrained model
#
# The preset names the formulation; `config` lists what this run changes.
# The new parameters are everything outside the backbone.

# %%
set_seed(seed)  # of new parameters that start at random
path = resolve(backbone, report.out)
report.backbone(backbone, fingerprint(path))
tokenizer = GliZNETTokenizer.from_pretrained(path, max_length=max_length)
model = GliZNetForSequenceClassification.from_backbone(
    path, tokenizer, formulation, attn_implementation=attn_implementation, **config
)
start = {name: weight.clone() for name, weight in model.state_dict().items()}
sizes = {
    "backbone": sum(p.numel() for p in model.backbone.parameters()),
    "new": sum(p.numel() for n, p in model.named_parameters() if not n.startswith("backbone.")),
}
pd.DataFrame({"parameters": sizes})

# %% [markdown]
# ## Training
#
# Checkpoints lie in the run's folder.
# If the run is killed, the next call continues from the last one with the same data order and random state.
#
# With `trained_share` below one, the saved weights lie on the line between those before and those after training {cite}`wortsman2022robust`.
# That keeps more of what the encoder knew about labels that it was not trained on.

# %%
started = time.perf_counter()
trainer = train(
    model,
    tokenizer,
    examples,
    report.out / "checkpoints",
    seed=seed,
    learning_rate=learning_rate,
    head_lr_multiplier=head_lr_multiplier,
    epochs=epochs,
    batch_size=batch_size,
    gradient_accumulation=gradient_accumulation,
    schedule=formulation,
    max_labels=max_labels,
    backbone_dropout=backbone_dropout,
    bf16=bf16,
)
seconds = time.perf_counter() - started
tokens = sum(trainer.train_dataset["length"]) * epochs
report.cost("train_seconds", seconds)
report.cost("train_tokens", tokens)
report.cost("optimiser_steps", trainer.state.global_step)
interpolate(model, start, trained_share)
model.save_pretrained(report.out / "model")
tokenizer.save_pretrained(report.out / "model")

# %% [markdown]
# The three terms of the loss, unweighted, as they fall.
# The contrastive term starts near the logarithm of the number of candidates if the untrained model knows nothing.

# %% mystnb={"figure": {"caption": "Unweighted loss terms over the training run, each point the mean since the one before.", "name": "fig-train-loss"}, "image": {"alt": "Line plot of the contrastive, repulsion and BCE terms against optimiser steps."}}
import matplotlib.pyplot as plt

log = pd.DataFrame([entry for entry in trainer.state.log_history if "loss_bce" in entry])
figure, axis = plt.subplots(figsize=(7, 3))
for term, colour in (("contrastive", "math"), ("bce", "card"), ("repulsion", "published")):
    axis.plot(log["step"], log[f"loss_{term}"].astype(float), color=COLOURS[colour], label=term)
axis.set(xlabel="optimiser step", ylabel="loss term", ylim=(0, None))
axis.legend(frameon=False)
show(figure)

# %% [markdown]
# ## What was learned besides the weights
#
# The three temperatures are trained with the rest.
# {math}`\tau` and {math}`\tau_{\text{BCE}}` belong to the cosine head; with another head they stay where they were.

# %%
with torch.no_grad():
    learned = {
        "tau": float(model.tau),
        "tau_attn": float(model.tau_attn),
        "tau_bce": float(model.tau_bce),
    }
for name, value in learned.items():
    report.metric(name, value)
report.metric("final_loss", float(log["loss"].astype(float).iloc[-1]))
report.close()
pd.DataFrame(
    {"at the start": {k: getattr(model.config, k) for k in learned}, "at the end": learned}
).round(3)
