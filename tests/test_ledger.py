"""The ledger of equations: complete, judged, and tied to the equations and checks of the book."""

import importlib
import re
from collections import Counter
from pathlib import Path

import jupytext
import pytest

from gliznet.lab import ledger, records

ROOT = Path(__file__).parents[1]
EQUATIONS = ledger.equations(ROOT)
EVIDENCE = records.load("bench", ROOT)
CHAPTERS = sorted({e.chapter for e in EQUATIONS})
THREE = {"symbolic", "autograd", "naive"}


def labels() -> dict[str, str]:
    """The notebook of every labelled equation of the chapters that judge equations."""
    found = {}
    for chapter in CHAPTERS:
        notebook = jupytext.read(ROOT / "notebooks" / f"{chapter}.py")
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                for label in re.findall(r"^:label: eq-(\S+)$", cell.source, re.M):
                    assert label not in found, f"eq-{label} is defined twice"
                    found[label] = chapter
    return found


LABELS = labels()


def record_of(chapter: str) -> records.Record:
    assert chapter in EVIDENCE, (
        f"results/bench holds no record of {chapter}: "
        f"python -m gliznet.lab.run --profile bench --only {chapter}"
    )
    return EVIDENCE[chapter]


def checks(label: str) -> set[str]:
    """The kinds of check that the committed record of its chapter holds for an equation."""
    record = record_of(LABELS[label])
    prefix = f"check/{label}/"
    names = [m.removeprefix(prefix) for m in record.metrics if m.startswith(prefix)]
    return {name.split(",")[0] for name in names}


def test_ids_are_unique_and_the_sources_all_occur():
    assert [i for i, n in Counter(e.id for e in EQUATIONS).items() if n > 1] == []
    prefixes = {e.id.split("-")[0] for e in EQUATIONS}
    assert prefixes >= {"math", "card", "gliclass", "sce"}
    sections = {int(m[1]) for e in EQUATIONS if (m := re.match(r"math-(\d+)", e.id))}
    assert sections >= set(range(2, 14))


@pytest.mark.parametrize("entry", EQUATIONS, ids=lambda e: e.id)
def test_the_code_of_an_entry_exists(entry):
    if entry.code.startswith("gliclass."):
        importlib.import_module("gliclass")
    assert entry.implementation() is not None or not entry.code


@pytest.mark.parametrize("entry", [e for e in EQUATIONS if e.equation], ids=lambda e: e.id)
def test_the_equation_of_an_entry_is_in_the_book(entry):
    assert entry.equation in LABELS


@pytest.mark.parametrize("label", LABELS)
def test_a_labelled_equation_has_an_executed_check(label):
    assert checks(label), f"eq-{label} of {LABELS[label]} has no check"


@pytest.mark.parametrize(
    "entry",
    [e for e in EQUATIONS if e.equation and e.kind in ("gradient", "identity")],
    ids=lambda e: e.id,
)
def test_a_gradient_or_identity_is_checked_three_ways(entry):
    assert checks(entry.equation) >= THREE


@pytest.mark.parametrize(
    "entry",
    [e for e in EQUATIONS if e.equation and e.kind in ("inequality", "limit")],
    ids=lambda e: e.id,
)
def test_an_inequality_or_limit_survives_a_search_for_counter_examples(entry):
    """The chapter holds the proof; the search is hypothesis's, guided and shrinking."""
    assert "hypothesis" in checks(entry.equation)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_rejects_a_wrong_formula(chapter):
    assert [m for m in record_of(chapter).metrics if m.startswith("reject/")]


def test_every_entry_has_an_outcome_and_every_outcome_an_entry():
    judged = {chapter: record_of(chapter) for chapter in CHAPTERS}
    assert ledger.check(EQUATIONS, judged) == []


@pytest.mark.parametrize("entry", EQUATIONS, ids=lambda e: e.id)
def test_a_correction_says_what_is_right_and_what_it_changes(entry):
    (verdict, evidence) = ledger.verdicts({"": record_of(entry.chapter)})[entry.id]
    assert (verdict == "corrected") == bool(entry.printed)
    assert evidence
    if verdict == "corrected":
        assert f"effect/{entry.id}" in record_of(entry.chapter).metrics
