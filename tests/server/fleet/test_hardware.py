"""Which profile a device has, and where its figures differ from it."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.fleet.hardware import FIGURES, Hardware
from sparcl_core.costs.device import DeviceProfile

FAST = DeviceProfile("fast", 100.0, 0.5, 0.1, 1e9, 8.0, 2.0, 0.25, 80.0, 16.0, 3.0)
SLOW = replace(FAST, name="slow", flops_per_s=10.0, battery_j=500.0)
KIND = np.array([0, 1, 1, 0])
NAN = math.nan


def test_devices_of_one_profile():
    hardware = Hardware.alike(FAST, 3)
    assert len(hardware) == 3 and [hardware[device] for device in range(3)] == [FAST] * 3
    assert hardware[1] is FAST  # nothing is made where nothing differs
    assert len(Hardware.alike(FAST, 0)) == 0


def test_kinds_factors_and_own_figures_by_hand():
    factors = {"flops_per_s": np.array([1.0, 2.0, 0.5, 3.0])}
    own = {"flops_per_s": np.array([NAN, NAN, 7.0, NAN]), "battery_j": np.array([NAN, NAN, 0.0, 40.0])}
    hardware = Hardware((FAST, SLOW), KIND, factors, own)
    # device 2 states its own rate, which its factor leaves alone; an own 0 is a 0, and one can be stated where the profile has 0
    assert hardware.column("flops_per_s").tolist() == [100.0, 20.0, 7.0, 300.0]
    assert hardware.column("battery_j").tolist() == [0.0, 500.0, 0.0, 40.0]
    assert hardware[2] == replace(SLOW, flops_per_s=7.0, battery_j=0.0)
    assert hardware[3] == replace(FAST, flops_per_s=300.0, battery_j=40.0)


def test_a_rate_without_end_stays_so():
    hardware = Hardware((FAST,), np.zeros(2, np.int64), {"moved_bytes_per_s": np.array([0.5, 2.0])})
    assert hardware.column("moved_bytes_per_s").tolist() == [math.inf, math.inf] == [hardware[d].moved_bytes_per_s for d in range(2)]


@given(st.lists(st.tuples(st.integers(0, 1), st.floats(0.01, 100), st.just(NAN) | st.floats(0, 1e9)), max_size=8))
def test_a_column_is_what_the_devices_say(rows):
    kind = np.array([row[0] for row in rows], np.int64)
    factor, own = (np.array([row[column] for row in rows], np.float64) for column in (1, 2))
    hardware = Hardware((FAST, SLOW), kind, {"up_bits_per_s": factor, "idle_w": factor}, {"up_bits_per_s": own, "latency_s": own})
    for figure in FIGURES:
        assert hardware.column(figure).tolist() == [getattr(hardware[device], figure) for device in range(len(rows))]


@pytest.mark.parametrize(
    ("kind", "factors", "own", "message"),
    [
        (KIND + 1, {}, {}, "go from 1 to 2: there are only 0 to 1"),
        (KIND - 1, {}, {}, "go from -1 to 0"),
        (KIND.reshape(2, 2), {}, {}, "must be a list of integers"),
        (KIND.astype(float), {}, {}, "float64 .*must be a list of integers"),
        (KIND, {"speed": np.ones(4)}, {}, "'speed' is no figure of a profile; there are flops_per_s"),
        (KIND, {"name": np.ones(4)}, {}, "'name' is no figure"),
        (KIND, {"idle_w": np.ones(3)}, {}, "factors of idle_w must be 4 finite numbers above 0"),
        (KIND, {"idle_w": np.array([1, 1, 0, 1.0])}, {}, "factors of idle_w"),
        (KIND, {"idle_w": np.array([1, 1, NAN, 1.0])}, {}, "factors of idle_w"),
        (KIND, {"idle_w": np.array([1, 1, math.inf, 1.0])}, {}, "factors of idle_w"),
        (KIND, {}, {"speed": np.ones(4)}, "'speed' is no figure"),
        (KIND, {}, {"idle_w": np.ones(3)}, "own idle_w must be 4 finite numbers"),
        (KIND, {}, {"idle_w": np.array([1, NAN, -1, 1])}, "own idle_w"),
        (KIND, {}, {"idle_w": np.array([1, NAN, math.inf, 1])}, "own idle_w"),
    ],
)
def test_what_does_not_fit_is_refused(kind, factors, own, message):
    with pytest.raises(ValueError, match=message):
        Hardware((FAST, SLOW), kind, factors, own)


def test_a_column_of_no_figure():
    with pytest.raises(ValueError, match="'name' is no figure of a profile"):
        Hardware.alike(FAST, 2).column("name")
