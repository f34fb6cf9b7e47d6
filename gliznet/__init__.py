"""GliZNet, reproduced: zero-shot text classification of a whole label set in one forward pass."""

from gliznet.config import GliZNetConfig
from gliznet.model import GliZNetForSequenceClassification, GliZNetOutput
from gliznet.predictor import ZeroShotClassificationPipeline
from gliznet.tokenizer import GliZNETTokenizer, WindowError

__version__ = "0.1.0"
__all__ = [
    "GliZNETTokenizer",
    "GliZNetConfig",
    "GliZNetForSequenceClassification",
    "GliZNetOutput",
    "WindowError",
    "ZeroShotClassificationPipeline",
]
