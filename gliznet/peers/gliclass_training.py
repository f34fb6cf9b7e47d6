"""Training by the package `gliclass`: its data set, collator and trainer, with the rates and the
failures that the protocol asks for."""

import contextlib
from typing import Any

import torch
import transformers
from gliclass import GLiClassModelConfig
from gliclass.data_processing import AugmentationConfig, DataCollatorWithPadding, GLiClassDataset
from gliclass.training import Trainer
from transformers import PreTrainedTokenizerBase

from gliznet.peers.gliclass_model import ENCODERS
from gliznet.peers.protocol import SameOrder


class GLiClassTrainer(SameOrder, Trainer):
    """The package's trainer; `head_lr_multiplier` is the factor for what no encoder holds."""

    def __init__(self, *args: Any, head_lr_multiplier: float, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.head_lr_multiplier = head_lr_multiplier
        # The forward hands any further argument to the encoder, which does not know it.
        self.model_accepts_loss_kwargs = False

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The package's own step skips a batch that fails."""
        return transformers.Trainer.training_step(self, *args, **kwargs)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The package's own groups give `biencoder_projector`, a new part, the backbone's rate."""
        if self.optimizer is None:
            model = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(model))
            groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
            for name, weight in model.named_parameters():
                new = name.removeprefix("module.").split(".")[1] not in ENCODERS
                groups.setdefault((new, name in decayed and weight.ndim > 0), []).append(weight)
            rates = {False: 1.0, True: self.head_lr_multiplier}
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = cls(
                [
                    {
                        "params": weights,
                        "lr": self.args.learning_rate * rates[new],
                        "weight_decay": self.args.weight_decay if decay else 0.0,
                    }
                    for (new, decay), weights in groups.items()
                ],
                **kwargs,
            )
        return self.optimizer


class GLiClassCollator:
    """Rows by number, tokenised and padded by the package."""

    def __init__(
        self,
        data: list[dict[str, Any]],
        config: GLiClassModelConfig,
        tokenizer: PreTrainedTokenizerBase,
        label_tokenizer: PreTrainedTokenizerBase | None,
        window: int,
    ):
        with contextlib.redirect_stdout(None):  # it prints the number of labels
            self.data = GLiClassDataset(
                data,
                tokenizer,
                AugmentationConfig(enabled=False),
                max_length=window,
                architecture_type=config.architecture_type,
                prompt_first=config.prompt_first,
                labels_tokenizer=label_tokenizer,
                shuffle_labels=False,
            )
        self.collate = DataCollatorWithPadding(config=config)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collate([self.data[row["row"]] for row in rows])
        return {key: batch[key] for key in batch if key not in ("labels_text", "input_texts")}
