"""Profiles: which notebooks run, in which order, with which parameters.

A profile is `notebooks/profiles/<name>.yaml`. An entry with an `id` is a run (one parameter set of
an experiment); an entry without one is a chapter of the book. An entry with a `matrix` stands for
one run per combination of the matrix's values.
"""

import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gliznet.lab import LabError

# Names become folder names and notebook cell ids, so they stay plain and short.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,59}")
PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Entry:
    """One notebook with one parameter set. Every path is relative to the repository root."""

    profile: str
    notebook: str
    id: str | None = None
    chapter: bool = True
    needs: tuple[str, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """`notebook/id` of a run, `notebook` of a chapter."""
        return f"{self.notebook}/{self.id}" if self.id else self.notebook

    @property
    def source(self) -> Path:
        """The jupytext source."""
        return Path("notebooks", f"{self.notebook}.py")

    @property
    def results(self) -> Path:
        """The folder of the whole profile."""
        return Path("results", self.profile)

    @property
    def folder(self) -> Path:
        """The folder that the notebook gets as `out`: checkpoints, predictions, report."""
        if self.id:
            return self.results / "runs" / self.notebook / self.id
        return self.results / "chapters" / self.notebook

    @property
    def executed(self) -> Path:
        """The executed notebook."""
        if self.id:
            return self.folder / "notebook.ipynb"
        return self.results / "notebooks" / f"{self.notebook}.ipynb"

    @property
    def record(self) -> Path:
        """The record; it is written last, so where it exists the run is complete."""
        if self.id:
            return self.folder / "record.json"
        return self.results / "notebooks" / f"{self.notebook}.record.json"

    @property
    def page(self) -> Path | None:
        """Where the book finds the executed notebook; None for a run that is no chapter."""
        return self.results / "notebooks" / f"{self.notebook}.ipynb" if self.chapter else None


class _Line(BaseModel):
    """One item of `entries` as written in the file."""

    model_config = ConfigDict(extra="forbid")

    notebook: str
    id: str | None = None
    chapter: bool = False
    needs: list[str] = Field(default_factory=list)
    parameters: dict[str, Any] = Field(default_factory=dict)
    matrix: dict[str, list[Any]] = Field(default_factory=dict)


class _File(BaseModel):
    """A profile file."""

    model_config = ConfigDict(extra="forbid")

    description: str
    entries: list[_Line]


def find_root(start: Path | None = None) -> Path:
    """Return the nearest folder at or above `start` (default: here) that holds notebooks/profiles.

    Raises LabError when there is none.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "notebooks" / "profiles").is_dir():
            return folder
    raise LabError(f"{start} is not inside the repository: no notebooks/profiles at or above it")


def load_profile(name: str, root: Path) -> list[Entry]:
    """Read, expand and check the profile `name` of the repository at `root`.

    Returns the entries in the order of execution. Raises LabError for an unknown profile, field or
    notebook, a duplicate key, and a need that is not an earlier entry.
    """
    path = root / "notebooks" / "profiles" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
        raise LabError(f"unknown profile {name!r}; profiles: {known}")
    try:
        file = _File.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValidationError) as error:
        raise LabError(f"{path.relative_to(root)}: {error}") from error
    entries = [entry for line in file.entries for entry in _expand(name, line)]
    _check(entries, path.relative_to(root), root)
    return entries


def _expand(profile: str, line: _Line) -> list[Entry]:
    """Return one entry per combination of the matrix (one entry without a matrix)."""
    if line.matrix and line.id is None:
        raise LabError(f"{line.notebook}: a matrix needs an id such as '{{seed}}'")
    if clash := line.matrix.keys() & line.parameters.keys():
        raise LabError(f"{line.notebook}: {sorted(clash)} in both matrix and parameters")
    entries = []
    for values in itertools.product(*line.matrix.values()):
        cell = dict(zip(line.matrix, values, strict=True))
        fill = _filler(line.notebook, cell)
        given = {k: fill(v) if line.matrix else v for k, v in line.parameters.items()}
        entries.append(
            Entry(
                profile=profile,
                notebook=line.notebook,
                id=fill(line.id),
                chapter=line.chapter or line.id is None,
                # A template may name the same need for several cells' values: keep it once.
                needs=tuple(dict.fromkeys(fill(need) for need in line.needs)),
                parameters={**given, **cell},
            )
        )
    return entries


def _filler(notebook: str, cell: dict[str, Any]):
    """Return a function that puts the values of `cell` for `{name}` in strings, at any depth."""

    def value_of(match: re.Match) -> str:
        if match[1] not in cell:
            raise LabError(f"{notebook}: {match[0]} names no key of the matrix {sorted(cell)}")
        return str(cell[match[1]])

    def fill(value: Any) -> Any:
        if isinstance(value, str):
            return PLACEHOLDER.sub(value_of, value)
        if isinstance(value, list):
            return [fill(item) for item in value]
        return value

    return fill


def _check(entries: list[Entry], path: Path, root: Path) -> None:
    """Raise LabError at the first entry that is wrong in itself or beside the earlier ones."""
    seen: set[str] = set()
    pages: dict[str, str] = {}
    for entry in entries:
        for name in filter(None, (entry.notebook, entry.id)):
            if not NAME.fullmatch(name):
                raise LabError(f"{path}: {name!r} is no plain name (letters, digits, _ . -)")
        if not (root / entry.source).is_file():
            raise LabError(f"{path}: unknown notebook {entry.notebook!r}: no {entry.source}")
        if entry.key in seen:
            raise LabError(f"{path}: {entry.key!r} occurs twice; give each run its own id")
        if entry.chapter and entry.notebook in pages:
            raise LabError(
                f"{path}: {pages[entry.notebook]!r} and {entry.key!r} are both the chapter "
                f"{entry.notebook!r}; keep one"
            )
        for need in entry.needs:
            if need not in seen:
                raise LabError(
                    f"{path}: {entry.key!r} needs {need!r}, which is no earlier entry; "
                    f"earlier: {', '.join(sorted(seen)) or 'none'}"
                )
        seen.add(entry.key)
        if entry.chapter:
            pages[entry.notebook] = entry.key
