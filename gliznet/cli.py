"""Command line: `gliznet classify` and `gliznet run`."""

import argparse
import json
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="gliznet", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    classify = commands.add_parser("classify", help="classify texts, one JSON object per text")
    classify.add_argument("--model", required=True, help="folder or Hub id of a trained GliZNet")
    classify.add_argument("--label", action="append", required=True, help="once per label")
    classify.add_argument(
        "--type", default="multi-label", choices=["multi-label", "multi-class"], dest="kind"
    )
    classify.add_argument("--threshold", type=float)
    classify.add_argument("--top-k", type=int)
    classify.add_argument("text", nargs="*", help="texts; without any, one per line of stdin")
    commands.add_parser("run", help="run a profile of notebooks", add_help=False)
    options, rest = parser.parse_known_args(arguments)
    if options.command == "run":
        from gliznet.lab.run import main as run_profile

        return run_profile(rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return _classify(options)


def _classify(options: argparse.Namespace) -> int:
    from gliznet import (
        GliZNetForSequenceClassification,
        GliZNETTokenizer,
        ZeroShotClassificationPipeline,
    )

    pipeline = ZeroShotClassificationPipeline(
        GliZNetForSequenceClassification.from_pretrained(options.model),
        GliZNETTokenizer.from_pretrained(options.model),
        classification_type=options.kind,
    )
    texts = iter(options.text or (line.rstrip("\n") for line in sys.stdin))
    for result in pipeline(texts, options.label, threshold=options.threshold, top_k=options.top_k):
        scores = {entry.label: round(entry.score, 4) for entry in result.labels}
        print(json.dumps({"text": result.text, "scores": scores}, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
