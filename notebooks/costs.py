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
# # What a forward pass costs
#
# GliZNet reads a text and its $K$ labels in one pass.
# A cross-encoder reads the text again for every label.
# How much cheaper is the single pass?
# The mathematics document says "$K$ times" (math §10.3), and the model card says that the cost does not depend on $K$ at all.
# Both forget that every label makes the sequence longer.
#
# In short, with $n$ tokens of text and $m$ tokens per label:
#
# - One pass is cheaper, but never $K$ times for $K > 1$: the speed-up of the encoder stays below $1 + (n + 2) / (m + 1)$.
# - With more labels the speed-up rises to a maximum and then falls. One pass costs a quadratic polynomial in $K$, a cross-encoder a linear one.
# - For label names of a word or two, an encoder of usual size is full before one pass becomes the dearer choice.
# - Many labels are cheapest in chunks, and the best size has a formula.
#
# The chapter ends with the operation counts in the paper on the soft contextualised encoder (SCE) {cite}`maheshwari2026sce`.
# Their arithmetic holds, some of their inputs do not, and their conclusion stands.
#
# ## Where it sits
#
# The sources are math §2.1, §10.3 and §11.2, the cost claims of the model card and of GLiClass, and the equations and tables of the SCE paper.
# The formulas are in `gliznet/costs.py`.
# What they describe is in `gliznet/model.py` and `gliznet/layers.py`.

# %% tags=["parameters"]
out: str = ""
profile: str = "smoke"
backbone: str = "tiny-random"  # or "minilm-l6"
text_tokens: list = [8, 32, 128]  # n of the measured points
label_tokens: int = 3  # m of the measured points
labels: list = [1, 2, 8, 32, 96]  # K of the measured points; those that fit
chunk_labels: int = 24  # K of the chunks
cases: int = 20  # random cases of a search
seed: int = 1

# %% tags=["hide-input"]
import copy
import inspect
import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import sympy
import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    LlamaConfig,
    LlamaModel,
    Qwen3Config,
    RobertaConfig,
    XLMRobertaConfig,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from gliznet import GliZNetForSequenceClassification, GliZNETTokenizer, costs, layers
from gliznet import ZeroShotClassificationPipeline as Pipeline
from gliznet.backbones import fingerprint, resolve
from gliznet.costs import Encoder
from gliznet.lab.checks import Checks
from gliznet.lab.figures import COLOURS, quiet, show, use_style
from gliznet.lab.ledger import judged
from gliznet.lab.records import Reporter
from gliznet.lab.tables import paste, paste_table, published

quiet()
use_style()
torch.manual_seed(seed)
random = np.random.default_rng(seed)
report = Reporter(out)
checks = Checks(report)

# %% [markdown]
# ## What is counted
#
# A *multiply-add* is one multiplication and one addition, hence two floating-point operations.
# We count the multiply-adds of matrix products and inner products.
# Softmax, normalisation, activations and biases are left out: they touch each number a few times, and a product touches it as often as a vector is wide.
#
# PyTorch's counter is the independent check.
# It watches a module run and adds up the operations of every matrix product.
# It misses the fused attention of a processor, so every encoder here runs with plain ("eager") attention.
# It also misses the product of a matrix and a vector.
#
# We write $n$ for the tokens of the text, $m$ for the tokens of one label, $d_f$ for the width of the feed-forward block and $N$ for the number of layers.
# The other letters are those of {doc}`../notation`.


# %%
def count(function, *args, backward=False, **kwargs):
    """Multiply-adds of the matrix products of a call, by PyTorch's counter."""
    with torch.set_grad_enabled(backward), FlopCounterMode(display=False) as counter:
        found = function(*args, **kwargs)
        if backward:
            before = counter.get_total_flops()
            (found[0] if isinstance(found, tuple) else found).sum().backward()
            return (counter.get_total_flops() - before) // 2
    return counter.get_total_flops() // 2


def on_meta(config, kind=AutoModel):
    """A model without numbers: operations are counted, nothing is computed."""
    with torch.device("meta"):
        model = kind.from_config(config, attn_implementation="eager").eval()
    if kind is AutoModel and getattr(model, "pooler", None) is not None:
        model.pooler = None  # as GliZNet's own backbone
    return model


def states(rows, length, width):
    return {"inputs_embeds": torch.zeros(rows, length, width, device="meta")}


vectors = torch.randn(1, 2, 5, 4)
pd.Series(
    {
        "plain": count(lambda q: (q @ q.mT).softmax(-1) @ q, vectors),
        "fused": count(nn.functional.scaled_dot_product_attention, vectors, vectors, vectors),
    },
    name="multiply-adds that the counter sees in one attention",
).to_frame()

# %% [markdown]
# ## One layer of an encoder
#
# A linear map from $a$ to $b$ dimensions costs $L a b$ on $L$ tokens: each of the $L b$ results is an inner product of length $a$.
#
# **Proposition.**
# Let the query heads of a layer be $d_q$ wide together, and the key heads $d_k$, as are the value heads.
# Let $g$ matrices lead into the feed-forward block and one lead out of it.
# Then one layer costs, for $L$ tokens,
#
# ```{math}
# :label: eq-costs-layer
# c(L) = w L + 2 d_q L^2, \qquad w = 2 d_h d_q + 2 d_h d_k + (g + 1)\, d_h d_f .
# ```
#
# **Derivation.**
# Queries and output cost $L d_h d_q$ each, keys and values $L d_h d_k$ each.
# The feed-forward block costs $(g + 1) L d_h d_f$.
# A score is an inner product as wide as one head, and there are $L^2$ of them per head, so all heads together cost $L^2 d_q$.
# The weighted sum of the values costs the same.
#
# BERT, RoBERTa and MiniLM have $d_q = d_k = d_h$, $g = 1$ and $d_f = 4 d_h$, so $w = 12 d_h^2$.
# Llama and Qwen share each key head among several query heads, so $d_k < d_q$, and have $g = 2$.
# Sharing makes the maps smaller and leaves the scores as they are: every query head still meets every token.
#
# DeBERTa, the encoder of the model card, also multiplies queries and keys with a table of $r$ relative positions.
# That adds $2 r d_q$ to $w$.
# It also costs $2 r d_h d_q$ per layer once for a whole batch, which the ratios below leave out.

# %%
print(inspect.getsource(Encoder.matrices))
print(inspect.getsource(Encoder.block))

# %% [markdown]
# The checks are algebra, a loop that counts one by one, and PyTorch's counter on real layers of four families.

# %% tags=["hide-input"]
L, n, m, K = sympy.symbols("L n m K", positive=True)
d_h, d_q, d_k, d_f, d_p, g, N = sympy.symbols("d_h d_q d_k d_f d_p g N", positive=True)
general = Encoder(N, d_h, d_f, queries=d_q, keys=d_k, expansions=g)
w = 2 * d_h * d_q + 2 * d_h * d_k + (g + 1) * d_h * d_f
checks.zero("costs-layer", general.block(L) - (w * L + 2 * d_q * L**2))


def loop_layer(length, hidden, head, heads, groups, wide, gates):
    """Every multiplication of one layer, one by one."""
    done = 0
    maps = [(hidden, head * heads), *[(hidden, head * groups)] * 2, (head * heads, hidden)]
    for a, b in [*maps, *[(hidden, wide)] * gates, (wide, hidden)]:
        for _token, _result, _term in itertools.product(range(length), range(b), range(a)):
            done += 1
    for _head, _i, _j in itertools.product(range(heads), range(length), range(length)):
        done += 2 * head
    return done


for shape in ((5, 6, 3, 2, 2, 7, 1), (4, 6, 4, 4, 2, 5, 2)):
    length, hidden, head, heads, groups, wide, gates = shape
    small = Encoder(1, hidden, wide, heads * head, groups * head, gates)
    checks.equal(
        "costs-layer", "naive", small.block(length), loop_layer(*shape), case=f"{heads} heads"
    )

SIZES = {
    "vocab_size": 50,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
DEBERTA = DebertaV2Config(
    **SIZES,
    relative_attention=True,
    position_buckets=16,
    pos_att_type=["p2c", "c2p"],
    share_att_key=True,
    norm_rel_ebd="layer_norm",
    position_biased_input=False,
    type_vocab_size=0,
)
for name, config in (("BERT", BertConfig(**SIZES)), ("DeBERTa", DEBERTA)):
    rows, length = 3, 21
    checks.equal(
        "costs-layer",
        "library",
        Encoder.from_config(config).forward(length, rows),
        count(on_meta(config), **states(rows, length, 64)),
        case=f"{name}, {rows} rows",
    )


def decoder_layer(kind, heads, groups, width, implementation="eager"):
    """A random Llama or Qwen layer, and the call that runs it on 11 tokens."""
    family, layer_kind = {
        "Llama": (LlamaConfig, LlamaDecoderLayer),
        "Qwen3": (Qwen3Config, Qwen3DecoderLayer),
    }[kind]
    config = family(
        **{**SIZES, "num_attention_heads": heads},
        num_key_value_heads=groups,
        head_dim=width,
        attn_implementation=implementation,
    )
    layer = layer_kind(config, 0).eval()
    rotary = (torch.randn(1, 11, width), torch.randn(1, 11, width))

    def call(x):
        return layer(x, position_embeddings=rotary, attention_mask=None)

    return config, layer, call


for kind, width in (("Llama", 16), ("Qwen3", 24)):
    config, _, call = decoder_layer(kind, 4, 2, width)
    sizes = Encoder.from_config(config, expansions=2)
    checks.equal(
        "costs-layer",
        "library",
        sizes.block(11),
        count(call, torch.randn(1, 11, 64)),
        case=f"{kind}, grouped keys",
    )
    square = Encoder(1, 64, 96, sizes.queries, sizes.queries, 2).block(11)
    checks.rejects("costs-layer", f"{kind} with ungrouped keys", square, sizes.block(11), 1e-9)
_, layer, _ = decoder_layer("Llama", 4, 2, 16)
families = [layer] + [
    on_meta(kind(**SIZES)).encoder.layer[0] for kind in (RobertaConfig, XLMRobertaConfig)
]
checks.equal(
    "costs-layer",
    "library",
    [x.scaling for one in families for x in one.modules() if hasattr(x, "scaling")],
    [16**-0.5] * 3,
    case="the scores of three families are scaled",
)
layer_norms = [
    type(x).__name__ for one in families for x in one.modules() if "Norm" in type(x).__name__
]
orthogonal_gap = layer.self_attn.o_proj.weight.detach()
orthogonal_gap = float((orthogonal_gap @ orthogonal_gap.T - torch.eye(64)).abs().max())
assert layer_norms == ["LlamaRMSNorm"] * 2 + ["LayerNorm"] * 4

# %% [markdown]
# ## Which term is the larger one?
#
# Math §10.3 gives the backbone as $\mathcal{O}(B L^2 d_h)$, "due to self-attention".
# The linear maps, of order $L d_h^2$, are missing, and within the windows of these encoders they are most of the work.
#
# **Proposition.**
# The share of the attention products in the cost of a layer is
#
# ```{math}
# :label: eq-costs-share
# \frac{2 d_q L^2}{c(L)} = \frac{L}{L + \lambda}, \qquad \lambda = \frac{w}{2 d_q},
# ```
#
# and $\lambda = 6 d_h$ for the shape of BERT.
#
# **Derivation.**
# Divide numerator and denominator of {eq}`eq-costs-layer` by $2 d_q L$.
#
# The length $\lambda$ is the *turning length*, at which both parts are equal.
# The right order is $\mathcal{O}(B L d_h^2 + B L^2 d_h)$, times the number of layers.
# The printed one also fails as a bound in $d_h$: for $L = 1$ the cost over $L^2 d_h$ is $12 d_h + 2$.

# %% tags=["hide-input"]
lam = sympy.symbols("lambda", positive=True)
checks.zero(
    "costs-share",
    2 * d_q * L**2 / general.block(L) - L / (L + general.turning_length()),
)
shape_of_bert = Encoder(1, d_h, 4 * d_h)
checks.zero("costs-share", shape_of_bert.turning_length() - 6 * d_h, case="BERT's shape")
SHAPES = {
    "MiniLM-L6": Encoder(6, 384, 1536),
    "BERT-base": Encoder(12, 768, 3072),
    "DeBERTa-v3-base": Encoder(12, 768, 3072, positions=512),
}


def share(encoder, length):
    return 2 * length**2 * encoder.query_width / encoder.block(length)


lengths = torch.tensor([8.0, 128.0, 512.0, 4096.0], dtype=torch.float64, requires_grad=True)
for name, encoder in SHAPES.items():
    turning = encoder.turning_length()
    (slope,) = torch.autograd.grad(share(encoder, lengths).sum(), lengths)
    checks.equal(
        "costs-share",
        "autograd",
        slope,
        turning / (lengths + turning) ** 2,
        tolerance=1e-15,
        case=name,
    )
for shape in ((5, 6, 3, 2, 2, 7, 1), (9, 6, 4, 4, 2, 5, 2)):
    length, hidden, head, heads, groups, wide, gates = shape
    small = Encoder(1, hidden, wide, heads * head, groups * head, gates)
    products = 2 * sum(head for _ in itertools.product(range(heads), range(length), range(length)))
    checks.equal(
        "costs-share",
        "naive",
        products / loop_layer(*shape),
        length / (length + small.turning_length()),
        tolerance=1e-15,
        case=f"{length} tokens",
    )
WINDOW = 512
forgotten = 1 - share(SHAPES["BERT-base"], WINDOW)
paste("costs_forgotten", f"{forgotten:.0%}")
checks.rejects("costs-share", "all of it is attention", 1.0, 1 - forgotten, 1e-9)
turning_table = pd.DataFrame(
    {
        name: {
            "turning length, tokens": f"{encoder.turning_length():,.0f}",
            **{
                f"attention products at {x} tokens": f"{share(encoder, x):.1%}"
                for x in (64, 128, 512)
            },
        }
        for name, encoder in SHAPES.items()
    }
).T
turning_table

# %% [markdown]
# At the full window of BERT-base, {glue:text}`costs_forgotten:s` of the work is in the part that the printed order forgets.
#
# ## What GliZNet adds
#
# GliZNet puts four parts on top of the encoder: projections, pooling of labels, attention of labels over the text, and the head.
#
# **Proposition.**
# With linear projections and the cosine head, the parts of the package cost
#
# ```{math}
# :label: eq-costs-own
# o(L, K) = \underbrace{2 L d_h d_p}_{\text{projections}}
# + \underbrace{K L d_p}_{\text{pooling}}
# + \underbrace{2 K L d_p}_{\text{attention}}
# + \underbrace{3 K d_p}_{\text{head}} .
# ```
#
# The dot head costs $2 K d_p$, the bilinear head $K d_p (d_p + 1)$.
# An identity projection costs nothing but keeps the width, $d_p = d_h$.
# So projecting to a smaller $d_p$ is cheaper than the identity exactly if
#
# ```{math}
# :label: eq-costs-identity
# 3 K (L + 1)(d_h - d_p) > 2 L\, d_h d_p .
# ```
#
# **Derivation.**
# Both projections run over all $L$ positions.
# Pooling is a product of a $K \times L$ mask with the $L \times d_p$ tokens.
# Attention has two such products: one for the scores, one for the weighted sum.
# A cosine needs one inner product and two squared norms; the weighted dot product multiplies three factors; the bilinear form maps each text vector through a $d_p \times d_p$ matrix and takes one inner product.
#
# For the identity subtract $o$ at $d_p$ from $3 K (L + 1) d_h$, its cost without projections at $d_h$.
#
# Two lines of math §10.3 do not hold.
# Aggregation is not $\mathcal{O}(B K d_p)$: a mean reads all $K m$ tokens of the labels, and the dense product of the package reads all $L$ positions once per label.
# Similarity is not $\mathcal{O}(B K d_p)$ for the bilinear head of the card: it is $\mathcal{O}(B K d_p^2)$.
# The lines on projections and attention hold.

# %%
print(inspect.getsource(layers.pool_labels))
print(inspect.getsource(costs.own_parts))

# %% tags=["hide-input"]
path = resolve(backbone, report.out)
report.backbone(backbone, fingerprint(path))
tokenizer = GliZNETTokenizer.from_pretrained(path)
window = tokenizer.max_length
models = {
    formulation: GliZNetForSequenceClassification.from_backbone(
        path, tokenizer, formulation, attn_implementation="eager"
    )
    for formulation in ("math", "card")
}
HEADS = {
    "math": {"head": "cosine", "projected": True},
    "card": {"head": "bilinear", "projected": False},
}
config = models["math"].backbone.config
encoder = Encoder.from_config(config)
d = encoder.hidden
words = sorted(w for w in tokenizer.tokenizer.get_vocab() if w.isascii() and w.isalpha())
words = [w for w, size in zip(words, tokenizer.count_tokens(words), strict=True) if size == 1]


def words_of(start, number):
    """Words that the tokenizer keeps whole."""
    return " ".join(words[(start + i) % len(words)] for i in range(number))


def names(number, size):
    """Different labels of `size` tokens each."""
    return [words_of(j, size) for j in range(number)]


def inputs(text, label, number):
    """The package's own sequence for a text of `text` tokens and labels of `label` tokens."""
    batch = tokenizer(words_of(0, text), names(number, label), max_length=window)
    assert batch.pop("truncated_tokens").item() == 0
    return batch


checks.zero(
    "costs-own",
    sum(costs.own_parts(L, K, d_h, d_p).values())
    - (2 * L * d_h * d_p + 3 * K * L * d_p + 3 * K * d_p),
)
case = (12, label_tokens, 7)
length = costs.joint_length(*case)
for formulation, model in models.items():
    parts = costs.own_parts(length, 7, d, **HEADS[formulation])
    # The counter sees the bilinear map, and no element-wise product or inner product.
    matrix_part = {"math": 0, "card": 7 * d**2}[formulation]
    backbone_only = count(on_meta(config), **states(1, length, d))
    checks.equal(
        "costs-own",
        "library",
        sum(parts.values()) - parts["head"] + matrix_part,
        count(model, **inputs(*case)) - backbone_only,
        case=formulation,
    )


def loop_own(length, number, hidden, dim):
    """Every multiplication of GliZNet's own parts, one by one; cosine head."""
    done = 0
    for _projection, _i, _out, _in in itertools.product(
        range(2), range(length), range(dim), range(hidden)
    ):
        done += 1
    for _product, _j, _i, _k in itertools.product(
        range(3), range(number), range(length), range(dim)
    ):
        done += 1
    for _product, _j, _k in itertools.product(range(3), range(number), range(dim)):
        done += 1
    return done


checks.equal(
    "costs-own",
    "naive",
    sum(costs.own_parts(9, 2, 5, 3).values()),
    loop_own(9, 2, 5, 3),
)
whole_identity = costs.own_parts(L, K, d_h, projected=False)
checks.zero(
    "costs-identity",
    sum(whole_identity.values())
    - sum(costs.own_parts(L, K, d_h, d_p).values())
    - (3 * K * (L + 1) * (d_h - d_p) - 2 * L * d_h * d_p),
)


def dearer_than_identity(e, text, label, number, dim):
    """Relative change of a pass when linear maps to `dim` replace the identity."""
    identity = costs.single_pass(e, text, label, number, projected=False)
    return costs.single_pass(e, text, label, number, dim=dim) / identity - 1


wrong_identity = 0
for number, dim in itertools.product((1, 16, 100, 400), (1, 8, 64, 192, 383)):
    seen = costs.joint_length(64, 3, number)
    cheaper = 3 * number * (seen + 1) * (384 - dim) > 2 * seen * 384 * dim
    change = dearer_than_identity(SHAPES["MiniLM-L6"], 64, 3, number, dim)
    wrong_identity += cheaper != (change < 0)
checks.equal("costs-identity", "search", wrong_identity, 0, case="wrong side")
aggregation_factor = costs.own_parts(length, 7, d)["pooling"] / (7 * d)
bilinear_factor = costs.own_parts(length, 7, d, head="bilinear")["head"] / (7 * d)
checks.rejects("costs-own", "aggregation without its tokens", 1.0, aggregation_factor, 1e-9)
checks.rejects("costs-own", "bilinear head without its square", 1.0, bilinear_factor, 1e-9)
example = (64, 3, 16)
own_share = pd.DataFrame(
    {
        name: {
            "encoder": 1 - sum(parts.values()) / total,
            **{part: cost / total for part, cost in parts.items()},
        }
        for name, e in SHAPES.items()
        if (parts := costs.own_parts(costs.joint_length(*example), example[2], e.hidden))
        and (total := costs.single_pass(e, *example))
    }
).T
own_share.map("{:.2%}".format)

# %% [markdown]
# The table takes a text of 64 tokens and 16 labels of three tokens.
# The encoder is nearly all of the cost.
# So the choice between mean pooling and the `[LAB]` token (math §5.1) hardly changes the cost: the `[LAB]` tokens are in the sequence either way.
#
# ## The length of the sequence
#
# One pass reads $L_1(K)$ tokens, and a cross-encoder reads $L_\times$ tokens for each label:
#
# ```{math}
# :label: eq-costs-lengths
# L_1(K) = n + 2 + K (m + 1), \qquad L_\times = n + m + 3 .
# ```
#
# The first is the sequence of math §2.1.
# The second is the pair `[CLS] text [SEP] label [SEP]`; math §11.2 prints it without the closing `[SEP]`, which tokenizers add.
# Both are equal for one label.
# We write $t = n + 2$ for the text with its two control tokens and $p = m + 1$ for a label with its `[LAB]`, so that $L_1 = t + K p$ and $L_\times = t + p$.
#
# Labels of different length change nothing below: $K m$ becomes the sum of their lengths.

# %% tags=["hide-input"]
grid = [
    (text, label_tokens, number)
    for text, number in itertools.product(text_tokens, labels)
    if costs.joint_length(text, label_tokens, number) <= window
]
checks.equal(
    "costs-lengths",
    "exact",
    [costs.joint_length(*case) for case in grid],
    [inputs(*case)["input_ids"].shape[1] for case in grid],
    case="the package's tokenizer",
)
checks.equal(
    "costs-lengths",
    "naive",
    [1 + text + 1 + sum(label_tokens + 1 for _ in range(number)) for text, _, number in grid],
    [costs.joint_length(*case) for case in grid],
)
room = [(text, label) for text in range(1, 60, 7) for label in range(1, 12)]
most = [costs.labels_that_fit(64, *case) for case in room]
checks.equal(
    "costs-lengths",
    "search",
    [sum(costs.joint_length(*case, number) <= 64 for number in range(1, 64)) for case in room],
    most,
    case="the most labels that fit",
)
pair_ids = tokenizer.tokenizer(words_of(0, 9), names(1, 4)[0])["input_ids"]
checks.equal("costs-lengths", "exact", costs.pair_length(9, 4), len(pair_ids), case="pair")
checks.zero("costs-lengths", costs.joint_length(n, m, 1) - costs.pair_length(n, m))

# %% [markdown]
# ## Four ways to score $K$ labels
#
# **One pass.**
# This is GliZNet and, with one token more ({eq}`eq-gliclass-room`), the uni-encoder of GLiClass {cite}`stepanov2025gliclass`.
# Its cost is a polynomial of degree two in $K$:
#
# ```{math}
# :label: eq-costs-quadratic
# \begin{aligned}
# F_1(K) &= N c(t + K p) + o(t + K p, K) = A + B K + C K^2, \\
# A &= N c(t) + 2 t d_h d_p, \\
# B &= N p\,(w + 4 d_q t) + 2 p d_h d_p + 3 (t + 1) d_p, \\
# C &= 2 N d_q p^2 + 3 p d_p .
# \end{aligned}
# ```
#
# **Cross-encoder.**
# It takes one pass per label, with a pooled `[CLS]` and one output:
#
# ```{math}
# :label: eq-costs-cross
# F_\times(K) = K D, \qquad D = N c(t + p) + d_h^2 + d_h .
# ```
#
# **Bi-encoder.**
# It reads text and labels apart {cite}`reimers2019sbert`.
# The vectors of the labels do not depend on the text, so they can be kept:
#
# ```{math}
# :label: eq-costs-bi
# F_{\text{bi}}(K) = N c(n + 2) + K d_h + \bigl[ K N c(m + 2) \bigr]_{\text{labels not kept}} .
# ```
#
# **Soft contextualised encoder (SCE).**
# A frozen encoder with cost $c'$, width $d'$ and $N'$ layers reads the text.
# Its vector and one vector per label pass through a second encoder:
#
# ```{math}
# :label: eq-costs-sce
# F_{\text{SCE}}(K) = d' d_h + N c(K + 1) + K d_h + \bigl[ N' c'(n + 2) \bigr]_{\text{text not read before}} .
# ```
#
# **Derivation.**
# Put $L_1 = t + K p$ into {eq}`eq-costs-layer` and {eq}`eq-costs-own` and collect powers of $K$.
# The other three are sums of what the parts cost.
#
# So the cross-encoder is *linear* in $K$, and the single pass is *quadratic*.
# Math §2.1 has it the other way round: it gives $\mathcal{O}(K)$ to GliZNet and $\mathcal{O}(K^2)$ to the cross-encoder.

# %% tags=["hide-input"]
t, p = n + 2, m + 1
plain = Encoder(N, d_h, d_f, queries=d_q, keys=d_k, expansions=g)


def c(length):
    return w * length + 2 * d_q * length**2


A = N * c(t) + 2 * t * d_h * d_p
B = N * p * (w + 4 * d_q * t) + 2 * p * d_h * d_p + 3 * (t + 1) * d_p
C = 2 * N * d_q * p**2 + 3 * p * d_p
single = costs.single_pass(plain, n, m, K, dim=d_p)
checks.zero("costs-quadratic", sympy.expand(single - (A + B * K + C * K**2)))
powers = costs.quadratic(lambda k: costs.single_pass(plain, n, m, k, dim=d_p))
for name, found, expected in zip("ABC", powers, (A, B, C), strict=True):
    checks.zero("costs-quadratic", sympy.expand(found - expected), case=name)
D = N * c(t + p) + d_h**2 + d_h
checks.zero("costs-cross", sympy.expand(costs.cross_encoder(plain, n, m, K) - K * D))
checks.zero(
    "costs-bi",
    sympy.expand(costs.bi_encoder(plain, n, m, K) - (N * c(n + 2) + K * d_h + K * N * c(m + 2))),
)
reader = Encoder(*sympy.symbols("N' d' d_f'", positive=True))
checks.zero(
    "costs-sce",
    sympy.expand(
        costs.soft_encoder(reader, plain, n, K)
        - (reader.hidden * d_h + N * c(K + 1) + K * d_h + reader.forward(n + 2))
    ),
)

one_output = copy.deepcopy(config)
one_output.num_labels = 1
classifier = on_meta(one_output, AutoModelForSequenceClassification)
bare = on_meta(config)


measured_rows = []
for case in grid:
    text, _, number = case
    length = costs.pair_length(text, label_tokens)
    found = {
        "single": count(models["math"], **inputs(*case)),
        "card": count(models["card"], **inputs(*case)),
        "cross": count(classifier, **states(number, length, d)),
    }
    formula = {
        "single": costs.single_pass(encoder, *case),
        "card": costs.single_pass(encoder, *case, **HEADS["card"]),
        "cross": costs.cross_encoder(encoder, *case),
    }
    measured_rows.append(
        {"n": text, "K": number, **found, **{f"{k} formula": v for k, v in formula.items()}}
    )
points = pd.DataFrame(measured_rows)
checks.equal("costs-cross", "library", points["cross formula"], points["cross"], case="all points")
for name in ("single", "card"):
    checks.equal(
        "costs-quadratic",
        "library",
        points[f"{name} formula"] / points[name],
        np.ones(len(points)),
        tolerance=0.01,
        case=f"{name}, relative",
    )
worst_relative = float((points["single formula"] / points["single"] - 1).abs().max())
report.metric("worst_relative_difference", worst_relative, n=len(points))
with torch.device("meta"):
    adapter = nn.Linear(d, d)


def read(rows, length):
    return bare(**states(rows, length, d)).last_hidden_state


def run_bi(text, number, kept=None):
    """A bi-encoder whose vectors are first states; `kept` label vectors are not read again."""
    label_states = read(number, label_tokens + 2)[:, 0] if kept is None else kept
    return read(1, text + 2)[:, 0] @ label_states.T


def run_soft(text, number):
    """SCE with one encoder in both places."""
    query = adapter(read(1, text + 2)[:, 0])
    joined = torch.cat([query, torch.zeros(number, d, device="meta")])
    e = bare(inputs_embeds=joined[None]).last_hidden_state[0]
    return e[:1] @ e[1:].T


def kept_labels(number):
    return torch.zeros(number, d, device="meta")


cells = list(points[["n", "K"]].itertuples(index=False, name=None))
for slug, case, run, formula in (
    ("costs-bi", "labels read", run_bi, lambda x, k: costs.bi_encoder(encoder, x, label_tokens, k)),
    (
        "costs-bi",
        "labels kept",
        lambda x, k: run_bi(x, k, kept_labels(k)),
        lambda x, k: costs.bi_encoder(encoder, x, label_tokens, k, True),
    ),
    (
        "costs-sce",
        "one encoder in both places",
        run_soft,
        lambda x, k: costs.soft_encoder(encoder, encoder, x, k),
    ),
):
    counted = [count(run, *cell) for cell in cells]
    checks.equal(slug, "library", [formula(*cell) for cell in cells], counted, case=case)
shape = (6, 3, 2, 2, 7, 1)
checks.equal(
    "costs-bi",
    "naive",
    costs.bi_encoder(Encoder(1, 6, 7), 3, 2, 4),
    loop_layer(5, *shape) + 4 * loop_layer(4, *shape) + sum(1 for _ in range(4) for _ in range(6)),
)
checks.equal(
    "costs-sce",
    "naive",
    costs.soft_encoder(Encoder(1, 4, 3), Encoder(1, 6, 7), 3, 4),
    loop_layer(5, 4, 2, 2, 2, 3, 1)
    + loop_layer(5, *shape)
    + sum(1 for _ in itertools.product(range(4), range(6)))
    + sum(1 for _ in itertools.product(range(4), range(6))),
)
small = Encoder(1, 6, 7, 6, 6, 1)
checks.equal(
    "costs-quadratic",
    "naive",
    costs.single_pass(small, 3, 2, 2),
    loop_layer(11, 6, 3, 2, 2, 7, 1) + loop_own(11, 2, 6, 6),
)
doubling = points.loc[points["K"] == 2, "cross"].sum() / points.loc[points["K"] == 1, "cross"].sum()
checks.rejects("costs-cross", "quadratic in K", 4.0, doubling, 1e-9)
points[["n", "K", "single", "cross"]].astype({"single": float, "cross": float}).set_index(
    "n"
).head()

# %% [markdown]
# The counts agree with the formulas to the last unit, except for the card's preset: the counter does not see the last inner product of its head.
#
# ## The true speed-up
#
# **Proposition.**
# The speed-up of one pass over $K$ passes is
#
# ```{math}
# :label: eq-costs-ratio
# R(K) = \frac{F_\times(K)}{F_1(K)} = \frac{D}{B + A / K + C K}, \qquad
# R'(K) = \frac{R(K)^2}{D} \left( \frac{A}{K^2} - C \right).
# ```
#
# It rises, has one maximum, and falls to zero:
#
# ```{math}
# :label: eq-costs-maximum
# R(K) \le R(K_\circ) = \frac{D}{B + 2 \sqrt{A C}}, \qquad K_\circ = \sqrt{A / C}, \qquad
# R(K) = R(K_\circ^2 / K), \qquad \lim_{K \to \infty} R(K) = 0 .
# ```
#
# **Derivation.**
# Divide both costs by $K$.
# The arithmetic mean is at least the geometric one, so $A / K + C K \ge 2 \sqrt{A C}$, with equality for $K = K_\circ$.
# Putting $K_\circ^2 / K = A / (C K)$ for $K$ swaps the two summands.
# For large $K$ the term $C K$ outgrows everything.
#
# **Proposition (the encoders alone).**
# Leave the parts of {eq}`eq-costs-own` and the classifier out.
# Then one pass costs less than $K$ passes exactly for $1 < K < K_*$, with
#
# ```{math}
# :label: eq-costs-crossover
# K_* = \frac{t (t + \lambda)}{p^2}, \qquad
# \frac{K N c(t + p) - N c(t + K p)}{2 N d_q} = (K - 1) \bigl( t (t + \lambda) - K p^2 \bigr),
# ```
#
# and the speed-up stays below a bound that depends on neither $K$ nor the encoder:
#
# ```{math}
# :label: eq-costs-bound
# R(K) \le \frac{K (t + p)}{t + K p} < 1 + \frac{t}{p} = 1 + \frac{n + 2}{m + 1} .
# ```
#
# **Derivation.**
# Write $c(L) = 2 d_q L (\lambda + L)$.
# In the difference, the terms with $\lambda$ give $K (t + p) - (t + K p) = (K - 1) t$.
# The squares give $K (t + p)^2 - (t + K p)^2 = (K - 1) t^2 - K (K - 1) p^2$, because the mixed terms cancel.
# For the bound, $R(K) = \frac{K (t + p)}{t + K p} \cdot \frac{\lambda + t + p}{\lambda + t + K p}$, and the second factor is at most one.
#
# So "$K$ times" holds for $K = 1$ only.
# The ratio of two lengths bounds it: with $t = 5 p$ the speed-up stays below six.
# For the encoders alone $K_\circ = \sqrt{K_*}$: the best number of labels is the square root of the number at which the advantage is gone.
#
# The main inequalities of this chapter are given to `hypothesis`, a library that looks for counter-examples: it steers towards the tight cases and shrinks what it finds.
# It draws the sizes of the encoder and the lengths of text and label.
# It finds none against the propositions, and these against the sources, for the shape of MiniLM-L6:
#
# - The speed-up is less than half of "$K$ times": {glue:text}`costs_not_k_times:s`.
# - "Faster" fails inside the window: {glue:text}`costs_not_faster:s`.

# %% tags=["hide-input"]
a0, b0, c0, d0 = sympy.symbols("A B C D", positive=True)
ratio = costs.speed_up((a0, b0, c0), d0, K)
checks.zero("costs-ratio", ratio - d0 / (b0 + a0 / K + c0 * K), case="divided by K")
checks.zero(
    "costs-ratio", sympy.diff(ratio, K) - ratio**2 / d0 * (a0 / K**2 - c0), case="derivative"
)
best = costs.best_labels((a0, b0, c0))
best = sympy.nsimplify(best)
checks.zero("costs-maximum", ratio.subs(K, best) - d0 / (b0 + 2 * sympy.sqrt(a0 * c0)))
checks.zero("costs-maximum", ratio.subs(K, best**2 / K) - ratio, case="symmetry")
checks.zero("costs-maximum", sympy.limit(ratio, K, sympy.oo), case="limit")

s_t, s_p = sympy.symbols("t p", positive=True)
gap = (K * c(s_t + s_p) - c(s_t + K * s_p)) / (2 * d_q)
star = s_t * (s_t + w / (2 * d_q)) / s_p**2
checks.zero("costs-crossover", sympy.expand(gap - (K - 1) * (star - K) * s_p**2), case="difference")
checks.zero(
    "costs-crossover",
    sympy.expand(plain.block(s_t) / (2 * d_q * s_p**2) - star),
    case="A/C of the encoder alone",
)
upper = K * (s_t + s_p) / (s_t + K * s_p)
alone = K * c(s_t + s_p) / c(s_t + K * s_p)
factor = (w / (2 * d_q) + s_t + s_p) / (w / (2 * d_q) + s_t + K * s_p)
checks.zero("costs-bound", sympy.together(alone - upper * factor))
checks.zero("costs-bound", sympy.limit(upper, K, sympy.oo) - (1 + s_t / s_p), case="limit")


def random_case():
    """A random encoder, with a text and a label of random length."""
    drawn = Encoder(
        int(random.integers(1, 13)),
        int(random.integers(8, 800)),
        int(random.integers(8, 3000)),
        expansions=int(random.integers(1, 3)),
    )
    return drawn, int(random.integers(1, 300)), int(random.integers(1, 40))


def closed_form(e, text, label, number):
    """K passes less one pass, both of the encoder alone."""
    t, p = text + 2, label + 1
    gap = t * (t + e.turning_length()) - number * p**2
    return 2 * e.layers * e.query_width * (number - 1) * gap


def measured_gap(e, text, label, number):
    return number * e.forward(costs.pair_length(text, label)) - e.forward(
        costs.joint_length(text, label, number)
    )


def full_coefficients(e, text, label):
    """A, B, C and D of GliZNet and of the cross-encoder on one encoder, in a large batch: DeBERTa's
    table of positions, which the batch shares, is left out."""
    shared = e.forward(0)
    one = costs.quadratic(lambda k: costs.single_pass(e, text, label, k) - shared)
    return one, costs.cross_encoder(e, text, label, 1) - shared


found = {name: [] for name in ("slope", "top", "even", "gap slope")}
for _ in range(cases):
    e, text, label = random_case()
    coefficients, pair = full_coefficients(e, text, label)
    start, slope, bend = coefficients
    k = torch.tensor([1.0, 7.0, 400.0], dtype=torch.float64, requires_grad=True)
    value = costs.speed_up(coefficients, pair, k)
    (by_hand,) = torch.autograd.grad(value.sum(), k)
    found["slope"].append((by_hand - value**2 / pair * (start / k**2 - bend)).abs().max().item())
    even = costs.break_even(coefficients, pair)
    if math.isfinite(even):
        found["even"].append(abs(costs.speed_up(coefficients, pair, even) - 1))
    top = torch.tensor(costs.best_labels(coefficients), dtype=torch.float64, requires_grad=True)
    (at_top,) = torch.autograd.grad(costs.speed_up(coefficients, pair, top), top)
    found["top"].append(abs(at_top.item()))
    (left,) = torch.autograd.grad(measured_gap(e, text, label, k).sum(), k)
    (right,) = torch.autograd.grad(closed_form(e, text, label, k).sum(), k)
    found["gap slope"].append((left / right - 1).abs().max().item())
checks.equal("costs-ratio", "autograd", max(found["slope"]), 0.0, tolerance=1e-12)
checks.equal(
    "costs-ratio", "search", max(found["even"]), 0.0, tolerance=1e-9, case="one at the break-even"
)
checks.equal("costs-maximum", "autograd", max(found["top"]), 0.0, tolerance=1e-12)
checks.equal("costs-crossover", "autograd", max(found["gap slope"]), 0.0, tolerance=1e-9)

# What hypothesis draws: the sizes of an encoder, the tokens of text and label, and K.
ENCODERS = st.builds(
    Encoder,
    layers=st.integers(1, 12),
    hidden=st.integers(8, 800),
    feed_forward=st.integers(8, 3000),
    expansions=st.integers(1, 2),
)
LENGTHS = {"text": st.integers(1, 300), "label": st.integers(1, 40)}
NUMBERS = st.integers(1, 3000)
DIVISIONS = 1e-12  # relative, a few divisions of whole numbers


def below_bounds(e, text, label, number):
    """The two bounds less the speed-up of the encoder alone, each relative to its bound."""
    t, p = text + 2, label + 1
    gain = number * e.forward(costs.pair_length(text, label)) / e.forward(t + number * p)
    first = number * (t + p) / (t + number * p)
    return min(1 - gain / first, 1 - first / (1 + t / p))


def below_maximum(e, text, label, number):
    powers, pair = full_coefficients(e, text, label)
    highest = pair / (powers[1] + 2 * math.sqrt(powers[0] * powers[2]))
    return 1 - costs.speed_up(powers, pair, number) / highest


def towards_zero(e, text, label, number):
    """The speed-up times K stays below D / C, so it vanishes."""
    powers, pair = full_coefficients(e, text, label)
    return 1 - costs.speed_up(powers, pair, number) * number / (pair / powers[2])


def right_side(e, text, label, beyond):
    """Around the crossing: cheaper by a whole number at least before it, not cheaper beyond."""
    t, p = text + 2, label + 1
    crossing = t * (t + e.turning_length()) / p**2
    number = max(1, math.floor(crossing) + beyond)
    gap = measured_gap(e, text, label, number)
    assume(number > 1)
    return gap - 1 if number < crossing else -gap


def beyond_break_even(e, text, label, factor):
    """One pass with its own parts is dearer beyond the break-even, cheaper from the best K to it."""
    powers, pair = full_coefficients(e, text, label)
    even = costs.break_even(powers, pair)
    assume(math.isfinite(even))
    number = max(factor * even, costs.best_labels(powers))
    gain = costs.speed_up(powers, pair, number)
    return gain - 1 if number < even else 1 - gain


any_case = {"e": ENCODERS, **LENGTHS, "number": NUMBERS}
# With one label the first bound is the speed-up itself.
checks.survives(
    "costs-bound", below_bounds, DIVISIONS, examples=150,
    **{**any_case, "number": st.integers(2, 3000)},
)  # fmt: skip
checks.survives("costs-maximum", below_maximum, DIVISIONS, examples=150, **any_case)


def on_its_side(e, text, label, number, beyond):
    """Around the crossing: a linear map is cheaper than the identity on the one side, dearer on the
    other, by a whole number of multiplications."""
    seen = costs.joint_length(text, label, number)
    per_label = 3 * number * (seen + 1)
    dim = math.floor(per_label * e.hidden / (2 * seen * e.hidden + per_label)) + beyond
    assume(0 < dim < e.hidden)
    cheaper, dearer = per_label * (e.hidden - dim), 2 * seen * e.hidden * dim
    change = costs.single_pass(e, text, label, number, dim=dim) - costs.single_pass(
        e, text, label, number, projected=False
    )
    return -change - 1 if cheaper > dearer else change


checks.survives("costs-identity", on_its_side, examples=100, **any_case, beyond=st.integers(-9, 9))
checks.survives(
    "costs-maximum",
    towards_zero,
    DIVISIONS,
    case="limit",
    examples=150,
    **{**any_case, "number": st.integers(1, 10**9)},
)
checks.survives(
    "costs-crossover",
    right_side,
    examples=200,
    e=ENCODERS,
    **LENGTHS,
    beyond=st.integers(-3000, 3000),
)
checks.survives(
    "costs-crossover",
    beyond_break_even,
    DIVISIONS,
    case="whole model",
    examples=150,
    e=ENCODERS,
    **LENGTHS,
    factor=st.floats(0.01, 100),
)


def half_of_labels(text, label, number):
    """The speed-up over K, less one half."""
    return (
        costs.speed_up(*full_coefficients(SHAPES["MiniLM-L6"], text, label), number) / number - 0.5
    )


def faster_in_window(text, label, number):
    if costs.joint_length(text, label, number) > WINDOW:
        return math.inf
    return costs.speed_up(*full_coefficients(SHAPES["MiniLM-L6"], text, label), number) - 1


printed = {"half of K times": half_of_labels, "always faster": faster_in_window}
shrunk = {
    name: checks.refuted(
        "costs-crossover" if name == "always faster" else "costs-maximum",
        name,
        slack,
        DIVISIONS,
        **LENGTHS,
        number=st.integers(2, 3000),
    )
    for name, slack in printed.items()
}
for glued, case in zip(("costs_not_k_times", "costs_not_faster"), shrunk.values(), strict=True):
    gain = costs.speed_up(
        *full_coefficients(SHAPES["MiniLM-L6"], case["text"], case["label"]), case["number"]
    )
    paste(
        glued,
        f"n = {case['text']}, m = {case['label']} and K = {case['number']}, a speed-up of {gain:.3f}",
    )

loops = {
    number: number * loop_layer(7, 6, 3, 2, 2, 7, 1)
    - loop_layer(costs.joint_length(3, 1, number), 6, 3, 2, 2, 7, 1)
    for number in (1, 2, 5, 9)
}
small = Encoder(1, 6, 7)
checks.equal(
    "costs-crossover",
    "naive",
    list(loops.values()),
    [closed_form(small, 3, 1, number) for number in loops],
    tolerance=1e-9,
)
coefficients, pair = full_coefficients(small, 3, 1)
by_loop = {
    number: number
    * (loop_layer(7, 6, 3, 2, 2, 7, 1) + 6**2 + 6)
    / (
        loop_layer(costs.joint_length(3, 1, number), 6, 3, 2, 2, 7, 1)
        + loop_own(costs.joint_length(3, 1, number), number, 6, 6)
    )
    for number in range(1, 12)
}
checks.equal(
    "costs-ratio",
    "naive",
    list(by_loop.values()),
    [costs.speed_up(coefficients, pair, number) for number in by_loop],
    tolerance=1e-12,
)
highest = max(by_loop, key=by_loop.get)
checks.equal(
    "costs-maximum",
    "naive",
    highest,
    costs.best_labels(coefficients),
    tolerance=1.0,
    case="best whole number",
)
checks.rejects("costs-ratio", "K times", 8.0, by_loop[8], 1e-9)
measured = points["cross"] / points["single"]
from_formula = [
    costs.speed_up(*full_coefficients(encoder, row.n, label_tokens), row.K)
    for row in points.itertuples()
]
checks.equal(
    "costs-ratio",
    "library",
    measured,
    from_formula,
    tolerance=0.01 * measured.max(),
    case="counter",
)

# %% [markdown]
# The figure puts the counter's points on the curves of {eq}`eq-costs-ratio`.
# A point off its curve would refute the formula.
# Points on the dashed line beyond $K = 1$ would confirm the printed "$K$ times".

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Speed-up of one pass over K passes, in multiply-adds. Lines: the formula, dotted beyond the window. Points: PyTorch's counter on the package's model. Dashed: K times.", "name": "fig-costs-ratio"}, "image": {"alt": "Line plot of the speed-up against the number of labels, on logarithmic axes, one line per length of the text with measured points on it. Every line leaves the dashed diagonal early, flattens and falls."}}
figure, axis = plt.subplots(figsize=(6.2, 4))
reach = np.unique(np.geomspace(1, 3000, 200).round())
for text, colour in zip(text_tokens, ("math", "card", "published", "accent"), strict=False):
    coefficients, pair = full_coefficients(encoder, text, label_tokens)
    limit = costs.labels_that_fit(window, text, label_tokens)
    for part, style in ((reach <= limit, "-"), (reach >= limit, ":")):
        axis.plot(
            reach[part],
            costs.speed_up(coefficients, pair, reach[part]),
            style,
            color=COLOURS[colour],
            label=f"{text} text tokens" if style == "-" else None,
        )
    own = points["n"] == text
    axis.plot(points["K"][own], measured[own], "o", color=COLOURS[colour], markersize=5)
axis.plot([1, 60], [1, 60], "--", color=COLOURS["untrained"], label="K times")
axis.axhline(1, color="black", linewidth=0.6)
axis.set(xscale="log", yscale="log", xlabel="labels K", ylabel="speed-up R(K)")
axis.legend(fontsize=8)
show(figure)

# %% [markdown]
# ## Inside a window
#
# At most $(W - t) / p$ labels fit into a window of $W$ tokens.
#
# **Proposition.**
# For the encoders alone, one pass is the cheaper choice for every $K > 1$ that fits if
#
# ```{math}
# :label: eq-costs-window
# m + 1 < \frac{t\,(t + \lambda)}{W - t} .
# ```
#
# **Derivation.**
# One pass is cheaper up to $K_* = t (t + \lambda) / p^2$ by {eq}`eq-costs-crossover`.
# Nothing beyond $(W - t) / p$ fits.
# The first exceeds the second exactly if $t (t + \lambda) > p (W - t)$.
#
# So names of a word or two never bring an encoder of usual size to the crossing.
# Long descriptions of labels over a very short text can.

# %% tags=["hide-input"]
checks.zero(
    "costs-window",
    sympy.factor(star * s_p**2 - s_p * (sympy.Symbol("W") - s_t))
    - (s_t * (s_t + w / (2 * d_q)) - s_p * (sympy.Symbol("W") - s_t)),
)


def cheaper_inside(e, text, shorter, fewer):
    """Labels shorter than the condition asks, fewer of them than fit: cheaper by a whole number."""
    t = text + 2
    threshold = t * (t + e.turning_length()) / (WINDOW - t)
    label = math.ceil(threshold) - 2 - shorter
    assume(label > 0)
    number = costs.labels_that_fit(WINDOW, text, label) - fewer
    assume(number > 1)
    return measured_gap(e, text, label, number) - 1


checks.survives(
    "costs-window",
    cheaper_inside,
    examples=150,
    e=ENCODERS,
    text=st.integers(1, 300),
    shorter=st.integers(0, 40),
    fewer=st.integers(0, 40),
)

table = {}
for (name, e), (text, label) in itertools.product(
    SHAPES.items(), ((64, 3), (256, 3), (8, 3), (4, 30))
):
    coefficients, pair = full_coefficients(e, text, label)
    fit = costs.labels_that_fit(WINDOW, text, label)
    peak, even = costs.best_labels(coefficients), costs.break_even(coefficients, pair)
    table[f"{name}, n = {text}, m = {label}"] = {
        "labels that fit": fit,
        "their speed-up": round(costs.speed_up(coefficients, pair, fit), 2),
        "best K": round(peak),
        "largest speed-up": round(costs.speed_up(coefficients, pair, peak), 2),
        "one pass is dearer from K =": f"{math.ceil(even):,}",
        "bound 1 + t/p": round(1 + (text + 2) / (label + 1), 2),
    }
    report.metric(f"break_even/{name}/{text}-{label}", even, unit="labels")
    report.metric(
        f"largest_speed_up/{name}/{text}-{label}",
        table[f"{name}, n = {text}, m = {label}"]["largest speed-up"],
    )
crossings = pd.DataFrame(table).T
crossings.index.name = f"encoder, window of {WINDOW} tokens"
crossings

# %% [markdown]
# ## The best chunk
#
# The card advises to score very large label sets in batches.
# The pipeline does so with `max_labels_per_pass`.
# How large should such a chunk be?
#
# **Proposition.**
# Split $K$ labels into chunks of $k$, where $k$ divides $K$.
# The cost is
#
# ```{math}
# :label: eq-costs-chunk
# \frac{K}{k} F_1(k) = K \left( \frac{A}{k} + B + C k \right)
# = K \bigl( B + 2 \sqrt{A C} \bigr) + K \left( \sqrt{\frac{A}{k}} - \sqrt{C k} \right)^2 ,
# ```
#
# which is smallest for $k = K_\circ = \sqrt{A / C}$, the same number as in {eq}`eq-costs-maximum`.
# Two equal chunks are cheaper than one pass exactly for $K > \sqrt 2\, K_\circ$.
#
# **Derivation.**
# Expand the square.
# It is never negative, and zero exactly for $k = K_\circ$.
# Two halves save $F_1(K) - 2 F_1(K / 2) = C K^2 / 2 - A$.
#
# With chunks of that size the cost is linear in $K$, and the speed-up is the largest.
# If $K$ is no multiple of it, the last chunk reads the whole text for few labels, which costs part of the gain.
# One loss is not in the count: labels of different chunks no longer see each other.

# %% tags=["hide-input"]
size = sympy.symbols("k", positive=True)
checks.zero(
    "costs-chunk",
    sympy.expand(
        a0 / size
        + b0
        + c0 * size
        - (b0 + 2 * sympy.sqrt(a0 * c0))
        - (sympy.sqrt(a0 / size) - sympy.sqrt(c0 * size)) ** 2
    ),
)
whole = a0 + b0 * K + c0 * K**2
checks.zero(
    "costs-chunk",
    sympy.expand(whole - 2 * whole.subs(K, K / 2) - (c0 * K**2 / 2 - a0)),
    case="two halves",
)
text = text_tokens[0]
chunk_sizes = [
    k
    for k in range(1, chunk_labels + 1)
    if chunk_labels % k == 0
    and chunk_labels // k <= 6
    and costs.joint_length(text, label_tokens, k) <= window
]


def one_pass(number):
    return costs.single_pass(encoder, text, label_tokens, number)


coefficients, pair = full_coefficients(encoder, text, label_tokens)
start, slope, bend = coefficients
by_chunk = {}
for k in chunk_sizes:
    pipeline = Pipeline(
        models["math"], tokenizer, device="cpu", batch_size=1, max_labels_per_pass=k
    )
    by_chunk[k] = count(pipeline, words_of(0, text), names(chunk_labels, label_tokens))
checks.equal(
    "costs-chunk",
    "library",
    [costs.chunked(one_pass, chunk_labels, k) / by_chunk[k] for k in chunk_sizes],
    np.ones(len(chunk_sizes)),
    tolerance=0.01,
    case="the package's pipeline, relative",
)
checks.equal(
    "costs-chunk",
    "naive",
    [costs.chunked(one_pass, 23, k) for k in (1, 5, 23)],
    [
        sum(one_pass(len(range(23)[first : first + k])) for first in range(0, 23, k))
        for k in (1, 5, 23)
    ],
)
k = torch.tensor(costs.best_labels(coefficients), dtype=torch.float64, requires_grad=True)
(at_best,) = torch.autograd.grad(chunk_labels * one_pass(k) / k / pair, k)
checks.equal("costs-chunk", "autograd", at_best, 0.0, tolerance=1e-12, case="slope at the best")


def above_best_chunks(e, text, label, number, chunk):
    """The cost of any chunks, the last one smaller, over that of chunks of the best size."""
    powers, _ = full_coefficients(e, text, label)
    cost = costs.chunked(lambda k: powers[0] + powers[1] * k + powers[2] * k**2, number, chunk)
    return cost / (number * (powers[1] + 2 * math.sqrt(powers[0] * powers[2]))) - 1


checks.survives(
    "costs-chunk", above_best_chunks, DIVISIONS, examples=150, **any_case, chunk=NUMBERS
)
cheapest = min(by_chunk, key=by_chunk.get)
best_size = costs.best_labels(coefficients)
paste("costs_cheapest", str(cheapest))
paste("costs_best_size", f"{best_size:.1f}")
paste("costs_chunk_labels", str(chunk_labels))
minilm = SHAPES["MiniLM-L6"]
minilm_powers, minilm_pair = full_coefficients(minilm, 64, 3)
minilm_best = round(costs.best_labels(minilm_powers))


def chunked_gain(number):
    """Speed-up of chunks of the best size, for MiniLM-L6, 64 text tokens and labels of three."""
    chunks = costs.chunked(lambda k: costs.single_pass(minilm, 64, 3, k), number, minilm_best)
    return number * minilm_pair / chunks


gains = {number: chunked_gain(number) for number in range(minilm_best, 20 * minilm_best)}
unlucky = min(gains, key=gains.get)
assert max(gains.values()) <= gains[minilm_best] * (1 + 1e-12)
assert costs.speed_up(minilm_powers, minilm_pair, unlucky) > gains[unlucky]
report.metric("chunked_speed_up/best", gains[minilm_best])
report.metric("chunked_speed_up/worst", gains[unlucky])
paste("costs_chunk_gain", f"{gains[minilm_best]:.2f}")
paste("costs_chunk_size", str(minilm_best))
paste("costs_chunk_unlucky", str(unlucky))
paste("costs_chunk_lost", f"{gains[unlucky]:.2f}")
chunks = pd.DataFrame({"multiply-adds, counted": {k: f"{v:,}" for k, v in by_chunk.items()}})
chunks.index.name = "labels per pass"
chunks.T

# %% [markdown]
# For {glue:text}`costs_chunk_labels:s` labels the cheapest of these chunks has {glue:text}`costs_cheapest:s`.
# The formula puts the best at {glue:text}`costs_best_size:s`, and the cost around it is flat.
#
# The last chunk matters.
# Take MiniLM-L6, 64 text tokens, labels of three tokens and chunks of {glue:text}`costs_chunk_size:s`, the best size.
# With as many labels the speed-up is {glue:text}`costs_chunk_gain:s`; with {glue:text}`costs_chunk_unlucky:s` labels it falls to {glue:text}`costs_chunk_lost:s`, and one pass is better.
# Chunks of nearly equal size avoid this.
#
# ## Four methods side by side

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Multiply-adds per text against the number of labels, for the shape of MiniLM-L6, a text of 64 tokens and labels of three tokens. The soft contextualised encoder has the same shape in both places.", "name": "fig-costs-methods"}, "image": {"alt": "Line plot on logarithmic axes. The cross-encoder rises in proportion to the labels, the single pass bends upwards, the same with chunks runs parallel to the cross-encoder, the bi-encoder with kept labels stays flat, and the soft contextualised encoder rises late and steeply."}}
text, label = 64, 3
reach = np.unique(np.geomspace(1, 4000, 120).round())
best_here = minilm_best
lines = {
    "cross-encoder": ("card", "-", costs.cross_encoder(minilm, text, label, reach)),
    "one pass": ("math", "-", costs.single_pass(minilm, text, label, reach)),
    f"chunks of at most {best_here}": (
        "math",
        ":",
        [
            costs.chunked(lambda k: costs.single_pass(minilm, text, label, k), int(x), best_here)
            for x in reach
        ],
    ),
    "bi-encoder, labels read": ("published", "-", costs.bi_encoder(minilm, text, label, reach)),
    "bi-encoder, labels kept": (
        "published",
        "--",
        costs.bi_encoder(minilm, text, label, reach, True),
    ),
    "SCE": ("accent", "-", costs.soft_encoder(minilm, minilm, text, reach)),
}
figure, axis = plt.subplots(figsize=(6.2, 4.2))
for name, (colour, style, cost) in lines.items():
    axis.plot(reach, cost, style, color=COLOURS[colour], label=name)
axis.set(xscale="log", yscale="log", xlabel="labels K", ylabel="multiply-adds per text")
axis.legend(fontsize=8)
show(figure)

# %% [markdown]
# ## Passes
#
# Math §11.2 counts passes: $K$ for a cross-encoder, two for a dual encoder (our bi-encoder), one for GliZNet.
# The first and the last are right.
# A dual encoder reads $K + 1$ sequences, of which $K$ can be kept from the text before; two is right for one label, or for two batches.
#
# One pass is not constant cost.
# The card's "O(1) inference complexity regardless of the number of labels" confuses the two.
# GLiClass's "sub-linear scaling" (in the summary of its paper) fails as well: the cost {eq}`eq-costs-quadratic` is convex, so each further label costs more than the one before.
# What is true: the first label pays for the text, so up to the crossing the cost stays below $K$ times that of one label.

# %% tags=["hide-input"]
seen_rows = []
handle = models["math"].backbone.register_forward_hook(
    lambda _m, _a, kwargs, result: seen_rows.append(result.last_hidden_state.shape[0]),
    with_kwargs=True,
)
fitting = [number for text, _, number in grid if text == text_tokens[0]]
with torch.no_grad():
    for number in fitting:
        models["math"](**inputs(text_tokens[0], label_tokens, number))
handle.remove()
checks.equal("costs-lengths", "exact", seen_rows, [1] * len(fitting), case="one sequence, any K")
of_first = points[points["n"] == text_tokens[0]].set_index("K")
growth = of_first["single"] / of_first.loc[1, "single"]
growth_at = int(of_first.index.max())
checks.rejects("costs-quadratic", "constant in K", 1.0, growth[growth_at], 1e-9)
steps = np.diff([one_pass(k) for k in range(1, 40)])
checks.at_least(
    "costs-quadratic", "search", np.diff(steps), 2 * bend, tolerance=1e-6 * bend, case="convex"
)
assert np.all(np.diff(np.diff([costs.single_pass(minilm, 64, 3, k) for k in range(1, 99)])) > 0)
last_over_first = (
    costs.single_pass(minilm, 64, 3, 128) - costs.single_pass(minilm, 64, 3, 127)
) / (costs.single_pass(minilm, 64, 3, 2) - costs.single_pass(minilm, 64, 3, 1))

# %% [markdown]
# ## Memory
#
# An encoder that stores its attention matrices holds, with $H$ heads,
#
# ```{math}
# :label: eq-costs-memory
# M(L) = N H L^2, \qquad
# \frac{K M(t + p) - M(t + K p)}{N H} = (K - 1) \bigl( t^2 - K p^2 \bigr)
# ```
#
# numbers for one sequence.
# The second equation compares $K$ pairs with one joint sequence.
#
# **Derivation.**
# Each head of each layer has one $L \times L$ matrix.
# The second equation is {eq}`eq-costs-crossover` with $\lambda = 0$, since there is no linear part.
#
# So in training the joint sequence holds more of these numbers than a batch of $K$ pairs as soon as $K > (t / p)^2$: far earlier than the crossing of the operations.
# A cross-encoder that scores its pairs one after the other holds $M(t + p)$ only.
# Fused attention stores none of these matrices.
# What remains is linear in $L$, and there the joint sequence always needs less than $K$ pairs.

# %% tags=["hide-input"]
heads = sympy.symbols("H", positive=True)
memory_gap = K * costs.attention_weights(N, heads, s_t + s_p) - costs.attention_weights(
    N, heads, s_t + K * s_p
)
checks.zero(
    "costs-memory",
    sympy.expand(memory_gap / (N * heads) - (K - 1) * (s_t**2 - K * s_p**2)),
)


def attention_size(case):
    """Numbers in the attention matrices that the package's backbone returns."""
    batch = inputs(*case)
    with torch.no_grad():
        found = models["math"].backbone(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            output_attentions=True,
        )
    return sum(x.numel() for x in found.attentions)


checks.equal(
    "costs-memory",
    "exact",
    [attention_size(case) for case in grid],
    [
        costs.attention_weights(
            encoder.layers, config.num_attention_heads, costs.joint_length(*case)
        )
        for case in grid
    ],
    case="matrices that the backbone returns",
)


def saved_numbers(length):
    """Numbers that a layer of the encoder keeps for its backward pass, each storage once."""
    kept = {}

    def pack(tensor):
        if tensor.is_floating_point():
            kept[tensor.untyped_storage().data_ptr()] = (
                tensor.untyped_storage().nbytes() // 4,
                tensor,
            )
        return tensor

    small = AutoModel.from_config(BertConfig(**SIZES), attn_implementation="eager").eval()
    owned = {x.untyped_storage().data_ptr() for x in small.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        small.encoder(torch.randn(1, length, 64, requires_grad=True))
    return sum(number for key, (number, _) in kept.items() if key not in owned)


four = [saved_numbers(x) for x in (16, 32, 48, 64)]
square_part = (four[2] - 2 * four[1] + four[0]) / (2 * 16**2)
checks.equal(
    "costs-memory",
    "library",
    square_part,
    costs.attention_weights(3, 4, 1),
    case="square part of what autograd keeps",
)
checks.equal(
    "costs-memory", "exact", four[3], 3 * four[2] - 3 * four[1] + four[0], case="no cubic part"
)


def loop_attention(tokens):
    """Attention weights of one head on plain lists: a row per token."""
    scores = [
        [math.exp(sum(x * y for x, y in zip(a, b, strict=True))) for b in tokens] for a in tokens
    ]
    return [[value / sum(row) for value in row] for row in scores]


drawn = random.normal(size=(3, 2, 9, 4)).tolist()  # layers, heads, tokens, width
stored = [loop_attention(tokens) for one in drawn for tokens in one]
checks.equal(
    "costs-memory",
    "naive",
    sum(len(row) for matrix in stored for row in matrix),
    costs.attention_weights(3, 2, 9),
)
lengths_ = torch.tensor([4.0, 9.0], dtype=torch.float64, requires_grad=True)
(by_autograd,) = torch.autograd.grad(
    (
        lengths_ * costs.attention_weights(3, 2, 7 + 4)
        - costs.attention_weights(3, 2, 7 + lengths_ * 4)
    ).sum(),
    lengths_,
)
checks.equal(
    "costs-memory",
    "autograd",
    by_autograd,
    3 * 2 * ((7**2 - lengths_ * 4**2) - (lengths_ - 1) * 4**2),
    tolerance=1e-9,
)

# %% [markdown]
# ## SCE: the model
#
# The next sections check the SCE paper, whose argument rests on counts of operations.
# SCE represents each label $k$ by one vector $h_k$, the average of its token embeddings in a frozen table (its Eq. 2).
# An affine map takes the vector of the text to the width of the encoder, $q'$.
# Text and labels then pass through an encoder $f$ without positions.
# The score of a label is an inner product, its probability a softmax (its Eq. 3), and the loss the cross-entropy with the target $y$ of the text:
#
# ```{math}
# :label: eq-costs-softset
# \begin{aligned}
# (e_0, e_1, \dots, e_K) &= f(q', h_1, \dots, h_K), & s_k &= e_0^\top e_k, \\
# \hat p_k &= \frac{e^{s_k}}{\sum_{j} e^{s_j}}, & \mathcal L &= -\sum_k y_k \log \hat p_k, \\
# s_k(h_{\pi(1)}, \dots, h_{\pi(K)}) &= s_{\pi(k)}(h_1, \dots, h_K) & &\text{for every permutation } \pi .
# \end{aligned}
# ```
#
# **Derivation.**
# Without positions a layer applies the same map to every token, and mixes tokens by a weighted sum over the set.
# A sum does not depend on the order.
# So permuting the inputs permutes the outputs, layer by layer, and $e_0$ stays.
# The encoder is *equivariant*; the paper calls it invariant, which only the loss and the set of scored labels are.
#
# A decoder that reads the labels in a prompt lacks this property: its prediction depends on their order.

# %% tags=["hide-input"]
x0, x1, x2, scale = sympy.symbols("x0 x1 x2 a", real=True)


def one_head(values):
    """Self-attention of width one with a residual connection; the score of every label."""
    mixed = [
        x
        + sum(sympy.exp(scale * x * y) * y for y in values)
        / sum(sympy.exp(scale * x * y) for y in values)
        for x in values
    ]
    return [mixed[0] * e for e in mixed[1:]]


plain_order, swapped = one_head([x0, x1, x2]), one_head([x0, x2, x1])
checks.zero("costs-softset", plain_order[0] - swapped[1])
torch.manual_seed(seed)
set_encoder = AutoModel.from_config(
    RobertaConfig(**SIZES, hidden_dropout_prob=0.0), attn_implementation="eager"
).eval()
set_encoder = set_encoder.double()
with torch.no_grad():
    for weight in set_encoder.parameters():
        if weight.dim() > 1:  # maps; the normalisations stay, so that the outputs differ
            weight.normal_(0, 0.15)
positions = set_encoder.embeddings.position_embeddings.weight.detach().clone()


def soft_scores(query, label_vectors, with_positions=False):
    with torch.no_grad():
        set_encoder.embeddings.position_embeddings.weight.copy_(positions * with_positions)
    joined = torch.cat([query[None], label_vectors])[None]
    e = set_encoder(inputs_embeds=joined).last_hidden_state[0]
    return e[1:] @ e[0]


query, label_vectors = torch.randn(64).double(), torch.randn(4, 64).double()
base = soft_scores(query, label_vectors).detach()
orders = [list(o) for o in itertools.permutations(range(4))]
permuted = torch.stack([soft_scores(query, label_vectors[o]).detach() for o in orders])
checks.equal(
    "costs-softset",
    "naive",
    permuted,
    torch.stack([base[o] for o in orders]),
    tolerance=1e-9,
    case="every order of four labels",
)
soft_p = [math.exp(x) / sum(math.exp(y) for y in base.tolist()) for x in base.tolist()]
goal = torch.eye(4).double()[2]
checks.equal("costs-softset", "naive", base.softmax(-1), soft_p, tolerance=1e-12, case="softmax")
checks.equal(
    "costs-softset",
    "naive",
    nn.functional.cross_entropy(permuted, torch.stack([goal[o] for o in orders]), reduction="none"),
    np.full(len(orders), -math.log(soft_p[2])),
    tolerance=1e-9,
    case="cross-entropy in every order",
)
free = base.clone().requires_grad_()
(slope_of_loss,) = torch.autograd.grad(nn.functional.cross_entropy(free, goal), free)
checks.equal(
    "costs-softset",
    "autograd",
    slope_of_loss,
    torch.tensor(soft_p, dtype=torch.float64) - goal,
    tolerance=1e-12,
    case="slope of the cross-entropy",
)
moved_by_order = float((permuted - base).abs().max())
checks.rejects("costs-softset", "an invariant encoder", permuted[-1], base, 1e-9)
jacobian = torch.autograd.functional.jacobian(lambda h: soft_scores(query, h), label_vectors)
turned = torch.autograd.functional.jacobian(
    lambda h: soft_scores(query, h), label_vectors[[2, 0, 3, 1]]
)
checks.equal(
    "costs-softset",
    "autograd",
    turned,
    jacobian[[2, 0, 3, 1]][:, [2, 0, 3, 1]],
    tolerance=1e-8,
    case="Jacobian",
)
placed = torch.stack(
    [soft_scores(query, label_vectors[o], True).detach() for o in (orders[0], orders[-1])]
)
checks.rejects("costs-softset", "with positions", placed[1], placed[0][orders[-1]], 1e-9)
for number in (1, 2, 9):
    assert soft_scores(query, torch.randn(number, 64).double()).shape == (number,)
torch.manual_seed(seed)
causal = LlamaModel(LlamaConfig(**SIZES)).double().eval()
prompt = torch.tensor([[5, 6, 7, 8, 9, 4], [5, 8, 7, 6, 9, 4]])
with torch.no_grad():
    ends = causal(input_ids=prompt).last_hidden_state[:, -1]
order_effect = float((ends[0] - ends[1]).abs().max())
checks.rejects("costs-softset", "a decoder and its prompt", ends[0], ends[1], 1e-9)

table = torch.randn(30, 5, dtype=torch.float64)
label_tokens_of = [[3, 4], [7], [1, 2, 9]]
flat = torch.tensor(list(itertools.chain(*label_tokens_of)))[None]
mask = torch.tensor([[j for j, ids in enumerate(label_tokens_of, 1) for _ in ids]])
pooled = layers.pool_labels(table[flat], layers.label_membership(mask, 3))[0]
by_loop = torch.zeros(3, 5, dtype=torch.float64)
for j, ids in enumerate(label_tokens_of):
    for token in ids:
        by_loop[j] += table[token] / len(ids)
checks.equal(
    "costs-softset", "naive", pooled, by_loop, tolerance=1e-12, case="mean of token embeddings"
)

# %% [markdown]
# ## SCE: the two baselines
#
# The prompted language model (its Eq. 4) takes the logits $z$ of the label tokens only and normalises them.
# For a set $T$ of label tokens in the vocabulary $V$,
#
# ```{math}
# :label: eq-costs-subset
# \hat p_k = \frac{e^{z_k}}{\sum_{j \in T} e^{z_j}} = P(k \mid T), \qquad P(v) = \frac{e^{z_v}}{\sum_{u \in V} e^{z_u}} .
# ```
#
# **Derivation.**
# $P(k \mid T) = P(k) / \sum_{j \in T} P(j)$, and the sum over the vocabulary cancels.
#
# The embedding baseline scores $s_k = z^\top l_k$ and is called cosine similarity.
# An inner product is a cosine only for unit vectors; in general the two pick different labels.

# %% tags=["hide-input"]
z = sympy.symbols("z0:5", real=True)
everything = sum(sympy.exp(x) for x in z)
subset = z[:3]
for k_ in range(3):
    conditional = (sympy.exp(z[k_]) / everything) / sum(sympy.exp(x) / everything for x in subset)
    checks.zero(
        "costs-subset",
        conditional - sympy.exp(z[k_]) / sum(sympy.exp(x) for x in subset),
        case=f"label {k_ + 1}",
    )
vocabulary = torch.randn(9, dtype=torch.float64, requires_grad=True)
chosen = [2, 5, 6]


def restricted(logits):
    return logits[chosen].softmax(-1)


def conditioned(logits):
    return logits.softmax(-1)[chosen] / logits.softmax(-1)[chosen].sum()


checks.equal(
    "costs-subset",
    "autograd",
    torch.autograd.functional.jacobian(restricted, vocabulary),
    torch.autograd.functional.jacobian(conditioned, vocabulary),
    tolerance=1e-12,
)
naive_p = [
    math.exp(vocabulary[k_].item()) / sum(math.exp(vocabulary[j].item()) for j in chosen)
    for k_ in chosen
]
checks.equal("costs-subset", "naive", restricted(vocabulary), naive_p, tolerance=1e-12)
checks.rejects("costs-subset", "whole vocabulary", vocabulary.softmax(-1)[chosen], naive_p, 1e-9)
raw = torch.randn(2000, 8, 16, generator=torch.Generator().manual_seed(seed)).double()
raw = raw * torch.rand(2000, 8, 1, generator=torch.Generator().manual_seed(seed)).double()
anchor = torch.randn(2000, 16, generator=torch.Generator().manual_seed(seed + 1)).double()
by_dot = (raw @ anchor[..., None])[..., 0].argmax(-1)
by_cosine = nn.functional.cosine_similarity(raw, anchor[:, None], dim=-1).argmax(-1)
unit = nn.functional.normalize(raw, dim=-1)
by_unit = (unit @ anchor[..., None])[..., 0].argmax(-1)
other_label = float((by_dot != by_cosine).double().mean())
checks.equal(
    "costs-subset", "exact", by_unit, by_cosine, case="unit vectors: product and cosine agree"
)
checks.equal(
    "costs-subset",
    "exact",
    raw.sum(-1).softmax(-1).argmax(-1),
    raw.sum(-1).argmax(-1),
    case="softmax keeps the largest",
)

# %% [markdown]
# ## SCE: backward passes
#
# The paper counts training, so it needs the products of the backward pass.
# For $Y = X W$ and for $S = Q K^\top$, $Y = A V$, with $\partial Y$ short for the gradient of the loss by $Y$,
#
# ```{math}
# :label: eq-costs-backward
# \begin{aligned}
# \partial W &= X^\top \partial Y, & \partial X &= \partial Y\, W^\top, \\
# \partial Q &= \partial S\, K, & \partial K &= \partial S^\top Q, \\
# \partial A &= \partial Y\, V^\top, & \partial V &= A^\top \partial Y .
# \end{aligned}
# ```
#
# Each is one product of the same size as the forward one.
# So a trained linear map costs $2 L a b$ backward, and attention $4 L^2 d_q$.
#
# LoRA freezes $W$ and trains $U$ and $V$ of rank $r$ beside it:
#
# ```{math}
# :label: eq-costs-lora
# \begin{aligned}
# Y &= X W + (X U) V, & Z &= X U, & \partial Z &= \partial Y\, V^\top, \\
# \partial U &= X^\top \partial Z, & \partial V &= Z^\top \partial Y, &
# \partial X &= \partial Y\, W^\top + \partial Z\, U^\top .
# \end{aligned}
# ```
#
# Forward that is $L (a b + r a + r b)$.
# Backward it is $L (a b + 2 r a + 2 r b)$: five products, of which the one with $W$ is the only large one.
#
# **Derivation.**
# Write the loss as a function of the entries and apply the chain rule: $\partial X_{ij} = \sum_k \partial Y_{ik}\, \partial Y_{ik} / \partial X_{ij} = \sum_k \partial Y_{ik} W_{jk}$, and likewise for the others.


# %% tags=["hide-input"]
def gradients_agree(equation, case, output, formulas, shapes):
    """Three checks of hand-written gradients of sum(G * output) at random matrices.

    `output` and each formula take the matrices by name and work on sympy and on torch alike; a
    formula also takes G, the gradient by the output.
    """
    symbols = {
        name: sympy.Matrix(*shape, lambda i, j, name=name: sympy.Symbol(f"{name}{i}{j}"))
        for name, shape in shapes.items()
    }
    result = output(**symbols)
    weight = sympy.Matrix(*result.shape, lambda i, j: sympy.Symbol(f"G{i}{j}"))
    loss = sum(weight.multiply_elementwise(result))
    left = 0
    for name, formula in formulas.items():
        difference = formula(weight, **symbols) - symbols[name].applyfunc(
            lambda entry: sympy.diff(loss, entry)
        )
        left += sum(x**2 for x in difference.applyfunc(sympy.expand))
    checks.zero(equation, left, case=case)
    numbers = {
        name: torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for name, shape in shapes.items()
    }
    result = output(**numbers)
    weight = torch.randn_like(result)
    found = torch.autograd.grad((weight * result).sum(), [numbers[name] for name in formulas])
    by_formula = [formula(weight, **numbers) for formula in formulas.values()]
    worst = max((a - b).abs().max().item() for a, b in zip(found, by_formula, strict=True))
    checks.equal(equation, "autograd", worst, 0.0, tolerance=1e-12, case=case)
    worst = 0.0
    with torch.no_grad():
        for name, expected in zip(formulas, by_formula, strict=True):
            for i, j in itertools.product(*map(range, shapes[name])):
                sides = []
                for step in (1e-5, -1e-5):
                    moved = numbers | {name: numbers[name].clone()}
                    moved[name][i, j] += step
                    sides.append((weight * output(**moved)).sum())
                worst = max(worst, abs((sides[0] - sides[1]) / 2e-5 - expected[i, j]).item())
    # Central differences of step 1e-5: truncation 1e-10, round-off 1e-16 / 1e-5.
    checks.equal(equation, "naive", worst, 0.0, tolerance=1e-8, case=case)


gradients_agree(
    "costs-backward",
    "linear map",
    lambda X, W: X * W if isinstance(X, sympy.Matrix) else X @ W,
    {"W": lambda G, X, W: X.T @ G, "X": lambda G, X, W: G @ W.T},
    {"X": (2, 3), "W": (3, 2)},
)
gradients_agree(
    "costs-backward",
    "scores",
    lambda Q, P: Q @ P.T,
    {"Q": lambda G, Q, P: G @ P, "P": lambda G, Q, P: G.T @ Q},
    {"Q": (2, 3), "P": (2, 3)},
)
gradients_agree(
    "costs-backward",
    "weighted sum",
    lambda A, V: A @ V,
    {"A": lambda G, A, V: G @ V.T, "V": lambda G, A, V: A.T @ G},
    {"A": (2, 2), "V": (2, 3)},
)
gradients_agree(
    "costs-lora",
    "LoRA",
    lambda X, W, U, V: X @ W + (X @ U) @ V,
    {
        "U": lambda G, X, W, U, V: X.T @ (G @ V.T),
        "V": lambda G, X, W, U, V: (X @ U).T @ G,
        "X": lambda G, X, W, U, V: G @ W.T + (G @ V.T) @ U.T,
    },
    {"X": (2, 2), "W": (2, 3), "U": (2, 1), "V": (1, 3)},
)


class WithLora(nn.Module):
    """A frozen linear map with a trained pair of matrices beside it."""

    def __init__(self, frozen, rank):
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.u = nn.Parameter(torch.randn(frozen.in_features, rank))
        self.v = nn.Parameter(torch.randn(rank, frozen.out_features))

    def forward(self, x):
        return self.frozen(x) + (x @ self.u) @ self.v


for name, module, forward_cost, backward_cost in (
    ("costs-backward", nn.Linear(6, 5), costs.linear(7, 6, 5), costs.linear_backward(7, 6, 5)),
    (
        "costs-lora",
        WithLora(nn.Linear(6, 5), 2),
        costs.linear(7, 6, 5, 2),
        costs.linear_backward(7, 6, 5, 2),
    ),
):
    x = torch.randn(7, 6, requires_grad=True)
    checks.equal(
        name,
        "library",
        [count(module, x), count(module, x, backward=True)],
        [forward_cost, backward_cost],
        case="one map, forward and backward",
    )
x = torch.randn(1, 9, requires_grad=False)
adapter_backward = count(nn.Linear(9, 4), x, backward=True)
checks.rejects(
    "costs-backward", "a frozen input with a gradient", 2 * 9 * 4, adapter_backward, 1e-9
)

# %% [markdown]
# The paper charges too much for the adapter of SCE.
# The adapter takes the vector of a *frozen* text encoder, so the gradient by its input is not needed: one product forward and one backward.
# The paper counts three.
# For the same reason the first layer of a model needs no gradient by inputs that are frozen.
#
# ## SCE: Tables 4 to 7
#
# These tables give one block forward and backward, trained in full (Tables 4 and 6) and with LoRA of rank $r$ on every matrix (Tables 5 and 7).
# From here on we use the paper's letters: $m$ is the length of the sequence, $d = H d_h$ the width of all $H$ heads together, $d_{\text{ff}}$ the width of the feed-forward block, and $n_{f1}$, $n_{f2}$ its numbers of expansions and contractions.
#
# ```{math}
# :label: eq-costs-block
# \begin{aligned}
# \text{forward} &= 4 m d^2 + 2 m^2 d + m d d_{\text{ff}} (n_{f1} + n_{f2}), \\
# \text{backward} &= 2 \times \text{forward} .
# \end{aligned}
# ```
#
# ```{math}
# :label: eq-costs-lora-block
# \begin{aligned}
# \text{forward} &= 4 m (d^2 + 2 d r) + 2 m^2 d + m (d d_{\text{ff}} + d r + d_{\text{ff}} r) (n_{f1} + n_{f2}), \\
# \text{backward} &= 4 m (d^2 + 4 d r) + 4 m^2 d + m (d d_{\text{ff}} + 2 d r + 2 d_{\text{ff}} r) (n_{f1} + n_{f2}) .
# \end{aligned}
# ```
#
# **Derivation.**
# Sum {eq}`eq-costs-backward` and {eq}`eq-costs-lora` over the matrices of a layer.
#
# Every printed cell is regenerated from the functions of this package, and the totals are counted on a real layer.

# %% tags=["hide-input"]
letters = {
    name: sympy.Symbol(name, positive=True)
    for name in ["m", "d", "d_h", "d_ff", "r", "H", "n_f1", "n_f2", "d_ext", "d_in", "d_out"]
}
printed = published("sce_flops").set_index(["place", "part", "quantity"])["value"]


def cell(*key):
    return sympy.sympify(printed[key], locals=letters)


def as_number(*key):
    return float(printed[key])


sm, sd, sh, sf, sr, sH, s1, s2 = (
    letters[x] for x in ["m", "d", "d_h", "d_ff", "r", "H", "n_f1", "n_f2"]
)
sce = Encoder(1, sd, sf, expansions=s1, contractions=s2)
compared = 0
for table_name, function, rank, step in (
    ("Table 4", costs.linear, 0, 1),
    ("Table 5", costs.linear, sr, 1),
    ("Table 6", costs.linear_backward, None, 2),
    ("Table 7", costs.linear_backward, sr, 2),
):
    projection, expansion = function(sm, sd, sd, rank), function(sm, sd, sf, rank)
    contraction = function(sm, sf, sd, rank)
    block = sce.block(sm, rank) if step == 1 else sce.block_backward(sm, rank)
    regenerated = {
        **{("linear projections", f"{x}_proj"): projection for x in "qkvo"},
        ("linear projections", "total"): 4 * projection,
        ("attention", "Q K^T, one head"): step * sm**2 * sh,
        ("attention", "A V, one head"): step * sm**2 * sh,
        ("attention", "sum over heads"): 2 * step * sm**2 * sd,
        ("attention", "sum over heads, in head widths"): 2 * step * sm**2 * sH * sh,
        ("feed-forward", "expansion"): s1 * expansion,
        ("feed-forward", "contraction"): s2 * contraction,
        ("feed-forward", "total"): s1 * expansion + s2 * contraction,
        ("block", "total"): block,
    }
    assert set(regenerated) == set(printed[table_name].index)
    difference = sum(
        sympy.expand(cell(table_name, *key) - value) ** 2 for key, value in regenerated.items()
    )
    compared += len(regenerated)
    slug = "costs-block" if table_name in ("Table 4", "Table 6") else "costs-lora-block"
    checks.zero(slug, difference, case=f"{table_name}, every cell")
    heads_sum = cell(table_name, "attention", "Q K^T, one head") + cell(
        table_name, "attention", "A V, one head"
    )
    assert (
        sympy.expand(
            sH * heads_sum - cell(table_name, "attention", "sum over heads, in head widths")
        )
        == 0
    )
report.metric("sce_cells_regenerated", compared, n=compared)
LORA_RANK = 5


def lora_layer(groups):
    """A random Llama layer with LoRA on every matrix, and the call that runs it."""
    config, layer, call = decoder_layer("Llama", 4, groups, 16)
    layer.requires_grad_(False)
    for part, maps in (
        (layer.self_attn, ("q_proj", "k_proj", "v_proj", "o_proj")),
        (layer.mlp, ("gate_proj", "up_proj", "down_proj")),
    ):
        for name in maps:
            setattr(part, name, WithLora(getattr(part, name), LORA_RANK))
    return Encoder.from_config(config, expansions=2), call


states_in = torch.randn(1, 11, 64, requires_grad=True)
ungrouped, call = lora_layer(4)
counted_lora = [count(call, states_in), count(call, states_in, backward=True)]
in_numbers = {sm: 11, sd: 64, sf: 96, sr: LORA_RANK, s1: 2, s2: 1}
checks.equal(
    "costs-lora-block",
    "library",
    counted_lora,
    [int(cell(x, "block", "total").subs(in_numbers)) for x in ("Table 5", "Table 7")],
    case="Llama layer, ungrouped, forward and backward",
)
spared = 3 * 64 * 64 + 3 * LORA_RANK * 64
checks.equal(
    "costs-lora-block",
    "library",
    count(call, states_in.detach(), backward=True),
    counted_lora[1] - 11 * spared,
    case="first layer, no gradient by its input",
)
_, _, full_call = decoder_layer("Llama", 4, 4, 16)
checks.equal(
    "costs-block",
    "library",
    [count(full_call, states_in), count(full_call, states_in, backward=True)],
    [int(cell(x, "block", "total").subs(in_numbers)) for x in ("Table 4", "Table 6")],
    case="Llama layer, ungrouped, forward and backward",
)
checks.equal(
    "costs-block",
    "naive",
    loop_layer(5, 6, 3, 2, 2, 7, 2),
    int(cell("Table 4", "block", "total").subs({sm: 5, sd: 6, sf: 7, s1: 2, s2: 1})),
)
checks.equal(
    "costs-lora-block",
    "naive",
    loop_layer(5, 6, 3, 2, 2, 7, 2)
    + sum(
        1
        for a, b in [*[(6, 6)] * 4, *[(6, 7)] * 3]
        for _ in itertools.product(range(5), range(2), range(a + b))
    ),
    int(cell("Table 5", "block", "total").subs({sm: 5, sd: 6, sf: 7, sr: 2, s1: 2, s2: 1})),
)

# %% [markdown]
# ## SCE: the printed totals
#
# Here the paper's own inputs go into its polynomials.

# %% tags=["hide-input"]
LLAMA = {
    name: int(as_number("Appendix L", "llama", name))
    for name in ("L", "d", "d_ff", "H", "n_f1", "n_f2")
}
LLAMA["r"] = int(as_number("Appendix M", "llama", "r"))
ROBERTA = {
    name: int(as_number("Appendix I", "roberta", name))
    for name in ("L", "d", "d_ff", "H", "n_f1", "n_f2")
}
JINA = {
    name: int(as_number("Appendix J", "jina", name))
    for name in ("L", "d", "d_ff", "H", "n_f1", "n_f2")
}


def plugged(expression, sizes):
    return sympy.expand(expression.subs({letters[k]: v for k, v in sizes.items() if k in letters}))


llama_printed_shape = Encoder(LLAMA["L"], LLAMA["d"], LLAMA["d_ff"], expansions=2)
roberta = Encoder(ROBERTA["L"], ROBERTA["d"], ROBERTA["d_ff"])
jina = Encoder(JINA["L"], JINA["d"], JINA["d_ff"])


def lora_step(e, length):
    """Forward and backward pass of all layers with LoRA."""
    return sympy.expand(
        e.layers * (e.block(length, LLAMA["r"]) + e.block_backward(length, LLAMA["r"]))
    )


def full_step(e, length):
    return sympy.expand(e.layers * (e.block(length) + e.block_backward(length)))


P, Q = "Appendix P", "Appendix Q"
both = cell(P, "llama", "block, forward") + cell(P, "llama", "block, backward")
checks.zero(
    "costs-lora-block", sympy.expand(cell(P, "llama", "block") - both), case="sum of both passes"
)
checks.zero(
    "costs-lora-block",
    plugged(cell(P, "llama", "block"), LLAMA) - cell(P, "llama", "block, numbers"),
    case="block, numbers",
)
checks.zero(
    "costs-lora-block",
    lora_step(llama_printed_shape, sm) - cell(P, "llama", "model, numbers"),
    case="model, numbers",
)
both = cell(Q, "roberta", "block, forward") + cell(Q, "roberta", "block, backward")
checks.zero(
    "costs-block",
    sympy.expand(cell(Q, "roberta", "block") - both),
    case="RoBERTa, sum of both passes",
)
adapter_printed = cell(Q, "roberta", "adapter").subs(
    {letters["d"]: ROBERTA["d"], letters["d_ext"]: JINA["d"]}
)
checks.zero(
    "costs-block",
    full_step(roberta, sm) + adapter_printed - cell(Q, "roberta", "model, numbers"),
    case="RoBERTa, numbers",
)
checks.zero(
    "costs-block",
    sympy.expand(jina.forward(sm)) - cell(Q, "jina", "model, numbers"),
    case="jina, numbers",
)
checks.zero(
    "costs-block",
    sympy.expand(cell(Q, "jina", "block, forward") - sce.block(sm)),
    case="jina, block",
)
ADAPTER_RANK = 4  # of jina's adapters, in the four maps of its attention (Appendix J)
jina_lora = ADAPTER_RANK * 8 * JINA["L"] * JINA["d"] * sm
checks.zero(
    "costs-lora-block",
    4 * JINA["L"] * (costs.linear(sm, JINA["d"], JINA["d"], ADAPTER_RANK) - sm * JINA["d"] ** 2)
    - jina_lora,
    case="jina's adapters, not merged",
)


def epoch(polynomial, length):
    return as_number("Appendix S", "all", "training texts") * float(polynomial.subs(sm, length))


S = "Appendix S"
prompt_parts = [
    as_number(S, "llama", x)
    for x in ("prompt template, tokens", "text, tokens", "candidates, tokens")
]
prompt_length = as_number(S, "llama", "formatted prompt, tokens")
set_length = as_number(S, "roberta", "labels") + 1
epochs = {
    "Llama with LoRA, an epoch": (
        "llama",
        "multiply-adds of an epoch",
        epoch(cell(P, "llama", "model, numbers"), prompt_length),
    ),
    "RoBERTa, an epoch": (
        "roberta",
        "multiply-adds of an epoch",
        epoch(cell(Q, "roberta", "model, numbers"), set_length),
    ),
    "jina, once": (
        "jina",
        "multiply-adds, once",
        epoch(cell(Q, "jina", "model, numbers"), as_number(S, "jina", "text, tokens")),
    ),
}


def digits(text):
    """Significant digits of a printed number."""
    return len(text.split("e")[0].replace(".", "").lstrip("0"))


rounded = {}
for name, (part, quantity, value) in epochs.items():
    text_printed = printed[(S, part, quantity)]
    rounded[name] = float(f"{value:.{digits(text_printed) - 1}e}")
    checks.equal(
        "costs-block", "exact", rounded[name] / float(text_printed), 1.0, tolerance=1e-12, case=name
    )
checks.equal("costs-block", "exact", sum(prompt_parts), prompt_length, case="parts of the prompt")
llama_epoch, roberta_epoch, jina_epoch = (v for _, _, v in epochs.values())
jina_unmerged = epoch(
    cell(Q, "jina", "model, numbers") + jina_lora, as_number(S, "jina", "text, tokens")
)
share_of_llama = roberta_epoch / llama_epoch
share_with_reading = (roberta_epoch + jina_epoch) / llama_epoch
checks.equal(
    "costs-block",
    "exact",
    round(share_of_llama, 3),
    as_number("section 3.3", "all", "epoch multiply-adds, share of Llama's"),
    case="share of Llama's epoch",
)
pd.DataFrame(
    {
        name: {"printed": printed[(S, part, quantity)], "regenerated": f"{value:.4e}"}
        for name, (part, quantity, value) in epochs.items()
    }
).T

# %% [markdown]
# All of them follow from the printed polynomials, so the arithmetic of the paper is sound.
# Some of its inputs are not.
#
# ## SCE: grouped queries
#
# The Llama of the paper shares its key and value heads among the query heads.
# The paper says so (its Appendix M), and yet counts keys and values as $d \times d$.
#
# **Proposition.**
# For a layer of Llama with $n_{f1} + n_{f2} = 3$ and key width $d_k < d$, the printed cost of one training step is too large by
#
# ```{math}
# :label: eq-costs-grouped
# 2 m\, (d - d_k)\,(2 d + 3 r)
# ```
#
# per layer.
#
# **Derivation.**
# A frozen map from $a$ to $b$ with LoRA costs $m (2 a b + 3 r (a + b))$ forward and backward.
# For keys and values $a = d$, and $b$ is $d_k$ in place of $d$.
# The difference of one map is $m (d - d_k)(2 d + 3 r)$, and there are two.
#
# The width $d_k$ need not be looked up.
# The paper prints the number of LoRA parameters, and that number has exactly one solution:
#
# $$L r \bigl( 2 \cdot 2 d + 2 (d + d_k) + 3 (d + d_{\text{ff}}) \bigr) = \text{number of LoRA parameters}.$$

# %% tags=["hide-input"]
key_width = sympy.Symbol("d_k", positive=True)
lora_parameters = (
    LLAMA["L"]
    * LLAMA["r"]
    * (4 * LLAMA["d"] + 2 * (LLAMA["d"] + key_width) + 3 * (LLAMA["d"] + LLAMA["d_ff"]))
)
(solved,) = sympy.solve(
    lora_parameters - int(printed[("Appendix M", "llama", "LoRA parameters")]), key_width
)
checks.equal("costs-grouped", "exact", int(solved), 512, case="key width from the printed count")
assert solved.is_integer and LLAMA["d"] % int(solved) == 0
layer_parameters = (
    2 * LLAMA["d"] ** 2
    + 2 * LLAMA["d"] * int(solved)
    + 3 * LLAMA["d"] * LLAMA["d_ff"]
    + 2 * LLAMA["d"]
)
base_parameters = int(printed[("Appendix M", "llama", "all parameters")]) - int(
    printed[("Appendix M", "llama", "LoRA parameters")]
)
vocabulary_size = (base_parameters - LLAMA["L"] * layer_parameters - LLAMA["d"]) / LLAMA["d"]
assert vocabulary_size.is_integer()
r_, k_ = letters["r"], key_width
grouped = Encoder(1, sd, sf, keys=k_, expansions=2)
square = Encoder(1, sd, sf, expansions=2)


def both_passes(e, length, rank):
    return e.block(length, rank) + e.block_backward(length, rank)


overcount = 2 * sm * (sd - k_) * (2 * sd + 3 * sr)
checks.zero(
    "costs-grouped",
    sympy.expand(both_passes(square, sm, sr) - both_passes(grouped, sm, sr) - overcount),
)
sizes, call = lora_layer(2)
counted_grouped = [count(call, states_in), count(call, states_in, backward=True)]
checks.equal(
    "costs-grouped",
    "library",
    sum(counted_lora) - sum(counted_grouped),
    int(overcount.subs({sm: 11, sd: 64, k_: 32, sr: LORA_RANK})),
    case="Llama layer, four and two key heads",
)
checks.equal(
    "costs-grouped",
    "naive",
    sum(
        1
        for _map in range(2)
        for b in range(32, 64)
        for _ in itertools.chain(range(2 * 64), range(3 * LORA_RANK))
    )
    * 11,
    int(overcount.subs({sm: 11, sd: 64, k_: 32, sr: LORA_RANK})),
)
checks.rejects(
    "costs-grouped", "keys and values d x d", sum(counted_lora), sum(counted_grouped), 1e-9
)
llama = Encoder(LLAMA["L"], LLAMA["d"], LLAMA["d_ff"], keys=int(solved), expansions=2)
corrected_block = sympy.expand(both_passes(llama, sm, LLAMA["r"]))
corrected_model = lora_step(llama, sm)
corrected_epoch = epoch(corrected_model, prompt_length)
linear_printed = cell(P, "llama", "model, numbers").coeff(sm, 1)
linear_right = corrected_model.coeff(sm, 1)
grouped_excess = float(linear_printed / linear_right - 1)
epoch_excess = llama_epoch / corrected_epoch - 1
output_layer = 2 * vocabulary_size * LLAMA["d"]
output_share = output_layer / float(linear_right)
paste("costs_grouped_excess", f"{grouped_excess:.1%}")
paste("costs_output_share", f"{output_share:.1%}")
paste("costs_share_right", f"{roberta_epoch / corrected_epoch:.4f}")
with_output = corrected_epoch + as_number(S, "all", "training texts") * prompt_length * output_layer
pd.DataFrame(
    {
        "a layer, per step": {
            "printed": str(cell(P, "llama", "block, numbers")),
            "right": str(corrected_block),
        },
        "the model, per step": {
            "printed": str(cell(P, "llama", "model, numbers")),
            "right": str(corrected_model),
        },
        "an epoch": {"printed": f"{llama_epoch:.4g}", "right": f"{corrected_epoch:.4g}"},
        "RoBERTa's share of it": {
            "printed": f"{share_of_llama:.5f}",
            "right": f"{roberta_epoch / corrected_epoch:.5f}",
        },
        "with the output layer on every token": {
            "printed": "left out",
            "right": f"{roberta_epoch / with_output:.5f}",
        },
    }
).T

# %% [markdown]
# The polynomial is {glue:text}`costs_grouped_excess:s` too large per token.
# A second error pulls the other way: the output layer over the vocabulary is left out.
# Computed on every token, forward and by its input, it would add {glue:text}`costs_output_share:s`.
# The conclusion of the paper stands either way: as a share of an epoch of Llama, training its encoder costs {glue:text}`costs_share_right:s`.
#
# The paper also assumes that models of similar size have similar latency.
# But parameters are not operations: a table of embeddings is looked up, and a prompt is much longer than a text.

# %% tags=["hide-input"]
text_length = as_number(S, "jina", "text, tokens")
per_text = {
    "SCE": jina.forward(text_length) + JINA["d"] * ROBERTA["d"] + roberta.forward(set_length),
    "prompted Llama": llama.forward(prompt_length),
    "F2LLM, labels kept": Encoder(28, 2048, 6144, expansions=2).forward(text_length),
}
F2 = {name: int(as_number("Appendix K", "f2llm", name)) for name in ("L", "d", "d_ff", "n_f1")}
assert (F2["L"], F2["d"], F2["d_ff"], F2["n_f1"]) == (28, 2048, 6144, 2)
latency_ratio = per_text["prompted Llama"] / per_text["SCE"]
with torch.device("meta"):
    whole = AutoModel.from_config(RobertaConfig())
roberta_parameters = sum(x.numel() for x in whole.parameters())
roberta_layers = sum(x.numel() for x in whole.encoder.parameters())
adapter_parameters = JINA["d"] * ROBERTA["d"] + ROBERTA["d"]
trained_parameters = roberta_layers + adapter_parameters
lora_number = int(printed[("Appendix M", "llama", "LoRA parameters")])
reading_epochs = jina_epoch / roberta_epoch
total_sce = as_number("section 3.1", "all", "total size of SCE, parameters")
per_parameter = latency_ratio * total_sce / base_parameters
pd.DataFrame(
    {
        name: {
            "multiply-adds per text": f"{value:.3g}",
            "times SCE": f"{value / per_text['SCE']:.1f}",
        }
        for name, value in per_text.items()
    }
).T

# %% [markdown]
# ## What it means in practice
#
# - For labels of a word or two, put all labels that fit into one pass. Short texts gain little: most of the joint sequence is then labels.
# - Beyond $\sqrt 2\, K_\circ$ labels, use `max_labels_per_pass`, with chunks of nearly equal size. It restores linear cost and also bounds the memory.
# - Keep descriptions of labels short, or score them in chunks.
# - For a fixed and large label set a bi-encoder with kept label vectors is cheaper than any joint reading, but no label sees the text or another label.
#
# A count is not a time.
# Batches, memory traffic and idle hardware decide how many multiply-adds fit into a second; where this book states times, it measures them.
#
# ## Edge cases
#
# - $K = 1$: both sequences have the same length, and the ratio differs from one only by the parts of {eq}`eq-costs-own` and the classifier.
# - The empty text, $t = 2$: the bound is $1 + 2 / p$. With labels of three tokens MiniLM-L6 crosses at {glue:text}`costs_empty_even:s` labels, and {glue:text}`costs_empty_fit:s` fit.
# - A text that is cut: $L$ stays at the window, so the cost stops growing.
# - Padding: a layer costs a batch $B\, c(L)$ with the longest $L$ in it. The pipeline sorts texts by length for this reason.

# %% tags=["hide-input"]
checks.equal(
    "costs-lengths",
    "exact",
    inputs(0, label_tokens, 2)["input_ids"].shape[1],
    costs.joint_length(0, label_tokens, 2),
    case="empty text",
)
padded = tokenizer([words_of(0, 3), words_of(0, 20)], [names(2, 2), names(1, 1)])
padded.pop("truncated_tokens")
longest = padded["input_ids"].shape[1]
checks.equal(
    "costs-layer",
    "library",
    count(bare, **states(2, longest, d)),
    2 * encoder.forward(longest),
    case="a padded batch",
)
empty_even = costs.break_even(*full_coefficients(minilm, 0, 3))
paste("costs_empty_even", f"{math.ceil(empty_even)}")
paste("costs_empty_fit", str(costs.labels_that_fit(WINDOW, 0, 3)))
long_text = words_of(0, 6 * window)
cut = tokenizer(long_text, names(2, label_tokens))
read_over_kept = tokenizer.count_tokens([long_text])[0] / cut["input_ids"].shape[1]
report.metric("tokens_read_over_window", read_over_kept)

# %% [markdown]
# ## What became of the statements
#
# ```{glue:md} costs-outcomes
# :format: myst
# ```
#
# ## All checks

# %% tags=["hide-input"]
base = SHAPES["BERT-base"]
joint, alone_pair = costs.joint_length(*example), costs.pair_length(*example[:2])
kept = base.layers * 2 * joint**2 * base.hidden + 2 * example[2] * joint * base.hidden
missing = 1 - kept / costs.single_pass(base, *example)
too_long = base.forward(joint) / base.forward(alone_pair)
fit = costs.labels_that_fit(WINDOW, 64, 3)
at_fit = costs.speed_up(*full_coefficients(minilm, 64, 3), fit)
crossing_case = costs.speed_up(*full_coefficients(minilm, 4, 30), 16)
minilm_growth = costs.single_pass(minilm, 64, 3, 100) / costs.single_pass(minilm, 64, 3, 1)
sizes_sum = sum(
    as_number("Appendix " + x, y, "parameters") for x, y in (("I", "roberta"), ("J", "jina"))
)
jina_number = as_number("Appendix J", "jina", "parameters")
size_of_f2 = total_sce / as_number("Appendix K", "f2llm", "parameters")
size_of_llama = total_sce / base_parameters
NEWS = ("Huffpost", "BBC News", "MIND", "NYTimes")
training = {x: as_number("Table 3", x, "training texts") for x in NEWS}
validation = {x: as_number("Table 3", x, "validation texts") for x in NEWS}
categories = {x: as_number("Appendix F.1", x, "categories") for x in NEWS}
mean_labels = sum(training[x] * categories[x] for x in NEWS) / sum(training.values())
without_world = mean_labels - training["Huffpost"] / sum(training.values())
assert sum(training.values()) == as_number("Table 3", "all", "training texts")
assert sum(validation.values()) == as_number("Table 3", "all", "validation texts")
bbc_gap = validation["BBC News"] - as_number("Appendix F.1", "BBC News", "validation texts")
mnds = [
    as_number("Appendix F.2", "MNDS", x)
    for x in ("first-level categories", "dropped categories", "categories")
]
R_ = "Appendix R"
assert as_number(R_, "llama", "epoch, seconds") == 60 * as_number(R_, "llama", "epoch, minutes")
texts = as_number(S, "all", "training texts")
assert texts / as_number(R_, "llama", "texts of a micro batch") == as_number(
    R_, "llama", "micro batches of an epoch"
)
assert math.ceil(texts / as_number(R_, "roberta", "texts of a batch")) == as_number(
    R_, "roberta", "batches of an epoch"
)
time_share = as_number(R_, "roberta", "epoch, seconds") / as_number(R_, "llama", "epoch, seconds")
assert round(time_share, 3) == as_number("section 3.3", "all", "epoch time, share of Llama's")
assert round(without_world) == as_number(S, "roberta", "labels")
two_more = epoch(corrected_model, prompt_length + 2) / corrected_epoch - 1
lora_forward = [cell(P, "llama", "block, forward"), grouped.block(sm, sr)]
lora_backward = [cell(P, "llama", "block, backward"), grouped.block_backward(sm, sr)]
excess = []
for printed_pass, right_pass in (lora_forward, lora_backward):
    pair_of = [
        float(
            x.subs({key_width: int(solved)})
            .subs({letters[k]: v for k, v in LLAMA.items() if k in letters})
            .expand()
            .coeff(sm, 1)
        )
        for x in (printed_pass.expand(), sympy.expand(right_pass))
    ]
    excess.append(pair_of[0] / pair_of[1] - 1)
adapter_share = float(adapter_printed / 3) / float(roberta_epoch / texts)
first_layer = LLAMA["d"] ** 2 + 2 * LLAMA["d"] * int(solved) + 3 * LLAMA["r"] * LLAMA["d"]
spared_share = first_layer / float(linear_right)
label_count = as_number(S, "roberta", "labels")
spared_labels = label_count * 3 * ROBERTA["d"] ** 2 / (roberta_epoch / texts)
ten_tokens = epoch(cell(Q, "roberta", "model, numbers"), label_count)
table_7 = {
    part: float(
        cell("Table 7", part, "total")
        .subs({letters[k]: v for k, v in LLAMA.items() if k in letters})
        .subs(sm, prompt_length)
    )
    for part in ("block", "feed-forward")
}
half_width = {
    "identity": dearer_than_identity(minilm, *example, 192),
    "linear": costs.single_pass(minilm, *example, dim=192) / costs.single_pass(minilm, *example)
    - 1,
}
head_share = costs.own_parts(joint, example[2], minilm.hidden)["head"] / costs.single_pass(
    minilm, *example
)

OK, NOT, OPEN = "verified", "corrected", "not testable here"
OUTCOMES = {
    "math-2.1-complexity": (
        NOT,
        f"Doubling K multiplies the cross-encoder's cost by {doubling:.2f}, so it is linear; the single pass is the quadratic one (costs-cross, costs-quadratic: symbolic, library).",
        doubling,
        "cost of the cross-encoder at 2 K over that at K; printed 4",
    ),
    "math-10.3-tokenization": (
        NOT,
        f"Without a cut the tokens read are L less the control tokens; a text {read_over_kept:.1f} times the window is read whole before it is cut (costs-lengths: exact).",
        read_over_kept,
        "tokens read over L",
    ),
    "math-10.3-backbone": (
        NOT,
        f"At {WINDOW} tokens {forgotten:.0%} of BERT-base is in the linear maps that the order leaves out (costs-layer, costs-share: symbolic, library, naive).",
        forgotten,
        "share of the cost",
    ),
    "math-10.3-projection": (
        OK,
        "Two maps on every position cost 2 L d_h d_p, and nothing for the identity (costs-own: symbolic, naive, library).",
    ),
    "math-10.3-aggregation": (
        NOT,
        f"The package's product costs K L d_p, {aggregation_factor:.0f} times the order on the example; a sparse mean reads every token of the labels, which keeps the order if labels are short (costs-own: library, naive).",
        aggregation_factor,
        "cost over the printed order",
    ),
    "math-10.3-attention": (
        OK,
        "Scores and weighted sum cost 2 K L d_p (costs-own: symbolic, naive, library).",
    ),
    "math-10.3-similarity": (
        NOT,
        f"Cosine and dot keep the order; the bilinear head costs {bilinear_factor:.0f} times as much at width {d} (costs-own: library).",
        bilinear_factor,
        "cost over the printed order",
    ),
    "math-10.3-total": (
        NOT,
        f"For BERT-base, 64 text tokens and 16 labels, {missing:.0%} of the cost is in terms that the total leaves out (costs-quadratic: symbolic, library).",
        missing,
        "share of the cost",
    ),
    "math-10.3-cross-encoder": (
        NOT,
        f"K passes are right, their length is n + m + 3 with the closing [SEP]; with the joint L the cost of 16 labels is {too_long:.2f} times too large, and the linear maps are missing as above (costs-cross: symbolic, library).",
        too_long,
        "cost with the printed length over the right one",
    ),
    "math-10.3-speedup": (
        NOT,
        f"With the {fit} labels that fit beside 64 text tokens, MiniLM-L6 gains a factor of {at_fit:.2f}, which is {at_fit / fit:.2f} of K; the bound is {1 + 66 / 4:.1f} (costs-ratio, costs-maximum, costs-bound: symbolic, autograd, naive, search, hypothesis, library).",
        at_fit / fit,
        "speed-up over K",
    ),
    "math-11.2-passes-cross": (
        OK,
        "A cross-encoder reads K sequences; the counter finds K times the cost of one (costs-cross: library).",
    ),
    "math-11.2-passes-dual": (
        NOT,
        "One text and K labels are K + 1 sequences, 17 for 16 labels, and one if the labels are kept (costs-bi: symbolic, library).",
        17 / 2,
        "sequences over the printed number, 16 labels",
    ),
    "math-11.2-passes-gliznet": (
        OK,
        f"The backbone sees one sequence for every K up to {max(fitting)} (costs-lengths: exact).",
    ),
    "math-11.2-sequences": (
        OK,
        "Such sequences have n + m + 2 tokens for a pair; a closing [SEP], which tokenizers add, makes n + m + 3 (costs-lengths: exact).",
    ),
    "math-11.2-faster": (
        NOT,
        f"True between one label and the crossing only: for 4 text tokens and 16 labels of 30 tokens MiniLM-L6 has a speed-up of {crossing_case:.3f} inside its window (costs-crossover, costs-window: symbolic, hypothesis).",
        crossing_case,
        "speed-up",
    ),
    "math-12.3-faster": (
        NOT,
        f"Half the projected dimension makes a pass of MiniLM-L6 with 16 labels {half_width['identity']:.1%} dearer than the identity, and {-half_width['linear']:.1%} cheaper than a linear map of full width (costs-identity: symbolic, search, hypothesis).",
        half_width["identity"],
        "relative change of a pass, identity to half width",
    ),
    "math-7.1.2-fast": (
        OK,
        f"The fewest of the three: 2 d_p, against 3 d_p of the cosine and d_p (d_p + 1) of the bilinear head; the cosine head is {head_share:.4%} of a pass of MiniLM-L6 with 16 labels (costs-own: symbolic, library).",
    ),
    "card-o1": (
        NOT,
        f"The counter finds {growth[growth_at]:.1f} times the cost of one label at {growth_at} labels; for MiniLM-L6 and 64 text tokens 100 labels cost {minilm_growth:.2f} times as much as one (costs-quadratic: library, search).",
        growth[growth_at],
        "cost of the most labels over one",
    ),
    "card-single-pass": (
        OK,
        f"One sequence holds the text and all labels, for every K up to {max(fitting)} (costs-lengths: exact).",
    ),
    "gliclass-cross-passes": (
        OK,
        "One sequence per pair of text and label (costs-cross: library).",
    ),
    "gliclass-single-pass": (
        OK,
        "One sequence with a marker per label, one token longer than GliZNet's; its tokens are counted in the chapter on GLiClass (gliclass-room), and its cost has the same form (costs-quadratic: library).",
    ),
    "gliclass-paper-linear-passes": (
        OK,
        "K labels are K passes, 100 for 100 labels; the cost is K D (costs-cross: symbolic, library).",
    ),
    "gliclass-paper-sublinear": (
        NOT,
        f"The cost is convex: of 128 labels the last costs {last_over_first:.2f} times the second, at MiniLM-L6 and 64 text tokens; only the share of the text makes it look flat (costs-quadratic: symbolic, search).",
        last_over_first,
        "cost of the last of 128 labels over the second",
    ),
    "gliclass-paper-nonlinear": (
        OK,
        "Not linear, but because each further label costs more, not less (costs-quadratic: symbolic, search); see gliclass-paper-sublinear.",
    ),
    "sce-2.1-eq1": (
        OK,
        "A function of the set: every order of four labels gives the same scores, each with its label (costs-softset: naive).",
    ),
    "sce-2.2-query": (
        OK,
        "A vector of width d_q per text; its cost is one pass of the frozen encoder (costs-sce: library).",
    ),
    "sce-2.2-adapter": (OK, "An affine map costs d d_q forward (costs-sce: library)."),
    "sce-2.2-eq2": (
        OK,
        "The package's pooling over a table of token embeddings gives the mean of a loop (costs-softset: naive).",
    ),
    "sce-2.2-encoder": (
        OK,
        "One sequence of K + 1 vectors; the counter finds the cost of K + 1 tokens (costs-sce: library).",
    ),
    "sce-2.2-equivariant": (
        NOT,
        f"The outputs move with the labels, by up to {moved_by_order:.1f} in a score on a random encoder; only their set stays (costs-softset: symbolic, autograd, naive, one mutant rejected).",
        moved_by_order,
        "change of a score",
    ),
    "sce-2.2-eq3": (
        OK,
        "Inner products and softmax, computed on a random encoder (costs-softset: symbolic, autograd, naive).",
    ),
    "sce-2.2-objective": (
        OK,
        "Cross-entropy with the target, the same in every order of the labels; its slope by the scores is the probabilities less the target (costs-softset: naive, autograd).",
    ),
    "sce-2.2-invariance": (
        OK,
        "Scores and Jacobian permute with the labels; with positions they do not (costs-softset: symbolic, autograd, naive, one mutant rejected).",
    ),
    "sce-2.2-cardinality": (
        OK,
        "One, two and nine labels pass the same encoder; no parameter has a size K (costs-softset).",
    ),
    "sce-3-latency": (
        OPEN,
        f"No seconds are measured here. In operations sizes do not decide: at the paper's own lengths the prompted Llama needs {latency_ratio:.1f} times the multiply-adds of SCE per text, {per_parameter:.1f} times as many per parameter (costs-block). It would take both models on one machine.",
    ),
    "sce-3.1-total": (
        NOT,
        f"The sum is right, its first part is not: RoBERTa-base has {roberta_parameters / 1e6:.1f} million, so the total is {(roberta_parameters + jina_number) / 1e6:.0f} (costs-block: exact).",
        (roberta_parameters + jina_number) / sizes_sum,
        "parameters over the printed number",
    ),
    "sce-3.2-sizes": (
        NOT,
        f"Against F2LLM {size_of_f2:.2f} is less than half; against Llama, {base_parameters:,} by the paper's own count, it is {size_of_llama:.2f}, not two thirds (costs-grouped: exact).",
        size_of_llama,
        "size of SCE over Llama's",
    ),
    "sce-3.3-lora-count": (
        OK,
        f"The printed count follows for a key width of {int(solved)} and for no other (costs-grouped: exact).",
    ),
    "sce-3.3-matching": (
        NOT,
        f"With the token table frozen, as its section 2.2 says, layers and adapter have {trained_parameters / 1e6:.1f} million; LoRA has {lora_number / trained_parameters:.2f} times as many (costs-grouped: exact).",
        lora_number / trained_parameters,
        "LoRA parameters over trained ones",
    ),
    "sce-3.3-time-share": (
        OK,
        f"Twenty over 3,240 seconds is {time_share:.5f}, the printed share rounded; the seconds themselves are not judged here.",
    ),
    "sce-3.3-count-share": (
        OK,
        f"{share_of_llama:.5f} from the printed polynomials, {roberta_epoch / corrected_epoch:.5f} with grouped keys, both the printed share rounded (costs-block: exact).",
    ),
    "sce-3.3-amortised": (
        OK,
        f"Reading the texts once costs {reading_epochs:.1f} epochs of the encoder; with it the first epoch is {share_with_reading:.3f} of Llama's. At inference every new text is read, so nothing is amortised there.",
    ),
    "sce-3.3-orders": (
        OK,
        f"A factor of {1 / share_of_llama:.0f} per epoch, {1 / share_with_reading:.0f} with the reading of the texts.",
    ),
    "sce-d-eq4": (
        OK,
        "The softmax over the label tokens is the model's distribution given that one of them comes next (costs-subset: symbolic, autograd, naive).",
    ),
    "sce-d-order": (
        OK,
        f"Exchanging two labels in the prompt of a random decoder changes its last state by {order_effect:.2f} (costs-softset: mutant rejected).",
    ),
    "sce-e-score": (
        NOT,
        f"An inner product is no cosine: on random vectors of unequal length the two choose another label in {other_label:.0%} of the cases, on unit vectors never (costs-subset: exact).",
        other_label,
        "share of cases with another label",
    ),
    "sce-e-softmax": (OK, "A softmax over the scores of all labels (costs-subset)."),
    "sce-e-argmax": (
        OK,
        "The softmax rises with each score, so the largest stays the largest (costs-subset: exact).",
    ),
    "sce-f-table-3": (
        OK,
        f"The parts sum to {sum(validation.values()):.0f} and {sum(training.values()):.0f}, as printed.",
    ),
    "sce-f.1-bbc": (
        NOT,
        f"The table and its sum need {validation['BBC News']:.0f} validation texts of BBC News.",
        bbc_gap,
        "texts",
    ),
    "sce-f.2-mnds": (
        NOT,
        f"{mnds[0]:.0f} less {mnds[1]:.0f} are {mnds[0] - mnds[1]:.0f} categories; {mnds[2]:.0f} are listed, and 600 texts divide evenly only by the latter.",
        mnds[0] - mnds[1] - mnds[2],
        "categories",
    ),
    "sce-i-parameters": (
        NOT,
        f"The printed shape has {roberta_parameters / 1e6:.1f} million parameters with RoBERTa's vocabulary, {roberta_layers / 1e6:.1f} in its layers (costs-block: exact).",
        roberta_parameters / as_number("Appendix I", "roberta", "parameters"),
        "parameters over the printed number",
    ),
    "sce-j-parameters": (
        OPEN,
        f"The vocabulary is neither printed nor the default of the library. The layers of the printed shape have {24 * 12 * 1024**2 / 1e6:.0f} million weights, so a table of about {(jina_number - 24 * 12 * 1024**2) / 1024:,.0f} rows would have to hold the rest.",
    ),
    "sce-m-parameters": (
        OK,
        f"Without LoRA {base_parameters:,}, which is a whole vocabulary of {int(vocabulary_size):,} at the key width of the LoRA count (costs-grouped: exact).",
    ),
    "sce-m-orthogonal": (
        NOT,
        f"Nothing makes it orthogonal: in a random Llama layer W W^T misses the identity by {orthogonal_gap:.2f}.",
        orthogonal_gap,
        "largest entry of W W^T less the identity",
    ),
    "sce-n-unit": (
        OK,
        "The unit is the multiply-add, here as there; counters of floating-point operations give twice as much (costs-layer: library).",
    ),
    "sce-n-linear": (
        OK,
        "Each of the results is an inner product (costs-layer: symbolic, naive, library).",
    ),
    "sce-n-attention": (OK, "Both products of all heads (costs-layer: symbolic, naive, library)."),
    "sce-n-attention-forward": (
        NOT,
        "RoBERTa, XLM-RoBERTa and Llama divide the scores by the root of the width of a head (costs-layer: library); the count changes by one multiplication per score.",
        64**0.5,
        "factor in the scores, heads of width 64",
    ),
    "sce-n-batch-norm": (
        NOT,
        f"In the library a layer of these models has two of {' or '.join(dict.fromkeys(layer_norms))}, and no batch normalisation.",
        len(layer_norms) // len(families),
        "normalisations per layer, none over the batch",
    ),
    "sce-n-softmax": (
        OK,
        f"One exponential per score is a share of 1 / (2 d_h) of the products, {1 / 128:.1%} for heads of width 64.",
    ),
    "sce-n-table-4": (
        OK,
        "All cells regenerated, the total counted on a Llama layer without groups (costs-block: symbolic, naive, library).",
    ),
    "sce-n-model": (
        OK,
        "Layers are equal, so their number multiplies (costs-layer: library); an output layer is not in it.",
    ),
    "sce-n-table-5": (
        OK,
        "All cells regenerated, the total counted (costs-lora-block: symbolic, naive, library); keys and values are as wide as the queries here.",
    ),
    "sce-o-linear": (
        OK,
        "Both gradients and their costs (costs-backward: symbolic, autograd, naive, library).",
    ),
    "sce-o-attention": (
        OK,
        "All four gradients; the counter finds twice the forward cost (costs-backward, costs-block).",
    ),
    "sce-o-table-6": (
        OK,
        "All cells regenerated, the total counted (costs-block: symbolic, library).",
    ),
    "sce-o-model": (OK, "Layers are equal, so their number multiplies (costs-block: library)."),
    "sce-o-lora-forward": (OK, "Matrix products associate (costs-lora: symbolic, library)."),
    "sce-o-lora-gradients": (
        OK,
        "All gradients by hand, by autograd and by differences (costs-lora: symbolic, autograd, naive).",
    ),
    "sce-o-lora-count": (OK, "Five products, counted on a real map (costs-lora: library)."),
    "sce-o-table-7": (
        NOT,
        f"All cells regenerated, the total counted (costs-lora-block: symbolic, library). The last row is named FFN Total, and holds {table_7['block'] / table_7['feed-forward']:.2f} times as much for the paper's Llama.",
        table_7["block"] / table_7["feed-forward"],
        "block over feed-forward",
    ),
    "sce-o-lora-model": (
        NOT,
        f"The first layer needs no gradient by its frozen input; that is {spared_share:.1%} of the paper's Llama (costs-lora-block: library).",
        spared_share,
        "share of a step",
    ),
    "sce-p-forward": (
        NOT,
        f"For Llama keys and values are grouped; the part linear in m is {excess[0]:.1%} too large (costs-grouped: symbolic, library, naive).",
        excess[0],
        "relative excess",
    ),
    "sce-p-backward": (
        NOT,
        f"The part linear in m is {excess[1]:.1%} too large (costs-grouped: symbolic, library).",
        excess[1],
        "relative excess",
    ),
    "sce-p-block": (
        NOT,
        f"The sum of both passes is right, its keys and values are not: {grouped_excess:.1%} too large (costs-lora-block, costs-grouped: symbolic, library, naive).",
        grouped_excess,
        "relative excess",
    ),
    "sce-p-block-number": (
        NOT,
        f"The printed numbers follow from the printed formula; right is ${sympy.latex(corrected_block)}$ (costs-lora-block, costs-grouped).",
        grouped_excess,
        "relative excess",
    ),
    "sce-p-model": (
        NOT,
        f"True of every layer but the first, whose input is frozen: {spared_share:.1%} of the model (costs-lora-block: library).",
        spared_share,
        "share of a step",
    ),
    "sce-p-model-number": (
        NOT,
        f"With grouped keys and equal layers it is ${sympy.latex(corrected_model)}$; the output layer, left out, would add up to {output_share:.0%} (costs-grouped).",
        grouped_excess,
        "relative excess",
    ),
    "sce-q-forward": (OK, "RoBERTa has no groups, so Table 4 applies (costs-block: symbolic)."),
    "sce-q-backward": (OK, "Table 6 applies (costs-block: symbolic)."),
    "sce-q-block": (OK, "The sum of both passes (costs-block: symbolic)."),
    "sce-q-adapter": (
        NOT,
        f"The frozen text vector needs no gradient, so two products, not three; the surplus is {adapter_share:.2%} of a step (costs-backward: mutant rejected).",
        0.5,
        "relative excess of the adapter",
    ),
    "sce-q-model": (
        NOT,
        f"The layers are right, the adapter's factor is not: {adapter_share:.2%} of a step (costs-block: symbolic; costs-backward: mutant rejected).",
        adapter_share,
        "share of a step",
    ),
    "sce-q-number": (
        NOT,
        f"The printed numbers follow from the printed formula (costs-block: symbolic). Not counted in the correction: frozen vectors of {label_count:.0f} labels need no gradient in the first layer either, {spared_labels:.2%} of a step, unless a trained normalisation stands before it.",
        adapter_share,
        "share of a step",
    ),
    "sce-q-jina": (
        OK,
        "A forward pass of 24 layers (costs-block: symbolic), if the adapter of rank 4 is merged into the maps of the attention; kept apart it adds 8 L m d r (costs-lora-block: symbolic).",
    ),
    "sce-q-jina-number": (
        OK,
        f"Both coefficients follow if the adapter is merged (costs-block: symbolic); kept apart it adds ${sympy.latex(jina_lora)}$.",
    ),
    "sce-r-batches": (
        OK,
        "16,000 texts are 8,000 micro batches of two and 32 batches of 512, and 54 minutes are 3,240 seconds.",
    ),
    "sce-r-trained": (
        NOT,
        f"Its token table is frozen (Eq. 2) and its positions are left out: layers and adapter are {trained_parameters / 1e6:.1f} million (costs-grouped: exact).",
        trained_parameters / as_number("Appendix I", "roberta", "parameters"),
        "trained over stated",
    ),
    "sce-s-prompt": (OK, "The three parts sum to the printed length (costs-block: exact)."),
    "sce-s-steps": (
        NOT,
        f"In training one pass over the answer scores both of its tokens: they add {two_more:.1%}, not a second pass.",
        two_more,
        "share added by two tokens",
    ),
    "sce-s-llama-epoch": (
        NOT,
        f"The printed value follows from the printed polynomial; with grouped keys it is {corrected_epoch:.4g}, so it is {epoch_excess:.1%} too large (costs-block, costs-grouped).",
        epoch_excess,
        "relative excess",
    ),
    "sce-s-labels": (
        NOT,
        f"The printed lists of categories average {without_world:.1f} labels without the category that a footnote removes, {mean_labels:.1f} with it. The printed epoch needs m = 11; m = 10 gives {ten_tokens:.3g} (costs-block: exact).",
        ten_tokens / roberta_epoch,
        "epoch at m = 10 over the printed one",
    ),
    "sce-s-roberta-epoch": (
        OK,
        f"{roberta_epoch:.4g} for eleven tokens, ten labels and the text (costs-block: exact).",
    ),
    "sce-s-jina-epoch": (
        OK,
        f"{jina_epoch:.4g} at the mean length if the adapter is merged, {jina_unmerged:.4g} if not (costs-block: exact); the mean of squares is larger than the square of the mean, so the quadratic part is a lower bound.",
    ),
    "sce-s-token-averages": (
        OPEN,
        "The mean lengths of template, texts and prompts need the paper's data and tokenizers.",
    ),
}
for name, (verdict, evidence, *effect) in OUTCOMES.items():
    report.outcome(name, verdict, evidence=evidence)
    assert bool(effect) == (verdict == NOT)
    if effect:
        value, unit = effect
        report.metric(f"effect/{name}", float(value), unit=unit)
paste_table(
    "costs-outcomes", judged(report.outcomes), "Statements of the sources and their outcomes."
)
display(checks.table())
report.close()
