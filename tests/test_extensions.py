"""The extensions against loops written from math §13, and what they refuse."""

import re
from pathlib import Path

import pytest
import torch

from gliznet import GliZNETTokenizer
from gliznet.backbones import TINY, load_or_build, resolve
from gliznet.extensions import (
    hierarchical_loss,
    hierarchy_mask,
    prototype_logits,
    prototypes,
    unknown_share,
)

PARENTS = {"tennis": "sport", "football": "sport", "sport": "leisure", "bread": "food"}
SETS = [["tennis", "sport", "bread", "leisure"], ["food", "bread"], ["tennis"]]


def random_labels(seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])
    return torch.randn(3, 4, 5, generator=generator, dtype=torch.float64), mask


def test_the_hierarchy_holds_each_candidates_parent_if_it_is_a_candidate():
    assert hierarchy_mask(SETS, PARENTS).nonzero().tolist() == [[0, 1, 0], [0, 3, 1], [1, 0, 1]]
    assert hierarchy_mask([], PARENTS).shape == (0, 0, 0)
    assert not hierarchy_mask(SETS, {}).any()


@pytest.mark.parametrize("parents", [{"a": "a"}, {"a": "b", "b": "c", "c": "b"}])
def test_a_hierarchy_with_a_cycle_is_refused(parents):
    with pytest.raises(ValueError, match="cycle: a < "):
        hierarchy_mask([["x"]], parents)


@pytest.mark.parametrize("threshold", [-0.3, 0.2, 0.9])
def test_the_hinge_equals_the_loops(threshold):
    embeddings, mask = random_labels()
    costs = []
    for b, labels in enumerate(SETS):
        row = []
        for j, above in enumerate(labels):
            for k, below in enumerate(labels):
                if PARENTS.get(below) == above:
                    e, f = embeddings[b, j], embeddings[b, k]
                    row.append(max(0.0, threshold - float(e @ f / (e.norm() * f.norm()))))
        costs.append(row)
    pairs = hierarchy_mask(SETS, PARENTS)
    means = [sum(row) / len(row) for row in costs if row]
    got = [hierarchical_loss(embeddings, mask, pairs, threshold, r).item() for r in ("sum", "mean")]
    assert got == pytest.approx([sum(map(sum, costs)), sum(means) / len(means)], abs=1e-12)


def test_padding_and_rows_without_a_pair_do_not_count():
    embeddings, mask = random_labels()
    pairs = hierarchy_mask(SETS, PARENTS)
    noisy = pairs.clone()
    noisy[1, 2, 3] = noisy[2, 0, 1] = True  # at least one end is padding
    for reduction in ("sum", "mean"):
        plain = hierarchical_loss(embeddings, mask, pairs, 0.9, reduction)
        assert hierarchical_loss(embeddings, mask, noisy, 0.9, reduction) == plain
    leaf = embeddings.requires_grad_()
    zero = hierarchical_loss(leaf, mask, torch.zeros_like(pairs), 0.9)
    zero.backward()
    assert zero.item() == 0 and leaf.grad.abs().max() == 0


def test_a_step_brings_parent_and_child_together_and_leaves_the_others():
    embeddings, mask = random_labels(1)
    leaf = embeddings.requires_grad_()
    pairs = hierarchy_mask(SETS, PARENTS)
    assert torch.autograd.gradcheck(lambda e: hierarchical_loss(e, mask, pairs, 0.95), leaf)
    before = hierarchical_loss(leaf, mask, pairs, 0.95)
    before.backward()
    assert leaf.grad[0, 2].abs().max() == 0 and leaf.grad[2].abs().max() == 0
    assert leaf.grad[1, 0].abs().max() > 0 and leaf.grad[1, 1].abs().max() > 0
    assert hierarchical_loss(leaf - 0.01 * leaf.grad, mask, pairs, 0.95) < before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_is_computed_in_float32(dtype):
    embeddings, mask = random_labels()
    value = hierarchical_loss(embeddings.to(dtype), mask, hierarchy_mask(SETS, PARENTS), 0.9)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    mean = prototypes(embeddings.to(dtype), torch.zeros(3, 4).long(), mask, 1)
    assert mean.dtype == value.dtype


@pytest.mark.parametrize(
    ("options", "message"),
    [({"threshold": 1.5}, "threshold is 1.5"), ({"reduction": "max"}, "reduction is 'max'")],
)
def test_values_outside_their_range_are_refused(options, message):
    embeddings, mask = random_labels()
    with pytest.raises(ValueError, match=message):
        hierarchical_loss(embeddings, mask, hierarchy_mask(SETS, PARENTS), **options)


def test_a_prototype_is_the_mean_of_the_chosen_labels_and_spreads_its_gradient():
    embeddings, mask = random_labels(2)
    classes = torch.tensor([[0, 1, 0, 7], [1, 0, 7, 7], [0, 7, 7, 7]], dtype=torch.int32)
    chosen = mask & (classes != 7)
    leaf = embeddings.requires_grad_()
    got = prototypes(leaf, classes, chosen, 2)
    first = [leaf[0, 0], leaf[0, 2], leaf[1, 1], leaf[2, 0]]
    torch.testing.assert_close(got[0], sum(first) / 4)
    torch.testing.assert_close(got[1], (leaf[0, 1] + leaf[1, 0]) / 2)
    got[0].sum().backward()
    assert leaf.grad[0, 0].tolist() == [0.25] * 5 and leaf.grad[0, 1].abs().max() == 0


@pytest.mark.parametrize(
    ("classes", "message"), [([[0, 0]], "no example of class 1"), ([[0, 2]], "must be 0 to 1")]
)
def test_a_class_without_example_or_out_of_range_is_refused(classes, message):
    chosen = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        prototypes(torch.ones(1, 2, 3), torch.tensor(classes), chosen, 2)
    with pytest.raises(ValueError, match="no example of class 0"):
        prototypes(torch.ones(1, 2, 3), torch.tensor(classes), ~chosen, 2)


@pytest.mark.parametrize("formulation", ["math", "card"])
def test_the_own_label_embeddings_as_prototypes_give_the_models_scores(tmp_path, formulation):
    model, tokenizer = load_or_build("", TINY, formulation, tmp_path, 128)
    labels = ["war and peace", "cooking", "animals"]
    for text in ("the cat sat on the mat", "a long story", ""):
        batch = tokenizer([text], labels)
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "lmask")}
        with torch.inference_mode():
            output = model(**inputs)
            order = output.label_embeddings[0, [2, 0, 1, 1]]
            got = prototype_logits(model, **inputs, prototypes=order)
        torch.testing.assert_close(got, output.logits[:, [2, 0, 1, 1]], rtol=1e-5, atol=1e-5)


def test_unknown_share_counts_what_the_vocabulary_lacks(tmp_path):
    tokenizer = GliZNETTokenizer.from_pretrained(resolve(TINY, tmp_path))
    known = len(tokenizer.tokenizer.tokenize("the cat"))
    got = unknown_share(tokenizer, ["the cat", "", "ድመት ቤት", "ድመት the cat"])
    assert got == [0.0, 0.0, 1.0, 1 / (1 + known)]


def test_nothing_in_the_package_uses_the_extensions():
    folder = Path(__file__).parents[1] / "gliznet"
    for file in folder.rglob("*.py"):
        if file.name != "extensions.py":
            assert not re.search(r"import.*extensions|extensions import", file.read_text()), file
