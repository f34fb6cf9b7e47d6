"""What GliZNet adds to an encoder: projections, pooling, attention, heads (math §4–§7)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gliznet.config import GliZNetConfig


def projection(config: GliZNetConfig) -> nn.Module:
    """z = Dropout(LayerNorm?(W h + b)) (math §4.2, §4.3)."""
    if config.projection == "identity":
        return nn.Dropout(config.projection_dropout)
    linear = nn.Linear(config.hidden_size, config.embedding_dim)
    if config.projection_init == "identity":
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    layers: list[nn.Module] = [linear]
    if config.projection == "linear_layernorm":
        layers.append(nn.LayerNorm(config.embedding_dim))
    return nn.Sequential(*layers, nn.Dropout(config.projection_dropout))


class SimilarityHead(nn.Module):
    """sim of text and label (math §7): scaled cosine, weighted dot product or bilinear."""

    def __init__(self, config: GliZNetConfig):
        super().__init__()
        d = config.embedding_dim
        self.kind = config.head
        if self.kind == "dot":
            self.weight = nn.Parameter(torch.full((d,), d**-0.5))
            self.bias = nn.Parameter(torch.zeros(()))
        elif self.kind == "bilinear":
            # The scaled identity starts as a dot product; a random matrix would erase the
            # backbone's geometry.
            self.weight = nn.Parameter(torch.eye(d) * d**-0.5)
            self.bias = nn.Parameter(torch.zeros(()))

    def forward(
        self, text: Float[Tensor, "B K D"], label: Float[Tensor, "B K D"], tau: Tensor
    ) -> Float[Tensor, "B K"]:
        """Similarities; `tau` scales the cosine and is not used by the other heads."""
        if self.kind == "cosine":
            return tau * F.cosine_similarity(text, label, dim=-1)
        if self.kind == "dot":
            return (text * label) @ self.weight + self.bias
        return ((text @ self.weight) * label).sum(dim=-1) + self.bias


def label_membership(lmask: Int[Tensor, "B L"], num_labels: int) -> Bool[Tensor, "B K L"]:
    """True where position i belongs to label j (math §5.1, T_j)."""
    ids = torch.arange(1, num_labels + 1, device=lmask.device)
    return lmask[:, None, :] == ids[None, :, None]


def pool_labels(
    tokens: Float[Tensor, "B L D"], membership: Bool[Tensor, "B K L"]
) -> Float[Tensor, "B K D"]:
    """Mean of each label's positions (math §5.1, mode 1); 0 for a label without a position."""
    weights = membership.to(tokens.dtype)
    return weights @ tokens / weights.sum(dim=-1, keepdim=True).clamp(min=1)


def label_conditioned_attention(
    labels: Float[Tensor, "B K D"],
    text: Float[Tensor, "B L D"],
    positions: Bool[Tensor, "B L"],
    tau: Tensor | float,
    values: Float[Tensor, "B L D"] | None = None,
) -> tuple[Float[Tensor, "B K D"], Float[Tensor, "B K L"]]:
    """One text embedding per label: softmax over `positions` of ⟨label, token⟩ / τ (math §6).

    Args:
        labels: queries.
        text: keys, and values unless these are given.
        positions: the set over which the softmax runs; must not be empty in any row.
        tau: attention temperature; a higher one flattens the weights.
        values: what is averaged, where it is not the keys.

    Returns:
        Label-conditioned text embeddings and the attention weights, 0 outside `positions`.
    """
    scores = labels @ text.transpose(1, 2) / tau
    scores = scores.masked_fill(~positions[:, None, :], torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1)
    return weights @ (text if values is None else values), weights
