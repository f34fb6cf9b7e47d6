"""Bi-encoders: texts and labels are encoded apart, a score is their cosine.

`embedding` compares the embeddings of a sentence encoder as it is. `bi-encoder` trains it on the
texts and their candidates. Both are `SentenceTransformer` of sentence-transformers (Reimers and
Gurevych 2019, "Sentence-BERT"). N texts with K labels cost N + K sequences, and a label that was
encoded before costs nothing. The score of a label depends on no other label.

Measured with sentence-transformers 6.2.0 (tests/test_peers_bi_encoder.py):
- all-MiniLM-L6-v2 states mean pooling, then a unit norm, and a window of 256 tokens. A folder
  without a `modules.json` gets mean pooling alone. The cosine needs no norm.
- `encode` cuts a long label as it cuts a long text, without a word. Here a label is never cut.
- A literal `[SEP]` in a text or label becomes the control token. That is left as it is.
- The trainer optimises the loss's own weights but leaves them out of its checkpoints.
"""

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.data_collator import BaseDataCollator
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from torch import Tensor, nn
from torch.utils.data import BatchSampler
from transformers import AutoTokenizer, set_seed

from gliznet.data.types import Example
from gliznet.peers.protocol import FitSettings, Peer, PeerError, SameOrder, comparison_rows
from gliznet.training import _last_checkpoint, interpolate


class EmbeddingPeer(Peer):
    """Cosine similarity of text and label embeddings, without training.

    Label embeddings are kept: `predict` encodes a label once, in whatever set it occurs.
    """

    name = "embedding"
    trains = False

    def __init__(self, backbone: str | Path, max_length: int = 256, batch_size: int = 32):
        super().__init__(backbone, max_length, batch_size)
        self._open(0)

    def fit(
        self, examples: Sequence[Example], folder: str | Path, settings: FitSettings
    ) -> dict[str, float]:
        raise PeerError("the peer 'embedding' has nothing to train: fit 'bi-encoder' instead")

    def save(self, folder: str | Path) -> None:
        # The window of this run is no part of the model: it opens with the backbone's own limit.
        self.model.max_seq_length = self._limit
        self.model.save_pretrained(str(folder), create_model_card=False)
        self.model.max_seq_length = self.max_length

    @classmethod
    def load(cls, folder: str | Path, **options: Any) -> "EmbeddingPeer":
        peer = cls(folder, **options)
        # from_pretrained only warns of what is missing; this raises.
        peer.model.transformers_model.load_state_dict(load_file(Path(folder) / "model.safetensors"))
        return peer

    def _open(self, seed: int) -> None:
        set_seed(seed)
        self.model = SentenceTransformer(self.backbone)
        # Not the model's own window, which may be shorter than what its encoder takes.
        self._limit = AutoTokenizer.from_pretrained(self.backbone).model_max_length
        self._check_window(self.max_length)
        self.model.max_seq_length = self.max_length
        self.model.eval()
        self._labels: dict[str, Tensor] = {}

    def _check_window(self, window: int) -> None:
        if window > self._limit:
            raise PeerError(
                f"max_length is {window} but the backbone takes {self._limit} tokens: lower it"
            )

    def _check_labels(self, labels: list[str], window: int) -> None:
        tokenizer = self.model.tokenizer
        taken = [len(ids) for ids in tokenizer(labels, verbose=False)["input_ids"]]
        if max(taken) > window:
            longest = labels[taken.index(max(taken))]
            raise PeerError(
                f"label {longest[:60]!r} takes {max(taken)} tokens in a window of {window}: "
                "shorten it or raise max_length"
            )

    def _embed(self, strings: list[str]) -> Tensor:
        with self.costs.counting(self.model):
            return self.model.encode(
                strings,
                batch_size=self.batch_size,
                convert_to_tensor=True,
                normalize_embeddings=True,
                show_progress_bar=False,
            )

    def _scores(self, texts: list[str], labels: list[str]) -> NDArray[np.floating]:
        self._check_labels(labels, self.max_length)
        new = [label for label in labels if label not in self._labels]
        if new:
            self._labels.update(zip(new, self._embed(new), strict=True))
        embedded = torch.stack([self._labels[label] for label in labels])
        return (self._embed(texts) @ embedded.T).cpu().numpy()


class CandidateCollator(BaseDataCollator):
    """Rows of `comparison_rows` as texts, the distinct labels of the step, and a target matrix."""

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """
        Returns:
            Features of B texts and of U labels under the prefixes `text_` and `candidate_`, as the
            library's trainer takes them; `label` `(B, U)` with 1 for a true candidate, 0 for a
            false one and -1 for a label that is no candidate of the text.
        """
        labels = list(dict.fromkeys(c for row in features for c in row["candidates"]))
        column = {label: j for j, label in enumerate(labels)}
        targets = torch.full((len(features), len(labels)), -1.0)
        for i, row in enumerate(features):
            targets[i, [column[c] for c in row["candidates"]]] = torch.tensor(row["targets"])
        batch: dict[str, Any] = {"label": targets}
        for name, strings in (("text", [row["text"] for row in features]), ("candidate", labels)):
            for key, value in self.preprocess_fn(strings).items():
                batch[f"{name}_{key}"] = value
        return batch


class CandidateLoss(CoSENTLoss):
    """CoSENT over the (text, candidate) pairs of a step, each text and label encoded once.

    The library's own loss would take the pairs as rows and encode a text once per candidate.

    Attributes:
        log_scale: logarithm of the factor of the cosines.
        sequences, tokens: what training has taken through the encoder.
    """

    def __init__(self, model: SentenceTransformer, scale: float, learned: bool):
        super().__init__(model, scale)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)), requires_grad=learned)
        self.register_buffer("sequences", torch.tensor(0))
        self.register_buffer("tokens", torch.tensor(0))

    def forward(self, sentence_features: Iterable[Mapping[str, Any]], labels: Tensor) -> Tensor:
        """
        Args:
            sentence_features: of B texts, then of U labels.
            labels: targets `(B, U)` of `CandidateCollator`.
        """
        texts, candidates = sentence_features
        for features in (texts, candidates):
            self.sequences += len(features["attention_mask"])
            self.tokens += features["attention_mask"].sum()
        of_text = self.model(texts)["sentence_embedding"]
        of_label = self.model(candidates)["sentence_embedding"]
        row, column = (labels >= 0).nonzero(as_tuple=True)
        self.scale = self.log_scale.exp()
        return self.compute_loss_from_embeddings(
            [of_text[row], of_label[column]], labels[row, column]
        )

    def own_state(self) -> dict[str, Tensor]:
        """What belongs to the loss and not to its model."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("model.")}


class CandidateTrainer(SameOrder, SentenceTransformerTrainer):
    """The library's trainer, in GliZNet's order, with the loss's weights in its checkpoints."""

    def get_batch_sampler(
        self, dataset: Any, batch_size: int, drop_last: bool, **_: Any
    ) -> BatchSampler:
        return BatchSampler(self._get_train_sampler(dataset), batch_size, drop_last)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Without the scale, whose logarithm decay would pull to 0."""
        return [name for name in super().get_decay_parameter_names(model) if name != "log_scale"]

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        save_file(
            self.loss.own_state(), Path(output_dir or self.args.output_dir) / "loss.safetensors"
        )

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        super()._load_from_checkpoint(checkpoint_path)
        own = load_file(Path(checkpoint_path) / "loss.safetensors")
        self.loss.load_state_dict({**self.loss.state_dict(), **own})


class BiEncoderPeer(EmbeddingPeer):
    """Scaled cosine of embeddings that were trained on the texts and their candidates.

    The loss is CoSENT, the library's default for pairs with a target:
    log(1 + Σ exp(scale · (cos⁻ − cos⁺))) over all pairs of a false (cos⁻) and a true (cos⁺)
    candidate of the step. It fits multi-label candidates: a text may have none, one or several true
    labels, and only its own candidates count. `MultipleNegativesRankingLoss` takes one true label
    per text and reads the labels of the step's other texts as false, which they need not be: a step
    holds few distinct labels. `CosineSimilarityLoss` takes the same pairs but wants cosines of 0
    and 1, where only their order matters; the library's documentation calls its signal weaker.

    Args:
        scale: factor of the cosines, the library's default for CoSENT. It leaves the order of the
            labels as it is.
        learned: trains the scale, as its logarithm, at the rate of new parameters.
    """

    name = "bi-encoder"
    trains = True

    def __init__(
        self,
        backbone: str | Path,
        max_length: int = 256,
        batch_size: int = 32,
        scale: float | int = 20.0,
        learned: bool = False,
    ):
        if not scale > 0:
            raise ValueError(f"scale is {scale}: it must be above 0")
        self.scale = self._start = float(scale)
        self.learned = learned
        super().__init__(backbone, max_length, batch_size)

    def fit(
        self, examples: Sequence[Example], folder: str | Path, settings: FitSettings
    ) -> dict[str, float]:
        self._open(settings.seed)
        self._check_window(settings.max_length)
        rows = comparison_rows(examples, self.backbone, settings)
        candidates = list(dict.fromkeys(c for row in rows["candidates"] for c in row))
        self._check_labels(candidates, settings.max_length)
        self.model.max_seq_length = settings.max_length
        if settings.backbone_dropout is not None:
            for module in self.model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = settings.backbone_dropout
        loss = CandidateLoss(self.model, self._start, self.learned)
        rates = {"^log_scale$": settings.learning_rate * settings.head_lr_multiplier}
        start = {name: weight.clone() for name, weight in loss.state_dict().items()}
        started = time.perf_counter()
        trainer = CandidateTrainer(
            model=self.model,
            args=settings.arguments(
                folder,
                SentenceTransformerTrainingArguments,
                learning_rate_mapping=rates if self.learned else {},
            ),
            train_dataset=rows,
            loss=loss,
            data_collator=CandidateCollator(self.model.preprocess),
        )
        trainer.train(resume_from_checkpoint=_last_checkpoint(Path(folder)))
        seconds = time.perf_counter() - started
        interpolate(loss, start, settings.trained_share)
        self.scale = loss.log_scale.detach().exp().item()
        self.model.eval()
        self.model.max_seq_length = self.max_length
        return {
            "seconds": seconds,
            "optimiser_steps": trainer.state.global_step,
            "sequences": float(loss.sequences),
            "tokens": float(loss.tokens),
        }

    def save(self, folder: str | Path) -> None:
        super().save(folder)
        options = {"scale": self.scale, "learned": self.learned}
        (Path(folder) / "bi_encoder.json").write_text(json.dumps(options), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, **options: Any) -> "EmbeddingPeer":
        saved = json.loads((Path(folder) / "bi_encoder.json").read_text(encoding="utf-8"))
        return super().load(folder, **{**saved, **options})

    def _scores(self, texts: list[str], labels: list[str]) -> NDArray[np.floating]:
        return self.scale * super()._scores(texts, labels)
