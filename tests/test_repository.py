"""Files at the root: citation metadata, licence, ignored paths, the README's promises."""

import ast
import re
import runpy
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[1]

PERSON = {
    "type": "object",
    "anyOf": [{"required": ["name"]}, {"required": ["family-names", "given-names"]}],
    "properties": {
        key: {"type": "string", "minLength": 1}
        for key in ("name", "family-names", "given-names", "orcid", "affiliation", "website")
    },
    "additionalProperties": False,
}
REFERENCE = {
    "type": "object",
    "required": ["type", "title", "authors"],
    "properties": {
        "type": {"enum": ["article", "software", "conference-paper", "data", "generic"]},
        "title": {"type": "string", "minLength": 1},
        "authors": {"type": "array", "minItems": 1, "items": PERSON},
        "year": {"type": "integer"},
        **{key: {"type": "string"} for key in ("notes", "doi", "url", "journal")},
    },
    "additionalProperties": False,
}
CFF = {
    # The part of the Citation File Format 1.2.0 that this file may use.
    "type": "object",
    "required": ["cff-version", "message", "title", "authors"],
    "properties": {
        "cff-version": {"const": "1.2.0"},
        "type": {"enum": ["software", "dataset"]},
        "authors": {"type": "array", "minItems": 1, "items": PERSON},
        "keywords": {"type": "array", "minItems": 1, "uniqueItems": True},
        "license": {"const": "Apache-2.0"},
        "references": {"type": "array", "items": REFERENCE},
        "preferred-citation": REFERENCE,
        "date-released": {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$"},
        **{
            key: {"type": "string", "minLength": 1}
            for key in ("message", "title", "abstract", "version", "doi", "url", "repository-code")
        },
    },
    "additionalProperties": False,
}


def citation() -> dict:
    return yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_citation_file_is_valid():
    jsonschema.validate(citation(), CFF)


@pytest.mark.parametrize(
    "change",
    [{"autors": []}, {"authors": [{"given-names": "A"}]}, {"title": ""}, {"cff-version": 1.2}],
)
def test_schema_refuses_planted_faults(change):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**citation(), **change}, CFF)


def test_citation_version_is_the_packages():
    tree = ast.parse((ROOT / "gliznet" / "__init__.py").read_text(encoding="utf-8"))
    assigned = {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    }
    assert citation()["version"] == assigned["__version__"]


def test_licence_is_the_whole_apache_licence():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    for part in ("Version 2.0, January 2004", "9. Accepting Warranty", "END OF TERMS", "APPENDIX"):
        assert part in text
    assert len(text.splitlines()) > 195


def test_readme_has_each_marked_block_once():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("times", "results"):
        assert len(re.findall(rf"<!-- {name}:begin -->[\s\S]*?<!-- {name}:end -->", text)) == 1


def test_readme_names_only_what_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    made_by_runs = {"results/bench/"}
    for path in re.findall(r"^\| `([^`]+/)` \|", text, flags=re.MULTILINE):
        assert path in made_by_runs or (ROOT / path).is_dir(), path
    targets = set(re.findall(r"\bmake (\w+)", text))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {"book", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"make {target}"


def test_overview_picture_is_what_its_script_draws():
    figures = ROOT / "book" / "figures"
    drawn = runpy.run_path(str(figures / "overview.py"))["draw"]()
    assert (figures / "overview.svg").read_text(encoding="utf-8") == drawn
