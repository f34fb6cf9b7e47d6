"""Checkpoints of the public implementation score as its description says, number by number."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from gliznet.backbones import TINY, resolve
from gliznet.peers.gliznet import GliZNetPeer
from gliznet.peers.protocol import PeerError
from gliznet.peers.reference import load_reference
from gliznet.predictor import ZeroShotClassificationPipeline

TEXTS = ["the harbour froze over and no ship came in", "a short one", ""]
LABELS = ["winter weather", "law", "a label of several words"]
CONFIG = {
    "model_type": "gliznet",
    "architectures": ["GliZNetForSequenceClassification"],
    "transformers_version": "4.57.0",
    "backbone_model": "a/name-on-the-hub",
    "projected_dim": None,
    "similarity_metric": "cosine",
    "dropout_rate": 0.1,
    "use_projection_layernorm": False,
    "use_lab_token_for_labels": False,
    "bce_loss_weight": 0.7,
    "supcon_loss_weight": 0.9,
    "label_repulsion_weight": 0.2,
    "logit_scale_init": 2.0,
    "learn_temperature": True,
    "repulsion_threshold": 0.4,
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> str:
    return resolve(TINY, tmp_path_factory.mktemp("backbone"))


@pytest.fixture
def write(backbone, tmp_path):
    """Writes a random checkpoint with the public implementation's names, and returns its folder."""

    def written(scale=1.3, bce_scale=1.5, temperature=None, **changes):
        torch.manual_seed(3)
        config = {**CONFIG, **changes}
        tokenizer = AutoTokenizer.from_pretrained(backbone)
        tokenizer.add_special_tokens({"additional_special_tokens": ["[LAB]"]})
        tokenizer.save_pretrained(tmp_path)
        encoder = AutoModel.from_pretrained(backbone)
        # Early versions saved the encoder's configuration from before [LAB] was added.
        config["backbone_config"] = {**encoder.config.to_dict(), "dtype": "bfloat16"}
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        config.setdefault("lab_token_id", tokenizer.convert_tokens_to_ids("[LAB]"))
        weights = {f"backbone.{name}": w.clone() for name, w in encoder.state_dict().items()}
        hidden = encoder.config.hidden_size
        width = config["projected_dim"] or hidden
        if width != hidden or config["use_projection_layernorm"]:
            for side in ("text", "label"):
                weights[f"aggregator.{side}_projector.0.weight"] = 0.2 * torch.randn(width, hidden)
                weights[f"aggregator.{side}_projector.0.bias"] = torch.randn(width)
                if config["use_projection_layernorm"]:
                    weights[f"aggregator.{side}_projector.1.weight"] = torch.randn(width)
                    weights[f"aggregator.{side}_projector.1.bias"] = torch.randn(width)
        head = "aggregator.similarity_head"
        weights[f"{head}.logit_scale"] = torch.tensor(scale)
        shape = {"dot": (1, width), "bilinear": (1, width, width)}.get(config["similarity_metric"])
        if shape:
            weights[f"{head}.classifier.weight"] = torch.randn(shape)
            weights[f"{head}.classifier.bias"] = torch.randn(1)
        weights["loss_fn.bce_scale"] = torch.tensor(bce_scale)
        if temperature is not None:
            weights["aggregator.attention_temperature"] = torch.tensor(temperature)
        save_file(weights, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return written


def described(folder, backbone, divide=None) -> torch.Tensor:
    """Scores `(N, K)` from the description alone, one text and one label at a time, in float64."""
    config = json.loads((folder / "config.json").read_text())
    w = {name: weight.double() for name, weight in load_file(folder / "model.safetensors").items()}
    bare = AutoTokenizer.from_pretrained(backbone)
    lab_id = len(bare)
    encoder = AutoModel.from_pretrained(backbone)
    encoder.resize_token_embeddings(lab_id + 1, mean_resizing=False)
    encoder = encoder.double()
    encoder.load_state_dict({n[9:]: t for n, t in w.items() if n.startswith("backbone.")})
    encoder.eval()

    def ids(string):
        return bare(string, add_special_tokens=False)["input_ids"]

    def project(state, side):
        name = f"aggregator.{side}_projector"
        if f"{name}.0.weight" not in w:
            return state
        state = w[f"{name}.0.weight"] @ state + w[f"{name}.0.bias"]
        if f"{name}.1.weight" not in w:
            return state
        centred = state - state.mean()
        unit = centred / (centred.square().mean() + 1e-5).sqrt()
        return unit * w[f"{name}.1.weight"] + w[f"{name}.1.bias"]

    rows = []
    for text in TEXTS:
        sequence = [bare.cls_token_id, *ids(text), bare.sep_token_id]
        unlabelled = list(range(len(sequence)))
        spans = []
        for label in LABELS:
            first = len(sequence)
            sequence += [*ids(label), lab_id]
            spans.append(range(first, len(sequence)))
        with torch.no_grad():
            states = encoder(input_ids=torch.tensor([sequence])).last_hidden_state[0]
        row = []
        for span in spans:
            if config["use_lab_token_for_labels"]:
                e = project(states[span[-1]], "label")
                places = unlabelled
            else:
                e = sum(project(states[i], "label") for i in span[:-1]) / (len(span) - 1)
                places = unlabelled + [s[-1] for s in spans]
            if divide is None:
                t = project(states[0], "text")
            else:
                z = [project(states[i], "text") for i in places]
                exponents = [math.exp(float(e @ v) / divide(len(e))) for v in z]
                t = sum(x * v for x, v in zip(exponents, z, strict=True)) / sum(exponents)
            head = "aggregator.similarity_head"
            if config["similarity_metric"] == "cosine":
                tau = math.exp(max(-10.0, min(10.0, float(w[f"{head}.logit_scale"]))))
                score = tau * (t @ e) / (t.norm() * e.norm())
            elif config["similarity_metric"] == "dot":
                score = w[f"{head}.classifier.weight"][0] @ (t * e) + w[f"{head}.classifier.bias"]
            else:
                score = t @ w[f"{head}.classifier.weight"][0] @ e + w[f"{head}.classifier.bias"]
            row.append(float(score))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def scored(model, tokenizer) -> torch.Tensor:
    batch = tokenizer(TEXTS, LABELS)
    batch.pop("truncated_tokens")
    with torch.no_grad():
        return model.double()(**batch).logits


@pytest.mark.parametrize("metric", ["cosine", "dot", "bilinear"])
@pytest.mark.parametrize(
    ("width", "layernorm", "lab"),
    [(None, False, False), (20, False, True), (None, True, False), (20, True, True)],
)
def test_scores_are_those_described(write, backbone, metric, lab, width, layernorm):
    folder = write(
        similarity_metric=metric,
        use_lab_token_for_labels=lab,
        projected_dim=width,
        use_projection_layernorm=layernorm,
    )
    model, tokenizer = load_reference(folder)
    assert not model.training and model.dtype == torch.float32
    expected = described(folder, backbone)
    assert expected.std() > 1e-3
    torch.testing.assert_close(scored(model, tokenizer), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("lab", [False, True], ids=["mean", "lab"])
@pytest.mark.parametrize(
    ("temperature", "divisor", "divide"),
    [
        (-0.8, "temperature", lambda d: 0.8),
        (-0.8, "temperature_sqrt_dim", lambda d: 0.8 * math.sqrt(d)),
        (0.001, "temperature_sqrt_dim", lambda d: 0.1 * math.sqrt(d)),
    ],
)
def test_scores_of_versions_that_attend_over_the_text(
    write, backbone, lab, temperature, divisor, divide
):
    folder = write(temperature=temperature, use_lab_token_for_labels=lab, projected_dim=20)
    model, tokenizer = load_reference(folder, attention_divisor=divisor)
    found = scored(model, tokenizer)
    torch.testing.assert_close(found, described(folder, backbone, divide), atol=1e-6, rtol=1e-6)
    assert (found - described(folder, backbone)).abs().max() > 1e-3


@pytest.mark.parametrize(("stored", "tau"), [(2.0, 2.0), (12.0, 10.0), (-30.0, -10.0)])
def test_tau_is_clamped(write, stored, tau):
    model, _ = load_reference(write(scale=stored))
    assert math.log(model.tau.item()) == pytest.approx(tau, rel=1e-6)
    assert model.config.tau == pytest.approx(math.exp(tau), rel=1e-5)


@pytest.mark.parametrize(("stored", "used"), [(1.5, 1.5), (-1.5, 1.5), (0.01, 0.1), (-20.0, 10.0)])
def test_bce_scale_is_its_absolute_value_clamped(write, stored, used):
    """σ(cos · scale) is what its BCE was trained on; σ(logit) is what it predicts."""
    folder = write(bce_scale=stored)
    model, tokenizer = load_reference(folder)
    logits = scored(model, tokenizer)
    torch.testing.assert_close(model.probability_logits(logits), logits)
    model.config.probability = "bce"
    expected = logits / math.exp(torch.tensor(1.3).item()) * used
    torch.testing.assert_close(model.probability_logits(logits), expected, atol=1e-6, rtol=1e-6)


def test_settings_become_ours(write):
    model, tokenizer = load_reference(write(learn_temperature=False), max_length=64)
    config = model.config
    assert (config.contrastive_weight, config.repulsion_weight) == (0.9, 0.2)
    assert config.bce_weight == 0.7
    assert config.repulsion_threshold == 0.4 and config.projection_dropout == 0.1
    assert tokenizer.max_length == 64
    assert not any(name.startswith("log_") for name, _ in model.named_parameters())


def test_the_saved_model_is_a_peer(write, tmp_path):
    model, tokenizer = load_reference(write(similarity_metric="bilinear", projected_dim=20))
    model.save_pretrained(tmp_path / "ours")
    tokenizer.save_pretrained(tmp_path / "ours")
    scores = GliZNetPeer.load(tmp_path / "ours", max_length=64).predict(TEXTS, LABELS)
    logits = torch.stack(ZeroShotClassificationPipeline(model, tokenizer).logits(TEXTS, LABELS))
    torch.testing.assert_close(torch.from_numpy(scores), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_cls_label_attention": True}, "config.json has use_cls_label_attention, which"),
        ({"similarity_metric": "euclid"}, "similarity_metric is 'euclid'"),
        ({"model_type": "bert"}, "model_type is 'bert'"),
        ({"lab_token_id": 7}, "lab_token_id is 7"),
        ({"temperature": 1.0}, "attention_divisor is None and the checkpoint has an attention"),
    ],
)
def test_what_has_no_place_here_is_refused(write, changes, message):
    temperature = changes.pop("temperature", None)
    folder = write(temperature=temperature, **changes)
    with pytest.raises(PeerError, match=message):
        load_reference(folder)


def test_a_divisor_without_attention_is_refused(write):
    with pytest.raises(PeerError, match="has no attention temperature"):
        load_reference(write(), attention_divisor="temperature")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.update({"aggregator.cls_norm.weight": torch.ones(3)}), "unexpected: aggreg"),
        (lambda w: w.pop("aggregator.similarity_head.logit_scale"), "missing: log_tau"),
        (lambda w: w.pop("aggregator.text_projector.0.bias"), "missing: text_projection.0.bias"),
        (
            lambda w: w.update({"aggregator.text_projector.0.weight": torch.ones(3, 3)}),
            "of another shape: text_projection.0.weight",
        ),
        (lambda w: w.pop("backbone.encoder.layer.1.output.dense.bias"), "missing: backbone.enc"),
        (lambda w: w.pop("backbone.embeddings.word_embeddings.weight"), "no backbone.embeddings"),
    ],
)
def test_a_weight_too_many_or_too_few_is_refused(write, change, message):
    folder = write(projected_dim=20)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(PeerError, match=message):
        load_reference(folder)


def test_a_tokenizer_that_is_not_the_checkpoints_is_refused(write, backbone):
    """Without its own [LAB] the tokenizer gets a new one, whose embedding the weights lack."""
    folder = write(lab_token_id=None)
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    tokenizer.add_tokens(["one more"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(PeerError, match=r"\[LAB\] has id"):
        load_reference(folder)


def test_pickled_weights_are_not_opened(write):
    folder = write()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"has no model.safetensors .a pytorch_model.bin must"):
        load_reference(folder)
