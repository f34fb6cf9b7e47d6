"""Loading from a mirror and from a Hub-like folder, and every way in which it must refuse."""

import csv
import hashlib
import shutil
import socket
import time
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from gliznet.data import loading
from gliznet.data.loading import DataError, DataUnavailable, available, load
from gliznet.data.registry import DatasetSpec, Hub, Label, registry, spec

LABELS = [
    Label(raw="b_raw", published="B", readable="bee"),
    Label(raw="a_raw", published="A", readable="ay"),
]


def make_spec(hub: Hub | None = None, **changes) -> DatasetSpec:
    fields = {
        "name": "toy",
        "group": "train",
        "title": "Toy",
        "task": "topic",
        "local": "toy_file",
        "rows": 3,
        "hub": hub,
        "hub_note": "it was made for a test",
        "labels": LABELS,
        "licence": "CC0",
        "citation": None,
        "differences": "none",
    }
    return DatasetSpec(**fields | changes)


@pytest.fixture
def use(monkeypatch, tmp_path):
    """Make `load` see one registry entry, with no mirror and an empty cache to begin with."""
    monkeypatch.delenv("GLIZNET_DATA", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()

    def register(entry: DatasetSpec) -> None:
        monkeypatch.setattr(loading, "spec", {entry.name: entry}.__getitem__)

    yield register
    datasets.enable_progress_bars()


def write_mirror(folder: Path, labels: list[list[str]], **row: object) -> Path:
    """A mirror with one file of the texts "text 0", …; `row` overrides manifest fields."""
    path = folder / "train" / "toy_file.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [f"text {i}" for i in range(len(labels))]
    pq.write_table(pa.table({"text": texts, "labels": labels}), path)
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    fields = {"name": "toy_file", "group": "train", "rows": len(labels), "sha256": checksum} | row
    with (folder / "MANIFEST.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerow(fields)
    return path


# --- mirror


def test_mirror_keeps_rows_and_published_label_order(use, tmp_path, monkeypatch):
    use(make_spec())
    write_mirror(tmp_path, [["ay"], ["bee"], ["ay"]])
    data = load("toy", root=tmp_path)
    assert data.texts == ("text 0", "text 1", "text 2")
    assert data.labels == (("ay",), ("bee",), ("ay",))
    assert data.label_names == ("bee", "ay")
    assert (data.name, data.task, data.multi_label) == ("toy", "topic", False)

    monkeypatch.setenv("GLIZNET_DATA", str(tmp_path))
    published = load("toy", wording="published")
    assert published.labels == (("A",), ("B",), ("A",))
    assert published.label_names == ("B", "A")


def test_root_goes_before_the_environment(use, tmp_path, monkeypatch):
    use(make_spec())
    write_mirror(tmp_path / "env", [["ay"]])
    write_mirror(tmp_path / "root", [["bee"], ["bee"]])
    monkeypatch.setenv("GLIZNET_DATA", str(tmp_path / "env"))
    assert len(load("toy")) == 1
    assert len(load("toy", root=tmp_path / "root")) == 2


def test_labels_from_the_data_are_sorted(use, tmp_path):
    use(make_spec(labels=None, multi_label=True))
    write_mirror(tmp_path, [["c", "a"], ["b"]])
    data = load("toy", root=tmp_path)
    assert data.label_names == ("a", "b", "c")
    assert data.labels == (("c", "a"), ("b",))


@pytest.mark.parametrize(
    ("labels", "multi_label", "message"),
    [
        ([["ay"], ["sea"]], False, r"row 1: labels \['sea'\] not all in \['bee', 'ay'\]"),
        ([["ay", "bee"]], False, "row 0: .* expected exactly one label"),
        ([["ay", "bee"], []], True, "row 1: .* expected at least one label"),
    ],
)
def test_labels_that_do_not_fit_are_refused(use, tmp_path, labels, multi_label, message):
    use(make_spec(multi_label=multi_label))
    write_mirror(tmp_path, labels)
    with pytest.raises(DataError, match=message):
        load("toy", root=tmp_path)


def test_wrong_checksum_shows_both_sums(use, tmp_path):
    use(make_spec())
    path = write_mirror(tmp_path, [["ay"]], sha256="0" * 64)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(DataError, match=f"{found}.*{'0' * 64}"):
        load("toy", root=tmp_path)


def test_wrong_row_count_is_refused(use, tmp_path):
    use(make_spec())
    write_mirror(tmp_path, [["ay"]], rows=2)
    with pytest.raises(DataError, match="1 rows, the manifest says 2"):
        load("toy", root=tmp_path)


def test_broken_mirror_is_named(use, tmp_path):
    use(make_spec())
    with pytest.raises(DataUnavailable, match=r"no MANIFEST\.csv"):
        load("toy", root=tmp_path)
    path = write_mirror(tmp_path, [["ay"]])
    assert available("toy", root=tmp_path)
    path.unlink()
    assert not available("toy", root=tmp_path)
    with pytest.raises(DataUnavailable, match="in the manifest but not in the mirror"):
        load("toy", root=tmp_path)


# --- Hub


def write_hub(folder: Path, columns: dict, features: datasets.Features, split="test") -> str:
    """A folder laid out as a Hub repository: a card and parquet files, no script."""
    (folder / "data").mkdir(parents=True)
    table = datasets.Dataset.from_dict(columns, features=features)
    table.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    return str(folder)


def test_hub_class_label_and_joined_columns(use, tmp_path):
    features = datasets.Features(
        {
            "title": datasets.Value("string"),
            "body": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["a_raw", "b_raw"]),
        }
    )
    columns = {"title": [" t0", "t1", ""], "body": ["x", "y ", ""], "label": [1, 0, 1]}
    hub = Hub(
        id=write_hub(tmp_path / "hub", columns, features),
        split="test",
        text_columns=["title", "body"],
        text_join=" | ",
        label_column="label",
        rows=3,
    )
    use(make_spec(hub))
    data = load("toy", wording="published")
    assert data.texts == ("t0 | x", "t1 | y", "|")
    assert data.labels == (("B",), ("A",), ("B",))
    assert data.label_names == ("B", "A")
    assert load("toy").labels == (("bee",), ("ay",), ("bee",))


def test_hub_integers_with_given_names_and_skipped_rows(use, tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "y": datasets.Value("int64")})
    columns = {"text": ["p", "q", "r"], "y": [0, -1, 1]}
    hub = Hub(
        id=write_hub(tmp_path / "hub", columns, features, split="train"),
        split="train",
        text_columns=["text"],
        label_column="y",
        label_names=["ay", "bee"],
        skip=["-1"],
        rows=3,
    )
    use(make_spec(hub, labels=None))
    data = load("toy")
    assert data.texts == ("p", "r")
    assert data.labels == (("ay",), ("bee",))
    # Without the skip the row without a gold label must not pass silently.
    unskipped = hub.model_copy(update={"skip": [], "label_names": ["a_raw", "b_raw"]})
    use(make_spec(unskipped))
    with pytest.raises(DataError, match=r"row 1: labels \['-1'\]"):
        load("toy")


def test_hub_string_labels(use, tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "y": datasets.Value("string")})
    folder = write_hub(tmp_path / "hub", {"text": ["p", "q"], "y": ["a_raw", "b_raw"]}, features)
    hub = Hub(id=folder, split="test", text_columns=["text"], label_column="y")
    use(make_spec(hub))
    assert load("toy").labels == (("ay",), ("bee",))
    use(make_spec(hub, labels=None))
    data = load("toy")
    assert (data.labels, data.label_names) == ((("a raw",), ("b raw",)), ("a raw", "b raw"))


def test_hub_lists_of_class_labels(use, tmp_path):
    names = datasets.ClassLabel(names=["a_raw", "b_raw"])
    features = datasets.Features({"text": datasets.Value("string"), "y": datasets.List(names)})
    folder = write_hub(tmp_path / "hub", {"text": ["p", "q"], "y": [[1, 0], [0]]}, features)
    hub = Hub(id=folder, split="test", text_columns=["text"], label_column="y")
    use(make_spec(hub, multi_label=True))
    assert load("toy").labels == (("bee", "ay"), ("ay",))


def test_hub_set_of_another_size_is_refused(use, tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "y": datasets.Value("string")})
    folder = write_hub(tmp_path / "hub", {"text": ["p"], "y": ["a_raw"]}, features)
    hub = Hub(id=folder, split="test", text_columns=["text"], label_column="y", rows=2)
    use(make_spec(hub))
    with pytest.raises(DataError, match="has 1 rows, expected 2"):
        load("toy")


def test_a_loading_script_is_never_run(use, tmp_path):
    folder = tmp_path / "scripted"
    folder.mkdir()
    trace = tmp_path / "ran"
    (folder / "scripted.py").write_text(f"open({str(trace)!r}, 'w')")
    hub = Hub(id=str(folder), split="test", text_columns=["text"], label_column="y")
    use(make_spec(hub))
    with pytest.raises(DataUnavailable):
        load("toy")
    assert not trace.exists()


def test_a_set_that_the_mirror_lacks_comes_from_the_hub(use, tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "y": datasets.Value("string")})
    folder = write_hub(tmp_path / "hub", {"text": ["p"], "y": ["a_raw"]}, features)
    hub = Hub(id=folder, split="test", text_columns=["text"], label_column="y")
    use(make_spec(hub))
    write_mirror(tmp_path, [["bee"]], name="another_file")
    assert not available("toy", root=tmp_path)
    assert load("toy", root=tmp_path).texts == ("p",)


def test_unavailable_names_both_ways(use):
    use(make_spec())
    with pytest.raises(DataUnavailable, match=r"GLIZNET_DATA.*train/toy_file\.parquet.*for a test"):
        load("toy")


@pytest.mark.parametrize("offline", [True, False])
def test_unreachable_hub_fails_at_once(use, monkeypatch, offline):
    def no_network(*args, **kwargs):
        raise socket.gaierror("no network in this test")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    if not offline:
        # Online, `load_dataset` would retry for half a minute: it must not be reached.
        monkeypatch.setattr(datasets, "load_dataset", None)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(socket, "create_connection", no_network)
    use(spec("cr"))
    start = time.perf_counter()
    with pytest.raises(DataUnavailable, match=r"GLIZNET_DATA.*SetFit/CR"):
        load("cr")
    assert time.perf_counter() - start < 5


def test_available_without_a_mirror(monkeypatch):
    monkeypatch.delenv("GLIZNET_DATA", raising=False)
    assert not available("cr")


# --- the real mirror


@pytest.mark.parametrize("name", registry())
def test_mirror_entry_loads(mirror, name):
    entry = spec(name)
    with (mirror / "MANIFEST.csv").open(encoding="utf-8", newline="") as file:
        row = next(
            r for r in csv.DictReader(file) if (r["group"], r["name"]) == (entry.group, entry.local)
        )
    assert available(name, root=mirror)
    data = load(name, root=mirror)
    assert len(data) == len(data.labels) == int(row["rows"])
    mirrored = {label.readable: label.mirror or label.readable for label in entry.labels or ()}
    names = sorted(mirrored.get(name, name) for name in data.label_names)
    assert names == row["label_names"].split("|")
    assert {label for labels in data.labels for label in labels} == set(data.label_names)
    if not entry.multi_label:
        assert {len(labels) for labels in data.labels} == {1}
    if entry.labels:
        published = load(name, wording="published", root=mirror)
        assert published.texts == data.texts
        indices = [data.label_names.index(labels[0]) for labels in data.labels]
        assert [published.label_names.index(labels[0]) for labels in published.labels] == indices


def test_empty_newsgroup_posts_stay(mirror):
    assert load("20_newsgroups", root=mirror).texts.count("") == 215


def test_rotten_tomatoes_labels_are_not_swapped(mirror):
    """The first half of the file are the positive sentences, as in the published split."""
    data = load("rotten_tomatoes", wording="published", root=mirror)
    assert data.labels == (("pos",),) * 533 + (("neg",),) * 533


def test_corrupted_copy_is_refused(mirror, tmp_path):
    shutil.copy(mirror / "MANIFEST.csv", tmp_path)
    (tmp_path / "benchmark").mkdir()
    content = bytearray((mirror / "benchmark" / "cr.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "benchmark" / "cr.parquet").write_bytes(content)
    with pytest.raises(DataError, match="sha256"):
        load("cr", root=tmp_path)
