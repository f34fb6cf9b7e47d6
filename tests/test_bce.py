"""Which loss trains which temperature: the coupling of BCE and τ through the whole model."""

import pytest
import torch
from transformers import BertConfig

from gliznet import GliZNetConfig, GliZNetForSequenceClassification, GliZNETTokenizer
from gliznet.backbones import resolve

SMALL = {
    "vocab_size": 1001,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 96,
}
TEMPERATURES = ("log_tau", "log_tau_bce", "log_tau_attn")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[GliZNETTokenizer, dict[str, torch.Tensor]]:
    path = resolve("tiny-random", tmp_path_factory.mktemp("backbone"))
    tokenizer = GliZNETTokenizer.from_pretrained(path, max_length=96)
    batch = tokenizer(
        ["the cat sat on the mat", "a story about war and the price of bread"],
        [["animals", "cooking", "a rug"], ["war", "sports"]],
    )
    found = {k: batch[k] for k in ("input_ids", "attention_mask", "lmask")}
    return tokenizer, found | {"labels": torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]])}


def model_of(tokenizer, **overrides):
    torch.manual_seed(0)
    config = GliZNetConfig.math(
        BertConfig(**SMALL),
        lab_token_id=tokenizer.lab_token_id,
        control_token_ids=tokenizer.control_token_ids,
        tau=5.0,
        tau_bce=3.0,
        **overrides,
    )
    return GliZNetForSequenceClassification(config).double().eval()


def pulls(model, batch, term):
    """The gradient of one term by the logarithm of each temperature, None where no path leads."""
    leaves = [getattr(model, name) for name in TEMPERATURES]
    loss = model(**batch).loss_terms[term]
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [None if x is None else x.item() for x in found]


def test_under_the_cosine_head_each_scale_has_one_loss(inputs):
    tokenizer, batch = inputs
    model = model_of(tokenizer)
    tau, tau_bce, tau_attn = pulls(model, batch, "bce")
    assert tau == pytest.approx(0, abs=1e-13) and abs(tau_bce) > 1e-3 and tau_attn != 0
    tau, tau_bce, tau_attn = pulls(model, batch, "contrastive")
    assert abs(tau) > 1e-3 and tau_bce is None and tau_attn != 0
    assert pulls(model, batch, "repulsion") == [None, None, None]


@pytest.mark.parametrize("head", ["dot", "bilinear"])
def test_a_head_without_a_scale_leaves_both_alone(inputs, head):
    tokenizer, batch = inputs
    model = model_of(tokenizer, head=head)
    for term in ("contrastive", "bce"):
        assert pulls(model, batch, term)[:2] == [None, None]


def test_bce_does_not_see_tau_and_the_other_terms_do_not_see_tau_bce(inputs):
    tokenizer, batch = inputs
    terms = {}
    for name, scale in (("start", {}), ("log_tau", {"log_tau": 2.0}), ("log_tau_bce", {})):
        model = model_of(tokenizer)
        with torch.no_grad():
            if name != "start":
                getattr(model, name).add_(scale.get(name, 0.7))
            terms[name] = {k: v.item() for k, v in model(**batch).loss_terms.items()}
    start, moved_tau, moved_bce = terms.values()
    assert moved_tau["bce"] == pytest.approx(start["bce"], rel=1e-12)
    assert moved_tau["contrastive"] != pytest.approx(start["contrastive"], rel=1e-3)
    assert moved_bce["contrastive"] == start["contrastive"]
    assert moved_bce["bce"] != pytest.approx(start["bce"], rel=1e-3)
