"""Prose: no typed results, every citation resolves, tables of settings agree with the code."""

import ast
import re
from functools import cache
from pathlib import Path

import jupytext
import pytest
import yaml
from pybtex.database import parse_file

ROOT = Path(__file__).parents[1]

CONSTANTS = {
    "Python 3.11": "the oldest supported version; the Makefile checks it",
    "15 minutes": "the limit of `make book`, a requirement and no measurement",
    "10 minutes": "the limit of `make test`, a requirement and no measurement",
    "Apache License 2.0": "the name of a licence",
    "CC-BY-4.0": "the name of a licence",
    "95 %": "the level of every interval, chosen and not measured",
}
"""Phrases that look like results and are none, each with the reason."""

TRAINING_SETTINGS = {"learning_rate", "lr", "weight_decay", "warmup_steps", "threshold"}
"""Settings that are no field of `GliZNetConfig`."""

UNIT = (
    r"(?:ms|s|sec|seconds?|min|minutes?|h|hours?|days?|[kMGT]i?B|[MG]?FLOPs?|"
    r"(?:tokens|texts|examples|rows|labels)(?:/s| per second))"
)
NUMBER = r"\d+(?:[.,]\d+)*(?:e[-+]?\d+)?"
RESULT = re.compile(
    rf"(?<![\w.§])(?:\d+\.\d+|\.\d+|\d+(?:\.\d+)?e[-+]?\d+|{NUMBER}\s?(?:%|\\%|percent\b|×|x\b"
    rf"|times (?:as|more|less|faster|slower|larger|smaller)|-?fold\b|{UNIT}(?![\w/])))"
    r"|\b(?:two|three|four|five|six|seven|eight|nine|ten|hundred)-?fold\b|\btwice as\b",
    re.IGNORECASE,
)
METRIC_IN_MATH = re.compile(r"F_?\{?1|acc|AP|MRR|speed", re.IGNORECASE)
CODE_BLOCKS = {"math", "code", "code-block", "code-cell", "bibliography", "mermaid", "glue:math"}
CITE = re.compile(r"\{cite(?::\w+)?\}`([^`]+)`")


def config_fields() -> set[str]:
    """Names of the arguments of `GliZNetConfig`, read without importing it."""
    tree = ast.parse((ROOT / "gliznet" / "config.py").read_text(encoding="utf-8"))
    inits = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    ]
    return {argument.arg for argument in inits[0].args.args} - {"self"}


SETTINGS = config_fields() | TRAINING_SETTINGS


def bare_results(markdown: str) -> list[str]:
    """Result-like numbers of a Markdown text that are no setting, constant or pasted value.

    A setting stands in inline code with its name (`margin=0.5`), or on a line that names its field
    in inline code, or in an equation. Comments, code blocks, roles and link targets do not count.
    """
    found = []
    for line in _prose_lines(markdown):
        for phrase in CONSTANTS:
            line = re.sub(rf"(?<![\w.]){re.escape(phrase)}(?![\w.]*\d)", " ", line)
        line = re.sub(r"\{[\w:.+-]+\}(`+)(?:.+?)\1", " ", line)
        line = re.sub(r"https?://[^\s)>]+|\]\([^)]*\)", " ", line)
        line = re.sub(r"§+\s?\d+(?:\.\d+)*", " ", line)
        spans = [m[2] for m in re.finditer(r"(`+)(.+?)\1", line)]
        names_setting = any(
            re.match(r"\w+", s) and re.match(r"\w+", s)[0] in SETTINGS for s in spans
        )
        line = re.sub(r"(`+)(.+?)\1", lambda m, ok=names_setting: " " if ok else f" {m[2]} ", line)
        line = re.sub(r"(\$+)(.+?)\1", _open_math, line)
        found += [m[0].strip() for m in RESULT.finditer(line)]
    return found


def _open_math(match: re.Match) -> str:
    body = match[2]
    is_result = not re.search(r"[A-Za-z]", body) or METRIC_IN_MATH.search(body)
    return f" {body} " if is_result else " "


def _prose_lines(markdown: str) -> list[str]:
    """The lines a reader sees as prose; bodies of admonitions, figures and tables included."""
    markdown = re.sub(r"\A---\n.*?\n---\n", "", markdown, flags=re.DOTALL)
    markdown = re.sub(r"<!-- (\w+):begin -->.*?<!-- \1:end -->", "", markdown, flags=re.DOTALL)
    markdown = re.sub(r"<!--.*?-->", "", markdown, flags=re.DOTALL)
    markdown = re.sub(r"\$\$.*?\$\$", "", markdown, flags=re.DOTALL)
    lines, fences = [], []
    for line in markdown.splitlines():
        mark = re.match(r"\s*(`{3,}|~{3,})\s*(?:\{([\w:.-]+)\})?(.*)", line)
        if mark and fences and not (mark[2] or mark[3]) and mark[1] >= fences[-1][0]:
            fences.pop()
        elif any(is_code for _, is_code in fences):
            continue
        elif mark:
            fences.append((mark[1], mark[2] is None or mark[2] in CODE_BLOCKS))
            lines.append(mark[3] if mark[2] else "")
        elif not re.match(r"\s*:(?!alt:|caption:)[\w-]+:|%", line):
            lines.append(line)
    return lines


def notebook_prose(path: Path) -> str:
    """Markdown cells, figure captions and alternative texts of a py:percent notebook."""
    parts = []
    for cell in jupytext.read(path, fmt="py:percent").cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        shown = cell.metadata.get("mystnb", {})
        parts += [shown.get("figure", {}).get("caption", ""), shown.get("image", {}).get("alt", "")]
    return "\n\n".join(parts)


@cache
def pages() -> dict[str, str]:
    """Every prose source by its path: pages, notebooks, README."""
    files = [ROOT / "README.md", *sorted((ROOT / "book").glob("*.md"))]
    texts = {path: path.read_text(encoding="utf-8") for path in files}
    texts |= {path: notebook_prose(path) for path in sorted((ROOT / "notebooks").glob("*.py"))}
    return {path.relative_to(ROOT).as_posix(): text for path, text in texts.items()}


@pytest.mark.parametrize("page", pages())
def test_no_typed_result(page):
    found = bare_results(pages()[page])
    assert not found, (
        f"{page} states {found}: glue a result from a record, or write a setting as code beside "
        "the name of its field; a true constant goes into CONSTANTS with its reason"
    )


@pytest.mark.parametrize(
    "text",
    [
        "Macro F1 is 0.62 on average.",
        "Macro F1 is .62 on average.",
        "It reaches 62 % of the labels.",
        "It reaches 62.0% of the labels.",
        "It is 7x faster.",
        "It is 7.5 × faster.",
        "It is 7 times faster.",
        "A tenfold gain.",
        "This is twice as fast.",
        "Training took 42 s.",
        "It reads 900 texts/s.",
        "Macro F1 is `0.62`.",
        "The score is `f1=0.62`.",
        "The mean is $0.62$.",
        "The mean is $F_1 = 0.62$.",
        "The loss is 3e-4 in the end.",
        "| AG News | 0.71 |",
        "```{note}\nWe find 0.62.\n```",
        ":::{figure} x.png\n:alt: a bar at 0.62\n\nCaption with 0.62.\n:::",
        "```bash\nmake book\n```\nIt took 0.62 of the time.",
        "```{note}\nfine\n```\n\n```bash\nx 0.1\n```\n\nWe find 0.62.",
        "Python 3.115 is odd.",
        "About 195 % more.",
    ],
)
def test_lint_finds_planted_results(text):
    assert bare_results(text)


@pytest.mark.parametrize(
    "text",
    [
        "See math §8.1.1 and §12.2.",
        "The threshold is `repulsion_threshold=0.3`.",
        "| Its weight | `contrastive_weight` | `1.0` | `0.5` |",
        "With $\\theta_{\\text{rep}} = 0.3$ no label repels another.",
        "Macro F1 is {glue:text}`chapters/benchmark.ipynb::bench_math_mean:.3f`.",
        "```python\nx = 0.62\n```",
        "````\n```\n0.62\n```\n````",
        "```{math}\n:label: eq-x\nx = 0.62\n```",
        "$$\nx = 0.62\n$$",
        "Needs Python 3.11 or newer.",
        "Bounds of the 95 % interval.",
        "[paper](https://example.org/2508.07662) has 10 sets and 20 labels.",
        "<!-- results:begin -->\n| x | 0.62 |\n<!-- results:end -->",
        "% a comment with 0.62",
        "The ten sets, 3 seeds, 2 cores.",
    ],
)
def test_lint_passes_settings_and_glue(text):
    assert bare_results(text) == []


def bibliography() -> set[str]:
    return set(parse_file(ROOT / "book" / "references.bib").entries)


def citations() -> dict[str, set[str]]:
    """Cited keys by page; the registry of data sets cites too."""
    cited = {
        page: {key.strip() for group in CITE.findall(text) for key in group.split(",")}
        for page, text in pages().items()
    }
    registry = ROOT / "gliznet" / "data" / "registry.yaml"
    if registry.is_file():
        cited["registry.yaml"] = set(_values(yaml.safe_load(registry.read_text()), "citation"))
    return cited


def _values(node, key):
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key and value:
                yield from value if isinstance(value, list) else [value]
            else:
                yield from _values(value, key)
    elif isinstance(node, list):
        for item in node:
            yield from _values(item, key)


def test_every_citation_resolves():
    known = bibliography()
    missing = {page: sorted(keys - known) for page, keys in citations().items() if keys - known}
    assert not missing, f"not in book/references.bib: {missing}"


def test_every_entry_is_cited():
    unused = bibliography() - set().union(*citations().values())
    assert not unused, f"cited nowhere: {sorted(unused)}: cite them or take them out"


def test_every_entry_is_complete():
    entries = parse_file(ROOT / "book" / "references.bib").entries
    assert entries
    for key, entry in entries.items():
        assert entry.persons.get("author"), f"{key} has no author"
        for field in ("title", "year"):
            assert entry.fields.get(field), f"{key} has no {field}"


def test_table_of_formulations_equals_the_presets():
    from gliznet.config import GliZNetConfig

    presets = GliZNetConfig.math(), GliZNetConfig.card()
    text = (ROOT / "book" / "method.md").read_text(encoding="utf-8")
    rows = {}
    for line in text.split(":name: tbl-formulations")[1].split(":::")[0].splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]
        if len(cells) == 5 and cells[1] in config_fields():
            rows[cells[1]] = cells[2:4]
    not_switches = {"backbone_config", "lab_token_id", "control_token_ids"}
    assert set(rows) == config_fields() - not_switches
    for field, shown in rows.items():
        for value, preset in zip(shown, presets, strict=True):
            actual = getattr(preset, field)
            if isinstance(actual, float):
                assert float(value) == pytest.approx(actual, rel=1e-4), field
            else:
                assert value == str(actual), field


def test_notation_names_exist_in_the_code():
    code = "\n".join(
        (ROOT / "gliznet" / f"{module}.py").read_text(encoding="utf-8")
        for module in ("config", "tokenizer", "layers", "model", "losses", "predictor")
    )
    names = set()
    for line in (ROOT / "book" / "notation.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            for span in re.findall(r"`([^`]+)`", line.rsplit("|", 2)[-2]):
                names |= set(re.findall(r"[A-Za-z_]\w*", span)) - {"losses", "py", "torch"}
    assert len(names) > 20
    missing = sorted(n for n in names if not re.search(rf"\b(?:log_)?{n}\b", code))
    # Parameters registered by name, and Tensor methods with the same meaning.
    assert set(missing) <= {"sigmoid"}, f"notation.md names {missing}, the code does not"
