"""The registry: what every data set is called, where it lies, and what its labels are."""

import difflib
from functools import cache
from importlib.resources import files
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

Group = Literal["benchmark", "train", "sce"]
# fmt: off
Task = Literal[
    "clickbait", "dialogue act", "discourse role", "emoji", "emotion", "genre", "intent", "irony",
    "offence", "pair", "product", "relation", "sentiment", "situation", "spam", "stance",
    "subjectivity", "topic",
]
# fmt: on


BENCHMARK = (
    "cr",
    "sst2",
    "sst5",
    "imdb",
    "20_newsgroups",
    "enron_spam",
    "financial_phrasebank",
    "ag_news",
    "emotion",
    "rotten_tomatoes",
)
"""The ten sets of the card, in its order."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Label(_Strict):
    """One label in its forms.

    `raw` is what the Hub data set's label column holds (its class name where it holds integers),
    `published` is what the published evaluation gave to the model, `readable` says in plain words
    what it means. `mirror` is the name in the local mirror, by default the readable one.
    """

    raw: str
    published: str
    readable: str
    mirror: str | None = None


class Hub(_Strict):
    """A Hub data set kept as data files (parquet or JSON lines, never a loading script).

    `text_columns` are joined with `text_join`. `label_names[i]` is the label that the integer `i`
    stands for; None takes the names from the data set's own features. Rows whose label is in `skip`
    are no part of the set. `rows` counts the split before skipping.
    """

    id: str
    config: str | None = None
    split: str
    text_columns: list[str] = Field(min_length=1)
    text_join: str = "\n"
    label_column: str
    label_names: list[str] | None = None
    skip: list[str] = []
    rows: int | None = Field(default=None, gt=0)


class DatasetSpec(_Strict):
    """One data set.

    `local` is the file stem in the mirror's folder `group`, `rows` the number of rows there.
    `labels` stand in the published order; None means one wording, taken from the data and sorted.
    `citation` is a key of `book/references.bib`; None where no publication describes the set.
    """

    name: str
    group: Group
    title: str
    task: Task
    multi_label: bool = False
    local: str
    rows: int = Field(gt=0)
    hub: Hub | None
    hub_note: str = ""
    labels: list[Label] | None = None
    licence: str
    citation: str | None
    differences: str

    @model_validator(mode="after")
    def _consistent(self) -> "DatasetSpec":
        if self.hub is None and not self.hub_note:
            raise ValueError(f"{self.name}: hub is null, so hub_note must say why")
        for form in ("raw", "published", "readable"):
            names = [getattr(label, form) for label in self.labels or []]
            if len(set(names)) != len(names):
                raise ValueError(f"{self.name}: a {form} label name occurs twice in {names}")
        return self

    def label_names(self, wording: str = "readable") -> tuple[str, ...] | None:
        """The candidate labels in the published order, or None where the data defines them.

        Raises ValueError for an unknown wording, and for "published" where the set has only one.
        """
        if wording not in ("readable", "published"):
            raise ValueError(f"wording {wording!r}: use 'readable' or 'published'")
        if self.labels is not None:
            return tuple(getattr(label, wording) for label in self.labels)
        if wording == "published":
            raise ValueError(f"{self.name} has no published wording: use wording='readable'")
        return None


@cache
def registry() -> dict[str, DatasetSpec]:
    """Every known data set by name, in the order of `registry.yaml`."""
    text = files("gliznet.data").joinpath("registry.yaml").read_text(encoding="utf-8")
    return {
        name: DatasetSpec(**{"name": name, "local": name, **fields})
        for name, fields in yaml.safe_load(text).items()
    }


def spec(name: str) -> DatasetSpec:
    """The entry of one data set; raises KeyError that lists close names."""
    entry = registry().get(name)
    if entry is None:
        close = difflib.get_close_matches(name, registry(), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(close)}?" if close else "see gliznet/data/registry.yaml"
        raise KeyError(f"unknown data set {name!r}: {hint}")
    return entry
