"""The model against loops written from math §4–§7, and what a checkpoint must keep."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    DebertaV2Config,
    ModernBertConfig,
    RobertaConfig,
)

from gliznet import GliZNetConfig, GliZNetForSequenceClassification, GliZNETTokenizer, losses
from gliznet.backbones import resolve
from gliznet.layers import label_conditioned_attention, label_membership, pool_labels

TEXTS = ["the cat sat on the mat", "", "a long story about war and peace and the price of bread"]
LABELS = [["animals", "war and peace", "cooking"], ["animals"], ["the price of bread", "cats"]]
TARGETS = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
SMALL = {
    "vocab_size": 1001,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 160,
}
BERT_LIKE = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
BACKBONES = {
    "bert": lambda: BertConfig(**SMALL),
    "roberta": lambda: RobertaConfig(**SMALL, **BERT_LIKE),
    "modernbert": lambda: ModernBertConfig(
        **SMALL, **BERT_LIKE, cls_token_id=2, sep_token_id=3, local_attention=8
    ),
    # DeBERTa-v3's settings: disentangled attention, no absolute positions, no token types.
    "deberta-v2": lambda: DebertaV2Config(
        **SMALL,
        relative_attention=True,
        position_buckets=16,
        pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_biased_input=False,
        type_vocab_size=0,
    ),
}
every_backbone = pytest.mark.parametrize("backbone", BACKBONES)
both_formulations = pytest.mark.parametrize("formulation", ["math", "card"])
GRID = {
    "projection": ("identity", "linear", "linear_layernorm"),
    "label_embedding": ("mean", "lab"),
    "text_embedding": ("label_attention", "cls", "mean"),
    "attention_positions": ("text", "unlabelled"),
    "attention_score": ("dot", "cosine"),
    "head": ("cosine", "dot", "bilinear"),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return resolve("tiny-random", tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def tokenizer(tiny) -> GliZNETTokenizer:
    return GliZNETTokenizer.from_pretrained(tiny, max_length=128)


@pytest.fixture(scope="module")
def encode(tokenizer):
    def call(texts, labels) -> dict[str, torch.Tensor]:
        batch = tokenizer(texts, labels)
        return {k: batch[k] for k in ("input_ids", "attention_mask", "lmask")}

    return call


@pytest.fixture(scope="module")
def batch(encode):
    return encode(TEXTS, LABELS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """One saved random encoder per family."""
    saved = {}
    for name, config in BACKBONES.items():
        torch.manual_seed(0)
        saved[name] = tmp_path_factory.mktemp(name)
        AutoModel.from_config(config()).save_pretrained(saved[name])
    return saved


@pytest.fixture(scope="module")
def build(tokenizer):
    """A random model; `spread` moves every part off its initial value, where switches coincide."""

    def call(backbone="bert", formulation="math", spread=True, **overrides):
        torch.manual_seed(0)
        config = getattr(GliZNetConfig, formulation)(
            BACKBONES[backbone](),
            lab_token_id=tokenizer.lab_token_id,
            control_token_ids=tokenizer.control_token_ids,
            **overrides,
        )
        model = GliZNetForSequenceClassification(config).eval()
        if spread:
            with torch.no_grad():
                for name, value in itertools.chain(model.named_parameters(), model.named_buffers()):
                    if not name.startswith("backbone."):
                        value.add_(0.3 * torch.randn_like(value))
        return model

    return call


# The oracle: one loop per index of the formulas, float64, sharing no code with the model.


def project(module, config, h):
    if config.projection == "identity":
        return h
    z = module[0].weight @ h + module[0].bias
    if config.projection == "linear_layernorm":
        z = (z - z.mean()) / torch.sqrt(((z - z.mean()) ** 2).mean() + module[1].eps)
        z = z * module[1].weight + module[1].bias
    return z


def cosine(u, v):
    return (u @ v) / (u.norm() * v.norm())


def naive_forward(model, batch, control):
    """Rows of (logit, label embedding, text embedding, attention) for the real labels."""
    config = model.config
    hidden = model.backbone(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
    ).last_hidden_state
    rows = []
    for b in range(len(hidden)):
        ids, mask = batch["input_ids"][b].tolist(), batch["lmask"][b].tolist()
        attended = batch["attention_mask"][b].tolist()
        places = [i for i in range(len(ids)) if mask[i] == 0 and attended[i]]
        if config.attention_positions == "text":
            places = [i for i in places if ids[i] not in control] or [0]
        text = {i: project(model.text_projection, config, hidden[b, i]) for i in [0, *places]}
        row = []
        for j in range(1, max(mask) + 1):
            own = [i for i in range(len(ids)) if mask[i] == j]
            if config.label_embedding == "lab":
                own = [own[-1] + 1]
                assert ids[own[0]] == config.lab_token_id
            label = sum(project(model.label_projection, config, hidden[b, i]) for i in own)
            label = label / len(own)
            weights = None
            if config.text_embedding == "cls":
                summary = text[0]
            elif config.text_embedding == "mean":
                summary = sum(text[i] for i in places) / len(places)
            else:
                similarity = cosine if config.attention_score == "cosine" else torch.dot
                scores = [similarity(label, text[i]) / math.exp(model.log_tau_attn) for i in places]
                total = sum(math.exp(s) for s in scores)
                weights = {i: math.exp(s) / total for i, s in zip(places, scores, strict=True)}
                summary = sum(weights[i] * text[i] for i in places)
            if config.head == "cosine":
                logit = math.exp(model.log_tau) * cosine(summary, label)
            elif config.head == "dot":
                logit = sum(model.head.weight * summary * label) + model.head.bias
            else:
                logit = summary @ model.head.weight @ label + model.head.bias
            row.append((logit, label, summary, weights))
        rows.append(row)
    return rows


@pytest.mark.parametrize("switches", list(itertools.product(*GRID.values())), ids="-".join)
@torch.no_grad()
def test_every_combination_of_switches_equals_the_loops(build, batch, tokenizer, switches):
    model = build(**dict(zip(GRID, switches, strict=True))).double()
    output = model(**batch, output_text_attention=True)
    expected = naive_forward(model, batch, tokenizer.control_token_ids)
    assert output.label_mask.tolist() == [[j < len(row) for j in range(3)] for row in LABELS]
    assert output.logits.dtype == torch.float64
    close = {"rtol": 1e-9, "atol": 1e-10}
    for b, row in enumerate(expected):
        assert len(row) == len(LABELS[b])
        assert (output.logits[b, len(row) :] == -torch.inf).all()
        for j, (logit, label, summary, weights) in enumerate(row):
            torch.testing.assert_close(output.logits[b, j], logit, **close)
            torch.testing.assert_close(output.label_embeddings[b, j], label, **close)
            torch.testing.assert_close(output.text_embeddings[b, j], summary, **close)
            if weights is None:
                assert output.text_attention is None
            else:
                dense = torch.zeros(batch["input_ids"].shape[1], dtype=torch.float64)
                dense[list(weights)] = torch.tensor(list(weights.values()), dtype=torch.float64)
                torch.testing.assert_close(output.text_attention[b, j], dense, **close)


@pytest.mark.parametrize("head", GRID["head"])
@pytest.mark.parametrize("repulsion", ["cosine", "vicreg"])
@pytest.mark.parametrize("contrastive", ["supcon", "one_vs_negatives"])
def test_the_loss_is_the_weighted_sum_of_its_terms(build, batch, contrastive, repulsion, head):
    model = build(
        contrastive=contrastive,
        repulsion=repulsion,
        head=head,
        margin=0.7,
        repulsion_threshold=-0.2,
        vicreg_target_std=2.0,
        contrastive_weight=0.5,
        repulsion_weight=0.25,
        bce_weight=2.0,
    ).double()
    targets = TARGETS.double()
    output = model(**batch, labels=targets)
    mask, e = output.label_mask, output.label_embeddings
    s = output.logits.masked_fill(~mask, 0.0)
    if contrastive == "supcon":
        first = losses.supcon_loss(s, targets, mask)
    else:
        first = losses.one_vs_negatives_loss(s, targets, mask, 0.7)
    if repulsion == "cosine":
        second = losses.repulsion_loss(e, mask, -0.2)
    else:
        second = losses.vicreg_loss(e, mask, 2.0)
    unscaled = s / model.log_tau.exp() * model.log_tau_bce.exp() if head == "cosine" else s
    third = losses.bce_loss(unscaled, targets, mask)
    assert list(output.loss_terms) == ["total", "contrastive", "repulsion", "bce"]
    for name, value in zip(
        ("contrastive", "repulsion", "bce"), (first, second, third), strict=True
    ):
        assert value > 0
        torch.testing.assert_close(output.loss_terms[name], value)
    torch.testing.assert_close(output.loss, 0.5 * first + 0.25 * second + 2 * third)
    torch.testing.assert_close(output.loss_terms["total"], output.loss)


@both_formulations
def test_targets_outside_a_rows_own_labels_are_ignored(build, batch, formulation):
    model = build(formulation=formulation)
    noisy = TARGETS.clone()
    noisy[1, 1:], noisy[2, 2] = 1.0, 1.0
    assert model(**batch, labels=noisy).loss == model(**batch, labels=TARGETS).loss


def test_weights_of_zero_leave_nothing_but_the_rest(build, batch):
    model = build(contrastive_weight=0.0, repulsion_weight=0.0)
    output = model(**batch, labels=TARGETS)
    assert output.loss == output.loss_terms["bce"] > 0
    off = build(contrastive_weight=0.0, repulsion_weight=0.0, bce_weight=0.0)
    output = off(**batch, labels=TARGETS)
    output.loss.backward()
    assert output.loss == 0
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in off.parameters())


# The parts


def test_membership_marks_each_labels_own_positions():
    lmask = torch.tensor([[0, 0, 1, 1, 0, 2, 0], [0, 1, 0, 0, 0, 0, 0]])
    got = label_membership(lmask, 2)
    expected = [[[m == j for m in row] for j in (1, 2)] for row in lmask.tolist()]
    assert got.tolist() == expected


def test_pooling_is_the_mean_and_zero_without_a_position():
    tokens = torch.arange(12.0).reshape(1, 4, 3)
    membership = torch.tensor([[[True, False, True, False], [False] * 4]])
    got = pool_labels(tokens, membership)
    assert got.tolist() == [[[3.0, 4.0, 5.0], [0.0, 0.0, 0.0]]]


def test_attention_flattens_as_its_temperature_rises_and_sharpens_as_it_falls():
    torch.manual_seed(0)
    labels, text = torch.randn(1, 2, 4), torch.randn(1, 5, 4)
    positions = torch.tensor([[False, True, True, True, False]])
    flat_text, flat = label_conditioned_attention(labels, text, positions, 1e6)
    torch.testing.assert_close(flat[0, :, 1:4], torch.full((2, 3), 1 / 3), rtol=1e-4, atol=1e-4)
    average = text[:, 1:4].mean(1, keepdim=True).expand(1, 2, 4)
    torch.testing.assert_close(flat_text, average, rtol=1e-4, atol=1e-4)
    sharp_text, sharp = label_conditioned_attention(labels, text, positions, 1e-4)
    best = (labels @ text.transpose(1, 2))[0, :, 1:4].argmax(-1) + 1
    assert sharp.argmax(-1)[0].tolist() == best.tolist()
    torch.testing.assert_close(sharp_text[0], text[0, best], rtol=1e-4, atol=1e-4)
    assert (flat[0, :, [0, 4]] == 0).all() and (sharp[0, :, [0, 4]] == 0).all()


def test_attention_survives_scores_that_overflow_half_precision():
    labels = torch.full((1, 1, 4), 200.0, dtype=torch.float16)
    text = torch.tensor([[[60.0] * 4, [-60.0] * 4, [0.0] * 4]], dtype=torch.float16)
    positions = torch.tensor([[True, True, False]])
    embedding, weights = label_conditioned_attention(labels, text, positions, 1.0)
    assert weights.tolist() == [[[1.0, 0.0, 0.0]]] and embedding.isfinite().all()


def test_attention_passes_gradcheck():
    torch.manual_seed(1)
    positions = torch.tensor([[True, True, False], [False, True, True]])
    inputs = (
        torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True),
        torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True),
        torch.tensor(0.7, dtype=torch.float64, requires_grad=True),
    )
    assert torch.autograd.gradcheck(
        lambda q, kv, tau: label_conditioned_attention(q, kv, positions, tau), inputs
    )


def test_the_identity_start_keeps_the_backbones_geometry(build, batch):
    plain = build(spread=False, projection="identity")
    linear = build(spread=False, projection="linear", projection_init="identity")
    linear.backbone.load_state_dict(plain.backbone.state_dict())
    torch.testing.assert_close(linear(**batch).logits, plain(**batch).logits)
    random = build(spread=False, projection="linear", projection_init="default")
    random.backbone.load_state_dict(plain.backbone.state_dict())
    assert not torch.allclose(random(**batch).logits, plain(**batch).logits, atol=1e-3)


@pytest.mark.parametrize("head", ["dot", "bilinear"])
def test_the_learned_heads_start_as_a_scaled_dot_product(build, batch, head):
    output = build(spread=False, head=head)(**batch)
    dot = (output.text_embeddings * output.label_embeddings).sum(-1) / math.sqrt(32)
    expected = dot.masked_fill(~output.label_mask, -torch.inf)
    torch.testing.assert_close(output.logits, expected, rtol=1e-5, atol=1e-5)


def test_projections_may_change_the_dimension_and_are_separate(build, batch):
    model = build(projected_dim=8, projection_init="default", head="bilinear")
    output = model(**batch)
    assert output.label_embeddings.shape == output.text_embeddings.shape == (3, 3, 8)
    assert model.head.weight.shape == (8, 8)
    assert model.text_projection[0].weight is not model.label_projection[0].weight


def test_dropout_acts_in_training_only(build, batch):
    model = build(projection_dropout=0.5)
    model.backbone.eval()
    assert torch.equal(model(**batch).logits, model(**batch).logits)
    for part in (model.text_projection, model.label_projection):
        part.train()
        before = model(**batch).logits
        assert not torch.equal(model(**batch).logits, before)
        part.eval()


# Which positions are read


def test_strict_attention_reads_text_tokens_only_and_literal_reads_all_unlabelled(build, batch):
    strict = build()(**batch, output_text_attention=True).text_attention
    literal = build(attention_positions="unlabelled")(**batch, output_text_attention=True)
    ids, lmask = batch["input_ids"], batch["lmask"]
    attended = batch["attention_mask"].bool()
    n = 2 + torch.tensor([len(row) for row in LABELS])
    control = torch.isin(ids, torch.tensor([2, 3, 1000])) & attended
    assert control.sum(1).tolist() == n.tolist()
    read = literal.text_attention > 0
    for b in range(3):
        assert torch.equal(read[b, 0], attended[b] & (lmask[b] == 0))
        assert torch.equal(read[b, 0], control[b] | (strict[b, 0] > 0))
    assert not (strict[[0, 2]] > 0)[:, 0][control[[0, 2]]].any()
    torch.testing.assert_close(strict.sum(-1), torch.ones(3, 3))


@pytest.mark.parametrize("text_embedding", ["label_attention", "mean"])
def test_an_empty_text_is_read_through_its_cls_token(build, encode, text_embedding):
    batch = encode([""], [["animals", "war"]])
    shared = {"text_embedding": text_embedding}
    output = build(**shared)(**batch, output_text_attention=True)
    expected = build(text_embedding="cls")(**batch)
    torch.testing.assert_close(output.text_embeddings, expected.text_embeddings)
    torch.testing.assert_close(output.logits, expected.logits)
    if text_embedding == "label_attention":
        assert (output.text_attention[0, :, 0] == 1).all()
        assert (output.text_attention[0, :, 1:] == 0).all()


@pytest.mark.parametrize("mode", ["mean", "lab"])
def test_a_label_embedding_depends_on_its_own_positions(build, batch, mode):
    """The gradient of e_j by the backbone's last states is 0 elsewhere."""
    model = build(label_embedding=mode)
    states = {}

    def keep(module, inputs, output):
        states["hidden"] = output.last_hidden_state
        output.last_hidden_state.retain_grad()

    model.backbone.register_forward_hook(keep)
    model(**batch).label_embeddings[0, 1].sum().backward()
    touched = states["hidden"].grad.abs().sum(-1) > 0
    own = batch["lmask"][0] == 2
    if mode == "lab":
        own = torch.roll(own, 1) & ~own  # the position after the label's last token
    assert torch.equal(touched[0], own) and not touched[1:].any()


# Batches


@every_backbone
@both_formulations
@torch.no_grad()
def test_scores_do_not_depend_on_the_other_texts_in_the_batch(build, encode, backbone, formulation):
    model = build(backbone, formulation)
    together = model(**encode(TEXTS, LABELS))
    for b, (text, labels) in enumerate(zip(TEXTS, LABELS, strict=True)):
        alone = model(**encode([text], [labels]))
        got = together.logits[b, : len(labels)]
        torch.testing.assert_close(got, alone.logits[0], rtol=1e-4, atol=1e-4)
    order = [2, 0, 1]
    shuffled = model(**encode([TEXTS[i] for i in order], [LABELS[i] for i in order]))
    torch.testing.assert_close(shuffled.logits, together.logits[order], rtol=1e-4, atol=1e-4)


def test_the_order_of_rows_in_a_batch_does_not_change_the_loss(build, batch):
    model = build()
    order = [2, 0, 1]
    rows = {k: v[order] for k, v in batch.items()}
    first, second = model(**batch, labels=TARGETS), model(**rows, labels=TARGETS[order])
    torch.testing.assert_close(first.loss, second.loss)


def test_a_batch_without_labels_is_refused(build, batch):
    empty = batch | {"lmask": torch.zeros_like(batch["lmask"])}
    with pytest.raises(ValueError, match="lmask is 0 everywhere"):
        build()(**empty)


@pytest.mark.parametrize("columns", [2, 4])
def test_targets_of_another_width_are_refused(build, batch, columns):
    with pytest.raises(ValueError, match=f"{columns} columns, lmask has 3 labels"):
        build()(**batch, labels=torch.zeros(3, columns))


# Precision and gradients


@every_backbone
@both_formulations
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_run_and_agree_with_float32(build, batch, backbone, formulation, dtype):
    single = build(backbone, formulation, spread=False)
    expected = single(**batch, labels=TARGETS)
    model = build(backbone, formulation, spread=False).to(dtype)
    output = model(**batch, labels=TARGETS)
    output.loss.backward()
    assert output.logits.dtype == dtype
    assert output.loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = 1e-4 if dtype == torch.float64 else 0.1
    real = output.label_mask
    torch.testing.assert_close(
        output.logits[real].double(), expected.logits[real].double(), rtol=tolerance, atol=tolerance
    )
    torch.testing.assert_close(
        output.loss.double(), expected.loss.double(), rtol=tolerance, atol=tolerance
    )
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@both_formulations
def test_autocast_to_bfloat16_trains(build, batch, formulation):
    model = build(formulation=formulation)
    expected = model(**batch, labels=TARGETS).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch, labels=TARGETS).loss
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=0.1, atol=0.1)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@both_formulations
def test_every_part_learns(build, batch, formulation):
    model = build(formulation=formulation)
    model(**batch, labels=TARGETS).loss.backward()
    unused = {"math": set(), "card": {"log_tau", "log_tau_bce"}}[formulation]
    for name, parameter in model.named_parameters():
        if not name.startswith("backbone."):
            learns = parameter.grad is not None and parameter.grad.abs().max() > 0
            assert learns == (name not in unused), name
    embeddings = model.get_input_embeddings().weight.grad
    assert embeddings[model.config.lab_token_id].abs().max() > 0


@both_formulations
@pytest.mark.parametrize("head", GRID["head"])
def test_zero_embeddings_give_finite_scores_and_gradients(build, batch, formulation, head):
    model = build(formulation=formulation, head=head, projection="linear")
    for part in (model.text_projection[0], model.label_projection[0]):
        nn.init.zeros_(part.weight)
        nn.init.zeros_(part.bias)
    output = model(**batch, labels=TARGETS)
    output.loss.backward()
    assert output.loss.isfinite() and output.logits[output.label_mask].isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@every_backbone
def test_activation_checkpointing_recomputes_and_changes_nothing(build, batch, backbone):
    gradients, calls = [], []
    for enabled in (False, True):
        model = build(backbone).train()
        if enabled:
            model.activation_checkpointing_enable()
        names = ("attention", "attn")
        inner = next(m for n, m in model.backbone.named_modules() if n.endswith(names))
        counted = []
        inner.register_forward_hook(lambda *_, counted=counted: counted.append(1))
        torch.manual_seed(3)
        model(**batch, labels=TARGETS).loss.backward()
        calls.append(len(counted))
        gradients.append([p.grad for p in model.parameters()])
    assert calls == [1, 2]
    for plain, checkpointed in zip(*gradients, strict=True):
        if plain is not None:
            torch.testing.assert_close(checkpointed, plain, rtol=1e-4, atol=1e-6)


# Temperatures and probabilities


def test_temperatures_start_where_the_configuration_says(build):
    model = build(spread=False, tau=3.0, tau_attn=0.1, tau_bce=11.0)
    for name, value in (("tau", 3.0), ("tau_attn", 0.1), ("tau_bce", 11.0)):
        assert getattr(model, name).item() == pytest.approx(value, rel=1e-6)
    default = build(spread=False)
    assert default.tau.item() == pytest.approx(math.exp(2.0), rel=1e-6)


@pytest.mark.parametrize("learn", [True, False])
def test_frozen_temperatures_stay_frozen_in_a_checkpoint(build, batch, tmp_path, learn):
    model = build(learn_temperatures=learn)
    model.save_pretrained(tmp_path)
    loaded = GliZNetForSequenceClassification.from_pretrained(tmp_path)
    for m in (model, loaded):
        trained = {n for n, p in m.named_parameters() if p.requires_grad and n.startswith("log_")}
        assert trained == ({"log_tau", "log_tau_attn", "log_tau_bce"} if learn else set())
    assert loaded.tau == model.tau and loaded.tau_attn == model.tau_attn
    optimizer = torch.optim.SGD([p for p in loaded.parameters() if p.requires_grad], lr=1.0)
    loaded(**batch, labels=TARGETS).loss.backward()
    optimizer.step()
    assert (loaded.tau != model.tau) == learn


@pytest.mark.parametrize("head", GRID["head"])
@pytest.mark.parametrize("probability", ["bce", "logits"])
def test_probability_logits(build, batch, head, probability):
    model = build(spread=False, head=head, probability=probability, tau=8.0, tau_bce=2.0)
    logits = model(**batch).logits
    factor = 0.25 if (head, probability) == ("cosine", "bce") else 1.0
    got = model.probability_logits(logits)
    torch.testing.assert_close(got, logits * factor)
    assert (got.sigmoid()[~model(**batch).label_mask] == 0).all()


def test_bce_probabilities_are_those_that_bce_was_trained_on(build, batch):
    model = build(probability="bce")
    output = model(**batch, labels=TARGETS)
    p = model.probability_logits(output.logits)[output.label_mask].sigmoid()
    y = TARGETS[output.label_mask]
    cost = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    torch.testing.assert_close(output.loss_terms["bce"], cost)


# Checkpoints


@every_backbone
@both_formulations
@torch.no_grad()
def test_a_checkpoint_keeps_every_bit(build, batch, tmp_path, backbone, formulation):
    model = build(backbone, formulation)
    model.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    expected = model(**batch).logits
    for loader in (GliZNetForSequenceClassification, AutoModel):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is GliZNetForSequenceClassification and not loaded.training
        state = loaded.state_dict()
        assert state.keys() == model.state_dict().keys()
        for name, value in model.state_dict().items():
            assert torch.equal(state[name], value) and state[name].dtype == value.dtype, name
        assert torch.equal(loaded(**batch).logits, expected)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), GliZNetConfig)


@torch.no_grad()
def test_a_bfloat16_checkpoint_stays_bfloat16(build, batch, tmp_path):
    model = build().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = GliZNetForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("loader", [GliZNetForSequenceClassification, AutoModel])
@pytest.mark.parametrize("damage", ["missing", "missing backbone", "unexpected", "mismatched"])
def test_a_checkpoint_that_is_not_this_model_is_refused(build, tmp_path, loader, damage):
    build(formulation="card").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    embeddings = "backbone.embeddings.word_embeddings.weight"
    match damage:
        case "missing":
            name = "head.weight"
            del state[name]
        case "missing backbone":
            name = embeddings
            del state[name]
        case "unexpected":
            name = "text_projection.0.weight"
            state[name] = torch.zeros(32, 32)
        case "mismatched":
            name = "head.weight"
            state[name] = torch.zeros(16, 16)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=name):
        loader.from_pretrained(tmp_path)


def test_loading_information_is_returned_on_request(build, tmp_path):
    build().save_pretrained(tmp_path)
    model, info = GliZNetForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert isinstance(model, GliZNetForSequenceClassification) and not info["missing_keys"]


def test_a_checkpoint_does_not_tell_where_it_was_made(tiny, tokenizer, tmp_path):
    GliZNetForSequenceClassification.from_backbone(tiny, tokenizer).save_pretrained(tmp_path)
    assert str(Path(tiny).parent) not in (tmp_path / "config.json").read_text()


# From a pretrained backbone


@every_backbone
@both_formulations
@torch.no_grad()
def test_from_backbone_keeps_the_pretrained_weights(
    folders, tokenizer, batch, tmp_path, backbone, formulation
):
    source = AutoModel.from_pretrained(folders[backbone])
    model = GliZNetForSequenceClassification.from_backbone(
        str(folders[backbone]), tokenizer, formulation
    )
    assert not model.training and model.dtype == torch.float32
    assert model.config.head == {"math": "cosine", "card": "bilinear"}[formulation]
    assert model.config.lab_token_id == tokenizer.lab_token_id
    assert model.config.control_token_ids == list(tokenizer.control_token_ids)
    embeddings = source.get_input_embeddings().weight
    embeddings[tokenizer.lab_token_id] = embeddings[tokenizer.sep_token_id]
    expected = {k: v for k, v in source.state_dict().items() if not k.startswith("pooler.")}
    assert model.backbone.state_dict().keys() == expected.keys()
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert getattr(model.backbone, "pooler", None) is None
    logits = model(**batch).logits
    model.save_pretrained(tmp_path)
    loaded = GliZNetForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded(**batch).logits, logits)


@pytest.mark.parametrize("lab_init", ["separator", "mean"])
@torch.no_grad()
def test_the_embedding_of_lab_starts_from_known_embeddings(tiny, tokenizer, lab_init):
    before = AutoModel.from_pretrained(tiny).get_input_embeddings().weight
    assert len(before) == tokenizer.lab_token_id
    model = GliZNetForSequenceClassification.from_backbone(tiny, tokenizer, lab_init=lab_init)
    after = model.get_input_embeddings().weight
    assert len(after) == len(tokenizer) == model.config.backbone_config.vocab_size
    assert torch.equal(after[:-1], before)
    expected = before[tokenizer.sep_token_id] if lab_init == "separator" else before.mean(0)
    torch.testing.assert_close(after[-1], expected)


def test_a_vocabulary_with_spare_rows_is_not_cut(tokenizer, tmp_path):
    """DeBERTa-v3 has more embedding rows than tokens."""
    torch.manual_seed(0)
    source = AutoModel.from_config(BertConfig(**(SMALL | {"vocab_size": 1100})))
    source.save_pretrained(tmp_path)
    model = GliZNetForSequenceClassification.from_backbone(
        str(tmp_path), tokenizer, lab_init="mean"
    )
    before, after = source.get_input_embeddings().weight, model.get_input_embeddings().weight
    assert len(after) == 1100
    assert torch.equal(after[1001:], before[1001:])
    torch.testing.assert_close(after[1000], before[:1000].mean(0))


@pytest.mark.parametrize("option", ["formulation", "lab_init"])
def test_unknown_options_of_from_backbone_are_refused(tiny, tokenizer, option):
    with pytest.raises(ValueError, match=f"{option} is 'nonsense'"):
        GliZNetForSequenceClassification.from_backbone(tiny, tokenizer, **{option: "nonsense"})


def test_overrides_of_from_backbone_reach_the_model(tiny, tokenizer):
    model = GliZNetForSequenceClassification.from_backbone(
        tiny, tokenizer, "card", head="dot", projection="linear", tau_attn=0.1
    )
    assert model.head.weight.shape == (32,) and isinstance(model.text_projection[0], nn.Linear)
    assert model.tau_attn.item() == pytest.approx(0.1)
    with pytest.raises((TypeError, ValueError), match="haed"):
        GliZNetForSequenceClassification.from_backbone(tiny, tokenizer, haed="dot")


@torch.no_grad()
def test_the_attention_implementation_is_passed_on_and_changes_nothing(
    tiny, tokenizer, batch, tmp_path
):
    logits = []
    for name in ("eager", "sdpa"):
        model = GliZNetForSequenceClassification.from_backbone(
            tiny, tokenizer, attn_implementation=name
        )
        assert model.backbone.config._attn_implementation == name
        logits.append(model(**batch).logits)
        model.save_pretrained(tmp_path)
        loaded = GliZNetForSequenceClassification.from_pretrained(
            tmp_path, attn_implementation=name
        )
        assert loaded.backbone.config._attn_implementation == name
        assert torch.equal(loaded(**batch).logits, logits[-1])
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)


def test_the_input_embeddings_are_the_backbones(build):
    model = build()
    assert model.get_input_embeddings() is model.backbone.get_input_embeddings()
    other = nn.Embedding(1001, 32)
    model.set_input_embeddings(other)
    assert model.backbone.get_input_embeddings() is other
