"""The training mix: sources, rows of each, wordings of labels, candidates of a row."""

import hashlib
import math
import random
from collections.abc import Callable, Iterable
from functools import cache
from importlib.resources import files

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from gliznet.data.types import Example, LabelledTexts


class Source(BaseModel):
    """One source of the mix.

    `weight` is relative. `wordings` are alternative names of the source's labels; each row uses one
    of them or, unless `original` is false, the source's own names.
    """

    model_config = ConfigDict(extra="forbid")
    weight: float = Field(gt=0)
    original: bool = True
    wordings: list[dict[str, str]] = []

    @model_validator(mode="after")
    def _some_wording(self) -> "Source":
        if not self.original and not self.wordings:
            raise ValueError("original is false but wordings is empty: give at least one wording")
        return self


class Mix(BaseModel):
    """A training mix and the development sets that its choices are made on."""

    model_config = ConfigDict(extra="forbid")
    description: str
    max_candidates: int = Field(default=8, ge=2)
    foreign_rate: float = Field(default=0.2, ge=0, le=1)
    sources: dict[str, Source]
    development: dict[str, Source] = {}

    @model_validator(mode="after")
    def _disjoint(self) -> "Mix":
        shared = sorted(set(self.sources) & set(self.development))
        if shared:
            raise ValueError(f"{shared} are both training sources and development sets")
        return self


@cache
def mixes() -> dict[str, Mix]:
    """The mixes that `mix.yaml` defines."""
    raw = yaml.safe_load((files("gliznet.data") / "mix.yaml").read_text(encoding="utf-8"))
    return {name: Mix.model_validate(value) for name, value in raw.items()}


def sample_mix(
    mix: Mix, rows: int, seed: int, load: Callable[[str], LabelledTexts]
) -> list[Example]:
    """Draws training examples from every source of a mix, in shuffled order.

    Rows are shared out by weight; a source smaller than its share gives all it has and the rest
    goes to the others. Within a source the labels are drawn evenly, so that a frequent one does not
    drown the rare ones. Candidates of a row: its true labels, other labels of the same source, and
    with probability `foreign_rate` one or two labels of another source, up to `max_candidates`.

    Args:
        mix: sources and weights.
        rows: examples in all.
        seed: same seed, same data: same examples in the same order.
        load: returns a source by name.

    Raises:
        ValueError: the sources hold fewer rows than asked for, or a wording misses a label.
    """
    data = {name: load(name) for name in mix.sources}
    shares = _shares({n: s.weight for n, s in mix.sources.items()}, data, rows)
    pool = {name: data[name].label_names for name in mix.sources}
    examples: list[Example] = []
    for name, source in mix.sources.items():
        rng = random.Random(f"{seed}:{name}")
        for row in _balanced_rows(data[name], shares[name], rng):
            examples.append(_example(data[name], row, source, mix, pool, rng))
    random.Random(seed).shuffle(examples)
    return examples


def development_sets(
    mix: Mix, rows: int, seed: int, load: Callable[[str], LabelledTexts]
) -> list[LabelledTexts]:
    """Seeded samples of the development sets, in their own wording of the labels.

    Raises:
        ValueError: a label of a development set is also a label of a training source, which would
            make the development score measure seen labels.
    """
    seen = {
        label.casefold()
        for name, source in mix.sources.items()
        for names in _wordings(load(name).label_names, source)
        for label in names.values()
    }
    sets = []
    for name, source in mix.development.items():
        data = load(name)
        rng = random.Random(f"{seed}:{name}")
        names = _wordings(data.label_names, source)[-1]
        shared = sorted(label for label in names.values() if label.casefold() in seen)
        if shared:
            raise ValueError(f"development set {name} shares labels with training: {shared}")
        chosen = data.take(_balanced_rows(data, min(rows, len(data)), rng))
        sets.append(
            LabelledTexts(
                name,
                chosen.texts,
                tuple(tuple(names[label] for label in row) for row in chosen.labels),
                tuple(names[label] for label in data.label_names),
                data.multi_label,
                data.task,
            )
        )
    return sets


def text_fingerprint(text: str) -> str:
    """Hash of the text in lower case with white space collapsed; equal texts have equal hashes."""
    return hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()[:32]


def assert_no_overlap(examples: Iterable[Example], benchmark: Iterable[LabelledTexts]) -> int:
    """Proves by fingerprint that no training text is a benchmark text; returns the texts compared.

    Raises:
        ValueError: names the first texts that occur on both sides.
    """
    trained = {text_fingerprint(e.text): e for e in examples}
    compared = 0
    for data in benchmark:
        compared += len(data)
        found = [t for t in data.texts if t.strip() and text_fingerprint(t) in trained]
        if found:
            source = trained[text_fingerprint(found[0])].source
            raise ValueError(
                f"{len(found)} texts of {data.name} are in the training rows, the first from "
                f"{source}: {found[0][:80]!r}"
            )
    return compared


def _shares(weights: dict[str, float], data: dict[str, LabelledTexts], rows: int) -> dict[str, int]:
    available = {name: len(data[name]) for name in weights}
    if rows > sum(available.values()):
        raise ValueError(f"{rows} rows asked for, the sources hold {sum(available.values())}")
    shares: dict[str, int] = {}
    open_names = sorted(weights)
    while True:
        left = rows - sum(shares.values())
        total = sum(weights[n] for n in open_names)
        full = [n for n in open_names if left * weights[n] / total >= available[n]]
        if not full:
            break
        shares |= {n: available[n] for n in full}
        open_names = [n for n in open_names if n not in shares]
        if not open_names:
            return shares
    exact = {n: left * weights[n] / total for n in open_names}
    shares |= {n: math.floor(value) for n, value in exact.items()}
    by_remainder = sorted(open_names, key=lambda n: (shares[n] - exact[n], n))
    for name in by_remainder[: rows - sum(shares.values())]:
        shares[name] += 1
    return shares


def _balanced_rows(data: LabelledTexts, count: int, rng: random.Random) -> list[int]:
    """`count` distinct rows, the first label of each drawn round robin over the labels."""
    by_label: dict[str, list[int]] = {}
    for i, labels in enumerate(data.labels):
        by_label.setdefault(labels[0], []).append(i)
    queues = [by_label[label] for label in sorted(by_label)]
    for queue in queues:
        rng.shuffle(queue)
    rows: list[int] = []
    while len(rows) < count:
        queues = [queue for queue in queues if queue]
        rng.shuffle(queues)
        for queue in queues[: count - len(rows)]:
            rows.append(queue.pop())
    return rows


def _wordings(label_names: Iterable[str], source: Source) -> list[dict[str, str]]:
    names = tuple(label_names)
    options = [{name: name for name in names}] if source.original else []
    for wording in source.wordings:
        missing = [name for name in names if name not in wording]
        if missing:
            raise ValueError(f"a wording has no name for {missing[:5]}")
        options.append({name: wording[name] for name in names})
    return options


def _example(
    data: LabelledTexts,
    row: int,
    source: Source,
    mix: Mix,
    pool: dict[str, tuple[str, ...]],
    rng: random.Random,
) -> Example:
    wordings = _wordings(data.label_names, source)
    names = rng.choice(wordings)
    true = list(data.labels[row])
    if len(true) > mix.max_candidates - 1:
        true = rng.sample(true, mix.max_candidates - 1)
    others = [name for name in data.label_names if name not in data.labels[row]]
    room = min(mix.max_candidates - len(true), len(others))
    # Half of the rows get a shorter candidate set, so that the model meets every size.
    wanted = rng.randint(1, room) if room > 1 and rng.random() < 0.5 else room
    positives = list({names[label].casefold(): names[label] for label in true}.values())
    negatives = [names[label] for label in rng.sample(others, wanted)]
    if len(pool) > 1 and rng.random() < mix.foreign_rate:
        elsewhere = rng.choice([name for name in pool if name != data.name])
        foreign = rng.sample(pool[elsewhere], min(2, len(pool[elsewhere])))
        own = max(1, mix.max_candidates - len(positives) - len(foreign))
        negatives = [*negatives[:own], *foreign][: mix.max_candidates - len(positives)]
    # The true labels under every wording: another source may offer one of them as a foreign label.
    taken = {w[label].casefold() for w in wordings for label in data.labels[row]}
    kept: list[str] = []
    for label in negatives:
        if label.casefold() not in taken:
            taken.add(label.casefold())
            kept.append(label)
    return Example(data.texts[row], tuple(positives), tuple(kept), data.name)
