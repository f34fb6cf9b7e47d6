"""Every peer keeps the protocol: shapes, bad input, costs, fitting, saving, resuming."""

import dataclasses

import jaxtyping
import numpy as np
import pytest

from gliznet import peers
from gliznet.backbones import TINY, resolve
from gliznet.data.types import Example

# BCE and wider new weights: with the defaults the tiny encoder does not learn the lesson below.
GLICLASS_PLAIN = {
    "pooling_strategy": "avg",
    "initializer_range": 0.1,
    "dropout": 0.0,
    "focal_loss_alpha": -1.0,
    "focal_loss_gamma": -1.0,
}
# What a peer needs beside the tiny encoder to be built in a second.
OPTIONS: dict[str, dict] = {
    "gliclass-bi": {"config": GLICLASS_PLAIN},
    "gliclass-fused": {"config": GLICLASS_PLAIN},
}
# What a peer needs beside SETTINGS to learn the lesson below by heart.
LESSON: dict[str, dict] = {
    "gliclass-bi": {"epochs": 20.0, "learning_rate": 3e-3},
    "gliclass-fused": {"epochs": 20.0, "learning_rate": 3e-3},
}
TRAINED = [name for name in peers.PEERS if peers.kind(name).trains]
TEXTS = [
    "The harbour froze over and no ship came in.",
    "Short.",
    "The court adjourned, then the judge left by the side door, tired and late for dinner.",
]
LABELS = ["winter weather", "law", "a label of several words", "sport"]
EXAMPLES = [
    Example(f"{noun} number {i} is here", (noun,), tuple(o for o in ("ship", "court") if o != noun))
    for i in range(8)
    for noun in ("ship", "court")
]
SETTINGS = peers.FitSettings(
    seed=1, learning_rate=1e-2, head_lr_multiplier=2.0, epochs=2.0, batch_size=4, max_length=48
)


@pytest.fixture(scope="session")
def backbone(tmp_path_factory) -> str:
    return resolve(TINY, tmp_path_factory.mktemp("backbone"))


@pytest.fixture(params=peers.PEERS)
def peer(request, backbone) -> peers.Peer:
    return peers.build(request.param, backbone, max_length=64, **OPTIONS.get(request.param, {}))


@pytest.fixture
def unchecked():
    """Turns off the shape checks, which refuse a wrong type before the package's own check."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


def test_scores_have_a_row_per_text_and_a_column_per_label(peer):
    scores = peer.predict(TEXTS, LABELS)
    assert scores.shape == (3, 4) and scores.dtype == np.float32
    assert peer.predict(TEXTS[0], LABELS[:1]).shape == (1, 1)


def test_scores_do_not_depend_on_batch_size_or_company(peer):
    together = peer.predict(TEXTS, LABELS)
    peer.batch_size = 1
    alone = np.concatenate([peer.predict(text, LABELS) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_scores_read_the_text_and_the_label(peer):
    scores = peer.predict(TEXTS, LABELS)
    assert len(np.unique(scores.round(6), axis=0)) == 3
    assert len(np.unique(scores.round(6), axis=1).T) == 4


def test_costs_count_what_was_predicted(peer):
    peer.predict(TEXTS[:1], LABELS)
    first = peer.costs.sequences, peer.costs.tokens
    assert first[0] >= 1 and first[1] >= first[0] and peer.costs.seconds > 0
    peer.predict(TEXTS, LABELS)
    assert peer.costs.sequences > first[0] and peer.costs.tokens > first[1]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("texts", "labels", "error"),
    [
        ([], LABELS, "no text"),
        (["a", None], LABELS, "text 1 is None"),
        (3, LABELS, "pass a list"),
        (["a"], [], "no label"),
        (["a"], "law", "pass a list"),
        (["a"], {"law", "sport"}, "pass a list"),
        (["a"], ["law", " "], "blank"),
        (["a"], ["law", "law"], "occurs twice"),
        (["a"], ["law", 5], "label 1 is 5"),
    ],
)
def test_bad_input_is_refused_with_the_value(peer, texts, labels, error):
    with pytest.raises((TypeError, ValueError), match=error):
        peer.predict(texts, labels)


@pytest.mark.parametrize(
    "text",
    ["", "   ", "\x00", "👩‍👩‍👧 é", "مرحبا", "word " * 500, "[SEP] [LAB] <<LABEL>> <<SEP>>"],
    ids=["empty", "blank", "nul", "emoji", "rtl", "long", "control"],
)
def test_odd_texts_get_finite_scores(peer, text):
    assert np.isfinite(peer.predict([text, TEXTS[0]], LABELS)).all()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("option", ["max_length", "batch_size"])
@pytest.mark.parametrize("value", [0, -1, 2.5, None])
def test_a_wrong_size_is_refused_with_its_name(backbone, option, value):
    for name in peers.PEERS:
        with pytest.raises(ValueError, match=f"{option} is {value}"):
            peers.build(name, backbone, **{**OPTIONS.get(name, {}), option: value})


@pytest.mark.parametrize("name", TRAINED)
def test_fitting_teaches_and_saving_keeps_every_score(name, backbone, tmp_path):
    peer = peers.build(name, backbone, max_length=64, **OPTIONS.get(name, {}))
    texts = [e.text for e in EXAMPLES]
    truth = np.array([["ship", "court"].index(e.labels[0]) for e in EXAMPLES])
    settings = dataclasses.replace(SETTINGS, **LESSON.get(name, {}))
    costs = peer.fit(EXAMPLES, tmp_path / "checkpoints", settings)
    assert costs["optimiser_steps"] == 4 * settings.epochs
    assert costs["seconds"] > 0 and costs["tokens"] > costs["sequences"] >= 32
    scores = peer.predict(texts, ["ship", "court"])
    assert (scores.argmax(axis=1) == truth).mean() == 1
    peer.save(tmp_path / "saved")
    written = {p.suffix for p in (tmp_path / "saved").rglob("*") if p.is_file()}
    assert ".safetensors" in written and not written & {".bin", ".pt", ".pkl"}
    again = peers.kind(name).load(tmp_path / "saved", max_length=64)
    np.testing.assert_array_equal(again.predict(texts, ["ship", "court"]), scores)


@pytest.mark.parametrize("name", TRAINED)
def test_the_same_seed_fits_the_same_model_and_another_seed_another(name, backbone, tmp_path):
    found = []
    for run, seed in enumerate((1, 1, 2)):
        peer = peers.build(name, backbone, max_length=64, **OPTIONS.get(name, {}))
        settings = peers.FitSettings(seed, 1e-3, max_steps=2, batch_size=4, max_length=48)
        peer.fit(EXAMPLES, tmp_path / str(run), settings)
        found.append(peer.predict(TEXTS, LABELS))
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 1e-6


@pytest.mark.parametrize("name", TRAINED)
def test_a_share_of_the_training_keeps_the_rest_of_the_start(name, backbone, tmp_path):
    """At a share of almost zero the scores are those before training."""
    scores = {}
    for share in (1.0, 1e-6):
        peer = peers.build(name, backbone, max_length=64, **OPTIONS.get(name, {}))
        settings = peers.FitSettings(
            1, 1e-2, max_steps=4, batch_size=4, max_length=48, trained_share=share
        )
        peer.fit(EXAMPLES, tmp_path / str(share), settings)
        scores[share] = peer.predict(TEXTS, LABELS)
    peer = peers.build(name, backbone, max_length=64, **OPTIONS.get(name, {}))
    peer.fit(EXAMPLES, tmp_path / "zero", peers.FitSettings(1, 0.0, max_steps=1, max_length=48))
    start = peer.predict(TEXTS, LABELS)
    np.testing.assert_allclose(scores[1e-6], start, atol=1e-3)
    assert np.abs(scores[1.0] - start).max() > 0.01


def test_an_unknown_peer_and_a_missing_library_say_what_to_do(monkeypatch):
    with pytest.raises(peers.PeerError, match="no peer 'bert': choose one of gliznet"):
        peers.kind("bert")
    monkeypatch.setitem(peers.PEERS, "absent", "a_library_that_is_not_there.peer:Peer")
    with pytest.raises(peers.MissingExtra, match=r"a_library_that_is_not_there: pip install"):
        peers.kind("absent")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"schedule": "constant"}, "schedule is 'constant'"),
        ({"backbone_dropout": 1.0}, "backbone_dropout is 1.0"),
        ({"trained_share": 0.0}, "trained_share is 0.0"),
    ],
)
def test_wrong_settings_are_refused(changes, error):
    with pytest.raises(ValueError, match=error):
        peers.FitSettings(seed=1, learning_rate=1e-4, **changes)
