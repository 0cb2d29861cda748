"""What it costs that a round survives a power cut: the time of its flushes (fsync), of device states and of the checkpoint.

`python -m benchmarks.durability` plays rounds of 10 and of 100 devices, the `cnn` backbone of the tests on digits on the inline engine, in
a folder under `--out` (the disk that counts: a run's own). Printed are, per number of devices, the medians over the rounds of a round's
seconds, of its flushes, of the files and folders that were flushed, and of what as many flushes take one after another instead of together,
for the disk as it is that moment; and the largest of a round's flushes.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

DEVICES = (10, 100)
ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.durability", description="What flushing costs per round.")
    parser.add_argument("--rounds", type=int, default=20, help="of each run (default: 20)")
    parser.add_argument("--devices", type=int, nargs="+", default=DEVICES)
    parser.add_argument("--out", type=Path, default=Path("runs"), help="the folder whose disk is measured (default: runs)")
    options = parser.parse_args()

    from benchmarks.codec import cpu_model

    options.out.mkdir(parents=True, exist_ok=True)
    print(f"{cpu_model()}, {os.cpu_count()} cores; medians of {options.rounds} rounds, inline engine")
    print(f"\n{'devices':>8} {'s/round':>8} {'flushes ms':>11} {'largest':>8} {'share %':>8} {'files':>6} {'one by one ms':>14}")
    for devices in options.devices:
        with tempfile.TemporaryDirectory(prefix="durability-", dir=options.out) as folder:
            show(devices, measure(Path(folder), devices, options.rounds))


def show(devices: int, rounds: list[dict]) -> None:
    middle = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
    print(
        f"{devices:>8} {middle['round_s']:>8.3f} {1000 * middle['flush_s']:>11.1f} {1000 * max(one['flush_s'] for one in rounds):>8.1f} "
        f"{100 * middle['flush_s'] / middle['round_s']:>8.1f} {middle['files']:>6.0f} {1000 * middle['alone_s']:>14.1f}",
        flush=True,
    )


def measure(folder: Path, devices: int, rounds: int) -> list[dict]:
    """One entry per round behind the first two."""
    from simulations import disk
    from simulations.build import make_world
    from simulations.checkpoints import checkpoint
    from simulations.checkpoints.checkpoint import Checkpoints
    from simulations.config.loading import load
    from simulations.engine import files
    from simulations.engine.store import StateStore
    from simulations.run import Keep, Silent, run_world

    true, entry, found, began = disk.flush, {"flush_s": 0.0, "files": 0, "alone_s": 0.0}, [], time.perf_counter()

    def flush(paths) -> None:
        paths = list(paths)
        started = time.perf_counter()
        true(paths)
        entry["flush_s"] += time.perf_counter() - started
        entry["files"] += len(paths)

    class Watch(Silent):
        def round_done(self, record) -> None:
            nonlocal began
            now = time.perf_counter()
            entry["round_s"] = now - began
            entry["alone_s"] = one_by_one(folder, entry["files"])
            found.append(dict(entry))
            entry.update(flush_s=0.0, files=0, alone_s=0.0)
            began = time.perf_counter()

    settings = [
        "stream.partition=drawn", "stream.samples=20", f"stream.devices={devices}", "stream.tasks=1", "data.train_limit=0",
        "federation.local_epochs=1", "evaluate_every=0", f"federation.rounds_per_task={rounds + 1}", "ddr.enabled=false",
        "tdm.enabled=false",
    ]  # fmt: skip
    world = make_world(load(str(ROOT / "tests" / "tiny.toml"), settings))
    keep = Keep(Checkpoints(folder / "checkpoint"), StateStore(files.open_files(str(folder / "devices"))))
    checkpoint.flush = files.flush = flush
    try:
        run_world(world, "inline", observer=Watch(), keep=keep)
    finally:
        checkpoint.flush = files.flush = true
    return found[2:]


def one_by_one(folder: Path, count: int) -> float:
    """Seconds that so many new files of 7 kB, about a device's state of this net, take if each waits for the one before it."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        paths = [Path(place, str(number)) for number in range(count)]
        for path in paths:
            path.write_bytes(os.urandom(7_000))
        started = time.perf_counter()
        for path in paths:
            held = os.open(path, os.O_RDONLY)
            os.fsync(held)
            os.close(held)
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
