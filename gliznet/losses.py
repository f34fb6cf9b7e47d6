"""The losses of both formulations: one pure function per equation, dense tensors with a mask.

Every function takes `(B, K)` logits or `(B, K, D)` label embeddings and a boolean `label_mask`
`(B, K)` that is true on real labels. Half precision is computed in float32; float64 stays float64.
A row for which a term is undefined (no positive for the contrastive terms, one label for the
repulsion) is left out of that term's mean; if no row is left the term is zero, with zero gradient.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

Logits = Float[Tensor, "B K"]
LabelMask = Bool[Tensor, "B K"]
Scalar = Float[Tensor, ""]


def supcon_loss(logits: Logits, labels: Logits, label_mask: LabelMask) -> Scalar:
    """Supervised contrastive loss (math §8.1): minus the mean log-softmax of the positives.

    Args:
        logits: sim, already scaled by τ.
        labels: 1 for a positive, 0 otherwise.
        label_mask: true on real labels; the softmax runs over them.

    Returns:
        Mean over the rows with at least one positive.
    """
    logits, positive = _widen(logits), (labels > 0.5) & label_mask
    log_p = logits.masked_fill(~label_mask, _lowest(logits)).log_softmax(dim=-1)
    count = positive.sum(dim=-1)
    per_row = -log_p.masked_fill(~positive, 0.0).sum(dim=-1) / count.clamp(min=1)
    return _mean(per_row, count > 0)


def one_vs_negatives_loss(
    logits: Logits, labels: Logits, label_mask: LabelMask, margin: float = 0.0
) -> Scalar:
    """One-vs-negatives softmax with additive margin (card): each positive against all negatives.

    For a positive j: −log( exp(s_j − margin) / (exp(s_j − margin) + Σ_{k negative} exp(s_k)) ).
    Other positives are not in the denominator. Without a negative the loss of a row is 0.

    Args:
        logits: scores s.
        labels: 1 for a positive, 0 otherwise.
        label_mask: true on real labels.
        margin: subtracted from the positive's score, in units of the logits.

    Returns:
        Mean over positives, then over the rows with at least one positive.
    """
    logits, positive = _widen(logits), (labels > 0.5) & label_mask
    negative = label_mask & ~positive
    rivals = logits.masked_fill(~negative, _lowest(logits)).logsumexp(dim=-1, keepdim=True)
    per_label = F.softplus(rivals - (logits - margin))
    count = positive.sum(dim=-1)
    per_row = per_label.masked_fill(~positive, 0.0).sum(dim=-1) / count.clamp(min=1)
    return _mean(per_row, count > 0)


def repulsion_loss(
    label_embeddings: Float[Tensor, "B K D"], label_mask: LabelMask, threshold: float = 0.3
) -> Scalar:
    """Same-sample label repulsion (math §8.2): hinge on the cosine of each pair of labels.

    Args:
        label_embeddings: e_label; the norm does not matter.
        label_mask: true on real labels.
        threshold: θ_rep; pairs whose cosine does not exceed it cost nothing.

    Returns:
        Mean over ordered pairs j ≠ k of a row, then over the rows with at least two labels.
    """
    unit = F.normalize(_widen(label_embeddings), dim=-1)
    excess = (unit @ unit.transpose(1, 2) - threshold).relu()
    pairs = label_mask[:, :, None] & label_mask[:, None, :]
    pairs = pairs & ~torch.eye(pairs.shape[-1], dtype=torch.bool, device=pairs.device)
    count = pairs.sum(dim=(1, 2))
    per_row = excess.masked_fill(~pairs, 0.0).sum(dim=(1, 2)) / count.clamp(min=1)
    return _mean(per_row, count > 0)


def vicreg_loss(
    label_embeddings: Float[Tensor, "B K D"],
    label_mask: LabelMask,
    target_std: float = 1.0,
    eps: float = 1e-4,
) -> Scalar:
    """Partial VICReg (card): variance and covariance terms over all labels of the batch.

    Variance: mean over dimensions of max(0, target_std − std). Covariance: sum of the squared
    off-diagonal covariances over D. There is no invariance term. Needs two labels; zero otherwise.

    Args:
        label_embeddings: e_label.
        label_mask: true on real labels.
        target_std: standard deviation below which a dimension is pushed apart.
        eps: added to the variance under the root, so that its gradient stays finite.
    """
    rows = _widen(label_embeddings)[label_mask]
    n, d = rows.shape
    if n < 2:
        return rows.sum() * 0.0
    centred = rows - rows.mean(dim=0)
    covariance = centred.T @ centred / (n - 1)
    variance = covariance.diagonal()
    hinge = (target_std - (variance + eps).sqrt()).relu().mean()
    return hinge + (covariance.square().sum() - variance.square().sum()) / d


def bce_loss(
    logits: Logits,
    labels: Logits,
    label_mask: LabelMask,
    tau: Scalar | float = 1.0,
    tau_bce: Scalar | float = 1.0,
) -> Scalar:
    """Binary cross-entropy with decoupled temperature (math §8.3): BCE of sim / τ · τ_BCE.

    Args:
        logits: sim, scaled by τ.
        labels: targets in [0, 1].
        label_mask: true on real labels.
        tau: scale that the cosine head applied; 1 for the other heads.
        tau_bce: scale of the logit that BCE sees; 1 for the other heads.

    Returns:
        Mean over the N real (text, label) pairs.
    """
    # Padding may hold -inf, whose product with a zero gradient would make that of tau NaN.
    scaled = _widen(logits).masked_fill(~label_mask, 0.0) / tau * tau_bce
    per_pair = F.binary_cross_entropy_with_logits(scaled, labels.to(scaled), reduction="none")
    return _mean(per_pair, label_mask)


class LossTerms(NamedTuple):
    """The weighted total and its unweighted parts."""

    total: Tensor
    contrastive: Tensor
    repulsion: Tensor
    bce: Tensor


def total_loss(
    contrastive: Scalar, repulsion: Scalar, bce: Scalar, weights: tuple[float, float, float]
) -> LossTerms:
    """λ-weighted sum of the three terms (math §8); a term of weight 0 does not touch the total."""
    terms = (contrastive, repulsion, bce)
    active = [w * term for w, term in zip(weights, terms, strict=True) if w != 0]
    total = sum(active[1:], active[0]) if active else contrastive * 0.0
    return LossTerms(total, *terms)


def _widen(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _lowest(x: Tensor) -> float:
    # Half of the minimum, so that a masked logit minus another one does not overflow to -inf.
    return torch.finfo(x.dtype).min / 2


def _mean(values: Tensor, keep: Tensor) -> Tensor:
    return values.masked_fill(~keep, 0.0).sum() / keep.sum().clamp(min=1)
