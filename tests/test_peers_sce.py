"""SCE: its equations against a second implementation, invariance to label order, its training."""

import math
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import AutoConfig, AutoModel, AutoTokenizer, MPNetConfig

from gliznet.backbones import TINY, resolve
from gliznet.data.types import Example
from gliznet.peers.protocol import FitSettings, PeerError
from gliznet.peers.sce import Collator, SCEPeer
from gliznet.peers.sce_model import ABSOLUTE, SoftContextualizedEncoder, label_tokens

TEXTS = ["The harbour froze over and no ship came in.", "Short.", ""]
LABELS = ["winter weather", "law", "a label of several words", "sport", "[SEP] [CLS]"]
EXAMPLES = [
    Example(f"{noun} number {i} is here", (noun,), tuple(o for o in ("ship", "court") if o != noun))
    for i in range(8)
    for noun in ("ship", "court")
]
SETTINGS = FitSettings(1, 1e-3, epochs=2.0, batch_size=4, max_length=48)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> str:
    return resolve(TINY, tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def peer(backbone) -> SCEPeer:
    return SCEPeer(backbone, max_length=64)


@pytest.mark.parametrize("normalize", [True, False])
def test_scores_are_those_of_the_equations(backbone, normalize):
    """Text embeddings from sentence-transformers; labels, encoder and products one by one, with
    positions taken out the other way: a table of zeros."""
    peer = SCEPeer(backbone, max_length=64, normalize=normalize)
    parts = [Transformer(backbone, max_seq_length=64), Pooling(32, pooling_mode="mean")]
    embedder = SentenceTransformer(modules=parts + [Normalize()] * normalize, device="cpu")
    encoder = AutoModel.from_pretrained(backbone).eval()
    encoder.embeddings.position_embeddings.weight.data.zero_()
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    table = encoder.embeddings.word_embeddings.weight
    adaptor = peer.model.adaptor
    scores = peer.predict(TEXTS, LABELS)
    with torch.no_grad():
        for text, row in zip(TEXTS, scores, strict=True):
            q = torch.from_numpy(embedder.encode(text))
            sequence = [adaptor.weight @ q + adaptor.bias]
            for label in LABELS:
                ids = tokenizer(label, add_special_tokens=False, split_special_tokens=True)
                sequence.append(sum(table[i] for i in ids["input_ids"]) / len(ids["input_ids"]))
            e = encoder(inputs_embeds=torch.stack(sequence)[None]).last_hidden_state[0]
            expected = [float(e[0] @ e[1 + k]) for k in range(len(LABELS))]
            np.testing.assert_allclose(row, expected, atol=2e-5)


@given(order=st.permutations(range(12)))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_scores_do_not_depend_on_the_order_of_labels(peer, order):
    labels = [*LABELS, "north", "pole", "a ship", "the court", "rain", "snow and ice", "goal"]
    before = peer.predict(TEXTS, labels)
    after = peer.predict(TEXTS, [labels[i] for i in order])
    np.testing.assert_allclose(after, before[:, order], atol=1e-5, rtol=0)


def small(kind: str) -> torch.nn.Module:
    sizes = dict(num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, hidden_size=32)
    if kind == "distilbert":
        sizes = dict(n_layers=2, n_heads=2, hidden_dim=64, dim=32)
    if kind == "electra":
        sizes["embedding_size"] = 16
    config = AutoConfig.for_model(kind, vocab_size=90, max_position_embeddings=64, **sizes)
    torch.manual_seed(0)
    return AutoModel.from_config(config).eval()


def shuffled(model: torch.nn.Module, labels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores in one order of labels, and those of another order put back."""
    torch.manual_seed(1)
    queries = torch.randn(2, 5)
    tokens = torch.randint(3, 90, (2, labels, 3))
    mask = torch.rand(2, labels, 3) < 0.7
    mask[..., 0] = True
    order = torch.randperm(labels)
    with torch.no_grad():
        before = model(queries, tokens, mask)["scores"]
        after = model(queries, tokens[:, order], mask[:, order])["scores"]
    return before, after[:, order.argsort()]


@pytest.mark.parametrize("kind", ABSOLUTE)
def test_every_supported_encoder_loses_its_positions_and_its_limit(kind):
    """100 labels before a table of 64 positions."""
    before, after = shuffled(SoftContextualizedEncoder(small(kind), 5).eval(), 100)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)
    assert before.std() > 1e-2


def test_a_table_left_in_place_would_depend_on_the_order():
    """What the test above sees where there is something to see."""
    encoder = small("bert")
    table = encoder.embeddings.position_embeddings

    class Places(torch.nn.Module):
        def forward(self, ids):
            return table(torch.arange(ids.shape[1])[None])

    model = SoftContextualizedEncoder(encoder, 5).eval()
    encoder.embeddings.position_embeddings = Places()
    before, after = shuffled(model, 20)
    assert (before - after).abs().max() > 1e-2


def test_more_labels_than_the_backbone_has_positions(peer):
    labels = [f"{i} ship" for i in range(600)]
    scores = peer.predict(TEXTS[:1], labels)
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(peer.predict(TEXTS[:1], labels[::-1])[:, ::-1], scores, atol=1e-5)


def test_labels_see_each_other_but_padding_is_not_seen(peer):
    few = peer.predict(TEXTS, LABELS[:2])
    assert np.abs(peer.predict(TEXTS, LABELS[:3])[:, :2] - few).max() > 1e-3
    tokens, mask = label_tokens(peer.label_tokenizer, [LABELS[:2], LABELS])
    queries, _ = peer._queries(TEXTS[:1], 64)
    with torch.no_grad():
        padded = peer.model(queries.expand(2, -1), tokens, mask)["scores"]
    np.testing.assert_allclose(padded[0, :2], few[0], atol=1e-5)
    assert (padded[0, 2:] == -math.inf).all()


def test_the_order_of_words_in_a_label_is_lost(peer):
    """Eq. 2 averages token embeddings."""
    scores = peer.predict(TEXTS, ["north pole", "pole north"])
    np.testing.assert_allclose(scores[:, 0], scores[:, 1], atol=1e-5)


def test_loss_is_the_cross_entropy_of_equal_shares(peer):
    """A row with two true labels has p = ½ at each; a row without one has no loss."""
    sets = [LABELS[:4], LABELS[:3], LABELS[1:3]]
    tokens, mask = label_tokens(peer.label_tokenizer, sets)
    targets = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    queries, _ = peer._queries(TEXTS, 64)
    with torch.no_grad():
        output = peer.model(queries, tokens, mask, targets)
    rows = [
        F.cross_entropy(output["scores"][0], torch.tensor([0.5, 0, 0.5, 0])),
        F.cross_entropy(output["scores"][1, :3], torch.tensor(1)),
    ]
    torch.testing.assert_close(output["loss"], sum(rows) / 2)


@pytest.mark.parametrize("synonyms", [None, {"ship": ["boat", "vessel"]}])
def test_fitting_embeds_each_text_once_and_resumes_exactly(
    backbone, tmp_path, monkeypatch, synonyms
):
    embedded = []
    real = SCEPeer._queries
    monkeypatch.setattr(
        SCEPeer,
        "_queries",
        lambda self, texts, w: embedded.append(len(texts)) or real(self, texts, w),
    )
    peer = SCEPeer(backbone, max_length=64, synonyms=synonyms)
    first = {name: w.clone() for name, w in peer.model.state_dict().items()}
    frozen = {name: w.clone() for name, w in peer.embedder.state_dict().items()}
    costs = peer.fit(EXAMPLES, tmp_path, SETTINGS)
    assert embedded == [16]
    lengths = [len(peer.text_tokenizer(e.text)["input_ids"]) for e in EXAMPLES]
    assert costs["sequences"] == 16 + 2 * 16 and costs["tokens"] == sum(lengths) + 2 * 16 * 3
    for name, weight in peer.embedder.state_dict().items():
        torch.testing.assert_close(weight, frozen[name], atol=0, rtol=0)
    moved = {name for name, w in peer.model.state_dict().items() if not torch.equal(w, first[name])}
    assert {"adaptor.weight", "backbone.encoder.layer.1.output.dense.weight"} <= moved
    assert "backbone.embeddings.word_embeddings.weight" not in moved
    scores = peer.predict(TEXTS, LABELS)
    shutil.rmtree(tmp_path / "checkpoint-8")
    again = SCEPeer(backbone, max_length=64, synonyms=synonyms)
    again.fit(EXAMPLES, tmp_path, SETTINGS)
    np.testing.assert_array_equal(again.predict(TEXTS, LABELS), scores)


def test_a_true_label_becomes_one_of_its_synonyms_evenly(peer):
    names = {"ship": ["ship", "boat", "vessel", "court"], "law": ["statute"]}
    epoch = 0
    collator = Collator(peer.label_tokenizer, torch.zeros(1, 32), names, 7, lambda: epoch)

    def drawn(row, targets):
        candidates = ["ship", "court", "law"]
        return collator.names({"candidates": candidates, "targets": targets, "row": row})

    rows = [drawn(i, [1.0, 0.0, 0.0]) for i in range(3000)]
    assert all(row[1:] == ["court", "law"] for row in rows)
    counts = Counter(row[0] for row in rows)
    # "ship" stands in the row already, as does "court": neither is drawn.
    assert set(counts) == {"boat", "vessel"}
    assert abs(counts["boat"] - 1500) < 5 * math.sqrt(3000 / 4)
    assert drawn(0, [0.0, 1.0, 1.0]) == ["ship", "court", "statute"]
    epoch = 1
    assert [drawn(i, [1.0, 0.0, 0.0]) for i in range(40)] != rows[:40]
    batch = collator([{"candidates": ["law", "sea"], "targets": [1.0, 0.0], "row": 0}])
    expected, _ = label_tokens(peer.label_tokenizer, [["statute", "sea"]])
    torch.testing.assert_close(batch["label_tokens"], expected)


def test_costs_count_both_encoders(backbone):
    peer = SCEPeer(backbone, max_length=8)
    peer.predict(TEXTS, LABELS)
    read = [len(peer.text_tokenizer(t, truncation=True, max_length=8)["input_ids"]) for t in TEXTS]
    assert max(read) == 8 and min(read) == 2
    assert peer.costs.sequences == 6
    assert peer.costs.tokens == sum(read) + 3 * (1 + len(LABELS))


def test_a_random_encoder_keeps_the_token_embeddings(backbone):
    pretrained, fresh = SCEPeer(backbone), SCEPeer(backbone, encoder_init="random")
    fresh._open(5)  # the tiny backbone is itself what seed 0 gives
    equal = {
        name: torch.equal(weight, fresh.model.state_dict()[name])
        for name, weight in pretrained.model.state_dict().items()
    }
    assert equal["backbone.embeddings.word_embeddings.weight"]
    assert not equal["backbone.encoder.layer.0.attention.self.query.weight"]


def test_an_identity_adaptor_takes_the_text_embedding_as_it_is(backbone):
    model = SCEPeer(backbone, adaptor_init="identity").model
    query = torch.randn(2, 32)
    torch.testing.assert_close(model.adaptor(query), query)
    with pytest.raises(PeerError, match="text embeddings have width 5 and label tokens 16"):
        SoftContextualizedEncoder(small("electra"), 5, "identity")


def test_another_embedder_is_saved_with_the_peer(backbone, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(backbone, other)
    weights = load_file(other / "model.safetensors")
    save_file({name: w * 1.5 for name, w in weights.items()}, other / "model.safetensors")
    peer = SCEPeer(backbone, max_length=64, embedder=other, normalize=False)
    scores = peer.predict(TEXTS, LABELS)
    assert np.abs(SCEPeer(backbone, normalize=False).predict(TEXTS, LABELS) - scores).max() > 1e-3
    peer.save(tmp_path / "saved")
    shutil.rmtree(other)
    again = SCEPeer.load(tmp_path / "saved", max_length=64)
    np.testing.assert_array_equal(again.predict(TEXTS, LABELS), scores)
    with pytest.raises(PeerError, match="is a saved peer: build one from a backbone"):
        again.fit(EXAMPLES, tmp_path / "run", SETTINGS)
    for part in ("encoder", "embedder"):
        file = tmp_path / "saved" / part / "model.safetensors"
        weights = load_file(file)
        save_file({**weights, "more": torch.ones(1)}, file)
        with pytest.raises(RuntimeError, match="Unexpected key"):
            SCEPeer.load(tmp_path / "saved")
        save_file(dict(list(weights.items())[1:]), file)
        with pytest.raises(RuntimeError, match="Missing key"):
            SCEPeer.load(tmp_path / "saved")
        save_file(weights, file)


def test_what_sce_cannot_do_is_refused(backbone, peer, tmp_path):
    MPNetConfig().save_pretrained(tmp_path / "mpnet")
    with pytest.raises(PeerError, match="is of type 'mpnet', whose positions are not one table"):
        SCEPeer(tmp_path / "mpnet")
    for option, value in (("encoder_init", "zeros"), ("adaptor_init", "zeros")):
        with pytest.raises(ValueError, match=f"{option} is 'zeros': choose one of"):
            SCEPeer(backbone, **{option: value})
    for names in ("boat", [], ["boat", " "]):
        with pytest.raises(ValueError, match=r"synonyms\['ship'\] is"):
            SCEPeer(backbone, synonyms={"ship": names})
    for window in (2, 513):
        with pytest.raises(
            ValueError, match=f"max_length is {window}: the embedder takes 3 to 512"
        ):
            SCEPeer(backbone, max_length=window)
    with pytest.raises(PeerError, match="has no token in this vocabulary"):
        peer.predict(["a"], ["\u200b"])
    with pytest.raises(PeerError, match="no row has a true label"):
        peer.fit([Example("a", (), ("b",))], tmp_path / "run", SETTINGS)
