"""Records: what a run was given and what it found; and the reporter that notebooks write through.

A notebook says `report = Reporter(out)`, reports, and ends with `report.close()`. The runner adds
inputs and environment and writes the whole as the run's record.
"""

import hashlib
import json
import os
import re
import resource
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import BaseModel, Field, FiniteFloat, ValidationError, model_validator

from gliznet.lab import LabError, predictions
from gliznet.lab.profiles import Entry, find_root, load_profile

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(pattern=r"\S")]
Verdict = Literal["verified", "corrected", "reproduced", "contradicted", "not testable here"]


class Data(BaseModel, extra="forbid"):
    """A data set as used: number of rows and sha256 of its content."""

    name: Text
    rows: int = Field(ge=0)
    sha256: Sha256


class Backbone(BaseModel, extra="forbid"):
    """The pretrained encoder: name and sha256 of its weights."""

    name: Text
    sha256: Sha256


class Metric(BaseModel, extra="forbid"):
    """A measured value; with bounds, `interval` says what they are over."""

    value: FiniteFloat
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    n: int | None = Field(default=None, ge=0)
    unit: str | None = None
    interval: str | None = None

    @model_validator(mode="after")
    def _has_whole_interval(self) -> "Metric":
        if len({self.low is None, self.high is None, self.interval is None}) > 1:
            raise ValueError("give low, high and interval together, or none")
        if self.low is not None and self.high < self.low:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


class Outcome(BaseModel, extra="forbid"):
    """The verdict on one statement of a ledger, and why."""

    outcome: Verdict
    evidence: Text


class Hardware(BaseModel, extra="forbid"):
    """The machine of record."""

    cpu: str
    cores: int
    memory_gib: float
    accelerator: str | None
    flags: list[str]


class Results(BaseModel, extra="forbid"):
    """Everything that a notebook reports."""

    data: list[Data] = []
    backbone: Backbone | None = None
    metrics: dict[str, Metric] = {}
    costs: dict[str, FiniteFloat] = {}
    outcomes: dict[str, Outcome] = {}
    files: dict[str, Sha256] = {}


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

    Every method raises LabError for a value that the record cannot hold (NaN, infinity, blank
    text) and for a name used before.

    Args:
        out: the run's folder; "" (interactive, tests) stands for a fresh temporary folder.
    """

    def __init__(self, out: str | Path):
        if not out:
            out = tempfile.mkdtemp(prefix="gliznet-")
            print(f"No run folder was given: results of this session go to {out}")
        self.out = Path(out)
        self._path = self.out / "report.json"
        self._report = Report()
        # Written now, so that the runner sees where close() was forgotten.
        write_atomic(self._path, self._report.model_dump_json())

    def data(self, name: str, *, rows: int, sha256: str) -> None:
        """Report a data set that the results depend on."""
        if any(known.name == name for known in self._report.data):
            raise LabError(f"data set {name!r} is reported twice")
        self._report.data.append(Data(name=name, rows=rows, sha256=sha256))

    def backbone(self, name: str, sha256: str) -> None:
        """Report the pretrained encoder by name and sha256 of its weights."""
        self._report.backbone = Backbone(name=name, sha256=sha256)

    def metric(self, name: str, value: float, **details: Any) -> None:
        """Report a metric; `details` are further fields of `Metric`: low, high, interval, n, unit.

        Raises LabError also for bounds that are incomplete or in the wrong order.
        """
        self._add("metrics", name, {"value": value, **details})

    def cost(self, name: str, value: float | int) -> None:
        """Report a cost, its unit in the name (`tokens_per_second`)."""
        self._add("costs", name, value)

    def outcome(self, ledger_id: str, outcome: str, *, evidence: str) -> None:
        """Report the verdict (one of `Verdict`) on a ledger entry."""
        self._add("outcomes", ledger_id, {"outcome": outcome, "evidence": evidence})

    @property
    def outcomes(self) -> dict[str, tuple[str, str]]:
        """Outcome and evidence so far, by ledger id."""
        return {k: (v.outcome, v.evidence) for k, v in self._report.outcomes.items()}

    def file(self, path: str | Path) -> None:
        """Make a file in the run's folder part of the evidence: its sha256 is checked for ever."""
        path, out = Path(path).resolve(), self.out.resolve()
        if not path.is_relative_to(out):
            raise LabError(f"{path} is not in the run's folder {self.out}; write it there")
        self._report.files[path.relative_to(out).as_posix()] = file_sha256(path)

    def predictions(self, frame: pd.DataFrame, name: str) -> Path:
        """Write a table to `out`/predictions/`name`.parquet, part of the evidence; its path."""
        path = self.out / "predictions" / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        predictions.write(frame, path)
        self.file(path)
        return path

    def close(self) -> None:
        """Write report.json; the notebook's last statement."""
        self._report.complete = True
        self._report.peak_memory_mib = _peak_memory_mib()
        write_atomic(self._path, self._report.model_dump_json(indent=2) + "\n")

    def _add(self, field: str, name: str, value: Any) -> None:
        known = getattr(self._report, field)
        if name in known:
            raise LabError(f"{field}: {name!r} is reported twice")
        try:
            known |= getattr(Results.model_validate({field: {name: value}}), field)
        except ValidationError as error:
            raise LabError(f"{field}: {name!r}: {error}") from error


def load(profile: str, root: Path | None = None) -> dict[str, Record]:
    """Return the records that exist for the entries of `profile`, by entry key, in its order.

    Raises LabError for a record that cannot be read.
    """
    root = root or find_root()
    found = {entry.key: read_record(entry, root) for entry in load_profile(profile, root)}
    return {key: record for key, record in found.items() if record}


def read_record(entry: Entry, root: Path) -> Record | None:
    """Return the record of `entry`, or None if there is none. Raises LabError if unreadable."""
    path = root / entry.record
    if not path.is_file():
        return None
    try:
        return Record.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise LabError(f"{entry.record} cannot be read: {error}") from error


def sha256(content: str) -> str:
    """Return the hexadecimal sha256 of a string as UTF-8."""
    return hashlib.sha256(content.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the hexadecimal sha256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomic(path: Path, text: str) -> bool:
    """Write `text` unless it is there already, so that dates change only with content; say whether.

    A reader finds the old file or the new, never a part.
    """
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    temporary.replace(path)
    return True


def _peak_memory_mib() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    # VmHWM, because ru_maxrss starts at the parent's size on Linux.
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
