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
# # Encoding and the two spaces
#
# Between the encoder and the scores stand two small linear layers, one for the text and one for the labels.
# What can they express, how should they start, and how many parameters are they?
#
# This chapter finds:
#
# - **Start from the identity.** Two random maps erase what the encoder knows about a text and its label.
# - **Two maps can do what one cannot.** With one shared map, if text *cheap* speaks for label *complaint*, then text *complaint* speaks for label *cheap*.
# - **Equal dimensions are enough for dot products, not for cosines.** The source calls $d_p = d_h$ the maximum capacity. That holds for dot products without biases; under the cosine head the scores grow richer until $d_p = 2 d_h + 1$.
# - **A bilinear head on two linear projections adds no new scores** beyond a bias.
# - **The layers are small** beside the encoder. The source's estimates of their size are right to leading order.
#
# It covers §4, §9.2 and §12.3 of the mathematics document, "the source" on this page, and the sizes that the model card states {cite}`kameni2025gliznet`.
# The code is `projection` in `gliznet/layers.py` and the constructor in `gliznet/model.py`; {doc}`../notation` has the symbols.

# %% tags=["parameters"]
out: str = ""
profile: str = "smoke"
backbone: str = "tiny-random"  # encoder whose states are projected in the picture of the start
cases: int = 20  # random cases of each check
draws: int = 1000  # random starts, and random dropout masks
fits: int = 2  # starts of each fit in the picture of the dimension
seed: int = 0

# %%
import inspect
import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import sympy
import torch
import torch.nn.functional as F
from IPython.display import display
from torch.func import functional_call
from transformers import AutoConfig, AutoModel, BertConfig, BertModel, DebertaV2Config

from gliznet import GliZNetConfig, GliZNetForSequenceClassification
from gliznet.backbones import fingerprint, load_or_build, resolve
from gliznet.config import CHOICES
from gliznet.data.corpus import hardset_mini
from gliznet.data.types import examples_sha256
from gliznet.lab.checks import Checks
from gliznet.lab.figures import COLOURS, quiet, show, use_style
from gliznet.lab.ledger import judged
from gliznet.lab.records import Reporter
from gliznet.lab.tables import paste, paste_table
from gliznet.layers import SimilarityHead, label_conditioned_attention, projection

quiet()
use_style()
report = Reporter(out)
checks = Checks(report)

# %% tags=["hide-input"]
generator = torch.Generator().manual_seed(seed)


def normal(*shape):
    """Standard normal numbers in double precision."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def settings(d_h, d_p=None, **fields):
    """A configuration over an encoder of width d_h; projections start at random if not told."""
    fields = {"projection_init": "default", "projected_dim": d_p, **fields}
    return GliZNetConfig(BertConfig(hidden_size=d_h), **fields)


def build(d_h, d_p=None, spread=True, **fields):
    """A projection of the package; `spread` moves every parameter off its start."""
    torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
    made = projection(settings(d_h, d_p, **fields)).double().eval().requires_grad_(False)
    if spread:
        for parameter in made.parameters():
            parameter.data += 0.5 * normal(*parameter.shape)
    return made


# %% [markdown]
# ## The two projections
#
# **Definition.** Let $h_i \in \mathbb{R}^{d_h}$ be a hidden state.
# The text and the labels each have a weight $W \in \mathbb{R}^{d_p \times d_h}$ and a bias $b \in \mathbb{R}^{d_p}$.
# With the dropout rate $p \in [0, 1)$,
#
# ```{math}
# :label: eq-projections-linear
# z_i^{\text{text}} = \mathrm{Dropout}_p(W_{\text{text}}\, h_i + b_{\text{text}}), \qquad z_i^{\text{label}} = \mathrm{Dropout}_p(W_{\text{label}}\, h_i + b_{\text{label}})
# ```
#
# Both act on every position.
# There is one option, a layer normalisation.
# Let $u = W h + b$ and $d = d_p$, with the mean $\mu = \frac{1}{d} \sum_k u_k$ and the variance $v = \frac{1}{d} \sum_k (u_k - \mu)^2$.
# Let $\gamma, \beta \in \mathbb{R}^{d}$ be learnt and $\varepsilon$ a small constant:
#
# ```{math}
# :label: eq-projections-layernorm
# \mathrm{LN}(u) = \gamma \odot \hat u + \beta, \qquad \hat u = \frac{u - \mu \mathbf{1}}{\sqrt{v + \varepsilon}}
# ```
#
# The source writes this option without dropout, and recommends dropout in general (§12.3).
# So we read both together: $z = \mathrm{Dropout}_p(\mathrm{LN}(W h + b))$.
# At $p = 0$, the default of the package, both readings are the same.
#
# All of it is one function:

# %%
print(inspect.getsource(projection))

# %% [markdown]
# The third value, `projection="identity"`, leaves the hidden states alone.
# So does the start that the package gives to a linear projection: $W$ is the identity and $b$ is zero.
# Both need $d_p = d_h$.
#
# The loop below is the definition, number by number.


# %%
def naive_projection(h, W, b, gamma=None, beta=None, eps=0.0):
    """One hidden state, plain Python numbers, no dropout."""
    u = [sum(w * x for w, x in zip(row, h, strict=True)) + c for row, c in zip(W, b, strict=True)]
    if gamma is None:
        return u
    mean = sum(u) / len(u)
    variance = sum((x - mean) ** 2 for x in u) / len(u)
    hat = [(x - mean) / math.sqrt(variance + eps) for x in u]
    return [g * x + c for g, x, c in zip(gamma, hat, beta, strict=True)]


# %% tags=["hide-input"]
for kind, equation in (
    ("linear", "projections-linear"),
    ("linear_layernorm", "projections-layernorm"),
):
    found, loop = [], []
    unbiased = []
    for _ in range(cases):
        made = build(5, 4, projection=kind)
        h = normal(2, 3, 5)
        values = [p.tolist() for p in made.parameters()]
        eps = (made[1].eps,) if kind == "linear_layernorm" else ()
        found.append(made(h))
        loop.append([[naive_projection(x, *values, *eps) for x in row] for row in h.tolist()])
        if kind == "linear_layernorm":
            u = made[0](h)
            hat = (u - u.mean(-1, keepdim=True)) / (u.var(-1, keepdim=True) + made[1].eps).sqrt()
            unbiased.append(made[1].weight * hat + made[1].bias)
    # Sums of a few products in double precision.
    checks.equal(equation, "naive", torch.stack(found), np.array(loop), 1e-12)
    if unbiased:
        checks.rejects(
            equation, "variance over d - 1", torch.stack(unbiased), torch.stack(found), 1e-12
        )
shapes, wanted = [], []
for d_h, d_p in ((5, 3), (5, 5), (5, 8)):
    made = build(d_h, d_p)
    shapes += [*made[0].weight.shape, *made[0].bias.shape, *made(normal(2, 7, d_h)).shape]
    wanted += [d_p, d_h, d_p, 2, 7, d_p]
checks.equal("projections-linear", "exact", shapes, wanted, case="shapes")
made = build(5, 3)
jacobian = torch.autograd.functional.jacobian(made, normal(5))
checks.equal(
    "projections-linear", "autograd", jacobian, made[0].weight, 1e-14, case="derivative by h is W"
)
h = normal(2, 7, 5)
same = [
    build(5, projection="identity", spread=False)(h),
    build(5, projection_init="identity", spread=False)(h),
]
checks.equal(
    "projections-linear",
    "exact",
    torch.stack(same),
    torch.stack([h, h]),
    case="identity and its start",
)
try:
    settings(5, 3, projection_init="identity")
except ValueError as error:
    print(error)

# %% [markdown]
# ## What a layer normalisation does to the space
#
# **Proposition.** For $\hat u$ of {eq}`eq-projections-layernorm`, with $\delta_{ik}$ one for $i = k$ and zero otherwise,
#
# ```{math}
# :label: eq-projections-sphere
# \sum_k \hat u_k = 0, \qquad \lVert \hat u \rVert^2 = d\, \frac{v}{v + \varepsilon}
# ```
#
# ```{math}
# :label: eq-projections-layernorm-jacobian
# \frac{\partial \hat u_i}{\partial u_k} = \frac{1}{\sqrt{v + \varepsilon}} \left( \delta_{ik} - \frac{1}{d} - \frac{\hat u_i \hat u_k}{d} \right)
# ```
#
# *Proof.* Let $s = \sqrt{v + \varepsilon}$.
# The first line is the definition of $\mu$ and $v$: $\sum_k (u_k - \mu) = 0$ and $\sum_k (u_k - \mu)^2 / s^2 = d v / s^2$.
# For the second, $\partial \mu / \partial u_k = 1/d$.
# Further $\partial v / \partial u_k = \frac{2}{d} \sum_l (u_l - \mu)(\delta_{lk} - \frac{1}{d}) = \frac{2}{d} (u_k - \mu)$, so $\partial s / \partial u_k = (u_k - \mu) / (d s) = \hat u_k / d$.
# The quotient rule gives $\left(\delta_{ik} - \frac{1}{d}\right) / s - \hat u_i (\partial s / \partial u_k) / s$, which is the claim. ∎
#
# Consequences:
#
# - With $\gamma = \mathbf{1}$ and $\beta = 0$ all vectors have nearly the same length $\sqrt{d}$, and one dimension is lost. A dot product of two of them is nearly $d$ times the correlation of their entries.
# - The derivative is zero along $\mathbf{1}$ and nearly zero along $\hat u$. So multiplying $W$ and $b$ by a common factor changes almost nothing.
# - Attention by dot products (math §6.3) has scores up to $d / \tau_{\text{attn}}$ in size, since a mean of such vectors is no longer than they are.

# %% tags=["hide-input"]
d = 6
found, by_formula, slopes, halves = [], [], [], []
sums, norms, bounds, growth, growth_by_formula = [], [], [], [], []
for number in range(cases):
    made = build(4, d, projection="linear_layernorm", spread=False)
    norm = made[1]
    norm.eps = 10.0 ** -(number % 6)  # large values, too, so that ε matters
    u = normal(d) * 10 ** float(normal(()))
    eye, ones = torch.eye(d, dtype=torch.float64), torch.ones(d, d, dtype=torch.float64)
    unit = eye.tolist()

    def by_hand(x, eps=norm.eps, unit=unit):
        """The loop, with the identity for W."""
        x = naive_projection(x.tolist(), unit, [0.0] * d, [1.0] * d, [0.0] * d, eps)
        return torch.tensor(x, dtype=torch.float64)

    v = float(u.var(unbiased=False))
    hat, s = by_hand(u), math.sqrt(v + norm.eps)
    by_formula.append((eye - ones / d - torch.outer(hat, hat) / d) / s)
    halves.append((eye - ones / d) / s)
    found.append(torch.autograd.functional.jacobian(norm, u))
    step = 1e-6 * s
    columns = [(by_hand(u + step * e) - by_hand(u - step * e)) / (2 * step) for e in eye]
    slopes.append(torch.stack(columns, dim=1))
    sums += [float(hat.sum()), float(norm(u).sum())]
    norms.append([float(hat @ hat), float(norm(u) @ norm(u))])
    bounds.append([d * v / (v + norm.eps)] * 2)
    leaf = u.clone().requires_grad_()
    growth.append(torch.autograd.grad((norm(leaf) ** 2).sum(), leaf)[0] * s)
    growth_by_formula.append(2 * norm.eps / (v + norm.eps) ** 2 * (u - u.mean()) * s)
size = torch.tensor([j.abs().max() for j in by_formula])[:, None, None]
relative = [torch.stack(some) / size for some in (found, by_formula, slopes, halves)]
checks.equal("projections-layernorm-jacobian", "autograd", relative[0], relative[1], 1e-12)
# Central differences: the square of the step and round-off over the step, relative to the slope.
checks.equal("projections-layernorm-jacobian", "naive", relative[2], relative[1], 1e-8)
checks.rejects("projections-layernorm-jacobian", "only the mean", relative[3], relative[1], 1e-12)
checks.equal("projections-sphere", "naive", norms, bounds, 1e-12, case="squared length")
checks.equal("projections-sphere", "naive", sums, np.zeros(2 * cases), 1e-12, case="sum")
checks.equal(
    "projections-sphere",
    "autograd",
    torch.stack(growth),
    torch.stack(growth_by_formula),
    1e-12,
    case="derivative of the squared length",
)
checks.rejects("projections-sphere", "length exactly d", norms, np.full((cases, 2), d), 1e-12)
for n in (2, 3, 4):
    us = sympy.symbols(f"u1:{n + 1}", real=True)
    eps = sympy.Symbol("epsilon", positive=True)
    mean = sum(us) / n
    variance = sum((x - mean) ** 2 for x in us) / n
    root = sympy.sqrt(variance + eps)
    hats = [(x - mean) / root for x in us]
    for k in (0, 1):  # the coordinates are interchangeable: one entry on the diagonal, one off it
        entry = (sympy.Integer(k == 0) - sympy.Rational(1, n) - hats[0] * hats[k] / n) / root
        checks.zero(
            "projections-layernorm-jacobian",
            sympy.diff(hats[0], us[k]) - entry,
            case=f"d = {n}, entry 1,{k + 1}",
        )
    length = sum(x**2 for x in hats) - n * variance / (variance + eps)
    checks.zero("projections-sphere", length, case=f"squared length, d = {n}")
    checks.zero("projections-sphere", sum(hats), case=f"sum, d = {n}")

# %% [markdown]
# ## Dropout
#
# **Proposition.** Let $z = \mathrm{Dropout}_p(u)$ and $z' = \mathrm{Dropout}_p(u')$ in training, with independent masks. Then
#
# ```{math}
# :label: eq-projections-dropout
# \mathbb{E}[z] = u, \qquad \mathbb{E}[z_k^2] = \frac{u_k^2}{1 - p}, \qquad \mathbb{E}\langle z, z' \rangle = \langle u, u' \rangle
# ```
#
# *Proof.* Each entry is zero with probability $p$ and $u_k / (1 - p)$ otherwise, independently.
# So $\mathbb{E}[z_k] = (1 - p)\, u_k / (1 - p)$ and $\mathbb{E}[z_k^2] = (1 - p)\, u_k^2 / (1 - p)^2$. ∎
#
# Dot products are right on average.
# Lengths are not: they grow by the factor $1 / \sqrt{1 - p}$.
# A cosine therefore shrinks in training, roughly by the factor $1 - p$ when both sides are dropped, and regains its size in evaluation.

# %% tags=["hide-input"]
p, u = 0.3, normal(4)
keep = [list(mask) for mask in itertools.product((0, 1), repeat=4)]
mean = [0.0] * 4
square = [0.0] * 4
product = 0.0
u2 = normal(4)
chance = [math.prod(1 - p if m else p for m in mask) for mask in keep]
for mask, weight in zip(keep, chance, strict=True):
    for k in range(4):
        z = mask[k] * float(u[k]) / (1 - p)
        mean[k] += weight * z
        square[k] += weight * z * z
    for other, weight2 in zip(keep, chance, strict=True):
        for k in range(4):
            product += weight * weight2 * mask[k] * other[k] * float(u[k] * u2[k]) / (1 - p) ** 2
checks.equal(
    "projections-dropout", "naive", [*mean, product], [*u, u @ u2], 1e-12, case="all masks, means"
)
checks.equal(
    "projections-dropout", "naive", square, u**2 / (1 - p), 1e-12, case="all masks, squares"
)
q, x, y = sympy.symbols("p u v", real=True)
checks.zero("projections-dropout", q * 0 + (1 - q) * x / (1 - q) - x, case="mean")
checks.zero("projections-dropout", (1 - q) * (x / (1 - q)) ** 2 - x**2 / (1 - q), case="square")
checks.zero("projections-dropout", (1 - q) ** 2 * x * y / (1 - q) ** 2 - x * y, case="product")

made = build(4, projection="identity", projection_dropout=p).train()
torch.manual_seed(seed)
many = u.expand(50 * draws, -1).clone().requires_grad_()
z = made(many)
(slope,) = torch.autograd.grad(z.sum(), many)
checks.equal(
    "projections-dropout", "autograd", slope * many, z, 1e-14, case="each entry kept or zero"
)
two = torch.tensor([0.0, 1 / (1 - p)], dtype=torch.float64)
checks.equal("projections-dropout", "autograd", slope.unique(), two, 1e-14, case="the two factors")
# Five standard errors of a mean over the draws; the bound is absolute.
error = 5 * float(u.abs().max()) * math.sqrt(p / (1 - p) / len(z))
checks.equal("projections-dropout", "search", z.mean(0), u, error, case="mean over draws")
checks.rejects("projections-dropout", "no factor", (1 - p) * torch.ones(4), torch.ones(4), 1e-3)
zero = made.eval()(u)
checks.equal("projections-dropout", "exact", zero, u, case="evaluation")
normed = build(4, 8, projection="linear_layernorm", projection_dropout=p)
torch.manual_seed(seed)
states = normal(64, 4)
inner = normed[1](normed[0](states)).detach()
trained = normed.train()(states).detach()
kept = trained != 0
checks.equal(
    "projections-dropout",
    "exact",
    trained[kept],
    inner[kept] / (1 - p),
    1e-12,
    case="after the layer normalisation",
)
gap = float((trained - inner).pow(2).mean().sqrt() / inner.pow(2).mean().sqrt())
report.metric("layernorm_line_without_dropout", gap, unit="relative difference at p = 0.3")
paste("proj_ln_gap", f"{gap:.2f}")
shrink = {}
torch.manual_seed(seed)
for rate in (0.1, 0.3, 0.5):
    drop = build(384, projection="identity", projection_dropout=rate).train()
    a = normal(384)
    b = a + normal(384)
    many = [t.expand(draws, -1) for t in (a, b)]
    dropped = F.cosine_similarity(drop(many[0]), drop(many[1])).mean() / F.cosine_similarity(
        a, b, 0
    )
    shrink[rate] = float(dropped)
    report.metric(f"dropout_cosine_factor/{rate}", float(dropped), n=draws, unit="factor")
pd.DataFrame({"cosine in training, relative": shrink, "1 - p": {r: 1 - r for r in shrink}}).round(3)

# %% [markdown]
# Used as printed, without dropout, the normalised line would give other vectors than ours in a training step: at `projection_dropout=0.3` they differ by a relative {glue:text}`proj_ln_gap:s`.
#
# ## Projecting before or after the mean
#
# The model projects every position and then averages: over a label's tokens (math §5.1), or with attention weights over the text (math §6.2).
#
# **Proposition.** For weights with $\sum_i \alpha_i = 1$ and without layer normalisation and dropout,
#
# ```{math}
# :label: eq-projections-pooling
# \sum_i \alpha_i (W h_i + b) = W \bar h + b, \qquad \bar h = \sum_i \alpha_i h_i
# ```
#
# *Proof.* The sum is linear, and $\sum_i \alpha_i b = b$. ∎
#
# So, for fixed weights, a score is a function of two averaged hidden states, $\bar h$ of the text and $\bar g$ of the label.
# Layer normalisation is not linear, so with it this fails.

# %% tags=["hide-input"]
found, exchanged, wrong, by_autograd, expected = [], [], [], [], []
for _ in range(cases):
    h, query = normal(1, 5, 4), normal(1, 1, 3)
    seen = torch.ones(1, 5, dtype=torch.bool)
    for kind in ("linear", "linear_layernorm"):
        made = build(4, 3, projection=kind)
        pooled, weights = label_conditioned_attention(query, made(h), seen, 1.0)
        loop = [sum(float(weights[0, 0, i] * h[0, i, c]) for i in range(5)) for c in range(4)]
        values = [x.tolist() for x in made.parameters()]
        eps = (made[1].eps,) if kind == "linear_layernorm" else ()
        after = torch.tensor(naive_projection(loop, *values, *eps), dtype=torch.float64)
        if kind == "linear":
            found.append(pooled[0, 0])
            exchanged.append(after)
            fixed = weights.detach()
            jacobian = torch.autograd.functional.jacobian(
                lambda y, m=made, a=fixed: (a @ m(y))[0, 0], h
            )
            by_autograd.append(jacobian[:, 0])
            expected.append(torch.einsum("i,dc->dic", fixed[0, 0], made[0].weight))
        else:
            wrong.append((pooled[0, 0] - after).detach())
checks.equal("projections-pooling", "naive", torch.stack(found), torch.stack(exchanged), 1e-12)
checks.equal(
    "projections-pooling", "autograd", torch.stack(by_autograd), torch.stack(expected), 1e-12
)
checks.rejects(
    "projections-pooling",
    "with layer normalisation",
    torch.stack(wrong),
    torch.zeros(cases, 3),
    1e-12,
)
for n in (2, 3, 4):
    a = sympy.symbols(f"a1:{n}")
    a = [*a, 1 - sum(a)]
    W = sympy.Matrix(2, 2, sympy.symbols("w1:5"))
    b = sympy.Matrix(sympy.symbols("b1:3"))
    hs = [sympy.Matrix(sympy.symbols(f"h{i}_1:3")) for i in range(n)]
    zero = sympy.zeros(2, 1)
    left = sum((x * (W * y + b) for x, y in zip(a, hs, strict=True)), zero)
    right = W * sum((x * y for x, y in zip(a, hs, strict=True)), zero) + b
    for k in range(2):
        checks.zero(
            "projections-pooling",
            sympy.expand(left - right)[k],
            case=f"{n} positions, entry {k + 1}",
        )

# %% [markdown]
# ## What two maps can express and one cannot
#
# Suppose that *cheap* in a text speaks for the label *complaint*.
# Must *complaint* in a text then speak for the label *cheap*?
# With one shared map it must; with two it need not.
#
# Write $\tilde h = (\bar h, 1)$ and $\tilde g = (\bar g, 1)$ for the averaged states of text and label, each with a one for the bias.
#
# **Proposition.** Under the linear projections a dot product of the two spaces is bilinear:
#
# ```{math}
# :label: eq-projections-bilinear
# \langle W_{\text{text}} \bar h + b_{\text{text}},\; W_{\text{label}} \bar g + b_{\text{label}} \rangle = \tilde h^{\top} M \tilde g, \qquad M = [W_{\text{text}}\; b_{\text{text}}]^{\top} [W_{\text{label}}\; b_{\text{label}}]
# ```
#
# With $n = d_h + 1$, the matrices that can occur are, for two maps on the left and for one shared map on the right,
#
# ```{math}
# :label: eq-projections-rank
# \{ A^{\top} B : A, B \in \mathbb{R}^{d_p \times n} \} = \{ M : \operatorname{rank} M \le d_p \}, \qquad \{ A^{\top} A \} = \{ M : M = M^{\top} \succeq 0,\; \operatorname{rank} M \le d_p \}
# ```
#
# *Proof.* The first claim is $[W\; b]\, \tilde h = W \bar h + b$.
# A product through $\mathbb{R}^{d_p}$ has rank $d_p$ at most.
# Conversely let $M = U S V^{\top}$ be a singular value decomposition of rank $r \le d_p$; take $A = S^{1/2} U^{\top}$ and $B = S^{1/2} V^{\top}$ and fill up with zero rows.
# For one map, $x^{\top} A^{\top} A x = \lVert A x \rVert^2 \ge 0$; conversely take the square root of $M$ from its eigenvalues. ∎
#
# So one shared map gives a *symmetric* relation.
# It is useless for a relation that turns sign when text and label are exchanged, $M = -M^{\top}$: in the Frobenius norm $\lVert A^{\top} A - M \rVert^2 = \lVert A^{\top} A \rVert^2 + \lVert M \rVert^2$, so the best shared map is zero.
#
# So separate matrices allow more, as the source says, with one reservation.
# The encoder sees whether a token stands before or behind `[SEP]`.
# If it puts text and label states into two independent subspaces, then one map acts on each of them as a map of its own.

# %% tags=["hide-input"]
d_h, d_p = 4, 3
dot = SimilarityHead(settings(d_h, d_p, head="dot")).double()
dot.requires_grad_(False).weight.fill_(1.0)  # a plain dot product
found, by_formula, mixed, blocks, numeric = [], [], [], [], []
for _ in range(cases):
    text, label = build(d_h, d_p), build(d_h, d_p)
    h, g = normal(d_h), normal(d_h)

    def score(x, y, text=text, label=label):
        return dot(text(x)[None, None], label(y)[None, None], torch.tensor(1.0))[0, 0]

    A = torch.cat([text[0].weight, text[0].bias[:, None]], dim=1).detach()
    B = torch.cat([label[0].weight, label[0].bias[:, None]], dim=1).detach()
    M = A.T @ B
    total = 0.0
    for i, a in enumerate([*h.tolist(), 1.0]):
        for k, c in enumerate([*g.tolist(), 1.0]):
            total += a * float(M[i, k]) * c
    found.append(score(h, g).detach())
    by_formula.append(total)
    hessian = torch.autograd.functional.hessian(score, (h, g))
    mixed.append(hessian[0][1])
    blocks.append(M[:d_h, :d_h])
    step, eye = 1e-3, np.eye(d_h)
    values = [[p.tolist() for p in part.parameters()] for part in (text, label)]

    def by_hand(x, y, values=values):
        pair = (naive_projection(z, *w) for z, w in zip((x, y), values, strict=True))
        return sum(a * c for a, c in zip(*pair, strict=True))

    numeric.append(
        [
            [
                sum(
                    si * sk * by_hand(h.numpy() + si * step * ei, g.numpy() + sk * step * ek)
                    for si in (1, -1)
                    for sk in (1, -1)
                )
                / (4 * step**2)
                for ek in eye
            ]
            for ei in eye
        ]
    )
checks.equal("projections-bilinear", "naive", torch.stack(found), by_formula, 1e-11)
checks.equal(
    "projections-bilinear",
    "autograd",
    torch.stack(mixed),
    torch.stack(blocks),
    1e-12,
    case="mixed derivative",
)
# Exact for a bilinear function but for round-off over the squared step.
checks.equal(
    "projections-bilinear", "naive", numeric, torch.stack(blocks), 1e-8, case="mixed differences"
)
swapped = torch.stack([block.T for block in blocks])
checks.rejects(
    "projections-bilinear", "text and label exchanged", swapped, torch.stack(blocks), 1e-12
)
Wt, Wl = (sympy.Matrix(2, 2, sympy.symbols(f"{name}1:5")) for name in "wv")
bt, bl, hs, gs = (sympy.Matrix(sympy.symbols(f"{name}1:3")) for name in ("b", "c", "h", "g"))
left = (Wt * hs + bt).dot(Wl * gs + bl)
right = (
    hs.col_join(sympy.ones(1, 1)).T
    * Wt.row_join(bt).T
    * Wl.row_join(bl)
    * gs.col_join(sympy.ones(1, 1))
)[0]
checks.zero("projections-bilinear", sympy.expand(left - right), case="two dimensions")

rest, ranks, limits, lowest, skewed = [], [], [], [], []
for number in range(cases):
    n, d_p = 5, 1 + number % 5
    U, S, Vt = torch.linalg.svd(normal(n, n))
    target = U[:, :d_p] @ torch.diag(S[:d_p]) @ Vt[:d_p]
    A, B = S[:d_p].sqrt()[:, None] * U[:, :d_p].T, S[:d_p].sqrt()[:, None] * Vt[:d_p]
    rest.append(float((A.T @ B - target).abs().max()))
    shape = (d_p, n)
    ranks.append(int(torch.linalg.matrix_rank(normal(*shape).T @ normal(*shape))))
    limits.append(d_p)
    shared = normal(*shape)
    lowest.append(float(torch.linalg.eigvalsh(shared.T @ shared).min()))
    skew = target - target.T
    if number < 8:
        weight = (0.3 * normal(*shape)).requires_grad_()
        optimiser = torch.optim.Adam([weight], lr=0.05)
        for _ in range(40):  # an adversary that looks for a shared map
            optimiser.zero_grad()
            loss = (weight.T @ weight - skew).pow(2).sum()
            loss.backward()
            optimiser.step()
        skewed.append([float(loss.detach().sqrt()), float(skew.norm())])
checks.equal(
    "projections-rank",
    "exact",
    rest,
    np.zeros(cases),
    1e-12,
    case="every rank up to d_p is reached",
)
checks.at_least("projections-rank", "search", limits, ranks, case="no higher rank")
checks.at_least(
    "projections-rank",
    "search",
    lowest,
    np.zeros(cases),
    1e-12,
    case="a shared map is never negative",
)
skewed = np.array(skewed)
checks.at_least(
    "projections-rank",
    "search",
    skewed[:, 0],
    skewed[:, 1],
    1e-12,
    case="a shared map and a skew target",
)
both = torch.cat([A, B], dim=1)  # one map over states that lie in two subspaces
x, y, nothing = normal(5), normal(5), torch.zeros(5, dtype=torch.float64)
split = (both @ torch.cat([x, nothing])) @ (both @ torch.cat([nothing, y]))
checks.equal(
    "projections-rank", "exact", split, x @ (A.T @ B) @ y, 1e-12, case="one map over two subspaces"
)

# %% [markdown]
# ## How many of the parameters count
#
# Different weights can give the same scores.
# Write $A$ and $B$ for the two maps with their biases, as above.
# Replace them by $Q^{-\top} A$ and $Q B$ with an invertible $Q$: every dot product stays what it was.
# Under the cosine head only a rotation $Q$ and two scales have no effect.
#
# **Proposition.** Let $n = d_h + 1$, $r = \min(d_p, n)$ and $R = \min(d_p, 2n)$. The scores of a pair of linear projections, with a learnt $\tau$ and without the head's bias, form a family of dimension
#
# ```{math}
# :label: eq-projections-dimension
# D_{\text{dot}} = D_{\text{bilinear}} = 2 n r - r^2, \qquad D_{\text{cosine}} = \min\Bigl\{ 2 n R - \frac{R (R - 1)}{2} - 1,\; n (2 n + 1) - 2 \Bigr\} \quad (d_p \ge 2)
# ```
#
# *Proof.* By {eq}`eq-projections-rank` the dot products are the matrices of rank $r$ at most, and those form a set of dimension $2 n r - r^2$.
# A matrix between the two maps, or weights on the products, stay inside that set: $A^{\top} C B$ has rank $d_p$ at most.
#
# The squared cosine is $(\tilde h^{\top} M \tilde g)^2 / (\tilde h^{\top} A^{\top} A \tilde h \cdot \tilde g^{\top} B^{\top} B \tilde g)$.
# For $d_p \ge 2$ the two forms in the denominator have no real linear factor, so nothing cancels.
# The function therefore determines $A^{\top} A$ and $B^{\top} B$ up to a positive factor each, and then $\tau M$.
# Together $A^{\top} A$, $B^{\top} B$ and $M$ are the blocks of $G = [A\; B]^{\top} [A\; B]$, a positive semidefinite matrix of order $2n$ and rank $R$ at most.
# Such matrices form a set of dimension $2 n R - R (R - 1) / 2$; the two factors take two dimensions away.
# Now $\tau$ multiplies the block $M$ alone, which in general raises the rank of $G$ if that is below $2n$, and so adds one dimension.
# At $R = 2n - 1$ the family is complete: if $G$ has full rank, scale $M$ up until $G$ is singular and divide $\tau$ by the same factor. ∎
#
# Consequences:
#
# - A bilinear head on two linear projections adds $d_p^2$ parameters and, but for its bias, no new score function. It can still help the attention, which uses the projections without that matrix, or the course of the training.
# - Under the cosine head the family keeps growing beyond $d_p = d_h$, up to $d_p = 2 d_h + 1$.
#
# The check counts independent directions: the rank of the derivative of many scores by all weights.


# %% tags=["hide-input"]
def directions(d_h, d_p, head):
    """Rank of the derivative of many scores by all weights of projections and head, τ included."""
    torch.manual_seed(seed)
    config = settings(d_h, d_p, head=head)
    parts = {"t": build(d_h, d_p), "l": build(d_h, d_p), "s": SimilarityHead(config).double()}
    number = 2 * (2 * d_h + 2) ** 2
    h, g = normal(1, number, d_h), normal(1, number, d_h)
    # Without the head's bias, which shifts all scores alike.
    names = [
        (k, n)
        for k, part in parts.items()
        for n, _ in part.named_parameters()
        if (k, n) != ("s", "bias")
    ]
    values = [parts[k].get_parameter(n).detach() for k, n in names]
    if head != "cosine":
        values[-1] = values[-1] + normal(*values[-1].shape)

    def scores(tau, *weights):
        given = {k: {} for k in parts}
        for (k, n), weight in zip(names, weights, strict=True):
            given[k][n] = weight
        z = [functional_call(parts[k], given[k], x) for k, x in (("t", h), ("l", g))]
        return functional_call(parts["s"], given["s"], (*z, tau))[0]

    given = (torch.tensor(1.3, dtype=torch.float64), *values)
    slopes = torch.autograd.functional.jacobian(scores, given, vectorize=True)
    return int(
        torch.linalg.matrix_rank(torch.cat([s.reshape(number, -1) for s in slopes], 1), rtol=1e-9)
    )


d_h, n = 2, 3
dims = {"dot": [], "bilinear": [], "cosine": []}
formula = {"dot": [], "bilinear": [], "cosine": []}
for d_p in range(2, 8):
    r, R = min(d_p, n), min(d_p, 2 * n)
    for head in dims:
        dims[head].append(directions(d_h, d_p, head))
        full = min(2 * n * R - R * (R - 1) // 2 - 1, n * (2 * n + 1) - 2)
        formula[head].append(full if head == "cosine" else 2 * n * r - r * r)
for head in dims:
    checks.equal("projections-dimension", "exact", dims[head], formula[head], case=head)
weights = [2 * d_p * n for d_p in range(2, 8)]
checks.rejects("projections-dimension", "every weight counts", weights, formula["dot"], 0)
frozen = [f - (2 * n > R) for f, R in zip(formula["cosine"], range(2, 8), strict=True)]
checks.rejects("projections-dimension", "tau frozen", dims["cosine"], frozen, 0)
counted = pd.DataFrame(dims, index=pd.Index(range(2, 8), name="$d_p$"))
counted["weights and biases"] = weights
paste_table(
    "projections-dimension",
    counted,
    f"Independent directions of the scores for $d_h = {d_h}$, by head, against the parameters of the two projections.",
)

# %% [markdown]
# ```{glue:md} projections-dimension
# :format: myst
# ```
#
# ## The dimension $d_p$
#
# The source calls $d_p = d_h$ the maximum capacity, and a larger $d_p$ possible but rarely useful.
# For dot products without biases the first is true.
# Let $\sigma_1 \ge \sigma_2 \ge \dots$ be the singular values of the matrix $M$ that is wanted.
# By the theorem of Eckart and Young, the best approximation has the error
#
# ```{math}
# :label: eq-projections-best-rank
# \min_{\operatorname{rank} \hat M \le d_p} \lVert M - \hat M \rVert_F = \Bigl( \sum_{i > d_p} \sigma_i^2 \Bigr)^{1/2}
# ```
#
# It is zero from $d_p = d_h$ on, and not before unless $M$ has a lower rank.
#
# For the cosine, which the source recommends, it is false.
#
# **Proposition.** Let the wanted score be $f(h, g) = h^{\top} M g / (\lVert h \rVert \lVert g \rVert)$ with an invertible $M$ whose largest singular value $\sigma_1$ occurs $k$ times.
# Then a scaled cosine of two linear projections equals $f$ if and only if
#
# ```{math}
# :label: eq-projections-cosine-rank
# d_p \ge 2 d_h - k
# ```
#
# *Proof.* Enough: $G = \begin{pmatrix} I & M / \sigma_1 \\ M^{\top} / \sigma_1 & I \end{pmatrix}$ has the eigenvalues $1 \pm \sigma_i / \sigma_1$, so it is positive semidefinite of rank $2 d_h - k$.
# Write $G = F^{\top} F$ with that many rows and split $F = [A\; B]$: then $\lVert A h \rVert = \lVert h \rVert$, $\lVert B g \rVert = \lVert g \rVert$, and $\sigma_1$ times the cosine is $f$.
#
# Necessary: biases play no part, because $f$ does not change when $h$ and $g$ are scaled up without bound.
# Equality says $\tau^2 (h^{\top} C g)^2 \lVert h \rVert^2 \lVert g \rVert^2 = (h^{\top} M g)^2\, h^{\top} A^{\top} A h\; g^{\top} B^{\top} B g$ with $C = A^{\top} B$.
# Fix $g$.
# Both sides are polynomials in $h$, and $\lVert h \rVert^2$ has no real linear factor, so the linear forms agree up to a number: $C g \parallel M g$, and $A^{\top} A = a I$.
# Likewise $B^{\top} B = b I$.
# As $M^{-1} C$ maps every $g$ to a multiple of itself, $C = \lambda M$.
# So $G = [A\; B]^{\top} [A\; B]$ has rank $2 d_h$ minus the number of $\sigma_i$ with $\lambda \sigma_i = \sqrt{a b}$, which by $G \succeq 0$ can only be $\sigma_1$.
# The rank of $G$ is $d_p$ at most. ∎
#
# The figure fits both heads to such a target.
# A cosine curve that reached zero at $d_p = d_h$ would refute the proposition.


# %% tags=["hide-input"]
def fit(head, d_p, start):
    """Smallest error found between the package's scores and the target, relative to the target."""
    torch.manual_seed(start)
    config = settings(wide, d_p, head=head)
    parts = torch.nn.ModuleList([projection(config), projection(config), SimilarityHead(config)])
    parts = parts.double()
    scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
    target = (h @ M * g).sum(-1)
    if head == "cosine":
        target = target / (h.norm(dim=-1) * g.norm(dim=-1))
    optimiser = torch.optim.LBFGS(
        [*parts.parameters(), scale],
        max_iter=steps,
        history_size=30,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
    )

    def loss():
        optimiser.zero_grad()
        value = (parts[2](parts[0](h), parts[1](g), scale.exp()) - target).pow(2).mean()
        value.backward()
        return value

    optimiser.step(loss)
    return math.sqrt(float(loss().detach()) / float(target.pow(2).mean()))


wide, steps = 3, 200
M = torch.diag(torch.tensor([1.0, 0.6, 0.3], dtype=torch.float64))
h, g = normal(1, 120, wide), normal(1, 120, wide)
sizes = list(range(1, 2 * wide + 1))
errors = {"dot": [], "cosine": []}
for head, d_p in itertools.product(errors, sizes):
    best = math.inf
    for start in range(fits):
        best = min(best, fit(head, d_p, start)) if best > 1e-5 else best
    errors[head].append(best)
needed = 2 * wide - 1  # one largest singular value
G = torch.cat([torch.cat([torch.eye(wide), M], 1), torch.cat([M.T, torch.eye(wide)], 1)]).double()
values, vectors = torch.linalg.eigh(G)
Fs = (values.clamp(min=0).sqrt() * vectors).T[-needed:]
A, B = Fs[:, :wide], Fs[:, wide:]
made = F.cosine_similarity(h @ A.T, g @ B.T, dim=-1)
target = (h @ M * g).sum(-1) / (h.norm(dim=-1) * g.norm(dim=-1))
checks.equal(
    "projections-cosine-rank", "exact", int((values > 1e-12).sum()), needed, case="rank of G"
)
checks.equal("projections-cosine-rank", "naive", made, target, 1e-12, case="built from G")
below = [e for e, d_p in zip(errors["cosine"], sizes, strict=True) if d_p < needed]
reached = [e for e, d_p in zip(errors["cosine"], sizes, strict=True) if d_p >= needed]
# A fit that has converged is far below the smaller number, one that cannot is far above the larger.
few, many = np.full(len(below), 1e-2), np.full(len(reached), 1e-3)
checks.at_least("projections-cosine-rank", "search", below, few, case="fits below the bound")
checks.at_least("projections-cosine-rank", "search", many, reached, case="fits at the bound")
at_equal = errors["cosine"][wide - 1]
checks.rejects("projections-cosine-rank", "d_p = d_h is enough", at_equal, 0.0, 1e-3)
truncated, least, attempts = [], [], []
for number in range(cases):
    d_p = 1 + number % 4
    target_M = normal(5, 5)
    U, S, Vt = torch.linalg.svd(target_M)
    best = U[:, :d_p] @ torch.diag(S[:d_p]) @ Vt[:d_p]
    truncated.append(float((target_M - best).norm()))
    least.append(float(S[d_p:].norm()))
    # Adversaries: other products of the same rank, near the best one and far from it.
    for size in (1e-3, 1e-1, 1.0):
        left, right = U[:, :d_p] * S[:d_p] + size * normal(5, d_p), Vt[:d_p] + size * normal(d_p, 5)
        attempts.append([float((target_M - left @ right).norm()), least[-1]])
checks.equal(
    "projections-best-rank", "exact", truncated, least, 1e-12, case="reached by the decomposition"
)
attempts = np.array(attempts)
checks.at_least("projections-best-rank", "search", attempts[:, 0], attempts[:, 1], 1e-12)
report.metric(
    "effect/math-12.3-equal",
    at_equal,
    unit="error at d_p = d_h, relative to the target; printed 0",
)
paste("proj_rest", f"{at_equal:.2f}")
paste("proj_needed", str(needed))

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Error of the best fit found, relative to the size of the wanted score, against the projected dimension. The dotted line marks equal dimensions, which the source calls the maximum capacity; the dashed line is the bound for the cosine.", "name": "fig-projections-dimension"}, "image": {"alt": "Two falling curves on a logarithmic scale. The dot head's curve drops to the bottom at the dotted line. The cosine head's curve is still high there and drops to the bottom only at the dashed line, further right."}}
figure, axis = plt.subplots(figsize=(5.2, 3.6))
for head, colour, marker in (("dot", "card", "s"), ("cosine", "math", "o")):
    axis.plot(
        sizes, np.maximum(errors[head], 1e-9), marker=marker, color=COLOURS[colour], label=head
    )
axis.axvline(wide, color="black", linestyle=":", linewidth=1)
axis.axvline(needed, color=COLOURS["math"], linestyle="--", linewidth=1)
axis.set(xlabel="$d_p$", ylabel="relative error", yscale="log")
axis.set_xticks(sizes)
axis.legend(frameon=False, title="head")
show(figure)

# %% [markdown]
# At $d_p = d_h$ the cosine head leaves a relative error of {glue:text}`proj_rest:s`; it needs $d_p =$ {glue:text}`proj_needed:s` for this target.
# Whether real data want such a target, only experiments can say.
#
# A smaller $d_p$ limits the scores as {eq}`eq-projections-best-rank` says, and saves little.
# Per token, the two projections make $2 d_h d_p$ multiplications, and an encoder with $N$ layers and an inner width of $4 d_h$ makes at least $12 N d_h^2$.
#
# ## The start
#
# What are the scores before the first step?
# With the identity start they are the encoder's own similarities.
# PyTorch's default start draws every weight and bias from a uniform distribution on $[-1/\sqrt{d_h},\, 1/\sqrt{d_h}]$.
#
# **Proposition.** With two projections started that way, independently, and fixed $h$ and $g$,
#
# ```{math}
# :label: eq-projections-start
# \mathbb{E} \langle z^{\text{text}}, z^{\text{label}} \rangle = 0, \qquad \mathbb{E} \langle z^{\text{text}}, z^{\text{label}} \rangle^2 = d_p\, \frac{(\lVert h \rVert^2 + 1)(\lVert g \rVert^2 + 1)}{9\, d_h^2}
# ```
#
# *Proof.* A uniform number on $[-a, a]$ has mean zero and variance $a^2 / 3 = 1 / (3 d_h)$.
# So $z_k^{\text{text}}$ has mean zero and variance $(\lVert h \rVert^2 + 1) / (3 d_h)$, and the same with $g$ for the label.
# The two are independent, and so are different $k$; the mixed terms vanish. ∎
#
# The angle between $h$ and $g$ does not occur in it.
# So two random maps erase what the encoder knows: even $g = h$ has an expected score of zero.
# One shared random map would keep it, up to noise.

# %% tags=["hide-input"]
d_h, d_p = 6, 5
config = settings(d_h, d_p)
torch.manual_seed(seed)
h, g = normal(d_h), normal(d_h)
products = torch.stack(
    [
        (projection(config).double()(h) @ projection(config).double()(g)).detach()
        for _ in range(draws)
    ]
)
second = d_p * float((h @ h + 1) * (g @ g + 1)) / (9 * d_h**2)
# Five standard errors, from the sample itself.
spread = float(products.std()) / math.sqrt(draws)
checks.equal(
    "projections-start",
    "search",
    products.mean() / spread,
    0.0,
    5.0,
    case="mean, in standard errors",
)
spread = float((products**2).std()) / math.sqrt(draws)
deviation = (float((products**2).mean()) - second) / spread
checks.equal("projections-start", "search", deviation, 0.0, 5.0, case="square, in standard errors")
biases = [float(projection(config)[0].bias.detach().abs().max()) for _ in range(200)]
checks.at_least(
    "projections-start",
    "search",
    np.full(200, 1 / math.sqrt(d_h)),
    biases,
    1e-7,
    case="range of the start",
)
a, w = sympy.symbols("a w", positive=True)
checks.zero(
    "projections-start",
    sympy.integrate(w**2 / (2 * a), (w, -a, a)) - a**2 / 3,
    case="variance of a weight",
)
# Every random number at once: the square of the score for d_h = d_p = 2, monomial by monomial.
random = sympy.symbols("t1:5 b1:3 l1:5 c1:3")
hs, gs = sympy.symbols("h1:3"), sympy.symbols("g1:3")
zt = [random[2 * k] * hs[0] + random[2 * k + 1] * hs[1] + random[4 + k] for k in range(2)]
zl = [random[6 + 2 * k] * gs[0] + random[7 + 2 * k] * gs[1] + random[10 + k] for k in range(2)]
square = sympy.Poly(sum(x * y for x, y in zip(zt, zl, strict=True)) ** 2, *random)
moments = {0: sympy.Integer(1), 1: sympy.Integer(0), 2: sympy.Rational(1, 6)}  # d_h = 2
expected = sum(c * math.prod(moments[power] for power in powers) for powers, c in square.terms())
claim = 2 * (hs[0] ** 2 + hs[1] ** 2 + 1) * (gs[0] ** 2 + gs[1] ** 2 + 1) / sympy.Integer(36)
checks.zero(
    "projections-start", sympy.expand(expected - claim), case="second moment in two dimensions"
)
without_bias = d_p * float((h @ h) * (g @ g)) / (9 * d_h**2)
checks.rejects("projections-start", "biases forgotten", without_bias / second, 1.0, 1e-4)

# %% [markdown]
# The source does not say how the projections start; the identity is the package's choice.
# The picture compares the cosines of real texts and labels before and after three starts.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Cosine of text and label states before the projections and after them, untrained. A start that keeps the encoder's geometry lies on the diagonal.", "name": "fig-projections-start"}, "image": {"alt": "Scatter plot. The identity start lies exactly on the diagonal, one shared random map close to it, and two random maps form a cloud around zero."}}
examples = hardset_mini("train")
report.data("hardset-mini/train", rows=len(examples), sha256=examples_sha256(list(examples)))
model, tokenizer = load_or_build("", backbone, "math", report.out)
report.backbone(backbone, fingerprint(resolve(backbone, report.out)))
labels = [[*e.labels[:2], *e.not_labels[:2]] for e in examples[:4]]
batch = tokenizer([e.text for e in examples[:4]], labels)
with torch.no_grad():
    hidden = model.backbone(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0]
hidden = hidden.double()
control = torch.isin(batch["input_ids"], torch.tensor(tokenizer.control_token_ids))
is_text = (batch["lmask"] == 0) & batch["attention_mask"].bool() & ~control
chosen = {"raw": [], "identity": [], "one random map": [], "two random maps": []}
torch.manual_seed(seed)
size = hidden.shape[-1]
starts = {"identity": model.text_projection.double(), "text": projection(settings(size)).double()}
starts["label"] = projection(settings(size)).double()
with torch.no_grad():
    for b in range(len(hidden)):
        texts, names = hidden[b][is_text[b]][:12], hidden[b][batch["lmask"][b] > 0][:6]
        pairs = (texts[:, None], names[None])
        chosen["raw"].append(F.cosine_similarity(*pairs, dim=-1).flatten())
        for key, first, second_map in (
            ("identity", "identity", "identity"),
            ("one random map", "text", "text"),
            ("two random maps", "text", "label"),
        ):
            z = starts[first](pairs[0]), starts[second_map](pairs[1])
            chosen[key].append(F.cosine_similarity(*z, dim=-1).flatten())
chosen = {key: torch.cat(values).numpy() for key, values in chosen.items()}
figure, axis = plt.subplots(figsize=(5.2, 4.2))
for key, colour, marker in (
    ("two random maps", "card", "x"),
    ("one random map", "published", "^"),
    ("identity", "math", "o"),
):
    axis.scatter(chosen["raw"], chosen[key], s=10, marker=marker, color=COLOURS[colour], label=key)
axis.set(xlabel="cosine of the hidden states", ylabel="cosine after the projections")
axis.legend(frameon=False, fontsize=9)
show(figure)
checks.equal(
    "projections-start",
    "exact",
    chosen["identity"],
    chosen["raw"],
    1e-12,
    case="identity keeps the cosine",
)

# %% tags=["hide-input"]
kept = {k: float(np.corrcoef(chosen["raw"], chosen[k])[0, 1]) for k in chosen if k != "raw"}
moved = {k: float(np.abs(chosen[k]).mean()) for k in kept}
for key, value in kept.items():
    report.metric(f"start_correlation/{key}", value, n=len(chosen["raw"]), unit="correlation")
targets = torch.tensor([[1.0, 1.0, 0.0, 0.0]] * 4)
model.double()(
    **{k: batch[k] for k in ("input_ids", "attention_mask", "lmask")}, labels=targets.double()
).loss.backward()
grads = [part[0].weight.grad for part in (model.text_projection, model.label_projection)]
apart = float((grads[0] - grads[1]).norm() / (grads[0].norm() + grads[1].norm()))
assert torch.equal(model.text_projection[0].weight, model.label_projection[0].weight)
report.metric("gradient_difference", apart, unit="norm of the difference over the sum of norms")
paste("proj_two", f"{kept['two random maps']:.2f}")
paste("proj_one", f"{kept['one random map']:.2f}")
paste("proj_apart", f"{apart:.2f}")
lengths = {
    "hidden state": float(hidden[is_text].pow(2).sum(-1).mean()),
    "after a layer normalisation": float(
        F.layer_norm(hidden[is_text], (size,)).pow(2).sum(-1).mean()
    ),
}
pd.DataFrame({"mean squared length": lengths, "dimension": size}).round(1)

# %% [markdown]
# Two random maps leave a correlation of {glue:text}`proj_two:s` between the cosines before and after; one shared map leaves {glue:text}`proj_one:s`.
#
# The identity start makes the two weights equal at step zero, although the source writes $W_{\text{text}} \ne W_{\text{label}}$.
# They do not stay equal, because their first gradients differ.
# The norm of the difference over the sum of the norms is {glue:text}`proj_apart:s`; zero would mean equal, one opposite.
#
# ## The parameters, counted
#
# The source estimates about $2 d_h d_p + d_p^2$ new parameters with the bilinear head and about $2 d_h d_p$ with the others.
#
# **Proposition.** The new parameters are
#
# ```{math}
# :label: eq-projections-count
# P_{\text{new}} = \underbrace{2\,[d_h d_p + d_p + 2 d_p\, \mathbb{1}_{\text{LN}}]\, \mathbb{1}_{\text{linear}}}_{\text{projections}} + \underbrace{\begin{cases} 0 & \text{cosine} \\ d_p + 1 & \text{dot} \\ d_p^2 + 1 & \text{bilinear} \end{cases}}_{\text{head}} + \underbrace{3\, \mathbb{1}_{\text{learnt}}}_{\text{temperatures}} + \underbrace{d_h\, \mathbb{1}_{\text{no spare row}}}_{\texttt{[LAB]}}
# ```
#
# Each indicator is one or zero: with layer normalisation, with a linear projection at all, with trained temperatures, and for a vocabulary whose embedding table has no unused row for `[LAB]`.
#
# *Proof.* Count the shapes above; each temperature is one number. ∎


# %% tags=["hide-input"]
def printed(head, d_h, d_p):
    """The source's estimate."""
    return 2 * d_h * d_p + (d_p**2 if head == "bilinear" else 0)


def exact(config, lab_row=0):
    """The proposition."""
    d_h, d_p = config.hidden_size, config.embedding_dim
    linear = config.projection != "identity"
    projections = (
        2 * linear * (d_h * d_p + d_p + 2 * d_p * (config.projection == "linear_layernorm"))
    )
    head = {"cosine": 0, "dot": d_p + 1, "bilinear": d_p**2 + 1}[config.head]
    return projections + head + 3 * config.learn_temperatures + lab_row


def new_parameters(model):
    """What the real model has outside its encoder."""
    return sum(p.numel() for n, p in model.named_parameters() if not n.startswith("backbone."))


small = BertConfig(
    vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
)
real, formula, switches = [], [], 0
shape_of_card = []
for kind, head, learn, d_p in itertools.product(
    CHOICES["projection"], CHOICES["head"], (True, False), (None, 5)
):
    if kind == "identity" and d_p:
        continue
    config = GliZNetConfig(
        small,
        projection=kind,
        head=head,
        learn_temperatures=learn,
        projected_dim=d_p,
        projection_init="default",
    )
    real.append(new_parameters(GliZNetForSequenceClassification(config)))
    formula.append(exact(config))
for name, values in CHOICES.items():
    for value in values:
        if name in ("projection", "head"):
            continue
        config = GliZNetConfig(small, **{name: value})
        real.append(new_parameters(GliZNetForSequenceClassification(config)))
        formula.append(exact(GliZNetConfig(small)))
        switches += 1
checks.equal("projections-count", "exact", real, formula, case="every switch")
no_bias = np.array(formula) - 2
checks.rejects("projections-count", "two biases forgotten", real, no_bias, 0)

rows = []
for spare in (0, 100):
    torch.manual_seed(seed)
    BertModel(
        BertConfig(**{**small.to_dict(), "vocab_size": len(tokenizer) - 1 + spare})
    ).save_pretrained(report.out / f"spare-{spare}")
    grown = GliZNetForSequenceClassification.from_backbone(report.out / f"spare-{spare}", tokenizer)
    rows.append(grown.get_input_embeddings().weight.shape[0] - (len(tokenizer) - 1 + spare))
checks.equal("projections-count", "exact", rows, [1, 0], case="rows for [LAB]")

# %% [markdown]
# ### At real sizes
#
# For BERT and DeBERTa-v3 without their poolers, with vocabulary $V$, $P$ rows of positions (absolute or relative), $S$ segment types, $N$ layers and inner width $f$:
#
# ```{math}
# :label: eq-projections-backbone
# P_{\text{encoder}} = (V + P + S + 2\nu)\, d_h + N \left( 4 d_h^2 + 2 d_h f + 9 d_h + f \right)
# ```
#
# Here $\nu$ counts the layer normalisations outside the layers: one for BERT, two for DeBERTa-v3.
# Inside a layer are four square maps with bias, two maps between $d_h$ and $f$ with bias, and two normalisations.
# The sizes are those of the embedded MiniLM {cite}`wang2020minilm` and of DeBERTa-v3-base {cite}`he2021debertav3`.
# The parameters of the real modules are counted.

# %% tags=["hide-input"]
minilm = AutoConfig.from_pretrained(resolve("minilm-l6", report.out))
deberta = DebertaV2Config(
    vocab_size=128100,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    relative_attention=True,
    position_buckets=256,
    norm_rel_ebd="layer_norm",
    share_att_key=True,
    pos_att_type=["p2c", "c2p"],
    position_biased_input=False,
    type_vocab_size=0,
)
encoders = {"MiniLM-L6": (minilm, 512, 2, 1), "DeBERTa-v3-base": (deberta, 2 * 256, 0, 2)}
sizes, real, formula, table, relative = {}, [], [], {}, {}
for name, (encoder, positions, segments, norms) in encoders.items():
    d, f, N = encoder.hidden_size, encoder.intermediate_size, encoder.num_hidden_layers
    # The published DeBERTa-v3 table has more rows than its tokenizer has tokens; MiniLM's has not.
    lab_row = d if name == "MiniLM-L6" else 0
    for variant, fields in {
        "cosine": {},
        "dot": {"head": "dot"},
        "bilinear": {"head": "bilinear"},
        "card preset": None,
    }.items():
        config = (
            GliZNetConfig.card(encoder) if fields is None else GliZNetConfig.math(encoder, **fields)
        )
        with torch.device("meta"):
            whole = GliZNetForSequenceClassification(config)
        sizes[name] = sum(p.numel() for p in whole.backbone.parameters())
        true, guess = new_parameters(whole) + lab_row, printed(config.head, d, d)
        real.append(true)
        formula.append(exact(config, lab_row))
        relative[name, variant] = abs(guess - true) / true
        table[f"{name}, {variant}"] = {
            "printed": f"{guess:,}",
            "counted": f"{true:,}",
            "relative error": f"{relative[name, variant]:.2%}",
            "share of all": f"{true / (sizes[name] + true):.2%}",
        }
        if name == "DeBERTa-v3-base" and variant == "card preset":
            card_total = sizes[name] + true
    checks.equal(
        "projections-backbone",
        "exact",
        sizes[name],
        (encoder.vocab_size + positions + segments + 2 * norms) * d
        + N * (4 * d * d + 2 * d * f + 9 * d + f),
        case=name,
    )
    report.metric(f"backbone_parameters/{name}", sizes[name], unit="parameters")
checks.equal("projections-count", "exact", real, formula, case="real sizes")
checks.rejects(
    "projections-count", "the leading order alone", [printed("cosine", 384, 384)], [real[0]], 0
)
for (name, variant), error in relative.items():
    report.metric(f"leading_order/{name}, {variant}", error, unit="relative error")
card_error = relative["DeBERTa-v3-base", "card preset"]
shown = pd.DataFrame(table).T
shown.index.name = "encoder, head"
paste_table(
    "projections-count",
    shown,
    "New parameters as printed and as counted in the real model, with $d_p = d_h$; the last column is their share of the whole model.",
)
paste("proj_card_error", f"{card_error:.0%}")
paste("proj_minilm", f"{sizes['MiniLM-L6']:,}")
paste("proj_deberta", f"{sizes['DeBERTa-v3-base']:,}")
work = {n: 2 / (12 * encoders[n][0].num_hidden_layers + 2) for n in encoders}
paste("proj_work", f"{max(work.values()):.1%}")
report.metric("projection_share_of_multiplications", max(work.values()), unit="share at d_p = d_h")

# %% [markdown]
# ```{glue:md} projections-count
# :format: myst
# ```
#
# The source's estimates are the leading terms; what they leave out is of the order of $1 / d_h$ of the whole.
# The card names no projections; on its model the formula would be off by {glue:text}`proj_card_error:s`, because it counts two matrices that are not there.
#
# The encoders have {glue:text}`proj_minilm:s` and {glue:text}`proj_deberta:s` parameters, so the card's "about 184 million" for DeBERTa-v3-base is right.
# MiniLM's pooler is left out, because nothing reads it.
# At $d_p = d_h$ the two projections make at most {glue:text}`proj_work:s` of the multiplications per token.
#
# The three temperatures are parameters under every head.
# Two of them, {math}`\tau` and {math}`\tau_{\text{BCE}}`, scale a cosine, so they have no gradient under the dot and bilinear heads.

# %% tags=["hide-input"]
idle = {}
for head in CHOICES["head"]:
    torch.manual_seed(seed)
    whole = GliZNetForSequenceClassification(
        GliZNetConfig(
            BertConfig(**{**small.to_dict(), "vocab_size": len(tokenizer)}),
            head=head,
            lab_token_id=tokenizer.lab_token_id,
            control_token_ids=tokenizer.control_token_ids,
        )
    )
    one = tokenizer(["It rains."], ["weather", "sport"])
    one = {k: one[k] for k in ("input_ids", "attention_mask", "lmask")}
    whole(**one, labels=torch.tensor([[1.0, 0.0]])).loss.backward()
    names = ("log_tau", "log_tau_attn", "log_tau_bce")
    idle[head] = [getattr(whole, name).grad is None for name in names]
    frozen = [n for n, p in whole.named_parameters() if not p.requires_grad]
    assert not frozen
    if head == "cosine":
        untouched = [n for n, p in whole.backbone.named_parameters() if p.grad is None]
scales = [idle[head] for head in ("cosine", "dot", "bilinear")]
checks.equal(
    "projections-count",
    "exact",
    scales,
    [[False] * 3, [True, False, True], [True, False, True]],
    case="temperatures without gradient",
)
checks.equal(
    "projections-count", "exact", len(untouched), 0, case="encoder parameters without gradient"
)

# %% [markdown]
# ## What it means in practice
#
# - Start from the identity. Random projections throw away the geometry of a pretrained encoder.
# - Keep two maps. They cost little and express relations that one cannot.
# - Choose the bilinear head for the identity projection, as the card does. On linear projections it adds no score function but its bias.
# - With layer normalisation, raise $\tau_{\text{attn}}$ or use `attention_score="cosine"`: dot products can reach $d_p$.
# - Mind that dropout in the projections makes cosines smaller in training than in evaluation. The package's default is `projection_dropout=0.0`.
#
# ## Edge cases
#
# A changed dimension cannot start from the identity; the package refuses it (above).
# It also refuses $p = 1$, where the factor $1 / (1 - p)$ does not exist.
# A layer normalisation over one dimension is constant, since every number equals its mean: behind such a projection nothing is learnt.

# %% tags=["hide-input"]
dead = build(4, 1, projection="linear_layernorm")
states = normal(6, 4).requires_grad_()
z = dead(states)
(gradient,) = torch.autograd.grad(z.sum(), states)
checks.equal("projections-layernorm", "exact", z, dead[1].bias.expand(6, 1), case="one dimension")
checks.equal(
    "projections-layernorm-jacobian", "exact", gradient, torch.zeros(6, 4), case="one dimension"
)
for rate in (1.0, -0.1):
    try:
        settings(4, projection_dropout=rate)
    except ValueError as error:
        print(error)

# %% [markdown]
# ## Every check, and the verdicts

# %%
per_projection = [1 / (d + 1) for d in (384, 768)]  # of d_h d_p against d_h d_p + d_p
VERDICTS = {
    "math-4.1-similarity": (
        "verified",
        "The dot product of the two spaces is a bilinear form whose matrix is any of rank d_p at most "
        "(projections-bilinear, three checks; projections-rank, exact and search).",
    ),
    "math-4.1-dimension": (
        "verified",
        "A projection to fewer, as many and more dimensions has the stated shapes "
        "(projections-linear, exact).",
    ),
    "math-4.2": (
        "verified",
        f"{cases} random projections of the package equal the loop (projections-linear, naive); the "
        "derivative by h is W (autograd).",
    ),
    "math-4.2-shapes": ("verified", "W has d_p rows and d_h columns (projections-linear, exact)."),
    "math-4.2-identity": (
        "verified",
        "With d_p = d_h the identity, as a choice or as a start, returns the hidden states exactly; with "
        "another d_p it is refused (projections-linear, exact).",
    ),
    "math-4.2-dropout-rate": (
        "verified",
        "Every p in [0, 1) keeps the mean, with factor 1/(1-p); p = 1 is refused "
        "(projections-dropout, symbolic, autograd, naive, search).",
    ),
    "math-4.2-layernorm": (
        "verified",
        "The package equals the loop (projections-layernorm, naive) and adds the dropout that the printed "
        f"line lacks; at p = 0 both are one, at p = 0.3 they differ by a relative {gap:.2f}.",
    ),
    "math-4.3": (
        "verified",
        "The label projection is the same function with weights of its own (projections-linear, naive).",
    ),
    "math-4.3-separate": (
        "verified",
        "Two maps reach every matrix of rank d_p, one shared map only positive semidefinite ones "
        "(projections-rank, search); from the identity start their gradients differ by "
        f"{apart:.2f} of the sum of norms.",
    ),
    "math-9.2-text-projection": (
        "verified",
        f"d_h d_p + d_p, so the estimate is short by {per_projection[0]:.2%} at 384 and "
        f"{per_projection[1]:.2%} at 768 dimensions (projections-count, exact).",
    ),
    "math-9.2-label-projection": (
        "verified",
        f"d_h d_p + d_p, so the estimate is short by {per_projection[0]:.2%} at 384 and "
        f"{per_projection[1]:.2%} at 768 dimensions (projections-count, exact).",
    ),
    "math-9.2-temperatures": (
        "verified",
        "Three numbers, stored as logarithms; two of them have no gradient under the dot and bilinear "
        "heads (projections-count, exact).",
    ),
    "math-9.2-head": (
        "verified",
        "None for the cosine, d_p + 1 for the dot, d_p squared plus 1 for the bilinear head "
        "(projections-count, exact).",
    ),
    "math-9.2-backbone": (
        "verified",
        f"Every encoder parameter is trained; there are {sizes['MiniLM-L6']:,} in MiniLM-L6 and "
        f"{sizes['DeBERTa-v3-base']:,} in DeBERTa-v3-base (projections-backbone, exact).",
    ),
    "math-9.2-total-bilinear": (
        "verified",
        "To leading order. Exactly 2 (d_h d_p + d_p) + d_p squared + 1 + 3, and d_h for the row of [LAB] "
        f"if it is new: the estimate is short by {relative['MiniLM-L6', 'bilinear']:.2%} at 384 and "
        f"{relative['DeBERTa-v3-base', 'bilinear']:.2%} at 768 dimensions (projections-count, exact).",
    ),
    "math-9.2-total-cosine": (
        "verified",
        "To leading order. Exactly 2 (d_h d_p + d_p) + 3, with d_p + 1 more for the dot head and d_h for "
        f"the row of [LAB] if it is new: short by {relative['MiniLM-L6', 'cosine']:.2%} at 384 and "
        f"{relative['DeBERTa-v3-base', 'cosine']:.2%} at 768 dimensions under the cosine head "
        "(projections-count, exact).",
    ),
    "math-12.3-equal": (
        "corrected",
        "True for dot products without biases (projections-best-rank). Under the cosine head the family of "
        f"scores grows until d_p = 2 d_h + 1, and at d_p = d_h a relative error of {at_equal:.2f} is left "
        "for one target (projections-dimension, exact; projections-cosine-rank, exact and search).",
    ),
    "math-12.3-smaller": (
        "verified",
        "The matrix of the dot products has rank d_p at most, and the error of the best one is known "
        "(projections-rank, projections-best-rank, exact and search).",
    ),
    "math-12.3-regularises": (
        "not testable here",
        "Fewer score functions are shown (projections-dimension); whether that improves scores on new "
        "texts takes training runs at several d_p.",
    ),
    "math-12.3-larger": (
        "not testable here",
        "Possible (projections-linear, exact), and under the cosine head it adds score functions "
        "(projections-dimension, exact); how often that helps takes training runs.",
    ),
    "math-12.3-typical": (
        "not testable here",
        "What dropout does is shown: dot products keep their mean and cosines shrink to "
        f"{shrink[0.1]:.3f} at p = 0.1 (projections-dropout); whether it helps takes training runs.",
    ),
    "card-backbone-parameters": (
        "verified",
        f"DeBERTa-v3-base has {sizes['DeBERTa-v3-base']:,} parameters (projections-backbone, exact).",
    ),
    "card-model-size": (
        "verified",
        f"With the card's own parts the model has {card_total:,} parameters, "
        f"{card_total / 1e9:.1f} thousand million after rounding (projections-count, exact).",
    ),
}
registered = AutoConfig.for_model("gliznet", backbone_config=small)
assert type(AutoModel.from_config(registered)) is GliZNetForSequenceClassification
stored = {p.dtype for p in load_or_build("", backbone, "card", report.out)[0].state_dict().values()}
assert stored == {torch.float32}
VERDICTS |= {
    "card-model-type": (
        "verified",
        f"The id {registered.model_type!r} opens {type(registered).__name__} and, through AutoModel, "
        "GliZNetForSequenceClassification.",
    ),
    "card-tensor-type": (
        "not testable here",
        "The card's file is not at hand. A checkpoint of this package holds 32-bit numbers, which does "
        "not contradict the card's training in bfloat16: mixed precision keeps such weights.",
    ),
}
for name, (verdict, evidence) in VERDICTS.items():
    report.outcome(name, verdict, evidence=evidence)
display(checks.table())
paste_table(
    "projections-outcomes", judged(report.outcomes), "Statements of the sources and their outcomes."
)
report.close()

# %% [markdown]
# What this chapter says of each statement of the sources:
#
# ```{glue:md} projections-outcomes
# :format: myst
# ```
