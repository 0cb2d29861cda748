"""A learning method with a setting of its own."""

from dataclasses import dataclass

from sparcl_core.config import LearnerConfig
from sparcl_core.methods.base import LearningMethod


@dataclass(frozen=True)
class SmoothedConfig(LearnerConfig):
    label_smoothing: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}: a share in [0, 1); 0 is plain cross-entropy")


class Smoothed(LearningMethod):
    """Experience replay with smoothed labels."""

    Config, draws = SmoothedConfig, 1  # draws: buffer draws beside each batch

    def current_term(self, running, batch, logits, seen):
        import torch.nn.functional as F  # inside: settings are read before PyTorch is imported

        return F.cross_entropy(logits, batch.y, label_smoothing=self.config.label_smoothing)

    def draw_term(self, running, number, drawn, logits):
        import torch.nn.functional as F

        return F.cross_entropy(logits, drawn.y)
