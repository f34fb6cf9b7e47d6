"""The hypothesis form against the zero-shot pipeline of transformers, called directly."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    ZeroShotClassificationPipeline,
    pipeline,
)

from gliznet import peers
from gliznet.backbones import TINY, resolve

TEXTS = ["The harbour froze over and no ship came in.", "Short.", "The court adjourned, late."]
LABELS = ["winter weather", "law", "{}", "a label of several words"]
TEMPLATE = "It is about {}, is it not?"
ORDERS = {
    "last": ["contradiction", "neutral", "ENTAILMENT"],
    "first": ["entailment", "neutral", "contradiction"],
}


@pytest.fixture(scope="module", params=ORDERS)
def checkpoint(request, tmp_path_factory) -> str:
    """A tiny model with a head for natural language inference, large enough to tell labels."""
    folder = tmp_path_factory.mktemp("nli")
    tiny = resolve(TINY, folder)
    names = ORDERS[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForSequenceClassification.from_pretrained(
            tiny,
            num_labels=3,
            id2label=dict(enumerate(names)),
            label2id={name: i for i, name in enumerate(names)},
        )
    with torch.no_grad():
        model.classifier.weight.mul_(200)
    model.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder / "model")
    return str(folder / "model")


def direct(checkpoint: str) -> ZeroShotClassificationPipeline:
    return pipeline("zero-shot-classification", model=checkpoint, device="cpu")


@pytest.mark.parametrize("multi_label", [True, False])
def test_scores_are_those_of_the_pipeline(checkpoint, multi_label, tmp_path):
    peer = peers.build(
        "nli", checkpoint, batch_size=3, hypothesis_template=TEMPLATE, multi_label=multi_label
    )
    peer.save(tmp_path)
    peer = peers.kind("nli").load(tmp_path, batch_size=3)
    scores = torch.from_numpy(peer.predict(TEXTS, LABELS))
    found = scores.sigmoid() if multi_label else scores.softmax(dim=1)
    results = direct(checkpoint)(
        TEXTS, LABELS, hypothesis_template=TEMPLATE, multi_label=multi_label
    )
    by_label = [dict(zip(r["labels"], r["scores"], strict=True)) for r in results]
    expected = [[row[label] for label in LABELS] for row in by_label]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.ptp(expected) > 1e-3
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    ids = [tokenizer(text, TEMPLATE.format(label)).input_ids for text in TEXTS for label in LABELS]
    assert (peer.costs.sequences, peer.costs.tokens) == (12, sum(map(len, ids)))


def test_what_the_pipeline_refuses_or_gets_wrong_the_peer_does_not(checkpoint):
    peer, library = peers.build("nli", checkpoint, max_length=48), direct(checkpoint)
    with pytest.raises(ValueError, match="at least one sequence"):
        library([""], LABELS)
    assert np.isfinite(peer.predict([""], LABELS)).all()
    with pytest.raises(ValueError, match="not able to be formatted"):
        library(["a"], ["{}", "law"], hypothesis_template="{}")
    library(["a"], ["law", "{}"], hypothesis_template="{}")

    library.tokenizer.model_max_length = 48
    long = next(library.preprocess("law", ["court " * 60]))
    assert long["input_ids"].shape[1] > 48
    with pytest.raises(peers.PeerError, match="window of 48"):
        peer.predict(["law"], ["court " * 60])

    with torch.no_grad():
        for model in (peer.model.transformers_model, library.model):
            model.classifier.bias.fill_(100.0)
    with np.errstate(all="ignore"):
        assert np.isnan(library(["a"], LABELS)[0]["scores"]).all()
    assert np.isfinite(peer.predict(["a"], LABELS)).all()


def test_a_template_without_a_place_for_the_label_is_refused(checkpoint):
    with pytest.raises(ValueError, match="hypothesis_template is 'About it'"):
        peers.build("nli", checkpoint, hypothesis_template="About it")
