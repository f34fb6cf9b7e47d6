"""Zero-shot classification of texts: batching, label chunking, results."""

from collections import deque
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from tqdm import tqdm

from gliznet.model import GliZNetForSequenceClassification
from gliznet.tokenizer import GliZNETTokenizer, check_inputs, check_labels

_BUFFERED_BATCHES = 64
_PROGRESS_FROM = 1000


@dataclass(frozen=True)
class LabelScore:
    """A label and its probability."""

    label: str
    score: float


@dataclass(frozen=True)
class ClassificationResult:
    """Scores of one text, and how many of its tokens did not fit into the window."""

    text: str
    labels: list[LabelScore]
    truncated_tokens: int


class ZeroShotClassificationPipeline:
    """Classifies texts against any label set (card "Usage").

    Args:
        model: a trained GliZNet; it is moved to `device` and put into evaluation mode.
        tokenizer: its tokenizer.
        classification_type: "multi-label", an independent probability per label (math §10.2); or
            "multi-class", probabilities that sum to 1 over the candidates.
        device: "cpu", "cuda", …; default CUDA if there is one.
        dtype: floating-point type of the weights; default as they are.
        batch_size: sequences per forward pass. Scores do not depend on it.
        max_labels_per_pass: splits a larger candidate set into chunks of at most this many labels,
            one pass each. Labels in different chunks do not see each other; `None` never splits.

    Raises:
        ValueError: an unknown classification type, or a size below 1.
    """

    def __init__(
        self,
        model: GliZNetForSequenceClassification,
        tokenizer: GliZNETTokenizer,
        classification_type: str = "multi-label",
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        batch_size: int = 16,
        max_labels_per_pass: int | None = None,
    ):
        if classification_type not in ("multi-label", "multi-class"):
            raise ValueError(
                f"classification_type is {classification_type!r}: choose 'multi-label' or "
                "'multi-class'"
            )
        for name, size in (
            ("batch_size", batch_size),
            ("max_labels_per_pass", max_labels_per_pass),
        ):
            if size is not None and size < 1:
                raise ValueError(f"{name} is {size}: it must be at least 1")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(device=self.device, dtype=dtype or model.dtype).eval()
        self.tokenizer = tokenizer
        self.classification_type = classification_type
        self.batch_size = batch_size
        self.max_labels_per_pass = max_labels_per_pass

    def __call__(
        self,
        texts: str | Iterable[str],
        labels: Iterable[str] | Iterable[Iterable[str]],
        threshold: float | None = None,
        top_k: int | None = None,
        progress: bool | None = None,
    ) -> ClassificationResult | list[ClassificationResult] | Iterator[ClassificationResult]:
        """Scores labels for one text, a list of texts, or a stream.

        Args:
            texts: a string gives one result, any iterable with a length a list of results, any
                other a generator of results that reads ahead a bounded number of texts.
            labels: one candidate set for all texts, or one set per text (not for a generator).
            threshold: keep the labels whose score is at least this, in [0, 1].
            top_k: keep the k best labels, best first.
            progress: show a progress bar; default from 1,000 texts on, and never for a generator.

        Returns:
            Results with labels in the order given, or best first with `top_k`.

        Raises:
            TypeError, ValueError, WindowError: as `GliZNETTokenizer`; a threshold outside [0, 1] or
                a `top_k` below 1.
        """
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}: it must be in [0, 1]")
        if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
            raise ValueError(f"top_k is {top_k}: it must be a whole number of at least 1")
        if isinstance(texts, str):
            return self([texts], labels, threshold, top_k, progress)[0]
        if isinstance(texts, Iterable) and not isinstance(texts, Sized):
            names = check_labels(labels)
            stream = self._results(((text, names) for text in texts), threshold, top_k)
            return iter(tqdm(stream, unit="text")) if progress else stream
        checked, label_sets = check_inputs(texts, labels)
        show = len(checked) >= _PROGRESS_FROM if progress is None else progress
        results = self._results(zip(checked, label_sets, strict=True), threshold, top_k)
        return list(tqdm(results, total=len(checked), unit="text", disable=not show))

    def logits(
        self, texts: str | Iterable[str], labels: Iterable[str] | Iterable[Iterable[str]]
    ) -> list[Tensor]:
        """Raw similarities of each text with its labels: N tensors `(K_i,)` in float32."""
        texts, label_sets = check_inputs(texts, labels)
        return [row for row, _ in self._scored(zip(texts, label_sets, strict=True))]

    def _results(
        self, pairs: Iterable[tuple[str, list[str]]], threshold: float | None, top_k: int | None
    ) -> Iterator[ClassificationResult]:
        read: deque[tuple[str, list[str]]] = deque()

        def recorded() -> Iterator[tuple[str, list[str]]]:
            for pair in pairs:
                read.append(pair)
                yield pair

        for row, truncated in self._scored(recorded()):
            text, names = read.popleft()
            yield ClassificationResult(
                text, self._select(names, self._probabilities(row), threshold, top_k), truncated
            )

    def _scored(self, pairs: Iterable[tuple[str, list[str]]]) -> Iterator[tuple[Tensor, int]]:
        """Yields logits `(K,)` and the number of cut tokens in input order. Texts of similar length
        share a batch: a bounded buffer is sorted, scored and put back."""
        pairs = iter(pairs)
        read = 0
        while buffer := list(islice(pairs, self.batch_size * _BUFFERED_BATCHES)):
            check_inputs([text for text, _ in buffer], [labels for _, labels in buffer], read)
            read += len(buffer)
            jobs = [
                (i, text, labels[start : start + (self.max_labels_per_pass or len(labels))])
                for i, (text, labels) in enumerate(buffer)
                for start in range(0, len(labels), self.max_labels_per_pass or len(labels))
            ]
            order = sorted(range(len(jobs)), key=lambda j: -len(jobs[j][1]))
            scored: list[tuple[Tensor, int] | None] = [None] * len(jobs)
            for start in range(0, len(order), self.batch_size):
                chosen = order[start : start + self.batch_size]
                for j, result in zip(chosen, self._forward([jobs[j] for j in chosen]), strict=True):
                    scored[j] = result
            parts: list[list[tuple[Tensor, int]]] = [[] for _ in buffer]
            for (i, _, _), result in zip(jobs, scored, strict=True):
                parts[i].append(result)
            for chunks in parts:
                yield torch.cat([row for row, _ in chunks]), max(cut for _, cut in chunks)

    @torch.inference_mode()
    def _forward(self, jobs: list[tuple[int, str, list[str]]]) -> list[tuple[Tensor, int]]:
        batch = self.tokenizer([text for _, text, _ in jobs], [labels for _, _, labels in jobs])
        truncated = batch.pop("truncated_tokens").tolist()
        logits = self.model(**batch.to(self.device)).logits.float().cpu()
        rows = zip(logits, jobs, truncated, strict=True)
        return [(row[: len(labels)], cut) for row, (_, _, labels), cut in rows]

    def _probabilities(self, logits: Tensor) -> list[float]:
        if self.classification_type == "multi-class":
            return logits.softmax(dim=-1).tolist()
        with torch.inference_mode():
            rescaled = self.model.probability_logits(logits[None].to(self.device))
            return rescaled.sigmoid()[0].tolist()

    @staticmethod
    def _select(
        names: list[str], scores: list[float], threshold: float | None, top_k: int | None
    ) -> list[LabelScore]:
        chosen = [LabelScore(label, score) for label, score in zip(names, scores, strict=True)]
        if threshold is not None:
            chosen = [entry for entry in chosen if entry.score >= threshold]
        if top_k is not None:
            chosen = sorted(chosen, key=lambda entry: -entry.score)[:top_k]
        return chosen
