"""Ledgers: the statements of the sources that notebooks must judge, and who judged them."""

import importlib
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import Literal

import pandas as pd
import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError, model_validator

from gliznet.lab import LabError
from gliznet.lab.records import Record, Text

FILES = ("equations.yaml", "claims.yaml")


class LedgerEntry(BaseModel, extra="allow"):
    """One statement: where it stands and what it says. Further fields are kept."""

    id: Text
    statement: Text
    source: Text


class Equation(LedgerEntry, extra="forbid"):
    """One entry of equations.yaml.

    `latex` is the formula as the source means it; `equation` the label, without `eq-`, of the
    chapter's equation that treats it; `code` what implements it, as `module:name`. An entry that
    is corrected says what is `printed`, what is `right` and why (`proof`); its chapter reports the
    metric `effect/ID`, a number that the error changes.
    """

    kind: Literal[
        "definition",
        "identity",
        "gradient",
        "inequality",
        "limit",
        "count",
        "complexity",
        "statement",
    ]
    chapter: Text
    latex: str = ""
    equation: str = ""
    code: str = ""
    printed: str = ""
    right: str = ""
    proof: str = ""

    @model_validator(mode="after")
    def _whole_correction(self) -> "Equation":
        parts = [bool(x) for x in (self.printed, self.right, self.proof)]
        if any(parts) and not all(parts):
            raise ValueError(f"{self.id}: a correction needs printed, right and proof")
        return self

    def implementation(self) -> object | None:
        """The object that `code` names; raises ImportError or AttributeError if there is none."""
        if not self.code:
            return None
        module, _, name = self.code.partition(":")
        return reduce(getattr, name.split("."), importlib.import_module(module))


def equations(root: Path) -> list[Equation]:
    """Return the entries of equations.yaml. Raises ValidationError for a malformed one."""
    content = (root / "book" / "ledger" / FILES[0]).read_text(encoding="utf-8")
    return TypeAdapter(list[Equation]).validate_python(yaml.safe_load(content))


def verdicts(records: Mapping[str, Record]) -> dict[str, tuple[str, str]]:
    """Return outcome and evidence by ledger id."""
    return {
        ledger_id: (outcome.outcome, outcome.evidence)
        for record in records.values()
        for ledger_id, outcome in record.outcomes.items()
    }


def judged(outcomes: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """The table at the end of a chapter: what became of its statements, linked to the index."""
    rows = {
        f'<a href="equations.html#entry-{name}">{name}</a>': {
            "outcome": outcome,
            "evidence": evidence.replace("|", r"\|"),
        }
        for name, (outcome, evidence) in outcomes.items()
    }
    table = pd.DataFrame(rows).T
    table.index.name = "statement"
    return table


def load(root: Path) -> list[LedgerEntry]:
    """Return the entries of both ledgers below `root`/book/ledger.

    Raises LabError for a missing or malformed file and for an id used twice.
    """
    entries: list[LedgerEntry] = []
    for name in FILES:
        path = root / "book" / "ledger" / name
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            entries += TypeAdapter(list[LedgerEntry]).validate_python(content or [])
        except (OSError, yaml.YAMLError, ValidationError) as error:
            raise LabError(f"book/ledger/{name}: {error}") from error
    ids = [entry.id for entry in entries]
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        raise LabError(f"ledger ids used twice: {', '.join(twice)}")
    return entries


def check(entries: Iterable[LedgerEntry], records: Mapping[str, Record]) -> list[str]:
    """Return what is wrong, one sentence each: an entry without outcome, an outcome without entry,
    and records that judge the same entry differently."""
    known = {entry.id for entry in entries}
    judged: dict[str, dict[str, str]] = {}
    for key, record in records.items():
        for ledger_id, outcome in record.outcomes.items():
            judged.setdefault(ledger_id, {})[key] = outcome.outcome
    problems = [f"{i}: no notebook records an outcome" for i in sorted(known - judged.keys())]
    problems += [f"{i}: an outcome, but no ledger entry" for i in sorted(judged.keys() - known)]
    for ledger_id, verdicts in judged.items():
        if len(set(verdicts.values())) > 1:
            problems.append(f"{ledger_id}: notebooks disagree: {verdicts}")
    return problems
