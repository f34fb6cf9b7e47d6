"""Every notebook runs with its own parameters cell, which is the smoke profile."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest

from gliznet.lab import notebooks
from gliznet.lab.profiles import load_profile

ROOT = Path(__file__).parents[1]
NBMAKE = [
    sys.executable,
    "-m",
    "pytest",
    "--nbmake",
    "--nbmake-timeout=240",
    "-q",
    "-c",
    os.devnull,
]
SOURCES = sorted((ROOT / "notebooks").glob("*.py"))


def test_smoke_profile_holds_every_notebook_and_no_parameters():
    entries = load_profile("smoke", ROOT)
    assert sorted(e.notebook for e in entries) == [s.stem for s in SOURCES]
    assert all(not e.parameters and e.id is None for e in entries)


def test_fresh_conversions_run_under_nbmake(tmp_path):
    # nbmake runs a notebook in its own folder; sources and profiles make that folder a repository.
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    for source in SOURCES:
        nbformat.write(jupytext.read(source), tmp_path / f"{source.stem}.ipynb")
    done = subprocess.run(
        [*NBMAKE, "-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


@pytest.mark.parametrize("profile", ["smoke", "embedded", "bench", "paper"])
def test_every_entry_gives_parameters_that_its_notebook_takes(profile):
    for entry in load_profile(profile, ROOT):
        notebooks.resolve_parameters(notebooks.read_source(entry, ROOT), entry)


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_source_is_percent_with_a_kernel(source):
    found = jupytext.read(source)
    assert found.metadata["kernelspec"]["name"] == "python3"
    tagged = [c for c in found.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1


def test_a_failing_notebook_would_be_seen(tmp_path):
    bad = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 == 2")])
    nbformat.write(bad, tmp_path / "bad.ipynb")
    done = subprocess.run(
        [*NBMAKE, f"--rootdir={tmp_path}", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
