"""The ledger: what every device paid, one row per device, round and phase.

Phases: `register` (once, where devices were asked who they are; a simulation knows), `download`, `train`, `upload`, `calibrate`
(BatchNorm statistics recomputed, with a `download` and an `upload` of its own). Where all devices take part, one that sits a task out for
want of data has one `train` row a round; where a cohort is drawn, whoever is not in it has no row, with or without data. Outcomes: `ok`,
`sat-out`, `failed` (the device or its worker raised), `rejected` (the server could not use the reply). Bytes of failed and rejected
messages are counted. Totals are sums of rows. What the bytes of a message are for stands beside them: `codec.Sizes`.
"""

from dataclasses import dataclass, fields

from sparcl_core.codec import Sizes
from sparcl_core.costs import Cost, DeviceProfile, compute_cost, download_cost, upload_cost
from sparcl_core.flops import Flops


@dataclass(frozen=True, slots=True)  # a row with a dict weighs three times as much, and 100 devices write 300 a round
class Row:
    """One row. Bytes are payload bytes; `message_bytes` is the serialised Flower message. dense_*: the dense twin's.

    values_bytes to unread_bytes: the row's down_bytes or up_bytes by what they are for, see `sparcl_core.codec.Sizes`.
    `loss` and the counts are those of the `train` phase; memory_bytes is what the device needs to train, `active` its
    active maskable weights, `updated` those that a gradient mask touched, `kept` the task's samples that DDR keeps.
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
    steps: int = 0
    kept: int = 0
    active: int = 0
    updated: int = 0
    memory_bytes: int = 0
    loss: float = 0.0


PHASES = ("register", "download", "train", "upload", "calibrate")
KINDS = tuple(field.name for field in fields(Sizes))
COLUMNS = tuple(field.name for field in fields(Row))


class Ledger:
    """Rows in the order in which they were written; `columns` has them by round, device and phase."""

    def __init__(self, profile: DeviceProfile, dense_message_bytes: int):
        """`dense_message_bytes`: what one message of the dense twin weighs, 4 bytes per parameter and float buffer."""
        self.profile, self.dense_message_bytes = profile, dense_message_bytes
        self._dense_download, self._dense_upload = (cost(profile, dense_message_bytes) for cost in (download_cost, upload_cost))
        self.rows: list[Row] = []
        # round, device, measured seconds in the ClientApp, and those of its training (CPU time of the thread): kept apart
        self.wall_s: list[tuple[int, int, float, float]] = []

    def registered(self, device: int, message_bytes: int) -> None:
        self.rows.append(Row(0, -1, device, "register", "ok", message_bytes=message_bytes))

    def sat_out(self, server_round: int, task: int, device: int, reason: str) -> None:
        self.rows.append(Row(server_round, task, device, "train", "sat-out", reason))

    def downloaded(self, server_round: int, task: int, device: int, sizes: Sizes, message_bytes: int, has_twin: bool = True) -> None:
        """`has_twin`: the dense twin, which averages its statistics, sends such a message, too."""
        cost = download_cost(self.profile, sizes.total)
        dense = self._dense_download if has_twin else Cost()
        self._transferred(server_round, task, device, "download", "ok", "", sizes, cost, dense, message_bytes)

    def uploaded(
        self, server_round: int, task: int, device: int, sizes: Sizes, message_bytes: int, reason: str = "", has_twin: bool = True
    ) -> None:
        """`reason`: why the message was rejected, if it was. `has_twin`: as in `downloaded`."""
        cost = upload_cost(self.profile, sizes.total)
        dense = self._dense_upload if has_twin else Cost()
        outcome = "rejected" if reason else "ok"
        self._transferred(server_round, task, device, "upload", outcome, reason, sizes, cost, dense, message_bytes)

    def failed(self, server_round: int, task: int, device: int, reason: str, phase: str = "train") -> None:
        self.rows.append(Row(server_round, task, device, phase, "failed", reason))

    def calibrated(self, server_round: int, task: int, device: int, flops: Flops, is_sparse: bool) -> None:
        """A forward pass that recomputed BatchNorm statistics; the dense twin, which averages them, has none."""
        cost = compute_cost(self.profile, flops, is_sparse)
        self.rows.append(
            Row(
                server_round, task, device, "calibrate", "ok",
                statistics_flops=flops.statistics, seconds=cost.seconds, joules=cost.joules,
            )
        )  # fmt: skip

    def trained(self, server_round: int, task: int, device: int, flops: Flops, dense_flops: Flops, is_sparse: bool, **measures) -> None:
        """A finished training phase; `measures`: the remaining columns of a `train` row."""
        cost = compute_cost(self.profile, flops, is_sparse)
        dense = compute_cost(self.profile, dense_flops, is_sparse=False)
        self.rows.append(
            Row(
                server_round, task, device, "train", "ok",
                train_flops=flops.train, importance_flops=flops.importance, mask_flops=flops.masks, paper_flops=flops.paper,
                seconds=cost.seconds, joules=cost.joules,
                dense_flops=dense_flops.total, dense_paper_flops=dense_flops.paper,
                dense_seconds=dense.seconds, dense_joules=dense.joules,
                **measures,
            )
        )  # fmt: skip

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

    def _transferred(
        self,
        server_round: int,
        task: int,
        device: int,
        phase: str,
        outcome: str,
        reason: str,
        sizes: Sizes,
        cost: Cost,
        dense: Cost,
        message_bytes: int,
    ) -> None:
        self.rows.append(
            Row(
                server_round, task, device, phase, outcome, reason,
                down_bytes=cost.down_bytes, up_bytes=cost.up_bytes, message_bytes=message_bytes,
                **{f"{kind}_bytes": getattr(sizes, kind) for kind in KINDS},
                seconds=cost.seconds, joules=cost.joules,
                dense_bytes=dense.down_bytes or dense.up_bytes, dense_seconds=dense.seconds, dense_joules=dense.joules,
            )
        )  # fmt: skip
