"""What a person sees while a run goes on, and the table at its end. The CLI passes these in; nothing else prints.

Two kinds of time are shown, and never without their names: virtual time passes for the simulated devices, wall-clock time for the user.
"""

import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from server.app import RoundRecord
from server.ledger import KINDS
from simulations.config.sections import StreamConfig
from simulations.results.summary import accuracy_so_far, percent, tasks_so_far

ROUNDS_BEFORE_AN_ESTIMATE = 3  # the first one also starts workers; before a few more have passed, what is left is a guess
NARROW = 64  # columns below which the table does without the dense twin's own


class View:
    """A live view on a terminal that can move its cursor; elsewhere one plain line per round."""

    def __init__(self, console: Console, title: str, *, rounds: int, devices: int, stream: StreamConfig):
        """`devices`: of a round, at most."""
        self.console, self.title, self.devices, self.stream = console, title, devices, stream
        self.rounds = rounds
        self.round = self.done = self.task = 0
        self.time = self.origin = 0.0
        self.accuracy: tuple[float, float] | None = None
        self.started: float | None = None
        self.measured: tuple[int, float] | None = None  # the first round that this session has played, and when it was over
        is_live = console.is_terminal and not console.is_dumb_terminal
        self._live = Live(self, console=console, refresh_per_second=5, transient=True) if is_live else None

    def __enter__(self) -> "View":
        if self._live:
            self._live.start()
        else:
            self._say(f"{self.title}: {self.rounds} rounds of {self.devices} device{'s' if self.devices > 1 else ''}")
        return self

    def __exit__(self, *_) -> None:
        if self._live:
            self._live.stop()

    def device_done(self, device: int) -> None:
        self.done += 1

    def round_done(self, record: RoundRecord) -> None:
        self._note(record)
        self.done = 0
        if record.round == 0:
            self.started = time.perf_counter()
            return
        if self.measured is None:
            self.measured = (record.round, time.perf_counter())
        if not self._live:
            parts = [f"round {record.round}/{self.rounds}", f"task {self.task}", f"devices {record.num_devices}"]
            if record.accuracy is not None and record.task >= 0:  # before the median device has begun there is no task so far
                parts.append("Class-IL {}  Task-IL {}".format(*map(percent, self.accuracy)))
            left = self._left()
            self._say("  ".join([*parts, f"virtual time {self._clock()}", *([f"wall clock: {left}"] if left else [])]))

    def resumed(self, records: list[RoundRecord]) -> None:
        """The time that is left is judged by the rounds of this session."""
        self.started, last = time.perf_counter(), records[-1]
        for record in records:
            self._note(record)
        if not self._live:
            self._say(f"going on after round {last.round}/{self.rounds}")

    def _note(self, record: RoundRecord) -> None:
        if record.round == 0:
            self.origin = record.time
        elif record.accuracy is not None and record.task >= 0:
            self.accuracy = accuracy_so_far(record, tasks_so_far(self.stream, record.task))
        self.round, self.task, self.time = record.round, max(record.task, 0), record.time

    def _clock(self) -> str:
        """Virtual time."""
        return _duration((self.time - self.origin) / 3600)

    def __rich__(self) -> Table:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(justify="right", style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row("", f"[bold]{escape(self.title)}[/bold]")
        if self.started is None:
            grid.add_row("", "starting the workers ...")
            return grid
        grid.add_row("round", f"{min(self.round + 1, self.rounds)} of {self.rounds}, task {self.task}")
        grid.add_row("", ProgressBar(total=self.rounds, completed=self.round, width=min(40, max(8, self.console.width - 16))))
        grid.add_row("devices", f"{self.done} of {self.devices} done")
        if self.accuracy:
            grid.add_row("accuracy", "Class-IL {}, Task-IL {} on the tasks so far".format(*map(percent, self.accuracy)))
        grid.add_row("virtual time", f"{self._clock()} for the devices")
        passed = _duration((time.perf_counter() - self.started) / 3600)
        grid.add_row("wall clock", ", ".join(part for part in (passed, self._left()) if part))
        return grid

    def _left(self) -> str:
        """Wall-clock time, by the rounds behind the first one of this session; empty while these are too few to tell."""
        if self.measured is None or self.round - self.measured[0] < ROUNDS_BEFORE_AN_ESTIMATE or self.round >= self.rounds:
            return ""
        first, since = self.measured
        seconds = (time.perf_counter() - since) / (self.round - first) * (self.rounds - self.round)
        return f"about {_duration(seconds / 3600)} left"

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)


def final_table(summary: dict, width: int = 80) -> Table:
    """The result beside its dense twin. Accuracy comes last: what stands at the end of the output stays on a small screen.

    `width`: columns of the screen; on a narrow one the dense twin is there as a ratio only.
    """
    is_narrow = width < NARROW
    table = Table(title=f"{summary['experiment']}, seed {summary['seed']}", title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("", overflow="fold")
    table.add_column("this run" if summary["sparsity"] else "this run (dense)", justify="right", overflow="fold")
    if not is_narrow:
        table.add_column("dense twin", justify="right")
    table.add_column("vs dense" if is_narrow else "", justify="right", overflow="fold")

    def row(label: str, own: str, dense: str, ratio: str = "") -> None:
        table.add_row(label, own, *([] if is_narrow else [dense]), ratio)

    fleet, dense_fleet = summary.get("fleet"), summary.get("dense_fleet")
    if fleet:
        _add_fleet(row, fleet, dense_fleet)
        table.add_section()
    totals, savings = summary["totals"], summary["savings"]
    for label, key, other, unit in (
        ("training FLOPs", "flops", "dense_flops", ""),
        ("bytes up", "up_bytes", "dense_up_bytes", "B"),
        ("bytes down", "down_bytes", "dense_down_bytes", "B"),
        ("device seconds *", "seconds", "dense_seconds", "s"),
        ("joules *", "joules", "dense_joules", "J"),
    ):
        if key in totals:
            factor = f"{savings[key]:.1f}x less" if key in savings else ""
            row(label, _number(totals[key], unit), _number(totals[other], unit), factor)
    table.add_section()
    if spread := summary.get("own_models"):
        row("mean of devices' own models", str(spread["class-il"]["devices"]), "")
    own, dense = summary["accuracy"], summary["dense_accuracy"]
    for scenario, name in (("class-il", "Class-IL"), ("task-il", "Task-IL")):
        for key, label in (("average", "accuracy"), ("forgetting", "forgetting")):
            value, other = own[scenario][key], dense and dense[scenario][key]
            row(f"{name} {label}", percent(value), percent(other), _points(value, other))
    if fleet:
        _add_figure(
            row, "worst tenth of devices", fleet, dense=dense_fleet, figure=lambda part: part["fairness"]["worst_decile"], shown=percent
        )
    return table


Shown = Callable[..., None]  # adds a row: label, this run, dense twin


def _add_fleet(row: Shown, own: dict, dense: dict | None) -> None:
    """What the virtual clock says; of the dense twin only where it was run, as its rounds end at other times."""
    _add_figure(row, "virtual time *", own, dense=dense, figure=lambda part: part["virtual_hours"], shown=_duration)
    _add_figure(row, "device rounds in time", own, dense=dense, figure=lambda part: part["in_time"], shown=percent)
    if own["refused"] or dense and dense["refused"]:
        _add_figure(row, "devices too small", own, dense=dense, figure=lambda part: part["refused"], shown=str)
    if own["target"]:
        row(f"until {own['target']:.0%} on all tasks", "", "")
        _add_figure(row, "  virtual time *", own, dense=dense, figure=lambda part: part["to_target"]["hours"], shown=_duration)
        _add_figure(
            row, "  joules *", own, dense=dense, figure=lambda part: part["to_target"]["joules"], shown=lambda value: _number(value, "J")
        )
        _add_figure(
            row, "  bytes", own, dense=dense, figure=lambda part: part["to_target"]["bytes"], shown=lambda value: _number(value, "B")
        )


def _add_figure(row: Shown, label: str, own: dict, *, dense: dict | None, figure: Callable[[dict], float | None], shown: Callable) -> None:
    values = [None if not part or (value := figure(part)) is None else shown(value) for part in (own, dense)]
    row(label, *(value or "-" for value in values))


def problems(summary: dict) -> str:
    """What went wrong on devices, one line per kind, with the most frequent reason; empty where nothing did."""
    lines = []
    for one in summary.get("problems", ()):
        rows, devices = one["rows"], one["devices"]
        places = f" on {devices} device{'s' if devices > 1 else ''}" if devices else ""  # what the server did is on none
        lines.append(f"{one['outcome']} {rows} time{'s' if rows > 1 else ''}{places}: {one['reason']}")
    return "\n".join(lines)


def bytes_by_kind(summary: dict) -> str:
    """What the messages were made of, one line a direction; empty where nothing was sent."""
    lines, names = [], {"rest": "dense rest", "header": "headers"}
    for direction in ("up", "down"):
        total = summary["totals"].get(f"{direction}_bytes")
        if total:
            parts = {kind: summary["totals"][f"{direction}_{kind}_bytes"] / total for kind in KINDS}
            shares = ", ".join(f"{names.get(kind, kind)} {share:.0%}" for kind, share in parts.items() if share >= 0.005)
            lines.append(f"bytes {direction + ':':5} {shares}")
    return "\n".join(lines)


def footnote(summary: dict, assumed: dict[str, list[str]]) -> str:
    """What the marks of the table mean. `assumed`: profile -> its figures that are assumptions."""
    accuracy = "" if summary["dense_accuracy"] else "; accuracy needs --baseline"
    if len(assumed) == 1:
        figures = ", ".join(next(iter(assumed.values())))
    else:
        figures = f"{sum(map(len, assumed.values()))} figures of them, marked in their files"
    return f"* simulated: {', '.join(assumed)}; assumed, not sourced: {figures}.\nDense twin: same schedule, costs by formula{accuracy}."


def _points(value: float | None, other: float | None) -> str:
    return "" if value is None or other is None else f"{100 * (value - other):+.1f} points"


def _duration(hours: float) -> str:
    """In the unit that fits."""
    for unit, size, least in (("days", 24, 48), ("h", 1, 2), ("min", 1 / 60, 1 / 30)):
        if hours >= least:
            return f"{hours / size:.1f} {unit}"
    return f"{3600 * hours:.1f} s"


def _number(value: float, unit: str) -> str:
    """Three digits and an SI prefix."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{unit}".rstrip()
    return f"{value:.3g} {unit}".rstrip()
