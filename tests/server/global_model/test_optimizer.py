"""Server optimisers: by hand, against the reference, and where they must not move."""

import math

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.global_model.optimizer import ServerOptimizer, ServerOptimizerConfig
from sparcl_core.codec import Layout

LAYOUT = Layout({"hidden": (2, 3), "bias": (3,), "var": (2,)}, frozenset({"hidden"}), frozenset({"var"}))
ALL = {name: np.ones(shape, dtype=bool) for name, shape in LAYOUT.shapes.items()}
SETTINGS = {"lr": 0.5, "momentum": 0.75, "beta1": 0.5, "beta2": 0.75, "tau": 0.25}


def update(value: float) -> dict[str, np.ndarray]:
    return {name: np.full(shape, float(value)) for name, shape in LAYOUT.shapes.items()}


def steps(optimizer: ServerOptimizer, *values: float) -> list[float]:
    """What the first bias moves by when everything is voted on, round by round."""
    return [optimizer.step(update(value), ALL)["bias"][0] for value in values]


def test_sgd_with_lr_1_is_the_average_to_the_bit():
    rng = np.random.default_rng(0)
    u = {name: rng.standard_normal(shape) for name, shape in LAYOUT.shapes.items()}
    optimizer = ServerOptimizer(ServerOptimizerConfig(), LAYOUT)
    assert all(np.array_equal(value, u[name]) for name, value in optimizer.step(u, ALL).items())
    assert not optimizer.first and not optimizer.second


def test_sgd_by_hand():
    assert steps(ServerOptimizer(ServerOptimizerConfig("sgd", lr=0.5), LAYOUT), 4, -2) == [2, -1]


def test_momentum_by_hand():
    """v: 4, 0.5 * 4 + 2 = 4, 0.5 * 4 + 0 = 2; times lr 0.25."""
    assert steps(ServerOptimizer(ServerOptimizerConfig("momentum", lr=0.25, momentum=0.5), LAYOUT), 4, 2, 0) == [1, 1, 0.5]


def test_adam_by_hand():
    """beta1 = 0.5, beta2 = 0.75, tau = 0.5, lr = 2. Round 1, u = 1: m = 0.5, v = 0.75 * 0.25 + 0.25 * 1 = 0.4375.
    Round 2, u = -1: m = 0.25 - 0.5 = -0.25, v = 0.75 * 0.4375 + 0.25 = 0.578125. No bias correction."""
    optimizer = ServerOptimizer(ServerOptimizerConfig("adam", lr=2, beta1=0.5, beta2=0.75, tau=0.5), LAYOUT)
    assert steps(optimizer, 1, -1) == pytest.approx(
        [2 * 0.5 / (math.sqrt(0.4375) + 0.5), 2 * -0.25 / (math.sqrt(0.578125) + 0.5)], rel=1e-15
    )
    assert optimizer.first["bias"].dtype == optimizer.second["bias"].dtype == np.float64


values = st.one_of(st.just(0.0), st.floats(-10, 10, allow_subnormal=False))
histories = st.lists(st.tuples(values, st.booleans(), st.booleans()), min_size=6, max_size=60)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
@given(history=histories)
def test_every_coordinate_moves_as_in_the_reference(name, history):
    """Rounds of 6 coordinates, each with its own history of averages, votes (update without a vote: erased) and drops."""
    rounds = len(history) // 6
    table = [[history[t * 6 + j] for j in range(6)] for t in range(rounds)]
    optimizer = ServerOptimizer(ServerOptimizerConfig(name, **SETTINGS), LAYOUT)
    moved = []
    for row in table:
        u, is_voted, is_dropped = (np.array([entry[i] for entry in row]).reshape(2, 3) for i in range(3))
        moved.append(optimizer.step({"hidden": u}, {"hidden": is_voted})["hidden"].reshape(-1))
        optimizer.drop({"hidden": ~is_dropped})
    for j in range(6):
        expected = oracles.server_steps(name, **SETTINGS, rounds=[row[j] for row in table])
        assert np.allclose([step[j] for step in moved], expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_where_nobody_voted_nothing_moves_and_nothing_is_forgotten(name):
    """A coordinate that rests for a round goes on as if the round had not been."""
    resting, other = (ServerOptimizer(ServerOptimizerConfig(name, **SETTINGS), LAYOUT) for _ in range(2))
    voted = ALL | {"bias": np.array([False, True, True])}
    resting.step(update(3), ALL)
    rest = resting.step(update(3) | {"bias": np.array([0.0, 3.0, 3.0])}, voted)
    assert rest["bias"][0] == 0 and rest["bias"][1] != 0
    other.step(update(3), ALL)
    assert resting.step(update(1), ALL)["bias"][0] == other.step(update(1), ALL)["bias"][0]


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_an_erased_coordinate_reaches_zero_exactly_and_starts_afresh(name):
    optimizer, fresh = (ServerOptimizer(ServerOptimizerConfig(name, **SETTINGS), LAYOUT) for _ in range(2))
    optimizer.step(update(3), ALL)
    erased = np.zeros((2, 3))
    erased[1, 1] = -0.3
    voted = ALL | {"hidden": erased == 0}
    assert optimizer.step(update(0) | {"hidden": erased}, voted)["hidden"][1, 1] == -0.3
    later, new = optimizer.step(update(1), ALL)["hidden"], fresh.step(update(1), ALL)["hidden"]
    assert later[1, 1] == new[1, 1]
    assert name == "sgd" or later[0, 0] != new[0, 0]


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_a_weight_dropped_and_grown_back_starts_afresh(name):
    optimizer, fresh = (ServerOptimizer(ServerOptimizerConfig(name, **SETTINGS), LAYOUT) for _ in range(2))
    optimizer.drop({"hidden": ALL["hidden"]})  # before the first step there is nothing to forget
    optimizer.step(update(3), ALL)
    kept = np.array([[True, False, True], [True, True, False]])
    optimizer.drop({"hidden": kept})
    later, new = optimizer.step(update(1), ALL), fresh.step(update(1), ALL)
    assert np.array_equal(later["hidden"] == new["hidden"], ~kept)
    assert (later["bias"] != new["bias"]).all()  # no mask, nothing forgotten


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_statistics_pass_as_they_are(name):
    """A running variance of 1 that falls to 0.1 and stays: momentum would carry it to -0.8."""
    optimizer = ServerOptimizer(ServerOptimizerConfig(name, **SETTINGS), LAYOUT)
    assert (optimizer.step(update(-0.9), ALL)["var"] == -0.9).all()
    assert (optimizer.step(update(0), ALL)["var"] == 0).all()
    assert "var" not in optimizer.first and "var" not in optimizer.second


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_the_average_is_not_written_into(name):
    u = update(3)
    ServerOptimizer(ServerOptimizerConfig(name, **SETTINGS), LAYOUT).step(u, ALL)
    assert all((value == 3).all() for value in u.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "yogi"}, "name is 'yogi': choose one of sgd, momentum, adam"),
        ({"lr": 0}, "lr is 0: finite and above 0; the default is 1.0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"tau": math.inf}, "tau is inf"),
        ({"tau": 0.0}, "tau is 0.0"),
        ({"momentum": 1.0}, r"momentum is 1.0: a share in \[0, 1\)"),
        ({"beta1": -0.1}, "beta1 is -0.1"),
        ({"beta2": 1}, "beta2 is 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ServerOptimizerConfig(**settings)
