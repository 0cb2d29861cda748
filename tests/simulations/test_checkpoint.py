"""Checkpoints: whatever instant the process dies at, one whole round is found; what is damaged is refused, and never guessed."""

import io
import json
import os
import shutil
import signal
import time
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from worlds import assert_same_arrays

from server.app import RoundRecord
from server.ledger import Row
from server.masking import Diversity
from simulations import arrayfile, checkpoint
from simulations.checkpoint import CheckpointError, Checkpoints
from simulations.engine.states import StateChanges
from simulations.journal import Journal, from_arrays, to_arrays

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
    found = (accuracy, Diversity(0.1, 0.2) if round_ else None, by_class, 0.1 * round_)
    record = RoundRecord(round_, 2, round_ % 3 == 0, devices, 2**40 + round_, *found)
    blobs = [("ab" * 16, f"{device:032x}")[: device % 3] for device in range(devices)]
    changes = StateChanges(np.arange(devices) * 5, np.full(devices, 2**33 + round_), blobs)
    return Journal(record, rows, [(round_, device, 0.1 * device, 0.01 * device) for device in range(devices)], changes, 2 * round_)


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
    return {
        "record": {**{field.name: getattr(record, field.name) for field in fields(record)}, **bits, "time": record.time.hex()},
        "rows": rows,
        "wall_s": journal.wall_s,
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
        "round", "task", "ends_task", "num_devices", "num_samples", "accuracy", "diversity", "by_class", "time",
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
    assert {type(value) for value in (*journal.wall_s[0][:2], journal.exchange, journal.record.num_samples)} == {int}
    assert journal.record.ends_task is True


@pytest.mark.parametrize("name", ["changes/counts", "changes/devices", "rows/round", "wall/seconds"])
def test_arrays_that_do_not_fit_each_other_are_no_journal(name):
    arrays = to_arrays(journal_of(2))
    with pytest.raises(ValueError):
        from_arrays(arrays | {name: np.append(arrays[name], 1)})


def test_without_a_checkpoint_there_is_none(tmp_path):
    assert Checkpoints(tmp_path / "nowhere").load() is None
    saved(tmp_path, 1)
    (tmp_path / "latest.json").unlink()
    assert Checkpoints(tmp_path).load() is None


def test_a_checkpoint_touches_its_own_files_only(tmp_path):
    """So that the hundredth costs what the first did: one snapshot, one journal, the pointer."""
    checkpoints = saved(tmp_path, 3)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    time.sleep(0.01)
    checkpoints.save(4, snapshot_of(4), journal_of(4))
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    changed = {str(path.relative_to(tmp_path)) for path in after if before.get(path) != after[path]}
    assert changed == {"latest.json", "state-4.safetensors", "journal/4.safetensors"}
    assert {str(path.relative_to(tmp_path)) for path in before.keys() - after.keys()} == {"state-3.safetensors"}


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
    checkpoints.remove()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine"]
    assert checkpoints.load() is None
    checkpoints.save(0, snapshot_of(0), journal_of(0))
    assert_whole(tmp_path / "run", 0)
    (tmp_path / "run" / "mine").unlink()
    (tmp_path / "run" / "latest.json.new").write_text("of a process that died")
    checkpoints.remove()
    checkpoints.remove()
    assert not (tmp_path / "run").exists()


# -- death at any instant


class _Killed(BaseException):
    """As a SIGKILL: nothing catches it."""


class Mortal:
    """Lets `left` file operations pass; the next one never happens, or only half of it where it is a write."""

    def __init__(self, monkeypatch, left: int):
        self.left = left
        monkeypatch.setattr(arrayfile, "open", self._open, raising=False)
        for holder, name in ((os, "replace"), (Path, "unlink"), (Path, "mkdir"), (Path, "rmdir")):
            monkeypatch.setattr(holder, name, self._mortal(getattr(holder, name)))

    def step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise _Killed

    def _mortal(self, operation):
        def inner(*args, **kwargs):
            self.step()
            return operation(*args, **kwargs)

        return inner

    def _open(self, path, mode):
        self.step()
        file = io.FileIO(path, mode)

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


def dies(monkeypatch, after: int, action) -> bool:
    """Does `action` die when `after` operations have passed?"""
    with monkeypatch.context() as patch:
        mortal = Mortal(patch, after)
        try:
            action()
        except _Killed:
            return True
        assert mortal.left >= 0
        return False


def test_death_after_every_file_operation_of_the_first_checkpoint(tmp_path, monkeypatch):
    for after in range(100):
        folder = tmp_path / str(after)
        died = dies(monkeypatch, after, lambda folder=folder: saved(folder, 0))
        found = Checkpoints(folder).load()
        if found is None:
            saved(folder, 0)
        assert_whole(folder, 0)
        if not died:
            break
    assert after > 5


OPERATIONS = 9  # of a checkpoint: the folder, three files opened and written, the pointer moved, the old state deleted


@pytest.mark.parametrize("first", range(OPERATIONS + 1))
def test_death_after_every_file_operation(tmp_path, monkeypatch, first):
    """Of the process that saves round 2, and of the one that goes on from what it left: early and late."""
    saved(tmp_path / "base", 1)
    for second in (first, OPERATIONS - first):
        folder, last = tmp_path / str(second), 1
        shutil.copytree(tmp_path / "base", folder, dirs_exist_ok=True)
        for after in (first, second):
            assert dies(monkeypatch, after, partial(save_round, folder, last + 1)) == (after < OPERATIONS)
            last += after >= OPERATIONS - 1  # the pointer was moved
            assert_whole(folder, last)
        save_round(folder, last + 1)
        assert_whole(folder, last + 1)
        assert [path.name for path in folder.glob("state-*")] == [f"state-{last + 1}.safetensors"]


def save_round(folder: Path, number: int) -> None:
    """By a process of its own."""
    Checkpoints(folder).save(number, snapshot_of(number), journal_of(number))


def test_death_while_the_checkpoint_is_removed(tmp_path, monkeypatch):
    for after in range(100):
        folder = tmp_path / str(after)
        saved(folder, 1)
        died = dies(monkeypatch, after, Checkpoints(folder).remove)
        if after:
            assert Checkpoints(folder).load() is None
        else:
            assert_whole(folder, 1)
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

FILES = ("latest.json", "state-3.safetensors", "journal/3.safetensors", "journal/1.safetensors", "journal/0.safetensors")


def assert_refused(folder: Path, name: str, what: str = "") -> None:
    way_out = f"remove {folder} and start afresh|resume the run with the release"
    with pytest.raises(CheckpointError, match=rf"checkpoint {folder / name}: .*{what}.*({way_out})"):
        Checkpoints(folder).load()


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_refused(tmp_path, name):
    saved(tmp_path, 3)
    data = (tmp_path / name).read_bytes()
    for length in (0, 1, 7, 8, 9, len(data) // 2, len(data) - 2):  # the last byte of the pointer is a line feed
        (tmp_path / name).write_bytes(data[:length])
        assert_refused(tmp_path, name, "not a checkpoint's pointer" if name == "latest.json" else f"{length} bytes, not {len(data)}")
    (tmp_path / name).write_bytes(data)
    assert_whole(tmp_path, 3)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_damaged_file_is_refused(tmp_path, name):
    saved(tmp_path, 3)
    data = (tmp_path / name).read_bytes()
    for place in (0, 8, 20, len(data) // 2, len(data) - 1):
        (tmp_path / name).write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        assert_refused(tmp_path, name)
    (tmp_path / name).write_bytes(data + b"\0")
    assert_refused(tmp_path, name)


def test_a_pointer_with_a_flipped_bit_is_refused_or_says_the_same(tmp_path):
    """Whatever bit it is: white space may become other white space."""
    saved(tmp_path, 3)
    data = (tmp_path / "latest.json").read_bytes()
    for place in range(len(data)):
        for bit in (1, 16):
            (tmp_path / "latest.json").write_bytes(data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :])
            try:
                assert_whole(tmp_path, 3)
            except CheckpointError as error:
                assert str(tmp_path) in str(error)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_missing_file_is_refused(tmp_path, name):
    saved(tmp_path, 3)
    (tmp_path / name).unlink()
    assert_refused(tmp_path, name)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_file_of_another_run_is_refused(tmp_path, name):
    """Whole in itself, of the same round, and of the same length."""
    saved(tmp_path, 3)
    other = Checkpoints(tmp_path / "other")
    for number in range(4):
        snapshot = snapshot_of(number)
        snapshot["weights/count"] += 1
        other.save(number, snapshot, replace(journal_of(number), exchange=99))
    shutil.copy(tmp_path / "other" / name, tmp_path / name)
    assert_refused(tmp_path, name)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"[]", b"3", b'"x"', b"null", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"format": 1}', b'{"format": 1, "round": 3}',
        b'{"format": 1, "round": 3, "state": 3, "journal": {}}', b'{"format": 1, "round": 3, "state": {"name": "x"}, "journal": {}}',
    ],
)  # fmt: skip
def test_a_pointer_that_is_none_is_refused(tmp_path, text):
    saved(tmp_path, 3)
    (tmp_path / "latest.json").write_bytes(text)
    assert_refused(tmp_path, "latest.json")
    with pytest.raises(CheckpointError, match="latest.json"):
        Checkpoints(tmp_path).save(4, snapshot_of(4), journal_of(4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "its format version is 2, this code reads 1; resume the run with the release"),
        ({"format": "1"}, "its format version is '1'"),
        ({"round": 2}, r"it names \('state-3.safetensors', 'journal/3.safetensors'\) for round 2"),
        ({"round": -1}, "not counts"),
        ({"round": 3.0}, "not counts"),
        ({"round": True}, "not counts"),
        ({"state": {"name": "../x", "size": 1, "crc32": 1}}, "it names .'../x'"),
        ({"state": {"name": "state-3.safetensors", "size": "1", "crc32": 1}}, "not counts"),
        ({"state": {"name": "state-3.safetensors", "size": 1, "crc32": 1, "more": 1}}, "not a checkpoint's pointer"),
    ],
)
def test_a_pointer_with_another_content_is_refused(tmp_path, change, message):
    saved(tmp_path, 3)
    path = tmp_path / "latest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        Checkpoints(tmp_path).load()


@pytest.mark.parametrize("name", FILES[:3])
def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path, name):
    saved(tmp_path, 3)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    assert_refused(tmp_path, name)


@pytest.mark.parametrize("missing", sorted(to_arrays(journal_of(2)).keys() - {"accuracy", "by_class", "diversity"}))
def test_a_journal_with_a_part_missing_is_refused(tmp_path, monkeypatch, missing):
    """A journal of other code: whole, and vouched for, but without a column that this code reads."""
    monkeypatch.setattr(checkpoint, "to_arrays", lambda journal: {k: v for k, v in to_arrays(journal).items() if k != missing})
    saved(tmp_path, 0)
    assert_refused(tmp_path, "journal/0.safetensors")


# -- what cannot be written


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, 1)

    def full(path, parts):
        path.write_bytes(parts[0])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(arrayfile, "write_parts", full)
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
