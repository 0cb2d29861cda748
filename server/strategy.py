"""The SparCL strategy for Flower: messages out, replies in. What a round is stands in `server.rounds`.

Flower's own loop, one batch of messages and one of replies a round, fits synchronous rounds only; `server.app.run_rounds` plays all modes.
"""

import logging
from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from server.global_model.model import GlobalModel
from server.ledger import Ledger
from server.rounds.buffered import BufferedRounds
from server.rounds.federation import Federation
from server.rounds.synchronous import SynchronousRounds
from server.snapshot import Snapshot, under, within
from sparcl_core.sparsity.masks import Masks, State

log = logging.getLogger(__name__)


class SparCLStrategy(Strategy):
    """A federation, and the rounds that are played on it.

    Attributes:
        federation: devices, time and ledger.
        rounds: of the mode that the clock says.
    """

    def __init__(self, federation: Federation):
        self.federation = federation
        self.rounds = BufferedRounds(federation) if federation.clock.is_buffered else SynchronousRounds(federation)

    @property
    def model(self) -> GlobalModel:
        return self.federation.model

    @property
    def weights(self) -> State:
        return self.model.weights

    @property
    def masks(self) -> Masks:
        return self.model.masks

    @property
    def ledger(self) -> Ledger:
        return self.federation.ledger

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """The messages of a round; the federation holds model and settings, so that only the round's number is read.

        Raises:
            TypeError: where rounds are not synchronous, or devices are to find the first masks.
        """
        if self.model.awaits_masks:
            raise TypeError("masks.initial is 'snip': Flower's loop asks nobody before its first round; play it with server.app.run_rounds")
        return self._synchronous.begin(server_round)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average what is there in time into the model. Raises FleetError, see `Federation.all_failed`."""
        counts = self._synchronous.conclude(server_round, replies)
        return None, MetricRecord({"num-devices": counts.num_devices, "num-examples": counts.num_samples})

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Nothing: the global model is evaluated at the server, which costs a device nothing."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        return None

    def summary(self) -> None:
        method, devices = self.model.settings.method, len(self.federation.cohorts.roster)
        log.info("SparCL %s at sparsity %s over %d devices", method.learner.method, method.sparsity, devices)

    def snapshot(self) -> Snapshot:
        """See `Federation.snapshot`; and who is at work."""
        return {**under("federation", self.federation.snapshot()), **under("rounds", self.rounds.snapshot())}

    def restore(self, snapshot: Snapshot) -> None:
        """Go on where `snapshot` was taken, in a strategy that was just made for the same experiment.

        Raises:
            ValueError: if the snapshot is of another model, or written by another version of this code.
        """
        try:
            self.federation.restore(within("federation", snapshot))
            self.rounds.restore(within("rounds", snapshot))
        except KeyError as error:
            raise ValueError(f"the snapshot has no {error}: another version of this code made it; resume the run with that one") from error

    @property
    def _synchronous(self) -> SynchronousRounds:
        if not isinstance(self.rounds, SynchronousRounds):
            mode = self.federation.clock.mode
            raise TypeError(f"clock.mode is {mode!r}: Flower's loop plays synchronous rounds only; play it with server.app.run_rounds")
        return self.rounds
