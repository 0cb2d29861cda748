"""ER, experience replay (Chaudhry et al. 2019, "On Tiny Episodic Memories in Continual Learning", arXiv:1902.10486).

    CE(f(x), y) + replay_weight * CE(f(B.x), B.y)     x, y: the current batch; B: a draw from the buffer

Each term is a mean over its own batch. mammoth takes one mean over the joined batch of n current and m replayed samples: n / (n + m) of
ours with weight m / n. So for draws as large as the batch, weight 1 and half of mammoth's learning rate take mammoth's steps; with
mammoth's own rate, ours are twice as long.
"""

from sparcl_core.methods.base import LearningMethod


class ER(LearningMethod):
    name = "er"
    reads = ("replay_weight",)
    draws = 1

    def draw_term(self, running, number, drawn, logits):
        import torch.nn.functional as F

        return self.config.replay_weight * F.cross_entropy(logits, drawn.y)
