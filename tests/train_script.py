"""A training run in a process of its own, for the tests of killing, resuming and two processes.

Called with a JSON object: `backbone`, `folder`, `result`, optional `kill_at` (optimiser step) and
`build` and `train` (arguments of `build` and of `gliznet.training.train`).
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback

from gliznet import GliZNETTokenizer, GliZNetForSequenceClassification, training
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
    if "kill_at" in call:
        original = training.GliZNetTrainer.__init__

        def with_kill(self, *args, callbacks=(), **kwargs):
            original(self, *args, callbacks=[*callbacks, Kill(call["kill_at"])], **kwargs)

        training.GliZNetTrainer.__init__ = with_kill
    model, tokenizer = build(call["backbone"], **call.get("build", {}))
    trainer = training.train(
        model, tokenizer, rows(**call["rows"]), call["folder"], **call["train"]
    )
    if trainer.is_world_process_zero():
        result = Path(call["result"])
        result.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), result / "model.safetensors")
        (result / "log.json").write_text(json.dumps(trainer.state.log_history))
        (result / "world.json").write_text(json.dumps(trainer.args.world_size))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
