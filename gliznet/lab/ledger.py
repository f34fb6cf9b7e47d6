"""Ledgers: the statements of the sources that notebooks must judge, and who judged them."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from gliznet.lab import LabError
from gliznet.lab.records import Record, Text

FILES = ("equations.yaml", "claims.yaml")


class LedgerEntry(BaseModel, extra="allow"):
    """One statement: where it stands and what it says. Further fields are kept."""

    id: Text
    statement: Text
    source: Text


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
