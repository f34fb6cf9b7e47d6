"""The gradient of the whole model: no path from a parameter to the loss may be cut."""

import pytest
import torch
from transformers import BertConfig

from gliznet import GliZNetConfig, GliZNetForSequenceClassification, GliZNETTokenizer
from gliznet.backbones import resolve

SMALL = {
    "vocab_size": 1001,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 96,
}
TEXTS = ["the cat sat on the mat", "a story about war and the price of bread"]
LABELS = [["animals", "cooking", "a rug"], ["war", "sports"]]
TARGETS = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> GliZNETTokenizer:
    path = resolve("tiny-random", tmp_path_factory.mktemp("backbone"))
    return GliZNETTokenizer.from_pretrained(path, max_length=96)


def difference(model, batch, parameter, direction, h=1e-5):
    """The change of the loss along a direction of one parameter, without autograd."""
    values = []
    with torch.no_grad():
        for sign in (1, -1):
            parameter.add_(sign * h * direction)
            values.append(model(**batch).loss.item())
            parameter.sub_(sign * h * direction)
    return (values[0] - values[1]) / (2 * h)


@pytest.mark.parametrize("score", ["dot", "cosine"])
@pytest.mark.parametrize("formulation", ["math", "card"])
def test_the_gradient_by_every_parameter_is_that_of_the_loss(tokenizer, formulation, score):
    torch.manual_seed(0)
    config = getattr(GliZNetConfig, formulation)(
        BertConfig(**SMALL),
        lab_token_id=tokenizer.lab_token_id,
        control_token_ids=tokenizer.control_token_ids,
        attention_score=score,
        tau_attn=0.5,
        repulsion_threshold=-1.0,  # no kink
        vicreg_target_std=5.0,  # every dimension below it
        repulsion_weight=0.5,
    )
    model = GliZNetForSequenceClassification(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    encoded = tokenizer(TEXTS, LABELS)
    batch = {k: encoded[k] for k in ("input_ids", "attention_mask", "lmask")}
    batch["labels"] = TARGETS
    model(**batch).loss.backward()
    for name, parameter in model.named_parameters():
        direction = torch.randn_like(parameter)
        slope = 0.0 if parameter.grad is None else (parameter.grad * direction).sum().item()
        expected = difference(model, batch, parameter, direction)
        assert slope == pytest.approx(expected, rel=1e-5, abs=1e-7), name
