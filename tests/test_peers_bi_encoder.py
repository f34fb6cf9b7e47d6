"""The bi-encoder and the embedding baseline against sentence-transformers and formulas."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer, util
from transformers import AutoModel, AutoTokenizer, get_linear_schedule_with_warmup

from gliznet import peers
from gliznet.backbones import EMBEDDED, TINY, resolve
from gliznet.batches import LengthGroups
from gliznet.data.types import Example
from gliznet.peers import bi_encoder, protocol

TEXTS = ["The harbour froze over and no ship came in.", "Short.", "", "The court adjourned late."]
LABELS = ["winter weather", "law", "a label of several words"]
NAMES = ["ship", "court", "winter", "dinner", "judge"]
# Rows with no, one and two true labels, and with 2 to 4 candidates.
EXAMPLES = [
    Example(
        f"the {NAMES[i % 5]} {i} " + "was late " * (i % 3),
        tuple(NAMES[j % 5] for j in range(i, i + i % 3)),
        tuple(NAMES[j % 5] for j in range(i + 2, i + 4)),
    )
    for i in range(8)
]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> str:
    return resolve(TINY, tmp_path_factory.mktemp("backbone"))


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


def mean_pooled(folder: str, strings: list[str]) -> torch.Tensor:
    """Embeddings by the encoder and its mean over real tokens, without sentence-transformers."""
    batch = AutoTokenizer.from_pretrained(folder)(strings, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder).eval()(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)


@pytest.mark.parametrize("name", ["embedding", "bi-encoder"])
def test_scores_are_the_librarys_cosines(name, backbone):
    peer = peers.build(name, backbone, batch_size=2)
    library = SentenceTransformer(backbone)
    expected = util.cos_sim(library.encode(TEXTS), library.encode(LABELS))
    scale = {"embedding": 1.0, "bi-encoder": 20.0}[name]
    np.testing.assert_allclose(peer.predict(TEXTS, LABELS) / scale, expected, atol=1e-6)


@pytest.mark.parametrize("source", [EMBEDDED, TINY])
def test_both_backbones_pool_by_the_mean_of_real_tokens(source, tmp_path):
    folder = resolve(source, tmp_path)
    library = SentenceTransformer(folder)
    assert [type(m).__name__ for m in library][1:] == (
        ["Pooling", "Normalize"] if source == EMBEDDED else ["Pooling"]
    )
    assert library[1].pooling_mode == "mean"
    assert library.max_seq_length == {EMBEDDED: 256, TINY: 512}[source]
    expected = mean_pooled(folder, TEXTS) @ mean_pooled(folder, LABELS).T
    peer = peers.build("embedding", folder, max_length=512)
    np.testing.assert_allclose(peer.predict(TEXTS, LABELS), expected, atol=1e-5)


def test_a_label_is_encoded_once_and_costs_once(backbone):
    peer = peers.build("embedding", backbone)
    tokenizer = AutoTokenizer.from_pretrained(backbone)

    def tokens(strings):
        return sum(len(ids) for ids in tokenizer(strings).input_ids)

    first = peer.predict(TEXTS, LABELS)
    assert peer.costs.sequences == 7 and peer.costs.tokens == tokens(TEXTS + LABELS)
    again = peer.predict(TEXTS, [LABELS[2], "sport", LABELS[0]])
    assert peer.costs.sequences == 7 + 5
    assert peer.costs.tokens == tokens([*TEXTS, *LABELS, *TEXTS, "sport"])
    np.testing.assert_allclose(again[:, [2, 0]], first[:, [0, 2]], atol=1e-6)


def test_a_long_text_is_cut_and_a_long_label_is_refused(backbone):
    peer = peers.build("embedding", backbone, max_length=24)
    words = "winter " * 22
    np.testing.assert_allclose(
        peer.predict([words], LABELS), peer.predict([words + "ship"], LABELS), atol=1e-6
    )
    with pytest.raises(peers.PeerError, match="takes 28 tokens in a window of 24: shorten"):
        peer.predict(TEXTS, ["law", words + "ship"])
    library = SentenceTransformer(backbone)
    library.max_seq_length = 24
    cut = library.encode([words + "ship", words + "dinner"])
    np.testing.assert_array_equal(cut[0], cut[1], "the library no longer cuts without a word")
    trained = peers.build("bi-encoder", backbone, max_length=24)
    with pytest.raises(peers.PeerError, match="window of 24"):
        trained.fit([Example("a", (words + "ship",), ())], "unused", settings())
    with pytest.raises(peers.PeerError, match="max_length is 513 but the backbone takes 512"):
        peers.build("embedding", backbone, max_length=513)
    ids = library.preprocess(["a [SEP] b"])["input_ids"]
    assert (ids == library.tokenizer.sep_token_id).sum() == 2


def test_the_baseline_does_not_train_and_is_saved_whole(backbone, tmp_path):
    peer = peers.build("embedding", backbone)
    with pytest.raises(peers.PeerError, match="nothing to train"):
        peer.fit(EXAMPLES, tmp_path, settings())
    peer.save(tmp_path / "saved")
    again = peers.kind("embedding").load(tmp_path / "saved", max_length=512)
    np.testing.assert_array_equal(again.predict(TEXTS, LABELS), peer.predict(TEXTS, LABELS))
    weights = load_file(tmp_path / "saved" / "model.safetensors")
    del weights["embeddings.word_embeddings.weight"]
    save_file(weights, tmp_path / "saved" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match=r"word_embeddings\.weight"):
        peers.kind("embedding").load(tmp_path / "saved")


def test_a_scale_of_zero_is_refused(backbone):
    with pytest.raises(ValueError, match="scale is 0"):
        peers.build("bi-encoder", backbone, scale=0)


@pytest.mark.parametrize("learned", [False, True])
def test_training_takes_the_steps_of_a_loop_written_out(learned, backbone, tmp_path):
    """All rows in one step: the sum over pairs of false and true candidates, as it is defined."""
    peer = peers.build("bi-encoder", backbone, max_length=24, scale=5, learned=learned)
    costs = peer.fit(EXAMPLES, tmp_path, settings())

    model, tokenizer = AutoModel.from_pretrained(backbone), AutoTokenizer.from_pretrained(backbone)
    model.eval()
    log_scale = torch.nn.Parameter(torch.tensor(5.0).log(), requires_grad=learned)
    texts = tokenizer([e.text for e in EXAMPLES], padding=True, return_tensors="pt")
    names = tokenizer(NAMES, padding=True, return_tensors="pt")

    def cosines() -> torch.Tensor:
        both = []
        for batch in (texts, names):
            mask = batch["attention_mask"][..., None]
            pooled = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
            both.append(torch.nn.functional.normalize(pooled, dim=1))
        return both[0] @ both[1].T

    true = torch.tensor([[name in e.labels for name in NAMES] for e in EXAMPLES])
    false = torch.tensor([[name in e.not_labels for name in NAMES] for e in EXAMPLES])
    groups = [
        {"params": [p], "weight_decay": 0.0 if p.ndim == 1 else 0.01, "lr": 1e-2}
        for p in model.parameters()
    ]
    if learned:
        groups.append({"params": [log_scale], "weight_decay": 0.0, "lr": 2e-2})
    optimizer = torch.optim.AdamW(groups)
    schedule = get_linear_schedule_with_warmup(optimizer, 1, 2)
    with torch.no_grad():
        start = cosines()
    for _ in range(2):
        scores = log_scale.exp() * cosines()
        differences = scores[false][:, None] - scores[true][None, :]
        torch.log1p(differences.exp().sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    with torch.no_grad():
        expected = log_scale.exp() * cosines()
    found = peer.predict([e.text for e in EXAMPLES], NAMES)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert np.abs(found / peer.scale - start.numpy()).max() > 0.05
    assert (peer.scale == pytest.approx(5.0, abs=1e-5)) != learned
    real = texts["attention_mask"].sum() + names["attention_mask"].sum()
    assert costs["sequences"] == 2 * (8 + 5) and costs["tokens"] == 2 * int(real)


def test_a_run_takes_the_common_order_and_resumes(backbone, tmp_path, monkeypatch):
    seen, plain = [], bi_encoder.CandidateCollator.__call__

    def noted(self, features):
        seen.extend(row["text"] for row in features)
        return plain(self, features)

    monkeypatch.setattr(bi_encoder.CandidateCollator, "__call__", noted)
    budget = settings(max_steps=-1, epochs=2.0, batch_size=2, backbone_dropout=None)
    rows = protocol.comparison_rows(EXAMPLES, backbone, budget)
    orders = [LengthGroups(rows["length"], 2, 3, lambda e=epoch: e) for epoch in (0, 1)]
    expected = [rows["text"][i] for order in orders for i in order]
    peer = peers.build("bi-encoder", backbone, max_length=24, learned=True)
    costs = peer.fit(EXAMPLES, tmp_path, budget)
    assert seen == expected and seen[:8] != seen[8:]
    whole = peer.predict(TEXTS, LABELS), peer.scale

    steps, loss = [], bi_encoder.CandidateLoss.forward

    def counted(self, *args, **kwargs):
        steps.append(self.log_scale.item())
        return loss(self, *args, **kwargs)

    monkeypatch.setattr(bi_encoder.CandidateLoss, "forward", counted)
    shutil.rmtree(tmp_path / "checkpoint-8")
    resumed = peer.fit(EXAMPLES, tmp_path, budget)
    assert len(steps) == 2 and steps[0] != pytest.approx(np.log(20.0), abs=1e-4)
    assert [resumed[k] for k in ("sequences", "tokens")] == [
        costs[k] for k in ("sequences", "tokens")
    ]
    np.testing.assert_array_equal(peer.predict(TEXTS, LABELS), whole[0])
    assert peer.scale == whole[1]
    # What the library's own checkpoint holds: the model, not the loss.
    held = load_file(Path(tmp_path) / "checkpoint-8" / "model.safetensors")
    assert not any("scale" in name for name in held)


def test_a_step_without_a_true_candidate_has_no_loss_and_no_gradient(backbone):
    model = SentenceTransformer(backbone)
    loss = bi_encoder.CandidateLoss(model, 20.0, learned=True)
    features = [model.preprocess(strings) for strings in (TEXTS, LABELS)]
    value = loss(features, torch.zeros(4, 3))
    value.backward()
    assert value == 0
    assert all(p.grad is None or (p.grad == 0).all() for p in loss.parameters())
