"""What the server remembers of each device from earlier rounds; policies and estimates go by it."""

import numpy as np

from server.snapshot import Snapshot

DOWN, UP = 0, 1
_KNOWN = ("finished", "last_round", "loss")


class History:
    """Of N devices, by number.

    Attributes:
        finished: [N] int64, rounds that a device has trained to the end.
        loss, last_round: [N], mean loss and number of the last round that a device has reported; NaN and 0 before.
        message_bytes: [tiers, 2] float64, mean size of the last messages down and up.
    """

    def __init__(self, devices: int, model_bytes: list[int]):
        """`model_bytes`: of each tier, the measure of a message until one was sent."""
        self.finished, self.last_round = np.zeros(devices, np.int64), np.zeros(devices, np.int64)
        self.loss = np.full(devices, np.nan)
        self.message_bytes = np.array([[size, size] for size in model_bytes], np.float64)

    def trained(self, device: int) -> None:
        """A device has trained a round to the end, whether its report came in or not."""
        self.finished[device] += 1

    def reported(self, device: int, server_round: int, loss: float) -> None:
        """A device has reported a round; `loss`: NaN if that cannot be read."""
        self.loss[device], self.last_round[device] = loss, server_round

    def transferred(self, sizes: list[tuple[int, int]], direction: int) -> None:
        """Note the sizes of messages: (tier, bytes); `direction`: `DOWN` or `UP`."""
        for tier in {tier for tier, _ in sizes}:
            self.message_bytes[tier, direction] = np.mean([size for own, size in sizes if own == tier])

    def snapshot(self) -> Snapshot:
        """All that changes from round to round, see `server.snapshot`; of devices that were never reached there is nothing to say."""
        known = np.flatnonzero((self.last_round > 0) | (self.finished > 0))
        return {"known": known, "message_bytes": self.message_bytes, **{name: getattr(self, name)[known] for name in _KNOWN}}

    def restore(self, snapshot: Snapshot) -> None:
        """Go on where `snapshot` was taken."""
        for name in _KNOWN:
            getattr(self, name)[snapshot["known"]] = snapshot[name]
        self.message_bytes = snapshot["message_bytes"].copy()
