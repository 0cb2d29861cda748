"""A sparse tensor of a task that chooses among the weights of earlier ones, in a session (see `lps`, whose symbols these are)."""

ZERO, UNIT = 128, 64  # scores as bytes, 1 to 255: 0 and the step from it to 1


class Choosing:
    """One sparse tensor in a session, all parts as its parameter lies in the network. Parts are changed in place.

    Attributes:
        free, owned: bool, the places that may move and those of earlier tasks.
        fixed: F, 0 elsewhere.
        scores: as bytes are, float.
        learns: do scores move?
        target: Z - U, 0 elsewhere; None while nothing is to be pruned.
    """

    def __init__(self, free, owned, fixed, *, scores, learns: bool, target):
        self.free, self.owned, self.fixed, self.scores = free, owned, fixed, scores
        self.learns, self.target = learns, target

    def share_(self, weight) -> None:
        """Let the owned places of `weight` be F * M."""
        weight.copy_(weight.where(~self.owned, self.fixed * (self.scores >= ZERO - 0.5)))  # as the byte nearest to it would say

    def step_(self, weight, gradient, *, rho: float, share_lr: float) -> None:
        """Move the scores by `gradient`, of the loss by the network's weights, and add to it what draws W to Z - U."""
        if self.learns:
            by_score = gradient * self.fixed
            if (largest := float(by_score.abs().max())) > 0:
                self.scores.sub_(by_score, alpha=share_lr * UNIT / largest).clamp_(1, 255)
            self.share_(weight)
        if self.target is not None:
            gradient.add_((weight - self.target).mul_(self.free), alpha=rho)
