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
# # Label embeddings
#
# A label such as *party politics* is a few tokens, each with a hidden state.
# How do these become the one vector $e_{b,j}^{\text{label}}$ of the label?
# Does the order of the words matter, or the order of the labels?
#
# There are two ways: average the label's tokens (`math`), or read the `[LAB]` token that closes it (`card`).
# This chapter finds:
#
# - **Order matters**, although the mean ignores it: the states that are averaged depend on positions. Reversing the tokens inside labels changes their embeddings by a relative {glue:text}`label_embeddings_token_order:s` on average, with the encoder of this page.
# - **Appendix B.2 is wrong for a batch.** It averages label 1 of every text into one vector. On {glue:text}`label_embeddings_collision_texts:s` texts the relative error is {glue:text}`label_embeddings_collision:s`. One row per pair of text and label repairs it.
# - **`[LAB]` saves next to nothing.** The encoder reads the label's tokens in both modes.
# - **The first vector of `[LAB]` matters.** Copied from `[SEP]`, it makes the untrained `[LAB]` states of a text nearly alike; the mean of the vocabulary does so less.
# - **No label vector can be stored for reuse.** It depends on the text and on the other labels, in both modes.
#
# The chapter treats math §5 and Appendix B.2, and the label representation of the model card.
# The code is `label_membership` and `pool_labels` in `gliznet/layers.py` and `_label_embeddings` in `gliznet/model.py`.
# {doc}`../notation` has the common symbols.
# Here $b$ numbers the texts of a batch, and $K_b$ is the number of labels of text $b$.

# %% tags=["parameters"]
out: str = ""
profile: str = "smoke"
backbone: str = "tiny-random"
cases: int = 20  # random cases per check
texts: int = 8  # texts of the shipped corpus that the encoder reads
seed: int = 0

# %% tags=["hide-input"]
import copy
import inspect
from functools import reduce
from itertools import permutations
from operator import add

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import sympy
import torch
from hypothesis import strategies as st
from IPython.display import display
from torch.autograd.functional import jacobian
from torch.utils.flop_counter import FlopCounterMode

from gliznet import GliZNetForSequenceClassification, layers
from gliznet.backbones import fingerprint, load_or_build, resolve
from gliznet.data.corpus import hardset_mini
from gliznet.data.types import examples_sha256
from gliznet.lab.checks import Checks
from gliznet.lab.figures import COLOURS, quiet, show, use_style
from gliznet.lab.ledger import judged
from gliznet.lab.records import Reporter
from gliznet.lab.tables import paste, paste_table

quiet()
use_style()

# %% tags=["hide-input"]
report = Reporter(out)
checks = Checks(report)

# %% tags=["hide-input"]
rng = np.random.default_rng(seed)
torch.manual_seed(seed)
gliznet, tokenizer = load_or_build("", backbone, "math", report.out)
card, _ = load_or_build("", backbone, "card", report.out)
gliznet, card = gliznet.double(), card.double()
report.backbone(backbone, fingerprint(resolve(backbone, report.out)))
corpus = hardset_mini("test")
report.data("hardset-mini/test", rows=len(corpus), sha256=examples_sha256(list(corpus)))
examples = sorted(corpus, key=lambda e: (len(e.text), e.text))[:texts]
label_sets = [[*e.labels, *e.not_labels] for e in examples]
widest = max(map(len, label_sets))


def encode(texts, labels):
    """The three tensors that the model reads; nothing may have been cut."""
    batch = tokenizer(texts, labels)
    assert not batch["truncated_tokens"].any()
    return {k: batch[k] for k in ("input_ids", "attention_mask", "lmask")}


@torch.no_grad()
def hidden_states(model, batch):
    return model.backbone(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
    ).last_hidden_state


batch = encode([e.text for e in examples], label_sets)

# %% [markdown]
# ## Definition
#
# The label mask says which positions belong to which label:
#
# ```{math}
# :label: eq-label-embeddings-positions
# \mathcal{T}_{b,j} = \{\, i \;:\; m_{b,i} = j \,\}, \qquad j = 1, \dots, K_b .
# ```
#
# *Mode 1*, the one of `math`, averages the projected states of these positions:
#
# ```{math}
# :label: eq-label-embeddings-mean
# e_{b,j}^{\text{label}} = \frac{1}{|\mathcal{T}_{b,j}|} \sum_{i \in \mathcal{T}_{b,j}} z_{b,i}^{\text{label}} \;\in\; \mathbb{R}^{d_p} .
# ```
#
# *Mode 2*, the one of `card`, reads the projected state of the `[LAB]` that closes the label.
# The mask is zero there (math §2.2), but the sequence puts `[LAB]` right after the last token of its label:
#
# ```{math}
# :label: eq-label-embeddings-lab
# e_{b,j}^{\text{label}} = z_{b,\,i_{b,j}}^{\text{label}}, \qquad i_{b,j} = 1 + \max \mathcal{T}_{b,j} .
# ```
#
# The package finds it by counting: it is the $j$-th `[LAB]` of its row.
#
# Shapes: tokens $(B, L, d_p)$, membership a boolean $(B, K, L)$, result $(B, K, d_p)$.

# %% tags=["hide-input"]
print(inspect.getsource(layers.label_membership))
print(inspect.getsource(layers.pool_labels))
print(inspect.getsource(GliZNetForSequenceClassification._label_embeddings))

# %% [markdown]
# The first check does not use the mask.
# It builds the positions from the lengths alone: `[CLS]`, the text, `[SEP]`, then label after label with one `[LAB]` each.

# %% tags=["hide-input"]
length = batch["input_ids"].shape[1]
own = np.zeros((texts, widest, length), dtype=bool)
closing = np.zeros((texts, widest), dtype=int)
for b, (example, labels) in enumerate(zip(examples, label_sets, strict=True)):
    position = 2 + tokenizer.count_tokens([example.text])[0]
    for j, count in enumerate(tokenizer.count_tokens(labels)):
        own[b, j, position : position + count] = True
        closing[b, j] = position + count
        position += count + 1
real = own.any(axis=-1)

membership = layers.label_membership(batch["lmask"], widest)
checks.equal("label-embeddings-positions", "exact", membership, own)

h = hidden_states(gliznet, batch)
pooled = layers.pool_labels(h, membership)
by_loop = np.zeros(pooled.shape)
for b, j in zip(*real.nonzero(), strict=True):
    for i in own[b, j].nonzero()[0]:
        by_loop[b, j] += h[b, i].numpy() / own[b, j].sum()
checks.equal("label-embeddings-mean", "naive", pooled, by_loop, 1e-12)

where = batch["lmask"] > 0
frame = pd.DataFrame(h[where].numpy())
keys = [where.nonzero()[:, 0].numpy(), batch["lmask"][where].numpy()]
grouped = frame.groupby(keys).mean().to_numpy()
checks.equal("label-embeddings-mean", "library", pooled[torch.tensor(real)], grouped, 1e-12)

with torch.no_grad():
    from_card = card(**batch).label_embeddings
card_states = hidden_states(card, batch)
last = torch.where(membership, torch.arange(length), -1).amax(dim=-1)
checks.equal("label-embeddings-lab", "exact", last[real] + 1, closing[real], case="position")
at_lab = torch.stack([card_states[b, closing[b, j]] for b, j in np.argwhere(real)])
checks.equal("label-embeddings-lab", "naive", from_card[torch.tensor(real)], at_lab, 1e-12)
is_lab = batch["input_ids"] == tokenizer.lab_token_id
checks.equal("label-embeddings-lab", "exact", is_lab.sum(dim=1), real.sum(axis=1), case="number")

# %% [markdown]
# In float64, sums of this size round at about $10^{-15}$; the tolerance of $10^{-12}$ leaves room for another order of summation.
#
# ## The gradient to the tokens
#
# **Proposition.** Each token of a label gets the same share of the label's gradient, and no other token gets any:
#
# ```{math}
# :label: eq-label-embeddings-gradient
# \frac{\partial e_{b,j}^{\text{label}}}{\partial z_{b',i}^{\text{label}}} = \frac{\mathbb{1}[b = b']\; \mathbb{1}[i \in \mathcal{T}_{b,j}]}{|\mathcal{T}_{b,j}|} \, I_{d_p} .
# ```
#
# Here $\mathbb{1}[\cdot]$ is one where its condition holds and zero elsewhere, and $I_{d_p}$ is the identity matrix.
#
# **Proof.** {eq}`eq-label-embeddings-mean` is a linear function of the states.
# The coefficient of $z_{b,i}^{\text{label}}$ is $1 / |\mathcal{T}_{b,j}|$ on the set and zero off it. ∎
#
# The shares of a label add up to one, so a long label is not pulled harder than a short one.
# The derivative does not depend on the states, which is what math §5.1 calls smooth.
# In mode 2 the same formula holds with the set $\{i_{b,j}\}$ in place of $\mathcal{T}_{b,j}$: one position gets everything.
#
# The algebra below holds for every number $n$ of tokens.


# %% tags=["hide-input"]
def random_mask(batch_size, length, labels):
    """A label mask without any structure: every label of a row has a position somewhere."""
    mask = torch.zeros(batch_size, length, dtype=torch.long)
    for row in mask:
        count = int(rng.integers(1, labels + 1))
        row[:] = torch.tensor(rng.integers(0, count + 1, length))
        row[torch.tensor(rng.permutation(length)[:count])] = torch.arange(1, count + 1)
    return mask


def mean_by_loop(tokens, mask, labels):
    """Eq. mean, one loop per index; zero for a label that a row does not have."""
    result = np.zeros((tokens.shape[0], labels, tokens.shape[2]))
    for b in range(tokens.shape[0]):
        for j in range(1, labels + 1):
            found = [i for i in range(tokens.shape[1]) if mask[b, i] == j]
            for i in found:
                result[b, j - 1] += tokens[b, i] / len(found)
    return result


def gradient_by_formula(mask, labels, dim):
    """Eq. gradient as a tensor with axes b, j, component, b', i, component."""
    size, length = mask.shape
    result = torch.zeros(size, labels, dim, size, length, dim, dtype=torch.float64)
    for b in range(size):
        for i in range(length):
            if j := int(mask[b, i]):
                result[b, j - 1, :, b, i] = torch.eye(dim).double() / (mask[b] == j).sum()
    return result


z = sympy.IndexedBase("z")
i, k, n, m = (sympy.Symbol(s, integer=True, positive=True) for s in "iknm")
inside = sympy.diff(sympy.Sum(z[i], (i, 1, n)) / n, z[k]).doit()
checks.zero("label-embeddings-gradient", inside.subs(n, k + m) - 1 / (k + m), case="i in the set")
checks.zero("label-embeddings-gradient", inside.subs(k, n + m), case="i outside")

B, L, K, D = 2, 6, 3, 2
worst = {"autograd": 0.0, "naive": 0.0, "spread over the row": 0.0, "sum": 0.0}
step = 1e-6
for _ in range(cases):
    mask = random_mask(B, L, K)
    tokens = torch.tensor(rng.normal(size=(B, L, D)))
    inside_mask = layers.label_membership(mask, K)
    formula = gradient_by_formula(mask, K, D)
    package = jacobian(lambda x, s=inside_mask: layers.pool_labels(x, s), tokens)
    central = torch.zeros_like(formula)
    for index in np.ndindex(*tokens.shape):
        shift = np.zeros(tokens.shape)
        shift[index] = step
        up, down = (mean_by_loop(tokens.numpy() + s, mask, K) for s in (shift, -shift))
        central[(..., *index)] = torch.tensor((up - down) / (2 * step))
    counts = inside_mask.sum(dim=-1).clamp(min=1)[:, :, None, None, None, None]
    for name, other in (
        ("autograd", package),
        ("naive", central),
        ("spread over the row", formula * counts / L),
        ("sum", formula * counts),
    ):
        worst[name] = max(worst[name], float((other - formula).abs().max()))
checks.equal("label-embeddings-gradient", "autograd", worst["autograd"], 0.0, 1e-14)
checks.equal("label-embeddings-gradient", "naive", worst["naive"], 0.0, 1e-8)
for name in ("spread over the row", "sum"):
    checks.rejects("label-embeddings-gradient", name, worst[name], 0.0, 1e-8)

# %% [markdown]
# Central differences of a linear function err only by round-off over the step of $10^{-6}$, hence the tolerance of $10^{-8}$.
#
# ## The order of the tokens: what is invariant and what is not
#
# Math §5.1 says that pooling is permutation-invariant, which is right, and that the order of tokens does not matter, which is not.
#
# First the pooling.
# Let $\pi$ be a permutation of positions that moves each state together with its mask entry, and $\mathcal{T}^{\pi}_{b,j}$ the positions of label $j$ after it.
#
# ```{math}
# :label: eq-label-embeddings-permutation
# \frac{1}{|\mathcal{T}^{\pi}_{b,j}|} \sum_{i \in \mathcal{T}^{\pi}_{b,j}} z_{b,\pi(i)}^{\text{label}} = \frac{1}{|\mathcal{T}_{b,j}|} \sum_{i \in \mathcal{T}_{b,j}} z_{b,i}^{\text{label}}, \qquad \mathcal{T}^{\pi}_{b,j} = \{\, i : m_{b,\pi(i)} = j \,\} .
# ```
#
# **Proof.** $\pi$ maps $\mathcal{T}^{\pi}_{b,j}$ one to one onto $\mathcal{T}_{b,j}$, so both sides add the same terms in another order. ∎
#
# But the states come out of the encoder, and a usual encoder adds to each token a vector or a bias that depends on its position.
# Another order of the tokens then gives other states and another mean.
#
# Positions are the only reason.
# Let $X$ hold the token embeddings without positions, $P$ the permutation matrix of $\pi$, and $\mathcal{F}_0$ the encoder without positional terms.
#
# ```{math}
# :label: eq-label-embeddings-equivariance
# \mathcal{F}_0(P X) = P\, \mathcal{F}_0(X) .
# ```
#
# **Proof.** Linear maps, normalisation and the feed-forward part act on each row alone, so they commute with $P$.
# Self-attention gives row $i$ the value $\sum_{i'} \operatorname{softmax}_{i'}(\langle q_i, k_{i'} \rangle)\, v_{i'}$, with its queries $q$, keys $k$ and values $v$.
# That is a sum over all rows, which does not depend on their order.
# A composition of maps that commute with $P$ commutes with $P$. ∎
#
# So without positions the embedding of a label does not change when tokens or labels move: {eq}`eq-label-embeddings-equivariance` moves the states along, and {eq}`eq-label-embeddings-permutation` ignores the move.
# Mode 2 even needs positions.
# Without them all `[LAB]` tokens have the same input and see the same tokens, so every label would get the same embedding.

# %% tags=["hide-input"]
x = sympy.symbols("x1:5")
order_gap = sum(
    sympy.expand((sum(x) / len(x) - sum(x[p] for p in moved) / len(x)) ** 2)
    for moved in permutations(range(4))
)
checks.zero("label-embeddings-permutation", order_gap, case="all orders of 4 tokens")

gaps = {"value": 0.0, "gradient": 0.0, "naive": 0.0, "mask left behind": 0.0}
for _ in range(cases):
    mask = random_mask(B, 9, K)
    tokens = torch.tensor(rng.normal(size=(B, 9, D)))
    moved = torch.tensor(rng.permutation(9))
    pairs = [(tokens, mask), (tokens[:, moved], mask[:, moved])]
    sets = [layers.label_membership(s, K) for _, s in pairs]
    values = [layers.pool_labels(t, s) for (t, _), s in zip(pairs, sets, strict=True)]
    loops = [mean_by_loop(t.numpy(), s, K) for t, s in pairs]
    slopes = [
        jacobian(lambda t, s=s: layers.pool_labels(t, s), t)
        for (t, _), s in zip(pairs, sets, strict=True)
    ]
    gaps["value"] = max(gaps["value"], float((values[0] - values[1]).abs().max()))
    gaps["gradient"] = max(
        gaps["gradient"], float((slopes[0][..., moved, :] - slopes[1]).abs().max())
    )
    gaps["naive"] = max(gaps["naive"], np.abs(loops[0] - loops[1]).max())
    left = layers.pool_labels(tokens[:, moved], sets[0])
    gaps["mask left behind"] = max(gaps["mask left behind"], float((left - values[0]).abs().max()))
checks.equal("label-embeddings-permutation", "autograd", gaps["value"], 0.0, 1e-14, case="value")
checks.equal(
    "label-embeddings-permutation", "autograd", gaps["gradient"], 0.0, 1e-14, case="gradient"
)
checks.equal("label-embeddings-permutation", "naive", gaps["naive"], 0.0, 1e-14)
checks.rejects(
    "label-embeddings-permutation", "mask left behind", gaps["mask left behind"], 0.0, 1e-10
)

# One attention layer of scalar states: its first output after a swap is its second before.
a, c = sympy.symbols("a c")


def attention_layer(states, row):
    weights = [sympy.exp(a * states[row] * c * other) for other in states]
    return sum(w * s for w, s in zip(weights, states, strict=True)) / sum(weights)


before, after = x[:3], (x[1], x[0], x[2])
for new, old in ((0, 1), (1, 0), (2, 2)):
    checks.zero(
        "label-embeddings-equivariance",
        attention_layer(after, new) - attention_layer(before, old),
        case=f"row {new + 1}",
    )


def attention_by_loop(states, query, key, value):
    result = np.zeros_like(states)
    for r in range(len(states)):
        weights = [np.exp((query @ states[r]) @ (key @ other)) for other in states]
        for w, other in zip(weights, states, strict=True):
            result[r] += w / sum(weights) * np.tanh(value @ other)
    return result


gap = 0.0
for _ in range(cases):
    states, moved = rng.normal(size=(7, 3)), rng.permutation(7)
    maps = 0.5 * rng.normal(size=(3, 3, 3))
    gap = max(
        gap,
        np.abs(
            attention_by_loop(states[moved], *maps) - attention_by_loop(states, *maps)[moved]
        ).max(),
    )
checks.equal("label-embeddings-equivariance", "naive", gap, 0.0, 1e-13, case="one layer")

# %% [markdown]
# Now the encoder itself, as it is and with its position embeddings set to zero (*without positions*).
# *Tokens moved* reverses the tokens inside every label of two or more.
# *Labels moved* shuffles the labels with their `[LAB]`; each label keeps its number, so its embedding stays comparable.
# The measure is the relative change $\lVert e' - e \rVert / \lVert e \rVert$ of a label's embedding; for moved tokens, only labels whose tokens moved count.


# %% tags=["hide-input"]
def moved_tokens(b):
    """Positions of row b with the tokens of each label in reverse."""
    order = np.arange(length)
    for j in range(widest):
        span = own[b, j].nonzero()[0]
        order[span] = span[::-1]
    return order


def moved_labels(b):
    """Positions of row b with its labels, each with its [LAB], in another order."""
    order = np.arange(length)
    blocks = [np.append(own[b, j].nonzero()[0], closing[b, j]) for j in range(widest) if real[b, j]]
    shuffled = rng.permutation(len(blocks))
    order[np.concatenate(blocks)] = np.concatenate([blocks[s] for s in shuffled])
    return order


def reorder(order):
    return {name: tensor.gather(1, order) for name, tensor in batch.items()}


positionless = copy.deepcopy(gliznet)
with torch.no_grad():
    positionless.backbone.embeddings.position_embeddings.weight.zero_()
ORDERS = {
    "tokens moved": torch.tensor(np.stack([moved_tokens(b) for b in range(texts)])),
    "labels moved": torch.tensor(np.stack([moved_labels(b) for b in range(texts)])),
}
long = torch.tensor(own.sum(axis=-1) > 1)
changes, scores = {}, {}
with torch.no_grad():
    for title, model in (("encoder", gliznet), ("without positions", positionless)):
        plain = model(**batch)
        scores[title] = plain.logits
        for name, order in ORDERS.items():
            other = model(**reorder(order))
            scores[f"{title}, {name}"] = other.logits
            change = (other.label_embeddings - plain.label_embeddings).norm(dim=-1)
            change = change / plain.label_embeddings.norm(dim=-1).clamp(min=1e-300)
            counted = long if name == "tokens moved" else torch.tensor(real)
            changes[f"{title}, {name}"] = change[counted].numpy()
    inner = layers.pool_labels(
        h.gather(1, ORDERS["tokens moved"][..., None].expand_as(h)), membership
    )
    changes["pooling alone, tokens moved"] = (
        ((inner - pooled).norm(dim=-1) / pooled.norm(dim=-1).clamp(min=1e-300))[long]
    ).numpy()

for name in ORDERS:
    found = changes[f"without positions, {name}"]
    checks.equal("label-embeddings-equivariance", "search", found.max(), 0.0, 1e-10, case=name)
    checks.rejects(
        "label-embeddings-equivariance",
        f"with positions, {name}",
        changes[f"encoder, {name}"].mean(),
        0.0,
        1e-10,
    )
    report.metric(f"change/{name}", float(changes[f"encoder, {name}"].mean()), n=len(found))

# Mode 2 without positions: every [LAB] of a row has the same state.
lab_states = hidden_states(positionless, batch)
spread = max(
    float((rows - rows[0]).norm(dim=-1).max() / rows[0].norm())
    for rows in (lab_states[b, closing[b][real[b]]] for b in range(texts))
)
checks.equal("label-embeddings-equivariance", "search", spread, 0.0, 1e-10, case="mode 2 collapses")

# The gradient at the embedding layer moves with the tokens, too.
direction = torch.tensor(rng.normal(size=pooled.shape[-1]))


def input_gradient(model, inputs):
    kept = []
    handle = model.backbone.embeddings.register_forward_hook(
        lambda module, args, result: (result.retain_grad(), kept.append(result))[0]
    )
    (model(**inputs).label_embeddings @ direction).sum().backward()
    handle.remove()
    return kept[0].grad


first = {name: tensor[:1] for name, tensor in batch.items()}
order = ORDERS["labels moved"][:1]
first_moved = {name: tensor.gather(1, order) for name, tensor in first.items()}
slope = input_gradient(positionless, first)[0, order[0]]
checks.equal(
    "label-embeddings-equivariance",
    "autograd",
    input_gradient(positionless, first_moved)[0] / slope.norm(),
    slope / slope.norm(),
    1e-10,
)

flips = float(
    (scores["encoder"].argmax(1) != scores["encoder, labels moved"].argmax(1)).double().mean()
)
report.metric("top_label_changes", flips, n=texts, unit="share of texts, labels moved")
finite = scores["encoder"].isfinite()
shift = (scores["encoder, labels moved"] - scores["encoder"])[finite].abs()
report.metric("score_change/labels moved", float(shift.mean()), n=int(finite.sum()))
paste("label_embeddings_token_order", f"{changes['encoder, tokens moved'].mean():.2f}")
paste("label_embeddings_label_order", f"{changes['encoder, labels moved'].mean():.2f}")
paste("label_embeddings_score_shift", f"{float(shift.mean()):.2f}")
paste("label_embeddings_score_range", f"{float(scores['encoder'][finite].std()):.2f}")
paste("label_embeddings_flips", f"{round(flips * texts)} of {texts}")

# %% mystnb={"figure": {"caption": "Relative change of a label's embedding when tokens or labels move; one dot per label, zero drawn at the left edge. Invariance would put every dot at round-off, on the left. The pooling alone and the encoder without positions are there; the encoder is not.", "name": "fig-label-embeddings-order"}, "image": {"alt": "Strip plot on a logarithmic axis. Pooling alone and the encoder without positions lie at round-off level; the full encoder lies many orders of magnitude higher, for moved tokens and for moved labels."}} tags=["hide-input"]
figure, axis = plt.subplots(figsize=(6.5, 2.9))
ROWS = {
    "pooling alone, tokens moved": "published",
    "without positions, tokens moved": "card",
    "without positions, labels moved": "card",
    "encoder, tokens moved": "math",
    "encoder, labels moved": "math",
}
for height, (name, colour) in enumerate(reversed(ROWS.items())):
    found = np.maximum(changes[name], 1e-17)
    jitter = np.random.default_rng(0).uniform(-0.25, 0.25, len(found))
    axis.plot(found, height + jitter, ".", color=COLOURS[colour], markersize=4, alpha=0.7)
axis.set_yticks(range(len(ROWS)), [name.replace(", ", ",\n") for name in reversed(ROWS)])
axis.set(xscale="log", xlim=(5e-18, 10), xlabel="relative change of the label embedding")
show(figure)

# %% [markdown]
# With positions the mean relative change is {glue:text}`label_embeddings_token_order:s` for moved tokens and {glue:text}`label_embeddings_label_order:s` for moved labels.
# Moving the labels shifts a score by {glue:text}`label_embeddings_score_shift:s` on average, where the scores of these texts have a standard deviation of {glue:text}`label_embeddings_score_range:s`.
# The best label changes in {glue:text}`label_embeddings_flips:s` texts.
# The model is untrained, so these numbers describe its encoder.
# Training may shrink them, but nothing in the formula removes them.
#
# ## Where `[LAB]` starts
#
# `[LAB]` is new: no pretrained encoder has it in its vocabulary.
# The encoder looks up one row $E_v$ of its embedding matrix for each token $v$, so the new token needs a row before the first pass.
# No source says which one.
# The row matters in both modes, because the tokens of the labels and of the text read `[LAB]` too.
# It is an input only: GliZNet has no output layer over the vocabulary to which it could be tied.
#
# The package offers two rows, chosen by `lab_init` of `from_backbone`.
# Let $V$ be the number of rows before that of `[LAB]`, the control tokens among them; spare rows behind it do not count.
#
# ```{math}
# :label: eq-label-embeddings-lab-init
# E_{\text{LAB}} = E_{\text{SEP}} \quad (\texttt{separator, the default}), \qquad E_{\text{LAB}} = \bar E = \frac{1}{V} \sum_{v=1}^{V} E_v \quad (\texttt{mean}) .
# ```
#
# A third row serves for comparison: normal numbers with the standard deviation from which the encoder's own rows once started.
# Such a row is what `transformers` appends here before the package overwrites it.
#
# **`separator`: the encoder reads a `[SEP]`.**
# Let $x'$ be the sequence $x$ with every `[LAB]` replaced by `[SEP]`, and $\mathcal{F}$ the encoder.
#
# ```{math}
# :label: eq-label-embeddings-lab-as-sep
# E_{\text{LAB}} = E_{\text{SEP}} \quad \Longrightarrow \quad \mathcal{F}(x) = \mathcal{F}(x') .
# ```
#
# **Proof.** A token enters the encoder only through its row and its position, and both are the same in $x$ and $x'$. ∎
#
# So the untrained model reads pieces with `[SEP]` between them, a format that it knows.
#
# **`mean`: the row is short.**
# Any $V$ vectors and their mean satisfy
#
# ```{math}
# :label: eq-label-embeddings-mean-length
# \lVert \bar E \rVert^2 = \frac{1}{V^2} \sum_{u=1}^{V} \sum_{v=1}^{V} \lVert E_u \rVert \lVert E_v \rVert \cos(E_u, E_v) = \frac{1}{V} \sum_{v=1}^{V} \lVert E_v \rVert^2 - \frac{1}{V} \sum_{v=1}^{V} \lVert E_v - \bar E \rVert^2 ,
# ```
#
# ```{math}
# :label: eq-label-embeddings-mean-short
# \lVert \bar E \rVert \;\le\; \frac{1}{V} \sum_{v=1}^{V} \lVert E_v \rVert \;\le\; \Big( \frac{1}{V} \sum_{v=1}^{V} \lVert E_v \rVert^2 \Big)^{1/2} .
# ```
#
# **Proof.** Multiply out $\langle \sum_u E_u, \sum_v E_v \rangle$ for the first form.
# For the second, expand $\lVert E_v - \bar E \rVert^2$ and insert $\sum_v E_v = V \bar E$.
# The inequalities are Jensen's, for the norm and for the square, which are both convex.
# The first is an equality only where all vectors that are not zero point in one direction. ∎
#
# The cosines decide: the more they cancel, the shorter the mean.
# For independent centred rows only the terms $u = v$ are left on average, and the mean has $1 / \sqrt{V}$ of the typical length.
# The mean over a label's tokens in mode 1 obeys the same identity.
#
# **What the length does.**
# BERT adds to the row the vectors $P_i$ of the position and $S$ of the segment, and normalises the sum.
# For two `[LAB]` at positions $i$ and $i'$,
#
# ```{math}
# :label: eq-label-embeddings-lab-input
# x_i = \operatorname{LayerNorm}(a_i), \qquad a_i = E_{\text{LAB}} + P_i + S, \qquad a_i - a_{i'} = P_i - P_{i'} .
# ```
#
# **Proof.** $E_{\text{LAB}}$ and $S$ are the same at both positions and cancel. ∎
#
# The difference of the sums does not depend on the row.
# But the normalisation divides each sum by its size, so next to a long row the difference is small.
# We expect from this: the shorter the row, the more the `[LAB]` of one text differ.
# An encoder with relative positions only, such as DeBERTa-v3 {cite:p}`he2021debertav3`, has no $P_i$: all `[LAB]` get one input, whose length the normalisation removes.
#
# The library hypothesis searches the inequalities for counter-examples: it steers towards a violation and shrinks what it finds.
# It draws two to six vectors of the plane and calls the package's mean; nothing is excluded.

# %% tags=["hide-input"]
path = resolve(backbone, report.out)
by_mean = GliZNetForSequenceClassification.from_backbone(path, tokenizer, "card", lab_init="mean")
lab, sep = tokenizer.lab_token_id, tokenizer.sep_token_id
vocabulary = card.get_input_embeddings().weight.detach()[:lab]
STARTS = {
    "separator": card.get_input_embeddings().weight.detach()[lab],
    "mean": by_mean.get_input_embeddings().weight.detach()[lab].double(),
}
row_by_loop = np.zeros(vocabulary.shape[1])
for row in vocabulary.numpy():
    row_by_loop += row / len(vocabulary)
checks.equal("label-embeddings-lab-init", "exact", STARTS["separator"], vocabulary[sep])
# The package averages in float32.
checks.equal("label-embeddings-lab-init", "naive", STARTS["mean"], row_by_loop, 1e-7)
for mutant, row in (("the other choice", STARTS["separator"]), ("sum", vocabulary.sum(dim=0))):
    checks.rejects("label-embeddings-lab-init", mutant, STARTS["mean"], row, 1e-7)


def starting_from(row):
    """The card's model with another row for [LAB]."""
    model = copy.deepcopy(card)
    with torch.no_grad():
        model.get_input_embeddings().weight[lab] = row
    return model


as_separator = batch | {"input_ids": batch["input_ids"].masked_fill(is_lab, sep)}
lab_at_mean = starting_from(STARTS["mean"])
known_format = hidden_states(card, as_separator)
states_at_mean = hidden_states(lab_at_mean, batch)
attended = batch["attention_mask"].bool()
checks.equal(
    "label-embeddings-lab-as-sep", "exact", card_states[attended], known_format[attended], 1e-12
)
checks.rejects(
    "label-embeddings-lab-as-sep",
    "mean",
    states_at_mean[attended],
    known_format[attended],
    1e-12,
)

vectors = sympy.Matrix(3, 2, sympy.symbols("e1:7"))
centre = sympy.ones(1, 3) * vectors / 3
inner = sum(vectors.row(u).dot(vectors.row(v)) for u in range(3) for v in range(3)) / 9
apart = sum((vectors.row(v) - centre).dot(vectors.row(v) - centre) for v in range(3)) / 3
squares = sum(e**2 for e in vectors) / 3
for case, form in (("cosines", inner), ("distances", squares - apart)):
    checks.zero("label-embeddings-mean-length", sympy.expand(centre.dot(centre) - form), case=case)


def package_mean(rows):
    """The package's mean of a list of vectors, and their lengths."""
    rows = torch.as_tensor(rows, dtype=torch.float64)
    everything = torch.ones(1, 1, len(rows), dtype=torch.bool)
    return layers.pool_labels(rows[None], everything)[0, 0], rows.norm(dim=-1)


found_mean, lengths = package_mean(vocabulary)
typical = float(lengths.square().mean().sqrt())
apart = float((vocabulary - found_mean).square().sum(dim=-1).mean())
checks.equal(
    "label-embeddings-mean-length",
    "naive",
    found_mean.square().sum(),
    typical**2 - apart,
    1e-12,
    case="distances, vocabulary",
)
checks.rejects(
    "label-embeddings-mean-length",
    "the typical length",
    found_mean.square().sum(),
    typical**2,
    1e-12,
)
some = vocabulary[:: max(1, len(vocabulary) // 40)].numpy()
double_sum = 0.0
for u in some:
    for v in some:
        double_sum += float(sum(p * q for p, q in zip(u, v, strict=True))) / len(some) ** 2
checks.equal(
    "label-embeddings-mean-length",
    "naive",
    package_mean(some)[0].square().sum(),
    double_sum,
    1e-12,
    case="cosines, some rows",
)


def shortfall(vectors):
    """The smaller slack of the two inequalities."""
    mean, lengths = package_mean(vectors)
    return min(lengths.mean() - mean.norm(), lengths.square().mean().sqrt() - lengths.mean())


SETS = st.lists(st.tuples(st.floats(-4, 4), st.floats(-4, 4)), min_size=2, max_size=6)
# Round-off of short sums of numbers up to four.
checks.survives("label-embeddings-mean-short", shortfall, 1e-12, examples=250, vectors=SETS)


def above_the_shortest(vectors):
    mean, lengths = package_mean(vectors)
    return mean.norm() - lengths.min()


counter = checks.refuted(
    "label-embeddings-mean-short",
    "no shorter than the shortest",
    above_the_shortest,
    1e-12,
    vectors=SETS,
)["vectors"]
print(f"vectors {counter}: their mean is shorter than each of them")

parts = card.backbone.embeddings
norm = parts.LayerNorm
place, segment = (
    x.weight.detach() for x in (parts.position_embeddings, parts.token_type_embeddings)
)
at = torch.tensor(closing[0][real[0]])
lab_inputs = {}
for name, row in STARTS.items():
    kept = []
    model = card if name == "separator" else lab_at_mean
    handle = model.backbone.embeddings.LayerNorm.register_forward_hook(
        lambda module, given, result, kept=kept: kept.append((given[0], result))
    )
    hidden_states(model, {k: x[:1] for k, x in batch.items()})
    handle.remove()
    total, lab_inputs[name] = (x[0, at].detach() for x in kept[0])
    by_hand = []
    for p in at.tolist():
        a_p = row + place[p] + segment[0]
        centred = a_p - a_p.mean()
        size = (centred.square().mean() + norm.eps).sqrt()
        by_hand.append((norm.weight * centred / size + norm.bias).detach())
    equation = "label-embeddings-lab-input"
    checks.equal(equation, "naive", lab_inputs[name], torch.stack(by_hand), 1e-10, case=name)
    differences = total - total[0]
    checks.equal(
        equation, "naive", differences, place[at] - place[at[0]], 1e-12, f"{name}, differences"
    )
after_norm = [x - x[0] for x in lab_inputs.values()]
checks.rejects("label-embeddings-lab-input", "row cancels after the norm", *after_norm, 1e-10)

# %% [markdown]
# What do the rows change before any training?
# The table takes each start into the encoder and compares the `[LAB]` of one text with each other and with the text's `[SEP]`.
# A cosine of one between `[LAB]` would mean that mode 2 gives all labels of a text one direction.
# The last column is the relative change of a label's mean in mode 1 against `separator`.

# %% tags=["hide-input"]
DRAWS = 3
spread_of_rows = card.config.backbone_config.initializer_range
generator = torch.Generator().manual_seed(seed)
noise = torch.randn(DRAWS, vocabulary.shape[1], generator=generator).double()
for number, row in enumerate(noise):
    STARTS[f"random {number + 1}"] = spread_of_rows * row


def mean_cosine(states, others=None):
    """Mean cosine of all pairs of two sets, or of the pairs of one set."""
    unit = states / states.norm(dim=-1, keepdim=True)
    if others is None:
        table = unit @ unit.T
        return float((table.sum() - len(unit)) / (len(unit) * (len(unit) - 1)))
    return float((unit @ (others / others.norm(dim=-1, keepdim=True)).T).mean())


several_labels = [b for b in range(texts) if real[b].sum() > 1]
starts = {}
for name, row in STARTS.items():
    model = {"separator": card, "mean": lab_at_mean}.get(name) or starting_from(row)
    with torch.no_grad():
        read = model.backbone.embeddings(batch["input_ids"])
    seen = {"separator": card_states, "mean": states_at_mean}.get(name)
    seen = hidden_states(model.float(), batch).double() if seen is None else seen
    moved = (layers.pool_labels(seen, membership) - pooled)[torch.tensor(real)].norm(dim=-1)
    at_lab, at_sep = is_lab, batch["input_ids"] == sep
    starts[name] = {
        "length of the row": float(row.norm()) / typical,
        "[LAB] inputs": np.mean([mean_cosine(read[b][at_lab[b]]) for b in several_labels]),
        "[LAB] states": np.mean([mean_cosine(seen[b][at_lab[b]]) for b in several_labels]),
        "[LAB] and [SEP] states": np.mean(
            [mean_cosine(seen[b][at_lab[b]], seen[b][at_sep[b]]) for b in range(texts)]
        ),
        "change of mode 1": float((moved / pooled[torch.tensor(real)].norm(dim=-1)).mean()),
    }
starts = pd.DataFrame(starts).T
for column in ("[LAB] inputs", "[LAB] states"):
    checks.at_least(
        "label-embeddings-lab-input",
        "search",
        starts.loc["separator", column],
        starts.loc["mean", column],
        case=f"the short row separates, {column}",
    )
for name in ("separator", "mean"):
    for column in starts.columns[:-1]:
        report.metric(f"lab_start/{name}/{column}", starts.loc[name, column], n=texts)
report.metric("lab_start/mean/change of mode 1", starts.loc["mean", "change of mode 1"], n=texts)
shown = starts.map("{:.2f}".format).rename_axis("row of `[LAB]`")
shown.columns = [
    "length over typical length",
    "cosine between `[LAB]` inputs",
    "cosine between `[LAB]` states",
    "cosine of `[LAB]` and `[SEP]` states",
    "change of mode 1",
]
paste_table(
    "label-embeddings-start",
    shown,
    f"Starts of `[LAB]` in the untrained encoder {backbone}, means over {texts} texts; the typical "
    "length is the root mean square over the vocabulary. Higher cosines in the row `mean` than in "
    "the row `separator` would refute the prediction.",
)
paste("label_embeddings_start_length", f"{starts.loc['mean', 'length of the row']:.2f}")
paste("label_embeddings_start_independent", f"{len(vocabulary) ** -0.5:.3f}")
for name in ("separator", "mean"):
    paste(f"label_embeddings_start_{name}", f"{starts.loc[name, '[LAB] states']:.2f}")
    paste(f"label_embeddings_start_{name}_sep", f"{starts.loc[name, '[LAB] and [SEP] states']:.2f}")
paste("label_embeddings_start_mode1", f"{starts.loc['mean', 'change of mode 1']:.2f}")

# %% [markdown]
# ```{glue:md} label-embeddings-start
# :format: myst
# ```
#
# The mean of the vocabulary has {glue:text}`label_embeddings_start_length:s` of the typical length; independent centred rows would give {glue:text}`label_embeddings_start_independent:s`.
# The prediction holds: the mean cosine between the `[LAB]` states of a text is {glue:text}`label_embeddings_start_separator:s` with `separator` and {glue:text}`label_embeddings_start_mean:s` with `mean`.
# With `separator` they have a cosine of {glue:text}`label_embeddings_start_separator_sep:s` to the state of `[SEP]`, with `mean` of {glue:text}`label_embeddings_start_mean_sep:s`.
# Mode 1 is not spared: its label embeddings differ by a relative {glue:text}`label_embeddings_start_mode1:s` between the two.
#
# More different is not better: at the input only the positions differ, not the labels.
# Which start trains better is not measured here.
#
# ## Projection and mean change places
#
# The package projects all positions and then averages.
# Without layer norm and dropout the label projection is affine, with a weight $W$ and a bias $b_0$, and a mean passes through it:
#
# ```{math}
# :label: eq-label-embeddings-commute
# \frac{1}{|\mathcal{T}_{b,j}|} \sum_{i \in \mathcal{T}_{b,j}} \left( W h_{b,i} + b_0 \right) = W \Big( \frac{1}{|\mathcal{T}_{b,j}|} \sum_{i \in \mathcal{T}_{b,j}} h_{b,i} \Big) + b_0 .
# ```
#
# **Proof.** The weights $1 / |\mathcal{T}_{b,j}|$ add up to one, so the bias comes out once. ∎
#
# So $K_b$ projections can do the work of $L$ in mode 1 as well; mode 2 has no advantage there.
# With layer norm the two orders differ, because its scale depends on each state.

# %% tags=["hide-input"]
w, bias = sympy.Symbol("w"), sympy.Symbol("b_0")
hs = sympy.IndexedBase("h")
total = sympy.Sum(w * hs[i] + bias, (i, 1, n)).doit()
commuted = w * sympy.Sum(hs[i], (i, 1, n)) / n + bias
checks.zero("label-embeddings-commute", sympy.expand((total / n).expand() - commuted).doit())

linear, normed = (
    layers.projection(
        type(gliznet.config).math(
            gliznet.config.backbone_config, projection=kind, projection_init="default"
        )
    ).double()
    for kind in ("linear", "linear_layernorm")
)
weight, offset = (p.detach().numpy() for p in (linear[0].weight, linear[0].bias))


def outside_in(part, states):
    return layers.pool_labels(part(states), membership)


def inside_out(part, states):
    return part(layers.pool_labels(states, membership))


there = torch.tensor(real)
checks.equal(
    "label-embeddings-commute",
    "autograd",
    outside_in(linear, h)[there],
    inside_out(linear, h)[there],
    1e-11,
    case="value",
)
slopes = []
for path in (outside_in, inside_out):
    states = h.clone().requires_grad_()
    (path(linear, states)[there] @ direction).sum().backward()
    slopes.append(states.grad)
checks.equal("label-embeddings-commute", "autograd", *slopes, 1e-12, case="gradient")
naive = np.zeros((int(real.sum()), len(offset)))
for row, (b, j) in enumerate(np.argwhere(real)):
    span = own[b, j].nonzero()[0]
    for position in span:
        naive[row] += (weight @ h[b, position].numpy() + offset) / len(span)
checks.equal("label-embeddings-commute", "naive", inside_out(linear, h)[there], naive, 1e-11)
several = there & long
checks.rejects(
    "label-embeddings-commute",
    "with layer norm",
    outside_in(normed, h)[several],
    inside_out(normed, h)[several],
    1e-11,
)

# %% [markdown]
# ## Appendix B.2: what the printed code computes
#
# Appendix B.2 adds every token to a row that is chosen by its label number alone.
# So the first label of the first text and the first label of the second text share a row:
#
# ```{math}
# :label: eq-label-embeddings-collision
# \hat e_{k} = \frac{\sum_{b} \sum_{i \in \mathcal{T}_{b,k}} z_{b,i}^{\text{label}}}{\sum_{b} |\mathcal{T}_{b,k}|} = \sum_{b} \omega_{b,k}\, e_{b,k}^{\text{label}}, \qquad \omega_{b,k} = \frac{|\mathcal{T}_{b,k}|}{\sum_{b'} |\mathcal{T}_{b',k}|} .
# ```
#
# The sums run over the texts that have a $k$-th label.
#
# **Proof.** By {eq}`eq-label-embeddings-mean` the inner sum is $|\mathcal{T}_{b,k}|\, e_{b,k}^{\text{label}}$; divide. ∎
#
# The result is a mean over unrelated labels, weighted by their numbers of tokens.
# It is right for one text, and for several texts only where their $k$-th labels happen to have one embedding.
# The score of a text then depends on which texts share its batch, and a gradient flows from the loss of one text into the labels of another.
#
# One text alone shows a second difference.
# The printed function averages `hidden_states`, where {eq}`eq-label-embeddings-mean` averages the projected $z_{b,i}^{\text{label}}$.
# By {eq}`eq-label-embeddings-commute` a linear projection may follow the mean instead; one with layer norm may not.

# %% tags=["hide-input"]
for counts in ((1, 1), (2, 1), (2, 3)):
    sums = [sum(sympy.Symbol(f"t{b}_{r}") for r in range(size)) for b, size in enumerate(counts)]
    printed = sum(sums) / sum(counts)
    weighted = sum(
        sympy.Rational(size, sum(counts)) * (s / size) for size, s in zip(counts, sums, strict=True)
    )
    checks.zero("label-embeddings-collision", printed - weighted, case=f"{counts} tokens")


def scatter_means(tokens, mask, before):
    """Mean per row; the row of a token is its label number plus what comes `before` its text."""
    inside = mask > 0
    rows = (mask - 1 + before[:, None])[inside]
    size = int(rows.max()) + 1
    total = torch.zeros(size, tokens.shape[-1], dtype=tokens.dtype)
    count = torch.zeros(size, dtype=tokens.dtype)
    total = total.index_add(0, rows, tokens[inside])
    return total / count.index_add(0, rows, torch.ones(len(rows), dtype=tokens.dtype))[:, None]


def collapsed(tokens, mask):
    """Appendix B.2: nothing comes before, so that only the label number counts."""
    return scatter_means(tokens, mask, torch.zeros(len(mask), dtype=torch.long))


def collapsed_by_loop(tokens, mask, labels):
    result = np.zeros((labels, tokens.shape[-1]))
    for label in range(1, labels + 1):
        pieces = [
            (mean_by_loop(tokens[b : b + 1], mask[b : b + 1], labels)[0, label - 1], count)
            for b in range(len(tokens))
            if (count := int((mask[b] == label).sum()))
        ]
        for embedding, count in pieces:
            result[label - 1] += embedding * count / sum(size for _, size in pieces)
    return result


gaps_b2 = {"naive": 0.0, "leak": 0.0, "single": 0.0, "printed": 0.0}
for _ in range(cases):
    mask = random_mask(3, 6, 3)
    tokens = torch.tensor(rng.normal(size=(3, 6, D)))
    labels = int(mask.max())
    inside_mask = layers.label_membership(mask, labels)
    mine = layers.pool_labels(tokens, inside_mask)
    shared = collapsed(tokens, mask)
    gaps_b2["naive"] = max(
        gaps_b2["naive"],
        np.abs(collapsed_by_loop(tokens.numpy(), mask, labels) - shared.numpy()).max(),
    )
    slope = jacobian(lambda t, s=mask: collapsed(t, s), tokens)
    share = 1 / inside_mask.sum(dim=(0, 2)).clamp(min=1).double()
    everywhere = torch.einsum("k,bki,pq->kpbiq", share, inside_mask.double(), torch.eye(D).double())
    gaps_b2["leak"] = max(gaps_b2["leak"], float((slope - everywhere).abs().max()))
    one = collapsed(tokens[:1], mask[:1]).numpy()
    single = mean_by_loop(tokens[:1].numpy(), mask[:1], len(one))[0]
    gaps_b2["single"] = max(gaps_b2["single"], np.abs(one - single).max())
    wrong = (shared - mine)[inside_mask.any(dim=-1)]
    gaps_b2["printed"] = max(gaps_b2["printed"], float(wrong.abs().max()))
checks.equal("label-embeddings-collision", "naive", gaps_b2["naive"], 0.0, 1e-13)
checks.equal(
    "label-embeddings-collision", "autograd", gaps_b2["leak"], 0.0, 1e-13, case="every text pulls"
)
checks.equal("label-embeddings-collision", "naive", gaps_b2["single"], 0.0, 1e-13, case="one text")
checks.rejects("label-embeddings-mean", "Appendix B.2", gaps_b2["printed"], 0.0, 1e-12)

# One text after the other: the hidden states averaged as printed, and projected afterwards.
misses = {}
for kind, part in (("linear", linear), ("layer norm", normed)):
    literal, later, right = [], [], []
    for b in range(texts):
        row = batch["lmask"][b : b + 1]
        with torch.no_grad():
            literal.append(collapsed(h[b : b + 1], row))
            later.append(part(literal[-1]))
            z = part(h[b : b + 1]).numpy()
        right.append(torch.tensor(mean_by_loop(z, row, len(literal[-1]))[0]))
    literal, later, right = (torch.cat(some) for some in (literal, later, right))
    misses[kind] = float((literal - right).norm() / right.norm())
    misses[f"{kind}, afterwards"] = float((later - right).norm() / right.norm())
    report.metric(f"b2_one_text/{kind}", misses[kind], n=len(right), unit="relative error")
afterwards = misses["linear, afterwards"]
checks.equal("label-embeddings-commute", "naive", afterwards, 0.0, 1e-11, case="Appendix B.2")
for kind in ("linear", "layer norm", "layer norm, afterwards"):
    checks.rejects("label-embeddings-mean", f"B.2 on one text, {kind}", misses[kind], 0.0, 1e-11)
report.metric("effect/math-b.2-single", misses["linear"], unit="relative error, linear projection")
paste("label_embeddings_literal", f"{misses['linear']:.2f}")
paste("label_embeddings_afterwards", f"{misses['layer norm, afterwards']:.2f}")

# %% [markdown]
# On single texts the averaged hidden states miss the labels of a random linear projection by a relative {glue:text}`label_embeddings_literal:s`.
# If the projection follows, they are right; with layer norm {glue:text}`label_embeddings_afterwards:s` is left.
#
# The table shows the collision on two texts with two labels each.
# After the printed aggregation, both labels with number 1 hold the same vector.

# %% tags=["hide-input"]
pair_labels = [["team sport", "competition"], ["party politics", "competition"]]
pair = encode(
    [
        "The side from the valley won the cup after extra time.",
        "The vote was closer than expected.",
    ],
    pair_labels,
)
states = hidden_states(gliznet, pair)
mine = layers.pool_labels(states, layers.label_membership(pair["lmask"], 2))
shared = collapsed(states, pair["lmask"])
rows = {}
for b, labels in enumerate(pair_labels):
    for j, label in enumerate(labels):
        wrong = shared[j] - mine[b, j]
        rows[f"text {b + 1}, label {j + 1}: {label}"] = {
            "first component, right": f"{mine[b, j, 0]:.3f}",
            "first component, printed": f"{shared[j, 0]:.3f}",
            "relative error": f"{float(wrong.norm() / mine[b, j].norm()):.2f}",
        }
table = pd.DataFrame(rows).T
table.index.name = "label"
paste_table(
    "label-embeddings-pair", table, "Two texts, right embeddings and those of Appendix B.2."
)

# %% [markdown]
# ```{glue:md} label-embeddings-pair
# :format: myst
# ```
#
# How large is the error?
# Take labels of one token whose embeddings are independent, centred and of equal variance.
#
# ```{math}
# :label: eq-label-embeddings-collision-size
# \frac{\mathbb{E} \lVert \hat e_k - e_{b,k}^{\text{label}} \rVert^2}{\mathbb{E} \lVert e_{b,k}^{\text{label}} \rVert^2} = 1 - \frac{1}{B} .
# ```
#
# **Proof.** $\hat e_k - e_{b,k} = -(1 - \tfrac1B)\, e_{b,k} + \tfrac1B \sum_{b' \ne b} e_{b',k}$, with independent centred terms.
# The squared coefficients add up to $(1 - \tfrac1B)^2 + (B - 1) / B^2 = 1 - \tfrac1B$. ∎
#
# With two texts the squared error is half of the squared length, and with many almost all of it.
# Labels of a real encoder are not like that, so their dots may lie off the curve.

# %% tags=["hide-input"]
size = sympy.Symbol("B", positive=True)
checks.zero(
    "label-embeddings-collision-size",
    (1 - 1 / size) ** 2 + (size - 1) / size**2 - (1 - 1 / size),
)
signs_gap = 0.0
for number in (1, 2, 3, 4):
    # Every combination of B signs: a centred variable of variance one, averaged exactly.
    signs = np.array(np.meshgrid(*[[-1.0, 1.0]] * number)).reshape(number, -1)
    measured = ((signs.mean(axis=0) - signs[0]) ** 2).mean()
    signs_gap = max(signs_gap, abs(measured - (1 - 1 / number)))
    mask = torch.ones(number, 1, dtype=torch.long)
    slope = jacobian(
        lambda t, s=mask: collapsed(t, s)[0] - t[0, 0],
        torch.zeros(number, 1, 2, dtype=torch.float64),
    )
    checks.equal(
        "label-embeddings-collision-size",
        "autograd",
        slope.square().sum() / 2,
        1 - 1 / number,
        1e-14,
        case=f"B = {number}",
    )
checks.equal("label-embeddings-collision-size", "naive", signs_gap, 0.0, 1e-14)

SIZES = [s for s in (1, 2, 4, 8, 16, 32) if s <= texts]
errors = {"independent labels": [], "labels of the encoder": []}


def relative_error(tokens, mask):
    labels = int(mask.max())
    inside_mask = layers.label_membership(mask, labels)
    mine = layers.pool_labels(tokens, inside_mask)
    wrong = (collapsed(tokens, mask) - mine)[inside_mask.any(dim=-1)]
    return float(wrong.norm() / mine.norm())


for number in SIZES:
    mask = torch.arange(1, 9).repeat(number, 1)
    tokens = torch.tensor(rng.normal(size=(number, 8, 400)))
    errors["independent labels"].append(relative_error(tokens, mask))
    errors["labels of the encoder"].append(relative_error(h[:number], batch["lmask"][:number]))
report.metric(
    "effect/math-b.2-collision",
    errors["labels of the encoder"][-1],
    n=SIZES[-1],
    unit="relative error",
)
paste("label_embeddings_collision", f"{errors['labels of the encoder'][-1]:.2f}")
paste("label_embeddings_collision_texts", str(SIZES[-1]))

# %% mystnb={"figure": {"caption": "Error of Appendix B.2 against the number of texts in the batch: length of the error over length of the embedding, root mean square. The line is the prediction for independent labels; a circle off the line would refute it.", "name": "fig-label-embeddings-collision"}, "image": {"alt": "Line and dots that rise from zero at one text towards one; circles of random labels lie on the line, and the encoder's labels are far above zero from two texts on."}} tags=["hide-input"]
figure, axis = plt.subplots(figsize=(6, 2.8))
grid = np.linspace(1, SIZES[-1], 200)
axis.plot(grid, np.sqrt(1 - 1 / grid), color=COLOURS["untrained"], label="prediction")
axis.plot(
    SIZES,
    errors["independent labels"],
    "o",
    color=COLOURS["math"],
    fillstyle="none",
    markersize=11,
    label="random labels",
)
axis.plot(
    SIZES, errors["labels of the encoder"], "D", color=COLOURS["card"], label="encoder's labels"
)
axis.set(xlabel="texts in the batch", ylabel="relative error", ylim=(-0.03, 1.05))
axis.legend(frameon=False, fontsize=8)
show(figure)

# %% [markdown]
# On {glue:text}`label_embeddings_collision_texts:s` texts of the shipped corpus the relative error is {glue:text}`label_embeddings_collision:s`.
#
# ## The segment form that is right
#
# The repair is one row $r(b, j)$ per pair of text and label, numbered through the batch:
#
# ```{math}
# :label: eq-label-embeddings-segment
# r(b, j) = j + \sum_{b' < b} K_{b'}, \qquad e_{b,j}^{\text{label}} = \frac{\sum_{(b',i)\,:\, m_{b',i} > 0,\ r(b', m_{b',i}) = r(b,j)} z_{b',i}^{\text{label}}}{\left|\{(b',i) : m_{b',i} > 0,\ r(b', m_{b',i}) = r(b,j)\}\right|} .
# ```
#
# **Proof.** $r$ is one to one between the pairs and $1, \dots, \sum_b K_b$, because text $b$ gets the $K_b$ numbers after those of the texts before it.
# So $r(b', m_{b',i}) = r(b, j)$ means $b' = b$ and $i \in \mathcal{T}_{b,j}$, which is {eq}`eq-label-embeddings-mean`. ∎
#
# The package takes the dense form, a matrix product of the membership with the states.
# Both give the same embeddings and gradients.


# %% tags=["hide-input"]
def segment_means(tokens, mask):
    """Eq. segment: one row per pair of text and label, in the order of r."""
    sizes = mask.amax(dim=1)
    return scatter_means(tokens, mask, torch.cumsum(sizes, 0) - sizes)


# Two texts with one and two labels, symbols for tokens.
symbols = {(0, 0): 1, (0, 1): 1, (1, 0): 1, (1, 1): 2, (1, 2): 2}
starts = (0, 1)
for b, j in ((0, 1), (1, 1), (1, 2)):
    same = [p for p, q in symbols.items() if starts[p[0]] + q == starts[b] + j]
    mean = [p for p, q in symbols.items() if p[0] == b and q == j]
    left, right = (sum(sympy.Symbol(f"z{p}") for p in s) / len(s) for s in (same, mean))
    checks.zero("label-embeddings-segment", left - right, case=f"text {b + 1}, label {j}")

gaps = {"naive": 0.0, "value": 0.0, "gradient": 0.0}
for _ in range(cases):
    mask = random_mask(3, 7, 4)
    labels = int(mask.max())
    tokens = torch.tensor(rng.normal(size=(3, 7, D)))
    inside_mask = layers.label_membership(mask, labels)
    present = inside_mask.any(dim=-1)
    pairs = [
        (lambda t, s=inside_mask, there=present: layers.pool_labels(t, s)[there])(tokens),
        segment_means(tokens, mask),
        torch.tensor(mean_by_loop(tokens.numpy(), mask, labels))[present],
    ]
    gaps["value"] = max(gaps["value"], float((pairs[0] - pairs[1]).abs().max()))
    gaps["naive"] = max(gaps["naive"], float((pairs[2] - pairs[1]).abs().max()))
    dense = jacobian(lambda t, s=inside_mask, p=present: layers.pool_labels(t, s)[p], tokens)
    sparse = jacobian(lambda t, s=mask: segment_means(t, s), tokens)
    gaps["gradient"] = max(gaps["gradient"], float((dense - sparse).abs().max()))
checks.equal("label-embeddings-segment", "autograd", gaps["value"], 0.0, 1e-14, case="value")
checks.equal("label-embeddings-segment", "autograd", gaps["gradient"], 0.0, 1e-14, case="gradient")
checks.equal("label-embeddings-segment", "naive", gaps["naive"], 0.0, 1e-14)
checks.equal(
    "label-embeddings-segment",
    "naive",
    segment_means(h, batch["lmask"]),
    by_loop[real],
    1e-12,
    case="encoder states",
)

# %% [markdown]
# ## Shapes that do not agree
#
# Appendix B.1 wants the label embeddings of the whole batch as a matrix of $N$ rows, one per pair of text and label.
# Appendix B.2 returns one row per label number:
#
# ```{math}
# :label: eq-label-embeddings-rows
# \underbrace{\max_b K_b}_{\text{rows of B.2}} \;\le\; \underbrace{\textstyle\sum_b K_b}_{N,\ \text{rows for B.1}}, \qquad \text{with equality only for } B = 1 .
# ```
#
# **Proof.** Every $K_b$ is at least one, so a sum of several of them exceeds the largest. ∎
#
# So the two pieces of code fit together for one text only.
# The segment form has the right number of rows.

# %% tags=["hide-input"]
rows_found = []
for number in (1, 2, 3, 5) * max(1, cases // 4):
    mask = random_mask(number, 8, 4)
    sizes = [len({int(q) for q in row} - {0}) for row in mask]
    tokens = torch.tensor(rng.normal(size=(number, 8, D)))
    printed_rows = len(collapsed(tokens, mask))
    right_rows = len(segment_means(tokens, mask))
    rows_found.append((number, printed_rows, right_rows, max(sizes), sum(sizes)))
rows_found = np.array(rows_found)
checks.equal("label-embeddings-rows", "exact", rows_found[:, 1:3], rows_found[:, 3:5], case="rows")
agree = rows_found[:, 1] == rows_found[:, 2]
checks.equal("label-embeddings-rows", "exact", agree, rows_found[:, 0] == 1, case="equality")
missing = 1 - int(batch["lmask"].max()) / int(real.sum())
report.metric("effect/math-b.2-shapes", missing, unit="share of rows missing", n=texts)

# %% [markdown]
# ## What it means in practice
#
# **Cost.** Math §5.1 calls mode 2 faster, one token per label.
# But the tokens of a label stay in the sequence, because `[LAB]` has to read them, so the encoder does the same work.
# All that mode 2 can save is the mean of each label, $S$ below, against the encoder's work $F$:
#
# ```{math}
# :label: eq-label-embeddings-saving
# S = d_p \sum_{b} \sum_{j=1}^{K_b} \left( |\mathcal{T}_{b,j}| - 1 \right) \text{ additions}, \qquad F = n_{\text{layers}}\, B \left( 4 L d_h^2 + 2 L^2 d_h + 2 L d_h d_{\text{ff}} \right) \text{ multiply-adds of the encoder.}
# ```
#
# Here $n_{\text{layers}}$ is the number of layers and $d_{\text{ff}}$ the inner width of the feed-forward part.
# A label of one token saves nothing.
# The package does not even save $S$: it runs the dense product of $B K L d_p$ multiply-adds in both modes.
# The check compares these formulas with counts of the operations that really run.

# %% tags=["hide-input"]
eager = GliZNetForSequenceClassification.from_backbone(
    resolve(backbone, report.out), tokenizer, "math", attn_implementation="eager"
)
with FlopCounterMode(display=False) as counter:
    hidden_states(eager, first)
shape = gliznet.config.backbone_config
d_h, d_ff, depth = shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers


def encoder_work(rows):
    return depth * rows * (4 * length * d_h**2 + 2 * length**2 * d_h + 2 * length * d_h * d_ff)


# The counter gives two operations per multiply-add.
checks.equal(
    "label-embeddings-saving", "exact", counter.get_total_flops(), 2 * encoder_work(1), case="F"
)


class Counted:
    """A number that counts the additions it takes part in."""

    additions = 0

    def __init__(self, value):
        self.value = value

    def __add__(self, other):
        Counted.additions += 1
        return Counted(self.value + other.value)


for b in range(texts):  # mode 1, component by component
    for j in range(1, int(batch["lmask"][b].max()) + 1):
        for column in h[b, batch["lmask"][b] == j].T.tolist():
            reduce(add, map(Counted, column))
saved = d_h * sum(n - 1 for names in label_sets for n in tokenizer.count_tokens(names))
checks.equal("label-embeddings-saving", "exact", Counted.additions, saved, case="S")
dense_work = texts * widest * length * d_h
both_modes = []
for mode in ("mean", "lab"):
    gliznet.config.label_embedding = mode
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        gliznet._label_embeddings(h, membership, batch["input_ids"], widest)
    both_modes.append(counter.get_total_flops() / 2)
gliznet.config.label_embedding = "mean"
in_package = dense_work + texts * length * d_h**2  # and the projection of every position
checks.equal(
    "label-embeddings-saving", "exact", both_modes, [in_package] * 2, case="the package, both modes"
)
cost = pd.DataFrame(
    {
        "operations": [encoder_work(texts), dense_work, saved + int(real.sum()) * d_h, saved],
        "share of the encoder": [
            f"{x / encoder_work(texts):.1e}"
            for x in (encoder_work(texts), dense_work, saved + int(real.sum()) * d_h, saved)
        ],
    },
    index=[
        "encoder",
        "pooling, dense form (package, both modes)",
        "pooling, segment form",
        "what mode 2 can save",
    ],
)
cost.index.name = "part"
report.metric(
    "effect/math-5.1-lab-cost", saved / encoder_work(texts), unit="share of the encoder saved"
)
paste_table("label-embeddings-cost", cost, "Operations on the batch of this page.")

# %% [markdown]
# ```{glue:md} label-embeddings-cost
# :format: myst
# ```
#
# **What `[LAB]` has read.** Math §5.1 says that it has seen the label's tokens through self-attention.
# In an encoder that reads both ways it has seen every token of the row: the text and all labels, before and after.
# The next cell takes the derivative of each `[LAB]` state by each input position; none is zero.
# So a label has no vector of its own that could be stored: it changes with the text and with the other candidates.

# %% tags=["hide-input"]
attended = batch["attention_mask"][0].bool()
embedded = gliznet.backbone.get_input_embeddings()(batch["input_ids"][:1]).detach()
embedded.requires_grad_()
final = gliznet.backbone(
    inputs_embeds=embedded, attention_mask=batch["attention_mask"][:1]
).last_hidden_state[0]
reach = torch.stack(
    [
        torch.autograd.grad(final[p] @ direction, embedded, retain_graph=True)[0][0].norm(dim=-1)
        for p in closing[0][real[0]]
    ]
)
checks.at_least(
    "label-embeddings-lab",
    "autograd",
    reach[:, attended].min(),
    1e-9,
    case="[LAB] reads every token",
)
after = torch.arange(length)[None] > torch.tensor(closing[0][real[0]])[:, None]
later = float(reach[:-1][(after & attended)[:-1]].sum() / reach[:-1][:, attended].sum())
report.metric("reach/later_positions", later, unit="share of gradient norm")
paste("label_embeddings_later", f"{later:.2f}")

# %% [markdown]
# On the first text of this page, positions after a `[LAB]` make up {glue:text}`label_embeddings_later:s` of its gradient norm.
#
# **Which mode to take.** The mean gives each token of a label the same weight and trains all of them directly.
# `[LAB]` leaves the weights to the encoder, but no pretrained encoder has met this token.
# Which one scores better must be measured; this chapter does not.
#
# ## Edge cases
#
# - **One token.** The mean of one state is that state.
# - **No token.** A column that only pads the batch has no position. The package returns zeros and the label mask hides them; the printed code divides zero by zero.
# - **Tokens apart.** The positions of a label need not be neighbours for the mean.
# - **A literal `[LAB]`** in a text or in a label is data. The tokenizer spells it out, so that the count of mode 2 stays right.

# %% tags=["hide-input"]
alone = layers.label_membership(torch.tensor([[0, 1, 0, 3, 3]]), 3)
tokens = torch.tensor(rng.normal(size=(1, 5, D)))
edge = layers.pool_labels(tokens, alone)[0]
checks.equal("label-embeddings-mean", "exact", edge[0], tokens[0, 1], case="one token")
checks.equal("label-embeddings-mean", "exact", edge[1], np.zeros(D), case="no token")
division = torch.zeros(D) / torch.zeros(1)
assert division.isnan().all()
tricky = tokenizer(["a [LAB] in the text [LAB]"], [["with [LAB] inside", "plain", "[LAB]"]])
number = int((tricky["input_ids"] == tokenizer.lab_token_id).sum())
checks.equal("label-embeddings-lab", "exact", number, 3, case="literal [LAB] is data")

# The labels of a row pool independently: no state of one label reaches another one's mean.
mask = random_mask(B, 8, K)
tokens = torch.tensor(rng.normal(size=(B, 8, D)))
inside_mask = layers.label_membership(mask, K)
slope = jacobian(lambda t: layers.pool_labels(t, inside_mask), tokens).abs().sum(dim=(2, 5))
foreign = slope[~torch.einsum("bki,bc->bkci", inside_mask, torch.eye(B, dtype=torch.bool))]
checks.equal("label-embeddings-gradient", "exact", foreign.max(), 0.0, case="other labels")

# %% tags=["hide-input"]
tokens_of = own.sum(axis=-1)[real]
report.metric(
    "effect/math-5.1-token-order",
    float(changes["encoder, tokens moved"].mean()),
    unit="relative change",
)
labels_read = int(real.sum())
OUTCOMES = {
    "math-5.1-positions": (
        "verified",
        f"The package's membership equals the positions built from token counts for all "
        f"{labels_read} labels of {texts} texts (exact).",
    ),
    "math-5.1-mean": (
        "verified",
        f"The package's pooling equals a loop and a grouped mean of pandas on {labels_read} labels "
        f"to 1e-12 (naive, library).",
    ),
    "math-5.1-permutation": (
        "verified",
        f"Pooling ignores the order of its states: proof, all orders of four symbols, "
        f"{cases} random permutations of value and gradient (symbolic, autograd, naive).",
    ),
    "math-5.1-token-order": (
        "corrected",
        f"With {backbone}, reversing the tokens inside labels changes their embeddings by "
        f"{changes['encoder, tokens moved'].mean():.2g} of their length on average; without "
        f"position embeddings by {changes['without positions, tokens moved'].max():.1e} at most.",
    ),
    "math-5.1-all-tokens": (
        "verified",
        f"Every token of a label has the weight one over their number (up to {tokens_of.max()} "
        f"tokens here); the weights of a label add up to one (symbolic, autograd, naive).",
    ),
    "math-5.1-gradient": (
        "verified",
        f"Constant gradient, equal on all tokens of the label and zero elsewhere: symbolic for any "
        f"number of tokens, autograd to {worst['autograd']:.1e}, central differences to "
        f"{worst['naive']:.1e}.",
    ),
    "math-5.1-lab": (
        "verified",
        f"The [LAB] after label j is at one plus the label's last position and is the j-th [LAB] "
        f"of its row, for all {labels_read} labels; the card preset returns its state (exact).",
    ),
    "math-5.1-lab-cost": (
        "corrected",
        f"On {texts} texts mode 2 can save {saved} additions, {saved / encoder_work(texts):.1e} of "
        f"the encoder's multiply-adds; the package does the same work in both modes (exact).",
    ),
    "math-5.1-lab-pooling": (
        "verified",
        "Mode 2 is a selection of one row; the package runs it as a mean over one position and "
        "gets that row (naive).",
    ),
    "math-5.1-lab-sees": (
        "verified",
        f"Every [LAB] state of the first text has a gradient at every position, at least "
        f"{float(reach[:, attended].min()):.1e}; {later:.2g} of it lies on later positions, which "
        f"the source does not mention.",
    ),
    "card-label-representation": (
        "verified",
        f"The card preset's label embeddings are the encoder's states at the [LAB] tokens, for all "
        f"{labels_read} labels to 1e-12 (naive).",
    ),
    "card-tokenizer-pooling": (
        "verified",
        f"The mask separates the labels of a row: each pooled label has zero gradient to the "
        f"states of all others and of other texts (exact, {cases} random masks for the values).",
    ),
    "math-b.2-collision": (
        "corrected",
        f"Aggregation by label number mixes the texts of a batch: relative error "
        f"{errors['labels of the encoder'][1]:.2f} with 2 and "
        f"{errors['labels of the encoder'][-1]:.2f} with {SIZES[-1]} texts, zero with one.",
    ),
    "math-b.2-single": (
        "corrected",
        f"The printed code averages hidden states: relative error {misses['linear']:.2f} on single "
        f"texts under a random linear projection. Projected afterwards it is right; with layer norm "
        f"{misses['layer norm, afterwards']:.2f} is left (naive).",
    ),
    "math-b.2-shapes": (
        "corrected",
        f"B.2 returns {widest} rows where B.1 needs {labels_read} on the batch of this page; equal "
        f"in none of the random batches of more than one text (exact).",
    ),
}
for ledger_id, (verdict, evidence) in OUTCOMES.items():
    report.outcome(ledger_id, verdict, evidence=evidence)
display(checks.table())
paste_table(
    "label-embeddings-outcomes",
    judged(report.outcomes),
    "Statements of the sources and their outcomes.",
)
report.close()

# %% [markdown]
# What this chapter says of each statement of the sources:
#
# ```{glue:md} label-embeddings-outcomes
# :format: myst
# ```
