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

import papermill
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from gliznet.lab import LabError, freshness, notebooks
from gliznet.lab.profiles import Entry, find_root, load_profile
from gliznet.lab.records import Hardware, Record, Report, sha256, write_atomic

PACKAGES = ("torch", "transformers", "datasets", "scikit-learn", "numpy", "gliznet")
FLAGS = {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "bf16"}


def run_profile(
    entries: list[Entry],
    root: Path,
    force: bool = False,
    fingerprint: freshness.Fingerprint | None = None,
) -> None:
    """Bring entries of one profile up to date, in order; `force` runs what is fresh from scratch.

    Raises LabError at the first entry that cannot run or fails. Every entry's parameters are
    checked before the first one is executed.
    """
    for entry in entries:
        notebooks.resolve_parameters(notebooks.read_source(entry, root), entry)
    for number, entry in enumerate(entries, start=1):
        print(f"[{number}/{len(entries)}] {entry.key} … ", end="", flush=True)
        reasons = freshness.entry_status(entry, root, fingerprint)
        if reasons or force:
            discard = force or reasons != [freshness.NO_RECORD]
            print(f"{run_entry(entry, root, discard):.0f} s", flush=True)
            sync(entry, root)
        else:
            print("fresh, prose updated" if sync(entry, root) else "fresh, skipped")


def run_entry(entry: Entry, root: Path, discard: bool = False) -> float:
    """Execute one entry and store its notebook and record; return the wall time in seconds.

    What an interrupted run of the same inputs left in the run's folder stays, so that training can
    resume; `discard` starts from nothing. Raises LabError when the notebook fails.
    """
    source = notebooks.read_source(entry, root)
    needs = freshness.needs_hashes(entry, root)
    if missing := [need for need, digest in needs.items() if digest is None]:
        raise LabError(f"{entry.key} needs {', '.join(missing)}, not yet run; run without --only")
    inputs = {
        "parameters": notebooks.resolve_parameters(source, entry),
        "needs": needs,
        "code_hash": freshness.code_hash(source),
        "package_hash": freshness.package_hash(source, root),
    }
    # Without this mark nobody takes what is left in the folder for an interrupted run.
    mark, reported = (root / entry.folder / name for name in (".inputs", "report.json"))
    digest = sha256(json.dumps(inputs, sort_keys=True))
    if discard or not mark.is_file() or mark.read_text() != digest:
        # A checkpoint of other inputs must never be resumed. The record goes first: where it
        # exists the rest of the run is whole.
        (root / entry.record).unlink(missing_ok=True)
        (root / entry.executed).unlink(missing_ok=True)
        shutil.rmtree(root / entry.folder, ignore_errors=True)
        write_atomic(mark, digest)
    reported.unlink(missing_ok=True)
    started = datetime.datetime.now(datetime.UTC).date().isoformat()
    begin = time.monotonic()
    executed = _execute(entry, root, source)
    seconds = time.monotonic() - begin
    notebook = notebooks.scrub(notebooks.compose(source, executed, entry.notebook), root)
    if wrong := notebooks.problems(notebook):
        raise LabError(f"{entry.key}: " + "\n".join(wrong))
    report = Report(complete=True)  # of a notebook that has nothing to report
    if reported.is_file():
        report = Report.model_validate_json(reported.read_bytes())
    if not report.complete:
        raise LabError(f"{entry.key}: end the notebook with report.close()")
    installed = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
    versions = {"python": platform.python_version()} | {p: installed.get(p) for p in PACKAGES}
    record = Record(
        profile=entry.profile,
        notebook=entry.notebook,
        id=entry.id,
        **inputs,
        **report.model_dump(exclude={"complete"}),
        versions=versions,
        hardware=hardware(),
        git_commit=_output("git", "-C", str(root), "rev-parse", "HEAD"),
        started=started,
        wall_seconds=round(seconds, 1),
    )
    write_atomic(root / entry.executed, notebooks.to_text(notebook))
    text = json.dumps(notebooks.scrub(record.model_dump(mode="json"), root), indent=2)
    write_atomic(root / entry.record, text + "\n")
    mark.unlink()
    reported.unlink(missing_ok=True)
    return seconds


def sync(entry: Entry, root: Path) -> bool:
    """Re-flow the source's prose around the stored outputs, unless code cells changed, and copy a
    chapter to where the book looks; say whether the prose changed."""
    source = notebooks.read_source(entry, root)
    executed = notebooks.read_executed(entry, root)
    if executed is None:
        return False
    changed = False
    if notebooks.code_cells(source) == notebooks.code_cells(executed):
        text = notebooks.to_text(notebooks.compose(source, executed, entry.notebook))
        changed = write_atomic(root / entry.executed, text)
    if entry.page:
        write_atomic(root / entry.page, (root / entry.executed).read_text(encoding="utf-8"))
    return changed


def select(entries: list[Entry], only: Iterable[str]) -> list[Entry]:
    """Return the entries named by key or notebook, all when `only` is empty.

    Raises LabError for a name that fits none.
    """
    names = set(only)
    chosen = [entry for entry in entries if not names or names & {entry.key, entry.notebook}]
    if unknown := names - {name for entry in chosen for name in (entry.key, entry.notebook)}:
        known = ", ".join(entry.key for entry in entries)
        raise LabError(f"--only {' '.join(sorted(unknown))}: no such entry; entries: {known}")
    return chosen


def main(arguments: list[str] | None = None) -> int:
    """Command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="gliznet.lab.run", description=__doc__.split("\n")[0])
    parser.add_argument("--profile", required=True, help="name in notebooks/profiles")
    parser.add_argument("--only", nargs="+", default=[], help="entry keys or notebooks")
    parser.add_argument("--force", action="store_true", help="run also what is fresh")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--list", action="store_true", help="print the entries and stop")
    mode.add_argument("--check", action="store_true", help="print what is not fresh; exit 1 if any")
    mode.add_argument("--render-only", action="store_true", help="sync prose, run nothing")
    options = parser.parse_args(arguments)
    from gliznet.lab.fingerprints import fingerprint

    try:
        root = find_root()
        entries = select(load_profile(options.profile, root), options.only)
        if options.list:
            for entry in entries:
                print(entry.key, *(f"← {need}" for need in entry.needs))
        elif options.check or options.render_only:
            found = freshness.status(options.profile, root, fingerprint)
            stale = [f"{key}: {reason}" for key, reasons in found.items() for reason in reasons]
            print(*stale, sep="\n", end="\n" if stale else "")
            if options.check:
                return int(bool(stale))
            for entry in entries:
                sync(entry, root)
        else:
            run_profile(entries, root, options.force, fingerprint)
    except LabError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the next call resumes here", file=sys.stderr)
        return 130
    return 0


def hardware() -> Hardware:
    """What machine this is."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    found = dict(re.findall(r"^(model name|flags|Features)\s*: (.+)", text, re.MULTILINE))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # An empty list of visible devices hides the GPUs from the notebook.
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    gpu = None if hidden else _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return Hardware(
        cpu=found.get("model name") or platform.processor() or platform.machine(),
        cores=os.cpu_count() or 1,
        memory_gib=round(memory / 2**30, 1),
        accelerator=gpu,
        flags=sorted(FLAGS & set((found.get("flags") or found.get("Features", "")).split())),
    )


def _execute(entry: Entry, root: Path, source: NotebookNode) -> NotebookNode:
    """Run the notebook with papermill in a fresh kernel; return it as executed.

    Raises LabError with the traceback when a cell or the kernel fails.
    """
    # The kernel inherits the environment.
    os.environ |= {"PYTHONHASHSEED": "0", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    given = {**entry.parameters, "out": entry.folder.as_posix(), "profile": entry.profile}
    with tempfile.TemporaryDirectory(prefix="gliznet-") as folder:
        # Sockets in a private folder: no TCP port that others on the machine could read, and no
        # name that two runs could share.
        sockets = {"transport": "ipc", "ip": f"{folder}/kernel"}
        try:
            return papermill.execute_notebook(
                source,
                None,
                parameters=given,
                kernel_name="python3",
                language="python",
                cwd=root,
                progress_bar=False,
                # What one cell prints is one output, however timing splits it.
                coalesce_streams=True,
                config=Config(KernelManager=sockets),
            )
        except (PapermillExecutionError, DeadKernelError) as error:
            raise LabError(f"{entry.key} failed: {error}") from error


def _output(*command: str) -> str | None:
    """Return what a program prints, or None when it is not there or fails."""
    try:
        text = subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return text.strip() or None


if __name__ == "__main__":
    sys.exit(main())
