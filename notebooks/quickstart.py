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
# # Classify your own text
#
# GliZNet reads a text together with all candidate labels, once.
# This page loads a trained model, classifies a text, and looks at where each label looked.

# %% tags=["parameters"]
out: str = ""
profile: str = "smoke"
model: str = ""  # folder of a trained model; empty means untrained, so scores mean nothing
backbone: str = "tiny-random"
formulation: str = "math"
text: str = (
    "The landlord finally fixed the boiler, three weeks late and without one word of apology."
)
labels: list = ["housing", "complaint", "gratitude", "cooking", "delayed repair", "sports"]

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from gliznet import ZeroShotClassificationPipeline
from gliznet.backbones import load_or_build
from gliznet.lab.figures import quiet, show, use_style
from gliznet.lab.records import Reporter

quiet()
use_style()
report = Reporter(out)
gliznet, tokenizer = load_or_build(model, backbone, formulation, report.out)
pipeline = ZeroShotClassificationPipeline(gliznet, tokenizer, classification_type="multi-label")
result = pipeline(text, labels)
pd.DataFrame(
    [(entry.label, entry.score) for entry in result.labels], columns=["label", "score"]
).round(3)

# %% [markdown]
# A score is the probability of one label on its own; the scores do not sum to one.
# If exactly one label is true, ask for `multi-class`.

# %%
single = ZeroShotClassificationPipeline(gliznet, tokenizer, classification_type="multi-class")
best = single(text, ["complaint", "gratitude", "neutral report"], top_k=1).labels[0]
print(f"{best.label}: {best.score:.3f}")

# %% [markdown]
# ## The sequence
#
# Text and labels share one sequence.
# The label mask says which label a token belongs to; text and control tokens carry 0.

# %%
batch = tokenizer(text, labels)
tokens = tokenizer.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())
pd.DataFrame({"token": tokens, "lmask": batch["lmask"][0].tolist()}).T.iloc[:, -16:]

# %% [markdown]
# ## Where each label looks
#
# A row of the picture is one label's attention over the text tokens; each row sums to one.
# A label that finds nothing to hold on to spreads out.

# %% mystnb={"figure": {"caption": "Attention of each label over the tokens of the text. Darker is more; a row sums to one.", "name": "fig-quickstart-attention"}, "image": {"alt": "Heat map with labels as rows and text tokens as columns, shaded by attention weight."}}
with torch.inference_mode():
    output = gliznet(
        **{k: batch[k] for k in ("input_ids", "attention_mask", "lmask")},
        output_text_attention=True,
    )
end = tokens.index(tokenizer.tokenizer.sep_token)
weights = output.text_attention[0, :, 1:end].numpy()
figure, axis = plt.subplots(figsize=(8, 3))
axis.imshow(weights, cmap="Blues", aspect="auto", vmin=0)
axis.set_xticks(range(end - 1), tokens[1:end], rotation=60, ha="right", fontsize=8)
axis.set_yticks(range(len(labels)), labels)
axis.grid(False)
show(figure)

# %% [markdown]
# ## What to expect of bad input
#
# Nothing is dropped in silence.
# Labels are never cut; if they leave no room for the text the tokenizer says so, with the numbers and the option that helps.

# %%
for bad in (["complaint", "complaint"], ["complaint", "  "], []):
    try:
        pipeline(text, bad)
    except ValueError as error:
        print(f"{bad}: {error}")
shortened = pipeline("word " * 1000, labels)
print(f"{shortened.truncated_tokens} tokens of the long text did not fit into the window")

# %%
entropy = -(weights * np.log(np.maximum(weights, 1e-12))).sum(axis=1)
report.metric("mean_attention_entropy", float(entropy.mean()), unit="nats", n=len(labels))
report.close()
