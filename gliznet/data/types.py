"""The two shapes that data takes: a labelled set, and a text with its candidate labels."""

import hashlib
import json
from dataclasses import dataclass


@dataclass(frozen=True)
class LabelledTexts:
    """A data set: N texts, the true labels of each, and the ordered candidate set.

    `labels[i]` holds the true label names of `texts[i]`, exactly one unless `multi_label`.
    """

    name: str
    texts: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    label_names: tuple[str, ...]
    multi_label: bool = False
    task: str = ""

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def sha256(self) -> str:
        """Fingerprint of texts, labels and label order."""
        return _sha256([self.texts, self.labels, self.label_names])

    def take(self, rows: list[int]) -> "LabelledTexts":
        """The given rows, in the given order; the candidate set is kept."""
        return LabelledTexts(
            self.name,
            tuple(self.texts[i] for i in rows),
            tuple(self.labels[i] for i in rows),
            self.label_names,
            self.multi_label,
            self.task,
        )


@dataclass(frozen=True)
class Example:
    """One text with its true labels and its false candidates (hard negatives)."""

    text: str
    labels: tuple[str, ...]
    not_labels: tuple[str, ...]
    source: str = ""


def examples_sha256(examples: list[Example]) -> str:
    """Fingerprint of a list of examples, order included."""
    return _sha256([[e.text, e.labels, e.not_labels, e.source] for e in examples])


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()
