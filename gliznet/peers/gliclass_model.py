"""Models of the package `gliclass`, over a backbone or from a checkpoint, every weight checked.

The package's `from_pretrained` draws a missing weight at random with no more than a log message,
and transformers 5 calls its initialisation after the loading of a backbone too: nothing but marks
on the modules keeps it off loaded weights. So weights are read strictly here and then compared.
"""

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from gliclass import GLiClassModel, GLiClassModelConfig
from gliclass.layers import LayerwiseAttention
from gliclass.poolings import POOLING2OBJECT
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerBase
from transformers.models.auto import CONFIG_MAPPING
from transformers.utils import cached_file

from gliznet.peers.protocol import PeerError

CONTROL = ("<<LABEL>>", "<<SEP>>", "<<EXAMPLE>>")
ENCODERS = ("encoder_model", "label_encoder")
SCORERS = ("simple", "weighted-dot", "mlp", "hopfield", "cross-attn")
"""Names of the scorers that work; "simple" is the dot product."""

_SHARED = {
    "dropout",
    "focal_loss_alpha",
    "focal_loss_gamma",
    "focal_loss_reduction",
    "initializer_range",
    "logit_scale_init_value",
    "normalize_features",
    "pooling_strategy",
    "projector_hidden_act",
    "scorer_attn_dropout",
    "scorer_mlp_hidden_size",
    "scorer_num_heads",
    "scorer_type",
}
_UNI_ONLY = {
    "class_token_pooling",
    "contrastive_loss_coef",
    "embed_class_token",
    "extract_text_features",
    "layer_wise",
    "squeeze_layers",
    "use_lstm",
    "use_segment_embeddings",
}
OPTIONS = {
    "uni-encoder": _SHARED | _UNI_ONLY | {"prompt_first"},
    "bi-encoder": _SHARED,
    "bi-encoder-fused": _SHARED | {"prompt_first"},
}
"""Fields of `GLiClassModelConfig` that change something in each architecture, and work."""


def check_options(architecture: str, config: dict[str, Any]) -> None:
    """Raises PeerError for an option, scorer or pooling that the package would accept in vain."""
    options = OPTIONS[architecture]
    known = inspect.signature(GLiClassModelConfig).parameters
    for name in sorted(config.keys() - options):
        why = "has no effect in, or does not work with," if name in known else "is no option of"
        raise PeerError(
            f"{name} {why} the {architecture}: take one of {', '.join(sorted(options))}"
        )
    scorer = config.get("scorer_type", "simple")
    scorers = SCORERS if architecture == "uni-encoder" else SCORERS[:-1]
    # The cross-attention scorer attends to tokens, the others to one vector.
    poolings = [p for p in POOLING2OBJECT if (p == "pass") == (scorer == "cross-attn")]
    for name, default, choices in (
        ("scorer_type", "simple", scorers),
        ("pooling_strategy", "first", poolings),
        ("class_token_pooling", "first", ("first", "average")),
    ):
        value = config.get(name, default)
        if value not in choices:
            raise PeerError(
                f"{name} is {value!r}: the {architecture} with the scorer {scorer!r} takes "
                f"{', '.join(choices)}"
            )


def new_model(
    backbone: str, tokenizer: PreTrainedTokenizerBase, architecture: str, config: dict[str, Any]
) -> GLiClassModel:
    """A model whose encoders are the backbone; adds the control tokens to the tokenizer.

    Raises:
        PeerError: an encoder's weights are not the backbone's.
    """
    encoder = AutoConfig.from_pretrained(backbone)
    fields: dict[str, Any] = dict(config)
    if architecture != "bi-encoder":
        names = ("class_token_index", "text_token_index", "example_token_index")
        # The package means by the text token the separator before the text.
        fields |= {name: len(tokenizer) + i for i, name in enumerate(names)}
        tokenizer.add_tokens(list(CONTROL), special_tokens=True)
    if architecture != "uni-encoder":
        fields |= {"label_model_name": backbone, "label_model_config": encoder.to_dict()}
    model = GLiClassModel(
        GLiClassModelConfig(
            encoder_config=encoder,
            encoder_model=backbone,
            architecture_type=architecture,
            problem_type="multi_label_classification",
            **fields,
        ),
        from_pretrained=True,
    )
    _widen_squeeze(model)
    if architecture != "bi-encoder":
        model.resize_token_embeddings(len(tokenizer))
    _check_backbone(model, backbone)
    return model


def read_model(checkpoint: str, architecture: str) -> GLiClassModel:
    """A saved model, on disk or on the Hub, every weight from its file.

    Raises:
        PeerError: another architecture, an encoder that transformers does not know (the package
            would run code from the Hub), or a missing, unexpected or misshapen weight.
    """
    raw = json.loads(Path(cached_file(checkpoint, "config.json")).read_text(encoding="utf-8"))
    kind = raw.get("architecture_type")
    if kind != architecture:
        raise PeerError(f"{checkpoint} holds architecture_type {kind!r}, not {architecture!r}")
    for part in ("encoder_config", "label_model_config"):
        name = (raw.get(part) or {}).get("model_type", "deberta-v2")
        if name not in CONFIG_MAPPING:
            raise PeerError(f"{checkpoint} has {part}.model_type {name!r}, not in transformers")
    config = GLiClassModelConfig.from_pretrained(checkpoint)
    if (Path(checkpoint) / "labels").is_dir():
        config.label_model_name = str(Path(checkpoint) / "labels")
    model = GLiClassModel(config)
    _widen_squeeze(model)
    try:
        model.load_state_dict(load_file(cached_file(checkpoint, "model.safetensors")))
    except RuntimeError as error:
        raise PeerError(f"the weights of {checkpoint} do not fit: {error}") from error
    return model


def encoders(model: GLiClassModel) -> list[torch.nn.Module]:
    """The text encoder, and the label encoder if there is one."""
    return [module for name, module in model.model.named_children() if name in ENCODERS]


def _widen_squeeze(model: GLiClassModel) -> None:
    """The package sizes the squeeze-excitation for the layers, and feeds it the embeddings too."""
    if model.config.squeeze_layers:
        encoder = model.config.encoder_config
        layers = LayerwiseAttention(encoder.num_hidden_layers + 1, encoder.hidden_size)
        layers.apply(model._init_weights)
        model.model.layer_wise_attention = layers


def _check_backbone(model: GLiClassModel, backbone: str) -> None:
    source, info = AutoModel.from_pretrained(backbone, output_loading_info=True)
    for encoder in encoders(model):
        found = encoder.state_dict()
        for name, weight in source.state_dict().items():
            # New tokens stand behind the backbone's.
            same = found[name][: len(weight)] if weight.ndim else found[name]
            if name not in info["missing_keys"] and not torch.equal(same, weight):
                raise PeerError(
                    f"{name} of the new model is not the weight of {backbone}: this version of "
                    "gliclass re-initialises what it has loaded, use 0.1.21"
                )
