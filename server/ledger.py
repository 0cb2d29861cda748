"""The ledger: what every device paid, one row per device, round and phase.

Phases: `register` (once, where devices were asked who they are; a simulation knows), `download`, `train`, `upload`, `calibrate`
(BatchNorm statistics recomputed, with a `download` and an `upload` of its own), `aggregate` (the server's own). Outcomes:

| outcome | of a device that |
|---|---|
| `ok` | did it |
| `clipped` | did it, and sent an update or importance that stood out of its round: it counts, scaled down (`.clipping`, `.reports`) |
| `sat-out` | has no data for the round, or too little: one row a round where all take part; of a cohort that is drawn, there are none |
| `refused` | cannot take part at all: its memory or its energy budget is too small, or a node (-2) was not registered; one row at first |
| `skipped` | was asked and declined: its battery, or its budget of the day |
| `failed` | raised an error (device or worker), or was cut short: it went offline, failed, or its battery was empty |
| `late`, `cancelled` | was stopped at the deadline; was stopped as enough others had reported |
| `stale` | sent an update that was too old to be used |
| `rejected` | sent what the server could not use, or what stood out of its round while the device was on probation |
| `rolled-back` | none: the server (device -1) took back the model's last update, as nobody could train with it; one row, of no cost |

A phase that was cut short has a row with the share that was done of its seconds, joules, FLOPs and bytes; those behind it have none.
Totals are sums of rows. What the bytes of a message are for stands beside them: `codec.Sizes`; of a message that was cut short they are
`unread`.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from sparcl_core.codec import Sizes
from sparcl_core.costs.device import Cost, DeviceProfile, compute_cost, download_cost, upload_cost
from sparcl_core.costs.flops import Flops


@dataclass(frozen=True, slots=True)  # a row with a dict weighs three times as much, and 100 devices write 300 a round
class Row:
    """One row. Bytes are payload bytes; `message_bytes` is the serialised Flower message. dense_*: the dense twin's.

    values_bytes to unread_bytes: the row's down_bytes or up_bytes by what they are for, see `sparcl_core.codec.Sizes`.
    `time`: virtual second at which the phase began.
    `loss` and the counts are those of the `train` phase; memory_bytes is what the device needs to train, `active` its
    active maskable weights, `updated` those that a gradient mask touched, `kept` the task's samples that DDR keeps, `dropped`
    samples that were left out as they did not fill an epoch's last batch (`learner.last_batch`).
    No column is measured in wall-clock time: the ledger of a repeated run is the same to the byte.
    """

    round: int
    task: int
    device: int
    phase: str
    outcome: str
    reason: str = ""
    down_bytes: int = 0
    up_bytes: int = 0
    message_bytes: int = 0
    values_bytes: int = 0
    positions_bytes: int = 0
    rest_bytes: int = 0
    masks_bytes: int = 0
    header_bytes: int = 0
    unread_bytes: int = 0
    train_flops: int = 0
    importance_flops: int = 0
    mask_flops: int = 0
    statistics_flops: int = 0
    paper_flops: int = 0
    seconds: float = 0.0
    joules: float = 0.0
    dense_bytes: int = 0
    dense_flops: int = 0
    dense_paper_flops: int = 0
    dense_seconds: float = 0.0
    dense_joules: float = 0.0
    samples: int = 0
    replayed: int = 0
    dropped: int = 0
    steps: int = 0
    kept: int = 0
    active: int = 0
    updated: int = 0
    memory_bytes: int = 0
    loss: float = 0.0
    time: float = 0.0


@dataclass(frozen=True, slots=True)
class Where:
    """What a row is of: round, task (the step of the device's own stream), device, and the virtual second at which it began."""

    round: int
    task: int
    device: int
    time: float = 0.0


@dataclass(frozen=True, slots=True)
class Done:
    """How a phase ended. share: of it that was carried out; extra_s: what jitter added to a transfer."""

    outcome: str = "ok"
    reason: str = ""
    share: float = 1.0
    extra_s: float = 0.0


DONE = Done()
PHASES = ("register", "download", "train", "upload", "calibrate", "aggregate")
DELIVERED = ("ok", "clipped")  # outcomes of an upload whose update counts
SERVER, STRANGER = -1, -2  # in the place of a device: the server itself, and a node that is none
KINDS = tuple(field.name for field in fields(Sizes))
COLUMNS = tuple(field.name for field in fields(Row))


class Ledger:
    """Rows in the order in which they were written; `columns` has them by round, device and phase."""

    def __init__(
        self, profile_of: Callable[[int], DeviceProfile], dense_message_bytes: int, moved_per_sample: int = 0, layer_passes: int = 0
    ):
        """
        Args:
            profile_of: device -> its profile.
            dense_message_bytes: what one message of the dense twin weighs, 4 bytes per parameter and float buffer.
            moved_per_sample, layer_passes: activation bytes of one sample, and layers that a step passes, see `costs.compute_cost`.
        """
        self.profile_of, self.dense_message_bytes = profile_of, dense_message_bytes
        self.moved_per_sample, self.layer_passes = moved_per_sample, layer_passes
        self.rows: list[Row] = []
        # round, device, measured seconds in the ClientApp, and those of its training (CPU time of the thread): kept apart
        self.wall_s: list[tuple[int, int, float, float]] = []

    def registered(self, device: int, message_bytes: int) -> None:
        self.rows.append(Row(0, -1, device, "register", "ok", message_bytes=message_bytes))

    def absent(self, where: Where, outcome: str, reason: str, phase: str = "train") -> None:
        """A device that did nothing, or of which nothing is known but why."""
        self.rows.append(Row(where.round, where.task, where.device, phase, outcome, reason, time=where.time))

    def rolled_back(self, server_round: int, time: float, reason: str) -> None:
        """The server took back the model's last update."""
        self.rows.append(Row(server_round, -1, SERVER, "aggregate", "rolled-back", reason, time=time))

    def downloaded(self, where: Where, sizes: Sizes, message_bytes: int, done: Done = DONE, has_twin: bool = True) -> None:
        """`has_twin`: the dense twin, which averages its statistics, sends such a message, too."""
        self._transferred(where, "download", sizes, message_bytes, done, has_twin)

    def uploaded(self, where: Where, sizes: Sizes, message_bytes: int, done: Done = DONE, has_twin: bool = True) -> None:
        """`has_twin`: as in `downloaded`."""
        self._transferred(where, "upload", sizes, message_bytes, done, has_twin)

    def calibrated(self, where: Where, flops: Flops, is_sparse: bool) -> None:
        """A forward pass that recomputed BatchNorm statistics; the dense twin, which averages them, has none."""
        cost = self.compute_cost(where.device, flops, is_sparse)
        self.rows.append(
            Row(
                where.round, where.task, where.device, "calibrate", "ok",
                statistics_flops=flops.statistics, seconds=cost.seconds, joules=cost.joules, time=where.time,
            )
        )  # fmt: skip

    def trained(self, where: Where, flops: Flops, dense_flops: Flops, is_sparse: bool, done: Done = DONE, **measures) -> None:
        """A training phase; `measures`: the remaining columns of a `train` row, which one that was cut short does not have."""
        cost = self.compute_cost(where.device, flops, is_sparse)
        dense = self.compute_cost(where.device, dense_flops, False)
        counts = {
            "train_flops": flops.train, "importance_flops": flops.importance, "mask_flops": flops.masks,
            "statistics_flops": flops.statistics, "paper_flops": flops.paper,
            "dense_flops": dense_flops.total, "dense_paper_flops": dense_flops.paper,
        }  # fmt: skip
        times = {"seconds": cost.seconds, "joules": cost.joules, "dense_seconds": dense.seconds, "dense_joules": dense.joules}
        if done.share < 1:
            counts, times = _shared(counts, done.share), {name: value * done.share for name, value in times.items()}
            measures = {"memory_bytes": measures.get("memory_bytes", 0)}
        outcome = (where.round, where.task, where.device, "train", done.outcome, done.reason)
        self.rows.append(Row(*outcome, **counts, **times, **measures, time=where.time))

    def amend(self, device: int, outcome: str, reason: str) -> None:
        """The device's last upload came in, and only the comparison with others showed what it is worth: say so in its row."""
        for place in range(len(self.rows) - 1, -1, -1):
            row = self.rows[place]
            if row.device == device and row.phase == "upload":
                self.rows[place] = replace(row, outcome=outcome, reason=reason)
                return
        raise ValueError(f"device {device} has uploaded nothing: its update cannot be {outcome}")

    def compute_cost(self, device: int, flops: Flops, is_sparse: bool) -> Cost:
        return compute_cost(self.profile_of(device), flops, is_sparse, self.moved_per_sample, self.layer_passes)

    def mark(self) -> tuple[int, int]:
        """How many rows and measured seconds there are by now, for `since`."""
        return len(self.rows), len(self.wall_s)

    def since(self, mark: tuple[int, int]) -> tuple[list[Row], list[tuple[int, int, float]]]:
        """The rows and measured seconds written since `mark`."""
        return self.rows[mark[0] :], self.wall_s[mark[1] :]

    def restore(self, rows: list[Row], wall_s: list[tuple[int, int, float, float]]) -> None:
        """Go on behind these rows and measured seconds, and no others."""
        self.rows, self.wall_s = list(rows), list(wall_s)

    def totals(self) -> dict[str, float]:
        """Sums over all rows of every column that adds up."""
        names = [name for name in COLUMNS if name.endswith(("bytes", "flops", "seconds", "joules")) and name != "memory_bytes"]
        rows = self._ordered()  # the order of `columns`, so that totals are the sums of what is stored, to the bit
        totals = {name: sum(getattr(row, name) for row in rows) for name in names}
        totals["flops"] = sum(totals[f"{kind}_flops"] for kind in ("train", "importance", "mask", "statistics"))
        for direction, phase in (("down", "download"), ("up", "upload")):
            own = [row for row in rows if row.phase == phase]
            totals[f"dense_{direction}_bytes"] = sum(row.dense_bytes for row in own)
            for kind in KINDS:
                totals[f"{direction}_{kind}_bytes"] = sum(getattr(row, f"{kind}_bytes") for row in own)
        return totals

    def columns(self) -> dict[str, list]:
        """The rows as columns, by round, then device, then phase."""
        rows = self._ordered()
        return {name: [getattr(row, name) for row in rows] for name in COLUMNS}

    def _ordered(self) -> list[Row]:
        return sorted(self.rows, key=lambda row: (row.round, row.device, PHASES.index(row.phase)))

    def _transferred(self, where: Where, phase: str, sizes: Sizes, message_bytes: int, done: Done, has_twin: bool) -> None:
        profile, cost_of = self.profile_of(where.device), download_cost if phase == "download" else upload_cost
        cost = cost_of(profile, sizes.total, done.extra_s)
        dense = cost_of(profile, self.dense_message_bytes, done.extra_s) if has_twin else Cost()
        counts = {
            "down_bytes": cost.down_bytes, "up_bytes": cost.up_bytes, "message_bytes": message_bytes,
            "dense_bytes": dense.down_bytes or dense.up_bytes,
        }  # fmt: skip
        kinds = {f"{kind}_bytes": getattr(sizes, kind) for kind in KINDS}
        times = {"seconds": cost.seconds, "joules": cost.joules, "dense_seconds": dense.seconds, "dense_joules": dense.joules}
        if done.share < 1:
            counts, times = _shared(counts, done.share), {name: value * done.share for name, value in times.items()}
            kinds = {"unread_bytes": counts["down_bytes"] + counts["up_bytes"]}
        outcome = (where.round, where.task, where.device, phase, done.outcome, done.reason)
        self.rows.append(Row(*outcome, **counts, **kinds, **times, time=where.time))


def _shared(counts: dict[str, int], share: float) -> dict[str, int]:
    return {name: int(value * share) for name, value in counts.items()}
