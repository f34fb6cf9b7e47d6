"""Records: what a run was given and what it found; and the reporter that notebooks write through.

A notebook says `report = Reporter(out)`, reports, and ends with `report.close()`. The runner adds
inputs and environment and writes the whole as the run's record.
"""

import hashlib
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints, ValidationError

from gliznet.lab import LabError
from gliznet.lab.profiles import Entry, find_root, load_profile

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Verdict = Literal["verified", "corrected", "reproduced", "contradicted", "not testable here"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class Data(_Strict):
    """A data set as used: number of rows and sha256 of its content."""

    name: Text
    rows: int = Field(ge=0)
    sha256: Sha256


class Backbone(_Strict):
    """The pretrained encoder: name and sha256 of its weights."""

    name: Text
    sha256: Sha256


class Metric(_Strict):
    """A measured value, with its interval and what the interval is over."""

    value: FiniteFloat
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    n: int | None = Field(default=None, ge=0)
    unit: str | None = None
    interval: str | None = None


class Outcome(_Strict):
    """The verdict on one statement of a ledger, and why."""

    outcome: Verdict
    evidence: Text


class Hardware(_Strict):
    """The machine of record."""

    cpu: str
    cores: int
    memory_gib: float
    accelerator: str | None
    flags: list[str]


class Results(_Strict):
    """Everything that a notebook reports."""

    data: list[Data] = Field(default_factory=list)
    backbone: Backbone | None = None
    metrics: dict[str, Metric] = Field(default_factory=dict)
    costs: dict[str, FiniteFloat] = Field(default_factory=dict)
    outcomes: dict[str, Outcome] = Field(default_factory=dict)
    files: dict[str, Sha256] = Field(default_factory=dict)


class Report(Results):
    """The file a reporter leaves for the runner; `complete` once the reporter is closed."""

    complete: bool = False
    peak_memory_mib: float | None = None


class Record(Results):
    """One run: inputs, environment, results. `git_commit` is information, never a criterion."""

    schema_version: Literal[1] = 1
    profile: str
    notebook: str
    id: str | None
    parameters: dict[str, Any]
    needs: dict[str, Sha256]
    code_hash: Sha256
    package_hash: Sha256
    versions: dict[str, str | None]
    hardware: Hardware
    git_commit: str | None
    started: str
    wall_seconds: float
    peak_memory_mib: float | None

    def result_hash(self) -> str:
        """Return the sha256 of what other notebooks can read: inputs and results, no environment.

        A repeat that finds the same leaves those that need this record fresh.
        """
        fields = {"notebook", "id", "parameters", *Results.model_fields}
        return sha256(json.dumps(self.model_dump(mode="json", include=fields), sort_keys=True))


class Reporter:
    """Collects the results of one notebook and writes them to `out`/report.json.

    Args:
        out: the run's folder; "" (interactive, tests) stands for a fresh temporary folder.
    """

    def __init__(self, out: str | Path):
        if not out:
            out = tempfile.mkdtemp(prefix="gliznet-")
            print(f"No run folder was given: results of this session go to {out}")
        self.out = Path(out)
        self.out.mkdir(parents=True, exist_ok=True)
        self._report = Report()
        # Written now, so that the runner can tell a notebook that forgot close() from one that
        # has nothing to report.
        self._write()

    def data(self, name: str, *, rows: int, sha256: str) -> None:
        """Report a data set that the results depend on."""
        if any(known.name == name for known in self._report.data):
            raise LabError(f"data set {name!r} is reported twice")
        self._report.data.append(Data(name=name, rows=int(rows), sha256=sha256))

    def backbone(self, name: str, sha256: str) -> None:
        """Report the pretrained encoder by name and sha256 of its weights."""
        self._report.backbone = Backbone(name=name, sha256=sha256)

    def metric(
        self,
        name: str,
        value: float,
        *,
        low: float | None = None,
        high: float | None = None,
        n: int | None = None,
        unit: str | None = None,
        interval: str | None = None,
    ) -> None:
        """Report a metric; with bounds, `interval` says what they are over.

        Raises LabError for NaN or infinity, for one bound alone, bounds without `interval`, bounds
        in the wrong order, and a name used before.
        """
        low, high = (None if bound is None else float(bound) for bound in (low, high))
        if (low is None) != (high is None) or (low is None) != (interval is None):
            raise LabError(f"metric {name!r}: give low, high and interval together, or none")
        if low is not None and high < low:
            raise LabError(f"metric {name!r}: low {low} is above high {high}")
        try:
            n = None if n is None else int(n)
            found = Metric(
                value=float(value), low=low, high=high, n=n, unit=unit, interval=interval
            )
        except ValidationError as error:
            raise LabError(f"metric {name!r} = {value} [{low}, {high}]: {error}") from error
        self._add("metrics", name, found)

    def cost(self, name: str, value: float) -> None:
        """Report a cost, its unit in the name (`tokens_per_second`). Raises LabError if not finite
        or used before."""
        if not math.isfinite(value):
            raise LabError(f"cost {name!r} = {value} is not finite")
        self._add("costs", name, float(value))

    def outcome(self, ledger_id: str, outcome: Verdict, *, evidence: str) -> None:
        """Report the verdict on a ledger entry. Raises LabError for an unknown verdict, blank
        evidence, and an id used before."""
        try:
            found = Outcome(outcome=outcome, evidence=evidence)
        except ValidationError as error:
            raise LabError(f"outcome of {ledger_id!r}: {error}") from error
        self._add("outcomes", ledger_id, found)

    def file(self, path: str | Path) -> None:
        """Make a file in the run's folder part of the evidence: its sha256 is checked for ever."""
        path = Path(path).resolve()
        if not path.is_relative_to(self.out.resolve()):
            raise LabError(f"{path} is not in the run's folder {self.out}; write it there")
        self._report.files[path.relative_to(self.out.resolve()).as_posix()] = file_sha256(path)

    def predictions(self, table: Any, name: str = "predictions") -> Path:
        """Write a pandas DataFrame or Arrow table to `out`/`name`.parquet and return the path.

        Floats, also in lists, are stored as float16. Raises LabError for a value beyond its range.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not isinstance(table, pa.Table):
            table = pa.Table.from_pandas(table, preserve_index=False)
        fields = [pa.field(f.name, _half(f.type)) for f in table.schema]
        try:
            table = pa.table(
                [_to_half(table[f.name].combine_chunks(), f.type) for f in fields],
                schema=pa.schema(fields),
            )
        except OverflowError as error:
            raise LabError(f"predictions {name!r}: {error}") from error
        path = self.out / f"{name}.parquet"
        pq.write_table(table, path, compression="zstd")
        self.file(path)
        return path

    def close(self) -> None:
        """Write report.json; the notebook's last statement."""
        self._report.complete = True
        self._report.peak_memory_mib = _peak_memory_mib()
        self._write()

    def _add(self, field: str, name: str, value: Any) -> None:
        known = getattr(self._report, field)
        if name in known:
            raise LabError(f"{field}: {name!r} is reported twice")
        known[name] = value

    def _write(self) -> None:
        write_atomic(self.out / "report.json", self._report.model_dump_json(indent=2) + "\n")


def load(profile: str, root: Path | None = None) -> dict[str, Record]:
    """Return the records that exist for the entries of `profile`, by entry key, in its order.

    Raises LabError for a record that cannot be read.
    """
    root = root or find_root()
    found = {entry.key: read_record(entry, root) for entry in load_profile(profile, root)}
    return {key: record for key, record in found.items() if record}


def frame(profile: str, experiment: str, root: Path | None = None):
    """Return a DataFrame with one row per record of the notebook `experiment`.

    The index is the run's id (the notebook's name for a chapter); the columns are the parameters
    and the metrics' values. Raises LabError when a metric is named like a parameter.
    """
    import pandas as pd

    rows = {}
    for record in load(profile, root).values():
        if record.notebook != experiment:
            continue
        if clash := record.parameters.keys() & record.metrics.keys():
            raise LabError(f"{experiment}: {sorted(clash)} name both a parameter and a metric")
        metrics = {name: metric.value for name, metric in record.metrics.items()}
        rows[record.id or record.notebook] = {**record.parameters, **metrics}
    # Row by row: a parameter may be a list, which from_dict would take for a column.
    return pd.DataFrame(list(rows.values()), index=pd.Index(list(rows), name="id"))


def read_record(entry: Entry, root: Path) -> Record | None:
    """Return the record of `entry`, or None if there is none. Raises LabError if unreadable."""
    path = root / entry.record
    if not path.is_file():
        return None
    try:
        return Record.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise LabError(f"{entry.record} cannot be read: {error}") from error


def sha256(content: str | bytes) -> str:
    """Return the hexadecimal sha256 of a string (as UTF-8) or of bytes."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the hexadecimal sha256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomic(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader finds the old file or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _half(kind: Any) -> Any:
    """Return the Arrow type with every float in it replaced by float16."""
    import pyarrow as pa

    if pa.types.is_floating(kind):
        return pa.float16()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_half(kind.value_type))
    return kind


def _to_half(column: Any, kind: Any) -> Any:
    """Cast an Arrow column to `kind`. Raises OverflowError if a finite number would be infinite."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.type == kind:
        return column
    values = column
    while pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        values = values.flatten()
    if pa.types.is_floating(values.type):
        largest = pc.max(pc.abs(values.filter(pc.is_finite(values.cast(pa.float64()))))).as_py()
        if largest is not None and largest > 65504:
            raise OverflowError(f"{largest} does not fit float16 (at most 65504)")
    return column.cast(kind)


def _peak_memory_mib() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    # VmHWM, because ru_maxrss starts at the parent's size on Linux.
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
