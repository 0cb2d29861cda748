"""Did a change of the code change what comes out? SHA-256 of what runs leave behind, as a table that two commits can be compared by.

`python -m benchmarks.bits --out now.json` plays the experiments of the project, shortened, and the experiment of the tests with settings
that take other ways through the code, each by the command line: on the inline engine, a few on Ray as well, and some interrupted in the
middle and resumed. `python -m benchmarks.bits --compare before.json now.json` prints where two such files differ; exit code 1 if they do.

A change that is meant to keep results is measured in a checkout of the commit before and in its own, with the same environment:
`--tree FOLDER` runs the code of another checkout. Kernels are `kernels.mode = "sparse"` throughout, as `auto` may choose by timing.

Tables are hashed column by column: a column that only one of the two has is told, and is no difference.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
TINY = "tests/tiny.toml"
HASHED = ("model.safetensors", "ledger.parquet", "rounds.parquet", "accuracy.parquet", "classes.parquet", "devices.parquet")
BATCHNORM = (
    "model.name=resnet18", "model.width=8", "stream.devices=2", "stream.partition=iid", "data.train_limit=4", "learner.batch_size=10",
    "ddr.enabled=false",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """engines: that it is played on; breaks: it is also interrupted in the middle and resumed."""

    name: str
    experiment: str
    settings: tuple[str, ...] = ()
    engines: tuple[str, ...] = ("inline",)
    breaks: bool = False


BOTH = ("inline", "ray")
CASES = (
    Case("smoke", "smoke", engines=BOTH),
    Case("split-digits", "split-digits", ("federation.rounds=13",), BOTH, breaks=True),
    Case("phones-at-night", "phones-at-night", ("federation.rounds=9",)),
    Case("solar-cameras", "solar-cameras", ("federation.rounds=10",)),
    Case("microcontrollers", "microcontrollers", ("federation.rounds=9",)),
    Case("stragglers", "stragglers", ("federation.rounds=9",)),
    Case("drift", "drift", ("federation.rounds=14",), breaks=True),
    Case("new-classes", "new-classes", ("federation.rounds=9",)),
    Case("split-cifar10", "split-cifar10", ("federation.rounds=3", "model.width=8", "data.train_limit=40")),
    Case("tiny", TINY, engines=BOTH, breaks=True),
    Case("tiny-dense", TINY, ("sparsity=0", "tdm.enabled=false", "ddr.enabled=false", "dgm.enabled=false")),
    *(Case(f"tiny-{method}", TINY, (f"learner.method={method}",)) for method in ("sgd", "er", "der")),
    Case("tiny-apart", TINY, ("learner.joint_forward=false", "dgm.importance=two-term", "learner.replay_from=second-task")),
    Case("tiny-last-step", TINY, ("tdm.gradient=last-step", "learner.last_batch=drop")),
    Case("tiny-local-masks", TINY, ("federation.mask=local",), BOTH, breaks=True),
    Case("tiny-votes", TINY, ("wire.importance=votes", "wire.up_share=0.5", "wire.rounding=stochastic")),
    Case("tiny-momentum", TINY, ("server_optimizer.name=momentum", "server_optimizer.lr=0.9", "aggregation.rule=count-mean"), breaks=True),
    Case("tiny-zero-filled", TINY, ("federation.mask=local", "aggregation.rule=zero-filled", "aggregation.shrinkage=0.1")),
    Case("tiny-unheld", TINY, ("federation.mask=local", "aggregation.unheld=zero", "aggregation.min_votes=2")),
    Case("tiny-async", TINY, ("clock.mode=async", "clock.buffer_size=2"), BOTH, breaks=True),
    Case("tiny-semi-sync", TINY, ("clock.mode=semi-sync", "clock.period_s=0.05", "aggregation.stale=normalise"), breaks=True),
    Case("tiny-detected", TINY, ("stream.boundaries=detected",)),
    Case("tiny-set", TINY, ("masks.scheme=set", "masks.stage_epochs=1", "masks.initial=magnitude")),
    Case("tiny-rigl", TINY, ("masks.scheme=rigl", "masks.stage_epochs=1", "masks.densities=erk"), BOTH, breaks=True),
    Case("tiny-rigl-local", TINY, ("masks.scheme=rigl", "masks.stage_epochs=1", "federation.mask=local"), BOTH, breaks=True),
    Case("tiny-snip", TINY, ("masks.scheme=static", "masks.initial=snip", "masks.densities=global"), BOTH, breaks=True),
    Case("tiny-domains", TINY, ("stream.setting=domain-il", "stream.order=shuffled", "stream.cycles=2")),
    *(Case(f"batchnorm-{how}", TINY, (*BATCHNORM, f"federation.batchnorm={how}"), breaks=True) for how in ("global", "local", "recompute")),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bits", description="Hashes of what runs leave behind.")
    parser.add_argument("--out", type=Path, help="a JSON file for the hashes")
    parser.add_argument("--tree", type=Path, default=ROOT, help="the checkout whose code is run (default: this one)")
    parser.add_argument("--only", nargs="+", metavar="CASE", choices=[case.name for case in CASES], help="these cases")
    parser.add_argument("--cifar10", type=Path, help="parquet folder of CIFAR-10; without it split-cifar10 is left out")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("BEFORE", "NOW"), help="print where two files differ")
    options = parser.parse_args()
    if options.compare:
        sys.exit(compare(*(json.loads(path.read_text()) for path in options.compare)))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where it is ignored, as in a background job, so it is in what we start
    found = {}
    for case in CASES:
        if options.only and case.name not in options.only or (case.name == "split-cifar10" and not options.cifar10):
            continue
        for way in (*case.engines, *(["resumed"] if case.breaks else [])):
            began = time.perf_counter()
            found[f"{case.name}, {way}"] = hashes = play(case, way, options)
            print(f"{case.name}, {way}: {hashes['model.safetensors'][:12]} ({time.perf_counter() - began:.0f} s)", flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


def play(case: Case, way: str, options: argparse.Namespace) -> dict[str, str]:
    """File -> SHA-256 of one run. `way`: an engine, or `resumed`, inline with an interruption."""
    settings = ["kernels.mode=sparse", *case.settings]
    if case.name == "split-cifar10":
        settings.append(f"data.path={options.cifar10.resolve()}")
    with tempfile.TemporaryDirectory(prefix="sparcl-bits-") as folder:
        engine = "inline" if way == "resumed" else way
        sets = [part for setting in settings for part in ("--set", setting)]
        command = [sys.executable, "-m", "simulations"]
        run = [*command, "run", case.experiment, "--engine", engine, "--out", folder, *sets]
        env = os.environ | {"PYTHONPATH": str(options.tree.resolve())}
        if way == "resumed":
            interrupted(run, Path(folder), options.tree, env)
            only = next(path for path in Path(folder).iterdir() if path.is_dir())
            run = [*command, "resume", str(only)]
        done = subprocess.run(run, cwd=options.tree, env=env, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{case.name}, {way}: exit code {done.returncode}\n{done.stderr[-2000:]}")
        only = next(path for path in Path(folder).iterdir() if path.is_dir())
        return {part: digest for name in HASHED for part, digest in digests(only / name).items()}


def digests(file: Path) -> dict[str, str]:
    """SHA-256 of a file, or of each column of a table, by `file` or `file: column`."""
    if file.suffix != ".parquet":
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
    table = pq.read_table(file)
    return {f"{file.name}: {name}": hashlib.sha256(repr(table[name].to_pylist()).encode()).hexdigest() for name in table.column_names}


def interrupted(run: list[str], folder: Path, tree: Path, env: dict[str, str]) -> None:
    """Let it play until a few rounds are committed, then send it a Ctrl-C."""
    process = subprocess.Popen(run, cwd=tree, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(folder.rglob("journal/*.safetensors"))) < 3:
        time.sleep(0.02)
    if process.poll() is not None:
        sys.exit(f"{' '.join(run)} was over, exit code {process.returncode}, before it could be interrupted")
    process.send_signal(signal.SIGINT)
    process.wait()


def compare(before: dict, now: dict) -> int:
    """Prints a line per case. Returns 1 if any differs, or is only in one of them."""
    different = 0
    for name in dict.fromkeys([*before, *now]):
        if name not in before or name not in now:
            told = "only in " + ("the second" if name in now else "the first")
        else:
            one, other = before[name], now[name]
            parts = [part for part in one if part in other and one[part] != other[part]]
            alone = sorted({*one, *other} - {part for part in one if part in other})
            told = (f"differs in {', '.join(parts)}" if parts else "the same") + (f"; only one has {', '.join(alone)}" if alone else "")
        different += not told.startswith("the same")
        print(f"{name:<32} {before.get(name, now.get(name))['model.safetensors'][:12]}  {told}")
    print(f"\n{different} of {len({**before, **now})} differ")
    return int(different > 0)


if __name__ == "__main__":
    main()
