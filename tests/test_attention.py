"""Label-conditioned attention against closed forms: odds, exact zeros, gradients."""

import math

import pytest
import torch

from gliznet.layers import label_conditioned_attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1.0, 1e3, 1e6])
def test_a_masked_position_gets_nothing_however_low_the_allowed_scores_are(dtype, size):
    labels = torch.tensor([[[size, 0.0]]], dtype=dtype)
    text = torch.tensor([[[-1.0, 1.0], [-1.0, 2.0], [5.0, 3.0], [0.0, 4.0]]], dtype=dtype)
    positions = torch.tensor([[True, True, False, False]])
    embedding, weights = label_conditioned_attention(labels, text, positions, 1.0)
    assert weights.tolist() == [[[0.5, 0.5, 0.0, 0.0]]]
    assert embedding.tolist() == [[[-1.0, 1.5]]]


def test_odds_of_two_tokens_are_the_exponential_of_their_score_gap():
    labels = torch.tensor([[[math.log(8.0)]]], dtype=torch.float64)
    text = torch.tensor([[[1.0], [0.0]]], dtype=torch.float64)
    positions = torch.tensor([[True, True]])
    for tau, odds in ((1.0, 8.0), (3.0, 2.0), (0.5, 64.0)):
        _, weights = label_conditioned_attention(labels, text, positions, tau)
        torch.testing.assert_close(weights[0, 0, 0] / weights[0, 0, 1], torch.tensor(odds).double())


def test_the_gradient_to_a_label_is_the_covariance_of_the_values_with_the_keys():
    torch.manual_seed(2)
    labels = torch.randn(1, 1, 3, dtype=torch.float64, requires_grad=True)
    keys, values = torch.randn(2, 1, 5, 3, dtype=torch.float64)
    positions = torch.tensor([[True, False, True, True, True]])
    tau = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    embedding, weights = label_conditioned_attention(labels, keys, positions, tau, values)
    alpha, centre = weights[0, 0].detach(), embedding[0, 0].detach()
    covariance = ((values[0] - centre) * alpha[:, None]).T @ keys[0]
    for p in range(3):
        by_label, by_tau = torch.autograd.grad(embedding[0, 0, p], (labels, tau), retain_graph=True)
        torch.testing.assert_close(by_label[0, 0], covariance[p] / 0.7)
        expected = -covariance[p] @ labels[0, 0].detach() / 0.7**2
        torch.testing.assert_close(by_tau, expected)


def test_a_token_learns_as_key_and_as_value():
    torch.manual_seed(3)
    labels = torch.randn(1, 1, 3, dtype=torch.float64)
    text = torch.randn(1, 4, 3, dtype=torch.float64, requires_grad=True)
    positions = torch.tensor([[True, True, False, True]])
    embedding, weights = label_conditioned_attention(labels, text, positions, 0.5)
    alpha, centre = weights[0, 0].detach(), embedding[0, 0].detach()
    for p in range(3):
        (found,) = torch.autograd.grad(embedding[0, 0, p], text, retain_graph=True)
        as_value = torch.eye(3, dtype=torch.float64)[p]
        as_key = (text[0, :, p].detach() - centre[p])[:, None] * labels[0, 0] / 0.5
        torch.testing.assert_close(found[0], alpha[:, None] * (as_value + as_key))
