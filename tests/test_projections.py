"""Projections: number of parameters of every switch, and what dropout does and where it stands."""

import itertools

import pytest
import torch
from transformers import BertConfig

from gliznet import GliZNetConfig, GliZNetForSequenceClassification
from gliznet.layers import projection

D_H = 8
HEADS = {"cosine": lambda d: 0, "dot": lambda d: d + 1, "bilinear": lambda d: d * d + 1}
PROJECTIONS = {
    "identity": lambda d: 0,
    "linear": lambda d: D_H * d + d,
    "linear_layernorm": lambda d: D_H * d + d + 2 * d,
}


def backbone() -> BertConfig:
    return BertConfig(
        vocab_size=20,
        hidden_size=D_H,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
    )


@pytest.mark.parametrize(
    ("kind", "head", "learn", "d_p"),
    [
        case
        for case in itertools.product(PROJECTIONS, HEADS, (True, False), (None, 5))
        if case[0] != "identity" or case[3] is None  # the identity keeps the dimension
    ],
)
def test_new_parameters_are_counted_by_hand(kind, head, learn, d_p):
    config = GliZNetConfig(
        backbone(),
        projection=kind,
        head=head,
        learn_temperatures=learn,
        projected_dim=d_p,
        projection_init="default",
    )
    model = GliZNetForSequenceClassification(config)
    new = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("backbone."))
    d = d_p or D_H
    assert new == 2 * PROJECTIONS[kind](d) + HEADS[head](d) + 3 * learn


@pytest.mark.parametrize("rate", [0.1, 0.6])
@pytest.mark.parametrize("kind", PROJECTIONS)
def test_dropout_comes_last_with_the_rate_of_the_configuration(kind, rate):
    torch.manual_seed(0)
    config = GliZNetConfig(backbone(), projection=kind, projection_dropout=rate)
    layer = projection(config).double()
    if kind == "linear_layernorm":
        layer[1].bias.data.fill_(0.3)  # a shift behind the dropout would leave no zero
    hidden = torch.randn(2000, D_H, dtype=torch.float64)
    before, after = layer.eval()(hidden), layer.train()(hidden)
    kept = after != 0
    torch.testing.assert_close(after[kept], before[kept] / (1 - rate))
    # Five standard errors of a share.
    error = 5 * (rate * (1 - rate) / kept.numel()) ** 0.5
    assert abs(float((~kept).double().mean()) - rate) < error


@torch.no_grad()
def test_the_identity_start_returns_the_hidden_state_bit_for_bit():
    hidden = torch.randn(3, 4, D_H)
    assert torch.equal(projection(GliZNetConfig(backbone()))(hidden), hidden)
