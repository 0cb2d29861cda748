"""What the size of the roster costs: 100 devices a round out of 1,000, 10,000 and 100,000.

`python -m benchmarks.scale` plays the same rounds with every roster, each in a process of its own and in turn, `--repeats` times: the
`cnn` backbone of the tests on digits, drawn partition, checkpoints and device states on disk as in `sparcl run`, Ray with one worker
per core. Printed are the medians of the repeats: seconds from the start of the process to the first round, seconds per round (median of a
run's rounds), the driver's resident memory after round 10 and at the end, the largest it was, and what a device that has
taken part keeps in the store, shared values included.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROSTERS = (1_000, 10_000, 100_000)
SETTINGS = (
    "stream.partition=drawn", "stream.samples=20", "federation.cohort_size=100", "federation.local_epochs=1", "evaluate_every=0",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description="What the size of the roster costs.")
    parser.add_argument("--rounds", type=int, default=50, help="a multiple of 5, the number of tasks (default: 50)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rosters", type=int, nargs="+", default=ROSTERS)
    parser.add_argument("--one", type=int, help="measure this roster in this process; used by the command itself")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.rounds)))
        return
    found: dict[int, list[dict]] = {roster: [] for roster in options.rosters}
    for _ in range(options.repeats):
        for roster in options.rosters:
            command = [sys.executable, "-m", "benchmarks.scale", "--one", str(roster), "--rounds", str(options.rounds)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr[-3000:])
            found[roster].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{roster:,}: {found[roster][-1]}", file=sys.stderr, flush=True)
    show(found, options.rounds)


def show(found: dict[int, list[dict]], rounds: int) -> None:
    from benchmarks.codec import cpu_model

    repeats = len(next(iter(found.values())))
    print(f"\n{cpu_model()}, {os.cpu_count()} cores; {rounds} rounds of 100 devices, medians of {repeats} runs")
    print(
        f"\n{'devices':>10} {'start s':>8} {'s/round':>8} {'of first':>9} {'MB round 10':>12} {'at end':>7} {'peak':>6} {'kB/device':>10}"
    )
    first = None
    for roster, runs in found.items():
        m = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        first = first or m["round_s"]
        print(
            f"{roster:>10,} {m['start_s']:>8.1f} {m['round_s']:>8.3f} {m['round_s'] / first:>9.3f} {m['early_mb']:>12.0f} "
            f"{m['late_mb']:>7.0f} {m['peak_mb']:>6.0f} {m['store_kb']:>10.1f}"
        )


def measure(roster: int, rounds: int) -> dict:
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", FLWR_TELEMETRY_ENABLED="0")
    began = _process_start()
    from simulations.build import make_world
    from simulations.checkpoints.checkpoint import Checkpoints
    from simulations.config.loading import load
    from simulations.engine.files import open_files
    from simulations.engine.pool import EngineOptions, Pool
    from simulations.engine.store import StateStore
    from simulations.run import Keep, Silent, run_world

    class Watch(Silent):
        def __init__(self):
            self.at, self.mb = [], []

        def round_done(self, record) -> None:
            self.at.append(time.time())
            self.mb.append(_resident_mb())

    pool, watch = Pool(EngineOptions(), warm=("simulations.client_app",)), Watch()
    experiment = load(str(ROOT / "tests" / "tiny.toml"), [*SETTINGS, f"stream.devices={roster}", "stream.tasks=5", "data.train_limit=0",
                                                          f"federation.rounds_per_task={rounds // 5}"])  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        store = StateStore(open_files(f"{folder}/devices"))
        result = run_world(make_world(experiment), observer=watch, keep=Keep(Checkpoints(Path(folder) / "checkpoint"), store), pool=pool)
        took_part = len({row.device for row in result.strategy.ledger.rows})
        size = sum(path.stat().st_size for path in Path(folder, "devices").rglob("*") if path.is_file())
    pool.close()
    between = [after - before for before, after in zip(watch.at[1:], watch.at[2:], strict=False)]
    return {
        "start_s": watch.at[0] - began,
        "round_s": statistics.median(between),
        "early_mb": watch.mb[min(10, len(watch.mb) - 1)],
        "late_mb": watch.mb[-1],
        "peak_mb": max(watch.mb),
        "store_kb": size / took_part / 1000,
        "took_part": took_part,
    }


def _process_start() -> float:
    """Unix time at which this process began."""
    with open("/proc/self/stat") as file:
        ticks = int(file.read().rpartition(")")[2].split()[19])
    with open("/proc/uptime") as file:
        up = float(file.read().split()[0])
    return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")


def _resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
