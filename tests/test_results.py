"""The committed evidence is current: code, package, parameters and data of every run."""

from pathlib import Path

import pytest

from gliznet.lab import freshness, records
from gliznet.lab.fingerprints import fingerprint
from gliznet.lab.profiles import load_profile

ROOT = Path(__file__).parents[1]
RECORDED = [
    e
    for profile in ("recipe", "bench")
    for e in load_profile(profile, ROOT)
    if (ROOT / e.record).is_file()
]


@pytest.mark.no_cover  # hashes every source of the training mix
@pytest.mark.parametrize("entry", RECORDED, ids=lambda e: f"{e.profile}/{e.key}")
def test_committed_run_is_fresh(entry):
    assert freshness.entry_status(entry, ROOT, fingerprint) == []


@pytest.mark.parametrize("entry", RECORDED, ids=lambda e: f"{e.profile}/{e.key}")
def test_intervals_contain_their_values(entry):
    for name, metric in records.read_record(entry, ROOT).metrics.items():
        if metric.low is not None:
            assert metric.low <= metric.value <= metric.high, name


def test_macro_f1_of_the_records_follows_from_the_predictions():
    """Recomputed with scikit-learn from the stored logits, without the package's own metric."""
    import numpy as np
    import pandas as pd
    from sklearn.metrics import f1_score

    checked = 0
    for entry in RECORDED:
        if entry.notebook != "evaluate":
            continue
        record = records.read_record(entry, ROOT)
        for path in sorted((ROOT / entry.folder / "predictions").glob("*-readable.parquet")):
            table = pd.read_parquet(path)
            logits = np.stack(table["logits"].to_numpy())
            found = f1_score(
                table["truth"],
                logits.argmax(axis=1),
                labels=range(logits.shape[1]),
                average="macro",
                zero_division=0,
            )
            stored = record.metrics[f"macro_f1/readable/{path.stem.removesuffix('-readable')}"]
            # Logits are stored in half precision, which may turn a few near ties.
            assert found == pytest.approx(stored.value, abs=0.005), path
            checked += 1
    if not checked:
        pytest.skip("results/bench holds no evaluation run")


def test_results_stay_small():
    tracked = [p for p in (ROOT / "results" / "bench").rglob("*") if p.is_file()]
    tracked = [p for p in tracked if "checkpoints" not in p.parts and p.suffix != ".safetensors"]
    assert sum(p.stat().st_size for p in tracked) < 60 * 2**20
    notebooks = [p for p in tracked if p.suffix == ".ipynb"]
    assert all(p.stat().st_size < 2**20 for p in notebooks)
