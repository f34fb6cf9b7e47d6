"""Soft contextualized encoder (SCE): Maheshwari and Raina 2026, arXiv 2601.03450.

A frozen embedder turns the text into one vector q, an affine map takes it to the width of a second
encoder, and that encoder reads [Wq + b, h₁ … h_K] without positions, where h_k is the mean of the
frozen token embeddings of label k (Eq. 2). The score of label k is the product of the encoder's
output at the text with that at the label, and the loss is cross-entropy of their softmax (Eq. 3).

Two consequences hold by construction: the order of the labels cannot matter, and neither can the
order of the tokens in a label, so "north pole" and "pole north" score the same.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from gliznet.losses import supcon_loss
from gliznet.peers.protocol import PeerError

ABSOLUTE = ("bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")
"""Model types whose only trace of order is one table of absolute position embeddings."""


class NoPositions(nn.Module):
    """Stands where a table of position embeddings stood, and adds nothing."""

    def forward(self, position_ids: Tensor) -> Tensor:
        return torch.zeros((), device=position_ids.device)


class SoftContextualizedEncoder(nn.Module):
    """The trained part: query adaptor and encoder without positions.

    The pretrained encoder loses its position table, which is all that tells it the order of its
    input. Self-attention, layer norms and feed-forward layers treat every place alike, so what is
    left commutes with permutations. Token type 0 is added to every place alike and stays.

    The adaptor maps to the width of the token embeddings, because Wq + b and h_k stand in one
    sequence.

    Args:
        backbone: an encoder of a type in `ABSOLUTE`; changed in place.
        query_dim: d_q, width of the text embedding.
        adaptor_init: "default", PyTorch's; or "identity", where both widths are equal.
    """

    def __init__(self, backbone: PreTrainedModel, query_dim: int, adaptor_init: str = "default"):
        super().__init__()
        backbone.embeddings.position_embeddings = NoPositions()
        self.backbone = backbone
        embeddings = backbone.get_input_embeddings().requires_grad_(False)
        self.adaptor = nn.Linear(query_dim, embeddings.embedding_dim)
        if adaptor_init == "identity":
            if query_dim != embeddings.embedding_dim:
                raise PeerError(
                    f"adaptor_init is 'identity' but text embeddings have width {query_dim} and "
                    f"label tokens {embeddings.embedding_dim}: use 'default'"
                )
            nn.init.eye_(self.adaptor.weight)
            nn.init.zeros_(self.adaptor.bias)

    def forward(
        self,
        queries: Float[Tensor, "B Q"],
        label_tokens: Int[Tensor, "B K M"],
        token_mask: Bool[Tensor, "B K M"],
        targets: Float[Tensor, "B K"] | None = None,
    ) -> dict[str, Tensor]:
        """Scores the labels of each text.

        Args:
            queries: text embeddings.
            label_tokens: token ids of each label.
            token_mask: true on real tokens; a label without any is padding.
            targets: 1 for a true label, 0 otherwise. They become the distribution p of the paper by
                an equal share for each true label; a row without one has no p and no loss.

        Returns:
            "scores" `(B, K)`, −inf on padding; with targets also "loss".
        """
        label_mask = token_mask.any(dim=-1)
        weights = token_mask.unsqueeze(-1).to(queries.dtype)
        embedded = self.backbone.get_input_embeddings()(label_tokens)
        labels = (embedded * weights).sum(dim=2) / weights.sum(dim=2).clamp(min=1)
        sequence = torch.cat([self.adaptor(queries).unsqueeze(1), labels], dim=1)
        attended = F.pad(label_mask, (1, 0), value=True).long()
        # One id for every place: the encoder would otherwise look for more of them than it has.
        states = self.backbone(
            inputs_embeds=sequence,
            attention_mask=attended,
            position_ids=torch.zeros_like(attended),
        ).last_hidden_state
        scores = (states[:, 1:] * states[:, :1]).sum(dim=-1)
        output = {"scores": scores.masked_fill(~label_mask, float("-inf"))}
        if targets is not None:
            # The cross-entropy with equal shares is the mean of −log softmax over the true labels.
            output["loss"] = supcon_loss(scores, targets, label_mask)
        return output


def label_tokens(
    tokenizer: PreTrainedTokenizerBase, label_sets: list[list[str]]
) -> tuple[Int[Tensor, "B K M"], Bool[Tensor, "B K M"]]:
    """Padded token ids of candidate sets, and the mask of real ones. Nothing is cut.

    Raises:
        PeerError: a label without any token.
    """
    names = [name for labels in label_sets for name in labels]
    encoded = tokenizer(names, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    for name, ids in zip(names, encoded, strict=True):
        if not ids:
            raise PeerError(f"label {name!r} has no token in this vocabulary: rephrase it")
    shape = len(label_sets), max(map(len, label_sets)), max(map(len, encoded))
    tokens = torch.zeros(shape, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.bool)
    position = iter(encoded)
    for i, labels in enumerate(label_sets):
        for j in range(len(labels)):
            ids = next(position)
            tokens[i, j, : len(ids)] = torch.tensor(ids)
            mask[i, j, : len(ids)] = True
    return tokens, mask


def label_encoder(name: str, init: str) -> PreTrainedModel:
    """The encoder before its positions are taken out; "random" keeps its token embeddings.

    Raises:
        PeerError: a type that is not in `ABSOLUTE`.
    """
    config = AutoConfig.from_pretrained(name)
    if config.model_type not in ABSOLUTE or (
        getattr(config, "position_embedding_type", "absolute") != "absolute"
    ):
        raise PeerError(
            f"{name} is of type {config.model_type!r}, whose positions are not one table that can "
            f"be taken out: SCE takes {', '.join(ABSOLUTE)}"
        )
    encoder = pretrained(name)
    if init == "random":
        table = encoder.get_input_embeddings()
        encoder = without_pooler(AutoModel.from_config(encoder.config))
        encoder.set_input_embeddings(table)
    return encoder


def pretrained(name: str) -> PreTrainedModel:
    model = AutoModel.from_pretrained(name, dtype=torch.float32)
    # The path of the backbone on this machine has no place in a checkpoint.
    model.config._name_or_path = ""
    return without_pooler(model)


def without_pooler(model: PreTrainedModel) -> PreTrainedModel:
    """Token states are all that is read."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model
