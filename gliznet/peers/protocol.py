"""What every peer offers: build from a backbone, fit, predict, count costs."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Sampler
from transformers import TrainingArguments

from gliznet.batches import LengthGroups, training_rows
from gliznet.data.types import Example
from gliznet.tokenizer import GliZNETTokenizer, check_inputs, check_labels
from gliznet.training import SCHEDULES


class MissingExtra(ImportError):
    """A peer needs a package that is not installed; the message names the line that installs it."""


class PeerError(ValueError):
    """A peer cannot do what it was asked: the message names the value and the fix."""


@dataclass(frozen=True)
class FitSettings:
    """One training budget, the same for every peer of a comparison.

    Attributes:
        seed: of candidate order, data order, dropout and new weights.
        learning_rate: peak rate of the backbone.
        head_lr_multiplier: factor for parameters that the backbone does not have.
        epochs: passes over the rows; or
        max_steps: optimiser steps, which decide alone if positive.
        batch_size: texts per optimiser step, each with all its candidates.
        max_length: training window in tokens.
        max_labels: candidates per text at most.
        schedule: "math" or "card", see `gliznet.training.SCHEDULES`.
        backbone_dropout: dropout rate of the encoder in this run; `None` keeps its own.
        trained_share: of the trained weights in the fitted model, the rest as they were before
            (`gliznet.training.interpolate`).
        bf16: autocast to bfloat16.
    """

    seed: int
    learning_rate: float
    head_lr_multiplier: float = 1.0
    epochs: float = 1.0
    max_steps: int = -1
    batch_size: int = 32
    max_length: int = 128
    max_labels: int = 20
    schedule: str = "math"
    backbone_dropout: float | None = None
    trained_share: float = 1.0
    bf16: bool = False

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule is {self.schedule!r}: choose one of {', '.join(SCHEDULES)}")
        if self.backbone_dropout is not None and not 0 <= self.backbone_dropout < 1:
            raise ValueError(f"backbone_dropout is {self.backbone_dropout}: it must be in [0, 1)")
        if not 0 < self.trained_share <= 1:
            raise ValueError(f"trained_share is {self.trained_share}: it must be in (0, 1]")

    def arguments(
        self, folder: str | Path, kind: type[TrainingArguments] = TrainingArguments, **changes: Any
    ) -> TrainingArguments:
        """The `TrainingArguments` that GliZNet's own training uses, for this budget.

        Args:
            folder: of the checkpoints.
            kind: a library's own subclass, for its own trainer.
            **changes: arguments that differ.
        """
        return kind(
            output_dir=str(folder),
            **{
                **SCHEDULES[self.schedule],
                "seed": self.seed,
                "learning_rate": self.learning_rate,
                "num_train_epochs": self.epochs,
                "max_steps": self.max_steps,
                "per_device_train_batch_size": self.batch_size,
                "max_grad_norm": 1.0,
                "bf16": self.bf16,
                "save_strategy": "steps",
                "save_steps": 0.25,
                "save_total_limit": 2,
                "logging_steps": 0.02,
                "report_to": "none",
                "disable_tqdm": True,
                "remove_unused_columns": False,
                "dataloader_pin_memory": False,
                **changes,
            },
        )


@dataclass
class Costs:
    """What a peer's predictions have cost so far.

    Attributes:
        sequences: rows that went through the encoder, cached ones not counted again.
        tokens: real tokens in them, padding left out.
        seconds: wall time of `predict`.
    """

    sequences: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @contextmanager
    def counting(self, encoder: nn.Module) -> Iterator[None]:
        """Adds what goes through an encoder inside the block, by its attention mask.

        Args:
            encoder: a module that takes `attention_mask` `(B, L)` by name, or a dictionary with it.
        """

        def add(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            mask = (kwargs if "attention_mask" in kwargs else args[0])["attention_mask"]
            self.sequences += len(mask)
            self.tokens += int(mask.sum())

        hook = encoder.register_forward_pre_hook(add, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()


class Peer(ABC):
    """A zero-shot classifier over one backbone.

    Args:
        backbone: folder or Hub id of an encoder (of a causal LM for the LLM peers).
        max_length: window of `predict` in tokens.
        batch_size: sequences per forward pass in `predict`.

    Attributes:
        costs: of all predictions so far.
    """

    name: ClassVar[str]
    trains: ClassVar[bool] = True

    def __init__(self, backbone: str | Path, max_length: int = 256, batch_size: int = 32):
        for key, value in (("max_length", max_length), ("batch_size", batch_size)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{key} is {value!r}: it must be a whole number of at least 1")
        self.backbone = str(backbone)
        self.max_length = max_length
        self.batch_size = batch_size
        self.costs = Costs()

    @abstractmethod
    def fit(
        self, examples: Sequence[Example], folder: str | Path, settings: FitSettings
    ) -> dict[str, float]:
        """Trains on the rows; called again with the same folder it resumes.

        Returns:
            Costs of the training: "seconds", "optimiser_steps", "sequences" and "tokens" seen.

        Raises:
            PeerError: a peer that does not train, or rows it cannot take.
        """

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Writes the fitted peer (safetensors and JSON only)."""

    @classmethod
    @abstractmethod
    def load(cls, folder: str | Path, **options: Any) -> "Peer":
        """Opens what `save` wrote. A missing or an unexpected weight raises."""

    @abstractmethod
    def _scores(self, texts: list[str], labels: list[str]) -> NDArray[np.floating]:
        """Scores `(N, K)` of checked input; adds sequences and tokens to `costs`."""

    def predict(self, texts: str | Iterable[str], labels: Iterable[str]) -> NDArray[np.float32]:
        """Scores `(N, K)`, higher is a better fit; comparable within a row only.

        Args:
            texts: one text or several.
            labels: one ordered candidate set for all texts.

        Raises:
            TypeError, ValueError: input that GliZNet's tokenizer refuses too: no text, no label, a
                text or label that is no string, a blank or repeated label.
            PeerError: candidates that do not fit the peer's window.
        """
        names = check_labels(labels)
        checked, _ = check_inputs(texts, names)
        started = time.perf_counter()
        scores = np.asarray(self._scores(checked, names), dtype=np.float32)
        self.costs.seconds += time.perf_counter() - started
        if scores.shape != (len(checked), len(names)):
            raise RuntimeError(
                f"{self.name} gave scores of shape {scores.shape} for {len(checked)} texts and "
                f"{len(names)} labels"
            )
        if not np.isfinite(scores).all():
            raise RuntimeError(f"{self.name} gave a score that is not finite")
        return scores


def comparison_rows(
    examples: Sequence[Example], backbone: str | Path, settings: FitSettings
) -> Dataset:
    """The rows that every peer trains on: same candidates, same order, same lengths.

    Columns as in `gliznet.batches.training_rows`. The length counts GliZNet's sequence for every
    peer, so that batches hold the same texts whatever a peer makes of them.
    """
    tokenizer = GliZNETTokenizer.from_pretrained(backbone, settings.max_length)
    return training_rows(examples, tokenizer, settings.seed, settings.max_labels)


class SameOrder:
    """Mixin for a `Trainer`: rows in the order in which GliZNet's own trainer takes them."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        data = self.train_dataset if train_dataset is None else train_dataset
        args = self.args
        step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return LengthGroups(data["length"], step, args.seed, lambda: int(self.state.epoch or 0))
