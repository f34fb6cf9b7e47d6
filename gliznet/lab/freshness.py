"""Freshness: is a stored result still what the checkout would produce?

Content is compared, never dates or commits, so a fresh clone comes to the same answer.
"""

import ast
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from nbformat import NotebookNode

from gliznet.lab import LabError, notebooks
from gliznet.lab.profiles import Entry, load_profile
from gliznet.lab.records import Record, file_sha256, read_record, sha256

# What cannot change a result: editing plumbing must not void days of runs. Every record has the
# fingerprints of the data sets it read, texts and labels, so their registry does not count.
EXCLUDED = {"gliznet", "gliznet.lab", "gliznet.cli", "gliznet.costs", "gliznet.data/registry.yaml"}
SUFFIXES = {".yaml", ".yml", ".json", ".jsonl", ".csv", ".parquet", ".gz"}

HOLDERS = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef  # of docstrings
NO_RECORD = "no record"

# Returns the sha256 of a data set by name, or None where it is not available.
Fingerprint = Callable[[str], str | None]


def package_hash(source: NotebookNode, root: Path) -> str:
    """Return the sha256 of what a notebook runs of gliznet, so that nothing else voids its runs.

    That is every module that its code cells import, directly or through other modules, and the
    data files that lie beside them. Comments, formatting and docstrings do not count.
    """
    modules = _modules(root)
    todo = list(_imports("\n".join(notebooks.code_cells(source)), modules))
    used: set[str] = set()
    while todo:
        name = todo.pop()
        if name not in used and not _excluded(name):
            used.add(name)
            todo += _imports(modules[name].read_text(encoding="utf-8"), modules)
    files = {name: modules[name] for name in used}
    packages = {path.parent: name for name, path in modules.items() if path.stem == "__init__"}
    folders = {modules[name].parent for name in used}
    for path in (root / "gliznet").rglob("*"):
        if path.suffix in SUFFIXES:
            folder = next(parent for parent in path.parents if parent in packages)
            name = f"{packages[folder]}/{path.relative_to(folder).as_posix()}"
            if folder in folders and not _excluded(name):
                files[name] = path
    return sha256("\n".join(f"{n} {_file_digest(p)}" for n, p in sorted(files.items())))


def code_hash(source: NotebookNode) -> str:
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
    if record.package_hash != package_hash(source, root):
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


def _modules(root: Path) -> dict[str, Path]:
    """Return the modules of gliznet by their dotted names; a package is its `__init__`."""
    found = {}
    for path in (root / "gliznet").rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _imports(code: str, modules: dict[str, Path]) -> Iterator[str]:
    """Yield the modules of gliznet that code imports, at the top or inside a function."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            names = {alias.name for alias in node.names}
            yield node.module
            yield from (name for n in names if (name := f"{node.module}.{n}") in modules)
            if node.module == "gliznet":
                yield from _exported(names, modules)


def _exported(names: set[str], modules: dict[str, Path]) -> Iterator[str]:
    """Yield the modules that `gliznet` itself takes `names` from."""
    for node in ast.parse(modules["gliznet"].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and names & {alias.name for alias in node.names}:
            yield node.module


def _excluded(name: str) -> bool:
    return name in EXCLUDED or name.startswith("gliznet.lab.")


def _file_digest(path: Path) -> str:
    stat = path.stat()
    return _digest(path, stat.st_mtime_ns, stat.st_size)


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
