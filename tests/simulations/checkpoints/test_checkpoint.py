"""Checkpoints: whatever instant the process dies or the power fails at, one whole round is found; what is damaged is never guessed."""

import io
import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import assert_same_arrays

from server.app import RoundRecord
from server.global_model.masks import Diversity
from server.ledger import Row, WallTime
from server.rounds.evaluation import OwnModels
from simulations import disk
from simulations.checkpoints import array_file, checkpoint
from simulations.checkpoints.checkpoint import Checkpoints
from simulations.checkpoints.pointer import CheckpointError, CheckpointLost, Damaged, Identity, Pointer
from simulations.checkpoints.round_log import Journal, from_arrays, to_arrays
from simulations.engine.states import StateChanges
from simulations.engine.store import StateLost
from simulations.environment import software


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """What a flush promises is the kernel's affair; that there is one where it must be is looked at by `Mortal`."""
    monkeypatch.setattr(os, "fsync", lambda held: None)


REASONS = ("", "no data for task 3", "naïve ✗\n", "\udc80 from the system")


def journal_of(round_: int, devices: int = 3) -> Journal:
    """A round with a value of its own in every field; figures that a text format would spoil."""
    rows = [
        Row(**{field.name: value_of(field.type, round_ * 1000 + 40 * device + index) for index, field in enumerate(fields(Row))})
        for device in range(devices)
    ]
    rows = [replace(row, round=round_, loss=loss) for row, loss in zip(rows, (-0.0, 5e-324, float("inf")), strict=False)]
    accuracy = np.array([[0.1 + round_, np.nan], [-0.0, 1 / 3]]) if round_ % 2 == 0 else None
    by_class = np.array([[[0.5, np.nan, -0.0]]]) + round_ if round_ % 2 == 0 else None
    own = OwnModels(np.array([0, 2**40]), np.array([[[0.1, np.nan]] * 2] * 2) * round_) if round_ % 2 else None
    found = (accuracy, Diversity(0.1, 0.2) if round_ else None, by_class, 0.1 * round_, own)
    record = RoundRecord(round_, 2, round_ % 3 == 0, devices, 2**40 + round_, *found)
    blobs = [("ab" * 16, f"{device:032x}")[: device % 3] for device in range(devices)]
    changes = StateChanges(np.arange(devices) * 5, np.full(devices, 2**33 + round_), blobs)
    wall_times = [WallTime(round_, device, 0.1 * device, 0.01 * device) for device in range(devices)]
    return Journal(record, rows, wall_times, changes, 2 * round_)


def value_of(kind: type, number: int):
    return {int: 2**62 + number, float: 0.1 * number, str: REASONS[number % len(REASONS)]}[kind]


def snapshot_of(round_: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(round_)
    return {
        "weights/conv": np.asfortranarray(rng.random((3, 4, 2), dtype=np.float32)),
        "weights/every-other": rng.random(10)[::2],
        "weights/count": np.array(1.5 + round_),
        "masks/conv": rng.random((3, 4)) < 0.5,
        "steps/data": np.frombuffer(rng.bytes(300 * round_), np.uint8),
        "nothing": np.empty((0, 2), np.int64),
        "big-endian": (np.arange(3) + round_).astype(">i4"),
        "odd": np.array([0x7FF8_0000_DEAD_BEEF, 1 << 63], np.uint64).view(np.float64),
    }


def as_stored(snapshot: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.asarray(array, array.dtype.newbyteorder("<"), order="C") for name, array in snapshot.items()}


def plain(journal: Journal) -> dict:
    """All of a journal, to the bit, as something that can be compared."""
    record, changes = journal.record, journal.changes
    rows = [[value.hex() if isinstance(value, float) else value for value in own] for own in map(values, journal.rows)]
    bits = {
        name: None if array is None else (array.dtype.str, array.shape, array.tobytes())
        for name, array in (("accuracy", record.accuracy), ("by_class", record.by_class))
    }
    bits["own"] = None if record.own is None else (record.own.devices.tolist(), record.own.accuracy.tobytes())
    return {
        "record": {**{field.name: getattr(record, field.name) for field in fields(record)}, **bits, "time": record.time.hex()},
        "rows": rows,
        "wall_times": journal.wall_times,
        "changes": (changes.devices.tolist(), changes.exchanges.tolist(), changes.blobs),
        "exchange": journal.exchange,
    }


def values(row: Row) -> list:
    return [getattr(row, field.name) for field in fields(row)]


def saved(folder: Path, rounds: int) -> Checkpoints:
    """Checkpoints of rounds 0 to `rounds`, one after another."""
    checkpoints = Checkpoints(folder)
    for number in range(rounds + 1):
        checkpoints.save(number, snapshot_of(number), journal_of(number))
    return checkpoints


def assert_whole(folder: Path, *rounds: int) -> int:
    """What is found is one of these rounds, complete. Returns which."""
    found = Checkpoints(folder).load()
    assert found.round in rounds
    assert_same_arrays(found.snapshot, as_stored(snapshot_of(found.round)))
    assert [plain(own) for own in found.journals] == [plain(journal_of(number)) for number in range(found.round + 1)]
    return found.round


# -- there and back


@pytest.mark.parametrize("rounds", [0, 1, 4])
def test_what_was_saved_is_loaded(tmp_path, rounds):
    saved(tmp_path / "run" / "checkpoint", rounds)
    assert assert_whole(tmp_path / "run" / "checkpoint", rounds) == rounds


def test_a_round_without_devices(tmp_path):
    """Nobody had data."""
    Checkpoints(tmp_path).save(0, {}, journal_of(0, devices=0))
    found = Checkpoints(tmp_path).load()
    assert plain(found.journals[0]) == plain(journal_of(0, devices=0)) and found.snapshot == {}


def test_a_journal_has_everything_that_a_round_has():
    """A field that is added to a record or a row must be added to the journal, or it would be lost in silence."""
    assert [field.name for field in fields(RoundRecord)] == [
        "round", "task", "ends_task", "num_devices", "num_samples", "accuracy", "diversity", "by_class", "time", "own",
    ]  # fmt: skip
    assert {field.type for field in fields(Row)} == {int, float, str}
    assert plain(from_arrays(to_arrays(journal_of(2)))) == plain(journal_of(2))


def test_accuracy_keeps_its_type():
    journal = replace(journal_of(2), record=replace(journal_of(2).record, accuracy=np.ones((2, 3), np.float32, order="F")))
    assert from_arrays(to_arrays(journal)).record.accuracy.dtype == np.float32


def test_rows_are_rows_of_python(tmp_path):
    """json and tables take Python's numbers; NumPy's they do not."""
    saved(tmp_path, 0)
    (journal,) = Checkpoints(tmp_path).load().journals
    assert [type(value) for value in values(journal.rows[0])] == [field.type for field in fields(Row)]
    measured = journal.wall_times[0]
    assert {type(value) for value in (measured.round, measured.device, journal.exchange, journal.record.num_samples)} == {int}
    assert journal.record.ends_task is True


@pytest.mark.parametrize("name", ["changes/counts", "changes/devices", "rows/round", "wall/seconds"])
def test_arrays_that_do_not_fit_each_other_are_no_journal(name):
    arrays = to_arrays(journal_of(2))
    with pytest.raises(ValueError):
        from_arrays(arrays | {name: np.append(arrays[name], 1)})


def test_without_a_checkpoint_there_is_none(tmp_path):
    assert Checkpoints(tmp_path / "nowhere").load() is None
    assert Checkpoints(tmp_path / "nowhere").last_round is None and not Checkpoints(tmp_path / "nowhere").is_begun


def test_a_checkpoint_touches_its_own_files_only(tmp_path):
    """So that the hundredth costs what the first did: one snapshot, one journal, the pointer."""
    checkpoints = saved(tmp_path, 3)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    time.sleep(0.01)
    checkpoints.save(4, snapshot_of(4), journal_of(4))
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    changed = {str(path.relative_to(tmp_path)) for path in after if before.get(path) != after[path]}
    assert changed == {"latest.json", "previous.json", "state-4.safetensors", "journal/4.safetensors"}
    assert {str(path.relative_to(tmp_path)) for path in before.keys() - after.keys()} == {"state-2.safetensors"}


# -- the order of rounds


@pytest.mark.parametrize("number", [0, 1, 3])
def test_every_round_is_saved_once_and_in_order(tmp_path, number):
    saved(tmp_path, 1)
    for checkpoints in (Checkpoints(tmp_path), saved(tmp_path / "other", 1)):
        with pytest.raises(ValueError, match=f"round {number} .* is that of round 2: every round is saved once, in order"):
            checkpoints.save(number, snapshot_of(number), journal_of(number))
    assert_whole(tmp_path, 1)


def test_the_journal_must_be_of_the_round(tmp_path):
    with pytest.raises(ValueError, match="checkpoint of round 0 with the journal of round 1"):
        Checkpoints(tmp_path).save(0, snapshot_of(0), journal_of(1))


def test_remove(tmp_path):
    checkpoints = saved(tmp_path / "run", 2)
    (tmp_path / "run" / "mine").write_text("stays")
    (tmp_path / "run" / "state-best.safetensors").write_text("stays, too")
    checkpoints.remove()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["mine", "state-best.safetensors"]
    assert checkpoints.load() is None
    checkpoints.save(0, snapshot_of(0), journal_of(0))
    assert_whole(tmp_path / "run", 0)
    (tmp_path / "run" / "mine").unlink()
    (tmp_path / "run" / "state-best.safetensors").unlink()
    (tmp_path / "run" / "latest.json.new").write_text("of a process that died")
    checkpoints.remove()
    checkpoints.remove()
    assert not (tmp_path / "run").exists()


# -- death at any instant


class _Killed(BaseException):
    """As a SIGKILL: nothing catches it."""


class Mortal:
    """Lets `left` file operations pass; the next one never happens, or only half of it where it is a write.

    unflushed: inodes of files of which a power cut may leave anything.
    """

    def __init__(self, monkeypatch, left: int):
        self.left, self.unflushed, self._lock = left, set(), threading.Lock()
        monkeypatch.setattr(disk, "open", self._open, raising=False)
        for name in ("replace", "unlink", "mkdir", "rmdir"):
            monkeypatch.setattr(os, name, self._mortal(getattr(os, name)))
        monkeypatch.setattr(os, "fsync", self._fsync)

    def step(self) -> None:
        with self._lock:
            self.left -= 1
            if self.left < 0:
                raise _Killed

    def _mortal(self, operation):
        def inner(*args, **kwargs):
            self.step()
            return operation(*args, **kwargs)

        return inner

    def _fsync(self, held: int) -> None:
        self.step()
        self.unflushed.discard(os.fstat(held).st_ino)

    def _open(self, path, mode, opener=None):
        self.step()
        file = io.FileIO(path, mode)
        self.unflushed.add(os.fstat(file.fileno()).st_ino)

        class Writer:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            def writelines(_, parts):
                data = b"".join(parts)
                try:
                    self.step()
                except _Killed:
                    file.write(data[: len(data) // 2])
                    raise
                file.write(data)

        return Writer()

    def cut_power(self, folder: Path) -> None:
        """Of what was not flushed, some is gone, some is empty, some is zeroes."""
        for path in folder.rglob("*"):
            if (inode := path.stat().st_ino) in self.unflushed:
                spoil(path, SPOILERS[inode % len(SPOILERS)])


SPOILERS = ("gone", "empty", "half", "zeroes")


def spoil(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "half": data[: len(data) // 2], "zeroes": bytes(len(data))}[how])


def dies(monkeypatch, after: int, action, loses_power: Path | None = None) -> bool:
    """Does `action` die when `after` operations have passed? Then `loses_power`, a folder, loses what was not flushed."""
    with monkeypatch.context() as patch:
        mortal = Mortal(patch, after)
        try:
            action()
        except _Killed:
            died = True
        else:
            assert mortal.left >= 0
            died = False
    if died and loses_power:
        mortal.cut_power(loses_power)
    return died


@pytest.mark.parametrize("power", [True, False], ids=["process", "machine"])  # the power stays, or not
def test_death_after_every_file_operation_of_the_first_checkpoint(tmp_path, monkeypatch, power):
    for after in range(100):
        folder = tmp_path / str(after)
        died = dies(monkeypatch, after, lambda folder=folder: saved(folder, 0), None if power else tmp_path)
        found = Checkpoints(folder).load()
        if found is None:
            saved(folder, 0)
        assert_whole(folder, 0)
        if not died:
            break
    assert after > 10


@pytest.mark.parametrize("power", [True, False], ids=["process", "machine"])
def test_death_after_every_file_operation(tmp_path, monkeypatch, power):
    """Of the process that saves round 3, and of the one that goes on from what it left: early and late. Once the pointer is moved the
    round counts, and never before all of it is on the disk."""
    saved(tmp_path / "base", 2)
    moved = []
    for first in range(100):
        folder = tmp_path / str(first)
        shutil.copytree(tmp_path / "base", folder)
        died = dies(monkeypatch, first, lambda folder=folder: save_round(folder, 3), None if power else folder)
        last = assert_whole(folder, 2, 3)
        moved.append(last == 3)
        dies(monkeypatch, max(0, 22 - first), lambda folder=folder, turn=last + 1: save_round(folder, turn), None if power else folder)
        last = assert_whole(folder, last, last + 1)
        save_round(folder, last + 1)
        assert_whole(folder, last + 1)
        assert {path.name for path in folder.glob("state-*")} == {f"state-{last + own}.safetensors" for own in (0, 1)}
        assert not list(folder.glob("*.new"))
        if not died:
            break
    assert moved == sorted(moved) and moved.count(False) > 10


def save_round(folder: Path, number: int) -> None:
    """By a process of its own."""
    Checkpoints(folder).save(number, snapshot_of(number), journal_of(number))


def test_death_while_the_checkpoint_is_removed(tmp_path, monkeypatch):
    for after in range(100):
        folder = tmp_path / str(after)
        saved(folder, 1)
        died = dies(monkeypatch, after, Checkpoints(folder).remove)
        if after < 2:  # a pointer is left
            assert_whole(folder, 1 - after)
        elif (folder / "journal" / "1.safetensors").exists():  # and it is not taken for a run that has not begun
            with pytest.raises(CheckpointLost):
                Checkpoints(folder).load()
        else:
            assert Checkpoints(folder).load() is None
        Checkpoints(folder).remove()
        assert not folder.exists()
        if not died:
            break
    assert after > 5


def test_a_real_kill(tmp_path):
    """A process that does nothing but save, killed by SIGKILL somewhere in a later checkpoint; the next one goes on where it died."""
    last, pointer = -1, tmp_path / "latest.json"
    for attempt in range(6):
        before = pointer.read_bytes() if attempt else None
        process = os.fork()
        if process == 0:  # the child must never come back to pytest
            try:
                for number in range(last + 1, 10_000):
                    Checkpoints(tmp_path).save(number, snapshot_of(number % 50), journal_of(number))
            finally:
                os._exit(1)
        give_up = time.monotonic() + 60
        while (not pointer.exists() or pointer.read_bytes() == before) and time.monotonic() < give_up:
            time.sleep(0.0005)
        time.sleep(0.0007 * attempt)
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        assert os.WIFSIGNALED(status)
        found = Checkpoints(tmp_path).load()
        assert found.round > last
        last = found.round
        assert_same_arrays(found.snapshot, as_stored(snapshot_of(last % 50)))
        assert [plain(own) for own in found.journals] == [plain(journal_of(number)) for number in range(last + 1)]


# -- damage

LAST, BEFORE, SHARED = (  # of round 3, of round 2, of both
    ("latest.json", "state-3.safetensors", "journal/3.safetensors"),
    ("previous.json", "state-2.safetensors", "journal/2.safetensors"),
    ("journal/1.safetensors", "journal/0.safetensors"),
)
damages = st.sampled_from(SPOILERS)


@pytest.fixture(scope="module")
def three_rounds(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("saved"), 3).folder


@settings(max_examples=50)
@given(st.dictionaries(st.sampled_from(LAST), damages), st.dictionaries(st.sampled_from([*BEFORE, *SHARED]), damages), st.booleans())
def test_whatever_of_the_last_checkpoint_is_damaged_the_one_before_it_is_taken(tmp_path_factory, three_rounds, last, before, is_power_cut):
    """And the run goes on from there. What damages both leaves nothing to go on from. (A power cut damages the last one only.)"""
    folder = tmp_path_factory.mktemp("checkpoint")
    shutil.copytree(three_rounds, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
    damaged = last | ({} if is_power_cut else before)
    for name, how in damaged.items():
        spoil(folder / name, how)
    reads_last = not damaged.keys() & {*LAST, *SHARED, "journal/2.safetensors"}  # journals are those of all rounds
    if reads_last:
        assert_whole(folder, 3)
        return
    if damaged.keys() & {*BEFORE, *SHARED}:
        with pytest.raises(CheckpointLost, match="neither of the last two checkpoints is whole: "):
            Checkpoints(folder).load()
        return
    assert_whole(folder, 2)
    assert Checkpoints(folder).last_round == 2  # it counts as the last one from now on
    for number in (3, 4):
        save_round(folder, number)
        assert_whole(folder, number)


def test_one_line_says_that_and_why(tmp_path, caplog):
    saved(tmp_path, 3)
    spoil(tmp_path / "state-3.safetensors", "half")
    for expected in (1, 1):  # once: then the older one is the last
        assert_whole(tmp_path, 2)
        assert len(caplog.messages) == expected
    (line,) = caplog.messages
    size = (tmp_path / "state-3.safetensors").stat().st_size
    assert line.startswith(f"the last checkpoint is damaged ({tmp_path}/state-3.safetensors: it has {size} bytes, not ")
    assert line.endswith("): going on from the one before it, of round 2") and caplog.records[0].levelno == logging.WARNING


def lost(what: str) -> Callable:
    def check(changes: StateChanges) -> None:
        if changes.exchanges[0] == 2**33 + 3:  # of round 3
            raise StateLost(what)

    return check


def test_device_states_of_the_last_round_are_looked_at_too(tmp_path, caplog):
    saved(tmp_path, 3)
    assert Checkpoints(tmp_path).load(lost("device 3 is lost")).round == 2
    assert "device 3 is lost" in caplog.text

    def unreachable(changes):
        raise OSError("the store is away")

    with pytest.raises(OSError, match="the store is away"):  # no damage: it may come back
        Checkpoints(tmp_path).load(unreachable)


@pytest.mark.parametrize("name", [*LAST[1:], *BEFORE, *SHARED])
@pytest.mark.parametrize("place", [0, 8, 20, -1])
def test_a_flipped_bit_is_seen(tmp_path, name, place):
    saved(tmp_path, 3)
    data = bytearray((tmp_path / name).read_bytes())
    data[place] ^= 4
    (tmp_path / name).write_bytes(data)
    for other in LAST[1:] if name in BEFORE and name != "journal/2.safetensors" else ():
        spoil(tmp_path / other, "gone")
    if name in LAST:
        assert_whole(tmp_path, 2)
    elif name == "journal/2.safetensors" or name not in ("previous.json",) or place != -1:
        with pytest.raises(CheckpointLost, match=str(tmp_path / name)):
            Checkpoints(tmp_path).load()


def test_a_pointer_with_a_flipped_bit_says_the_same_or_nothing(tmp_path):
    """Whatever bit it is: white space may become other white space, and "crc32" another word, as in a release that had none."""
    path = saved(tmp_path, 1).folder / "latest.json"
    data, whole = path.read_bytes(), Pointer.read(path, Identity())
    for place in range(0, len(data), 3):
        for bit in (1, 16):
            path.write_bytes(data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :])
            try:
                assert Pointer.read(path, Identity()) == whole
            except (Damaged, CheckpointError) as error:
                assert str(path) in str(error)


@pytest.mark.parametrize("name", [*LAST, *SHARED])
def test_a_file_of_another_run_is_damage_and_its_pointer_is_refused(tmp_path, name):
    """Whole in itself, of the same round, and of the same length."""
    own, other = (Checkpoints(tmp_path / run, Identity(run, "run", "0" * 64)) for run in ("own", "other"))
    for number in range(4):
        own.save(number, snapshot_of(number), journal_of(number))
        snapshot = {key: array.copy() for key, array in snapshot_of(number).items()}
        snapshot["weights/count"] += 1
        journal = journal_of(number)
        other.save(number, snapshot, replace(journal, exchange=journal.exchange + 1))
    shutil.copy(other.folder / name, own.folder / name)
    again = Checkpoints(own.folder, own.identity)
    if name in LAST[1:]:
        assert again.load().round == 2
        return
    with pytest.raises(CheckpointLost, match="is of another run" if name == "latest.json" else "neither of the last two"):
        again.load()


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (Identity("b", "run", "1"), "is of another run "),
        (Identity("a", "twin", "1"), "is of the other part of the run "),
        (Identity("a", "run", "2"), "is of another config "),
        (Identity(), "is of another run "),
    ],
)
def test_a_checkpoint_is_of_one_run_one_part_and_one_config(tmp_path, other, what):
    own = Identity("a", "run", "1")
    Checkpoints(tmp_path, own).save(0, snapshot_of(0), journal_of(0))
    assert Checkpoints(tmp_path, own).load().round == 0 and other.tag != own.tag
    for action in (Checkpoints(tmp_path, other).load, lambda: Checkpoints(tmp_path, other).save(1, snapshot_of(1), journal_of(1))):
        with pytest.raises(CheckpointLost, match=what):
            action()


def test_other_software_is_said_once_and_kept_with_the_run(tmp_path, monkeypatch, caplog):
    saved(tmp_path, 1)
    other = software() | {"torch": "99.0"}
    monkeypatch.setattr(checkpoint, "software", lambda: dict(other))
    for _ in range(2):
        checkpoints = Checkpoints(tmp_path)
        checkpoints.load()
        checkpoints.save(checkpoints.last_round + 1, snapshot_of(2), journal_of(checkpoints.last_round + 1))
    assert caplog.messages == [
        f"the run goes on with other software (torch {software()['torch']} -> 99.0): the last bits of its results may differ"
    ]
    assert Checkpoints(tmp_path).load().versions == [{"after_round": -1, **software()}, {"after_round": 1, **other}]


def test_another_version_of_a_package_that_the_run_uses_is_said_too(tmp_path, caplog):
    Checkpoints(tmp_path, packages={"theirs": "1.0"}).save(0, snapshot_of(0), journal_of(0))
    Checkpoints(tmp_path, packages={"theirs": "1.0"}).load()
    assert not caplog.messages
    again = Checkpoints(tmp_path, packages={"theirs": "1.1"})
    again.load()
    assert caplog.messages == ["the run goes on with other software (theirs 1.0 -> 1.1): the last bits of its results may differ"]
    assert [one["theirs"] for one in again.versions] == ["1.0", "1.1"]


@pytest.mark.parametrize(
    "text",
    [
        b"", b"[]", b"3", b'"x"', b"null", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"format": 3}', b'{"format": 3, "round": 3}',
        b'{"format": 3, "round": 3, "state": 3, "journal": {}}', b'{"format": 3, "round": 3, "state": {"name": "x"}, "journal": {}}',
    ],
)  # fmt: skip
def test_a_pointer_that_is_none_is_damage(tmp_path, text):
    saved(tmp_path, 3)
    (tmp_path / "latest.json").write_bytes(text)
    assert_whole(tmp_path, 2)
    for name in ("latest.json", "previous.json"):
        (tmp_path / name).write_bytes(text)
    for action in (Checkpoints(tmp_path).load, lambda: Checkpoints(tmp_path).save(4, snapshot_of(4), journal_of(4))):
        with pytest.raises(CheckpointLost, match="latest.json is not a checkpoint's pointer"):
            action()


def test_another_format_version_is_named_and_nothing_is_given_up_for_it(tmp_path):
    """Also that of a release whose pointers had no checksum."""
    saved(tmp_path, 3)
    old = {"format": 1, "round": 3, "state": {"name": "state-3.safetensors", "size": 1, "crc32": 1}}
    (tmp_path / "latest.json").write_text(json.dumps(old))
    with pytest.raises(CheckpointError, match="its format version is 1, this code reads 3; resume the run with the release") as error:
        Checkpoints(tmp_path).load()
    assert not isinstance(error.value, CheckpointLost)


@pytest.mark.parametrize("name", LAST)
def test_a_folder_in_the_place_of_a_file_is_damage(tmp_path, name):
    saved(tmp_path, 3)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    if name == "latest.json":
        with pytest.raises(CheckpointError, match=r"cannot be replaced \(Is a directory\)"):
            Checkpoints(tmp_path).load()
    else:
        assert_whole(tmp_path, 2)


@pytest.mark.parametrize("missing", sorted(to_arrays(journal_of(2)).keys() - {"accuracy", "by_class", "diversity"}))
def test_a_journal_with_a_part_missing_is_refused(tmp_path, monkeypatch, missing):
    """A journal of other code: whole, and vouched for, but without a column that this code reads."""
    monkeypatch.setattr(checkpoint, "to_arrays", lambda journal: {k: v for k, v in to_arrays(journal).items() if k != missing})
    saved(tmp_path, 0)
    name = tmp_path / "journal/0.safetensors"
    with pytest.raises(CheckpointError, match=f"checkpoint {name}: it is no journal of this version of the code .* with the release"):
        Checkpoints(tmp_path).load()


# -- links


@pytest.mark.parametrize("name", ["state-2.safetensors", "journal/2.safetensors", "latest.json.new", "previous.json.new"])
@pytest.mark.parametrize("kind", [os.symlink, os.link])
def test_what_a_link_leads_to_is_never_written(tmp_path, name, kind):
    """Where the next checkpoint will write: a link into somebody's work, or a copy of the run made of hard links."""
    (tmp_path / "thesis").write_text("years of work")
    checkpoints = saved(tmp_path / "run", 1)
    kind(tmp_path / "thesis", tmp_path / "run" / name)
    checkpoints.save(2, snapshot_of(2), journal_of(2))
    assert (tmp_path / "thesis").read_text() == "years of work"
    assert_whole(tmp_path / "run", 2)
    (tmp_path / "run" / "state-7.safetensors").symlink_to(tmp_path / "thesis")
    checkpoints.remove()
    assert not (tmp_path / "run").exists() and (tmp_path / "thesis").read_text() == "years of work"


@pytest.mark.parametrize("name", ["", "journal"])
def test_a_link_in_the_place_of_a_folder_is_refused(tmp_path, name):
    theirs = saved(tmp_path / "theirs", 1).folder
    own = saved(tmp_path / "own", 1).folder
    shutil.rmtree(own / name)
    (own / name).symlink_to(theirs / name)
    before = {path: path.read_bytes() for path in theirs.rglob("*.*")}
    for action in (Checkpoints(own).load, Checkpoints(own).remove, lambda: save_round(own, 2)):
        with pytest.raises(ValueError, match=f"{own / name} is a link"):
            action()
    assert {path: path.read_bytes() for path in theirs.rglob("*.*")} == before


# -- what cannot be written


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, 1)

    def full(path, parts):
        Path(path).write_bytes(parts[0])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(array_file, "put", full)
        with pytest.raises(CheckpointError, match=r"round 2 cannot be written .*\(No space left on device\); that of round 1 is whole"):
            checkpoints.save(2, snapshot_of(2), journal_of(2))
        with pytest.raises(CheckpointError, match=r"round 0 cannot be written .*there is none yet"):
            saved(tmp_path / "new", 0)
    assert_whole(tmp_path, 1)
    checkpoints.save(2, snapshot_of(2), journal_of(2))
    assert_whole(tmp_path, 2)


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "run").write_text("")
    for action in (Checkpoints(tmp_path / "run").load, lambda: saved(tmp_path / "run", 0)):
        with pytest.raises(CheckpointError, match="Not a directory"):
            action()
