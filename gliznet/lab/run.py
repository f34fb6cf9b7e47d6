"""Run a profile: execute what is not fresh, store notebooks and records, re-flow prose.

    python -m gliznet.lab.run --profile embedded

Interrupted or killed, the next call redoes only what has no complete, fresh record.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nbformat import NotebookNode
from pydantic import ValidationError

from gliznet.lab import LabError, freshness, notebooks
from gliznet.lab.profiles import Entry, find_root, load_profile
from gliznet.lab.records import Hardware, Record, Report, Results, sha256, write_atomic

PACKAGES = ("torch", "transformers", "datasets", "scikit-learn", "numpy", "gliznet")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "bf16")
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def run_profile(
    profile: str,
    root: Path,
    only: Iterable[str] = (),
    force: bool = False,
    fingerprint: freshness.Fingerprint | None = None,
) -> None:
    """Bring the entries of a profile up to date, in order, one progress line each.

    Args:
        profile: the profile's name.
        root: the repository.
        only: entry keys or notebook names; all entries when empty.
        force: run also what is fresh, from scratch.
        fingerprint: gives the sha256 of local data sets, see `freshness.stale_reasons`.

    Raises LabError at the first entry that cannot run or fails. Every entry's parameters are
    checked before the first one is executed.
    """
    entries = select(load_profile(profile, root), only)
    for entry in entries:
        notebooks.resolve_parameters(notebooks.read_source(entry, root), entry)
    for number, entry in enumerate(entries, start=1):
        print(f"[{number}/{len(entries)}] {entry.key} … ", end="", flush=True)
        reasons = freshness.entry_status(entry, root, fingerprint)
        if reasons or force:
            discard = force or reasons != [freshness.NO_RECORD]
            print(f"{run_entry(entry, root, discard):.0f} s", flush=True)
        else:
            print("fresh, prose updated" if sync_prose(entry, root) else "fresh, skipped")
        copy_page(entry, root)


def run_entry(entry: Entry, root: Path, discard: bool = False) -> float:
    """Execute one entry and store its notebook and record; return the wall time in seconds.

    What an interrupted run of the same inputs left in the run's folder stays, so that training can
    resume; `discard` starts from nothing. Raises LabError when the notebook fails.
    """
    source = notebooks.read_source(entry, root)
    parameters = notebooks.resolve_parameters(source, entry)
    needs = freshness.needs_hashes(entry, root)
    if missing := [need for need, digest in needs.items() if digest is None]:
        raise LabError(f"{entry.key} needs {', '.join(missing)}, not yet run; run without --only")
    inputs = {
        "parameters": parameters,
        "needs": needs,
        "code_hash": freshness.code_hash(source),
        "package_hash": freshness.package_hash(root),
    }
    _prepare(entry, root, inputs, discard)
    started = datetime.datetime.now(datetime.UTC).date().isoformat()
    begin = time.monotonic()
    executed = _execute(entry, root, source)
    seconds = time.monotonic() - begin
    notebook = notebooks.scrub(notebooks.compose(source, executed, entry.notebook), root)
    if found := notebooks.problems(notebook):
        raise LabError(f"{entry.key}: " + "\n".join(found))
    report = _read_report(entry, root)
    record = Record(
        profile=entry.profile,
        notebook=entry.notebook,
        id=entry.id,
        **inputs,
        **report.model_dump(include=set(Results.model_fields)),
        versions=_versions(),
        hardware=hardware(),
        git_commit=_git_commit(root),
        started=started,
        wall_seconds=round(seconds, 1),
        peak_memory_mib=report.peak_memory_mib,
    )
    write_atomic(root / entry.executed, notebooks.to_text(notebook))
    text = json.dumps(notebooks.scrub(record.model_dump(mode="json"), root), indent=2)
    write_atomic(root / entry.record, text + "\n")
    # Without this file nobody takes what is left in the folder for an interrupted run.
    _inputs_file(entry, root).unlink()
    (root / entry.folder / "report.json").unlink(missing_ok=True)
    return seconds


def render(profile: str, root: Path, fingerprint: freshness.Fingerprint | None = None) -> None:
    """Prepare the book from stored results: sync prose, copy chapters, run nothing.

    Prints what is missing or stale.
    """
    for entry in load_profile(profile, root):
        for reason in freshness.entry_status(entry, root, fingerprint):
            print(f"{entry.key}: {reason}")
        sync_prose(entry, root)
        copy_page(entry, root)


def sync_prose(entry: Entry, root: Path) -> bool:
    """Re-flow the source's prose around the stored outputs; say whether the file changed.

    A notebook whose code cells changed, or that is missing, is left alone.
    """
    source = notebooks.read_source(entry, root)
    executed = notebooks.read_executed(entry, root)
    if executed is None or notebooks.code_cells(source) != notebooks.code_cells(executed):
        return False
    text = notebooks.to_text(notebooks.compose(source, executed, entry.notebook))
    return _update(root / entry.executed, text)


def copy_page(entry: Entry, root: Path) -> None:
    """Copy the executed notebook of a run that is also a chapter to where the book looks."""
    if entry.page and entry.page != entry.executed and (root / entry.executed).is_file():
        _update(root / entry.page, (root / entry.executed).read_text(encoding="utf-8"))


def select(entries: list[Entry], only: Iterable[str]) -> list[Entry]:
    """Return the entries named by key or notebook, all when `only` is empty.

    Raises LabError for a name that fits none.
    """
    names = set(only)
    if unknown := sorted(names - {n for entry in entries for n in (entry.key, entry.notebook)}):
        known = ", ".join(entry.key for entry in entries)
        raise LabError(f"--only {' '.join(unknown)}: no such entry; entries: {known}")
    return [e for e in entries if not names or e.key in names or e.notebook in names]


def main(arguments: list[str] | None = None) -> int:
    """Command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="gliznet.lab.run", description=__doc__.split("\n")[0])
    parser.add_argument("--profile", required=True, help="name in notebooks/profiles")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="entry keys or notebooks"
    )
    parser.add_argument("--force", action="store_true", help="run also what is fresh")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--list", action="store_true", help="print the entries and stop")
    mode.add_argument("--check", action="store_true", help="print what is not fresh; exit 1 if any")
    mode.add_argument("--render-only", action="store_true", help="sync prose, run nothing")
    options = parser.parse_args(arguments)
    from gliznet.lab.fingerprints import fingerprint

    try:
        root = find_root()
        if options.list:
            for entry in select(load_profile(options.profile, root), options.only):
                print(entry.key, *(f"← {need}" for need in entry.needs))
        elif options.check:
            found = freshness.status(options.profile, root, fingerprint)
            stale = {key: reasons for key, reasons in found.items() if reasons}
            for key, reasons in stale.items():
                print(*(f"{key}: {reason}" for reason in reasons), sep="\n")
            return int(bool(stale))
        elif options.render_only:
            render(options.profile, root, fingerprint)
        else:
            run_profile(options.profile, root, options.only, options.force, fingerprint)
    except LabError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the next call resumes here", file=sys.stderr)
        return 130
    return 0


def _inputs_file(entry: Entry, root: Path) -> Path:
    return root / entry.folder / ".inputs"


def _prepare(entry: Entry, root: Path, inputs: dict[str, Any], discard: bool) -> None:
    """Leave the run's folder empty, or with what an interrupted run of the same inputs left."""
    mark = _inputs_file(entry, root)
    digest = sha256(json.dumps(inputs, sort_keys=True))
    if discard or not mark.is_file() or mark.read_text() != digest:
        # A checkpoint of other inputs must never be resumed. The record goes first: where it
        # exists the rest of the run is whole.
        (root / entry.record).unlink(missing_ok=True)
        (root / entry.executed).unlink(missing_ok=True)
        shutil.rmtree(root / entry.folder, ignore_errors=True)
        write_atomic(mark, digest)
    (root / entry.folder / "report.json").unlink(missing_ok=True)


def _execute(entry: Entry, root: Path, source: NotebookNode) -> NotebookNode:
    """Run the notebook with papermill in a fresh kernel; return it as executed.

    Raises LabError with the cell's source and the traceback when a cell or the kernel fails.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    # The kernel inherits the environment.
    os.environ |= {"PYTHONHASHSEED": "0", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    given = {**entry.parameters, "out": entry.folder.as_posix(), "profile": entry.profile}
    with tempfile.TemporaryDirectory(prefix="gliznet-") as folder:
        paths = [Path(folder, name) for name in ("source.ipynb", "executed.ipynb")]
        # From a file: papermill would store a notebook object whole in the metadata.
        paths[0].write_text(notebooks.to_text(source), encoding="utf-8")
        try:
            return papermill.execute_notebook(
                *map(str, paths),
                parameters=given,
                kernel_name="python3",
                language="python",
                cwd=str(root),
                progress_bar=False,
                # Local sockets, no TCP ports that others on the machine could read.
                config=Config(KernelManager={"transport": "ipc"}) if os.name == "posix" else None,
            )
        except PapermillExecutionError as error:
            trace = ANSI.sub("", "\n".join(error.traceback))
            raise LabError(f"{entry.key} failed in this cell:\n{error.source}\n{trace}") from error
        except DeadKernelError as error:
            raise LabError(f"{entry.key}: the kernel died (out of memory?): {error}") from error


def _read_report(entry: Entry, root: Path) -> Report:
    """Return what the notebook reported; nothing if it made no reporter."""
    path = root / entry.folder / "report.json"
    if not path.is_file():
        return Report()
    try:
        report = Report.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise LabError(f"{entry.key}: {path.name} cannot be read: {error}") from error
    if not report.complete:
        raise LabError(f"{entry.key}: end the notebook with report.close()")
    return report


def _update(path: Path, text: str) -> bool:
    """Write `text` unless it is there already, so that dates change only with content."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    write_atomic(path, text)
    return True


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def hardware() -> Hardware:
    """What machine this is."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    model = re.search(r"model name\s*:\s*(.+)", text)
    flags = re.search(r"(?:flags|Features)\s*:\s*(.+)", text)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Hardware(
        cpu=model[1] if model else platform.processor() or platform.machine(),
        cores=os.cpu_count() or 1,
        memory_gib=round(memory / 2**30, 1),
        # An empty list of visible devices hides the GPUs from the notebook.
        accelerator=None
        if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
        else _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"),
        flags=sorted(set(FLAGS) & set(flags[1].split() if flags else ())),
    )


def _git_commit(root: Path) -> str | None:
    return _output("git", "-C", str(root), "rev-parse", "HEAD")


def _output(*command: str) -> str | None:
    """Return what a program prints, or None when it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main())
