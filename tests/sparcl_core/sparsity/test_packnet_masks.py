"""PackNet's masks: whose each place is, and what is pruned, beside references that are written from the paper."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparcl_core.sparsity.packnet import claimed, network_of, nobody
from sparcl_core.sparsity.schemes import make_scheme
from sparcl_core.sparsity.settings import MaskConfig
from sparcl_core.sparsity.tdm import TDMConfig
from sparcl_core.sparsity.update import MaskUpdate

CONFIG = MaskConfig(scheme="packnet")


def scheme_of(config=CONFIG, sparsity=0.75, epochs=20):
    return make_scheme(config, TDMConfig(), sparsity, task_epochs=epochs, seed=3)


def kept_by_hand(places: list[tuple[int, float, bool]], sparsity: float) -> set[int]:
    """Of (owner, weight, is active): free active ones sorted by magnitude, the first (1 - s) n of them, halves up, one at least."""
    free = sorted((-abs(weight), place) for place, (owner, weight, active) in enumerate(places) if active and owner == 0)
    count = max(1, int((1 - sparsity) * len(free) + 0.5)) if free else 0
    return {place for _, place in free[:count]}


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-3, 3), st.booleans()), min_size=1, max_size=40), st.sampled_from([0.5, 0.75]))
def test_pruning_equals_the_slow_reference(places, sparsity):
    places = [(owner, float(weight), active or owner > 0) for owner, weight, active in places]
    owners, weights, active = (np.array(column) for column in zip(*places, strict=True))
    masks, state = {"w": active}, {"w": weights * active}
    scheme = scheme_of(sparsity=sparsity)
    update = scheme.plan("adapt", masks, state, {"w": owners}, number=1, epoch=14)
    kept = scheme.redo(masks, [state], update)
    assert set(np.flatnonzero(kept["w"] & (owners == 0))) == kept_by_hand(places, sparsity)
    assert kept["w"][owners > 0].all() and not state["w"][~kept["w"]].any()
    assert np.array_equal(state["w"][kept["w"]], weights[kept["w"]])


def test_counts_of_three_tasks_by_hand():
    """100 weights at s = 0.75: 25 are kept of 100, 19 of 75 (18.75), 14 of 56; the rest, 42, is free for the next."""
    scheme, rng = scheme_of(), np.random.default_rng(0)
    masks, owners, state = {"w": np.ones((10, 10), bool)}, None, {"w": rng.normal(size=(10, 10))}
    owners = nobody(masks)
    for task, (kept, free) in enumerate([(25, 75), (19, 56), (14, 42)]):
        if task:
            owners = claimed(owners, masks, task - 1)
            masks = scheme.redo(masks, [state], scheme.plan("grow", masks, state, owners, number=2 * task, epoch=0))
            assert masks["w"].all() and not state["w"][owners["w"] == 0].any()
            state["w"] += np.where(owners["w"] == 0, rng.normal(size=(10, 10)), 0)
        masks = scheme.redo(masks, [state], scheme.plan("adapt", masks, state, owners, number=2 * task + 1, epoch=14))
        assert int((masks["w"] & (owners["w"] == 0)).sum()) == kept
        assert int((~masks["w"]).sum()) == free
    owners = claimed(owners, masks, 2)
    assert np.bincount(owners["w"].reshape(-1)).tolist() == [42, 25, 19, 14]


def test_a_layer_without_free_weights_stays_as_it_is():
    scheme, masks, owners = scheme_of(), {"w": np.ones(3, bool)}, {"w": np.array([1, 1, 2], np.uint8)}
    update = scheme.plan("adapt", masks, {"w": np.zeros(3)}, owners, number=1, epoch=14)
    assert update.dropped["w"].size == 0
    assert claimed(owners, masks, 2)["w"].tolist() == [1, 1, 2]


def test_the_networks_of_tasks():
    owners = {"w": np.array([0, 1, 2, 1, 0], np.uint8)}
    assert network_of(owners, 0)["w"].tolist() == [False, True, False, True, False]
    assert network_of(owners, 1)["w"].tolist() == [False, True, True, True, False]
    assert network_of(owners, 2)["w"].all()  # it has not ended: what is free and not active is 0 anyway
    assert network_of(nobody({"w": np.ones(2, bool)}), 0)["w"].all()


def test_when_masks_change():
    schedule = scheme_of().schedule(3)  # K = 20 in 7 sessions; 0.7 K = 14, and the first session that begins behind it is at 15
    actions = [[schedule.action(task, session) for session in range(8)] for task in (0, 1)]
    assert [(what, session) for session, what in enumerate(actions[0]) if what != "rest"] == [("adapt", 5)]
    assert [(what, session) for session, what in enumerate(actions[1]) if what != "rest"] == [("grow", 0), ("adapt", 5)]
    assert scheme_of(MaskConfig(scheme="packnet", until=0.5)).schedule(5).action(0, 2) == "adapt"  # exactly at 10
    assert all(scheme_of().schedule(20).action(0, session) == "rest" for session in range(3))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (MaskConfig(scheme="packnet", until=1.0), "masks.until is 1: scheme packnet prunes there"),
        (
            MaskConfig(scheme="packnet", initial="snip"),
            "masks.initial is 'snip', masks.densities 'uniform': scheme packnet begins with all",
        ),
        (MaskConfig(scheme="packnet", densities="erk"), "prunes every layer alike"),
    ],
)
def test_settings_that_do_not_go_with_it(config, says):
    with pytest.raises(ValueError, match=says):
        scheme_of(config).check()


def test_an_update_for_other_masks_is_refused():
    with pytest.raises(ValueError, match="drops inactive places"):
        scheme_of().redo({"w": np.array([True, False])}, [], MaskUpdate(1, "adapt", {"w": np.array([1])}))


def test_there_are_numbers_for_255_tasks():
    masks = {"w": np.ones(1, bool)}
    assert claimed(nobody(masks), masks, 254)["w"].tolist() == [255]
    with pytest.raises(ValueError, match="numbers for 255 tasks"):
        claimed(nobody(masks), masks, 255)
