"""Naive formulas, one per equation, that the package passes and every planted error fails.

A mutant is compiled beside the package and never imported by it. Some are also planted for the
chapter that derives the formula, which must fail too.
"""

import importlib
import itertools
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import jupytext
import pytest
import torch
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from torch import Tensor
from transformers import BertConfig

from gliznet.config import GliZNetConfig

ROOT = Path(__file__).parents[1]
MUTANTS = yaml.safe_load((ROOT / "tests" / "mutants.yaml").read_text(encoding="utf-8"))
REGISTERED = "AutoModel.register(GliZNetConfig, GliZNetForSequenceClassification)"


def mutated(name: str, old: str = "", new: str = "") -> ModuleType:
    """A module of gliznet compiled anew with one piece of text replaced."""
    original = importlib.import_module(f"gliznet.{name}")
    source = Path(original.__file__).read_text(encoding="utf-8").replace(REGISTERED, "")
    if old:
        assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times in {name}.py"
    module = ModuleType(f"mutated_{name}")
    module.__file__ = original.__file__
    sys.modules[module.__name__] = module  # where dataclasses look up their module
    exec(compile(source.replace(old, new) if old else source, name, "exec"), module.__dict__)
    return module


def batch(seed: int = 0) -> SimpleNamespace:
    """Random scores, labels and embeddings; rows of several sizes, one without a positive."""
    g = torch.Generator().manual_seed(seed)
    sizes, k, d = [4, 3, 1, 2], 4, 5
    mask = torch.tensor([[j < n for j in range(k)] for n in sizes])
    labels = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 1, 0]]).double()
    embeddings = torch.randn(4, k, d, generator=g, dtype=torch.float64) + 0.8
    logits = 2 * torch.randn(4, k, generator=g, dtype=torch.float64)
    return SimpleNamespace(mask=mask, labels=labels, embeddings=embeddings, logits=logits)


def rows(b: SimpleNamespace) -> list[tuple[list[float], set[int], Tensor]]:
    """Scores, positives and embeddings of the real labels of every row."""
    found = []
    for i in range(len(b.mask)):
        real = [j for j in range(b.mask.shape[1]) if b.mask[i, j]]
        positive = {n for n, j in enumerate(real) if b.labels[i, j] > 0.5}
        found.append(([float(b.logits[i, j]) for j in real], positive, b.embeddings[i, real]))
    return found


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def near(found: Tensor | float, expected: float) -> None:
    assert abs(float(torch.as_tensor(found, dtype=torch.float64).detach()) - expected) < 1e-9


def differentiable(loss: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Its gradients are those of its own values, by central differences: nothing is detached."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    assert all(g is not None for g in torch.autograd.grad(loss(*leaves), leaves, allow_unused=True))
    torch.autograd.gradcheck(loss, leaves)


def check_supcon(module: ModuleType) -> None:
    for seed in range(3):
        b = batch(seed)
        expected = [
            mean([math.log(sum(math.exp(t) for t in s)) - s[j] for j in positive])
            for s, positive, _ in rows(b)
            if positive
        ]
        near(module.supcon_loss(b.logits, b.labels, b.mask), mean(expected))
        # A label is true above one half, as soft targets are read.
        for soft in (0.2 + 0.6 * b.labels, 0.5 + 0.1 * b.labels):
            near(module.supcon_loss(b.logits, soft, b.mask), mean(expected))
        # A shift of every score changes nothing, however far down.
        near(module.supcon_loss(b.logits - 1e4, b.labels, b.mask), mean(expected))
        differentiable(lambda s, b=b: module.supcon_loss(s, b.labels, b.mask), b.logits)


def check_one_vs_negatives(module: ModuleType) -> None:
    for margin in (0.0, 0.7):
        b = batch()
        per_row = []
        for s, positive, _ in rows(b):
            others = sum(math.exp(s[k]) for k in range(len(s)) if k not in positive)
            own = [math.exp(s[j] - margin) for j in positive]
            if positive:
                per_row.append(mean([-math.log(x / (x + others)) for x in own]))
        for logits in (b.logits, b.logits - 1e4):
            near(module.one_vs_negatives_loss(logits, b.labels, b.mask, margin), mean(per_row))
        half = 0.5 + 0.1 * b.labels
        near(module.one_vs_negatives_loss(b.logits, half, b.mask, margin), mean(per_row))
        differentiable(
            lambda s, b=b, m=margin: module.one_vs_negatives_loss(s, b.labels, b.mask, m), b.logits
        )


def check_repulsion(module: ModuleType) -> None:
    default = 0.3  # math §8.2
    for threshold in (0.0, default):
        b = batch()
        per_row = []
        for _, _, e in rows(b):
            pairs = [(j, k) for j in range(len(e)) for k in range(len(e)) if j != k]
            cosine = [float(e[j] @ e[k] / (e[j].norm() * e[k].norm())) for j, k in pairs]
            if pairs:
                per_row.append(mean([max(0.0, c - threshold) for c in cosine]))
        near(module.repulsion_loss(b.embeddings, b.mask, threshold), mean(per_row))
        if threshold == default:
            near(module.repulsion_loss(b.embeddings, b.mask), mean(per_row))
        differentiable(
            lambda e, b=b, t=threshold: module.repulsion_loss(e, b.mask, t), b.embeddings
        )


def check_vicreg(module: ModuleType) -> None:
    b = batch()
    flat = torch.cat([e for _, _, e in rows(b)])
    covariance = torch.cov(flat.T)
    d = len(covariance)
    apart = sum(float(covariance[i, j]) ** 2 for i in range(d) for j in range(d) if i != j)
    for given, target in (({"target_std": 2.0}, 2.0), ({}, 1.0)):
        below = [target - math.sqrt(float(covariance[i, i]) + 1e-4) for i in range(d)]
        hinge = mean([max(0.0, x) for x in below])
        near(module.vicreg_loss(b.embeddings, b.mask, **given), hinge + apart / d)
    differentiable(lambda e: module.vicreg_loss(e, b.mask), b.embeddings)
    alone = torch.zeros_like(b.mask)
    near(module.vicreg_loss(b.embeddings, alone), 0.0)
    alone[0, 0] = True
    near(module.vicreg_loss(b.embeddings, alone), 0.0)


def check_bce(module: ModuleType) -> None:
    b = batch()
    tau, tau_bce = 3.0, 5.0
    for certain in (1.0, 0.8):  # a target of 0.8 is a true label with that probability
        terms = []
        for s, positive, _ in rows(b):
            for j, score in enumerate(s):
                p = 1 / (1 + math.exp(-score / tau * tau_bce))
                y = certain if j in positive else 1 - certain
                terms.append(-y * math.log(p) - (1 - y) * math.log(1 - p))
        targets = certain * b.labels + (1 - certain) * (1 - b.labels)
        near(module.bce_loss(b.logits, targets, b.mask, tau, tau_bce), mean(terms))
        scales = torch.tensor([tau, tau_bce], dtype=torch.float64).unbind()
        differentiable(
            lambda s, t, u, b=b, y=targets: module.bce_loss(s, y, b.mask, t, u), b.logits, *scales
        )


def check_total(module: ModuleType) -> None:
    one, two, three = (torch.tensor(x, dtype=torch.float64) for x in (1.5, 2.5, 4.0))
    total = module.total_loss(one, two, three, (0.5, 2.0, 0.25))
    near(total.total, 0.75 + 5.0 + 1.0)


def tokens(seed: int = 0) -> SimpleNamespace:
    g = torch.Generator().manual_seed(seed)
    lmask = torch.tensor([[0, 0, 0, 0, 1, 1, 0, 2, 0], [0, 0, 0, 1, 0, 2, 2, 2, 0]])
    text = torch.tensor([[0, 1, 1, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0, 0]]).bool()
    z = torch.randn(2, 9, 4, generator=g, dtype=torch.float64)
    values = torch.randn(2, 9, 4, generator=g, dtype=torch.float64)
    return SimpleNamespace(lmask=lmask, text=text, z=z, values=values)


def pooled(z: Tensor, positions: list[int]) -> Tensor:
    return sum(z[i] for i in positions) / len(positions)


def attended(query: Tensor, keys: Tensor, values: Tensor, positions: list[int], tau: float):
    weights = [math.exp(float(query @ keys[i]) / tau) for i in positions]
    return sum(w * values[i] for w, i in zip(weights, positions, strict=True)) / sum(weights)


def check_layers(module: ModuleType) -> None:
    t = tokens()
    labels = module.pool_labels(t.z, module.label_membership(t.lmask, 2))
    for tau in (0.5, 2.0):
        for values in (None, t.values):
            found, weights = module.label_conditioned_attention(labels, t.z, t.text, tau, values)
            for b in range(2):
                text = t.text[b].nonzero().flatten().tolist()
                near(weights[b, 0, ~t.text[b]].sum(), 0.0)
                for j in range(2):
                    query = pooled(t.z[b], (t.lmask[b] == j + 1).nonzero().flatten().tolist())
                    used = t.z[b] if values is None else t.values[b]
                    expected = attended(query, t.z[b], used, text, tau)
                    torch.testing.assert_close(labels[b, j], query)
                    torch.testing.assert_close(found[b, j], expected)


def check_heads(module: ModuleType) -> None:
    g = torch.Generator().manual_seed(1)
    a, b = (torch.randn(2, 3, 4, generator=g, dtype=torch.float64) for _ in range(2))
    matrix = torch.randn(4, 4, generator=g, dtype=torch.float64)
    formula: dict[str, Callable[[Tensor, Tensor], float]] = {
        "cosine": lambda x, y: 3.0 * float(x @ y / (x.norm() * y.norm())),
        "dot": lambda x, y: sum(float(matrix[0, i] * x[i] * y[i]) for i in range(4)) + 0.25,
        "bilinear": lambda x, y: float(x @ matrix @ y) + 0.25,
    }
    for kind, expected in formula.items():
        head = module.SimilarityHead(SimpleNamespace(embedding_dim=4, head=kind)).double()
        if kind != "cosine":
            head.weight.data = matrix[0] if kind == "dot" else matrix
            head.bias.data.fill_(0.25)
        found = head(a, b, torch.tensor(3.0, dtype=torch.float64))
        for i in range(2):
            for j in range(3):
                near(found[i, j], expected(a[i, j], b[i, j]))


PAD, CLS, SEP, LAB = 0, 1, 2, 3
IDS = torch.tensor(
    [
        [CLS, 10, 11, 12, SEP, 20, 21, LAB, 22, LAB, PAD],
        [CLS, 13, SEP, 23, LAB, 24, 25, 26, LAB, 0, 0],
    ]
)
LMASK = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 0, 2, 0, 0], [0, 0, 0, 1, 0, 2, 2, 2, 0, 0, 0]])
TARGETS = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)


def check_model(module: ModuleType) -> None:
    losses = importlib.import_module("gliznet.losses")
    encoder = BertConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    # No switch has its default, so that a model which ignores one is found.
    switches = {
        "repulsion_threshold": -0.9,
        "margin": 0.8,
        "vicreg_target_std": 3.0,
        "contrastive_weight": 0.7,
        "repulsion_weight": 1.3,
        "bce_weight": 0.4,
    }
    for preset in ("math", "card"):
        torch.manual_seed(0)
        config = getattr(GliZNetConfig, preset)(
            encoder,
            lab_token_id=LAB,
            control_token_ids=[CLS, SEP, LAB],
            tau_bce=2.0,
            **switches,
        )
        model = module.GliZNetForSequenceClassification(config).double().eval()
        for parameter in model.parameters():
            parameter.data.add_(0.3 * torch.randn_like(parameter))
        attention_mask = (IDS != PAD).long()
        with torch.no_grad():
            found = model(IDS, attention_mask, LMASK, TARGETS)
            hidden = model.backbone(IDS, attention_mask).last_hidden_state
            z_text, z_label = model.text_projection(hidden), model.label_projection(hidden)
            tau, tau_attn = float(model.tau), float(model.tau_attn)
            expected = torch.zeros(2, 2, dtype=torch.float64)
            label_embeddings = torch.zeros(2, 2, z_label.shape[-1], dtype=torch.float64)
            for b in range(2):
                row = IDS[b].tolist()
                text = list(range(1, row.index(SEP)))
                labs = [i for i, token in enumerate(row) if token == LAB]
                for j in range(2):
                    own = (LMASK[b] == j + 1).nonzero().flatten().tolist()
                    label = pooled(z_label[b], own if preset == "math" else [labs[j]])
                    label_embeddings[b, j] = label
                    summary = attended(label, z_text[b], z_text[b], text, tau_attn)
                    if preset == "math":
                        expected[b, j] = tau * (summary @ label / (summary.norm() * label.norm()))
                    else:
                        expected[b, j] = summary @ model.head.weight @ label + model.head.bias
            torch.testing.assert_close(found.logits, expected)
            ratio = float(model.tau_bce) / tau if preset == "math" else 1.0
            torch.testing.assert_close(model.probability_logits(expected), expected * ratio)
            whole = torch.ones(2, 2, dtype=torch.bool)
            own = label_embeddings, whole
            contrastive, repulsion = (
                (
                    losses.supcon_loss(expected, TARGETS, whole),
                    losses.repulsion_loss(*own, switches["repulsion_threshold"]),
                )
                if preset == "math"
                else (
                    losses.one_vs_negatives_loss(expected, TARGETS, whole, switches["margin"]),
                    losses.vicreg_loss(*own, switches["vicreg_target_std"]),
                )
            )
            bce = losses.bce_loss(expected * ratio, TARGETS, whole)
            terms = {"contrastive": contrastive, "repulsion": repulsion, "bce": bce}
            for name, value in terms.items():
                near(found.loss_terms[name], float(value))
            weights = (switches[f"{name}_weight"] for name in terms)
            near(
                found.loss, float(sum(w * t for w, t in zip(weights, terms.values(), strict=True)))
            )


def steps(*sizes: int) -> int:
    """Counts a nest of loops one step at a time."""
    return sum(1 for _ in itertools.product(*map(range, sizes)))


def layer_steps(length: int, maps: list[tuple[int, int]], head: int, heads: int) -> int:
    """Multiplications of one layer: its maps, then scores and weighted sums of every head."""
    return sum(steps(length, a, b) for a, b in maps) + 2 * steps(heads, length, length, head)


def check_layer_costs(module: ModuleType) -> None:
    # Widths: hidden 6, heads 4 x 2, key heads 2 x 2, feed-forward 5; two matrices in, one out.
    maps = [(6, 8), (6, 4), (6, 4), (8, 6), (6, 5), (6, 5), (5, 6)]
    pairs = steps(7, 3, sum(a + b for a, b in maps))  # LoRA of rank 3 on every matrix
    plain = layer_steps(7, maps, 2, 4)
    scores = steps(4, 7, 7, 2)
    encoder = module.Encoder(3, 6, 5, queries=8, keys=4, expansions=2)
    near(encoder.block(7), plain)
    near(encoder.block(7, 3), plain + pairs)
    # Backward: both factors of every product; a frozen matrix needs only the slope by its input.
    near(encoder.block_backward(7), 2 * plain)
    near(
        encoder.block_backward(7, 3), sum(steps(7, a, b) for a, b in maps) + 2 * pairs + 4 * scores
    )
    near(encoder.forward(7, 2), 3 * 2 * plain)
    near(encoder.turning_length(), sum(a * b for a, b in maps) / 16)
    # DeBERTa: queries and keys of every token meet ten positions, mapped twice for all rows.
    deberta = module.Encoder(3, 6, 5, queries=8, positions=10)
    own = [(6, 8), (6, 8), (6, 8), (8, 6), (6, 5), (5, 6)]
    per_row = layer_steps(7, own, 2, 4) + 2 * steps(7, 10, 8)
    near(deberta.forward(7, 2), 3 * (2 * per_row + 2 * steps(10, 6, 8)))


def check_method_costs(module: ModuleType) -> None:
    maps = [*[(6, 6)] * 4, (6, 5), (5, 6)]

    def passes(length: int, rows: int = 1) -> int:
        return 2 * rows * layer_steps(length, maps, 3, 2)

    encoder, text, label = module.Encoder(2, 6, 5), 4, 2
    for labels in (1, 3):
        joint = len(["[CLS]", *["text"] * text, "[SEP]", *["label", "label", "[LAB]"] * labels])
        pair = len(["[CLS]", *["text"] * text, "[SEP]", *["label"] * label, "[SEP]"])
        near(module.joint_length(text, label, labels), joint)
        near(module.pair_length(text, label), pair)
        own = 2 * steps(joint, 6, 3) + 3 * steps(labels, joint, 3)
        for head, work in (
            ("cosine", steps(3, labels, 3)),
            ("dot", steps(2, labels, 3)),
            ("bilinear", steps(labels, 3, 3) + steps(labels, 3)),
        ):
            found = module.single_pass(encoder, text, label, labels, dim=3, head=head)
            near(found, passes(joint) + own + work)
        found = module.single_pass(encoder, text, label, labels, projected=False)
        near(found, passes(joint) + 3 * steps(labels, joint, 6) + steps(3, labels, 6))
        head = steps(labels, 6, 6) + steps(labels, 6)
        near(module.cross_encoder(encoder, text, label, labels), passes(pair, labels) + head)
        kept = passes(text + 2) + steps(labels, 6)
        near(module.bi_encoder(encoder, text, label, labels, cached=True), kept)
        near(module.bi_encoder(encoder, text, label, labels), kept + passes(label + 2, labels))
        reader = module.Encoder(1, 4, 3)
        read = layer_steps(text + 2, [*[(4, 4)] * 4, (4, 3), (3, 4)], 2, 2)
        scored = steps(4, 6) + passes(labels + 1) + steps(labels, 6)
        near(module.soft_encoder(reader, encoder, text, labels, cached=True), scored)
        near(module.soft_encoder(reader, encoder, text, labels), scored + read)
    numbers = [module.joint_length(text, label, k) <= 40 for k in range(1, 41)]
    near(module.labels_that_fit(40, text, label), sum(numbers))
    rows = [[0.0] * 5 for _ in range(5)]
    near(module.attention_weights(2, 3, 5, 4), 2 * 3 * 4 * sum(map(len, rows)))


def check_speed_up(module: ModuleType) -> None:
    def one(k: float) -> float:
        return 50 + 3 * k + 2 * k**2

    numbers, pair = module.quadratic(one), 27.0
    assert numbers == pytest.approx((50, 3, 2))
    ratio = [k * pair / one(k) for k in range(1, 40)]
    for k, expected in enumerate(ratio, start=1):
        near(module.speed_up(numbers, pair, k), expected)
    assert ratio.index(max(ratio)) + 1 == module.best_labels(numbers) == 5
    even = module.break_even(numbers, pair)
    near(even * pair, one(even))
    assert even > 5
    assert math.isnan(module.break_even(numbers, 4.0))
    for labels, size in ((7, 3), (6, 3), (2, 5)):
        parts = [range(labels)[i : i + size] for i in range(0, labels, size)]
        near(module.chunked(one, labels, size), sum(one(len(part)) for part in parts))


ORACLES: dict[str, list[Callable[[ModuleType], None]]] = {
    "losses": [
        check_supcon,
        check_one_vs_negatives,
        check_repulsion,
        check_vicreg,
        check_bce,
        check_total,
    ],
    "layers": [check_layers, check_heads],
    "model": [check_model],
    "costs": [check_layer_costs, check_method_costs, check_speed_up],
}


@pytest.mark.parametrize(
    ("name", "oracle"),
    [(name, oracle) for name, oracles in ORACLES.items() for oracle in oracles],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_package_passes(name, oracle):
    oracle(mutated(name))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m['file']}: {m['new'][:50]}")
def test_a_mutant_is_killed(mutant):
    module = mutated(mutant["file"], mutant["old"], mutant["new"])
    survived = []
    for oracle in ORACLES[mutant["file"]]:
        try:
            oracle(module)
        except (AssertionError, RuntimeError, ValueError, IndexError):
            break
        survived.append(oracle.__name__)
    assert len(survived) < len(ORACLES[mutant["file"]]), f"{mutant['new']!r} passes every check"


@pytest.mark.parametrize(
    "mutant", [m for m in MUTANTS if "chapter" in m], ids=lambda m: m["chapter"]
)
def test_a_planted_error_fails_its_chapter(mutant, tmp_path, monkeypatch):
    """As a reader would plant it: in a copy of the package that the notebook imports."""
    copy = tmp_path / "gliznet"
    shutil.copytree(ROOT / "gliznet", copy, ignore=shutil.ignore_patterns("__pycache__"))
    path = copy / f"{mutant['file']}.py"
    source = path.read_text(encoding="utf-8")
    path.write_text(source.replace(mutant["old"], mutant["new"]), encoding="utf-8")
    for name in ("notebooks", "results"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    notebook = jupytext.read(ROOT / "notebooks" / f"{mutant['chapter']}.py")
    client = NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}})
    with pytest.raises(CellExecutionError) as failure:
        client.execute()
    assert failure.value.ename == "AssertionError", failure.value
