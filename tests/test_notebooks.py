"""The sources of the notebooks and the profiles that run them; test_book.py executes them."""

from pathlib import Path

import jupytext
import pytest

from gliznet.lab import notebooks
from gliznet.lab.profiles import load_profile

ROOT = Path(__file__).parents[1]
SOURCES = {
    path.stem: jupytext.read(path, fmt="py:percent")
    for path in sorted((ROOT / "notebooks").glob("*.py"))
}
PROFILES = sorted(path.stem for path in (ROOT / "notebooks" / "profiles").glob("*.yaml"))


def test_smoke_profile_holds_every_notebook_and_no_parameters():
    entries = load_profile("smoke", ROOT)
    assert sorted(e.notebook for e in entries) == list(SOURCES)
    assert all(not e.parameters and e.id is None for e in entries)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_entry_gives_parameters_that_its_notebook_takes(profile):
    for entry in load_profile(profile, ROOT):
        notebooks.resolve_parameters(SOURCES[entry.notebook], entry)


@pytest.mark.parametrize("name", SOURCES)
def test_source_is_percent_with_a_kernel(name):
    found = SOURCES[name]
    assert found.metadata["kernelspec"]["name"] == "python3"
    tagged = [c for c in found.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
