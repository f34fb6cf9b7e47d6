"""Sequence construction (math §2): `[CLS] text [SEP] l₁ [LAB] l₂ [LAB] …` and its label mask."""

from collections.abc import Iterable, Mapping, Set
from itertools import chain
from os import PathLike
from typing import Any

import torch
from transformers import AddedToken, AutoTokenizer, BatchEncoding, PreTrainedTokenizerBase

from gliznet.config import LAB_TOKEN

DEFAULT_MAX_LENGTH = 512
_NO_LIMIT = 100_000  # transformers writes 10³⁰ where a tokenizer states no limit


class WindowError(ValueError):
    """The labels leave no room for the text in the window."""


class GliZNETTokenizer:
    """Wraps any Hugging Face tokenizer and builds GliZNet's sequence.

    A literal `[LAB]`, `[SEP]` or `[CLS]` in a text or label is data, never a control token.

    Args:
        tokenizer: a fast Hugging Face tokenizer. `[LAB]` is added to it if it is not there.
        max_length: window in tokens; default the tokenizer's own limit, or 512 if it has none.

    Raises:
        ValueError: the tokenizer has no start, separator or padding token, or is not a fast one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None):
        if not tokenizer.is_fast:
            raise ValueError(
                f"{type(tokenizer).__name__} is a slow tokenizer, which cannot read control "
                "tokens in a text as plain text: load the fast one"
            )
        cls_id, sep_id = tokenizer.cls_token_id, tokenizer.sep_token_id
        if cls_id is None or sep_id is None or tokenizer.pad_token_id is None:
            raise ValueError(
                f"{type(tokenizer).__name__} has cls_token {tokenizer.cls_token!r}, sep_token "
                f"{tokenizer.sep_token!r}, pad_token {tokenizer.pad_token!r}: all three are needed"
            )
        tokenizer.add_tokens(
            [AddedToken(LAB_TOKEN, special=True, normalized=False)], special_tokens=True
        )
        self._own_limit = tokenizer.model_max_length
        if max_length is None:
            max_length = self._own_limit if self._own_limit < _NO_LIMIT else DEFAULT_MAX_LENGTH
        if max_length < 5:
            raise ValueError(f"max_length is {max_length}: the shortest sequence has 5 tokens")
        self._check_window(max_length)
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.cls_token_id: int = cls_id
        self.sep_token_id: int = sep_id
        self.pad_token_id: int = tokenizer.pad_token_id
        self.lab_token_id: int = tokenizer.convert_tokens_to_ids(LAB_TOKEN)
        # A SentencePiece vocabulary holds the control tokens as pieces, which the model itself
        # finds in a text. Their characters, one by one, stand in for them.
        model = tokenizer.backend_tokenizer.model
        self._spelled_out = {
            i: [piece.id for character in token.content for piece in model.tokenize(character)]
            for i, token in tokenizer.added_tokens_decoder.items()
            if token.special and i != tokenizer.unk_token_id
        }

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | PathLike, max_length: int | None = None
    ) -> "GliZNETTokenizer":
        """Loads a saved GliZNet tokenizer, or the tokenizer of a bare backbone."""
        return cls(AutoTokenizer.from_pretrained(name_or_path, use_fast=True), max_length)

    def save_pretrained(self, folder: str | PathLike) -> None:
        """Writes the wrapped tokenizer with `[LAB]`. The window of a training run is no part of it:
        a checkpoint opens with the backbone's own limit."""
        self.tokenizer.save_pretrained(folder)

    def __len__(self) -> int:
        return len(self.tokenizer)

    @property
    def control_token_ids(self) -> tuple[int, int, int]:
        """Ids of `[CLS]`, `[SEP]` and `[LAB]`."""
        return self.cls_token_id, self.sep_token_id, self.lab_token_id

    def __call__(
        self,
        texts: str | Iterable[str],
        labels: Iterable[str] | Iterable[Iterable[str]],
        max_length: int | None = None,
    ) -> BatchEncoding:
        """Builds one padded batch.

        Labels are never dropped: the end of the text is, and `truncated_tokens` says by how much.

        Args:
            texts: one text or B texts. The empty text is allowed: its sequence has no text token.
            labels: one candidate set for all texts, or one set per text.
            max_length: window in tokens for this call; default `self.max_length`.

        Returns:
            input_ids, attention_mask and lmask, each `(B, L)` int64; truncated_tokens `(B,)` int64.
            `lmask` is j on the tokens of label j = 1…K and 0 on text, control tokens (`[LAB]`
            included) and padding (math §2.2).

        Raises:
            TypeError: a text or label is not a string.
            ValueError: no texts, no labels, a blank or duplicate label, a label without any token,
                or as many label sets as texts where they are given per text.
            WindowError: the labels leave no room for the text; names the pipeline option
                `max_labels_per_pass` that splits the label set.
        """
        texts, label_sets = check_inputs(texts, labels)
        window = self.max_length if max_length is None else max_length
        self._check_window(window)
        unique = list(dict.fromkeys(label for labels in label_sets for label in labels))
        label_ids = dict(zip(unique, self._encode(unique), strict=True))
        for label, ids in label_ids.items():
            if not ids:
                raise ValueError(f"label {label!r} has no token in this vocabulary: rephrase it")

        sequences: list[list[int]] = []
        masks: list[list[int]] = []
        truncated: list[int] = []
        for text_ids, labels in zip(self._encode(texts), label_sets, strict=True):
            tail: list[int] = []
            tail_mask: list[int] = []
            for j, label in enumerate(labels, start=1):
                ids = label_ids[label]
                tail += [*ids, self.lab_token_id]
                tail_mask += [j] * len(ids) + [0]
            room = window - 2 - len(tail)
            if room < min(1, len(text_ids)):
                longest = max(labels, key=lambda label: len(label_ids[label]))
                raise WindowError(
                    f"{len(labels)} labels take {len(tail)} of the window's {window} tokens (the "
                    f"longest, {longest[:60]!r}, takes {len(label_ids[longest])}) and leave no "
                    "room for [CLS], [SEP] and the text: split the label set with the pipeline "
                    "option max_labels_per_pass, shorten the labels or raise max_length"
                )
            kept = text_ids[:room]
            truncated.append(len(text_ids) - len(kept))
            sequences.append([self.cls_token_id, *kept, self.sep_token_id, *tail])
            masks.append([0] * (len(kept) + 2) + tail_mask)

        return BatchEncoding(
            {
                "input_ids": _pad(sequences, self.pad_token_id),
                "attention_mask": _pad([[1] * len(s) for s in sequences], 0),
                "lmask": _pad(masks, 0),
                "truncated_tokens": torch.tensor(truncated),
            }
        )

    def _check_window(self, max_length: int) -> None:
        if self._own_limit < _NO_LIMIT and max_length > self._own_limit:
            raise ValueError(
                f"max_length is {max_length} but the tokenizer allows {self._own_limit}"
            )

    def count_tokens(self, texts: Iterable[str]) -> list[int]:
        """Number of tokens of each string, without control tokens."""
        return [len(ids) for ids in self._encode(list(texts))]

    def _encode(self, strings: list[str]) -> list[list[int]]:
        encoded = self.tokenizer(
            strings,
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        if not self._spelled_out.keys().isdisjoint(chain.from_iterable(encoded)):
            encoded = [
                [part for i in ids for part in self._spelled_out.get(i, (i,))] for ids in encoded
            ]
        return encoded


def check_inputs(
    texts: str | Iterable[str],
    labels: Iterable[str] | Iterable[Iterable[str]],
    first: int = 0,
) -> tuple[list[str], list[list[str]]]:
    """Returns texts and one candidate set per text, or raises what `GliZNETTokenizer` documents.
    Messages count texts from `first`."""
    texts = [texts] if isinstance(texts, str) else _listed("texts", texts)
    if not texts:
        raise ValueError("no text was given: pass at least one")
    for i, text in enumerate(texts, start=first):
        _check_string("text", i, text)
    labels = _listed("labels", labels)
    per_text = bool(labels) and all(
        isinstance(entry, Iterable) and not isinstance(entry, str | bytes) for entry in labels
    )
    if not per_text:
        check_labels(labels)
        return texts, [labels] * len(texts)
    if len(labels) != len(texts):
        raise ValueError(f"{len(labels)} label sets for {len(texts)} texts: give one set per text")
    return texts, [check_labels(entry) for entry in labels]


def check_labels(labels: Iterable[str]) -> list[str]:
    """Returns the candidate set as a list; raises on an empty one, and on a label that is no
    string, blank or repeated."""
    labels = _listed("labels", labels)
    if not labels:
        raise ValueError("no label was given: a candidate set needs at least one")
    seen: set[str] = set()
    for j, label in enumerate(labels):
        _check_string("label", j, label)
        if not label.strip():
            raise ValueError(f"label {j} is {label!r}: a label must not be blank")
        if label in seen:
            raise ValueError(f"label {j}, {label!r}, occurs twice: remove the duplicate")
        seen.add(label)
    return labels


def _listed(name: str, values: Any) -> list:
    # The order of a set or of a mapping's keys is not the caller's.
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | Set | Mapping):
        raise TypeError(f"{name} is {values!r} ({type(values).__name__}): pass a list of strings")
    return list(values)


def _check_string(name: str, position: int, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(
            f"{name} {position} is {value!r} ({type(value).__name__}): {name}s must be str"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} {position} holds the lone surrogate {value[error.start]!r} at character "
            f"{error.start}, which is no Unicode text: decode it with errors='replace'"
        ) from None


def _pad(rows: list[list[int]], value: int) -> torch.Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])
