"""The README's generated blocks: times of the two commands, and the results table.

python -m gliznet.lab.readme            writes the blocks from results/
python -m gliznet.lab.readme --time     first measures the commands in a fresh clone
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from gliznet.evaluation import mean_over_seeds
from gliznet.lab import ledger, records
from gliznet.lab.profiles import find_root
from gliznet.lab.run import hardware
from gliznet.lab.tables import interval, published

COMMANDS = {"first": ["make", "book"], "again": ["make", "book"], "test": ["make", "test"]}
TIMES = "results/times.json"


def measure(root: Path) -> None:
    """Runs `make book` twice and `make test` in a fresh clone and stores how long they took.

    `mathematics` is the part of the first call that executed the chapters of the equations.

    Raises CalledProcessError when a command fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder, "gliznet")
        subprocess.run(["git", "clone", "-q", str(root), str(clone)], check=True)
        seconds = {}
        for name, command in COMMANDS.items():
            started = time.monotonic()
            subprocess.run(command, cwd=clone, check=True)
            seconds[name] = round(time.monotonic() - started)
        chapters = {entry.chapter for entry in ledger.equations(clone)}
        executed = records.load("embedded", clone)
        seconds["mathematics"] = round(sum(executed[c].wall_seconds for c in chapters))
    found = {"seconds": seconds, "hardware": hardware().model_dump()}
    (root / TIMES).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def times_block(root: Path) -> str:
    """What the commands took on the machine of record."""
    path = root / TIMES
    if not path.is_file():
        return "The commands have not been timed yet."
    found = json.loads(path.read_text(encoding="utf-8"))
    minutes = {name: f"{seconds / 60:.1f}" for name, seconds in found["seconds"].items()}
    machine = found["hardware"]
    return (
        f"On {machine['cores']} cores ({machine['cpu']}), installation included, `make book` took "
        f"{minutes['first']} minutes ({minutes['mathematics']} of them for the chapters of the "
        f"mathematics), the second call {found['seconds']['again']} seconds, and `make test` "
        f"{minutes['test']} minutes."
    )


def results_block(profile: str = "bench") -> str:
    """Mean macro F1 of the ten sets: our models by record, others as printed."""
    rows = []
    for wording in ("readable", "published"):
        means: dict[str, list[float]] = {}
        for key, record in records.load(profile).items():
            if metric := record.metrics.get(f"macro_f1/{wording}/mean"):
                name = key.split("/")[1].rsplit("-s", 1)[0]
                means.setdefault(name, []).append(metric.value)
        for name, values in means.items():
            if len(values) > 1:
                estimate = mean_over_seeds(values)
                value = interval(estimate.value, estimate.low, estimate.high)
            else:
                value = f"{values[0]:.3f}"
            rows.append((f"{name}, MiniLM-L6, {wording} labels", str(len(values)), value))
    if not rows:
        rows.append(("ours, MiniLM-L6", "0", "not run with this version of the code"))
    card = published("gliznet_card")
    printed = card[(card["revision"] == "card-2") & (card["quantity"] == "macro_f1")]
    for _, row in printed[printed["dataset"] == "average"].iterrows():
        rows.append((f"{row['model']}, as its card prints it", "", row["value"]))
    table = pd.DataFrame(rows, columns=["model", "runs", "mean macro F1 of ten sets"])
    lines = ["| " + " | ".join(table.columns) + " |", "|---|---|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in table.itertuples(index=False)]
    note = (
        "Several runs: mean over seeds with a 95 % interval over seeds. The printed rows have "
        "larger backbones and other training data; see the benchmark chapter."
    )
    return "\n".join([*lines, "", note])


def fill(text: str, blocks: dict[str, str]) -> str:
    """Replaces what stands between the markers of each block."""
    for name, block in blocks.items():
        pattern = rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)"
        text = re.sub(pattern, lambda m, b=block: f"{m[1]}{b}\n{m[2]}", text, flags=re.DOTALL)
    return text


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="gliznet.lab.readme", description=__doc__)
    parser.add_argument("--time", action="store_true", help="measure the commands first")
    root = find_root()
    if parser.parse_args(arguments).time:
        measure(root)
    readme = root / "README.md"
    blocks = {"times": times_block(root), "results": results_block()}
    text = fill(readme.read_text(encoding="utf-8"), blocks)
    readme.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
