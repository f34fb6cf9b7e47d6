"""GliZNet: encoder, two projections, label-conditioned attention, similarity head (math §3–§8)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import ModelOutput

from gliznet import losses
from gliznet.config import GliZNetConfig
from gliznet.layers import (
    SimilarityHead,
    label_conditioned_attention,
    label_membership,
    pool_labels,
    projection,
)
from gliznet.tokenizer import GliZNETTokenizer


@dataclass
class GliZNetOutput(ModelOutput):
    """Dense outputs; entries outside `label_mask` are padding (logits there are −inf)."""

    loss: Tensor | dict[str, Any] | None = None  # accelerate rebuilds an output from a dictionary
    logits: Tensor | None = None  # (B, K)
    label_mask: Tensor | None = None  # (B, K) bool
    loss_terms: dict[str, Tensor] | None = None
    text_embeddings: Tensor | None = None  # (B, K, D)
    label_embeddings: Tensor | None = None  # (B, K, D)
    text_attention: Tensor | None = None  # (B, K, L)


class GliZNetForSequenceClassification(PreTrainedModel):
    """Scores every candidate label of a text in one pass over the sequence that holds them all.

    Build an untrained one with `from_backbone`, load a trained one with `from_pretrained`.
    """

    config_class = GliZNetConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    accepts_loss_kwargs = False

    def __init__(self, config: GliZNetConfig):
        super().__init__(config)
        # A requested attention implementation has reached backbone_config through sub_configs; else
        # the backbone chooses: DeBERTa, for one, has no "sdpa".
        self.backbone = AutoModel.from_config(config.backbone_config)
        # GliZNet reads token states only; a pooler would be dead weight in every checkpoint.
        if getattr(self.backbone, "pooler", None) is not None:
            self.backbone.pooler = None
        self.text_projection = projection(config)
        self.label_projection = projection(config)
        self.head = SimilarityHead(config)
        # Logarithms keep the temperatures positive under gradient steps.
        for name in ("tau", "tau_attn", "tau_bce"):
            value = torch.tensor(math.log(getattr(config, name)))
            if config.learn_temperatures:
                self.register_parameter(f"log_{name}", nn.Parameter(value))
            else:
                # from_pretrained makes every parameter trainable; a buffer stays frozen.
                self.register_buffer(f"log_{name}", value)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: every part initialises itself where it is built."""

    @classmethod
    def from_backbone(
        cls,
        name_or_path: str,
        tokenizer: GliZNETTokenizer,
        formulation: str = "math",
        lab_init: str = "separator",
        attn_implementation: str | None = None,
        **overrides: Any,
    ) -> "GliZNetForSequenceClassification":
        """An untrained GliZNet over pretrained encoder weights.

        Args:
            name_or_path: any encoder that `AutoModel` loads.
            tokenizer: gives the vocabulary size and the ids of the control tokens.
            formulation: preset "math" or "card".
            lab_init: start of `[LAB]`: "separator" copies `[SEP]`, "mean" that of the vocabulary.
            attn_implementation: passed to the backbone ("eager", "sdpa", …).
            **overrides: fields of `GliZNetConfig`.

        Raises:
            ValueError: an unknown formulation or `lab_init`.
        """
        if formulation not in ("math", "card"):
            raise ValueError(f"formulation is {formulation!r}: choose 'math' or 'card'")
        if lab_init not in ("separator", "mean"):
            raise ValueError(f"lab_init is {lab_init!r}: choose 'separator' or 'mean'")
        backbone = AutoModel.from_pretrained(
            name_or_path, attn_implementation=attn_implementation, dtype=torch.float32
        )
        backbone.resize_token_embeddings(
            max(len(tokenizer), backbone.config.vocab_size), mean_resizing=False
        )
        embeddings = backbone.get_input_embeddings().weight
        with torch.no_grad():
            source = (
                embeddings[tokenizer.sep_token_id]
                if lab_init == "separator"
                else embeddings[: tokenizer.lab_token_id].mean(dim=0)
            )
            embeddings[tokenizer.lab_token_id] = source
        config = getattr(GliZNetConfig, formulation)(
            backbone_config=backbone.config,
            lab_token_id=tokenizer.lab_token_id,
            control_token_ids=tokenizer.control_token_ids,
            **overrides,
        )
        # Building the configuration has reset the choice in backbone.config, the same object.
        config._attn_implementation = attn_implementation
        # The path of the backbone on this machine has no place in a checkpoint.
        config.backbone_config._name_or_path = ""
        model = cls(config)
        model.backbone.load_state_dict(
            {k: v for k, v in backbone.state_dict().items() if not k.startswith("pooler.")}
        )
        return model.eval()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Loads a checkpoint strictly.

        Raises:
            ValueError: a weight is missing, unexpected or of another shape; transformers alone
                would fill it with random numbers and only log a warning.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        # With mismatches let through, they are reported below like every other problem.
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, info = super().from_pretrained(*args, **kwargs)
        problems = {
            kind: sorted(str(key) for key in info[kind])
            for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
            if info.get(kind)
        }
        if problems:
            raise ValueError(f"{args[0] if args else 'checkpoint'} is not this model: {problems}")
        return (model, info) if wants_info else model

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    @property
    def tau(self) -> Tensor:
        """Scale τ of the cosine head (math §7.1.1)."""
        return self.log_tau.exp()

    @property
    def tau_attn(self) -> Tensor:
        """Attention temperature (math §6.3)."""
        return self.log_tau_attn.exp()

    @property
    def tau_bce(self) -> Tensor:
        """Scale of the logit that BCE sees (math §8.3.1)."""
        return self.log_tau_bce.exp()

    def probability_logits(self, logits: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """Logits whose sigmoid is the probability: by `config.probability` those that BCE was
        trained on (math §8.3.1) or the literal ones (math §10.1). They differ with τ only."""
        if self.config.head != "cosine" or self.config.probability == "logits":
            return logits
        return logits / self.tau * self.tau_bce

    def forward(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Int[Tensor, "B L"],
        lmask: Int[Tensor, "B L"],
        labels: Float[Tensor, "B K"] | None = None,
        output_text_attention: bool = False,
    ) -> GliZNetOutput:
        """Encodes the sequences of `GliZNETTokenizer` and scores their labels.

        Args:
            input_ids, attention_mask, lmask: as `GliZNETTokenizer` returns them.
            labels: targets, 1 for true and 0 for false; what stands outside a row's own labels is
                ignored. With it the output has `loss` and `loss_terms`.
            output_text_attention: also return the attention over the text, `(B, K, L)`.

        Raises:
            ValueError: no label in the batch, or `labels` of another width than the label mask.
        """
        num_labels = int(lmask.max())
        if num_labels < 1:
            raise ValueError("lmask is 0 everywhere: the batch has no label to score")
        if labels is not None and labels.shape[1] != num_labels:
            raise ValueError(
                f"labels have {labels.shape[1]} columns, lmask has {num_labels} labels"
            )
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        membership = label_membership(lmask, num_labels)
        label_mask = membership.any(dim=-1)

        label_embeddings = self._label_embeddings(hidden, membership, input_ids, num_labels)
        text_embeddings, attention = self._text_embeddings(
            hidden, label_embeddings, input_ids, attention_mask, lmask
        )
        logits = self.head(text_embeddings, label_embeddings, self.tau.to(hidden.dtype))
        terms = None
        if labels is not None:
            terms = self._loss(logits, label_embeddings, labels, label_mask)
        return GliZNetOutput(
            loss=None if terms is None else terms.total,
            logits=logits.masked_fill(~label_mask, float("-inf")),
            label_mask=label_mask,
            loss_terms=None if terms is None else terms._asdict(),
            text_embeddings=text_embeddings,
            label_embeddings=label_embeddings,
            text_attention=attention if output_text_attention else None,
        )

    def _label_embeddings(
        self, hidden: Tensor, membership: Tensor, input_ids: Tensor, num_labels: int
    ) -> Float[Tensor, "B K D"]:
        projected = self.label_projection(hidden)
        if self.config.label_embedding == "mean":
            return pool_labels(projected, membership)
        # math §2.2 gives [LAB] the mask value 0, so its j-th occurrence stands for label j.
        is_lab = input_ids == self.config.lab_token_id
        ordinal = is_lab.cumsum(dim=1) * is_lab
        return pool_labels(projected, label_membership(ordinal, num_labels))

    def _text_embeddings(
        self,
        hidden: Tensor,
        label_embeddings: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        lmask: Tensor,
    ) -> tuple[Float[Tensor, "B K D"], Tensor | None]:
        config = self.config
        projected = self.text_projection(hidden)
        expanded = (-1, label_embeddings.shape[1], -1)
        if config.text_embedding == "cls":
            return projected[:, :1].expand(*expanded), None
        positions = (lmask == 0) & attention_mask.bool()
        if config.attention_positions == "text":
            control = torch.tensor(config.control_token_ids, device=input_ids.device)
            positions = positions & ~torch.isin(input_ids, control)
            # An empty text has no token to attend to; [CLS] stands in for it.
            empty = ~positions.any(dim=1)
            positions = torch.cat([positions[:, :1] | empty[:, None], positions[:, 1:]], dim=1)
        if config.text_embedding == "mean":
            return pool_labels(projected, positions[:, None, :]).expand(*expanded), None
        queries, keys = label_embeddings, projected
        if config.attention_score == "cosine":
            queries, keys = F.normalize(queries, dim=-1), F.normalize(keys, dim=-1)
        tau = self.tau_attn.to(hidden.dtype)
        return label_conditioned_attention(queries, keys, positions, tau, values=projected)

    def _loss(
        self, logits: Tensor, label_embeddings: Tensor, labels: Tensor, label_mask: Tensor
    ) -> losses.LossTerms:
        config = self.config
        if config.contrastive == "supcon":
            contrastive = losses.supcon_loss(logits, labels, label_mask)
        else:
            contrastive = losses.one_vs_negatives_loss(logits, labels, label_mask, config.margin)
        if config.repulsion == "cosine":
            repulsion = losses.repulsion_loss(
                label_embeddings, label_mask, config.repulsion_threshold
            )
        else:
            repulsion = losses.vicreg_loss(label_embeddings, label_mask, config.vicreg_target_std)
        taus = (self.tau, self.tau_bce) if config.head == "cosine" else (1.0, 1.0)
        bce = losses.bce_loss(logits, labels, label_mask, *taus)
        weights = (config.contrastive_weight, config.repulsion_weight, config.bce_weight)
        return losses.total_loss(contrastive, repulsion, bce, weights)


AutoModel.register(GliZNetConfig, GliZNetForSequenceClassification)
