"""`hardset-mini`, the shipped corpus: texts with true labels and hard negatives (CC-BY-4.0)."""

import json
from functools import cache
from importlib.resources import files

from gliznet.data.types import Example

SPLITS = ("train", "validation", "test")


@cache
def hardset_mini(split: str) -> tuple[Example, ...]:
    """One split of the corpus; `source` is the field of life a text comes from.

    Raises:
        ValueError: an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}: choose one of {', '.join(SPLITS)}")
    lines = (files("gliznet.data") / "hardset_mini" / f"{split}.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in lines.splitlines()]
    return tuple(
        Example(r["text"], tuple(r["labels"]), tuple(r["not_labels"]), r["field"]) for r in rows
    )
