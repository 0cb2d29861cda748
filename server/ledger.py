"""The ledger: what every device paid, one row per device, round and phase.

Phases: `register` (once, where devices were asked who they are; a simulation knows), `download`, `train`, `upload`, `calibrate`
(BatchNorm statistics recomputed), `sensitivity` (SNIP's first masks), both with a `download` and an `upload` of their own, `aggregate`
(the server's own). Outcomes:

| outcome | of a device that |
|---|---|
| `ok` | did it |
| `clipped` | did it, and sent an update or importance that stood out of its round: it counts, scaled down (`server.defence`) |
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
`unread`. What a phase costs is worked out elsewhere, once (`server.rounds.phases`): the ledger only writes it down.
"""

from dataclasses import dataclass, fields, make_dataclass, replace

from sparcl_core.codec import Sizes
from sparcl_core.costs.device import Cost
from sparcl_core.costs.flops import FLOP_COLUMNS

PHASES = ("register", "sensitivity", "download", "train", "upload", "calibrate", "aggregate", "evaluate")
DELIVERED = ("ok", "clipped")  # outcomes of an upload whose update counts
SERVER, STRANGER = -1, -2  # in the place of a device: the server itself, and a node that is none
KINDS = tuple(field.name for field in fields(Sizes))
PAID = {name: type(value) for name, value in Cost().columns.items()}

# A row with a dict weighs three times as much as one with slots, and 100 devices write 300 a round.
Row = make_dataclass(
    "Row",
    [
        ("round", int), ("task", int), ("device", int), ("phase", str), ("outcome", str), ("reason", str, ""),
        *((name, int, 0) for name in PAID if name.endswith("_bytes")),
        ("message_bytes", int, 0), *((f"{kind}_bytes", int, 0) for kind in KINDS),
        *((name, kind, kind()) for name, kind in PAID.items() if not name.endswith("_bytes")),
        ("dense_bytes", int, 0), ("dense_flops", int, 0), ("dense_paper_flops", int, 0),
        ("dense_seconds", float, 0.0), ("dense_joules", float, 0.0),
        ("samples", int, 0), ("replayed", int, 0), ("dropped", int, 0), ("steps", int, 0), ("kept", int, 0), ("active", int, 0),
        ("updated", int, 0), ("memory_bytes", int, 0), ("loss", float, 0.0), ("time", float, 0.0),
    ],
    frozen=True,
    slots=True,
    namespace={"__module__": __name__, "__doc__": """One row. All that a phase cost (`Cost.columns`), and what else is known of it.

    Bytes are payload bytes; `message_bytes` is the serialised Flower message. dense_*: the dense twin's.
    values_bytes to unread_bytes: the row's down_bytes or up_bytes by what they are for, see `sparcl_core.codec.Sizes`.
    `time`: virtual second at which the phase began.
    `loss` and the counts are those of the `train` phase; memory_bytes is what the device needs to train, `active` its
    active maskable weights, `updated` those that a gradient mask touched, `kept` the task's samples that DDR keeps, `dropped`
    samples that were left out as they did not fill an epoch's last batch (`learner.last_batch`).
    No column is measured in wall-clock time: the ledger of a repeated run is the same to the byte.
    """},
)  # fmt: skip
COLUMNS = tuple(field.name for field in fields(Row))


@dataclass(frozen=True, slots=True)
class Where:
    """What a row is of: round, task (the step of the device's own stream), device, and the virtual second at which it began."""

    round: int
    task: int
    device: int
    time: float = 0.0


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase of a device's round: what it costs if nothing cuts it short, and what the dense twin would pay for its own."""

    name: str
    cost: Cost = Cost()
    dense: Cost = Cost()


@dataclass(frozen=True, slots=True)
class Ending:
    """How a phase ended. share: of it that was carried out."""

    outcome: str = "ok"
    reason: str = ""
    share: float = 1.0


DONE = Ending()


@dataclass(frozen=True, slots=True)
class WallTime:
    """Seconds measured on the machine that simulates: of a device's round in the ClientApp, and its thread's CPU time of training."""

    round: int
    device: int
    wall_s: float
    compute_s: float


class Ledger:
    """Rows in the order in which they were written; `columns` has them by round, device and phase.

    Attributes:
        rows: see `Row`.
        wall_times: see `WallTime`; kept apart, since they are not repeated.
    """

    def __init__(self):
        self.rows: list[Row] = []
        self.wall_times: list[WallTime] = []

    def registered(self, device: int, message_bytes: int) -> None:
        self.rows.append(Row(0, -1, device, "register", "ok", message_bytes=message_bytes))

    def absent(self, where: Where, outcome: str, reason: str, phase: str = "train") -> None:
        """A device that did nothing, or of which nothing is known but why."""
        self.rows.append(Row(where.round, where.task, where.device, phase, outcome, reason, time=where.time))

    def rolled_back(self, server_round: int, time: float, reason: str) -> None:
        """The server took back the model's last update."""
        self.rows.append(Row(server_round, -1, SERVER, "aggregate", "rolled-back", reason, time=time))

    def transferred(self, where: Where, phase: Phase, sizes: Sizes, message_bytes: int, *, ending: Ending = DONE) -> None:
        """A message to or from a device; of one that was cut short, nobody can say what its bytes are for."""
        paid = _paid(phase, ending.share) | _shared({"message_bytes": message_bytes}, ending.share)
        kinds = sizes if ending.share == 1 else Sizes(unread=paid["down_bytes"] + paid["up_bytes"])
        self._write(where, phase, ending, paid | {f"{kind}_bytes": getattr(kinds, kind) for kind in KINDS})

    def computed(self, where: Where, phase: Phase, *, ending: Ending = DONE, memory_bytes: int = 0, **measures) -> None:
        """Training, or a forward pass that recomputed statistics; `measures`: the remaining columns, known of a whole phase only."""
        known = measures if ending.share == 1 else {}
        self._write(where, phase, ending, _paid(phase, ending.share) | known | {"memory_bytes": memory_bytes})

    def amend(self, device: int, outcome: str, reason: str) -> None:
        """The device's last upload came in, and only the comparison with others showed what it is worth: say so in its row."""
        for place in range(len(self.rows) - 1, -1, -1):
            row = self.rows[place]
            if row.device == device and row.phase == "upload":
                self.rows[place] = replace(row, outcome=outcome, reason=reason)
                return
        raise ValueError(f"device {device} has uploaded nothing: its update cannot be {outcome}")

    def mark(self) -> tuple[int, int]:
        """How many rows and measured seconds there are by now, for `since`."""
        return len(self.rows), len(self.wall_times)

    def since(self, mark: tuple[int, int]) -> tuple[list[Row], list[WallTime]]:
        """The rows and measured seconds written since `mark`."""
        return self.rows[mark[0] :], self.wall_times[mark[1] :]

    def restore(self, rows: list[Row], wall_times: list[WallTime]) -> None:
        """Go on behind these rows and measured seconds, and no others."""
        self.rows, self.wall_times = list(rows), list(wall_times)

    def totals(self) -> dict[str, float]:
        """Sums over all rows of every column that adds up."""
        names = [name for name in COLUMNS if name.endswith(("bytes", "flops", "seconds", "joules")) and name != "memory_bytes"]
        rows = self._ordered()  # the order of `columns`, so that totals are the sums of what is stored, to the bit
        totals = {name: sum(getattr(row, name) for row in rows) for name in names}
        totals["flops"] = sum(totals[name] for name in FLOP_COLUMNS)
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

    def _write(self, where: Where, phase: Phase, ending: Ending, columns: dict[str, int | float]) -> None:
        self.rows.append(Row(where.round, where.task, where.device, phase.name, ending.outcome, ending.reason, time=where.time, **columns))


def _paid(phase: Phase, share: float) -> dict[str, int | float]:
    """What of a phase's cost, and of its twin's, was paid."""
    dense = phase.dense
    twin = {
        "dense_bytes": dense.down_bytes + dense.up_bytes, "dense_flops": dense.flops.total, "dense_paper_flops": dense.flops.paper,
        "dense_seconds": dense.seconds, "dense_joules": dense.joules,
    }  # fmt: skip
    return _shared(phase.cost.columns | twin, share)


def _shared(columns: dict[str, int | float], share: float) -> dict[str, int | float]:
    """That share of each; bytes and FLOPs are whole numbers, and rounded down."""
    if share == 1:
        return columns
    return {name: int(value * share) if name.endswith(("_bytes", "_flops")) else value * share for name, value in columns.items()}
