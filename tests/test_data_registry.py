"""The registry against the benchmark's definition, the bibliography and the mirror."""

import csv
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from gliznet.data.loading import load
from gliznet.data.registry import DatasetSpec, registry, spec

ROOT = Path(__file__).parents[1]

# Rows and label order of the ten sets, written out by hand from the published definition.
NEWSGROUPS = [
    "alt.atheism",
    "comp.graphics",
    "comp.os.ms-windows.misc",
    "comp.sys.ibm.pc.hardware",
    "comp.sys.mac.hardware",
    "comp.windows.x",
    "misc.forsale",
    "rec.autos",
    "rec.motorcycles",
    "rec.sport.baseball",
    "rec.sport.hockey",
    "sci.crypt",
    "sci.electronics",
    "sci.med",
    "sci.space",
    "soc.religion.christian",
    "talk.politics.guns",
    "talk.politics.mideast",
    "talk.politics.misc",
    "talk.religion.misc",
]
BENCHMARK = {
    "cr": (376, ["negative", "positive"]),
    "sst2": (1821, ["negative", "positive"]),
    "sst5": (2210, ["very negative", "negative", "neutral", "positive", "very positive"]),
    "imdb": (25000, ["negative", "positive"]),
    "20_newsgroups": (7532, [name.replace(".", " ") for name in NEWSGROUPS]),
    "enron_spam": (2000, ["ham", "spam"]),
    "financial_phrasebank": (2264, ["negative", "neutral", "positive"]),
    "ag_news": (7600, ["World", "Sports", "Business", "Sci/Tech"]),
    "emotion": (2000, ["sadness", "joy", "love", "anger", "fear", "surprise"]),
    "rotten_tomatoes": (1066, ["neg", "pos"]),
}
READABLE = {
    "ag_news": ["world", "sports", "business", "science and technology"],
    "enron_spam": ["legitimate email", "spam email"],
    "rotten_tomatoes": ["negative", "positive"],
}


def minimal(**changes) -> dict:
    fields = {
        "name": "toy",
        "group": "train",
        "title": "Toy",
        "task": "topic",
        "local": "toy",
        "rows": 2,
        "hub": None,
        "hub_note": "none",
        "licence": "CC0",
        "citation": None,
        "differences": "none",
    }
    return fields | changes


def manifest(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    with (folder / "MANIFEST.csv").open(encoding="utf-8", newline="") as file:
        return {(row["group"], row["name"]): row for row in csv.DictReader(file)}


def test_groups_are_complete():
    groups = [entry.group for entry in registry().values()]
    assert {g: groups.count(g) for g in set(groups)} == {"benchmark": 13, "train": 61, "sce": 4}


@pytest.mark.parametrize("name", BENCHMARK)
def test_benchmark_definition(name):
    rows, published = BENCHMARK[name]
    entry = spec(name)
    assert entry.rows == rows
    assert list(entry.label_names("published")) == published
    if name in READABLE:
        assert list(entry.label_names("readable")) == READABLE[name]
    # The mteb edition of PhraseBank is the one set whose Hub split has another size.
    assert entry.hub.rows == (1129 if name == "financial_phrasebank" else rows)


def test_newsgroups_raw_names_keep_their_dots():
    assert [label.raw for label in spec("20_newsgroups").labels] == NEWSGROUPS


def test_unknown_name_lists_close_ones():
    with pytest.raises(KeyError, match=r"unknown data set 'agnews': did you mean ag_news"):
        spec("agnews")
    with pytest.raises(KeyError, match=r"registry\.yaml"):
        spec("zzzzzzzz")


def test_wordings():
    assert spec("clinc150").label_names() is None
    with pytest.raises(ValueError, match="no published wording"):
        spec("clinc150").label_names("published")
    for name in ("cr", "clinc150"):
        with pytest.raises(ValueError, match="'readable' or 'published'"):
            spec(name).label_names("raw")


def test_entries_are_strict():
    assert DatasetSpec(**minimal()).name == "toy"
    label = {"raw": "a", "published": "A", "readable": "aa"}
    twin = {"raw": "b", "published": "A", "readable": "bb"}
    for changes, message in [
        ({"colour": "red"}, "colour"),
        ({"group": "test"}, "group"),
        ({"task": "poetry"}, "task"),
        ({"rows": 0}, "rows"),
        ({"hub_note": ""}, "hub_note must say why"),
        ({"labels": [label, twin]}, "published label name occurs twice"),
    ]:
        with pytest.raises(ValidationError, match=message):
            DatasetSpec(**minimal(**changes))


def test_every_citation_is_in_the_bibliography():
    text = (ROOT / "book" / "references.bib").read_text(encoding="utf-8")
    keys = re.findall(r"^@\w+\{([^,\s]+),", text, flags=re.MULTILINE)
    assert len(keys) == len(set(keys))
    cited = {entry.citation for entry in registry().values()} - {None}
    assert cited <= set(keys)


def test_registry_and_manifest_hold_the_same_sets(mirror):
    rows = manifest(mirror)
    entries = {(entry.group, entry.local): entry for entry in registry().values()}
    assert set(entries) == set(rows)
    for key, entry in entries.items():
        assert entry.rows == int(rows[key]["rows"]), key
        assert entry.multi_label == (rows[key]["multi_label"] == "True"), key
        known = entry.hub and entry.hub.label_names
        if entry.labels:
            known = [label.mirror or label.readable for label in entry.labels]
        if known:
            assert sorted(known) == rows[key]["label_names"].split("|"), key


@pytest.mark.parametrize("name", [n for n, e in registry().items() if e.labels])
def test_raw_and_readable_names_pair_as_in_the_mirror(mirror, name):
    entry = spec(name)
    table = pq.read_table(mirror / entry.group / f"{entry.local}.parquet").to_pydict()
    rows = zip(table["label_raw"], table["labels"], strict=True)
    pairs = {(raw, names[0]) for raw, names in rows}
    if any(raw.isdigit() for raw, _ in pairs):
        # The mirror's source numbers the classes of SST in this order.
        pairs = {(entry.labels[int(raw)].raw, readable) for raw, readable in pairs}
    assert {(x.raw, x.mirror or x.readable) for x in entry.labels} == pairs


@pytest.mark.parametrize("name", ["clinc150", "go_emotions"])
def test_underscore_rule_gives_the_mirrors_names(mirror, name):
    """Sets that come from the Hub without a label list rely on this rule."""
    table = pq.read_table(mirror / "train" / f"{name}.parquet").to_pydict()
    for raw, names in zip(table["label_raw"], table["labels"], strict=True):
        assert raw.replace("_", " ").split("|") == names


def test_a_label_takes_its_readable_name_whatever_the_mirror_calls_it(mirror):
    found = load("enron_spam", "readable"), load("enron_spam", "published")
    names = {"legitimate email": "ham", "spam email": "spam"}
    assert [tuple(names[x] for x in row) for row in found[0].labels] == list(found[1].labels)
    assert set(found[0].labels) == {("legitimate email",), ("spam email",)}
