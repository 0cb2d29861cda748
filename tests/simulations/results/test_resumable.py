"""A run that is stopped at any instant and resumed writes the same bytes as one that was not. Folders that cannot be resumed say why."""

import builtins
import fcntl
import json
import os
import pickle
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import BATCHNORM, TINY, tiny

from simulations import build
from simulations.checkpoints import array_file, checkpoint
from simulations.checkpoints.pointer import CheckpointError, CheckpointLost
from simulations.cli.carrying_out import carry_out
from simulations.config.errors import ConfigError
from simulations.config.experiment import Experiment
from simulations.engine.adapter import EngineError
from simulations.engine.files import StoreError
from simulations.engine.grid import EngineGrid
from simulations.engine.inline import InlineGrid
from simulations.engine.store import StateStore
from simulations.environment import software
from simulations.results import control_file, plot, resumable, write
from simulations.results.console import View
from simulations.results.control_file import How
from simulations.results.resumable import Unfinished, give_up, new_run, open_run

REPEATABLE = (
    "accuracy.parquet", "classes.parquet", "config.toml", "devices.parquet", "ledger.parquet", "model.safetensors", "rounds.parquet",
    "summary.json",
)  # fmt: skip
FILES = {*REPEATABLE, "environment.json", "wall.parquet", "report.png"}
SHORT = ("stream.tasks=1",)
NAME = "tiny-seed0"
INLINE = How("inline", baseline=False)


class Stop(BaseException):
    """As a signal: nothing catches it."""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No picture, and data is loaded once. No run changes a world."""
    monkeypatch.setattr(plot, "draw_report", lambda folder: (folder / "report.png").write_bytes(b"a picture"))
    monkeypatch.setattr(build, "make_world", world_of)
    monkeypatch.setattr(os, "fsync", lambda held: None)  # what it is for is looked at in test_checkpoint.py


make_world, worlds_made = build.make_world, {}


def world_of(experiment: Experiment):
    key = repr(experiment)  # not hashable: a mix of profiles is a dict
    if key not in worlds_made:
        worlds_made[key] = make_world(experiment)
    return worlds_made[key]


def live(out: Path, experiment: Experiment, how: How = INLINE, begin: Callable[[], None] = lambda: None) -> Path:
    """One process's life: start the run, or go on with it; `begin` is called when its folder is there. Returns that."""
    folder = out / NAME
    with open_run(folder) if folder.exists() else new_run(out, experiment, how) as run:
        begin()
        carry_out(run, None)
    return run.folder


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder of a run, by its overrides and whether it has a twin."""

    @cache
    def played(overrides: tuple[str, ...], baseline: bool = False) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plot, "draw_report", lambda folder: None)
            return live(tmp_path_factory.mktemp("uninterrupted"), tiny(*overrides), How("inline", baseline))

    return played


def assert_same_run(folder: Path, reference: Path) -> None:
    """All that a repeated run repeats is there to the byte, and nothing of what it took."""
    assert {path.name for path in folder.iterdir()} == FILES
    for name in REPEATABLE:
        assert (folder / name).read_bytes() == (reference / name).read_bytes(), name
    own, other = (pq.read_table(path / "wall.parquet").to_pydict() for path in (folder, reference))
    assert (own["round"], own["device"]) == (other["round"], other["device"])  # measured seconds differ


def stop_after(monkeypatch, round_: int, title: str = "tiny") -> None:
    """Stop once when this round of the run, or of `dense twin`, is over."""
    true, stopped = View.round_done, []

    def round_done(view, record):
        if (view.title, record.round) == (title, round_) and not stopped:
            stopped.append(True)
            raise Stop
        true(view, record)

    monkeypatch.setattr(View, "round_done", round_done)


# -- stopped once, at the end of a round


@pytest.mark.parametrize(
    ("overrides", "rounds"),
    [
        ((), (3, 4, 6)),
        (("stream.tasks=1", "federation.mask=local", "server_optimizer.name=momentum"), (1, 3)),
        (("wire.importance=votes", "wire.up_share=0.3", "federation.cohort_size=2"), (2, 5)),
        (("learner.method=er", "ddr.criterion=forgetting", "aggregation.row_voting=false", "evaluate_every=2", *SHORT), (2,)),
        ((*BATCHNORM, "federation.batchnorm=recompute", "evaluate_every=2"), (2,)),
    ],
    ids=["two tasks", "local masks", "cohorts", "er", "statistics"],
)
def test_a_resumed_run_writes_the_same_bytes(tmp_path, monkeypatch, uninterrupted, overrides, rounds):
    experiment = tiny(*overrides)
    for number in rounds:
        stop_after(monkeypatch, number)
    for _ in rounds:
        with pytest.raises(Stop):
            live(tmp_path, experiment)
    assert_same_run(live(tmp_path, experiment), uninterrupted(overrides))


@pytest.mark.parametrize("part", ["run", "twin", "both"])
def test_so_does_one_with_a_baseline(tmp_path, monkeypatch, uninterrupted, part):
    experiment, how = tiny(*SHORT), How("inline", baseline=True)
    stops = {"run": [2], "twin": [6], "both": [2, 6]}[part]  # of 4 rounds each
    for rounds in stops:
        stop_after(monkeypatch, 2, "tiny" if rounds == 2 else "dense twin")
    for rounds in stops:
        with pytest.raises(Stop) as stopped:
            live(tmp_path, experiment, how)
        assert stopped.value.__notes__ == [way_on(tmp_path / NAME, rounds)]
    folder = live(tmp_path, experiment, how)
    assert_same_run(folder, uninterrupted(SHORT, True))
    assert json.loads((folder / "summary.json").read_text())["dense_accuracy"] is not None


def way_on(folder: Path, rounds: int) -> str:
    return f"stopped after {rounds} rounds: `sparcl resume {folder}` goes on from there"


# -- stopped at every instant, one after another


class Instants:
    """Every instant has a name. The first one that is new in a life ends it, so that a chain of lives ends at each of them once.

    A life that ends behind the pointer of a checkpoint never sees the rest of that round, so what comes there has no round in its name:
    it is met in another round.
    """

    def __init__(self, monkeypatch):
        self.seen: set[tuple] = set()
        self.end: Callable[[tuple], None] | None = None  # what ends the life that is being led
        self.patch = monkeypatch
        # training: of another device in each exchange
        self.around(InlineGrid, "_step", self.step)
        self.around(StateStore, "write", lambda store, device, exchange, *_: device == exchange % 3 and part_of(store.files.url))
        # the checkpoint, and what is done behind it
        self.around(builtins, "open", self.opened)
        self.around(os, "replace", lambda source, target: "checkpoint" in Path(target).parts and (part_of(target), Path(target).name))
        self.around(EngineGrid, "commit", lambda grid: part_of(grid.store.files.url))
        self.half_a_drop()
        self.around(View, "round_done", lambda view, record: record.round and view.title)
        # going on
        self.around(StateStore, "keep_only", lambda store, states, blobs: len(states) > 2 and part_of(store.files.url))
        # results
        self.torn(write, "_write_table", 0, lambda path, columns: path.name)
        self.torn(write, "_write_json", 0, lambda path, value: path.name)
        self.torn(write, "put", 0, lambda path, parts: path.name)
        self.torn(Path, "write_bytes", 0, lambda path, data: path.name)
        self.around(Path, "rename", lambda path, *_: path.name == "run.json" and "run.json")
        self.around(Path, "unlink", lambda path, **_: path.name == "whole.json" and "whole.json")

    def at(self, *instant) -> None:
        if self.end and instant not in self.seen:
            self.seen.add(instant)
            end, self.end = self.end, None  # whoever cleans up is not disturbed
            end(instant)

    def opened(self, path, mode="r", *_, **__):
        if "x" in mode and "checkpoint" in Path(path).parts:
            return part_of(path), "journal" if Path(path).parent.name == "journal" else Path(path).name.split("-")[0]
        return None

    def step(self, grid, timeout):
        job = grid._waiting[0]
        return job.device == job.exchange % 3 and (part_of(grid.store.files.url), job.exchange)

    def around(self, holder, name, key) -> None:
        true = getattr(holder, name)

        def inner(*args, **kwargs):
            instant = key(*args, **kwargs)
            if not instant:
                return true(*args, **kwargs)
            self.at("before", name, instant)
            result = true(*args, **kwargs)
            self.at("after", name, instant)
            return result

        self.patch.setattr(holder, name, inner)

    def torn(self, holder, name, where, key) -> None:
        """The file is half there."""
        true = getattr(holder, name)

        def inner(*args, **kwargs):
            result, path = true(*args, **kwargs), args[where]
            instant = ("half of", name, key(*args))
            if self.end and instant not in self.seen:
                with open(path, "rb+") as file:
                    file.truncate(path.stat().st_size // 2)
            self.at(*instant)
            return result

        self.patch.setattr(holder, name, inner)

    def half_a_drop(self) -> None:
        true = StateStore.drop

        def drop(store, states, blobs):
            instant = ("half of", "drop", part_of(store.files.url))
            if states and self.end and instant not in self.seen:
                true(store, states[: len(states) // 2], blobs[: len(blobs) // 2])
                self.at(*instant)
            true(store, states, blobs)

        self.patch.setattr(StateStore, "drop", drop)

    def assert_complete(self, parts: dict[str, str]) -> None:
        """Nothing was patched in vain. parts: `run` and `twin`, with their titles."""
        expected = {(when, *what) for when in ("before", "after") for what in (("rename", "run.json"), ("unlink", "whole.json"))}
        expected |= {("half of", "write_bytes", "report.png")}
        expected |= {("half of", "_write_json", f"{name}.json") for name in ("environment", "summary")}
        expected |= {
            ("half of", "_write_table", f"{name}.parquet") for name in ("accuracy", "classes", "devices", "ledger", "rounds", "wall")
        }
        expected |= {("half of", "put", "model.safetensors")}
        for part, title in parts.items():
            around = {("_step", (part, exchange)) for exchange in range(1, 9)} | {("round_done", title)}
            around |= {("open", (part, name)) for name in ("journal", "state", "latest.json.new", "previous.json.new")}
            around |= {("replace", (part, name)) for name in ("latest.json", "previous.json")}
            around |= {(name, part) for name in ("write", "commit", "keep_only")}
            expected |= {(when, *what) for when in ("before", "after") for what in around} | {("half of", "drop", part)}
        assert self.seen == expected


def part_of(path) -> str:
    return next(part for part in ("run", "twin") if part in Path(path).parts)


def by_an_exception(instants: Instants, lead: Callable[[Callable], None]) -> bool:
    """One life; did it end early? The process goes on: what cleans up cleans up."""

    def stop(instant):
        raise Stop(instant)

    try:
        lead(lambda: setattr(instants, "end", stop))
    except Stop:
        return True
    return False


def by_death(instants: Instants, lead: Callable[[Callable], None]) -> bool:
    """In a process of its own, that ends as by a SIGKILL."""
    read, write = os.pipe()
    if child := os.fork():
        os.close(write)
        with open(read, "rb") as told:
            instant = told.read()
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) == 0:
            return False
        instants.seen.add(pickle.loads(instant))  # there is one, or else it was not us who ended it
        return True

    def die(instant):
        os.write(write, pickle.dumps(instant))
        os._exit(9)

    try:
        lead(lambda: setattr(instants, "end", die))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


@pytest.mark.parametrize("ends", [by_an_exception, by_death])
def test_a_run_that_ends_at_every_instant_writes_the_same_bytes(tmp_path, monkeypatch, uninterrupted, ends):
    reference, experiment = uninterrupted(()), tiny()
    instants, folder = Instants(monkeypatch), tmp_path / NAME
    while ends(instants, lambda begin: live(tmp_path, experiment, begin=begin)):
        if folder.exists() and not any((folder / name).exists() for name in ("run.json", "whole.json")):
            break  # in the last instant the run was finished
    instants.assert_complete({"run": "tiny"})
    assert_same_run(folder, reference)


# -- the process is killed


@pytest.mark.slow  # test_orphans.py does the same on Ray
def test_a_run_whose_process_is_killed_is_resumed_by_the_command(tmp_path):
    """16 rounds, so that there are enough of them left when the second one is told."""
    overrides = ("stream.tasks=1", "federation.rounds_per_task=16")
    command = [sys.executable, "-m", "simulations", "run", str(TINY), "--engine", "inline", "--out", str(tmp_path)]
    for override in overrides:
        command += ["--set", override]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        told = iter(process.stdout.readline, "")
        while not next(told).startswith("round 2/16"):
            pass
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    (folder,) = tmp_path.iterdir()
    assert (folder / "run.json").exists() and not (folder / "summary.json").exists()

    done = subprocess.run([sys.executable, "-m", "simulations", "resume", str(folder)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("going on after round ") and line.endswith("/16"))
    last = int(line.removeprefix("going on after round ").removesuffix("/16"))
    assert 2 <= last < 16 and f"round {last + 1}/16" in done.stdout and f"round {last}/16  " not in done.stdout
    # the command chooses the kernels of this machine
    assert_same_run(folder, live(tmp_path / "whole", build.choose_kernels(tiny(*overrides))))


# -- the folder


def start(out: Path, how: How = INLINE, rounds: int = 0) -> Path:
    """The folder of a run of one task whose process was killed after so many rounds: nobody had the time to clean up."""
    with new_run(out, tiny(*SHORT), how) as run, pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        stop_after(patch, rounds)
        carry_out(run, None)
    return run.folder


@contextmanager
def message(*parts: str, of: type[Exception] = ConfigError):
    """What a person reads when it goes wrong."""
    with pytest.raises(of) as raised:
        yield raised
    for part in parts:
        assert part in str(raised.value)


def test_a_new_run_says_how_it_is_carried_out(tmp_path):
    with new_run(tmp_path, tiny(), INLINE) as run:
        assert run.folder == tmp_path / NAME and {path.name for path in run.folder.iterdir()} == {"run.json", "config.toml"}
        with new_run(tmp_path, tiny(), INLINE) as other:
            assert other.folder.name == f"{NAME}-2" and other.how.id != run.how.id
    assert (run.rounds_done, run.is_finished) == (0, False)
    with open_run(run.folder) as again:
        assert (again.folder, again.experiment, again.how) == (run.folder, tiny(), run.how)


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_a_failure_leaves_the_folder_only_if_a_round_was_trained(tmp_path, monkeypatch, rounds):
    stop_after(monkeypatch, rounds)
    store = tmp_path / "store"
    with pytest.raises(Stop) as stopped, new_run(tmp_path / "out", tiny(*SHORT), How("inline", False, str(store))) as run:
        carry_out(run, None)
    if rounds:
        assert stopped.value.__notes__ == [way_on(run.folder, rounds)]
        assert {path.name for path in run.folder.iterdir()} == {"run.json", "config.toml", "checkpoint"}
        assert len(list(store.glob(f"{run.how.id}/run/states/*/*"))) == (3 if rounds == 1 else 6)  # of the last two rounds
    else:
        assert not hasattr(stopped.value, "__notes__")
        assert list((tmp_path / "out").iterdir()) == [] and list(store.iterdir()) == []


def test_a_checkpoint_that_cannot_be_read_is_not_taken_for_none(tmp_path, monkeypatch):
    """Neither is the run removed, as one without a round is, nor is it said that it has none."""
    stop_after(monkeypatch, 2)
    with pytest.raises(Stop) as stopped, new_run(tmp_path, tiny(*SHORT), INLINE) as run:
        try:
            carry_out(run, None)
        finally:
            latest = run.folder / "checkpoint" / "run" / "latest.json"
            latest.rename(latest.with_suffix(".aside"))
            latest.mkdir()
            latest.with_name("previous.json").unlink(missing_ok=True)
    goes_on = f"the run stays as it is: `sparcl resume {run.folder}` goes on as soon as its checkpoint can be read"
    assert stopped.value.__notes__ == [goes_on]
    latest.rmdir()
    latest.with_suffix(".aside").rename(latest)
    with open_run(run.folder) as again:
        assert again.rounds_done == 2


def test_a_failure_before_anything_is_kept_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), new_run(tmp_path, tiny(), INLINE):
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_from_the_start_leaves_nothing(tmp_path, monkeypatch):
    def full(path, parts, private=False):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(control_file, "put", full)
    with message(NAME, "cannot be written (No space left on device)", "--out"), new_run(tmp_path, tiny(), INLINE):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("half", "expected"), [("run.json", "has no config.toml"), ("config.toml", "config.toml")])
def test_a_process_that_dies_while_it_makes_the_folder_leaves_none_that_is_taken_for_finished(tmp_path, monkeypatch, half, expected):
    """Half of a file, and none of those behind it."""
    true = control_file.put

    def torn(path, parts, private=False):
        true(path, [parts[0][: len(parts[0]) // 2] if path.name == half else parts[0]], private)
        if path.name == half:
            raise Stop

    monkeypatch.setattr(control_file, "put", torn)
    monkeypatch.setattr(resumable, "_remove", lambda run: "")  # no time for that
    with pytest.raises(Stop), new_run(tmp_path, tiny(), INLINE):
        pytest.fail("the block must not run")
    with message(str(tmp_path / NAME), expected), open_run(tmp_path / NAME):
        pytest.fail("the block must not run")


def test_a_resumed_run_that_fails_again_leaves_the_folder(tmp_path):
    folder = start(tmp_path)
    with pytest.raises(ZeroDivisionError) as failed, open_run(folder):
        1 / 0  # noqa: B018
    assert failed.value.__notes__ == [way_on(folder, 0)] and (folder / "run.json").exists()


def test_rounds_done_are_those_of_both_parts_that_need_not_be_trained_again(tmp_path, monkeypatch):
    """What lies beyond the pointer of a checkpoint is trained again."""
    how = How("inline", baseline=True)
    stop_after(monkeypatch, 3, "dense twin")
    with pytest.raises(Stop), new_run(tmp_path, tiny(*SHORT), how) as run:
        carry_out(run, None)
    with open_run(run.folder) as run:
        assert run.rounds_done == 4 + 3
        (run.folder / "checkpoint" / "twin" / "state-4.safetensors").write_bytes(b"half of it")
        assert run.rounds_done == 7
        for name, rounds in (("latest.json", 4 + 2), ("previous.json", 4)):
            (run.folder / "checkpoint" / "twin" / name).unlink()
            assert run.rounds_done == rounds


def test_finish_leaves_results_only(tmp_path):
    folder = start(tmp_path, rounds=1)
    (folder / "summary.json").write_text("{}")
    with open_run(folder) as run:
        run.keep("run")
        run.finish()
        assert run.is_finished
    assert {path.name for path in folder.iterdir()} == {"config.toml", "summary.json"}


def test_an_interrupt_behind_the_finish_says_that_the_run_is_whole(tmp_path):
    with pytest.raises(Stop) as stopped, new_run(tmp_path, tiny(), INLINE) as run:
        run.finish()
        raise Stop
    assert stopped.value.__notes__ == [f"the run is whole: {run.folder}"] and run.folder.exists()


@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize("rounds", [0, 2])
def test_giving_up_leaves_nothing_wherever_it_was_kept(tmp_path, baseline, rounds):
    store, out = tmp_path / "store", tmp_path / "out"
    store.mkdir()
    (store / "mine").write_text("stays")
    folder = start(out, How("inline", baseline, str(store)), rounds)
    assert list(store.rglob("*-*")) if rounds else True
    with open_run(folder) as run:
        give_up(run)
    assert list(out.iterdir()) == [] and [path.name for path in store.iterdir()] == ["mine"]


def test_forgetting_a_finished_part_takes_its_states_too(tmp_path):
    """The run is done, the twin has not begun: a new process has not touched the run's states, but they go."""
    folder = start(tmp_path, rounds=4)
    assert list(folder.glob("devices/run/states/*/*"))
    with open_run(folder) as run:
        give_up(run)
    assert not folder.exists()


# -- somebody else is at it


def test_a_run_is_locked_for_others_in_this_process_and_in_another(tmp_path):
    with new_run(tmp_path, tiny(), INLINE) as run:
        for _ in range(2):
            with message(str(run.folder), "is being run by another process", "wait for it", of=EngineError), open_run(run.folder):
                pytest.fail("the block must not run")
        if not (child := os.fork()):
            os.closerange(3, 1024)  # a process of its own has not inherited the lock
            try:
                open_run(run.folder).__enter__()
            except EngineError:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    with open_run(run.folder), message("is being run by another process", of=EngineError), open_run(run.folder):
        pytest.fail("the block must not run")
    with open_run(run.folder):
        pass  # nobody is at it any more


def test_a_run_that_is_finished_while_another_waits_for_it_is_finished(tmp_path, monkeypatch):
    """Between the look at run.json and the lock."""
    folder, true = start(tmp_path), fcntl.flock

    def flock(file, how):
        end(folder)
        true(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with message(f"{folder} is finished", "nothing to resume"), open_run(folder):
        pytest.fail("the block must not run")


def test_a_file_system_without_locks_will_do(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with new_run(tmp_path, tiny(), INLINE) as run:
        assert run.folder.exists()


# -- a folder that cannot be resumed


def test_a_folder_that_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "nowhere", tmp_path, tmp_path / "file"):
        with message(f"{path} is no run folder", "no config.toml", "name the folder that `sparcl run` has printed"), open_run(path):
            pytest.fail("the block must not run")


def end(folder: Path) -> None:
    """As a run does that ends well."""
    for name in ("summary.json", "model.safetensors"):
        (folder / name).touch()
    shutil.rmtree(folder / "checkpoint")
    (folder / "run.json").unlink()


def test_a_finished_run(tmp_path):
    folder = start(tmp_path)
    end(folder)
    with message(f"{folder} is finished", "nothing to resume", f"`sparcl run {folder}/config.toml` repeats it"), open_run(folder):
        pytest.fail("the block must not run")


@pytest.mark.parametrize("missing", ["run.json", "run.json and results"])
def test_a_folder_without_run_json_is_not_called_finished(tmp_path, missing):
    folder = start(tmp_path, rounds=1)
    if missing == "run.json":
        for name in ("summary.json", "model.safetensors"):
            (folder / name).touch()
    (folder / "run.json").unlink()
    what = f"{folder} has no run.json, without which a run cannot be resumed, and it is not finished: `sparcl run {folder}/config.toml`"
    with message(what), open_run(folder):
        pytest.fail("the block must not run")


DAMAGED = {
    "nothing": "",
    "half": '{"format": 1, "engi',
    "no text": b"\xff\xfe",
    "no object": "[1]",
    "depth": 100_000 * "[",
    "a number": "7",
    "null": "null",
    "no format": "{}",
    "another format": {"format": 2},
    "an engine that is none": {"engine": "spark"},
    "a field too many": {"more": 1},
    "baseline": {"baseline": "no"},
    "store": {"store": None},
    "address": {"address": 7},
    "no id": {"id": ""},
    "an id that is a path": {"id": "../../home"},
    "inline on a cluster": {"address": "auto"},
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_run_json(tmp_path, damage):
    folder = start(tmp_path)
    path = folder / "run.json"
    if isinstance(damage, dict):
        damage = json.dumps(json.loads(path.read_text()) | damage)
    path.write_bytes(damage if isinstance(damage, bytes) else damage.encode())
    before = sorted(folder.rglob("*"))
    with message(f"{path} cannot be used", f"start the run again with `sparcl run {folder}/config.toml`"), open_run(folder):
        pytest.fail("the block must not run")
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("missing", ["format", "engine", "baseline", "config_sha256"])
def test_a_run_json_with_a_part_missing(tmp_path, missing):
    folder = start(tmp_path)
    found = json.loads((folder / "run.json").read_text())
    del found[missing]
    (folder / "run.json").write_text(json.dumps(found))
    with message(f"{folder}/run.json cannot be used", "start the run again"), open_run(folder):
        pytest.fail("the block must not run")


def test_a_folder_in_the_place_of_run_json(tmp_path):
    folder = start(tmp_path)
    (folder / "run.json").unlink()
    (folder / "run.json").mkdir()
    with message(f"{folder}/run.json cannot be opened", "Is a directory"), open_run(folder):
        pytest.fail("the block must not run")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda text: text.replace("lr = 0.03", "lr = "), "is no TOML"),
        (lambda text: text.replace("lr = 0.03", "lrr = 0.03"), "did you mean 'learner.lr'?"),
        (lambda text: text.replace("lr = 0.03", "lr = 0.3"), "was changed since the run began"),
        (lambda text: text[: text.index("[wire]")], "was changed since the run began"),  # half of it is another experiment
        (lambda text: "", "was changed since the run began"),
    ],
    ids=["no toml", "unknown key", "another value", "half", "empty"],
)
def test_a_config_that_is_not_the_one_that_the_run_began_with(tmp_path, change, what):
    """It would go on as another experiment, and nobody would know."""
    folder = start(tmp_path)
    path = folder / "config.toml"
    changed = change(path.read_text())
    assert changed != path.read_text()
    path.write_text(changed)
    with message(what, f"put back the {path} that the run began with"), open_run(folder):
        pytest.fail("the block must not run")


LAST_ROUND = (*(f"checkpoint/run/{name}" for name in ("latest.json", "state-2.safetensors", "journal/2.safetensors")), "devices", "blobs")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run that was stopped after round 2."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot, "draw_report", lambda folder: None)
        patch.setattr(build, "make_world", world_of)
        start(folder, rounds=2)
    return folder / NAME


@settings(max_examples=4)  # each is a run
@given(st.dictionaries(st.sampled_from(LAST_ROUND), st.sampled_from(["gone", "empty", "half", "zeroes"])))
def test_a_power_cut_costs_a_round_at_most(tmp_path_factory, uninterrupted, stopped, damages):
    """What a power cut can leave of the last round, whatever was flushed of it: the same bytes in the end."""
    out = tmp_path_factory.mktemp("cut")
    folder = out / NAME
    shutil.copytree(stopped, folder)
    for name, how in damages.items():
        if name == "devices":
            paths = [path for path in folder.glob("devices/run/states/*/*") if path.name.endswith("-2")]
        elif name == "blobs":  # those that only the states of round 2 refer to
            paths = new_blobs(folder)
        else:
            paths = [folder / name]
        for path in paths:
            spoil(path, how)
    assert len(list(folder.glob("devices/run/states/*/*"))) == (3 if damages.get("devices") == "gone" else 6)
    assert_same_run(live(out, tiny(*SHORT)), uninterrupted(SHORT))


def new_blobs(folder: Path) -> list[Path]:
    states = {path.name: path.read_bytes() for path in folder.glob("devices/run/states/*/*")}
    before = b"".join(data for name, data in states.items() if not name.endswith("-2"))
    return [path for path in folder.glob("devices/run/blobs/*/*") if bytes.fromhex(path.name) not in before]


def spoil(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "half": data[: len(data) // 2], "zeroes": bytes(len(data))}[how])


def assert_lost(folder: Path, *parts: str) -> None:
    """One message, and one way out that is none of resuming."""
    with pytest.raises(CheckpointLost) as raised, open_run(folder) as run:
        carry_out(run, None)
    for part in parts:
        assert part in str(raised.value)
    (note,) = raised.value.__notes__
    assert note == (
        f"the run cannot be resumed as it is: `sparcl run {folder}/config.toml` repeats it, `sparcl forget {folder}` removes it"
    )
    assert "resume" not in str(raised.value) and "remove" not in str(raised.value)


def test_two_damaged_checkpoints_are_said_to_be_that(tmp_path):
    folder = start(tmp_path, rounds=2)
    for state in folder.glob("checkpoint/run/state-*.safetensors"):
        state.write_bytes(state.read_bytes()[:-1])
    assert_lost(folder, "neither of the last two checkpoints is whole", "state-2.safetensors: ", "state-1.safetensors: ", "truncated")


# -- passwords in a store's URL


@pytest.mark.parametrize("url", ["memory://me:geheim@host", "memory://host"])
def test_a_password_is_for_the_owner_of_the_run_alone(tmp_path, url):
    """Resuming needs it; nobody else reads it, and no message says it."""
    has_one = "geheim" in url
    before = os.umask(0o022)
    try:
        folder = start(tmp_path, How("inline", False, url), rounds=1)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir() if path.is_file()}
    assert modes == {"run.json": 0o600 if has_one else 0o644, "config.toml": 0o644}
    text = (folder / "run.json").read_text()
    for damage in (text.replace("inline", "spark"), text.replace('"baseline": false', '"baseline": 3'), text[:-9]):
        (folder / "run.json").write_text(damage)
        with message("cannot be used") as said, open_run(folder):
            pytest.fail("the block must not run")
        assert "geheim" not in str(said.value)
    (folder / "run.json").write_text(text)
    with open_run(folder) as run:
        assert run.how.store == url and "geheim" not in repr(run.how)
        give_up(run)
    assert not folder.exists()


# -- whose it is


@pytest.mark.parametrize("what", ["checkpoint", "devices", "both"])
def test_what_another_run_has_left_is_refused(tmp_path, what):
    """The same experiment with another seed, or just another run of it: whole, and of the same round."""
    own = start(tmp_path / "own", rounds=2)
    for seed in ("0", "1"):
        other_run = new_run(tmp_path / seed, tiny(*SHORT, f"seed={seed}"), INLINE)
        with other_run as other, pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
            stop_after(patch, 2)
            carry_out(other, None)
        folder = tmp_path / f"mixed {seed}" / NAME
        shutil.copytree(own, folder)
        for part in ("checkpoint", "devices") if what == "both" else (what,):
            shutil.rmtree(folder / part)
            shutil.copytree(other.folder / part, folder / part)
        with pytest.raises(CheckpointLost, match="of another run"), open_run(folder) as run:
            carry_out(run, None)


def test_parts_of_a_run_that_were_swapped_are_refused(tmp_path):
    with new_run(tmp_path, tiny(*SHORT), How("inline", baseline=True)) as run, pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        stop_after(patch, 2, "dense twin")
        carry_out(run, None)
    for folder in (run.folder / "checkpoint", run.folder / "devices"):
        (folder / "run").rename(folder / "both")
        (folder / "twin").rename(folder / "run")
        (folder / "both").rename(folder / "twin")
    with pytest.raises(CheckpointLost, match="is of the other part of the run"), open_run(run.folder) as run:
        carry_out(run, None)


def test_results_say_with_which_software_a_run_was_resumed(tmp_path, monkeypatch, uninterrupted):
    start(tmp_path, rounds=2)
    monkeypatch.setattr(checkpoint, "software", lambda: {"torch": "99.0"})
    folder = live(tmp_path, tiny(*SHORT))
    assert_same_run(folder, uninterrupted(SHORT))
    begun, resumed = json.loads((folder / "environment.json").read_text())["software"]
    assert begun == {"after_round": -1, **software()} and resumed == {"after_round": 2, "torch": "99.0"}


# -- commands that are told


def test_a_path_with_a_space_is_quoted_in_every_command(tmp_path):
    out = tmp_path / "my runs; and $more"
    folder = start(out, rounds=1)
    quoted = shlex.quote(str(folder))
    with open_run(folder) as run:
        for error, command in ((ValueError(), f"`sparcl resume {quoted}`"), (CheckpointLost(), f"`sparcl forget {quoted}`")):
            assert command in resumable._way_on(run, error)
        assert f"`sparcl run {shlex.quote(str(folder / 'config.toml'))}`" in resumable._way_on(run, CheckpointLost())
    end(folder)
    with message(shlex.quote(str(folder / "config.toml"))), open_run(folder):
        pytest.fail("the block must not run")


def test_a_disk_that_is_full_in_the_first_round_does_not_speak_of_resuming(tmp_path, monkeypatch):
    """The folder is removed: nothing was trained."""
    true = array_file.put

    def full(path, parts):
        if "state-0" in path.name:
            raise OSError(28, "No space left on device")
        true(path, parts)

    monkeypatch.setattr(array_file, "put", full)
    with pytest.raises(CheckpointError) as failed, new_run(tmp_path, tiny(*SHORT), INLINE) as run:
        carry_out(run, None)
    assert "No space left on device" in str(failed.value) and "make room" in str(failed.value) and "resume" not in str(failed.value)
    assert not hasattr(failed.value, "__notes__") and not run.folder.exists()


# -- where device states are kept


def test_states_that_are_gone_are_said_to_be(tmp_path):
    folder = start(tmp_path, rounds=2)
    shutil.rmtree(folder / "devices")
    assert_lost(folder, "the state of device 0 after exchange 2 is lost", "the state of device 0 after exchange 1 is lost")


def test_a_store_under_a_file_is_refused_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("kept")
    how = How("inline", False, str(tmp_path / "file" / "store"))
    with message("device states cannot be kept in", "--store", of=StoreError), new_run(tmp_path / "out", tiny(), how) as run:
        run.keep("run")
    assert list((tmp_path / "out").iterdir()) == [] and (tmp_path / "file").read_text() == "kept"


def test_a_store_that_is_not_mounted_is_not_made_anew(tmp_path, uninterrupted):
    store = tmp_path / "states"
    folder = start(tmp_path / "out", How("inline", False, str(store)), rounds=2)
    store.rename(tmp_path / "elsewhere")
    with message("is it mounted", str(store), of=StoreError):
        live(tmp_path / "out", tiny(*SHORT))
    assert not store.exists() and (folder / "run.json").exists()
    (tmp_path / "elsewhere").rename(store)
    assert_same_run(live(tmp_path / "out", tiny(*SHORT)), uninterrupted(SHORT))


@pytest.mark.parametrize("given", ["states", "./states/", "file://{here}/states", "file://{here}/states/"])
def test_a_run_is_resumed_from_another_folder(tmp_path, monkeypatch, uninterrupted, given):
    """Its store is where it was, also if it was named relative to where the run began."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = start(tmp_path / "out", How("inline", False, given.format(here=tmp_path / "here")), rounds=2)
    assert list((tmp_path / "here" / "states").glob("*/run/states/*/*"))
    monkeypatch.chdir(tmp_path / "there")
    assert_same_run(live(tmp_path / "out", tiny(*SHORT)), uninterrupted(SHORT))
    assert folder.exists()
    assert list((tmp_path / "there").iterdir()) == [] and list((tmp_path / "here" / "states").iterdir()) == []


def test_two_runs_share_a_store_and_nothing_in_it(tmp_path, monkeypatch, uninterrupted):
    """One is given up while the other goes on."""
    how = How("inline", False, str(tmp_path / "store"))
    first, second = start(tmp_path / "a", how, rounds=2), start(tmp_path / "b", how, rounds=3)
    assert len(list((tmp_path / "store").iterdir())) == 2
    with open_run(first) as run:
        give_up(run)
    assert_same_run(live(tmp_path / "b", tiny(*SHORT)), uninterrupted(SHORT))
    assert second.exists() and list((tmp_path / "store").iterdir()) == []


def test_a_store_in_memory_does_not_survive_but_its_url_is_understood(tmp_path):
    """fsspec's memory lives as long as the process."""
    how = How("inline", False, "memory://")
    with new_run(tmp_path, tiny(), how) as run:
        assert run.keep("run").store.files.url == f"memory://{run.how.id}/run"


def test_the_inline_engine_has_no_cluster():
    with message("--ray-address is 'auto'", "the inline engine is one process", "take --engine ray"):
        How("inline", False, address="auto")


def test_the_parts_of_a_run_do_not_share_their_states(tmp_path):
    with new_run(tmp_path, tiny(), INLINE) as run:
        assert isinstance(run, Unfinished) and run.keep("run") is run.keep("run")
        folders = [Path(run.keep(part).store.files.url) for part in ("run", "twin")]
        assert folders == [run.folder / "devices" / part for part in ("run", "twin")]
        assert [run.keep(part).checkpoints.folder.name for part in ("run", "twin")] == ["run", "twin"]
