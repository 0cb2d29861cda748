"""What a person sees while a run goes on, and the table at its end. The CLI passes these in; nothing else prints."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from server.app import RoundRecord
from server.ledger import KINDS
from simulations.results import accuracy_so_far, tasks_so_far
from simulations.sections import StreamConfig


class View:
    """A live view on a terminal; elsewhere one plain line per round."""

    def __init__(self, console: Console, title: str, rounds: int, devices: int, stream: StreamConfig):
        """`devices`: of a round, at most."""
        self.console, self.title, self.devices, self.stream = console, title, devices, stream
        self.rounds = rounds
        self.round = self.done = self.before = self.task = 0
        self.time = self.origin = 0.0
        self.accuracy: tuple[float, float] | None = None
        self.started: float | None = None
        self._live = Live(self, console=console, refresh_per_second=5, transient=True) if console.is_terminal else None

    def __enter__(self) -> "View":
        if self._live:
            self._live.start()
        else:
            self._say(f"{self.title}: starting")
        return self

    def __exit__(self, *_) -> None:
        if self._live:
            self._live.stop()

    def device_done(self, device: int) -> None:
        self.done += 1

    def round_done(self, record: RoundRecord) -> None:
        self._note(record)
        if record.round == 0:
            self.started = time.perf_counter()
        self.done = 0
        if not self._live and record.round:
            parts = [f"round {record.round}/{self.rounds}", self._clock(), f"task {self.task}", f"{record.num_devices} devices"]
            if record.accuracy is not None and record.task >= 0:  # before the median device has begun there is no task so far
                parts.append("Class-IL {:.1%}  Task-IL {:.1%}".format(*self.accuracy))
            self._say("  ".join([*parts, self._left()]))

    def resumed(self, records: list[RoundRecord]) -> None:
        """The time that is left is judged by the rounds of this session."""
        self.started, last = time.perf_counter(), records[-1]
        for record in records:
            self._note(record)
        self.before = last.round
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
        grid.add_column(justify="right", style="dim")
        grid.add_column()
        grid.add_row("", f"[bold]{self.title}[/bold]")
        if self.started is None:
            grid.add_row("", "starting the workers ...")
            return grid
        current = min(self.round + 1, self.rounds)
        bar = ProgressBar(total=self.rounds, completed=self.round, width=40)
        grid.add_row("round", f"{current} of {self.rounds}, task {self.task}, {self._clock()} of virtual time")
        grid.add_row("", bar)
        grid.add_row("devices", f"{self.done} of {self.devices} done")
        if self.accuracy:
            grid.add_row("accuracy", "Class-IL {:.1%}, Task-IL {:.1%} on the tasks so far".format(*self.accuracy))
        grid.add_row("time", self._left())
        return grid

    def _left(self) -> str:
        played = self.round - self.before
        if not played or self.started is None:
            return ""
        left = (time.perf_counter() - self.started) / played * (self.rounds - self.round)
        return f"{left:.0f} s left"

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True)


def final_table(summary: dict) -> Table:
    """The result beside its dense twin."""
    table = Table(title=f"{summary['experiment']}, seed {summary['seed']}", title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("")
    table.add_column("this run" if summary["sparsity"] else "this run (dense)", justify="right")
    table.add_column("dense twin", justify="right")
    table.add_column("", justify="right")
    own, dense = summary["accuracy"], summary["dense_accuracy"]
    for scenario, name in (("class-il", "Class-IL"), ("task-il", "Task-IL")):
        for key, label in (("average", "accuracy"), ("forgetting", "forgetting")):
            value, other = own[scenario][key], dense and dense[scenario][key]
            table.add_row(f"{name} {label}", _percent(value), _percent(other), _points(value, other))
    table.add_section()
    totals, savings = summary["totals"], summary["savings"]
    for label, key, other, unit in (
        ("training FLOPs", "flops", "dense_flops", ""),
        ("bytes up", "up_bytes", "dense_up_bytes", "B"),
        ("bytes down", "down_bytes", "dense_down_bytes", "B"),
        ("device seconds *", "seconds", "dense_seconds", "s"),
        ("joules *", "joules", "dense_joules", "J"),
    ):
        if key not in totals:
            continue
        factor = f"{savings[key]:.1f}x less" if key in savings else ""
        table.add_row(label, _number(totals[key], unit), _number(totals[other], unit), factor)
    if fleet := summary.get("fleet"):
        _add_fleet(table, fleet, summary["dense_fleet"])
    return table


def _add_fleet(table: Table, own: dict, dense: dict | None) -> None:
    """What the virtual clock says; of the dense twin only where it was run, as its rounds end at other times."""
    table.add_section()
    dense = dense or {}

    def row(label: str, figure: Callable[[dict], float | None], shown: Callable[[float], str]) -> None:
        values = [None if not part or (value := figure(part)) is None else shown(value) for part in (own, dense)]
        table.add_row(label, *(value or "-" for value in values), "")

    row("virtual time *", lambda part: part["virtual_hours"], _duration)
    row("device rounds in time", lambda part: part["in_time"], _percent)
    if own["refused"] or dense.get("refused"):
        row("devices too small", lambda part: part["refused"], str)
    if own["target"]:
        table.add_row(f"until {own['target']:.0%} on all tasks", "", "", "")
        row("  virtual time *", lambda part: part["to_target"]["hours"], _duration)
        row("  joules *", lambda part: part["to_target"]["joules"], lambda value: _number(value, "J"))
        row("  bytes", lambda part: part["to_target"]["bytes"], lambda value: _number(value, "B"))
    row("worst tenth of devices", lambda part: part["fairness"]["worst_decile"], _percent)


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
    accuracy = "" if summary["dense_accuracy"] else "; its accuracy needs --baseline"
    if len(assumed) == 1:
        figures = ", ".join(next(iter(assumed.values())))
    else:
        figures = f"{sum(map(len, assumed.values()))} figures of them, marked in their files"
    return (
        f"* simulated, summed over devices (hours: by the clock): {', '.join(assumed)}; assumed, not sourced: {figures}.\n"
        f"Dense twin: the same schedule without sparsity, costs by formula{accuracy}."
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


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
