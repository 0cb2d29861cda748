"""The global model: weights and masks, what is published of them, and what a round's contributions make of them.

A round: `begin_round` updates the masks if it is their turn and publishes the next version, `apply` takes in what devices have made of it.
Nothing here knows of time, or of messages.
"""

from dataclasses import replace

import numpy as np

from server.aggregation.average import mean_update, voted
from server.aggregation.update import Update
from server.defence.clipping import Seen, Unusual
from server.defence.rollback import Rollback, Step
from server.errors import Diverged, FleetError
from server.global_model.auxiliary import Beside
from server.global_model.batchnorm import Observed, bounded_statistics, pooled_statistics
from server.global_model.broadcast import Broadcast, TieredBroadcast
from server.global_model.contribution import Contribution, Judged, judge, judge_importance
from server.global_model.mask_schedule import MaskSchedule
from server.global_model.masks import Diversity, LocalMasks, SharedMasks, diversity
from server.global_model.optimizer import ServerOptimizer
from server.global_model.settings import ModelSettings, Start
from server.snapshot import Snapshot, same_model, under, within
from sparcl_core.sparsity.initial import laid_over
from sparcl_core.sparsity.masks import Masks, State, apply_masks_
from sparcl_core.sparsity.packnet import Owners
from sparcl_core.sparsity.snip import chosen_by_votes


class GlobalModel:
    """What is averaged, masked and sent.

    Attributes:
        weights: w.
        whole, layout: of all tensors, and of those that cross the wire.
        broadcasts: what is published, a broadcast per tier.
        beside: the arrays that a method or a correction has beside the model.
        diversity: of the devices' masks in the last round; None without masks, or devices.
        awaits_masks: devices are still to find the first mask on their data; the one that is there stands in for it.
    """

    def __init__(self, settings: ModelSettings, start: Start, sparsities: tuple[float, ...]):
        """`sparsities`: of the tiers that devices are in, ascending; the first is the experiment's own."""
        method, federation = settings.method, settings.federation
        scheme = method.scheme(federation.task_epochs, settings.seed)
        scheme.check()
        self.settings, self.whole, self.classifier = settings, start.layout, start.classifier
        self.layout = self.whole.sent(federation.batchnorm)
        self.weights = {name: value.copy() for name, value in start.weights.items()}
        self.sparsities, self._dense, self.awaits_masks = sparsities, start.dense, start.dense is not None
        self.broadcasts = self._first_broadcasts(start.masks)
        self.optimizer = ServerOptimizer(settings.optimizer, self.layout)
        schedule, is_shared = scheme.schedule(federation.local_epochs), federation.mask == "shared"
        self.masking = SharedMasks(scheme, schedule, self.masks, settings.wire.importance) if is_shared else LocalMasks(scheme)
        self.mask_schedule = MaskSchedule(federation.rounds_per_task, settings.follows_reports)
        self.beside = Beside(method, start)
        self.diversity: Diversity | None = None
        self.seen, self.seen_statistics, self.rollback = Seen(), Seen(), Rollback()

    @property
    def broadcast(self) -> Broadcast:
        """That of the shared masks."""
        return self.broadcasts.shared

    @property
    def masks(self) -> Masks:
        return self.broadcast.masks

    @property
    def owners(self) -> Owners:
        """Whose each weight is, and what tasks have chosen of earlier ones'; empty where tasks own none."""
        return self.beside.networks(self.masking.owners)

    @property
    def num_classes(self) -> int:
        return self.whole.shapes[self.classifier[0]][0]

    @property
    def voting_rows(self) -> tuple[str, ...]:
        """Tensors of whose rows only those count that a device has seen the class of."""
        return self.classifier if self.settings.aggregation.row_voting else ()

    @property
    def recomputes_statistics(self) -> bool:
        """Do devices recompute the model's statistics before it is evaluated?"""
        return self.settings.federation.batchnorm == "recompute" and bool(self.whole.statistics)

    def choose_masks(self, votes: State) -> None:
        """Begin with the masks that devices want, before any device was sent anything. `votes`: how many name each place, by tensor."""
        method = self.settings.method
        masks = chosen_by_votes(votes, method.masks, sparsity=method.sparsity, seed=self.settings.seed)
        self.weights, self.awaits_masks = laid_over(self._dense, masks, method.model.rescale), False
        self.broadcasts = self._first_broadcasts(masks)

    def begin_round(self, server_round: int) -> tuple[bool, str]:
        """Update the masks if it is their turn, and publish the next version.

        Returns:
            Are devices to say what they think of the masks? And why the last update was taken back, see `publish`.
        """
        task, session = self.mask_schedule.position(server_round)
        surviving = self.masking.before_round(task, session, self.weights, self.broadcast)
        wants_report = self.masking.wants_report(task, session)
        self.optimizer.drop(surviving)
        self.beside.drop(self.masks)
        taken_back = self.publish()
        self.beside.own(self.masking.owners, begins=session == 0)
        return wants_report, taken_back

    def publish(self) -> str:
        """Make the next version. Returns why the last update was taken back for it, empty if it was not.

        Raises:
            FleetError: if the model cannot be sent, nor the one before.
        """
        try:
            self.broadcasts.publish(self.weights)
        except ValueError as error:
            taken_back = self.take_back(f"the global model cannot be sent: {error}")
            self.broadcasts.publish(self.weights)
            return taken_back
        return ""

    def apply(self, server_round: int, contributions: list[Contribution], fleet: int) -> Judged:
        """Move the model by the average of a round's contributions, in device order, as far as they are used; then the masks follow.

        `fleet`: devices that there are.

        Raises:
            FleetError: if that makes it infinite, and so did the update before.
        """
        judged, self.seen = judge(contributions, self.weights, self.seen, self.layout, config=self.settings.aggregation)
        if not self.masking.by_votes:  # votes weigh alike by themselves
            judged = judge_importance(judged, self.settings.aggregation.clip)
        used, taken_back = judged.used, ""
        if used:
            self._remember(server_round, judged)
            taken_back = self._move(server_round, [one.update for one in used])
        self._follow(used)
        stood_out = {one.device for one in judged.unusual}
        sound = [] if taken_back else [one for one in used if one.device not in stood_out]
        judged = replace(judged, unusual=[*judged.unusual, *self.beside.combine(sound, fleet, self.settings.aggregation)])
        shown = [Observed(one.device, one.update.samples, one.statistics) for one in used if one.statistics]
        unusual = self.set_statistics(shown) if shown else []  # these are never sent: they are what the model is evaluated with
        self.mask_schedule.advance([one.has_changed for one in used])
        return replace(judged, unusual=[*judged.unusual, *unusual], taken_back=taken_back)

    def set_statistics(self, found: list[Observed]) -> list[Unusual]:
        """Running statistics from those of devices, by their samples. Returns whose stood out, and were scaled down."""
        found, unusual, self.seen_statistics = bounded_statistics(
            found, self.weights, self.seen_statistics, layout=self.whole, config=self.settings.aggregation
        )
        for name, value in pooled_statistics([(one.samples, one.statistics) for one in found]).items():
            self.weights[name] = value.astype(self.weights[name].dtype)
        return unusual

    def take_back(self, reason: str, *, diverged: bool = True) -> str:
        """Be as before the last update, and send that whole to everybody. Returns what was taken back, and why.

        Raises:
            FleetError: if there is no update to take back, or the one before was taken back and it did not help; Diverged, if `diverged`
                says that numbers are to blame.
        """
        step = self.rollback.take()
        if step is None:
            rate = self.optimizer.config.lr
            advice = f"; server_optimizer.lr is {rate:g}: lower it" if rate > 1 else ""
            raise (Diverged if diverged else FleetError)(f"{reason}; {self.rollback.undone}{advice}" if self.rollback.undone else reason)
        self.weights = step.weights
        apply_masks_(self.weights, self.masks)
        self.optimizer.restore(step.optimizer)
        self.beside.kept = step.beside
        self.optimizer.drop(self.masks)
        self.broadcasts.restart(self.weights)
        return f"{step.told} was taken back: {reason}"

    def snapshot(self) -> Snapshot:
        """All that changes from round to round, see `server.snapshot`."""
        apart = self.diversity
        return {
            "awaits_masks": np.array(self.awaits_masks),
            "diversity": np.array([] if apart is None else [apart.union_density, apart.distance], np.float64),
            **under("weights", self.weights),
            **under("broadcasts", self.broadcasts.snapshot()),
            **under("optimizer", self.optimizer.snapshot()),
            **under("beside", self.beside.snapshot()),
            **under("masking", self.masking.snapshot()),
            **under("mask_schedule", self.mask_schedule.snapshot()),
            **under("seen", self.seen.snapshot()),
            **under("seen_statistics", self.seen_statistics.snapshot()),
            **under("rollback", self.rollback.snapshot()),
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Go on where `snapshot` was taken. Raises ValueError if it is of another model."""
        self.weights = same_model("weights", snapshot, self.weights)
        self.broadcasts.restore(within("broadcasts", snapshot))
        self.optimizer.restore(within("optimizer", snapshot))
        self.beside.restore(within("beside", snapshot))
        self.masking.restore(within("masking", snapshot), self.broadcast)
        self.mask_schedule.restore(within("mask_schedule", snapshot))
        self.seen = Seen.restored(within("seen", snapshot))
        self.seen_statistics = Seen.restored(within("seen_statistics", snapshot))
        self.rollback.restore(within("rollback", snapshot), self.weights)
        self.awaits_masks = bool(snapshot["awaits_masks"])
        apart = snapshot["diversity"].tolist()
        self.diversity = Diversity(*apart) if apart else None

    def _first_broadcasts(self, masks: Masks) -> TieredBroadcast:
        """Of the weights as they are, before anything was published."""
        wire, seed = self.settings.wire, self.settings.seed
        return TieredBroadcast(self.weights, masks, self.layout, self.sparsities, wire=wire, seed=seed)

    def _remember(self, server_round: int, judged: Judged) -> None:
        """What `take_back` goes back to."""
        told = judged.bounded.told(server_round)
        before = {name: value.copy() for name, value in self.weights.items()}
        optimizer = {name: array.copy() for name, array in sorted(self.optimizer.snapshot().items())}
        beside = dict(sorted(self.beside.kept.items()))
        self.rollback.moved(Step(server_round, before, optimizer, told, self.broadcast.version, beside), judged.trained_with)

    def _move(self, server_round: int, updates: list[Update]) -> str:
        """The server's step. Returns why it was taken back, empty if it was not."""
        config = self.settings.aggregation
        mean = mean_update(updates, self.weights, self.layout, self.voting_rows, config=config)
        votes = {} if self.optimizer.is_plain else voted(updates, self.layout, self.voting_rows, config)
        for name, change in self.optimizer.step(mean, votes).items():
            with np.errstate(over="ignore"):  # looked at below
                self.weights[name] += change.astype(self.weights[name].dtype)
            if name in self.layout.statistics and name.endswith("running_var"):
                # a lossy code errs by a share of the change, which may be more than what is left of a variance that fell
                np.maximum(self.weights[name], 0, out=self.weights[name])
        if infinite := [name for name, value in self.weights.items() if not np.isfinite(value).all()]:
            return self.take_back(f"the update of round {server_round} made {infinite[0]} infinite")
        return ""

    def _follow(self, used: list[Contribution]) -> None:
        """The masks by what was sent; without anybody (nobody has data for the task), what was reported before is out of date."""
        updates = [one.update for one in used]
        reports = [(one.update.samples, one.importance) for one in used if one.importance is not None]
        self.masking.after_round(updates, reports, self.weights, self.broadcast)
        self.diversity = None
        if used:
            self.optimizer.drop(self.masks)
        if used and self.masks:
            self.diversity = diversity([update.masks or self.masks for update in updates])
