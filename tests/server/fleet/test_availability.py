"""When devices are there: every rule against a list of windows made device by device, then by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.fleet.availability import (
    Always,
    Availability,
    AvailabilityConfig,
    Bernoulli,
    Diurnal,
    Lifetimes,
    check_kind,
    failure_point,
    make_availability,
    read_trace,
)
from server.fleet.availability_trace import Trace
from server.fleet.local_time import DAY, HOUR, Draws, draw_offsets
from sparcl_core.seeding import generator

N, DAYS = 6, 12
DEVICES = np.arange(N)
Windows = list[tuple[float, float]]


def draw(address: tuple, device: int, index: int, seed: int = 3) -> float:
    """The slow twin of `Draws`: SplitMix64 in Python's integers."""
    bits, step = 2**64 - 1, 0x9E3779B97F4A7C15

    def mix(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & bits
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & bits
        return z ^ (z >> 31)

    key = int(generator(seed, *address).integers(2**64, dtype=np.uint64))
    state = mix(key + (device + 1) * step & bits)
    return (mix(state + (index + 1) * step & bits) >> 11) / 2**53


def merged(windows: Windows) -> Windows:
    result: Windows = []
    for begin, end in sorted(windows):
        if result and begin <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((begin, end))
    return result


def bernoulli_windows(device: int, probability: float, slot_s: float) -> Windows:
    slots = int(DAYS * DAY / slot_s)
    on = [draw(("availability", "slot"), device, slot) < probability for slot in range(slots)]
    return merged([(slot * slot_s, (slot + 1) * slot_s) for slot in range(slots) if on[slot]])


def diurnal_windows(device: int, config: AvailabilityConfig, offset: float) -> Windows:
    windows = []
    for day in range(-4, DAYS + 4):
        if draw(("availability", "shows"), device, day) < config.probability:
            jitter = round(config.jitter_hours * HOUR * (2 * draw(("availability", "jitter"), device, day) - 1))
            begin = day * DAY + config.from_hour * HOUR + jitter - offset
            windows.append((begin, begin + config.hours * HOUR))
    return merged(windows)


def trace_of(windows: list[Windows]) -> Trace:
    rows = [(device, begin, end) for device, own in enumerate(windows) for begin, end in own]
    device, begin, end = np.array(rows).reshape(-1, 3).T
    return Trace(device.astype(np.int64), begin, end)


BERNOULLI = AvailabilityConfig(kind="bernoulli", probability=0.6, slot_minutes=90)
NIGHTS = AvailabilityConfig(kind="diurnal", probability=0.7, time_zones=(0.0, 5.75, -8.0))
OVERLAPPING = AvailabilityConfig(kind="diurnal", probability=0.9, from_hour=3, hours=20, jitter_hours=12, time_zones=(14.0, -12.0))
LATE = AvailabilityConfig(kind="diurnal", probability=0.7, from_hour=23, hours=24, jitter_hours=12, time_zones=(0.0, -12.0))
RECORDED: list[Windows] = [
    [(0.0, 600.0), (600.0, HOUR), (2 * HOUR, DAY + 0.5)],
    [],
    [(-5.0, 7.25)],
    [(DAY, math.inf)],
    [(0.1, 0.2)],
    [(0.2, 0.3)],
]
JOIN = np.array([0.0, 3.5, 1.0, 2.0, 9.0, 1.0]) * DAY
LEAVE = np.array([np.inf, 6.25, 5.0, np.inf, 4.0, 1.0]) * DAY


def world(name: str) -> tuple[Availability, list[Windows]]:
    """A rule, and the windows of its devices, true until DAYS."""
    if name == "lives":
        inner, windows = world("overlapping")
        lives = zip(windows, JOIN, LEAVE, strict=True)
        return Lifetimes(inner, JOIN, LEAVE), [
            [(max(begin, join), min(end, leave)) for begin, end in own if max(begin, join) < min(end, leave)] for own, join, leave in lives
        ]
    if name == "trace":
        return trace_of(RECORDED), [merged(own) for own in RECORDED]
    if name == "bernoulli":
        return make_availability(BERNOULLI, N, 3), [bernoulli_windows(device, 0.6, 5400.0) for device in range(N)]
    config = {"nights": NIGHTS, "overlapping": OVERLAPPING, "late": LATE}[name]
    offsets = draw_offsets(config.time_zones, N, 3)
    return make_availability(config, N, 3), [diurnal_windows(device, config, offsets[device]) for device in range(N)]


NAMES = ("bernoulli", "nights", "overlapping", "late", "trace", "lives")
WORLDS = {name: world(name) for name in NAMES}
FINAL = 0.75 * DAYS * DAY  # windows that hold a later time may reach beyond what the twins know


def moments(windows: list[Windows]) -> st.SearchStrategy[float]:
    """Any time, the edges of windows, and the floats beside them."""
    edges = sorted({edge for own in windows for edge in sum(own, ()) if 0 <= edge <= FINAL})
    beside = [near for edge in edges for near in (edge, math.nextafter(edge, -1), math.nextafter(edge, math.inf))]
    return st.one_of(st.floats(0, FINAL), st.sampled_from([time for time in beside if time >= 0]))


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_answers_are_those_of_the_list_of_windows(name, data):
    rule, windows = WORLDS[name]
    time = np.array(data.draw(st.lists(moments(windows), min_size=N, max_size=N)))
    on, until, next_on = rule.on(DEVICES, time), rule.until(DEVICES, time), rule.next_on(DEVICES, time)
    for device, t in enumerate(time.tolist()):
        holding = [end for begin, end in windows[device] if begin <= t < end]
        later = [begin for begin, _ in windows[device] if begin > t]
        assert on[device] == bool(holding)
        assert until[device] == (holding[0] if holding else t)
        assert next_on[device] == (t if holding else min(later, default=math.inf))


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_on_until_and_next_on_agree(name, data):
    rule, windows = WORLDS[name]
    time = np.array(data.draw(st.lists(moments(windows), min_size=N, max_size=N)))
    on, until, next_on = rule.on(DEVICES, time), rule.until(DEVICES, time), rule.next_on(DEVICES, time)
    assert np.array_equal(on, until > time) and np.array_equal(on, next_on == time)
    ends, comes = on & (until < np.inf), next_on < np.inf
    assert not rule.on(DEVICES[ends], until[ends]).any()
    assert rule.on(DEVICES[ends], np.nextafter(until[ends], 0)).all()
    assert rule.on(DEVICES[comes], next_on[comes]).all()
    gone = rule.gone(DEVICES, time)
    assert not on[gone].any() and (next_on[gone] == np.inf).all() and rule.gone(DEVICES, time + 1)[gone].all()


@pytest.mark.parametrize("name", NAMES)
@given(devices=st.lists(st.integers(0, N - 1), max_size=8), time=st.floats(0, FINAL))
def test_answers_depend_neither_on_company_nor_on_order(name, devices, time):
    rule = WORLDS[name][0]
    devices = np.array(devices, np.int64)
    for ask in (rule.on, rule.until, rule.next_on, rule.gone):
        assert np.array_equal(ask(devices, time), ask(DEVICES, time)[devices])
        assert np.array_equal(ask(devices, np.full(len(devices), time)), ask(DEVICES, time)[devices])


@given(st.integers(-5, 10**12), st.integers(0, 10**6))
def test_draws_are_those_of_splitmix(index, device):
    assert Draws(3, "a")(np.array([7, device]), np.array([0, index]))[1] == draw(("a",), device, index)
    assert Draws(3, "a")(np.array([device]), index)[0] == draw(("a",), device, index)


def test_draws_are_uniform_and_unrelated_between_devices_and_indices():
    """400 x 400 draws: 16 bins of 10,000 each, chi-square of 15 degrees; correlations within 4 / sqrt(79,800) = 0.014."""
    device, index = np.divmod(np.arange(160_000), 400)
    draws = Draws(0, "a")(device, index).reshape(400, 400)
    assert draws.min() >= 0 and draws.max() < 1
    counts = np.bincount((draws.ravel() * 16).astype(int), minlength=16)
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 38  # p = 0.001
    other, upper = Draws(0, "b")(device, index).reshape(400, 400), np.triu_indices(400, 1)
    pairs = [(draws[1:], draws[:-1]), (draws[:, 1:], draws[:, :-1]), (draws, other), (draws[upper], draws.T[upper])]
    assert all(abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 0.015 for left, right in pairs)


def test_always():
    rule = make_availability(AvailabilityConfig(), N, 0)
    assert isinstance(rule, Always)
    assert rule.on(DEVICES, 5.0).all() and (rule.until(DEVICES, 5.0) == np.inf).all() and (rule.next_on(DEVICES, 5.0) == 5).all()
    assert not rule.gone(DEVICES, 5.0).any()


def test_bernoulli_is_on_for_its_share_and_its_runs_are_geometric():
    """40,000 (device, slot): the share has a standard error of 0.0023; a run of on-slots lasts 1 / 0.7 slots on average."""
    rule = Bernoulli(0.3, 600.0, 1)
    device, slot = np.divmod(np.arange(40_000), 40)
    on = rule.on(device, slot * 600.0 + 5)
    assert on.mean() == pytest.approx(0.3, abs=0.01)
    begins = rule.next_on(device, slot * 600.0)
    before = rule.on(device, begins - 1)
    runs = (rule.until(device, begins) - begins)[~before] / 600
    assert runs.mean() == pytest.approx(1 / 0.7, rel=0.03) and (runs == np.rint(runs)).all()


def test_bernoulli_with_probability_1_never_ends():
    rule = make_availability(AvailabilityConfig(kind="bernoulli", probability=1.0), N, 0)
    assert rule.on(DEVICES, 1e6).all() and (rule.until(DEVICES, 1e6) == np.inf).all() and (rule.next_on(DEVICES, 1e6) == 1e6).all()


@pytest.mark.parametrize(
    ("zone", "time", "until", "next_on"),
    [  # 22:00 to 06:00 local, hours of UTC: at UTC+1 21 to 29, at UTC-5 3 to 11, in Nepal 16.25 to 24.25
        (0, 0, 6, 0),
        (0, 6, 6, 22),
        (0, 21.5, 21.5, 22),
        (0, 22, 30, 22),
        (0, 29.99, 30, 29.99),
        (1, 5, 5, 21),
        (1, 21, 29, 21),
        (-5, 0, 0, 3),
        (-5, 3, 11, 3),
        (-5, 11, 11, 27),
        (5.75, 0.2, 0.25, 0.2),
        (5.75, 0.25, 0.25, 16.25),
        (14, 15.5, 16, 15.5),
        (-12, 9, 9, 10),
    ],
)
def test_nights_by_hand(zone, time, until, next_on):
    config = AvailabilityConfig(kind="diurnal", probability=1.0, jitter_hours=0.0, time_zones=(float(zone),))
    rule, one = make_availability(config, 1, 0), np.array([0])
    assert rule.until(one, time * HOUR)[0] == pytest.approx(until * HOUR, abs=1e-9)
    assert rule.next_on(one, time * HOUR)[0] == pytest.approx(next_on * HOUR, abs=1e-9)


def test_days_of_24_hours_without_jitter_are_one_period():
    whole = AvailabilityConfig(kind="diurnal", probability=1.0, from_hour=22.1, hours=24, jitter_hours=0.0)
    rule = make_availability(whole, N, 0)
    assert rule.on(DEVICES, 22.1 * HOUR).all() and (rule.until(DEVICES, 0.0) == np.inf).all()
    # with nights left out a period is a run of days, and ends at 22:06
    some = Diurnal(from_hour=22.1, hours=24.0, jitter_hours=0.0, probability=0.7, offsets=np.zeros(N), seed=0)
    ends = some.until(DEVICES, some.next_on(DEVICES, 0.0))
    assert ((ends - 79560) % DAY == 0).all() and len(np.unique(ends)) > 1


def test_a_device_shows_up_on_its_share_of_days_and_jitter_is_even():
    count = 4000
    rule = Diurnal(from_hour=12.0, hours=1.0, jitter_hours=2.0, probability=0.25, offsets=np.zeros(count), seed=5)
    begins = rule.next_on(np.arange(count), 2 * DAY)
    today = begins < 3 * DAY
    assert today.mean() == pytest.approx(0.25, abs=0.03)  # standard error 0.007
    hours = (begins % DAY) / HOUR
    assert (
        hours.min() >= 10
        and hours.max() <= 14
        and hours.mean() == pytest.approx(12, abs=0.08)
        and hours.min() < 10.02 < 13.98 < hours.max()
    )


def test_time_zones_are_dealt_evenly():
    offsets = draw_offsets((0.0, 5.75, -8.0), 100, 1)
    zones, counts = np.unique(offsets, return_counts=True)
    assert zones.tolist() == [-8 * HOUR, 0, 5.75 * HOUR] and sorted(counts) == [33, 33, 34]
    assert not np.array_equal(offsets, draw_offsets((0.0, 5.75, -8.0), 100, 2))
    assert np.array_equal(offsets, draw_offsets((0.0, 5.75, -8.0), 100, 1))


def test_devices_join_and_leave_as_set():
    config = AvailabilityConfig(join_hours=10, leave_share=0.25, leave_hours=100)
    rule, everyone = make_availability(config, 2000, 0), np.arange(2000)
    joined, end = rule.next_on(everyone, 0.0), rule.until(everyone, 10 * HOUR)
    gone = rule.gone(everyone, 100 * HOUR)
    assert gone.sum() == 500 and rule.gone(everyone, 50 * HOUR).sum() == pytest.approx(250, abs=45)
    stays = joined[~gone]
    assert stays.min() >= 0 and stays.max() < 10 * HOUR and stays.mean() == pytest.approx(5 * HOUR, rel=0.05)
    assert (end[~gone] == np.inf).all() and (end[gone] <= 100 * HOUR).all()
    assert make_availability(AvailabilityConfig(join_hours=10), 5, 0).gone(np.arange(5), 1e9).tolist() == [False] * 5


def test_another_seed_gives_other_windows():
    for config in (BERNOULLI, NIGHTS, AvailabilityConfig(join_hours=5)):
        first, same, other = (make_availability(config, 50, seed).next_on(np.arange(50), 10.0) for seed in (0, 0, 1))
        assert np.array_equal(first, same) and not np.array_equal(first, other)


def test_failures_have_an_address_and_come_as_often_as_set():
    points = [failure_point(0, device, 7, 0.3) for device in range(2000)]
    failed = [point for point in points if point is not None]
    assert len(failed) / 2000 == pytest.approx(0.3, abs=0.04) and all(0 < point < 1 for point in failed)
    assert np.mean(failed) == pytest.approx(0.5, abs=0.05)
    assert failure_point(0, 3, 7, 0.3) == points[3]
    assert all(failure_point(0, device, 7, 0.6) == point for device, point in enumerate(points[:200]) if point is not None)
    assert failure_point(0, 3, 7, 0.0) is None and failure_point(0, 3, 7, 1.0) != failure_point(0, 3, 8, 1.0)


def written(tmp_path, text: str):
    path = tmp_path / "trace.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_trace_by_hand(tmp_path):
    """Device 0: 10 to 30 (two windows that touch) and 50 to 60; device 2 from 5 on; device 1 has no row. Columns in any order."""
    path = written(tmp_path, "\ufeff off , device,on ,charger,,\n20,0,10,yes\ninf,2,5,no\n ,,\n30,0,20 ,yes\n\n60.5,0, 50,no,,\n,,,,,\n")
    rule, devices = make_availability(AvailabilityConfig(kind="trace", trace=str(path)), 3, 0), np.arange(3)
    inf = np.inf
    for time, until, next_on, gone in [
        (0, [0, 0, 0], [10, inf, 5], [False, True, False]),
        (10, [30, 10, inf], [10, inf, 10], [False, True, False]),
        (20, [30, 20, inf], [20, inf, 20], [False, True, False]),
        (30, [30, 30, inf], [50, inf, 30], [False, True, False]),
        (60, [60.5, 60, inf], [60, inf, 60], [False, True, False]),
        (60.5, [60.5, 60.5, inf], [inf, inf, 60.5], [True, True, False]),
    ]:
        assert rule.until(devices, time).tolist() == until
        assert rule.next_on(devices, time).tolist() == next_on
        assert rule.gone(devices, time).tolist() == gone


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "trace.csv, line 1: no column device, on, off; the first line of a trace is device,on,off"),
        ("device,on\n0,1\n", "trace.csv, line 1: no column off;"),
        ("device,on,off\n", "trace.csv, line 2: no rows"),
        ("device,on,off\n0,1,2\n3,1,2\n", "trace.csv, line 3: device is 3: the fleet has devices 0 to 2"),
        ("device,on,off\n-1,1,2\n", "line 2: device is -1: the fleet has"),
        ("device,on,off\n0.5,1,2\n", "line 2: device is '0.5': write a whole number"),
        ("device,on,off\n0,soon,2\n", "line 2: on is 'soon': write a number of seconds"),
        ("device,on,off\n0,1\n", "line 2: 2 of 3 cells, and a row needs one for each column"),
        ("device,on,off\n0,nan,2\n", "line 2: a window from nan to 2.0 s: write seconds; off may be inf"),
        ("device,on,off\n0,-inf,2\n", "line 2: a window from -inf to 2.0 s"),
        ("device,on,off\n0,1,2\n0,9,9\n", "line 3: off is 9 s and on is 9 s: a window must end after it begins"),
        (
            "device,on,off\n0,1,2\n1,5,6\n0,1.5,9\n",
            "line 4: device 0 comes at 1.5 s, and its window before ends at 2 s: a trace must not go back",
        ),
        ("device,on,off\n0,5,inf\n9,1,2\n\n0,x,2\n", "trace.csv, line 3: device is 9: .*; line 5: on is 'x': write a number of seconds$"),
        ("device,on,off\n0,1,2,5\n", "line 2: 4 of 3 cells"),
        ("device,on,on,off\n0,1,2,5\n", "line 1: there are two columns 'on'; leave one out"),
        ("device;on;off\n0;1;2\n", "line 1: no column device, on, off; .*; it has device;on;off"),
        ("device,on,off\n0,5,inf\n0,7,9\n", "line 3: device 0 comes at 7 s, and its window before ends at inf s"),
    ],
)
def test_a_trace_that_cannot_be_is_refused_with_file_and_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_trace(written(tmp_path, text), 3)


def test_a_trace_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match="none.csv cannot be read .*No such file.*the columns device,on,off"):
        read_trace(tmp_path / "none.csv", 3)
    (tmp_path / "bytes.csv").write_bytes(b"device,on,off\n\xff\xfe\n")
    with pytest.raises(ValueError, match="bytes.csv cannot be read"):
        read_trace(tmp_path / "bytes.csv", 3)


@pytest.mark.parametrize(("begin", "end"), [([0.0, 1.0], [2.0, 3.0]), ([0.0, 4.0], [2.0, 4.0])])
def test_windows_that_overlap_or_have_no_length_are_refused(begin, end):
    with pytest.raises(ValueError, match="device 0 has a window from .* windows must end after they begin"):
        Trace(np.array([0, 0]), np.array(begin), np.array(end))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"kind": "sometimes"},
            "availability.kind is 'sometimes': input should be 'always', 'bernoulli', 'diurnal' or 'trace', or package",
        ),
        ({"kind": "diurnal", "options": {"x": 1}}, "kind is 'diurnal', whose settings are keys of this section, and options has x"),
        ({"kind": "trace"}, "trace is empty: name a CSV file"),
        ({"probability": 0.0}, "probability is 0.0: from 0.001 to 1; leave devices that are never there out"),
        ({"probability": 1.1}, "probability is 1.1"),
        ({"probability": math.nan}, "probability is nan"),
        ({"slot_minutes": 0.5}, "slot_minutes is 0.5: at least a minute"),
        ({"slot_minutes": math.inf}, "slot_minutes is inf"),
        ({"from_hour": 24}, "from_hour is 24: a local time from 0 to below 24; midnight is 0"),
        ({"hours": 0}, r"hours is 0: from a minute \(1/60\) to 24"),
        ({"hours": 25}, "hours is 25"),
        ({"jitter_hours": 13}, "jitter_hours is 13: from 0 to 12"),
        ({"time_zones": ()}, r"time_zones is empty: name at least one, .* \[0.0\] puts all"),
        ({"time_zones": (0.0, 15.0)}, "time_zones has 15.0: hours from UTC, from -12 to 14"),
        ({"join_hours": -1}, "join_hours is -1: finite and not negative; 0 switches it off"),
        ({"leave_hours": math.inf}, "leave_hours is inf"),
        ({"leave_share": 1.5, "leave_hours": 1}, "leave_share is 1.5: a share from 0 to 1"),
        ({"leave_share": 0.5}, "leave_share is 0.5 and leave_hours is 0: say within how many hours"),
        ({"failure": -0.1}, "failure is -0.1: a share from 0 to 1; 0 switches it off"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AvailabilityConfig(**settings)


# -- models of other packages


class Shifts:
    """On in every other period of `hours`, device by device in turn. It derives from nothing."""

    def __init__(self, hours: float):
        self.length = hours * HOUR

    def until(self, devices, time):
        period = time // self.length
        return np.where((period + devices) % 2 == 0, (period + 1) * self.length, time)

    def next_on(self, devices, time):
        period = time // self.length
        return np.where((period + devices) % 2 == 0, time, (period + 1) * self.length)


def shifts(config, devices, seed, *, hours: float = 2.0):
    return Shifts(hours)


def nothing(config, devices, seed):
    return object()


def short(config, devices, seed):
    class Short(Shifts):
        def until(self, devices, time):
            return super().until(devices, time)[:1]

    return Short(1.0)


def contradictory(config, devices, seed):
    class Late(Shifts):
        def next_on(self, devices, time):
            return time + 1

    return Late(1.0)


def backwards(config, devices, seed):
    class Backwards(Shifts):
        def next_on(self, devices, time):
            return np.full(len(devices), np.nan)

    return Backwards(1.0)


def model(function, **settings) -> AvailabilityConfig:
    return AvailabilityConfig(kind=f"{__name__}:{function.__name__}", **settings)


def test_an_object_of_another_package_is_a_model_and_lives_go_around_it():
    made, devices = make_availability(model(shifts, options={"hours": 1.0}), 4, seed=0), np.arange(4)
    assert made.on(devices, 0.0).tolist() == [True, False, True, False]
    assert made.next_on(devices, 0.0).tolist() == [0.0, HOUR, 0.0, HOUR] and not made.gone(devices, 1e9).any()
    mortal = make_availability(model(shifts, leave_share=1.0, leave_hours=1.0), 4, seed=0)
    assert mortal.gone(devices, HOUR).all() and not mortal.on(devices, HOUR).any()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (nothing, "availability.kind test_availability:nothing has made .*, which has no method until and no next_on"),
        (short, "availability.kind test_availability:short has made .*, whose until is no array of 4 times"),
        (backwards, "whose next_on is no array of 4 times, none before the time that is asked for"),
        (contradictory, "which contradicts itself: of device 0 at 0 s until is 3600 and next_on 1"),
    ],
)
def test_what_a_model_says_is_looked_at_before_a_run_relies_on_it(function, message):
    with pytest.raises(ValueError, match=message):
        make_availability(model(function), 4, seed=0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (model(shifts, options={"hour": 1}), "availability.options.hour is no option of shifts; did you mean 'hours'?"),
        (model(shifts, options={"hours": "two"}), "availability.options.hours is 'two': input should be a number"),
        (model(moments), "availability.options: moments takes 1 arguments by position, and is given 3"),
    ],
)
def test_models_and_options_that_do_not_fit(config, message):
    with pytest.raises(ValueError) as error:
        check_kind(config)
    assert str(error.value).startswith(message)
