"""The training mix: shares, balance, candidates, wordings, development sets, fingerprints."""

from collections import Counter
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gliznet.data import sampling
from gliznet.data.corpus import hardset_mini
from gliznet.data.enrichment import nearest_labels
from gliznet.data.loading import load
from gliznet.data.registry import registry
from gliznet.data.sampling import (
    Mix,
    Source,
    assert_no_overlap,
    development_sets,
    fingerprints,
    mixes,
    prepare,
    sample_mix,
    text_fingerprint,
)
from gliznet.data.types import Example, LabelledTexts, examples_sha256

COLOURS = tuple(["red", "green", "blue", "black", "white", "grey", "pink", "brown", "teal", "cyan"])
MOODS = ("Positive", "negative", "neutral")


def single(name: str, names: tuple[str, ...], counts: list[int]) -> LabelledTexts:
    labels = [(label,) for label, n in zip(names, counts, strict=True) for _ in range(n)]
    texts = [f"{name} text {i}" for i in range(len(labels))]
    return LabelledTexts(name, tuple(texts), tuple(labels), names, task=name)


def multi(name: str, rows: int) -> LabelledTexts:
    labels = [tuple(COLOURS[(i + 3 * j) % 10] for j in range(1 + i % 4)) for i in range(rows)]
    texts = tuple(f"{name} text {i}" for i in range(rows))
    return LabelledTexts(name, texts, tuple(labels), COLOURS, multi_label=True, task=name)


DATA = {
    "moods": single("moods", MOODS, [100, 60, 40]),
    "colours": multi("colours", 200),
    "tiny": single("tiny", ("yes", "no"), [3, 2]),
    # Its labels differ from those of `moods` in capitals only.
    "cases": single("cases", ("POSITIVE", "Negative", "mixed"), [50, 50, 50]),
}
WORDINGS = {
    "moods": [{"Positive": "good", "negative": "bad", "neutral": "so-so"}],
    # Two labels share a name, and one takes the name that another had before.
    "colours": [{name: name.upper() for name in COLOURS} | {"teal": "CYAN", "red": "green"}],
}


def mix(names=("moods", "colours", "tiny", "cases"), **fields) -> Mix:
    weights = {"moods": 3, "colours": 2, "tiny": 4, "cases": 1}
    sources = {n: {"weight": weights[n], "wordings": WORDINGS.get(n, [])} for n in names}
    return Mix.model_validate({"description": "toy", "sources": sources} | fields)


def load_toy(name: str) -> LabelledTexts:
    return DATA[name]


def row_of(example: Example) -> tuple[str, ...]:
    """The true labels of the row that an example was made from."""
    return DATA[example.source].labels[int(example.text.split()[-1])]


def names_of(source: Source, label: str) -> set[str]:
    """All names that a label has in any wording of its source, case ignored."""
    return {label.casefold()} | {w[label].casefold() for w in source.wordings}


# Rows


def test_the_same_seed_gives_the_same_examples_and_another_seed_others():
    first, again, other = (sample_mix(mix(), 100, seed, load_toy) for seed in (1, 1, 2))
    assert first == again
    assert examples_sha256(first) == examples_sha256(again) != examples_sha256(other)


def test_a_source_keeps_its_rows_when_another_is_added_after_it():
    # Each source draws from a generator of its own, so mixes can be compared.
    few = {e.text for e in sample_mix(mix(("moods",)), 30, 1, load_toy)}
    both = sample_mix(mix(("moods", "cases")), 40, 1, load_toy)
    assert {e.text for e in both if e.source == "moods"} == few


def test_the_sources_are_shuffled():
    drawn = [e.source for e in sample_mix(mix(("moods", "cases")), 80, 0, load_toy)]
    changes = sum(a != b for a, b in pairwise(drawn))
    assert changes > 10


@given(rows=st.integers(1, 555), seed=st.integers(0, 5))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_shares_sum_to_the_rows_asked_for_and_follow_the_weights(rows, seed):
    toy = mix()
    examples = sample_mix(toy, rows, seed, load_toy)
    assert len(examples) == rows == len({(e.source, e.text) for e in examples})
    counts = Counter(e.source for e in examples)
    assert all(counts[name] <= len(DATA[name]) for name in DATA)
    # A source that is not used up is within one row of the share that its weight asks for.
    free = [n for n in DATA if counts[n] < len(DATA[n])]
    weight = sum(toy.sources[n].weight for n in free)
    left = rows - sum(counts[n] for n in DATA if n not in free)
    for name in free:
        assert abs(counts[name] - left * toy.sources[name].weight / weight) < 1
    # And one that is used up was asked for at least what it had.
    for name in set(DATA) - set(free):
        per_weight = max((counts[n] + 1) / toy.sources[n].weight for n in free) if free else 1e9
        assert len(DATA[name]) <= per_weight * toy.sources[name].weight + 1


def test_a_small_source_gives_all_it_has():
    counts = Counter(e.source for e in sample_mix(mix(), 100, 0, load_toy))
    # 95 rows are left for weights 3, 2 and 1: 47.5, 31.67 and 15.83.
    assert counts["tiny"] == 5
    assert counts["colours"] == 32 and counts["cases"] == 16 and counts["moods"] == 47


def test_all_rows_of_all_sources_can_be_drawn():
    examples = sample_mix(mix(), 555, 0, load_toy)
    assert Counter(e.source for e in examples) == {n: len(d) for n, d in DATA.items()}


def test_more_rows_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="556 rows asked for, the sources hold 555"):
        sample_mix(mix(), 556, 0, load_toy)


def test_labels_are_drawn_evenly():
    # 60 rows of 100 + 60 + 40: 20 of each label, not 30, 18 and 12.
    labels = Counter(row_of(e)[0] for e in sample_mix(mix(("moods",)), 60, 3, load_toy))
    assert labels == {"Positive": 20, "negative": 20, "neutral": 20}
    # 150 rows: the rarest label gives its 40, the others 55 each.
    labels = Counter(row_of(e)[0] for e in sample_mix(mix(("moods",)), 150, 3, load_toy))
    assert labels == {"Positive": 55, "negative": 55, "neutral": 40}


# Candidates


@given(
    seed=st.integers(0, 10_000),
    max_candidates=st.integers(2, 9),
    foreign_rate=st.sampled_from([0.0, 0.5, 1.0]),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_candidates_are_distinct_few_and_no_true_label_is_among_the_false(
    seed, max_candidates, foreign_rate
):
    toy = mix(max_candidates=max_candidates, foreign_rate=foreign_rate)
    for example in sample_mix(toy, 60, seed, load_toy):
        source, true = toy.sources[example.source], row_of(example)
        candidates = [label.casefold() for label in (*example.labels, *example.not_labels)]
        assert len(set(candidates)) == len(candidates) <= max_candidates
        assert example.labels
        # The true labels of the row, all in one wording, are the only ones among the positives.
        wordings = [{label: label for label in true}, *source.wordings]
        assert any(set(example.labels) <= {w[label] for label in true} for w in wordings)
        # No false candidate is a true label, cut ones included.
        one = [
            {w[label].casefold() for label in true}
            for w in wordings
            if set(example.labels) <= {w[label] for label in true}
        ]
        assert any(not names & {n.casefold() for n in example.not_labels} for names in one)


@pytest.mark.parametrize("name", ["moods", "cases", "tiny"])
def test_no_false_label_is_the_true_one_under_any_wording(name):
    toy = mix(foreign_rate=1.0)
    for seed in range(15):
        for example in sample_mix(toy, 100, seed, load_toy):
            if example.source != name:
                continue
            (true,) = row_of(example)
            hidden = names_of(toy.sources[name], true)
            assert not hidden & {label.casefold() for label in example.not_labels}


def test_a_row_with_more_true_labels_than_fit_leaves_room_for_a_false_one():
    toy = mix(("colours",), max_candidates=2, foreign_rate=0)
    examples = sample_mix(toy, 200, 0, load_toy)
    assert {len(e.labels) for e in examples} == {1}
    assert {len(row_of(e)) for e in examples} == {1, 2, 3, 4}
    for example in examples:
        cut = {label.casefold() for label in row_of(example)}
        if example.labels[0] == example.labels[0].lower() and "red" not in cut:
            assert not cut & {label.casefold() for label in example.not_labels}


def test_foreign_labels_come_at_their_rate():
    def foreign(rate):
        toy = mix(("moods", "colours"), foreign_rate=rate, max_candidates=8)
        own = {n.casefold() for label in MOODS for n in names_of(toy.sources["moods"], label)}
        rows = [e for e in sample_mix(toy, 300, 0, load_toy) if e.source == "moods"]
        found = [[x for x in e.not_labels if x.casefold() not in own] for e in rows]
        assert all(len(labels) <= 2 for labels in found)
        assert {x for labels in found for x in labels} <= set(COLOURS)
        return sum(bool(labels) for labels in found) / len(found)

    assert foreign(0.0) == 0
    assert foreign(1.0) == 1
    assert 0.3 < foreign(0.5) < 0.7


def test_foreign_labels_take_the_case_of_no_own_label():
    # "POSITIVE" of `cases` is the same label as "Positive" of `moods`.
    toy = mix(("moods", "cases"), foreign_rate=1.0)
    examples = [e for s in range(5) for e in sample_mix(toy, 200, s, load_toy)]
    mixed = [e for e in examples if e.source == "moods" and "mixed" in e.not_labels]
    assert mixed  # foreign labels did come
    for e in examples:
        folded = [label.casefold() for label in (*e.labels, *e.not_labels)]
        assert len(folded) == len(set(folded))


def test_one_source_alone_has_no_foreign_label():
    examples = sample_mix(mix(("tiny",), foreign_rate=1.0), 5, 0, load_toy)
    assert {x for e in examples for x in (*e.labels, *e.not_labels)} == {"yes", "no"}


def test_candidate_sets_have_every_size():
    toy = mix(("colours",), foreign_rate=0, max_candidates=6)
    toy.sources["colours"].wordings = []
    sizes = Counter(len(e.labels) + len(e.not_labels) for e in sample_mix(toy, 200, 0, load_toy))
    assert set(sizes) == {2, 3, 4, 5, 6}
    assert sizes[6] >= 100


def test_every_wording_is_used_and_original_false_leaves_the_own_names_out():
    def shown(original):
        toy = mix(("moods",))
        toy.sources["moods"].original = original
        return {x for e in sample_mix(toy, 100, 0, load_toy) for x in (*e.labels, *e.not_labels)}

    assert shown(True) == {*MOODS, "good", "bad", "so-so"}
    assert shown(False) == {"good", "bad", "so-so"}


def test_a_row_has_one_wording():
    for e in sample_mix(mix(("moods",)), 100, 0, load_toy):
        shown = {*e.labels, *e.not_labels}
        assert shown <= set(MOODS) or shown <= {"good", "bad", "so-so"}


def test_a_wording_that_misses_a_label_is_an_error():
    toy = mix(("moods",))
    toy.sources["moods"].wordings = [{"Positive": "good", "negative": "bad"}]
    with pytest.raises(ValueError, match=r"a wording has no name for \['neutral'\]"):
        sample_mix(toy, 10, 0, load_toy)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_candidates": 1},
        {"foreign_rate": 1.5},
        {"sources": {"moods": {"weight": 0}}},
        {"sources": {"moods": {"weight": 1, "wording": []}}},
        {"sources": {"moods": {"weight": 1, "original": False}}},
        {"development": {"moods": {"weight": 1}}},
        {"unknown": 1},
    ],
)
def test_a_mix_that_makes_no_sense_is_an_error(fields):
    with pytest.raises(ValidationError):
        mix(**fields)


# Development sets


def development(wordings=None, original=True, name="cases", sources=("moods", "colours")) -> Mix:
    source = {"weight": 1, "original": original, "wordings": wordings or []}
    return mix(sources, development={name: source})


CASES = {"POSITIVE": "glad", "Negative": "sad", "mixed": "both"}


def test_development_sets_are_seeded_even_and_in_their_own_wording():
    toy = development([CASES], original=False)
    (data,) = development_sets(toy, 30, 0, load_toy)
    (again,) = development_sets(toy, 30, 0, load_toy)
    (other,) = development_sets(toy, 30, 1, load_toy)
    assert data == again != other
    assert data.name == "cases" and data.label_names == ("glad", "sad", "both")
    assert Counter(labels[0] for labels in data.labels) == {"glad": 10, "sad": 10, "both": 10}
    original = dict(zip(DATA["cases"].texts, DATA["cases"].labels, strict=True))
    for text, (label,) in zip(data.texts, data.labels, strict=True):
        assert CASES[original[text][0]] == label


def test_a_small_development_set_is_used_whole():
    (data,) = development_sets(development(name="tiny"), 30, 0, load_toy)
    assert sorted(data.texts) == sorted(DATA["tiny"].texts)


@pytest.mark.parametrize(
    "wordings",
    [[], [CASES | {"mixed": "Good"}], [CASES | {"mixed": "NEUTRAL"}]],
    ids=["own names", "another wording of a source", "a source's own name"],
)
def test_a_development_label_that_training_sees_is_an_error(wordings):
    with pytest.raises(ValueError, match="development set cases shares labels with training"):
        development_sets(development(wordings, original=not wordings), 10, 0, load_toy)


def test_a_set_cannot_be_trained_and_developed_on():
    with pytest.raises(ValidationError, match="both training sources and development sets"):
        development(name="moods")


# Fingerprints


def test_a_fingerprint_ignores_case_punctuation_and_white_space_only():
    assert text_fingerprint(" One\ttwo\n THREE ") == text_fingerprint("one two three")
    assert text_fingerprint("one two three") == text_fingerprint('"One two", three!')
    assert text_fingerprint("one two three") != text_fingerprint("one three two")
    assert text_fingerprint("one two") != text_fingerprint("onetwo")


def test_a_planted_benchmark_text_is_found():
    examples = sample_mix(mix(), 100, 0, load_toy)
    benchmark = [single("bench-a", ("x",), [40]), single("bench-b", ("x",), [30])]
    assert assert_no_overlap(examples, benchmark) == 70
    planted = [*examples, Example("  BENCH-B  text 7", ("x",), (), "leaky")]
    with pytest.raises(ValueError, match=r"1 texts of bench-b .* from leaky: '  BENCH-B  text 7'"):
        assert_no_overlap(planted, benchmark)


def test_a_forbidden_text_is_never_drawn():
    drawn = {e.text for e in sample_mix(mix(), 100, 0, load_toy)}
    banned = sorted(drawn)[:20]
    forbidden = {text_fingerprint(text.upper() + "!") for text in banned}
    again = {e.text for e in sample_mix(mix(), 100, 0, load_toy, forbidden)}
    assert len(again) == 100 and not again & set(banned)


def test_sources_of_one_family_lend_each_other_no_labels():
    def load(name):
        data = load_toy(name)
        task = {"moods": "emotion", "colours": "sentiment"}[name]
        return LabelledTexts(name, data.texts, data.labels, data.label_names, task=task)

    examples = sample_mix(mix(("moods", "colours"), foreign_rate=1.0), 200, 0, load)
    for e in (e for e in examples if e.source == "moods"):
        assert not set(e.not_labels) & set(COLOURS)


def test_exclude_and_rename_change_labels_before_anything_else():
    data = LabelledTexts("s", ("a", "b", "c"), (("x",), ("y", "z"), ("w",)), ("w", "x", "y", "z"))
    found = prepare(data, Source(weight=1, exclude=["w"], rename={"y": "x", "z": "zed"}))
    assert found.texts == ("a", "b")
    assert found.labels == (("x",), ("x", "zed"))
    assert found.label_names == ("x", "zed")
    with pytest.raises(ValueError, match=r"s has no label \['q'\]"):
        prepare(data, Source(weight=1, exclude=["q"]))


def test_a_mix_needs_a_row():
    with pytest.raises(ValueError, match="0 rows asked for"):
        sample_mix(mix(), 0, 0, load_toy)


def test_development_texts_of_a_training_source_are_left_out():
    def load(name):
        data = load_toy("moods" if name == "dev" else name)
        return LabelledTexts(name, data.texts, data.labels, data.label_names, task=name)

    names = {label: f"dev {label}" for label in load("dev").label_names}
    toy = mix(("moods", "colours"))
    dev = {"dev": Source(weight=1, original=False, wordings=[names])}
    (found,) = development_sets(toy.model_copy(update={"development": dev}), 50, 0, load)
    assert len(found) == 0


def test_an_empty_text_is_no_overlap():
    empty = LabelledTexts("empty", ("", " "), (("x",), ("x",)), ("x",))
    assert assert_no_overlap([Example("", ("x",), ())], [empty]) == 2


# The real mix


def test_the_mix_names_registered_sets_and_none_of_the_benchmark():
    for toy in mixes().values():
        for name in (*toy.sources, *toy.development):
            assert registry()[name].group == "train"


@pytest.fixture(scope="module")
def cached(mirror):
    """Loads a set once for all tests of the real mix, and hashes a text once."""
    found: dict[str, LabelledTexts] = {}

    def get(name: str) -> LabelledTexts:
        if name not in found:
            found[name] = load(name, root=mirror)
        return found[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "text_fingerprint", cache(sampling.text_fingerprint))
        yield get


@pytest.mark.no_cover  # hashes every text of the mix: tracing that takes minutes
def test_no_benchmark_text_is_in_the_real_mix(cached):
    broad = mixes()["broad"]
    benchmark = [cached(name) for name, spec in registry().items() if spec.group == "benchmark"]
    assert len(benchmark) >= 10
    examples = sample_mix(broad, 2000, 0, cached, fingerprints(benchmark))
    assert len(examples) == 2000
    assert {e.source for e in examples} == set(broad.sources)
    assert assert_no_overlap(examples, benchmark) > 10_000
    for example in examples:
        folded = [label.casefold() for label in (*example.labels, *example.not_labels)]
        assert len(folded) == len(set(folded)) <= broad.max_candidates


@pytest.mark.no_cover  # hashes every text of the mix: tracing that takes minutes
def test_the_real_development_labels_are_unseen_in_training(cached):
    broad = mixes()["broad"]
    sets = development_sets(broad, 20, 0, cached)
    assert [data.name for data in sets] == list(broad.development)
    assert all(len(data) == 20 for data in sets)


# Enrichment


def test_rows_of_the_corpus_keep_their_candidates():
    toy = mix(corpus_rows=50, max_candidates=2)
    examples = sample_mix(toy, 150, 4, load_toy)
    corpus = {e.text: e for e in hardset_mini("train")}
    found = [e for e in examples if e.source not in DATA]
    assert len(examples) == 150
    assert len({e.text for e in found}) == 50
    assert all(e == corpus[e.text] for e in found)
    # The other rows are what a mix of 100 rows draws.
    plain = sample_mix(mix(max_candidates=2), 100, 4, load_toy)
    assert sorted(map(repr, plain)) == sorted(repr(e) for e in examples if e.source in DATA)


@pytest.mark.parametrize(("rows", "corpus_rows"), [(50, 50), (0, 0), (5000, 631)])
def test_corpus_rows_that_leave_no_other_or_are_too_many_are_refused(rows, corpus_rows):
    with pytest.raises(ValueError, match=f"{rows} rows asked for, {corpus_rows} of them"):
        sample_mix(mix(corpus_rows=corpus_rows), rows, 0, load_toy)


def test_mined_negatives_are_the_nearest_wrong_labels():
    toy = mix(("colours",), mined_rate=1.0, foreign_rate=0.0, max_candidates=5)
    toy.sources["colours"].wordings = []
    nearest = nearest_labels(COLOURS)
    for example in sample_mix(toy, 100, 0, load_toy):
        true = row_of(example)
        rankings = [[x for x in nearest[t] if x not in true] for t in true]
        assert list(example.not_labels) in [r[: len(example.not_labels)] for r in rankings]


def test_mined_rate_is_a_share_of_the_rows():
    toy = mix(("colours",), mined_rate=0.4, foreign_rate=0.0, max_candidates=4)
    toy.sources["colours"].wordings = []
    nearest = nearest_labels(COLOURS)
    rows = [e for s in range(10) for e in sample_mix(toy, 200, s, load_toy)]
    mined = 0
    for e in rows:
        true = row_of(e)
        rankings = [[x for x in nearest[t] if x not in true] for t in true]
        mined += list(e.not_labels) in [r[: len(e.not_labels)] for r in rankings]
    # A single random negative is the nearest one now and then, hence the room above.
    assert 0.38 <= mined / len(rows) <= 0.56


def test_phrase_rate_adds_labels_from_the_texts():
    toy = mix(phrase_rate=1.0)
    examples = sample_mix(toy, 200, 0, load_toy)
    # Every text of a toy source is "NAME text NUMBER".
    found = Counter(x for e in examples for x in e.labels if x in (e.source, "text"))
    assert sum(found.values()) > 150
    assert all(len(e.labels) + len(e.not_labels) <= toy.max_candidates for e in examples)
