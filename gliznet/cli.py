"""Command line: classify texts, train a model, evaluate one, run a profile of notebooks."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="gliznet", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    classify = commands.add_parser("classify", help="classify texts, one JSON object per text")
    classify.add_argument("--model", required=True, help="folder or Hub id of a trained GliZNet")
    classify.add_argument("--label", action="append", required=True, help="once per label")
    classify.add_argument("--type", default="multi-label", choices=["multi-label", "multi-class"])
    classify.add_argument("--threshold", type=float)
    classify.add_argument("--top-k", type=int)
    classify.add_argument("text", nargs="*", help="texts; without any, one per line of stdin")

    train = commands.add_parser("train", help="train a model; call it again to resume")
    train.add_argument("--out", required=True, help="folder for checkpoints and the model")
    train.add_argument("--data", default="hardset-mini", help="hardset-mini or mix:NAME")
    train.add_argument("--rows", type=int, default=0, help="rows of a mix; 0: all of hardset-mini")
    train.add_argument("--backbone", default="minilm-l6", help="short name, folder or Hub id")
    train.add_argument("--formulation", default="math", choices=["math", "card"])
    train.add_argument("--max-length", type=int, help="training window in tokens")
    for name, default in (("seed", 1), ("batch_size", 16), ("gradient_accumulation", 1)):
        train.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    for name, default in (("epochs", 1.0), ("learning_rate", 1e-4), ("head_lr_multiplier", 10.0)):
        train.add_argument(f"--{name.replace('_', '-')}", type=float, default=default)
    train.add_argument("--bf16", action="store_true")

    evaluate = commands.add_parser("evaluate", help="metrics with intervals, one JSON per set")
    evaluate.add_argument("--model", required=True, help="folder or Hub id of a trained GliZNet")
    evaluate.add_argument("--wording", default="readable", choices=["readable", "published"])
    evaluate.add_argument("set", nargs="+", help="set of the registry, or hardset-mini/SPLIT")

    commands.add_parser("run", help="run a profile of notebooks", add_help=False)
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command != "run":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if options.command == "run":
        from gliznet.lab.run import main as run_profile

        return run_profile(rest)
    {"classify": _classify, "train": _train, "evaluate": _evaluate}[options.command](options)
    return 0


def _pipeline(model: str, **settings: str):
    from gliznet import ZeroShotClassificationPipeline
    from gliznet.backbones import load_or_build

    return ZeroShotClassificationPipeline(*load_or_build(model, "", "", ""), **settings)


def _classify(options: argparse.Namespace) -> None:
    pipeline = _pipeline(options.model, classification_type=options.type)
    texts = iter(options.text or (line.rstrip("\n") for line in sys.stdin))
    for result in pipeline(texts, options.label, threshold=options.threshold, top_k=options.top_k):
        scores = {entry.label: round(entry.score, 4) for entry in result.labels}
        print(json.dumps({"text": result.text, "scores": scores}, ensure_ascii=False))


def _train(options: argparse.Namespace) -> None:
    from pathlib import Path

    from gliznet.backbones import load_or_build
    from gliznet.data.sources import training_examples
    from gliznet.training import train

    out = Path(options.out)
    model, tokenizer = load_or_build(
        "", options.backbone, options.formulation, out, options.max_length
    )
    names = ("seed", "learning_rate", "head_lr_multiplier", "epochs", "batch_size")
    trainer = train(
        model,
        tokenizer,
        training_examples(options.data, options.rows, options.seed),
        out / "checkpoints",
        **{name: getattr(options, name) for name in names},
        gradient_accumulation=options.gradient_accumulation,
        schedule=options.formulation,
        bf16=options.bf16,
    )
    if trainer.is_world_process_zero():
        model.save_pretrained(out / "model")
        tokenizer.save_pretrained(out / "model")


def _evaluate(options: argparse.Namespace) -> None:
    from gliznet.data.corpus import hardset_mini
    from gliznet.data.loading import load
    from gliznet.evaluation import macro_f1, ranking_metrics, score_examples, score_single_label

    pipeline = _pipeline(options.model)
    for name in options.set:
        corpus, _, split = name.partition("/")
        if corpus == "hardset-mini":
            found = ranking_metrics(score_examples(pipeline, hardset_mini(split)))
        else:
            data = load(name, options.wording)
            found = {"macro_f1": macro_f1(*score_single_label(pipeline, data))}
        print(json.dumps({"set": name, **{key: asdict(value) for key, value in found.items()}}))


if __name__ == "__main__":
    raise SystemExit(main())
