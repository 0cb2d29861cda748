"""Ray's own start: tried again where a busy machine was too slow, in a short folder where its sockets need one."""

import logging
import os
import subprocess
from pathlib import Path

import pytest
import ray

from simulations.engine import cluster
from simulations.engine.adapter import EngineError

LATE = "The current node timed out during startup. This could happen because the GCS has become overloaded."


@pytest.fixture
def half_started(monkeypatch):
    """Every start leaves a process behind and fails with the next of these errors; without one left, it succeeds."""
    errors, processes = [], []

    def start(**settings) -> None:
        assert settings["address"] == "local" and all(process.poll() is not None for process in processes)
        if errors:
            processes.append(subprocess.Popen(["sleep", "1000"]))  # it inherits the mark
            raise errors.pop(0)

    monkeypatch.setattr(ray, "init", start)
    yield errors, processes
    cluster.stop_ray()
    assert all(process.wait(timeout=10) for process in processes)


def wait_for_end(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.wait(timeout=10)


def test_a_start_that_was_too_slow_is_tried_again_and_said(half_started, monkeypatch, caplog):
    errors, processes = half_started
    errors += [Exception(LATE), TimeoutError("no answer")]
    end = cluster._end_marked
    monkeypatch.setattr(cluster, "_end_marked", lambda: (end(), wait_for_end(processes)))
    with caplog.at_level(logging.WARNING):
        cluster.start_ray(2)
    expected = [f"Ray has not started in time, as on a machine that is busy: tried again ({left} more)" for left in (2, 1)]
    assert [record.getMessage() for record in caplog.records] == expected and len(processes) == 2


@pytest.mark.parametrize(("said", "starts"), [(LATE, 3), ("no\nsuch \ud800device", 1)])
def test_a_start_that_fails_for_good_ends_with_one_message(half_started, monkeypatch, said, starts):
    errors, processes = half_started
    errors += [Exception(said)] * 5
    end = cluster._end_marked
    monkeypatch.setattr(cluster, "_end_marked", lambda: (end(), wait_for_end(processes)))
    with pytest.raises(EngineError) as caught:
        cluster.start_ray(2)
    text = str(caught.value)
    assert text.startswith("Ray cannot start: ") and text.endswith("; '--engine inline' runs without it") and text.isprintable()
    assert len(processes) == starts


@pytest.mark.parametrize(("set_by_user", "expected"), [(None, "16000000"), ("0", "0")])
def test_the_logs_of_workers_are_bounded_unless_the_user_says_otherwise(half_started, monkeypatch, set_by_user, expected):
    for name in cluster.LOGS:
        monkeypatch.delenv(name, raising=False)
    if set_by_user:
        monkeypatch.setenv("RAY_ROTATION_MAX_BYTES", set_by_user)
    cluster.start_ray(1)
    assert os.environ["RAY_ROTATION_MAX_BYTES"] == expected and os.environ["RAY_ROTATION_BACKUP_COUNT"] == "1"


def long_folder(parent: Path) -> Path:
    folder = parent / ("x" * (90 - len(str(parent))) if len(str(parent)) < 80 else "x" * 20)
    folder.mkdir()
    return folder


@pytest.mark.ray
def test_ray_starts_whatever_the_length_of_tmpdir(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(long_folder(tmp_path)))
    cluster.start_ray(1)
    (folder,) = cluster._folders
    assert Path(ray._private.worker._global_node.get_session_dir_path()).is_relative_to(folder)
    assert os.stat(folder).st_mode & 0o077 == 0
    assert ray.get(ray.remote(num_cpus=1)(lambda: os.getpid()).remote()) != os.getpid()
    cluster.stop_ray()
    assert not Path(folder).exists() and cluster._folders == []


def test_where_no_folder_is_short_enough_tmpdir_is_named_before_ray_starts(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(long_folder(tmp_path)))
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was started"))
    with pytest.raises(EngineError, match="set TMPDIR .* to a folder with a shorter name"):
        cluster.start_ray(1)


@pytest.mark.parametrize("length", [20, 36, 37, 60])
def test_the_default_stays_where_its_sockets_fit(monkeypatch, length):
    """As Ray itself counts: it refuses a path of more than 107 bytes."""
    from ray._private.utils import validate_socket_filepath

    monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * (length - 1))
    made = cluster._folder()
    path = f"/{'x' * (length - 1)}/ray{cluster.SOCKET}"
    if made is None:
        validate_socket_filepath(path)
    else:
        with pytest.raises(OSError):
            validate_socket_filepath(path)
        os.rmdir(cluster._folders.pop())
