"""What is wrong with a fleet is told before anything is trained: exit code 2, one message, and nothing left behind."""

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner
from worlds import TINY

from simulations.__main__ import app
from simulations.fleet.profiles import PROFILES


def run_tiny(out: Path, *overrides: str) -> Result:
    settings = [part for override in overrides for part in ("--set", override)]
    return CliRunner().invoke(app, ["run", str(TINY), "--engine", "inline", "--out", str(out), *settings])


def assert_refused(tmp_path: Path, overrides: tuple[str, ...], *parts: str) -> None:
    """Exit code 2, one line on stderr with all of `parts`, no traceback, no round, and nothing in --out."""
    out = tmp_path / "out"
    result = run_tiny(out, *overrides)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line
    assert "Traceback" not in result.output and "--debug" not in line and "round " not in result.stdout
    assert not out.exists() or list(out.rglob("*")) == []


# -- profiles


def altered(tmp_path: Path, before: str, after: str) -> tuple[str, ...]:
    """Overrides for a copy of the phone's profile, in which `before` is replaced."""
    text = (PROFILES.folder / "phone.toml").read_text()
    assert before in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(before, after, 1))
    return (f"profile={path}",)


def without(figure: str) -> str:
    """A figure's table in the phone's profile."""
    text = (PROFILES.folder / "phone.toml").read_text()
    start = text.index(f"[{figure}]")
    end = text.find("\n[", start)
    return text[start:] if end < 0 else text[start : end + 1]


@pytest.mark.parametrize(
    ("before", "after", "parts"),
    [
        (without("memory_bytes"), "", ("memory_bytes is missing", "add [memory_bytes] with value, source and date")),
        ('network = "mobile-2020"', "", ("down_bits_per_s, up_bits_per_s, latency_s are missing", "or name a network: ", "wifi-home")),
        ("value = 20\n", "value = -20\n", ("flops_per_s is -20", "a number above 0")),
        ("value = 20\n", "value = inf\n", ("flops_per_s is inf", "not inf or nan")),
        ("value = 20\n", 'value = "20"\n', ("flops_per_s is '20'", "a number above 0")),
        ('unit = "GFLOP/s"', 'unit = "horses"', ("unit 'horses' does not fit flops_per_s", "GFLOP/s", "or none for FLOP/s")),
        ('unit = "GFLOP/s"', 'unit = "W"', ("unit 'W' does not fit flops_per_s",)),
        ("[flops_per_s]", "[flops]", ("unknown figure 'flops'", "did you mean 'flops_per_s'?", "flops_per_s is missing")),
        ("[flops_per_s]", "[flops_per_s", ("is no TOML",)),
    ],
)
def test_a_profile_with_a_wrong_figure(tmp_path, before, after, parts):
    assert_refused(tmp_path, altered(tmp_path, before, after), "mine.toml", *parts)


def test_a_profile_that_is_not_there(tmp_path):
    assert_refused(tmp_path, ("profile=toaster",), "profile 'toaster' is not here", "raspberry-pi-4", "or give a .toml file")
    assert_refused(tmp_path, (f"profile={tmp_path}/no.toml",), "no.toml' cannot be read", "give one of")


# -- the fleet


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (("fleet.mix.phone=0", "fleet.mix.jetson-nano=0"), ("the weights of mix (phone, jetson-nano) sum to 0", "above 0")),
        (("fleet.mix.phone=-1",), ("mix.phone is -1.0", "finite and not negative")),
        (("fleet.mix.toaster=1",), ("profile 'toaster' is not here", "raspberry-pi-4", "or give a .toml file")),
        (("fleet.mix.phone=1", "fleet.file=fleet.csv"), ("mix and file are both given", "leave one out")),
        (("fleet.compute_spread=-1",), ("compute_spread is -1.0", "a sigma in [0, 3]")),
        (("fleet.assign=alphabetical",), ("fleet.assign is 'alphabetical'", "'blocks' or 'random'")),
        (("fleet.file=nowhere.csv",), ("nowhere.csv",)),
    ],
)
def test_a_fleet_that_cannot_be_made(tmp_path, overrides, parts):
    assert_refused(tmp_path, overrides, *parts)


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ("profile,flops_per_s\nphone,\nphone,fast\nphone,", ("fleet.csv, line 3", "flops_per_s is 'fast'", "a number in SI units")),
        ("profile,flops_per_s\nphone,\nphone,1e9\nphone,-1", ("fleet.csv, line 4", "flops_per_s is -1", "above 0")),
        ("profile,flops_per_s\nphone,\nphone\nphone,", ("fleet.csv, line 3", "1 of 2 cells")),
        ("profile\nphone\ntoaster\nphone", ("fleet.csv, line 3", "profile 'toaster' is not here")),
        ("profile,speed\nphone,1\nphone,1\nphone,1", ("fleet.csv, line 1", "unknown column 'speed'", "flops_per_s")),
        ("kind\nphone\nphone\nphone", ("fleet.csv, line 1", "no column 'profile'")),
        ("profile,j_per_flop\nphone,1e-9\nphone,\nphone,", ("fleet.csv, line 2", "active_w is 5 and j_per_flop 1e-09", "the other to 0")),
        ("profile\nphone\nphone", ("fleet.csv has 2 rows", "stream.devices is 3", "one row per device")),
        ("", ("fleet.csv, line 1", "no column 'profile'")),
    ],
)
def test_a_fleet_file_with_a_wrong_row(tmp_path, rows, parts):
    (tmp_path / "fleet.csv").write_text(rows)
    assert_refused(tmp_path, (f"fleet.file={tmp_path}/fleet.csv",), *parts)


def test_all_devices_too_small(tmp_path):
    """Bytes that the work needs and that the device has, at the sparsity that comes nearest."""
    large = ("profile=microcontroller-240k", "model.width=64", "model.hidden=512")
    assert_refused(tmp_path, large, "no device can take part: training needs", "at sparsity 0.9,", "has 240,000", "budget.memory=fit")
    assert_refused(tmp_path, (*large, "budget.memory=fit"), "no device can take part: training needs", "at sparsity 0.99,", "has 240,000")
    assert_refused(tmp_path, ("budget.joules_per_round=1e-6",), "a round takes", "J at sparsity 0.9, its budget is 1e-06 J")


# -- when devices are there


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ("device,on,off\n0,100,200\n1,0,50\n0,50,80", ("trace.csv, line 4", "device 0 comes at 50 s", "go back in time", "sort it by on")),
        ("device,on,off\n0,100,200\n0,150,300", ("trace.csv, line 3", "ends at 200 s", "merge windows that overlap")),
        ("device,on,off\n0,100,90", ("trace.csv, line 2", "off is 90 s and on is 100 s", "or swap them")),
        ("device,on,off\n3,0,9", ("trace.csv, line 2", "device is 3", "devices 0 to 2", "take more devices")),
        ("device,on,off\n0,morning,9", ("trace.csv, line 2", "on is 'morning'", "a number of seconds")),
        ("device,on\n0,1", ("trace.csv, line 1", "no column off", "device,on,off")),
        ("device,on,off\n", ("trace.csv, line 2", "no rows", "a line device,on,off")),
    ],
)
def test_a_trace_with_a_wrong_row(tmp_path, rows, parts):
    (tmp_path / "trace.csv").write_text(rows)
    assert_refused(tmp_path, ("availability.kind=trace", f"availability.trace={tmp_path}/trace.csv"), "availability", *parts)


def test_a_trace_that_is_not_there(tmp_path):
    assert_refused(tmp_path, ("availability.kind=trace", "availability.trace=no.csv"), "trace no.csv cannot be read", "device,on,off")
    assert_refused(tmp_path, ("availability.kind=trace",), "trace is empty", "name a CSV file")


# -- settings


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (("clock.mode=sometimes",), ("clock.mode is 'sometimes'", "'sync', 'semi-sync' or 'async'")),
        (("clock.mode=async",), ("clock: buffer_size is 0", "take at least 1")),
        (("clock.mode=semi-sync",), ("clock: period_s is 0", "take more")),
        (("clock.mode=async", "clock.buffer_size=2", "clock.deadline_s=3"), ("deadline_s is 3.0", "only synchronous rounds")),
        (("clock.mode=async", "clock.buffer_size=2", "clock.period_s=5"), ("period_s is 5.0", "leave it at 0")),
        (("clock.mode=semi-sync", "clock.period_s=5", "clock.min_devices=2"), ("min_devices is 2", "only synchronous rounds")),
        (("clock.buffer_size=2",), ("buffer_size is 2", "only asynchronous rounds")),
        (("clock.mode=async", "clock.buffer_size=2", "federation.batchnorm=recompute"), ("federation.batchnorm", "take global")),
        (("clock.deadline_s=1e-6",), ("clock.deadline_s is 1e-06: no device can meet it", "the fastest needs at least", "raise it")),
        (("clock.over_selection=0.3",), ("clock.over_selection", "federation.cohort_size, which is 0", "set it")),
        (("stream.online=true",), ("stream.online is true", "set ddr.enabled=false")),
        (("stream.online=true", "ddr.enabled=false", "federation.local_epochs=2"), ("federation.local_epochs is 2", "a single pass")),
        (("budget.memory=fit", "federation.mask=local"), ("budget.memory is 'fit'", "federation.mask is 'local'", "take mask=shared")),
        (("budget.levels=[0.99, 0.9]",), ("budget: levels are [0.99, 0.9]", "ascending")),
        (("target=1.5",), ("target is 1.5", "an accuracy in [0, 1)", "0 reports none")),
        (("target=-0.1",), ("target is -0.1", "an accuracy in [0, 1)")),
        (("federation.rounds=-1",), ("federation: rounds is -1", "0 for those of all tasks")),
        (("selection.policy=best",), ("selection.policy is 'best'", "'oort'")),
        (("energy.reserve=2",), ("energy: reserve is 2.0", "the default is 0.2")),
        (("availability.failure=2",), ("availability: failure is 2.0", "0 switches it off")),
        (("change.window=1",), ("change: window is 1", "at least 2 rounds")),
        (("clock.dedline_s=1",), ("unknown config key 'clock.dedline_s'", "did you mean 'clock.deadline_s'?")),
    ],
)
def test_settings_that_cannot_be_or_contradict_each_other(tmp_path, overrides, parts):
    assert_refused(tmp_path, overrides, *parts)


# -- streams


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (
            ("stream.new_classes_share=0.1", "stream.alpha=0.001"),
            ("task 1 (classes (5, 6, 7, 8, 9)) has no data", "stream.new_classes_share"),
        ),
        (("stream.devices=60", "stream.order=shuffled", "stream.alpha=0.01"), ("has no data in any step", "stream.partition=iid")),
        (("stream.partition=drawn", "stream.samples=1000"), ("stream.samples: size is 1000", "task 0", "take fewer")),
        (("stream.partition=natural",), ("natural", "data.id_column")),
        (("stream.task_hours=0",), ("stream: task_hours is 0.0", "above 0")),
    ],
)
def test_streams_without_data(tmp_path, overrides, parts):
    assert_refused(tmp_path, overrides, *parts)
