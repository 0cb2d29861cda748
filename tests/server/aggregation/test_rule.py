"""Rules of another kind fit beside the means: one that looks at every device's values, and one that leaves devices out."""

from itertools import combinations

import numpy as np
import pytest
from worlds import play, tiny_world

from server.aggregation.average import chosen, mean_update, voted
from server.aggregation.config import RULES, AggregationConfig
from server.aggregation.masked_mean import MaskedMean
from server.aggregation.registry import make_rule
from server.aggregation.rule import Changes, Rule
from server.aggregation.update import Update
from server.global_model.masks import LocalMasks
from sparcl_core.codec import Layout, SparseTensor

LAYOUT = Layout({"hidden": (2, 2), "rows": (2, 2)}, frozenset({"hidden"}), frozenset())
ZERO = {name: np.zeros(shape, np.float32) for name, shape in LAYOUT.shapes.items()}


class Median(Rule):
    """Coordinate-wise median over the holders (Yin et al., "Byzantine-Robust Distributed Learning", ICML 2018)."""

    def combine(self, changes: Changes) -> np.ndarray:
        held = changes.held()
        some = ~np.isnan(held).all(0)
        result = np.zeros(changes.shape)
        result[some] = np.nanmedian(held[:, some], axis=0)
        return result


class Nearest(MaskedMean):
    """The mean of the two updates that are nearest to each other, after Krum (Blanchard et al., NeurIPS 2017)."""

    def chosen(self, updates: list[Update], layout: Layout) -> list[Update]:
        def whole(one: Update, name: str) -> np.ndarray:
            found = np.zeros(LAYOUT.size(name))
            found[one.tensors[name].places] = one.tensors[name].values
            return found

        def apart(a: Update, b: Update) -> float:
            return sum(float(np.square(whole(a, name) - whole(b, name)).sum()) for name in LAYOUT.shapes)

        return list(min(combinations(updates, 2), key=lambda pair: apart(*pair)))


def update(device: int, value: float, holds=(1, 1, 1, 1), seen=(1, 1), weight: float = 1.0) -> Update:
    mask = np.array(holds, bool)
    places = np.flatnonzero(mask)
    hidden = SparseTensor(places, np.full(places.size, value, np.float32))
    rows = SparseTensor(np.arange(4), np.full(4, value, np.float32))
    return Update(device, 10, np.array(seen, bool), {"hidden": hidden, "rows": rows}, {"hidden": mask.reshape(2, 2)}, weight)


def largest(changes: Changes, *, power: float = 1.0) -> np.ndarray:
    """A rule that is a function: the holder whose change is largest; NaN where nobody holds a coordinate."""
    held = changes.held()
    which = np.argmax(np.where(np.isnan(held), -1.0, np.abs(held) ** power), axis=0)
    return np.take_along_axis(held, which[None], axis=0)[0]


def scalar(changes: Changes) -> float:
    return 0.5


def wide(changes: Changes) -> np.ndarray:
    return np.zeros(7)


def endless(changes: Changes) -> np.ndarray:
    return np.full(changes.shape, np.inf)


class Scaled(MaskedMean):
    """Reads a setting of the section."""

    def combine(self, changes: Changes) -> np.ndarray:
        return super().combine(changes) * self.settings.clip


class Last(MaskedMean):
    """All but the device with the highest number."""

    def chosen(self, updates: list[Update], layout: Layout) -> list[Update]:
        return updates[:-1] or updates


def rule(own, **settings) -> AggregationConfig:
    """Named as a user names it."""
    return AggregationConfig(rule=f"{__name__}:{own.__name__}", **settings)


def test_a_median_over_the_holders():
    """Of 1, 2 and 100 the median is 2; where the third does not hold it, that of 1 and 2 is 1.5."""
    updates = [update(0, 1.0), update(1, 2.0), update(2, 100.0, holds=(1, 0, 1, 1))]
    found = mean_update(updates, ZERO, LAYOUT, (), config=rule(Median))
    assert found["hidden"].tolist() == [[2.0, 1.5], [2.0, 2.0]] and (found["rows"] == 2.0).all()


def test_who_has_not_seen_a_class_is_no_holder_of_its_row():
    """Only the third has seen class 1: its 9 is the median there, and 3 that of 1, 3 and 9 elsewhere."""
    updates = [update(0, 1.0, seen=(1, 0)), update(1, 3.0, seen=(1, 0)), update(2, 9.0)]
    assert mean_update(updates, ZERO, LAYOUT, ("rows",), config=rule(Median))["rows"].tolist() == [[3.0, 3.0], [9.0, 9.0]]


@pytest.mark.parametrize(("stale", "median"), [("shrink", 2.0), ("normalise", 4.0)])
def test_old_updates_are_scaled_before_a_rule_sees_them(stale, median):
    """2, and twice 4 of weight 1/2: shrunk they are 2, 2 and 2; where weights are normalised a median, which has none, sees 2, 4 and 4."""
    updates = [update(0, 2.0), update(1, 4.0, weight=0.5), update(2, 4.0, weight=0.5)]
    assert (mean_update(updates, ZERO, LAYOUT, (), config=rule(Median, stale=stale))["hidden"] == median).all()


def test_a_rule_reads_its_settings():
    assert (mean_update([update(0, 2.0)], ZERO, LAYOUT, (), config=rule(Scaled, clip=3.0))["hidden"] == 6.0).all()


def test_what_nobody_holds_stays_whatever_the_rule():
    updates = [update(0, 1.0, holds=(1, 0, 0, 0)), update(1, 3.0, holds=(1, 0, 0, 0))]
    assert mean_update(updates, ZERO, LAYOUT, (), config=rule(Median))["hidden"].tolist() == [[2.0, 0.0], [0.0, 0.0]]


def test_a_rule_that_leaves_devices_out_leaves_out_their_votes():
    """Of 1, 2 and 100 the first two are nearest: their mean is 1.5, and what only the third holds is unheld."""
    config = rule(Nearest)
    updates = chosen([update(0, 1.0, holds=(1, 1, 1, 0)), update(1, 2.0, holds=(1, 1, 1, 0)), update(2, 100.0)], LAYOUT, config)
    assert mean_update(updates, ZERO, LAYOUT, (), config=config)["hidden"].tolist() == [[1.5, 1.5], [1.5, 0.0]]
    assert voted(updates, LAYOUT, (), config)["hidden"].tolist() == [[True, True], [True, False]]


def test_whom_a_rule_leaves_out_has_a_row_and_no_say_in_the_masks(monkeypatch):
    seen, true = [], LocalMasks.after_round

    def watched(masks, updates, *others):
        seen.append([one.device for one in updates])
        return true(masks, updates, *others)

    monkeypatch.setattr(LocalMasks, "after_round", watched)
    strategy = play(tiny_world("federation.mask=local", "aggregation.clip=0", f"aggregation.rule={__name__}:Last"))
    rejected = [row for row in strategy.ledger.rows if row.outcome == "rejected"]
    assert all(2 not in devices for devices in seen) and {row.device for row in rejected} == {2}
    assert rejected[0].reason == f"aggregation.rule={__name__}:Last has left its update out"


@pytest.mark.parametrize("named", [f"{__name__}:Median", f"{__name__}:largest"])
def test_a_fleet_is_trained_with_it(named):
    """With local masks, so that supports differ: all weights are finite, and they are not those of the mean."""
    median = play(tiny_world("federation.mask=local", f"aggregation.rule={named}")).weights
    mean = play(tiny_world("federation.mask=local")).weights
    assert all(np.isfinite(value).all() for value in median.values())
    assert any((median[name] != mean[name]).any() for name in mean)


# -- rules that are functions


def test_a_function_is_a_rule_and_its_options_are_its_arguments():
    updates = [update(0, 1.0), update(1, -2.0, holds=(1, 0, 0, 0))]
    found = mean_update(updates, ZERO, LAYOUT, (), config=rule(largest))
    assert found["hidden"].tolist() == [[-2.0, 1.0], [1.0, 1.0]] and (found["rows"] == -2.0).all()
    flat = mean_update(updates, ZERO, LAYOUT, (), config=rule(largest, options={"power": 0.0}))  # all alike: the first
    assert (flat["rows"] == 1.0).all()
    assert (mean_update(updates, ZERO, LAYOUT, (), config=rule(scalar))["rows"] == 0.5).all()


def test_nan_where_nobody_holds_is_nothing():
    updates = [update(0, 1.0, holds=(1, 0, 0, 0))]
    assert mean_update(updates, ZERO, LAYOUT, (), config=rule(largest))["hidden"].tolist() == [[1.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (wide, r"aggregation.rule test_rule:wide was given the changes of hidden and has returned .*: an array of shape \(1, 4\)"),
        (endless, "aggregation.rule test_rule:endless was given the changes of hidden and has returned values that are not finite"),
    ],
)
def test_what_a_function_returns_is_looked_at(own, message):
    with pytest.raises(ValueError, match=message):
        mean_update([update(0, 1.0)], ZERO, LAYOUT, (), config=rule(own))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "median", "options": {"trim": 0.1}}, "aggregation.options.trim is no option of Median; it has none"),
        ({"rule": "trimmed-mean", "options": {"trm": 0.1}}, "aggregation.options.trm is no option of TrimmedMean; did you mean 'trim'?"),
        ({"rule": "trimmed-mean", "options": {"trim": "x"}}, "aggregation.options.trim is 'x': input should be a number"),
        ({"rule": "trimmed-mean", "options": {"trim": 0.5}}, "aggregation.options.trim is 0.5: a share in"),
        ({"rule": "krum", "options": {"byzantine": -1}}, "aggregation.options.byzantine is -1 and keep 1: numbers of devices"),
        ({"rule": "krum", "options": {"keep": 3}}, "aggregation.options.keep is no option of Krum; there are byzantine"),
        ({"rule": "test_rule:LAYOUT"}, "aggregation.rule is 'test_rule:LAYOUT', which is no rule: a function from"),
        ({"rule": "test_rule:Update"}, "aggregation.rule is 'test_rule:Update', which is no rule: a function from"),
        ({"rule": "test_rule:largst"}, "aggregation.rule is 'test_rule:largst', but test_rule has no largst; did you mean largest?"),
    ],
)
def test_rules_and_options_that_do_not_fit(settings, message):
    with pytest.raises(ValueError) as error:
        make_rule(AggregationConfig(**settings))
    assert str(error.value).startswith(message)


def test_every_rule_of_ours_is_there():
    assert all(isinstance(make_rule(AggregationConfig(rule=name)), Rule) for name in RULES.ours)
