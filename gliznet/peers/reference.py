"""Checkpoints of the public GliZNet implementation, opened as models of this package.

`load_reference` gives a `GliZNetForSequenceClassification` and its tokenizer. Saved with their
`save_pretrained` into one folder, they are what `GliZNetPeer.load` opens.

**Exact** are the logits, for all three heads, and with them the public implementation's own
probability σ(logit), to float32 rounding. Its dot head is a `Linear(D, 1)` on the element-wise
product and its bilinear head a `Bilinear(D, D, 1)`; ours hold the same numbers in other shapes.

**Not exact** is what no score reads:

- Its BCE term divides the logit by τ and multiplies it by the BCE scale whatever the head. Ours
  does so for the cosine head only. A dot or bilinear model keeps its two scales (`log_tau`,
  `log_tau_bce`) but continues to train on the plain logit.
- Its repulsion is a mean over all pairs of a batch, ours over the pairs of a row, then rows.
- Its temperatures are stored as they are and clamped where they are used. Ours are the logarithms
  of the clamped values, so those at a clamp can move again.

Input differs where its tokenizer shortens labels (beyond 64 tokens, or beyond the window) and where
a text spells a control token, which it reads as one; ours never does either.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, PretrainedConfig
from transformers.utils import cached_file

from gliznet.config import GliZNetConfig
from gliznet.model import GliZNetForSequenceClassification
from gliznet.peers.protocol import PeerError
from gliznet.tokenizer import GliZNETTokenizer

ATTENTION_DIVISORS = ("temperature", "temperature_sqrt_dim")

_FIELDS = {
    "projected_dim": None,
    "similarity_metric": "cosine",
    "dropout_rate": 0.1,
    "use_projection_layernorm": False,
    "use_lab_token_for_labels": False,
    "bce_loss_weight": 1.0,
    "supcon_loss_weight": 1.0,
    "label_repulsion_weight": 0.1,
    "learn_temperature": True,
    "repulsion_threshold": 0.3,
}
"""Keys of its configuration with what each means where it is absent."""

_UNREAD = {
    "backbone_model",
    "backbone_config",
    "lab_token_id",
    "logit_scale_init",  # where log τ started; the checkpoint holds where it ended
    "max_labels",  # width of a dense tensor of its own
    # Kept by its earliest version for older files, and read by nothing there.
    "scale_loss",
    "margin",
    "contrastive_loss_weight",
    "temperature",
    "temperature_scale_base",
    "separation_loss_weight",
    "positive_logit_margin",
    "negative_logit_margin",
}

_SCALARS = {
    "aggregator.similarity_head.logit_scale": "log_tau",
    "aggregator.attention_temperature": "log_tau_attn",
    "loss_fn.bce_scale": "log_tau_bce",
}


def load_reference(
    name_or_path: str | Path,
    attention_divisor: str | None = None,
    max_length: int | None = None,
) -> tuple[GliZNetForSequenceClassification, GliZNETTokenizer]:
    """Opens a checkpoint of the public implementation.

    Its first version takes the projected [CLS] state as text embedding. Later ones attend over the
    text with a learned temperature (`aggregator.attention_temperature`) and keep [CLS] and [SEP]
    among the text positions, and [LAB] too where labels are means of tokens.

    Args:
        name_or_path: folder or Hub id with config.json, model.safetensors and the tokenizer.
        attention_divisor: for a checkpoint with an attention temperature t, what divides the
            attention scores: "temperature", max(|t|, 0.1), or "temperature_sqrt_dim", that times
            √D. Versions with the same parameter names differ here, so the caller must say.
        max_length: window of the tokenizer.

    Returns:
        The model in evaluation mode, float32, and its tokenizer.

    Raises:
        OSError: a file is missing.
        PeerError: a configuration key, a weight or a value that this package has no place for, a
            missing weight, or an attention temperature without `attention_divisor`.
    """
    stored = json.loads(Path(_file(name_or_path, "config.json")).read_text(encoding="utf-8"))
    values = _known(stored)
    weights = load_file(_file(name_or_path, "model.safetensors"))
    weights = {name: weight.float() for name, weight in weights.items()}
    attends = "aggregator.attention_temperature" in weights
    if attends and attention_divisor not in ATTENTION_DIVISORS:
        raise PeerError(
            f"attention_divisor is {attention_divisor!r} and the checkpoint has an attention "
            f"temperature: choose one of {', '.join(ATTENTION_DIVISORS)}"
        )
    if not attends and attention_divisor is not None:
        raise PeerError(
            f"attention_divisor is {attention_divisor!r} but the checkpoint has no attention "
            "temperature: its text embedding is the [CLS] state, leave the option out"
        )
    tokenizer = GliZNETTokenizer.from_pretrained(name_or_path, max_length)
    backbone = _backbone_config(stored, weights)
    lab = stored.get("lab_token_id")
    if lab is not None and lab != tokenizer.lab_token_id:
        raise PeerError(
            f"lab_token_id is {lab} but the tokenizer beside it has [LAB] at "
            f"{tokenizer.lab_token_id}: the checkpoint needs the tokenizer it was saved with"
        )
    if tokenizer.lab_token_id >= backbone.vocab_size:
        raise PeerError(
            f"[LAB] has id {tokenizer.lab_token_id} but the checkpoint embeds "
            f"{backbone.vocab_size} tokens: it needs the tokenizer it was saved with"
        )
    config = _config(values, backbone, tokenizer, attends)
    model = GliZNetForSequenceClassification(config)
    translated = _translated(weights, config, attention_divisor)
    # A [CLS] model has no attention temperature; ours is not read then.
    translated.setdefault("log_tau_attn", model.log_tau_attn.detach())
    expected = {name: weight.shape for name, weight in model.state_dict().items()}
    problems = {
        "missing": sorted(expected.keys() - translated.keys()),
        "unexpected": sorted(translated.keys() - expected.keys()),
        "of another shape": sorted(
            name
            for name in expected.keys() & translated.keys()
            if expected[name] != translated[name].shape
        ),
    }
    if any(problems.values()):
        raise PeerError(
            f"{name_or_path} does not fill the model that its configuration describes: "
            + "; ".join(f"{kind}: {', '.join(n)}" for kind, n in problems.items() if n)
        )
    model.load_state_dict(translated, strict=True)
    for name in _SCALARS.values():
        setattr(config, name.removeprefix("log_"), float(translated[name].exp()))
    return model.eval(), tokenizer


def _known(stored: dict[str, Any]) -> dict[str, Any]:
    """Values of `_FIELDS`. An unknown key would change what the checkpoint computes unseen."""
    standard = PretrainedConfig().to_dict().keys() | {"torch_dtype", "auto_map"}
    unknown = sorted(stored.keys() - _FIELDS.keys() - _UNREAD - standard)
    if unknown:
        raise PeerError(
            f"config.json has {', '.join(unknown)}, which this loader does not know: it reads the "
            f"keys {', '.join(sorted(_FIELDS.keys() | _UNREAD))}"
        )
    if stored.get("model_type") != GliZNetConfig.model_type:
        raise PeerError(
            f"model_type is {stored.get('model_type')!r}: this is no GliZNet checkpoint"
        )
    values = {key: stored.get(key, absent) for key, absent in _FIELDS.items()}
    if values["similarity_metric"] not in ("cosine", "dot", "bilinear"):
        raise PeerError(
            f"similarity_metric is {values['similarity_metric']!r}: choose one of cosine, dot, "
            "bilinear"
        )
    return values


def _backbone_config(stored: dict[str, Any], weights: dict[str, Tensor]) -> PretrainedConfig:
    """The encoder's configuration with the vocabulary that the weights have.

    [LAB] enlarges the embeddings; early versions saved the configuration from before.
    """
    if stored.get("backbone_config") is not None:
        backbone = AutoConfig.for_model(**stored["backbone_config"])
    else:
        backbone = AutoConfig.from_pretrained(stored["backbone_model"])
    with torch.device("meta"):
        probe = AutoModel.from_config(backbone)
    table = probe.get_input_embeddings().weight
    name = next(name for name, parameter in probe.named_parameters() if parameter is table)
    if f"backbone.{name}" not in weights:
        raise PeerError(f"the checkpoint has no backbone.{name}: it is no GliZNet checkpoint")
    backbone.vocab_size = len(weights[f"backbone.{name}"])
    backbone._name_or_path = ""
    backbone.dtype = torch.float32
    return backbone


def _config(
    values: dict[str, Any], backbone: PretrainedConfig, tokenizer: GliZNETTokenizer, attends: bool
) -> GliZNetConfig:
    width = values["projected_dim"] or backbone.hidden_size
    layernorm = values["use_projection_layernorm"]
    identity = width == backbone.hidden_size and not layernorm
    lab = values["use_lab_token_for_labels"]
    # With [LAB] labels every unlabelled place but [LAB] is text: [LAB] alone is then a control
    # token. With mean labels [LAB] is text as well.
    return GliZNetConfig(
        backbone_config=backbone,
        lab_token_id=tokenizer.lab_token_id,
        control_token_ids=[tokenizer.lab_token_id],
        projection="identity" if identity else "linear_layernorm" if layernorm else "linear",
        projection_init="default",
        projected_dim=None if identity else width,
        projection_dropout=values["dropout_rate"],
        label_embedding="lab" if lab else "mean",
        text_embedding="label_attention" if attends else "cls",
        attention_positions="text" if lab else "unlabelled",
        head=values["similarity_metric"],
        learn_temperatures=values["learn_temperature"],
        contrastive_weight=values["supcon_loss_weight"],
        repulsion_weight=values["label_repulsion_weight"],
        repulsion_threshold=values["repulsion_threshold"],
        bce_weight=values["bce_loss_weight"],
        probability="logits",
    )


def _translated(
    weights: dict[str, Tensor], config: GliZNetConfig, divisor: str | None
) -> dict[str, Tensor]:
    """Its weights under our names. Its pooler, which it builds but never reads, is left out."""
    found: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if name.startswith("backbone."):
            if not name.startswith("backbone.pooler."):
                found[name] = weight
        elif name.startswith(("aggregator.text_projector.", "aggregator.label_projector.")):
            side, _, rest = name.removeprefix("aggregator.").partition("_projector.")
            found[f"{side}_projection.{rest}"] = weight
        elif name == "aggregator.similarity_head.classifier.weight":
            found["head.weight"] = weight[0]
        elif name == "aggregator.similarity_head.classifier.bias":
            found["head.bias"] = weight.reshape(())
        elif name == "aggregator.similarity_head.logit_scale":
            found["log_tau"] = weight.clamp(-10, 10)
        elif name == "loss_fn.bce_scale":
            found["log_tau_bce"] = weight.abs().clamp(0.1, 10).log()
        elif name == "aggregator.attention_temperature":
            root = config.embedding_dim**0.5 if divisor == "temperature_sqrt_dim" else 1.0
            found["log_tau_attn"] = (weight.abs().clamp(min=0.1) * root).log()
        else:
            # Kept under its own name, which no model of ours has: reported as unexpected.
            found[name] = weight
    return found


def _file(name_or_path: str | Path, file: str) -> str:
    """Path of a checkpoint's file. Weights in pickle are never opened: they can hold code."""
    try:
        return cached_file(str(name_or_path), file)
    except OSError as error:
        raise OSError(
            f"{name_or_path} has no {file} (a pytorch_model.bin must be converted to safetensors)"
        ) from error
