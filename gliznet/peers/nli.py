"""Natural language inference: a label is a hypothesis that the text entails or not.

The zero-shot pipeline of transformers reads any checkpoint with an entailment class (Yin et al.
2019, "Benchmarking Zero-shot Text Classification"). A text with K candidates costs K sequences, and
neither the other candidates nor their order change the order of two labels.

Measured with transformers 5.23.0 (tests/test_peers_nli.py), each of them avoided here:
- The pipeline refuses the empty text, and the label `{}` in first place only.
- It exponentiates raw logits in single precision: one above 88.7 makes its score NaN, and a
  difference of 17 makes it 1.0, so that sure labels tie.
- A hypothesis over the window is not cut, nor is its text: the sequence exceeds the window.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.cross_encoder.losses import CrossEntropyLoss
from torch import Tensor, nn
from transformers import AutoConfig, ZeroShotClassificationPipeline

from gliznet.peers.cross_encoder import CrossEncoderPeer


class LogitPipeline(ZeroShotClassificationPipeline):
    """The pipeline up to its logits `(K, classes)`, before it turns them into probabilities."""

    def postprocess(self, model_outputs: list[dict[str, Any]], multi_label: bool = False) -> Tensor:
        return torch.cat([output["logits"] for output in model_outputs]).float()


class NLIPeer(CrossEncoderPeer):
    """Logits of entailment for the pairs of a text and a label's hypothesis.

    A checkpoint with a class whose name starts with "entail" keeps its head and classifies without
    training. A bare encoder gets two classes, "not_entailment" and "entailment". Training takes
    cross-entropy, the library's default for several classes, with a true candidate as entailment
    and a false one as the class that the pipeline reads as contradiction.

    Args:
        texts_per_pass: texts per forward pass in training, see `CrossEncoderPeer`.
        hypothesis_template: the hypothesis, with `{}` where the label goes.
        multi_label: `True` scores a label by the logit of entailment minus that of contradiction,
            whose sigmoid is the pipeline's score; it is what training fits. `False`, the pipeline's
            default, takes the logit of entailment, of which the pipeline's scores are the softmax
            over the candidates.

    Raises:
        ValueError: a template without `{}`.
    """

    name = "nli"

    def __init__(
        self,
        backbone: str | Path,
        max_length: int = 256,
        batch_size: int = 32,
        texts_per_pass: int = 8,
        hypothesis_template: str = "This example is {}.",
        multi_label: bool = True,
    ):
        if hypothesis_template.format("a") == hypothesis_template.format("b"):
            raise ValueError(
                f"hypothesis_template is {hypothesis_template!r}: it must hold {{}} for the label"
            )
        self.hypothesis_template = hypothesis_template
        self.multi_label = multi_label
        super().__init__(backbone, max_length, batch_size, texts_per_pass)

    def _classes(self) -> dict[str, Any]:
        names = AutoConfig.from_pretrained(self.backbone).label2id
        if any(name.lower().startswith("entail") for name in names):
            return {}
        classes = {0: "not_entailment", 1: "entailment"}
        label2id = {name: i for i, name in classes.items()}
        return {"num_labels": 2, "config_kwargs": {"id2label": classes, "label2id": label2id}}

    def _pipeline(self) -> LogitPipeline:
        """Over the model where it is now: training may have moved it."""
        return LogitPipeline(
            model=self.model.transformers_model,
            tokenizer=self.model.tokenizer,
            device=self.model.device,
        )

    def _loss(self) -> nn.Module:
        return CrossEntropyLoss(self.model)

    def _second(self, label: str) -> str:
        return self.hypothesis_template.format(label)

    def _targets(self) -> tuple[float, float] | tuple[int, int]:
        entailment = self._pipeline().entailment_id
        return (self.model.num_labels - 1 if entailment == 0 else 0), entailment

    def save(self, folder: str | Path) -> None:
        super().save(folder)
        options = {
            "hypothesis_template": self.hypothesis_template,
            "multi_label": self.multi_label,
        }
        (Path(folder) / "nli.json").write_text(json.dumps(options), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, **options: Any) -> "CrossEncoderPeer":
        saved = json.loads((Path(folder) / "nli.json").read_text(encoding="utf-8"))
        return super().load(folder, **{**saved, **options})

    def _scores(self, texts: list[str], labels: list[str]) -> NDArray[np.floating]:
        self._check_labels(labels, self.max_length)
        # Hypotheses in place of labels, with the template "{}", let a label "{}" through; a space
        # has no token, as the empty text has none.
        with self.costs.counting(self.model.transformers_model):
            logits = self._pipeline()(
                [text or " " for text in texts],
                candidate_labels=[self._second(label) for label in labels],
                hypothesis_template="{}",
                batch_size=self.batch_size,
            )
        contradiction, entailment = self._targets()
        scores = torch.stack(logits)
        chosen = scores[..., entailment]
        if self.multi_label:
            chosen = chosen - scores[..., contradiction]
        return chosen.cpu().numpy()
