"""The training mix: sources, rows of each, wordings of labels, candidates of a row."""

import hashlib
import math
import random
from collections.abc import Callable, Iterable, Set
from functools import cache
from importlib.resources import files

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from gliznet.data.corpus import hardset_mini
from gliznet.data.enrichment import nearest_labels, with_key_phrases
from gliznet.data.types import Example, LabelledTexts


class Source(BaseModel):
    """One source of the mix.

    `weight` is relative. `exclude` drops labels, and rows left with none. `rename` gives labels
    better names; labels with one name become one label. `wordings` are alternative names of all
    labels after that; each row uses one of them or, unless `original` is false, the names at hand.
    """

    model_config = ConfigDict(extra="forbid")
    weight: float = Field(gt=0)
    exclude: list[str] = []
    rename: dict[str, str] = {}
    original: bool = True
    wordings: list[dict[str, str]] = []

    @model_validator(mode="after")
    def _some_wording(self) -> "Source":
        if not self.original and not self.wordings:
            raise ValueError("original is false but wordings is empty: give at least one wording")
        return self


class Mix(BaseModel):
    """A training mix and the development sets that its choices are made on.

    `mined_rate` is the share of rows whose false labels are those of their source nearest to a true
    label, `phrase_rate` the share that gets a key phrase of its text as a label (see `enrichment`),
    `corpus_rows` the number of rows of hardset-mini among the rows of the mix.
    """

    model_config = ConfigDict(extra="forbid")
    description: str
    max_candidates: int = Field(default=8, ge=2)
    foreign_rate: float = Field(default=0.2, ge=0, le=1)
    mined_rate: float = Field(default=0.0, ge=0, le=1)
    phrase_rate: float = Field(default=0.0, ge=0, le=1)
    corpus_rows: int = Field(default=0, ge=0)
    sources: dict[str, Source]
    development: dict[str, Source] = {}

    @model_validator(mode="after")
    def _disjoint(self) -> "Mix":
        shared = sorted(set(self.sources) & set(self.development))
        if shared:
            raise ValueError(f"{shared} are both training sources and development sets")
        return self


# Labels of one family can be true of the same text, so a foreign label comes from another family.
_FAMILY = {
    **dict.fromkeys(("sentiment", "emotion", "offence", "stance", "irony", "emoji"), "affect"),
    **dict.fromkeys(("topic", "product", "genre", "situation", "intent"), "content"),
}


@cache
def mixes() -> dict[str, Mix]:
    """The mixes that `mix.yaml` defines."""
    raw = yaml.safe_load((files("gliznet.data") / "mix.yaml").read_text(encoding="utf-8"))
    return {name: Mix.model_validate(value) for name, value in raw.items()}


def sample_mix(
    mix: Mix,
    rows: int,
    seed: int,
    load: Callable[[str], LabelledTexts],
    forbidden: Set[str] = frozenset(),
) -> list[Example]:
    """Draws training examples from every source of a mix, in shuffled order.

    Rows are shared out by weight; a source smaller than its share gives all it has and the rest
    goes to the others. Within a source the labels are drawn evenly, so that a frequent one does not
    drown the rare ones. Candidates of a row: its true labels, other labels of the same source, and
    with probability `foreign_rate` one or two labels of a source of another family, up to
    `max_candidates`. Rows of hardset-mini keep their own candidates.

    Args:
        mix: sources and weights.
        rows: examples in all.
        seed: same seed, same data: same examples in the same order.
        load: returns a source by name.
        forbidden: fingerprints of texts that must not be drawn, those of the benchmark.

    Raises:
        ValueError: fewer than one row asked for, or more than the sources hold; a wording that
            misses a label, or a name in `rename` or `exclude` that is no label.
    """
    corpus = list(hardset_mini("train"))
    if rows <= mix.corpus_rows or mix.corpus_rows > len(corpus):
        raise ValueError(
            f"{rows} rows asked for, {mix.corpus_rows} of them from hardset-mini, which has "
            f"{len(corpus)}: at least 1 row must come from the other sources"
        )
    data = {}
    for name, source in mix.sources.items():
        found = prepare(load(name), source)
        kept = [i for i, t in enumerate(found.texts) if text_fingerprint(t) not in forbidden]
        data[name] = found.take(kept)
    weights = {n: s.weight for n, s in mix.sources.items()}
    shares = _shares(weights, data, rows - mix.corpus_rows)
    examples: list[Example] = []
    for name, source in mix.sources.items():
        rng = random.Random(f"{seed}:{name}")
        family = _family(data[name])
        pool = [d.label_names for n, d in data.items() if n != name and _family(d) != family]
        for row in _balanced_rows(data[name], shares[name], rng):
            examples.append(_example(data[name], row, source, mix, pool, rng))
    if mix.phrase_rate:
        examples = with_key_phrases(examples, mix.phrase_rate, seed, mix.max_candidates)
    examples += random.Random(f"{seed}:corpus").sample(corpus, mix.corpus_rows)
    random.Random(seed).shuffle(examples)
    return examples


def development_sets(
    mix: Mix, rows: int, seed: int, load: Callable[[str], LabelledTexts]
) -> list[LabelledTexts]:
    """Seeded samples of the development sets, in their own wording of the labels.

    A text that a training source also holds is left out.

    Raises:
        ValueError: a label of a development set is also a label of a training source, which would
            make the development score measure seen labels.
    """
    seen_labels: set[str] = set()
    seen_texts: set[str] = set()
    for name, source in mix.sources.items():
        data = prepare(load(name), source)
        seen_texts.update(map(text_fingerprint, data.texts))
        for names in _wordings(data.label_names, source):
            seen_labels.update(label.casefold() for label in names.values())
    sets = []
    for name, source in mix.development.items():
        data = prepare(load(name), source)
        kept = [i for i, t in enumerate(data.texts) if text_fingerprint(t) not in seen_texts]
        data = data.take(kept)
        rng = random.Random(f"{seed}:{name}")
        names = _wordings(data.label_names, source)[-1]
        shared = sorted(label for label in names.values() if label.casefold() in seen_labels)
        if shared:
            raise ValueError(f"development set {name} shares labels with training: {shared}")
        chosen = data.take(_balanced_rows(data, min(rows, len(data)), rng))
        sets.append(_renamed(chosen, names))
    return sets


def prepare(data: LabelledTexts, source: Source) -> LabelledTexts:
    """A source with `exclude` and `rename` applied.

    Raises:
        ValueError: a name in `exclude` or `rename` is no label of the source.
    """
    unknown = sorted({*source.exclude, *source.rename} - set(data.label_names))
    if unknown:
        raise ValueError(f"{data.name} has no label {unknown}: see exclude and rename of the mix")
    names = {n: source.rename.get(n, n) for n in data.label_names if n not in source.exclude}
    return _renamed(data, names)


def text_fingerprint(text: str) -> str:
    """Hash of the words of a text in lower case; punctuation and white space do not count."""
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:32]


def fingerprints(sets: Iterable[LabelledTexts]) -> set[str]:
    """Fingerprints of all texts that have a word."""
    return {text_fingerprint(t) for data in sets for t in data.texts if any(map(str.isalnum, t))}


def assert_no_overlap(examples: Iterable[Example], benchmark: Iterable[LabelledTexts]) -> int:
    """Proves by fingerprint that no training text is a benchmark text; returns the texts compared.

    Raises:
        ValueError: names the first texts that occur on both sides.
    """
    trained = {text_fingerprint(e.text): e for e in examples}
    compared = 0
    for data in benchmark:
        compared += len(data)
        found = sorted(fingerprints([data]) & trained.keys())
        if found:
            first = trained[found[0]]
            raise ValueError(
                f"{len(found)} texts of {data.name} are in the training rows, the first from "
                f"{first.source}: {first.text[:80]!r}"
            )
    return compared


def _family(data: LabelledTexts) -> str:
    return _FAMILY.get(data.task, data.task)


def _renamed(data: LabelledTexts, names: dict[str, str]) -> LabelledTexts:
    """New label names; labels without one are dropped, and rows left without a label with them."""
    labels = [tuple(dict.fromkeys(names[x] for x in row if x in names)) for row in data.labels]
    kept = [i for i, row in enumerate(labels) if row]
    return LabelledTexts(
        data.name,
        tuple(data.texts[i] for i in kept),
        tuple(labels[i] for i in kept),
        tuple(dict.fromkeys(names.values())),
        data.multi_label,
        data.task,
    )


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
    pool: list[tuple[str, ...]],
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
    if mix.mined_rate and rng.random() < mix.mined_rate:
        ranked = nearest_labels(data.label_names)[rng.choice(true)]
        drawn = [label for label in ranked if label in others][:wanted]
    else:
        drawn = rng.sample(others, wanted)
    negatives = [names[label] for label in drawn]
    if pool and rng.random() < mix.foreign_rate:
        elsewhere = rng.choice(pool)
        foreign = rng.sample(elsewhere, min(2, len(elsewhere)))
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
