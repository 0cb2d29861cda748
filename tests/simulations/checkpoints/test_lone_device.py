"""A single device's run that is interrupted: kept behind every session, gone on with to the bit, and never from what is not its own."""

import json
import shutil
from dataclasses import replace

import pytest
from tiny_learning import ANYWHERE, assert_same, needs
from worlds import tiny

from simulations.checkpoints.lone_device import FILES, LonePoint
from simulations.config.errors import ConfigError
from simulations.single_device import train_one


class Stopped(Exception):
    """Raised by an observer, as a Ctrl-C would be."""


def stop_behind(task: int, session: int):
    def observe(progress, accuracy):
        if (progress.task, progress.session) == (task, session):
            raise Stopped

    return observe


def seen(found: list):
    return lambda progress, accuracy: found.append((progress.task, progress.session, accuracy is not None))


@pytest.fixture(scope="module")
def whole():
    """An experiment, its result without interruption, and the sessions that were seen."""
    sessions = []
    experiment = tiny()
    return experiment, train_one(experiment, seen(sessions)), sessions


@pytest.mark.parametrize("place", [0, 1, -2, -1])
def test_it_goes_on_behind_any_session_to_the_bit(whole, tmp_path, place):
    experiment, wanted, sessions = whole
    task, session, _ = sessions[place]
    with LonePoint(tmp_path / "kept", experiment) as point, pytest.raises(Stopped):
        train_one(experiment, stop_behind(task, session), point)
    later = []
    with LonePoint(tmp_path / "kept", experiment) as point:
        found = train_one(experiment, seen(later), point)
        point.remove()
    assert later == sessions[place % len(sessions) + 1 :]
    for name in ("accuracy", "untrained"):
        assert getattr(found, name).tobytes() == getattr(wanted, name).tobytes()
    assert_same(
        {"p": found.progress, "cost": found.cost, "dense": found.dense_cost},
        {"p": wanted.progress, "cost": wanted.cost, "dense": wanted.dense_cost},
    )
    assert found.peak_memory == wanted.peak_memory
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("method", sorted(ANYWHERE))
def test_so_does_every_method(tmp_path, method):
    same_when_stopped(tiny(f"learner.method={method}", "stream.tasks=2", *needs(method)), tmp_path)


def test_and_every_way_to_change_masks(tmp_path):
    for scheme in ("set", "rigl"):
        settings = (f"masks.scheme={scheme}", "masks.initial=snip", "masks.densities=erk", "masks.stage_epochs=1", "stream.tasks=2")
        same_when_stopped(tiny(*settings), tmp_path / scheme)


def same_when_stopped(experiment, tmp_path):
    wanted, kept = train_one(experiment, lambda *told: None), tmp_path / "kept"
    for _ in range(3):  # stopped behind each session in turn, as often as there are some
        with LonePoint(kept, experiment) as point, pytest.raises(Stopped):
            train_one(experiment, lambda *told: (_ for _ in ()).throw(Stopped), point)
    with LonePoint(kept, experiment) as point:
        found = train_one(experiment, lambda *told: None, point)
    assert_same({"p": found.progress}, {"p": wanted.progress})
    assert found.accuracy.tobytes() == wanted.accuracy.tobytes() and found.cost == wanted.cost


def interrupted(experiment, folder):
    with LonePoint(folder, experiment) as point, pytest.raises(Stopped):
        train_one(experiment, stop_behind(0, 1), point)


def damage(name: str, change):
    def apply(folder):
        path = folder / name if name != "arrays" else folder / json.loads((folder / "point.json").read_text())["file"]["name"]
        path.write_bytes(change(path.read_bytes()))

    return apply


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (damage("point.json", lambda data: data[:40]), "point.json is not gone on with"),
        (damage("arrays", lambda data: data[:-1]), "truncated"),
        (damage("arrays", lambda data: data[:-1] + bytes([data[-1] ^ 1])), "checksum"),
        (lambda folder: (folder / "point-0.safetensors").unlink() or (folder / "point-1.safetensors").unlink(), "No such file"),
        (damage("point.json", lambda data: data.replace(b'"python": "3', b'"python": "2')), "other versions of the software"),
        (damage("point.json", lambda data: data.replace(b'"format": 1', b'"format": 9')), "other settings, or was made by other versions"),
    ],
    ids=["pointer cut", "file cut", "bit rot", "files gone", "other software", "other format"],
)
def test_what_is_damaged_is_not_gone_on_with_and_says_so(tmp_path, caplog, spoil, says):
    experiment = tiny("stream.tasks=1")
    interrupted(experiment, tmp_path / "kept")
    spoil(tmp_path / "kept")
    with LonePoint(tmp_path / "kept", experiment) as point:
        assert point.load() is None
    assert "begins anew" in caplog.text and says in caplog.text


def test_what_is_of_other_settings_is_not_gone_on_with(tmp_path, caplog):
    interrupted(tiny("stream.tasks=1"), tmp_path / "kept")
    with LonePoint(tmp_path / "kept", tiny("stream.tasks=1", "seed=1")) as point:
        assert point.load() is None
    assert "of other settings" in caplog.text


def test_a_kill_while_it_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    experiment, kept = tiny("stream.tasks=1"), tmp_path / "kept"
    interrupted(experiment, kept)
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    monkeypatch.setattr("simulations.checkpoints.lone_device.os.replace", lambda *paths: (_ for _ in ()).throw(Stopped))
    with LonePoint(kept, experiment) as point:
        with pytest.raises(Stopped):
            train_one(experiment, lambda *told: None, point)
        assert (kept / "point.json").read_bytes() == before["point.json"]
        assert point.load().progress.session == 1


def test_two_processes_are_not_at_work_on_one_run(tmp_path):
    experiment = tiny("stream.tasks=1")
    with LonePoint(tmp_path / "kept", experiment), pytest.raises(ConfigError, match="another process is at work on this run"):
        LonePoint(tmp_path / "kept", experiment).__enter__()
    with LonePoint(tmp_path / "kept", experiment):
        pass
    assert not (tmp_path / "kept").exists()  # nothing was kept


def test_only_files_of_ours_are_deleted(tmp_path):
    experiment, kept = tiny("stream.tasks=1"), tmp_path / "kept"
    interrupted(experiment, kept)
    (kept / "notes.txt").write_text("mine")
    with LonePoint(kept, experiment) as point:
        point.remove()
    assert [path.name for path in kept.iterdir()] == ["notes.txt"] and not {"notes.txt"} & set(FILES)
    shutil.rmtree(kept)


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"), LonePoint(tmp_path / "file" / "kept", tiny()):
        pass


def test_a_run_that_was_begun_with_other_data_is_told_of(whole, tmp_path, caplog):
    """It begins anew, and what was kept stays, as the files may be put back; a run of other settings is none of it."""
    experiment, _, _ = whole
    with LonePoint(tmp_path / ".before", experiment) as point, pytest.raises(Stopped):
        train_one(experiment, stop_behind(0, 1), point)
    changed = replace(experiment, data=replace(experiment.data, sha256=64 * "0"))
    for another, told in ((changed, True), (replace(changed, seed=1), False)):
        caplog.clear()
        with LonePoint(tmp_path / ".now", another) as point:
            assert point.load() is None
        assert (f"{tmp_path / '.before'} is of this run with other data" in caplog.text) == told
    with LonePoint(tmp_path / ".before", experiment) as point:
        assert point.load().progress.session == 1
