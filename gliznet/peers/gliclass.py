"""GLiClass (package `gliclass`, checked with 0.1.21): uni-encoder, bi-encoder, fused bi-encoder.

Stepanov et al. 2025, "GLiClass: Generalist Lightweight Model for Sequence Classification Tasks",
arXiv:2508.07662. Model, data set, collator, trainer and pipeline are the package's own. Around
them stand the guards that the protocol asks for, against what the package does by itself:

- A control token in a text or label is read as one: here it is spelled out before.
- A sequence beyond the window loses its end, which with `prompt_first=False` are the labels: here
  the text is cut instead, and labels that leave it no room raise.
- Poolings other than "first" and "pass" read padding: here texts of unequal length share no batch
  in `predict`. In training, and for a bi-encoder's labels, padding is read as the package does.
- The trainer prints an exception and goes on with the next batch: here it raises.
- The layer-wise squeeze-excitation is one layer too narrow for what it is given and raises: here
  it is built for the embeddings and every layer.
- An option that is unknown, or has no effect in an architecture, is accepted: here it is refused.
"""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from gliclass import GLiClassModel, ZeroShotClassificationPipeline
from gliclass.training import TrainingArguments
from numpy.typing import NDArray
from transformers import AutoTokenizer, set_seed

from gliznet.data.types import Example
from gliznet.peers.gliclass_model import (
    CONTROL,
    OPTIONS,
    check_options,
    encoders,
    new_model,
    read_model,
)
from gliznet.peers.gliclass_training import GLiClassCollator, GLiClassTrainer
from gliznet.peers.protocol import FitSettings, Peer, PeerError, comparison_rows
from gliznet.training import _last_checkpoint, interpolate

SCRIPT = {
    "pooling_strategy": "avg",
    "prompt_first": True,
    "focal_loss_alpha": -1.0,
    "focal_loss_gamma": -1.0,
}
"""Where the package's training script (train.py of its repository) differs from its config class:
average pooling, labels before the text, and no focal weights, which is plain BCE."""


class GLiClassPeer(Peer):
    """One of the package's architectures.

    Args:
        config: fields of `GLiClassModelConfig` that differ from its defaults (dot product of the
            first token with the label tokens, text before labels, focal loss with alpha 0.5 and
            gamma 2); see `gliznet.peers.gliclass_model.OPTIONS`.

    Raises:
        PeerError: an option, scorer or pooling that does not exist or does nothing here; a window
            beyond the tokenizer's.
    """

    architecture: ClassVar[str]

    def __init__(
        self,
        backbone: str | Path,
        max_length: int = 256,
        batch_size: int = 32,
        config: dict[str, Any] | None = None,
    ):
        super().__init__(backbone, max_length, batch_size)
        self.config = dict(config or {})
        check_options(self.architecture, self.config)
        self._open(None, 0)

    def fit(
        self, examples: Sequence[Example], folder: str | Path, settings: FitSettings
    ) -> dict[str, float]:
        self._open(None, settings.seed)
        if settings.backbone_dropout is not None:
            for encoder in encoders(self.model):
                for module in encoder.modules():
                    if isinstance(module, torch.nn.Dropout):
                        module.p = settings.backbone_dropout
        start = {name: weight.clone() for name, weight in self.model.state_dict().items()}
        rows = comparison_rows(examples, self.backbone, settings)
        labels = [[self._plain(label) for label in names] for names in rows["candidates"]]
        texts = [self._plain(text) for text in rows["text"]]
        texts, lengths, label_lengths = self._cut(texts, labels, settings.max_length)
        data = [
            {"text": text, "all_labels": names, "true_labels": dict(zip(names, true, strict=True))}
            for text, names, true in zip(texts, labels, rows["targets"], strict=True)
        ]
        started = time.perf_counter()
        trainer = GLiClassTrainer(
            model=self.model,
            args=settings.arguments(folder, TrainingArguments),
            train_dataset=rows.add_column("row", list(range(len(rows)))),
            data_collator=GLiClassCollator(
                data, self.model.config, self.tokenizer, self._label_tokenizer, settings.max_length
            ),
            head_lr_multiplier=settings.head_lr_multiplier,
        )
        trainer.train(resume_from_checkpoint=_last_checkpoint(Path(folder)))
        seconds = time.perf_counter() - started
        self.model.eval()
        interpolate(self.model, start, settings.trained_share)
        epochs = trainer.state.epoch or 0.0
        encoded = [label_lengths[name] for names in labels for name in names if label_lengths]
        return {
            "seconds": seconds,
            "optimiser_steps": trainer.state.global_step,
            "sequences": (len(texts) + len(encoded)) * epochs,
            "tokens": (sum(lengths) + sum(encoded)) * epochs,
        }

    def save(self, folder: str | Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self._label_tokenizer is not None:
            self._label_tokenizer.save_pretrained(Path(folder) / "labels")

    @classmethod
    def load(cls, folder: str | Path, **options: Any) -> "GLiClassPeer":
        peer = cls.__new__(cls)
        Peer.__init__(peer, folder, **options)
        peer._open(str(folder), 0)
        saved = peer.model.config
        peer.backbone = saved.encoder_model_name
        peer.config = {name: getattr(saved, name) for name in OPTIONS[cls.architecture]}
        return peer

    def _open(self, checkpoint: str | None, seed: int) -> None:
        """A saved model, or a new one whose random parameters follow from the seed."""
        set_seed(seed)
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint or self.backbone)
        if self.max_length > self.tokenizer.model_max_length:
            raise PeerError(
                f"max_length is {self.max_length} but the tokenizer allows "
                f"{self.tokenizer.model_max_length}"
            )
        self.model: GLiClassModel = (
            read_model(checkpoint, self.architecture)
            if checkpoint
            else new_model(self.backbone, self.tokenizer, self.architecture, self.config)
        )
        self.pipeline = ZeroShotClassificationPipeline(
            self.model,
            self.tokenizer,
            max_length=self.max_length,
            device="cuda" if torch.cuda.is_available() else "cpu",
            progress_bar=False,
        ).pipe
        self._label_tokenizer = getattr(self.pipeline, "labels_tokenizer", None)
        special = set(CONTROL)
        for tokenizer in filter(None, (self.tokenizer, self._label_tokenizer)):
            added = tokenizer.added_tokens_decoder.values()
            special |= {token.content for token in added if token.special}
        self._special = re.compile("|".join(re.escape(token) for token in sorted(special)))

    def _plain(self, string: str) -> str:
        """A text or label without control tokens: a space splits each."""
        while self._special.search(string):
            string = self._special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", string)
        return string

    def _cut(
        self, texts: list[str], labels: Sequence[list[str]], window: int
    ) -> tuple[list[str], list[int], dict[str, int]]:
        """Texts cut so that each sequence fits the window, the lengths of the sequences, and those
        of the labels where they are sequences of their own.

        Raises:
            PeerError: labels that do not fit, or leave no room for the text.
        """
        label_lengths = {}
        if self._label_tokenizer is not None:
            unique = list(dict.fromkeys(label for names in labels for label in names))
            sizes = _lengths(self._label_tokenizer, unique)
            label_lengths = dict(zip(unique, sizes, strict=True))
            longest = max(unique, key=label_lengths.__getitem__)
            if label_lengths[longest] > window:
                raise PeerError(
                    f"label {longest[:60]!r} takes {label_lengths[longest]} tokens, the window has "
                    f"{window}: shorten it or raise max_length"
                )
        texts, lengths, pending = list(texts), [0] * len(texts), list(range(len(texts)))
        while pending:
            whole = [self._sequence(texts[i], labels[i]) for i in pending]
            for i, length in zip(pending, _lengths(self.tokenizer, whole), strict=True):
                lengths[i] = length
                if length > window:
                    texts[i] = self._shorter(texts[i], length, len(labels[i]), window)
            pending = [i for i in pending if lengths[i] > window]
        return texts, lengths, label_lengths

    def _shorter(self, text: str, length: int, labels: int, window: int) -> str:
        offsets = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )["offset_mapping"]
        kept = len(offsets) - (length - window)
        if kept < 1:
            raise PeerError(
                f"{labels} labels take {length - len(offsets)} of the window's {window} tokens and "
                "leave no room for the text: give fewer or shorter labels or raise max_length"
            )
        return text[: min(offsets[kept][0], len(text) - 1)]

    def _sequence(self, text: str, labels: list[str]) -> str:
        return self.pipeline.prepare_input(text, labels)

    @torch.inference_mode()
    def _scores(self, texts: list[str], labels: list[str]) -> NDArray[np.floating]:
        """Logits `(N, K)`; the scores that the pipeline prints are their sigmoid."""
        names = [self._plain(label) for label in labels]
        texts = [self._plain(text) for text in texts]
        texts, lengths, _ = self._cut(texts, [names] * len(texts), self.max_length)
        scores = np.empty((len(texts), len(names)), dtype=np.float32)
        with ExitStack() as stack:
            for encoder in encoders(self.model):
                stack.enter_context(self.costs.counting(encoder))
            for batch in self._batches(lengths):
                found = self.pipeline.get_embeddings([texts[i] for i in batch], names, len(batch))
                scores[batch] = [row["logits"] for row in found]
        return scores

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        """Rows by length; only equal lengths together where the pooling reads padding."""
        apart = self.model.config.pooling_strategy not in ("first", "pass")
        batch: list[int] = []
        for i in sorted(range(len(lengths)), key=lengths.__getitem__):
            longer = batch and lengths[i] > lengths[batch[0]]
            if len(batch) == self.batch_size or (apart and longer):
                yield batch
                batch = []
            batch.append(i)
        yield batch


class GLiClassUniEncoder(GLiClassPeer):
    """Text and labels in one sequence: `text <<LABEL>>l₁ <<LABEL>>l₂ … <<SEP>>`."""

    name = "gliclass-uni"
    architecture = "uni-encoder"


class GLiClassBiEncoder(GLiClassPeer):
    """Text and labels through an encoder each, both started from the backbone.

    The package's pipeline encodes every label anew for every text.
    """

    name = "gliclass-bi"
    architecture = "bi-encoder"

    def _sequence(self, text: str, labels: list[str]) -> str:
        return text


class GLiClassBiEncoderFused(GLiClassPeer):
    """As the bi-encoder, then the label embeddings stand as tokens in the text's sequence."""

    name = "gliclass-fused"
    architecture = "bi-encoder-fused"


def _lengths(tokenizer: Any, strings: list[str]) -> list[int]:
    encoded = tokenizer(
        strings, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )
    return [len(ids) for ids in encoded["input_ids"]]
