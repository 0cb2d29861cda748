"""Averaging: by hand, by plain FedAvg, against the reference, and in device order."""

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import RecordingGrid, play, tiny_world

from client.local_round import train
from client.state.device_state import new_device
from server.aggregation.average import mean_update, voted
from server.aggregation.config import AggregationConfig
from server.aggregation.update import Update
from server.global_model.masks import mean_importance
from simulations.build import make_strategy
from sparcl_core.codec import Layout, SparseTensor
from sparcl_core.learner import Learner
from sparcl_core.sparsity.masks import random_mask
from sparcl_core.wire.protocol import Instruction

LAYOUT = Layout(
    {"hidden": (2, 3), "rows": (3, 2), "bias": (3,), "var": (2,)}, frozenset({"hidden", "rows"}), frozenset({"var"})
)  # fmt: skip
CLASSIFIER = ("rows", "bias")
RULES = ("masked-mean", "zero-filled", "count-mean")
ZERO = {name: np.zeros(shape, dtype=np.float32) for name, shape in LAYOUT.shapes.items()}


def dense(values) -> SparseTensor:
    values = np.array(values, dtype=np.float32).reshape(-1)
    return SparseTensor(np.arange(values.size), values)


def update(device: int, samples: int, seen=(1, 1, 1), masks=None, **tensors: SparseTensor) -> Update:
    return Update(device, samples, np.array(seen, dtype=bool), tensors, masks)


def holding(places: list[int], value: float, device: int, samples: int, **others) -> Update:
    """A device whose mask of `hidden` has `places`, all of which change by `value`."""
    mask = np.zeros(6, dtype=bool)
    mask[places] = True
    changed = SparseTensor(np.array(places, dtype=np.int64), np.full(len(places), value, dtype=np.float32))
    return update(device, samples, masks={"hidden": mask.reshape(2, 3)}, hidden=changed, **others)


def mean(updates, weights=ZERO, classifier=CLASSIFIER, **settings):
    config = AggregationConfig(**settings)
    return mean_update(updates, weights, LAYOUT, classifier if config.row_voting else (), config=config)


def hidden(updates, weight: float = 0.0, **settings) -> list[float]:
    """The change of `hidden`, flat, where all its weights are `weight`."""
    return mean(updates, ZERO | {"hidden": np.full((2, 3), weight, dtype=np.float32)}, **settings)["hidden"].reshape(-1).tolist()


def test_old_updates_move_the_model_less():
    """Three of age 3 with a = 1/2 have s = (1 + 3)^-1/2 = 1/2. FedBuff: w += sum s d / K = (1/2 * 4 + 1/2 * 8 + 1/2 * 6) / 3 = 3."""
    old = [replace(holding([0], value, device, 10), weight=0.5) for device, value in enumerate((4.0, 8.0, 6.0))]
    assert hidden(old)[0] == 3.0 and hidden(old, rule="count-mean")[0] == 3.0
    assert hidden(old, stale="normalise")[0] == 6.0  # as if they were new: only their say beside others is less


def test_a_new_update_beside_an_old_one():
    """30 samples that say 1 and, of age 3, 10 that say 5: (30 * 1 + 10 * 5 / 2) / 40 = 1.375; normalised (30 + 5 * 5) / 35 = 11 / 7."""
    pair = [holding([2], 1.0, 0, 30), replace(holding([2], 5.0, 1, 10), weight=0.5)]
    assert hidden(pair)[2] == 1.375
    assert hidden(pair, stale="normalise")[2] == pytest.approx(11 / 7, rel=1e-15)
    # zero-filled: theta = (30 * 3 + 10 * (2 + 5 / 2)) / 40, which is 2 + 1.375
    assert hidden(pair, weight=2, rule="zero-filled")[2] == 1.375


def test_full_updates_average_as_in_fedavg():
    rng = np.random.default_rng(0)
    samples = (30, 10, 60)
    arrays = [{name: rng.standard_normal(shape).astype(np.float32) for name, shape in LAYOUT.shapes.items()} for _ in samples]
    updates = [
        update(device, n, **{name: dense(value) for name, value in tensors.items()})
        for device, (n, tensors) in enumerate(zip(samples, arrays, strict=True))
    ]
    result = mean(updates, classifier=())
    for name in LAYOUT.shapes:
        one, two, three = (tensors[name].astype(float) for tensors in arrays)
        by_hand = 0.3 * one + 0.1 * two + 0.6 * three
        assert result[name].dtype == np.float64
        assert np.allclose(result[name], by_hand, rtol=1e-12, atol=1e-15)


def test_what_a_device_did_not_send_counts_as_zero():
    """Two devices of 1 and 3 samples; place 4 is sent by the second alone: (1 * 0 + 3 * 8) / 4 = 6."""
    one = update(0, 1, hidden=SparseTensor(np.array([0]), np.array([4.0])))
    two = update(1, 3, hidden=SparseTensor(np.array([0, 4]), np.array([8.0, 8.0])))
    result = mean([one, two])
    assert result["hidden"].tolist() == [[7.0, 0.0, 0.0], [0.0, 6.0, 0.0]]  # place 0: (1 * 4 + 3 * 8) / 4
    assert not result["rows"].any() and result["rows"].shape == (3, 2)


# Devices of 1 and 3 samples with places 0, 1, 2 and 0, 1, 3, which change by 4 and by 8; w = 2 everywhere. Places 4 and 5: nobody.
PAIR = (holding([0, 1, 2], 4, device=0, samples=1), holding([0, 1, 3], 8, device=1, samples=3))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # both hold: (1 * 4 + 3 * 8) / 4 = 7; one holds: its change whole
        ({}, [7, 7, 4, 8, 0, 0]),
        ({"unheld": "zero"}, [7, 7, 4, 8, -2, -2]),
        # both hold: (4 + 8) / 2 = 6
        ({"rule": "count-mean"}, [6, 6, 4, 8, 0, 0]),
        # theta = (1 * (2 + 4) + 3 * (2 + 8)) / 4 = 9; the first alone: 1 * 6 / 4 = 1.5; the second alone: 3 * 10 / 4 = 7.5
        ({"rule": "zero-filled"}, [7, 7, -0.5, 5.5, 0, 0]),
        ({"rule": "zero-filled", "unheld": "zero"}, [7, 7, -0.5, 5.5, -2, -2]),
        # two votes wanted: places 2 and 3 have one device each, whatever its samples
        ({"min_votes": 2}, [7, 7, 0, 0, 0, 0]),
        ({"min_votes": 2, "unheld": "zero"}, [7, 7, -2, -2, -2, -2]),
        ({"min_votes": 2, "rule": "zero-filled"}, [7, 7, 0, 0, 0, 0]),
        ({"min_votes": 2, "rule": "count-mean"}, [6, 6, 0, 0, 0, 0]),
        # more votes than devices: nothing moves, and nothing is erased as nobody could have held it
        ({"min_votes": 3, "unheld": "zero"}, [0, 0, 0, 0, 0, 0]),
        # tau = 1 * 4: 28 / (4 + 4), 4 / (1 + 4), 24 / (3 + 4)
        ({"shrinkage": 1}, [3.5, 3.5, 4 / 5, 24 / 7, 0, 0]),
        # tau = 1 * 2 devices: 12 / (2 + 2), 4 / (1 + 2), 8 / (1 + 2)
        ({"shrinkage": 1, "rule": "count-mean"}, [3, 3, 4 / 3, 8 / 3, 0, 0]),
        # tau w = 8: theta = (36 + 8) / 8 = 5.5, (6 + 8) / 8 = 1.75, (30 + 8) / 8 = 4.75
        ({"shrinkage": 1, "rule": "zero-filled"}, [3.5, 3.5, -0.25, 2.75, 0, 0]),
    ],
)
def test_rules_by_hand(settings, expected):
    assert hidden(PAIR, weight=2, **settings) == pytest.approx(expected, rel=1e-15)


def test_only_masked_tensors_are_erased():
    """Two votes are wanted and one device came for class 0, one for class 1, none for class 2: bias (dense) and rows (masked, and
    held by both) lack votes as classes do, so they are kept; so is `var`, which three of two devices cannot hold."""
    one, two = update(0, 1, (1, 0, 0)), update(1, 1, (0, 1, 0))
    weights = {name: np.ones(shape, dtype=np.float32) for name, shape in LAYOUT.shapes.items()}
    for votes in (1, 2, 3):
        for rule in RULES:
            assert not any(u.any() for u in mean([one, two], weights, unheld="zero", min_votes=votes, rule=rule).values())
    nothing = {name: np.zeros(LAYOUT.shapes[name], dtype=bool) for name in ("hidden", "bias", "var")}
    result = mean([update(0, 1, masks=nothing)], weights, unheld="zero")
    assert (result["hidden"] == -1).all() and not result["bias"].any() and not result["var"].any()


def test_a_masked_classifier_row_is_erased_only_where_voters_do_not_hold_it():
    """Row 0 was seen by both and is held in part: by both, by one. Row 1 was seen by one, which does not hold it. Row 2 by nobody."""
    ones = {name: np.ones(shape, dtype=np.float32) for name, shape in LAYOUT.shapes.items()}
    one = update(0, 1, (1, 1, 0), masks={"rows": np.array([[1, 1], [0, 0], [0, 0]], dtype=bool)})
    two = update(1, 1, (1, 0, 0), masks={"rows": np.array([[1, 0], [1, 1], [0, 0]], dtype=bool)})
    assert mean([one, two], ones, unheld="zero")["rows"].tolist() == [[0, 0], [-1, -1], [0, 0]]
    assert mean([one, two], ones, unheld="zero", min_votes=2)["rows"].tolist() == [[0, -1], [0, 0], [0, 0]]
    assert mean([one, two], ones, unheld="zero", row_voting=False)["rows"].tolist() == [[0, 0], [0, 0], [-1, -1]]
    votes = voted([one, two], LAYOUT, CLASSIFIER, AggregationConfig())
    assert votes["rows"].tolist() == [[True, True], [False, False], [False, False]]
    assert votes["bias"].tolist() == [True, True, False] and votes["hidden"].all() and votes["hidden"].shape == (2, 3)
    assert all(votes[name].dtype == bool and votes[name].flags.writeable for name in LAYOUT.shapes)


@pytest.mark.parametrize("rule", RULES)
def test_classifier_rows_are_voted_on_by_those_who_saw_the_class(rule):
    """n = 1 and 3. Class 0 seen by both: (1 * 4 + 3 * 8) / 4 = 7. Class 1 by the first alone: 4, whatever the second sends; no rule
    takes the second's absence for a zero. Class 2 by nobody: 0. The same for the bias, and for no other tensor."""
    one = update(0, 1, (1, 1, 0), rows=dense([4] * 6), bias=dense([4] * 3), hidden=dense([4] * 6))
    two = update(1, 3, (1, 0, 0), rows=dense([8] * 6), bias=dense([8] * 3), hidden=dense([8] * 6))
    both = 6 if rule == "count-mean" else 7
    result = mean([one, two], {name: value + 2 for name, value in ZERO.items()}, rule=rule)
    assert result["rows"].tolist() == [[both, both], [4, 4], [0, 0]]
    assert result["bias"].tolist() == [both, 4, 0]
    assert (result["hidden"] == both).all()
    for without in (mean([one, two], rule=rule, row_voting=False), mean([one, two], rule=rule, classifier=())):
        assert (without["rows"] == both).all() and (without["bias"] == both).all()


def test_a_vote_without_a_word_counts_as_zero():
    """A device that saw the class and sent no change for the row pulls the mean towards no change: (2 * 0 + 2 * 6) / 4 = 3."""
    silent = update(0, 2, (1, 0, 0))
    loud = update(1, 2, (1, 0, 0), bias=dense([6, 6, 6]))
    assert mean([silent, loud])["bias"].tolist() == [3, 0, 0]


@st.composite
def cohorts(draw):
    """Updates of 1 to 5 devices: tensors left out, places not sent, values of unseen classes, devices with and without masks."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0.2, 0.5, 0.9]))
    updates = []
    for device in range(draw(st.integers(1, 5))):
        masks = {name: rng.random(LAYOUT.shapes[name]) < density for name in ("hidden", "rows") if rng.random() < 0.8}
        masks = draw(st.sampled_from([None, masks, masks]))
        tensors = {}
        for name, shape in LAYOUT.shapes.items():
            allowed = np.ones(shape, dtype=bool) if masks is None or name not in masks else masks[name]
            places = np.flatnonzero(allowed & (rng.random(shape) < 0.7))
            if rng.random() < 0.9:
                tensors[name] = SparseTensor(places, rng.standard_normal(places.size).astype(np.float32))
        updates.append(Update(2 * device, int(rng.integers(1, 100)), rng.random(3) < 0.6, tensors, masks))
    return updates


configs = st.builds(
    AggregationConfig,
    rule=st.sampled_from(RULES),
    unheld=st.sampled_from(["keep", "zero"]),
    min_votes=st.integers(1, 4),
    shrinkage=st.sampled_from([0.0, 0.1, 2.0]),
    row_voting=st.booleans(),
)


@settings(max_examples=300)
@given(cohorts(), configs)
def test_every_rule_is_the_reference(updates, config):
    rng = np.random.default_rng(len(updates))
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in LAYOUT.shapes.items()}
    rows = CLASSIFIER if config.row_voting else ()
    result = mean_update(updates, weights, LAYOUT, rows, config=config)
    votes = voted(updates, LAYOUT, rows, config)
    assert list(result) == list(votes) == list(LAYOUT.shapes)
    for name, shape in LAYOUT.shapes.items():
        size, by_row = LAYOUT.size(name), config.row_voting and name in CLASSIFIER
        deltas, held, saw = [], [], []
        for one in updates:
            sent = one.tensors.get(name, SparseTensor(np.empty(0, np.int64), np.empty(0, np.float32)))
            values = dict(zip(sent.places.tolist(), sent.values.tolist(), strict=True))
            deltas.append([values.get(j, 0.0) for j in range(size)])
            held.append((one.masks or {}).get(name, np.ones(shape, dtype=bool)).reshape(-1).tolist())
            saw.append([bool(one.seen[j * 3 // size]) if by_row else True for j in range(size)])
        expected, enough = oracles.averaged(
            config.rule, [one.samples for one in updates], deltas, held, saw, weights[name].reshape(-1).tolist(),
            config.unheld == "zero" and name in LAYOUT.masked, config.min_votes, config.shrinkage,
        )  # fmt: skip
        assert votes[name].shape == result[name].shape == shape and result[name].dtype == np.float64
        assert votes[name].reshape(-1).tolist() == enough
        assert np.allclose(result[name].reshape(-1), [float(u) for u in expected], rtol=1e-12, atol=1e-14)
        still = ~votes[name]
        assert ((result[name][still] == 0) | (result[name][still] == -weights[name][still])).all()  # exactly kept or exactly erased


@given(cohorts())
def test_where_all_hold_everything_all_rules_agree_to_the_bit(updates):
    """Masks that hold everything, or no masks; equal samples, so that counting devices and samples is the same."""
    whole = {name: np.ones(LAYOUT.shapes[name], dtype=bool) for name in LAYOUT.masked}
    for masks in (None, whole):
        equal = [replace(one, samples=8, masks=masks) for one in updates]
        first, *others = [mean(equal, {name: value + 2 for name, value in ZERO.items()}, rule=rule) for rule in RULES]
        for name in LAYOUT.shapes:
            assert all(np.array_equal(first[name], other[name]) for other in others)
            assert np.array_equal(first[name], mean(equal, rule="masked-mean")[name])
    uneven = [replace(one, masks=None) for one in updates]
    filled = mean(uneven, {name: value + 2 for name, value in ZERO.items()}, rule="zero-filled")
    assert all(np.array_equal(filled[name], u) for name, u in mean(uneven).items())


@pytest.mark.parametrize("holders", [1, 2, 3, 4])
def test_filling_with_zeros_shrinks_by_the_share_of_holders(holders):
    """Nobody changes anything. A weight of 2 that `holders` of 4 equal devices hold stays 2, or becomes 2 * holders / 4."""
    updates = [update(k, 5, masks={"hidden": np.full((2, 3), k < holders)}) for k in range(4)]
    assert hidden(updates, weight=2, rule="zero-filled") == [2 * holders / 4 - 2] * 6
    assert hidden(updates, weight=2) == hidden(updates, weight=2, rule="count-mean") == [0] * 6


def test_one_holder_is_taken_whole_and_shrinkage_tempers_it():
    """A device with 1 of 100 samples alone holds place 0 and changes it by 5."""
    alone, rest = holding([0], 5, device=0, samples=1), holding([1], 5, device=1, samples=99)
    assert hidden([alone, rest])[0] == 5
    assert hidden([alone, rest], shrinkage=0.01)[0] == pytest.approx(5 / (1 + 1))  # tau = 0.01 * 100 = 1
    assert hidden([alone, rest], shrinkage=0.01)[1] == pytest.approx(99 * 5 / (99 + 1))


def test_the_union_of_independent_masks_is_almost_dense():
    """Ten random masks of density 0.1: some device holds 1 - 0.9^10 = 0.651 of 40,000 places (4 deviations: 0.0095), and at
    least two devices hold 1 - 0.9^10 - 10 * 0.1 * 0.9^9 = 0.264 of them (4 deviations: 0.0088)."""
    layout = Layout({"w": (200, 200)}, frozenset({"w"}))
    rng = np.random.default_rng(7)
    updates = [update(k, 1, masks={"w": random_mask((200, 200), 4000, rng)}) for k in range(10)]
    assert abs(voted(updates, layout, (), AggregationConfig())["w"].mean() - 0.6513) < 0.0095
    assert abs(voted(updates, layout, (), AggregationConfig(min_votes=2))["w"].mean() - 0.2639) < 0.0088


@pytest.mark.parametrize("rule", RULES)
def test_without_masks_no_device_costs_an_array_of_the_models_size(rule):
    """A million weights are 8 MB in float64: the result, and a byte a weight at most beside it."""
    layout = Layout({"w": (1000, 1000)}, frozenset({"w"}))
    weights = {"w": np.ones((1000, 1000), dtype=np.float32)}
    updates = [update(k, 1, w=SparseTensor(np.array([k, 999_999]), np.ones(2, dtype=np.float32))) for k in range(20)]
    tracemalloc.start()
    result = mean_update(updates, weights, layout, (), config=AggregationConfig(rule, unheld="zero"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result["w"][0, 0] == 1 / 20 and result["w"][-1, -1] == 1
    assert peak < 9.5e6


def test_a_sum_is_taken_in_double_precision():
    """1 / 3 in float32 times 3 samples is 1.0000000298 in float64, and 1 in float32."""
    third = np.float32(1 / 3)
    assert mean([update(0, 3, bias=dense([third] * 3))], classifier=())["bias"][0] == float(third)
    assert mean([update(0, 3, bias=dense([third] * 3)), update(1, 1)], classifier=())["bias"][0] == 3 * float(third) / 4


def test_a_value_outside_the_devices_mask_is_refused():
    wrong = replace(holding([0, 3], 1, device=4, samples=1), tensors={"hidden": dense([1] * 6)})
    with pytest.raises(ValueError, match="device 4 sent 4 values of hidden at places that its mask does not hold"):
        mean([wrong])
    with pytest.raises(ValueError, match=r"device 4 has a mask of shape \(3, 2\) for hidden"):
        mean([update(4, 1, masks={"hidden": np.ones((3, 2), dtype=bool)})])


@pytest.mark.parametrize("order", [[1, 0], [0, 0], []])
def test_updates_must_come_in_device_order(order):
    """The order of a floating-point sum changes its bits: a result must not depend on who finished first."""
    with pytest.raises(ValueError, match="device order"):
        mean([update(device, 1) for device in order])


def test_updates_without_a_sample_have_no_mean():
    with pytest.raises(ValueError, match="no update has a sample"):
        mean([update(0, 0), update(1, 0)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "medan"}, "aggregation.rule is 'medan': input should be 'masked-mean', .*; did you mean 'median'?"),
        ({"unheld": "drop"}, "unheld is 'drop': .* choose keep or zero"),
        ({"min_votes": 0}, "min_votes is 0: at least 1; 1 moves"),
        ({"shrinkage": -0.1}, "shrinkage is -0.1: finite and not negative; 0 switches it off"),
        ({"shrinkage": math.inf}, "shrinkage is inf"),
        ({"shrinkage": math.nan}, "shrinkage is nan"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AggregationConfig(**settings)


def test_importance_is_weighted_by_samples():
    """(1 * 0.2 + 3 * 0.6) / 4 = 0.5 at place 1, (1 * 0.8 + 3 * 0) / 4 = 0.2 at place 5; 0 at inactive places."""
    layout = Layout({"hidden": (2, 3), "bias": (3,)}, frozenset({"hidden"}))
    one = {"hidden": SparseTensor(np.array([1, 5]), np.array([0.2, 0.8]))}
    two = {"hidden": SparseTensor(np.array([1, 5]), np.array([0.6, 0.0]))}
    result = mean_importance([(1, one), (3, two)], layout)
    assert result.keys() == {"hidden"}
    assert np.allclose(result["hidden"], [[0, 0.5, 0], [0, 0, 0.2]])
    with pytest.raises(ValueError, match="no device reported"):
        mean_importance([], layout)


def test_one_dense_round_is_fedavg_end_to_end():
    """Everything that could differ is off: two devices, no sparsity, lossless codec, no row voting, one round through the engine.

    By hand: train both devices from the same weights with the learner itself, w = (n_0 w_0 + n_1 w_1) / (n_0 + n_1).
    """
    world = tiny_world(
        "stream.devices=2", "stream.tasks=1", "sparsity=0", "model.dtype=float64", "federation.rounds_per_task=1",
        "wire.up=f64", "wire.down=f64", "aggregation.row_voting=false",
    )  # fmt: skip
    e = world.experiment
    start = make_strategy(world).weights
    learner = Learner(e.method, world.data.inputs, e.federation.task_epochs, e.seed)
    sessions = []
    for number, stream in enumerate(world.streams):
        fresh = new_device(learner, stream)
        device = replace(fresh, model=replace(fresh.model, base=start))
        done = train(device, Instruction(1, 0, 1, False, ()), learner, stream, number=number, config=world.client_config)[1]
        sessions.append(done.session)

    counts = [session.samples for session in sessions]
    assert counts[0] != counts[1]  # otherwise a mean without weights would pass too
    trained = play(world, RecordingGrid(world)).weights
    for name in start:
        by_hand = sum(session.samples * session.state[name] for session in sessions) / sum(counts)
        assert np.abs(by_hand - start[name]).max() > 1e-4  # something was learned
        assert np.allclose(trained[name], by_hand, rtol=1e-12, atol=1e-13)
