"""GLiClass: through the protocol as from the package itself, and what bad input does to each."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gliclass import GLiClassModel, GLiClassModelConfig, ZeroShotClassificationPipeline
from gliclass.data_processing import AugmentationConfig, DataCollatorWithPadding, GLiClassDataset
from gliclass.training import Trainer, TrainingArguments
from safetensors.torch import load_file, save_file
from torch.utils.data import SequentialSampler
from transformers import AutoConfig, AutoTokenizer, set_seed

from gliznet import peers
from gliznet.backbones import TINY, resolve
from gliznet.batches import LengthGroups
from gliznet.data.types import Example
from gliznet.peers import gliclass_model
from gliznet.peers.gliclass import SCRIPT
from gliznet.peers.gliclass_training import GLiClassTrainer
from gliznet.peers.protocol import comparison_rows

NAMES = {
    "gliclass-uni": "uni-encoder",
    "gliclass-bi": "bi-encoder",
    "gliclass-fused": "bi-encoder-fused",
}
TEXTS = [
    "The harbour froze over and no ship came in.",
    "Short.",
    "The court adjourned, then the judge left by the side door, late for dinner.",
]
LABELS = ["winter weather", "law", "a label of several words", "sport"]
EXAMPLES = [
    Example(f"{noun} number {i} is here" + " again" * i, (noun,), ("ice", "a late train")[: i % 3])
    for i in range(4)
    for noun in ("ship", "court")
]
SETTINGS = peers.FitSettings(seed=3, learning_rate=1e-3, max_steps=2, batch_size=4, max_length=32)


@pytest.fixture(scope="session")
def backbone(tmp_path_factory) -> str:
    return resolve(TINY, tmp_path_factory.mktemp("backbone"))


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


def direct(name: str, backbone: str, seed: int = 0, **config):
    """Model and tokenizer as the package's README and training script build them."""
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    first = len(tokenizer)
    if name != "gliclass-uni":
        config |= {
            "label_model_name": backbone,
            "label_model_config": AutoConfig.from_pretrained(backbone).to_dict(),
        }
    set_seed(seed)
    model = GLiClassModel(
        GLiClassModelConfig(
            encoder_config=AutoConfig.from_pretrained(backbone),
            encoder_model=backbone,
            architecture_type=NAMES[name],
            problem_type="multi_label_classification",
            class_token_index=first,
            text_token_index=first + 1,
            example_token_index=first + 2,
            **config,
        ),
        from_pretrained=True,
    )
    if name != "gliclass-bi":
        tokenizer.add_tokens(["<<LABEL>>", "<<SEP>>", "<<EXAMPLE>>"], special_tokens=True)
        model.resize_token_embeddings(len(tokenizer))
    return model.eval(), tokenizer


def package(name: str, backbone: str, texts, labels, max_length: int = 64, **config) -> np.ndarray:
    """Logits from the package's pipeline, one text at a time."""
    model, tokenizer = direct(name, backbone, **config)
    pipeline = ZeroShotClassificationPipeline(
        model, tokenizer, max_length=max_length, device="cpu", progress_bar=False
    )
    return np.array([pipeline.get_embeddings(t, labels)[0]["logits"] for t in texts])


COMMON = [
    {},
    SCRIPT,
    {"scorer_type": "weighted-dot", "initializer_range": 0.2},
    {"scorer_type": "mlp", "initializer_range": 0.2},
    {"scorer_type": "hopfield", "initializer_range": 0.2},
    {"normalize_features": True, "pooling_strategy": "max"},
]
UNI = [
    {"scorer_type": "cross-attn", "pooling_strategy": "pass"},
    {"class_token_pooling": "average", "embed_class_token": False},
    {"use_lstm": True},
    {"layer_wise": True, "contrastive_loss_coef": 0.5},
    {"extract_text_features": True, "use_segment_embeddings": True, "prompt_first": True},
]


@pytest.mark.parametrize(
    ("name", "config"),
    [(n, c) for n in NAMES for c in COMMON] + [("gliclass-uni", c) for c in UNI],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_scores_are_those_of_the_package(name, config, backbone):
    config = dict(config)
    if name == "gliclass-bi":
        config.pop("prompt_first", None)
    peer = peers.build(name, backbone, max_length=128, config=config)
    scores = peer.predict(TEXTS, LABELS)
    model, tokenizer = direct(name, backbone, **config)
    pipeline = ZeroShotClassificationPipeline(model, tokenizer, device="cpu", progress_bar=False)
    logits = np.array([pipeline.get_embeddings(text, LABELS)[0]["logits"] for text in TEXTS])
    np.testing.assert_allclose(scores, logits, atol=1e-6, rtol=1e-6)
    printed = [[p["score"] for p in pipeline(t, LABELS, threshold=0.0)[0]] for t in TEXTS]
    np.testing.assert_allclose(1 / (1 + np.exp(-scores)), printed, atol=1e-6)


class _InOrder(Trainer):
    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(self.train_dataset)


def test_training_is_the_package_s(name, backbone, tmp_path):
    """Same rows, same candidates, same order: the same weights."""
    config = dict(SCRIPT) if name == "gliclass-uni" else {}
    peer = peers.build(name, backbone, config=config)
    peer.fit(EXAMPLES, tmp_path / "ours", SETTINGS)
    model, tokenizer = direct(name, backbone, seed=SETTINGS.seed, **config)
    rows = comparison_rows(EXAMPLES, backbone, SETTINGS)
    order = list(LengthGroups(rows["length"], SETTINGS.batch_size, SETTINGS.seed, lambda: 0))
    true = [[c for c, t in zip(r["candidates"], r["targets"], strict=True) if t] for r in rows]
    with contextlib.redirect_stdout(None):
        data = GLiClassDataset(
            [
                {
                    "text": rows[i]["text"],
                    "all_labels": rows[i]["candidates"],
                    "true_labels": true[i],
                }
                for i in order
            ],
            tokenizer,
            AugmentationConfig(enabled=False),
            max_length=SETTINGS.max_length,
            architecture_type=NAMES[name],
            prompt_first=config.get("prompt_first", False),
            labels_tokenizer=AutoTokenizer.from_pretrained(backbone),
            shuffle_labels=False,
        )
    _InOrder(
        model=model,
        args=SETTINGS.arguments(tmp_path / "theirs", TrainingArguments),
        train_dataset=data,
        data_collator=DataCollatorWithPadding(config=model.config),
    ).train()
    theirs = model.state_dict()
    moved = 0
    for key, weight in peer.model.state_dict().items():
        # The package lets the scale of the logits decay, as no other peer does.
        atol = 1e-4 if key == "model.logit_scale" else 1e-6
        torch.testing.assert_close(weight, theirs[key], rtol=0, atol=atol, msg=key)
        moved += weight.is_floating_point()
    assert moved > 30


def test_backbone_and_saved_weights_arrive(name, backbone, tmp_path):
    peer = peers.build(name, backbone)
    source = load_file(Path(backbone) / "model.safetensors")
    encoders = gliclass_model.encoders(peer.model)
    assert len(encoders) == (1 if name == "gliclass-uni" else 2) and len(source) > 30
    for encoder in encoders:
        found = encoder.state_dict()
        for key, weight in source.items():
            assert torch.equal(found[key.removeprefix("bert.")][: len(weight)], weight), key
    peer.save(tmp_path)
    again = peers.kind(name).load(tmp_path)
    saved, loaded = peer.model.state_dict(), again.model.state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[key], loaded[key]) for key in saved)
    assert again.backbone == backbone


def test_a_backbone_re_initialised_after_loading_is_refused(name, backbone, monkeypatch):
    class Forgetful(GLiClassModel):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            encoder = gliclass_model.encoders(self)[-1]
            torch.nn.init.normal_(encoder.encoder.layer[1].output.dense.weight)

    monkeypatch.setattr(gliclass_model, "GLiClassModel", Forgetful)
    with pytest.raises(peers.PeerError, match=r"encoder\.layer\.1\.output\.dense\.weight of the"):
        peers.build(name, backbone)


def test_a_checkpoint_with_a_wrong_weight_or_config_raises(name, backbone, tmp_path):
    peer = peers.build(name, backbone)
    peer.save(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    key = "model.encoder_model.encoder.layer.0.attention.self.query.weight"
    broken = {k: w for k, w in weights.items() if k != key}
    save_file(broken, file, metadata={"format": "pt"})
    # The package itself draws the weight at random.
    assert not torch.equal(GLiClassModel.from_pretrained(tmp_path).state_dict()[key], weights[key])
    with pytest.raises(peers.PeerError, match=r"Missing key.*query\.weight"):
        peers.kind(name).load(tmp_path)
    save_file({**weights, "extra": torch.ones(1)}, file, metadata={"format": "pt"})
    with pytest.raises(peers.PeerError, match=r"Unexpected key.*extra"):
        peers.kind(name).load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["encoder_config"]["model_type"] = "my_own_code"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(peers.PeerError, match=r"encoder_config.model_type 'my_own_code'"):
        peers.kind(name).load(tmp_path)
    config["architecture_type"] = "encoder-decoder"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(peers.PeerError, match="architecture_type 'encoder-decoder'"):
        peers.kind(name).load(tmp_path)


def test_an_interrupted_run_ends_as_an_uninterrupted_one(backbone, tmp_path):
    settings = peers.FitSettings(1, 1e-3, max_steps=4, batch_size=4, max_length=32)
    peer = peers.build("gliclass-fused", backbone)
    first = peer.fit(EXAMPLES, tmp_path, settings)
    whole = peer.model.state_dict()
    (tmp_path / "checkpoint-4" / "trainer_state.json").unlink()  # its writing was cut off
    assert (tmp_path / "checkpoint-3").is_dir()
    again = peer.fit(EXAMPLES, tmp_path, settings)
    resumed = peer.model.state_dict()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    del first["seconds"], again["seconds"]
    assert first == again


def test_a_batch_that_fails_is_not_skipped(backbone, tmp_path, monkeypatch):
    def fail(self, *args, **kwargs):
        raise RuntimeError("out of everything")

    peer = peers.build("gliclass-uni", backbone)
    monkeypatch.setattr(GLiClassModel, "forward", fail)
    with pytest.raises(RuntimeError, match="out of everything"):
        peer.fit(EXAMPLES, tmp_path, SETTINGS)


def test_new_parts_get_the_head_s_rate_and_temperatures_no_decay(name, backbone, tmp_path):
    peer = peers.build(name, backbone)
    trainer = GLiClassTrainer(
        model=peer.model,
        args=SETTINGS.arguments(tmp_path, TrainingArguments),
        head_lr_multiplier=7.0,
    )
    rates = {
        id(p): (group["lr"], group["weight_decay"])
        for group in trainer.create_optimizer().param_groups
        for p in group["params"]
    }
    for key, weight in peer.model.named_parameters():
        rate, decay = rates.pop(id(weight))
        inside = key.startswith(("model.encoder_model.", "model.label_encoder."))
        assert rate == pytest.approx(1e-3 if inside else 7e-3), key
        if key.endswith(("bias", "LayerNorm.weight", "logit_scale")):
            assert decay == 0, key
        else:
            assert decay == pytest.approx(0.01), key
    assert not rates


@pytest.mark.parametrize(
    ("name", "config", "error"),
    [
        ("gliclass-uni", {"pooling": "avg"}, "pooling is no option of the uni-encoder"),
        ("gliclass-uni", {"scorer_type": "dot"}, "scorer_type is 'dot'.*takes simple, weighted"),
        ("gliclass-uni", {"scorer_type": "decoder-kv"}, "scorer_type is 'decoder-kv'"),
        ("gliclass-uni", {"pooling_strategy": "mean"}, "pooling_strategy is 'mean'.*takes max"),
        ("gliclass-uni", {"pooling_strategy": "pass"}, "pooling_strategy is 'pass'"),
        ("gliclass-uni", {"scorer_type": "cross-attn"}, "'first'.*'cross-attn' takes pass"),
        ("gliclass-uni", {"class_token_pooling": "mean"}, "class_token_pooling is 'mean'"),
        ("gliclass-uni", {"encoder_layer_id": 1}, "encoder_layer_id has no effect"),
        ("gliclass-bi", {"scorer_type": "cross-attn"}, "scorer_type is 'cross-attn'"),
        ("gliclass-bi", {"prompt_first": True}, "prompt_first has no effect"),
        ("gliclass-fused", {"contrastive_loss_coef": 0.1}, "contrastive_loss_coef has no effect"),
        ("gliclass-fused", {"squeeze_layers": True}, "squeeze_layers has no effect"),
    ],
)
def test_an_option_that_does_nothing_or_fails_is_refused(name, config, error, backbone):
    with pytest.raises(peers.PeerError, match=error):
        peers.build(name, backbone, config=config)


def test_squeeze_excitation_weighs_the_embeddings_and_every_layer(backbone, tmp_path):
    """The package's own is one layer short and fails; ours against the formula in numpy."""
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        package("gliclass-uni", backbone, TEXTS, LABELS, squeeze_layers=True)
    peer = peers.build("gliclass-uni", backbone, config={"squeeze_layers": True})
    layers = [torch.randn(2, 5, 32) for _ in range(3)]
    with torch.no_grad():
        found = peer.model.model.layer_wise_attention(layers).numpy()
    w = {k: v.numpy() for k, v in peer.model.model.layer_wise_attention.state_dict().items()}
    u = np.stack([layer.numpy() for layer in layers], axis=1)
    z = (u @ w["squeeze.weight"][0] + w["squeeze.bias"]).mean(axis=2)
    hidden = np.maximum(z @ w["W1.weight"].T + w["W1.bias"], 0)
    s = 1 / (1 + np.exp(-(hidden @ w["W2.weight"].T + w["W2.bias"])))
    mixed = (u * s[:, :, None, None]).sum(axis=1)
    expected = mixed @ w["output_projection.weight"].T + w["output_projection.bias"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    scores = peer.predict(TEXTS, LABELS)
    peer.save(tmp_path)
    again = peers.kind("gliclass-uni").load(tmp_path)
    np.testing.assert_array_equal(again.predict(TEXTS, LABELS), scores)


def test_the_loss_is_the_focal_loss_plus_the_contrastive_one(backbone):
    """Closed forms over the real candidates of a padded batch."""
    options = {"contrastive_loss_coef": 0.5, "focal_loss_alpha": 0.3, "focal_loss_gamma": 1.5}
    model, tokenizer = direct("gliclass-uni", backbone, normalize_features=True, **options)
    rows = [("ice <<LABEL>>a<<LABEL>>b<<LABEL>>c<<SEP>>", [1, 0, 1]), ("x <<LABEL>>d<<SEP>>", [1])]
    batch = tokenizer([text for text, _ in rows], padding=True, return_tensors="pt")
    targets = torch.tensor([[1.0, 0, 1], [1, 0, 0]])
    with torch.no_grad():
        out = model(**batch, labels=targets, max_num_classes=3, output_class_embeddings=True)
    terms, contrastive = [], []
    for i, (_, true) in enumerate(rows):
        e = out.class_embeddings[i].double().numpy()
        e = e / np.maximum(np.linalg.norm(e, axis=1, keepdims=True), 1e-12)
        for j, y in enumerate(true):
            p = 1 / (1 + np.exp(-float(out.logits[i, j])))
            q = p if y else 1 - p
            terms.append(-(0.3 if y else 0.7) * (1 - q) ** 1.5 * np.log(q))
            similarity = e @ e[j]  # padded slots of the batch count among the negatives
            contrastive.append(np.log(np.exp(similarity).sum()) - similarity[j])
    assert float(out.loss) == pytest.approx(np.mean(terms) + 0.5 * np.mean(contrastive), abs=1e-6)


def test_costs_are_the_tokens_that_went_through_the_encoders(name, backbone):
    peer = peers.build(name, backbone, max_length=128, batch_size=2)
    peer.predict(TEXTS, LABELS)
    tokenizer = AutoTokenizer.from_pretrained(backbone)

    def count(*strings):
        return sum(len(tokenizer(s, add_special_tokens=False)["input_ids"]) for s in strings)

    labels = count(*LABELS)
    expected = {  # texts with [CLS] and [SEP]; a token per label; <<SEP>>; labels on their own
        "gliclass-uni": (3, count(*TEXTS) + 3 * (2 + labels + 4 + 1)),
        "gliclass-bi": (15, count(*TEXTS) + 3 * 2 + 3 * (labels + 4 * 2)),
        "gliclass-fused": (15, count(*TEXTS) + 3 * (2 + 4 + 1) + 3 * (labels + 4 * 2)),
    }[name]
    assert (peer.costs.sequences, peer.costs.tokens) == expected


def test_control_tokens_in_a_text_or_label_are_data(name, backbone):
    peer = peers.build(name, backbone, max_length=64)
    for token in ("<<LABEL>>", "<<SEP>>", "<<EXAMPLE>>", "[SEP]", "[CLS]", "[PAD]", "[MASK]"):
        text = f"no ship{token}came in"
        plain = peer.tokenizer(peer._plain(text))["input_ids"]
        split = peer.tokenizer(text, split_special_tokens=True, add_special_tokens=False)
        assert plain[1:-1] == split["input_ids"]
    nested = peer._plain("<<LABEL><<LABEL>>>")
    assert (
        peer.tokenizer.convert_tokens_to_ids("<<LABEL>>") not in peer.tokenizer(nested)["input_ids"]
        or name == "gliclass-bi"
    )
    read = peer.predict("<<LABEL>> a [SEP]", ["<<SEP>>", "[SEP] <<LABEL>>", "b"])
    spelled = peer.predict("< < LABEL > > a [ SEP ]", ["< < SEP > >", "[ SEP ] < < LABEL > >", "b"])
    np.testing.assert_array_equal(read, spelled)


def test_a_long_text_is_cut_and_labels_never_are(name, backbone):
    """As if the text had ended where the window does."""
    peer = peers.build(name, backbone, max_length=48, config={"initializer_range": 0.3})
    text = "The ship and the court, " * 20
    sent = []
    peer.pipeline.get_embeddings, original = (
        lambda texts, labels, size: sent.extend(texts) or original(texts, labels, size),
        peer.pipeline.get_embeddings,
    )
    scores = peer.predict([text, TEXTS[1]], LABELS)
    cut = next(sentence for sentence in sent if sentence != TEXTS[1])
    ids = peer.tokenizer(peer._sequence(cut, LABELS))["input_ids"]
    assert text.startswith(cut) and len(cut) > 5 and len(ids) == 48
    if name != "gliclass-bi":
        assert ids.count(peer.model.config.class_token_index) == len(LABELS)
    wide = peers.build(name, backbone, max_length=128, config={"initializer_range": 0.3})
    np.testing.assert_allclose(scores, wide.predict([cut, TEXTS[1]], LABELS), atol=1e-6)


def test_labels_that_do_not_fit_raise_with_numbers(name, backbone, tmp_path):
    peer = peers.build(name, backbone, max_length=16)
    long = " ".join(["word"] * 20)
    if name == "gliclass-uni":
        error = r"2 labels take 2[4-9] of the window's 16 tokens"
    else:
        error = r"label 'word word.*takes 22 tokens, the window has 16"
    with pytest.raises(peers.PeerError, match=error):
        peer.predict(TEXTS, [long, "law"])
    settings = peers.FitSettings(1, 1e-3, max_steps=1, max_length=16)
    with pytest.raises(peers.PeerError, match=error):
        peer.fit([Example("a ship", (long,), ("law",))], tmp_path, settings)
    if name == "gliclass-fused":
        with pytest.raises(peers.PeerError, match="14 labels take 17 of the window's 16 tokens"):
            peer.predict(TEXTS, list("abcdefghijklmn"))


def test_a_window_beyond_the_backbone_is_refused(name, backbone):
    with pytest.raises(peers.PeerError, match="max_length is 513 but the tokenizer allows 512"):
        peers.build(name, backbone, max_length=513)


# What the package itself (0.1.21) does with input that the peer refuses or repairs.


def test_the_package_reads_control_tokens_in_a_text(backbone):
    plain = package("gliclass-uni", backbone, TEXTS[:1], LABELS, normalize_features=True)[0]
    text = [TEXTS[0] + " <<LABEL>>sport"]
    found = package("gliclass-uni", backbone, text, LABELS, normalize_features=True)[0]
    # The text's own label takes the first slot, every label the score of the one before it.
    assert np.abs(found[1:] - plain[1:]).max() > 0.1
    with pytest.raises(RuntimeError, match="shape mismatch"):
        package("gliclass-fused", backbone, text, LABELS)


def test_the_package_drops_labels_behind_a_long_text(backbone):
    text = [TEXTS[0] + " word" * 60]
    found = package("gliclass-uni", backbone, text, LABELS, normalize_features=True)[0]
    np.testing.assert_array_equal(found, 0)  # no label is left, each has a probability of 0.5
    with pytest.raises(RuntimeError, match="shape mismatch"):
        package("gliclass-fused", backbone, text, LABELS)


def test_the_package_pools_padding(backbone):
    model, tokenizer = direct("gliclass-uni", backbone, **SCRIPT)
    pipeline = ZeroShotClassificationPipeline(model, tokenizer, device="cpu", progress_bar=False)
    alone = pipeline.get_embeddings(TEXTS[1], LABELS)[0]["logits"]
    beside = pipeline.get_embeddings(TEXTS, LABELS)[1]["logits"]
    assert np.abs(alone - beside).max() > 1e-5


def test_label_order_changes_what_reads_labels_together(name, backbone):
    peer = peers.build(name, backbone, max_length=128, config={"normalize_features": True})
    order = [2, 0, 3, 1]
    there = peer.predict(TEXTS, LABELS)[:, order]
    change = np.abs(peer.predict(TEXTS, [LABELS[i] for i in order]) - there).max()
    assert change < 1e-6 if name == "gliclass-bi" else change > 0.1


def test_a_config_without_the_encoder_s_loads_a_bert_as_deberta(backbone):
    """Why the adapter always passes `encoder_config`: otherwise weights are silently random."""
    config = GLiClassModelConfig(encoder_model=backbone, problem_type="multi_label_classification")
    encoder = gliclass_model.encoders(GLiClassModel(config, from_pretrained=True))[0]
    assert type(encoder).__name__ == "DebertaV2Model"
    source = load_file(Path(backbone) / "model.safetensors")
    assert source.keys() - encoder.state_dict().keys()
