"""What a forward pass costs, in exact polynomials (math §2.1, §10.3, §11.2).

Every size may be a number or a sympy symbol. The unit is the multiply-add, one multiplication and
one addition. Counted are matrix and inner products; softmax, norms, activations and biases are not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Amount = Any
"""A number, a tensor or a sympy expression."""


def linear(tokens: Amount, inputs: Amount, outputs: Amount, rank: Amount = 0) -> Amount:
    """Forward pass of `tokens` vectors through a matrix, with a LoRA pair of `rank` beside it."""
    return tokens * (inputs * outputs + rank * (inputs + outputs))


def linear_backward(
    tokens: Amount, inputs: Amount, outputs: Amount, rank: Amount | None = None
) -> Amount:
    """Gradients of `linear` by its input and by what is trained: the matrix, or the LoRA pair of
    `rank` beside a frozen matrix."""
    if rank is None:
        return 2 * tokens * inputs * outputs
    return tokens * (inputs * outputs + 2 * rank * (inputs + outputs))


@dataclass(frozen=True)
class Encoder:
    """The sizes of a transformer that its cost depends on.

    Args:
        layers, hidden, feed_forward: number of layers, d_h and d_f.
        queries: width of all query heads together; `None` means `hidden`.
        keys: width of all key heads together, which the values share; `None` means `queries`.
        expansions: matrices from d_h to d_f, 2 in a gated feed-forward block.
        contractions: matrices from d_f to d_h.
        positions: rows of DeBERTa's table of relative positions; 0 for other encoders.
    """

    layers: Amount
    hidden: Amount
    feed_forward: Amount
    queries: Amount | None = None
    keys: Amount | None = None
    expansions: Amount = 1
    contractions: Amount = 1
    positions: Amount = 0

    @classmethod
    def from_config(cls, config: Any, expansions: int = 1) -> "Encoder":
        """Reads the sizes off a transformers configuration, which does not say `expansions`."""
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        groups = getattr(config, "num_key_value_heads", None) or heads
        positions = 0
        if getattr(config, "relative_attention", False):
            positions = 2 * config.position_buckets
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            feed_forward=config.intermediate_size,
            queries=heads * width,
            keys=groups * width,
            expansions=expansions,
            positions=positions,
        )

    @property
    def query_width(self) -> Amount:
        return self.hidden if self.queries is None else self.queries

    @property
    def key_width(self) -> Amount:
        return self.query_width if self.keys is None else self.keys

    def matrices(self) -> list[tuple[Amount, Amount, Amount]]:
        """The linear maps of a layer: inputs, outputs, how many of them."""
        d, q, k, f = self.hidden, self.query_width, self.key_width, self.feed_forward
        return [
            (d, q, 1),
            (d, k, 2),
            (q, d, 1),
            (d, f, self.expansions),
            (f, d, self.contractions),
        ]

    def per_token(self) -> Amount:
        """w: what a layer spends on a token, whatever the length of the sequence."""
        weights = sum(number * linear(1, a, b) for a, b, number in self.matrices())
        return weights + 2 * self.positions * self.query_width

    def block(self, length: Amount, rank: Amount = 0) -> Amount:
        """Forward pass of one sequence through one layer; `rank` puts LoRA on every matrix."""
        lora = sum(
            number * (linear(length, a, b, rank) - linear(length, a, b))
            for a, b, number in self.matrices()
        )
        return length * self.per_token() + 2 * length**2 * self.query_width + lora

    def block_backward(self, length: Amount, rank: Amount | None = None) -> Amount:
        """Backward pass through one layer without relative positions: every matrix trained, or
        LoRA pairs of `rank` beside frozen ones."""
        weights = sum(
            number * linear_backward(length, a, b, rank) for a, b, number in self.matrices()
        )
        return weights + 4 * length**2 * self.query_width

    def forward(self, length: Amount, rows: Amount = 1) -> Amount:
        """Forward pass of `rows` sequences in one batch through all layers."""
        table = 2 * linear(self.positions, self.hidden, self.query_width)
        return self.layers * (rows * self.block(length) + table)

    def turning_length(self) -> Amount:
        """λ: the length at which attention costs as much as the linear maps of a layer."""
        return self.per_token() / (2 * self.query_width)


def joint_length(text: Amount, label: Amount, labels: Amount) -> Amount:
    """Tokens of `[CLS] text [SEP] label [LAB] …` (math §2.1)."""
    return text + 2 + labels * (label + 1)


def pair_length(text: Amount, label: Amount) -> Amount:
    """Tokens of `[CLS] text [SEP] label [SEP]`, what a cross-encoder reads."""
    return text + label + 3


def labels_that_fit(window: int, text: int, label: int) -> int:
    """The most labels that leave room for the whole text in the window."""
    return (window - text - 2) // (label + 1)


def own_parts(
    length: Amount,
    labels: Amount,
    hidden: Amount,
    dim: Amount | None = None,
    head: str = "cosine",
    projected: bool = True,
) -> dict[str, Amount]:
    """What GliZNet adds to its encoder, as the package computes it, for one sequence.

    Args:
        length, labels: tokens of the sequence, and labels in it.
        hidden, dim: d_h and d_p; `None` means d_h.
        head: "cosine", "dot" or "bilinear".
        projected: False where `projection` is "identity".
    """
    dim = hidden if dim is None else dim
    per_pair = {"cosine": 3 * dim, "dot": 2 * dim, "bilinear": dim * (dim + 1)}
    return {
        "projections": 2 * linear(length, hidden, dim) if projected else 0,
        "pooling": labels * length * dim,
        "attention": 2 * labels * length * dim,
        "head": labels * per_pair[head],
    }


def single_pass(
    encoder: Encoder, text: Amount, label: Amount, labels: Amount, **own: Any
) -> Amount:
    """GliZNet: one sequence with the text and all labels; `own` as in `own_parts`."""
    length = joint_length(text, label, labels)
    parts = own_parts(length, labels, encoder.hidden, **own)
    return encoder.forward(length) + sum(parts.values())


def cross_encoder(encoder: Encoder, text: Amount, label: Amount, labels: Amount) -> Amount:
    """A sequence per label; a pooled `[CLS]` and one output each."""
    head = labels * (encoder.hidden**2 + encoder.hidden)
    return encoder.forward(pair_length(text, label), labels) + head


def bi_encoder(
    encoder: Encoder, text: Amount, label: Amount, labels: Amount, cached: bool = False
) -> Amount:
    """Text and labels read apart, one inner product per label; `cached` labels are read before."""
    vectors = encoder.forward(text + 2) + labels * encoder.hidden
    return vectors if cached else vectors + encoder.forward(label + 2, labels)


def soft_encoder(
    reader: Encoder, encoder: Encoder, text: Amount, labels: Amount, cached: bool = False
) -> Amount:
    """SCE: the vector of the text and one vector per label pass an encoder without positions;
    `cached` texts have been read before."""
    scored = reader.hidden * encoder.hidden + encoder.forward(labels + 1) + labels * encoder.hidden
    return scored if cached else scored + reader.forward(text + 2)


def quadratic(cost: Callable[[Amount], Amount]) -> tuple[Amount, Amount, Amount]:
    """A, B, C of a cost A + B K + C K²."""
    start, one, two = cost(0), cost(1), cost(2)
    bend = (two - 2 * one + start) / 2
    return start, one - start - bend, bend


def speed_up(coefficients: tuple[Amount, Amount, Amount], pair: Amount, labels: Amount) -> Amount:
    """K passes of cost `pair` over one pass of cost A + B K + C K²."""
    start, slope, bend = coefficients
    return labels * pair / (start + slope * labels + bend * labels**2)


def best_labels(coefficients: tuple[Amount, Amount, Amount]) -> Amount:
    """√(A/C): the number of labels at which the speed-up is largest, and the cheapest chunk."""
    start, _, bend = coefficients
    return (start / bend) ** 0.5


def break_even(coefficients: tuple[Amount, Amount, Amount], pair: Amount) -> Amount:
    """The number of labels from which K passes are cheaper than one; not a number (NaN) if they
    always are."""
    start, slope, bend = coefficients
    gap = (pair - slope) ** 2 - 4 * start * bend
    if pair <= slope or gap < 0:
        return float("nan")
    return (pair - slope + gap**0.5) / (2 * bend)


def chunked(cost: Callable[[int], Amount], labels: int, size: int) -> Amount:
    """The labels split into passes of `size`, the last one smaller."""
    full, rest = divmod(labels, size)
    return full * cost(size) + (cost(rest) if rest else 0)


def attention_weights(layers: Amount, heads: Amount, length: Amount, rows: Amount = 1) -> Amount:
    """Numbers in the attention matrices of all layers, where attention stores them."""
    return layers * heads * rows * length**2
