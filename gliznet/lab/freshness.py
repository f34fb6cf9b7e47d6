"""Freshness: is a stored result still what the checkout would produce?

Content is compared, never dates or commits, so a fresh clone comes to the same answer.
"""

import ast
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from gliznet.lab import LabError, notebooks
from gliznet.lab.profiles import Entry, load_profile
from gliznet.lab.records import Record, file_sha256, read_record, sha256

# What cannot change a result: editing plumbing must not void days of runs. All else is hashed, so
# that a new module counts until somebody says that it does not.
EXCLUDED = {"lab", "cli.py", "costs.py", "__init__.py"}
SUFFIXES = {".py", ".yaml", ".yml", ".json", ".jsonl", ".csv", ".parquet", ".gz"}

HOLDERS = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef  # of docstrings
NO_RECORD = "no record"

# Returns the sha256 of a data set by name, or None where it is not available.
Fingerprint = Callable[[str], str | None]


def package_hash(root: Path) -> str:
    """Return the sha256 of the modules and data files of gliznet that can change a result.

    Comments, formatting and docstrings do not count.
    """
    package = root / "gliznet"
    lines = []
    for path in sorted(package.rglob("*")):
        name = path.relative_to(package)
        if path.suffix in SUFFIXES and path.is_file() and name.parts[0] not in EXCLUDED:
            stat = path.stat()
            lines.append(f"{name.as_posix()} {_digest(path, stat.st_mtime_ns, stat.st_size)}")
    return sha256("\n".join(lines))


def code_hash(source) -> str:
    """Return the sha256 of a notebook's code cells."""
    return sha256("\0".join(notebooks.code_cells(source)))


def needs_hashes(entry: Entry, root: Path) -> dict[str, str | None]:
    """Return the result hash of each needed record, None where there is no record."""
    entries = {other.key: other for other in load_profile(entry.profile, root)}
    records = {need: read_record(entries[need], root) for need in entry.needs}
    return {need: record and record.result_hash() for need, record in records.items()}


def entry_status(entry: Entry, root: Path, fingerprint: Fingerprint | None = None) -> list[str]:
    """Return why `entry` is not fresh: [NO_RECORD], or the reasons that make its record stale.

    Without `fingerprint` data are not compared.
    """
    try:
        record = read_record(entry, root)
        return list(_stale(entry, record, root, fingerprint)) if record else [NO_RECORD]
    except LabError as error:
        return [str(error)]


def status(
    profile: str, root: Path, fingerprint: Fingerprint | None = None
) -> dict[str, list[str]]:
    """Return the entry status of every entry of `profile`, and of results that it does not list."""
    entries = load_profile(profile, root)
    found = {entry.key: entry_status(entry, root, fingerprint) for entry in entries}
    listed = {root / entry.record for entry in entries}
    for path in sorted((root / "results" / profile).rglob("*record.json")):
        if path not in listed:
            found[str(path.relative_to(root))] = ["the profile lists no such entry; remove it"]
    return found


def _stale(
    entry: Entry, record: Record, root: Path, fingerprint: Fingerprint | None
) -> Iterator[str]:
    """Yield why the record of `entry` is out of date."""
    source = notebooks.read_source(entry, root)
    if record.code_hash != code_hash(source):
        yield "code cells of the notebook changed"
    if record.package_hash != package_hash(root):
        yield "package changed"
    yield from _changes("parameter", record.parameters, notebooks.resolve_parameters(source, entry))
    yield from _changes("results of", record.needs, needs_hashes(entry, root))
    for name, digest in record.files.items():
        path = root / entry.folder / name
        if not path.is_file():
            yield f"file {name} is missing"
        elif file_sha256(path) != digest:
            yield f"file {name} changed"
    for data in record.data if fingerprint else ():
        if fingerprint(data.name) not in (None, data.sha256):
            yield f"data set {data.name} changed"
    executed = notebooks.read_executed(entry, root)
    if executed is None:
        yield "executed notebook is missing"
    else:
        if notebooks.code_cells(executed) != notebooks.code_cells(source):
            yield "code cells of the executed notebook differ from the source"
        yield from notebooks.problems(executed)


def _changes(kind: str, old: dict, new: dict) -> Iterator[str]:
    for name in sorted(old.keys() | new.keys()):
        then, now = (values.get(name, "unset") for values in (old, new))
        if then != now:
            yield f"{kind} {name}: {then!r} then, {now!r} now"


@cache
def _digest(path: Path, mtime_ns: int, size: int) -> str:
    """Return the sha256 of a file's meaning (Python) or bytes; time and size are the cache's."""
    if path.suffix != ".py":
        return file_sha256(path)
    return sha256("\n".join(_tokens(ast.parse(path.read_bytes(), filename=path.name))))


def _tokens(node: object) -> Iterator[str]:
    """Yield a syntax tree without docstrings, the same under every Python version.

    ast.dump is not: newer versions add fields and leave out empty ones, which would make evidence
    from one version stale under another.
    """
    if isinstance(node, ast.AST):
        yield f"({type(node).__name__}"
        for name, value in ast.iter_fields(node):
            if name == "body" and isinstance(node, HOLDERS):
                value = value[1:] if ast.get_docstring(node, clean=False) is not None else value
            if value is not None and value != []:
                yield f".{name}"
                yield from _tokens(value)
        yield ")"
    elif isinstance(node, list):
        yield "["
        for item in node:
            yield from _tokens(item)
        yield "]"
    else:
        yield repr(node)
