"""Soft contextualized encoder under the peers' protocol; the model is in `sce_model`."""

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Trainer,
    set_seed,
)

from gliznet.data.types import Example
from gliznet.peers.protocol import FitSettings, Peer, PeerError, comparison_rows
from gliznet.peers.sce_model import (
    SoftContextualizedEncoder,
    label_encoder,
    label_tokens,
    pretrained,
    without_pooler,
)
from gliznet.training import GliZNetTrainer, _last_checkpoint, interpolate


class SCETrainer(GliZNetTrainer):
    """Data order and learning-rate groups of GliZNet's trainer with the loss of this model."""

    def _get_num_items_in_batch(self, *_: Any) -> None:
        return None

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return Trainer.compute_loss(self, *args, **kwargs)


class Collator:
    """Rows of `comparison_rows`, numbered in a column "row", as input of the encoder.

    True labels that have synonyms are replaced by one of them, drawn evenly and anew in each epoch.
    The draw follows from seed, epoch and row, so that a resumed run repeats it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        queries: Float[Tensor, "N Q"],
        synonyms: Mapping[str, Sequence[str]],
        seed: int,
        epoch: Callable[[], int],
    ):
        self.tokenizer = tokenizer
        self.queries = queries
        self.synonyms = synonyms
        self.seed = seed
        self.epoch = epoch

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        tokens, mask = label_tokens(self.tokenizer, [self.names(row) for row in rows])
        targets = torch.zeros(mask.shape[:2])
        for i, row in enumerate(rows):
            targets[i, : len(row["targets"])] = torch.tensor(row["targets"])
        return {
            "queries": self.queries[[row["row"] for row in rows]],
            "label_tokens": tokens,
            "token_mask": mask,
            "targets": targets,
        }

    def names(self, row: dict[str, Any]) -> list[str]:
        """The row's candidates, true ones replaced. No synonym that is a candidate too is drawn."""
        names = list(row["candidates"])
        generator = random.Random(f"{self.seed}:{self.epoch()}:{row['row']}")
        for j, true in enumerate(row["targets"]):
            if true:
                free = [s for s in self.synonyms.get(names[j], ()) if s not in names]
                names[j] = generator.choice(free) if free else names[j]
        return names


class SCEPeer(Peer):
    """SCE under the peers' protocol.

    The text alone takes the window. The number of labels has no limit but memory: the encoder's
    attention over K + 1 places costs O(K²), and without positions no table can run out.

    What the paper leaves open is an option here; its learning rate is that of `FitSettings`.

    Args:
        embedder: folder or Hub id of the frozen text embedder, mean-pooled over all its tokens;
            `None` is the backbone. The paper has jina-embeddings-v3 before RoBERTa-base.
        normalize: whether text embeddings have length 1, as those of jina-embeddings-v3 and
            all-MiniLM-L6-v2 do by their own settings.
        encoder_init: "pretrained", as in the paper; or "random", which keeps the token embeddings.
        adaptor_init: "default", PyTorch's, the only usual one where widths differ as in the paper;
            or "identity".
        synonyms: of a true label, one of which replaces it in each training row. The paper's list
            is not published and other peers see the labels as they are: default none.

    Raises:
        PeerError: a backbone that finds its positions elsewhere than in one table, or "identity"
            between two widths.
        ValueError: an unknown choice, an empty list of synonyms, or a window that the embedder does
            not have.
    """

    name = "sce"

    def __init__(
        self,
        backbone: str | Path,
        max_length: int = 256,
        batch_size: int = 32,
        embedder: str | Path | None = None,
        normalize: bool = True,
        encoder_init: str = "pretrained",
        adaptor_init: str = "default",
        synonyms: Mapping[str, Sequence[str]] | None = None,
    ):
        super().__init__(backbone, max_length, batch_size)
        for option, value, choices in (
            ("encoder_init", encoder_init, ("pretrained", "random")),
            ("adaptor_init", adaptor_init, ("default", "identity")),
        ):
            if value not in choices:
                raise ValueError(f"{option} is {value!r}: choose one of {', '.join(choices)}")
        for label, names in (synonyms or {}).items():
            if isinstance(names, str) or not names or not all(str(name).strip() for name in names):
                raise ValueError(f"synonyms[{label!r}] is {names!r}: give a list of labels")
        self.embedder_name = str(embedder or backbone)
        self.normalize = normalize
        self.encoder_init = encoder_init
        self.adaptor_init = adaptor_init
        self.synonyms = synonyms or {}
        self._open(0)
        self._check_window(max_length)

    def fit(
        self, examples: Sequence[Example], folder: str | Path, settings: FitSettings
    ) -> dict[str, float]:
        if (Path(self.backbone) / "sce.json").is_file():
            raise PeerError(f"{self.backbone} is a saved peer: build one from a backbone to train")
        self._check_window(settings.max_length)
        rows = comparison_rows(examples, self.backbone, settings)
        if not any(any(targets) for targets in rows["targets"]):
            raise PeerError("no row has a true label: the cross-entropy has no target")
        self._open(settings.seed)
        if settings.backbone_dropout is not None:
            for module in self.model.backbone.modules():
                if isinstance(module, nn.Dropout):
                    module.p = settings.backbone_dropout
        start = {name: weight.clone() for name, weight in self.model.state_dict().items()}
        started = time.perf_counter()
        # Frozen, so one pass serves every epoch.
        queries, tokens = self._queries(list(rows["text"]), settings.max_length)
        trainer = SCETrainer(
            model=self.model,
            args=settings.arguments(folder),
            train_dataset=rows.add_column("row", list(range(len(rows)))),
            data_collator=Collator(
                self.label_tokenizer,
                queries.cpu(),
                self.synonyms,
                settings.seed,
                lambda: int(trainer.state.epoch or 0),
            ),
            head_lr_multiplier=settings.head_lr_multiplier,
        )
        trainer.train(resume_from_checkpoint=_last_checkpoint(Path(folder)))
        seconds = time.perf_counter() - started
        self.model.eval()
        interpolate(self.model, start, settings.trained_share)
        epochs = trainer.state.epoch or 0.0
        places = sum(1 + len(candidates) for candidates in rows["candidates"])
        return {
            "seconds": seconds,
            "optimiser_steps": trainer.state.global_step,
            "sequences": len(rows) * (1 + epochs),
            "tokens": tokens + places * epochs,
        }

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        for part, module, encoder, tokenizer in (
            ("encoder", self.model, self.model.backbone, self.label_tokenizer),
            ("embedder", self.embedder, self.embedder, self.text_tokenizer),
        ):
            encoder.config.save_pretrained(folder / part)
            tokenizer.save_pretrained(folder / part)
            weights = {name: w.cpu().contiguous() for name, w in module.state_dict().items()}
            save_file(weights, folder / part / "model.safetensors")
        (folder / "sce.json").write_text(json.dumps({"normalize": self.normalize}))

    @classmethod
    def load(cls, folder: str | Path, **options: Any) -> "SCEPeer":
        """Opens what `save` wrote.

        Raises:
            RuntimeError: a weight is missing, unexpected or of another shape.
        """
        peer = cls.__new__(cls)
        Peer.__init__(peer, folder, **options)
        folder = Path(folder)
        peer.normalize = json.loads((folder / "sce.json").read_text())["normalize"]
        parts = [folder / "encoder", folder / "embedder"]
        peer.label_tokenizer, peer.text_tokenizer = map(AutoTokenizer.from_pretrained, parts)
        encoder, peer.embedder = (
            without_pooler(AutoModel.from_config(AutoConfig.from_pretrained(part)))
            for part in parts
        )
        peer.model = SoftContextualizedEncoder(encoder, peer.embedder.config.hidden_size)
        for part, module in zip(parts, (peer.model, peer.embedder), strict=True):
            module.load_state_dict(load_file(part / "model.safetensors"), strict=True)
        peer._settle()
        peer._check_window(peer.max_length)
        return peer

    def _open(self, seed: int) -> None:
        """An untrained model, whose random weights follow from the seed, and the embedder."""
        set_seed(seed)
        encoder = label_encoder(self.backbone, self.encoder_init)
        self.embedder = pretrained(self.embedder_name)
        self.label_tokenizer = AutoTokenizer.from_pretrained(self.backbone)
        self.text_tokenizer = AutoTokenizer.from_pretrained(self.embedder_name)
        self.model = SoftContextualizedEncoder(
            encoder, self.embedder.config.hidden_size, self.adaptor_init
        )
        self._settle()

    def _settle(self) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model.to(device).eval()
        self.embedder.to(device).eval().requires_grad_(False)

    def _check_window(self, window: int) -> None:
        least = 1 + self.text_tokenizer.num_special_tokens_to_add()
        if not least <= window <= self.text_tokenizer.model_max_length:
            raise ValueError(
                f"max_length is {window}: the embedder takes {least} to "
                f"{self.text_tokenizer.model_max_length} tokens"
            )

    @torch.no_grad()
    def _queries(self, texts: list[str], window: int) -> tuple[Float[Tensor, "N Q"], int]:
        """Embeddings of texts cut to the window, and the number of tokens read."""
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        device = self.embedder.device
        found = torch.empty(len(texts), self.embedder.config.hidden_size, device=device)
        tokens = 0
        for first in range(0, len(order), self.batch_size):
            chosen = order[first : first + self.batch_size]
            batch = self.text_tokenizer(
                [texts[i] for i in chosen],
                padding=True,
                truncation=True,
                max_length=window,
                split_special_tokens=True,
                return_tensors="pt",
            ).to(device)
            mask = batch["attention_mask"]
            states = self.embedder(input_ids=batch["input_ids"], attention_mask=mask)
            weights = mask.unsqueeze(-1).float()
            means = (states.last_hidden_state * weights).sum(dim=1) / weights.sum(dim=1)
            found[chosen] = F.normalize(means, dim=-1) if self.normalize else means
            tokens += int(mask.sum())
        return found, tokens

    @torch.no_grad()
    def _scores(self, texts: list[str], labels: list[str]) -> NDArray[np.floating]:
        tokens, mask = (
            t.to(self.embedder.device) for t in label_tokens(self.label_tokenizer, [labels])
        )
        queries, read = self._queries(texts, self.max_length)
        scores = [
            self.model(part, tokens.expand(len(part), -1, -1), mask.expand(len(part), -1, -1))[
                "scores"
            ]
            for part in queries.split(self.batch_size)
        ]
        # Each text passes the embedder, then stands before the labels in the encoder.
        self.costs.sequences += 2 * len(texts)
        self.costs.tokens += read + len(texts) * (1 + len(labels))
        return torch.cat(scores).float().cpu().numpy()
