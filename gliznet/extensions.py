"""Extensions that the mathematics document only sketches (math §13): hierarchies, few examples.

Nothing else in the package uses this module. Shapes and masks are those of `gliznet.losses`.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gliznet.losses import LabelMask, Scalar, _mean, _widen
from gliznet.model import GliZNetForSequenceClassification
from gliznet.tokenizer import GliZNETTokenizer


def hierarchy_mask(
    label_sets: Sequence[Sequence[str]], parents: Mapping[str, str]
) -> Bool[Tensor, "B K K"]:
    """The set H (math §13.1): true at (b, j, k) if label j of text b is the parent of its label k.

    Args:
        label_sets: candidates of each text; rows shorter than the longest are padded.
        parents: the parent of each label that has one. It need not be a candidate.

    Raises:
        ValueError: a label is its own ancestor.
    """
    for label in parents:
        line = [label]
        while line[-1] in parents:
            line.append(parents[line[-1]])
            if line[-1] in line[:-1]:
                raise ValueError(f"parents form a cycle: {' < '.join(line)}")
    width = max((len(labels) for labels in label_sets), default=0)
    mask = torch.zeros(len(label_sets), width, width, dtype=torch.bool)
    for row, labels in zip(mask, label_sets, strict=True):
        for k, label in enumerate(labels):
            if (parent := parents.get(label)) in labels:
                row[labels.index(parent), k] = True
    return mask


def hierarchical_loss(
    label_embeddings: Float[Tensor, "B K D"],
    label_mask: LabelMask,
    hierarchy: Bool[Tensor, "B K K"],
    threshold: float = 0.3,
    reduction: str = "mean",
) -> Scalar:
    """Hinge that pulls a child towards its parent (math §13.1): max(0, θ_parent − cosine).

    Args:
        label_embeddings: e_label; the norm does not matter.
        label_mask: true on real labels.
        hierarchy: true on parent-child pairs; of a symmetric mask every pair counts twice.
        threshold: θ_parent. Above θ_rep it works against `repulsion_loss` on the same pairs.
        reduction: "mean" over the pairs of a row, then over rows with a pair; "sum", as printed.

    Raises:
        ValueError: a threshold outside [-1, 1] or an unknown reduction.
    """
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}: a cosine is in [-1, 1]")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}: choose 'mean' or 'sum'")
    unit = F.normalize(_widen(label_embeddings), dim=-1)
    pairs = hierarchy & label_mask[:, :, None] & label_mask[:, None, :]
    lack = (threshold - unit @ unit.transpose(1, 2)).relu().masked_fill(~pairs, 0.0)
    per_row, count = lack.sum(dim=(1, 2)), pairs.sum(dim=(1, 2))
    return per_row.sum() if reduction == "sum" else _mean(per_row / count.clamp(min=1), count > 0)


def prototypes(
    label_embeddings: Float[Tensor, "B K D"],
    classes: Int[Tensor, "B K"],
    chosen: Bool[Tensor, "B K"],
    num_classes: int,
) -> Float[Tensor, "C D"]:
    """Mean label embedding of each class over its examples (math §13.2).

    Args:
        label_embeddings: e_label of the example texts.
        classes: class of each label column, 0 to C − 1 = `num_classes` − 1 where `chosen`.
        chosen: the entries to average, as a rule the true labels of the examples.

    Raises:
        ValueError: a class number out of range, or a class without an example.
    """
    rows, number = _widen(label_embeddings)[chosen], classes[chosen].long()
    if number.numel() and not 0 <= int(number.min()) <= int(number.max()) < num_classes:
        raise ValueError(f"classes hold {number.tolist()}: they must be 0 to {num_classes - 1}")
    count = torch.bincount(number, minlength=num_classes)
    if not count.all():
        raise ValueError(f"no example of class {count.tolist().index(0)}: every class needs one")
    total = torch.zeros(num_classes, rows.shape[1], dtype=rows.dtype, device=rows.device)
    return total.index_add(0, number, rows) / count[:, None]


def prototype_logits(
    model: GliZNetForSequenceClassification,
    input_ids: Int[Tensor, "B L"],
    attention_mask: Int[Tensor, "B L"],
    lmask: Int[Tensor, "B L"],
    prototypes: Float[Tensor, "C D"],
) -> Float[Tensor, "B C"]:
    """Scores of texts with prototypes in the place of the label embeddings (math §13.2)."""
    hidden = model.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    queries = prototypes.to(hidden.dtype).expand(len(hidden), -1, -1)
    text, _ = model._text_embeddings(hidden, queries, input_ids, attention_mask, lmask)
    return model.head(text, queries, model.tau.to(hidden.dtype))


def unknown_share(tokenizer: GliZNETTokenizer, texts: Iterable[str]) -> list[float]:
    """Share of each text's tokens that the vocabulary does not know (math §13.3); 0 if empty."""
    inner = tokenizer.tokenizer
    encoded = (inner(text, add_special_tokens=False, verbose=False).input_ids for text in texts)
    return [ids.count(inner.unk_token_id) / max(len(ids), 1) for ids in encoded]
