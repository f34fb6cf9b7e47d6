"""Cross-encoder: every (text, label) pair goes through the encoder as one sequence.

`CrossEncoder` of sentence-transformers gives the pair one logit. A text with K candidates costs K
sequences. Pairs do not see each other, so a score depends neither on the other candidates nor on
their order.

Measured with sentence-transformers 6.2.0 (tests/test_peers_cross_encoder.py):
- A pair over the window loses tokens from its longer side. Two long labels that differ at their
  end then get one score. Here only the text is cut.
- A literal `[SEP]` in a text or label becomes the control token. That is left as it is.
- Every forward pass of a step gets the same weight in the gradient, however many pairs it holds.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.data_collator import CrossEncoderDataCollator
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from torch import Tensor, nn
from torch.utils.data import BatchSampler
from transformers import set_seed

from gliznet.data.types import Example
from gliznet.peers.protocol import FitSettings, Peer, PeerError, SameOrder, comparison_rows
from gliznet.training import _last_checkpoint, interpolate


@dataclass
class PairCollator(CrossEncoderDataCollator):
    """Rows of `comparison_rows` as the pairs that a loss for cross-encoders takes.

    Attributes:
        second: turns a label into the second segment of its pair.
        targets: what the loss takes for a false and for a true candidate.
    """

    second: Callable[[str], str] = str
    targets: tuple[float, float] | tuple[int, int] = (0.0, 1.0)

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        return super().__call__(
            [
                {
                    "text": row["text"],
                    "candidate": self.second(candidate),
                    "label": self.targets[target > 0.5],
                }
                for row in features
                for candidate, target in zip(row["candidates"], row["targets"], strict=True)
            ]
        )


class PairTrainer(SameOrder, CrossEncoderTrainer):
    """The library's trainer, in GliZNet's order, with one mean over all pairs of a step."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.loss_is_scaled_for_ga = True

    def get_batch_sampler(
        self, dataset: Any, batch_size: int, drop_last: bool, **_: Any
    ) -> BatchSampler:
        return BatchSampler(self._get_train_sampler(dataset), batch_size, drop_last)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        pairs = torch.tensor(sum(len(batch["label"]) for batch in batch_samples), device=device)
        return self.accelerator.reduce(pairs, "sum")

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """The mean over a pass, weighted by its share of the step's pairs.

        The library gives every pass the same weight, whatever it holds, so that its step would
        depend on how the texts are split into passes.
        """
        share = len(inputs["label"]) / num_items_in_batch
        loss = super().compute_loss(model, inputs)
        # Processes average their gradients; the shares already sum to 1 over them.
        return loss * share * self.accelerator.num_processes


class CrossEncoderPeer(Peer):
    """One logit per (text, label) pair.

    Training takes binary cross-entropy over all pairs of the step's candidates, the library's
    default for one logit. It fits multi-label candidates: a text may have none, one or several true
    labels, each pair has its own target, and the logit is trained as a probability. Of the
    library's other losses, `MultipleNegativesRankingLoss` takes the labels of other texts for
    false, which they need not be, and the list-wise ones rank within a text only.

    Args:
        texts_per_pass: texts per forward pass in training. A step of `batch_size` texts is made of
            several passes with gradients added up: with 32 texts of 20 candidates it holds 640
            sequences. The largest common divisor with `batch_size` is taken.
    """

    name = "cross-encoder"

    def __init__(
        self,
        backbone: str | Path,
        max_length: int = 256,
        batch_size: int = 32,
        texts_per_pass: int = 8,
    ):
        super().__init__(backbone, max_length, batch_size)
        if texts_per_pass < 1:
            raise ValueError(f"texts_per_pass is {texts_per_pass}: it must be at least 1")
        self.texts_per_pass = texts_per_pass
        self._open(0)

    def _classes(self) -> dict[str, Any]:
        """Keyword arguments of `CrossEncoder` that decide the head."""
        return {"num_labels": 1}

    def _loss(self) -> nn.Module:
        return BinaryCrossEntropyLoss(self.model)

    def _second(self, label: str) -> str:
        """What stands for a label as the second segment of the pair."""
        return label

    def _targets(self) -> tuple[float, float] | tuple[int, int]:
        """What the loss takes for a false and for a true candidate."""
        return 0.0, 1.0

    def fit(
        self, examples: Sequence[Example], folder: str | Path, settings: FitSettings
    ) -> dict[str, float]:
        self._open(settings.seed)
        self._check_window(settings.max_length)
        rows = comparison_rows(examples, self.backbone, settings)
        lengths = self._pair_lengths(rows, settings.max_length)
        self.model.max_seq_length = settings.max_length
        encoder = self.model.transformers_model.base_model
        if settings.backbone_dropout is not None:
            for module in encoder.modules():
                if isinstance(module, nn.Dropout):
                    module.p = settings.backbone_dropout
        start = {name: weight.clone() for name, weight in self.model.state_dict().items()}
        texts = math.gcd(settings.batch_size, self.texts_per_pass)
        new = rf"^model\.0\.model\.(?!{self.model.transformers_model.base_model_prefix}\.)"
        started = time.perf_counter()
        trainer = PairTrainer(
            model=self.model,
            args=settings.arguments(
                folder,
                CrossEncoderTrainingArguments,
                per_device_train_batch_size=texts,
                gradient_accumulation_steps=settings.batch_size // texts,
                learning_rate_mapping={new: settings.learning_rate * settings.head_lr_multiplier},
            ),
            train_dataset=rows,
            loss=self._loss(),
            data_collator=PairCollator(
                self.model.preprocess, second=self._second, targets=self._targets()
            ),
        )
        trainer.train(resume_from_checkpoint=_last_checkpoint(Path(folder)))
        seconds = time.perf_counter() - started
        interpolate(self.model, start, settings.trained_share)
        self.model.eval()
        self.model.max_seq_length = self.max_length
        epochs = trainer.state.epoch or 0.0
        return {
            "seconds": seconds,
            "optimiser_steps": trainer.state.global_step,
            "sequences": len(lengths) * epochs,
            "tokens": sum(lengths) * epochs,
        }

    def save(self, folder: str | Path) -> None:
        # The window of this run is no part of the model: it opens with the backbone's own limit.
        self.model.max_seq_length = self._limit
        self.model.save_pretrained(str(folder), create_model_card=False)
        self.model.max_seq_length = self.max_length

    @classmethod
    def load(cls, folder: str | Path, **options: Any) -> "CrossEncoderPeer":
        peer = cls(folder, **options)
        # from_pretrained only warns of what is missing; this raises.
        peer.model.transformers_model.load_state_dict(load_file(Path(folder) / "model.safetensors"))
        return peer

    def _open(self, seed: int) -> None:
        set_seed(seed)
        self.model = CrossEncoder(self.backbone, **self._classes())
        self._limit = self.model.max_seq_length
        self._check_window(self.max_length)
        self.model.max_seq_length = self.max_length
        self.model[0].processing_kwargs = {"text": {"truncation": "only_first"}}
        self.model.eval()

    def _check_window(self, window: int) -> None:
        if window > self._limit:
            raise PeerError(
                f"max_length is {window} but the backbone takes {self._limit} tokens: lower it"
            )

    def _counted(self, strings: list[str]) -> dict[str, int]:
        ids = self.model.tokenizer(strings, add_special_tokens=False, verbose=False)["input_ids"]
        return {string: len(tokens) for string, tokens in zip(strings, ids, strict=True)}

    def _check_labels(self, labels: list[str], window: int) -> dict[str, int]:
        """Tokens that each label's second segment and the control tokens of the pair take."""
        control = self.model.tokenizer.num_special_tokens_to_add(pair=True)
        counted = self._counted([self._second(label) for label in labels])
        taken = {label: counted[self._second(label)] + control for label in labels}
        longest = max(labels, key=lambda label: taken[label])
        if taken[longest] >= window:
            raise PeerError(
                f"label {longest[:60]!r} takes {taken[longest]} tokens with the control tokens and "
                f"leaves no room for the text in a window of {window}: shorten it or raise "
                "max_length"
            )
        return taken

    def _pair_lengths(self, rows: Any, window: int) -> list[int]:
        """Tokens of each pair that an epoch takes through the encoder."""
        unique = list(dict.fromkeys(c for row in rows["candidates"] for c in row))
        taken = self._check_labels(unique, window)
        texts = self._counted(list(dict.fromkeys(rows["text"])))
        return [
            min(window, texts[text] + taken[candidate])
            for text, candidates in zip(rows["text"], rows["candidates"], strict=True)
            for candidate in candidates
        ]

    def _scores(self, texts: list[str], labels: list[str]) -> NDArray[np.floating]:
        self._check_labels(labels, self.max_length)
        pairs = [(text, self._second(label)) for text in texts for label in labels]
        with self.costs.counting(self.model):
            logits = self.model.predict(
                pairs,
                batch_size=self.batch_size,
                activation_fn=nn.Identity(),
                show_progress_bar=False,
            )
        return logits.reshape(len(texts), len(labels))
