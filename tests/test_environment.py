"""pyproject.toml, constraints.txt, environment.yml and the installed packages agree."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): pinned for name, pinned in pairs}


def requirements() -> list[Requirement]:
    return [
        Requirement(line)
        for line in [*PROJECT["dependencies"], *(r for extra in EXTRAS.values() for r in extra)]
    ]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_every_dependency_is_pinned_to_an_allowed_version(requirement):
    pinned = pins()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pinned, prereleases=True)


def test_constraints_hold_names_and_exact_versions_only():
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.!]*", line), line


def test_installed_versions_are_the_pinned_ones():
    different = {}
    for name, pinned in pins().items():
        try:
            found = Version(version(name)).public
        except PackageNotFoundError:
            continue
        if Version(found) != Version(pinned):
            different[name] = (found, pinned)
    assert not different


def test_conda_environment_installs_the_same():
    entries = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    python = next(e for e in entries if isinstance(e, str) and e.startswith("python="))
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(
        python.removeprefix("python=")
    )
    (pip,) = (e["pip"] for e in entries if isinstance(e, dict))
    assert pip == ["--constraint constraints.txt", f"--editable .[{','.join(sorted(EXTRAS))}]"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"-c constraints.txt -e '.[{','.join(sorted(EXTRAS))}]'" in makefile


def test_make_is_what_ci_calls():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "make test" in script
