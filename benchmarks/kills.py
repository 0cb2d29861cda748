"""Is a run that was killed at any instant resumed to the same bytes?

`python -m benchmarks.kills --kills 40` plays the experiment of the tests once undisturbed, on the inline engine, with its results and its
report as `sparcl run` writes them. Then, once per kill: a driver process of its own begins the same run, gets a SIGKILL at an instant drawn
uniformly over the time that the first one took, and another process resumes what it has left (or begins again where there is nothing yet to
resume). The folder must hold the same files, and all that a repeated run repeats must be the same to the byte. Printed are, per kill, the
instant and what the run was doing; then how many were equal. Exit code 1 if one was not.

The driver processes are forked from one that has imported everything, so that kills fall into the run and not into Python's start.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
MEASURED = ("environment.json", "wall.parquet", "report.png")  # seconds, and a picture with them; that they are there is looked at


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description="Kills, resumes, compares.")
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    parser.add_argument("--rounds", type=int, default=12, help="of each of the two tasks (default: 12)")
    options = parser.parse_args()

    import matplotlib.pyplot  # noqa: F401  (all that a driver imports)

    import simulations.results.plot
    import simulations.results.resumable  # noqa: F401
    from sparcl_core.seeding import generator

    with tempfile.TemporaryDirectory(prefix="sparcl-kills-") as place:
        began = time.perf_counter()
        ended(begin(Path(place, "whole"), options.rounds))
        whole, takes = only_folder(Path(place, "whole")), time.perf_counter() - began
        print(f"undisturbed: {takes:.1f} s", flush=True)
        instants = generator(options.seed, "kills").uniform(0.0, takes, options.kills)
        counts: Counter[tuple[str, bool]] = Counter()
        for number, instant in enumerate(instants):
            out = Path(place, str(number))
            phase = killed(out, options.rounds, float(instant))
            ended(begin(out, options.rounds))
            is_equal = same(only_folder(out), whole)
            counts[phase.partition(" (")[0], is_equal] += 1
            print(f"{number + 1:>3}  {instant:6.2f} s  {phase}: {'equal' if is_equal else 'NOT EQUAL'}", flush=True)
    equal = sum(count for (_, is_equal), count in counts.items() if is_equal)
    print(f"\n{equal} of {options.kills} equal")
    for phase in dict.fromkeys(phase for phase, _ in counts):
        print(f"  {phase}: {counts[phase, True]} of {counts[phase, True] + counts[phase, False]}")
    sys.exit(equal < options.kills)


def begin(out: Path, rounds: int) -> int:
    """A driver process, forked: it goes on with what it finds in `out`, or begins. Returns its id."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    try:
        os.dup2(os.open(out.with_name(f"{out.name}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        drive(out, rounds)
        sys.stdout.flush()
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    os._exit(1)


def drive(out: Path, rounds: int) -> None:
    """As `sparcl run` and `sparcl resume` do."""
    from simulations.cli.carrying_out import carry_out
    from simulations.config.loading import load
    from simulations.results.control_file import How
    from simulations.results.resumable import new_run, open_run

    left = [folder for folder in sorted(out.glob("*")) if (folder / "config.toml").exists()]
    if left and not any((left[0] / name).exists() for name in ("run.json", "whole.json")):
        return  # it was finished
    experiment = load(str(ROOT / "tests" / "tiny.toml"), [f"federation.rounds_per_task={rounds}"])
    with open_run(left[0]) if left else new_run(out, experiment, How("inline", baseline=False)) as run:
        carry_out(run, None)


def killed(out: Path, rounds: int, instant: float) -> str:
    """Begin, kill after `instant` seconds. Returns what the run was doing."""
    process = begin(out, rounds)
    time.sleep(instant)
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    if not os.WIFSIGNALED(status):
        ended(process, status)
        return "it was done already"
    return phase_of(out)


def phase_of(out: Path) -> str:
    """By what lies in the folder."""
    from simulations.checkpoints.checkpoint import Checkpoints
    from simulations.checkpoints.pointer import Identity, Pointer

    folders = [folder for folder in out.glob("*") if (folder / "config.toml").exists()]
    if not folders:
        return "before the folder was whole"
    if (folders[0] / "whole.json").exists():
        return "while it cleaned up"
    if not (folders[0] / "run.json").exists():
        return "it was done already"
    if (folders[0] / "accuracy.parquet").exists() or (folders[0] / "environment.json").exists():
        return "while results were written"
    checkpoints = Checkpoints(folders[0] / "checkpoint" / "run")
    if not checkpoints.is_begun:
        return "before the first checkpoint"
    of = Identity(**json.loads((checkpoints.folder / "latest.json").read_text())["of"])
    done = Pointer.read(checkpoints.folder / "latest.json", of).round
    beyond = [f"journal/{done + 1}.safetensors", f"state-{done + 1}.safetensors", "latest.json.new"]
    if any((checkpoints.folder / name).exists() for name in beyond):
        return f"in a checkpoint (of round {done + 1})"
    return f"in a round (round {done + 1})"


def ended(process: int, status: int | None = None) -> None:
    """The process must have ended well."""
    if status is None:
        _, status = os.waitpid(process, 0)
    if status:
        logs = sorted(Path(tempfile.gettempdir()).glob("sparcl-kills-*/*.log"), key=lambda path: path.stat().st_mtime)
        sys.exit(f"a driver ended with {os.waitstatus_to_exitcode(status)}:\n{logs[-1].read_text()[-3000:] if logs else ''}")


def only_folder(out: Path) -> Path:
    """The run's; one that was killed before it had a config.toml is none."""
    (folder,) = (folder for folder in out.glob("*") if (folder / "summary.json").exists())
    return folder


def same(folder: Path, whole: Path) -> bool:
    names = sorted(path.name for path in whole.iterdir())
    if sorted(path.name for path in folder.iterdir()) != names:
        return False
    return all((folder / name).read_bytes() == (whole / name).read_bytes() for name in names if name not in MEASURED)


if __name__ == "__main__":
    main()
