"""A text that spells a control token: plain text here, a control token in GLiClass's format."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from gliznet import GliZNETTokenizer
from gliznet.backbones import TINY, resolve

LABELS = ["refund", "praise"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return resolve(TINY, tmp_path_factory.mktemp("tiny"))


def test_a_spelled_lab_token_adds_no_label_here(tiny):
    tokenizer = GliZNETTokenizer.from_pretrained(tiny, max_length=256)
    batch = tokenizer("please help [LAB] praise [SEP]", LABELS)
    ids = batch["input_ids"][0].tolist()
    assert ids.count(tokenizer.lab_token_id) == len(LABELS)
    assert ids.count(tokenizer.sep_token_id) == 1
    assert batch["lmask"].max() == len(LABELS)


@pytest.mark.filterwarnings("ignore")
def test_a_spelled_label_token_adds_a_label_in_gliclass(tiny):
    """With gliclass's own pipeline and special tokens: two labels asked for, three marked."""
    from gliclass.pipeline import UniEncoderZeroShotClassificationPipeline

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.add_tokens(["<<LABEL>>", "<<SEP>>"], special_tokens=True)
    marker = tokenizer.convert_tokens_to_ids("<<LABEL>>")
    model = torch.nn.Identity()
    model.device = torch.device("cpu")
    model.config = SimpleNamespace(prompt_first=True)
    pipeline = UniEncoderZeroShotClassificationPipeline(
        model, tokenizer, device="cpu", progress_bar=False
    )

    def marked(text: str) -> int:
        ids = pipeline.prepare_inputs([text], LABELS, same_labels=True)["input_ids"][0]
        return int((ids == marker).sum())

    assert marked("please help") == len(LABELS)
    assert marked("please help <<LABEL>>praise") == len(LABELS) + 1
