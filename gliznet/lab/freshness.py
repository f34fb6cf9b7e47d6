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
DATA_SUFFIXES = {".yaml", ".yml", ".json", ".jsonl", ".csv", ".parquet", ".gz"}

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
        counts = path.suffix == ".py" or path.suffix in DATA_SUFFIXES
        if counts and path.is_file() and path.relative_to(package).parts[0] not in EXCLUDED:
            stat = path.stat()
            digest = _file_digest(path, stat.st_mtime_ns, stat.st_size)
            lines.append(f"{path.relative_to(package).as_posix()} {digest}")
    return sha256("\n".join(lines))


def code_hash(source) -> str:
    """Return the sha256 of a notebook's code cells."""
    return sha256("\0".join(notebooks.code_cells(source)))


def needs_hashes(entry: Entry, root: Path) -> dict[str, str | None]:
    """Return the result hash of each needed record, None where there is no record."""
    entries = {other.key: other for other in load_profile(entry.profile, root)}
    records = {need: read_record(entries[need], root) for need in entry.needs}
    return {need: record and record.result_hash() for need, record in records.items()}


def stale_reasons(
    entry: Entry, record: Record, root: Path, fingerprint: Fingerprint | None = None
) -> list[str]:
    """Return why the stored run of `entry` is out of date; an empty list when it is fresh.

    Args:
        entry: the entry as the profile says now.
        record: what is stored.
        root: the repository.
        fingerprint: gives the sha256 of local data sets; without it data are not compared.
    """
    source = notebooks.read_source(entry, root)
    executed = notebooks.read_executed(entry, root)
    reasons = []
    if record.code_hash != code_hash(source):
        reasons.append("code cells of the notebook changed")
    if record.package_hash != package_hash(root):
        reasons.append("package changed")
    now = notebooks.resolve_parameters(source, entry)
    for name in sorted(now.keys() | record.parameters.keys()):
        if (then := record.parameters.get(name)) != now.get(name):
            reasons.append(f"parameter {name}: {then!r} then, {now.get(name)!r} now")
    needs = needs_hashes(entry, root)
    for need in sorted(needs.keys() | record.needs.keys()):
        if need not in record.needs or need not in needs:
            reasons.append(f"list of needs changed: {need}")
        elif record.needs[need] != needs[need]:
            reasons.append(f"results of {need} changed" if needs[need] else f"{need}: {NO_RECORD}")
    for name, digest in record.files.items():
        path = root / entry.folder / name
        if not path.is_file() or file_sha256(path) != digest:
            reasons.append(f"file {name} {'changed' if path.is_file() else 'is missing'}")
    for data in record.data if fingerprint else ():
        if (found := fingerprint(data.name)) is not None and found != data.sha256:
            reasons.append(f"data set {data.name} changed")
    if executed is None:
        return [*reasons, "executed notebook is missing"]
    if notebooks.code_cells(executed) != notebooks.code_cells(source):
        reasons.append("code cells of the executed notebook differ from the source")
    return reasons + notebooks.problems(executed)


def entry_status(entry: Entry, root: Path, fingerprint: Fingerprint | None = None) -> list[str]:
    """Return why `entry` is not fresh: [NO_RECORD], or the reasons that make its record stale."""
    try:
        record = read_record(entry, root)
        return stale_reasons(entry, record, root, fingerprint) if record else [NO_RECORD]
    except LabError as error:
        return [str(error)]


def status(
    profile: str, root: Path, fingerprint: Fingerprint | None = None
) -> dict[str, list[str]]:
    """Return the entry status of every entry of `profile`, and of results that it does not list."""
    entries = load_profile(profile, root)
    found = {entry.key: entry_status(entry, root, fingerprint) for entry in entries}
    listed = {root / entry.record for entry in entries}
    results = root / "results" / profile
    stored = [*results.glob("runs/*/*/record.json"), *results.glob("notebooks/*.record.json")]
    for path in sorted(set(stored) - listed):
        found[path.relative_to(root).as_posix()] = ["the profile lists no such entry; remove it"]
    return found


@cache
def _file_digest(path: Path, mtime_ns: int, size: int) -> str:
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
            if name == "body" and _has_docstring(node):
                value = value[1:]
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


def _has_docstring(node: ast.AST) -> bool:
    """Say whether a module, class or function starts with a docstring."""
    holders = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    return isinstance(node, holders) and ast.get_docstring(node, clean=False) is not None
