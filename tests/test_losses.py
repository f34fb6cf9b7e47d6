"""The losses against loops written from the formulas, closed forms, and autograd in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from gliznet.losses import (
    bce_loss,
    one_vs_negatives_loss,
    repulsion_loss,
    supcon_loss,
    total_loss,
    vicreg_loss,
)

quick = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 10_000)


def random_batch(seed, rows=4, labels=5, dim=6, dtype=torch.float64):
    """Logits, 0/1 targets, embeddings and a mask that has at least one label in every row."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, labels, generator=generator) < 0.7
    mask[:, 0] = True
    targets = (torch.rand(rows, labels, generator=generator) < 0.4).double()
    logits = 3 * torch.randn(rows, labels, generator=generator, dtype=torch.float64)
    embeddings = torch.randn(rows, labels, dim, generator=generator, dtype=torch.float64)
    return logits.to(dtype), targets.to(dtype), embeddings.to(dtype), mask


# Oracles: plain Python numbers, one loop per sum sign of the formula.


def rows_of(logits, targets, mask):
    for s, y, m in zip(logits.tolist(), targets.tolist(), mask.tolist(), strict=True):
        real = [j for j in range(len(s)) if m[j]]
        yield s, [j for j in real if y[j] == 1], [j for j in real if y[j] == 0], real


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def naive_supcon(logits, targets, mask):
    losses = []
    for s, positives, _, real in rows_of(logits, targets, mask):
        if positives:
            total = sum(math.exp(s[k]) for k in real)
            losses.append(mean(-math.log(math.exp(s[j]) / total) for j in positives))
    return mean(losses)


def naive_one_vs_negatives(logits, targets, mask, margin):
    losses = []
    for s, positives, negatives, _ in rows_of(logits, targets, mask):
        if positives:
            rivals = sum(math.exp(s[k]) for k in negatives)
            own = [math.exp(s[j] - margin) for j in positives]
            losses.append(mean(-math.log(e / (e + rivals)) for e in own))
    return mean(losses)


def naive_repulsion(embeddings, mask, threshold):
    losses = []
    for e, m in zip(embeddings.tolist(), mask.tolist(), strict=True):
        real = [j for j in range(len(m)) if m[j]]
        costs = []
        for j in real:
            for k in real:
                if j != k:
                    dot = sum(a * b for a, b in zip(e[j], e[k], strict=True))
                    norms = math.hypot(*e[j]) * math.hypot(*e[k])
                    costs.append(max(0.0, dot / norms - threshold))
        if costs:
            losses.append(mean(costs))
    return mean(losses)


def naive_vicreg(embeddings, mask, target_std, eps):
    rows = embeddings.numpy()[mask.numpy()]
    if len(rows) < 2:
        return 0.0
    covariance = np.atleast_2d(np.cov(rows, rowvar=False, ddof=1))
    d = rows.shape[1]
    variance = mean(max(0.0, target_std - math.sqrt(covariance[i, i] + eps)) for i in range(d))
    return variance + sum(covariance[i, j] ** 2 for i in range(d) for j in range(d) if i != j) / d


def naive_bce(logits, targets, mask, tau, tau_bce):
    costs = []
    for s, y, m in zip(logits.tolist(), targets.tolist(), mask.tolist(), strict=True):
        for j in range(len(s)):
            if m[j]:
                p = 1 / (1 + math.exp(-s[j] / tau * tau_bce))
                costs.append(-(y[j] * math.log(p) + (1 - y[j]) * math.log(1 - p)))
    return mean(costs)


LOSSES = {
    "supcon": (
        lambda s, y, e, m: supcon_loss(s, y, m),
        lambda s, y, e, m: naive_supcon(s, y, m),
    ),
    "one_vs_negatives": (
        lambda s, y, e, m: one_vs_negatives_loss(s, y, m, 0.5),
        lambda s, y, e, m: naive_one_vs_negatives(s, y, m, 0.5),
    ),
    "repulsion": (
        lambda s, y, e, m: repulsion_loss(e, m, 0.1),
        lambda s, y, e, m: naive_repulsion(e, m, 0.1),
    ),
    "vicreg": (
        lambda s, y, e, m: vicreg_loss(e, m, 1.2),
        lambda s, y, e, m: naive_vicreg(e, m, 1.2, 1e-4),
    ),
    "bce": (
        lambda s, y, e, m: bce_loss(s, y, m, 7.0, 3.0),
        lambda s, y, e, m: naive_bce(s, y, m, 7.0, 3.0),
    ),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


@every_loss
@quick
@given(seed=seeds)
def test_a_loss_equals_the_loop_written_from_its_formula(name, seed):
    loss, oracle = LOSSES[name]
    batch = random_batch(seed)
    assert loss(*batch).item() == pytest.approx(oracle(*batch), rel=1e-10, abs=1e-12)


@every_loss
@quick
@given(seed=seeds)
def test_the_order_of_labels_and_rows_does_not_matter(name, seed):
    loss, _ = LOSSES[name]
    batch = random_batch(seed)
    generator = torch.Generator().manual_seed(seed)
    columns, rows = torch.randperm(5, generator=generator), torch.randperm(4, generator=generator)
    shuffled = [x[rows][:, columns] for x in batch]
    torch.testing.assert_close(loss(*shuffled), loss(*batch), rtol=1e-10, atol=1e-12)


@every_loss
@pytest.mark.parametrize("filler", [0.0, 50.0, -1e30])
def test_padded_label_columns_change_neither_value_nor_gradient(name, filler):
    loss, _ = LOSSES[name]
    logits, targets, embeddings, mask = random_batch(3)

    def value_and_gradients(columns):
        padded_logits = torch.cat([logits, torch.full((4, columns), filler).double()], 1)
        # A padded column that claims to be positive must be ignored too.
        padded_targets = torch.cat([targets, torch.ones(4, columns).double()], 1)
        padded_embeddings = torch.cat([embeddings, torch.full((4, columns, 6), filler).double()], 1)
        padded_mask = torch.cat([mask, torch.zeros(4, columns, dtype=torch.bool)], 1)
        leaves = [padded_logits.requires_grad_(), padded_embeddings.requires_grad_()]
        value = loss(padded_logits, padded_targets, padded_embeddings, padded_mask)
        value.backward()
        return [value.detach()] + [x.grad for x in leaves if x.grad is not None]

    for plain, padded in zip(value_and_gradients(0), value_and_gradients(3), strict=True):
        if plain.ndim:
            assert padded[:, 5:].abs().max() == 0
            padded = padded[:, :5]
        torch.testing.assert_close(padded, plain, rtol=1e-12, atol=1e-14)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_half_precision_is_computed_in_float32_and_float64_stays(name, dtype):
    loss, oracle = LOSSES[name]
    logits, targets, embeddings, mask = random_batch(11, dtype=dtype)
    value = loss(logits, targets, embeddings, mask)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    wide = [x.double() for x in (logits, targets, embeddings)]
    # The oracle sees the rounded inputs, so what is left is the rounding of float32 alone.
    expected = oracle(*wide, mask)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    assert value.item() == pytest.approx(expected, rel=tolerance)


@every_loss
def test_a_batch_without_any_real_label_costs_nothing(name):
    loss, _ = LOSSES[name]
    logits, targets, embeddings, mask = random_batch(0)
    leaves = [logits.requires_grad_(), embeddings.requires_grad_()]
    value = loss(logits, targets, embeddings, torch.zeros_like(mask))
    value.backward()
    assert value.item() == 0
    assert all(x.grad is None or x.grad.abs().max() == 0 for x in leaves)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_at_zero_embeddings_and_extreme_logits(name, dtype):
    loss, _ = LOSSES[name]
    big = torch.finfo(torch.float32).max / 1e6
    logits = torch.tensor([[big, -big, 0.0], [-big, big, big], [1e4, 1e4, -1e4]], dtype=dtype)
    targets = torch.tensor([[0, 1, 1], [1, 1, 0], [0, 0, 1]], dtype=dtype)
    embeddings = torch.zeros(3, 3, 4, dtype=dtype)
    embeddings[2] = 1e3
    mask = torch.tensor([[True] * 3, [True] * 3, [True, True, False]])
    leaves = [logits.requires_grad_(), embeddings.requires_grad_()]
    value = loss(logits, targets, embeddings, mask)
    value.backward()
    assert value.isfinite()
    assert all(x.grad is None or x.grad.isfinite().all() for x in leaves)


@every_loss
@pytest.mark.parametrize("seed", [0, 5])
def test_autograd_agrees_with_finite_differences(name, seed):
    loss, _ = LOSSES[name]
    logits, targets, embeddings, mask = random_batch(seed, rows=3, labels=4, dim=3)

    def of_inputs(s, e):
        # The zero-weighted sums tie both inputs to the graph of every loss.
        return loss(s, targets, e, mask) + 0 * (s.sum() + e.sum())

    assert torch.autograd.gradcheck(
        of_inputs, (logits.requires_grad_(), embeddings.requires_grad_())
    )


# SupCon


def test_supcon_of_equal_logits_is_log_k():
    for k in (1, 2, 7):
        targets = torch.zeros(1, k, dtype=torch.float64)
        targets[0, 0] = 1
        value = supcon_loss(torch.full((1, k), 4.2).double(), targets, torch.ones(1, k).bool())
        assert value.item() == pytest.approx(math.log(k), abs=1e-12)


@quick
@given(seed=seeds)
def test_supcon_gradient_is_softmax_minus_the_uniform_positives(seed):
    logits, targets, _, mask = random_batch(seed)
    targets[0, 0] = 1
    logits.requires_grad_()
    supcon_loss(logits, targets, mask).backward()
    p = logits.detach().masked_fill(~mask, -torch.inf).softmax(-1)
    positive = targets.bool() & mask
    counted = positive.any(1, keepdim=True)
    share = positive.double() / positive.sum(1, keepdim=True).clamp(min=1)
    expected = (p - share) * counted / counted.sum()
    torch.testing.assert_close(logits.grad, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", [supcon_loss, one_vs_negatives_loss])
def test_a_row_without_positives_is_left_out_of_the_mean(loss):
    logits, targets, _, _ = random_batch(1)
    mask = torch.ones_like(targets).bool()
    targets[2] = 0
    targets[[0, 1, 3], 0] = 1
    logits.requires_grad_()
    value = loss(logits, targets, mask)
    value.backward()
    kept = [0, 1, 3]
    torch.testing.assert_close(value, loss(logits[kept], targets[kept], mask[kept]))
    assert logits.grad[2].abs().max() == 0
    alone = loss(logits[2:3], targets[2:3], mask[2:3])
    assert alone.item() == 0 and torch.autograd.grad(alone, logits)[0].abs().max() == 0


@quick
@given(seed=seeds, shift=st.floats(-100, 100))
def test_contrastive_losses_do_not_see_a_shift_of_a_row(seed, shift):
    logits, targets, _, mask = random_batch(seed)
    for loss in (supcon_loss, one_vs_negatives_loss):
        torch.testing.assert_close(
            loss(logits + shift, targets, mask), loss(logits, targets, mask), rtol=1e-8, atol=1e-10
        )


# One against the negatives


def test_one_vs_negatives_is_a_softplus_for_one_positive_and_one_negative():
    targets, mask = torch.tensor([[1.0, 0.0]]).double(), torch.ones(1, 2).bool()
    for gap in (-3.0, 0.0, 2.5):
        value = one_vs_negatives_loss(torch.tensor([[gap, 0.0]]).double(), targets, mask, 0.5)
        assert value.item() == pytest.approx(math.log1p(math.exp(0.5 - gap)), abs=1e-12)


def test_without_a_negative_one_vs_negatives_is_zero():
    logits = torch.tensor([[1.0, -2.0]], requires_grad=True)
    value = one_vs_negatives_loss(logits, torch.ones(1, 2), torch.ones(1, 2).bool(), 0.5)
    value.backward()
    assert value.item() == 0 and logits.grad.abs().max() == 0


def test_another_positive_does_not_compete_in_one_vs_negatives():
    targets, mask = torch.tensor([[1.0, 1.0, 0.0]]).double(), torch.ones(1, 3).bool()
    logits = torch.tensor([[0.3, 9.0, -0.4]], dtype=torch.float64, requires_grad=True)
    one_vs_negatives_loss(logits, targets, mask).backward()
    p = 1 / (1 + math.exp(0.3 + 0.4))
    assert logits.grad[0, 0].item() == pytest.approx(-p / 2, abs=1e-12)
    assert supcon_loss(logits, targets, mask) > one_vs_negatives_loss(logits, targets, mask)


def test_with_one_positive_and_no_margin_both_contrastive_losses_agree():
    logits, _, _, mask = random_batch(8)
    targets = torch.zeros_like(logits)
    targets[:, 0] = 1
    torch.testing.assert_close(
        one_vs_negatives_loss(logits, targets, mask), supcon_loss(logits, targets, mask)
    )


def test_a_larger_margin_costs_more():
    logits, targets, _, mask = random_batch(4)
    values = [one_vs_negatives_loss(logits, targets, mask, m).item() for m in (0.0, 0.5, 2.0)]
    assert values == sorted(values) and values[0] < values[2]


# Repulsion


def test_repulsion_of_two_labels_is_the_excess_of_their_cosine():
    for degrees in (0, 30, 60, 85, 120):
        angle = math.radians(degrees)
        other = [5 * math.cos(angle), 5 * math.sin(angle)]
        pair = torch.tensor([[[2.0, 0.0], other]], dtype=torch.float64)
        value = repulsion_loss(pair, torch.ones(1, 2).bool(), 0.3)
        assert value.item() == pytest.approx(max(0.0, math.cos(angle) - 0.3), abs=1e-12)


def test_a_row_with_one_label_has_no_pair_and_is_left_out():
    _, _, embeddings, _ = random_batch(2)
    mask = torch.ones(4, 5).bool()
    mask[1, 1:] = False
    kept = [0, 2, 3]
    torch.testing.assert_close(
        repulsion_loss(embeddings, mask, 0.0), repulsion_loss(embeddings[kept], mask[kept], 0.0)
    )
    assert repulsion_loss(embeddings[1:2], mask[1:2], -1.0).item() == 0


def test_repulsion_does_not_see_the_norm_and_never_crosses_rows():
    _, _, embeddings, mask = random_batch(6)
    scaled = embeddings * torch.rand(4, 5, 1, dtype=torch.float64).add(0.1)
    torch.testing.assert_close(repulsion_loss(scaled, mask), repulsion_loss(embeddings, mask))
    same_across_rows = torch.eye(3).double().expand(2, 3, 3)
    assert repulsion_loss(same_across_rows, torch.ones(2, 3).bool()).item() == 0


# VICReg


def test_vicreg_of_collapsed_labels_asks_for_the_whole_standard_deviation():
    value = vicreg_loss(torch.ones(2, 3, 4).double(), torch.ones(2, 3).bool(), 1.0, eps=1e-4)
    assert value.item() == pytest.approx(1.0 - 0.01, abs=1e-12)


def test_vicreg_of_wide_uncorrelated_dimensions_is_zero():
    corners = torch.tensor([[3.0, 3.0], [3.0, -3.0], [-3.0, 3.0], [-3.0, -3.0]]).double()
    assert vicreg_loss(corners[None], torch.ones(1, 4).bool()).item() == 0


def test_vicreg_covariance_term_of_two_equal_dimensions_is_their_squared_variance():
    # Both dimensions are ±3: variance 12 with n − 1; two off-diagonal entries over d = 2.
    rows = torch.tensor([[3.0, 3.0], [3.0, 3.0], [-3.0, -3.0], [-3.0, -3.0]]).double()
    assert vicreg_loss(rows[None], torch.ones(1, 4).bool()).item() == pytest.approx(144.0)


def test_vicreg_needs_two_labels_in_the_batch_not_in_a_row():
    embeddings = torch.tensor([[[1.0, 2.0]], [[3.0, 0.5]]]).double().requires_grad_()
    one = vicreg_loss(embeddings, torch.tensor([[True], [False]]))
    assert one.item() == 0 and torch.autograd.grad(one, embeddings)[0].abs().max() == 0
    assert vicreg_loss(embeddings, torch.tensor([[True], [True]])).item() > 0


# BCE


def test_bce_equals_scikit_learns_log_loss():
    logits, targets, _, mask = random_batch(9)
    p = torch.sigmoid(logits / 2.0 * 5.0)[mask]
    expected = log_loss(targets[mask].numpy(), p.numpy(), labels=[0, 1])
    assert bce_loss(logits, targets, mask, 2.0, 5.0).item() == pytest.approx(expected, rel=1e-10)


def test_bce_is_a_mean_over_pairs_not_over_rows():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    logits, targets = torch.zeros(2, 3).double(), torch.zeros(2, 3).double()
    logits[1, 0] = 4.0
    expected = (3 * math.log(2) + math.log1p(math.exp(4.0))) / 4
    assert bce_loss(logits, targets, mask).item() == pytest.approx(expected, abs=1e-12)


def test_bce_gradients_with_both_temperatures():
    logits, targets, _, mask = random_batch(12)
    tau, tau_bce = torch.tensor(7.0).double(), torch.tensor(2.0).double()
    leaves = (logits.requires_grad_(), tau.requires_grad_(), tau_bce.requires_grad_())
    bce_loss(logits, targets, mask, tau, tau_bce).backward()
    error = ((logits.detach() * 2 / 7).sigmoid() - targets) * mask / mask.sum()
    torch.testing.assert_close(logits.grad, error * 2 / 7)
    torch.testing.assert_close(tau.grad, -(error * logits.detach() * 2 / 49).sum())
    torch.testing.assert_close(tau_bce.grad, (error * logits.detach() / 7).sum())
    for leaf in leaves:
        leaf.grad = None
    assert torch.autograd.gradcheck(lambda s, a, b: bce_loss(s, targets, mask, a, b), leaves)


def test_bce_takes_soft_targets():
    value = bce_loss(torch.zeros(1, 1), torch.full((1, 1), 0.3), torch.ones(1, 1).bool())
    assert value.item() == pytest.approx(math.log(2))


def test_the_models_padded_logits_are_safe_in_every_loss():
    """The model writes −inf into padding; value and gradients, τ's too, must stay finite."""
    mask = torch.tensor([[True, True], [True, False]])
    targets = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).double()
    padded = torch.tensor([[0.5, -0.2], [1.0, -torch.inf]]).double()
    for loss in (supcon_loss, one_vs_negatives_loss, bce_loss):
        logits = padded.clone().requires_grad_()
        tau = torch.tensor(2.0).double().requires_grad_()
        value = (
            loss(logits, targets, mask, tau) if loss is bce_loss else loss(logits, targets, mask)
        )
        value.backward()
        assert value.isfinite() and logits.grad.isfinite().all(), loss.__name__
        assert tau.grad is None or tau.grad.isfinite(), loss.__name__


# The weighted total


def test_the_total_is_the_weighted_sum_and_keeps_its_parts():
    parts = [torch.tensor(x).double().requires_grad_() for x in (1.5, 0.25, 4.0)]
    terms = total_loss(*parts, (0.5, 2.0, 0.1))
    assert terms.total.item() == pytest.approx(0.75 + 0.5 + 0.4)
    assert (terms.contrastive, terms.repulsion, terms.bce) == tuple(parts)
    assert [g.item() for g in torch.autograd.grad(terms.total, parts)] == [0.5, 2.0, 0.1]


def test_a_term_of_weight_zero_cannot_reach_the_total():
    bad = torch.tensor(torch.nan, requires_grad=True)
    good = torch.tensor(2.0, requires_grad=True)
    for place in range(3):
        terms = [good, good, good]
        terms[place] = bad
        weights = tuple(0.0 if i == place else 1.0 for i in range(3))
        assert total_loss(*terms, weights).total.item() == 4.0


def test_with_all_weights_zero_the_total_is_zero_and_has_a_gradient():
    leaf = torch.tensor(3.0, requires_grad=True)
    terms = total_loss(leaf * 2, leaf, leaf, (0.0, 0.0, 0.0))
    terms.total.backward()
    assert terms.total.item() == 0 and leaf.grad.item() == 0


def test_shapes_that_do_not_agree_are_refused():
    """Shape annotations are enforced under pytest."""
    logits, targets, embeddings, mask = random_batch(0)
    for call in (
        lambda: supcon_loss(logits, targets[:, :3], mask),
        lambda: one_vs_negatives_loss(logits, targets, mask[:2]),
        lambda: repulsion_loss(embeddings[:, :2], mask),
        lambda: bce_loss(logits, targets, mask.double()),
    ):
        with pytest.raises(TypeError):
            call()
