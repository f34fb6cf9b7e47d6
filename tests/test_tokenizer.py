"""GliZNETTokenizer against a naive construction of math §2, over six kinds of subword tokenizer."""

import copy
import functools
import json
import re

import jaxtyping
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    ByT5Tokenizer,
    DebertaV2Tokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
)

from gliznet.backbones import resolve
from gliznet.config import LAB_TOKEN
from gliznet.data.corpus import hardset_mini
from gliznet.tokenizer import GliZNETTokenizer, WindowError

BERT_TOKENS = {
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "unk_token": "[UNK]",
    "mask_token": "[MASK]",
}
ROBERTA_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
LITERALS = [LAB_TOKEN, "[CLS]", "[SEP]", "[MASK]", "[PAD]", *ROBERTA_TOKENS]
LITERALS.remove("<unk>")  # an unknown-token literal may well be unknown

KINDS = [
    "wordpiece-tiny",
    "wordpiece-minilm",
    "unigram-deberta",
    "unigram-plain",
    "bpe-roberta",
    "bpe-modernbert",
]
REVERSIBLE = [kind for kind in KINDS if not kind.startswith("wordpiece")]


@functools.cache
def _corpus() -> list[str]:
    return [example.text for example in hardset_mini("train")]


@functools.cache
def _unigram() -> dict:
    """A SentencePiece-like model; as in DeBERTa-v3, control tokens are in its vocabulary."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=500,
        special_tokens=["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"],
        unk_token="[UNK]",
        initial_alphabet=list("[]<>/abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ▁"),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return json.loads(tokenizer.to_str())["model"]


@functools.cache
def _byte_level(specials: tuple[str, ...]) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return tokenizer.to_str()


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """Builds a fresh bare Hugging Face tokenizer of a kind; wrapping one changes it."""
    folder = tmp_path_factory.mktemp("backbones")

    @functools.cache
    def bare(kind: str):
        if kind == "wordpiece-tiny":
            return AutoTokenizer.from_pretrained(resolve("tiny-random", folder))
        if kind == "wordpiece-minilm":
            return AutoTokenizer.from_pretrained(resolve("minilm-l6", folder))
        if kind == "unigram-deberta":
            vocabulary = [(piece, score) for piece, score in _unigram()["vocab"]]
            return DebertaV2Tokenizer(
                vocab=vocabulary, unk_id=_unigram()["unk_id"], model_max_length=512
            )
        if kind == "unigram-plain":
            vocabulary = [(piece, score) for piece, score in _unigram()["vocab"]]
            tokenizer = Tokenizer(models.Unigram(vocabulary, _unigram()["unk_id"]))
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
            return PreTrainedTokenizerFast(
                tokenizer_object=tokenizer, model_max_length=512, **BERT_TOKENS
            )
        if kind == "bpe-roberta":
            model = json.loads(_byte_level(tuple(ROBERTA_TOKENS)))["model"]
            merges = [tuple(merge) for merge in model["merges"]]
            return RobertaTokenizer(vocab=model["vocab"], merges=merges, model_max_length=512)
        tokenizer = Tokenizer.from_str(_byte_level(tuple(BERT_TOKENS.values())))
        tokenizer.decoder = decoders.ByteLevel()
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, model_max_length=512, **BERT_TOKENS
        )

    return lambda kind: copy.deepcopy(bare(kind))


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def tiny(build) -> GliZNETTokenizer:
    return GliZNETTokenizer(build("wordpiece-tiny"))


@pytest.fixture
def unchecked():
    """Turns off the shape checks, which refuse a wrong type before the package's own check."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


def naive(bare, text: str, labels: list[str], window: int) -> tuple[list[int], list[int], int]:
    """Math §2.1 and §2.2 position by position, from a bare tokenizer that never saw `[LAB]`.

    Strings go in one at a time, so they must not spell a control token.
    """

    def plain(string: str) -> list[int]:
        return bare.convert_tokens_to_ids(bare.tokenize(string))

    lab_id = len(bare)  # the first free id
    tokens = plain(text)
    label_tokens = [plain(label) for label in labels]
    cut = 0
    while True:
        sequence, mask = [bare.cls_token_id], [0]
        for token in tokens:
            sequence.append(token)
            mask.append(0)
        sequence.append(bare.sep_token_id)
        mask.append(0)
        for number in range(len(labels)):
            for token in label_tokens[number]:
                sequence.append(token)
                mask.append(number + 1)
            sequence.append(lab_id)
            mask.append(0)
        if len(sequence) <= window:
            return sequence, mask, cut
        tokens = tokens[:-1]
        cut += 1


def rows(batch, name: str = "input_ids") -> list[list[int]]:
    """Rows of a batch without padding."""
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    return [row[:n] for row, n in zip(batch[name].tolist(), lengths, strict=True)]


def special_ids(tokenizer: GliZNETTokenizer) -> set[int]:
    """All ids with a meaning to the model, apart from the unknown token's."""
    inner = tokenizer.tokenizer
    return {*inner.all_special_ids, tokenizer.lab_token_id} - {inner.unk_token_id}


def assert_only_ours(tokenizer: GliZNETTokenizer, row: list[int], num_labels: int) -> None:
    """The row has one start, one separator, K `[LAB]`, and no other control token."""
    wanted = [tokenizer.cls_token_id, tokenizer.sep_token_id]
    wanted += [tokenizer.lab_token_id] * num_labels
    assert [i for i in row if i in special_ids(tokenizer)] == wanted
    assert row[0] == tokenizer.cls_token_id
    assert row[-1] == tokenizer.lab_token_id


TEXTS = [
    "",
    "Rain.",
    "The bank raised its rates again, and the market fell by 3 % in an hour.",
    "Ein Satz mit Umlauten: schöne Grüße!  Two  spaces,\ttab and\nnewline.",
    "مرحبا بالعالم",
    "👩‍👩‍👧 family 🏳️‍🌈 e\u0301 \u202eevil\u202c 漢字",
    "word " * 600,
]
LABELS = ["finance", "weather forecast", "a rather long label of seven words", "é", "C++"]


class TestSequence:
    @pytest.mark.parametrize("window", [40, 511, 512])
    def test_equals_the_naive_construction(self, build, kind, window):
        tokenizer = GliZNETTokenizer(build(kind))
        window = max(window, naive_length(build(kind), LABELS) + 3)
        batch = tokenizer(TEXTS, LABELS, max_length=window)
        expected = [naive(build(kind), text, LABELS, window) for text in TEXTS]
        assert rows(batch) == [sequence for sequence, _, _ in expected]
        assert rows(batch, "lmask") == [mask for _, mask, _ in expected]
        assert batch["truncated_tokens"].tolist() == [cut for _, _, cut in expected]
        assert expected[-1][2] > 0 and expected[0][2] == 0  # both cases occur

    def test_label_sets_per_text(self, build, kind):
        tokenizer = GliZNETTokenizer(build(kind))
        sets = [["finance"], LABELS, ["é", "C++"]]
        batch = tokenizer(TEXTS[1:4], sets)
        for row, mask, text, labels in zip(
            rows(batch), rows(batch, "lmask"), TEXTS[1:4], sets, strict=True
        ):
            assert (row, mask) == naive(build(kind), text, labels, 512)[:2]

    def test_padding_follows_the_sequence(self, tiny):
        batch = tiny(["Rain.", "word " * 20], ["a", "b"])
        short, long = batch["attention_mask"].sum(dim=1).tolist()
        assert long > short and batch["input_ids"].shape == (2, long)
        for name in ("input_ids", "attention_mask", "lmask"):
            assert batch[name].dtype == torch.int64
        assert set(batch["input_ids"][0, short:].tolist()) == {tiny.pad_token_id}
        assert batch["attention_mask"][0].tolist() == [1] * short + [0] * (long - short)
        assert set(batch["lmask"][0, short:].tolist()) == {0}
        assert batch["truncated_tokens"].shape == (2,)

    def test_padding_id_is_the_tokenizers(self, build):
        tokenizer = GliZNETTokenizer(build("bpe-roberta"))
        assert tokenizer.pad_token_id == 1  # unlike BERT's 0
        batch = tokenizer(["a", "a b c d e f"], ["x"])
        assert batch["input_ids"][0, -1] == 1 and batch["lmask"][0, -1] == 0

    def test_one_text_is_a_batch_of_one(self, tiny):
        one, many = tiny("Rain.", ["a"]), tiny(["Rain."], [["a"]])
        assert one["input_ids"].tolist() == many["input_ids"].tolist()

    @settings(
        max_examples=20,
        derandomize=True,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(data=st.data())
    def test_any_text_and_labels(self, build, kind, data):
        # No bracket or angle: the naive construction cannot read a literal control token.
        alphabet = st.characters(exclude_categories=["Cs"], exclude_characters="[]<>")
        text = data.draw(st.text(alphabet, max_size=60))
        labels = data.draw(
            st.lists(
                st.text(alphabet, min_size=1, max_size=12).filter(str.strip),
                min_size=1,
                max_size=5,
                unique=True,
            )
        )
        bare, tokenizer = _shared(build, kind)
        lengths = [len(bare.tokenize(label)) for label in labels]
        if 0 in lengths:
            with pytest.raises(ValueError, match="no token in this vocabulary"):
                tokenizer(text, labels)
            return
        window = data.draw(st.integers(5, 80))
        if sum(lengths) + len(labels) + 2 + bool(bare.tokenize(text)) > window:
            with pytest.raises(WindowError):
                tokenizer(text, labels, max_length=window)
            return
        batch = tokenizer(text, labels, max_length=window)
        sequence, mask, cut = naive(bare, text, labels, window)
        assert (rows(batch), rows(batch, "lmask")) == ([sequence], [mask])
        assert batch["truncated_tokens"].tolist() == [cut]

    def test_count_tokens(self, build, kind):
        bare = build(kind)
        expected = [len(bare.tokenize(text)) for text in TEXTS]
        assert GliZNETTokenizer(build(kind)).count_tokens(TEXTS) == expected


def naive_length(bare, labels: list[str]) -> int:
    return sum(len(bare.tokenize(label)) + 1 for label in labels)


@functools.cache
def _shared(build, kind: str):
    """A bare tokenizer that never saw `[LAB]`, and a wrapped one, for tests that change neither."""
    return build(kind), GliZNETTokenizer(build(kind))


class TestControlTokens:
    """Text and labels are data: they cannot spell a control token."""

    @pytest.mark.parametrize("literal", LITERALS)
    def test_literal_in_text_and_label(self, build, kind, literal):
        _, tokenizer = _shared(build, kind)
        frames = ["{0}", "a {0} b", "a{0}b", "{0}{0}", " {0} {0} ", "\n{0}."]
        strings = [frame.format(literal) for frame in frames]
        batch = tokenizer(strings, strings)
        for row in rows(batch):
            assert_only_ours(tokenizer, row, num_labels=len(strings))
        assert set(batch["lmask"][0].tolist()) == set(range(len(strings) + 1))

    @pytest.mark.parametrize("kind", REVERSIBLE)
    @pytest.mark.parametrize("literal", LITERALS)
    def test_literal_keeps_its_characters(self, build, kind, literal):
        _, tokenizer = _shared(build, kind)
        text = f"so {literal} it is"
        inside = rows(tokenizer(text, ["x"]))[0]
        inside = inside[1 : inside.index(tokenizer.sep_token_id)]
        assert spelled(tokenizer.tokenizer, inside) == text

    @pytest.mark.parametrize("literal", LITERALS[:5])
    def test_literal_is_punctuation_and_a_word_under_wordpiece(self, build, literal):
        bare, tokenizer = _shared(build, "wordpiece-minilm")
        apart = f"so [ {literal[1:-1]} ] it is"
        assert rows(tokenizer(f"so {literal} it is", ["x"])) == [naive(bare, apart, ["x"], 512)[0]]

    def test_all_at_once_among_many_labels(self, build, kind):
        _, tokenizer = _shared(build, kind)
        labels = [*LITERALS, *(2 * literal for literal in LITERALS)]
        batch = tokenizer(" ".join(LITERALS), labels)
        row, mask = rows(batch)[0], rows(batch, "lmask")[0]
        assert_only_ours(tokenizer, row, len(labels))
        assert sorted(set(mask)) == list(range(len(labels) + 1))

    def test_every_special_token_of_the_tokenizer(self, build, kind):
        _, tokenizer = _shared(build, kind)
        inner = tokenizer.tokenizer
        for content in inner.all_special_tokens:
            if content != inner.unk_token:
                row = rows(tokenizer(f"{content}{content}", [content]))[0]
                assert_only_ours(tokenizer, row, 1)

    @pytest.mark.parametrize("score", [0.0, -1.0])
    def test_lab_in_the_vocabulary_already(self, score):
        vocabulary = [(piece, s) for piece, s in _unigram()["vocab"]] + [(LAB_TOKEN, score)]
        bare = DebertaV2Tokenizer(vocab=vocabulary, unk_id=_unigram()["unk_id"])
        size = len(bare)
        tokenizer = GliZNETTokenizer(bare)
        assert len(tokenizer) == size and tokenizer.lab_token_id == size - 1
        assert_only_ours(tokenizer, rows(tokenizer("a [LAB] b", ["[LAB]"]))[0], 1)

    @settings(
        max_examples=20,
        derandomize=True,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(
        pieces=st.lists(
            st.sampled_from(
                [*LITERALS, "[", "]", "[[LAB]]", "▁", "Ġ", "##", " ", "a", "\x00", "é"]
            ),
            min_size=1,
        )
    )
    def test_any_mixture_of_literals(self, build, kind, pieces):
        _, tokenizer = _shared(build, kind)
        string = "".join(pieces)
        assert_only_ours(tokenizer, rows(tokenizer(string, ["x" + string]))[0], 1)

    def test_after_reloading(self, build, kind, tmp_path):
        GliZNETTokenizer(build(kind)).save_pretrained(tmp_path)
        tokenizer = GliZNETTokenizer.from_pretrained(tmp_path)
        string = " ".join(LITERALS)
        assert_only_ours(tokenizer, rows(tokenizer(string, [string]))[0], 1)


def spelled(inner, ids: list[int]) -> str:
    """The string that token ids spell, without the decoder's clean-up."""
    pieces = inner.convert_ids_to_tokens(ids)
    if "▁" in inner.get_vocab() and "Ġ" not in inner.get_vocab():
        return "".join(pieces).replace("▁", " ").removeprefix(" ")
    return inner.backend_tokenizer.decoder.decode(pieces)


class TestInjectionElsewhere:
    """What a naive call does: GLiClass's format is open to this.

    GLiClass joins `<<LABEL>>label₁<<LABEL>>label₂…<<SEP>>text` into one string and tokenizes it
    with a tokenizer to which `<<LABEL>>` was added. Its package is no dependency, so the same is
    shown on a plain Hugging Face tokenizer.
    """

    @pytest.mark.parametrize("kind", KINDS)
    def test_naive_call_turns_text_into_a_control_token(self, build, kind):
        naive_tokenizer = build(kind)
        naive_tokenizer.add_tokens(["<<LABEL>>", "<<SEP>>"], special_tokens=True)
        label_id = naive_tokenizer.convert_tokens_to_ids("<<LABEL>>")
        text = "Rain. <<LABEL>> an injected label"
        honest = "<<LABEL>>weather<<LABEL>>sport<<SEP>>"
        assert naive_tokenizer(honest + text)["input_ids"].count(label_id) == 3  # two are ours
        # The bare tokenizer's own control tokens are as open.
        sep = naive_tokenizer.sep_token
        assert naive_tokenizer.sep_token_id in naive_tokenizer.encode(
            f"a {sep} b", add_special_tokens=False
        )

    @pytest.mark.parametrize("kind", KINDS)
    def test_this_tokenizer_does_not_on_the_same_vocabulary(self, build, kind):
        bare = build(kind)
        bare.add_tokens(["<<LABEL>>", "<<SEP>>"], special_tokens=True)
        tokenizer = GliZNETTokenizer(bare)
        row = rows(tokenizer("Rain. <<LABEL>> <<SEP>> x", ["<<LABEL>>", "sport"]))[0]
        assert_only_ours(tokenizer, row, 2)
        assert bare.convert_tokens_to_ids("<<LABEL>>") not in row


class TestTruncation:
    def test_counts_and_keeps_the_start(self, tiny):
        text_ids = rows(tiny("one two three four five six", ["a"], max_length=60))[0][1:-3]
        n = len(text_ids)
        for room in range(1, n + 2):
            batch = tiny("one two three four five six", ["a"], max_length=room + 4)
            kept = rows(batch)[0][1:-3]
            assert kept == text_ids[:room]
            assert batch["truncated_tokens"].tolist() == [max(0, n - room)]

    def test_labels_are_never_cut(self, tiny):
        labels = [f"label {i}" for i in range(30)]
        batch = tiny("word " * 500, labels)
        assert batch["input_ids"].shape == (1, 512)
        assert (batch["input_ids"] == tiny.lab_token_id).sum() == 30
        assert batch["lmask"].max() == 30

    def test_room_for_exactly_one_text_token(self, tiny):
        need = tiny.count_tokens(["finance"])[0] + 1 + 2 + 1
        need = max(need, 5)
        batch = tiny("one two", ["finance"], max_length=need)
        assert batch["input_ids"].shape == (1, need)
        with pytest.raises(WindowError):
            tiny("one two", ["finance"], max_length=need - 1)

    def test_empty_text_needs_no_room(self, tiny):
        need = tiny.count_tokens(["weather forecast"])[0] + 3
        batch = tiny("", ["weather forecast"], max_length=need)
        assert batch["input_ids"].shape == (1, need)
        with pytest.raises(WindowError):
            tiny("", ["weather forecast"], max_length=need - 1)

    def test_window_error_has_the_numbers_and_the_option(self, tiny):
        labels = ["short", "long " * 100, "weather"]
        counts = tiny.count_tokens(labels)
        total = sum(counts) + 3
        with pytest.raises(WindowError) as error:
            tiny("a text", labels, max_length=50)
        message = str(error.value)
        for part in (
            "3 labels",
            f"take {total} of the window's 50 tokens",
            f"takes {counts[1]})",
            "'long long long",
            "max_labels_per_pass",
            "max_length",
        ):
            assert part in message
        assert len(message) < 500  # the label is abridged
        assert isinstance(error.value, ValueError)

    def test_one_label_longer_than_the_window(self, tiny):
        with pytest.raises(WindowError, match=r"1 labels take 60[0-9] of the window's 512 tokens"):
            tiny("a text", ["long " * 600])

    @pytest.mark.parametrize("kind", ["wordpiece-tiny", "unigram-deberta", "bpe-roberta"])
    def test_a_megabyte(self, build, kind):
        bare, tokenizer = _shared(build, kind)
        ten, twenty = (len(bare.tokenize("word " * n)) for n in (10, 20))
        total = ten + (200_000 - 10) * (twenty - ten) // 10
        batch = tokenizer("word " * 200_000, ["a", "b"])
        row = rows(batch)[0]
        assert len(row) == 512
        assert batch["truncated_tokens"].item() == total - (row.index(tokenizer.sep_token_id) - 1)

    @pytest.mark.parametrize("unit", ["a", "[SEP]"])
    def test_a_megabyte_without_a_space(self, build, kind, unit):
        _, tokenizer = _shared(build, kind)
        size = 1_000_000 if kind in ("wordpiece-minilm", "bpe-modernbert") else 100_000
        batch = tokenizer(unit * (size // len(unit)), ["x"])
        assert_only_ours(tokenizer, rows(batch)[0], 1)
        assert batch["input_ids"].shape[1] <= 512


class TestUnusualStrings:
    @pytest.mark.parametrize(
        "string",
        [
            "👍",
            "👩‍👩‍👧",
            "שלום עולם",
            "\u202eright to left\u202c",
            "e\u0301\u0323" * 20,
            "a\x00b",
            "ﬁ ½ Ａ",
            "\ufeffbom",
            "\U0010ffff",
            "漢字かな",
        ],
    )
    def test_text_and_label(self, build, kind, string):
        bare, tokenizer = _shared(build, kind)
        count = len(bare.tokenize(string))
        if count == 0:  # for instance a private-use character, which BERT's cleaning removes
            with pytest.raises(ValueError, match="no token in this vocabulary"):
                tokenizer(string, [string])
            batch = tokenizer(string, ["x"])
        else:
            batch = tokenizer(string, [string, "x"])
            assert (batch["lmask"] == 1).sum() == count
        assert rows(batch)[0].index(tokenizer.sep_token_id) == count + 1

    @pytest.mark.parametrize("string", ["\x00", "\u200b\u200b", "\u200e", "\ufeff"])
    def test_invisible_string(self, build, kind, string):
        """A text may vanish; a label without a token raises and says so."""
        bare, tokenizer = _shared(build, kind)
        count = len(bare.tokenize(string))
        batch = tokenizer(string, ["x"])
        assert rows(batch)[0].index(tokenizer.sep_token_id) == count + 1
        if kind.startswith("wordpiece"):
            assert count == 0
        if count:
            assert (tokenizer("a", [string])["lmask"] == 1).sum() == count
        else:
            with pytest.raises(ValueError, match=re.escape(repr(string)) + " has no token"):
                tokenizer("a", ["x", string])

    @pytest.mark.parametrize("text", ["", " ", "\n\t"])
    def test_blank_text(self, build, kind, text):
        bare, tokenizer = _shared(build, kind)
        batch = tokenizer([text], ["x"])
        assert rows(batch) == [naive(bare, text, ["x"], 512)[0]]
        assert batch["truncated_tokens"].tolist() == [0]

    @pytest.mark.parametrize("surrogate", ["\ud800", "a\udfffb", "ok " * 10 + "\ud83d"])
    def test_lone_surrogate(self, build, kind, surrogate):
        _, tokenizer = _shared(build, kind)
        with pytest.raises(ValueError, match=r"text 1 .*surrogate"):
            tokenizer(["fine", surrogate], ["x"])
        with pytest.raises(ValueError, match=r"label 1 .*surrogate"):
            tokenizer("fine", ["x", surrogate])


@pytest.mark.usefixtures("unchecked")
class TestBadInput:
    @pytest.mark.parametrize(
        ("texts", "error", "message"),
        [
            ([], ValueError, "no text was given"),
            (None, TypeError, "texts is None"),
            (5, TypeError, "texts is 5"),
            (b"bytes", TypeError, "texts is b'bytes'"),
            ([None], TypeError, "text 0 is None"),
            (["a", 3.5], TypeError, "text 1 is 3.5 .float."),
            (["a", b"b"], TypeError, "text 1 is b'b' .bytes."),
            (["a", ["b"]], TypeError, "text 1 is "),
            (["a", float("nan")], TypeError, "text 1 is nan"),
            ({"a", "b"}, TypeError, "texts is "),
        ],
    )
    def test_texts(self, tiny, texts, error, message):
        with pytest.raises(error, match=message):
            tiny(texts, ["x"])

    @pytest.mark.parametrize(
        ("labels", "error", "message"),
        [
            ([], ValueError, "no label was given"),
            ([[], []], ValueError, "no label was given"),
            ([["x"], []], ValueError, "no label was given"),
            (None, TypeError, "labels is None"),
            (5, TypeError, "labels is 5"),
            ("finance", TypeError, "labels is .*'finance'.*list"),
            (b"finance", TypeError, "labels is b'finance'"),
            ({"x", "y"}, TypeError, "labels is "),
            ({"x": 1}, TypeError, "labels is "),
            (["x", None], TypeError, "label 1 is None"),
            ([None], TypeError, "label 0 is None"),
            (["x", 3], TypeError, "label 1 is 3 .int."),
            (["x", ["y"]], TypeError, r"label 1 is \['y'\] .list."),
            ([["x"], "y"], TypeError, r"label 0 is \['x'\] .list."),
            ([["x"], ["y", 1]], TypeError, "label 1 is 1"),
            (["x", ""], ValueError, "label 1 is ''.*blank"),
            (["x", " \t\u00a0"], ValueError, "label 1 is .*blank"),
            (["x", "y", "x"], ValueError, "label 2, 'x', occurs twice"),
            ([["x", "x"], ["y"]], ValueError, "label 1, 'x', occurs twice"),
            ([["x"]], ValueError, "1 label sets for 2 texts"),
            ([["x"], ["y"], ["z"]], ValueError, "3 label sets for 2 texts"),
        ],
    )
    def test_labels(self, tiny, labels, error, message):
        with pytest.raises(error, match=message):
            tiny(["one", "two"], labels)

    def test_labels_that_differ_only_by_case_are_two(self, tiny):
        assert tiny("a", ["Apple", "apple"])["lmask"].max() == 2


class TestContainers:
    """Tuples, arrays and Series do as lists do."""

    @pytest.mark.parametrize("wrap", [tuple, np.array, pd.Series, iter])
    def test_texts(self, tiny, wrap):
        assert same(tiny(wrap(["one", "two"]), ["x", "y"]), tiny(["one", "two"], ["x", "y"]))

    @pytest.mark.parametrize("wrap", [tuple, np.array, pd.Series, iter, dict.fromkeys])
    def test_shared_labels(self, tiny, wrap):
        labels = wrap(["x", "y"])
        labels = labels.keys().__iter__() if isinstance(labels, dict) else labels
        assert same(tiny(["one", "two"], labels), tiny(["one", "two"], ["x", "y"]))

    @pytest.mark.parametrize("wrap", [tuple, np.array, pd.Series])
    def test_labels_per_text(self, tiny, wrap):
        sets = [["x", "y"], ["z"]]
        expected = tiny(["one", "two"], sets)
        assert same(tiny(["one", "two"], [wrap(entry) for entry in sets]), expected)
        assert same(tiny(["one", "two"], tuple(sets)), expected)

    def test_two_dimensional_array_of_labels(self, tiny):
        sets = [["x", "y"], ["z", "w"]]
        assert same(tiny(["one", "two"], np.array(sets)), tiny(["one", "two"], sets))


def same(first, second) -> bool:
    return all(torch.equal(first[name], second[name]) for name in second)


class TestWrapping:
    def test_lab_is_added_once(self, build, kind):
        bare = build(kind)
        size = len(bare)
        tokenizer = GliZNETTokenizer(bare)
        assert (len(tokenizer), tokenizer.lab_token_id) == (size + 1, size)
        again = GliZNETTokenizer(bare)
        assert (len(again), again.lab_token_id) == (size + 1, size)
        assert again.control_token_ids == (bare.cls_token_id, bare.sep_token_id, size)

    @pytest.mark.parametrize("window", [None, 64])
    def test_round_trip(self, build, kind, window, tmp_path):
        tokenizer = GliZNETTokenizer(build(kind), max_length=window)
        tokenizer.save_pretrained(tmp_path)
        assert tokenizer.tokenizer.model_max_length == 512  # saving leaves it alone
        loaded = GliZNETTokenizer.from_pretrained(tmp_path)
        assert loaded.max_length == 512  # the window of a training run is no part of a checkpoint
        assert loaded.control_token_ids == tokenizer.control_token_ids
        assert loaded.pad_token_id == tokenizer.pad_token_id and len(loaded) == len(tokenizer)
        texts = [*TEXTS, " ".join(LITERALS)]
        again = loaded(texts, ["x", "é [LAB]"], max_length=tokenizer.max_length)
        assert same(again, tokenizer(texts, ["x", "é [LAB]"]))
        assert GliZNETTokenizer.from_pretrained(tmp_path, max_length=32).max_length == 32

    def test_round_trip_of_a_window_without_own_limit(self, build, tmp_path):
        bare = build("wordpiece-tiny")
        bare.model_max_length = int(1e30)
        tokenizer = GliZNETTokenizer(bare, max_length=700)
        tokenizer.save_pretrained(tmp_path)
        assert GliZNETTokenizer.from_pretrained(tmp_path).max_length == 512
        assert GliZNETTokenizer.from_pretrained(tmp_path, max_length=700).max_length == 700

    def test_window_is_the_tokenizers_limit_or_512(self, build):
        bare = build("wordpiece-tiny")
        bare.model_max_length = 77
        assert GliZNETTokenizer(bare).max_length == 77
        bare.model_max_length = int(1e30)
        assert GliZNETTokenizer(bare).max_length == 512
        assert GliZNETTokenizer(bare, max_length=2000).max_length == 2000

    @pytest.mark.parametrize("window", [4, 0, -1])
    def test_window_too_small(self, build, window):
        with pytest.raises(ValueError, match=f"max_length is {window}: .* 5 tokens"):
            GliZNETTokenizer(build("wordpiece-tiny"), max_length=window)
        assert GliZNETTokenizer(build("wordpiece-tiny"), max_length=5).max_length == 5

    def test_window_too_large(self, build):
        with pytest.raises(ValueError, match="max_length is 513 but the tokenizer allows 512"):
            GliZNETTokenizer(build("wordpiece-tiny"), max_length=513)

    def test_window_too_large_in_a_call(self, tiny):
        """The position embeddings end there; the model would fail with an index error."""
        with pytest.raises(ValueError, match="max_length is 513 but the tokenizer allows 512"):
            tiny("a", ["x"], max_length=513)

    def test_window_of_the_object_limits_the_call(self, build):
        tokenizer = GliZNETTokenizer(build("wordpiece-tiny"), max_length=20)
        assert tokenizer("word " * 50, ["x"])["input_ids"].shape == (1, 20)
        assert tokenizer("word " * 50, ["x"], max_length=40)["input_ids"].shape == (1, 40)

    def test_slow_tokenizer(self):
        with pytest.raises(ValueError, match=r"ByT5Tokenizer is a slow tokenizer.*fast"):
            GliZNETTokenizer(ByT5Tokenizer())

    @pytest.mark.parametrize("missing", ["cls_token", "sep_token", "pad_token"])
    def test_missing_control_token(self, missing):
        tokens = {name: token for name, token in BERT_TOKENS.items() if name != missing}
        inner = Tokenizer.from_str(_byte_level(tuple(BERT_TOKENS.values())))
        bare = PreTrainedTokenizerFast(tokenizer_object=inner, **tokens)
        size = len(bare)
        with pytest.raises(ValueError, match=f"{missing} None.*all three are needed"):
            GliZNETTokenizer(bare)
        assert len(bare) == size  # refused before it was changed
