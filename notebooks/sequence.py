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
# # Problem and sequence
#
# How do a text and all its candidate labels become one input?
# And what does the score of a label then depend on?
#
# GliZNet writes the text first and every label behind it, each closed by the new token `[LAB]`:
#
# ```text
# [CLS] rain all day [SEP] weather [LAB] sport [LAB]
# ```
#
# The encoder reads this line once and scores all its labels.
# This chapter finds:
#
# - **One pass is the gain.** The text is read once, whatever the number of labels.
# - **Interaction has a price.** A label can react to its rivals only because its score depends on them. It depends on their order as well. Without its rivals, the cosine of a label moves by up to {glue:text}`seq_company:s` in the untrained encoder of this page.
# - **The growth is stated the wrong way round.** In the number of labels, attention grows linearly for a cross-encoder and quadratically for GliZNet.
# - **The label mask does not say what is text.** It is zero on the text and on all control tokens.
# - **The card contradicts itself.** Its maximum of 512 tokens leaves no room for the 1,024 label tokens that it mentions.
#
# It covers §1, §2 and §3 of the mathematics document, "the source" on this page, and the tokenizer and the window of the model card {cite}`kameni2025gliznet`.
# The code is `gliznet/tokenizer.py`; {doc}`../notation` has the symbols.

# %% tags=["parameters"]
out: str = ""
profile: str = "smoke"
backbone: str = "tiny-random"  # encoder of the checks on hidden states and scores
cases: int = 20  # texts of the corpus that are rebuilt per tokenizer and window
companions: int = 4  # texts whose candidate set is reordered and taken apart
pieces: int = 2000  # vocabulary of the two tokenizers that are trained here
trained_on: int = 200  # texts that they are trained on
seed: int = 0

# %%
import copy
import inspect
import json
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import sympy
import torch
from IPython.display import display
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    DebertaV2Config,
    DebertaV2Tokenizer,
    ModernBertConfig,
    PreTrainedTokenizerFast,
)

from gliznet import GliZNETTokenizer, ZeroShotClassificationPipeline
from gliznet.backbones import fingerprint, load_or_build, resolve
from gliznet.data.corpus import hardset_mini
from gliznet.data.types import examples_sha256
from gliznet.lab.checks import Checks
from gliznet.lab.figures import COLOURS, quiet, show, use_style
from gliznet.lab.ledger import judged
from gliznet.lab.records import Reporter
from gliznet.lab.tables import paste, paste_table
from gliznet.layers import label_conditioned_attention, label_membership, pool_labels
from gliznet.tokenizer import WindowError

quiet()
use_style()
report = Reporter(out)
checks = Checks(report)

# %% tags=["hide-input"]
rng = np.random.default_rng(seed)
torch.manual_seed(seed)
examples = list(hardset_mini("train"))
report.data("hardset-mini/train", rows=len(examples), sha256=examples_sha256(examples))
model, tokenizer = load_or_build("", backbone, "math", report.out)
report.backbone(backbone, fingerprint(resolve(backbone, report.out)))
model = model.double().eval()
FIELDS = ("input_ids", "attention_mask", "lmask")


def encode(texts, labels, wrapped=None):
    """The three tensors that the model reads."""
    batch = (wrapped or tokenizer)(texts, labels)
    return {name: batch[name] for name in FIELDS}


@torch.no_grad()
def cosines(text, labels):
    """Score of each label divided by its scale, so a number in [-1, 1]."""
    return (model(**encode([text], labels)).logits[0] / model.tau).numpy()


# %% [markdown]
# ## The task
#
# **Definition.** Given are a text $x$ and $K$ candidate labels $l_1, \dots, l_K$, each a string.
# The model gives each label a probability $p_j$.
# The prediction is the set of labels whose probability reaches a threshold $\delta$ in $[0, 1]$:
#
# ```{math}
# :label: eq-sequence-task
# \hat{\mathcal{Y}} = \{\, l_j : p_j \ge \delta,\; 1 \le j \le K \,\} \subseteq \{l_1, \dots, l_K\}
# ```
#
# Any of the $2^K$ subsets can be the answer, the empty one included.
#
# The source calls the candidates a *set* and the decisions *independent*.
# Only the comparisons with $\delta$ are independent.
#
# **Proposition.** The scores are a function of the *list* $(l_1, \dots, l_K)$, and the score of one label depends on the others.
#
# *Proof.* One counter-example suffices.
# Turning the list around changes the position of each label, and the encoder knows positions.
# Taking a label out changes what the other labels attend to.
# The next cell does both, and the scores change. ∎

# %% tags=["hide-input"]
pipeline = ZeroShotClassificationPipeline(model, tokenizer)
chosen, expected = [], []
moved, lonely = [], []
for example in examples[:companions]:
    labels = [*example.labels[:2], *example.not_labels[:2]]
    scores = [entry.score for entry in pipeline(example.text, labels).labels]
    for threshold in (0.0, *scores, 1.0):  # a score that equals the threshold counts as reached
        found = {e.label for e in pipeline(example.text, labels, threshold=threshold).labels}
        chosen += [label in found for label in labels]
        expected += [score >= threshold for score in scores]
        assert found <= set(labels)
    together = cosines(example.text, labels)
    moved.append(np.abs(cosines(example.text, labels[::-1])[::-1] - together))
    alone = np.array([cosines(example.text, [label])[0] for label in labels])
    lonely.append(np.abs(alone - together))
checks.equal("sequence-task", "exact", chosen, expected)
zeros = np.zeros_like(np.array(moved))
checks.rejects("sequence-task", "scores of a set, whatever its order", moved, zeros, 1e-12)
checks.rejects("sequence-task", "scores of one label, whatever its rivals", lonely, zeros, 1e-12)
largest_move, largest_company = float(np.max(moved)), float(np.max(lonely))
report.metric("order_moves_cosine", largest_move, n=zeros.size, unit="cosine")
report.metric("effect/math-1.1-independent", largest_company, n=zeros.size, unit="cosine")
paste("seq_moved", f"{largest_move:.1g}")
paste("seq_company", f"{largest_company:.1g}")

# %% [markdown]
# A cosine changes by up to {glue:text}`seq_moved:s` when the labels are listed backwards, and by up to {glue:text}`seq_company:s` when a label stands alone.
# A decision survives that only if its score is far from the threshold.
#
# ## The sequence
#
# **Definition.** Let $T_s$ be the list of tokens of a string $s$, tokenised on its own and without control tokens.
# Let $n_x$ be the number of tokens of the text and $n_j$ that of label $l_j$.
# With $\oplus$ for concatenation the sequence is
#
# ```{math}
# :label: eq-sequence-construction
# \mathrm{seq} = \texttt{[CLS]} \oplus T_x \oplus \texttt{[SEP]} \oplus \bigoplus_{j=1}^{K} \left( T_{l_j} \oplus \texttt{[LAB]} \right)
# ```
#
# Counting its parts gives its length:
#
# ```{math}
# :label: eq-sequence-length
# L = 2 + n_x + \sum_{j=1}^{K} (n_j + 1)
# ```
#
# A batch has one such row per text, whatever $K$ is.
# `[CLS]` and `[SEP]` stand for the start and the separator of the backbone; RoBERTa calls them `<s>` and `</s>`.
# `[LAB]` is new and costs one row of the embedding table.
#
# The package builds the sequence here:

# %% tags=["hide-output"]
print(inspect.getsource(GliZNETTokenizer.__call__))

# %% [markdown]
# ### Three kinds of tokens
#
# The checks run over the three kinds of tokenizer that current encoders have.
#
# - **WordPiece**, the real one of the embedded MiniLM {cite}`wang2020minilm`. It lowers the case and marks a continued word with `##`.
# - **Unigram**, the SentencePiece model of DeBERTa-v3 {cite}`he2021debertav3`. It marks the start of a word with `▁`.
# - **Byte-level BPE**, as RoBERTa and ModernBERT have it. It marks a space with `Ġ`.
#
# The real vocabularies of the last two are not at hand.
# The next cell trains small ones on texts of the shipped corpus: the rules are the real ones, but words fall into more pieces.

# %% tags=["hide-input"]
BERT_TOKENS = {
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "unk_token": "[UNK]",
    "mask_token": "[MASK]",
}

corpus = [example.text for example in examples]
strings = [s for e in examples for s in (e.text, *e.labels, *e.not_labels)]


def train_unigram():
    """A Unigram model in the class that loads DeBERTa-v3's."""
    inner = Tokenizer(models.Unigram())
    inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    trainer = trainers.UnigramTrainer(
        vocab_size=pieces,
        special_tokens=specials,
        unk_token="[UNK]",
        initial_alphabet=sorted({*"".join(strings), *"[]▁"} - {" "}),
        show_progress=False,
    )
    inner.train_from_iterator(corpus[:trained_on], trainer)
    found = json.loads(inner.to_str())["model"]["vocab"]
    # Training leaves equal scores in any order; sorted, the ids are the same in every run.
    learnt = sorted((-round(s, 6), p) for p, s in found if p not in specials)
    vocabulary = [(p, 0.0) for p in specials] + [(p, -s) for s, p in learnt]
    return DebertaV2Tokenizer(vocab=vocabulary, unk_id=3, model_max_length=512)


def train_byte_level():
    """A byte-level BPE model."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=pieces,
        special_tokens=list(BERT_TOKENS.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(corpus[:trained_on], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=512, **BERT_TOKENS)


bare = {
    "WordPiece": AutoTokenizer.from_pretrained(resolve("minilm-l6", report.out)),
    "Unigram": train_unigram(),
    "byte-level BPE": train_byte_level(),
}
# Wrapping adds [LAB]; the naive construction below must not see that, so a copy is wrapped.
wrapped = {kind: GliZNETTokenizer(copy.deepcopy(one)) for kind, one in bare.items()}
pd.DataFrame(
    {
        "tokens": {kind: len(one) for kind, one in bare.items()},
        "with [LAB]": {kind: len(one) for kind, one in wrapped.items()},
        "id of [LAB]": {kind: one.lab_token_id for kind, one in wrapped.items()},
        "window": {kind: one.max_length for kind, one in wrapped.items()},
    }
)

# %% [markdown]
# ### The sequence, position by position
#
# The next function follows the definition, with a tokenizer that never saw `[LAB]`.
# It also writes the mask of the next section, and drops text tokens one by one until the sequence fits.


# %%
def naive(plain, text, labels, window):
    """Sequence, mask and number of cut tokens, written from the definitions alone."""

    def tokens_of(string):
        return plain.convert_tokens_to_ids(plain.tokenize(string))

    lab, kept = len(plain), tokens_of(text)  # the first free id
    parts = [tokens_of(label) for label in labels]
    cut = 0
    while True:
        sequence, mask = [plain.cls_token_id], [0]
        for token in kept:
            sequence.append(token)
            mask.append(0)
        sequence.append(plain.sep_token_id)
        mask.append(0)
        for j in range(1, len(parts) + 1):
            for token in parts[j - 1]:
                sequence.append(token)
                mask.append(j)
            sequence.append(lab)
            mask.append(0)
        if len(sequence) <= window:
            return sequence, mask, cut
        kept, cut = kept[:-1], cut + 1


def draw(number):
    """Texts of the corpus, each with its own candidates in random order."""
    rows = [examples[i] for i in rng.choice(len(examples), number, replace=False)]
    sets = []
    for row in rows:
        pool = [*row.labels, *row.not_labels]
        size = int(rng.integers(1, len(pool) + 1))
        sets.append([pool[i] for i in rng.permutation(len(pool))[:size]])
    return [row.text for row in rows], sets


# %% tags=["hide-input"]
def padded(rows, width, value):
    return [row + [value] * (width - len(row)) for row in rows]


rebuilt = shortened = 0
for kind, one in wrapped.items():
    texts, sets = draw(cases)
    tight = max(sum(n + 1 for n in one.count_tokens(labels)) for labels in sets) + 3
    package = {"ids": [], "mask": [], "cut": []}
    loop = {name: [] for name in package}
    for window in (tight, tight + 25, 512):
        batch = one(texts, sets, max_length=window)
        rows = [
            naive(bare[kind], text, labels, window)
            for text, labels in zip(texts, sets, strict=True)
        ]
        sequences, masks, cuts = zip(*rows, strict=True)
        width = max(len(sequence) for sequence in sequences)
        package["ids"] += batch["input_ids"].flatten().tolist()
        loop["ids"] += np.ravel(padded(sequences, width, bare[kind].pad_token_id)).tolist()
        package["mask"] += batch["lmask"].flatten().tolist()
        loop["mask"] += np.ravel(padded(masks, width, 0)).tolist()
        package["cut"] += [*batch["attention_mask"].flatten(), *batch["truncated_tokens"]]
        loop["cut"] += [*np.ravel(padded([[1] * len(s) for s in sequences], width, 0)), *cuts]
        rebuilt += len(rows)
        shortened += sum(cut > 0 for cut in cuts)
    checks.equal("sequence-construction", "naive", package["ids"], loop["ids"], case=kind)
    checks.equal("sequence-mask", "naive", package["mask"], loop["mask"], case=kind)
    checks.equal("sequence-truncation", "naive", package["cut"], loop["cut"], case=kind)
    # Of the last and largest window the rows that were not cut.
    counted = [
        2 + n + sum(k + 1 for k in one.count_tokens(labels))
        for n, labels in zip(one.count_tokens(texts), sets, strict=True)
    ]
    uncut = batch["truncated_tokens"] == 0
    lengths = batch["attention_mask"].sum(dim=1)
    checks.equal("sequence-length", "exact", lengths[uncut], np.array(counted)[uncut], case=kind)
    checks.equal("sequence-length", "exact", len(lengths), len(texts), case=f"rows, {kind}")
truth = np.array(package["mask"])
checks.rejects("sequence-mask", "labels counted from zero", np.maximum(truth - 1, 0), truth, 0)
closes = np.where(np.array(package["ids"]) == one.lab_token_id, np.roll(truth, 1), truth)
checks.rejects("sequence-mask", "[LAB] counted as its label", closes, truth, 0)
assert 0 < shortened < rebuilt  # both cases occur
report.metric("sequences_rebuilt", rebuilt)
paste("seq_rebuilt", f"{rebuilt:,}")
paste("seq_shortened", f"{shortened:,}")

# %% [markdown]
# {glue:text}`seq_rebuilt:s` sequences agree token by token, {glue:text}`seq_shortened:s` of them with a shortened text.
#
# ### The picture
#
# A single coloured token outside its label, or a label that does not end at a `[LAB]`, would refute the construction.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "One text and four labels as three tokenizers see them. Dark: control tokens. White: text. Coloured: the tokens of one label each. The number below a token is its mask value.", "name": "fig-sequence-strip"}, "image": {"alt": "Three strips of token boxes. Each begins with a dark CLS box, white text boxes follow, then a dark SEP box, then four coloured groups numbered one to four, each closed by a dark LAB box numbered zero."}}
story = min(examples, key=lambda example: len(example.text))
story_labels = [*story.labels[:2], story.labels[4], story.not_labels[3]]
TINTS = ["white", "#bfdcf0", "#fbd3b4", "#b5e3d3", "#f0d4e3"]
COLUMNS, GAP = 45, 0.6


def layout(kind):
    """Boxes (x, line, name, mask value, control token or not) that flow over several lines."""
    batch = wrapped[kind](story.text, story_labels)
    ids, values = batch["input_ids"][0].tolist(), batch["lmask"][0].tolist()
    boxes, x, line = [], 0.0, 0
    for i, value in zip(ids, values, strict=True):
        name = wrapped[kind].tokenizer.convert_ids_to_tokens(i)
        if x + len(name) + 0.8 > COLUMNS:
            x, line = 0.0, line + 1
        boxes.append((x, line, name, value, i in wrapped[kind].control_token_ids))
        x += len(name) + 0.8 + GAP
    return boxes


boxes = {kind: layout(kind) for kind in wrapped}
lines = [found[-1][1] + 1.6 for found in boxes.values()]
figure, axes = plt.subplots(3, 1, figsize=(5.2, 0.42 * sum(lines)), height_ratios=lines)
for axis, (kind, found) in zip(axes, boxes.items(), strict=True):
    for x, line, name, value, control in found:
        width, y = len(name) + 0.8, -2.3 * line
        face = "#333333" if control else TINTS[value]
        axis.add_patch(
            plt.Rectangle((x, y), width, 1.25, facecolor=face, edgecolor="#777777", lw=0.6)
        )
        style = {"ha": "center", "va": "center", "color": "white" if control else "black"}
        axis.text(x + width / 2, y + 0.58, name, family="monospace", fontsize=7.6, **style)
        axis.text(x + width / 2, y - 0.42, value, ha="center", va="center", fontsize=6.5)
    axis.set(xlim=(-0.3, COLUMNS + 0.3), ylim=(-2.3 * found[-1][1] - 1, 1.6))
    axis.set_title(f"{kind}: {len(found)} tokens", fontsize=10, loc="left")
    axis.axis("off")
show(figure)

# %% [markdown]
# ## The label mask
#
# **Definition.** The mask $m$ has one whole number per position:
#
# ```{math}
# :label: eq-sequence-mask
# m_i = \begin{cases} j & \text{if position } i \text{ holds a token of } T_{l_j},\; 1 \le j \le K \\ 0 & \text{otherwise} \end{cases}
# ```
#
# Otherwise means: text, `[CLS]`, `[SEP]`, `[LAB]`, and padding in a batch.
#
# Three more symbols, with positions counted from one:
#
# - $\mathcal{T}_j = \{i : m_i = j\}$ are the positions of label $j$, and $i_j$ is the position of the `[LAB]` that closes it.
# - $a_i$ is one on real tokens and zero on padding.
# - $s = n_x + 2$ is the position of `[SEP]`.
#
# **Proposition 1, what the zero hides.** Among the real tokens the zeros are the text *and* every control token:
#
# ```{math}
# :label: eq-sequence-zero-set
# \begin{gathered}
# \{i : m_i = 0,\, a_i = 1\} = \underbrace{\{2, \dots, s - 1\}}_{\text{text}} \cup \{1\} \cup \{s\} \cup \{i_1, \dots, i_K\}, \\
# |\{i : m_i = 0,\, a_i = 1\}| = n_x + 2 + K
# \end{gathered}
# ```
#
# So the mask alone cannot say which zeros are text.
# Yet math §6.2 takes exactly this set for the text, and its attention reads $K + 2$ control tokens too.
# The package excludes them by their ids.
#
# **Proposition 2, where the `[LAB]` tokens are.** Each $\mathcal{T}_j$ is a run of neighbouring positions, none is empty, and
#
# ```{math}
# :label: eq-sequence-lab
# i_j = 1 + \max \mathcal{T}_j
# ```
#
# *Proof.* The tokens of a label stand together and the next position holds its `[LAB]`, by {eq}`eq-sequence-construction`.
# A label without a token would leave $\mathcal{T}_j$ empty; the package refuses it. ∎
#
# So the `[LAB]` positions follow from the mask, although it is zero there.
# The package takes the $j$-th occurrence of the id instead, which is the same position.

# %% tags=["hide-input"]
counts, wanted_counts, text_counts = [], [], []
for kind, one in wrapped.items():
    texts, sets = draw(cases)
    batch = one(texts, sets)
    ids, attended, mask = (batch[name] for name in FIELDS)
    K = int(mask.max())
    zeros_here, expected_zeros = [], []
    labs, following = [], []
    runs, members = [], []
    membership = label_membership(mask, K)
    is_lab = ids == one.lab_token_id
    ordinal = is_lab.cumsum(dim=1) * is_lab  # as the model counts them
    for b, labels in enumerate(sets):
        n = int(attended[b].sum())
        n_x = ids[b].tolist().index(one.sep_token_id) - 1
        zero = ((mask[b] == 0) & attended[b].bool()).nonzero().flatten().tolist()
        by_id = {i for i in range(n) if int(ids[b, i]) in one.control_token_ids}
        zeros_here += [i in zero for i in range(ids.shape[1])]
        expected_zeros += [i in by_id or 1 <= i <= n_x for i in range(ids.shape[1])]
        counts.append(len(zero))
        wanted_counts.append(n_x + 2 + len(labels))
        text_counts.append(n_x)
        for j in range(1, len(labels) + 1):
            places = [i for i in range(n) if mask[b, i] == j]
            runs.append(places == list(range(places[0], places[-1] + 1)))
            members += [membership[b, j - 1].tolist() == [i in places for i in range(ids.shape[1])]]
            following.append(places[-1] + 1)
            labs.append(int((ordinal[b] == j).nonzero()))
    checks.equal(
        "sequence-zero-set", "exact", zeros_here, expected_zeros, case=f"positions, {kind}"
    )
    checks.equal(
        "sequence-mask",
        "exact",
        members,
        [True] * len(members),
        case=f"positions of each label, {kind}",
    )
    checks.equal("sequence-lab", "exact", labs, following, case=kind)
    checks.equal("sequence-lab", "exact", runs, [True] * len(runs), case=f"neighbours, {kind}")
checks.equal("sequence-zero-set", "exact", counts, wanted_counts, case="sizes")
checks.rejects("sequence-zero-set", "the zeros are the text", counts, text_counts, 0)

# %% tags=["hide-input"]
row = wrapped["WordPiece"](["Rain.", "It will rain again and again."], ["weather", "sport"])
kinds = {1: "`[CLS]`", 2: "`[SEP]`", 3: "`[LAB]`", 4: "text", 5: "label token", 6: "padding"}
first = {}
for i in range(row["input_ids"].shape[1]):
    token, value, real = (int(row[name][0, i]) for name in ("input_ids", "lmask", "attention_mask"))
    control = dict(zip(wrapped["WordPiece"].control_token_ids, (1, 2, 3), strict=True))
    what = 6 if not real else control.get(token, 5 if value else 4)
    first.setdefault(what, (value, real))
table = pd.DataFrame(
    {
        "$m_i$": {kinds[k]: "$j$" if k == 5 else first[k][0] for k in kinds},
        "$a_i$": {kinds[k]: first[k][1] for k in kinds},
        "told from text by": {
            kinds[k]: v
            for k, v in zip(
                kinds, ["id", "id", "id, or position", "", "mask", "attention mask"], strict=True
            )
        },
    }
)
table.index.name = "position"
paste_table(
    "sequence-zero",
    table,
    "What the mask says about each kind of position, and what else tells it from text.",
)

# %% [markdown]
# ```{glue:md} sequence-zero
# :format: myst
# ```
#
# **What the mask does to gradients.** The source says that the mask controls the flow of gradients.
# That is true in one place.
# The mean over a label's tokens passes its gradient to the positions of $\mathcal{T}_j$ and to no other.
# Below that, the encoder spreads it over the other tokens too.
# The next cell looks at both places.

# %% tags=["hide-input"]
batch = encode([story.text], story_labels)
K = len(story_labels)
membership = label_membership(batch["lmask"], K)
states = torch.randn(1, batch["lmask"].shape[1], 5, dtype=torch.float64, requires_grad=True)
lands, allowed = [], []
for j in range(K):
    (gradient,) = torch.autograd.grad(pool_labels(states, membership)[0, j].sum(), states)
    lands += (gradient[0].abs().sum(dim=-1) > 0).tolist()
    allowed += (batch["lmask"][0] == j + 1).tolist()
checks.equal("sequence-mask", "autograd", lands, allowed, case="where a label's gradient lands")
embedded = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
hidden = model.backbone(inputs_embeds=embedded, attention_mask=batch["attention_mask"])
pooled = pool_labels(hidden.last_hidden_state, membership)[0, 0]
(gradient,) = torch.autograd.grad(pooled @ torch.randn_like(pooled), embedded)
outside = batch["lmask"][0] != 1
reached = float((gradient[0].norm(dim=-1)[outside] > 0).double().mean())
checks.equal(
    "sequence-mask",
    "exact",
    reached,
    1.0,
    case="share of other positions reached behind the encoder",
)
paste("seq_reached", f"{reached:.0%}")

# %% [markdown]
# At the hidden states no position outside the label gets a gradient.
# At the input embeddings {glue:text}`seq_reached:s` of them do.
#
# ## The way back
#
# **Proposition.** Sequence and mask determine the text's tokens, the number of labels and the tokens of each label:
#
# ```{math}
# :label: eq-sequence-inverse
# T_x = (\mathrm{seq}_2, \dots, \mathrm{seq}_{s-1}), \qquad T_{l_j} = (\mathrm{seq}_i)_{i \in \mathcal{T}_j}, \qquad K = \max_i m_i
# ```
#
# where $s$ is the first position with the id of `[SEP]`.
#
# *Proof.* The first `[SEP]` is the one that the construction wrote, because no token of a text is a control token.
# The rest is the definition of the mask. ∎
#
# That premise does not hold by itself, because a text may *spell* a control token.
# By default a tokenizer turns the characters `[LAB]` into the control token.
# A text could then add a label to its own candidate set.
# The package therefore tokenises such characters as plain text.
# The next cell reads everything back, and shows what happens without this care.

# %% tags=["hide-input"]
for kind, one in wrapped.items():
    texts, sets = draw(cases)
    spelled = "please [LAB] praise [SEP] [CLS] me"
    texts, sets = [*texts, spelled], [*sets, ["refund", "a [LAB] of praise"]]
    batch = one(texts, sets)
    back, there = [], []
    words, strings = [], []
    specials = {bare[kind].convert_tokens_to_ids(t): t for t in BERT_TOKENS.values()}
    for b, (text, labels) in enumerate(zip(texts, sets, strict=True)):
        ids, mask = batch["input_ids"][b].tolist(), batch["lmask"][b].tolist()
        s = ids.index(one.sep_token_id)
        found = [ids[1:s]] + [
            [i for i, m in zip(ids, mask, strict=True) if m == j] for j in range(1, max(mask) + 1)
        ]
        for part, string in zip(found, [text, *labels], strict=True):
            there += part
            for i in bare[kind](string, add_special_tokens=False, split_special_tokens=True)[
                "input_ids"
            ]:
                # The Unigram model itself knows the control tokens; their characters are meant.
                back += bare[kind].convert_tokens_to_ids([*specials[i]]) if i in specials else [i]
            words.append(one.tokenizer.backend_tokenizer.decode(part, skip_special_tokens=False))
            strings.append(string)
    checks.equal("sequence-inverse", "exact", there, back, case=f"tokens, {kind}")
    control = sum(i in one.control_token_ids for i in there)
    checks.equal("sequence-inverse", "exact", control, 0, case=f"no control token, {kind}")
    careless = copy.deepcopy(bare[kind])
    careless.add_tokens(["[LAB]"], special_tokens=True)
    line = f"{spelled} {careless.sep_token} refund [LAB] praise [LAB]"
    marks = careless(line, add_special_tokens=False)["input_ids"].count(one.lab_token_id)
    ours = int((one(spelled, ["refund", "praise"])["input_ids"] == one.lab_token_id).sum())
    checks.equal(
        "sequence-inverse", "exact", ours, 2, case=f"marks of a text that spells one, {kind}"
    )
    checks.rejects("sequence-inverse", f"one string for all, {kind}", marks, ours, 0)
    if kind == "WordPiece":
        continue  # lowers the case and drops accents: the string is lost, the tokens are not
    unequal = sum(w.strip() != s for w, s in zip(words, strings, strict=True))
    checks.equal("sequence-inverse", "exact", unequal, 0, case=f"strings, {kind}")
twins = wrapped["WordPiece"]("Rain.", ["Apple", "apple"])
twin_tokens = [twins["input_ids"][0][twins["lmask"][0] == j].tolist() for j in (1, 2)]
assert twin_tokens[0] == twin_tokens[1]

# %% [markdown]
# The Unigram and the byte-level tokenizer give back the strings as well, up to outer blanks.
# WordPiece loses case and accents, so it gives back the tokens but not the string.
# Two labels that differ by case only, such as *Apple* and *apple*, are the same tokens to it; nothing but their position tells them apart.
#
# ## The window
#
# Let a sequence have at most $W$ tokens.
# For BERT the table of positions sets this limit.
# DeBERTa-v3 has relative positions, which set none; there $W$ is a choice.
# The source is silent on longer texts.
# The package has one rule: it keeps every label and cuts the end of the text.
#
# **Proposition.** With $\Lambda = \sum_j (n_j + 1)$, the tokens that the labels take, the kept text is
#
# ```{math}
# :label: eq-sequence-truncation
# T_x^{\text{kept}} = (t_1, \dots, t_r), \qquad r = \min(n_x,\; W - 2 - \Lambda)
# ```
#
# where $t_1, t_2, \dots$ are the tokens of the text, and $n_x - r$ tokens are reported as cut.
# The labels fit as long as
#
# ```{math}
# :label: eq-sequence-budget
# \Lambda \le W - 2 - \min(1, n_x)
# ```
#
# and the package raises `WindowError` otherwise, because nothing can be scored without the text.
#
# *Proof.* The sequence has $2 + r + \Lambda$ tokens by {eq}`eq-sequence-length`.
# The largest $r \le n_x$ with $2 + r + \Lambda \le W$ is the one above.
# For a text with a token it is at least one exactly under {eq}`eq-sequence-budget`. ∎
#
# The next cell tries every window around the edge, for a long and for an empty text.

# %% tags=["hide-input"]
kept, computed, fits, expected_fits, front = [], [], [], [], []
for one in wrapped.values():
    for text in (story.text, ""):
        n_x = one.count_tokens([text])[0]
        whole = one(text, story_labels, max_length=512)["input_ids"][0].tolist()[1 : n_x + 1]
        taken = sum(n + 1 for n in one.count_tokens(story_labels))
        for window in range(max(5, taken), taken + n_x + 6):
            expected_fits.append(taken <= window - 2 - min(1, n_x))
            try:
                batch = one(text, story_labels, max_length=window)
            except WindowError:
                fits.append(False)
                continue
            fits.append(True)
            ids = batch["input_ids"][0].tolist()
            r = ids.index(one.sep_token_id) - 1
            kept += [r, int(batch["truncated_tokens"]), *ids[1 : r + 1]]
            right = min(n_x, window - 2 - taken)
            computed += [right, n_x - right, *whole[:right]]
            front += [right, n_x - right, *whole[n_x - right :]]
checks.equal("sequence-truncation", "search", kept, computed, case="every window at the edge")
checks.equal("sequence-budget", "search", fits, expected_fits, case="every window at the edge")
assert True in fits and False in fits
checks.rejects("sequence-truncation", "the start of the text is cut", kept, front, 0)

# %% [markdown]
# ### 512 against 1,024
#
# The card states a maximum of 512 tokens for the sequence, and says that results are best when all labels fit within 1,024.
# With $W = 512$, {eq}`eq-sequence-budget` leaves the labels $W - 3$ tokens, `[LAB]` included, whenever the text has a token.
# The next cell tries label sets of that size and of one token more.

# %% tags=["hide-input"]
one = wrapped["WordPiece"]
order = sorted(one.tokenizer.get_vocab().items(), key=lambda item: item[1])
single = [word for word, _ in order if word.isascii() and word.isalpha() and word.islower()]
W = 512  # the card's maximum
largest = W - 3
assert largest % 2 == 1  # so one label of two tokens makes the sum odd
full = [f"{single[-1]} {single[-2]}", *single[: (largest - 3) // 2]]
over = single[: (largest + 1) // 2]
sizes = [sum(n + 1 for n in one.count_tokens(labels)) for labels in (full, over)]
accepted = []
for labels in (full, over):
    try:
        accepted.append(one("rain", labels, max_length=W)["input_ids"].shape[1] == W)
    except WindowError:
        accepted.append(False)
checks.equal(
    "sequence-budget", "exact", sizes, [largest, largest + 1], case="sizes of the two sets"
)
checks.equal("sequence-budget", "exact", accepted, [True, False], case="the last that fits")
checks.rejects("sequence-budget", "1,024 tokens of labels", 1024, largest, 0)
report.metric("effect/card-labels-1024", 1024 - largest, unit="tokens over the stated maximum")
lengths = one.count_tokens(sorted({c for e in examples for c in (*e.labels, *e.not_labels)}))
typical = float(np.mean(lengths))
text_length = float(np.median(one.count_tokens(corpus)))
room = {
    f"{n} label tokens": math.floor((W - 2 - text_length) / (n + 1))
    for n in (1, round(typical), 10)
}
report.metric("label_tokens_mean", typical, n=len(lengths), unit="tokens")
paste("seq_budget", str(largest))
paste("seq_excess", str(1024 - largest))
paste("seq_label_tokens", f"{typical:.1f}")
paste("seq_text_tokens", f"{text_length:.0f}")
pd.DataFrame({"labels beside a median text of the corpus": room})

# %% [markdown]
# The largest set that fits takes {glue:text}`seq_budget:s` tokens.
# A set of 1,024 is {glue:text}`seq_excess:s` too many.
# For comparison, a label of the corpus has {glue:text}`seq_label_tokens:s` tokens on average and a text {glue:text}`seq_text_tokens:s` in the median.
#
# The card advises to split very large label sets; `max_labels_per_pass` does it.
# The card does not name the price: labels of different passes do not see each other, so the scores are not those of one pass.

# %% tags=["hide-input"]
gap, in_passes, in_parts = [], [], []
split = ZeroShotClassificationPipeline(model, tokenizer, max_labels_per_pass=2)
for example in examples[:companions]:
    labels = [*example.labels[:2], *example.not_labels[:2]]
    in_passes += split.logits(example.text, labels)[0]
    in_parts += [v for i in (0, 2) for v in pipeline.logits(example.text, labels[i : i + 2])[0]]
    apart = torch.stack(in_passes[-len(labels) :]) - pipeline.logits(example.text, labels)[0]
    gap.append(float(apart.abs().max() / model.tau.detach()))
# The pipeline returns single precision.
checks.equal("sequence-task", "exact", in_passes, in_parts, 1e-5, case="passes of two labels")
report.metric("batching_moves_cosine", max(gap), n=len(gap), unit="cosine")
paste("seq_batching", f"{max(gap):.1g}")

# %% [markdown]
# Here the cosine moves by up to {glue:text}`seq_batching:s`.
#
# ## What one pass costs in the number of labels
#
# The source says that GliZNet is linear in the number of labels and that cross-encoders are quadratic.
# Count passes through the encoder, and ordered pairs of tokens that attend to each other in one layer.
# A cross-encoder reads `[CLS]` text `[SEP]` label, once per label (math §11.2); real ones add a closing `[SEP]`.
#
# **Proposition.** The pairs of the cross-encoder, $C$, and of GliZNet, $A$, are
#
# ```{math}
# :label: eq-sequence-pairs
# C(K) = \sum_{j=1}^{K} (2 + n_x + n_j)^2, \qquad A(K) = \Bigl(2 + n_x + \sum_{j=1}^{K} (n_j + 1)\Bigr)^2
# ```
#
# If all labels have $n$ tokens, the second difference in $K$ is zero for $C$ and $2 (n + 1)^2$ for $A$.
#
# *Proof.* Each sequence of $L$ tokens has $L^2$ ordered pairs; put in {eq}`eq-sequence-length`.
# With equal $n_j$, $C(K) = K (2 + n_x + n)^2$ is linear in $K$.
# $A(K) = (2 + n_x + K (n + 1))^2$ is a quadratic polynomial with leading coefficient $(n + 1)^2$. ∎
#
# So the source has it the wrong way round.
# The cross-encoder is linear in both units: $K$ passes, $K$ times as many pairs.
# GliZNet needs one pass, but its pairs grow *quadratically* in $K$ once the labels outweigh the text.
# GliZNet is cheap because it reads the text once instead of $K$ times.
# {doc}`costs` finds where one overtakes the other.

# %% tags=["hide-input"]
n, n_x, k = sympy.symbols("n n_x K", positive=True)
cross, joint = k * (2 + n_x + n) ** 2, (2 + n_x + k * (n + 1)) ** 2


def second(f):
    return f.subs(k, k + 2) - 2 * f.subs(k, k + 1) + f


checks.zero("sequence-pairs", second(cross), case="second difference, cross-encoder")
checks.zero("sequence-pairs", second(joint) - 2 * (n + 1) ** 2, case="second difference, GliZNet")
checks.zero(
    "sequence-pairs",
    sympy.limit(joint.subs(k, 2 * k) / joint, k, sympy.oo) - 4,
    case="doubling, GliZNet",
)
checks.zero("sequence-pairs", cross.subs(k, 2 * k) / cross - 2, case="doubling, cross-encoder")

numbers = [1, 2, 3, 4, 8, 16, 32, 64, 128]
text_tokens = one.count_tokens([story.text])[0]
pairs = {"GliZNet": [], "cross-encoder": []}
lengths_by_formula = []
for K in numbers:
    labels = single[:K]  # one token each
    batch = one(story.text, labels)
    pairs["GliZNet"].append(int(batch["attention_mask"].sum()) ** 2)
    ids = bare["WordPiece"]([f"{story.text}"] * K, labels, add_special_tokens=True)["input_ids"]
    # The plain tokenizer also closes a pair with [SEP]; the source's format has none there.
    pairs["cross-encoder"].append(sum((len(row) - 1) ** 2 for row in ids))
    lengths_by_formula.append([(2 + text_tokens + 2 * K) ** 2, K * (2 + text_tokens + 1) ** 2])
found = np.array([pairs["GliZNet"], pairs["cross-encoder"]]).T
checks.equal("sequence-pairs", "exact", found, lengths_by_formula, case="real tokens")
squares = np.array(pairs["cross-encoder"][0]) * np.array(numbers) ** 2
checks.rejects("sequence-pairs", "cross-encoder quadratic in K", pairs["cross-encoder"], squares, 0)
line = pairs["GliZNet"][0] + (np.array(numbers) - 1) * (pairs["GliZNet"][1] - pairs["GliZNet"][0])
checks.rejects("sequence-pairs", "GliZNet linear in K", pairs["GliZNet"], line, 0)
doubled = {name: values[-1] / values[-2] for name, values in pairs.items()}
report.metric("effect/math-2.1-linear", doubled["GliZNet"], unit="factor on doubling K; printed 2")
report.metric(
    "effect/math-2.1-cross-quadratic",
    doubled["cross-encoder"],
    unit="factor on doubling K; printed 4",
)
paste("seq_double_joint", f"{doubled['GliZNet']:.2f}")
paste("seq_double_cross", f"{doubled['cross-encoder']:.2f}")
paste("seq_double_from", str(numbers[-2]))

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Pairs of tokens that attend to each other in one layer, against the number of labels, relative to one label; real token counts of one text and labels of one token. Dashed: what the source's sentence predicts for the cross-encoder.", "name": "fig-sequence-pairs"}, "image": {"alt": "Log-log plot. The cross-encoder's points lie on a straight line of slope one. GliZNet's points start nearly flat and bend upwards. A dashed line of slope two lies far above the cross-encoder."}}
figure, axis = plt.subplots(figsize=(5.2, 3.6))
for name, colour, marker in (("cross-encoder", "published", "s"), ("GliZNet", "math", "o")):
    values = np.array(pairs[name]) / pairs[name][0]
    axis.plot(numbers, values, marker=marker, markersize=4, color=COLOURS[colour], label=name)
axis.plot(
    numbers,
    np.array(numbers) ** 2,
    "--",
    color=COLOURS["untrained"],
    label="printed for the cross-encoder",
)
axis.set(
    xscale="log", yscale="log", xlabel="candidate labels $K$", ylabel="pairs, relative to one label"
)
axis.legend(frameon=False, fontsize=9)
show(figure)

# %% [markdown]
# From {glue:text}`seq_double_from:s` labels to double that number, the cross-encoder's pairs grow by a factor of {glue:text}`seq_double_cross:s` and GliZNet's by {glue:text}`seq_double_joint:s`.
# Linear growth would give two, quadratic growth four.
#
# ## The encoder
#
# **Definition.** The encoder $\mathcal{F}$ maps a sequence to one hidden state per position:
#
# ```{math}
# :label: eq-sequence-encoder
# H = \mathcal{F}(\mathrm{seq}) = [h_1, \dots, h_L] \in \mathbb{R}^{L \times d_h}
# ```
#
# In a batch the shape is $(B, L, d_h)$, and the encoder also gets $a$, so that padding changes nothing.
# The source's example, $d_h = 768$ for BERT-base {cite}`devlin2019bert`, is the default of the configuration class.

# %% tags=["hide-input"]
SMALL = {
    "vocab_size": len(tokenizer),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
    "pad_token_id": tokenizer.pad_token_id,
}
families = {
    "BERT": BertConfig(**SMALL),
    "DeBERTa-v3": DebertaV2Config(
        **SMALL,
        relative_attention=True,
        position_buckets=16,
        pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_biased_input=False,
        type_vocab_size=0,
    ),
    "ModernBERT": ModernBertConfig(
        **SMALL, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2, local_attention=8
    ),
}
encoders = {"the page's own": model.backbone}
for name, config in families.items():
    encoders[name] = AutoModel.from_config(config).double().eval()
texts, sets = [story.text, "Rain."], [story_labels, ["weather", "sport"]]
batch = encode(texts, sets)
with torch.no_grad():
    for name, encoder in encoders.items():
        width = encoder.config.hidden_size
        H = encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0]
        checks.equal(
            "sequence-encoder",
            "exact",
            H.shape,
            [*batch["input_ids"].shape, width],
            case=f"shape, {name}",
        )
        short = encode(texts[1:], sets[1:])
        alone = encoder(input_ids=short["input_ids"], attention_mask=short["attention_mask"])[0]
        # Round-off of sums in another order; far below any effect of reading the padding.
        checks.equal(
            "sequence-encoder",
            "naive",
            H[1:, : alone.shape[1]],
            alone,
            1e-10,
            case=f"padding, {name}",
        )
        unmasked = encoder(
            input_ids=batch["input_ids"], attention_mask=torch.ones_like(batch["lmask"])
        )[0]
        checks.rejects(
            "sequence-encoder",
            f"padding read, {name}",
            unmasked[1:, : alone.shape[1]],
            alone,
            1e-10,
        )
with torch.no_grad():
    padded_scores = model(**batch).logits[1, :2]
    own_scores = model(**encode(texts[1:], sets[1:])).logits[0]
case = "padding, scores"
checks.equal("sequence-encoder", "naive", padded_scores, own_scores, 1e-10, case=case)
checks.equal("sequence-encoder", "exact", BertConfig().hidden_size, 768, case="BERT-base")
longer = 600  # beyond the 512 positions of each configuration
with torch.no_grad():
    read = encoders["DeBERTa-v3"](input_ids=torch.ones(1, longer, dtype=torch.long))[0]
    checks.equal("sequence-encoder", "exact", read.shape[1], longer, case="no limit, DeBERTa-v3")
    try:
        encoders["BERT"](input_ids=torch.ones(1, longer, dtype=torch.long))
    except (IndexError, RuntimeError) as error:
        print("BERT:", error)

# %% [markdown]
# **What a hidden state knows.** The source states that, because of self-attention, each hidden state carries information about the whole sequence.
# Take one attention head first.
# Let $x_i \in \mathbb{R}^d$ be its inputs, and let $W_q, W_k, W_v$ give queries $q_i = W_q x_i$, keys $k_i = W_k x_i$ and values $v_i = W_v x_i$.
# Its weights $\alpha_{i,i'}$ are the softmax over $i'$ of $s_{i,i'} = \langle q_i, k_{i'} \rangle / \sqrt{d}$, and its output is $o_i = \sum_{i'} \alpha_{i,i'} v_{i'}$.
#
# **Proposition.** For two different positions $i \ne i'$
#
# ```{math}
# :label: eq-sequence-attention-jacobian
# \frac{\partial o_i}{\partial x_{i'}} = \alpha_{i,i'} \left( W_v + \frac{1}{\sqrt{d}} (v_{i'} - o_i)(W_k^{\top} q_i)^{\top} \right)
# ```
#
# and this is not zero if $W_v$ has rank two or more.
#
# *Proof.* The value contributes $\alpha_{i,i'} W_v$.
# The key moves all weights: $\partial \alpha_{i,i''} / \partial s_{i,i'} = \alpha_{i,i''} (\mathbb{1}[i'' = i'] - \alpha_{i,i'})$.
# So $\sum_{i''} v_{i''}\, \partial \alpha_{i,i''} / \partial s_{i,i'} = \alpha_{i,i'} (v_{i'} - o_i)$, and $\partial s_{i,i'} / \partial x_{i'} = (W_k^{\top} q_i)^{\top} / \sqrt{d}$.
# The weight $\alpha_{i,i'}$ of a softmax is positive.
# The second term in the bracket has rank one at most, so it cannot cancel a $W_v$ of higher rank. ∎
#
# Now the whole encoder.
# With smooth activations it is an analytic function of its weights.
# So its derivative at a pair of positions is zero for almost no choice of weights, unless it is zero for all.
# It is not zero for all: set every other part to zero, and the residual path carries the derivative of one head to the end.
# So, for almost all weights of an encoder with full attention and for its real positions $i$,
#
# ```{math}
# :label: eq-sequence-context
# \frac{\partial h_i}{\partial x_{i'}} \ne 0 \;\text{ if } a_{i'} = 1, \qquad \frac{\partial h_i}{\partial x_{i'}} = 0 \;\text{ if } a_{i'} = 0
# ```

# %% tags=["hide-input"]
D, T = 3, 5


def head(x, wq, wk, wv):
    """One attention head, with the package's attention as its core."""
    seen = torch.ones(1, x.shape[0], dtype=torch.bool)
    found, weights = label_conditioned_attention(
        (x @ wq.T)[None], (x @ wk.T)[None], seen, math.sqrt(x.shape[1]), (x @ wv.T)[None]
    )
    return found[0], weights[0]


def head_by_loop(x, wq, wk, wv):
    """The same head from its definition: outputs and weights."""
    outputs, weights = [], []
    for xi in x:
        powers = [math.exp((wq @ xi) @ (wk @ xm) / math.sqrt(len(xi))) for xm in x]
        weights.append([power / sum(powers) for power in powers])
        outputs.append(sum(a * (wv @ xm) for a, xm in zip(weights[-1], x, strict=True)))
    return np.array(outputs), np.array(weights)


def jacobian_by_formula(x, wq, wk, wv):
    """The proposition's block for each pair of different positions."""
    o, weights = head_by_loop(x, wq, wk, wv)
    blocks = np.zeros((len(x), x.shape[1], len(x), x.shape[1]))
    for i in range(len(x)):
        for m in range(len(x)):
            if i != m:
                pull = np.outer(wv @ x[m] - o[i], wk.T @ (wq @ x[i])) / math.sqrt(x.shape[1])
                blocks[i, :, m] = weights[i, m] * (wv + pull)
    return torch.tensor(blocks)


def off_diagonal(blocks):
    return blocks * (1 - torch.eye(len(blocks), dtype=blocks.dtype))[:, None, :, None]


generator = torch.Generator().manual_seed(seed)
ours, autos, slopes, worst = [], [], [], []
for _ in range(cases):
    x, *weights = (
        torch.randn(*size, generator=generator, dtype=torch.float64)
        for size in ((T, D), (D, D), (D, D), (D, D))
    )
    plain = [part.numpy() for part in (x, *weights)]
    ours.append(jacobian_by_formula(*plain))
    automatic = torch.autograd.functional.jacobian(lambda y, w=weights: head(y, *w)[0], x)
    autos.append(off_diagonal(automatic))
    step, numeric = 1e-6, torch.zeros_like(ours[-1])
    for m in range(T):
        for c in range(D):
            shift = np.zeros((T, D))
            shift[m, c] = step
            up, down = (head_by_loop(plain[0] + d, *plain[1:])[0] for d in (shift, -shift))
            numeric[:, :, m, c] = torch.tensor((up - down) / (2 * step))
    slopes.append(off_diagonal(numeric))
    norms = ours[-1].permute(0, 2, 1, 3).flatten(2).norm(dim=-1)
    worst.append(float(norms[~torch.eye(T, dtype=torch.bool)].min()))
checks.equal(
    "sequence-attention-jacobian", "autograd", torch.stack(autos), torch.stack(ours), 1e-12
)
# Central differences with this step err by about its square and by round-off over the step.
checks.equal("sequence-attention-jacobian", "naive", torch.stack(slopes), torch.stack(ours), 1e-7)
assert min(worst) > 0
values_only = []
generator.manual_seed(seed)
for _ in range(cases):
    x, wq, wk, wv = (
        torch.randn(*size, generator=generator, dtype=torch.float64)
        for size in ((T, D), (D, D), (D, D), (D, D))
    )
    values_only.append(off_diagonal(torch.einsum("ik,cd->ickd", head(x, wq, wk, wv)[1], wv)))
checks.rejects(
    "sequence-attention-jacobian",
    "keys left out",
    torch.stack(values_only),
    torch.stack(ours),
    1e-12,
)

# Two dimensions, so that a transpose in the wrong place is seen.
Wq, Wk, Wv = (sympy.Matrix(2, 2, sympy.symbols(f"{name}1:5")) for name in "abc")
for T in (2, 3):
    xs = [sympy.Matrix(sympy.symbols(f"x{m}_1:3")) for m in range(T)]
    q = Wq * xs[0]
    powers = [sympy.exp(q.dot(Wk * x) / sympy.sqrt(2)) for x in xs]
    alpha = [power / sum(powers) for power in powers]
    o = sum((a * (Wv * x) for a, x in zip(alpha, xs, strict=True)), sympy.zeros(2, 1))
    by_formula = alpha[1] * (Wv + (Wv * xs[1] - o) * (Wk.T * q).T / sympy.sqrt(2))
    difference = o.jacobian(xs[1]) - by_formula
    # Each exponential becomes a symbol, so that a rational function is left.
    difference = difference.subs(dict(zip(powers, sympy.symbols(f"p1:{T + 1}"), strict=True)))
    assert not difference.has(sympy.exp)
    for r, c in ((0, 0), (0, 1), (1, 0), (1, 1)):
        checks.zero(
            "sequence-attention-jacobian",
            sympy.numer(sympy.together(difference[r, c])).expand(),
            case=f"{T} tokens, entry {r + 1},{c + 1}",
        )

# %% [markdown]
# The next cell tests this with the encoder of this page, on the sequence of the first figure.
# For each position $i$ it differentiates $h_i$ along a random direction by all inputs at once.
# Central differences confirm it.

# %% tags=["hide-input"]


def influence(encoder, x, attended, u):
    """Gradient of ⟨u, h_i⟩ by every input: (i, k, d). One copy of the sequence per position i."""
    many = x.expand(x.shape[1], -1, -1).clone().requires_grad_()
    H = encoder(inputs_embeds=many, attention_mask=attended.expand(x.shape[1], -1))[0]
    (gradient,) = torch.autograd.grad((H.diagonal(dim1=0, dim2=1).T @ u).sum(), many)
    return gradient


batch = encode([story.text, story.text], [story_labels, [*story_labels, "one more label"]])
one_row = {name: value[:1] for name, value in batch.items()}  # with padding at the end
with torch.no_grad():
    x = model.get_input_embeddings()(one_row["input_ids"])
    generator.manual_seed(seed)
    u, w = (torch.randn(x.shape[-1], generator=generator, dtype=x.dtype) for _ in range(2))
gradient = influence(model.backbone, x, one_row["attention_mask"], u)
real = one_row["attention_mask"][0].bool()
strength = gradient.norm(dim=-1)
tiny = np.finfo(float).tiny
weakest = strength[real][:, real]
checks.at_least("sequence-context", "search", weakest, tiny, case="the page's own")
for name in families:
    with torch.no_grad():
        z = encoders[name].get_input_embeddings()(one_row["input_ids"])
        direction = torch.randn(z.shape[-1], generator=generator, dtype=z.dtype)
    sizes = influence(encoders[name], z, one_row["attention_mask"], direction).norm(dim=-1)
    checks.at_least("sequence-context", "search", sizes[real][:, real], tiny, case=name)
checks.equal(
    "sequence-context",
    "autograd",
    strength[real][:, ~real],
    np.zeros((int(real.sum()), int((~real).sum()))),
    case="padding",
)
step, picked = 1e-6, list(range(0, int(real.sum()), 4))
with torch.no_grad():
    numeric = []
    for i in picked:
        up, down = x.clone(), x.clone()
        up[0, i] += step * w
        down[0, i] -= step * w
        H = model.backbone(
            inputs_embeds=torch.cat([up, down]),
            attention_mask=one_row["attention_mask"].expand(2, -1),
        )[0]
        numeric.append((H[0] - H[1]) @ u / (2 * step))
scale = float((gradient[:, picked] @ w)[real].abs().max())
checks.equal(
    "sequence-context",
    "naive",
    torch.stack(numeric, dim=1)[real] / scale,
    (gradient[:, picked] @ w)[real] / scale,
    1e-6,  # central differences through a whole encoder, relative to the largest slope
    case="relative to the largest slope",
)
windowed = ModernBertConfig(
    **SMALL,
    bos_token_id=1,
    eos_token_id=2,
    cls_token_id=1,
    sep_token_id=2,
    local_attention=8,
    layer_types=["sliding_attention"] * 2,
)
local = AutoModel.from_config(windowed).double().eval()
with torch.no_grad():
    y = local.get_input_embeddings()(one_row["input_ids"])
generator.manual_seed(seed)
v = torch.randn(y.shape[-1], generator=generator, dtype=y.dtype)
reach = influence(local, y, one_row["attention_mask"], v).norm(dim=-1)[real][:, real]
seen_share = float((reach > 0).double().mean())
checks.rejects(
    "sequence-context", "windowed attention", (reach > 0).double(), torch.ones_like(reach), 1e-12
)
report.metric(
    "weakest_influence",
    float(strength[real][:, real].min() / strength.max()),
    unit="share of the largest",
)
paste("seq_windowed", f"{seen_share:.0%}")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Size of the derivative of the hidden state at a position (row) by the input at another (column), logarithmic; the diagonal is cut off. Above: the encoder of this page, where a white cell would refute the statement. Below: two layers of windowed attention, where the white cells refute it.", "name": "fig-sequence-influence"}, "image": {"alt": "Two square heat maps of positions against positions, cut by lines into the text block and four label blocks. In the upper one every cell is coloured. In the lower one only a band along the diagonal is."}}
n = int(real.sum())
ends = [i for i in range(n) if int(one_row["input_ids"][0, i]) in tokenizer.control_token_ids[1:]]
borders = np.array([-1, *ends]) + 0.5
names = ["text", *(f"label {j}" for j in range(1, len(story_labels) + 1))]
figure, axes = plt.subplots(2, 1, figsize=(4.6, 7.6))
for axis, sizes in zip(axes, (strength[real][:, real], reach), strict=True):
    sizes = sizes.numpy()
    others = sizes[~np.eye(n, dtype=bool) & (sizes > 0)]
    shade = np.log10(np.where(sizes > 0, sizes, np.nan))
    bounds = {"vmin": np.log10(others.min()), "vmax": np.log10(others.max())}
    image = axis.imshow(shade, cmap="cividis", interpolation="nearest", **bounds)
    for border in borders[1:-1]:
        axis.axhline(border, color="black", linewidth=1)
        axis.axvline(border, color="black", linewidth=1)
    axis.set_xticks((borders[1:] + borders[:-1]) / 2, names, rotation=40, ha="right")
    axis.set_yticks((borders[1:] + borders[:-1]) / 2, names)
    axis.grid(False)
    figure.colorbar(image, ax=axis, label="log10 of the size")
show(figure)

# %% [markdown]
# Every real position depends on every other, text on labels and labels on each other.
# Padding has no influence at all.
#
# The premise is full attention.
# With two layers of windowed attention alone, only {glue:text}`seq_windowed:s` of the pairs are connected.
# ModernBERT mixes such layers with full ones; in the check its hidden states depend on everything.
#
# To depend on a token is not to represent its meaning.
# The information *can* arrive; training decides whether it is used.
#
# Math §11.2 compares this with two peers: a cross-encoder, which reads one label per sequence, and a dual encoder, which reads text and label apart.
# The next cell runs both over the same encoder, each label of a set in one batch and alone.
# The score is the cosine of two mean states.

# %% tags=["hide-input"]


@torch.no_grad()
def mean_states(parts):
    """Mean hidden state of each part; a part is its sequence of ids and the positions averaged."""
    width = max(len(ids) for ids, _ in parts)
    rows = torch.tensor(padded([ids for ids, _ in parts], width, tokenizer.pad_token_id))
    seen = torch.tensor(padded([[1] * len(ids) for ids, _ in parts], width, 0))
    H = model.backbone(input_ids=rows, attention_mask=seen)[0]
    return torch.stack([h[where].mean(dim=0) for h, (_, where) in zip(H, parts, strict=True)])


def peers(text, labels):
    """Scores of a cross-encoder and of a dual encoder, all labels of the set in one batch."""
    own = tokenizer(text, labels)
    ids, mask = own["input_ids"][0].tolist(), own["lmask"][0].tolist()
    s = ids.index(tokenizer.sep_token_id)
    names = [[i for i, m in zip(ids, mask, strict=True) if m == j + 1] for j in range(len(labels))]
    pairs = [ids[: s + 1] + name for name in names]
    joint = mean_states([(pair, slice(1, s)) for pair in pairs])
    beside = mean_states([(pair, slice(s + 1, len(pair))) for pair in pairs])
    apart = mean_states([(ids[:s], slice(1, s))] + [([ids[0], *n], slice(1, None)) for n in names])
    cosine = torch.nn.functional.cosine_similarity
    return {"cross-encoder": cosine(joint, beside), "dual encoder": cosine(apart[:1], apart[1:])}


together, alone = {"cross-encoder": [], "dual encoder": []}, {}
for example in examples[:companions]:
    labels = [*example.labels[:2], *example.not_labels[:2]]
    for name, scores in peers(example.text, labels).items():
        together[name].append(scores)
        each = [peers(example.text, [label])[name] for label in labels]
        alone.setdefault(name, []).append(torch.cat(each))
for name, scores in together.items():
    # Round-off of sums in another order, as above.
    found, single_scores = torch.stack(scores), torch.stack(alone[name])
    checks.equal("sequence-context", "exact", found, single_scores, 1e-10, case=f"{name}, rivals")

# %% [markdown]
# The scores of both peers do not change with the rivals; GliZNet's do.
#
# ## What it means in practice
#
# - Keep the labels in a fixed order. The scores of two runs are comparable only if the candidates stand in the same order.
# - Compare scores within one candidate set. Adding a label changes the others.
# - Keep labels short. Each one takes its tokens and a `[LAB]` away from the text, whose end is cut.
# - Read `truncated_tokens`. A text that lost its end still gets scores.
# - Split a large label set only if you must: splitting changes the scores.
#
# ## Edge cases
#
# The package refuses what has no meaning, and says why: no label, a blank or repeated label, a Python set instead of a list, a label without a token, labels that leave no room.
# It accepts the empty text: the sequence then is `[CLS] [SEP]` and the labels.

# %% tags=["hide-input"]
for text, labels, options in (
    ("Rain.", [], {}),
    ("Rain.", ["weather", " "], {}),
    ("Rain.", ["weather", "weather"], {}),
    ("Rain.", {"weather", "sport"}, {}),
    ("Rain.", ["weather", "\u200b"], {}),
    ("Rain.", ["weather", "sport"], {"max_length": 6}),
):
    try:
        wrapped["WordPiece"](text, labels, **options)
    except (TypeError, ValueError) as error:
        print(str(error).replace("'sport', 'weather'", "'weather', 'sport'"))
empty = wrapped["WordPiece"]("", ["weather", "sport"])
print(wrapped["WordPiece"].tokenizer.convert_ids_to_tokens(empty["input_ids"][0].tolist()))

# %% [markdown]
# ## Every check, and the verdicts

# %%
added = {len(w) - len(b) for w, b in zip(wrapped.values(), bare.values(), strict=True)}
assert added == {1}
VERDICTS = {
    "math-1.1-task": (
        "verified",
        f"For {companions} texts and every threshold that matters the pipeline returns exactly "
        "the candidates whose probability reaches it, a subset of the candidates (check sequence-task, exact).",
    ),
    "math-1.1-label-set": (
        "verified",
        "Repeated labels are refused. The source is silent on their order, which is an input: turned "
        f"around, the cosine of a label moves by up to {largest_move:.1g} (sequence-task, rejected mutant).",
    ),
    "math-1.1-independent": (
        "corrected",
        "The thresholds are separate, the scores are not: without its rivals the cosine of a "
        f"label moves by up to {largest_company:.1g} (sequence-task, rejected mutant).",
    ),
    "math-2.1": (
        "verified",
        f"{rebuilt} sequences of three tokenizers equal a position-by-position "
        "construction (sequence-construction, naive); lengths are exact (sequence-length).",
    ),
    "math-2.1-tokens": (
        "verified",
        "Text and labels tokenised one by one with a tokenizer without [LAB] give the same "
        "tokens as in the sequence, and are read back from it (sequence-construction, sequence-inverse).",
    ),
    "math-2.1-single-pass": (
        "verified",
        f"One row per text whatever K, up to {largest} label tokens in a window of {W} "
        "(sequence-length, sequence-budget, exact).",
    ),
    "math-2.1-linear": (
        "corrected",
        "Passes are one and tokens linear in K, but attention pairs are quadratic: doubling K "
        f"from {numbers[-2]} multiplies them by {doubled['GliZNet']:.2f} (sequence-pairs, symbolic and exact).",
    ),
    "math-2.1-cross-quadratic": (
        "corrected",
        f"A cross-encoder makes K passes: doubling K multiplies its pairs by "
        f"{doubled['cross-encoder']:.2f}, where quadratic growth gives 4 (sequence-pairs, symbolic and exact).",
    ),
    "math-2.1-interaction": (
        "verified",
        "The derivative of every hidden state by every input of the sequence is non-zero, label by "
        f"label included, and a label's cosine moves by up to {largest_company:.1g} with its rivals "
        "(sequence-context, search).",
    ),
    "math-2.2": (
        "verified",
        f"The masks of {rebuilt} sequences equal the loop's; 0 covers text, [CLS], "
        "[SEP], every [LAB] and padding (sequence-mask, naive; sequence-zero-set, exact).",
    ),
    "math-2.2-identification": (
        "verified",
        "The positions with mask j are the tokens of label j and no other, in one run that ends "
        "before its [LAB] (sequence-mask, sequence-lab, sequence-inverse, exact).",
    ),
    "math-2.2-pooling": (
        "verified",
        "label_membership gives each label's own positions, over which pool_labels averages "
        "(sequence-mask, exact and autograd).",
    ),
    "math-2.2-gradient": (
        "verified",
        "At the hidden states a label's gradient lands on its own positions only; behind the "
        f"encoder {reached:.0%} of the other positions receive one too (sequence-mask, autograd).",
    ),
    "math-3.1": (
        "verified",
        f"{len(encoders)} encoders return one vector of width d_h per position, the same with and "
        "without padding (sequence-encoder, exact and naive).",
    ),
    "math-3.1-hidden-size": (
        "verified",
        f"BERT-base's configuration has hidden size {BertConfig().hidden_size} (sequence-encoder, exact).",
    ),
    "math-3.1-context": (
        "verified",
        "Under full attention every real position depends on every other (sequence-context, search; "
        "one head: sequence-attention-jacobian, three checks). With windowed layers alone only "
        f"{seen_share:.0%} of the pairs are connected.",
    ),
    "card-tokenizer-format": (
        "verified",
        f"{rebuilt} sequences have the printed format with padding at the end "
        "(sequence-construction, naive).",
    ),
    "card-tokenizer-lmask": (
        "verified",
        "Text has 0 and label j has j for j = 1 to K (sequence-mask, naive); the card is silent on "
        "control tokens and padding, which also have 0 (sequence-zero-set, exact).",
    ),
    "card-tokenizer-wrap": (
        "not testable here",
        "DeBERTa-v3's vocabulary is not at hand. Wrapping a Unigram tokenizer of its class adds one "
        "token, [LAB], with the first free id (sequence-construction, naive, Unigram).",
    ),
    "card-max-length": (
        "not testable here",
        "A setting of the published checkpoint, which is not at hand. Its backbone has relative positions "
        f"and sets no limit: a small one reads {longer} tokens (sequence-encoder, exact).",
    ),
    "card-labels-1024": (
        "corrected",
        f"With the card's own maximum of {W} the labels have room for {largest} tokens; 1,024 is "
        f"{1024 - largest} too many (sequence-budget, exact and search).",
    ),
    "card-limitations-batching": (
        "verified",
        "A set split into passes of two labels gets a score for each label, equal to those of the "
        f"parts; against one pass the cosine moves by up to {max(gap):.1g} (sequence-task, exact).",
    ),
}
VERDICTS |= {
    "math-11.2-interaction": (
        "verified",
        "Scores of a cross-encoder and of a dual encoder do not change with the rivals (sequence-context, "
        f"exact); GliZNet's cosine moves by up to {largest_company:.1g} without them (sequence-task).",
    ),
    "math-11.2-dependencies": (
        "not testable here",
        "A score can react to its rivals (sequence-context), but labels are decided one by one, so the "
        "model gives no probability of two labels together. Whether it learns which labels occur together "
        "takes training runs on labels that do.",
    ),
}
for name, (verdict, evidence) in VERDICTS.items():
    report.outcome(name, verdict, evidence=evidence)
display(checks.table())
paste_table(
    "sequence-outcomes", judged(report.outcomes), "Statements of the sources and their outcomes."
)
report.close()

# %% [markdown]
# What this chapter says of each statement of the sources:
#
# ```{glue:md} sequence-outcomes
# :format: myst
# ```
