"""The README's code runs as printed, but for the name of the checkpoint."""

import json
import re
from pathlib import Path

import pytest

from gliznet.backbones import TINY, load_or_build
from gliznet.lab.profiles import load_profile
from gliznet.lab.readme import TIMES, fill, results_block, times_block

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHECKPOINT = "results/embedded/runs/train/math-s1/model"


def test_every_code_block_of_the_readme_runs(tmp_path, capsys):
    model, tokenizer = load_or_build("", TINY, "math", tmp_path / "tiny", 128)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 4 and CHECKPOINT in blocks[0]
    space: dict = {}
    for block in blocks:
        exec(block.replace(CHECKPOINT, str(tmp_path)), space)
    printed = capsys.readouterr().out
    for word in ("astronomy", "finance", "My parcel never came.", "second line 0"):
        assert word in printed


def test_the_checkpoint_of_the_readme_is_what_make_book_leaves():
    entries = {e.folder / "model" for e in load_profile("embedded", ROOT) if e.notebook == "train"}
    assert Path(CHECKPOINT) in entries


def test_generated_blocks_are_current():
    blocks = {"times": times_block(ROOT), "results": results_block()}
    assert fill(README, blocks) == README


@pytest.mark.parametrize(
    ("command", "limit"), [("first", 900), ("again", 60), ("mathematics", 360)]
)
def test_the_commands_keep_their_budget_on_the_machine_of_record(command, limit):
    if not (ROOT / TIMES).is_file():
        pytest.skip("not timed yet: python -m gliznet.lab.readme --time")
    assert json.loads((ROOT / TIMES).read_text())["seconds"][command] <= limit


def test_fill_replaces_only_between_markers():
    text = "a\n<!-- x:begin -->\nold\n<!-- x:end -->\nb"
    assert fill(text, {"x": "new"}) == "a\n<!-- x:begin -->\nnew\n<!-- x:end -->\nb"
    assert fill(text, {"y": "new"}) == text


def test_auto_classes_know_gliznet(tmp_path):
    from transformers import AutoConfig, AutoModel

    model, _ = load_or_build("", TINY, "card", tmp_path / "tiny", 128)
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).model_type == "gliznet"
    assert type(AutoModel.from_pretrained(tmp_path)) is type(model)


@pytest.mark.parametrize("path", ["book/inputs.md", "gliznet/data/hardset_mini/README.md"])
def test_documents_that_the_readme_and_the_package_name_exist(path):
    assert (ROOT / path).is_file()
