"""Profiles: which notebooks run, in which order, with which parameters.

A profile is `notebooks/profiles/<name>.yaml`. An entry with an `id` is a run (one parameter set of
an experiment); an entry without one is a chapter of the book. An entry with a `matrix` stands for
one run per combination of the matrix's values.
"""

import itertools
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from gliznet.lab import LabError

# Names become folder names and notebook cell ids, so they stay plain and short.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,59}")


class Entry(BaseModel, extra="forbid", frozen=True):
    """One notebook with one parameter set. Every path is relative to the repository root."""

    profile: str
    notebook: str
    id: str | None = None
    chapter: bool = False
    needs: tuple[str, ...] = ()
    parameters: dict[str, Any] = {}

    @property
    def key(self) -> str:
        """`notebook/id` of a run, `notebook` of a chapter."""
        return f"{self.notebook}/{self.id}" if self.id else self.notebook

    @property
    def source(self) -> Path:
        """The jupytext source."""
        return Path("notebooks", f"{self.notebook}.py")

    @property
    def folder(self) -> Path:
        """The folder that the notebook gets as `out`: checkpoints, predictions, report."""
        return Path("results", self.profile, "runs" if self.id else "chapters", self.key)

    @property
    def executed(self) -> Path:
        """The executed notebook."""
        return self.folder / "notebook.ipynb" if self.id else self._chapter

    @property
    def record(self) -> Path:
        """The record; it is written last, so where it exists the run is complete."""
        return self.folder / "record.json" if self.id else self._chapter.with_suffix(".record.json")

    @property
    def page(self) -> Path | None:
        """Where the book finds the executed notebook; None for a run that is no chapter."""
        return self._chapter if self.chapter or not self.id else None

    @property
    def _chapter(self) -> Path:
        return Path("results", self.profile, "notebooks", f"{self.notebook}.ipynb")


class _Line(BaseModel, extra="allow"):
    """One item of `entries` in the file: fields of `Entry`, and perhaps a matrix."""

    notebook: str
    parameters: dict[str, Any] = {}
    matrix: dict[str, list[Any]] = {}


class _File(BaseModel, extra="forbid"):
    description: str
    entries: list[_Line]


def find_root() -> Path:
    """Return the nearest folder at or above the working folder that holds notebooks/profiles.

    Raises LabError when there is none.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "notebooks" / "profiles").is_dir():
            return folder
    raise LabError(f"{here} is not inside the repository: no notebooks/profiles at or above it")


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
        entries = [entry for line in file.entries for entry in _expand(name, line)]
        _check(entries, root)
    except (yaml.YAMLError, ValidationError, LabError) as error:
        raise LabError(f"{path.relative_to(root)}: {error}") from error
    return entries


def _expand(profile: str, line: _Line) -> list[Entry]:
    """Return one entry per combination of the matrix (one entry without a matrix)."""
    given = {"profile": profile, **line.model_dump(exclude={"matrix"})}
    if not line.matrix:
        return [Entry(**given)]
    if "id" not in given:
        raise LabError(f"{line.notebook}: a matrix needs an id such as '{{seed}}'")
    if clash := line.matrix.keys() & line.parameters.keys():
        raise LabError(f"{line.notebook}: {sorted(clash)} in both matrix and parameters")
    entries = []
    for values in itertools.product(*line.matrix.values()):
        cell = dict(zip(line.matrix, values, strict=True))
        try:
            filled = _fill({**given, "parameters": {**line.parameters, **cell}}, cell)
        except LookupError as error:
            known = sorted(cell)
            raise LabError(
                f"{line.notebook}: {error} names no key of the matrix {known}"
            ) from error
        entries.append(Entry(**filled))
    return entries


def _fill(value: Any, cell: dict[str, Any]) -> Any:
    """Return `value` with the matrix cell's values for `{name}` in its strings, at any depth."""
    if isinstance(value, str):
        return value.format_map(cell)
    if isinstance(value, dict):
        return {key: _fill(item, cell) for key, item in value.items()}
    return [_fill(item, cell) for item in value] if isinstance(value, list) else value


def _check(entries: list[Entry], root: Path) -> None:
    """Raise LabError at the first entry that is wrong in itself or beside the earlier ones."""
    seen: set[str] = set()
    pages: dict[Path, str] = {}
    for entry in entries:
        for name in filter(None, (entry.notebook, entry.id)):
            if not NAME.fullmatch(name):
                raise LabError(f"{name!r} is no plain name (letters, digits, _ . -)")
        if not (root / entry.source).is_file():
            raise LabError(f"unknown notebook {entry.notebook!r}: no {entry.source}")
        if entry.key in seen:
            raise LabError(f"{entry.key!r} occurs twice; give each run its own id")
        for need in entry.needs:
            if need not in seen:
                known = ", ".join(sorted(seen)) or "none"
                raise LabError(
                    f"{entry.key!r} needs {need!r}, which is no earlier entry; earlier: {known}"
                )
        if entry.page and (other := pages.setdefault(entry.page, entry.key)) != entry.key:
            raise LabError(f"{other!r} and {entry.key!r} are both the chapter {entry.notebook!r}")
        seen.add(entry.key)
