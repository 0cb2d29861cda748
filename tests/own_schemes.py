"""A scheme of somebody else's, as a package would offer it."""

from sparcl_core.sparsity.rigl import RigL


class Steady(RigL):
    """RigL that exchanges the same share all the time."""

    def share(self, epoch: int) -> float:
        return self.config.exchange
