"""Small worlds for the tests of the federation: experiments that run in half a second, and grids that go wrong on purpose."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from flwr.app import Message

from client.state.device_state import DeviceState, load_state
from server.app import Evaluation, RoundRecord, run_rounds
from server.strategy import SparCLStrategy
from simulations.build import World, make_evaluator, make_roster, make_strategy, make_world
from simulations.client_app import client_app
from simulations.config.experiment import Experiment
from simulations.config.loading import load
from simulations.engine.inline import InlineGrid
from sparcl_core.codec import KINDS

TINY = Path(__file__).with_name("tiny.toml")
LOSSLESS = ("wire.up=f32", "wire.down=f32", "wire.importance=f32")
LOSSLESS_64 = ("model.dtype=float64", "wire.up=f64", "wire.down=f64", "wire.importance=f64")
BATCHNORM = (  # a net with BatchNorm on 40 digits, two devices of 20; width 8: on narrower ones torch 2.15 corrupts its heap
    "model.name=resnet18", "model.width=8", "stream.devices=2", "stream.tasks=1", "stream.partition=iid", "data.train_limit=4",
    "learner.batch_size=10", "ddr.enabled=false",
)  # fmt: skip
# round figures in which a round of a tiny world takes seconds: dense 1 MFLOP/s, sparse 100 kFLOP/s, 1 kB/s both ways, on the mains
TOY = {
    "flops_per_s": 1e6, "efficiency": 1.0, "sparse_efficiency": 0.1, "memory_bytes": 1e6, "active_w": 4.0, "idle_w": 2.0,
    "radio_j_per_byte": 0.001, "down_bits_per_s": 8000.0, "up_bits_per_s": 8000.0, "latency_s": 0.5,
}  # fmt: skip
Tamper = Callable[[int, list[Message]], Iterable[Message]]


def tiny(*overrides: str) -> Experiment:
    """The experiment in tiny.toml with overrides, as the command line takes them."""
    return load(str(TINY), list(overrides))


def tiny_world(*overrides: str) -> World:
    return make_world(tiny(*overrides))


def toy_fleet(folder: Path, devices: int = 3, **figures: Sequence[float]) -> tuple[str, ...]:
    """Overrides for a fleet of `devices` devices with the figures of `TOY`, but for what is given per device."""
    source = 'source = "assumption: a round number"\n'
    (folder / "toy.toml").write_text('name = "toy"\n' + "".join(f"[{key}]\nvalue = {value}\n{source}" for key, value in TOY.items()))
    rows = [["profile", *figures], *([str(folder / "toy.toml"), *own] for own in zip(*figures.values(), strict=True))]
    rows += [[str(folder / "toy.toml")]] * (0 if figures else devices)
    (folder / "fleet.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    return (f"fleet.file={folder / 'fleet.csv'}", f"stream.devices={devices}")


class RecordingGrid(InlineGrid):
    """An inline engine that keeps what went over it, and lets a test alter the replies of a round.

    `tamper`: (round, replies) -> replies; the messages of round r are the r-th training batch, from 1. `tamper_calibrate`: the same for
    the replies that bring recomputed statistics. As in a real run, whoever plays the rounds commits them.
    """

    def __init__(self, world: World, tamper: Tamper | None = None, make_app=client_app, tamper_calibrate: Tamper | None = None):
        super().__init__(make_app, world.app_args, len(world.streams), waits_for_commit=True)
        self.sent: dict[int, list[Message]] = {}
        self.received: dict[int, list[Message]] = {}
        self.calibrating: dict[int, list[Message]] = {}
        self.calibrated: dict[int, list[Message]] = {}
        self.sending: list[Message] = []
        self._tamper = tamper or (lambda server_round, replies: replies)
        self._tamper_calibrate = tamper_calibrate or (lambda server_round, replies: replies)

    def stream(self, messages, timeout=None):
        messages = list(messages)
        replies = list(super().stream(messages, timeout))
        if messages and messages[0].metadata.message_type == "train":
            server_round, self.sending = len(self.sent) + 1, messages
            replies = list(self._tamper(server_round, replies))
            self.sent[server_round], self.received[server_round] = messages, replies
        if messages and messages[0].metadata.message_type == "query.calibrate":
            server_round = len(self.sent)
            replies = list(self._tamper_calibrate(server_round, replies))
            self.calibrating[server_round], self.calibrated[server_round] = messages, replies
        return replies

    def device(self, number: int) -> DeviceState | None:
        """What device `number` keeps, or None if it never trained."""
        records = self.state(number)
        return load_state(records["device"]) if "device" in records else None


def play(
    world: World,
    grid: InlineGrid | None = None,
    observe: Callable[[RoundRecord, SparCLStrategy], None] | None = None,
    registers: bool = False,
    evaluates: bool = False,
) -> SparCLStrategy:
    """All rounds; `observe` sees every round's record and the server's state after it. `registers`: every device is asked who it is, as
    under Flower's own runtimes. `evaluates`: what `evaluate_on` says; otherwise accuracies are zeros."""
    strategy, shape = make_strategy(world), (2, world.experiment.stream.tasks)
    zeros = Evaluation(np.zeros(shape), np.zeros((*shape, world.data.num_classes)))
    grid = grid or RecordingGrid(world)

    def round_done(record: RoundRecord) -> None:
        grid.commit()
        if observe:
            observe(record, strategy)

    run_rounds(
        grid,
        strategy,
        rounds=world.experiment.rounds,
        evaluate_every=0,
        evaluate=make_evaluator(world) if evaluates else lambda *told: zeros,
        observe=round_done,
        own_models=world.own_models if evaluates else None,
        roster=None if registers else make_roster(world.streams),
    )
    return strategy


def kind_of(payload: bytes) -> str:
    """What a payload says it is: behind magic and format version."""
    return KINDS[payload[4]]


def assert_same_arrays(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    """Same names, types, shapes and bits."""
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape), name
        assert a[name].tobytes() == b[name].tobytes(), f"{name} differs"
