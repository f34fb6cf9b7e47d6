"""Profiles, reporter, record tables and ledgers."""

import hashlib
import json
import math
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gliznet.lab import LabError, ledger
from gliznet.lab.profiles import load_profile
from gliznet.lab.records import Outcome, Record, Reporter

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def profile(tmp_path):
    """Write a profile's entries; return a function that loads them."""

    def load(text: str):
        for name in ("train", "data"):
            path = tmp_path / "notebooks" / f"{name}.py"
            path.parent.mkdir(exist_ok=True)
            path.touch()
        path = tmp_path / "notebooks/profiles/toy.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text("description: A toy.\nentries:\n" + text)
        return load_profile("toy", tmp_path)

    return load


def test_a_matrix_stands_for_its_product(profile):
    entries = profile("""
      - {notebook: train, id: "{formulation}-s{seed}", parameters: {name: "run {seed}", lr: 0.1},
         matrix: {formulation: [math, card], seed: [1, 2]}}
      - {notebook: data, id: "{seed}", needs: ["train/math-s{seed}"], matrix: {seed: [1, 2]}}
    """)
    assert [e.key for e in entries] == [
        "train/math-s1", "train/math-s2", "train/card-s1", "train/card-s2", "data/1", "data/2",
    ]  # fmt: skip
    assert entries[2].parameters == {"name": "run 1", "lr": 0.1, "formulation": "card", "seed": 1}
    assert entries[5].needs == ("train/math-s2",)
    assert entries[0].record == Path("results/toy/runs/train/math-s1/record.json")
    assert entries[0].page is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {notebook: train}\n- {notebook: train}", "occurs twice"),
        ("- {notebook: train, id: 's{seed}', matrix: {seed: [1, 1]}}", "occurs twice"),
        ("- {notebook: trian}", "unknown notebook 'trian'"),
        ("- {notebook: train, needs: [data]}\n- {notebook: data}", "no earlier entry"),
        ("- {notebook: train, need: [data]}", "Extra inputs"),
        ("- {notebook: train, matrix: {seed: [1]}}", "needs an id"),
        ("- {notebook: train, id: '{sed}', matrix: {seed: [1]}}", "names no key of the matrix"),
        ("- {notebook: train, id: s, matrix: {a: [1]}, parameters: {a: 2}}", "in both"),
        ("- {notebook: train, id: ../../x}", "no plain name"),
        ("- {notebook: train}\n- {notebook: train, id: s, chapter: true}", "both the chapter"),
        ("- [", "toy.yaml"),
    ],
)
def test_wrong_profiles_are_refused(profile, text, message):
    with pytest.raises(LabError, match=message):
        profile(text)


def test_an_unknown_profile_names_the_known_ones(profile, tmp_path):
    profile("- {notebook: train}")
    with pytest.raises(LabError, match="unknown profile 'bnch'; profiles: toy"):
        load_profile("bnch", tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused(tmp_path, value):
    report = Reporter(tmp_path)
    with pytest.raises(LabError, match="'f1'"):
        report.metric("f1", value)
    with pytest.raises(LabError, match="bound"):
        report.metric("bound", 0.5, low=value, high=1.0, interval="x")
    with pytest.raises(LabError, match="finite"):
        report.cost("tokens_per_second", value)


def test_incomplete_intervals_and_repeats_are_refused(tmp_path):
    report = Reporter(tmp_path)
    for bounds in ({"low": 0.1}, {"low": 0.1, "high": 0.9}, {"interval": "95 %"}):
        with pytest.raises(LabError, match="together"):
            report.metric("f1", 0.5, **bounds)
    with pytest.raises(LabError, match="above high"):
        report.metric("f1", 0.5, low=0.9, high=0.1, interval="95 %")
    report.metric("f1", 0.5)
    report.outcome("a", "verified", evidence="x")
    report.cost("s", 1)
    report.data("d", rows=1, sha256="0" * 64)
    for again in (
        lambda: report.metric("f1", 0.5),
        lambda: report.outcome("a", "verified", evidence="x"),
        lambda: report.cost("s", 1),
        lambda: report.data("d", rows=1, sha256="0" * 64),
    ):
        with pytest.raises(LabError, match="twice"):
            again()
    with pytest.raises(LabError, match="proved"):
        report.outcome("b", "proved", evidence="x")
    with pytest.raises(LabError, match="evidence"):
        report.outcome("b", "verified", evidence=" ")


def test_predictions_are_stored_small_and_fingerprinted(tmp_path):
    report = Reporter(tmp_path)
    table = pd.DataFrame({"text": ["a", "b"], "score": [0.1, 0.9], "all": [[0.25, 2.0], [None]]})
    path = report.predictions(table, "toy")
    report.close()
    stored = pq.read_table(path)
    assert stored.schema.field("score").type == pa.float16()
    assert stored.schema.field("all").type.value_type == pa.float16()
    assert stored["all"].to_pylist() == [[0.25, 2.0], [None]]
    assert stored["score"].to_pylist() == pytest.approx([0.1, 0.9], abs=1e-3)
    assert pq.ParquetFile(path).metadata.row_group(0).column(1).compression == "ZSTD"
    files = json.loads((tmp_path / "report.json").read_text())["files"]
    assert files == {"predictions/toy.parquet": hashlib.sha256(path.read_bytes()).hexdigest()}
    for big in ([1e5], [[0.5, -1e5]]):
        with pytest.raises(LabError, match="float16"):
            report.predictions(pd.DataFrame({"x": big}), "big")


def test_without_a_run_folder_nothing_lands_in_the_working_tree(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    report = Reporter("")
    report.close()
    assert str(report.out) in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(LabError, match="write it there"):
        report.file(tmp_path / "x")


def _record(**outcomes: str) -> Record:
    """A record with nothing in it but outcomes."""
    judged = {k: Outcome(outcome=v, evidence="x") for k, v in outcomes.items()}
    return Record.model_construct(outcomes=judged)


def test_ledger_gaps_both_ways():
    entries = [ledger.LedgerEntry(id=i, statement="x", source="y") for i in ("m1", "m2", "m3")]
    found = {
        "a": _record(m1="verified", m3="verified"),
        "b": _record(m9="verified", m3="corrected"),
    }
    problems = ledger.check(entries, found)
    assert sorted(problem.split(":")[0] for problem in problems) == ["m2", "m3", "m9"]
    assert ledger.check(entries[:1], {"a": _record(m1="verified")}) == []


def test_ledger_files(tmp_path):
    folder = tmp_path / "book" / "ledger"
    folder.mkdir(parents=True)
    line = "- {id: m1, statement: s, source: t, section: 8}\n"
    (folder / "equations.yaml").write_text(line)
    with pytest.raises(LabError, match=r"claims\.yaml"):
        ledger.load(tmp_path)
    (folder / "claims.yaml").write_text("# none yet\n")
    assert [e.id for e in ledger.load(tmp_path)] == ["m1"]
    (folder / "claims.yaml").write_text(line)
    with pytest.raises(LabError, match="used twice: m1"):
        ledger.load(tmp_path)
    (folder / "claims.yaml").write_text("- {id: m2}\n")
    with pytest.raises(LabError, match="statement"):
        ledger.load(tmp_path)
