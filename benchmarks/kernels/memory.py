"""Part `memory`: the peak of a training step, each figure from a process of its own.

`python -m benchmarks.kernels.memory VARIANT METHOD WIDTH IMAGE BATCH SPARSITY` is such a process and prints JSON.
"""

import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.kernels.settings import MEMORY_TARGETS, Settings

ROOT = Path(__file__).parents[2]
MAPPED = str(64 * 1024)  # bytes: a block from this size on is mapped by itself, and goes back to the system when it is freed
POLICY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": MAPPED, "MALLOC_TRIM_THRESHOLD_": MAPPED, "OMP_NUM_THREADS": "1"}
STEPS = 3
MB = 1e6


@dataclass(frozen=True)
class Variant:
    """is_joint: the parts of the loss have one backward pass. is_fused: what lies between the sparse layers is as the learner has it.
    base: the variant that it is compared with."""

    name: str
    is_sparse: bool
    is_joint: bool
    is_fused: bool
    base: str


VARIANTS = (
    Variant("dense", False, True, True, "dense"),
    Variant("dense, in turn", False, False, True, "dense"),
    Variant("sparsity alone", True, True, False, "dense"),
    Variant("sparsity alone, in turn", True, False, False, "dense, in turn"),
    Variant("everything", True, False, True, "dense"),
)
NAMES = [variant.name for variant in VARIANTS]


def measure(settings: Settings) -> list[dict]:
    """One row per method and variant, in bytes. Where there is one part of the loss, joint and in turn are the same."""
    variants = [v for v in VARIANTS if not settings.memory_variants or v.name in settings.memory_variants]
    wanted = [(method, v) for method in settings.memory_methods for v in variants if method != "sgd" or "in turn" not in v.name]
    size = settings.width, settings.image, settings.memory_batch, settings.sparsities[0]
    jobs = [(method, variant, *size) for method, variant in wanted for _ in range(settings.processes)]
    print(f"memory: {len(jobs)} processes", file=sys.stderr, flush=True)
    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:  # bytes do not depend on what else runs
        found = list(pool.map(lambda job: _apart(*job), jobs))
    count = settings.processes
    return [
        {"method": method, "variant": variant.name, "base": variant.base, "runs": found[i * count : (i + 1) * count]}
        for i, (method, variant) in enumerate(wanted)
    ]


def _apart(method: str, variant: Variant, *size) -> dict:
    command = [sys.executable, "-m", "benchmarks.kernels.memory", variant.name, method, *map(str, size)]
    run = subprocess.run(command, cwd=ROOT, env=os.environ | POLICY, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{variant.name} with {method} failed: {run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def show(rows: list[dict], settings: Settings) -> None:
    sparsity, batch = settings.sparsities[0], settings.memory_batch
    print(f"\nPeak memory of training steps above the level before, batch {batch}, sparsity {sparsity}: median of {settings.processes}\n")
    print(f"{'method':<6} {'variant':<24} {'peak MB':>8} {'range':>15} {'of dense':>9} {'of its twin':>12} {'target':>7} {'held MB':>8}")
    peaks = {(row["method"], row["variant"]): statistics.median(run["peak"] for run in row["runs"]) for row in rows}
    for row in rows:
        method, runs = row["method"], [run["peak"] / MB for run in row["runs"]]
        peak, held = peaks[method, row["variant"]], statistics.median(run["held"] for run in row["runs"])
        of_dense = f"{peak / peaks[method, 'dense'] - 1:+.0%}"
        twin = "dense, in turn" if "everything" in row["variant"] and method != "sgd" else row["base"]
        of_twin = f"{peak / peaks[method, twin] - 1:+.0%}" if twin != "dense" else ""
        target = f"{MEMORY_TARGETS[row['variant']]:.0%}" if settings.judges and row["variant"] in MEMORY_TARGETS else ""
        print(
            f"{method:<6} {row['variant']:<24} {peak / MB:>8.1f} {min(runs):>7.1f}-{max(runs):<7.1f} {of_dense:>9} {of_twin:>12} "
            f"{target:>7} {held / MB:>8.1f}"
        )
    how = "the kernel's mark (VmHWM)" if all(run["is_marked"] for row in rows for run in row["runs"]) else "samples of the resident set"
    print(f"\nPeaks by {how}. Its twin: dense with the parts of the loss in the same order.")


# -- in the process


def main() -> None:
    name, method, width, image, batch, sparsity = sys.argv[1:]
    print(json.dumps(peak_of(VARIANTS[NAMES.index(name)], method, int(width), int(image), int(batch), float(sparsity))))


def peak_of(variant: Variant, method: str, width: int, image: int, batch: int, sparsity: float) -> dict:
    """Bytes above the level before the model was built: at the highest point of the steps, and behind the last one."""
    import torch

    from benchmarks.kernels.workload import Training
    from sparcl_core.kernels.build import backend

    torch.set_num_threads(1)
    backend()
    Training(method, sparsity if variant.is_sparse else 0.0, "auto", 8, 8, 2).step(draws=True)  # so that all code has been read in
    level = _trimmed()
    training = Training(method, sparsity if variant.is_sparse else 0.0, "sparse", width, image, batch, variant.is_joint)
    if not variant.is_fused:
        unfuse(training.learner.model)
    _trimmed()
    with Peak() as peak:
        for number in range(STEPS):
            training.step(draws=number == 0)
    return {"peak": peak.bytes - level, "held": _trimmed() - level, "level": level, "is_marked": peak.is_marked}


def unfuse(model) -> None:
    """Let normalisations and ReLUs put out tensors of their own, which are kept for their backward pass and the next layer's."""
    for module in model.modules():
        if type(module).__name__ == "FusedBlock":
            module.__class__ = type(module).__mro__[1]
    model.relu = model.__dict__.pop("stem_relu")
    model.bn1.is_active = False


class Peak:
    """The highest resident set of a `with` block. is_marked: by the kernel's own mark, not by samples."""

    def __enter__(self) -> "Peak":
        self.bytes, self.is_marked, self._done = 0, False, threading.Event()
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
            self.is_marked = _status("VmHWM") < _status("VmPeak")  # a kernel without it may take the write and do nothing
        self._thread = threading.Thread(target=self._sample)
        if not self.is_marked:
            self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._done.set()
        if self.is_marked:
            self.bytes = _status("VmHWM")
        else:
            self._thread.join()

    def _sample(self) -> None:
        while not self._done.is_set():
            self.bytes = max(self.bytes, _status("VmRSS"))
            time.sleep(0.001)


def _trimmed() -> int:
    """The resident set, once the allocator has returned what is free."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main()
