"""A training run in a process of its own, for the tests of killing, resuming and two processes.

Called with a JSON object: `backbone`, `folder`, `result`, `rows`, `train` and optional `build`
(arguments of `rows`, `gliznet.training.train` and `build`), and optional `kill_at`, the optimiser
step at which the process ends itself.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback

from gliznet import GliZNetForSequenceClassification, GliZNETTokenizer, training
from gliznet.data.corpus import hardset_mini
from gliznet.data.types import Example


def rows(count: int, uneven: bool = True) -> list[Example]:
    """Corpus rows, cut short; `uneven` ones differ in their numbers of true and false labels."""
    examples = []
    for i, e in enumerate(hardset_mini("train")[:count]):
        true = 1 + i % 3 if uneven else 2
        false = 1 + (5 * i) % 4 if uneven else 3
        text = " ".join(e.text.split()[: 4 + i % 9])
        examples.append(Example(text, e.labels[:true], e.not_labels[:false], e.source))
    return examples


def build(
    backbone: str, dropout: float = 0.1, formulation: str = "math", **overrides
) -> tuple[GliZNetForSequenceClassification, GliZNETTokenizer]:
    """The same untrained model for the same arguments, in every process."""
    torch.manual_seed(0)
    tokenizer = GliZNETTokenizer.from_pretrained(backbone, max_length=128)
    model = GliZNetForSequenceClassification.from_backbone(
        backbone, tokenizer, formulation, **overrides
    )
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    return model, tokenizer


class Kill(TrainerCallback):
    """Ends this process as `kill -9` does, right after an optimiser step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def main(call: dict) -> None:
    torch.set_num_threads(1)
    # `train` takes no callbacks and no collator, so both are put in from outside.
    original = training.GliZNetTrainer.__init__
    seen: list[list[str]] = []

    def with_kill(self, *args, callbacks=(), **kwargs):
        callbacks = [*callbacks, *([Kill(call["kill_at"])] if "kill_at" in call else [])]
        collate = kwargs.pop("data_collator")

        def watching(batch: list[dict]) -> dict:
            seen.append([row["text"] for row in batch])
            return collate(batch)

        original(self, *args, callbacks=callbacks, data_collator=watching, **kwargs)

    training.GliZNetTrainer.__init__ = with_kill
    model, tokenizer = build(call["backbone"], **call.get("build", {}))
    trainer = training.train(
        model, tokenizer, rows(**call["rows"]), call["folder"], **call["train"]
    )
    result = Path(call["result"])
    result.mkdir(parents=True, exist_ok=True)
    (result / f"seen-{trainer.args.process_index}.json").write_text(json.dumps(seen))
    if trainer.is_world_process_zero():
        save_file(model.state_dict(), result / "model.safetensors")
        (result / "log.json").write_text(json.dumps(trainer.state.log_history))
        (result / "world.json").write_text(json.dumps(trainer.args.world_size))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
