"""Training: a thin use of `transformers.Trainer`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments, set_seed

from gliznet.batches import Collator, LengthGroups, training_rows
from gliznet.data.types import Example
from gliznet.losses import total_loss
from gliznet.model import GliZNetForSequenceClassification
from gliznet.tokenizer import GliZNETTokenizer

SCHEDULES: dict[str, dict[str, Any]] = {
    "math": {"lr_scheduler_type": "linear", "warmup_steps": 0.1, "weight_decay": 0.01},
    "card": {"lr_scheduler_type": "cosine", "warmup_steps": 0.05, "weight_decay": 1e-3},
}
"""Learning-rate schedules of math §9.3 and of the card; `warmup_steps` below 1 is a share."""

TERMS = ("contrastive", "repulsion", "bce")


class GliZNetTrainer(Trainer):
    """`Trainer` with a learning rate of its own for the new parameters, logging each loss term."""

    def __init__(self, *args: Any, head_lr_multiplier: float = 1.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.head_lr_multiplier = head_lr_multiplier
        self.loss_is_scaled_for_ga = True
        self._sums: Tensor | None = None

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW with four groups: backbone and new parameters, each with and without decay.

        Decay leaves out biases, norms and the temperatures, whose logarithm it would pull to 0.
        """
        if self.optimizer is not None:
            return self.optimizer
        model = self.model if model is None else model
        decayed = set(self.get_decay_parameter_names(model))
        groups = []
        for new in (False, True):
            for decay in (False, True):
                params = [
                    p
                    for n, p in model.named_parameters()
                    if p.requires_grad
                    and (not n.removeprefix("module.").startswith("backbone.")) == new
                    and (n in decayed and p.ndim > 0) == decay
                ]
                rate = self.args.learning_rate * (self.head_lr_multiplier if new else 1.0)
                weight_decay = self.args.weight_decay if decay else 0.0
                groups.append({"params": params, "lr": rate, "weight_decay": weight_decay})
        cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
        self.optimizer = cls([g for g in groups if g["params"]], **kwargs)
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        data = self.train_dataset if train_dataset is None else train_dataset
        args = self.args
        step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return LengthGroups(data["length"], step, args.seed, lambda: int(self.state.epoch or 0))

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | None:
        """What each loss term is a mean of, counted over the whole step and all processes."""
        if not batch_samples:
            return None
        counts = sum(_term_sizes(batch) for batch in batch_samples).to(device)
        return self.accelerator.reduce(counts, "sum")

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """The model's weighted loss, with each term's mean taken over the whole optimiser step.

        A batch holds a share of the step's rows and pairs. Its terms count by that share, so the
        step does not depend on how its rows are split into batches and processes. The variance
        and covariance of "vicreg" are statistics of a batch and remain so.
        """
        outputs = model(**inputs)
        loss = outputs.loss
        if model.training:
            terms = torch.stack([outputs.loss_terms[name].float() for name in TERMS])
            share = _term_sizes(inputs) / num_items_in_batch.clamp(min=1)
            sums = torch.stack([share * terms.detach(), share])
            self._sums = sums if self._sums is None else self._sums + sums
            config = self.model.config
            weights = (config.contrastive_weight, config.repulsion_weight, config.bce_weight)
            # Processes average their gradients; the shares already sum to 1 over them.
            loss = total_loss(*(share * terms), weights).total * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the mean of each loss term since the last log, over all processes."""
        if "loss" in logs and self._sums is not None:
            values, shares = self.accelerator.reduce(self._sums, "sum")
            for name, value in zip(TERMS, values / shares.clamp(min=1e-9), strict=True):
                logs[f"loss_{name}"] = float(value)
            self._sums = None
        super().log(logs, *args, **kwargs)


def _term_sizes(batch: dict[str, Tensor]) -> Tensor:
    """Rows with a true label, labels in rows with several or all of them (see `TERMS`), pairs."""
    candidates = batch["lmask"].amax(dim=1)
    positive = (batch["labels"] > 0.5).any(dim=1)
    return torch.stack([positive.sum(), (candidates > 1).sum(), candidates.sum()]).float()


def _last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end: trainer_state.json is written last."""
    found = folder.glob("checkpoint-*[0-9]")
    for path in sorted(found, key=lambda p: int(p.name.split("-")[-1]), reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return str(path)
    return None


def train(
    model: GliZNetForSequenceClassification,
    tokenizer: GliZNETTokenizer,
    examples: Sequence[Example],
    folder: str | Path,
    seed: int,
    learning_rate: float,
    head_lr_multiplier: float | int = 1.0,
    epochs: float | int = 1.0,
    max_steps: int = -1,
    batch_size: int = 16,
    gradient_accumulation: int = 1,
    schedule: str = "math",
    max_labels: int = 20,
    backbone_dropout: float | int | None = None,
    bf16: bool = False,
    activation_checkpointing: bool = False,
    save_steps: float | int = 0.25,
    logging_steps: float | int = 0.02,
    development: Sequence[Example] | None = None,
    patience: int | None = None,
    **arguments: Any,
) -> GliZNetTrainer:
    """Trains a model in place; call it again with the same folder to resume an interrupted run.

    Checkpoints go to `folder` every `save_steps` (a share of all steps if below 1). A call finds
    the last complete one and continues from it with the same data order and random state.

    Args:
        model: an untrained or trained GliZNet.
        tokenizer: its tokenizer; its window is the training window.
        examples: training rows.
        folder: checkpoints and trainer state.
        seed: of data order, candidate order and dropout.
        learning_rate: peak rate of the backbone.
        head_lr_multiplier: factor for projections, head and temperatures.
        epochs, max_steps: length of the run; a positive `max_steps` decides alone.
        batch_size: rows per device and step.
        gradient_accumulation: batches per optimiser step.
        schedule: "math" (linear decay, 10 % warm-up) or "card" (cosine, 5 %).
        max_labels: candidates per row at most.
        backbone_dropout: dropout rate of the encoder in this run; `None` keeps its own.
        bf16: autocast to bfloat16.
        activation_checkpointing: recompute activations in the backward pass.
        development: with `patience`, rows whose loss decides early stopping.
        patience: evaluations without improvement before stopping.
        **arguments: further `TrainingArguments`.

    Raises:
        ValueError: unknown schedule, a dropout rate outside [0, 1), or `patience` without
            `development`.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule is {schedule!r}: choose one of {', '.join(SCHEDULES)}")
    if patience is not None and not development:
        raise ValueError("patience is set but there are no development rows to stop on")
    if backbone_dropout is not None:
        if not 0 <= backbone_dropout < 1:
            raise ValueError(f"backbone_dropout is {backbone_dropout}: it must be in [0, 1)")
        for module in model.backbone.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = backbone_dropout
    set_seed(seed)
    rows = training_rows(examples, tokenizer, seed, max_labels)
    held_out = training_rows(development, tokenizer, seed, max_labels) if development else None
    callbacks = [] if patience is None else [EarlyStoppingCallback(patience)]
    stopping: dict[str, Any] = {}
    if held_out is not None:
        stopping = {"eval_strategy": "steps", "eval_steps": save_steps}
    if patience is not None:
        stopping |= {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
    settings: dict[str, Any] = {
        **SCHEDULES[schedule],
        "num_train_epochs": epochs,
        "max_steps": max_steps,
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": batch_size,
        "gradient_accumulation_steps": gradient_accumulation,
        "max_grad_norm": 1.0,
        "train_sampling_strategy": "group_by_length",
        "save_strategy": "steps",
        "save_steps": save_steps,
        "save_total_limit": 2,
        "logging_steps": logging_steps,
        "activation_checkpointing": activation_checkpointing,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "label_names": ["labels"],
    }
    trainer = GliZNetTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            seed=seed,
            learning_rate=learning_rate,
            bf16=bf16,
            use_cpu=not torch.cuda.is_available(),
            **{**settings, **stopping, **arguments},
        ),
        train_dataset=rows,
        eval_dataset=held_out,
        data_collator=Collator(tokenizer),
        callbacks=callbacks,
        head_lr_multiplier=head_lr_multiplier,
    )
    trainer.train(resume_from_checkpoint=_last_checkpoint(Path(folder)))
    model.eval()
    return trainer


@torch.no_grad()
def interpolate(model: torch.nn.Module, start: Mapping[str, Tensor], share: float) -> None:
    """Moves the weights of a trained model back towards those it started from, in place.

    Fine-tuning bends what the encoder knew about labels it was not trained on; a mixture of both
    sets of weights keeps more of it (Wortsman et al. 2022, "Robust fine-tuning of zero-shot
    models").

    Args:
        model: after training.
        start: its `state_dict()` before training, copied.
        share: of the trained weights in the result, in (0, 1]; 1 leaves the model as it is.

    Raises:
        ValueError: a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}: it must be above 0 and at most 1")
    if share < 1:
        for name, weight in model.state_dict().items():
            if weight.is_floating_point():
                weight.lerp_(start[name].to(weight.device), 1 - share)
