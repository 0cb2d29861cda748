"""A model that nobody can train with: its last update is taken back once, and the run gives up if that does not help."""

from dataclasses import replace

import numpy as np
import pytest
from test_snapshot import contents, differences, play_on, rounds_of_many_lives
from worlds import RecordingGrid, assert_same_arrays, kind_of, play, tiny_world

from client import local_round
from server.aggregation.update import Update
from server.defence.ruin import ruinous
from server.errors import FleetError
from server.global_model.contribution import Contribution
from server.ledger import SERVER
from server.rounds.registration import enrol
from simulations.build import make_roster, make_strategy
from simulations.results.devices import endings
from simulations.results.summary import problems
from sparcl_core.codec import Sizes, SparseTensor

MODES = {
    "shared": ("wire.importance=f32",),
    "local masks, momentum": ("federation.mask=local", "server_optimizer.name=momentum", "server_optimizer.lr=0.5"),
    "async": ("clock.mode=async", "clock.buffer_size=3", "federation.cohort_size=3"),
}


@pytest.fixture
def sabotage(monkeypatch):
    """sabotage(round -> what becomes of training in it): a factor for the change of the model, or an error."""

    def begin(fates: dict[int, float | Exception], only: tuple[int, ...] = (0, 1, 2, 3, 4)) -> None:
        def train(device, instruction, learner, stream, number, config):
            fate = fates.get(instruction.round, 1.0) if number in only else 1.0
            if isinstance(fate, Exception):
                raise fate
            after, done = true(device, instruction, learner, stream, number=number, config=config)
            if fate == 1:
                return after, done
            moved = {name: (device.base[name] + fate * (value - device.base[name])).astype(value.dtype)
                     for name, value in done.session.state.items()}  # fmt: skip
            return after, replace(done, session=replace(done.session, state=moved))

        monkeypatch.setattr(local_round, "train", train)

    true = local_round.train
    return begin


@pytest.mark.parametrize("mode", MODES)
def test_an_update_that_nobody_can_train_with_is_taken_back_once(sabotage, mode):
    """In round 2 all send 1e25 times what they learned. Round 3 diverges everywhere; from round 4 on it is as if round 2 had not been."""
    sabotage({2: 1e25})
    world = tiny_world(*MODES[mode])
    grid, weights = RecordingGrid(world), {}
    strategy = play(world, grid, lambda record, now: weights.update({record.round: {k: v.copy() for k, v in now.weights.items()}}))
    (row,) = [row for row in strategy.ledger.rows if row.outcome == "rolled-back"]
    assert (row.round, row.device, row.phase, row.seconds, row.joules) == (3, SERVER, "aggregate", 0, 0)
    assert row.reason.startswith("the update of round 2 (3 devices; the largest is that of device ") and "stage train: " in row.reason
    assert max(np.abs(value).max() for value in weights[2].values()) > 1e15
    for name, value in weights[3].items():
        held = strategy.masks.get(name, np.ones(value.shape, bool))
        assert np.isfinite(value).all() and np.isin(value[held], np.append(weights[1][name], 0)).all()  # as before, or a mask has moved on
    assert max(np.abs(value).max() for value in strategy.weights.values()) < 1e3
    for message in grid.sent[4]:  # nobody keeps what they were sent
        assert [kind_of(payload) for payload in message.content["instruction"]["payloads"]] == ["whole"]
    others = [row for row in strategy.ledger.rows if row.round == 4 and row.device >= 0]
    assert {row.outcome for row in others} <= {"ok", "cancelled"}
    for name, mask in strategy.masks.items():
        assert not strategy.weights[name][~mask].any()


@pytest.mark.parametrize("mode", MODES)
def test_a_run_that_is_resumed_rolls_back_as_if_it_had_not_been(sabotage, mode, tmp_path):
    sabotage({2: 1e25})
    world = tiny_world("stream.tasks=1", "federation.rounds_per_task=5", *MODES[mode])
    whole, records = make_strategy(world), []
    play_on(world, RecordingGrid(world), whole, 0, records.append)

    def compare(died, restored):
        assert differences(contents(died), contents(restored)) == set()

    resumed, _ = rounds_of_many_lives(world, tmp_path, compare)
    assert_same_arrays(resumed.weights, whole.weights)
    assert [replace(row, message_bytes=0) for row in resumed.ledger.rows] == [replace(row, message_bytes=0) for row in whole.ledger.rows]
    assert "rolled-back" in {row.outcome for row in whole.ledger.rows}


def test_what_the_roll_back_does_not_help_ends_the_run_and_the_checkpoint_is_sound(sabotage):
    """The last checkpoint is of the round of the roll back. Whoever goes on from it sees the same error, not another one."""
    broken = ValueError("no such operator")
    sabotage({2: 1e25} | dict.fromkeys(range(4, 9), broken))
    world = tiny_world()
    grid, last = RecordingGrid(world), {}

    def observe(record, strategy):
        last.update(snapshot={name: array.copy() for name, array in strategy.snapshot().items()}, round=record.round)
        last["rows"] = list(strategy.ledger.rows)

    message = (
        r"all 3 devices of round 4 failed; the first: device 0, round 4, stage train: ValueError: no such operator; "
        r"taking back the update of round 2 \(3 devices; the largest is that of device \d, of norm .*; none was clipped\) did not help"
    )
    with pytest.raises(FleetError, match=message):
        play(world, grid, observe)
    assert last["round"] == 3
    restored = make_strategy(world)
    restored.restore(last["snapshot"])
    assert all(np.isfinite(value).all() for value in restored.weights.values())
    with pytest.raises(FleetError, match=message):
        play_on(world, grid, restored, 4, lambda record: None)


def test_updates_that_are_infinite_one_after_another_end_the_run():
    """Each would be taken back as it is made, so that no round fails: without an end to it the model never learns."""
    message = (
        r"the update of round 2 made \S+ infinite; taking back the update of round 1 \(3 devices; .*\) did not help; "
        r"server_optimizer.lr is 1e\+60: lower it"
    )
    with pytest.raises(FleetError, match=message):
        play(tiny_world("server_optimizer.lr=1e60"))


def test_an_update_helps_when_a_device_has_trained_with_it_and_not_before(sabotage):
    """Round 3 fails and round 2 is taken back. Nobody can train with what round 4 makes of it, either: the run ends."""
    sabotage({2: 1e25, 4: 1e25})
    with pytest.raises(FleetError, match=r"all 3 devices of round 5 failed; .*; taking back the update of round 2 .* did not help"):
        play(tiny_world())
    sabotage({2: 1e25, 5: 1e25})  # round 5 begins with the model of round 4, and all can train: round 4 has helped
    rows = play(tiny_world()).ledger.rows
    assert [row.round for row in rows if row.outcome == "rolled-back"] == [3, 6]


def test_of_two_devices_the_one_that_would_ruin_the_model_is_refused(sabotage):
    """Too few to be compared: device 0 sends 1e25 times what it learned in every round, and all the same the other one counts."""
    sabotage(dict.fromkeys(range(1, 9), 1e25), only=(0,))
    world = tiny_world("stream.devices=2", "stream.partition=iid", "wire.up=f32")
    counts = []
    strategy = play(world, observe=lambda record, _: counts.append(record.num_devices))
    own = [row for row in strategy.ledger.rows if row.phase == "upload" and not row.device]
    assert {row.outcome for row in own} == {"rejected"} and len(own) == 8
    assert all("with which nobody can train: it was refused" in row.reason for row in own)
    assert {row.outcome for row in strategy.ledger.rows if row.device} == {"ok"} and counts == [0] + [1] * 8
    assert max(np.abs(value).max() for value in strategy.weights.values()) < 1e3


def update_of(device: int, value: float) -> Update:
    return Update(device, 1, np.ones(2, bool), {"w": SparseTensor(np.array([1]), np.array([value]))})


@pytest.mark.parametrize(
    ("values", "clips", "refused"),
    [
        ((1, 3e19), True, [1]),
        ((1, -1e300), True, [1]),
        ((0, 3e19), True, [1]),
        ((1, 1e19), True, []),  # its square is finite in float32
        ((3e19, 3e19), True, []),  # all of them: nobody is to blame more than others, and the model is looked at
        ((3e19,), True, []),
        ((1, 3e19, 1), True, []),  # clipping sees to it
        ((1, 3e19, 1), False, [1]),
        ((0, 3e19, 0), True, [1]),  # those that change nothing are no measure for clipping
        ((), True, []),
    ],
)
def test_who_would_ruin_the_model_by_itself(values, clips, refused):
    updates = [update_of(device, value) for device, value in enumerate(values)]
    found = ruinous(updates, {"w": np.zeros((2, 2), np.float32)}, clips)
    assert [one.device for one in found] == refused and all(one.is_refused for one in found)


def test_without_an_update_there_is_nothing_to_take_back(sabotage):
    sabotage({1: OSError("no disk")})
    with pytest.raises(FleetError, match=r"all 3 devices of round 1 failed; the first: device 0, round 1, stage train: OSError: no disk$"):
        play(tiny_world())


def test_one_device_that_always_fails_does_not_end_a_run_of_single_devices(sabotage):
    """Cohorts of one: device 1 is alone whenever it is asked. Its rounds bring nothing, and nothing is taken back for it."""
    sabotage(dict.fromkeys(range(9), OSError("no disk")), only=(1,))
    counts = []
    strategy = play(tiny_world("federation.cohort_size=1"), observe=lambda record, _: counts.append(record.num_devices))
    rows = strategy.ledger.rows
    failed = {row.round for row in rows if row.outcome == "failed"}
    assert failed and {row.device for row in rows if row.outcome == "failed"} == {1}
    assert [number for number, count in enumerate(counts) if not count] == sorted(failed | {0})
    assert "rolled-back" not in {row.outcome for row in rows}


def test_an_update_that_makes_a_weight_infinite_is_taken_back_at_once():
    """3e38 fits float32, and twice as much does not."""
    world = tiny_world("server_optimizer.lr=2")
    strategy = make_strategy(world)
    enrol(strategy.federation, make_roster(world.streams))
    before = {name: value.copy() for name, value in strategy.weights.items()}
    bias = next(name for name in strategy.model.layout.shapes if name not in strategy.model.layout.masked)
    tensors = {bias: SparseTensor(np.array([0]), np.array([3e38], np.float32))}
    strategy.federation.finish(1, [Contribution(Update(0, 1, np.ones(10, bool), tensors), None, 1, Sizes())])
    assert_same_arrays(strategy.weights, before)
    (row,) = strategy.ledger.rows
    assert row.outcome == "rolled-back" and f"the update of round 1 made {bias} infinite" in row.reason


def test_the_servers_row_is_no_device(sabotage):
    sabotage({2: 1e25})
    rows = play(tiny_world("stream.tasks=1")).ledger.rows
    assert SERVER in {row.device for row in rows} and SERVER not in {device for _, device in endings(rows)}
    found = {one["outcome"]: one for one in problems(rows)}
    assert found["rolled-back"]["rows"] == 1 and found["rolled-back"]["devices"] == 0
    assert found["failed"]["rows"] == 3 and found["failed"]["devices"] == 3
