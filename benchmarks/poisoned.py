"""What one device in ten can do to a run: the default experiment with devices that send their update times a factor.

`python -m benchmarks.poisoned` plays `split-digits` honestly, and with 1, 2 and 3 of its 10 devices at -1 and at -10, inline. Such a
device trains as it should, multiplies its change of the model before it is encoded, and is well behaved in everything else. Printed are
Class-IL at the end, and of all updates that came in the share that was clipped and that was refused, of honest devices and of the others.
"""

import argparse
from collections import Counter
from dataclasses import replace

from client.app import make_client_app
from client.config import ClientConfig
from client.streams.stream import Streams
from server.app import RoundRecord, run_rounds
from server.errors import FleetError
from simulations.build import choose_kernels, make_evaluator, make_roster, make_strategy, make_world
from simulations.config.loading import load
from simulations.engine.inline import InlineGrid
from simulations.run import accuracy_matrix
from sparcl_core.learner import Learner
from sparcl_core.metrics.continual import scores
from sparcl_core.training.session import Session

UPDATES = ("ok", "clipped", "rejected")


class Poisoned(Learner):
    """Trains as every other, and then multiplies what the devices in `hostile` have changed by `factor`."""

    def __init__(self, *args, hostile: frozenset[int], factor: float):
        super().__init__(*args)
        self.hostile, self.factor = hostile, factor

    def train(self, state, masks, data, memory, *, epochs: int, device: int) -> Session:
        session = super().train(state, masks, data, memory, epochs=epochs, device=device)
        if device not in self.hostile:
            return session
        moved = {name: (state[name] + self.factor * (after - state[name])).astype(after.dtype) for name, after in session.state.items()
                 if name in state}  # fmt: skip
        return replace(session, state=session.state | moved)


def poisoned_app(config: ClientConfig, streams: Streams, hostile: frozenset[int], factor: float):
    """The ClientApp of a fleet in which some devices are hostile."""
    return make_client_app(config, streams.__getitem__, lambda *args: Poisoned(*args, hostile=hostile, factor=factor))


def play(name: str, overrides: list[str], hostile: frozenset[int], factor: float) -> tuple[list[RoundRecord], Counter, str]:
    """The rounds of a run, how many updates (hostile, outcome) it had, and the message that ended it early, if one did."""
    world = make_world(choose_kernels(load(name, overrides)))
    strategy, records = make_strategy(world), []
    grid = InlineGrid(poisoned_app, (*world.app_args, hostile, factor), len(world.streams), waits_for_commit=True)

    def observe(record: RoundRecord) -> None:
        records.append(record)
        grid.commit()

    rounds = {"rounds": world.experiment.rounds, "evaluate_every": world.experiment.evaluate_every}
    ended = ""
    try:
        run_rounds(grid, strategy, **rounds, evaluate=make_evaluator(world), observe=observe, roster=make_roster(world.streams))
    except FleetError as error:
        ended = str(error)
    uploads = [row for row in strategy.ledger.rows if row.phase == "upload"]
    return records, Counter((row.device in hostile, row.outcome) for row in uploads), ended


def line(name: str, overrides: list[str], count: int, factor: float) -> str:
    """One run as a row of the table. The hostile devices are the first `count`."""
    records, outcomes, ended = play(name, overrides, frozenset(range(count)), factor)
    accuracy = accuracy_matrix(records)
    found = scores(accuracy[0], records[0].accuracy[0]).average
    shares = []
    for hostile in (False, True):
        total = sum(outcomes[hostile, outcome] for outcome in UPDATES)
        shares += [f"{outcomes[hostile, outcome] / total:>8.1%}" if total else f"{'-':>8}" for outcome in ("clipped", "rejected")]
    who = f"{count} at {factor:g}" if count else "honest"
    end = f"  ended in round {records[-1].round + 1}: {ended}" if ended else ""
    return f"{who:<10} {found:>9.1%} {' '.join(shares)}{end}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.poisoned", description="What hostile devices do to a run.")
    parser.add_argument("experiment", nargs="?", default="split-digits", help="an experiment (default: split-digits)")
    parser.add_argument("--count", type=int, nargs="*", default=[1, 2, 3], help="hostile devices (default: 1 2 3)")
    parser.add_argument("--factor", type=float, nargs="*", default=[-1.0, -10.0], help="what their updates are multiplied by (-1 -10)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    options = parser.parse_args()
    print(f"{'':<10} {'':>9} {'honest devices':>17} {'hostile devices':>17}")
    print(f"{'devices':<10} {'Class-IL':>9} {'clipped':>8} {'refused':>8} {'clipped':>8} {'refused':>8}", flush=True)
    print(line(options.experiment, options.set, 0, 1.0), flush=True)
    for factor in options.factor:
        for count in options.count:
            print(line(options.experiment, options.set, count, factor), flush=True)


if __name__ == "__main__":
    main()
