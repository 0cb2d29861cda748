"""The real command on Ray: however it ends, no process of it stays behind; and what was interrupted is resumed to the same bits."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from worlds import TINY

from simulations.engine import cluster

MARK = "SPARCL_TEST_RUN"
LONG = ("--set", "federation.rounds_per_task=16")  # so that rounds are left, however late a signal comes
COMPARED = ("model.safetensors", "ledger.parquet", "rounds.parquet", "accuracy.parquet", "summary.json")


def processes_of(mark: str) -> list[int]:
    """All processes that have inherited the mark, whoever their parent is now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def assert_nothing_stays(mark: str, patience_s: float = 240.0) -> None:
    """Daemons that are told to end need a moment; Ray's agents, when their driver was killed while they were starting, a minute or two."""
    give_up = time.monotonic() + patience_s
    while (left := processes_of(mark)) and time.monotonic() < give_up:
        time.sleep(0.1)
    for process in left:
        os.kill(process, signal.SIGKILL)
    assert left == []


def sparcl(mark: str, *arguments, stop: tuple[int, int] | None = None) -> subprocess.CompletedProcess:
    """Run a command, with Python's own handling of Ctrl-C. `stop`: a signal, and the round behind whose line it is sent."""
    run = subprocess.Popen(
        [sys.executable, "-m", "simulations", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=TINY.parents[1], env=os.environ | {MARK: mark, cluster.OURS: mark},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    said = []
    for line in run.stdout:
        said.append(line)
        if stop and line.startswith(f"round {stop[1]}/"):
            assert processes_of(mark) != []  # else the count at the end would prove nothing
            for _ in range(3 if stop[0] == signal.SIGINT else 1):  # people press Ctrl-C more than once
                run.send_signal(stop[0])
                time.sleep(0.05)
            stop = None
    return subprocess.CompletedProcess(run.args, run.wait(), "".join(said), run.stderr.read())


@pytest.mark.ray
@pytest.mark.rare  # Ray's agents may need two minutes until they notice that their driver was killed
def test_a_run_that_is_killed_and_interrupted_is_resumed_to_the_same_bits(tmp_path):
    mark, name = secrets.token_hex(8), "tiny-rounds_per_task16-seed0"
    folder, inline = tmp_path / "ray" / name, tmp_path / "inline" / name
    done = sparcl(mark, "run", TINY, *LONG, "--out", tmp_path / "ray", stop=(signal.SIGKILL, 2))
    assert done.returncode == -signal.SIGKILL
    assert_nothing_stays(mark)
    assert (folder / "run.json").exists()

    done = sparcl(mark, "resume", folder, "--workers", 1, stop=(signal.SIGINT, 5))
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr and f"`sparcl resume {folder}` goes on from there" in done.stderr.replace("\n", "")
    assert_nothing_stays(mark)

    done = sparcl(mark, "resume", folder)
    assert done.returncode == 0, done.stderr
    assert "going on after round" in done.stdout
    assert_nothing_stays(mark)

    assert sparcl(mark, "run", TINY, *LONG, "--engine", "inline", "--out", tmp_path / "inline").returncode == 0
    for file in COMPARED:
        assert (folder / file).read_bytes() == (inline / file).read_bytes(), file
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in inline.iterdir())


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--set", "learner.lrr=1"), "did you mean 'learner.lr'?"),
        (("--workers", "4096"), "workers is 4096, but this machine has"),
        (("--store", "/proc/nowhere"), "device states cannot be kept in /proc/nowhere"),
        (("--ray-address", "127.0.0.1:1"), "nothing answers there"),
    ],
    ids=["setting", "workers", "store", "address"],
)
def test_bad_input_leaves_nothing(tmp_path, arguments, parts):
    mark = secrets.token_hex(8)
    done = sparcl(mark, "run", TINY, "--out", tmp_path, *arguments)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and parts in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert_nothing_stays(mark)
    assert list(tmp_path.rglob("*")) == []
