"""Real signals: the first one ends a command and says what is left, the next ones do not disturb its clean-up, and nothing hangs."""

import os
import signal
import subprocess
import sys
import time

import pytest
from worlds import TINY

# a command that works until it is told to stop, and then cleans up
COMMAND = """
import sys, time
import typer
from simulations.cli import signals
from simulations.cli import messages
signals.PATIENCE_S = {patience}
messages.is_process = True
app = typer.Typer()
def listen_to_nobody():
    while True:
        try: print("cleaning up", flush=True); time.sleep(20)
        except KeyboardInterrupt: pass
@app.command()
def work():
    with messages.one_message(False) as signals:
        try:
            print("working", flush=True)
            time.sleep(60)
        except BaseException as error:
            {again}
            print("cleaning up", flush=True)
            {clean_up}
            error.add_note("it can be resumed")
            raise
app()
"""


def stopped(
    numbers: list[int],
    patience: float = 60.0,
    clean_up: str = "sys.stdin.read()",
    again: str = "pass",
    ignored: tuple[int, ...] = (),
) -> subprocess.CompletedProcess:
    """The first signal comes while it works, the others, 0.1 s apart, while it cleans up, which it does until it has got them all.

    `clean_up`: what it does instead; `again`: what it does before that; `ignored`: come first of all, and it is started so.
    """

    def before() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # whatever those ignore who run the tests
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

    text = COMMAND.format(patience=patience, clean_up=clean_up, again=again)
    with subprocess.Popen([sys.executable, "-c", text], stdin=-1, stdout=-1, stderr=-1, text=True, preexec_fn=before) as process:
        assert process.stdout.readline() == "working\n"
        for number in (*ignored, numbers[0]):
            process.send_signal(number)
        assert process.stdout.readline() == "cleaning up\n"
        for number in numbers[1:]:
            time.sleep(0.1)
            process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    return subprocess.CompletedProcess([], process.returncode, stdout, stderr)


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ([signal.SIGINT], 130),
        ([signal.SIGINT] * 4, 130),
        ([signal.SIGTERM, signal.SIGTERM], 143),
        ([signal.SIGHUP, signal.SIGINT], 129),
        ([signal.SIGINT, signal.SIGTERM], 130),
    ],
)
def test_the_clean_up_is_not_disturbed(numbers, code):
    done = stopped(numbers)
    assert (done.returncode, done.stderr) == (code, "it can be resumed\n")


def test_a_handler_that_somebody_sets_meanwhile_is_taken_over_again():
    """As Ray does with SIGTERM while it starts."""
    done = stopped([signal.SIGINT, signal.SIGTERM], again="import signal; signal.signal(signal.SIGTERM, signal.SIG_DFL); signals.arm()")
    assert (done.returncode, done.stderr) == (130, "it can be resumed\n")


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ([signal.SIGINT, signal.SIGINT], 130),  # the clean-up is interrupted, and what was noted is told
        ([signal.SIGINT, signal.SIGTERM], -signal.SIGTERM),
    ],
)
def test_a_clean_up_that_hangs_can_be_ended(numbers, code):
    assert stopped(numbers, patience=0.05, clean_up="time.sleep(50)").returncode == code


def test_the_third_signal_ends_what_does_not_listen():
    assert stopped([signal.SIGINT] * 3, patience=0.05, again="listen_to_nobody()").returncode == -signal.SIGINT


def test_what_the_process_was_started_to_ignore_stays_ignored():
    """`nohup sparcl run` goes on when its terminal is closed."""
    assert stopped([signal.SIGINT], ignored=(signal.SIGHUP,)).returncode == 130


@pytest.mark.skipif(not hasattr(os, "setsid"), reason="POSIX")
def test_a_run_that_is_interrupted_three_times_can_be_resumed(tmp_path):
    """So many rounds that the last one is far away, however late the signals come."""
    command = [sys.executable, "-m", "simulations", "run", str(TINY), "--engine", "inline", "--out", str(tmp_path)]
    command += ["--set", "federation.rounds_per_task=400"]
    folder = tmp_path / "tiny-rounds_per_task400-seed0"
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as process:
        while not process.stdout.readline().startswith("round 2/"):
            assert process.poll() is None
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            time.sleep(0.002)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and f"`sparcl resume {folder}` goes on from there" in stderr
    assert (folder / "run.json").exists() and "Traceback" not in stderr
