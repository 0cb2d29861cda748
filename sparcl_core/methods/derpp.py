"""DER++: DER, and the labels of a second draw (Buzzega et al. 2020, arXiv:2004.07211).

CE(f(x), y) + alpha * MSE(f(B1.x), B1.logits) + beta * CE(f(B2.x), B2.y)     B1, B2: independent draws of the same size
"""

from sparcl_core.methods.der import DER


class DERpp(DER):
    name = "derpp"
    reads = ("alpha", "beta")
    draws = 2

    def draw_term(self, running, number, drawn, logits):
        if number == 0:
            return super().draw_term(running, number, drawn, logits)
        import torch.nn.functional as F

        return self.config.beta * F.cross_entropy(logits, drawn.y)
