"""Load a registered data set: from the local mirror, else from the Hub. No remote code ever runs.

The mirror is a folder with a `MANIFEST.csv` (columns `name`, `group`, `rows`, `sha256`, …) and one
`<group>/<name>.parquet` per set with the columns `text` and `labels`.
"""

import csv
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from gliznet.data.registry import DatasetSpec, Hub, spec
from gliznet.data.types import LabelledTexts

_Root = str | os.PathLike | None
_Rows = tuple[list[str], list[tuple[str, ...]]]


class DataUnavailable(RuntimeError):
    """The set is neither in a local mirror nor reachable on the Hub."""


class DataError(ValueError):
    """The data were found but are not what the registry or the manifest says."""


def load(name: str, wording: str = "readable", root: _Root = None) -> LabelledTexts:
    """Load one data set, all rows in source order.

    The mirror is `root`, else the folder named by the environment variable `GLIZNET_DATA`. A set
    that it does not hold, or no mirror at all, means the Hub. `wording` ("readable" or "published")
    picks the label names; the label order is the same in both.

    Raises KeyError for an unknown name, ValueError for a wording that the set lacks,
    DataUnavailable where the set cannot be had, and DataError for a wrong checksum, a wrong number
    of rows, or a row whose labels do not fit.
    """
    entry = spec(name)
    names = entry.label_names(wording)
    row = _manifest_row(entry, root)
    if row is not None:
        texts, labels = _from_mirror(entry, *row)
    elif entry.hub is not None:
        texts, labels = _from_hub(entry, entry.hub)
    else:
        raise DataUnavailable(_how_to_get(entry, "it is not in a local mirror"))
    _check(entry, labels)
    if names is None:
        names = tuple(sorted({label for row_labels in labels for label in row_labels}))
    elif wording != "readable":
        rename = dict(zip(entry.label_names(), names, strict=True))
        labels = [tuple(rename[label] for label in row_labels) for row_labels in labels]
    return LabelledTexts(name, tuple(texts), tuple(labels), names, entry.multi_label, entry.task)


def available(name: str, root: _Root = None) -> bool:
    """Whether the local mirror holds the set. The Hub is not asked."""
    row = _manifest_row(spec(name), root)
    return row is not None and row[0].is_file()


def _manifest_row(entry: DatasetSpec, root: _Root) -> tuple[Path, dict[str, str]] | None:
    """File and manifest row of the set in the mirror; None without a mirror or a row."""
    folder = root or os.environ.get("GLIZNET_DATA")
    if not folder:
        return None
    manifest = Path(folder) / "MANIFEST.csv"
    if not manifest.is_file():
        raise DataUnavailable(
            f"{folder} has no MANIFEST.csv: point GLIZNET_DATA (or root) at a folder of parquet "
            "files with a manifest, or unset it to use the Hub"
        )
    with manifest.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["name"] == entry.local and row["group"] == entry.group:
                return Path(folder) / entry.group / f"{entry.local}.parquet", row
    return None


def _from_mirror(entry: DatasetSpec, path: Path, row: dict[str, str]) -> _Rows:
    import pyarrow.parquet as pq

    if not path.is_file():
        raise DataUnavailable(
            _how_to_get(entry, f"{path} is in the manifest but not in the mirror")
        )
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != row["sha256"]:
        message = f"sha256 is {found}, the manifest says {row['sha256']}; copy the file again"
        raise DataError(f"{path}: {message}")
    table = pq.read_table(path, columns=["text", "labels"])
    if table.num_rows != int(row["rows"]):
        raise DataError(f"{path}: {table.num_rows} rows, the manifest says {row['rows']}")
    names = {label.mirror: label.readable for label in entry.labels or () if label.mirror}
    labels = [tuple(names.get(x, x) for x in row) for row in table["labels"].to_pylist()]
    return table["text"].to_pylist(), labels


def _from_hub(entry: DatasetSpec, hub: Hub) -> _Rows:
    # `datasets` takes a second to import, and a mirror does not need it.
    import datasets

    if not Path(hub.id).is_dir() and not _hub_answers():
        raise DataUnavailable(_how_to_get(entry, "the Hub does not answer"))
    try:
        data = datasets.load_dataset(hub.id, hub.config, split=hub.split)
    except (OSError, RuntimeError, ValueError) as error:
        raise DataUnavailable(_how_to_get(entry, f"{type(error).__name__}: {error}")) from error
    if hub.rows is not None and len(data) != hub.rows:
        raise DataError(
            f"{entry.name}: {hub.id} ({hub.split}) has {len(data)} rows, expected {hub.rows}; the "
            "Hub data set has changed, so its scores would not compare"
        )
    feature = data.features[hub.label_column]
    classes = hub.label_names or getattr(getattr(feature, "feature", feature), "names", None)
    readable = _readable_name(entry)
    texts, labels = [], []
    columns = (data[column] for column in (*hub.text_columns, hub.label_column))
    for *parts, value in zip(*columns, strict=True):
        raws = [_raw_label(v, classes) for v in (value if isinstance(value, list) else [value])]
        if any(raw in hub.skip for raw in raws):
            continue
        texts.append(hub.text_join.join(parts).strip())
        labels.append(tuple(readable(raw) for raw in raws))
    return texts, labels


def _hub_answers() -> bool:
    """Ask the Hub once: without a network `datasets` itself would retry for half a minute.

    In offline mode there is nothing to ask: `datasets` uses its cache or fails at once.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return True
    try:
        get_session().head(constants.ENDPOINT, timeout=3)
    except Exception:  # the HTTP client, and with it the error class, depends on the version
        return False
    return True


def _raw_label(value: object, classes: list[str] | None) -> str:
    """The class name of an integer label, any other value as a string."""
    if classes and isinstance(value, int) and 0 <= value < len(classes):
        return classes[value]
    return str(value)


def _readable_name(entry: DatasetSpec) -> Callable[[str], str]:
    """From a raw label of the Hub to the readable name; an unknown one stays and is refused."""
    if entry.labels is None:
        return lambda raw: raw.replace("_", " ")
    return lambda raw: next((x.readable for x in entry.labels if x.raw == raw), raw)


def _check(entry: DatasetSpec, labels: list[tuple[str, ...]]) -> None:
    known = entry.label_names()
    for i, row in enumerate(labels):
        if not row or (len(row) > 1 and not entry.multi_label):
            wanted = "at least one label" if entry.multi_label else "exactly one label"
            raise DataError(f"{entry.name}, row {i}: labels {list(row)}, expected {wanted}")
        if known is not None and not set(row) <= set(known):
            raise DataError(f"{entry.name}, row {i}: labels {list(row)} not all in {list(known)}")


def _how_to_get(entry: DatasetSpec, reason: str) -> str:
    if entry.hub is None:
        hub = f"The Hub is no other way: {entry.hub_note}"
    else:
        hub = (
            f"Or go online to read {entry.hub.id} from the Hub; a mirror that holds the set goes "
            "first (HF_HUB_OFFLINE=1 uses an earlier download)."
        )
    file = f"{entry.group}/{entry.local}.parquet"
    return (
        f"data set {entry.name!r} is unavailable: {reason}. "
        f"Set GLIZNET_DATA to a folder with MANIFEST.csv and {file}. {hub}"
    )
