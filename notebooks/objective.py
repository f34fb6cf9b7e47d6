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
# # The total objective
#
# GliZNet is trained on a weighted sum of three losses.
# The contrastive loss ranks the labels of a text; in the mathematics document it is SupCon.
# Binary cross-entropy (BCE) turns each score into a probability.
# The repulsion keeps the embeddings of labels apart.
#
# All three act on the same label embeddings.
# Do they help each other or fight?
# How strong is each?
# And what do the three weights decide?
#
# In short:
#
# - **Direction.** SupCon and BCE act on a label embedding along one line. They can be opposed on a true label, but only in a text with several of them.
# - **Strength.** In the short training run below, each term has this share in lowering the loss: {glue:text}`objective_shares:s`. The repulsion hardly counts there.
# - **Weights.** AdamW sees ratios only. So both documents recommend the same mixture, though of different terms.
# - **Limits.** At the best solution, more weight on a term never raises that term on the training rows. It promises neither a better ranking nor better probabilities.

# %% tags=["parameters"]
out: str = ""
profile: str = "smoke"
cases: int = 20  # random batches per numerical check
backbone: str = "tiny-random"  # of the short training run
steps: int = 4
batch_size: int = 4
learning_rate: float = 1e-5  # with the next line, both ends of the range of math §9.3
head_lr_multiplier: float = 5.0
max_length: int = 384
seed: int = 1
config: dict = {}  # fields of GliZNetConfig that differ from the preset

# %% tags=["hide-input"]
import contextlib
import inspect
import io
import math
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import sympy
import torch
import transformers
from hypothesis import assume
from hypothesis import strategies as st
from scipy.special import expit
from transformers import set_seed

from gliznet import GliZNetConfig, GliZNetForSequenceClassification, GliZNETTokenizer
from gliznet.backbones import fingerprint, resolve
from gliznet.data.corpus import hardset_mini
from gliznet.data.types import examples_sha256
from gliznet.lab.checks import Checks
from gliznet.lab.figures import COLOURS, quiet, show, use_style
from gliznet.lab.ledger import judged
from gliznet.lab.records import Reporter
from gliznet.lab.tables import paste, paste_table
from gliznet.layers import SimilarityHead, label_conditioned_attention
from gliznet.losses import (
    bce_loss,
    one_vs_negatives_loss,
    repulsion_loss,
    supcon_loss,
    total_loss,
)
from gliznet.training import SCHEDULES, train

quiet()
use_style()
ROUND_OFF = 1e-11  # float64, a few hundred operations on numbers of size ten
DIFFERENCE = 1e-7  # central differences with a step of 1e-5 through softmax and square roots
E2 = math.exp(2.0)  # the source's start of tau, the package's of tau_BCE

# %%
report = Reporter(out)
checks = Checks(report)

# %% [markdown]
# ## Where it sits
#
# Each term has a chapter of its own: {doc}`supcon`, {doc}`repulsion` and {doc}`bce`.
# The mathematics document adds them in §8, follows the gradient in §9.1, trains in §9.3, calls the loss differentiable almost everywhere in §11.1 and discusses the weights in §12.1.
# The model card has other terms, weights and training settings.
# In the code the sum is one function.

# %%
print(inspect.getsource(total_loss))

# %% [markdown]
# ## Definition
#
# With three weights {math}`\lambda \ge 0`, the loss is
#
# ```{math}
# :label: eq-objective-total
# \mathcal{L} = \lambda_{\text{con}}\,\mathcal{L}_{\text{con}} + \lambda_{\text{rep}}\,\mathcal{L}_{\text{rep}} + \lambda_{\text{BCE}}\,\mathcal{L}_{\text{BCE}}.
# ```
#
# The two presets keep the values of their documents: `contrastive_weight=1.0`, `repulsion_weight=0.1` and `bce_weight=1.0` for `math`, half of each for `card`.
# Beware of the order: math §12.1 lists SupCon, BCE, repulsion; the code takes contrastive, repulsion, BCE.

# %% tags=["hide-input"]
WEIGHTS = ("contrastive_weight", "repulsion_weight", "bce_weight")
PRESETS = {
    name: tuple(getattr(getattr(GliZNetConfig, name)(), field) for field in WEIGHTS)
    for name in ("math", "card")
}
checks.equal("objective-total", "exact", PRESETS["math"], (1.0, 0.1, 1.0), case="math weights")
checks.equal("objective-total", "exact", PRESETS["card"], (0.5, 0.05, 0.5), case="card weights")
refused = 0
for field in WEIGHTS:
    try:
        GliZNetConfig(**{field: -0.1})
    except ValueError:
        refused += 1
checks.equal("objective-total", "exact", refused, 3, case="negative weights refused")

rng = np.random.default_rng(0)
parts = rng.uniform(0, 3, (cases, 3))
weights = rng.uniform(0, 2, (cases, 3))
sums, slopes = [], []
for values, some in zip(parts, weights, strict=True):
    leaves = [torch.tensor(x, requires_grad=True) for x in values]
    total = total_loss(*leaves, tuple(some)).total
    sums.append(total.item())
    slopes.append([x.item() for x in torch.autograd.grad(total, leaves)])
by_hand = [sum(w[i] * x[i] for i in range(3)) for w, x in zip(weights, parts, strict=True)]
checks.equal("objective-total", "naive", sums, by_hand, ROUND_OFF)
checks.equal("objective-total", "autograd", slopes, weights, ROUND_OFF)
w, x = sympy.symbols("w1:4"), sympy.symbols("x1:4")
checks.zero("objective-total", sum(a * b for a, b in zip(w, x, strict=True)).diff(x[1]) - w[1])
swapped = [w[0] * x[0] + w[1] * x[2] + w[2] * x[1] for w, x in zip(weights, parts, strict=True)]
checks.rejects("objective-total", "order of the recommendation", swapped, sums, ROUND_OFF)

# %% [markdown]
# ## The three forces on one label embedding
#
# A loss acts on an embedding through its gradient: a small step moves the embedding against it.
# We call minus the gradient the *force* of that loss.
#
# Fix a text {math}`b` and leave out its index.
# Hold the hidden states and the projections fixed, as math §9.1 does.
# Label {math}`j` has the embedding {math}`e_j`, and token {math}`i` of the text the vector {math}`z_i` after the projection.
# Label {math}`j` sees the text as {math}`t_j = \sum_i \alpha_{j,i} z_i`, with its attention weights {math}`\alpha_{j,i}`.
# Write {math}`c_j` for the cosine of {math}`t_j` and {math}`e_j`, {math}`\hat v = v / \|v\|` for a vector scaled to length one, and
#
# $$
# g_j^{\text{S}} = \frac{\partial \mathcal{L}_{\text{SupCon}}}{\partial\, \mathrm{sim}_j}, \qquad
# g_j^{\text{B}} = \frac{\partial \mathcal{L}_{\text{BCE}}}{\partial\, \mathrm{sim}_j}, \qquad
# r_j = \frac{\partial \mathcal{L}_{\text{rep}}}{\partial e_j}.
# $$
#
# **Proposition (chain rule).**
# The score of label {math}`j` depends on {math}`e_j` and on no other label embedding, so
#
# ```{math}
# :label: eq-objective-chain
# \frac{\partial \mathcal{L}}{\partial e_j} = \left(\lambda_{\text{con}}\, g_j^{\text{S}} + \lambda_{\text{BCE}}\, g_j^{\text{B}}\right) J_j + \lambda_{\text{rep}}\, r_j,
# \qquad J_j = \frac{d\, \mathrm{sim}_j}{d e_j}.
# ```
#
# Here {math}`J_j` is the *total* derivative, because the label embedding enters the score at two places: in the head, and as the query of the attention that makes {math}`t_j`.
# Let {math}`s_{j,i}` be the attention score of label {math}`j` for token {math}`i`, before the division by {math}`\tau_{\text{attn}}`.
# For the cosine head
#
# ```{math}
# :label: eq-objective-jacobian
# J_j = \underbrace{\frac{\tau}{\|e_j\|}\left(\hat t_j - c_j\, \hat e_j\right)}_{\text{head}} + \underbrace{\frac{1}{\tau_{\text{attn}}} \sum_i \alpha_{j,i}\, \langle z_i - t_j, w_j \rangle\, \frac{\partial s_{j,i}}{\partial e_j}}_{\text{attention}},
# \qquad w_j = \frac{\tau}{\|t_j\|}\left(\hat e_j - c_j\, \hat t_j\right),
# ```
#
# with {math}`\partial s_{j,i} / \partial e_j = z_i` for the dot product of math §6.3.
# For `attention_score="cosine"` it is {math}`(\hat z_i - \langle \hat z_i, \hat e_j \rangle\, \hat e_j) / \|e_j\|`.
#
# **Proof.**
# The cosine {math}`c` of two vectors {math}`u` and {math}`v` has the derivative {math}`(\hat u - c\,\hat v) / \|v\|` by {math}`v`.
# Take {math}`v = e_j` for the first part, {math}`v = t_j` for {math}`w_j`.
# The softmax gives {math}`d\alpha_{j,i} = \alpha_{j,i}\,(ds_{j,i} - \sum_k \alpha_{j,k}\, ds_{j,k}) / \tau_{\text{attn}}`.
# So {math}`\langle w_j, dt_j \rangle = \sum_i d\alpha_{j,i} \langle z_i, w_j \rangle`.
# Since {math}`\sum_i \alpha_{j,i} \langle z_i - t_j, w_j \rangle = 0`, the mean that is subtracted drops out once {math}`z_i` is replaced by {math}`z_i - t_j`.
#
# For the dot product the attention part is {math}`C_j w_j / \tau_{\text{attn}}`, with {math}`C_j` the covariance of the tokens under the attention weights.
# It vanishes if the label looks at a single token.
#
# Math §9.1 writes {math}`\partial` on both sides; we read both as total derivatives.
# Differentiating the head alone (math §7) misses the attention part.
#
# The outer factors come from the chapters on the losses.
# SupCon gives {math}`g_j^{\text{S}} = (p_j - \mathbb{1}[j \in P] / |P|) / B`, with {math}`p` the softmax of the scores and {math}`P` the true labels.
# BCE gives {math}`g_j^{\text{B}} = \rho\,(\sigma_j - y_j) / N` ({eq}`eq-bce-gradient-sim`), with {math}`\rho = \tau_{\text{BCE}} / \tau`, {math}`\sigma_j = \sigma(\rho\, \mathrm{sim}_j)` and {math}`N` pairs of a text and a label in the batch.
# The repulsion pushes {math}`e_j` away from each label that is too near:
#
# $$
# r_j = \frac{2}{B\, K (K - 1)} \sum_{k \ne j,\; \cos(e_j, e_k) > \theta_{\text{rep}}} \frac{\hat e_k - \cos(e_j, e_k)\, \hat e_j}{\|e_j\|}.
# $$
#

# %% tags=["hide-input"]
NUMBERS = SimpleNamespace(exp=math.exp, log=math.log, sqrt=math.sqrt, max=max)
# With sympy every pair of labels is above the threshold, so that the hinge is its argument.
SYMBOLS = SimpleNamespace(
    exp=sympy.exp, log=sympy.log, sqrt=sympy.sqrt, max=lambda zero, excess: excess
)
SCALES = SimpleNamespace(tau=7.0, tau_attn=1.5, tau_bce=4.0, theta=0.1)


def dot(u, v):
    return sum(a * b for a, b in zip(u, v, strict=True))


def unit(u, f):
    length = f.sqrt(dot(u, u))
    return [a / length for a in u], length


def minus(u, v, factor=1):
    return [a - factor * b for a, b in zip(u, v, strict=True)]


def combine(weights, vectors):
    return [
        sum(w * v[d] for w, v in zip(weights, vectors, strict=True)) for d in range(len(vectors[0]))
    ]


def attend(e, z, f, scales, attention):
    """Attention weights of one label, its text embedding, and the derivatives of its products."""
    if attention == "dot":
        products, slopes = [dot(e, x) for x in z], z
    else:
        query, length = unit(e, f)
        keys = [unit(x, f)[0] for x in z]
        products = [dot(query, k) for k in keys]
        slopes = [
            [a / length for a in minus(k, query, s)] for k, s in zip(keys, products, strict=True)
        ]
    grown = [f.exp(s / scales.tau_attn) for s in products]
    alpha = [x / sum(grown) for x in grown]
    return alpha, combine(alpha, z), slopes


def score(e, z, f, scales, attention):
    _, t, _ = attend(e, z, f, scales, attention)
    return scales.tau * dot(unit(t, f)[0], unit(e, f)[0])


def losses_of(batch, f, scales=SCALES, attention="dot"):
    """SupCon, repulsion and BCE of texts (label embeddings, tokens, targets), loop by loop."""
    supcon, repulsion, bce, n = 0, 0, 0, 0
    for labels, tokens, y in batch:
        sim = [score(e, tokens, f, scales, attention) for e in labels]
        log_sum = f.log(sum(f.exp(s) for s in sim))
        supcon -= sum(s - log_sum for s, t in zip(sim, y, strict=True) if t) / sum(y)
        for s, t in zip(sim, y, strict=True):
            u = s / scales.tau * scales.tau_bce
            bce += f.log(1 + f.exp(u)) - t * u
            n += 1
        k = len(labels)
        for j in range(k):
            for i in range(k):
                if i != j:
                    cosine = dot(unit(labels[i], f)[0], unit(labels[j], f)[0])
                    repulsion += f.max(0, cosine - scales.theta) / (k * (k - 1))
    return supcon / len(batch), repulsion / len(batch), bce / n


def forces_of(batch, f, scales=SCALES, attention="dot", through_text=True):
    """Gradients of the three terms by every label embedding: per text and label three vectors."""
    n = sum(len(y) for _, _, y in batch)
    found = []
    for labels, tokens, y in batch:
        sim = [score(e, tokens, f, scales, attention) for e in labels]
        total = sum(f.exp(s) for s in sim)
        k = len(labels)
        rows = []
        for j, e in enumerate(labels):
            alpha, t, slopes = attend(e, tokens, f, scales, attention)
            (t_hat, t_length), (e_hat, e_length) = unit(t, f), unit(e, f)
            c = dot(t_hat, e_hat)
            jacobian = [scales.tau / e_length * a for a in minus(t_hat, e_hat, c)]
            if through_text:
                w = [scales.tau / t_length * a for a in minus(e_hat, t_hat, c)]
                shares = [
                    a * dot(minus(z, t), w) / scales.tau_attn
                    for a, z in zip(alpha, tokens, strict=True)
                ]
                jacobian = [a + b for a, b in zip(jacobian, combine(shares, slopes), strict=True)]
            by_supcon = (f.exp(sim[j]) / total - y[j] / sum(y)) / len(batch)
            u = sim[j] / scales.tau * scales.tau_bce
            by_bce = scales.tau_bce / scales.tau * (1 / (1 + f.exp(-u)) - y[j]) / n
            push = [0 * a for a in e]
            for i in range(k):
                other = unit(labels[i], f)[0]
                cosine = dot(e_hat, other)
                if i != j and cosine > scales.theta:
                    step = minus(other, e_hat, cosine)
                    factor = 2 / (e_length * len(batch) * k * (k - 1))
                    push = [a + factor * b for a, b in zip(push, step, strict=True)]
            rows.append(([by_supcon * a for a in jacobian], push, [by_bce * a for a in jacobian]))
        found.append(rows)
    return found


def texts(seed, sizes=((3, 4), (2, 3)), d=4):
    """Random texts: (labels, tokens) each, the first label true, the others by chance."""
    g = np.random.default_rng(seed)
    found = []
    for k, length in sizes:
        y = [1, *(g.random(k - 1) < 0.4).astype(int).tolist()]
        labels = (g.normal(0, 1, (k, d)) + 0.7 * g.normal(0, 1, d)).tolist()
        found.append((labels, g.normal(0, 1, (length, d)).tolist(), y))
    return found


def padded(batch):
    """The same as tensors: label embeddings, tokens, targets, label mask, token mask."""
    k, n = (max(len(x[i]) for x in batch) for i in (0, 1))
    d = len(batch[0][0][0])
    e, z = (torch.zeros(len(batch), m, d, dtype=torch.float64) for m in (k, n))
    y = torch.zeros(len(batch), k, dtype=torch.float64)
    mask, positions = (torch.zeros(len(batch), m, dtype=torch.bool) for m in (k, n))
    for b, (labels, tokens, targets) in enumerate(batch):
        e[b, len(labels) :] = 1.0  # padding that must not matter
        e[b, : len(labels)] = torch.tensor(labels, dtype=torch.float64)
        z[b, : len(tokens)] = torch.tensor(tokens, dtype=torch.float64)
        y[b, : len(targets)] = torch.tensor(targets, dtype=torch.float64)
        mask[b, : len(labels)], positions[b, : len(tokens)] = True, True
    return e, z, y, mask, positions


head = SimilarityHead(GliZNetConfig(head="cosine", projected_dim=4, projection_init="default"))


def package_terms(e, z, y, mask, positions, scales=SCALES, attention="dot", through_text=True):
    """The three terms by the functions of the package."""
    unit_length = torch.nn.functional.normalize
    queries, keys = (
        (e, z) if attention == "dot" else (unit_length(e, dim=-1), unit_length(z, dim=-1))
    )
    t, _ = label_conditioned_attention(queries, keys, positions, scales.tau_attn, values=z)
    sim = head(t if through_text else t.detach(), e, torch.tensor(scales.tau))
    return (
        supcon_loss(sim, y, mask),
        repulsion_loss(e, mask, scales.theta),
        bce_loss(sim, y, mask, scales.tau, scales.tau_bce),
    )


def package_forces(batch, **options):
    """Their gradients by autograd, as a tensor: term, text, label, dimension."""
    e, *rest = padded(batch)
    e.requires_grad_()
    terms = package_terms(e, *rest, **options)
    return torch.stack([torch.autograd.grad(x, e, retain_graph=True)[0] for x in terms])


def stacked(forces, like):
    """Forces of the loops in the same layout, zero where there is no label."""
    found = np.zeros(like.shape)
    for b, rows in enumerate(forces):
        for j, vectors in enumerate(rows):
            found[:, b, j] = vectors
    return found


def differences(f, x, h=1e-5):
    """Central differences of f by every entry of x."""
    found = []
    for index in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[index] = h
        found.append((np.asarray(f(x + step)) - np.asarray(f(x - step))) / (2 * h))
    return np.stack(found).reshape(*x.shape, -1)


def numeric_forces(batch, b, attention="dot"):
    """Central differences of the plain losses by the label embeddings of one text."""

    def f(labels):
        moved = [(labels.tolist(), *x[1:]) if i == b else x for i, x in enumerate(batch)]
        return losses_of(moved, NUMBERS, attention=attention)

    return np.moveaxis(differences(f, np.array(batch[b][0])), -1, 0)


# %% tags=["hide-input"]
LAMBDA = np.array([1.0, 0.5, 0.8])


def total_of(forces):
    return np.tensordot(LAMBDA, forces, 1)


# Sympy differentiates the loops by the first label of one text with two or three labels.
# Both sides are evaluated at one random point with forty digits, every pair above the threshold.
exact = lambda rows: [[sympy.Float(x, 40) for x in row] for row in rows]  # noqa: E731
exact_scales = SimpleNamespace(**{k: sympy.Float(v, 40) for k, v in vars(SCALES).items()})
exact_scales.theta = -1
together = []
for attention, sizes in (("dot", ((2, 2), (3, 2))), ("cosine", ((2, 2),))):
    found, crossed = [], []
    for k, d in sizes:
        labels, tokens, y = texts(10 * k + d, ((k, 2),), d)[0]
        labels, tokens = exact(labels), exact(tokens)
        way = sympy.symbols(f"way1:{d + 1}", real=True)
        here = dict.fromkeys(way, 0)
        moved = [a + b for a, b in zip(labels[0], way, strict=True)]
        terms = losses_of([([moved, *labels[1:]], tokens, y)], SYMBOLS, exact_scales, attention)
        slopes = [[term.diff(x).subs(here).evalf(40) for x in way] for term in terms]
        formula = forces_of([(labels, tokens, y)], SYMBOLS, exact_scales, attention)[0][0]
        for slope, vector in zip(slopes, formula, strict=True):
            found += [abs(float(a - b)) for a, b in zip(slope, vector, strict=True)]
        f, h = slopes[0], slopes[2]  # SupCon and BCE
        crossed += [abs(float(f[i] * h[j] - f[j] * h[i])) for i in range(d) for j in range(i)]
    zeros, case = np.zeros(len(found)), f"{attention}, forty digits"
    checks.equal("objective-jacobian", "symbolic", found, zeros, 1e-30, case=case)
    checks.equal("objective-collinear", "symbolic", max(crossed), 0.0, 1e-30, case=case)
    together += found
checks.equal(
    "objective-chain", "symbolic", together, np.zeros(len(together)), 1e-30, case="forty digits"
)

missing = []
for attention in ("dot", "cosine"):
    by_autograd, by_formula, printed, numeric, loops = [], [], [], [], []
    for number in range(cases):
        batch = texts(number)
        found = package_forces(batch, attention=attention).numpy()
        by_autograd.append(found)
        by_formula.append(stacked(forces_of(batch, NUMBERS, attention=attention), found))
        direct = forces_of(batch, NUMBERS, attention=attention, through_text=False)
        printed.append(stacked(direct, found))
        if number < 3:
            numeric.append(numeric_forces(batch, 0, attention))
            loops.append(by_formula[-1][:, 0])
    by_autograd, by_formula, printed = map(np.stack, (by_autograd, by_formula, printed))
    checks.equal(
        "objective-jacobian", "autograd", by_autograd, by_formula, ROUND_OFF, case=attention
    )
    checks.equal("objective-jacobian", "naive", numeric, loops, DIFFERENCE, case=attention)
    chain = [np.stack([total_of(x) for x in some]) for some in (by_autograd, by_formula, printed)]
    checks.equal("objective-chain", "autograd", chain[0], chain[1], ROUND_OFF, case=attention)
    of_differences = [np.stack([total_of(x) for x in some]) for some in (numeric, loops)]
    checks.equal("objective-chain", "naive", *of_differences, DIFFERENCE, case=attention)
    checks.rejects("objective-chain", f"head alone, {attention}", chain[2], chain[0], ROUND_OFF)
    lost = np.linalg.norm((chain[0] - chain[2]).reshape(cases, -1), axis=1)
    lost /= np.linalg.norm(chain[0].reshape(cases, -1), axis=1)
    missing.append(float(np.median(lost)))
    report.metric(f"missing_attention_part/random, {attention}", missing[-1], n=cases)
paste("objective_missing_dot", f"{missing[0]:.2f}")
paste("objective_missing_cosine", f"{missing[1]:.2f}")

# %% [markdown]
# How much does the head alone miss?
# Relative to the whole gradient, in the median over random batches, {glue:text}`objective_missing_dot:s` with the dot product in the attention and {glue:text}`objective_missing_cosine:s` with the cosine.
# The run below measures it on a real model.
#
# ## SupCon and BCE share one line
#
# **Proposition.**
# SupCon and BCE push a label embedding along the same line:
#
# ```{math}
# :label: eq-objective-collinear
# g_j^{\text{B}}\, \frac{\partial \mathcal{L}_{\text{SupCon}}}{\partial e_j} = g_j^{\text{S}}\, \frac{\partial \mathcal{L}_{\text{BCE}}}{\partial e_j}.
# ```
#
# **Proof.**
# Both gradients are multiples of {math}`J_j`, by {eq}`eq-objective-chain`.
#
# So the two forces on a label point the same way or are exactly opposed.
# They are opposed where {math}`g_j^{\text{S}}` and {math}`g_j^{\text{B}}` differ in sign.
# Both are positive for every false label, and {math}`g_j^{\text{B}}` is negative for every true one.
# That leaves SupCon on a true label, where
#
# ```{math}
# :label: eq-objective-away
# g_j^{\text{S}} > 0 \iff p_j > \frac{1}{|P|} \qquad (j \in P).
# ```
#
# So SupCon pushes a true label *away* from the text if it already holds more than its share of the softmax.
# This needs at least two true labels: a single one would need {math}`p_j > 1`.
#
# Can a loss change the length of a label embedding?
#
# **Proposition.**
# Under the cosine head the component along {math}`e_j` itself is
#
# ```{math}
# :label: eq-objective-radial
# \langle J_j, e_j \rangle = \begin{cases} \frac{1}{\tau_{\text{attn}}} \sum_i \alpha_{j,i}\, \langle z_i - t_j, w_j \rangle\, \langle z_i, e_j \rangle & \text{dot product in the attention}, \\ 0 & \text{cosine in the attention}, \end{cases}
# \qquad \langle r_j, e_j \rangle = 0.
# ```
#
# **Proof.**
# In {eq}`eq-objective-jacobian` the head's part is orthogonal to {math}`e_j`, because {math}`\langle \hat t_j - c_j \hat e_j, \hat e_j \rangle = c_j - c_j`.
# So are the slopes of the cosine attention, and the summands of {math}`r_j`.
#
# Math §9.1 says that BCE adjusts the magnitude.
# Through a cosine head it cannot adjust the length of a label embedding.
# With the dot product it can through the attention, where a longer {math}`e_j` acts like a lower temperature.
# The scale that BCE does adjust is {math}`\tau_{\text{BCE}}`.

# %% tags=["hide-input"]
u, v = (
    sympy.Matrix(sympy.symbols("u1:4", real=True)),
    sympy.Matrix(sympy.symbols("v1:4", real=True)),
)
lengths = sympy.sqrt(u.dot(u)), sympy.sqrt(v.dot(v))
cosine = u.dot(v) / lengths[0] / lengths[1]
gradient = sympy.Matrix([cosine.diff(x) for x in v])
checks.zero("objective-radial", gradient.dot(v), case="head and repulsion")
key = u / lengths[0]
slope = sympy.Matrix([key.dot(v / lengths[1]).diff(x) for x in v])
checks.zero("objective-radial", slope.dot(v), case="cosine attention")


def share_along(vectors, e):
    """Size of the component along e, relative to the whole, over all labels of a batch."""
    along = (vectors * e).sum(-1) / e.norm(dim=-1)
    return float(along.norm() / vectors.norm())


def along_by_formula(e, tokens):
    """The proposition with the dot product in the attention, in loops."""
    alpha, t, _ = attend(e, tokens, NUMBERS, SCALES, "dot")
    (t_hat, size), (e_hat, _) = unit(t, NUMBERS), unit(e, NUMBERS)
    w = [SCALES.tau / size * a for a in minus(e_hat, t_hat, dot(t_hat, e_hat))]
    terms = [a * dot(minus(z, t), w) * dot(z, e) for a, z in zip(alpha, tokens, strict=True)]
    return sum(terms) / SCALES.tau_attn


def along_by_autograd(e, tokens):
    """The same from attention and head of the package."""
    leaf = torch.tensor(e, dtype=torch.float64, requires_grad=True)
    keys = torch.tensor(tokens, dtype=torch.float64)[None]
    everywhere = torch.ones(1, len(tokens), dtype=torch.bool)
    label = leaf[None, None]
    text, _ = label_conditioned_attention(label, keys, everywhere, SCALES.tau_attn)
    value = head(text, label, torch.tensor(SCALES.tau)).sum()
    return float(torch.autograd.grad(value, leaf)[0] @ leaf.detach())


line, zero_along = [], []
shares_along = {"dot": [], "cosine": []}
for number in range(cases):
    batch = texts(number)
    e = padded(batch)[0]
    for attention, found in shares_along.items():
        forces = package_forces(batch, attention=attention)
        # The outer product of two vectors on one line is symmetric.
        outer = forces[0][..., :, None] * forces[2][..., None, :]
        line.append(float((outer - outer.transpose(-1, -2)).abs().max()))
        found.append(share_along(forces[2], e))
        across = forces if attention == "cosine" else forces[1:2]
        zero_along.append(float((across * e).sum(-1).abs().max()))
checks.equal("objective-collinear", "autograd", line, np.zeros(len(line)), 1e-12)
checks.equal(
    "objective-radial", "autograd", zero_along, np.zeros(len(zero_along)), 1e-12, case="zero"
)
labels = [(e, tokens) for i in range(cases) for es, tokens, _ in texts(i) for e in es]
formula, found = ([f(*x) for x in labels] for f in (along_by_formula, along_by_autograd))
checks.equal("objective-radial", "autograd", found, formula, ROUND_OFF, case="dot product")
without = [x * SCALES.tau_attn for x in formula]
checks.rejects("objective-radial", "no attention temperature", without, found, ROUND_OFF)

# Central differences: growing a label embedding must change no loss where the cosine attends.
stretched, crossed, grown = [], [], []
for number in range(3):
    batch = texts(number)
    numeric = numeric_forces(batch, 0, "cosine")
    stretched.append((numeric * np.array(batch[0][0])).sum(-1))
    label, tokens, _ = (x[0] if i == 0 else x for i, x in enumerate(batch[0]))
    grow = lambda x, e=label, z=tokens: score(  # noqa: E731
        [float(x) * a for a in e], z, NUMBERS, SCALES, "dot"
    )
    grown.append(float(differences(grow, np.array(1.0)).item()) - along_by_formula(label, tokens))
    outer = numeric[0][:, :, None] * numeric[2][:, None, :]
    crossed.append(outer - np.swapaxes(outer, 1, 2))
checks.equal("objective-radial", "naive", stretched, np.zeros((3, 3, 3)), DIFFERENCE, case="zero")
checks.equal("objective-radial", "naive", grown, np.zeros(3), DIFFERENCE, case="dot product")
checks.equal("objective-collinear", "naive", crossed, np.zeros((3, 3, 4, 4)), DIFFERENCE)
radial_dot, radial_cosine = (float(np.median(shares_along[x])) for x in ("dot", "cosine"))
report.metric("radial_share_of_bce/dot", radial_dot, n=cases)
report.metric("radial_share_of_bce/cosine", radial_cosine, n=cases)
report.metric("effect/math-9.1-bce-force", radial_dot, n=cases, unit="radial share, dot product")

# Signs of the package's gradients on random rows with two or more true labels of six.
g = np.random.default_rng(0)
sim = torch.from_numpy(3 * g.normal(0, 1, (50 * cases, 6))).requires_grad_()
y = torch.from_numpy(np.c_[np.ones((len(sim), 2)), g.random((len(sim), 4)) < 0.3].astype(float))
slopes = torch.autograd.grad(supcon_loss(sim, y, torch.ones_like(y).bool()), sim)[0].numpy()
true, scores = y.numpy() == 1, sim.detach().numpy()
looped = []
for row, of_text in zip(scores, true, strict=True):
    total = sum(math.exp(s) for s in row)
    share = 1 / sum(of_text)
    looped += [math.exp(s) / total > share for s, t in zip(row, of_text, strict=True) if t]
checks.equal("objective-away", "naive", slopes[true] > 0, looped)
SCORE = st.floats(-4, 4)
# A text is a list of scores with their targets; its first label is true.
TEXT = st.lists(st.tuples(SCORE, st.booleans()), min_size=2, max_size=4)
TINY = 1e-15  # a few roundings of numbers that are at most one


def on_its_side(text):
    """Product of the package's slope and of its sign by the proposition, the smallest of a text."""
    scores, true = zip(*text, strict=True)
    sim = torch.tensor([scores], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[True, *true[1:]]], dtype=torch.float64)
    slope = torch.autograd.grad(supcon_loss(sim, y, torch.ones_like(y).bool()), sim)[0][0].numpy()
    shares = np.exp(scores) / np.exp(scores).sum()
    return float((slope * np.sign(shares - y.numpy()[0] / float(y.sum()))).min())


checks.survives("objective-away", on_its_side, TINY, examples=75, text=TEXT)
pushed_away = float((slopes[true] > 0).mean())
true = int(true.sum())
report.metric("effect/math-9.1-supcon-force", pushed_away, n=true, unit="share of true labels")
paste("objective_away", f"{100 * pushed_away:.0f} %")
paste("objective_radial", f"{radial_dot:.2f}")

# %% [markdown]
# - True labels that SupCon pushes away from the text, in random rows with two or more of them: {glue:text}`objective_away:s`.
# - Share of the BCE force that lies along {math}`e_j` with the dot product in the attention, median: {glue:text}`objective_radial:s`. With the cosine it is zero.
#
# The next picture shows the forces in the plane.
# The text points to the right and is held fixed.
# Two labels stand still: a true one up on the right, and a false one below.
# The arrows are the forces on a second true label, wherever it may stand.
# Near the text SupCon points away from it, because there the moving label holds more than half of the softmax.
# If the propositions were wrong, an arrow would leave its circle, or SupCon and BCE would point along different lines.

# %% mystnb={"figure": {"caption": "Force of each term on one true label embedding in the plane, and of their sum with the weights of the mathematics document. Blue arrows turn towards the text, orange ones away from it. Lengths are square roots, comparable within a panel. Grey line: the text. Green: the other true label. Pink: a false label.", "name": "fig-objective-forces"}, "image": {"alt": "Four panels of arrows on circles around the origin: SupCon and BCE lie along the circles and turn towards the text, except SupCon close to it; the repulsion turns away from the other two labels."}}
fixed = torch.tensor([[math.cos(0.6), math.sin(0.6)], [math.cos(-0.9), math.sin(-0.9)]]).double()
text = torch.tensor([1.0, 0.0], dtype=torch.float64)
targets = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
angles = np.linspace(0, 2 * np.pi, 24, endpoint=False) + np.pi / 24
points = np.array([(r * math.cos(a), r * math.sin(a)) for r in (0.75, 1.25) for a in angles])
every = torch.ones(1, 3, dtype=torch.bool)
arrows = {"SupCon": [], "repulsion": [], "BCE": []}
for point in points:
    leaf = torch.tensor(point, requires_grad=True)
    e = torch.cat([leaf[None], fixed])[None]
    sim = head(text.expand(1, 3, 2), e, torch.tensor(E2))
    terms = (
        supcon_loss(sim, targets, every),
        repulsion_loss(e, every, 0.3),
        bce_loss(sim, targets, every, E2, E2),
    )
    for name, term in zip(arrows, terms, strict=True):
        arrows[name].append(-torch.autograd.grad(term, leaf, retain_graph=True)[0].numpy())
arrows = {name: np.array(found) for name, found in arrows.items()}
arrows["sum, math weights"] = sum(
    w * x for w, x in zip(PRESETS["math"], list(arrows.values()), strict=True)
)
figure, axes = plt.subplots(2, 2, figsize=(6.4, 6.4), sharex=True, sharey=True)
order = ["SupCon", "BCE", "repulsion", "sum, math weights"]
towards = np.stack([points[:, 1] ** 2, -points[:, 0] * points[:, 1]], axis=1)
for axis, name in zip(axes.flat, order, strict=True):
    field = arrows[name]
    for vector, colour in ((text, "untrained"), (fixed[0], "published"), (fixed[1], "accent")):
        axis.plot([0, 1.6 * vector[0]], [0, 1.6 * vector[1]], color=COLOURS[colour], linewidth=2)
    length = np.linalg.norm(field, axis=1, keepdims=True)
    shown = field / np.sqrt(np.maximum(length * length.max(), 1e-12))
    turn = np.where((field * towards).sum(1) > 0, COLOURS["math"], COLOURS["card"])
    axis.quiver(*points.T, *shown.T, color=turn, angles="xy", scale=6, width=0.008)
    axis.set(title=name, xlim=(-1.7, 1.7), ylim=(-1.7, 1.7), aspect="equal")
show(figure)
tangential = max(np.abs((field * points).sum(1)).max() for field in arrows.values())
checks.equal("objective-radial", "exact", tangential, 0.0, ROUND_OFF, case="the figure's arrows")

# %% [markdown]
# ## Agreement in the scores
#
# SupCon and BCE can disagree on a single true label.
# Added over the scores of a whole text, they cannot.
#
# **Proposition.**
# For every text with a true label, whatever its scores and targets, and for all positive scales,
#
# ```{math}
# :label: eq-objective-agreement
# \sum_j g_j^{\text{S}}\, g_j^{\text{B}} \ge 0.
# ```
#
# The same holds term by term for the one-vs-negatives loss of the card.
#
# **Proof.**
# Leave out the positive factors {math}`1/B` and {math}`\rho / N`.
# A false label adds {math}`p_j \sigma_j \ge 0`.
# Let {math}`m = 1 - \sum_{j \in P} p_j` be the softmax mass of the false labels, {math}`\pi_j = p_j / (1 - m)` the softmax among the true ones, and {math}`\bar\sigma` the plain mean of {math}`\sigma_j` over the true ones.
# The true labels add
#
# $$
# \sum_{j \in P} \left(p_j - \tfrac{1}{|P|}\right)(\sigma_j - 1)
# = (1 - m)\left(\sum_{j \in P} \pi_j \sigma_j - \bar\sigma\right) + m\,(1 - \bar\sigma).
# $$
#
# {math}`\pi_j` and {math}`\sigma_j` both rise with the score of {math}`j`.
# Chebyshev's sum inequality says that the mean of {math}`\sigma_j` under the rising weights {math}`\pi_j` is at least the plain mean.
# So neither summand is negative.
# In the one-vs-negatives loss every true label has a gradient of at most zero and every false one of at least zero, as in BCE.
#
# The main inequalities of this chapter are given to `hypothesis`, a library that looks for counter-examples: it steers towards the tight cases and shrinks what it finds.
# It finds none here.
# It does find one against agreement label by label: {glue:text}`objective_disagree:s`.
#
# For embeddings in place of scores, each summand gets the factor {math}`\|J_j\|^2`, and the sum may change its sign.
# Such a case is built below: the label on which the two disagree has a short embedding, hence a large {math}`J_j`.

# %% tags=["hide-input"]
TEXTS = st.lists(TEXT, min_size=1, max_size=2)
TEMPERATURES = {"log_tau": st.floats(-2, 2), "log_tau_bce": st.floats(-2, 2)}


def drawn_batch(texts):
    """Scores, targets and mask of the drawn texts, padded with large scores that must not count."""
    widest = max(map(len, texts))
    sim = torch.full((len(texts), widest), 40.0, dtype=torch.float64)
    y, mask = torch.zeros_like(sim), torch.zeros(sim.shape, dtype=torch.bool)
    for b, pairs in enumerate(texts):
        scores, true = zip(*pairs, strict=True)
        sim[b, : len(pairs)] = torch.tensor(scores, dtype=torch.float64)
        y[b, : len(pairs)] = torch.tensor([True, *true[1:]], dtype=torch.float64)
        mask[b, : len(pairs)] = True
    return sim.requires_grad_(), y, mask


def slopes_by_score(loss, texts, *options):
    sim, y, mask = drawn_batch(texts)
    return torch.autograd.grad(loss(sim, y, mask, *options), sim)[0].numpy()


def agreement(text, log_tau, log_tau_bce, loss=supcon_loss, reduce=np.sum, options=()):
    """Products of both gradients by the score of each label, added, without the factor rho."""
    bce = slopes_by_score(bce_loss, [text], math.exp(log_tau), math.exp(log_tau_bce))
    products = slopes_by_score(loss, [text], *options) * bce
    return float(reduce(products)) * math.exp(log_tau - log_tau_bce)


def by_label(text):
    return agreement(text, 0.0, 0.0, reduce=np.min)


def of_the_card(text, **scales):
    return agreement(text, **scales, loss=one_vs_negatives_loss, reduce=np.min, options=(0.5,))


# Without rho both factors are at most one.
for case, slack in (("SupCon", agreement), ("one-vs-negatives", of_the_card)):
    checks.survives(
        "objective-agreement", slack, TINY, case=case, examples=100, text=TEXT, **TEMPERATURES
    )
opposed = checks.refuted("objective-agreement", "label by label", by_label, TINY, text=TEXT)["text"]
shown = [
    f"{s:g} ({'true' if true else 'false'})" for s, true in [(opposed[0][0], True), *opposed[1:]]
]
paste("objective_disagree", "the scores " + " and ".join(shown))

ahead, behind = math.radians(30), math.radians(120)
e = torch.tensor(
    [[[0.1 * math.cos(ahead), 0.1 * math.sin(ahead)], [math.cos(behind), math.sin(behind)]]],
    dtype=torch.float64,
    requires_grad=True,
)
two, both = torch.ones(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool)
towards = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(1, 2, 2)
sim = head(towards, e, torch.tensor(E2))
gradients = [
    torch.autograd.grad(loss, e, retain_graph=True)[0]
    for loss in (supcon_loss(sim, two, both), bce_loss(sim, two, both, E2, 0.5))
]
in_embeddings = float(
    (gradients[0] * gradients[1]).sum() / gradients[0].norm() / gradients[1].norm()
)
assert in_embeddings < 0
report.metric("conflict_in_embeddings/example", in_embeddings)
print(f"cosine of both gradients by the embeddings in this case: {in_embeddings:.2f}")

# %% [markdown]
# ## Convex in the scores, not in the parameters
#
# **Proposition.**
# For one text, with {math}`p` the softmax of its scores, the second derivatives are
#
# ```{math}
# :label: eq-objective-hessian
# \nabla^2_{\mathrm{sim}}\, \mathcal{L}_{\text{SupCon}} = \operatorname{diag}(p) - p\,p^{\mathsf T}, \qquad
# \nabla^2_{\mathrm{sim}}\, \mathcal{L}_{\text{BCE}} = \frac{\rho^2}{N} \operatorname{diag}\left(\sigma_j (1 - \sigma_j)\right),
# ```
#
# both positive semidefinite, so {math}`\lambda_{\text{con}} \mathcal{L}_{\text{con}} + \lambda_{\text{BCE}} \mathcal{L}_{\text{BCE}}` is convex in the scores.
#
# **Proof.**
# SupCon is the logarithm of a sum of exponentials minus a linear function of the scores, which has no second derivative.
# For a vector {math}`v` of one number per label, {math}`v^{\mathsf T}(\operatorname{diag}(p) - p p^{\mathsf T}) v` is the variance of {math}`v` under {math}`p`.
# For BCE see {eq}`eq-bce-curvature`.
# The one-vs-negatives loss of the card is convex in the scores too: a softplus, which is convex and rises, of a convex function.
#
# SupCon does not change if all scores of a text move by the same amount; BCE does, and so it alone fixes their level.
#
# None of this survives in the parameters.
# Take one true label in the plane and the text {math}`(1, 0)`.
# The embeddings at {math}`100^\circ` and {math}`-100^\circ` have the same cosine, and their midpoint points straight away from the text.
# So the loss is larger at the midpoint than at both ends, which no convex function allows.
# The repulsion is convex in the cosine of a pair, and not in the embeddings.

# %% tags=["hide-input"]
for k in (2, 3, 4):
    s = sympy.symbols(f"s1:{k + 1}", real=True)
    shares = sympy.symbols(f"t1:{k + 1}", positive=True)  # the targets over their number; sum one
    loss = sympy.log(sum(map(sympy.exp, s))) - sum(x * t for x, t in zip(s, shares, strict=True))
    p = [sympy.exp(x) / sum(map(sympy.exp, s)) for x in s]
    for i, j in ((0, 0), (0, 1)):
        formula = (p[0] if i == j else 0) - p[i] * p[j]
        checks.zero("objective-hessian", loss.diff(s[i], s[j]) - formula, case=f"K = {k}, {i}{j}")
rho, n = sympy.symbols("rho N", positive=True)
loss = sympy.log(1 + sympy.exp(rho * s[0])) / n
sigma = 1 / (1 + sympy.exp(-rho * s[0]))
checks.zero("objective-hessian", loss.diff(s[0], 2) - rho**2 / n * sigma * (1 - sigma), case="BCE")

by_autograd, by_formula, numeric, lowest = [], [], [], []
for number in range(cases):
    g = torch.Generator().manual_seed(number)
    sim = 2 * torch.randn(1, 4, generator=g, dtype=torch.float64)
    y = torch.tensor([[1.0, *(torch.rand(3, generator=g) < 0.4).tolist()]], dtype=torch.float64)
    every = torch.ones(1, 4, dtype=torch.bool)
    functions = (
        lambda s, y=y, m=every: supcon_loss(s, y, m),
        lambda s, y=y, m=every: bce_loss(s, y, m, 4.0, 3.0),
        lambda s, y=y, m=every: one_vs_negatives_loss(s, y, m, 0.5),
    )
    found = [torch.autograd.functional.hessian(f, sim).reshape(4, 4).numpy() for f in functions]
    by_autograd.append(found[:2])
    lowest += [np.linalg.eigvalsh(x)[0] for x in found]
    x = sim.numpy()[0]
    p, q = np.exp(x) / np.exp(x).sum(), expit(0.75 * x)
    formula = [np.diag(p) - np.outer(p, p), np.diag(0.75**2 * q * (1 - q)) / 4]
    by_formula.append(formula)
    positives = y.numpy()[0]
    slopes = lambda x, y=positives: np.r_[  # noqa: E731
        np.exp(x) / np.exp(x).sum() - y / y.sum(), 0.75 * (expit(0.75 * x) - y) / 4
    ]
    numeric.append(differences(slopes, x).reshape(4, 2, 4).swapaxes(0, 1))
checks.equal("objective-hessian", "autograd", by_autograd, by_formula, ROUND_OFF)
checks.equal("objective-hessian", "naive", numeric, by_formula, DIFFERENCE)
checks.at_least(
    "objective-hessian", "search", lowest, 0.0, ROUND_OFF, case="no negative eigenvalue"
)


def above_chord(pair, share):
    """The mixture's value between two lists of scores less than their mixed values, per loss."""
    ends = torch.tensor([[x for x, _, _ in pair], [x for _, x, _ in pair]], dtype=torch.float64)
    y = torch.tensor([[True, *(true for _, _, true in pair[1:])]], dtype=torch.float64)
    every = torch.ones_like(y).bool()
    rooms = []
    for loss, options in (
        (supcon_loss, ()),
        (bce_loss, (4.0, 3.0)),
        (one_vs_negatives_loss, (0.5,)),
    ):
        at = lambda sim, loss=loss, options=options: float(loss(sim[None], y, every, *options))  # noqa: E731
        mixed = share * at(ends[0]) + (1 - share) * at(ends[1])
        rooms.append(mixed - at(share * ends[0] + (1 - share) * ends[1]))
    return min(rooms)


checks.survives(
    "objective-hessian", above_chord, ROUND_OFF, case="convex in the scores", examples=75,
    pair=st.lists(st.tuples(SCORE, SCORE, st.booleans()), min_size=2, max_size=4),
    share=st.floats(0, 1),
)  # fmt: skip

one, single = torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.bool)


def cost_at(vector):
    e = torch.as_tensor(vector, dtype=torch.float64).reshape(1, 1, 2)
    sim = head(torch.tensor([[[1.0, 0.0]]]).double(), e, torch.tensor(E2))
    return float(bce_loss(sim, one, single, E2, E2))


ends = [np.array([math.cos(math.radians(a)), math.sin(math.radians(a))]) for a in (100, -100)]
above = cost_at((ends[0] + ends[1]) / 2) - max(map(cost_at, ends))
assert above > 1
report.metric("convexity/midpoint_above_ends", above)
print(f"the loss at the midpoint exceeds that at both ends by {above:.2f}")

# %% [markdown]
# ## How strong each force is
#
# **Proposition.**
# Let {math}`B` texts have a true label and at least two labels each.
# Then
#
# ```{math}
# :label: eq-objective-bounds
# \sum_{b,j} |g_{b,j}^{\text{S}}| \le 2, \qquad
# \sum_{b,j} |g_{b,j}^{\text{B}}| \le \frac{\tau_{\text{BCE}}}{\tau}, \qquad
# \|r_{b,j}\| \le \frac{2}{B\, K_b\, \|e_{b,j}\|},
# ```
#
# where {math}`K_b` is the number of labels of text {math}`b`.
# For {math}`\theta_{\text{rep}} \ge 0` the last bound holds with the further factor {math}`\sqrt{1 - \theta_{\text{rep}}^2}`.
#
# **Proof.**
# For one text {math}`\sum_j |p_j - \mathbb{1}[j \in P] / |P||` is the distance of two distributions, at most two; the mean over texts keeps that.
# {math}`|\sigma_j - y_j| \le 1`, and the mean over pairs keeps that.
# Each summand of {math}`r_j` has length {math}`\sqrt{1 - \cos^2} / \|e_j\|`, and there are at most {math}`K_b - 1`.
#
# By {eq}`eq-objective-jacobian` the head's part of {math}`J_j` is at most {math}`\tau / \|e_j\|` long.
# So through the head, the gradient of a label embedding times {math}`\|e_j\|` is at most {math}`\tau/B` for SupCon, {math}`\tau_{\text{BCE}}/N` for BCE and {math}`2/(B K)` for the repulsion.
# BCE and the repulsion are divided by the number of labels; SupCon is not.
# The first two also carry a scale that the third lacks, so at the start of training the third bound is the smallest.
# Bounds do not order the forces themselves: on a text that the model already fits, BCE can be the weakest.
# Here is such a text:


# %% tags=["hide-input"]
def supcon_room(texts):
    return 2 - np.abs(slopes_by_score(supcon_loss, texts)).sum()


def bce_room(texts, log_tau, log_tau_bce):
    """Relative to the bound."""
    tau, tau_bce = math.exp(log_tau), math.exp(log_tau_bce)
    return 1 - np.abs(slopes_by_score(bce_loss, texts, tau, tau_bce)).sum() * tau / tau_bce


def repulsion_room(vectors, theta):
    """Relative to the bound; without a threshold there is no further factor."""
    e = torch.tensor(vectors, dtype=torch.float64)[None].requires_grad_()
    every = torch.ones(1, len(vectors), dtype=torch.bool)
    push = torch.autograd.grad(repulsion_loss(e, every, theta), e)[0].norm(dim=-1)
    bound = 2 / (len(vectors) * e.detach().norm(dim=-1)) * math.sqrt(1 - max(theta, 0) ** 2)
    return float((1 - push / bound).min())


# Zero vectors have no cosine and are left out.
VECTORS = st.lists(
    st.tuples(SCORE, SCORE, SCORE).filter(lambda v: math.hypot(*v) > 0.01), min_size=2, max_size=4
)
for case, room, strategies in (
    ("SupCon", supcon_room, {"texts": TEXTS}),
    ("BCE", bce_room, {"texts": TEXTS, **TEMPERATURES}),
    ("repulsion", repulsion_room, {"vectors": VECTORS, "theta": st.floats(0, 0.9)}),
    ("repulsion, no threshold", repulsion_room, {"vectors": VECTORS, "theta": st.just(-1.0)}),
):
    checks.survives("objective-bounds", room, ROUND_OFF, case=case, examples=75, **strategies)

turns = torch.deg2rad(torch.tensor([5.0, 15.0, 175.0], dtype=torch.float64))  # two true, one false
e = torch.stack([turns.cos(), turns.sin()], dim=-1)[None].requires_grad_()
y, every = torch.tensor([[1.0, 1.0, 0.0]]).double(), torch.ones(1, 3, dtype=torch.bool)
sim = head(torch.tensor([1.0, 0.0]).double().expand(1, 3, 2), e, torch.tensor(E2))
fitted = {
    name: float(torch.autograd.grad(loss, e, retain_graph=True)[0].norm())
    for name, loss in (
        ("SupCon", supcon_loss(sim, y, every)),
        ("repulsion", repulsion_loss(e, every, 0.3)),
        ("BCE", bce_loss(sim, y, every, E2, E2)),
    )
}
for name, size in fitted.items():
    report.metric(f"fitted_text/{name}", size, unit="length of the gradient")
assert fitted["BCE"] < 0.1 * fitted["repulsion"]
pd.DataFrame({"length of the gradient": fitted}).rename_axis("term, fitted text").round(4)

# %% [markdown]
# ## What a weight does
#
# Let one term {math}`T` have the weight {math}`\lambda`, and let {math}`R` be the rest of the objective.
#
# **Proposition.**
# Let {math}`x_\lambda` minimise {math}`\lambda T + R`.
# Then, whatever the functions are,
#
# ```{math}
# :label: eq-objective-monotone
# \lambda < \lambda' \implies T(x_{\lambda'}) \le T(x_\lambda) \quad\text{and}\quad R(x_{\lambda'}) \ge R(x_\lambda).
# ```
#
# **Proof.**
# {math}`\lambda T(x_\lambda) + R(x_\lambda) \le \lambda T(x_{\lambda'}) + R(x_{\lambda'})`, and the same with {math}`\lambda'` the other way round.
# Their sum is {math}`(\lambda' - \lambda)(T(x_{\lambda'}) - T(x_\lambda)) \le 0`, the first claim.
# Put it into the first inequality: {math}`R(x_\lambda) \le R(x_{\lambda'}) + \lambda\,(T(x_{\lambda'}) - T(x_\lambda)) \le R(x_{\lambda'})`.
#
# So a higher weight of SupCon, BCE or repulsion cannot raise that term.
# This holds for global minima and on the training rows.
#
# **Ranking.**
# A lower SupCon value is not a better ranking.
# The best scores of BCE order labels by {math}`\Pr(j \in P)`, those of SupCon by {math}`\mathbb{E}[\mathbb{1}[j \in P] / |P|]` ({eq}`eq-supcon-proper`).
# For example, let {math}`P` be {math}`\{A\}` with probability {math}`\tfrac25` and {math}`\{B, C, D\}` with {math}`\tfrac35`.
# BCE puts {math}`A` last, {math}`\tfrac25 < \tfrac35`; SupCon puts it first, {math}`\tfrac25 > \tfrac15`.
# So more weight of SupCon turns the order round, and the smaller set wins, as the first table shows.
# Equally likely sets do it too; the simplest that hypothesis finds are {glue:text}`objective_turned:s`.
#
# **Calibration.**
# Math §12.1 also says that a lower weight of SupCon risks poor calibration.
# For the reported probabilities, the sigmoids, it is a higher one that does.
# Without the repulsion {math}`R` is BCE, and a lower weight of SupCon can only lower it.
# The second table shows one text whose labels are uncertain: each is true with a probability of its own.
# The scores are free, so BCE alone is calibrated exactly.


# %% tags=["hide-input"]
def weighed(points, weights, term, more):
    """Both differences of the proposition, from the minima of the package's total over points."""
    heavier = [w + more * (i == term) for i, w in enumerate(weights)]
    columns = torch.tensor(points, dtype=torch.float64).T
    at = [int(total_loss(*columns, tuple(some)).total.argmin()) for some in (weights, heavier)]
    assume(at[0] != at[1])  # with one minimum for both weights nothing is to be shown
    own = [points[i][term] for i in at]
    rest = [
        sum(w * x for j, (w, x) in enumerate(zip(weights, points[i], strict=True)) if j != term)
        for i in at
    ]
    return min(own[0] - own[1], rest[1] - rest[0])


# Whole numbers, so that every total is exact and a tie is a tie.
checks.survives(
    "objective-monotone",
    weighed,
    case="any functions",
    examples=50,
    points=st.lists(st.tuples(*[st.integers(0, 99)] * 3), min_size=3, max_size=6),
    weights=st.tuples(*[st.integers(1, 9)] * 3),
    term=st.integers(0, 2),
    more=st.integers(1, 99),
)


def targets_of(sets):
    """One row per set; the bits of a number say which of four labels it holds."""
    return np.array([[number >> label & 1 for label in range(4)] for number in sets], dtype=float)


def same_order(sets):
    """The smallest product of the gaps of two labels, in the targets of SupCon and of BCE."""
    rows = targets_of(sets)
    best = (rows / rows.sum(1, keepdims=True)).mean(0), rows.mean(0)
    return float(np.multiply(*(np.subtract.outer(x, x) for x in best)).min())


turned = checks.refuted(
    "objective-monotone",
    "one order for both terms",
    same_order,
    sets=st.lists(st.integers(1, 15), min_size=1, max_size=6),
)["sets"]


def solve(weight, rows):
    """Scores that minimise weight · SupCon + BCE over target rows; both are convex in them."""
    sim = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [sim], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )  # fmt: skip
    every = torch.ones_like(rows).bool()

    def value():
        same = sim.expand_as(rows)
        return supcon_loss(same, rows, every), bce_loss(same, rows, every)

    def closure():
        optimiser.zero_grad()
        total = weight * value()[0] + value()[1]
        total.backward()
        return total

    optimiser.step(closure)
    return *(float(x.detach()) for x in value()), sim.detach().numpy()


def pairwise(scores, rows):
    """Share of pairs of a true and a false label that the scores put in the right order."""
    right = [
        np.mean([scores[j] > scores[k] for j in np.flatnonzero(y) for k in np.flatnonzero(1 - y)])
        for y in rows.numpy()
    ]
    return float(np.mean(right))


# The package's losses turn the order in the sets that hypothesis found.
found_rows = targets_of(turned)
found_best = [solve(x, torch.from_numpy(found_rows))[2] for x in (0.0, 100.0)]
assert np.multiply(*(np.subtract.outer(x, x) for x in found_best)).min() < -1e-3
named = [
    "{" + ", ".join(label for label, x in zip("ABCD", row, strict=True) if x) + "}"
    for row in found_rows
]
paste("objective_turned", ", ".join(named))

# {A} in four of ten rows, {B, C, D} in the other six.
unequal = torch.tensor([[1.0, 0, 0, 0]] * 4 + [[0, 1.0, 1, 1]] * 6, dtype=torch.float64)
ladder = [0.0, 0.1, 1.0, 10.0, 100.0]
ranked = [solve(x, unequal) for x in ladder]
order = np.array([pairwise(scores, unequal) for *_, scores in ranked])
first = [float(unequal[:, scores.argmax()].mean()) for *_, scores in ranked]
supcon_falls = -np.diff([row[0] for row in ranked])
checks.at_least("objective-monotone", "search", supcon_falls, 0.0, 1e-9, case="unequal sets")
checks.rejects("objective-monotone", "more weight ranks no worse", order[-1], order[0], 1e-9)
lost_order = float(order[0] - order[-1])
report.metric("effect/math-12.1-supcon-higher", lost_order, unit="pairs in the right order, lost")
table = pd.DataFrame(
    {
        "SupCon": [f"{row[0]:.3f}" for row in ranked],
        "pairs in the right order": [f"{x:.2f}" for x in order],
        "best label is true": [f"{x:.2f}" for x in first],
    },
    index=pd.Index([f"{x:g}" for x in ladder], name="weight of SupCon"),
)
paste_table(
    "objective-ranking",
    table,
    "Best scores for two sets of unequal size; the weight of BCE is one.",
)

g = np.random.default_rng(0)
chances = np.array([0.9, 0.6, 0.3, 0.1])
votes = torch.from_numpy((g.random((400, 4)) < chances).astype(float))
agreed = votes.numpy().mean(0)
solved = [solve(x, votes) for x in ladder]
solved = np.array([(s, b, np.abs(expit(sim) - agreed).mean()) for s, b, sim in solved])
checks.at_least(
    "objective-monotone", "search", -np.diff(solved[:, 0]), 0.0, 1e-9, case="SupCon falls"
)
checks.at_least("objective-monotone", "search", np.diff(solved[:, 1]), 0.0, 1e-9, case="BCE rises")
lost_calibration = float(solved[3, 2] - solved[1, 2])
report.metric("effect/math-12.1-supcon-lower", lost_calibration, unit="mean calibration error")
for weight, row in zip(ladder, solved, strict=True):
    report.metric(f"calibration_error/supcon_weight_{weight:g}", row[2], n=400)
table = pd.DataFrame(solved, index=[f"{x:g}" for x in ladder]).map("{:.3f}".format)
table.columns = ["SupCon", "BCE", "mean calibration error"]
table.index.name = "weight of SupCon"
paste_table(
    "objective-calibration",
    table,
    "Best scores of one text with uncertain labels; the weight of BCE is one.",
)

# %% [markdown]
# ```{glue:md} objective-ranking
# :format: myst
# ```
#
# ```{glue:md} objective-calibration
# :format: myst
# ```
#
# **Separation.**
# The third table has a text of fixed direction, two true labels and a false one, all in the plane.
# Every triple of angles on a grid was tried, with the true labels within a right angle of the text.
# Without repulsion the two true labels fall together on the text.
# This is the collapse that math §12.1 fears, and it is partial: SupCon and BCE keep the false label away.
# With enough repulsion the true labels part until their cosine falls below {math}`\theta_{\text{rep}}`.
# More weight does not part them further, because there is no force below the threshold.
# So the threshold limits the separation, and not the weight.

# %% tags=["hide-input"]
near = torch.deg2rad(torch.arange(-90, 91, 2, dtype=torch.float64))
around = torch.deg2rad(torch.arange(-180, 180, 30, dtype=torch.float64))
grid = torch.cartesian_prod(near, near, around)  # two true labels, one false
e = torch.stack([grid.cos(), grid.sin()], dim=-1)
sim = E2 * grid.cos()
targets = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64).expand(len(grid), 3)
three = torch.ones(len(grid), 3, dtype=torch.bool)
theta = GliZNetConfig.math().repulsion_threshold


def each(function, *columns):
    """A loss of the package for every row alone."""
    rows = torch.vmap(lambda *x: function(*(y[None] for y in x)), in_dims=0)
    return rows(*columns).numpy()


values = {
    "SupCon": each(supcon_loss, sim, targets, three),
    "repulsion": each(lambda e, m: repulsion_loss(e, m, theta), e, three),
    "BCE": each(lambda s, y, m: bce_loss(s, y, m, E2, E2), sim, targets, three),
}
for number in g.integers(0, len(grid), 5):
    alone = repulsion_loss(e[number : number + 1], three[:1], theta)
    assert abs(values["repulsion"][number] - float(alone)) < ROUND_OFF
sweep, columns = {}, ("SupCon", "BCE", "repulsion")
for term in columns:
    at = []
    for weight in (0.0, 0.01, 0.1, 1.0, 10.0):
        mix = {"SupCon": 1.0, "repulsion": 0.1, "BCE": 1.0} | {term: weight}
        at.append(int(np.argmin(sum(mix[name] * values[name] for name in columns))))
        if term == "repulsion":
            turn = grid[at[-1]].numpy()
            sweep[f"{weight:g}"] = {
                "two true labels": f"{math.cos(turn[0] - turn[1]):.2f}",
                "true label and text": f"{max(math.cos(turn[0]), math.cos(turn[1])):.2f}",
                "false label and text": f"{math.cos(turn[2]):.2f}",
                "repulsion": f"{values['repulsion'][at[-1]]:.3f}",
            }
            report.metric(f"plane/cosine_of_true_labels/{weight:g}", math.cos(turn[0] - turn[1]))
    falls = -np.diff(values[term][at])
    checks.at_least("objective-monotone", "search", falls, 0.0, ROUND_OFF, case=f"plane, {term}")
collapsed = float(sweep["0"]["two true labels"])
parted = [float(row["two true labels"]) for row in sweep.values()][2:]
table = pd.DataFrame(sweep).T
table.index.name = "weight of repulsion"
paste_table(
    "objective-plane",
    table,
    "Cosines at the best of all angles; the weights of SupCon and BCE are one.",
)

# %% [markdown]
# ```{glue:md} objective-plane
# :format: myst
# ```
#
# ### Only ratios count
#
# AdamW divides a running mean of the gradient by the root of a running mean of its square.
#
# **Proposition.**
# Let {math}`\hat m` and {math}`\hat v` be Adam's corrected means, and let its constant {math}`\varepsilon` be zero.
# For every {math}`c > 0` the loss {math}`c\,\mathcal{L}` gives the same step as {math}`\mathcal{L}`:
#
# ```{math}
# :label: eq-objective-adam
# \frac{\hat m(c\, g_1, \dots, c\, g_n)}{\sqrt{\hat v(c\, g_1, \dots, c\, g_n)}} = \frac{\hat m(g_1, \dots, g_n)}{\sqrt{\hat v(g_1, \dots, g_n)}}.
# ```
#
# **Proof.**
# {math}`\hat m` is linear in the gradients and {math}`\hat v` quadratic; weight decay does not see the loss at all.
#
# The card's three weights are half of those of the mathematics document.
# So AdamW sees the same mixture in both, of different terms.
# Only {math}`\varepsilon` and the clipping of the gradient's norm, which acts on a halved gradient less often, break the symmetry a little.

# %% tags=["hide-input"]
c, beta1, beta2 = sympy.symbols("c beta1 beta2", positive=True)
grads = sympy.symbols("g1:4", real=True)


def adam_step(g):
    first = sum((1 - beta1) * beta1 ** (len(g) - 1 - i) * x for i, x in enumerate(g))
    second = sum((1 - beta2) * beta2 ** (len(g) - 1 - i) * x**2 for i, x in enumerate(g))
    return first**2 / second, first


plain_ratio, plain_mean = adam_step(grads)
scaled_ratio, scaled_mean = adam_step([c * x for x in grads])
checks.zero("objective-adam", scaled_ratio - plain_ratio, case="square of the step")
checks.zero("objective-adam", scaled_mean - c * plain_mean, case="its sign")


def walk(weights, optimiser, count=6):
    """Label embeddings after some steps on the total loss of a random batch."""
    e, *rest = padded(texts(0))
    e.requires_grad_()
    make = optimiser([e])
    for _ in range(count):
        make.zero_grad()
        total_loss(*package_terms(e, *rest), weights).total.backward()
        e.grad[~rest[2]] = 1.0  # zero over zero for padding, where there is no gradient
        make.step()
    return e.detach()[rest[2]]


def adamw(parameters, eps=0.0):
    return torch.optim.AdamW(parameters, lr=0.01, eps=eps, weight_decay=0.01)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.01)


same = walk(PRESETS["math"], adamw), walk(PRESETS["card"], adamw)
checks.equal("objective-adam", "autograd", *same, 1e-12)
checks.rejects(
    "objective-adam", "plain gradient descent",
    walk(PRESETS["math"], sgd), walk(PRESETS["card"], sgd), 1e-12,
)  # fmt: skip
steps_of = []
for factor in (1.0, 0.3):
    m, v, path = np.zeros(3), np.zeros(3), []
    for i, gradient in enumerate(factor * np.random.default_rng(1).normal(0, 1, (5, 3))):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        path.append(m / (1 - 0.9 ** (i + 1)) / np.sqrt(v / (1 - 0.999 ** (i + 1))))
    steps_of.append(path)
checks.equal("objective-adam", "naive", *steps_of, 1e-12)

# %% [markdown]
# ## Training as the documents set it
#
# Both documents train with AdamW.
# The learning rate {math}`\eta` rises over the first {math}`w` of {math}`n` steps and then falls:
#
# ```{math}
# :label: eq-objective-schedule
# \frac{\eta(i)}{\eta_{\max}} = \begin{cases} i / w & i < w, \\ (n - i) / (n - w) & i \ge w, \text{ math}, \\ \tfrac12\left(1 + \cos \pi\, \frac{i - w}{n - w}\right) & i \ge w, \text{ card}, \end{cases}
# ```
#
# for step {math}`i = 0, \dots, n - 1`.
# The first step has the rate zero.
# Math §9.3 wants a lower rate for the backbone than for the new parameters: `head_lr_multiplier` is that factor.

# %% tags=["hide-input"]
STEPS = 40
for name, settings in SCHEDULES.items():
    warm = math.ceil(settings["warmup_steps"] * STEPS)
    dummy = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = transformers.get_scheduler(settings["lr_scheduler_type"], dummy, warm, STEPS)
    rates = []
    for _ in range(STEPS):
        rates.append(schedule.get_last_lr()[0])
        dummy.step()
        schedule.step()
    formula = []
    for i in range(STEPS):
        left = (i - warm) / (STEPS - warm)
        fall = 1 - left if name == "math" else (1 + math.cos(math.pi * left)) / 2
        formula.append(i / warm if i < warm else fall)
    checks.equal("objective-schedule", "library", rates, formula, ROUND_OFF, case=name)
stated = {"math": ("linear", 0.1), "card": ("cosine", 0.05)}
for name, (kind, share) in stated.items():
    assert SCHEDULES[name]["lr_scheduler_type"] == kind
    checks.equal(
        "objective-schedule", "exact", SCHEDULES[name]["warmup_steps"], share, case=f"{name} share"
    )
checks.equal(
    "objective-schedule", "exact", SCHEDULES["card"]["weight_decay"], 1e-3, case="card decay"
)
most = inspect.signature(train).parameters["max_labels"].default
checks.equal("objective-schedule", "exact", most, 20, case="card labels per row")
checks.equal("objective-schedule", "exact", 16 * 2 * 4, 128, case="card effective batch")
checks.equal("objective-total", "exact", GliZNetConfig.card().margin, 0.5, case="card margin")

# %% [markdown]
# ## A short real run
#
# Now the forces on real label embeddings.
# The package trains a model on the shipped corpus for a few steps.
# The learning rates are the ends of the range of math §9.3: the lower one for the backbone, the higher one for the new parameters.
# At every forward pass we take the gradient of each unweighted term by all label embeddings of the batch, through the attention.

# %% tags=["hide-input"]
TERMS = ("contrastive", "repulsion", "bce")
TITLES = {"contrastive": "contrastive", "repulsion": "repulsion", "bce": "BCE"}
seen = []


def look(model, args, inputs, output):
    """Gradients of the three terms by the label embeddings of one batch."""
    e, mask, y = output.label_embeddings, output.label_mask, inputs["labels"]
    found = []
    for name in TERMS:
        gradient = torch.autograd.grad(
            output.loss_terms[name], e, retain_graph=True, allow_unused=True
        )[0]
        found.append(torch.zeros_like(e) if gradient is None else gradient)
    supcon, _, bce = found
    tau, tau_bce = model.tau.detach(), model.tau_bce.detach()
    frozen = model.head(output.text_embeddings.detach(), e, tau)
    head_alone = torch.autograd.grad(supcon_loss(frozen, y, mask), e)[0]
    sim = output.logits.detach().requires_grad_()
    by_score = [
        torch.autograd.grad(loss, sim)[0]
        for loss in (supcon_loss(sim, y, mask), bce_loss(sim, y, mask, tau, tau_bce))
    ]
    true = (y > 0.5) & mask
    lengths = supcon.norm(dim=-1) * bce.norm(dim=-1)
    large = mask & (lengths > 1e-4 * lengths.max())
    per_label = (supcon * bce).sum(-1)[large] / lengths[large]
    flat = torch.stack([x.flatten().double() for x in found])
    along = (bce * e).sum(-1) / e.norm(dim=-1).clamp(min=1e-9)
    seen.append(
        {
            "gram": (flat @ flat.T).numpy(),
            "missing": float((supcon - head_alone).norm() / supcon.norm()),
            "radial": float(along.detach().norm() / bce.norm()),
            "opposed": float(((by_score[0] * by_score[1] < 0) & true).sum() / true.sum()),
            "off the line": float((per_label.abs() - 1).abs().max()),
            "scores": float((by_score[0] * by_score[1]).sum()),
        }
    )


examples = list(hardset_mini("train"))
report.data("hardset-mini/train", rows=len(examples), sha256=examples_sha256(examples))
path = resolve(backbone, report.out)
report.backbone(backbone, fingerprint(path))
set_seed(seed)
tokenizer = GliZNETTokenizer.from_pretrained(path, max_length=max_length)
model = GliZNetForSequenceClassification.from_backbone(path, tokenizer, **config)
handle = model.register_forward_hook(look, with_kwargs=True)
with contextlib.redirect_stdout(io.StringIO()):
    trainer = train(
        model,
        tokenizer,
        examples[: steps * batch_size],
        report.out / "checkpoints",
        seed=seed,
        learning_rate=learning_rate,
        head_lr_multiplier=head_lr_multiplier,
        max_steps=steps,
        batch_size=batch_size,
        backbone_dropout=0.0,
        save_strategy="no",
        logging_strategy="no",
    )
handle.remove()
assert len(seen) == steps
assert min(x["missing"] for x in seen) > 0, "the attention passes no gradient to the labels"
groups = {(x["initial_lr"], x["weight_decay"]) for x in trainer.optimizer.param_groups}
rates = {learning_rate, learning_rate * head_lr_multiplier}
decays = {0.0, SCHEDULES["math"]["weight_decay"]}
assert groups == {(rate, decay) for rate in rates for decay in decays}
decayed = [
    x for group in trainer.optimizer.param_groups if group["weight_decay"] for x in group["params"]
]
assert min(x.ndim for x in decayed) > 1, "only matrices are decayed"
inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)  # accelerate wraps it
assert type(inner).__name__ == "AdamW"
checks.equal(
    "objective-schedule", "exact", sorted(rates), [1e-5, 5e-5], 1e-18, case="range of math §9.3"
)
last = trainer.lr_scheduler.get_last_lr()
checks.equal(
    "objective-schedule", "exact", last, [0.0] * len(last), case="rate after the last step"
)

# %% tags=["hide-input"]
grams = np.stack([x["gram"] for x in seen])
lengths = np.sqrt(np.stack([grams[:, i, i] for i in range(3)], axis=1))
PAIRS = {
    "contrastive and BCE": (0, 2),
    "contrastive and repulsion": (0, 1),
    "BCE and repulsion": (1, 2),
}
cosines = {
    name: grams[:, i, j] / np.maximum(lengths[:, i] * lengths[:, j], 1e-30)
    for name, (i, j) in PAIRS.items()
}
off_line = max(x["off the line"] for x in seen)
# float32, and gradients that are sums over tokens: a looser tolerance than in the cells above.
checks.equal("objective-collinear", "autograd", off_line, 0.0, 1e-3, case="the real run")
in_scores = [x["scores"] for x in seen]
checks.at_least("objective-agreement", "search", in_scores, 0.0, 1e-9, case="the real run")
summary = {}
for name, values in (
    *((f"cosine, {k}", v) for k, v in cosines.items()),
    ("true labels on which SupCon and BCE are opposed", [x["opposed"] for x in seen]),
    ("attention part that the head alone misses", [x["missing"] for x in seen]),
    ("radial share of BCE", [x["radial"] for x in seen]),
    *((f"length of the gradient, {k}", lengths[:, i]) for i, k in enumerate(TERMS)),
):
    quarter = max(1, steps // 4)
    first, final, mean = (float(np.mean(x)) for x in (values[:quarter], values[-quarter:], values))
    summary[name] = {"first quarter": f"{first:.3f}", "last quarter": f"{final:.3f}"}
    report.metric(f"run/{name}/mean", mean, n=steps)
    report.metric(f"run/{name}/first", first, n=quarter)
    report.metric(f"run/{name}/last", final, n=quarter)
run_missing, run_opposed = (float(np.mean([x[k] for x in seen])) for k in ("missing", "opposed"))
run_conflict = float((cosines["contrastive and BCE"] < 0).mean())
report.metric("run/share of steps with a conflict of contrastive and BCE", run_conflict, n=steps)
table = pd.DataFrame(summary).T
table.index.name = "mean over steps"
paste_table("objective-run", table, "The forces on the label embeddings of each batch.")
paste("objective_run", f"{backbone}, {steps} steps of {batch_size} rows")

# %% [markdown]
# The run: {glue:text}`objective_run:s`.
#
# ```{glue:md} objective-run
# :format: myst
# ```
#
# The cosines compare the gradients of two terms by all label embeddings of a batch, put into one vector.
# Near zero, two terms do not affect each other; below zero, one undoes part of the other.
# "Attention part that the head alone misses" is relative to the length of the whole gradient.

# %% mystnb={"figure": {"caption": "Above: cosine between the gradients of two terms by all label embeddings of a batch. Below: length of each gradient times its weight in the mathematics document.", "name": "fig-objective-run"}, "image": {"alt": "Two line plots over training steps: three cosines, and three weighted gradient lengths on a logarithmic scale."}}
figure, (above_axis, below) = plt.subplots(2, 1, figsize=(6.4, 5), sharex=True)
for (name, values), colour, style in zip(
    cosines.items(), ("math", "card", "published"), ("-", "--", ":"), strict=True
):
    above_axis.plot(range(1, steps + 1), values, style, color=COLOURS[colour], label=name)
above_axis.axhline(0, color=COLOURS["untrained"], linewidth=0.8)
above_axis.set(ylabel="cosine", ylim=(-1, 1.6), yticks=(-1, -0.5, 0, 0.5, 1))
above_axis.legend(frameon=False, fontsize=8, ncol=2, loc="upper left")
for i, (name, colour, style) in enumerate(
    zip(TERMS, ("math", "published", "card"), ("-", ":", "--"), strict=True)
):
    below.plot(
        range(1, steps + 1),
        PRESETS["math"][i] * lengths[:, i],
        style,
        color=COLOURS[colour],
        label=TITLES[name],
    )
below.set(xlabel="optimiser step", ylabel="weighted length", yscale="log")
below.legend(frameon=False, fontsize=8, ncol=3)
below.xaxis.get_major_locator().set_params(integer=True)
show(figure)

# %% [markdown]
# ### Who wins the step
#
# Which term does a step serve?
# Let {math}`g_i` be the gradient of term {math}`i` and {math}`G = \sum_i \lambda_i g_i` that of the objective.
# A small step {math}`-\eta G` lowers the objective by {math}`\eta \|G\|^2`, to first order.
# Of that, term {math}`i` has the share
#
# ```{math}
# :label: eq-objective-share
# q_i = \frac{\lambda_i \langle g_i, G \rangle}{\|G\|^2}, \qquad \sum_i q_i = 1,
# ```
#
# **Proof.**
# The step changes {math}`\lambda_i \mathcal{L}_i` by {math}`-\eta\,\lambda_i \langle g_i, G \rangle` to first order.
# The sum of {math}`\lambda_i g_i` is {math}`G`.
#
# A share below zero means that the step makes that term worse.
# By {eq}`eq-objective-adam` only the ratios of the weights matter, so all choices fit into a triangle with one term at each corner.

# %% tags=["hide-input"]
weight_symbols = sympy.symbols("l1:4", positive=True)
vectors = [sympy.Matrix(sympy.symbols(f"{x}1:4", real=True)) for x in "abc"]
whole = sum((w * v for w, v in zip(weight_symbols, vectors, strict=True)), sympy.zeros(3, 1))
parts_of = [
    w * v.dot(whole) / whole.dot(whole) for w, v in zip(weight_symbols, vectors, strict=True)
]
checks.zero("objective-share", sum(parts_of) - 1)


def shares_of(gram, weights):
    """Shares q for an array of weights, from the inner products of the gradients."""
    pulled = weights @ gram
    return weights * pulled / np.maximum((weights * pulled).sum(-1, keepdims=True), 1e-30)


by_formula, by_step, by_differences, from_loops = [], [], [], []
for number in range(cases):
    batch = texts(number)
    e, *rest = padded(batch)
    gradients = package_forces(batch).flatten(1)
    gram = (gradients @ gradients.T).numpy()
    by_formula.append(shares_of(gram, LAMBDA[None])[0])
    direction = (torch.from_numpy(LAMBDA) @ gradients).reshape(e.shape)
    along = lambda eta, e=e, d=direction, r=rest: torch.stack(  # noqa: E731
        package_terms(e - eta * d, *r)
    )
    slope = torch.autograd.functional.jacobian(along, torch.tensor(0.0, dtype=torch.float64))
    by_step.append(-LAMBDA * slope.numpy() / float(direction.square().sum()))
    if number < 3:  # central differences of the plain losses along the step
        numeric = [numeric_forces(batch, b).reshape(3, -1) for b in range(len(batch))]
        whole = LAMBDA @ np.concatenate(numeric, axis=1)
        paths, taken = [], 0
        for labels, *others in batch:
            size = np.size(labels)
            paths.append((np.array(labels), whole[taken : taken + size], others))
            taken += size
        step = lambda eta, paths=paths: losses_of(  # noqa: E731
            [((e - eta * g.reshape(e.shape)).tolist(), *x) for e, g, x in paths], NUMBERS
        )
        change = (np.array(step(1e-5)) - np.array(step(-1e-5))) / 2e-5
        by_differences.append(-LAMBDA * change / (whole @ whole))
        from_loops.append(by_formula[-1])
checks.equal("objective-share", "autograd", by_formula, by_step, 1e-10)
checks.equal("objective-share", "naive", from_loops, by_differences, 1e-6)
checks.equal("objective-share", "exact", np.sum(by_formula, axis=1), np.ones(cases), 1e-10)

mean_gram = grams.mean(0)
at_preset = shares_of(mean_gram, np.array([PRESETS["math"]]))[0]
at_card = shares_of(mean_gram, np.array([PRESETS["card"]]))[0]
checks.equal("objective-share", "exact", at_preset, at_card, 1e-12, case="both presets")
for name, value in zip(TERMS, at_preset, strict=True):
    report.metric(f"share_of_step/{name}", float(value), n=steps)
paste(
    "objective_shares",
    ", ".join(f"{TITLES[n]} {100 * v:z.1f} %" for n, v in zip(TERMS, at_preset, strict=True)),
)

# %% mystnb={"figure": {"caption": "Every mixture of the three weights. Colour: the term with the largest share of the step, from the gradients of the run. Black dots: a step makes one of the terms worse. Star: both documents.", "name": "fig-objective-simplex"}, "image": {"alt": "A triangle with corners contrastive, BCE and repulsion, coloured by the term that has the largest share of the step, with a star near the side opposite to repulsion."}}
N_SIDE = 60
mixtures = np.array(
    [(i, j, N_SIDE - i - j) for i in range(N_SIDE + 1) for j in range(N_SIDE + 1 - i)]
) / N_SIDE  # fmt: skip
corners = np.array([[0.0, 0.0], [0.5, math.sqrt(3) / 2], [1.0, 0.0]])
found = shares_of(mean_gram, mixtures)
figure, axis = plt.subplots(figsize=(5.4, 4.8))
for i, colour in enumerate(("math", "published", "card")):
    chosen = mixtures[found.argmax(1) == i] @ corners
    axis.scatter(*chosen.T, s=30, marker="h", linewidths=0, color=COLOURS[colour], alpha=0.6)
worse = mixtures[(mixtures @ mean_gram).min(1) < 0] @ corners
axis.scatter(*worse.T, s=1.5, color="black")
star = np.array(PRESETS["math"]) / sum(PRESETS["math"]) @ corners
axis.scatter(*star, s=160, marker="*", color="white", edgecolors="black", zorder=3)
for corner, name, place in zip(corners, TERMS, ("top", "bottom", "top"), strict=True):
    offset = -0.04 if place == "top" else 0.04
    axis.text(corner[0], corner[1] + offset, f"{TITLES[name]} only", ha="center", va=place)
axis.set(xlim=(-0.15, 1.15), ylim=(-0.15, 1.0), aspect="equal")
axis.axis("off")
show(figure)
winners = {name: float((found.argmax(1) == i).mean()) for i, name in enumerate(TERMS)}
for name, value in winners.items():
    report.metric(f"simplex/{name}_wins", value, n=len(mixtures))
worse_share = len(worse) / len(mixtures)
report.metric("simplex/some_term_gets_worse", worse_share, n=len(mixtures))

# %% [markdown]
# At the weights of the documents the shares are {glue:text}`objective_shares:s`.
#
# ## Where it is not differentiable
#
# Math §11.1 says that the loss is differentiable except at the threshold of the repulsion.
# There are two more exceptions.
#
# **At the threshold.**
# Let a pair of labels move along a path {math}`e(\eta)` with {math}`\cos = \theta_{\text{rep}}` and {math}`\frac{d}{d\eta}\cos = \kappa > 0` at {math}`\eta = 0`.
# For a text with these two labels
#
# ```{math}
# :label: eq-objective-kink
# \lim_{\eta \to 0^-} \frac{\mathcal{L}_{\text{rep}}(\eta) - \mathcal{L}_{\text{rep}}(0)}{\eta} = 0, \qquad
# \lim_{\eta \to 0^+} \frac{\mathcal{L}_{\text{rep}}(\eta) - \mathcal{L}_{\text{rep}}(0)}{\eta} = \kappa.
# ```
#
# **Proof.**
# Left of zero the hinge is zero; right of it the loss is {math}`\cos - \theta_{\text{rep}}`.
#
# PyTorch returns the left value, zero, an element of Clarke's generalised gradient {math}`[0, 1] \cdot \nabla \cos`.
# The subdifferential of convex analysis does not apply, because the loss is not convex in the embeddings.
#
# **At a zero vector.**
# For a unit vector {math}`u` and any {math}`v \ne 0`
#
# ```{math}
# :label: eq-objective-zero
# \lim_{\eta \to 0^+} \cos(\eta u, v) = \langle u, \hat v \rangle, \qquad
# \left\| \nabla_e \cos(e, v) \right\| = \frac{\sqrt{1 - \cos^2(e, v)}}{\|e\|}.
# ```
#
# The limit depends on the direction {math}`u`.
# So the cosine, and with it all three terms, is not even continuous at {math}`e = 0`, and its gradient grows without bound on the way there.
# The package puts a small constant into the division: at a zero vector the score is zero, and the gradient finite but huge.
# Dense layers do not produce exact zeros by chance; a zero initialisation does.
#
# **Without a true label** math §8.1.1 divides zero by zero.
# The package leaves such a text out of SupCon's mean.

# %% tags=["hide-input"]
left, right, kappas, at_kink = [], [], [], []
for number in range(cases):
    g = np.random.default_rng(number)
    basis = np.linalg.qr(g.normal(0, 1, (4, 2)))[0].T
    threshold = g.uniform(0.1, 0.9)
    start = math.acos(threshold)
    both = torch.ones(1, 2, dtype=torch.bool)

    def on_path(eta, basis=basis, start=start):
        moved = torch.as_tensor(basis[0] * 1.7)
        other = torch.cos(start - eta) * torch.as_tensor(basis[0])
        return torch.stack([moved, other + torch.sin(start - eta) * torch.as_tensor(basis[1])])[
            None
        ]

    at = lambda eta, t=threshold, f=on_path, m=both: float(  # noqa: E731
        repulsion_loss(f(torch.tensor(eta, dtype=torch.float64)), m, t)
    )
    h = 1e-6
    left.append((at(0.0) - at(-h)) / h)
    right.append((at(h) - at(0.0)) / h)
    kappas.append(math.sqrt(1 - threshold**2))
checks.equal("objective-kink", "search", left, np.zeros(cases), 1e-5, case="left")
checks.equal("objective-kink", "search", right, kappas, 1e-5, case="right")
checks.rejects("objective-kink", "one derivative", left, right, 1e-5)


def one_sided(threshold):
    """Minus the larger error of both difference quotients of the package's loss."""
    angle = math.acos(threshold) - np.array([-1e-6, 0.0, 1e-6])
    turned = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    pairs = torch.tensor(np.stack([np.tile([1.0, 0.0], (3, 1)), turned], axis=1))
    pair = torch.ones(1, 2, dtype=torch.bool)
    before, at, after = (float(repulsion_loss(x[None], pair, threshold)) for x in pairs)
    kappa = math.sqrt(1 - threshold**2)
    return -max(abs(at - before), abs(after - at - 1e-6 * kappa)) / 1e-6


checks.survives("objective-kink", one_sided, 1e-5, examples=75, threshold=st.floats(-0.9, 0.9))

jumps, found, formula = [], [], []
both, y = torch.ones(1, 2, dtype=torch.bool), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
for number in range(cases):
    g = np.random.default_rng(number)
    v = torch.from_numpy(g.normal(0, 1, 4))
    u = torch.from_numpy(g.normal(0, 1, 4))
    u = u / u.norm()
    for radius in (1e-3, 1e-6):
        leaf = (radius * u).requires_grad_()
        value = head(v[None, None], leaf[None, None], torch.tensor(1.0).double()).squeeze()
        expected = float(u @ v / v.norm())
        slope = torch.autograd.grad(value, leaf)[0].norm()
        found.append((float(value.detach()), radius * float(slope)))
        formula.append((expected, math.sqrt(1 - expected**2)))
    texts_of = torch.stack([v, v])[None]
    ends = [torch.stack([sign * 1e-6 * v / v.norm(), u])[None] for sign in (1, -1)]
    values = [
        float(supcon_loss(head(texts_of, x, torch.tensor(E2).double()), y, both)) for x in ends
    ]
    jumps.append(abs(values[0] - values[1]))
checks.equal("objective-zero", "search", found, formula, 1e-9)
jump = float(np.median(jumps))
report.metric("effect/math-11.1-differentiable", jump, n=cases, unit="jump of SupCon across zero")
zero = torch.zeros(1, 1, 4, dtype=torch.float64, requires_grad=True)
value = head(v[None, None], zero, torch.tensor(1.0).double())
slope = float(torch.autograd.grad(value.sum(), zero)[0].norm())
assert value.item() == 0 and math.isfinite(slope)
no_true = supcon_loss(torch.zeros(1, 2).double(), torch.zeros(1, 2).double(), both)
assert no_true.item() == 0
report.metric("gradient_at_zero_vector", slope)
pd.DataFrame(
    {
        "value": [f"{jump:.2f}", f"{slope:.1e}", f"{no_true.item():g}"],
    },
    index=[
        "SupCon on both sides of a zero vector, difference",
        "gradient of the package's cosine at a zero vector",
        "SupCon of a text without a true label",
    ],
)

# %% [markdown]
# ## What this means in practice
#
# - Adding BCE to SupCon adds no direction. It changes how far each label is pulled, and it alone sets the level of the scores.
# - The repulsion matters where the others are silent, as between two true labels close to the text.
# - A search over weights needs two numbers, not three.
# - Choose a weight by the ranking and the calibration that you measure, not by the value of a loss.
#
# ## Edge cases
#
# A weight of zero takes a term out of the sum, so that a term that is not finite cannot spoil it.
# If all weights are zero, the loss is zero and still has a gradient, so a training loop does not break.

# %%
leaf = torch.tensor(2.0, requires_grad=True)
off = total_loss(leaf, torch.tensor(math.nan), leaf, (1.0, 0.0, 1.0)).total
none = total_loss(leaf, leaf, leaf, (0.0, 0.0, 0.0)).total
assert off.item() == 4 and none.item() == 0 and torch.autograd.grad(none, leaf)[0].item() == 0
print(f"with a term switched off: {off.item():g}; with all switched off: {none.item():g}")

# %% [markdown]
# ## Every check

# %%
checks.table()

# %% tags=["hide-input"]
every_kind = "symbolic, autograd and naive checks"
definition = "a definition"
verdicts = {
    "math-8-total": (
        "verified",
        f"total_loss is the weighted sum; {every_kind} on {cases} random triples",
    ),
    "math-8-weights": ("verified", "the configuration refuses negative weights"),
    "math-9.1-chain": (
        "verified",
        f"read with the total derivative of the score ({every_kind}); the head alone would miss {missing[0]:.2f} of the gradient's size on random batches with the dot product, {missing[1]:.2f} with the cosine, {run_missing:.2f} in the run",
    ),
    "math-9.1-supcon-force": (
        "corrected",
        f"a true label that holds more than its share of the softmax is pushed away (signs of the package's gradients): {100 * pushed_away:.0f} % of true labels in random rows with several, {100 * run_opposed:.0f} % in the run",
    ),
    "math-9.1-repulsion-force": (
        "verified",
        f"the force is minus the gradient of the mean excess of the cosines ({every_kind}), and orthogonal to the embedding, so no length counts",
    ),
    "math-9.1-bce-force": (
        "corrected",
        f"BCE acts along the line of SupCon and, with the cosine in the attention, exactly across the embedding; with the dot product its radial share is {radial_dot:.2f} (median); the scale it trains is tau_BCE",
    ),
    "math-9.3-optimiser": (
        "verified",
        f"{definition}: the run's optimiser is AdamW, and it decays matrices only, no bias, norm or temperature",
    ),
    "math-9.3-learning-rate": (
        "verified",
        f"{definition}: the run's optimiser has the lower end of the range for the backbone and the upper end for the new parameters; whether the range is good is not judged here",
    ),
    "math-9.3-warmup": (
        "verified",
        f"{definition}: the schedule equals the formula over {STEPS} steps",
    ),
    "math-9.3-weights": ("verified", f"{definition}: the preset holds these weights"),
    "math-9.3-scheduler": (
        "verified",
        f"{definition}: the schedule equals the formula over {STEPS} steps; that it prevents overfitting is not judged here",
    ),
    "math-11.1-differentiable": (
        "corrected",
        f"also at zero vectors, where SupCon jumps by {jump:.2f} (median), and undefined without a true label; at the threshold both one-sided derivatives are as stated",
    ),
    "math-12.1-supcon-higher": (
        "corrected",
        f"more weight cannot raise SupCon's training value at a global minimum (proof, hypothesis, three families of minima), but with two sets of unequal size the pairs in the right order fall from {order[0]:.2f} to {order[-1]:.2f}",
    ),
    "math-12.1-supcon-lower": (
        "corrected",
        f"the direction is the other one: with uncertain labels and free scores the calibration error of the sigmoids is {solved[1, 2]:.3f} at a weight of {ladder[1]:g} and {solved[3, 2]:.3f} at {ladder[3]:g}",
    ),
    "math-12.1-recommended": (
        "verified",
        f"{definition}: the preset holds these weights, in the order contrastive, repulsion, BCE",
    ),
    "card-training-loss": (
        "verified",
        f"{definition}: the preset holds these weights and this margin; AdamW makes the same steps with them as with the weights of the mathematics document (largest difference {float((same[0] - same[1]).abs().max()):.0e})",
    ),
    "card-training-optimiser": ("verified", f"{definition}: the run's optimiser is AdamW"),
    "card-training-schedule": (
        "verified",
        f"{definition}: the schedule equals the formula over {STEPS} steps",
    ),
    "card-training-decay": (
        "verified",
        f"{definition}: the card's schedule holds this weight decay",
    ),
    "card-training-batch": ("verified", "the three factors multiply to the printed number"),
    "card-training-epochs": (
        "not testable here",
        "it reports the authors' run, whose log is not public; train takes both settings, and no run committed here lasts ten epochs",
    ),
    "card-training-precision": (
        "not testable here",
        "it reports the authors' run; repeating it takes two GPUs and DeepSpeed; train takes bf16",
    ),
    "card-training-split": (
        "not testable here",
        "the data set is not within reach; counting its rows takes a download from the Hub",
    ),
    "card-training-labels": ("verified", f"{definition}: the default of train"),
}
for name, (verdict, why) in verdicts.items():
    report.outcome(name, verdict, evidence=why)
paste_table(
    "objective-outcomes", judged(report.outcomes), "Statements of the sources and their outcomes."
)
report.close()

# %% [markdown]
# What this chapter says of each statement of the sources:
#
# ```{glue:md} objective-outcomes
# :format: myst
# ```
