"""What a person sees: both kinds of time named, plain lines where no cursor can move, accuracy at the end, screens of any width."""

import io

import numpy as np
import pytest
from rich.console import Console

from server.app import RoundRecord
from simulations.config.sections import StreamConfig
from simulations.results.console import ROUNDS_BEFORE_AN_ESTIMATE, View, bytes_by_kind, final_table, footnote, problems

SCORES = {"average": 0.937, "forgetting": 0.068}
SUMMARY = {
    "experiment": "split-digits", "seed": 0, "sparsity": 0.9,
    "accuracy": {"class-il": SCORES, "task-il": SCORES}, "dense_accuracy": None, "dense_fleet": None,
    "totals": {
        "flops": 29_800_000_000, "dense_flops": 345_000_000_000, "up_bytes": 2_190_000, "dense_up_bytes": 153_000_000,
        "down_bytes": 3_670_000, "dense_down_bytes": 153_000_000, "seconds": 72.1, "dense_seconds": 253.0, "joules": 351.0,
        "dense_joules": 2550.0,
        **{f"{way}_{kind}_bytes": 100_000 for way in ("up", "down") for kind in ("values", "positions", "rest", "masks", "header")},
        "up_unread_bytes": 0, "down_unread_bytes": 0, "up_auxiliary_bytes": 0, "down_auxiliary_bytes": 0,
    },
    "savings": {"flops": 11.6, "up_bytes": 69.9, "down_bytes": 41.8, "seconds": 3.5, "joules": 7.3},
    "fleet": {"virtual_hours": 0.003, "in_time": 1.0, "refused": 0, "target": 0.0, "fairness": {"worst_decile": 0.91}},
    "problems": [{"outcome": "clipped", "rows": 6, "devices": 1, "reason": "its norm is 10.1 times the median"}],
}  # fmt: skip


def record(number: int) -> RoundRecord:
    return RoundRecord(number, 0 if number else -1, False, 10, 300, np.full((2, 5), 0.9), time=0.25 * number)


def watched(rounds: int, **settings) -> list[str]:
    """The lines of a run of 9 rounds that was watched for some of them."""
    out = io.StringIO()
    with View(Console(file=out, width=80, **settings), "split-digits", rounds=9, devices=10, stream=StreamConfig()) as view:
        for number in range(rounds + 1):
            view.round_done(record(number))
    return out.getvalue().splitlines()


def test_a_line_names_virtual_time_and_wall_clock_time():
    *_, line = watched(6)
    assert "round 6/9" in line and "virtual time 1.5 s" in line and "wall clock: about" in line and line.endswith("left")


def test_no_estimate_before_a_few_rounds_have_passed():
    lines = watched(8)[1:]
    told = ["left" in line for line in lines]
    assert told == [number > ROUNDS_BEFORE_AN_ESTIMATE for number in range(1, 9)]


def test_a_resumed_run_estimates_by_its_own_rounds():
    out = io.StringIO()
    with View(Console(file=out, width=80), "x", rounds=99, devices=10, stream=StreamConfig()) as view:
        view.resumed([record(number) for number in range(51)])
        for number in range(51, 56):
            view.round_done(record(number))
    lines = out.getvalue().splitlines()
    assert lines[1] == "going on after round 50/99"
    assert ["left" in line for line in lines[2:]] == [False, False, False, True, True]


def test_a_dumb_terminal_gets_the_plain_lines_of_a_log(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    lines = watched(3, force_terminal=True)
    assert [line.split("  ")[0] for line in lines] == ["split-digits: 9 rounds of 10 devices", "round 1/9", "round 2/9", "round 3/9"]
    assert not any("\x1b" in line for line in lines)


def test_a_terminal_gets_a_view_that_names_both_times(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    out = io.StringIO()
    with View(Console(file=out, width=80, force_terminal=True), "a [bold] title", rounds=9, devices=10, stream=StreamConfig()) as view:
        for number in range(6):
            view.round_done(record(number))
        shown = io.StringIO()
        Console(file=shown, width=80).print(view)
    text = shown.getvalue()
    assert "virtual time  1.2 s for the devices" in text and "wall clock" in text and "about" in text and "a [bold] title" in text


@pytest.mark.parametrize("width", [80, 60, 40])
def test_the_table_fits_the_screen_and_ends_with_accuracy(width):
    out = io.StringIO()
    Console(file=out, width=width).print(final_table(SUMMARY, width))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert text.index("joules") < text.index("Class-IL") < text.index("Task-IL") < text.index("worst")
    for figure in ("29.8 G", "11.6x less", "2.19 MB", "69.9x less", "93.7%", "91.0%"):
        assert figure in text


def test_the_whole_end_of_a_run_fits_a_screen_of_24_lines():
    out = io.StringIO()
    console = Console(file=out, width=80)
    assumed = {"raspberry-pi-4": ["efficiency", "sparse_efficiency", "radio_j_per_byte", "moved_bytes_per_s", "step_s"]}
    for part in (final_table(SUMMARY), bytes_by_kind(SUMMARY), footnote(SUMMARY, assumed), "run folder: runs/x", "$"):
        console.print(part)
    assert len(out.getvalue().splitlines()) <= 24


def test_the_table_of_a_run_beside_its_twin_and_of_nothing():
    twin = SUMMARY | {"dense_accuracy": SUMMARY["accuracy"], "dense_fleet": SUMMARY["fleet"]}
    nothing = SUMMARY | {"accuracy": {"class-il": {"average": None, "forgetting": None}, "task-il": SCORES}, "savings": {}}
    nothing["fleet"] = SUMMARY["fleet"] | {"virtual_hours": None, "in_time": None, "fairness": {"worst_decile": None}}
    for summary, cells in ((twin, ["93.7%", "93.7%", "+0.0 points"]), (nothing, ["-", "-", ""])):
        table = final_table(summary)
        labels, *columns = [list(column.cells) for column in table.columns]
        assert [column[labels.index("Class-IL accuracy")] for column in columns] == cells


def test_problems_are_counted_with_their_reason():
    assert problems(SUMMARY) == "clipped 6 times on 1 device: its norm is 10.1 times the median"
    taken_back = {"outcome": "rolled-back", "rows": 1, "devices": 0, "reason": "it made w infinite"}
    assert problems({"problems": [taken_back]}) == "rolled-back 1 time: it made w infinite"
    assert problems({}) == problems({"problems": []}) == ""
