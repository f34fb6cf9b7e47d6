"""Training: optimiser groups, schedules, batches, resuming, two processes, accumulation."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import train_script
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainingArguments

from gliznet import backbones
from gliznet.batches import Collator, training_rows
from gliznet.data.types import Example
from gliznet.training import SCHEDULES, GliZNetTrainer, interpolate, train

REPOSITORY = Path(__file__).parents[1]
STABLE = {"save_strategy": "no", "logging_steps": 1}


@pytest.fixture(scope="session")
def backbone(tmp_path_factory) -> str:
    return backbones.resolve("tiny-random", tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def tokenizer(backbone):
    return train_script.build(backbone)[1]


@pytest.fixture(autouse=True)
def one_thread():
    """Sums over another number of threads round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(backbone, folder, examples, build=None, **arguments):
    model, tokenizer = train_script.build(backbone, **(build or {}))
    arguments = {"seed": 3, "learning_rate": 1e-3, **STABLE, **arguments}
    return train(model, tokenizer, examples, folder, **arguments)


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_same(first, second) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


def largest_difference(first, second) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def in_process(call: dict, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(REPOSITORY),
    }
    script = str(REPOSITORY / "tests" / "train_script.py")
    return subprocess.run(
        [sys.executable, *launcher, script, json.dumps(call)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


# Rows and batches


@given(st.integers(0, 1000), st.integers(3, 9))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_rows_keep_true_labels_and_cut_the_last_false_ones(tokenizer, seed, max_labels):
    examples = train_script.rows(6)
    for example, row in zip(
        examples, training_rows(examples, tokenizer, seed, max_labels), strict=True
    ):
        kept = list(example.labels) + list(example.not_labels)[: max_labels - len(example.labels)]
        assert sorted(row["candidates"]) == sorted(kept)
        assert [c for c, t in zip(row["candidates"], row["targets"], strict=True) if t == 1.0] == [
            c for c in row["candidates"] if c in example.labels
        ]
        assert set(row["targets"]) <= {0.0, 1.0}
        assert row["text"] == example.text
        tokens = len(tokenizer.tokenizer(example.text, add_special_tokens=False)["input_ids"])
        for label in kept:
            tokens += len(tokenizer.tokenizer(label, add_special_tokens=False)["input_ids"]) + 1
        assert row["length"] == min(2 + tokens, tokenizer.max_length)


def test_the_order_of_candidates_depends_on_the_seed_only(tokenizer):
    examples = train_script.rows(20)
    first, again, other = (
        training_rows(examples, tokenizer, seed)["candidates"] for seed in (1, 1, 2)
    )
    assert first[:] == again[:]
    assert first[:] != other[:]
    # A true label is not always the first candidate, or the model would learn the position.
    targets = training_rows(examples, tokenizer, 1)["targets"]
    assert {row[0] for row in targets} == {0.0, 1.0}


def test_a_row_is_no_longer_than_the_window(tokenizer):
    (row,) = training_rows([Example("word " * 300, ("a",), ("b",))], tokenizer, 0)
    assert row["length"] == 128
    assert Collator(tokenizer)([row])["input_ids"].shape == (1, 128)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (Example("text", (), ()), r"example 1 \('text'\) has no candidate"),
        (Example("text", tuple("abcd"), ()), "example 1 has 4 true labels, max_labels is 3"),
    ],
)
def test_a_row_that_cannot_be_used_is_an_error(tokenizer, example, message):
    with pytest.raises(ValueError, match=message):
        training_rows([Example("first", ("a",), ()), example], tokenizer, 0, max_labels=3)


def test_the_collator_equals_a_naive_one(tokenizer):
    rows = list(training_rows(train_script.rows(5), tokenizer, seed=4))
    batch = Collator(tokenizer)(rows)
    encode = tokenizer.tokenizer
    sequences, masks = [], []
    for row in rows:
        ids = [encode.cls_token_id]
        ids += encode(row["text"], add_special_tokens=False)["input_ids"]
        ids += [encode.sep_token_id]
        mask = [0] * len(ids)
        for number, label in enumerate(row["candidates"], start=1):
            pieces = encode(label, add_special_tokens=False)["input_ids"]
            ids += [*pieces, encode.convert_tokens_to_ids("[LAB]")]
            mask += [number] * len(pieces) + [0]
        sequences.append(ids)
        masks.append(mask)
    length = max(len(ids) for ids in sequences)
    width = max(len(row["candidates"]) for row in rows)
    assert len({len(row["candidates"]) for row in rows}) > 1
    assert set(batch) == {"input_ids", "attention_mask", "lmask", "labels"}
    assert batch["labels"].shape == (5, width)
    for i, (ids, mask, row) in enumerate(zip(sequences, masks, rows, strict=True)):
        pad = length - len(ids)
        assert batch["input_ids"][i].tolist() == ids + [encode.pad_token_id] * pad
        assert batch["attention_mask"][i].tolist() == [1] * len(ids) + [0] * pad
        assert batch["lmask"][i].tolist() == mask + [0] * pad
        assert batch["labels"][i].tolist() == row["targets"] + [0.0] * (width - len(row["targets"]))


# Optimiser and schedules


def test_the_four_groups_hold_each_parameter_once_at_its_rate(backbone, tmp_path):
    trainer = run(
        backbone,
        tmp_path,
        train_script.rows(4),
        {"projection": "linear_layernorm"},
        max_steps=1,
        batch_size=2,
        learning_rate=2e-4,
        head_lr_multiplier=10.0,
    )
    names = {id(p): n for n, p in trainer.model.named_parameters()}
    groups = trainer.optimizer.param_groups
    assert [(g["initial_lr"], g["weight_decay"]) for g in groups] == [
        (pytest.approx(2e-4), 0.0),
        (pytest.approx(2e-4), 0.01),
        (pytest.approx(2e-3), 0.0),
        (pytest.approx(2e-3), 0.01),
    ]
    members = [[names[id(p)] for p in g["params"]] for g in groups]
    assert sorted(name for group in members for name in group) == sorted(names.values())
    for group in members[:2]:
        assert group and all(n.startswith("backbone.") for n in group)
    for group in members[2:]:
        assert group and not any(n.startswith("backbone.") for n in group)
    parameters = dict(trainer.model.named_parameters())
    plain, decayed = {*members[0], *members[2]}, {*members[1], *members[3]}
    assert all(n in decayed for n, p in parameters.items() if p.ndim > 1)
    assert all(n in plain for n in parameters if n.endswith("bias") or "LayerNorm" in n)
    assert {"text_projection.1.weight", "label_projection.1.weight"} <= plain
    assert {"log_tau", "log_tau_attn", "log_tau_bce"} <= {*members[2], *members[3]}


def test_frozen_parameters_are_in_no_group(backbone, tmp_path):
    trainer = run(
        backbone,
        tmp_path,
        train_script.rows(2),
        {"learn_temperatures": False, "projection": "identity"},
        max_steps=1,
        batch_size=2,
    )
    held = {id(p) for g in trainer.optimizer.param_groups for p in g["params"]}
    assert not held & {id(trainer.model.log_tau), id(trainer.model.log_tau_bce)}
    # No new parameter is left, and AdamW refuses an empty group.
    assert len(trainer.optimizer.param_groups) == 2
    assert float(trainer.model.tau) == pytest.approx(math.exp(2.0))


def test_the_first_adam_step_moves_each_part_by_its_own_rate(backbone, tmp_path):
    # Adam's first step is lr · g / (|g| + ε), so its largest move is the learning rate.
    model, tokenizer = train_script.build(backbone, dropout=0.0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer = GliZNetTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path),
            learning_rate=1e-4,
            weight_decay=0.0,
            lr_scheduler_type="constant",
            max_steps=1,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        ),
        train_dataset=training_rows(train_script.rows(4), tokenizer, 0),
        data_collator=Collator(tokenizer),
        head_lr_multiplier=7.0,
    )
    trainer.train()
    moved = {n: float((p.detach() - before[n]).abs().max()) for n, p in model.named_parameters()}
    for new, rate in ((False, 1e-4), (True, 7e-4)):
        part = [m for n, m in moved.items() if (not n.startswith("backbone.")) == new]
        assert max(part) == pytest.approx(rate, rel=2e-3)


@pytest.mark.parametrize("schedule", ["math", "card"])
def test_the_schedule_equals_its_formula(backbone, tmp_path, schedule):
    # 30 steps: the warm-up is ⌈0.1 · 30⌉ = 3 steps (math), ⌈0.05 · 30⌉ = 2 (card), not 0 steps.
    trainer = run(
        backbone,
        tmp_path,
        train_script.rows(8),
        max_steps=30,
        batch_size=2,
        schedule=schedule,
        learning_rate=1e-3,
        head_lr_multiplier=5.0,
    )
    total, warm = 30, {"math": 3, "card": 2}[schedule]
    assert trainer.args.get_warmup_steps(total) == warm
    logged = [(r["step"], r["learning_rate"]) for r in trainer.state.log_history if "loss" in r]
    assert [step for step, _ in logged] == list(range(1, 31))
    for step, rate in logged:
        done = step - 1  # the log holds the rate with which the step was made
        if done < warm:
            factor = done / warm
        elif schedule == "math":
            factor = (total - done) / (total - warm)
        else:
            factor = 0.5 * (1 + math.cos(math.pi * (done - warm) / (total - warm)))
        assert rate == pytest.approx(1e-3 * factor, abs=1e-12)
    # Both rates share one factor, 0 at the end.
    assert [g["lr"] for g in trainer.optimizer.param_groups] == pytest.approx([0.0] * 4, abs=1e-15)
    assert trainer.args.weight_decay == {"math": 0.01, "card": 0.001}[schedule]


def test_the_schedules_are_those_of_the_documents():
    assert SCHEDULES["math"]["lr_scheduler_type"] == "linear"
    assert SCHEDULES["math"]["warmup_steps"] == 0.1
    assert SCHEDULES["card"]["lr_scheduler_type"] == "cosine"
    assert SCHEDULES["card"]["warmup_steps"] == 0.05


# Runs in one process


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(backbone, tmp_path):
    examples = train_script.rows(12)
    arguments = {"epochs": 2, "batch_size": 4, "save_strategy": "no"}
    first, again, other = (
        weights(run(backbone, tmp_path / str(i), examples, seed=seed, **arguments))
        for i, seed in enumerate((5, 5, 6))
    )
    assert_same(first, again)
    assert largest_difference(first, other) > 1e-4


def test_training_lowers_the_loss_and_ends_in_evaluation_mode(backbone, tmp_path):
    trainer = run(backbone, tmp_path, train_script.rows(8), max_steps=30, batch_size=8)
    losses = [r["loss"] for r in trainer.state.log_history if "loss" in r]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert not trainer.model.training


def test_the_log_holds_every_term_and_they_add_up(backbone, tmp_path):
    trainer = run(
        backbone, tmp_path, train_script.rows(8), max_steps=4, batch_size=4, logging_steps=2
    )
    logged = [r for r in trainer.state.log_history if "loss" in r]
    assert len(logged) == 2
    for entry in logged:
        parts = entry["loss_contrastive"] + 0.1 * entry["loss_repulsion"] + entry["loss_bce"]
        assert entry["loss"] == pytest.approx(parts, rel=1e-5)


@pytest.mark.parametrize("uneven", [False, True])
def test_accumulated_batches_equal_one_large_batch(backbone, tmp_path, uneven):
    # Rows differ in their numbers of labels where `uneven`: a plain mean of the batches' losses
    # would then weigh a pair by its batch. 1e-4 in the weights after 3 steps at 1e-3: Adam
    # divides by |g|, so a rounding error of 1e-7 in a gradient near 0 can turn a whole step.
    examples = train_script.rows(24, uneven)
    arguments = {"max_steps": 3, "build": {"dropout": 0.0}}
    large = run(backbone, tmp_path / "a", examples, batch_size=8, **arguments)
    small = run(
        backbone, tmp_path / "b", examples, batch_size=2, gradient_accumulation=4, **arguments
    )
    for one, other in zip(large.state.log_history[:3], small.state.log_history[:3], strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
        for term in ("contrastive", "repulsion", "bce"):
            assert other[f"loss_{term}"] == pytest.approx(one[f"loss_{term}"], rel=1e-5)
    assert largest_difference(weights(large), weights(small)) < 1e-4


def test_bf16_autocast_trains_on_the_cpu(backbone, tmp_path):
    examples = train_script.rows(8)
    arguments = {"max_steps": 3, "batch_size": 4, "build": {"dropout": 0.0}}
    exact = run(backbone, tmp_path / "a", examples, **arguments)
    rough = run(backbone, tmp_path / "b", examples, bf16=True, **arguments)
    assert all(p.dtype == torch.float32 for p in rough.model.parameters())
    one, other = exact.state.log_history[0]["loss"], rough.state.log_history[0]["loss"]
    assert other != one  # bfloat16 was used
    assert other == pytest.approx(one, rel=2e-2)  # 8 bits of mantissa
    assert all(bool(p.isfinite().all()) for p in rough.model.parameters())


@pytest.mark.parametrize("formulation", ["math", "card"])
def test_activation_checkpointing_gives_the_same_gradient(backbone, tmp_path, formulation):
    # With dropout: the recomputed pass must draw the same masks.
    examples = train_script.rows(8)
    arguments = {"max_steps": 2, "batch_size": 4, "build": {"formulation": formulation}}
    plain = run(backbone, tmp_path / "a", examples, **arguments)
    checkpointed = run(
        backbone, tmp_path / "b", examples, activation_checkpointing=True, **arguments
    )
    assert checkpointed.model.is_activation_checkpointing
    assert not plain.model.is_activation_checkpointing
    for one, other in zip(
        plain.state.log_history[:2], checkpointed.state.log_history[:2], strict=True
    ):
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-6)
    assert_same(weights(plain), weights(checkpointed))


def test_a_run_stops_early_and_keeps_its_best_weights(backbone, tmp_path):
    # Training on turned labels makes the development loss rise from the first evaluation on.
    examples = train_script.rows(8, uneven=False)
    turned = [Example(e.text, e.not_labels, e.labels) for e in examples]
    trainer = run(
        backbone,
        tmp_path,
        turned,
        max_steps=40,
        batch_size=8,
        save_strategy="steps",
        save_steps=5,
        development=examples,
        patience=2,
        build={"dropout": 0.0},
    )
    evaluations = [
        (r["step"], r["eval_loss"]) for r in trainer.state.log_history if "eval_loss" in r
    ]
    best = min(evaluations, key=lambda pair: pair[1])
    assert trainer.state.global_step < 40
    assert trainer.state.global_step == best[0] + 2 * 5
    assert trainer.state.best_metric == pytest.approx(best[1])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best[1], rel=1e-5)


def test_development_rows_alone_only_report(backbone, tmp_path):
    examples = train_script.rows(4)
    trainer = run(
        backbone, tmp_path, examples, max_steps=4, batch_size=4, save_steps=2, development=examples
    )
    assert [r["step"] for r in trainer.state.log_history if "eval_loss" in r] == [2, 4]


def test_arguments_that_make_no_sense_are_errors(backbone, tmp_path):
    examples = train_script.rows(2)
    with pytest.raises(ValueError, match="schedule is 'cosine': choose one of math, card"):
        run(backbone, tmp_path, examples, schedule="cosine")
    for development in (None, []):
        with pytest.raises(ValueError, match="patience is set but there are no development rows"):
            run(backbone, tmp_path, examples, patience=1, development=development)
    with pytest.raises(TypeError, match="no_such_argument"):
        run(backbone, tmp_path, examples, no_such_argument=1)


# Interrupted runs

LONG = {
    "seed": 7,
    "learning_rate": 1e-3,
    "epochs": 3,
    "batch_size": 4,
    "gradient_accumulation": 1,
    "save_steps": 2,
    "logging_steps": 1,
}
"""24 rows: 6 steps in an epoch, 18 in all."""


@pytest.fixture(scope="module")
def uninterrupted(backbone, tmp_path_factory):
    model, tokenizer = train_script.build(backbone)
    trainer = train(
        model, tokenizer, train_script.rows(24), tmp_path_factory.mktemp("whole"), **LONG
    )
    return weights(trainer), [r["loss"] for r in trainer.state.log_history if "loss" in r]


class Stop(TrainerCallback):
    """Stands in for a kill: raises after a step, so that nothing is tidied up."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def interrupt(backbone, folder, step, monkeypatch) -> None:
    original = GliZNetTrainer.__init__

    def stopping(self, *args, callbacks=(), **kwargs):
        original(self, *args, callbacks=[*callbacks, Stop(step)], **kwargs)

    model, tokenizer = train_script.build(backbone)
    with monkeypatch.context() as patch:
        patch.setattr(GliZNetTrainer, "__init__", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(model, tokenizer, train_script.rows(24), folder, **LONG)


def resume(backbone, folder):
    model, tokenizer = train_script.build(backbone)
    # A resumed run must not depend on the state that the process is in.
    random.seed(99)
    torch.manual_seed(99)
    return train(model, tokenizer, train_script.rows(24), folder, **LONG)


@pytest.mark.slow
@pytest.mark.parametrize("step", [5, 11])
def test_a_killed_run_resumes_to_the_same_weights(backbone, tmp_path, uninterrupted, step):
    # Step 5 is in the first epoch, step 11 in the second; the last checkpoint is one step back.
    call = {
        "backbone": backbone,
        "folder": str(tmp_path / "run"),
        "result": str(tmp_path / "result"),
        "rows": {"count": 24},
        "train": LONG,
        "kill_at": step,
    }
    killed = in_process(call)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert not (tmp_path / "result").exists()
    assert (tmp_path / "run" / f"checkpoint-{step - 1}").is_dir()
    assert_same(weights(resume(backbone, tmp_path / "run")), uninterrupted[0])


@pytest.mark.parametrize("step", [3, 7, 9, 15])
def test_an_interrupted_run_resumes_to_the_same_weights(
    backbone, tmp_path, uninterrupted, monkeypatch, step
):
    # Checkpoints 2 (first epoch), 6 (its end), 8 (second epoch) and 14 (third).
    interrupt(backbone, tmp_path, step, monkeypatch)
    trainer = resume(backbone, tmp_path)
    assert trainer._initial_global_step == step - 1  # it did not start anew
    assert_same(weights(trainer), uninterrupted[0])
    losses = [r["loss"] for r in trainer.state.log_history if "loss" in r]
    assert losses == pytest.approx(uninterrupted[1], abs=0)


@pytest.mark.parametrize("broken", ["no state", "empty state", "half a state", "half the weights"])
def test_a_half_written_checkpoint_does_not_break_resuming(
    backbone, tmp_path, uninterrupted, monkeypatch, broken
):
    # transformers writes the weights first and trainer_state.json last.
    interrupt(backbone, tmp_path, 7, monkeypatch)
    planted = tmp_path / "checkpoint-8"
    shutil.copytree(tmp_path / "checkpoint-6", planted)
    state = planted / "trainer_state.json"
    if broken == "empty state":
        state.write_text("")
    elif broken == "half a state":
        state.write_text(state.read_text()[:200])
    else:
        state.unlink()
    if broken == "half the weights":
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            (planted / name).unlink()
        file = planted / "model.safetensors"
        file.write_bytes(file.read_bytes()[:5000])
    trainer = resume(backbone, tmp_path)
    assert trainer._initial_global_step == 6
    assert_same(weights(trainer), uninterrupted[0])


def test_a_finished_run_is_not_trained_again(backbone, tmp_path):
    examples = train_script.rows(8)
    arguments = {"max_steps": 4, "batch_size": 2, "save_strategy": "steps", "save_steps": 2}
    first = weights(run(backbone, tmp_path, examples, **arguments))
    again = run(backbone, tmp_path, examples, **arguments)
    assert again._initial_global_step == again.state.global_step == 4
    assert_same(first, weights(again))


def test_old_checkpoints_are_removed(backbone, tmp_path):
    run(
        backbone,
        tmp_path,
        train_script.rows(8),
        max_steps=8,
        batch_size=2,
        save_strategy="steps",
        save_steps=0.25,
    )
    kept = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert kept == ["checkpoint-6", "checkpoint-8"]


# Two processes


@pytest.mark.slow
@pytest.mark.parametrize("uneven", [False, True])
def test_two_processes_equal_one_with_the_same_global_batch(backbone, tmp_path, uneven):
    """Losses agree to 1e-5, weights to 1e-4 after 6 steps at 1e-3 (two epochs).

    Sums run in another order, and Adam divides by |g|, so a rounding error in a gradient near 0
    can turn a step. No dropout: each process draws masks of its own.
    """
    arguments = {
        "seed": 7,
        "learning_rate": 1e-3,
        "epochs": 2,
        "logging_steps": 1,
        "save_strategy": "no",
    }
    call = {
        "backbone": backbone,
        "folder": str(tmp_path / "run"),
        "result": str(tmp_path / "result"),
        "rows": {"count": 24, "uneven": uneven},
        "build": {"dropout": 0.0},
        "train": {**arguments, "batch_size": 4},
    }
    config = str(REPOSITORY / "configs" / "accelerate_2proc_cpu.yaml")
    launch = ("-m", "accelerate.commands.launch", "--config_file", config)
    done = in_process(call, launch)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "result" / "world.json").read_text()) == 2
    log = json.loads((tmp_path / "result" / "log.json").read_text())
    one = run(
        backbone,
        tmp_path / "one",
        train_script.rows(24, uneven),
        {"dropout": 0.0},
        **{**arguments, "batch_size": 8},
    )
    alone = [r["loss"] for r in one.state.log_history if "loss" in r]
    pair = [r["loss"] for r in log if "loss" in r]
    assert len(alone) == 6
    assert pair == pytest.approx(alone, rel=1e-5)
    two = load_file(tmp_path / "result" / "model.safetensors")
    assert largest_difference(weights(one), two) < 1e-4


@pytest.mark.slow
def test_two_processes_see_every_row_once_in_an_epoch(backbone, tmp_path):
    """With dropout, after which the processes' global generators differ.

    The card's bilinear head leaves τ and τ_BCE without a gradient, which DDP refuses if not told.
    """
    call = {
        "backbone": backbone,
        "folder": str(tmp_path / "run"),
        "result": str(tmp_path / "result"),
        "rows": {"count": 24},
        "build": {"formulation": "card"},
        "train": {
            "seed": 7,
            "learning_rate": 1e-3,
            "epochs": 2,
            "batch_size": 2,
            "schedule": "card",
        },
    }
    config = str(REPOSITORY / "configs" / "accelerate_2proc_cpu.yaml")
    done = in_process(call, ("-m", "accelerate.commands.launch", "--config_file", config))
    assert done.returncode == 0, done.stderr[-3000:]
    seen = [json.loads((tmp_path / "result" / f"seen-{i}.json").read_text()) for i in (0, 1)]
    texts = sorted(e.text for e in train_script.rows(24))
    epochs = []
    for half in (slice(0, 6), slice(6, 12)):
        batches = [batch for process in seen for batch in process[half]]
        assert sorted(text for batch in batches for text in batch) == texts
        epochs.append(batches)
    assert epochs[0] != epochs[1]


def test_the_zero2_config_asks_for_stage_2_and_bf16():
    import yaml

    config = yaml.safe_load((REPOSITORY / "configs" / "accelerate_zero2.yaml").read_text())
    assert config["distributed_type"] == "DEEPSPEED"
    settings_file = REPOSITORY / config["deepspeed_config"]["deepspeed_config_file"]
    deepspeed = json.loads(settings_file.read_text())
    assert deepspeed["zero_optimization"]["stage"] == 2
    assert deepspeed["bf16"]["enabled"] is True
    # "auto" takes the value of `TrainingArguments`, so that both sides agree.
    for name in ("train_batch_size", "gradient_accumulation_steps", "gradient_clipping"):
        assert deepspeed[name] == "auto"


def test_backbone_dropout_replaces_every_rate_of_the_encoder(backbone, tmp_path):
    trainer = run(backbone, tmp_path, train_script.rows(4), max_steps=1, backbone_dropout=0.25)
    modules = trainer.model.backbone.modules()
    assert {m.p for m in modules if isinstance(m, torch.nn.Dropout)} == {0.25}
    with pytest.raises(ValueError, match=r"backbone_dropout is 1\.5"):
        run(backbone, tmp_path, train_script.rows(4), max_steps=1, backbone_dropout=1.5)


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0.01, 1.0), seed=st.integers(0, 99))
def test_interpolation_lies_on_the_line_between_the_weights(share, seed):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    start = {name: torch.randn_like(w) if w.ndim else w for name, w in model.state_dict().items()}
    end = {name: weight.clone() for name, weight in model.state_dict().items()}
    interpolate(model, start, share)
    for name, weight in model.state_dict().items():
        expected = share * end[name].double() + (1 - share) * start[name].double()
        torch.testing.assert_close(weight.double(), expected, rtol=1e-5, atol=1e-6)
    assert model[1].num_batches_tracked.dtype == torch.int64


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01])
def test_a_share_outside_0_to_1_is_refused(share):
    model = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match=f"share is {share}"):
        interpolate(model, model.state_dict(), share)
