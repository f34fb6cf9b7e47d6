"""Training rows as batches: tokenised, padded, and grouped by length in a seeded order."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from gliznet.data.types import Example
from gliznet.tokenizer import GliZNETTokenizer


def training_rows(
    examples: Sequence[Example], tokenizer: GliZNETTokenizer, seed: int, max_labels: int = 20
) -> Dataset:
    """Examples with a fixed, seeded order of candidates, and their lengths in tokens.

    Args:
        examples: texts with true labels and false candidates.
        tokenizer: for the lengths by which batches are grouped.
        seed: of the order in which each row's candidates stand in the sequence.
        max_labels: candidates per row at most; the last false ones are left out, true ones never.

    Returns:
        Columns text, candidates, targets (0.0 or 1.0) and length (tokens, at most the window).

    Raises:
        ValueError: an example without a candidate, or with more true labels than `max_labels`.
    """
    lengths = tokenizer.count_tokens([e.text for e in examples])
    unique = list(dict.fromkeys(c for e in examples for c in (*e.labels, *e.not_labels)))
    label_lengths = dict(zip(unique, tokenizer.count_tokens(unique), strict=True))
    rows = []
    for i, (example, length) in enumerate(zip(examples, lengths, strict=True)):
        room = max_labels - len(example.labels)
        if room < 0:
            raise ValueError(
                f"example {i} has {len(example.labels)} true labels, max_labels is {max_labels}"
            )
        candidates = [*example.labels, *example.not_labels[:room]]
        if not candidates:
            raise ValueError(f"example {i} ({example.text[:40]!r}) has no candidate label")
        random.Random(f"{seed}:{i}").shuffle(candidates)
        true = set(example.labels)
        total = 2 + length + sum(label_lengths[c] + 1 for c in candidates)
        rows.append(
            {
                "text": example.text,
                "candidates": candidates,
                "targets": [float(c in true) for c in candidates],
                "length": min(total, tokenizer.max_length),
            }
        )
    return Dataset.from_list(rows)


class Collator:
    """Tokenises rows of `training_rows` into one padded batch with `labels` `(B, K)`."""

    def __init__(self, tokenizer: GliZNETTokenizer):
        self.tokenizer = tokenizer

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = self.tokenizer([r["text"] for r in rows], [r["candidates"] for r in rows])
        labels = torch.zeros(len(rows), max(len(r["targets"]) for r in rows))
        for i, row in enumerate(rows):
            labels[i, : len(row["targets"])] = torch.tensor(row["targets"])
        return {
            "input_ids": batch["input_ids"],
            "attention_mask": batch["attention_mask"],
            "lmask": batch["lmask"],
            "labels": labels,
        }


class LengthGroups(Sampler):
    """Row numbers in groups of similar length, in an order of their own in every epoch.

    The order depends on seed, epoch and rows per optimiser step only: not on the state of the
    global generator, which a resumed run does not have, nor on the number of processes.
    """

    def __init__(self, lengths: Sequence[int], step: int, seed: int, epoch: Callable[[], int]):
        self.lengths = list(lengths)
        self.step = step
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(random.Random(f"{self.seed}:{self.epoch()}").getrandbits(63))
        return iter(get_length_grouped_indices(self.lengths, self.step, generator=generator))
