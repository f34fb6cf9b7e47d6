"""Configuration of GliZNet: one switch per choice that the two published formulations make."""

import inspect
import math
from typing import Any, ClassVar

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

LAB_TOKEN = "[LAB]"
"""The token that closes each label in the sequence (math §2.1, card "Tokenizer")."""

CHOICES: dict[str, tuple[str, ...]] = {
    "projection": ("identity", "linear", "linear_layernorm"),
    "projection_init": ("identity", "default"),
    "label_embedding": ("mean", "lab"),
    "text_embedding": ("label_attention", "cls", "mean"),
    "attention_positions": ("text", "unlabelled"),
    "attention_score": ("dot", "cosine"),
    "head": ("cosine", "dot", "bilinear"),
    "contrastive": ("supcon", "one_vs_negatives"),
    "repulsion": ("cosine", "vicreg"),
    "probability": ("bce", "logits"),
}
"""The values that each switch can take."""


class GliZNetConfig(PretrainedConfig):
    """Architecture, loss and decision rule of a GliZNet model.

    Args:
        backbone_config: configuration of the encoder (a `PretrainedConfig` or its dictionary).
        lab_token_id: vocabulary id of `[LAB]`.
        control_token_ids: ids of `[CLS]`, `[SEP]` and `[LAB]`; these positions are never text.
        projection: text and label projections (math §4): none, linear, or linear + LayerNorm.
        projection_init: "identity" keeps the backbone's geometry at step 0; "default", PyTorch's.
        projected_dim: d_p; `None` means the backbone's hidden size d_h.
        projection_dropout: dropout rate p in [0, 1) after each projection.
        label_embedding: "mean" of the label's tokens (math §5, mode 1) or "lab" (mode 2, card).
        text_embedding: label-conditioned attention (math §6.2), `[CLS]` (math §6.1) or the mean.
        attention_positions: "text" tokens only; or "unlabelled", the literal set of math §6.2
            (mask 0 and attended), which also holds `[CLS]`, `[SEP]` and every `[LAB]`.
        attention_score: "dot" (math §6.3) or "cosine", the same product of unit vectors.
        tau_attn: initial attention temperature; scores are divided by it (math §6.3).
        head: "cosine" (math §7.1.1), "dot" (§7.1.2) or "bilinear" (§7.1.3, card).
        tau: initial scale of the cosine head, e² in math §7.1.1.
        tau_bce: initial scale of the logits that BCE sees (math §8.3.1); cosine head only.
        learn_temperatures: whether the three temperatures are trained.
        contrastive: "supcon" (math §8.1) or "one_vs_negatives" (card).
        contrastive_weight, repulsion_weight, bce_weight: λ of the three terms (math §8).
        margin: additive margin of "one_vs_negatives" (card).
        repulsion: "cosine" (math §8.2) or "vicreg", variance + covariance only (card).
        repulsion_threshold: θ_rep of the cosine repulsion, in [-1, 1].
        vicreg_target_std: standard deviation that the variance term asks for.
        probability: how a logit becomes a probability: "bce", σ of the logit that BCE was trained
            on; or "logits", the literal σ(sim) of math §10.1. They differ for the cosine head only.

    Raises:
        ValueError: a value outside its set or range; the message names both.
    """

    model_type = "gliznet"
    sub_configs: ClassVar[dict[str, type]] = {"backbone_config": AutoConfig}

    def __init__(
        self,
        backbone_config: PretrainedConfig | dict[str, Any] | None = None,
        lab_token_id: int | None = None,
        control_token_ids: tuple[int, ...] | list[int] = (),
        projection: str = "linear",
        projection_init: str = "identity",
        projected_dim: int | None = None,
        projection_dropout: float = 0.0,
        label_embedding: str = "mean",
        text_embedding: str = "label_attention",
        attention_positions: str = "text",
        attention_score: str = "dot",
        tau_attn: float = 1.0,
        head: str = "cosine",
        tau: float = 7.38905609893065,
        tau_bce: float = 7.38905609893065,
        learn_temperatures: bool = True,
        contrastive: str = "supcon",
        contrastive_weight: float = 1.0,
        margin: float = 0.0,
        repulsion: str = "cosine",
        repulsion_weight: float = 0.1,
        repulsion_threshold: float = 0.3,
        vicreg_target_std: float = 1.0,
        bce_weight: float = 1.0,
        probability: str = "bce",
        **kwargs: Any,
    ):
        if isinstance(backbone_config, dict):
            values = dict(backbone_config)
            backbone_config = CONFIG_MAPPING[values.pop("model_type")](**values)
        self.backbone_config = backbone_config
        self.lab_token_id = lab_token_id
        self.control_token_ids = list(control_token_ids)
        self.projection = projection
        self.projection_init = projection_init
        self.projected_dim = projected_dim
        self.projection_dropout = projection_dropout
        self.label_embedding = label_embedding
        self.text_embedding = text_embedding
        self.attention_positions = attention_positions
        self.attention_score = attention_score
        self.tau_attn = tau_attn
        self.head = head
        self.tau = tau
        self.tau_bce = tau_bce
        self.learn_temperatures = learn_temperatures
        self.contrastive = contrastive
        self.contrastive_weight = contrastive_weight
        self.margin = margin
        self.repulsion = repulsion
        self.repulsion_weight = repulsion_weight
        self.repulsion_threshold = repulsion_threshold
        self.vicreg_target_std = vicreg_target_std
        self.bce_weight = bce_weight
        self.probability = probability
        self._check()
        super().__init__(**kwargs)

    @classmethod
    def math(cls, backbone_config: Any = None, **overrides: Any) -> "GliZNetConfig":
        """The mathematics document: mean labels, attention, cosine, SupCon + repulsion + BCE."""
        return cls._preset(backbone_config, overrides)

    @classmethod
    def card(cls, backbone_config: Any = None, **overrides: Any) -> "GliZNetConfig":
        """The card: `[LAB]` labels, attention, bilinear head, one-vs-negatives + BCE + VICReg."""
        preset = {
            "projection": "identity",
            "label_embedding": "lab",
            "head": "bilinear",
            "contrastive": "one_vs_negatives",
            "contrastive_weight": 0.5,
            "margin": 0.5,
            "repulsion": "vicreg",
            "repulsion_weight": 0.05,
            "bce_weight": 0.5,
        }
        return cls._preset(backbone_config, {**preset, **overrides})

    @classmethod
    def _preset(cls, backbone_config: Any, values: dict[str, Any]) -> "GliZNetConfig":
        # transformers keeps any keyword as an attribute, so a misspelt switch would pass unseen.
        unknown = sorted(
            values.keys() - inspect.signature(GliZNetConfig.__init__).parameters.keys()
        )
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: no such field of GliZNetConfig")
        return cls(backbone_config=backbone_config, **values)

    @property
    def hidden_size(self) -> int:
        """d_h, the backbone's hidden size."""
        if self.backbone_config is None:
            raise ValueError("backbone_config is None: give the configuration of an encoder")
        return self.backbone_config.hidden_size

    @property
    def embedding_dim(self) -> int:
        """d_p, the dimension in which text and labels meet."""
        if self.projection == "identity" or self.projected_dim is None:
            return self.hidden_size
        return self.projected_dim

    def _check(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"{name} is {value!r}: choose one of {', '.join(choices)}")
        for name in ("tau", "tau_attn", "tau_bce", "vicreg_target_std"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} is {getattr(self, name)}: it must be finite and greater than 0"
                )
        for name in ("contrastive_weight", "repulsion_weight", "bce_weight", "margin"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} is {getattr(self, name)}: it must be finite and not negative"
                )
        if not 0 <= self.projection_dropout < 1:
            raise ValueError(
                f"projection_dropout is {self.projection_dropout}: it must be in [0, 1)"
            )
        if not -1 <= self.repulsion_threshold <= 1:
            raise ValueError(
                f"repulsion_threshold is {self.repulsion_threshold}: a cosine is in [-1, 1]"
            )
        if self.projected_dim is not None and self.projected_dim < 1:
            raise ValueError(f"projected_dim is {self.projected_dim}: it must be at least 1")
        if self.projection == "identity" and self.projected_dim is not None:
            raise ValueError(
                f"projected_dim is {self.projected_dim} but projection is 'identity', which keeps "
                "the backbone's dimension: leave projected_dim out or choose 'linear'"
            )
        resized = self.backbone_config is not None and self.embedding_dim != self.hidden_size
        if resized and self.projection_init == "identity":
            raise ValueError(
                f"projection_init is 'identity' but projected_dim {self.projected_dim} is not "
                f"the hidden size {self.hidden_size}: set projection_init='default'"
            )


AutoConfig.register(GliZNetConfig.model_type, GliZNetConfig)
