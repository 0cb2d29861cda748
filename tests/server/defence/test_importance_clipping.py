"""Reports of importance that stand out of their round: by hand, over all reports, and in a run with a hostile device."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import play, tiny_world

from server.aggregation.update import Update
from server.defence.importance import SPREAD, bounded_reports
from server.global_model.contribution import Contribution
from server.ledger import Phase, Where
from server.rounds.registration import enrol
from simulations.build import make_roster, make_strategy
from sparcl_core.codec import Sizes, SparseTensor
from sparcl_core.learner import Learner


def report(norm: float) -> dict[str, SparseTensor]:
    """Of two tensors: 0.6 and 0.8 of the norm."""
    return {name: SparseTensor(np.array([3]), np.array([share * norm])) for name, share in (("a", 0.6), ("b", 0.8))}


def norm_of(one: dict[str, SparseTensor]) -> float:
    return float(np.sqrt(sum(np.square(tensor.values).sum() for tensor in one.values())))


@pytest.mark.parametrize("hostile", [5.1 * SPREAD * 2, 1e30, 1.7e308])
def test_a_report_that_stands_out_is_scaled_to_the_median_and_the_others_are_the_same_objects(hostile):
    told = {device: report(norm) for device, norm in enumerate((1.0, 2.0, hostile, 2.0, 5 * SPREAD * 2))}
    found, unusual = bounded_reports(told, 5.0)
    assert norm_of(found[2]) == pytest.approx(2)
    assert all(found[device] is told[device] for device in (0, 1, 3, 4))
    (one,) = unusual
    assert (one.device, one.is_refused) == (2, False) and "times the median of its round: it was scaled down to that" in one.reason


@pytest.mark.parametrize(("norms", "clip"), [((1.0, 1e30), 5.0), ((0.0, 0.0, 1.0, 1e30), 5.0), ((1.0, 1.0, 1.0, 1e30), 0.0), ((), 5.0)])
def test_with_nobody_to_compare_with_or_without_a_bound_nothing_is_scaled(norms, clip):
    told = {device: report(norm) for device, norm in enumerate(norms)}
    assert bounded_reports(told, clip) == (told, [])


@given(st.lists(st.one_of(st.just(0.0), st.floats(1e-300, 1e300)), max_size=8))
def test_whatever_is_reported_no_report_grows_and_no_minority_counts_beyond_the_bound(norms):
    told = {device: report(norm) for device, norm in enumerate(norms)}
    found, unusual = bounded_reports(told, 5.0)
    some = [norm for norm in norms if norm]
    for device, one in found.items():
        own, before = (max(tensor.values.max() for tensor in tensors.values()) for tensors in (one, told[device]))
        assert own <= before
        if len(some) >= 3:
            assert own <= 5 * SPREAD * np.median(some) * (1 + 1e-9)
    assert {one.device for one in unusual} == {device for device in told if found[device] is not told[device]}


# -- in a run


def inflated(monkeypatch, factor: float):
    """Device 0 reports `factor` times the importance that it found; whatever it found, to the others it is one of many."""
    true = Learner.importance_after

    def importance_after(learner, session, masks, data, device):
        found, cost = true(learner, session, masks, data, device)
        return ({name: value * factor for name, value in found.items()} if device == 0 else found), cost

    monkeypatch.setattr(Learner, "importance_after", importance_after)


@pytest.mark.parametrize("form", ["f32", "f64"])
def test_one_device_does_not_decide_on_the_shared_masks(monkeypatch, form):
    """Honest importance is below 10; of 1e30 times that all masks would be device 0's."""
    inflated(monkeypatch, 1e30)
    most = []

    def observe(record, strategy):
        most.append(max((np.abs(value).max() for value in strategy.model.masking._reported.values()), default=0.0))

    strategy = play(tiny_world(f"wire.importance={form}"), observe=observe)
    clipped = [row for row in strategy.ledger.rows if row.outcome == "clipped"]
    assert {(row.device, row.phase) for row in clipped} == {(0, "upload")}
    assert len(clipped) == np.count_nonzero(most) > 0 and max(most) < 10
    assert all("the importance that it reports is" in row.reason for row in clipped)


def test_honest_reports_are_not_touched(monkeypatch):
    """Nor votes: they have no size."""
    assert "clipped" not in {row.outcome for row in play(tiny_world("wire.importance=f32")).ledger.rows}
    inflated(monkeypatch, 1e30)
    assert "clipped" not in {row.outcome for row in play(tiny_world()).ledger.rows}


def test_the_report_of_a_device_whose_update_stood_out_does_not_count():
    world = tiny_world("stream.devices=4", "wire.importance=f32")
    strategy = make_strategy(world)
    enrol(strategy.federation, make_roster(world.streams))
    bias = next(name for name in strategy.model.layout.shapes if name not in strategy.model.layout.masked)
    found = []
    for device, (change, told) in enumerate([(1.0, 1.0), (1.0, 2.0), (1.0, 3.0), (1e6, 40.0)]):
        tensors = {bias: SparseTensor(np.array([0]), np.array([change], np.float32))}
        importance = {name: SparseTensor(np.flatnonzero(mask)[:1], np.array([told])) for name, mask in strategy.masks.items()}
        found.append(Contribution(Update(device, 1, np.ones(10, bool), tensors), importance, 1, Sizes()))
        strategy.ledger.transferred(Where(1, 0, device), Phase("upload"), Sizes(), 0)
    strategy.federation.finish(1, found)
    assert [row.outcome for row in strategy.ledger.rows] == ["ok"] * 3 + ["clipped"]
    for value in strategy.model.masking._reported.values():
        assert value.max() == pytest.approx(2)
