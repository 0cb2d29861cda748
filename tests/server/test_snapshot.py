"""The server's state as a value: a run that goes on from files in a fresh strategy is the run that was never interrupted."""

import re
from dataclasses import fields, is_dataclass
from types import MethodType

import numpy as np
import pytest
from worlds import BATCHNORM, LOSSLESS_64, RecordingGrid, assert_same_arrays, tiny_world, toy_fleet

from server.app import Evaluation, RoundRecord, run_rounds
from server.rounds.clock import EventHeap
from server.rounds.registration import register
from server.snapshot import pack, unpack
from server.strategy import SparCLStrategy
from simulations.build import World, make_roster, make_strategy
from simulations.checkpoints.checkpoint import Checkpoints
from simulations.checkpoints.round_log import Journal
from simulations.engine.states import StateChanges
from sparcl_core.codec import Encoded, Sizes

SHORT = "stream.tasks=1"
SHORTER = (*BATCHNORM, "tdm.enabled=false", "federation.rounds_per_task=2")
VARIANTS = {
    "votes": (),  # two tasks: the masks grow at the start of the second
    "importance, adam": (SHORT, "wire.importance=f32", "server_optimizer.name=adam", "server_optimizer.lr=0.02"),
    "masks of devices, momentum": (SHORT, "federation.mask=local", "server_optimizer.name=momentum"),
    "stochastic rounding": (SHORT, "wire.rounding=stochastic", "wire.up=int4", "wire.down=int4"),
    "cohort": (SHORT, "stream.devices=5", "federation.cohort_size=2", "wire.down=f16"),
    "dense, float64": (SHORT, *LOSSLESS_64, "sparsity=0"),
    "recomputed statistics": (*SHORTER, "federation.batchnorm=recompute"),
    "statistics of devices": (*SHORTER, "federation.batchnorm=local"),
    "deadline, batteries, presence": (
        SHORT, "clock.deadline_s=30", "availability.kind=diurnal", "availability.hours=0.02", "availability.probability=0.6",
        "availability.from_hour=1", "availability.jitter_hours=0", "clock.horizon_hours=49.01", "federation.rounds_per_task=6",
        "energy.charging=none", "energy.drain_idle=false",
    ),
    "detected changes": ("stream.boundaries=detected", "change.window=2", "change.rise=0.2"),
    "a change that one detects": ("stream.boundaries=detected", "change.window=2", "change.rise=0.5"),
    "async, nested tiers": (
        SHORT, "clock.mode=async", "clock.buffer_size=1", "federation.cohort_size=2", "budget.memory=fit", "wire.importance=f32",
    ),
    "first masks, gradients": (SHORT, "masks.initial=snip", "masks.scheme=rigl", "masks.stage_epochs=1"),
    "gradients on devices": (SHORT, "federation.mask=local", "masks.scheme=rigl", "masks.stage_epochs=1"),
    "scaffold": (SHORT, "dgm.enabled=false", "federation.correction=scaffold"),
    "arrays once a task": (
        "sparsity=0", "tdm.enabled=false", "dgm.enabled=false", "learner.method=fedweit", "stream.setting=task-il", "evaluate_on=devices",
    ),
    "prototypes": (SHORT, "learner.method=fedspace"),
    "weights of tasks": ("learner.method=packnet", "masks.scheme=packnet", "stream.setting=task-il", "sparsity=0.5"),
    "choices of tasks": ("learner.method=lps", "masks.scheme=packnet", "stream.setting=task-il", "sparsity=0.5"),
    "semi-sync, masks of devices": (SHORT, "clock.mode=semi-sync", "clock.period_s=20", "federation.mask=local"),
}  # fmt: skip
# the fleets of three of them: a battery each; one device too small for the experiment's sparsity; one slow device
FLEETS = {
    "deadline, batteries, presence": {"battery_j": [1e5] * 3, "flops_per_s": [1e6, 1e6, 2e5]},
    "async, nested tiers": {"memory_bytes": [1e6, 135_000, 1e6], "flops_per_s": [1e6, 2e6, 4e5]},
    "semi-sync, masks of devices": {"flops_per_s": [1e6, 1e6, 3e5]},
}
# made anew: by registration, by the next round, from the held model, by asking a battery again, and of what is kept beside the model
MADE_ANEW = {"roster", "_whole", "_edge_level", "_edge_time", "_sent"}


def play_on(world: World, grid: RecordingGrid, strategy: SparCLStrategy, first_round: int, observe) -> None:
    """Rounds from `first_round` on, evaluated every time by a figure that depends on every weight."""
    tasks = world.experiment.stream.tasks
    run_rounds(
        grid,
        strategy,
        rounds=world.experiment.rounds,
        evaluate_every=1,
        evaluate=lambda state, owners, kept: Evaluation(
            np.full((2, tasks), sum(float(value.sum()) for value in state.values())), np.zeros((2, tasks, 1))
        ),
        observe=observe,
        roster=make_roster(world.streams),
        first_round=first_round,
    )


class _Killed(Exception):
    pass


def rounds_of_many_lives(world: World, folder, after_round) -> tuple[SparCLStrategy, list[RoundRecord]]:
    """The same run by one process a round, which dies at its end. `after_round`: told the dying strategy, and one restored in its place."""
    grid, checkpoint = RecordingGrid(world), None
    for server_round in range(world.experiment.rounds + 1):
        strategy = make_strategy(world)
        if checkpoint:
            checkpoint.restore(strategy)
        if strategy.federation.is_over:
            break
        mark = strategy.ledger.mark()

        def die(record, strategy=strategy, mark=mark):
            journal = Journal(record, *strategy.ledger.since(mark), StateChanges.none(), grid.manifest.exchange)
            Checkpoints(folder).save(record.round, strategy.snapshot(), journal)
            grid.commit()
            raise _Killed

        with pytest.raises(_Killed):
            play_on(world, grid, strategy, server_round, die)
        checkpoint = Checkpoints(folder).load()
        assert checkpoint.round == server_round
        restored = make_strategy(world)
        checkpoint.restore(restored)
        after_round(strategy, restored)
    return restored, [journal.record for journal in checkpoint.journals]


def test_a_run_that_is_resumed_after_every_round_is_the_same_run(tmp_path):
    """All variants; at the end of every round the restored server is the one that died, in everything it holds."""
    changed = set()
    for variant, overrides in VARIANTS.items():
        fleet = toy_fleet(tmp_path, **FLEETS[variant]) if variant in FLEETS else ()
        world = tiny_world(*overrides, *fleet)
        whole, records, grid = make_strategy(world), [], RecordingGrid(world)

        def round_done(record, records=records, grid=grid):
            grid.commit()
            records.append(record)

        play_on(world, grid, whole, 0, round_done)
        fresh = contents(make_strategy(world))

        def compare(died, restored, variant=variant, fresh=fresh):
            one, other = contents(died), contents(restored)
            assert differences(one, other) == set(), variant
            changed.update(re.sub(r"\[\d\]", "", re.match(PART, path)[0]) for path in differences(one, fresh))

        resumed, resumed_records = rounds_of_many_lives(world, tmp_path / variant, compare)
        assert_same_arrays(resumed.weights, whole.weights)
        assert_same_arrays(resumed.masks, whole.masks)
        assert resumed.ledger.rows == whole.ledger.rows, variant
        assert [(own.round, own.device) for own in resumed.ledger.wall_times] == [
            (own.round, own.device) for own in whole.ledger.wall_times
        ]
        assert list(map(plain, resumed_records)) == list(map(plain, records))
    # the comparison was about something: over the variants everything that can change did
    assert changed == {
        ".federation.now", ".federation.is_over", ".federation.ledger.rows", ".federation.ledger.wall_times", ".federation.exchange.held",
        ".federation.exchange.told", ".federation.model.beside",
        *(f".federation.cohorts.history.{name}" for name in ("finished", "last_round", "loss", "message_bytes")),
        *(f".federation.cohorts.conditions.batteries.{name}" for name in ("level_j", "time", "spent_j", "day")),
        *(f".federation.model.{name}" for name in ("weights", "awaits_masks", "diversity", "seen", "rollback", "broadcasts._nested_at")),
        *(f".federation.model.broadcasts.by_tier.{name}" for name in PUBLISHED),
        *(f".federation.model.{name}" for name in ("mask_schedule.task", "mask_schedule.session", "mask_schedule.reports")),
        *(f".federation.model.masking.{name}" for name in ("_reported", "_is_owed", "owners")),
        *(f".federation.model.optimizer.{name}" for name in ("first", "second")),
        ".rounds.flights", ".rounds.events",
    }  # fmt: skip


PUBLISHED = ("held", "_masks", "version", "mask_version", "_steps", "_pending_mask")
# what a path belongs to: an attribute of one of the parts that a strategy is made of
PARTS_OF = "federation|rounds|ledger|exchange|cohorts|conditions|batteries|history|model|masking|optimizer|mask_schedule|broadcasts|by_tier"
PART = rf"(\.({PARTS_OF})(\[\d\])?)*\.\w+"


def plain(record: RoundRecord) -> dict:
    return vars(record) | {"accuracy": record.accuracy.tobytes(), "by_class": record.by_class.tobytes()}


# -- everything that an object holds


def contents(value, path: str = "", known: dict[int, str] | None = None) -> dict[str, object]:
    """What `value` holds, all the way down: path -> leaf. Order of dicts, types, bits and memory order of arrays count.

    A heap counts by what it would hand out, in order. `known`: id of a part that was looked at -> its path; what several parts hold is
    looked at once.
    """
    known = {} if known is None else known
    if id(value) in known:
        return {path: f"that of {known[id(value)]}"}
    if isinstance(value, EventHeap):
        return {path: sorted(value._heap)}
    if isinstance(value, MethodType):
        return {path: value.__qualname__}
    if isinstance(value, np.ndarray):
        return {path: (value.dtype.str, value.shape, value.strides, value.tobytes())}
    if isinstance(value, np.generic):
        return {path: (value.dtype.str, value.tobytes())}
    if isinstance(value, float):
        return {path: value.hex()}
    if value is None or isinstance(value, bool | int | str | bytes | type):
        return {path: value}
    if isinstance(value, frozenset):
        return {path: sorted(value)}
    if isinstance(value, dict):
        parts = {f"[{key!r}]": part for key, part in value.items()}
        found = {f"{path}[]": list(value)}
    elif isinstance(value, list | tuple):
        parts = {f"[{index}]": part for index, part in enumerate(value)}
        found = {f"{path}[]": len(value)}
    else:  # of a dataclass its fields: what it caches besides is no state, and of a value there may be copies
        names = [field.name for field in fields(value)] if is_dataclass(value) else attributes(value)
        if not is_dataclass(value):
            known[id(value)] = path
        parts = {f".{name}": getattr(value, name) for name in names if name not in MADE_ANEW}
        found = {f"{path}.": type(value)}
    for name, part in parts.items():
        found |= contents(part, path + name, known)
    return found


def attributes(value) -> list[str]:
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    names = [*slots, *getattr(value, "__dict__", {})]
    assert names or type(value).__module__.startswith(("server", "sparcl_core")), f"cannot look into {value!r}"
    return names


def differences(one: dict, other: dict) -> set[str]:
    return {path for path in one.keys() | other.keys() if path not in one or path not in other or one[path] != other[path]}


def test_a_new_attribute_that_is_not_restored_is_noticed():
    """Of the strategy and of whatever it holds."""
    one, other = (make_strategy(tiny_world()) for _ in range(2))
    assert differences(contents(one), contents(other)) == set()
    one.model.broadcast.count = 1
    other.model.broadcast.count = 0
    one.model.masking.seen = {3: np.zeros(2)}
    federation = one.federation
    federation.cohorts.weather = 3
    noticed = {f".federation.{place}" for place in ("model.broadcasts.by_tier[0].count", "model.masking.seen[3]", "cohorts.weather")}
    assert differences(contents(one), contents(other)) >= noticed
    parts = (federation, one.model.broadcast, one.model.beside, federation.cohorts, federation.conditions.batteries)
    assert all(any(hasattr(part, name) for part in parts) for name in MADE_ANEW)


# -- bits


def test_restored_to_the_bit(tmp_path):
    """Signs of zero and the bits of a NaN; and the snapshot does not move with the strategy that was restored from it."""
    world = tiny_world()
    strategy, restored = make_strategy(world), make_strategy(world)
    first = strategy.weights["conv1.weight"].reshape(-1)
    first.view(np.uint32)[:3] = (0x8000_0000, 0x7FC0_1234, 0xFF80_0001)
    strategy.model.optimizer.first["conv1.weight"] = np.full(strategy.weights["conv1.weight"].shape, -0.0)
    strategy.federation.exchange.held = {7: 3, 2: 1}
    Checkpoints(tmp_path).save(0, strategy.snapshot(), Journal(RoundRecord(0, -1, False, 0, 0, None), [], [], StateChanges.none(), 0))
    checkpoint = Checkpoints(tmp_path).load()
    checkpoint.restore(restored)
    assert differences(contents(strategy), contents(restored)) == set()
    before = {name: array.tobytes() for name, array in checkpoint.snapshot.items()}
    for state in (restored.weights, restored.model.broadcast.held, restored.masks, restored.model.optimizer.first):
        for array in state.values():
            array.flags.writeable = True
            array[...] = 1
    assert {name: array.tobytes() for name, array in checkpoint.snapshot.items()} == before


@pytest.mark.parametrize("payloads", [[], [b""], [b"abc", b"", b"\x00\xff"]])
def test_payloads_are_unpacked_as_they_were(payloads):
    encoded = [Encoded(data, Sizes(index, 2, 3, 4, 5, 6)) for index, data in enumerate(payloads)]
    assert unpack(pack(encoded)) == encoded


# -- what cannot be restored


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.width=16",), r"weights/conv1\.weight is \('float32', \(8, .* in the snapshot and \('float32', \(16, .*another experiment"),
        (("model.dtype=float64",), "is .'float32'.* in the snapshot and .'float64'"),
        (("sparsity=0",), r"masks/conv2\.weight is \('bool'.* in the snapshot and not there in this run"),
    ],
)
def test_a_snapshot_of_another_model_is_refused(overrides, message):
    snapshot = make_strategy(tiny_world()).snapshot()
    with pytest.raises(ValueError, match=message):
        make_strategy(tiny_world(*overrides)).restore(snapshot)


BROADCAST = "federation/model/broadcasts/0"
PARTS = {
    "federation/clock": "clock", "federation/exchange/held": "held", "federation/history/known": "known", "federation/history/loss": "loss",
    "federation/model/diversity": "diversity", "federation/model/broadcasts/nested": "nested", f"{BROADCAST}/versions": "versions",
    f"{BROADCAST}/steps/made": "steps/made", f"{BROADCAST}/pending/data": "data", "federation/model/masking/owed": "owed",
    "federation/model/mask_schedule/position": "position", "rounds/text": "text",
}  # fmt: skip


@pytest.mark.parametrize(("name", "short"), PARTS.items())
def test_a_snapshot_with_a_part_missing_is_refused(name, short):
    strategy = make_strategy(tiny_world("clock.mode=async", "clock.buffer_size=1"))
    snapshot = strategy.snapshot()
    del snapshot[name]
    with pytest.raises(ValueError, match=f"the snapshot has no '{short}'"):
        strategy.restore(snapshot)


def test_batteries_of_another_fleet_are_refused():
    snapshot = make_strategy(tiny_world("stream.devices=4")).snapshot()
    with pytest.raises(ValueError, match="batteries in the snapshot"):
        make_strategy(tiny_world()).restore(snapshot)


# -- registration


def test_a_resumed_run_that_asks_its_nodes_again_does_not_write_their_rows_again():
    world = tiny_world("stream.tasks=1")
    strategy, restored = make_strategy(world), make_strategy(world)
    register(strategy.federation, RecordingGrid(world))
    rows, wall_times = strategy.ledger.since((0, 0))
    assert [row.phase for row in rows] == ["register"] * 3
    restored.restore(strategy.snapshot())
    restored.ledger.restore(rows, wall_times)
    register(restored.federation, RecordingGrid(world))
    assert restored.ledger.rows == rows
    assert restored.federation.cohorts.roster.devices.tolist() == [0, 1, 2]
