import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparcl_core.sparsity.ddr import DDRConfig, is_due, num_stages, observe_, remove, stage_length, start

CRITERIA = ("misclassified", "forgetting")


def watch(state, history):
    """Feed `history` [passes, N] bool to `state`, in place, pass by pass."""
    for right in history:
        observe_(state, np.arange(right.size), right)
    return state


def outcomes(draw, size):
    passes = draw(st.integers(1, 5))
    return np.array(draw(st.lists(st.lists(st.booleans(), min_size=size, max_size=size), min_size=passes, max_size=passes)))


@st.composite
def removals(draw):
    """Sizes, labels, a rate and a history per stage."""
    size = draw(st.integers(4, 24))
    stages = draw(st.integers(1, 4))
    return {
        "labels": np.array(draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))),
        "batch_size": draw(st.integers(1, 12)),
        "share": draw(st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.75, 0.9])),
        "epochs": 5 * stages,
        "histories": [outcomes(draw, size) for _ in range(stages)],
    }


def config_of(case, criterion):
    """One stage per five epochs, removal in all of them."""
    return DDRConfig(remove=case["share"], cut=1.0, stage_epochs=5, criterion=criterion)


@pytest.mark.parametrize("criterion", CRITERIA)
@given(case=removals())
def test_what_is_removed_equals_the_slow_reference_stage_by_stage(criterion, case):
    config, labels = config_of(case, criterion), case["labels"]
    state, stages = start(labels.size), len(case["histories"])
    kept, before = [True] * labels.size, [False] * labels.size
    for stage, history in enumerate(case["histories"], 1):
        columns = history.T.tolist()
        if criterion == "misclassified":
            score = [oracles.ddr_misclassified(column) for column in columns]
        else:
            score = [oracles.ddr_forgetting(b, column) for b, column in zip(before, columns, strict=True)]
        kept = oracles.ddr_kept(kept, score, labels.tolist(), case["batch_size"], case["share"], stage, stages)
        before = [column[-1] for column in columns]
        state = remove(watch(state, history), labels, case["batch_size"], config, epochs=case["epochs"])
        assert state.kept.tolist() == kept


@pytest.mark.parametrize("criterion", CRITERIA)
@given(case=removals())
def test_protected_samples_stay_and_removed_ones_never_come_back(criterion, case):
    config, labels = config_of(case, criterion), case["labels"]
    state = start(labels.size)
    for done, history in enumerate(case["histories"], 1):
        before = state.kept
        state = remove(watch(state, history), labels, case["batch_size"], config, epochs=case["epochs"])
        assert not (state.kept & ~before).any()
        assert state.kept.sum() >= min(case["batch_size"], labels.size / 4)
        assert set(labels[state.kept]) == set(labels)
        assert (~state.kept).sum() <= case["share"] * labels.size * done / len(case["histories"]) + 1e-9
        assert state.stages == done


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("share", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("size", [40, 101, 333])
def test_where_nothing_is_protected_exactly_rho_of_the_data_is_gone_in_the_end(criterion, share, size):
    config = DDRConfig(remove=share, criterion=criterion)
    rng, labels = np.random.default_rng(0), np.arange(size) % 2
    state = start(size)
    for _ in range(num_stages(config, 50)):
        state = remove(watch(state, rng.random((5, size)) < 0.5), labels, batch_size=1, config=config, epochs=50)
    assert (~state.kept).sum() == int(share * size + 1e-9)


def test_the_papers_removal_is_750_of_10000_samples_at_epochs_5_10_15_and_20():
    config, size = DDRConfig(), 10_000
    state, labels, gone, epochs_of_removal = start(size), np.arange(size) % 2, [], []
    for epoch in range(50):
        if is_due(state, config, epoch, 50):
            state = remove(state, labels, 32, config, epochs=50)
            gone.append(int((~state.kept).sum()))
            epochs_of_removal.append(epoch)
        observe_(state, np.flatnonzero(state.kept), np.ones(int(state.kept.sum()), dtype=bool))
    assert epochs_of_removal == [5, 10, 15, 20]
    assert gone == [750, 1500, 2250, 3000]


def test_the_papers_removal_trains_on_a_share_of_0_775():
    # 5 epochs each at 1, 0.925, 0.85 and 0.775, then 30 at 0.7: 38.75 of 50 epochs
    config, state, labels, trained = DDRConfig(), start(1000), np.arange(1000) % 2, 0
    for epoch in range(50):
        if is_due(state, config, epoch, 50):
            state = remove(state, labels, 32, config, epochs=50)
        kept = np.flatnonzero(state.kept)
        observe_(state, kept, np.ones(kept.size, dtype=bool))
        trained += kept.size
    assert trained / (50 * 1000) == 0.775


@given(st.integers(1, 30).flatmap(lambda size: st.lists(st.lists(st.booleans(), min_size=size, max_size=size), min_size=1, max_size=6)))
def test_statistics_count_what_the_slow_reference_counts(history):
    history = np.array(history)
    state = watch(start(history.shape[1]), history)
    for i, column in enumerate(history.T.tolist()):
        assert state.misses[i] == oracles.ddr_misclassified(column)
        events = oracles.ddr_forgetting(False, column)
        assert state.learned[i] == (events != float("inf")) and (not state.learned[i] or state.forgotten[i] == events)
        assert state.passes[i] == len(column) and state.was_right[i] == column[-1]


def test_only_the_samples_of_a_batch_are_recorded():
    state = start(4)
    observe_(state, np.array([3, 1]), np.array([True, False]))
    assert state.misses.tolist() == [0, 1, 0, 0]
    assert state.learned.tolist() == [False, False, False, True]
    assert state.passes.tolist() == [0, 1, 0, 1]


def test_statistics_are_reset_after_a_stage():
    rng, labels = np.random.default_rng(0), np.arange(20) % 2
    state = watch(start(20), rng.random((5, 20)) < 0.5)
    after = remove(state, labels, 4, DDRConfig(), epochs=10)
    for name in ("misses", "forgotten", "passes", "learned"):
        assert getattr(state, name).any() and not getattr(after, name).any(), name


def test_misclassified_removes_what_was_missed_least():
    # misses 0, 2, 1, 0 over two passes; half of the four samples goes: the two that were always right
    history = np.array([[True, False, True, True], [True, False, False, True]])
    after = remove(watch(start(4), history), np.array([0, 0, 1, 1]), 1, DDRConfig(remove=0.5, cut=0.1), epochs=10)
    assert after.kept.tolist() == [False, True, True, False]


def test_forgetting_counts_a_sample_that_was_never_right_as_the_maximum():
    # sample 0: never right. 1: right, wrong, right = one event. 2: wrong, right, right = none. 3: right, wrong, wrong = one.
    history = np.array([[0, 1, 0, 1], [0, 0, 1, 0], [0, 1, 1, 0]], dtype=bool)
    config = DDRConfig(remove=0.75, cut=0.1, criterion="forgetting")
    after = remove(watch(start(4), history), np.array([0, 0, 0, 0]), 1, config, epochs=10)
    assert after.kept.tolist() == [True, False, False, False]
    config = DDRConfig(remove=0.25, cut=0.1, criterion="forgetting")
    after = remove(watch(start(4), history), np.array([0, 0, 0, 0]), 1, config, epochs=10)
    assert after.kept.tolist() == [True, True, False, True]


def test_of_equal_scores_the_lower_index_goes_first():
    after = remove(start(8), np.zeros(8), 1, DDRConfig(remove=0.5, cut=0.1), epochs=10)
    assert after.kept.tolist() == [False] * 4 + [True] * 4


def test_the_last_sample_of_a_class_stays_and_another_goes_instead():
    # samples 0 and 1 score lowest, but 0 is the only one of class 5
    history = np.array([[True, True, False, False]])
    after = remove(watch(start(4), history), np.array([5, 0, 0, 0]), 1, DDRConfig(remove=0.5, cut=0.1), epochs=10)
    assert after.kept.tolist() == [True, False, False, True]


@pytest.mark.parametrize(("batch_size", "left"), [(3, 3), (32, 5)])
def test_one_batch_or_a_quarter_of_the_data_is_protected(batch_size, left):
    # rho = 0.95 would leave 1 of 20; the smaller of one batch and 20 / 4 stays
    after = remove(start(20), np.zeros(20), batch_size, DDRConfig(remove=0.95, cut=0.1), epochs=10)
    assert after.kept.sum() == left


def test_a_stage_without_one_whole_pass_since_the_last_is_postponed():
    config, state = DDRConfig(), start(6)  # K = 10: stages from epochs 1, 2, 3 and 4 on
    observe_(state, np.array([0, 1, 2, 3, 4]), np.ones(5, dtype=bool))
    assert not is_due(state, config, 1, 10)  # sample 5 was not seen yet
    assert not is_due(state, config, 7, 10)
    observe_(state, np.array([5]), np.ones(1, dtype=bool))
    assert is_due(state, config, 7, 10)


def test_only_kept_samples_need_to_be_seen():
    config, labels = DDRConfig(remove=0.5), np.zeros(8)
    state = remove(watch(start(8), np.ones((1, 8), dtype=bool)), labels, 1, config, epochs=10)
    assert 0 < state.kept.sum() < 8
    assert not is_due(state, config, 2, 10)
    observe_(state, np.flatnonzero(state.kept), np.ones(int(state.kept.sum()), dtype=bool))
    assert is_due(state, config, 2, 10)


def test_no_stage_is_due_before_its_epoch_or_after_the_last():
    config, state = DDRConfig(), watch(start(40), np.ones((1, 40), dtype=bool))
    assert [is_due(state, config, epoch, 50) for epoch in (0, 4, 5)] == [False, False, True]
    for _ in range(num_stages(config, 50)):
        state = watch(remove(state, np.arange(40) % 2, 4, config, epochs=50), np.ones((1, 40), dtype=bool))
    assert not is_due(state, config, 49, 50)


@pytest.mark.parametrize(("epochs", "stages"), [(50, 4), (10, 4), (5, 2), (2, 0), (1, 0)])
def test_the_number_of_stages_within_the_first_40_percent(epochs, stages):
    assert num_stages(DDRConfig(), epochs) == stages


def test_switched_off_it_has_no_stage():
    config = DDRConfig(enabled=False)
    assert num_stages(config, 50) == 0
    assert not is_due(watch(start(4), np.ones((1, 4), dtype=bool)), config, 49, 50)


def test_the_stage_length_is_set_or_a_tenth_of_the_task():
    assert [stage_length(DDRConfig(), epochs) for epochs in (1, 10, 50)] == [1, 1, 5]
    assert stage_length(DDRConfig(stage_epochs=3), 50) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"remove": 1.0}, r"remove is 1.0.*in \[0, 1\)"),
        ({"remove": -0.1}, r"remove is -0.1.*in \[0, 1\)"),
        ({"cut": 0.0}, r"cut is 0.0.*in \(0, 1\]"),
        ({"cut": 1.5}, r"cut is 1.5.*in \(0, 1\]"),
        ({"stage_epochs": -1}, "stage_epochs is -1.*negative"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DDRConfig(**settings)
