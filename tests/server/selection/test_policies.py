"""The choice of a cohort: what every policy promises, what each one prefers, and Oort's utility by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.selection import oort
from server.selection.candidates import Candidates
from server.selection.policies import POLICIES, SelectionConfig, choose, find_policy
from sparcl_core.seeding import generator


def candidates(count: int, **columns) -> Candidates:
    """Devices that are alike and never tried, but for what is given."""
    same = {"samples": 10, "seconds": 1.0, "charge": 1.0, "loss": math.nan, "last_round": 0}
    return Candidates(devices=np.arange(count), **{name: np.array(columns.get(name, [value] * count)) for name, value in same.items()})


def tried(count: int, **columns) -> Candidates:
    """Devices that were all in round 1, with the same loss, but for what is given."""
    return candidates(count, **{"loss": [1.0] * count, "last_round": [1] * count, **columns})


def utility(config: SelectionConfig, among: Candidates, server_round: int, deadline_s: float = math.inf) -> np.ndarray:
    """That of `oort`."""
    among = replace(among, server_round=server_round, deadline_s=deadline_s)
    return oort.utility(among, alpha=config.alpha, preferred_s=config.preferred_s)


def frequencies(config: SelectionConfig, among: Candidates, size: int, rounds: int = 1000, **options) -> np.ndarray:
    """[n] how often each is chosen."""
    drawn = [choose(config, among, size, seed=3, server_round=r, **options) for r in range(1, rounds + 1)]
    return np.bincount(np.concatenate(drawn), minlength=len(among))


@st.composite
def fleets(draw) -> Candidates:
    """Up to 30 devices with gaps between their numbers, some never tried, empty, endless, or with a loss that is no number."""
    count = draw(st.integers(0, 30))
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    last_round = rng.integers(0, 4, count)
    loss = np.where(last_round > 0, rng.choice([0.0, 0.3, 2.5, math.nan, math.inf], count), math.nan)
    seconds = rng.choice([0.0, 0.5, 2.0, 8.0, math.inf], count)
    charge = rng.choice([0.0, 0.1, 0.6, 1.0], count)
    devices, samples = 3 * np.arange(count) + 1, rng.integers(0, 40, count)
    return Candidates(devices=devices, samples=samples, seconds=seconds, charge=charge, loss=loss, last_round=last_round)


configs = st.builds(
    SelectionConfig,
    policy=st.sampled_from(list(POLICIES.ours)),
    min_charge=st.sampled_from([0.0, 0.3]),
    exploration=st.sampled_from([0.0, 0.1, 0.3, 1.0]),
    alpha=st.sampled_from([0.0, 2.0]),
    preferred_s=st.sampled_from([0.0, 1.0]),
    cutoff=st.sampled_from([0.0, 0.95, 1.0]),
)


# -- what every policy promises


@given(configs, fleets(), st.integers(0, 35), st.integers(0, 9), st.integers(1, 9), st.sampled_from([0.0, 1.0, math.inf]))
def test_a_cohort_is_a_sorted_subset_of_its_size_and_a_function_of_the_arguments(config, among, size, seed, server_round, deadline_s):
    chosen = choose(config, among, size, seed=seed, server_round=server_round, deadline_s=deadline_s)
    assert chosen.dtype == np.int64 and chosen.tolist() == sorted(set(chosen.tolist()))
    assert not len(chosen) or 0 <= chosen[0] <= chosen[-1] < len(among)
    able = np.ones(len(among), dtype=bool)
    if config.policy == "feasible":
        able = among.seconds <= deadline_s
    elif config.policy == "energy":
        able = (among.charge > 0) & (among.charge >= config.min_charge)
    assert able[chosen].all() and len(chosen) == min(size or len(among), able.sum())
    assert np.array_equal(chosen, choose(config, among, size, seed=seed, server_round=server_round, deadline_s=deadline_s))


@given(fleets(), st.integers(0, 35), st.integers(0, 9), st.integers(1, 9))
def test_uniform_is_one_permutation_to_the_bit(among, size, seed, server_round):
    """As cohorts were drawn before there were policies: runs of that time are repeated with the same devices."""
    count = len(among)
    chosen = choose(SelectionConfig(), among, size, seed=seed, server_round=server_round)
    if 0 < size < count:
        assert np.array_equal(chosen, np.sort(generator(seed, "cohort", server_round).permutation(count)[:size]))
    else:
        assert np.array_equal(chosen, np.arange(count))


@given(fleets(), st.integers(0, 35), st.integers(0, 9), st.integers(1, 9), st.randoms(use_true_random=False))
def test_uniform_reads_nothing_of_a_device(among, size, seed, server_round, random):
    order = list(range(len(among)))
    random.shuffle(order)
    columns = [name for name, column in vars(among).items() if isinstance(column, np.ndarray) and name != "devices"]
    assert len(columns) == 5
    shuffled = replace(among, **{name: getattr(among, name)[order] for name in columns})
    config = SelectionConfig()
    assert np.array_equal(
        choose(config, among, size, seed=seed, server_round=server_round),
        choose(config, shuffled, size, seed=seed, server_round=server_round),
    )


def test_without_a_deadline_feasible_is_uniform():
    among = candidates(20, seconds=np.geomspace(1, 1e9, 20))
    for server_round in range(1, 20):
        chosen = choose(SelectionConfig("feasible"), among, 6, seed=0, server_round=server_round)
        assert np.array_equal(chosen, choose(SelectionConfig("uniform"), among, 6, seed=0, server_round=server_round))


@pytest.mark.parametrize("policy", list(POLICIES.ours))
def test_rounds_and_seeds_differ_and_nobody_gives_nothing(policy):
    config, among = SelectionConfig(policy), tried(40, loss=np.linspace(1, 1.01, 40))
    drawn = {(seed, r): tuple(choose(config, among, 8, seed=seed, server_round=r)) for seed in range(3) for r in range(1, 9)}
    assert len(set(drawn.values())) == 24
    assert (
        choose(config, candidates(0), 5, seed=0, server_round=1).shape
        == choose(config, candidates(0), 0, seed=0, server_round=1).shape
        == (0,)
    )


# -- feasible, energy


def test_feasible_takes_only_those_that_make_it_and_all_of_them_alike():
    """Of 6, 4 make it; 2 of them in 1000 rounds: each expects 500 with a deviation of sqrt(1000 / 4) = 15.8; allowed: 5 of them."""
    among = candidates(6, seconds=[1.0, 5.0, 2.0, 5.1, 9.0, 3.0])
    drawn = frequencies(SelectionConfig("feasible"), among, 2, deadline_s=5.0)
    assert drawn[[3, 4]].tolist() == [0, 0] and drawn.sum() == 2000
    assert (np.abs(drawn[[0, 1, 2, 5]] - 500) < 79).all()
    assert choose(SelectionConfig("feasible"), among, 5, seed=0, server_round=1, deadline_s=5.0).tolist() == [0, 1, 2, 5]
    assert choose(SelectionConfig("feasible"), among, 0, seed=0, server_round=1, deadline_s=0.5).tolist() == []


def test_energy_draws_by_charge():
    """One of three, with charges 0.1, 0.3 and 0.6, in 1000 rounds: 100, 300, 600 with deviations of at most 15.5; allowed: 5 of them."""
    among = candidates(4, charge=[0.1, 0.3, 0.0, 0.6])
    drawn = frequencies(SelectionConfig("energy"), among, 1)
    assert drawn[2] == 0 and (np.abs(drawn - np.array([100, 300, 0, 600])) < 78).all()


def test_energy_draws_without_replacement_as_if_one_after_another():
    """Two of three, charges 0.2, 0.2 and 0.6. The last is left out if the others come first: 0.2 / 1 * 0.2 / 0.8 in two orders: 0.1."""
    left_out = 1000 - frequencies(SelectionConfig("energy"), candidates(3, charge=[0.2, 0.2, 0.6]), 2)
    assert (np.abs(left_out - np.array([450, 450, 100])) < 79).all()


def test_energy_leaves_the_lowest_in_peace():
    among = candidates(5, charge=[0.0, 0.19, 0.2, 0.21, 1.0])
    assert choose(SelectionConfig("energy"), among, 5, seed=0, server_round=1).tolist() == [1, 2, 3, 4]
    assert choose(SelectionConfig("energy", min_charge=0.2), among, 0, seed=0, server_round=1).tolist() == [2, 3, 4]


# -- oort


def test_utility_by_hand():
    """Round 9, T = 4 s, alpha = 2. Samples x loss: 20, 40, 10, and 0 for a loss that is no number; clipped at and divided by 20 (of
    up to 21 devices the 95th percentile is the second largest). Then sqrt(0.1 ln 9 / L); the second takes 8 s: a quarter."""
    among = candidates(
        5, samples=[10, 20, 10, 10, 99], loss=[2.0, -2.0, 1.0, math.nan, math.nan], last_round=[1, 4, 8, 2, 0], seconds=[4.0, 8, 1, 2, 1]
    )
    found = utility(SelectionConfig("oort", preferred_s=4.0), among, server_round=9)
    log = 0.1 * math.log(9)
    expected = [1 + math.sqrt(log), (1 + math.sqrt(log / 4)) / 4, 0.5 + math.sqrt(log / 8), math.sqrt(log / 2), 0]
    assert found.tolist() == pytest.approx(expected)


def test_the_preferred_duration_is_the_median_of_those_tried_within_the_deadline():
    """Tried: 2, 4 and 9 s, median 4: the last pays 4 / 9. With a deadline of 3 s: 3 / 4 and 3 / 9. In round 1 the log is 0."""
    among = candidates(4, loss=[1.0] * 3 + [math.nan], last_round=[1, 1, 1, 0], seconds=[2.0, 4.0, 9.0, 100.0])
    config = SelectionConfig("oort", alpha=1.0)
    assert utility(config, among, 1).tolist() == pytest.approx([1, 1, 4 / 9, 0])
    assert utility(config, among, 1, deadline_s=3.0).tolist() == pytest.approx([1, 3 / 4, 3 / 9, 0])


def test_an_outlier_counts_as_the_95th_percentile():
    """40 devices of loss 1 but one of 1000: the 38th of the ascending list is 1."""
    found = utility(SelectionConfig("oort"), tried(40, loss=[1000.0] + [1.0] * 39), 1)
    assert (found == 1).all()


@given(st.integers(2, 60), st.integers(0, 9), st.integers(0, 59), st.sampled_from([10.0, 1e30, 1e300]))
def test_a_huge_loss_counts_as_the_largest_of_the_others(count, seed, who, huge):
    """Nobody's utility depends on how much larger than the others' its loss is, and the best of the others is worth as much as it."""
    loss = np.random.default_rng(seed).uniform(0.1, 2.0, count)
    who %= count
    others = np.arange(count) != who
    config, liar, equal = SelectionConfig("oort"), loss.copy(), loss.copy()
    liar[who], equal[who] = huge, loss[others].max()
    found = utility(config, tried(count, loss=liar), 3)
    assert np.array_equal(found, utility(config, tried(count, loss=equal), 3)) and found[others].max() >= 1


def test_where_few_have_a_loss_a_huge_one_does_not_set_the_scale_either():
    found = utility(SelectionConfig("oort"), tried(60, loss=[0.0] * 57 + [1.0, 2.0, 1e30]), 1)
    assert found[-3:].tolist() == [0.5, 1, 1] and not found[:-3].any()


def test_utility_does_not_depend_on_the_scale_of_losses_and_sizes():
    among = tried(12, loss=np.arange(1.0, 13), seconds=np.arange(12.0))
    scaled = replace(among, samples=among.samples * 64, loss=among.loss / 1024)
    config = SelectionConfig("oort")
    assert np.array_equal(utility(config, among, 7), utility(config, scaled, 7))
    assert np.array_equal(choose(config, among, 4, seed=0, server_round=7), choose(config, scaled, 4, seed=0, server_round=7))


def test_where_few_have_a_loss_they_are_preferred_and_where_none_has_one_all_are_alike():
    few = utility(SelectionConfig("oort"), tried(40, loss=[0.0] * 39 + [2.0]), 1)
    assert few[-1] == 1 and not few[:-1].any()
    none = frequencies(SelectionConfig("oort"), tried(4, loss=[0.0] * 4), 2)  # of weight 0 each, yet none is preferred
    assert (np.abs(none - 500) < 79).all()


def test_exploitation_draws_by_utility_above_the_cutoff():
    """Two of five without exploration; losses 1, 0.8, 0.78, 0.7 and 0.1 clipped at the second, utilities 1, 1, 0.975, 0.875 and 0.125. 95 %
    of the cut-off is 0.95: the last two are never drawn. Left out of three is the third with 1 / 2.975 * 1 / 1.975, twice."""
    among = tried(5, loss=[1.0, 0.8, 0.78, 0.7, 0.1])
    drawn = frequencies(SelectionConfig("oort", exploration=0.0), replace(among, last_round=np.full(5, 10**9)), 2)
    assert drawn[3:].tolist() == [0, 0]
    assert abs(1000 - drawn[2] - 1000 * 2 / 2.975 / 1.975) < 79
    best = choose(SelectionConfig("oort", exploration=0.0, cutoff=1.0), among, 2, seed=0, server_round=1)
    assert best.tolist() == [0, 1]


def test_oort_prefers_high_utility_and_fast_devices():
    """Half of the devices have twice the loss, half of either take four times as long (a sixteenth of the utility)."""
    among = tried(40, loss=[1.0, 2.0] * 20, seconds=[1.0] * 20 + [4.0] * 20)
    drawn = frequencies(SelectionConfig("oort", exploration=0.0, preferred_s=1.0, cutoff=0.0), among, 4, rounds=300)
    fast_low, fast_high, slow_low, slow_high = (int(drawn[start:end:2].sum()) for start, end in ((0, 20), (1, 20), (20, 40), (21, 40)))
    assert fast_high > 1.3 * fast_low and slow_high > slow_low and fast_low > 4 * slow_high


@pytest.mark.parametrize(
    ("exploration", "size", "new", "expected"),
    [
        (0.3, 10, 15, 3),  # 0.3 of 10, not 4 because of the last bit
        (0.1, 5, 15, 1),  # rounded up
        (0.0, 10, 15, 0),
        (1.0, 10, 15, 10),
        (0.3, 10, 2, 2),  # no more than there are
        (0.0, 10, 25, 5),  # who has been tried is not enough: 5 of 30 are known
        (0.0, 10, 30, 10),  # the first round
    ],
)
def test_a_share_of_the_cohort_is_for_devices_never_tried(exploration, size, new, expected):
    among = tried(30, last_round=[0] * new + [1] * (30 - new), loss=[math.nan] * new + [1.0] * (30 - new))
    chosen = choose(SelectionConfig("oort", exploration=exploration), among, size, seed=0, server_round=5)
    assert len(chosen) == size and int((chosen < new).sum()) == expected


def test_exploration_prefers_fast_devices_and_takes_them_alike_without_an_estimate():
    """One of three by 1 / t, t = 1, 2, 4: 4/7, 2/7 and 1/7 of 1000. With all at 0 s: a third each."""
    config = SelectionConfig("oort", exploration=1.0)
    drawn = frequencies(config, candidates(4, seconds=[1.0, 2.0, 4.0, math.inf]), 1)
    assert drawn[3] == 0 and (np.abs(drawn[:3] - np.array([571, 286, 143])) < 79).all()
    drawn = frequencies(config, candidates(3, seconds=[0.0] * 3), 1)
    assert (np.abs(drawn - 333) < 79).all()


# -- what cannot be


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"policy": "best"},
            "selection.policy is 'best': input should be 'uniform', 'feasible', 'energy' or 'oort', or package.module:name",
        ),
        ({"min_charge": 1.0}, r"min_charge is 1.0: a share in \[0, 1\)"),
        ({"min_charge": math.nan}, "min_charge is nan"),
        ({"exploration": 1.1}, r"exploration is 1.1: a share in \[0, 1\]; the default is 0.2"),
        ({"cutoff": -0.1}, "cutoff is -0.1"),
        ({"alpha": math.inf}, "alpha is inf: finite and not negative; the default is 2.0"),
        ({"preferred_s": -1.0}, "preferred_s is -1.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SelectionConfig(**settings)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"samples": np.ones(2)}, r"the columns of the candidates have shapes .*'samples': \(2,\).* must be \[n\]"),
        ({"devices": np.array([0, 2, 1])}, "ascending order of their devices, and none twice"),
        ({"devices": np.array([0, 1, 1])}, "ascending order of their devices, and none twice"),
        ({"seconds": np.array([1.0, math.nan, 1.0])}, "seconds of a candidate is negative or NaN"),
        ({"last_round": np.array([0, -1, 0])}, "last_round of a candidate is negative"),
        ({"charge": np.array([0.0, 1.0, 1.1])}, r"charge of a candidate is not in \[0, 1\]"),
    ],
)
def test_candidates_that_cannot_be_are_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        replace(candidates(3), **columns)


@pytest.mark.parametrize(("size", "server_round", "deadline_s"), [(-1, 1, 1.0), (1, 0, 1.0), (1, 1, -1.0), (1, 1, math.nan)])
def test_rounds_that_cannot_be_are_refused(size, server_round, deadline_s):
    with pytest.raises(ValueError, match=r"size from 0 \(all\), rounds from 1, seconds from 0"):
        choose(SelectionConfig(), candidates(3), size, seed=0, server_round=server_round, deadline_s=deadline_s)


# -- policies of other packages


def newest(candidates, size, rng, *, spare: float = 0.0):
    """Those that were in a round longest ago, ties by chance; `spare` of the cohort is left out."""
    order = np.lexsort((rng.random(len(candidates)), candidates.last_round))
    return order[: size - int(spare * size)]


def late(candidates, size, rng):
    return [row for row in range(len(candidates)) if candidates.seconds[row] > candidates.deadline_s or row == candidates.server_round][
        :size
    ]


def whole(candidates, size, rng):
    return np.arange(len(candidates))


def twice(candidates, size, rng):
    return [0, 0]


def beyond(candidates, size, rng):
    return [99]


def mask(candidates, size, rng):
    return np.ones(len(candidates), bool)


def nobody(candidates, size, rng):
    return []


def named(function, **options) -> SelectionConfig:
    return SelectionConfig(f"{__name__}:{function.__name__}", options=options)


def test_a_function_is_a_policy_and_its_options_are_its_arguments():
    among = candidates(4, last_round=[3, 0, 2, 1])
    assert choose(named(newest), among, 2, seed=0, server_round=4).tolist() == [1, 3]
    assert choose(named(newest, spare=0.5), among, 2, seed=0, server_round=4).tolist() == [1]
    assert choose(named(newest), among, 0, seed=0, server_round=4).tolist() == [0, 1, 2, 3]
    drawn = frequencies(named(newest), candidates(4), 1)  # all alike: by chance, another one each round
    assert (np.abs(drawn - 250) < 79).all()


def test_it_knows_round_and_deadline_and_may_choose_nobody():
    among = candidates(4, seconds=[1.0, 2.0, 3.0, 9.0])
    assert choose(named(late), among, 3, seed=0, server_round=1, deadline_s=5.0).tolist() == [1, 3]
    assert choose(named(nobody), among, 3, seed=0, server_round=1).tolist() == []


@pytest.mark.parametrize("function", [whole, twice, beyond, mask])
def test_rows_that_are_none_are_refused(function):
    with pytest.raises(
        ValueError, match=f"selection.policy {__name__}:{function.__name__} was asked for 2 of 4 candidates and has returned"
    ):
        choose(named(function), candidates(4), 2, seed=0, server_round=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": f"{__name__}:newest", "options": {"spar": 1}}, "selection.options.spar is no option of newest; did you mean 'spare'?"),
        ({"policy": f"{__name__}:newest", "options": {"spare": "x"}}, "selection.options.spare is 'x': input should be a number"),
        ({"policy": f"{__name__}:tried"}, "selection.options: tried takes 1 arguments by position, and is given 3"),
        ({"policy": f"{__name__}:Candidates"}, f"selection.policy is '{__name__}:Candidates', which is no policy: a function"),
        ({"policy": "energy", "options": {"min_charge": 0.1}}, "selection.policy is 'energy', which has no options; its settings are sel"),
        ({"policy": "uniform", "options": {"x": 0.1}}, "selection.policy is 'uniform', which has no options: leave selection.opt"),
    ],
)  # fmt: skip
def test_policies_and_options_that_do_not_fit(settings, message):
    with pytest.raises(ValueError) as error:
        find_policy(SelectionConfig(**settings))
    assert str(error.value).startswith(message)
