"""Updates that stand out of their round: by hand, over all updates, and in runs with a hostile device."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import RecordingGrid, play, tiny_world

from benchmarks.poisoned import poisoned_app
from server.aggregation.config import AggregationConfig
from server.aggregation.update import Update
from server.defence.clipping import STRICT, Seen, bounded
from simulations.results.curves import fleet_figures
from simulations.results.devices import device_table, endings
from simulations.results.summary import problems
from simulations.run import Result
from sparcl_core.codec import Layout, SparseTensor

LAYOUT = Layout({"w": (4, 2), "running_mean": (3,)}, frozenset({"w"}), frozenset({"running_mean"}))
CONFIG = AggregationConfig(clip=5.0, probation=2)


def update(device: int, norm: float, statistics: float = 0.0) -> Update:
    """A change of `norm` whose values are all alike, so that the largest is norm / sqrt(8)."""
    tensors = {"w": SparseTensor(np.arange(8), np.full(8, norm / 8**0.5, np.float32))} if norm else {}
    if statistics:
        tensors["running_mean"] = SparseTensor(np.array([1]), np.array([statistics], np.float32))
    return Update(device, 10, np.ones(2, bool), tensors)


def round_of(*norms: float, seen: Seen | None = None, config: AggregationConfig = CONFIG):
    return bounded([update(device, norm) for device, norm in enumerate(norms)], seen or Seen(), LAYOUT, config)


def norm_of(one: Update) -> float:
    return float(np.sqrt(np.square(one.tensors["w"].values.astype(float)).sum()))


def test_an_update_that_stands_out_is_scaled_to_the_median_and_its_device_is_on_probation():
    """Norms 1, 2, 30, 2, 1: the median is 2, and 30 is 15 times that."""
    found, seen = round_of(1, 2, 30, 2, 1)
    assert [norm_of(one) for one in found.updates] == pytest.approx([1, 2, 2, 2, 1])
    assert [(one.device, one.is_refused) for one in found.unusual] == [(2, False)]
    assert found.unusual[0].reason == "the update's norm is 30, 15 times the median of its round: it was scaled down to that"
    assert seen.probation == {2: 2} and seen.largest[0] == pytest.approx(2)
    assert found.largest[1] == pytest.approx(2)


def test_what_is_not_clipped_is_the_same_object():
    updates = [update(device, norm) for device, norm in enumerate((1, 2, 9.9, 2, 1))]
    found, _ = bounded(updates, Seen(), LAYOUT, CONFIG)
    assert all(one is other for one, other in zip(found.updates, updates, strict=True)) and not found.unusual


def test_a_quiet_round_does_not_make_an_honest_update_stand_out():
    """The largest median so far is 2. A round with a median of 0.1 then has an update of 2, 20 times that: as large as all at first."""
    _, seen = round_of(2, 2, 2)
    found, seen = round_of(0.1, 2, 0.1, seen=seen)
    assert not found.unusual and seen.probation == {}


def test_on_probation_what_stands_out_of_a_quiet_round_is_refused_until_it_was_not_for_a_while():
    _, seen = round_of(2, 200, 2)
    assert seen.probation == {1: 2}
    found, seen = round_of(0.1, 1, 0.1, seen=seen)  # 10 times the median of its round, but half of the largest
    assert [(one.device, one.is_refused) for one in found.unusual] == [(1, True)] and "on probation" in found.unusual[0].reason
    assert [one.device for one in found.updates] == [0, 2] and seen.probation == {1: 2}
    for left in ({1: 1}, {}):
        found, seen = round_of(0.1, 0.1 * STRICT, 0.1, seen=seen)
        assert not found.unusual and seen.probation == left
    found, seen = round_of(0.1, 1, 0.1, seen=seen)  # it is one of many again
    assert not found.unusual and len(found.updates) == 3


def test_probation_counts_updates_of_the_device_not_rounds():
    _, seen = round_of(2, 200, 2)
    _, seen = bounded([update(device, 1.0) for device in (0, 2, 3)], seen, LAYOUT, CONFIG)
    assert seen.probation == {1: 2}


def test_one_value_does_not_hide_in_a_large_vector():
    """Others change 8 values by 1 / sqrt(8); one has norm 4, below the factor of 5, but all of it in one place: 4 sqrt(8) = 11.3 times."""
    updates = [update(0, 1), update(1, 1), update(2, 1)]
    updates.append(Update(3, 10, np.ones(2, bool), {"w": SparseTensor(np.array([5]), np.array([4.0], np.float32))}))
    found, _ = bounded(updates, Seen(), LAYOUT, CONFIG)
    (one,) = found.unusual
    assert one.device == 3 and "largest change is 4, 11.3 times" in one.reason
    assert found.updates[3].tensors["w"].values[0] == pytest.approx(2 / 8**0.5)  # twice the median: it may be twice as far out


def test_running_statistics_are_held_against_their_own_like():
    updates = [update(device, 1.0, statistics) for device, statistics in enumerate((1.0, 2.0, 1e30))]
    found, _ = bounded(updates, Seen(), LAYOUT, CONFIG)
    assert [one.device for one in found.unusual] == [2] and "running statistics" in found.unusual[0].reason
    assert found.updates[2].tensors["running_mean"].values[0] == pytest.approx(2.0)


@pytest.mark.parametrize("norms", [(1, 1e30), (1e30,), (0, 0, 0, 1, 1e9), (0, 0, 0)])
def test_with_nobody_to_compare_with_nothing_is_clipped(norms):
    """Updates that change nothing say nothing of how much an update should change."""
    found, seen = round_of(*norms)
    assert not found.unusual and len(found.updates) == len(norms) and not seen.largest.any()


def test_a_round_with_a_hostile_majority_lifts_the_bound_to_twice_at_most():
    _, seen = round_of(1, 1, 1)
    _, seen = round_of(1e6, 1e6, 1, seen=seen)
    assert seen.largest[0] == pytest.approx(2)


def test_clipping_can_be_switched_off():
    found, seen = round_of(1, 1, 1, 1e9, config=AggregationConfig(clip=0))
    assert not found.unusual and not seen.probation and norm_of(found.updates[3]) == pytest.approx(1e9, rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"), [({"clip": 0.5}, "clip is 0.5"), ({"clip": np.inf}, "clip is inf"), ({"probation": -1}, "-1")]
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AggregationConfig(**settings)


sizes = st.one_of(st.just(0.0), st.floats(1e-20, 1e20))


@given(st.lists(st.lists(sizes, min_size=1, max_size=8), min_size=1, max_size=5), st.integers(0, 3))
def test_whatever_comes_the_updates_that_are_used_are_finite_and_none_grows(rounds, probation):
    seen, config = Seen(), AggregationConfig(clip=5.0, probation=probation)
    for norms in rounds:
        found, seen = round_of(*norms, seen=seen, config=config)
        used = {one.device: one for one in found.updates}
        assert [*used] == sorted(used) and len(used) + sum(one.is_refused for one in found.unusual) == len(norms)
        for device, one in used.items():
            if norms[device]:
                assert norm_of(one) <= norms[device] * (1 + 1e-5)
        some = [norm for norm in norms if norm]
        if len(some) < 3:
            assert not found.unusual
        restored = Seen.restored(seen.snapshot())
        assert restored.probation == seen.probation and (restored.largest == seen.largest).all()


# -- in runs


@pytest.fixture(scope="module")
def poisoned():
    """Five devices of which the first sends -30 times what it learned, in eight rounds."""
    world = tiny_world("stream.devices=5", "stream.partition=iid")
    records = []
    grid = RecordingGrid(world, make_app=lambda *args: poisoned_app(*args, frozenset({0}), -30.0))
    strategy = play(world, grid, lambda record, _: records.append(record))
    return Result(world, strategy, records, np.zeros((2, 2, 2)), "inline", 1, 0.0)


def test_a_hostile_device_is_clipped_then_refused_and_nobody_else_is(poisoned):
    uploads = [row for row in poisoned.strategy.ledger.rows if row.phase == "upload"]
    assert {row.outcome for row in uploads if row.device} == {"ok"}
    own = [row.outcome for row in uploads if not row.device]
    assert own == ["clipped"] + ["rejected"] * 7
    assert all(np.isfinite(value).all() and np.abs(value).max() < 10 for value in poisoned.strategy.weights.values())
    assert [record.num_devices for record in poisoned.rounds] == [0, 5] + [4] * 7


def test_what_was_clipped_counts_as_delivered(poisoned):
    rows = poisoned.strategy.ledger.rows
    assert endings(rows)[1, 0] == "clipped" and endings(rows)[2, 0] == "rejected"
    table = device_table(poisoned)
    assert table["rounds_clipped"].tolist() == [1, 0, 0, 0, 0] and table["asked"].tolist() == [8] * 5
    assert fleet_figures(poisoned, table)["in_time"] == 33 / 40


def test_the_summary_says_what_went_wrong(poisoned):
    clipped, rejected = problems(poisoned.strategy.ledger.rows)
    assert (clipped["outcome"], clipped["rows"], clipped["devices"]) == ("clipped", 1, 1) and "scaled down" in clipped["reason"]
    assert (rejected["outcome"], rejected["rows"], rejected["devices"]) == ("rejected", 7, 1) and "on probation" in rejected["reason"]


def test_a_refused_device_is_sent_the_whole_model(poisoned):
    downloads = {(row.round, row.device): row.down_bytes for row in poisoned.strategy.ledger.rows if row.phase == "download"}
    assert all(downloads[number, 0] > downloads[number, 1] for number in range(3, 9))


def test_honest_devices_are_not_clipped():
    strategy = play(tiny_world("stream.devices=5"))
    assert {row.outcome for row in strategy.ledger.rows} <= {"ok", "sat-out"}
