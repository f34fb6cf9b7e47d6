"""GliZNet itself under the peers' protocol."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import set_seed

from gliznet.data.types import Example
from gliznet.model import GliZNetForSequenceClassification
from gliznet.peers.protocol import FitSettings, Peer, PeerError
from gliznet.predictor import ZeroShotClassificationPipeline
from gliznet.tokenizer import GliZNETTokenizer, WindowError
from gliznet.training import interpolate, train


class GliZNetPeer(Peer):
    """GliZNet in one of its formulations.

    Args:
        formulation: "math" or "card".
        config: fields of `GliZNetConfig` that differ from the preset.
    """

    name = "gliznet"

    def __init__(
        self,
        backbone: str | Path,
        max_length: int = 256,
        batch_size: int = 32,
        formulation: str = "math",
        config: dict[str, Any] | None = None,
    ):
        super().__init__(backbone, max_length, batch_size)
        self.formulation = formulation
        self.config = config or {}
        self._open(None, 0)

    def fit(
        self, examples: Sequence[Example], folder: str | Path, settings: FitSettings
    ) -> dict[str, float]:
        self._open(None, settings.seed)
        start = {name: weight.clone() for name, weight in self.model.state_dict().items()}
        started = time.perf_counter()
        trainer = train(
            self.model,
            GliZNETTokenizer.from_pretrained(self.backbone, settings.max_length),
            examples,
            folder,
            seed=settings.seed,
            learning_rate=settings.learning_rate,
            head_lr_multiplier=settings.head_lr_multiplier,
            epochs=settings.epochs,
            max_steps=settings.max_steps,
            batch_size=settings.batch_size,
            schedule=settings.schedule,
            max_labels=settings.max_labels,
            backbone_dropout=settings.backbone_dropout,
            bf16=settings.bf16,
        )
        seconds = time.perf_counter() - started
        interpolate(self.model, start, settings.trained_share)
        epochs = trainer.state.epoch or 0.0
        return {
            "seconds": seconds,
            "optimiser_steps": trainer.state.global_step,
            "sequences": len(examples) * epochs,
            "tokens": sum(trainer.train_dataset["length"]) * epochs,
        }

    def save(self, folder: str | Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def load(cls, folder: str | Path, **options: Any) -> "GliZNetPeer":
        peer = cls.__new__(cls)
        Peer.__init__(peer, folder, **options)
        peer._open(folder, 0)
        return peer

    def _open(self, checkpoint: str | Path | None, seed: int) -> None:
        """A saved model, or a new one whose random parameters follow from the seed."""
        set_seed(seed)
        self.tokenizer = GliZNETTokenizer.from_pretrained(
            checkpoint or self.backbone, self.max_length
        )
        self.model = (
            GliZNetForSequenceClassification.from_pretrained(checkpoint)
            if checkpoint
            else GliZNetForSequenceClassification.from_backbone(
                self.backbone, self.tokenizer, self.formulation, **self.config
            )
        )

    @torch.inference_mode()
    def _scores(self, texts: list[str], labels: list[str]) -> NDArray[np.floating]:
        pipeline = ZeroShotClassificationPipeline(
            self.model, self.tokenizer, batch_size=self.batch_size
        )
        try:
            logits = pipeline.logits(texts, labels)
        except WindowError as error:
            raise PeerError(str(error)) from error
        candidates = 2 + sum(n + 1 for n in self.tokenizer.count_tokens(labels))
        self.costs.sequences += len(texts)
        self.costs.tokens += sum(
            min(candidates + n, self.max_length) for n in self.tokenizer.count_tokens(texts)
        )
        return torch.stack(logits).numpy()
