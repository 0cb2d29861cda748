"""When a round ends with nothing because every device of it failed: the model's last update is taken back, once, before the run gives up.
So is an update that makes the model infinite.

What all devices of a round have in common is the model that they were sent. If none can train with it, the update that made it is the first
to blame: the weights of before come back (within the masks of now: those that were dropped since stay dropped), with the optimiser's state
of then, and everybody is sent the whole model. If nobody can train with that either, the run gives up and says what was seen. So it does if
the next update is as bad: only one that stays, and that a device has trained with, shows that taking back has helped.
"""

import json
from dataclasses import dataclass, field

import numpy as np

from server.snapshot import Snapshot, in_order, under, within
from sparcl_core.sparsity.masks import State

ROUNDS = 3  # without an update, after which it does not matter any more how few devices they had


@dataclass(frozen=True, eq=False)
class Step:
    """The model's last update: what was there before it, and what was seen. told: the largest of its updates, and what stood out.

    version: the last of the model that was published without it; beside: the arrays beside the model, as they were.
    """

    round: int
    weights: State
    optimizer: Snapshot
    told: str
    version: int
    beside: State = field(default_factory=dict)


class Rollback:
    """Watches for rounds without a single update.

    Attributes:
        step: the last update; None before the first, and when it was taken back.
        undone: what was said of the update that was taken back; empty as soon as devices have trained with another one.
        failed, rounds: devices that failed in rounds without an update since the last one, and how many these were.
    """

    def __init__(self):
        self.step: Step | None = None
        self.undone = ""
        self._begin()

    def _begin(self) -> None:
        self.failed: tuple[int, ...] = ()
        self.rounds = 0

    def moved(self, step: Step, trained_with: int) -> None:
        """The model moves. Whatever failed before, somebody could train: `trained_with` is the newest version that somebody did with."""
        if self.step and trained_with > self.step.version:
            self.undone = ""
        self.step = step
        self._begin()

    def blame(self, server_round: int, problems: dict[int, str], fleet: int) -> str:
        """In a round nobody succeeded, and these devices failed: why the model is to blame, empty if that is too early to say.

        One device that fails by itself, where a round has no other, says little of the model: a second one does, and so do `ROUNDS` rounds.
        `problems`: device -> what was wrong with it; `fleet`: devices that there are.
        """
        self.failed = tuple(sorted({*self.failed, *problems}))
        self.rounds += 1
        if len(self.failed) < min(2, fleet) and self.rounds < ROUNDS:
            return ""
        when = f"round {server_round}" if self.rounds == 1 else f"the last {self.rounds} rounds"
        return f"all {len(self.failed)} devices of {when} failed; the first: {problems[min(problems)]}"

    def take(self) -> Step | None:
        """The update that is to be taken back; None if there is none, or one was taken back already and it did not help."""
        if self.step is None or self.undone:
            return None
        step, self.step = self.step, None
        self.undone = f"taking back {step.told} did not help"
        self._begin()
        return step

    def snapshot(self) -> Snapshot:
        """All that changes from round to round, see `server.snapshot`. Of weights that are mostly 0 the others are stored."""
        said = {"undone": self.undone, "failed": self.failed, "rounds": self.rounds}
        if self.step is None:
            return {"text": _text(said)}
        arrays = {"text": _text(said | {"round": self.step.round, "told": self.step.told, "version": self.step.version})}
        for name, value in self.step.weights.items():
            where = value.view(f"u{value.itemsize}").reshape(-1) != 0  # by their bits: -0.0 is not 0
            arrays |= {f"where/{name}": np.packbits(where), f"values/{name}": value.reshape(-1)[where]}
        return arrays | under("optimizer", self.step.optimizer) | under("beside", self.step.beside)

    def restore(self, snapshot: Snapshot, weights: State) -> None:
        """Go on where `snapshot` was taken. `weights`: of the model, for names and shapes."""
        said = json.loads(snapshot["text"].tobytes())
        self.undone, self.failed, self.rounds = said["undone"], tuple(said["failed"]), said["rounds"]
        self.step = None
        if "round" not in said:
            return
        before, where, values = {}, within("where", snapshot), within("values", snapshot)
        for name, value in weights.items():
            before[name] = np.zeros_like(value)
            before[name].reshape(-1)[np.unpackbits(where[name], count=value.size).astype(bool)] = values[name]
        optimizer, beside = within("optimizer", snapshot), within("beside", snapshot)
        optimizer = in_order(sorted(optimizer), optimizer)
        self.step = Step(said["round"], before, optimizer, said["told"], said["version"], in_order(sorted(beside), beside))


def _text(said: dict) -> np.ndarray:
    return np.frombuffer(json.dumps(said).encode(), np.uint8)
