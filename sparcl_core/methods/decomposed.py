"""A weight as FedWeIT decomposes it, and how its parts are trained (see `fedweit`, whose symbols these are)."""


class Decomposed:
    """One weight, decomposed; tensors are changed in place by `step`.

    Attributes:
        base, start: B, and as it was when the session began.
        mask, own: m_t [out] and A_t.
        others, alpha: A_j [k, ...] and alpha [k].
        before: of each earlier task m_i, A_i, and A_i as it was when the session began.
    """

    def __init__(self, base, mask, own, *, others, alpha, before):
        self.base, self.start, self.mask, self.own = base, base.clone(), mask, own
        self.others, self.alpha = others, alpha
        self.before = [(m, a, a.clone()) for m, a in before]

    @property
    def sent(self):
        """B * m_t."""
        return self.base * _along(self.mask, self.base)

    @property
    def attended(self):
        """sum_j alpha_j A_j."""
        import torch

        return torch.tensordot(self.alpha, self.others, 1)

    @property
    def theta(self):
        return self.sent + self.own + self.attended

    def step(self, gradient, *, lr: float, l1: float, l2: float) -> None:
        """One step of all parts. `gradient`: of the loss by theta."""
        import torch

        along, moved = _along(self.mask, self.base), self.base - self.start
        of_base, of_mask = gradient * along, (gradient * self.base).flatten(1).sum(1)
        self.alpha -= lr * (gradient * self.others).flatten(1).sum(1)
        kept = [moved * _along(m, moved) + (a - first) for m, a, first in self.before]
        for (m, a, _), residue in zip(self.before, kept, strict=True):
            of_base = of_base + 2 * l2 * residue * _along(m, moved)
            a -= 2 * lr * l2 * residue
        self.base -= lr * of_base
        self.mask -= lr * of_mask
        self.own -= lr * gradient
        for sparse in (self.mask, self.own, *(a for _, a, _ in self.before)):
            sparse.copy_(torch.nn.functional.softshrink(sparse, lr * l1))


def _along(mask, like):
    """[out], so that it multiplies a tensor [out, ...]."""
    return mask.reshape(-1, *[1] * (like.dim() - 1))
