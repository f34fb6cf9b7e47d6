"""Costs against PyTorch's counter on real modules, brute force, and the printed tables of SCE."""

import itertools
import math

import pytest
import sympy
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    LlamaConfig,
    Qwen3Config,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from gliznet import GliZNetConfig, GliZNetForSequenceClassification, costs
from gliznet.costs import Encoder
from gliznet.lab.tables import published

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
DEBERTA = {
    "relative_attention": True,
    "position_buckets": 16,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
}
BERT = Encoder(3, 32, 48)
UNEVEN = Encoder(2, 6, 7, queries=8, keys=4, expansions=2, contractions=3, positions=5)


def count(function, *args, **kwargs):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function(*args, **kwargs)
    return counter.get_total_flops() // 2


def step(function, states):
    """Forward and backward multiply-adds."""
    with FlopCounterMode(display=False) as counter:
        found = function(states)
        forward = counter.get_total_flops() // 2
        (found[0] if isinstance(found, tuple) else found).sum().backward()
    return forward, counter.get_total_flops() // 2 - forward


def states(rows, length):
    return {"inputs_embeds": torch.zeros(rows, length, 32, device="meta")}


def built(config, kind=AutoModel):
    with torch.device("meta"):
        model = kind.from_config(config, attn_implementation="eager").eval()
    if kind is AutoModel and getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


@pytest.mark.parametrize(
    "config", [BertConfig(**SIZES), DebertaV2Config(**SIZES, **DEBERTA)], ids=["bert", "deberta"]
)
@pytest.mark.parametrize(("rows", "length"), [(1, 1), (3, 21)])
def test_encoder_costs_what_the_counter_sees(config, rows, length):
    found = count(built(config), **states(rows, length))
    assert Encoder.from_config(config).forward(length, rows) == found


@pytest.mark.parametrize(
    ("family", "layer", "width"),
    [(LlamaConfig, LlamaDecoderLayer, 8), (Qwen3Config, Qwen3DecoderLayer, 12)],
)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_layer_forward_and_backward(family, layer, width, groups):
    config = family(
        **SIZES, num_key_value_heads=groups, head_dim=width, attn_implementation="eager"
    )
    block = layer(config, 0)
    rotary = (torch.randn(1, 11, width), torch.randn(1, 11, width))

    def call(x):
        return block(x, position_embeddings=rotary, attention_mask=None)

    sizes = Encoder.from_config(config, expansions=2)
    assert (sizes.query_width, sizes.key_width) == (4 * width, groups * width)
    expected = sizes.block(11), sizes.block_backward(11)
    assert step(call, torch.randn(1, 11, 32, requires_grad=True)) == expected


def test_one_linear_map_with_and_without_lora():
    class Lora(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen = nn.Linear(6, 5).requires_grad_(False)
            self.u, self.v = nn.Parameter(torch.ones(6, 2)), nn.Parameter(torch.ones(2, 5))

        def forward(self, x):
            return self.frozen(x) + (x @ self.u) @ self.v

    x = torch.randn(7, 6, requires_grad=True)
    expected = costs.linear(7, 6, 5), costs.linear_backward(7, 6, 5)
    assert step(nn.Linear(6, 5), x) == expected == (210, 420)
    expected = costs.linear(7, 6, 5, 2), costs.linear_backward(7, 6, 5, 2)
    assert step(Lora(), x) == expected == (364, 518)


def test_block_with_lora_is_the_sum_of_its_maps():
    maps = [(6, 8), (6, 4), (6, 4), (8, 6), *[(6, 7)] * 2, *[(7, 6)] * 3]
    assert [(a, b) for a, b, number in UNEVEN.matrices() for _ in range(number)] == maps
    length, rank = 9, 3
    products = 2 * length**2 * 8
    plain = sum(length * a * b for a, b in maps) + products + 2 * 5 * length * 8
    assert UNEVEN.block(length) == plain
    assert UNEVEN.block(length, rank) == plain + sum(length * rank * (a + b) for a, b in maps)
    frozen = sum(length * (a * b + 2 * rank * (a + b)) for a, b in maps) + 2 * products
    assert UNEVEN.block_backward(length, rank) == frozen
    trained = sum(2 * length * a * b for a, b in maps) + 2 * products
    assert UNEVEN.block_backward(length) == trained
    assert UNEVEN.forward(length, 4) == 2 * (4 * plain + 2 * 5 * 6 * 8)
    turning = UNEVEN.turning_length()
    assert UNEVEN.per_token() * turning == pytest.approx(2 * 8 * turning**2)


def sequence(text, label, labels):
    """[CLS] 2, text 10, [SEP] 3, labels 11, [LAB] 4."""
    ids, mask = [2, *[10] * text, 3], [0] * (text + 2)
    for j in range(1, labels + 1):
        ids += [*[11] * label, 4]
        mask += [*[j] * label, 0]
    ids, mask = torch.tensor([ids]), torch.tensor([mask])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "lmask": mask}


@pytest.mark.parametrize("head", ["cosine", "dot", "bilinear"])
@pytest.mark.parametrize("projection", ["identity", "linear"])
def test_single_pass_costs_what_the_counter_sees(head, projection):
    dim = 24 if projection == "linear" else None
    config = GliZNetConfig.math(
        BertConfig(**SIZES),
        lab_token_id=4,
        control_token_ids=[2, 3, 4],
        projection=projection,
        projection_init="default",
        projected_dim=dim,
        head=head,
    )
    config._attn_implementation = "eager"
    model = GliZNetForSequenceClassification(config).eval()
    case = (13, 2, 7)
    batch = sequence(*case)
    length = costs.joint_length(*case)
    assert batch["input_ids"].shape[1] == length == 36
    own = {"dim": dim, "head": head, "projected": projection == "linear"}
    parts = costs.own_parts(length, 7, 32, **own)
    # The counter does not see inner products: all of the cosine and dot heads, the last step of
    # the bilinear one.
    d = dim or 32
    unseen = {"cosine": 7 * 3 * d, "dot": 7 * 2 * d, "bilinear": 7 * d}[head]
    found = count(model, **batch)
    assert costs.single_pass(BERT, *case, **own) - unseen == found
    assert BERT.forward(length) + sum(parts.values()) - unseen == found
    assert parts["head"] == unseen + (7 * d * d if head == "bilinear" else 0)


def test_cross_bi_and_soft_encoder():
    config = BertConfig(**SIZES, num_labels=1)
    text, label, labels = 13, 2, 7
    found = count(
        built(config, AutoModelForSequenceClassification), **states(labels, text + label + 3)
    )
    assert costs.pair_length(text, label) == text + label + 3
    assert costs.cross_encoder(BERT, text, label, labels) == found
    encoder = built(config)
    read = count(encoder, **states(1, text + 2))
    kept = read + labels * 32
    assert costs.bi_encoder(BERT, text, label, labels, cached=True) == kept
    names = count(encoder, **states(labels, label + 2))
    assert costs.bi_encoder(BERT, text, label, labels) == kept + names
    reader = Encoder(5, 20, 30)
    scored = 20 * 32 + count(encoder, **states(1, labels + 1)) + labels * 32
    assert costs.soft_encoder(reader, BERT, text, labels, cached=True) == scored
    assert costs.soft_encoder(reader, BERT, text, labels) == scored + reader.forward(text + 2)


def test_speed_up_against_whole_numbers():
    coefficients = costs.quadratic(lambda k: costs.single_pass(BERT, 9, 3, k))
    pair = costs.cross_encoder(BERT, 9, 3, 1)
    found = {
        k: costs.cross_encoder(BERT, 9, 3, k) / costs.single_pass(BERT, 9, 3, k)
        for k in range(1, 400)
    }
    for k, ratio in found.items():
        assert costs.speed_up(coefficients, pair, k) == pytest.approx(ratio)
    best = costs.best_labels(coefficients)
    assert abs(max(found, key=found.get) - best) < 1
    assert costs.speed_up(coefficients, pair, best) >= max(found.values())
    dearer = [k for k, ratio in found.items() if k > best and ratio < 1]
    assert dearer[0] == math.ceil(costs.break_even(coefficients, pair)) < 400
    assert math.isnan(costs.break_even(coefficients, pair / 10))
    assert costs.quadratic(lambda k: 5 + 3 * k + 2 * k**2) == (5, 3, 2)


def test_chunks_window_and_memory():
    assert costs.chunked(lambda k: k**2, 11, 4) == 2 * 16 + 9
    assert costs.chunked(lambda k: k**2, 12, 4) == 3 * 16
    for text, label in itertools.product(range(60), (1, 3, 30)):
        fit = costs.labels_that_fit(64, text, label)
        assert costs.joint_length(text, label, fit) <= 64 < costs.joint_length(text, label, fit + 1)
    assert costs.attention_weights(3, 4, 5, rows=2) == 3 * 4 * 2 * 25


def test_formulas_take_symbols():
    n, m, labels, d, f = sympy.symbols("n m K d f", positive=True)
    cost = costs.single_pass(Encoder(1, d, f), n, m, labels)
    assert sympy.Poly(sympy.expand(cost), labels).degree() == 2
    values = {n: 13, m: 2, labels: 7, d: 32, f: 48}
    assert cost.subs(values) == costs.single_pass(Encoder(1, 32, 48), 13, 2, 7)


def test_printed_tables_of_sce():
    rows = published("sce_flops")
    assert not rows.duplicated(["place", "part", "quantity"]).any()
    printed = rows.set_index(["place", "part", "quantity"])["value"]
    names = {name: sympy.Symbol(name) for name in ("m", "d", "d_ff", "r", "n_f1", "n_f2")}
    block = Encoder(1, names["d"], names["d_ff"], None, None, names["n_f1"], names["n_f2"])
    m, r = names["m"], names["r"]
    for table, expected in (
        ("Table 4", block.block(m)),
        ("Table 5", block.block(m, r)),
        ("Table 6", block.block_backward(m)),
        ("Table 7", block.block_backward(m, r)),
    ):
        total = sympy.sympify(printed[table, "block", "total"], locals=names)
        assert sympy.expand(total - expected) == 0
        parts = [
            sympy.sympify(printed[table, part, quantity], locals=names)
            for part, quantity in (
                ("linear projections", "total"),
                ("attention", "sum over heads"),
                ("feed-forward", "total"),
            )
        ]
        assert sympy.expand(total - sum(parts)) == 0
