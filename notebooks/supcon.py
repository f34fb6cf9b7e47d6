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
# # SupCon and one-vs-negatives
#
# Both formulations of GliZNet compare the candidate labels of one text by a softmax over their scores.
# The mathematics document takes the supervised contrastive loss, SupCon {cite}`khosla2020supcon`.
# The model card sets each true label against the false ones only, with a margin: "one-vs-negatives".
# This is the term that ranks the labels of a text.
# What is its gradient, how small can it become, what does the scale $\tau$ of the scores do to it, and do its probabilities mean what they say?
#
# In short:
#
# - **Gradient.** For a text with several true labels the gradient of math §8.3.3 is wrong. It pushes every true label up without end; the real one asks the true labels to share the mass equally.
# - **Floor.** SupCon cannot fall below the logarithm of the number of true labels, however good the model is. On the shipped corpus that is {glue:text}`supcon_floor:s` on average. One-vs-negatives has no such floor.
# - **Scale.** A higher $\tau$ sharpens the softmax. At its initial value the bounded cosine head costs next to nothing.
# - **Probabilities.** The softmax is calibrated only when exactly one label is true and no margin is set.
# - **No true label.** For a text without a true label the printed loss is zero divided by zero. The package leaves such a text out.
#
# ## Where it sits
#
# SupCon is math §8.1; §8.3.3 prints its gradient, and §12.2 says how its scale acts.
# The card names its loss in its introduction and under "Training Details".
# Both are functions of `gliznet/losses.py`.
# {doc}`objective` treats the weight of the term.

# %% tags=["parameters"]
out: str = ""
profile: str = "smoke"
seed: int = 1
cases: int = 25  # random rows of each check
steps: int = 200  # optimiser steps in search of the smallest loss

# %% tags=["hide-input"]
import inspect
import itertools
import math
from unittest import mock

import matplotlib.pyplot as plt
import mpmath
import numpy as np
import pandas as pd
import sympy
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from IPython.display import display
from scipy.optimize import minimize

from gliznet import losses
from gliznet.config import GliZNetConfig
from gliznet.data.corpus import hardset_mini
from gliznet.data.types import examples_sha256
from gliznet.lab.checks import Checks, scientific
from gliznet.lab.figures import COLOURS, show, use_style
from gliznet.lab.ledger import judged
from gliznet.lab.records import Reporter
from gliznet.lab.tables import paste, paste_table
from gliznet.layers import SimilarityHead
from gliznet.losses import bce_loss, one_vs_negatives_loss, supcon_loss

rng = np.random.default_rng(seed)
use_style()

# %%
report = Reporter(out)
checks = Checks(report)

# %% [markdown]
# ## Definition
#
# The scores of a batch are $s_{b,j} = \mathrm{sim}_{b,j}$, shape $(B, K)$.
# $P_b$ holds the true labels of text $b$, and $N_b$ all its candidates, the true ones included.
# The softmax runs over the candidates of one text:
#
# $$p_{b,j} = \frac{e^{s_{b,j}}}{\sum_{k \in N_b} e^{s_{b,k}}}.$$
#
# The loss (math §8.1.1) is the mean of $-\log p$ over the true labels, then over the texts:
#
# ```{math}
# :label: eq-supcon-loss
# \mathcal{L}_{\text{SupCon}} = \frac{1}{B} \sum_{b=1}^{B} \mathcal{L}_b,
# \qquad
# \mathcal{L}_b = -\frac{1}{|P_b|} \sum_{j \in P_b} \log p_{b,j}.
# ```
#
# Most of what follows concerns one text, so the index $b$ is mostly left out.
# The mean score of the true labels is $\bar s_P$, and $u_P$ is the uniform distribution on $P$: $1/|P|$ on a true label, zero elsewhere.

# %%
print(inspect.getsource(supcon_loss))

# %% [markdown]
# The code settles three things that the formula leaves open: padded columns are no candidates, the log-softmax is computed directly, which avoids overflow, and a text without a true label is left out of the mean (see "No true label").
#
# ### How it is checked
#
# The hidden cells check every formula on random rows and on hard ones: equal scores, one score far above the others, every label true, a single candidate.
# The symbolic checks write $s_j = \log x_j$, so that every gradient is a rational function.
# Most inequalities are also given to `hypothesis`, a library that looks for counter-examples: it steers towards the tight cases and shrinks what it finds.
# The last section lists all checks.

# %% tags=["hide-input"]
ROUND = 1e-12  # some ten operations on numbers of order ten at a precision of 2e-16
STEP = 1e-5
DIFFERENCE = 1e-8


def row(scores, true):
    """One text: scores and which labels are true."""
    return np.array(scores, dtype=float), np.array(true, dtype=bool)


def random_row(labels, positives, scale=3.0):
    """Scores of `labels` candidates, `positives` of which are true."""
    return row(scale * rng.standard_normal(labels), rng.permutation(labels) < positives)


HARD = [
    row([1.5] * 5, [1, 1, 0, 0, 0]),
    row([9, 0, 0, 0], [1, 1, 0, 0]),
    row([-9, 0, 9, 0], [1, 1, 0, 0]),
    row([2, -1, 0.5], [1, 1, 1]),
    row([0.7], [1]),
]
CASES = HARD + [
    random_row(k := int(rng.integers(2, 10)), int(rng.integers(1, k + 1))) for _ in range(cases)
]
MIXED = [(s, true) for s, true in CASES if not true.all()]  # at least one false label


def gather(function, rows=None):
    """The values of `function` on all rows, as one flat array."""
    rows = CASES if rows is None else rows
    return np.concatenate([np.ravel(function(s, true)) for s, true in rows])


def softmax(s):
    e = np.exp(s - s.max())
    return e / e.sum()


def uniform(true):
    return true / true.sum()


def value(s, true, loss=supcon_loss, **options):
    """The package's loss of one row."""
    mask = torch.ones(1, len(s), dtype=torch.bool)
    return loss(torch.tensor(s)[None], torch.tensor(true)[None].double(), mask, **options).item()


def gradient(s, true, loss=supcon_loss, **options):
    """Autograd's gradient of the package's loss of one row."""
    leaf = torch.tensor(s, requires_grad=True)
    mask = torch.ones(1, len(s), dtype=torch.bool)
    result = loss(leaf[None], torch.tensor(true)[None].double(), mask, **options)
    return torch.autograd.grad(result, leaf)[0].numpy()


def hessian(s, true, loss=supcon_loss, **options):
    """Autograd's second derivatives of the package's loss of one row."""
    mask, target = torch.ones(1, len(s), dtype=torch.bool), torch.tensor(true)[None].double()
    return torch.autograd.functional.hessian(
        lambda x: loss(x[None], target, mask, **options), torch.tensor(s)
    ).numpy()


def differences(function, s):
    """Central differences of a function of the scores, one row per score."""
    steps_ = STEP * np.eye(len(s))
    return np.array([(function(s + e) - function(s - e)) / (2 * STEP) for e in steps_])


def naive(s, true):
    """SupCon of one row, one loop per sum of the formula."""
    total, count = 0.0, 0
    for j in range(len(s)):
        if true[j]:
            denominator = 0.0
            for k in range(len(s)):
                denominator += math.exp(s[k] - s[j])
            total += math.log(denominator)
            count += 1
    return total / count


# What hypothesis draws: scores of the true labels (at least one), scores of the false ones.
SCORE = st.floats(-4, 4)
OWN, RIVALS = st.lists(SCORE, min_size=1, max_size=3), st.lists(SCORE, max_size=3)
SEVERAL, SOME = (st.lists(SCORE, min_size=n, max_size=3) for n in (2, 1))


def drawn_row(own, rivals):
    return row([*own, *rivals], [1] * len(own) + [0] * len(rivals))


# Symbolic rows: x_j = exp(s_j), the first n of K labels true; the loss is symmetric in the labels.


def ln(expression):
    """The logarithm of a product of positive terms as a sum."""
    return sympy.expand_log(sympy.log(sympy.factor(sympy.together(expression))), force=True)


def by_score(expression, x_j):
    """Derivative by the score s_j = log x_j."""
    return x_j * sympy.diff(expression, x_j)


def symbolic_rows(with_false=False):
    for k in (2, 3, 4):
        x = sympy.symbols(f"x1:{k + 1}", positive=True)
        for n in range(1, k if with_false else k + 1):
            yield x, n


def symbolic_loss(x, n):
    return -sum(ln(x_j / sum(x)) for x_j in x[:n]) / n


def all_zero(equation, residuals):
    """Every residual is zero: each carries a symbol of its own, so none can cancel another."""
    marked = [
        sympy.Symbol(f"r{i}") * sympy.cancel(sympy.expand(r)) for i, r in enumerate(residuals)
    ]
    checks.zero(equation, sympy.Add(*marked))


# %% [markdown]
# The first check takes whole batches whose padded columns hold large scores and claim to be true, so that any leak shows.


# %% tags=["hide-input"]
def padded_batch():
    """Three texts of five, six and seven candidates: what the package gets, and the bare rows."""
    chosen = [random_row(7, int(rng.integers(1, 6))) for _ in range(3)]
    scores, true = (np.stack(part) for part in zip(*chosen, strict=True))
    mask = np.ones_like(true)
    mask[0, 5:] = mask[1, 6:] = False
    true[0, 0] = true[1, 0] = True
    padded = np.where(mask, scores, 40.0)
    given = torch.tensor(padded), torch.tensor(true | ~mask).double(), torch.tensor(mask)
    return given, [(s[m], t[m]) for s, t, m in zip(scores, true, mask, strict=True)]


found, looped, library = [], [], []
for _ in range(cases):
    given, rows = padded_batch()
    found.append(supcon_loss(*given).item())
    looped.append(sum(naive(*r) for r in rows) / len(rows))
    library.append(
        np.mean(
            [F.cross_entropy(torch.tensor(s), torch.tensor(uniform(t))).item() for s, t in rows]
        )
    )
checks.equal("supcon-loss", "naive", found, looped, ROUND)
checks.equal("supcon-loss", "library", found, library, ROUND)
checks.rejects(
    "supcon-loss",
    "true labels not in the denominator",
    gather(lambda s, t: value(s, t, one_vs_negatives_loss)),
    gather(naive),
    ROUND,
)

# %% [markdown]
# ### The log-softmax form
#
# Math §8.1.1 prints the loss with a quotient of exponentials and again with a log-softmax.
# Both equal
#
# ```{math}
# :label: eq-supcon-split
# \mathcal{L}_b = \log \sum_{k \in N} e^{s_k} - \bar s_P .
# ```
#
# *Proof.* $\log p_j = s_j - \log \sum_k e^{s_k}$.
# The second part does not depend on $j$, so its mean over $P$ is itself. $\square$
#
# So the loss is a smooth maximum of all scores minus the mean score of the true labels.

# %% tags=["hide-input"]
all_zero(
    "supcon-split",
    [
        symbolic_loss(x, n) - ln(sum(x)) + sum(sympy.log(x_j) for x_j in x[:n]) / n
        for x, n in symbolic_rows()
    ],
)


def split(s, true):
    return np.log(np.exp(s - s.max()).sum()) + s.max() - s[true].mean()


def split_gradient(s, true):
    leaf = torch.tensor(s, requires_grad=True)
    right = torch.logsumexp(leaf, 0) - leaf[torch.tensor(true)].mean()
    return torch.autograd.grad(right, leaf)[0].numpy()


checks.equal("supcon-split", "autograd", gather(gradient), gather(split_gradient), ROUND)
checks.equal("supcon-split", "naive", gather(split), gather(naive), ROUND)
checks.equal("supcon-split", "naive", gather(split), gather(value), ROUND, case="package")

# %% [markdown]
# ## The gradient
#
# **Proposition.** For every number of true labels $|P_b| \ge 1$,
#
# ```{math}
# :label: eq-supcon-gradient
# \frac{\partial \mathcal{L}_{\text{SupCon}}}{\partial s_{b,j}}
# = \frac{1}{B} \left( p_{b,j} - \frac{\mathbb{1}[j \in P_b]}{|P_b|} \right).
# ```
#
# *Proof.* In {eq}`eq-supcon-split` the first term has the derivative $e^{s_j} / \sum_k e^{s_k} = p_j$.
# The second has the derivative $1/|P|$ on a true label and zero elsewhere.
# The mean over the batch gives $1/B$. $\square$
#
# Math §8.3.3 prints $p_{b,j} - \mathbb{1}[j \in P_b]$, without $1/|P_b|$ and without $1/B$.
# That is right only for a single text with one true label.
# To see it at a glance: equal shifts of all scores of a text do not change the loss, so the gradient must sum to zero, but the printed one sums to $1 - |P_b|$.

# %% tags=["hide-input"]
all_zero(
    "supcon-gradient",
    [
        by_score(symbolic_loss(x, n), x[j]) - (x[j] / sum(x) - sympy.Rational(int(j < n), n))
        for x, n in symbolic_rows()
        for j in range(len(x))
    ],
)


def formula(s, true):
    return softmax(s) - uniform(true)


checks.equal("supcon-gradient", "autograd", gather(gradient), gather(formula), ROUND)
checks.equal(
    "supcon-gradient",
    "naive",
    gather(lambda s, t: differences(lambda x: naive(x, t), s)),
    gather(formula),
    DIFFERENCE,
)
batch = [random_row(6, n) for n in (1, 2, 4, 6)]
scores = torch.tensor(np.stack([s for s, _ in batch]), requires_grad=True)
target = torch.tensor(np.stack([t for _, t in batch])).double()
whole = supcon_loss(scores, target, torch.ones_like(target).bool())
checks.equal(
    "supcon-gradient",
    "autograd",
    torch.autograd.grad(whole, scores)[0],
    np.stack([formula(*r) for r in batch]) / len(batch),
    ROUND,
    case="batch of four",
)


def printed(s, true):
    return softmax(s) - true


checks.rejects("supcon-gradient", "as printed", gather(printed), gather(gradient), ROUND)
checks.rejects(
    "supcon-gradient",
    "sign of the target",
    gather(lambda s, t: softmax(s) + uniform(t)),
    gather(gradient),
    ROUND,
)

# %% [markdown]
# One text with two true labels shows the difference.
# The first of them already holds more than half of the mass.
# SupCon pushes it *down* (descent lowers a score with a positive derivative), so that the two share.
# The printed formula pushes it further up.

# %%
s, true = row([2.0, 0.0, 0.0, -1.0], [1, 1, 0, 0])
step_table = pd.DataFrame(
    {
        "true": true,
        "score": s,
        "softmax": softmax(s).round(3),
        "gradient (autograd)": gradient(s, true).round(3),
        "as printed": printed(s, true).round(3),
    },
    index=pd.Index(range(1, 5), name="label"),
)
step_table

# %% [markdown]
# ### How wrong the printed gradient is
#
# The two differ by $1 - 1/|P|$ on each true label.
# With one text, $B = 1$, the error relative to the true gradient is
#
# ```{math}
# :label: eq-supcon-gradient-error
# \frac{\lVert (p - \mathbb{1}_P) - (p - u_P) \rVert}{\lVert p - u_P \rVert}
# = \frac{|P| - 1}{\sqrt{|P|}\, \lVert p - u_P \rVert}
# \;\ge\; \frac{|P| - 1}{\sqrt{|P| + 1}} .
# ```
#
# *Proof.* The numerator is $\sqrt{|P|}\,(1 - 1/|P|)$.
# The norm $\lVert p - u_P \rVert$ is convex in $p$, so over the simplex it is largest at a corner.
# At a false label its square is $1 + 1/|P|$, at a true one it is $1 - 1/|P|$.
# The larger of the two gives the bound. $\square$
#
# So with two or more true labels, no scores make the printed gradient nearly right.
# When all scores are equal, $\lVert p - u_P \rVert^2 = 1/|P| - 1/K$ and the relative error is $(|P| - 1) / \sqrt{1 - |P| / K}$.

# %% tags=["hide-input"]
several = [(s, t) for s, t in MIXED if t.sum() > 1]


def relative_error(s, true):
    right = gradient(s, true)
    return np.linalg.norm(printed(s, true) - right) / np.linalg.norm(right)


def closed_error(s, true):
    n = true.sum()
    return (n - 1) / (math.sqrt(n) * np.linalg.norm(softmax(s) - uniform(true)))


def looped_error(s, true):
    n, p = int(true.sum()), softmax(s)
    wrong = sum((p[j] - true[j] - p[j] + true[j] / n) ** 2 for j in range(len(s)))
    return math.sqrt(wrong / sum((p[j] - true[j] / n) ** 2 for j in range(len(s))))


residuals = []
for x, n in symbolic_rows(with_false=True):
    share = [x_j / sum(x) for x_j in x]
    flag = [int(j < n) for j in range(len(x))]
    wrong = sum(
        ((q - f) - (q - sympy.Rational(f, n))) ** 2 for q, f in zip(share, flag, strict=True)
    )
    residuals.append(wrong - sympy.Rational((n - 1) ** 2, n))
all_zero("supcon-gradient-error", residuals)
checks.equal(
    "supcon-gradient-error",
    "autograd",
    gather(relative_error, several),
    gather(closed_error, several),
    1e-9,  # the norm of the gradient, the divisor, can be small
)
checks.equal(
    "supcon-gradient-error",
    "naive",
    gather(looped_error, several),
    gather(closed_error, several),
    1e-9,
)
level = [row([0.3] * k, np.arange(k) < n) for n, k in ((2, 5), (4, 11), (6, 15), (3, 4))]
checks.equal(
    "supcon-gradient-error",
    "autograd",
    gather(relative_error, level),
    gather(lambda s, t: (t.sum() - 1) / math.sqrt(1 - t.mean()), level),
    1e-9,
    case="equal scores",
)
# The worst cases for the bound: nearly all mass on one false label.
cornered = [row([0.0] * n + [30.0] + [0.0] * 3, [1] * n + [0] * 4) for n in (2, 3, 5, 8)]
checks.at_least(
    "supcon-gradient-error",
    "search",
    gather(relative_error, cornered),
    gather(lambda s, t: (t.sum() - 1) / math.sqrt(t.sum() + 1), cornered),
    1e-9,
)


def error_slack(own, rivals):
    s, t = drawn_row(own, rivals)
    return relative_error(s, t) - (t.sum() - 1) / math.sqrt(t.sum() + 1)


# A false label is present, so that the gradient is not zero.
checks.survives("supcon-gradient-error", error_slack, 1e-9, examples=100, own=SEVERAL, rivals=SOME)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Relative error of the gradient as printed, over the number of true labels among twenty. Dots: autograd on random scores. Dashed: equal scores. Solid: the bound that no scores undercut; a dot below it would refute the proof.", "name": "fig-supcon-gradient-error"}, "image": {"alt": "Dots on or above a rising curve that starts at zero for one true label; a second, higher curve for equal scores."}}
labels = 20
counts = np.arange(1, 13)
figure, axis = plt.subplots(figsize=(5.5, 3.4))
for n in counts:
    errors = [
        relative_error(*random_row(labels, int(n), scale))
        for scale in (0.5, 2.0, 6.0, 20.0)
        for _ in range(3)
    ]
    axis.plot(
        [n] * len(errors),
        errors,
        "o",
        markersize=3,
        color=COLOURS["card"],
        label="random scores" if n == 1 else None,
    )
axis.plot(
    counts, (counts - 1) / np.sqrt(1 - counts / labels), "--", color="black", label="equal scores"
)
axis.plot(counts, (counts - 1) / np.sqrt(counts + 1), color=COLOURS["math"], label="lower bound")
axis.set(xlabel="true labels", ylabel="relative error", ylim=(-0.5, None))
axis.legend(frameon=False)
show(figure)

# %% [markdown]
# ### What the gradient promises
#
# Math §8.1.2 says that the loss ranks true labels above false ones.
# The gradient bears this out.
# Let $g_j = p_j - \mathbb{1}[j \in P]/|P|$ be the derivative by $s_j$, and $M = \sum_{j \in P} p_j$ the mass of the true labels.
#
# ```{math}
# :label: eq-supcon-ranking
# s_j \le s_k,\; j \in P,\; k \notin P
# \quad\Longrightarrow\quad
# g_k - g_j \ge \frac{1}{|P|} .
# ```
#
# *Proof.* $g_k - g_j = p_k - p_j + 1/|P|$, and $s_j \le s_k$ means $p_j \le p_k$. $\square$
#
# So descent moves the two scores of a pair in the wrong order towards the right order, at a speed of at least $1/|P|$.
# A true label with $p_j > 1/|P|$ may be pushed down meanwhile; the false one above it falls faster.
# With the printed gradient no true label is ever pushed down.
# The simplest counter-example that hypothesis finds: {glue:text}`supcon_pushed_down:s`.
#
# True and false labels are pushed equally hard in total, whatever their numbers:
#
# ```{math}
# :label: eq-supcon-balance
# -\sum_{j \in P} g_j = \sum_{k \notin P} g_k = 1 - M .
# ```
#
# *Proof.* $\sum_{j \in P} (1/|P| - p_j) = 1 - M$, and the false labels hold the rest of the mass. $\square$
#
# And a small loss means a large mass:
#
# ```{math}
# :label: eq-supcon-mass
# M \ge |P|\, e^{-\mathcal{L}_b} .
# ```
#
# *Proof.* The logarithm is concave, so the mean of $\log p_j$ over $P$ is at most $\log (M / |P|)$. $\square$

# %% tags=["hide-input"]
pairs = []
for s, t in MIXED:
    g = gradient(s, t)
    pairs += [
        (g[k] - g[j], 1 / t.sum())
        for j in np.flatnonzero(t)
        for k in np.flatnonzero(~t)
        if s[j] <= s[k]
    ]
speeds, slowest = np.array(pairs).T
checks.at_least("supcon-ranking", "search", speeds, slowest, ROUND)


def speed_slack(own, rivals, lead):
    """A false label leads the first true one: the speed of their gap less its bound."""
    s, t = drawn_row(own, [*rivals, own[0] + lead])
    g = gradient(s, t)
    return g[-1] - g[0] - 1 / t.sum()


def weakest_push(own, rivals):
    """The weakest push on a true label, negative where it is pushed down."""
    s, t = drawn_row(own, rivals)
    return -gradient(s, t)[t].max()


checks.survives(
    "supcon-ranking", speed_slack, ROUND, examples=150, own=OWN, rivals=RIVALS, lead=st.floats(0, 4)
)
pushed = checks.refuted(
    "supcon-ranking", "no true label falls", weakest_push, ROUND, own=OWN, rivals=RIVALS
)
told = {k: " and ".join(f"{x:g}" for x in scores) or "none" for k, scores in pushed.items()}
down = gradient(*drawn_row(**pushed)).max()
paste(
    "supcon_pushed_down",
    f"true scores {told['own']}, false scores {told['rivals']}; largest slope of a true label {down:.3f}",
)

all_zero(
    "supcon-balance",
    [
        residual
        for x, n in symbolic_rows()
        for loss in [symbolic_loss(x, n)]
        for rest in [1 - sum(x[:n]) / sum(x)]
        for residual in (
            sum(by_score(loss, x_j) for x_j in x[:n]) + rest,
            sum((by_score(loss, x_j) for x_j in x[n:]), sympy.S.Zero) - rest,
        )
    ],
)


def both_sides(function):
    return gather(lambda s, t: [-function(s, t)[t].sum(), function(s, t)[~t].sum()])


outside = gather(lambda s, t: [1 - softmax(s)[t].sum()] * 2)
checks.equal("supcon-balance", "autograd", both_sides(gradient), outside, ROUND)
checks.equal(
    "supcon-balance",
    "naive",
    both_sides(lambda s, t: differences(lambda x: naive(x, t), s)),
    outside,
    10 * DIFFERENCE,  # up to nine differences are added
)


def mass_slack(own, rivals):
    s, t = drawn_row(own, rivals)
    return softmax(s)[t].sum() - t.sum() * math.exp(-value(s, t))


checks.survives("supcon-mass", mass_slack, ROUND, examples=150, own=OWN, rivals=RIVALS)

# %% [markdown]
# ## Curvature
#
# **Proposition.** The matrix $H$ of the second derivatives of the loss of one text does not depend on which labels are true. For every vector $v$, $v^\top H v$ is the variance of its entries under $p$:
#
# ```{math}
# :label: eq-supcon-hessian
# \frac{\partial^2 \mathcal{L}_b}{\partial s_i\, \partial s_j} = \mathbb{1}[i = j]\, p_i - p_i\, p_j ,
# ```
#
# ```{math}
# :label: eq-supcon-curvature
# 0 \;\le\; v^\top H v = \operatorname{Var}_p(v) \;\le\; \tfrac12 \lVert v \rVert^2 .
# ```
#
# *Proof.* Differentiate {eq}`eq-supcon-gradient` once more: $\partial p_i / \partial s_j = p_i (\mathbb{1}[i = j] - p_j)$.
# Then $v^\top H v = \sum p_i v_i^2 - (\sum p_i v_i)^2$, a variance.
# A variance is at most a quarter of the squared range, and $(v_i - v_k)^2 \le 2 \lVert v \rVert^2$. $\square$
#
# So the loss is convex in the scores, though not strictly: along equal shifts it is flat.
# Its gradient is Lipschitz with constant one half.
# The push on a label depends on all scores of the text; math §8.3.3 calls this gradient relative.
# In the weights of the encoder the loss need not be convex.

# %% tags=["hide-input"]
all_zero(
    "supcon-hessian",
    [
        by_score(by_score(symbolic_loss(x, n), x[i]), x[j])
        - (int(i == j) * x[i] / sum(x) - x[i] * x[j] / sum(x) ** 2)
        for x, n in symbolic_rows()
        if len(x) < 4 or n == 2
        for i, j in itertools.combinations_with_replacement(range(len(x)), 2)
    ],
)


def hessian_formula(s, true):
    return np.diag(softmax(s)) - np.outer(softmax(s), softmax(s))


def looped_gradient(s, true):
    total = sum(math.exp(x) for x in s)
    return np.array([math.exp(s[j]) / total - true[j] / true.sum() for j in range(len(s))])


checks.equal("supcon-hessian", "autograd", gather(hessian), gather(hessian_formula), ROUND)
checks.equal(
    "supcon-hessian",
    "naive",
    gather(lambda s, t: differences(lambda x: looped_gradient(x, t), s)),
    gather(hessian_formula),
    DIFFERENCE,
)
x, v = sympy.symbols("x1:4", positive=True), sympy.symbols("v1:4", real=True)
share = [x_j / sum(x) for x_j in x]
loss = symbolic_loss(x, 2)
quadratic = sum(
    v_i * v_j * by_score(by_score(loss, x_i), x_j)
    for x_i, v_i in zip(x, v, strict=True)
    for x_j, v_j in zip(x, v, strict=True)
)
mean = sum(p * v_j for p, v_j in zip(share, v, strict=True))
variance = sum(p * (v_j - mean) ** 2 for p, v_j in zip(share, v, strict=True))
all_zero("supcon-curvature", [quadratic - variance])
directions = [rng.standard_normal(len(s)) for s, _ in CASES]
variances = [
    softmax(s) @ (v - softmax(s) @ v) ** 2 for (s, _), v in zip(CASES, directions, strict=True)
]
turned = [v @ hessian(*r) @ v for r, v in zip(CASES, directions, strict=True)]
checks.equal("supcon-curvature", "autograd", turned, variances, ROUND)
WIDE = 1e-3  # a second difference divides round-off by the step squared
bent = [
    (naive(s + WIDE * v, t) - 2 * naive(s, t) + naive(s - WIDE * v, t)) / WIDE**2
    for (s, t), v in zip(CASES, directions, strict=True)
]
checks.equal("supcon-curvature", "naive", bent, variances, 1e-4)  # error of order WIDE squared


def between_curvatures(pairs):
    """Both ends of the inequality, from autograd's second derivatives."""
    s, v = np.array(pairs).T
    bend = v @ hessian(s, np.arange(len(s)) < 1) @ v
    return min(bend, v @ v / 2 - bend)


PAIRS = st.lists(st.tuples(SCORE, SCORE), min_size=1, max_size=4)
# The squared length of the direction, up to 64, multiplies the round-off.
checks.survives("supcon-curvature", between_curvatures, 1e-11, examples=80, pairs=PAIRS)
# Two labels of equal score share the mass: there the bound is reached.
largest = np.linalg.eigvalsh(hessian(*row([0, 0], [1, 0])))[-1]
checks.equal("supcon-curvature", "exact", largest, 0.5, ROUND)
checks.rejects(
    "supcon-hessian",
    "diagonal only",
    gather(lambda s, t: np.diag(softmax(s))),
    gather(hessian),
    ROUND,
)

# %% [markdown]
# ## How small the loss can be
#
# **Proposition.** The loss is a constant plus the Kullback-Leibler divergence from $p$ to $u_P$, the uniform distribution on the true labels:
#
# ```{math}
# :label: eq-supcon-kl
# \mathcal{L}_b = \log |P| + \operatorname{KL}(u_P \,\Vert\, p),
# \qquad
# \operatorname{KL}(u_P \,\Vert\, p) = \sum_{j \in P} \frac{1}{|P|} \log \frac{1/|P|}{p_j} .
# ```
#
# *Proof.* Write the divergence out: its first part is $-\log |P|$, its second is $\mathcal{L}_b$. $\square$
#
# Hence
#
# ```{math}
# :label: eq-supcon-floor
# \mathcal{L}_b \ge \log |P|, \qquad \inf_s \mathcal{L}_b = \log |P| .
# ```
#
# Equality needs $p = u_P$, which is also where {eq}`eq-supcon-gradient` vanishes: equal mass on every true label and none elsewhere.
# With finite scores that happens only if every candidate is true.
# Otherwise the infimum is approached and never reached: with all true labels at a height $a$ above all false ones,
# $\mathcal{L}_b - \log |P| = \log(1 + (K/|P| - 1)\, e^{-a})$.
#
# For one true label the floor is zero, for several it is not.

# %% tags=["hide-input"]
all_zero(
    "supcon-kl",
    [
        symbolic_loss(x, n) - sympy.log(n) - sum(ln(1 / (n * x_j / sum(x))) for x_j in x[:n]) / n
        for x, n in symbolic_rows()
    ],
)


def divergence(s, true):
    u, p = uniform(true), softmax(s)
    return sum(u[j] * math.log(u[j] / p[j]) for j in range(len(s)) if true[j])


def divergence_gradient(s, true):
    leaf, u = torch.tensor(s, requires_grad=True), torch.tensor(uniform(true))
    right = F.kl_div(leaf.log_softmax(0), u, reduction="sum")
    return torch.autograd.grad(right, leaf)[0].numpy()


floor_of = gather(lambda s, t: math.log(t.sum()))
checks.equal("supcon-kl", "autograd", gather(gradient), gather(divergence_gradient), ROUND)
checks.equal("supcon-kl", "naive", gather(value), floor_of + gather(divergence), ROUND)

lifted = [
    row([a] * n + [0.0] * (9 - n), [1] * n + [0] * (9 - n)) for a in (1, 5, 20) for n in (1, 3, 8)
]


def above_floor(own, rivals):
    s, t = drawn_row(own, rivals)
    return value(s, t) - math.log(t.sum())


def within(true_labels, false_labels, digits):
    """The height that brings the loss within 10^-digits of the floor does so."""
    eps = 10.0**-digits
    height = math.log(false_labels / true_labels / math.expm1(eps))
    s, t = drawn_row([height] * true_labels, [0.0] * false_labels)
    return math.log(true_labels) + eps - value(s, t)


checks.survives(
    "supcon-floor", above_floor, ROUND, case="bound", examples=150, own=OWN, rivals=RIVALS
)
checks.survives(
    "supcon-floor",
    within,
    ROUND,
    case="as near as one likes",
    examples=100,
    true_labels=st.integers(1, 8),
    false_labels=st.integers(1, 8),
    digits=st.floats(0, 9),
)
checks.equal(
    "supcon-floor",
    "naive",
    gather(value, lifted),
    gather(lambda s, t: math.log(t.sum() + (~t).sum() * math.exp(-s.max())), lifted),
    ROUND,
)
height, n_true, n_all = sympy.symbols("a n K", positive=True)
excess = sympy.log(1 + (n_all / n_true - 1) * sympy.exp(-height))
checks.zero("supcon-floor", sympy.limit(excess, height, sympy.oo))
highest = lifted[-3:]  # true labels twenty above the rest
checks.rejects(
    "supcon-floor",
    "zero for every number of true labels",
    np.zeros(3),
    gather(value, highest),
    ROUND,
)

# %% [markdown]
# ### With a cosine head
#
# The cosine head keeps every score in $[-\tau, \tau]$ (math §7.1.1).
#
# **Proposition.** For scores in $[-\tau, \tau]$,
#
# ```{math}
# :label: eq-supcon-bound
# \mathcal{L}_b \;\ge\; \log\left( |P| + (K - |P|)\, e^{-2\tau} \right),
# ```
#
# with equality, where there is a false label, exactly when every true label scores $\tau$ and every false one $-\tau$.
#
# *Proof.* By Jensen's inequality $\sum_{j \in P} e^{s_j} \ge |P|\, e^{\bar s_P}$.
# Each false label adds at least $e^{-\tau}$.
# Put both into {eq}`eq-supcon-split`: $\mathcal{L}_b \ge \log( |P| + (K - |P|)\, e^{-\tau - \bar s_P} )$.
# The right side falls with $\bar s_P$, which is at most $\tau$.
# Equality in all three steps means equal true scores, false scores $-\tau$, and $\bar s_P = \tau$. $\square$
#
# Vectors can reach the bound: point the true labels along one direction and the false ones against it.
# The true labels then coincide, which the repulsion loss penalises ({doc}`repulsion`).
#
# For $|P| < K$ the bound is within $\varepsilon > 0$ of $\log |P|$ if
#
# ```{math}
# :label: eq-supcon-needed-scale
# \tau \;\ge\; \frac12 \log \frac{K / |P| - 1}{e^{\varepsilon} - 1} .
# ```

# %% [markdown]
# Two optimisers try to get below the bound: L-BFGS-B over scores in the box, and Adam over free text and label vectors in the package's cosine head.


# %% tags=["hide-input"]
def bound(n, k, tau):
    return math.log(n + (k - n) * math.exp(-2 * tau))


def lowest(n, k, tau, loss=supcon_loss, **options):
    """Smallest loss with scores in [-tau, tau], and the scores."""
    true = np.arange(k) < n
    done = minimize(
        lambda s: (value(s, true, loss, **options), gradient(s, true, loss, **options)),
        rng.uniform(-tau, tau, k),
        jac=True,
        method="L-BFGS-B",
        bounds=[(-tau, tau)] * k,
        options={"ftol": 1e-15, "gtol": 1e-12},
    )
    return done.fun, done.x


START = GliZNetConfig().tau
SCALES = (0.5, 2.0, START)
GRID = [(n, k, tau) for k in (2, 5, 20) for n in (1, 2, 5, 9) if n <= k for tau in SCALES]
reached = [lowest(n, k, tau)[0] for n, k, tau in GRID]
bounds = [bound(*case) for case in GRID]
# The optimiser stops within about 1e-9 of the corner.
checks.equal("supcon-bound", "search", reached, bounds, 1e-7, case="minimum")
tight = []
for n, k, tau in GRID:
    head = SimilarityHead(GliZNetConfig.math(projected_dim=3, projection_init="default"))
    side = np.where(np.arange(k) < n, 1.0, -1.0)
    direction = rng.standard_normal(3)
    text, label = np.tile(direction, (k, 1)), side[:, None] * 2.0 * direction
    scores = head(
        torch.tensor(text)[None], torch.tensor(label)[None], torch.tensor(tau, dtype=torch.float64)
    )
    tight.append(value(scores[0].numpy(), side > 0))
checks.equal("supcon-bound", "exact", tight, bounds, ROUND)


def above_bound(own, rivals, scale):
    """Scores are drawn up to four, so a fourth of them is a cosine."""
    s, t = drawn_row(own, rivals)
    return value(s * scale / 4, t) - bound(t.sum(), len(t), scale)


checks.survives(
    "supcon-bound",
    above_bound,
    ROUND,
    case="scores in the box",
    examples=150,
    own=OWN,
    rivals=RIVALS,
    scale=st.floats(0.1, 20),
)
checks.rejects(
    "supcon-bound",
    "half the range",
    [math.log(n + (k - n) * math.exp(-tau)) for n, k, tau in GRID],
    reached,
    1e-7,
)
needed = [
    (n, k, eps, 0.5 * math.log((k / n - 1) / math.expm1(eps)))
    for n, k in ((1, 20), (2, 20), (5, 13))
    for eps in (0.1, 0.01)
]


def spare_scale(true_labels, false_labels, digits, more):
    """At the needed scale, or above it, the best cosines come within 10^-digits of the floor."""
    eps = 10.0**-digits
    scale = max(0.5 * math.log(false_labels / true_labels / math.expm1(eps)), 0.0) + more
    s, t = drawn_row([scale] * true_labels, [-scale] * false_labels)
    return math.log(true_labels) + eps - value(s, t)


checks.survives(
    "supcon-needed-scale",
    spare_scale,
    ROUND,
    examples=100,
    true_labels=st.integers(1, 8),
    false_labels=st.integers(1, 8),
    digits=st.floats(0, 9),
    more=st.floats(0, 3),
)
checks.equal(
    "supcon-needed-scale",
    "search",
    [lowest(n, k, tau)[0] - math.log(n) for n, k, _, tau in needed],
    [eps for _, _, eps, _ in needed],
    1e-7,
)

# %% tags=["hide-input"]
SHOWN = {5: [1, 2, 3, 4, 5], 20: [1, 2, 3, 5, 7, 9, 12]}


def descend(counts, k, tau):
    """Losses that Adam reaches on text and label vectors through the cosine head, one per count."""
    generator = torch.Generator().manual_seed(seed)
    text, label = (
        torch.randn(len(counts), k, 4, generator=generator, dtype=torch.float64).requires_grad_()
        for _ in range(2)
    )
    head = SimilarityHead(GliZNetConfig.math(projected_dim=4, projection_init="default"))
    true = torch.arange(k)[None] < torch.tensor(counts)[:, None]
    mask, scale = torch.ones_like(true), torch.tensor(tau, dtype=torch.float64)
    optimiser = torch.optim.Adam([text, label], lr=0.1)
    for _ in range(steps):
        optimiser.zero_grad()
        supcon_loss(head(text, label, scale), true.double(), mask).backward()
        optimiser.step()
    with torch.no_grad():
        scores = head(text, label, scale).numpy()
    return [value(s, t) for s, t in zip(scores, true.numpy(), strict=True)]


descended = {(k, tau): descend(SHOWN[k], k, tau) for k in SHOWN for tau in SCALES}
gaps = np.array(
    [
        (loss, bound(n, k, tau))
        for (k, tau), losses in descended.items()
        for n, loss in zip(SHOWN[k], losses, strict=True)
    ]
)
checks.at_least("supcon-bound", "search", gaps[:, 0], gaps[:, 1], ROUND, case="through the head")
# A few hundred steps of Adam come close, not all the way.
checks.equal("supcon-bound", "search", gaps[:, 0], gaps[:, 1], 0.02, case="Adam comes close")
report.metric("floor/largest_gap", float(np.max(gaps[:, 0] - gaps[:, 1])), unit="nats", n=len(gaps))

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Smallest loss over the number of true labels. Lines: the bound for three scales, solid for twenty candidates, dashed for five. Crosses: what gradient descent on vectors reaches through the cosine head. Dotted: the logarithm of the number of true labels. A cross below its line would refute the bound; a cross far above would show that it is loose.", "name": "fig-supcon-floor"}, "image": {"alt": "Rising curves with a cross on each point; the curves for the largest scale lie on the dotted logarithm, those for the smallest scale well above."}}
figure, axis = plt.subplots(figsize=(5.5, 4))
names = {0.5: "τ = 0.5", 2.0: "τ = 2", START: "τ = e², the start"}
for (tau, name), colour in zip(names.items(), ("card", "accent", "math"), strict=True):
    for k, style in ((20, "-"), (5, "--")):
        axis.plot(
            SHOWN[k],
            [bound(n, k, tau) for n in SHOWN[k]],
            style,
            color=COLOURS[colour],
            label=name if k == 20 else None,
        )
        axis.plot(SHOWN[k], descended[k, tau], "x", color="black", markersize=5)
axis.plot(range(1, 13), np.log(range(1, 13)), ":", color="black", label="log of true labels")
axis.set(xlabel="true labels", ylabel="smallest loss", ylim=(-0.1, None))
axis.legend(frameon=False)
show(figure)

# %% [markdown]
# At the initial scale $\tau = e^2$ the head costs next to nothing: in the figure the bound lies on $\log |P|$.
# With a bare cosine, $\tau = 1$, it would cost a lot.
# The table gives the smallest scale of {eq}`eq-supcon-needed-scale`.

# %% tags=["hide-input"]
pd.DataFrame(
    [(k, n, eps, round(tau, 2)) for n, k, eps, tau in needed],
    columns=["candidates", "true", "ε", "smallest τ"],
).set_index("candidates")

# %% [markdown]
# ## The scale τ
#
# With the cosine head $s_j = \tau c_j$, where $c_j$ is the cosine of label $j$.
# Let $\bar c_P$ be the mean cosine of the true labels and $\mathbb{E}_p[c] = \sum_j p_j c_j$ the mean cosine under the softmax.
#
# **Proposition.**
#
# ```{math}
# :label: eq-supcon-tau
# \frac{\partial \mathcal{L}_b}{\partial \tau} = \mathbb{E}_p[c] - \bar c_P,
# \qquad
# \frac{\partial \mathcal{L}_b}{\partial \log \tau} = \tau \left( \mathbb{E}_p[c] - \bar c_P \right),
# ```
#
# ```{math}
# :label: eq-supcon-tau-curvature
# \frac{\partial^2 \mathcal{L}_b}{\partial \tau^2} = \operatorname{Var}_p(c) \ge 0 .
# ```
#
# *Proof.* Chain rule in {eq}`eq-supcon-gradient`: $\sum_j (p_j - \mathbb{1}[j \in P]/|P|)\, c_j$.
# The second derivative is $c^\top H c$ with {eq}`eq-supcon-curvature`.
# The model stores $\log \tau$, which gives the factor $\tau$. $\square$
#
# Descent raises $\tau$ exactly while the mean cosine of the true labels is above that of the softmax.
# The loss is convex in $\tau$, so its slopes at both ends tell where it is smallest:
#
# ```{math}
# :label: eq-supcon-tau-ends
# \lim_{\tau \to 0} \frac{\partial \mathcal{L}_b}{\partial \tau} = \bar c - \bar c_P,
# \qquad
# \lim_{\tau \to \infty} \frac{\partial \mathcal{L}_b}{\partial \tau} = \max_j c_j - \bar c_P \ge 0,
# ```
#
# with $\bar c$ the mean cosine of all candidates.
# *Proof.* At zero the softmax is uniform; at infinity all its mass is on the largest cosine. $\square$
#
# For fixed cosines there are three cases:
#
# - If all true labels share the largest cosine and some false label has a lower one, descent raises $\tau$ without limit. With one true label this means that it comes first.
# - If $\bar c_P$ is above the average $\bar c$ but below the largest cosine, there is one best finite $\tau$. With several true labels, whose cosines differ, that is the usual case.
# - If $\bar c_P$ is below the average, $\tau$ shrinks towards zero.
#
# Math §12.2 says that a higher $\tau$ gives sharper distributions.
# For the softmax of SupCon that can be proved: its entropy $H_p = -\sum_j p_j \log p_j$ falls and its largest probability rises.
#
# ```{math}
# :label: eq-supcon-entropy
# \frac{\partial H_p}{\partial \tau} = -\tau \operatorname{Var}_p(c) \le 0,
# ```
#
# ```{math}
# :label: eq-supcon-confidence
# \frac{\partial \log p_j}{\partial \tau} = c_j - \mathbb{E}_p[c] .
# ```
#
# *Proof.* $\log p_j = \tau c_j - \log \sum_k e^{\tau c_k}$, and the derivative of the second term is $\mathbb{E}_p[c]$.
# The entropy is $\log \sum_k e^{\tau c_k} - \tau\, \mathbb{E}_p[c]$ with the derivative $-\tau\, \partial \mathbb{E}_p[c] / \partial \tau$.
# For the label of largest cosine the right side of {eq}`eq-supcon-confidence` is not negative. $\square$
#
# The probabilities that the model reports for single labels do not sharpen: they use the rescaled score $\mathrm{sim} / \tau \cdot \tau_{\text{BCE}}$ ({doc}`bce`), from which $\tau$ cancels.

# %% tags=["hide-input"]
tau_symbol = sympy.Symbol("tau", positive=True)


def symbolic_scale(k):
    c = sympy.symbols(f"c1:{k + 1}", real=True)
    weights = [sympy.exp(tau_symbol * c_j) for c_j in c]
    p = [w / sum(weights) for w in weights]
    mean = sum(q * c_j for q, c_j in zip(p, c, strict=True))
    variance = sum(q * c_j**2 for q, c_j in zip(p, c, strict=True)) - mean**2
    return c, sympy.log(sum(weights)), mean, variance


slope, bend, order, rise = [], [], [], []
for k in (2, 3):
    c, partition, mean, variance = symbolic_scale(k)
    for n in range(1, k + 1):
        loss = partition - tau_symbol * sum(c[:n]) / n
        derivative = sympy.diff(loss, tau_symbol)
        slope += [derivative - mean + sum(c[:n]) / n]
        bend += [sympy.diff(derivative, tau_symbol) - variance]
    entropy = partition - tau_symbol * mean
    order += [sympy.diff(entropy, tau_symbol) + tau_symbol * variance]
    rise += [sympy.diff(tau_symbol * c_j - partition, tau_symbol) - c_j + mean for c_j in c]
# E = exp(tau) for cosines 1, 0 and -1: rational, so that the limits are exact.
E = sympy.Symbol("E", positive=True)
expected = (E - 1 / E) / (E + 1 + 1 / E)
all_zero("supcon-tau", slope)
all_zero("supcon-tau-curvature", bend)
all_zero("supcon-entropy", order)
all_zero("supcon-confidence", rise)
all_zero("supcon-tau-ends", [expected.subs(E, 1), sympy.limit(expected, E, sympy.oo) - 1])


def vectors(k, d=5):
    return (torch.tensor(rng.standard_normal((1, k, d))) for _ in range(2))


head = SimilarityHead(GliZNetConfig.math(projected_dim=5, projection_init="default"))
by_kind = {
    name: ([], [])
    for name in ("slope", "log slope", "bend", "entropy", "log p", "slope, loop", "bend, loop")
}
loops = {"entropy": ([], []), "log p": ([], [])}
for _ in range(cases):
    k = int(rng.integers(2, 9))
    n = int(rng.integers(1, k + 1))
    text, label = vectors(k)
    true = torch.arange(k)[None] < n
    mask = torch.ones_like(true)
    scale = torch.tensor(float(rng.uniform(0.2, 9)), dtype=torch.float64, requires_grad=True)
    log_scale = scale.detach().log().requires_grad_()
    tau = scale.item()
    # The formulas, from cosines that the package's head does not compute.
    c = np.array(
        [
            a @ b / math.hypot(*a) / math.hypot(*b)
            for a, b in zip(text[0].numpy(), label[0].numpy(), strict=True)
        ]
    )
    p = softmax(tau * c)
    mean, variance = p @ c, p @ (c - p @ c) ** 2
    lead = mean - c[:n].mean()
    loss = supcon_loss(head(text, label, scale), true.double(), mask)
    (first,) = torch.autograd.grad(loss, scale, create_graph=True)
    by_kind["slope"][0].append(first.item())
    by_kind["bend"][0].append(torch.autograd.grad(first, scale)[0].item())
    loss = supcon_loss(head(text, label, log_scale.exp()), true.double(), mask)
    by_kind["log slope"][0].append(torch.autograd.grad(loss, log_scale)[0].item())
    log_p = head(text, label, scale)[0].log_softmax(0)
    disorder = -(log_p.exp() * log_p).sum()
    by_kind["entropy"][0].append(torch.autograd.grad(disorder, scale, retain_graph=True)[0].item())
    by_kind["log p"][0].append(torch.autograd.grad(log_p.max(), scale)[0].item())

    def at(x, c=c, n=n):
        return naive(x * c, np.arange(len(c)) < n)

    def disorder_at(x, c=c):
        return -sum(q * math.log(q) for q in softmax(x * c))

    def log_p_at(x, c=c):
        return x * max(c) - math.log(sum(math.exp(x * c_j) for c_j in c))

    by_kind["slope, loop"][0].append((at(tau + STEP) - at(tau - STEP)) / (2 * STEP))
    by_kind["bend, loop"][0].append((at(tau + WIDE) - 2 * at(tau) + at(tau - WIDE)) / WIDE**2)
    for name, function, right in (
        ("entropy", disorder_at, -tau * variance),
        ("log p", log_p_at, c.max() - mean),
    ):
        loops[name][0].append((function(tau + STEP) - function(tau - STEP)) / (2 * STEP))
        loops[name][1].append(right)
        by_kind[name][1].append(right)
    for name in ("slope", "slope, loop"):
        by_kind[name][1].append(lead)
    by_kind["log slope"][1].append(tau * lead)
    for name in ("bend", "bend, loop"):
        by_kind[name][1].append(variance)
checks.equal("supcon-tau", "autograd", *by_kind["slope"], ROUND)
checks.equal("supcon-tau", "autograd", *by_kind["log slope"], ROUND, case="log τ")
checks.equal("supcon-tau", "naive", *by_kind["slope, loop"], DIFFERENCE)
checks.equal("supcon-tau-curvature", "autograd", *by_kind["bend"], ROUND)
checks.equal("supcon-tau-curvature", "naive", *by_kind["bend, loop"], 1e-6)
checks.equal("supcon-entropy", "autograd", *by_kind["entropy"], ROUND)
checks.equal("supcon-entropy", "naive", *loops["entropy"], DIFFERENCE)
checks.equal("supcon-confidence", "autograd", *by_kind["log p"], ROUND)
checks.equal("supcon-confidence", "naive", *loops["log p"], DIFFERENCE)
flat_head = SimilarityHead(GliZNetConfig.math(projected_dim=2, projection_init="default"))


def log_softmaxes(cosines, scale, step):
    """Of the package's scores of a text with labels at these cosines, at two scales."""
    label = torch.tensor([[x, math.sqrt(1 - x * x)] for x in cosines], dtype=torch.float64)[None]
    text = torch.tensor([1.0, 0.0], dtype=torch.float64).expand_as(label)
    return [
        flat_head(text, label, torch.tensor(x, dtype=torch.float64))[0].log_softmax(0)
        for x in (scale, scale + step)
    ]


def less_entropy(**drawn):
    low, high = (-float((x.exp() * x).sum()) for x in log_softmaxes(**drawn))
    return low - high


def more_confidence(**drawn):
    low, high = (float(x.max()) for x in log_softmaxes(**drawn))
    return high - low


SCALED = {
    "cosines": st.lists(st.floats(-1, 1), min_size=1, max_size=6),
    "scale": st.floats(0.1, 20),
    "step": st.floats(0, 20),
}
# Scores reach forty.
checks.survives("supcon-entropy", less_entropy, 1e-11, case="falls", examples=150, **SCALED)
checks.survives("supcon-confidence", more_confidence, 1e-11, case="rises", examples=150, **SCALED)
checks.rejects("supcon-tau", "sign", [-x for x in by_kind["slope"][1]], by_kind["slope"][0], ROUND)


def slope_at(tau, c, true):
    scale = torch.tensor(tau, dtype=torch.float64, requires_grad=True)
    target = torch.tensor(true)[None].double()
    loss = supcon_loss(scale * torch.tensor(c)[None], target, torch.ones_like(target).bool())
    return torch.autograd.grad(loss, scale)[0].item()


ends = [(rng.uniform(-1, 1, 6), np.arange(6) < n) for n in (1, 2, 3, 6)]
checks.equal(
    "supcon-tau-ends",
    "autograd",
    [slope_at(tau, c, t) for c, t in ends for tau in (1e-9, 1e5)],
    [m - c[t].mean() for c, t in ends for m in (c.mean(), c.max())],
    1e-8,  # τ is near its ends, not there
)
finite = (np.array([0.9, 0.6, 0.1, -0.4]), np.array([True, True, False, False]))
# At zero; and at two hundred, where the other labels have lost all of their mass.
c, t = finite
at_ends = [
    (naive((x + h) * c, t) - naive((x - h) * c, t)) / (2 * h)
    for x, h in ((0.0, STEP), (200.0, 1.0))
]
checks.equal(
    "supcon-tau-ends", "naive", at_ends, [m - c[t].mean() for m in (c.mean(), c.max())], DIFFERENCE
)


def between_ends(own, rivals, scale):
    c, t = drawn_row(own, rivals)
    c = c / 4
    lead = slope_at(scale, c, t) + c[t].mean()
    return min(c.max() - lead, lead - c.mean())


checks.survives(
    "supcon-tau-ends",
    between_ends,
    ROUND,
    case="between the ends",
    examples=100,
    own=OWN,
    rivals=RIVALS,
    scale=st.floats(0.1, 20),
)
best = minimize(lambda x: naive(x[0] * finite[0], finite[1]), [3.0], bounds=[(1e-6, 100)]).x[0]
checks.equal("supcon-tau", "search", slope_at(best, *finite), 0.0, 1e-5, case="finite best τ")
report.metric("tau/finite_best", float(best), unit="best τ for cosines 0.9 and 0.6 true")
checks.equal("supcon-tau", "exact", START, math.e**2, 1e-12, case="initial scale")
blind = [
    bce_loss(
        torch.tensor(tau * finite[0])[None],
        torch.tensor(finite[1])[None].double(),
        torch.ones(1, 4, dtype=torch.bool),
        tau,
        START,
    ).item()
    for tau in (0.5, START, 40.0)
]
checks.equal("supcon-confidence", "exact", blind, [blind[0]] * 3, ROUND, case="BCE without τ")

# %% [markdown]
# ## Are the probabilities calibrated?
#
# Math §8.1.2 says that the softmax naturally gives calibrated distributions.
# To judge that, let the set of true labels $P$ of a text be random, never empty.
# A calibrated probability of label $j$ is $q_j$; SupCon has another target, $t_j$:
#
# $$q_j = \Pr(j \in P), \qquad t_j = \mathbb{E}\left[\frac{\mathbb{1}[j \in P]}{|P|}\right].$$
#
# **Proposition.** The expected loss has its only minimum over distributions $p$ at $p = t$; with $H_t$ for the entropy of $t$,
#
# ```{math}
# :label: eq-supcon-proper
# \mathbb{E}[\mathcal{L}_b] = -\sum_j t_j \log p_j = H_t + \operatorname{KL}(t \,\Vert\, p) .
# ```
#
# *Proof.* $\mathcal{L}_b$ is linear in the weights $\mathbb{1}[j \in P]/|P|$; take the expectation.
# The divergence is zero only at $p = t$. $\square$
#
# With exactly one true label $t = q$, so the best softmax is calibrated, for unlimited data and free scores.
#
# With several true labels $t \ne q$: the entries of $t$ sum to one, those of $q$ to the expected number of true labels.
# A text with two labels that are certainly true, $q = (1, 1, 0)$, gets $t = (\tfrac12, \tfrac12, 0)$.
# In general a certain set has the error $1 - 1/|P|$ on each of its labels.
#
# The probabilities that math §10.1 reports are $\sigma(\mathrm{sim})$, with the logistic function $\sigma$.
# SupCon does not determine them at all: a common shift of all scores changes them and not the loss.

# %% tags=["hide-input"]
residuals = []
for k in (2, 3):
    x = sympy.symbols(f"x1:{k + 1}", positive=True)
    sets = [p for n in range(1, k + 1) for p in itertools.combinations(range(k), n)]
    weights = sympy.symbols(f"w1:{len(sets) + 1}", positive=True)
    log_p = [ln(x_j / sum(x)) for x_j in x]
    left = sum(w * -sum(log_p[j] for j in p) / len(p) for w, p in zip(weights, sets, strict=True))
    t = [sum(w / len(p) for w, p in zip(weights, sets, strict=True) if j in p) for j in range(k)]
    residuals.append(left + sum(t_j * log_j for t_j, log_j in zip(t, log_p, strict=True)))
    total = sum(weights)  # the weights need not sum to one: the identity is linear in them
    residuals += [by_score(left, x[j]) - (total * x[j] / sum(x) - t[j]) for j in range(k)]
all_zero("supcon-proper", residuals)


def outcomes(k, rows):
    """Label sets of `rows` equally likely outcomes, none empty."""
    sets = rng.random((rows, k)) < rng.uniform(0.1, 0.9, k)
    sets[np.arange(rows), rng.integers(0, k, rows)] = True
    return sets


def expected_loss(s, sets, loss=supcon_loss, **options):
    """The package's loss of the same scores under every outcome, with its gradient."""
    leaf = torch.tensor(s, requires_grad=True)
    target = torch.tensor(sets).double()
    result = loss(leaf.expand_as(target), target, torch.ones_like(target).bool(), **options)
    return result.item(), torch.autograd.grad(result, leaf)[0].numpy()


found, formula_gradient, looped, proper = [], [], [], []
for _ in range(cases):
    sets, s = outcomes(5, 12), 2 * rng.standard_normal(5)
    t = (sets / sets.sum(axis=1, keepdims=True)).mean(axis=0)
    p = softmax(s)
    found.append(expected_loss(s, sets)[1])
    formula_gradient.append(p - t)
    looped.append(sum(naive(s, one) for one in sets) / len(sets))
    positive = t > 0
    proper.append(
        -(t[positive] * np.log(t[positive])).sum()
        + (t[positive] * np.log(t[positive] / p[positive])).sum()
    )
checks.equal("supcon-proper", "autograd", np.array(found), np.array(formula_gradient), ROUND)
checks.equal("supcon-proper", "naive", looped, proper, ROUND)
# The optimum by a solver that knows nothing of t; its gradient stops near 1e-7.
sets = np.array([[1, 1, 0], [1, 1, 0], [1, 0, 0], [0, 1, 1], [1, 0, 1]], dtype=bool)
t, q = (sets / sets.sum(axis=1, keepdims=True)).mean(axis=0), sets.mean(axis=0)
solved_sets = minimize(expected_loss, np.zeros(3), args=(sets,), jac=True, tol=1e-10).x
checks.equal("supcon-proper", "search", softmax(solved_sets), t, 1e-6, case="solver")
checks.rejects("supcon-proper", "calibrated for several labels", q, softmax(solved_sets), 1e-6)
single = np.eye(3, dtype=bool)[[0] * 6 + [1] * 3 + [2]]
solved_single = minimize(expected_loss, np.zeros(3), args=(single,), jac=True, tol=1e-10).x
checks.equal(
    "supcon-proper",
    "search",
    softmax(solved_single),
    single.mean(axis=0),
    1e-6,
    case="one true label",
)
shifted = [value(s + c, t_) for s, t_ in CASES for c in (-30.0, 30.0)]
checks.equal(
    "supcon-proper",
    "search",
    shifted,
    np.repeat(gather(value), 2),
    1e-11,
    case="shift of all scores",
)
pd.DataFrame(
    {
        "frequency q": q,
        "target t": t.round(3),
        "softmax at the optimum": softmax(solved_sets).round(3),
    },
    index=pd.Index(["label 1", "label 2", "label 3"], name="five outcomes"),
)

# %% [markdown]
# ### Imbalance
#
# Math §8.1.3 credits SupCon with robustness to label imbalance.
# That is right within a text: by {eq}`eq-supcon-balance` its true and its false labels are pushed equally hard, whatever their numbers.
#
# It is not right over texts, where by {eq}`eq-supcon-proper` the best scores follow the frequencies of the labels.
# Suppose that nothing in a text tells two labels apart, exactly one of them is true, and the odds are nine to one.
# The best gap between their scores is then $\log 9$: the rare label loses.

# %%
gap = minimize(
    expected_loss, np.zeros(2), args=(np.eye(2, dtype=bool)[[0] * 9 + [1]],), jac=True, tol=1e-10
).x
gap = gap[0] - gap[1]
checks.equal("supcon-proper", "search", gap, math.log(9), 1e-5, case="nine to one")

# %% [markdown]
# ## InfoNCE
#
# With one true label $j$ SupCon is InfoNCE, the usual contrastive loss of one positive against the rest, as math §8.1.3 says:
#
# ```{math}
# :label: eq-supcon-infonce
# P = \{j\}: \qquad
# \mathcal{L}_b = -\log \frac{e^{s_j}}{e^{s_j} + \sum_{k \ne j} e^{s_k}}
# = \log\left( 1 + \sum_{k \ne j} e^{s_k - s_j} \right) .
# ```
#
# With several it is the mean of one InfoNCE term per true label,
#
# ```{math}
# :label: eq-supcon-infonce-mean
# \mathcal{L}_b = \frac{1}{|P|} \sum_{j \in P} \log\left( 1 + \sum_{k \ne j} e^{s_k - s_j} \right),
# ```
#
# where the "negatives" of a true label are *all* other candidates, the other true labels included.
# *Proof.* Divide numerator and denominator of $p_j$ by $e^{s_j}$. $\square$
#
# So the true labels of a text compete with each other, which is the reason for the floor $\log |P|$.
#
# Math §8.1.3 speaks of the "other labels in the candidate set" as negatives.
# Read as the false labels only, that would be the one-vs-negatives loss of the next section.
# For scores 2 and 1 on two true labels and 0 on a false one {eq}`eq-supcon-infonce-mean` gives {glue:text}`supcon_all_others:s`, the other reading {glue:text}`supcon_false_only:s`.

# %% tags=["hide-input"]
all_zero(
    "supcon-infonce",
    [
        symbolic_loss(x, 1) - ln(1 + sum(x_k / x[0] for x_k in x[1:]))
        for x, n in symbolic_rows()
        if n == 1
    ],
)
all_zero(
    "supcon-infonce-mean",
    [
        symbolic_loss(x, n)
        - sum(ln(1 + sum(x[k] / x[j] for k in range(len(x)) if k != j)) for j in range(n)) / n
        for x, n in symbolic_rows()
    ],
)


def terms(s, true):
    """One InfoNCE term per true label: all other candidates are negatives."""
    return [
        math.log(1 + sum(math.exp(s[k] - s[j]) for k in range(len(s)) if k != j))
        for j in np.flatnonzero(true)
    ]


def terms_gradient(s, true):
    leaf = torch.tensor(s, requires_grad=True)
    targets = torch.tensor(np.flatnonzero(true))
    right = F.cross_entropy(leaf.expand(len(targets), -1), targets)
    return torch.autograd.grad(right, leaf)[0].numpy()


ones = [(s, np.arange(len(s)) == rng.integers(len(s))) for s, _ in CASES]
checks.equal(
    "supcon-infonce", "autograd", gather(gradient, ones), gather(terms_gradient, ones), ROUND
)
checks.equal("supcon-infonce", "naive", gather(value, ones), gather(terms, ones), ROUND)
checks.equal("supcon-infonce-mean", "autograd", gather(gradient), gather(terms_gradient), ROUND)
checks.equal(
    "supcon-infonce-mean",
    "naive",
    gather(value),
    gather(lambda s, t: np.mean(terms(s, t))),
    ROUND,
)
example = row([2, 1, 0], [1, 1, 0])
all_others, false_only = value(*example), value(*example, one_vs_negatives_loss)
paste("supcon_all_others", f"{all_others:.3f}")
paste("supcon_false_only", f"{false_only:.3f}")
checks.rejects(
    "supcon-infonce-mean", "false labels only", false_only, np.mean(terms(*example)), ROUND
)
checks.rejects(
    "supcon-infonce-mean",
    "one term over the sum of the true labels",
    gather(lambda s, t: -math.log(softmax(s)[t].sum())),
    gather(value),
    ROUND,
)

# %% [markdown]
# ## One against the negatives
#
# The card prints no formula; we read it off the name: one true label stands against the false ones.
# The margin $m \ge 0$ lowers the score of the true label.
# Let $\bar P$ be the false labels and $r = \log \sum_{k \in \bar P} e^{s_k}$ their smooth maximum.
#
# ```{math}
# :label: eq-supcon-ovn
# \mathcal{L}_b^{\text{ovn}}
# = -\frac{1}{|P|} \sum_{j \in P} \log \frac{e^{s_j - m}}{e^{s_j - m} + \sum_{k \in \bar P} e^{s_k}}
# = \frac{1}{|P|} \sum_{j \in P} \log\left( 1 + e^{\,m + r - s_j} \right) .
# ```
#
# *Proof of the second form.* Divide by $e^{s_j - m}$. $\square$
#
# A margin is the same as $e^m$ copies of every false label: it multiplies each $e^{s_k}$ and nothing else.

# %%
print(inspect.getsource(one_vs_negatives_loss))

# %% [markdown]
# Let $\pi_j = \sigma(m + r - s_j)$ be the mass that label $j$ leaves to its rivals, and $\rho_k = e^{s_k - r}$ the share of rival $k$ among them.
#
# **Proposition.**
#
# ```{math}
# :label: eq-supcon-ovn-gradient
# \frac{\partial \mathcal{L}_b^{\text{ovn}}}{\partial s_j} = -\frac{\pi_j}{|P|} \;\; (j \in P),
# \qquad
# \frac{\partial \mathcal{L}_b^{\text{ovn}}}{\partial s_k} = \frac{\rho_k}{|P|} \sum_{j \in P} \pi_j \;\; (k \in \bar P) .
# ```
#
# *Proof.* $\log(1 + e^a)$ has the derivative $\sigma(a)$, and $\partial r / \partial s_k = \rho_k$. $\square$
#
# Unlike SupCon, this loss never pushes a true label down.
# It is convex in the scores too, because $m + r - s_j$ is convex and $\log(1 + e^a)$ is convex and rising.
#
# PyTorch's `softplus` replaces $\log(1 + e^a)$ by $a$ above twenty.
# That leaves out at most $e^{-20}$, and the checks allow for it.

# %% tags=["hide-input"]
M = sympy.Symbol("M", positive=True)  # exp(m)


def symbolic_ovn(x, n, factor=M):
    rivals = sum(x[n:])
    return sum(ln(1 + factor * rivals / x_j) for x_j in x[:n]) / n


quotients, slopes = [], []
for x, n in symbolic_rows(with_false=True):
    rivals = sum(x[n:])
    left = [x_j / M / (x_j / M + rivals) for x_j in x[:n]]
    quotients.append(-sum(ln(a) for a in left) / n - symbolic_ovn(x, n))
    pi = [M * rivals / (x_j + M * rivals) for x_j in x[:n]]
    for j, x_j in enumerate(x):
        right = -pi[j] / n if j < n else x_j / rivals * sum(pi) / n
        slopes.append(by_score(symbolic_ovn(x, n), x_j) - right)
all_zero("supcon-ovn", quotients)
all_zero("supcon-ovn-gradient", slopes)

MARGINS = (0.0, 0.5, 2.0)


def naive_ovn(s, true, margin):
    """One-vs-negatives of one row, one loop per sum of the formula."""
    total, count = 0.0, 0
    for j in range(len(s)):
        if true[j]:
            denominator = math.exp(s[j] - margin)
            for k in range(len(s)):
                if not true[k]:
                    denominator += math.exp(s[k])
            total -= math.log(math.exp(s[j] - margin) / denominator)
            count += 1
    return total / count


def ovn_formula(s, true, margin):
    rivals = math.log(np.exp(s[~true]).sum())
    pi = 1 / (1 + np.exp(s - margin - rivals))
    return np.where(true, -pi, np.exp(s - rivals) * pi[true].sum()) / true.sum()


def printed_form_gradient(s, true, margin):
    leaf = torch.tensor(s, requires_grad=True)
    own, rivals = (leaf[torch.tensor(true)] - margin).exp(), leaf[torch.tensor(~true)].exp().sum()
    right = -(own / (own + rivals)).log().mean()
    return torch.autograd.grad(right, leaf)[0].numpy()


def over_margins(function, rows=None):
    return np.concatenate(
        [
            gather(lambda s, t, m=m: function(s, t, m), MIXED if rows is None else rows)
            for m in MARGINS
        ]
    )


def ovn_value(s, true, margin):
    return value(s, true, one_vs_negatives_loss, margin=margin)


def ovn_gradient(s, true, margin):
    return gradient(s, true, one_vs_negatives_loss, margin=margin)


SOFTPLUS = 2.1e-9  # PyTorch's softplus is linear above 20 and so leaves out at most exp(-20)
checks.equal(
    "supcon-ovn",
    "autograd",
    over_margins(ovn_gradient),
    over_margins(printed_form_gradient),
    SOFTPLUS,
)
checks.equal("supcon-ovn", "naive", over_margins(ovn_value), over_margins(naive_ovn), SOFTPLUS)
found, looped = [], []
for m in MARGINS * 4:
    given, rows = padded_batch()
    found.append(one_vs_negatives_loss(*given, m).item())
    looped.append(sum(naive_ovn(*r, m) for r in rows) / len(rows))
checks.equal("supcon-ovn", "naive", found, looped, SOFTPLUS, case="padded batches")
checks.equal(
    "supcon-ovn-gradient",
    "autograd",
    over_margins(ovn_gradient),
    over_margins(ovn_formula),
    SOFTPLUS,
)
checks.equal(
    "supcon-ovn-gradient",
    "naive",
    over_margins(lambda s, t, m: differences(lambda x: naive_ovn(x, t, m), s)),
    over_margins(ovn_formula),
    DIFFERENCE,
)
curvature = over_margins(
    lambda s, t, m: np.linalg.eigvalsh(hessian(s, t, one_vs_negatives_loss, margin=m))
)
checks.at_least("supcon-ovn-gradient", "search", curvature, 0.0, ROUND, case="convex")
checks.at_least(
    "supcon-ovn-gradient",
    "search",
    0.0,
    over_margins(lambda s, t, m: ovn_gradient(s, t, m)[t]),
    ROUND,
    case="true labels only rise",
)
checks.rejects(
    "supcon-ovn",
    "margin added",
    over_margins(lambda s, t, m: naive_ovn(s, t, -m)),
    over_margins(ovn_value),
    SOFTPLUS,
)
checks.rejects(
    "supcon-ovn-gradient",
    "gradient of SupCon",
    over_margins(lambda s, t, m: formula(s, t)),
    over_margins(ovn_gradient),
    SOFTPLUS,
)

# %% [markdown]
# ### Beside SupCon
#
# ```{math}
# :label: eq-supcon-ovn-order
# \mathcal{L}_b^{\text{ovn}} \big|_{m = 0} \;\le\; \mathcal{L}_b,
# \quad\text{with equality exactly when } |P| = 1 .
# ```
#
# *Proof.* In {eq}`eq-supcon-infonce-mean` each term holds all other candidates; here it holds the false ones only.
# With a second true label a positive summand is missing. $\square$
#
# For scores in $[-\tau, \tau]$
#
# ```{math}
# :label: eq-supcon-ovn-bound
# \mathcal{L}_b^{\text{ovn}} \;\ge\; \log\left( 1 + (K - |P|)\, e^{\,m - 2\tau} \right),
# ```
#
# with equality at the same corner as SupCon.
# *Proof.* Every term falls with $s_j$ and rises with every $s_k$, so the corner is best for all terms at once. $\square$
#
# For scores without a bound, as from the card's bilinear head, the infimum is zero, for *any* number of true labels and any margin.
# SupCon has the floor $\log |P|$.

# %% tags=["hide-input"]
first, second = gather(lambda s, t: ovn_value(s, t, 0.0)), gather(value)


def order_slack(own, rivals):
    s, t = drawn_row(own, rivals)
    return value(s, t) - ovn_value(s, t, 0.0)


checks.survives("supcon-ovn-order", order_slack, ROUND, examples=150, own=SEVERAL, rivals=RIVALS)
checks.equal(
    "supcon-ovn-order",
    "exact",
    gather(lambda s, t: ovn_value(s, t, 0.0), ones),
    gather(value, ones),
    SOFTPLUS,
    case="one true label",
)
is_single = gather(lambda s, t: t.sum() == 1)
checks.at_least(
    "supcon-ovn-order", "search", (second - first)[~is_single], 1e-9, case="strict for several"
)
OVN_GRID = [(n, k, tau, m) for n, k, tau in GRID if n < k for m in MARGINS]
ovn_reached = [lowest(n, k, tau, one_vs_negatives_loss, margin=m)[0] for n, k, tau, m in OVN_GRID]
ovn_bounds = [math.log1p((k - n) * math.exp(m - 2 * tau)) for n, k, tau, m in OVN_GRID]
checks.equal("supcon-ovn-bound", "search", ovn_reached, ovn_bounds, 1e-7, case="minimum")


def above_ovn_bound(own, rivals, scale, margin):
    """Scores are drawn up to four, so a fourth of them is a cosine."""
    s, t = drawn_row(own, rivals)
    least = math.log1p(len(rivals) * math.exp(margin - 2 * scale))
    return ovn_value(s * scale / 4, t, margin) - least


checks.survives(
    "supcon-ovn-bound",
    above_ovn_bound,
    SOFTPLUS,
    case="scores in the box",
    examples=150,
    own=OWN,
    rivals=RIVALS,
    scale=st.floats(0.1, 20),
    margin=st.floats(0, 3),
)
far = [row([15.0] * n + [-15.0] * 4, [1] * n + [0] * 4) for n in (1, 3, 8)]
vanishing = over_margins(ovn_value, far)
checks.equal("supcon-ovn-bound", "naive", vanishing, 0.0 * vanishing, 1e-10, case="infimum zero")

# %% [markdown]
# ### What the margin does
#
# Half of the mass goes to the rivals, $\pi_j = \tfrac12$, exactly where
#
# ```{math}
# :label: eq-supcon-ovn-half
# s_j = m + r, \qquad
# m + \max_{k \in \bar P} s_k \;\le\; m + r \;\le\; m + \max_{k \in \bar P} s_k + \log(K - |P|) .
# ```
#
# *Proof.* $\sigma(0) = \tfrac12$, and a sum of $n$ exponentials lies between the largest and $n$ times the largest. $\square$
#
# So a true label must lead the smooth maximum of its rivals by $m$ before it holds half of the mass.
# The margin is measured in units of the score.
# A head without a bound can outgrow it: for scores multiplied by $a$ it acts like $m / a$.
#
# A margin also has a price.
# Take two labels of which exactly one is true, the first with odds of $e^\ell$ to one.
# The best gap $d = s_1 - s_2$ is then
#
# ```{math}
# :label: eq-supcon-ovn-bayes
# d^* = \frac{\ell}{2} + \operatorname{arsinh}\left( e^{m} \sinh \frac{\ell}{2} \right) .
# ```
#
# *Proof.* Let $q = \sigma(\ell)$.
# The expected loss $q \log(1 + e^{m - d}) + (1 - q) \log(1 + e^{m + d})$ is convex in $d$, and its slope is zero where $e^\ell\, \sigma(m - d) = \sigma(m + d)$.
# Clearing fractions gives $e^{d} - e^{\ell - d} = e^{m} (e^{\ell} - 1)$.
# Divide by $2 e^{\ell / 2}$: $\sinh(d - \ell/2) = e^{m} \sinh(\ell/2)$. $\square$
#
# Without a margin $d^* = \ell$: the softmax is calibrated.
# With one, $d^*$ is further from zero than $\ell$ whenever $\ell \ne 0$: the best softmax is too sure.
# The card says that its model gives no calibrated probabilities; for the softmax the margin is reason enough.

# %% tags=["hide-input"]
half = [(s, t, m) for s, t in MIXED for m in MARGINS]
at_half, looped, tops, widths = [], [], [], []
residuals = []
for x, n in symbolic_rows(with_false=True):
    # At s_j = m + r a true label's slope is minus half of 1/|P|.
    for x_j in x[:n]:
        slope = n * by_score(symbolic_ovn(x, n), x_j)
        residuals.append(slope.subs(x_j, M * sum(x[n:])) + sympy.Rational(1, 2))
all_zero("supcon-ovn-half", residuals)
for s, t, m in half:
    rivals = math.log(sum(math.exp(x) for x in s[~t]))
    placed = np.where(t, m + rivals, s)
    at_half.append(ovn_gradient(placed, t, m)[t] * t.sum())
    looped.append(differences(lambda x, t=t, m=m: naive_ovn(x, t, m), placed)[t] * t.sum())
    tops.append(rivals - s[~t].max())
    widths.append(math.log((~t).sum()) - tops[-1])
at_half = np.concatenate(at_half)
checks.equal("supcon-ovn-half", "autograd", at_half, np.full_like(at_half, -0.5), ROUND)
looped = np.concatenate(looped)
checks.equal("supcon-ovn-half", "naive", looped, np.full_like(looped, -0.5), 10 * DIFFERENCE)
checks.at_least("supcon-ovn-half", "search", tops, 0.0, ROUND, case="lower end")
checks.at_least("supcon-ovn-half", "search", widths, 0.0, ROUND, case="upper end")

odds = sympy.Symbol("o", positive=True)  # exp(l)
w = sympy.Symbol("w", real=True)  # sinh(d - l/2), the abbreviation of the proof
e_d = sympy.sqrt(odds) * (w + sympy.sqrt(w**2 + 1))  # exp(d)
# The slope is zero where odds · σ(m − d) = σ(m + d), with M = exp(m).
slope_zero = odds * M / (M + e_d) - M * e_d / (1 + M * e_d)
solution = {w: M * (odds - 1) / (2 * sympy.sqrt(odds))}
checks.zero("supcon-ovn-bayes", sympy.numer(sympy.together(slope_zero)).subs(solution).expand())


def best_gap(ell, margin):
    return ell / 2 + math.asinh(math.exp(margin) * math.sinh(ell / 2))


slopes, solved, closed = [], [], []
for wins in (2, 5, 6, 9):
    sets = np.eye(2, dtype=bool)[[0] * wins + [1] * (10 - wins)]
    ell = math.log(wins / (10 - wins))
    for m in MARGINS:
        d = best_gap(ell, m)
        closed.append(d)
        slopes.append(expected_loss(np.array([d, 0.0]), sets, one_vs_negatives_loss, margin=m)[1])

        def risk(x, q=wins / 10, m=m):
            return q * math.log1p(math.exp(m - x[0])) + (1 - q) * math.log1p(math.exp(m + x[0]))

        solved.append(minimize(risk, [0.0], tol=1e-12).x[0])
checks.equal("supcon-ovn-bayes", "autograd", slopes, np.zeros((12, 2)), ROUND)
checks.equal("supcon-ovn-bayes", "naive", solved, closed, 1e-5)  # without a gradient
CARD = GliZNetConfig.card()
sure = 1 / (1 + math.exp(-best_gap(math.log(4), CARD.margin)))
report.metric("ovn/best_softmax_at_four_to_one", sure, unit="probability")
paste("supcon_sure", f"{sure:.3f}")
paste("supcon_margin", f"{CARD.margin:g}")
checks.equal(
    "supcon-ovn", "exact", [CARD.margin, CARD.contrastive_weight], [0.5, 0.5], case="preset"
)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The margin. Above: how hard a true label is pushed, over its lead on the smooth maximum of its rivals, for several margins; lines are the formula, dots are autograd, circles mark half the push. Below: a true label with score zero against two rivals, whose scores are the axes; below each line it keeps more than half of the mass. Thin lines: the largest rival alone.", "name": "fig-supcon-margin"}, "image": {"alt": "Above, three falling sigmoid curves shifted to the right by the margin. Below, three nested curved boundaries that move to the lower left as the margin grows."}}
figure, (top, bottom) = plt.subplots(2, 1, figsize=(5.2, 6))
leads = np.linspace(-5, 6, 200)
for m, colour in zip(MARGINS, ("math", "card", "published"), strict=True):
    top.plot(leads, 1 / (1 + np.exp(leads - m)), color=COLOURS[colour], label=f"margin {m:g}")
    some = np.linspace(-4, 5, 7)
    rival = np.array([0.3, -0.5, -1.0])
    rival -= math.log(np.exp(rival).sum())
    pushes = [
        -ovn_gradient(np.append(lead, rival), np.array([True, False, False, False]), m)[0]
        for lead in some
    ]
    checks.equal(
        "supcon-ovn-half",
        "autograd",
        pushes,
        1 / (1 + np.exp(some - m)),
        ROUND,
        case=f"figure, margin {m:g}",
    )
    top.plot(some, pushes, "o", markersize=4, color=COLOURS[colour])
    top.plot(m, 0.5, "o", markersize=9, fillstyle="none", color=COLOURS[colour])
    across = np.linspace(-6, -m - 1e-6, 300)
    bottom.plot(across, np.log(np.exp(-m) - np.exp(across)), color=COLOURS[colour])
    bottom.plot([-6, -m, -m], [-m, -m, -6], linewidth=0.8, color=COLOURS[colour])
top.set(xlabel="lead of the true label", ylabel="push")
top.legend(frameon=False)
bottom.set(xlabel="score of rival 1", ylabel="score of rival 2", xlim=(-6, 0.5), ylim=(-6, 0.5))
show(figure)

# %% [markdown]
# With the card's margin of {glue:text}`supcon_margin:s` and odds of four to one, the best softmax says {glue:text}`supcon_sure:s` where four fifths would be right.
#
# ## In floating point
#
# The quotient of math §8.1.1 overflows if it is computed as printed.
# The stable form subtracts the largest score $s^* = \max_k s_k$ first:
#
# ```{math}
# :label: eq-supcon-stable
# \mathcal{L}_b = s^* - \bar s_P + \log \sum_{k \in N} e^{s_k - s^*},
# \qquad
# 0 \le \log \sum_{k \in N} e^{s_k - s^*} \le \log K .
# ```
#
# *Proof.* Take $e^{s^*}$ out of the sum in {eq}`eq-supcon-split`.
# Every exponent is at most zero and one of them is zero, so the sum lies between one and $K$. $\square$
#
# No exponential on the right side can overflow, and the logarithm never sees zero.
# PyTorch's `log_softmax` computes it so.
# For large scores it is compared with the printed formula in fifty digits (`mpmath`).

# %% tags=["hide-input"]
X = sympy.Symbol("X", positive=True)  # exp of any shift, the largest score among them
all_zero(
    "supcon-stable",
    [
        symbolic_loss(x, n)
        - (ln(X) - sum(sympy.log(x_j) for x_j in x[:n]) / n + ln(sum(x_k / X for x_k in x)))
        for x, n in symbolic_rows()
    ],
)
mpmath.mp.dps = 50


def exact_loss(s, true):
    total = mpmath.fsum(mpmath.exp(x) for x in s)
    return float(
        -mpmath.fsum(mpmath.log(mpmath.exp(s[j]) / total) for j in np.flatnonzero(true))
        / int(true.sum())
    )


def exact_gradient(s, true):
    total = mpmath.fsum(mpmath.exp(x) for x in s)
    return [
        float(mpmath.exp(s[j]) / total - mpmath.mpf(int(true[j])) / int(true.sum()))
        for j in range(len(s))
    ]


LARGE = [(scale * s, t) for s, t in CASES for scale in (30.0, 300.0)]
# Losses here reach a few thousand, so round-off is a thousand times larger.
checks.equal("supcon-stable", "naive", gather(value, LARGE), gather(exact_loss, LARGE), 1e-9)
checks.equal(
    "supcon-stable", "autograd", gather(gradient, LARGE), gather(exact_gradient, LARGE), ROUND
)


def inside_both_ends(scores, scale):
    s = scale * np.array(scores)
    total = math.log(np.exp(s - s.max()).sum())
    return min(total, math.log(len(s)) - total)


checks.survives(
    "supcon-stable",
    inside_both_ends,
    ROUND,
    case="both ends",
    examples=100,
    scores=OWN,
    scale=st.floats(0.1, 1000),
)

lines = {}
for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
    edge = math.log(torch.finfo(dtype).max)
    scores = torch.tensor([[edge * 1.05, 0.0, edge * 1.05 - 1]], dtype=dtype)
    target, mask = torch.tensor([[1.0, 0.0, 0.0]], dtype=dtype), torch.ones(1, 3, dtype=torch.bool)
    quotient = scores.exp() / scores.exp().sum()
    lines[str(dtype).removeprefix("torch.")] = {
        "exp overflows above": round(edge, 2),
        "as printed": (-quotient[0, 0].log()).item(),
        "package": supcon_loss(scores, target, mask).item(),
    }
overflow = pd.DataFrame(lines).T
overflow.index.name = "precision"
assert not np.isfinite(overflow["as printed"]).any()
assert np.isfinite(overflow["package"]).all()
paste("supcon_half", f"{int(torch.finfo(torch.float16).max / math.exp(START))}")
overflow.round(4)

# %% [markdown]
# With the cosine head at its initial scale even the printed form is safe, because scores never exceed $\tau$; in half precision (float16) that holds for up to {glue:text}`supcon_half:s` candidates.
# The scores of a bilinear head have no such limit.
# The printed form also fails when a true label lies so far below the largest score that its exponential becomes zero.

# %% [markdown]
# ## In practice
#
# The corpus that ships with the package has several true labels on every text, so all of this applies.

# %%
corpus = hardset_mini("train")
report.data("hardset-mini/train", rows=len(corpus), sha256=examples_sha256(list(corpus)))
n_true = np.array([len(e.labels) for e in corpus])
n_all = n_true + np.array([len(e.not_labels) for e in corpus])
start_error = (n_true - 1) / np.sqrt(1 - n_true / n_all)
corpus_floor = np.mean([bound(n, k, START) for n, k in zip(n_true, n_all, strict=True)])
start_loss = np.log(n_all).mean()
paste("supcon_n_true", f"{n_true.min()} to {n_true.max()}")
paste("supcon_floor", f"{corpus_floor:.2f}")
paste("supcon_start", f"{start_loss:.2f}")
paste("supcon_start_error", f"{start_error.mean():.1f}")
paste("supcon_miscalibrated", f"{(1 - 1 / n_true).mean():.2f}")
report.metric("corpus/floor", float(corpus_floor), unit="nats", n=len(corpus))
report.metric("corpus/start", float(start_loss), unit="nats", n=len(corpus))

# %% [markdown]
# - A training text has {glue:text}`supcon_n_true:s` true labels. With equal scores the mean loss is {glue:text}`supcon_start:s`, and it cannot fall below {glue:text}`supcon_floor:s`. A curve that flattens there is finished, not stuck.
# - Losses of data sets with different numbers of true labels cannot be compared. Subtract $\log |P|$ first; what is left is the divergence in {eq}`eq-supcon-kl`.
# - Whoever codes the gradient of math §8.3.3 by hand starts with a relative error of {glue:text}`supcon_start_error:s` on this corpus. Automatic differentiation is not affected.
# - The softmax is no probability of a label when several are true. For a set that is certain, the best softmax is off by {glue:text}`supcon_miscalibrated:s` on average over this corpus. Probabilities of single labels must come from the binary cross-entropy term ({doc}`bce`).
# - The card's loss has no floor and lets true labels live side by side. With a margin above zero its best softmax is overconfident.

# %% [markdown]
# ## No true label
#
# Math §1.1 asks for a subset of the labels, which may be empty.
# For such a text {eq}`eq-supcon-loss` divides zero by zero.
# The package averages over $B_+$, the texts with at least one true label:
#
# ```{math}
# :label: eq-supcon-empty
# \mathcal{L}_{\text{SupCon}} = \frac{1}{|B_+|} \sum_{b \in B_+} \mathcal{L}_b,
# \qquad B_+ = \{ b : |P_b| \ge 1 \},
# ```
#
# and the loss is zero, with zero gradient, if $B_+$ is empty.
#
# Public code handles such a row in three ways.
# The reference code of SupCon first returned NaN, "not a number" ([issue 141](https://github.com/HobbitLong/SupContrast/issues/141)).
# Since [pull request 142](https://github.com/HobbitLong/SupContrast/pull/142) the row costs zero and still counts in the mean.
# [pytorch-metric-learning](https://github.com/KevinMusgrave/pytorch-metric-learning) by default averages over the losses above zero, which leaves the row out, as here.
# The last two differ by the factor $B / |B_+|$: counting empty rows scales the gradient of all others down.

# %% tags=["hide-input"]
scores = torch.tensor(3 * rng.standard_normal((4, 5)), requires_grad=True)
target = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [1, 1, 1, 0, 0]]).double()
mask = torch.ones_like(target).bool()
kept = [0, 2, 3]
loss = supcon_loss(scores, target, mask)
(slopes,) = torch.autograd.grad(loss, scores)
each = [naive(scores[b].detach().numpy(), target[b].numpy() > 0) for b in kept]
checks.equal("supcon-empty", "naive", loss.item(), sum(each) / 3, ROUND)
right = np.zeros((4, 5))
for b in kept:
    right[b] = formula(scores[b].detach().numpy(), target[b].numpy() > 0) / 3
checks.equal("supcon-empty", "autograd", slopes, right, ROUND)
none = supcon_loss(scores, torch.zeros_like(target), mask)
checks.equal("supcon-empty", "exact", none.item(), 0.0, case="no true label at all")
checks.equal(
    "supcon-empty",
    "exact",
    torch.autograd.grad(none, scores)[0],
    np.zeros((4, 5)),
    case="its gradient",
)
# Symbolic: texts of three and two labels, and an empty one between them.
x, y = sympy.symbols("x1:4", positive=True), sympy.symbols("y1:3", positive=True)
kept_mean = (symbolic_loss(x, 2) + symbolic_loss(y, 1)) / 2
counted = (symbolic_loss(x, 2) + 0 + symbolic_loss(y, 1)) / 3
residuals = [kept_mean - sympy.Rational(3, 2) * counted]
for z, n in ((x, 2), (y, 1)):
    residuals += [
        by_score(kept_mean, z_j) - (z_j / sum(z) - sympy.Rational(int(j < n), n)) / 2
        for j, z_j in enumerate(z)
    ]
all_zero("supcon-empty", residuals)
checks.rejects("supcon-empty", "empty rows counted", sum(each) / 4, loss.item(), ROUND)
log_p = scores.detach().log_softmax(1)
as_printed = -((log_p * target).sum(1) / target.sum(1)).mean().item()
assert math.isnan(as_printed)
batch_size, share = 16, 0.05
lost = 1 - (1 - share) ** batch_size
drawn = (rng.random((20_000, batch_size)) < share).any(axis=1).mean()
checks.equal("supcon-empty", "search", drawn, lost, 0.02, case="batches lost")  # 20,000 draws
paste("supcon_batch", str(batch_size))
paste("supcon_share", f"{share:.0%}")
paste("supcon_lost", f"{lost:.0%}")
pd.DataFrame(
    {"loss of the batch": [as_printed, sum(each) / 4, loss.item()]},
    index=pd.Index(
        ["as printed", "empty row counts as zero", "package"], name="one row of four is empty"
    ),
).round(4)

# %% [markdown]
# If {glue:text}`supcon_share:s` of the texts had no true label, {glue:text}`supcon_lost:s` of the batches of {glue:text}`supcon_batch:s` would be NaN as printed.
#
# ## Other edge cases
#
# - One candidate: the loss and its gradient are zero, whether the label is true or not.
# - Every candidate true: SupCon asks for equal scores and then reaches its floor $\log K$. One-vs-negatives has no rival and is zero.
# - Soft targets: the set $P$ is a yes or no, so the package counts a target above one half as true and any other as false.
# - Padding: a padded score is replaced by half of the lowest finite number. Beside any real score above that half its exponential is zero, and so it would be with the lowest number itself. Half keeps differences finite; no input of these two losses was found that needs it.

# %% tags=["hide-input"]
edges = {
    "one candidate, true": row([2.5], [1]),
    "all three true, equal scores": row([1, 1, 1], [1, 1, 1]),
    "all three true, different scores": row([3, 1, -1], [1, 1, 1]),
    "one true, equal scores": row([0, 0, 0], [1, 0, 0]),
}
edge_table = pd.DataFrame(
    {
        name: {
            "SupCon": value(*r),
            "largest slope": abs(gradient(*r)).max(),
            "one-vs-negatives": ovn_value(*r, 0.0),
        }
        for name, r in edges.items()
    }
).T
checks.equal(
    "supcon-floor",
    "exact",
    edge_table["SupCon"].to_numpy()[[0, 1, 3]],
    [0.0, math.log(3), math.log(3)],
    ROUND,
    case="edge cases",
)
checks.equal(
    "supcon-ovn-bound",
    "exact",
    edge_table["one-vs-negatives"].to_numpy()[:3],
    [0.0] * 3,
    case="no false label",
)
hard, soft = (value(np.array([3.0, 1, -1]), np.array(t)) for t in ([1.0, 0, 1], [0.6, 0.5, 1]))
checks.equal("supcon-loss", "exact", soft, hard, case="soft targets")
for dtype in (torch.float16, torch.float32, torch.float64):
    high = torch.tensor([[torch.finfo(dtype).max / 4, 1.0, 0.0]], dtype=dtype, requires_grad=True)
    target, mask = torch.tensor([[1.0, 0.0, 0.0]], dtype=dtype), torch.tensor([[True, True, False]])
    padded = supcon_loss(high, target, mask) + one_vs_negatives_loss(high, target, mask, 0.0)
    (slope,) = torch.autograd.grad(padded, high)
    assert padded.isfinite() and slope.isfinite().all() and slope[0, 2] == 0, dtype
# With the lowest number instead of its half: the same values and slopes, for the largest scores too.
whole = mock.patch.object(losses, "_lowest", lambda x: torch.finfo(x.dtype).min)
for dtype in (torch.float16, torch.float32, torch.float64):
    sizes = [0.0, 1.0, torch.finfo(dtype).max / 4, -torch.finfo(dtype).max / 4]
    found = []
    for one, two in itertools.product(sizes, sizes):
        for true in ([1.0, 0.0, 0.0], [1.0, 1.0, 0.0]):
            results = []
            for patch in (mock.patch.object(losses, "_lowest", losses._lowest), whole):
                leaf = torch.tensor([[one, two, 0.0]], dtype=dtype, requires_grad=True)
                target = torch.tensor([true], dtype=dtype)
                mask = torch.tensor([[True, True, False]])
                for term in (supcon_loss, one_vs_negatives_loss):
                    with patch:
                        result = term(leaf, target, mask)
                    (slope,) = torch.autograd.grad(result, leaf)
                    results += [result.item(), *slope[0].tolist()]
            found.append(np.isfinite(results).all() and results[:8] == results[8:])
    name = str(dtype).removeprefix("torch.")
    checks.equal("supcon-loss", "exact", found, np.ones(len(found)), case=f"padding, {name}")
edge_table.index.name = "text"
edge_table.round(4)

# %% [markdown]
# ## What became of the statements
#
# ```{glue:md} supcon-outcomes
# :format: myst
# ```
#
# ## Every check

# %% tags=["hide-input"]
table = checks.rows()


def support(*equations):
    """The checks behind a verdict: how many hold and the largest deviation among them."""
    parts = []
    for equation in equations:
        held = table.loc[[equation]].query("result == 'holds'")
        worst = scientific(held["deviation"].max())
        number = f"{len(held)} check" + "s" * (len(held) > 1)
        parts.append(f"{equation}, {number}, largest deviation {worst}")
    return "; ".join(parts)


OUTCOMES = {
    "math-8.1.1-sets": (
        "verified",
        "the denominator holds true and false candidates alike, and padding that claims to be true "
        f"changes nothing ({support('supcon-loss')})",
    ),
    "math-8.1.1": (
        "verified",
        "the package equals a double loop and PyTorch's cross-entropy with uniform targets wherever "
        f"every text has a true label ({support('supcon-loss')})",
    ),
    "math-8.1.1-no-positive": (
        "corrected",
        f"a batch with one empty row is {as_printed} as printed and {loss.item():.3f} over the other "
        f"rows; at {share:.0%} empty texts {lost:.0%} of the batches of {batch_size} are lost "
        f"({support('supcon-empty')})",
    ),
    "math-8.1.1-mass": (
        "verified",
        "the mass of the true labels is at least their number times the exponential of minus the "
        f"loss; hypothesis finds no exception ({support('supcon-mass')})",
    ),
    "math-8.1.1-log-softmax": (
        "verified",
        f"both forms are the log of the partition sum minus the mean true score ({support('supcon-split', 'supcon-stable')})",
    ),
    "math-8.1.2-contrastive": (
        "verified",
        "each true label is compared with all other candidates, the other true ones included "
        f"({support('supcon-infonce-mean')})",
    ),
    "math-8.1.2-ranking": (
        "verified",
        f"in {len(speeds)} pairs in the wrong order the gap closes with a speed of at least one over the "
        f"number of true labels, and hypothesis finds no exception ({support('supcon-ranking')})",
    ),
    "math-8.1.2-calibration": (
        "corrected",
        "the best softmax is the expected share of a label, which is its probability only when one label is "
        f"true; in the example of five outcomes it is off by {abs(softmax(solved_sets) - q).max():.2f}, for sets of the "
        f"corpus's sizes by {(1 - 1 / n_true).mean():.2f} on average ({support('supcon-proper')})",
    ),
    "math-8.1.2-multi-label": (
        "verified",
        "the mean over true labels is defined and minimal where they share the mass equally; the price is a "
        f"floor, {corpus_floor:.2f} on the corpus, which hypothesis cannot undercut ({support('supcon-kl', 'supcon-floor')})",
    ),
    "math-8.1.3-infonce": (
        "verified",
        f"with one true label the loss is InfoNCE ({support('supcon-infonce')})",
    ),
    "math-8.1.3-generalisation": (
        "verified",
        "read with all other candidates of a true label as its negatives, the other true ones included: SupCon is "
        f"the mean of one InfoNCE term per true label; with the false labels only it would be one-vs-negatives, "
        f"{false_only:.3f} against {all_others:.3f} for scores 2, 1 (true) and 0 ({support('supcon-infonce-mean')})",
    ),
    "math-8.1.3-strength": (
        "not testable here",
        "no scale is given against which a gradient would be strong or a representation effective; what "
        f"can be said is that both sides are pushed equally hard ({support('supcon-balance')})",
    ),
    "math-8.1.3-imbalance": (
        "corrected",
        "true and false candidates of a text are pushed equally hard in all, but the best scores follow the "
        f"frequencies of labels: at nine to one the solver finds a gap of {gap:.3f} ({support('supcon-balance', 'supcon-proper')})",
    ),
    "math-8.3.3-supcon": (
        "corrected",
        f"relative error {start_error.mean():.1f} with equal scores on the corpus, and at least "
        f"{1 / math.sqrt(3):.2f} for two true labels whatever the scores; 1/B is missing too "
        f"({support('supcon-gradient', 'supcon-gradient-error')})",
    ),
    "math-8.3.3-relative": (
        "verified",
        f"each slope depends on all scores of the text: the second derivatives are not diagonal ({support('supcon-hessian')})",
    ),
    "math-8.3.3-supcon-ranking": (
        "verified",
        "SupCon orders labels and cannot place a threshold: moving all scores by thirty changes no loss "
        f"({support('supcon-ranking', 'supcon-proper')})",
    ),
    "math-12.2-supcon-tau": (
        "verified",
        "for the softmax of SupCon the entropy falls and the largest probability rises with the scale "
        f"({support('supcon-entropy', 'supcon-confidence')}); per-label probabilities do not depend on it",
    ),
    "math-12.2-supcon-tau-scale": (
        "verified",
        f"scores are the scale times a cosine, and the slope of the loss by it has the closed form ({support('supcon-tau', 'supcon-bound')})",
    ),
    "math-12.2-supcon-tau-start": (
        "verified",
        f"the preset starts at {START:.4f}, e squared, where the bound is {bound(1, 20, START):.1e} for one true label of twenty",
    ),
    "math-12.2-tau-effective": (
        "not testable here",
        "it takes trainings from several starts; at this one the bound of the cosine head costs next to nothing (supcon-bound)",
    ),
    "card-one-vs-negatives": (
        "verified",
        "the loss by its name: every true label against the false ones, the margin taken off its score; its infimum is "
        f"zero for any number of true labels ({support('supcon-ovn', 'supcon-ovn-gradient', 'supcon-ovn-bound')})",
    ),
    "card-one-vs-negatives-settings": (
        "verified",
        f"the card preset has weight {CARD.contrastive_weight:g} and margin {CARD.margin:g}; with that margin the best softmax at odds "
        f"of four to one is {sure:.3f} ({support('supcon-ovn-bayes')})",
    ),
}
EFFECTS = {
    "math-8.1.1-no-positive": (lost, "share of batches lost at one empty text in twenty"),
    "math-8.1.2-calibration": (
        (1 - 1 / n_true).mean(),
        "error of the best softmax for a certain set",
    ),
    "math-8.1.3-imbalance": (gap, "best gap of scores at nine to one"),
    "math-8.3.3-supcon": (start_error.mean(), "relative error of the gradient, equal scores"),
}
for name, (verdict, evidence) in OUTCOMES.items():
    report.outcome(name, verdict, evidence=evidence)
for name, (effect, unit) in EFFECTS.items():
    report.metric(f"effect/{name}", float(effect), unit=unit)
paste_table(
    "supcon-outcomes", judged(report.outcomes), "Statements of the sources and their outcomes."
)
display(checks.table())
report.close()
