"""Training rows by name: the shipped corpus, a mix, or a Hub data set of the corpus's form."""

from collections.abc import Mapping
from typing import Any

import datasets

from gliznet.data.corpus import hardset_mini
from gliznet.data.loading import load
from gliznet.data.registry import registry
from gliznet.data.sampling import Mix, fingerprints, mixes, sample_mix
from gliznet.data.types import Example, LabelledTexts

CORPUS = "hardset-mini"


def training_examples(
    data: str, rows: int, seed: int, changes: Mapping[str, Any] | None = None
) -> list[Example]:
    """Training rows of "hardset-mini", "mix:NAME" or "hub:ID".

    From a mix no text of a benchmark set is ever drawn, so those sets must be at hand too.

    Args:
        data: the shipped corpus; a mix of `mix.yaml`, whose sources must be available; or the train
            split of a Hub data set with the columns text, labels and not_labels, such as
            "hub:alexneakameni/ZSHOT-HARDSET-v2".
        rows: rows to draw from a mix; of the others the first rows, 0 for all.
        seed: of the draw from a mix.
        changes: fields of the mix that differ from `mix.yaml`, such as `{"phrase_rate": 0.3}`.

    Raises:
        ValueError: an unknown name, more rows than there are, or changes to what is no mix.
        DataUnavailable: a source of the mix is neither local nor on the Hub.
    """
    if data.startswith("mix:"):
        mix = _mix(data, changes)
        forbidden = fingerprints(load(n) for n, s in registry().items() if s.group == "benchmark")
        return sample_mix(mix, rows, seed, load, forbidden)
    if changes:
        raise ValueError(f"{data!r} is no mix: it has no fields {sorted(changes)} to change")
    if data.startswith("hub:"):
        corpus = [
            Example(row["text"], tuple(row["labels"]), tuple(row["not_labels"]), data)
            for row in datasets.load_dataset(data.removeprefix("hub:"), split="train")
        ]
    elif data == CORPUS:
        corpus = list(hardset_mini("train"))
    else:
        raise ValueError(f"data is {data!r}: choose '{CORPUS}', 'mix:NAME' or 'hub:ID'")
    if rows > len(corpus):
        raise ValueError(f"{rows} rows asked for, {data} has {len(corpus)} training rows")
    return corpus[:rows] if rows else corpus


def mix_sources(data: str) -> list[LabelledTexts]:
    """The data sets that the rows of "mix:NAME" are drawn from, whole; none for other data."""
    return [load(name) for name in _mix(data).sources] if data.startswith("mix:") else []


def _mix(data: str, changes: Mapping[str, Any] | None = None) -> Mix:
    known = mixes()
    name = data.removeprefix("mix:")
    if name not in known:
        raise ValueError(f"no mix is called {name!r}: choose one of {', '.join(known)}")
    return Mix.model_validate({**known[name].model_dump(), **(changes or {})})
