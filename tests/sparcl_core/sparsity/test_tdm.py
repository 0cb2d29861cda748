from dataclasses import replace

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparcl_core.sparsity.masks import apply_masks_, initial_masks
from sparcl_core.sparsity.tdm import Schedule, TDMConfig, check, exchanged_share, num_stages, plan_update, stage_length, update_masks
from sparcl_core.sparsity.update import MaskUpdate, surviving

SHAPES = {"conv": (10, 5, 2, 2), "fc": (20, 10)}  # 200 weights each: a share of 0.01 is 2 weights
CONFIG = TDMConfig(p_intra=0.05, p_inter=0.1)  # 10 and 20 weights
SPARSITY = 0.75  # 50 of 200 are active


def fresh(seed: int = 0):
    """Masks, a masked state and importance, all random."""
    rng = np.random.default_rng(seed)
    masks = initial_masks(SHAPES, SPARSITY, seed)
    state = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    state["bias"] = np.ones(3, dtype=np.float32)
    apply_masks_(state, masks)
    return masks, state, {name: rng.random(shape) * masks[name] for name, shape in SHAPES.items()}


def adapt(masks, state, importance, number=1, seed=0):
    update = plan_update("adapt", masks, state, importance, config=CONFIG, sparsity=SPARSITY, number=number)
    return update, update_masks(masks, [state], update, config=CONFIG, sparsity=SPARSITY, seed=seed)


def counts(masks):
    return [int(mask.sum()) for mask in masks.values()]


# --- the schedule ---


def test_the_papers_schedule_of_50_epochs():
    # dk = 5: ten stages. u = 0 at epoch 0, u = 1..8 at epochs 5..40, the last stage (45..49) rests.
    schedule = Schedule(CONFIG, SPARSITY, task_epochs=50, session_epochs=1)
    expected = dict.fromkeys(range(5, 45, 5), "adapt")
    for task in (0, 1, 4):
        first = {} if task == 0 else {0: "grow"}
        assert [schedule.action(task, epoch) for epoch in range(50)] == [(first | expected).get(epoch, "rest") for epoch in range(50)]


@given(st.integers(0, 2), st.integers(4, 60), st.integers(1, 9), st.integers(1, 12))
def test_any_schedule_equals_the_slow_reference(task, epochs, length, session_epochs):
    schedule = Schedule(replace(CONFIG, stage_epochs=length), SPARSITY, epochs, session_epochs)
    expected = oracles.tdm_actions_by_round(task, epochs, length, session_epochs)
    assert [schedule.action(task, session) for session in range(schedule.sessions)] == expected
    assert schedule.action(task, schedule.sessions) == "rest"  # nothing comes after a task's last session


@given(st.integers(1, 60), st.integers(1, 60))
def test_what_a_task_grows_it_sheds_again_before_the_next(epochs, session_epochs):
    # One round a task, say: were it to grow, the network would get denser by p_inter with every task.
    schedule = Schedule(CONFIG, SPARSITY, epochs, session_epochs)
    actions = [schedule.action(1, session) for session in range(schedule.sessions)]
    assert actions.count("grow") <= 1
    assert "grow" not in actions or (actions[0] == "grow" and "adapt" in actions)


@given(st.integers(1, 60), st.integers(1, 12))
def test_sessions_cut_a_task_without_loss(epochs, session_epochs):
    schedule = Schedule(CONFIG, SPARSITY, epochs, session_epochs)
    lengths = [schedule.epochs(session) for session in range(schedule.sessions)]
    assert sum(lengths) == epochs and min(lengths) >= 1 and set(lengths[:-1]) <= {session_epochs}


@pytest.mark.parametrize(("epochs", "length"), [(50, 5), (100, 10), (10, 1), (4, 1), (1, 1), (24, 2)])
def test_the_default_stage_is_a_tenth_of_a_task_and_at_least_one_epoch(epochs, length):
    assert stage_length(TDMConfig(), epochs) == length


@pytest.mark.parametrize(("config", "sparsity"), [(replace(CONFIG, enabled=False), SPARSITY), (CONFIG, 0.0)])
def test_masks_rest_where_tdm_is_off_or_the_network_dense(config, sparsity):
    schedule = Schedule(config, sparsity, 10, 1)
    assert {schedule.action(task, session) for task in range(3) for session in range(10)} == {"rest"}


# --- one update ---


def test_an_adaptation_shrinks_to_s_plus_p_and_grows_back_to_s():
    masks, state, importance = fresh()
    update, after = adapt(masks, state, importance)
    assert counts(surviving(masks, update)) == [40, 40]  # (1 - 0.75 - 0.05) * 200
    assert counts(after) == [50, 50]


def test_an_inter_task_growth_drops_nothing_and_reaches_s_minus_p():
    masks, state, _ = fresh()
    before = {name: value.copy() for name, value in state.items()}
    update = plan_update("grow", masks, state, {}, config=CONFIG, sparsity=SPARSITY, number=1)
    after = update_masks(masks, [state], update, config=CONFIG, sparsity=SPARSITY, seed=0)
    assert counts(after) == [70, 70]  # (1 - 0.75 + 0.1) * 200
    assert all(after[name][mask].all() for name, mask in masks.items())
    assert all(np.array_equal(state[name], before[name]) for name in state)  # grown weights begin at 0


def test_the_first_adaptation_undoes_the_inter_task_growth():
    masks, state, importance = fresh()
    update = plan_update("grow", masks, state, {}, config=CONFIG, sparsity=SPARSITY, number=1)
    grown = update_masks(masks, [state], update, config=CONFIG, sparsity=SPARSITY, seed=0)
    update, after = adapt(grown, state, importance, number=2)
    assert counts(surviving(grown, update)) == [40, 40]
    assert counts(after) == [50, 50]


weights_and_importance = st.lists(st.tuples(st.booleans(), st.integers(-2, 2), st.integers(0, 2)), min_size=20, max_size=40).filter(
    lambda layer: any(active for active, _, _ in layer)
)


@given(weights_and_importance, st.integers(0, 19), st.integers(0, 3))
def test_dropped_is_what_the_slow_reference_ranks_lowest(layer, twentieths, p_twentieths):
    sparsity, p_intra = twentieths / 20, p_twentieths / 20
    active, weights, scores = [list(column) for column in zip(*layer, strict=True)]
    mask = np.array(active)
    update = plan_update(
        "adapt",
        {"w": mask},
        {"w": np.array(weights) * mask},
        {"w": np.array(scores, dtype=float) * mask},
        config=TDMConfig(p_intra=p_intra),
        sparsity=min(sparsity, 0.99 - p_intra),
        number=1,
    )
    wanted = oracles.tdm_survivors(active, weights, scores, min(sparsity, 0.99 - p_intra), p_intra)
    assert surviving({"w": mask}, update)["w"].tolist() == wanted


def test_importance_is_weight_magnitude_plus_gradient_term():
    # scores |w| + I: 3, 1 + 5, 2 + 0.5, 0 + 1 and an inactive one; two of the four go (0.4 -> 2 of 5 stay)
    mask = np.array([True, True, True, True, False])
    state, importance = {"w": np.array([-3.0, 1.0, 2.0, 0.0, 0.0])}, {"w": np.array([0.0, 5.0, 0.5, 1.0, 99.0])}
    update = plan_update("adapt", {"w": mask}, state, importance, config=TDMConfig(p_intra=0.2), sparsity=0.4, number=1)
    assert update.dropped["w"].tolist() == [2, 3]


def test_of_equally_important_weights_the_lower_flat_index_stays():
    mask = np.ones(10, dtype=bool)
    update = plan_update(
        "adapt", {"w": mask}, {"w": np.ones(10)}, {"w": np.zeros(10)}, config=TDMConfig(p_intra=0.1), sparsity=0.5, number=1
    )
    assert update.dropped["w"].tolist() == [4, 5, 6, 7, 8, 9]


def test_weights_and_residuals_are_zero_at_dropped_places_and_kept_elsewhere():
    masks, state, importance = fresh()
    residual = {name: mask.astype(np.float32) for name, mask in masks.items()}
    before = {name: value.copy() for name, value in state.items()}
    update = plan_update("adapt", masks, state, importance, config=CONFIG, sparsity=SPARSITY, number=1)
    after = update_masks(masks, [state, residual], update, config=CONFIG, sparsity=SPARSITY, seed=0)
    for name, kept in surviving(masks, update).items():
        assert (state[name][~kept] == 0).all() and np.array_equal(state[name][kept], before[name][kept])
        assert (residual[name] == kept).all()
        assert (state[name][~after[name]] == 0).all()
    assert (state["bias"] == 1).all()


def test_a_weight_that_is_dropped_and_grown_back_restarts_at_zero():
    # Everything but p_intra is active: growth can only take back what was just dropped.
    mask, state = np.ones(20, dtype=bool), {"w": np.arange(1.0, 21.0)}
    config = TDMConfig(p_intra=0.25)
    update = plan_update("adapt", {"w": mask}, state, {"w": np.zeros(20)}, config=config, sparsity=0.0, number=1)
    after = update_masks({"w": mask}, [state], update, config=config, sparsity=0.0, seed=0)
    assert after["w"].all()
    assert state["w"].tolist() == [0.0] * 5 + list(range(6, 21))


def test_whoever_holds_the_masks_the_number_and_the_seed_redraws_the_same_growth():
    masks, state, importance = fresh()
    update, after = adapt(masks, state, importance, number=3, seed=11)
    redone = update_masks(masks, [], MaskUpdate(3, "adapt", update.dropped), config=CONFIG, sparsity=SPARSITY, seed=11)
    assert all(np.array_equal(after[name], redone[name]) for name in masks)
    for number, seed in ((4, 11), (3, 12)):
        other = update_masks(masks, [], replace(update, number=number), config=CONFIG, sparsity=SPARSITY, seed=seed)
        assert any(not np.array_equal(after[name], other[name]) for name in masks)


def test_growth_falls_on_every_inactive_place_alike_dropped_ones_included():
    # 160 places are inactive after the drop, 10 grow: over 800 updates each place is expected 50 times. The statistic has
    # 159 degrees of freedom and a mean of 160 * (1 - 1/16) = 150; 221 is the 99.9 % point of chi-square(159).
    masks, state, importance = fresh()
    update = plan_update("adapt", masks, state, importance, config=CONFIG, sparsity=SPARSITY, number=1)
    kept = surviving(masks, update)["fc"]
    hits = np.zeros(kept.shape)
    for number in range(800):
        hits += update_masks(masks, [], replace(update, number=number), config=CONFIG, sparsity=SPARSITY, seed=0)["fc"] & ~kept
    assert ((hits[~kept] - 50) ** 2 / 50).sum() < 221


def test_an_update_leaves_the_old_masks_alone():
    masks, state, importance = fresh()
    before = {name: mask.copy() for name, mask in masks.items()}
    adapt(masks, state, importance)
    assert all(np.array_equal(masks[name], before[name]) for name in masks)


def test_an_update_made_for_other_masks_is_refused():
    masks, state, importance = fresh()
    update = plan_update("adapt", masks, state, importance, config=CONFIG, sparsity=SPARSITY, number=9)
    other, _, _ = fresh(seed=1)
    with pytest.raises(ValueError, match="update 9 drops inactive places of conv.*other masks"):
        surviving(other, update)


@given(st.integers(0, 10**6))
def test_counts_stay_exact_and_inactive_weights_zero_through_any_run_of_updates(seed):
    rng = np.random.default_rng(seed)
    masks, state, _ = fresh(seed % 5)
    for number in range(1, 9):
        what = "grow" if number % 4 == 1 else "adapt"
        importance = {name: rng.random(shape) for name, shape in SHAPES.items()}
        update = plan_update(what, masks, state, importance, config=CONFIG, sparsity=SPARSITY, number=number)
        masks = update_masks(masks, [state], update, config=CONFIG, sparsity=SPARSITY, seed=seed)
        assert counts(masks) == ([70, 70] if what == "grow" else [50, 50])
        for name, mask in masks.items():
            assert np.count_nonzero(state[name][~mask]) == 0
            state[name] += mask * rng.normal(size=mask.shape).astype(np.float32)  # training moves active weights


# --- rules ---


@pytest.mark.parametrize(("sparsity", "share"), [(0.75, 0.01), (0.90, 0.004), (0.95, 0.002)])
def test_by_default_the_papers_share_of_the_active_weights_is_exchanged(sparsity, share):
    assert exchanged_share(None, sparsity) == pytest.approx(share)  # 0.01 of the layer at 0.75 is 4 % of its active weights
    assert exchanged_share(0.03, sparsity) == 0.03


def test_the_default_shares_are_used_in_updates():
    # 1000 weights at s = 0.75: 250, of which 10 are exchanged; 10 more after an inter-task growth
    masks = initial_masks({"w": (1000,)}, 0.75, 0)
    state, importance = {"w": masks["w"].astype(float)}, {"w": np.zeros(1000)}
    update = plan_update("adapt", masks, state, importance, config=TDMConfig(), sparsity=0.75, number=1)
    assert update.dropped["w"].size == 10
    grown = plan_update("grow", masks, state, {}, config=TDMConfig(), sparsity=0.75, number=2)
    assert update_masks(masks, [], grown, config=TDMConfig(), sparsity=0.75, seed=0)["w"].sum() == 260


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"p_intra": 1.0}, "p_intra is 1.0: it is a share of a layer"),
        ({"p_inter": -0.1}, "p_inter is -0.1: it is a share of a layer"),
        ({"stage_epochs": -1}, "stage_epochs is -1.*negative"),
        ({"batches": -2}, "batches -2.*negative"),
        ({"alpha": -0.5}, "alpha is -0.5.*negative"),
        ({"beta": -1}, "beta -1.*negative"),
        ({"alpha": float("nan")}, "alpha is nan.*finite"),
        ({"gradient": "last-step", "importance": "two-term"}, "gradient is 'last-step', but importance 'two-term': .*take merged"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TDMConfig(**settings)


@pytest.mark.parametrize("name", ["p_intra", "p_inter"])
def test_shares_must_stay_below_the_density(name):
    # At s = 0.95 an inter-task growth of 0.05 doubles the network, an intra-task drop of 0.05 empties it.
    check(replace(CONFIG, p_intra=0.01, p_inter=0.01), 0.95, 10)
    with pytest.raises(ValueError, match=rf"tdm.{name} is 0.06: it must be below the density 1 - sparsity = 0.05; try 0.005"):
        check(replace(TDMConfig(), **{name: 0.06}), 0.95, 10)


def test_a_share_equal_to_the_density_is_refused_too():
    with pytest.raises(ValueError, match="must be below the density"):
        check(TDMConfig(p_inter=0.25), 0.75, 10)


def test_there_must_be_room_for_the_inter_task_growth():
    with pytest.raises(ValueError, match="tdm.p_inter is 0.3: it must not exceed the sparsity 0.2"):
        check(TDMConfig(p_inter=0.3), 0.2, 10)


def test_a_task_needs_four_stages():
    check(TDMConfig(stage_epochs=2), 0.75, 7)  # 2 + 2 + 2 + 1
    with pytest.raises(ValueError, match="6 epochs has 3 stages of 2 epochs: TDM needs at least 4; lower tdm.stage_epochs"):
        check(TDMConfig(stage_epochs=2), 0.75, 6)
    assert num_stages(7, 2) == 4


@pytest.mark.parametrize(("config", "sparsity"), [(TDMConfig(enabled=False, p_intra=0.9), 0.95), (TDMConfig(p_intra=0.9), 0.0)])
def test_rules_do_not_bind_where_tdm_does_nothing(config, sparsity):
    check(config, sparsity, epochs=1)
