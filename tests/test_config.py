"""The configuration: presets, ranges, round trips and the Auto registry."""

import json
import math

import pytest
from transformers import AutoConfig, BertConfig, RobertaConfig

from gliznet import GliZNetConfig

BACKBONE = {"model_type": "bert", "hidden_size": 32, "num_attention_heads": 2, "vocab_size": 50}
CHOICES = (
    "projection",
    "projection_init",
    "label_embedding",
    "text_embedding",
    "attention_positions",
    "attention_score",
    "head",
    "contrastive",
    "repulsion",
    "probability",
)


def test_the_math_preset_is_the_mathematics_document():
    config = GliZNetConfig.math(BACKBONE)
    assert (config.projection, config.label_embedding) == ("linear", "mean")
    assert (config.text_embedding, config.attention_score) == ("label_attention", "dot")
    assert config.head == "cosine" and config.tau == pytest.approx(math.exp(2.0))
    assert (config.contrastive, config.repulsion) == ("supcon", "cosine")
    assert config.contrastive_weight == 1.0 and config.bce_weight == 1.0
    assert (config.repulsion_weight, config.repulsion_threshold) == (0.1, 0.3)
    assert config.learn_temperatures


def test_the_card_preset_is_the_model_card():
    config = GliZNetConfig.card(BACKBONE)
    assert (config.projection, config.label_embedding) == ("identity", "lab")
    assert (config.text_embedding, config.head) == ("label_attention", "bilinear")
    assert (config.contrastive, config.margin) == ("one_vs_negatives", 0.5)
    assert config.repulsion == "vicreg"
    assert (config.contrastive_weight, config.bce_weight) == (0.5, 0.5)
    assert config.repulsion_weight == 0.05


def test_overrides_win_over_a_preset():
    config = GliZNetConfig.card(BACKBONE, head="dot", margin=0.0)
    assert (config.head, config.margin, config.label_embedding) == ("dot", 0.0, "lab")
    assert GliZNetConfig.math(BACKBONE, bce_weight=0.0).bce_weight == 0


@pytest.mark.parametrize("preset", [GliZNetConfig.math, GliZNetConfig.card])
def test_a_misspelt_switch_is_refused(preset):
    with pytest.raises((TypeError, ValueError), match="haed"):
        preset(backbone_config=BACKBONE, haed="dot")


@pytest.mark.parametrize("name", CHOICES)
def test_an_unknown_choice_names_the_field_the_value_and_the_choices(name):
    known = getattr(GliZNetConfig(), name)
    with pytest.raises(ValueError, match=f"{name} is 'nonsense'.*{known}"):
        GliZNetConfig(**{name: "nonsense"})


@pytest.mark.parametrize(
    ("name", "bad"),
    [(name, bad) for name in ("tau", "tau_attn", "tau_bce") for bad in (0.0, -1.0)]
    + [("vicreg_target_std", 0.0), ("margin", -0.1)]
    + [(f"{name}_weight", -0.5) for name in ("contrastive", "repulsion", "bce")]
    + [("projection_dropout", 1.0), ("projection_dropout", -0.1)]
    + [("repulsion_threshold", 1.1), ("repulsion_threshold", -1.1)]
    + [("projected_dim", 0), ("projected_dim", -3)],
)
def test_a_value_outside_its_range_is_named(name, bad):
    with pytest.raises(ValueError, match=f"{name} is {bad}"):
        GliZNetConfig(**{name: bad})


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    "name",
    [
        "tau",
        "tau_attn",
        "tau_bce",
        "vicreg_target_std",
        "margin",
        "contrastive_weight",
        "repulsion_weight",
        "bce_weight",
        "projection_dropout",
        "repulsion_threshold",
    ],
)
def test_a_value_that_is_no_finite_number_is_refused(name, bad):
    with pytest.raises(ValueError, match=name):
        GliZNetConfig(**{name: bad})


@pytest.mark.parametrize(
    ("name", "edge"),
    [
        ("projection_dropout", 0.0),
        ("repulsion_threshold", 1.0),
        ("repulsion_threshold", -1.0),
        ("margin", 0.0),
        ("bce_weight", 0.0),
        ("projected_dim", 1),
    ],
)
def test_the_ends_of_the_ranges_are_allowed(name, edge):
    assert getattr(GliZNetConfig(**{name: edge}), name) == edge


def test_a_changed_dimension_needs_the_default_initialisation():
    with pytest.raises(ValueError, match=r"projected_dim 16.*32.*projection_init='default'"):
        GliZNetConfig.math(BACKBONE, projected_dim=16)
    assert GliZNetConfig.math(BACKBONE, projected_dim=32).embedding_dim == 32
    config = GliZNetConfig.math(BACKBONE, projected_dim=16, projection_init="default")
    assert (config.embedding_dim, config.hidden_size) == (16, 32)


def test_no_projection_keeps_the_backbones_dimension():
    assert GliZNetConfig.card(BACKBONE).embedding_dim == 32
    with pytest.raises(ValueError, match="projected_dim is 32 but projection is 'identity'"):
        GliZNetConfig.card(BACKBONE, projected_dim=32)


def test_without_a_backbone_there_is_no_hidden_size():
    with pytest.raises(ValueError, match="backbone_config is None"):
        _ = GliZNetConfig().hidden_size


@pytest.mark.parametrize("backbone", [BACKBONE, BertConfig(hidden_size=32), RobertaConfig()])
def test_a_backbone_may_be_a_dictionary_or_a_configuration(backbone):
    config = GliZNetConfig(backbone_config=backbone)
    expected = backbone if isinstance(backbone, dict) else backbone.to_dict()
    assert config.backbone_config.model_type == expected["model_type"]
    assert config.hidden_size == expected["hidden_size"]


def test_the_dictionary_of_a_backbone_is_not_changed():
    given = dict(BACKBONE)
    GliZNetConfig(backbone_config=given)
    assert given == BACKBONE


@pytest.mark.parametrize("preset", ["math", "card"])
def test_a_configuration_survives_its_folder(preset, tmp_path):
    config = getattr(GliZNetConfig, preset)(
        BACKBONE,
        lab_token_id=7,
        control_token_ids=(1, 2, 7),
        tau=3.5,
        tau_attn=0.1,
        tau_bce=9.0,
        repulsion_threshold=-0.25,
        vicreg_target_std=0.5,
        learn_temperatures=False,
        probability="logits",
        attention_positions="unlabelled",
        attention_score="cosine",
        projection_dropout=0.2,
    )
    config.save_pretrained(tmp_path)
    loaded = GliZNetConfig.from_pretrained(tmp_path)
    ours = {k: v for k, v in config.to_dict().items() if k != "transformers_version"}
    theirs = {k: v for k, v in loaded.to_dict().items() if k != "transformers_version"}
    assert theirs == ours
    assert loaded.control_token_ids == [1, 2, 7] and loaded.backbone_config.hidden_size == 32


def test_auto_config_finds_it_by_its_model_type(tmp_path):
    GliZNetConfig.card(BACKBONE, margin=0.75).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "gliznet"
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, GliZNetConfig)
    assert (loaded.margin, loaded.head) == (0.75, "bilinear")
    assert isinstance(loaded.backbone_config, BertConfig)


def test_two_configurations_share_no_state():
    first, second = GliZNetConfig(control_token_ids=(1, 2, 3)), GliZNetConfig()
    first.control_token_ids.append(4)
    assert second.control_token_ids == [] and GliZNetConfig().control_token_ids == []
