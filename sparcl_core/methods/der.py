"""DER, dark experience replay (Buzzega et al. 2020, "Dark Experience for General Continual Learning", arXiv:2004.07211).

    CE(f(x), y) + alpha * MSE(f(B.x), B.logits)     x, y: the current batch; B: a draw from the buffer

Stored logits are those of the training step that offered a sample, and are never refreshed. CE is a mean over its batch, MSE over batch
and classes.
"""

from sparcl_core.methods.base import LearningMethod


class DER(LearningMethod):
    name = "der"
    reads = ("alpha",)
    draws = 1

    def draw_term(self, running, number, drawn, logits):
        import torch.nn.functional as F

        return self.config.alpha * F.mse_loss(logits, drawn.logits)
