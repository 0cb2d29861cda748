"""How sparse a device trains: the densest level that fits, masks within masks, and who cannot take part at all."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_cohort import METHOD
from worlds import TOY, RecordingGrid, assert_same_arrays, kind_of, play, tiny, tiny_world, toy_fleet

from server.errors import FleetError
from server.fleet.hardware import Hardware
from server.global_model.broadcast import nested
from server.selection.estimate import Estimates, Workload
from server.selection.sparsity_tiers import BudgetConfig, assign
from simulations.build import make_strategy
from sparcl_core import codec
from sparcl_core.costs.device import DeviceProfile
from sparcl_core.costs.flops import LayerShape
from sparcl_core.costs.memory import Held
from sparcl_core.learner import Learner
from sparcl_core.sparsity.masks import count_active, initial_masks, num_active
from sparcl_core.wire.protocol import Report

SIZES = {"conv2.weight": 576, "fc.weight": 2048}
WORK = Workload(METHOD, 1, (LayerShape("w", 1000, 1, False),), Held({"w": 1000}, 4, 0), {"w": (1000,)}, 10, 16, 10, True)


def hardware(**figures) -> Hardware:
    count = len(next(iter(figures.values())))
    own = {name: np.array(values, np.float64) for name, values in figures.items()}
    return Hardware((DeviceProfile("toy", **TOY),), np.zeros(count, np.int64), {}, own)


def needs(sparsity: float) -> int:
    return int(WORK.memory(sparsity, np.array([6]), np.array([60]))[0])


def assigned(config: BudgetConfig, fleet: Hardware):
    count = len(fleet)
    return assign(config, WORK, fleet, buffered=np.full(count, 6), samples=np.full(count, 20))


# -- who fits what


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memory": "shrink"}, "memory is 'shrink': choose refuse, fit or ignore"),
        ({"joules_per_round": -1.0}, "joules_per_round is -1.0"),
        ({"joules_per_round": float("nan")}, "joules_per_round is nan"),
        ({"levels": (0.9, 0.8)}, "ascending, none twice"),
        ({"levels": (0.9, 0.9)}, "ascending, none twice"),
        ({"levels": (0.9, 1.0)}, r"sparsities in \(0, 1\)"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BudgetConfig(**settings)


def test_every_device_gets_the_densest_level_that_fits():
    """Just enough for 0.5, one byte less, just enough for 0.9, one byte less, and so on; levels that nobody needs are none."""
    levels = (0.8, 0.9, 0.99)
    memory = [needs(0.5), needs(0.5) - 1, needs(0.9), needs(0.9) - 1, needs(0.99) - 1]
    assert memory == sorted(memory, reverse=True)
    tiers = assigned(BudgetConfig("fit", levels=levels), hardware(memory_bytes=memory))
    assert [level.sparsity for level in tiers.levels] == [0.5, 0.8, 0.9, 0.99] and tiers.of.tolist() == [0, 1, 2, 3, -1]
    assert list(tiers.reasons) == [4] and f"{needs(0.99):,} bytes at sparsity 0.99" in tiers.reasons[4]
    few = assigned(BudgetConfig("fit", levels=levels), hardware(memory_bytes=[memory[0], memory[2]]))
    assert few.sparsities == (0.5, 0.9) and few.of.tolist() == [0, 1]


def test_the_experiments_own_tier_is_there_though_nobody_is_in_it():
    tiers = assigned(BudgetConfig("fit", levels=(0.3, 0.9)), hardware(memory_bytes=[needs(0.9)] * 2))
    assert tiers.sparsities == (0.5, 0.9) and tiers.of.tolist() == [1, 1]


def test_who_does_not_fit_is_refused_or_the_budget_is_ignored():
    fleet = hardware(memory_bytes=[needs(0.5), needs(0.5) - 1])
    refused = assigned(BudgetConfig("refuse"), fleet)
    assert refused.of.tolist() == [0, -1] and "the device has" in refused.reasons[1] and len(refused.levels) == 1
    ignored = assigned(BudgetConfig("ignore"), fleet)
    assert ignored.of.tolist() == [0, 0] and ignored.reasons == {}


def test_an_energy_budget_refuses_or_fits_as_well():
    fleet = hardware(active_w=[4.0, 8.0, 4000.0])
    level = WORK.level(0.5)
    joules = Estimates(fleet, WORK, (level,), np.zeros(3, np.int64)).joules(np.arange(3), np.full(3, 20), level.bytes, level.bytes)
    budget = float(joules[0]) * 1.01
    refused = assigned(BudgetConfig("refuse", joules_per_round=budget), fleet)
    assert refused.of.tolist() == [0, -1, -1] and f"its budget is {budget:g} J" in refused.reasons[1]
    fitted = assigned(BudgetConfig("fit", joules_per_round=budget, levels=(0.6, 0.9, 0.95)), fleet)
    assert fitted.of[0] == 0 and fitted.of[1] > 0 and fitted.of[2] == -1
    assert assigned(BudgetConfig("ignore", joules_per_round=budget), fleet).of.tolist() == [0, -1, -1]


def test_a_dense_run_has_no_sparser_tiers():
    dense = replace(WORK, method=replace(METHOD, sparsity=0.0), shapes={})
    tiers = assign(BudgetConfig("fit"), dense, hardware(memory_bytes=[1e9, 10.0]), buffered=np.zeros(2, np.int64), samples=np.full(2, 20))
    assert len(tiers.levels) == 1 and tiers.of.tolist() == [0, -1]


# -- masks within masks


def test_nested_masks_by_hand():
    """Ten places, six of them active; a sparsity of 0.7 keeps the three largest, and of the equal ones the one with the lower index."""
    mask = {"w": np.array([1, 1, 1, 1, 1, 1, 0, 0, 0, 0], bool)}
    weights = {"w": np.array([0.5, -3.0, 0.5, 2.0, -0.5, 0.1, 9.0, 0, 0, 0])}
    assert np.flatnonzero(nested(mask, weights, 0.7)["w"]).tolist() == [0, 1, 3]
    assert np.flatnonzero(nested(mask, weights, 0.0)["w"]).tolist() == [0, 1, 2, 3, 4, 5]  # no more than there are


@given(st.integers(0, 99), st.sampled_from([0.5, 0.7, 0.9]), st.sampled_from([0.7, 0.9, 0.99]))
def test_nested_masks_are_subsets_with_exact_counts(seed, shared, sparser):
    rng = np.random.default_rng(seed)
    masks = initial_masks({"a": (13, 7), "b": (5, 4, 3, 3)}, shared, seed)
    weights = {name: np.round(rng.standard_normal(mask.shape), 1) for name, mask in masks.items()}
    found = nested(masks, weights, sparser)
    for name, mask in masks.items():
        assert not (found[name] & ~mask).any()
        assert found[name].sum() == min(mask.sum(), num_active(mask.size, sparser))
        if 0 < found[name].sum() < mask.sum():
            assert np.abs(weights[name][found[name]]).min() >= np.abs(weights[name][mask & ~found[name]]).max()
        again = nested(found, weights, max(sparser, 0.95))  # tiers within tiers
        assert not (again[name] & ~found[name]).any()


# -- in a run

FIT = ("budget.memory=fit", "budget.levels=[0.95, 0.98]")
MEMORY = {"memory_bytes": [1e6, 135_000, 133_000]}  # 0.9 needs about 136,000 bytes, 0.95 about 133,600, 0.98 about 131,900


def test_devices_of_a_tier_hold_and_send_what_is_inside_their_masks(monkeypatch, tmp_path):
    """Every round: exact counts, subsets of the shared masks, and updates that lie within."""
    world, sent = tiny_world(*FIT, "wire.importance=f32", *toy_fleet(tmp_path, **MEMORY)), []
    grid, shares, true = RecordingGrid(world), {}, Learner.train

    def watched(learner, state, masks, data, memory, epochs, device):
        session = true(learner, state, masks, data, memory, epochs=epochs, device=device)
        for name, mask in masks.items():
            assert not (session.updated[name] & ~mask).any() and not session.state[name][~mask].any()
        shares.setdefault(device, []).append((count_active(masks), {name: int(own.sum()) for name, own in session.updated.items()}))
        return session

    monkeypatch.setattr(Learner, "train", watched)

    def observe(record, strategy):
        assert strategy.federation.cohorts.tiers.of.tolist() == [0, 1, 2]
        if not record.round:
            return
        shared, *sparser = strategy.model.broadcasts.by_tier
        for broadcast, sparsity in zip(sparser, (0.95, 0.98), strict=True):
            assert count_active(broadcast.masks) == {name: num_active(size, sparsity) for name, size in SIZES.items()}
            for name, mask in broadcast.masks.items():
                assert not (mask & ~shared.masks[name]).any() and not broadcast.held[name][~mask].any()
        assert not (sparser[1].masks["fc.weight"] & ~sparser[0].masks["fc.weight"]).any()
        for message in grid.received[record.round]:
            device, wire = message.metadata.src_node_id - 1, message.content["report"]
            own = strategy.model.broadcasts[device]
            assert_same_arrays(grid.device(device).masks, own.masks)
            assert_same_arrays(grid.device(device).base, own.held)
            report = Report.from_wire(wire["control"], wire["delta"], wire["masks"])
            for name, tensor in codec.decode(report.delta, strategy.model.layout, own.masks).tensors.items():
                assert name not in own.masks or own.masks[name].reshape(-1)[tensor.places].all()
            assert bool(report.masks) <= (device == 0)  # the shared masks are the business of those that hold all of them
            sent.append(len(report.delta))

    strategy = play(world, grid, observe)
    assert {row.outcome for row in strategy.ledger.rows} == {"ok"} and strategy.model.broadcast.mask_version == 5
    trained = [row for row in strategy.ledger.rows if row.phase == "train"]
    exact = {device: sum(num_active(size, s) for size in SIZES.values()) for device, s in enumerate((0.9, 0.95, 0.98))}
    grown = {row.active for row in trained if row.device == 0} - {exact[0]}
    assert len(grown) == 1  # the first round of the second task
    assert all(row.active == exact[row.device] for row in trained if row.device)
    assert all(row.memory_bytes <= MEMORY["memory_bytes"][row.device] for row in trained)


def test_a_sparser_device_updates_as_large_a_share_of_what_it_holds(tmp_path):
    """Gradient masks: of 205 and 58 active weights those of sparsity 0.9 touch four fifths; so do those of the sparser tiers."""
    world = tiny_world(
        *FIT, "stream.tasks=1", "stream.partition=iid", "dgm.sparsity=0.92", "dgm.interval=1000", *toy_fleet(tmp_path, **MEMORY)
    )
    rows = [row for row in play(world).ledger.rows if row.phase == "train"]
    for row in rows:
        assert row.updated / row.active == pytest.approx(0.8, abs=0.02), row.device
    assert {row.device for row in rows} == {0, 1, 2}


def test_a_tier_of_its_own_for_nobody_changes_nothing(tmp_path):
    """With room for all, `fit` is the run without it."""
    runs = [play(tiny_world(*budget, *toy_fleet(tmp_path))) for budget in ((), FIT, ("budget.memory=ignore",))]
    for other in runs[1:]:
        assert len(other.model.broadcasts.by_tier) == 1
        assert_same_arrays(other.weights, runs[0].weights)
        assert other.ledger.rows == runs[0].ledger.rows


def test_who_is_refused_has_one_row(tmp_path):
    """When the run begins, and never again."""
    strategy = play(tiny_world(*toy_fleet(tmp_path, memory_bytes=[1e6, 1e5, 1e6])))
    rows = [row for row in strategy.ledger.rows if row.device == 1]
    assert [(row.round, row.task, row.phase, row.outcome) for row in rows] == [(0, -1, "train", "refused")]
    assert rows[0].reason.startswith("training needs 136,") and rows[0].reason.endswith("the device has 100,000")
    assert rows[0].seconds == rows[0].joules == rows[0].message_bytes == 0
    assert {row.device for row in strategy.ledger.rows if row.round} == {0, 2}


def test_a_fleet_that_is_refused_altogether_cannot_run(tmp_path):
    with pytest.raises(
        FleetError, match=r"no device can take part: training needs .* bytes at sparsity 0.9, the device has 100,000 \(device 0\); "
    ):
        play(tiny_world(*toy_fleet(tmp_path, memory_bytes=[1e5] * 3)))
    with pytest.raises(FleetError, match=r"no device can take part: a round takes .* J at sparsity 0.9, its budget is 0.01 J"):
        play(tiny_world("budget.joules_per_round=0.01", *toy_fleet(tmp_path)))


def test_tiers_are_brought_up_to_date_when_the_shared_masks_change(tmp_path):
    """Devices of a sparser tier are told what is dropped and added; the shared tier's redraw their growth."""
    world = tiny_world(*FIT, "stream.tasks=1", *toy_fleet(tmp_path, **MEMORY))
    grid = RecordingGrid(world)
    play(world, grid)
    kinds = {}
    for message in grid.sent[2]:
        kinds[message.metadata.dst_node_id - 1] = [kind_of(payload) for payload in message.content["instruction"]["payloads"]]
    assert kinds[0] == ["adapt", "delta"]
    assert all(own in (["drop", "add", "delta"], ["whole"]) for device, own in kinds.items() if device)


def test_a_deadline_that_nobody_can_meet_is_said_at_once(tmp_path):
    with pytest.raises(FleetError, match=r"clock.deadline_s is 0.6: no device can meet it, the fastest needs at least \d"):
        play(tiny_world("clock.deadline_s=0.6", *toy_fleet(tmp_path)))


def test_nested_masks_need_the_shared_one():
    with pytest.raises(ValueError, match="nested masks need the shared one"):
        tiny("budget.memory=fit", "federation.mask=local")


def test_a_strategy_starts_with_nested_masks(tmp_path):
    strategy = make_strategy(tiny_world(*FIT, *toy_fleet(tmp_path, **MEMORY)))
    for broadcast in strategy.model.broadcasts.by_tier:
        assert all(not broadcast.held[name][~mask].any() for name, mask in broadcast.masks.items())
    assert [broadcast.mask_version for broadcast in strategy.model.broadcasts.by_tier] == [0, 0, 0]
