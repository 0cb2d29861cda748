"""Robust rules: by hand, against slow references written from their papers, under masks, row voting and old updates, and in a fleet."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import play, tiny, tiny_world

from server.aggregation.average import chosen, mean_update, voted
from server.aggregation.config import AggregationConfig
from server.aggregation.distances import squared_distances
from server.aggregation.krum import scores
from server.aggregation.median import weighted_median
from server.aggregation.rfa import weiszfeld
from server.aggregation.update import Update
from simulations.config.errors import ConfigError
from sparcl_core.codec import Layout, SparseTensor

LAYOUT = Layout({"hidden": (2, 3), "rows": (3, 2), "var": (2,)}, frozenset({"hidden"}), frozenset({"var"}))
ZERO = {name: np.zeros(shape, np.float32) for name, shape in LAYOUT.shapes.items()}
ROBUST = ("median", "trimmed-mean", "krum", "multi-krum", "rfa")


def update(device: int, values, *, samples: int = 10, holds=None, seen=(1, 1, 1), weight: float = 1.0, var=(0.0, 0.0)) -> Update:
    """`values`: twelve, six of `hidden` and six of `rows`; `holds`: the mask of `hidden`."""
    values = np.broadcast_to(np.asarray(values, np.float32), (12,))
    mask = np.ones(6, bool) if holds is None else np.array(holds, bool)
    places = np.flatnonzero(mask)
    tensors = {
        "hidden": SparseTensor(places, values[:6][places]),
        "rows": SparseTensor(np.arange(6), values[6:]),
        "var": SparseTensor(np.arange(2), np.array(var, np.float32)),
    }
    masks = None if holds is None else {"hidden": mask.reshape(2, 3)}
    return Update(device, samples, np.array(seen, bool), tensors, masks, weight)


def mean(updates: list[Update], rows=("rows",), **settings) -> dict[str, np.ndarray]:
    config = AggregationConfig(**settings)
    return mean_update(chosen(updates, LAYOUT, config), ZERO, LAYOUT, rows, config=config)


@st.composite
def rounds(draw) -> list[Update]:
    """Three to nine devices with masks of their own, some classes unseen, some updates old."""
    rng = np.random.default_rng(draw(st.integers(0, 99999)))
    made = []
    for device in range(draw(st.integers(3, 9))):
        values = rng.choice([-2.0, -1.0, 0.0, 0.5, 3.0, 7.0], 12) if rng.random() < 0.3 else rng.normal(size=12)
        seen = rng.random(3) < 0.7
        seen[rng.integers(3)] = True
        weight = float(rng.choice([1.0, 0.5, 0.25]))
        made.append(update(device, values, samples=int(rng.integers(1, 90)), holds=rng.random(6) < 0.6, seen=seen, weight=weight))
    return made


def holders(updates: list[Update], name: str, place: int) -> list[tuple[float, float]]:
    """Change and weight s_k of each device that counts for a coordinate, the slow way."""
    found = []
    for one in updates:
        if name == "hidden" and not one.masks["hidden"].reshape(-1)[place]:
            continue
        if name == "rows" and not one.seen[place // 2]:
            continue
        sent = dict(zip(one.tensors[name].places.tolist(), one.tensors[name].values.astype(np.float64).tolist(), strict=True))
        found.append((sent.get(place, 0.0), one.weight))
    return found


def every_place(found: dict[str, np.ndarray]):
    for name in ("hidden", "rows"):
        yield from ((name, place, value) for place, value in enumerate(found[name].reshape(-1).tolist()))


# -- coordinates


@given(rounds())
def test_median_against_pythons(updates):
    for name, place, value in every_place(mean(updates, rule="median")):
        held = [change * weight for change, weight in holders(updates, name, place)]
        assert value == pytest.approx(statistics.median(held) if held else 0.0)


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(1, 4)), min_size=1, max_size=8))
def test_a_weight_is_that_many_equal_holders(pairs):
    values, weights = np.array([[float(value)] for value, _ in pairs]), np.array([float(weight) for _, weight in pairs])
    expected = statistics.median([value for value, weight in pairs for _ in range(weight)])
    assert weighted_median(values, weights).tolist() == [expected]


def test_the_servers_own_value_is_one_more_holder_of_a_median():
    """Of 1, 2 and 9 the median is 2; with a server of weight 3 * 1 the lower half is its 0 alone: between 0 and 1."""
    updates = [update(device, value) for device, value in enumerate((1.0, 2.0, 9.0))]
    assert (mean(updates, rule="median")["hidden"] == 2.0).all()
    assert (mean(updates, rule="median", shrinkage=1.0)["hidden"] == 0.5).all()
    assert (mean(updates, rule="median", shrinkage=0.4)["hidden"] == 1.0).all()  # 1.2 of 4.2: half is reached by 1


def test_old_updates_of_a_median():
    """2 and twice 4 of weight 1/2. Shrunk: 2, 2, 2. Normalised: weights 1, 1/2, 1/2 of 2, so half is reached by 2 exactly: (2 + 4) / 2."""
    updates = [update(0, 2.0), update(1, 4.0, weight=0.5), update(2, 4.0, weight=0.5)]
    assert (mean(updates, rule="median")["hidden"] == 2.0).all()
    assert (mean(updates, rule="median", stale="normalise")["hidden"] == 3.0).all()


@given(rounds(), st.sampled_from([0.0, 0.1, 0.2, 0.34, 0.49]), st.sampled_from([0.0, 0.5]), st.sampled_from(["shrink", "normalise"]))
def test_trimmed_mean_against_a_reference(updates, trim, shrinkage, stale):
    found = mean(updates, rule="trimmed-mean", options={"trim": trim}, shrinkage=shrinkage, stale=stale)
    everybody = sum(one.weight if stale == "normalise" else 1.0 for one in updates)
    for name, place, value in every_place(found):
        held = sorted((change * (1.0 if stale == "normalise" else weight), weight) for change, weight in holders(updates, name, place))
        cut = math.floor(round(trim * len(held), 9))
        kept = held[cut : len(held) - cut]
        counts = [weight if stale == "normalise" else 1.0 for _, weight in kept]
        total = sum(change * count for (change, _), count in zip(kept, counts, strict=True))
        if len({change for change, _ in held}) == len(held):  # of equal changes with unequal weights, any may be the one that is trimmed
            assert value == pytest.approx(total / (sum(counts) + shrinkage * everybody) if held else 0.0)


def test_a_trimmed_mean_of_ten_by_hand():
    """Of 0 to 8 and 1000, two are left out at either end: the mean of 2 to 7 is 4.5; without trimming it is 103.6."""
    updates = [update(device, value) for device, value in enumerate([*range(9), 1000])]
    assert (mean(updates, rule="trimmed-mean")["hidden"] == 4.5).all()
    assert mean(updates, rule="trimmed-mean", options={"trim": 0})["hidden"] == pytest.approx(np.full((2, 3), 103.6))


def test_no_rounding_error_decides_how_many_are_trimmed():
    """0.29 * 100 is 28.999... in floating point. 29 of 100 at 1000 and 29 at -1000 leave the 42 of 1."""
    updates = [update(device, value) for device, value in enumerate([1000] * 29 + [1] * 42 + [-1000] * 29)]
    assert (mean(updates, rule="trimmed-mean", options={"trim": 0.29})["hidden"] == 1.0).all()


# -- devices


def slow_distance(one: Update, other: Update) -> float:
    """Over all coordinates but those of statistics, 0 for what is not held."""
    total = 0.0
    for name in ("hidden", "rows"):
        for place in range(6):
            a, b = (
                dict(zip(u.tensors[name].places.tolist(), u.tensors[name].values.tolist(), strict=True)).get(place, 0) for u in (one, other)
            )
            total += (a - b) ** 2
    return total


@given(rounds())
def test_distances_against_a_reference(updates):
    found = squared_distances(updates, LAYOUT)
    for row, one in enumerate(updates):
        assert found[row].tolist() == pytest.approx([slow_distance(one, other) for other in updates], abs=1e-12)


def test_running_statistics_do_not_keep_devices_apart():
    assert squared_distances([update(0, 1.0), update(1, 1.0, var=(1e6, 1e6))], LAYOUT).tolist() == [[0, 0], [0, 0]]


@given(rounds(), st.integers(0, 4), st.integers(0, 5))
def test_krum_against_a_reference(updates, byzantine, keep):
    """Blanchard et al., section 4: the sum over the n - f - 2 nearest others, of each device; the lowest are chosen."""
    n = len(updates)
    told = []
    for one in updates:
        apart = sorted(slow_distance(one, other) for other in updates if other is not one)
        told.append(sum(apart[: max(1, n - byzantine - 2)]))
    assert scores(squared_distances(updates, LAYOUT), byzantine).tolist() == pytest.approx(told)
    for rule, options, most in (
        ("krum", {"byzantine": byzantine}, 1),
        ("multi-krum", {"byzantine": byzantine, "keep": keep}, min(n, keep or max(1, n - byzantine))),
    ):
        taken = [one.device for one in chosen(updates, LAYOUT, AggregationConfig(rule=rule, options=options))]
        assert taken == sorted(taken) and len(taken) == most
        worst = max(told[device] for device in taken)
        assert all(told[device] >= worst - 1e-9 for device in range(n) if device not in taken)


def test_krum_by_hand():
    """Five on a line, f = 1: the two nearest others of 0, 1, 2, 3 and 50 lie 1 + 4, 1 + 1, 1 + 1, 1 + 4 and far: 1 wins, of equals the
    lower; the four that multi-krum keeps are 0 to 3, mean 1.5. What only those that are left out hold has no vote."""
    updates = [update(device, value, holds=[1, 1, 1, 1, 1, device == 4]) for device, value in enumerate((0.0, 1.0, 2.0, 3.0, 50.0))]
    assert mean(updates, rule="krum")["rows"].reshape(-1).tolist() == [1.0] * 6
    found = mean(updates, rule="multi-krum")
    assert found["rows"].reshape(-1).tolist() == [1.5] * 6 and found["hidden"].reshape(-1).tolist() == [1.5] * 5 + [0.0]
    config = AggregationConfig(rule="multi-krum")
    assert voted(chosen(updates, LAYOUT, config), LAYOUT, (), config)["hidden"].reshape(-1).tolist() == [True] * 5 + [False]


def test_an_old_update_is_compared_as_it_came():
    """Halved for the average, not for the comparison: 2 of weight 1/2 is the one in the middle of -1, 1, 2 and 3, and 1 would not be."""
    updates = [update(0, 1.0), update(1, 2.0, weight=0.5), update(2, 3.0), update(3, 90.0), update(4, -1.0)]
    assert [one.device for one in chosen(updates, LAYOUT, AggregationConfig(rule="krum"))] == [1]
    assert (mean(updates, rule="krum")["hidden"] == 1.0).all()


@given(rounds())
def test_the_geometric_median_against_a_search(updates):
    """No other point has a smaller sum of n_k ||v - d_k||: not those around it, and not a device's own."""
    whole = np.stack([np.concatenate([_dense(one, "hidden"), _dense(one, "rows")]) for one in updates])
    samples = np.array([float(one.samples) for one in updates])
    weights = weiszfeld(squared_distances(updates, LAYOUT), samples)
    assert weights.sum() == pytest.approx(samples.sum()) and (weights > 0).all()
    found = weights @ whole / weights.sum()

    def cost(point: np.ndarray) -> float:
        return float(samples @ np.linalg.norm(whole - point, axis=1))

    rng = np.random.default_rng(0)
    least = cost(found) * (1 - 1e-3)  # 100 steps may end a little before it where it is a device's own point
    assert all(cost(point) >= least for point in whole)
    assert all(cost(found + step * rng.normal(size=12)) >= least for step in (0.01, 0.1, 1.0) for _ in range(5))


def _dense(one: Update, name: str) -> np.ndarray:
    found = np.zeros(6)
    found[one.tensors[name].places] = one.tensors[name].values
    return found


def test_a_geometric_median_by_hand():
    """On a line it is the weighted median: of 1, 2 and 100 with samples 10 each it is 2, and with 10, 10 and 30 it is 100."""
    values = (1.0, 2.0, 100.0)
    assert mean([update(d, v) for d, v in enumerate(values)], rule="rfa")["hidden"] == pytest.approx(np.full((2, 3), 2.0), rel=1e-3)
    heavy = [update(d, v, samples=n) for d, (v, n) in enumerate(zip(values, (10, 10, 30), strict=True))]
    assert mean(heavy, rule="rfa")["hidden"] == pytest.approx(np.full((2, 3), 100.0), rel=1e-3)


def test_equal_updates_and_a_single_one_are_what_they_are():
    for rule in ROBUST:
        for count in (1, 2, 5):
            found = mean([update(device, 3.0) for device in range(count)], rule=rule)
            assert found["hidden"] == pytest.approx(np.full((2, 3), 3.0)) and found["rows"] == pytest.approx(np.full((3, 2), 3.0)), rule


def test_huge_values_do_not_make_anything_infinite():
    updates = [update(device, value) for device, value in enumerate((1.0, 1.1, 0.9, 1.05, 3e38))]
    for rule in ROBUST:
        assert mean(updates, rule=rule)["hidden"] == pytest.approx(np.full((2, 3), 1.0), abs=0.11), rule


# -- whatever the rule


@given(rounds(), st.sampled_from(ROBUST), st.integers(0, 9))
def test_votes_and_row_voting_hold_under_every_rule(updates, rule, seed):
    """What fewer than `min_votes` of those that count hold stays, exactly."""
    config = AggregationConfig(rule=rule, min_votes=2)
    kept = chosen(updates, LAYOUT, config)
    for name, place, value in every_place(mean_update(kept, ZERO, LAYOUT, ("rows",), config=config)):
        if len(holders(kept, name, place)) < 2:
            assert value == 0.0


@given(rounds(), st.sampled_from(["median", "trimmed-mean"]))
def test_one_of_many_cannot_leave_the_range_of_the_others(updates, rule):
    """Ten honest devices and one of 10^6: every coordinate stays within what the honest have sent."""
    rng = np.random.default_rng(len(updates))
    honest = [update(device, rng.normal(size=12)) for device in range(10)]
    found = mean([*honest, update(10, 1e6)], rule=rule)
    for name in ("hidden", "rows"):
        sent = np.stack([_dense(one, name) for one in honest])
        flat = found[name].reshape(-1)
        assert (flat >= sent.min(0)).all() and (flat <= sent.max(0)).all()


@pytest.mark.parametrize("rule", ROBUST)
def test_a_fleet_is_trained_by_each(rule):
    options = ["aggregation.options.byzantine=0"] if "krum" in rule else []
    weights = play(tiny_world("federation.mask=local", f"aggregation.rule={rule}", *options)).weights
    mean = play(tiny_world("federation.mask=local")).weights
    assert all(np.isfinite(value).all() for value in weights.values())
    assert any((weights[name] != mean[name]).any() for name in mean)


def test_a_round_with_too_few_updates_to_compare_is_refused_before_anything_starts():
    with pytest.raises(ConfigError, match="aggregation.rule is 'krum', which needs 5 updates to compare and gets 3 in a round"):
        tiny("aggregation.rule=krum")
