"""ZeroShotClassificationPipeline against direct passes of the model, one sequence at a time."""

import copy
import math
import weakref
from collections.abc import Sequence

import jaxtyping
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gliznet import predictor as predictor_module
from gliznet.backbones import resolve
from gliznet.data.corpus import hardset_mini
from gliznet.model import GliZNetForSequenceClassification
from gliznet.predictor import ClassificationResult, LabelScore, ZeroShotClassificationPipeline
from gliznet.tokenizer import GliZNETTokenizer, WindowError

# Scores in float32 differ only by the order of sums.
TOLERANCE = {"abs": 2e-6, "rel": 2e-5}
LABELS = ["astronomy", "politics", "cooking", "space exploration", "finance"]
MANY_LABELS = [f"{a} {b}" for a in ("red", "old", "new") for b in ("car", "law", "song", "river")]
BUFFERED = predictor_module._BUFFERED_BATCHES


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """A saved tiny GliZNet with its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    backbone = resolve("tiny-random", folder)
    tokenizer = GliZNETTokenizer.from_pretrained(backbone)
    model = GliZNetForSequenceClassification.from_backbone(
        backbone, tokenizer, tau=2.0, tau_bce=1.5
    )
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return str(folder / "model")


@pytest.fixture(scope="module")
def model(checkpoint) -> GliZNetForSequenceClassification:
    return GliZNetForSequenceClassification.from_pretrained(checkpoint).eval()


@pytest.fixture(scope="module")
def tokenizer(checkpoint) -> GliZNETTokenizer:
    return GliZNETTokenizer.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def pipeline(model, tokenizer) -> ZeroShotClassificationPipeline:
    return ZeroShotClassificationPipeline(model, tokenizer, device="cpu")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Twelve texts of very different length."""
    corpus = [example.text for example in hardset_mini("test")[:12]]
    return [text[: 7 + 40 * i] for i, text in enumerate(corpus)]


@pytest.fixture
def unchecked():
    """Turns off the shape checks, which refuse a wrong type before the package's own check."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture
def batches(monkeypatch, model) -> list[int]:
    """Sizes of the batches that reach the model from here on."""
    sizes: list[int] = []
    forward = model.forward

    def counted(input_ids, **others):
        sizes.append(len(input_ids))
        return forward(input_ids=input_ids, **others)

    monkeypatch.setattr(model, "forward", counted)
    return sizes


def alone(model, tokenizer, text: str, labels: Sequence[str]) -> torch.Tensor:
    """Similarities of one text with its labels: a single sequence, so no padding at all."""
    batch = tokenizer(text, list(labels))
    batch.pop("truncated_tokens")
    with torch.no_grad():
        return model(**batch).logits[0]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def scores(result: ClassificationResult) -> list[float]:
    return [entry.score for entry in result.labels]


def names(result: ClassificationResult) -> list[str]:
    return [entry.label for entry in result.labels]


def assert_same(first, second) -> None:
    assert [r.text for r in first] == [r.text for r in second]
    assert [r.truncated_tokens for r in first] == [r.truncated_tokens for r in second]
    for a, b in zip(first, second, strict=True):
        assert names(a) == names(b)
        assert scores(a) == pytest.approx(scores(b), **TOLERANCE)


# The model card's "Usage" (seed 001), changed in the checkpoint's name and the device only.
CARD_PIPELINE = """
import torch
from gliznet.model import GliZNetForSequenceClassification
from gliznet.tokenizer import GliZNETTokenizer
from gliznet.predictor import ZeroShotClassificationPipeline

model = GliZNetForSequenceClassification.from_pretrained("alexneakameni/gliznet-deberta-v3-base")
model = model.to(torch.bfloat16)
tokenizer = GliZNETTokenizer.from_pretrained("alexneakameni/gliznet-deberta-v3-base")

pipeline = ZeroShotClassificationPipeline(
    model, tokenizer,
    classification_type="multi-label",   # or "multi-class"
    device="cuda",
)

text = "Scientists discover a new exoplanet orbiting a distant star."
labels = ["astronomy", "politics", "cooking", "space exploration", "finance"]

result = pipeline(text, labels)
for ls in sorted(result.labels, key=lambda x: -x.score):
    print(f"  {ls.label:<25} {ls.score:.3f}")
"""

CARD_AUTO = """
from transformers import AutoModel, AutoConfig
import gliznet  # triggers Auto* registration

config = AutoConfig.from_pretrained("alexneakameni/gliznet-deberta-v3-base")
model  = AutoModel.from_pretrained("alexneakameni/gliznet-deberta-v3-base")
"""


class TestCard:
    @pytest.mark.parametrize("kind", ["multi-label", "multi-class"])
    def test_pipeline_snippet(self, checkpoint, kind, capsys):
        source = CARD_PIPELINE.replace("alexneakameni/gliznet-deberta-v3-base", checkpoint)
        source = source.replace('"cuda"', '"cpu"').replace('="multi-label"', f'="{kind}"')
        namespace: dict = {}
        exec(compile(source, "card", "exec"), namespace)
        printed = [line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
        assert sorted(label.strip() for label, _ in printed) == sorted(LABELS)
        values = [float(value) for _, value in printed]
        assert values == sorted(values, reverse=True) and all(0 <= v <= 1 for v in values)
        assert namespace["pipeline"].model.dtype == torch.bfloat16
        if kind == "multi-class":
            assert sum(values) == pytest.approx(1, abs=5 * 0.0005)

    def test_auto_snippet(self, checkpoint):
        namespace: dict = {}
        exec(CARD_AUTO.replace("alexneakameni/gliznet-deberta-v3-base", checkpoint), namespace)
        assert namespace["config"].model_type == "gliznet"
        assert isinstance(namespace["model"], GliZNetForSequenceClassification)


class TestScores:
    def test_one_text_gives_one_result(self, pipeline):
        result = pipeline("A new star.", LABELS)
        assert isinstance(result, ClassificationResult)
        assert (result.text, names(result), result.truncated_tokens) == ("A new star.", LABELS, 0)
        assert all(isinstance(entry, LabelScore) for entry in result.labels)
        assert all(type(entry.score) is float for entry in result.labels)

    def test_multi_label_is_the_calibrated_sigmoid(self, pipeline, model, tokenizer, texts):
        results = pipeline(texts, LABELS)
        for text, result in zip(texts, results, strict=True):
            logits = alone(model, tokenizer, text, LABELS).tolist()
            expected = [sigmoid(x / 2.0 * 1.5) for x in logits]  # τ = 2, τ_BCE = 1.5 above
            assert scores(result) == pytest.approx(expected, **TOLERANCE)
        assert len({round(s, 4) for r in results for s in scores(r)}) > 20  # they do differ

    def test_literal_sigmoid(self, model, tokenizer, texts):
        other = copy.deepcopy(model)
        other.config.probability = "logits"
        result = ZeroShotClassificationPipeline(other, tokenizer, device="cpu")(texts[0], LABELS)
        expected = [sigmoid(x) for x in alone(model, tokenizer, texts[0], LABELS).tolist()]
        assert scores(result) == pytest.approx(expected, **TOLERANCE)

    def test_multi_class_is_the_softmax(self, model, tokenizer, texts):
        pipeline = ZeroShotClassificationPipeline(model, tokenizer, "multi-class", device="cpu")
        for text, result in zip(texts, pipeline(texts, LABELS), strict=True):
            exponentials = [math.exp(x) for x in alone(model, tokenizer, text, LABELS).tolist()]
            expected = [x / sum(exponentials) for x in exponentials]
            assert scores(result) == pytest.approx(expected, **TOLERANCE)
            assert sum(scores(result)) == pytest.approx(1, abs=1e-6)

    def test_one_label(self, model, tokenizer):
        for kind in ("multi-label", "multi-class"):
            pipeline = ZeroShotClassificationPipeline(model, tokenizer, kind, device="cpu")
            (score,) = scores(pipeline("A star.", ["astronomy"]))
            assert score == 1 if kind == "multi-class" else 0 < score < 1

    def test_logits(self, pipeline, model, tokenizer, texts):
        sets = [LABELS[: 1 + i % 5] for i in range(len(texts))]
        for row, text, labels in zip(pipeline.logits(texts, sets), texts, sets, strict=True):
            assert row.dtype == torch.float32 and row.shape == (len(labels),)
            torch.testing.assert_close(row, alone(model, tokenizer, text, labels))

    def test_labels_per_text(self, pipeline, texts):
        sets = [LABELS[i % 4 : i % 4 + 1 + i % 3] for i in range(len(texts))]
        results = pipeline(texts, sets)
        assert_same(results, [pipeline(t, s) for t, s in zip(texts, sets, strict=True)])

    def test_the_bilinear_card_model(self, checkpoint, tmp_path, tokenizer):
        backbone = resolve("tiny-random", tmp_path)
        own = GliZNETTokenizer.from_pretrained(backbone)
        card = GliZNetForSequenceClassification.from_backbone(backbone, own, "card")
        result = ZeroShotClassificationPipeline(card, own, device="cpu")("A star.", LABELS)
        expected = [sigmoid(x) for x in alone(card, own, "A star.", LABELS).tolist()]
        assert scores(result) == pytest.approx(expected, **TOLERANCE)

    def test_truncated_tokens(self, pipeline, tokenizer):
        long = "word " * 700
        expected = tokenizer([long, "a"], LABELS)["truncated_tokens"].tolist()
        assert expected[0] > 0
        assert [r.truncated_tokens for r in pipeline([long, "a"], LABELS)] == expected

    def test_empty_text(self, pipeline):
        assert all(math.isfinite(score) for score in scores(pipeline("", LABELS)))

    def test_training_mode_is_left(self, model, tokenizer):
        other = copy.deepcopy(model).train()
        assert not ZeroShotClassificationPipeline(other, tokenizer, device="cpu").model.training

    def test_bfloat16(self, model, tokenizer, pipeline, texts):
        half = ZeroShotClassificationPipeline(
            copy.deepcopy(model), tokenizer, device="cpu", dtype=torch.bfloat16
        )
        assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
        for a, b in zip(half(texts, LABELS), pipeline(texts, LABELS), strict=True):
            assert scores(a) == pytest.approx(scores(b), abs=0.03)  # 8 bits of precision
        assert half.logits(["a"], ["b"])[0].dtype == torch.float32


class TestBatches:
    @pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
    def test_scores_do_not_depend_on_the_batch_size(self, model, tokenizer, texts, batch_size):
        sets = [LABELS[: 1 + i % 5] for i in range(len(texts))]
        pipeline = ZeroShotClassificationPipeline(
            model, tokenizer, device="cpu", batch_size=batch_size
        )
        one = ZeroShotClassificationPipeline(model, tokenizer, device="cpu", batch_size=1)
        assert_same(pipeline(texts, sets), [one(t, s) for t, s in zip(texts, sets, strict=True)])

    @settings(
        max_examples=8,
        derandomize=True,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(data=st.data())
    def test_scores_do_not_depend_on_the_company(self, pipeline, texts, data):
        order = data.draw(st.permutations(range(len(texts))))
        order = order[: data.draw(st.integers(1, len(texts)))]
        together = pipeline([texts[i] for i in order], LABELS)
        assert_same(together, [pipeline(texts[i], LABELS) for i in order])

    def test_batches_are_full_and_bounded(self, model, tokenizer, texts, batches):
        pipeline = ZeroShotClassificationPipeline(model, tokenizer, device="cpu", batch_size=5)
        pipeline(texts, LABELS)
        assert batches == [5, 5, 2]

    def test_texts_of_similar_length_share_a_batch(self, model, tokenizer, texts, monkeypatch):
        lengths: list[int] = []
        forward = model.forward

        def seen(input_ids, **others):
            lengths.append(input_ids.shape[1])
            return forward(input_ids=input_ids, **others)

        monkeypatch.setattr(model, "forward", seen)
        pipeline = ZeroShotClassificationPipeline(model, tokenizer, device="cpu", batch_size=4)
        shuffled = texts[::2] + texts[1::2]
        pipeline(shuffled, LABELS)
        assert lengths == sorted(lengths, reverse=True)


class TestChunks:
    @pytest.mark.parametrize("size", [1, 5, 12, 100])
    @pytest.mark.parametrize("kind", ["multi-label", "multi-class"])
    def test_chunks_are_merged(self, model, tokenizer, texts, size, kind):
        pipeline = ZeroShotClassificationPipeline(
            model, tokenizer, kind, device="cpu", batch_size=3, max_labels_per_pass=size
        )
        for text, result in zip(texts[:5], pipeline(texts[:5], MANY_LABELS), strict=True):
            logits: list[float] = []
            for start in range(0, 12, size):
                logits += alone(model, tokenizer, text, MANY_LABELS[start : start + size]).tolist()
            if kind == "multi-class":  # one softmax over all chunks
                total = sum(math.exp(x) for x in logits)
                expected = [math.exp(x) / total for x in logits]
            else:
                expected = [sigmoid(x / 2.0 * 1.5) for x in logits]
            assert names(result) == MANY_LABELS
            assert scores(result) == pytest.approx(expected, **TOLERANCE)

    def test_sequences_per_pass(self, model, tokenizer, batches):
        pipeline = ZeroShotClassificationPipeline(
            model, tokenizer, device="cpu", batch_size=4, max_labels_per_pass=5
        )
        pipeline(["one", "two"], MANY_LABELS)  # two texts, three chunks each
        assert batches == [4, 2]

    def test_uneven_sets(self, model, tokenizer):
        pipeline = ZeroShotClassificationPipeline(
            model, tokenizer, device="cpu", max_labels_per_pass=2
        )
        sets = [["a"], ["a", "b"], ["a", "b", "c"], ["d", "e", "f", "g", "h"]]
        texts = ["one", "two", "three", "four"]
        results = pipeline(texts, sets)
        assert [names(result) for result in results] == sets
        assert_same(results, [pipeline(t, s) for t, s in zip(texts, sets, strict=True)])

    def test_the_option_cures_the_window_error(self, model, tokenizer):
        labels = [f"a long label with number {i}" for i in range(150)]
        with pytest.raises(WindowError, match="max_labels_per_pass"):
            ZeroShotClassificationPipeline(model, tokenizer, device="cpu")("A text.", labels)
        pipeline = ZeroShotClassificationPipeline(
            model, tokenizer, "multi-class", device="cpu", max_labels_per_pass=20
        )
        result = pipeline("A text.", labels)
        assert names(result) == labels and sum(scores(result)) == pytest.approx(1, abs=1e-5)

    def test_truncation_is_that_of_the_worst_chunk(self, model, tokenizer):
        pipeline = ZeroShotClassificationPipeline(
            model, tokenizer, device="cpu", max_labels_per_pass=1
        )
        long, labels = "word " * 700, ["a", "b " * 60, "c"]
        expected = max(tokenizer(long, [label])["truncated_tokens"].item() for label in labels)
        assert pipeline(long, labels).truncated_tokens == expected


class TestSelection:
    def test_threshold_keeps_scores_at_or_above(self, pipeline):
        full = pipeline("A star.", LABELS)
        for cut in (0.0, 0.5, *scores(full), 1.0):
            kept = pipeline("A star.", LABELS, threshold=cut)
            assert kept.labels == [entry for entry in full.labels if entry.score >= cut]

    @pytest.mark.parametrize("k", [1, 2, 5, 9])
    def test_top_k_is_sorted(self, pipeline, k):
        full = pipeline("A star.", LABELS)
        best = pipeline("A star.", LABELS, top_k=k)
        assert best.labels == sorted(full.labels, key=lambda entry: entry.score)[::-1][:k]

    def test_both(self, pipeline):
        ranked = sorted(scores(pipeline("A star.", LABELS)), reverse=True)
        cut = (ranked[1] + ranked[2]) / 2
        assert scores(pipeline("A star.", LABELS, threshold=cut, top_k=4)) == ranked[:2]
        assert pipeline("A star.", LABELS, threshold=1.0).labels == []

    def test_for_lists_and_streams(self, pipeline, texts):
        options = {"threshold": 0.3, "top_k": 2}
        expected = [pipeline(text, LABELS, **options) for text in texts]
        assert_same(pipeline(texts, LABELS, **options), expected)
        assert_same(list(pipeline(iter(texts), LABELS, **options)), expected)


class Text(str):
    """A string that can be watched."""

    __slots__ = ("__weakref__",)


class Source:
    """A stream that counts what was taken from it and what is still alive."""

    def __init__(self, length: int):
        self.length, self.taken, self.most_alive = length, 0, 0
        self.alive: weakref.WeakSet = weakref.WeakSet()

    def __iter__(self):
        for i in range(self.length):
            text = Text(f"text number {i} " + "word " * (i % 7))
            self.alive.add(text)
            self.taken += 1
            self.most_alive = max(self.most_alive, len(self.alive))
            yield text


class TestStreams:
    def test_same_results_in_order(self, model, tokenizer, texts):
        pipeline = ZeroShotClassificationPipeline(model, tokenizer, device="cpu", batch_size=1)
        many = [f"{i} {text[:50]}" for i in range(6) for text in texts]
        assert len(many) > BUFFERED  # more than one buffer
        assert_same(list(pipeline(iter(many), ["a", "b"])), pipeline(many, ["a", "b"]))

    def test_lazy_and_bounded(self, model, tokenizer):
        pipeline = ZeroShotClassificationPipeline(model, tokenizer, device="cpu", batch_size=2)
        buffer = 2 * BUFFERED
        source = Source(4 * buffer + 3)
        stream = pipeline(iter(source), ["a", "b"])
        assert source.taken == 0  # nothing is read before the first result is asked for
        for i, result in enumerate(stream):
            assert result.text.startswith(f"text number {i} ")
            assert i < source.taken <= i + buffer
            del result
        assert i + 1 == source.taken == source.length
        # The buffer before is released while the next one is read.
        assert source.most_alive <= 2 * buffer + 1

    def test_endless_stream(self, model, tokenizer):
        def endless():
            while True:
                yield "again"

        pipeline = ZeroShotClassificationPipeline(model, tokenizer, device="cpu", batch_size=1)
        stream = pipeline(endless(), ["a"])
        assert [next(stream).text for _ in range(3)] == ["again"] * 3

    def test_empty_stream(self, pipeline):
        assert list(pipeline(iter([]), LABELS)) == []

    @pytest.mark.parametrize(
        ("bad", "error"), [(None, TypeError), (3, TypeError), ("\ud800", ValueError)]
    )
    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize("position", [0, 3, BUFFERED, BUFFERED + 36])
    def test_error_names_the_position_in_the_stream(self, model, tokenizer, bad, error, position):
        texts = ["fine"] * position + [bad] + ["fine"] * 5
        pipeline = ZeroShotClassificationPipeline(model, tokenizer, device="cpu", batch_size=1)
        stream = pipeline(iter(texts), ["a"])
        with pytest.raises(error, match=f"text {position} "):
            list(stream)

    @pytest.mark.usefixtures("unchecked")
    def test_results_before_the_buffer_of_the_error_are_delivered(self, model, tokenizer):
        pipeline = ZeroShotClassificationPipeline(model, tokenizer, device="cpu", batch_size=1)
        stream = pipeline(iter(["fine"] * BUFFERED + [None]), ["a"])
        assert [next(stream).text for _ in range(BUFFERED)] == ["fine"] * BUFFERED
        with pytest.raises(TypeError):
            next(stream)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize("labels", [[], "abc", ["a", "a"], [["a"], ["b"]], None])
    def test_bad_labels_fail_before_the_stream_is_read(self, pipeline, labels):
        source = Source(3)
        with pytest.raises((TypeError, ValueError)):
            pipeline(iter(source), labels)
        assert source.taken == 0


class TestProgress:
    @pytest.fixture
    def quick(self, model, tokenizer):
        return ZeroShotClassificationPipeline(model, tokenizer, device="cpu", batch_size=256)

    @pytest.mark.parametrize(
        ("length", "progress", "shown"),
        [(999, None, False), (1000, None, True), (1000, False, False), (2, True, True)],
    )
    def test_bar(self, quick, capsys, length, progress, shown):
        assert len(quick(["a"] * length, ["b"], progress=progress)) == length
        captured = capsys.readouterr()
        assert (f"{length}/{length}" in captured.err) == shown
        assert captured.out == "" and (shown or captured.err == "")

    def test_bar_on_demand_for_a_stream(self, quick, capsys):
        assert len(list(quick(iter(["a"] * 7), ["b"], progress=True))) == 7
        assert "7text" in capsys.readouterr().err.replace(" ", "")
        assert len(list(quick(iter(["a"] * 1001), ["b"]))) == 1001
        assert capsys.readouterr().err == ""


class TestContainers:
    """Tuples, arrays and Series do as lists do: a list of results, in order."""

    @pytest.mark.parametrize("wrap", [tuple, np.array, pd.Series])
    def test_texts(self, pipeline, texts, wrap):
        results = pipeline(wrap(texts), LABELS)
        assert isinstance(results, list)
        assert_same(results, pipeline(texts, LABELS))

    def test_series_with_another_index(self, pipeline, texts):
        series = pd.Series(texts, index=range(100, 100 + len(texts)))
        assert_same(pipeline(series, LABELS), pipeline(texts, LABELS))

    @pytest.mark.parametrize("wrap", [tuple, np.array, pd.Series, iter])
    @pytest.mark.parametrize("form", ["one", "list", "stream"])
    def test_labels(self, pipeline, texts, wrap, form):
        given = {"one": lambda: texts[0], "list": lambda: texts, "stream": lambda: iter(texts)}
        result, expected = (pipeline(given[form](), x) for x in (wrap(LABELS), LABELS))
        if form == "one":
            result, expected = [result], [expected]
        assert_same(list(result), list(expected))

    @pytest.mark.parametrize("wrap", [tuple, np.array, pd.Series])
    def test_labels_per_text(self, pipeline, wrap):
        sets = [["a", "b"], ["c"]]
        results = pipeline(["one", "two"], [wrap(entry) for entry in sets])
        assert [names(result) for result in results] == sets

    def test_one_set_for_one_text(self, pipeline):
        assert names(pipeline("one", [["a", "b"]])) == ["a", "b"]


@pytest.mark.usefixtures("unchecked")
class TestBadInput:
    @pytest.mark.parametrize(
        ("texts", "error", "message"),
        [
            ([], ValueError, "no text was given"),
            (None, TypeError, "texts is None"),
            (5, TypeError, "texts is 5"),
            (b"abc", TypeError, "texts is b'abc'"),
            (["a", None], TypeError, "text 1 is None"),
            (("a", 2), TypeError, "text 1 is 2"),
            (pd.Series(["a", None], dtype=object), TypeError, "text 1 is None"),
            (np.array([1, 2]), TypeError, "text 0 is "),
            ({"a", "b"}, TypeError, "texts is "),
            (["a", "\ud800"], ValueError, "text 1 .*surrogate"),
        ],
    )
    def test_texts(self, pipeline, texts, error, message):
        with pytest.raises(error, match=message):
            pipeline(texts, LABELS)

    @pytest.mark.parametrize("texts", ["one", ["one"], ["one", "two"]])
    @pytest.mark.parametrize(
        ("labels", "error", "message"),
        [
            ([], ValueError, "no label was given"),
            ("abc", TypeError, "labels is .*'abc'.*list"),
            (None, TypeError, "labels is None"),
            (7, TypeError, "labels is 7"),
            ({"a", "b"}, TypeError, "labels is "),
            (["a", None], TypeError, "label 1 is None"),
            ([None, "a"], TypeError, "label 0 is None"),
            (["a", 3], TypeError, "label 1 is 3"),
            (["a", " "], ValueError, "label 1 is ' '.*blank"),
            (["a", "b", "a"], ValueError, "label 2, 'a', occurs twice"),
            ([["a"], ["b"], ["c"]], ValueError, "3 label sets for [12] texts"),
            (["a", "\ud800"], ValueError, "label 1 .*surrogate"),
        ],
    )
    def test_labels(self, pipeline, texts, labels, error, message):
        with pytest.raises(error, match=message):
            pipeline(texts, labels)
        with pytest.raises(error, match=message):
            pipeline.logits(texts, labels)

    @pytest.mark.parametrize("threshold", [-0.1, 1.1, math.nan, math.inf])
    def test_threshold(self, pipeline, threshold):
        with pytest.raises(ValueError, match=rf"threshold is {threshold}.*\[0, 1\]"):
            pipeline("a", LABELS, threshold=threshold)

    @pytest.mark.parametrize("top_k", [0, -1])
    def test_top_k(self, pipeline, top_k):
        with pytest.raises(
            ValueError, match=f"top_k is {top_k}: it must be a whole number of at least 1"
        ):
            pipeline(iter(["a"]), LABELS, top_k=top_k)  # at once, not when the stream is read

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            ({"classification_type": "multilabel"}, "classification_type is 'multilabel'.*multi-"),
            ({"batch_size": 0}, "batch_size is 0"),
            ({"batch_size": -3}, "batch_size is -3"),
            ({"max_labels_per_pass": 0}, "max_labels_per_pass is 0"),
        ],
    )
    def test_options(self, model, tokenizer, option, message):
        with pytest.raises(ValueError, match=message):
            ZeroShotClassificationPipeline(model, tokenizer, device="cpu", **option)


def test_nothing_is_written_to_the_terminal(pipeline, texts, capfd):
    pipeline(texts, LABELS)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
