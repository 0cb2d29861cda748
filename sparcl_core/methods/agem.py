"""A-GEM, averaged gradient episodic memory (Chaudhry et al. 2019, "Efficient Lifelong Learning with A-GEM", arXiv:1812.00420).

    g~ = g                                  where g . g_ref >= 0
    g~ = g - (g . g_ref) / (g_ref . g_ref) g_ref   elsewhere     (equation 11)

g: gradient of CE(f(x), y) on the current batch; g_ref: that of CE(f(B.x), B.y) on a draw from the episodic memory, which holds equal
shares of the tasks that have ended. The draw changes a step only where the step would raise its loss: then, to first order, the step
leaves it as it is. As in the paper, nothing is stored of a task before it ends. With gradient masks, products are those over the mask.
"""

from sparcl_core.methods.at_the_end import FilledAtTheEnd


class AGEM(FilledAtTheEnd):
    name = "agem"
    apart = True

    def draw_term(self, running, number, drawn, logits):
        import torch.nn.functional as F

        return F.cross_entropy(logits, drawn.y)

    def gradients(self, running, current, drawn):
        if drawn is None:
            return current
        along = _product(current, drawn)
        if along >= 0:
            return current
        import torch

        torch._foreach_add_(current, drawn, alpha=-along / _product(drawn, drawn))
        return current

    def step_flops(self, weights, drawn, arrays=None):
        """Two products and a step along one of the gradients, 2 FLOPs a weight each, as if each step had to be turned."""
        return 6 * weights * (drawn > 0)


def _product(left: list, right: list) -> float:
    return sum(float((one * other).sum()) for one, other in zip(left, right, strict=True))
