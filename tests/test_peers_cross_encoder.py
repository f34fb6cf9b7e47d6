"""The cross-encoder peers against sentence-transformers and a training loop written out here."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from transformers import AutoTokenizer, get_linear_schedule_with_warmup

from gliznet import peers
from gliznet.backbones import TINY, resolve
from gliznet.batches import LengthGroups
from gliznet.data.types import Example
from gliznet.peers import cross_encoder, protocol

TEXTS = ["The harbour froze over and no ship came in.", "Short.", "", "The court adjourned late."]
LABELS = ["winter weather", "law", "a label of several words"]
NAMES = ["ship", "court", "winter", "dinner", "judge"]
EXAMPLES = [
    Example(f"the {NAMES[i % 5]} {i} " + "was late " * (i % 3), (NAMES[i % 5],), tuple(others))
    for i in range(8)
    for others in [[name for name in NAMES if name != NAMES[i % 5]][: 4 * (i % 2)]]
]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> str:
    """The tiny encoder with its usual dropout, but none in a new classification head."""
    folder = Path(resolve(TINY, tmp_path_factory.mktemp("backbone")))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"classifier_dropout": 0.0}))
    return str(folder)


@pytest.fixture(scope="module")
def saved(backbone, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    peers.build("cross-encoder", backbone, max_length=24).save(folder)
    return folder


@pytest.fixture
def direct(saved) -> CrossEncoder:
    return CrossEncoder(str(saved), max_length=24)


def settings(**changes) -> peers.FitSettings:
    return peers.FitSettings(
        **{
            "seed": 3,
            "learning_rate": 1e-2,
            "head_lr_multiplier": 2.0,
            "max_steps": 2,
            "batch_size": 8,
            "max_length": 24,
            "backbone_dropout": 0.0,
            **changes,
        }
    )


def test_scores_are_the_logits_of_the_library(saved, direct):
    peer = peers.kind("cross-encoder").load(saved, max_length=24, batch_size=3)
    pairs = [(text, label) for text in TEXTS for label in LABELS]
    expected = direct.predict(pairs, activation_fn=torch.nn.Identity()).reshape(4, 3)
    np.testing.assert_allclose(peer.predict(TEXTS, LABELS), expected, atol=1e-6)
    real = direct.preprocess(pairs)["attention_mask"]
    assert (peer.costs.sequences, peer.costs.tokens) == (12, int(real.sum()))


def test_a_long_text_is_cut_and_a_long_label_is_not(saved, direct):
    twins = ["court " * 12 + end for end in ("ship", "dinner")]
    peer = peers.kind("cross-encoder").load(saved, max_length=24)
    scores = peer.predict(["winter " * 30], twins)[0]
    assert abs(scores[0] - scores[1]) > 1e-5
    direct[0].processing_kwargs = {}
    cut = direct.predict([("winter " * 30, label) for label in twins])
    assert cut[0] == cut[1], "the library no longer cuts both segments"
    with pytest.raises(peers.PeerError, match=r"takes 25 tokens .* window of 24: shorten"):
        peer.predict(["a"], ["law", "court " * 22])
    with pytest.raises(peers.PeerError, match=r"window of 24"):
        peer.fit([Example("a", ("court " * 22,), ())], saved, settings())
    with pytest.raises(peers.PeerError, match="max_length is 513 but the backbone takes 512"):
        peers.kind("cross-encoder").load(saved, max_length=513)


def test_the_library_reads_a_separator_in_a_text_as_its_own(direct):
    separator = direct.tokenizer.sep_token_id
    ids = direct.preprocess([("a [SEP] b", "c")])["input_ids"]
    assert (ids == separator).sum() == 3


def test_a_missing_weight_is_refused(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    weights = load_file(saved / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, tmp_path / "copy" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match=r"classifier\.weight"):
        peers.kind("cross-encoder").load(tmp_path / "copy")


@pytest.mark.parametrize("name", ["cross-encoder", "nli"])
def test_training_takes_the_steps_of_a_loop_written_out(name, backbone, tmp_path):
    """All rows in one step: binary cross-entropy over all pairs, AdamW, two rates, clipping.

    The peer splits the step into eight passes of one text, which hold 1 or 5 pairs.
    """
    peer = peers.build(name, backbone, max_length=24, texts_per_pass=1)
    costs = peer.fit(EXAMPLES, tmp_path, settings())

    torch.manual_seed(3)
    other = peers.build(name, backbone, max_length=24)
    other._open(3)
    model, tokenizer = other.model.transformers_model, AutoTokenizer.from_pretrained(backbone)
    template = "{}" if name == "cross-encoder" else "This example is {}."
    pairs = [(e.text, template.format(c)) for e in EXAMPLES for c in (*e.labels, *e.not_labels)]
    targets = torch.tensor([c in e.labels for e in EXAMPLES for c in (*e.labels, *e.not_labels)])
    batch = tokenizer(
        *map(list, zip(*pairs, strict=True)),
        truncation="only_first",
        max_length=24,
        padding=True,
        return_tensors="pt",
    )
    head = list(model.classifier.parameters())
    groups = [
        {"params": [p], "weight_decay": 0.0 if p.ndim == 1 else 0.01, "lr": 1e-2 * (1 + new)}
        for p in model.parameters()
        for new in [any(p is h for h in head)]
    ]
    optimizer = torch.optim.AdamW(groups)
    schedule = get_linear_schedule_with_warmup(optimizer, 1, 2)
    for _ in range(2):
        logits = model(**batch).logits
        logit = logits[:, 0] if name == "cross-encoder" else logits[:, 1] - logits[:, 0]
        signed = torch.where(targets, logit, -logit)
        torch.nn.functional.softplus(-signed).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    with torch.no_grad():
        logits = model(**batch).logits
        expected = logits[:, 0] if name == "cross-encoder" else logits[:, 1] - logits[:, 0]
    start = peers.build(name, backbone, max_length=24)
    start._open(3)
    moved = start.predict([EXAMPLES[0].text], list(EXAMPLES[0].labels))[0, 0] - float(expected[0])
    assert abs(moved) > 0.02
    first = 0
    for example in EXAMPLES:
        candidates = [*example.labels, *example.not_labels]
        found = peer.predict(example.text, candidates)[0]
        np.testing.assert_allclose(found, expected[first : first + len(found)], atol=5e-5)
        first += len(found)
    assert costs["sequences"] == 2 * len(pairs)
    assert costs["tokens"] == 2 * int(batch["attention_mask"].sum())


def test_a_run_takes_the_common_order_and_resumes(backbone, tmp_path, monkeypatch):
    seen, plain = [], cross_encoder.PairCollator.__call__

    def noted(self, features):
        seen.extend(row["text"] for row in features)
        return plain(self, features)

    monkeypatch.setattr(cross_encoder.PairCollator, "__call__", noted)
    budget = settings(max_steps=-1, epochs=2.0, batch_size=2, backbone_dropout=None)
    rows = protocol.comparison_rows(EXAMPLES, backbone, budget)
    orders = [LengthGroups(rows["length"], 2, 3, lambda e=epoch: e) for epoch in (0, 1)]
    expected = [rows["text"][i] for order in orders for i in order]
    peer = peers.build("cross-encoder", backbone, max_length=24, texts_per_pass=1)
    peer.fit(EXAMPLES, tmp_path, budget)
    assert seen == expected and seen[:8] != seen[8:]
    whole = peer.predict(TEXTS, LABELS)

    steps, step = [], cross_encoder.PairTrainer.compute_loss

    def counted(self, *args, **kwargs):
        steps.append(self.state.global_step)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(cross_encoder.PairTrainer, "compute_loss", counted)
    shutil.rmtree(tmp_path / "checkpoint-8")
    peer.fit(EXAMPLES, tmp_path, budget)
    assert steps == [6, 6, 7, 7]
    np.testing.assert_array_equal(peer.predict(TEXTS, LABELS), whole)
