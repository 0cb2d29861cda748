"""FDR, function distance regularisation (Benjamin, Rolnick and Kording 2019, arXiv:1805.08289).

    CE(f(x), y) + distance_weight * mean ||softmax(f(B.x)) - softmax(B.logits)||_2

x, y: the current batch; B: a draw from a buffer that holds equal shares of the tasks that have ended, with what the model answered to
them then. distance_weight is mammoth's alpha. Difference from mammoth: one step by the sum of both terms, where its code takes two.
"""

from dataclasses import dataclass

from sparcl_core.config import LearnerConfig, weight_of_a_loss
from sparcl_core.methods.at_the_end import FilledAtTheEnd


@dataclass(frozen=True)
class FDRConfig(LearnerConfig):
    """distance_weight: weight of the distance to what the model answered when a task ended; mammoth's alpha."""

    distance_weight: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        weight_of_a_loss("distance_weight", self.distance_weight)


class FDR(FilledAtTheEnd):
    name = "fdr"
    Config = FDRConfig
    stores_logits = True

    def draw_term(self, running, number, drawn, logits):
        import torch

        apart = logits.softmax(1) - drawn.logits.softmax(1)
        return self.config.distance_weight * torch.linalg.vector_norm(apart, dim=1).mean()
