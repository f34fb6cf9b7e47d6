# Fans the runs of a profile out over local cores or a cluster:
#   snakemake --config profile=embedded --cores 8
#   snakemake --config profile=bench --executor slurm --jobs 20
# The runner decides what is fresh. Snakemake only orders the entries, so its outputs are marks:
# it deletes a job's outputs before the job starts, and a record must outlive a needless job.
import sys
from pathlib import Path

from gliznet.lab.freshness import entry_status
from gliznet.lab.profiles import find_root, load_profile

PROFILE = config.get("profile", "embedded")
ROOT = find_root()
ENTRIES = load_profile(PROFILE, ROOT)


def mark(key):
    return f".snakemake/gliznet/{PROFILE}/{key}.done"


# Not fresh, or behind an entry that is not.
pending = set()
for entry in ENTRIES:
    if entry_status(entry, ROOT) or pending & set(entry.needs):
        pending.add(entry.key)
        # A mark left by an interrupted call says nothing about the entry as it is now.
        Path(mark(entry.key)).unlink(missing_ok=True)


rule all:
    input:
        [mark(entry.key) for entry in ENTRIES if entry.key in pending],


for entry in ENTRIES:

    rule:
        name:
            f"run_{ENTRIES.index(entry):03d}"
        input:
            [mark(need) for need in entry.needs if need in pending],
        output:
            temp(touch(mark(entry.key))),
        params:
            key=entry.key,
            python=sys.executable,
        threads: config.get("threads", 1)
        message:
            f"{entry.key} -> {entry.record}"
        shell:
            "OMP_NUM_THREADS={threads} {params.python:q} -m gliznet.lab.run"
            " --profile {PROFILE:q} --only {params.key:q}"
