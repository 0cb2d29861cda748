"""Batteries: by hand, against a twin that goes minute by minute, and what must hold whatever is asked."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.fleet.battery import Batteries, EnergyConfig
from server.fleet.charging import day_plan
from server.fleet.local_time import DAY, HOUR, MINUTE, Draws

ONE = np.array([0])
KINDS = ("none", "always", "windows", "solar")


def batteries(capacity=1000.0, charge=0.0, idle=0.0, offset=0.0, seed=0, **settings) -> Batteries:
    """Figures are numbers, for one device, or lists. Rules that are not named are off."""
    settings = {"charging": "none", "clouds": 0.0, "reserve": 0.0} | settings
    capacity, charge, idle, offset = (
        np.array(column, np.float64).reshape(-1) for column in np.broadcast_arrays(capacity, charge, idle, offset)
    )
    return Batteries(EnergyConfig(**settings), capacity_j=capacity, charge_w=charge, idle_w=idle, offsets=offset, seed=seed)


def level(of: Batteries, time: float, device: int = 0) -> float:
    return float(of.share(np.array([device]), time)[0] * of.capacity_j[device])


class Minutes:
    """The slow twin: one device, minute by minute, with the sun's mean over each half hour by numbers."""

    def __init__(self, config: EnergyConfig, capacity: float, charge: float, idle: float, offset: float, start: float, clouds):
        self.config, self.capacity, self.charge, self.idle, self.offset, self.level = config, capacity, charge, idle, offset, start
        self.clouds, self.time = clouds, 0.0

    def power(self, time: float) -> float:
        config = self.config
        day, second = divmod(time + self.offset, DAY)
        hour = second / HOUR
        if config.charging == "windows":
            return self.charge * any(begin <= hour < begin + config.hours for begin in (config.from_hour, config.from_hour - 24))
        if config.charging == "solar":
            if not config.sunrise_hour <= hour < config.sunset_hour:
                return 0.0
            span = config.sunset_hour - config.sunrise_hour
            steps = math.ceil(span * 2)
            step = math.floor((hour - config.sunrise_hour) / span * steps + 1e-9)
            grid = (step + (np.arange(2000) + 0.5) / 2000) / steps
            return self.charge * np.sin(np.pi * grid).mean() * (1 - config.clouds * self.clouds(int(day)))
        return self.charge * (config.charging == "always")

    def go(self, until: float, drain: float) -> float:
        while self.time < until:
            net = self.power(self.time) - drain
            self.level = min(max(self.level + net * MINUTE, 0.0), self.capacity)
            self.time += MINUTE
        return self.level


steps = st.lists(st.tuples(st.integers(0, 900), st.integers(0, 400), st.floats(0, 3000)), min_size=1, max_size=5)


@given(
    kind=st.sampled_from(KINDS),
    history=steps,
    hours=st.tuples(st.integers(0, 23), st.integers(1, 24)),
    sun=st.tuples(st.integers(0, 11), st.integers(12, 24)),
    figures=st.tuples(st.floats(0, 2), st.floats(0, 1), st.integers(-12, 14)),
    start=st.floats(0, 1),
)
def test_levels_are_those_of_the_twin(kind, history, hours, sun, figures, start):
    """A history of (minutes of rest, minutes of work, joules)."""
    charge, idle, zone = figures
    settings = {"charging": kind, "from_hour": hours[0], "hours": hours[1], "sunrise_hour": sun[0], "sunset_hour": sun[1], "clouds": 0.6}
    ours = batteries(2000.0, charge, idle, zone * HOUR, **settings, start_level=start)
    draws = Draws(0, "energy", "clouds")
    twin = Minutes(ours.config, 2000.0, charge, idle, zone * HOUR, start * 2000, lambda day: draws(ONE, day)[0])
    now = 0.0
    for rest, work, joules in history:
        assert level(ours, now + rest * MINUTE) == pytest.approx(twin.go(now + rest * MINUTE, idle), abs=1e-3)
        now += rest * MINUTE
        if work:
            ours.spend(0, now, now + work * MINUTE, joules)
            assert ours.level_j[0] == pytest.approx(twin.go(now + work * MINUTE, joules / (work * MINUTE)), abs=1e-3)
            now += work * MINUTE


def test_nightly_charging_by_hand():
    """22:00 to 06:00 at UTC+1 is 21 to 5 UTC. 100 kJ, half full, 2 W in, 1 W idle: 5 h at +1 W, 16 h at -1 W, then +1 W again."""
    ours = batteries(100e3, 2.0, 1.0, HOUR, charging="windows", from_hour=22, hours=8, start_level=0.5)
    assert level(ours, 0) == 50e3
    assert level(ours, 5 * HOUR) == pytest.approx(50e3 + 18e3)
    assert level(ours, 21 * HOUR) == pytest.approx(68e3 - 57.6e3)
    assert level(ours, 24 * HOUR) == pytest.approx(10.4e3 + 10.8e3)
    assert level(ours, 2.5 * HOUR) == pytest.approx(59e3)  # asked again about what lies behind


def test_what_does_not_fit_is_lost_and_what_is_not_there_is_not_given():
    """Full at 05:00, empty after 10 ks, at 0 until 21:00 and then at +1 W: a level is cut where it happens, not at the end."""
    ours = batteries(10e3, 2.0, 1.0, HOUR, charging="windows", from_hour=22, hours=8, start_level=0.5)
    assert level(ours, 5 * HOUR) == 10e3
    assert level(ours, 5 * HOUR + 4e3) == pytest.approx(6e3)
    assert level(ours, 21 * HOUR) == 0
    assert level(ours, 22 * HOUR) == pytest.approx(3.6e3)


def test_a_day_of_sun_is_exact_and_half_hours_are_close():
    """A half sine of 12 h and 10 W: 10 * 12 h * 2 / pi = 275 kJ in a day; until time t, 1 - cos(pi (t - 6 h) / 12 h) halves of it."""
    ours = batteries(1e6, 10.0, charging="solar", start_level=0.0)
    whole = 10 * 12 * HOUR * 2 / math.pi
    for hour in (6.5, 9, 12, 15.5, 18, 23):
        sun = min(max(hour - 6, 0), 12)
        assert level(ours, hour * HOUR) == pytest.approx(whole * (1 - math.cos(math.pi * sun / 12)) / 2, rel=1e-9)
    assert level(ours, 3 * DAY) == pytest.approx(3 * whole, rel=1e-9)
    middle = whole * (1 - math.cos(math.pi * 1.25 / 12)) / 2
    assert level(ours, 7.25 * HOUR) == pytest.approx(middle, abs=0.002 * whole)


def test_clouds_take_up_to_their_share_of_each_day_of_each_device():
    count, days = 200, 3
    ours = batteries(np.full(count, 1e9), 10.0, charging="solar", start_level=0.0, clouds=0.4)
    levels = np.stack([ours.share(np.arange(count), day * DAY) * 1e9 for day in range(days + 1)])
    shares = np.diff(levels, axis=0) / (10 * 12 * HOUR * 2 / math.pi)
    assert shares.min() >= 0.6 - 1e-9 and shares.max() <= 1 + 1e-9
    assert shares.mean() == pytest.approx(0.8, abs=0.02) and len(np.unique(shares.round(9))) == count * days


def test_a_day_of_24_hours_is_always_and_steps_of_the_sun_are_half_hours_at_most():
    assert len(day_plan(EnergyConfig(charging="windows", hours=24)).edges) == 0
    for sunrise, sunset in ((6, 18), (5.9, 17.3), (0, 24), (12, 12.02)):
        plan = day_plan(EnergyConfig(charging="solar", sunrise_hour=sunrise, sunset_hour=sunset))
        assert np.diff(plan.edges).min() > 0 and np.diff(plan.edges).max() <= 30 * MINUTE
        assert plan.shares[0] == plan.shares[-1] == 0 and plan.shares.max() <= 1


def test_work_pays_its_joules_and_not_idle_power_again():
    """1 W idle for 100 s, then 500 J in 100 s beside a charger of 2 W: 1000 - 100 + 200 (full: 1000), then - 500 + 200."""
    ours = batteries(1000.0, 2.0, 1.0, charging="always", start_level=0.9)
    assert ours.spend(0, 50, 150, 500.0) == pytest.approx(950 - 300)
    assert level(ours, 250) == pytest.approx(650 + 100)
    assert batteries(1000.0, 0.0, 1.0, drain_idle=False).share(ONE, 1e6)[0] == 1


def test_work_that_takes_no_time_takes_its_joules_at_once():
    ours = batteries(1000.0, start_level=0.5)
    assert ours.spend(0, 10, 10, 200.0) == 300 and ours.spend(0, 10, 10, 400.0) == 0
    assert ours.spent_j[0] == 600
    assert ours.spend(0, 20, math.nextafter(20, 21), 5.0) == 0 and batteries(1000.0).spend(0, 0, 5e-324, 10.0) == 990


@given(
    kind=st.sampled_from(KINDS),
    works=st.lists(st.tuples(st.floats(0, DAY), st.floats(1, DAY), st.floats(0, 1e5)), min_size=1, max_size=6),
    charge=st.floats(0, 5),
    idle=st.floats(0, 5),
)
def test_energy_is_conserved_where_nothing_is_cut(kind, works, charge, idle):
    """A battery that is neither full nor empty: level = start + charged - idle - joules; charged is what one charges without loads."""
    ours = batteries(1e9, charge, idle, charging=kind, start_level=0.5, clouds=0.5)
    charged = batteries(1e9, charge, charging=kind, start_level=0.5, clouds=0.5)
    now, resting = 0.0, 0.0
    for rest, seconds, joules in works:
        ours.spend(0, now + rest, now + rest + seconds, joules)
        now, resting = now + rest + seconds, resting + rest
    spent = idle * resting + sum(joules for *_, joules in works)
    assert ours.level_j[0] == pytest.approx(level(charged, now) - spent, abs=1e-2)  # of 5e8


@given(
    kind=st.sampled_from(KINDS),
    works=st.lists(st.tuples(st.floats(0, DAY), st.floats(0, DAY), st.floats(0, 2e3)), max_size=6),
    charge=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    rest=st.floats(0, 2 * DAY),
)
def test_a_stronger_charger_never_leaves_less(kind, works, charge, rest):
    weak, strong = (batteries(2000.0, watts, 0.05, charging=kind, start_level=0.5, clouds=0.5) for watts in sorted(charge))
    now = 0.0
    for before, seconds, joules in works:
        begin, now = now + before, now + before + seconds
        assert strong.empties(0, begin, joules, seconds) >= weak.empties(0, begin, joules, seconds)
        assert strong.spend(0, begin, now, joules) >= weak.spend(0, begin, now, joules)
    assert strong.share(ONE, now + rest)[0] >= weak.share(ONE, now + rest)[0]


def fleet(kind: str = "solar") -> Batteries:
    return batteries(
        [500.0, 0.0, 2000.0, 900.0], [0.1, 1.0, 0.0, 0.2], [0.01, 1.0, 0.02, 0.0], [0.0, HOUR, -5 * HOUR, 5.75 * HOUR], seed=4,
        charging=kind, clouds=0.5, start_level=0.5, start_spread=0.3, daily_joules=400.0, reserve=0.2,
    )  # fmt: skip


events = st.lists(st.tuples(st.integers(0, 3), st.floats(0, 8 * HOUR), st.floats(0, 3 * HOUR), st.floats(0, 300)), max_size=5)


def run(of: Batteries, history, asked=()) -> Batteries:
    """Books a history of (device, rest, seconds, joules); in between somebody may ask about the times in `asked`."""
    for device, rest, seconds, joules in history:
        start = of.time[device] + rest
        of.spend(device, start, start + seconds, joules)
        for time in asked:
            of.share(np.array([3, 0, 2, 0]), time)
            of.empties(np.arange(4), of.time.max() + time, 50.0, time)
            of.declines(np.arange(4), time)
    return of


def same(left: Batteries, right: Batteries) -> bool:
    mine, other = left.snapshot(), right.snapshot()
    return all(mine[name].tobytes() == other[name].tobytes() for name in mine | other)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20)
@given(history=events, asked=st.lists(st.floats(0, 3 * DAY), min_size=1, max_size=3), time=st.floats(0, 4 * DAY))
def test_asking_changes_nothing_to_the_bit(kind, history, asked, time):
    asked_often, quiet = run(fleet(kind), history, asked), run(fleet(kind), history)
    assert same(asked_often, quiet)
    assert asked_often.share(np.arange(4), time).tobytes() == quiet.share(np.arange(4), time).tobytes()
    alone = [fleet(kind) for _ in range(4)]
    assert [run(one, history).share(np.array([k]), time)[0] for k, one in enumerate(alone)] == quiet.share(np.arange(4), time).tolist()


@settings(max_examples=20)
@given(before=events, after=events, time=st.floats(0, 4 * DAY))
def test_a_restored_state_goes_on_to_the_bit(before, after, time):
    whole = run(fleet(), before, asked=[2 * DAY])
    snapshot = {name: array.copy() for name, array in whole.snapshot().items()}
    restored = fleet()
    restored.restore(snapshot)
    assert same(run(whole, after), run(restored, after))
    assert whole.share(np.arange(4), time).tobytes() == restored.share(np.arange(4), time).tobytes()
    assert whole.declines(np.arange(4), time) == restored.declines(np.arange(4), time)
    again = fleet()
    again.restore(snapshot)
    assert all(again.snapshot()[name].tobytes() == array.tobytes() for name, array in snapshot.items())  # `run` wrote into copies


@settings(max_examples=20)
@given(events)
def test_work_of_a_device_does_not_touch_others(history):
    ours, alone = run(fleet(), history), run(fleet(), [event for event in history if event[0] == 2])
    assert all(ours.snapshot()[name][2] == alone.snapshot()[name][2] for name in ours.snapshot())
    assert ours.share(np.array([2]), 4 * DAY) == alone.share(np.array([2]), 4 * DAY)


def test_several_devices_are_booked_as_one_by_one():
    together, single = fleet(), fleet()
    devices, start, seconds, joules = np.array([2, 0, 3]), np.array([10.0, HOUR, 9 * HOUR]), np.array([60.0, 900.0, 0.0]), 40.0
    empties = together.empties(devices, start, 1e4, seconds)
    assert empties.tolist() == [single.empties(*work) for work in zip(devices, start, [1e4] * 3, seconds, strict=True)]
    levels = together.spend(devices, start, start + seconds, joules)
    assert levels.tolist() == [single.spend(d, s, s + t, joules) for d, s, t in zip(devices, start, seconds, strict=True)]
    assert same(together, single) and isinstance(single.spend(1, 5, 6, 7), float)


def test_when_work_empties_a_battery_by_hand():
    """100 J left. 5 W for 100 s: after 20 s. With a charger of 3 W that comes at second 10: 50 J left there, then -2 W: at 35 s."""
    ours = batteries(200.0, 3.0, start_level=0.5)
    assert ours.empties(0, 0, 500.0, 100) == 20
    assert ours.empties(0, 40, 500.0, 100) == 60
    assert ours.empties(0, 0, 99.0, 100) == ours.empties(0, 0, 0.0, 100) == math.inf
    assert ours.empties(0, 7, 100.5, 0) == 7 and ours.empties(0, 7, 100.0, 0) == math.inf
    plugged = batteries(200.0, 3.0, 0.0, 22 * HOUR - 10, charging="windows", from_hour=22, hours=8, start_level=0.5)
    assert plugged.empties(0, 0, 500.0, 100) == pytest.approx(35)
    assert plugged.empties(0, 0, 300.0, 100) == math.inf
    assert plugged.time[0] == 0 and plugged.level_j[0] == 100


def test_an_empty_battery_is_empty_as_work_begins_unless_the_charger_carries_it():
    ours = batteries(200.0, 3.0, charging="always", start_level=0.0)
    assert ours.empties(0, 0, 400.0, 100) == 0 and ours.empties(0, 0, 300.0, 100) == math.inf


@given(st.sampled_from(KINDS), st.floats(0, 2 * DAY), st.floats(60, DAY), st.floats(1, 5000))
def test_work_up_to_that_instant_leaves_nothing_and_no_sooner(kind, start, seconds, joules):
    def fresh() -> Batteries:
        return batteries(1000.0, 0.02, 0.001, charging=kind, start_level=0.6, clouds=0.5)

    empty = fresh().empties(0, start, joules, seconds)
    if empty == math.inf:
        assert fresh().spend(0, start, start + seconds, joules) >= 0
        return
    watts = joules / seconds
    assert start <= empty <= start + seconds
    assert fresh().spend(0, start, empty, watts * (empty - start)) == pytest.approx(0, abs=1e-5)
    half = (start + empty) / 2
    assert fresh().spend(0, start, half, watts * (half - start)) > 0 or empty == start


def test_the_mains_never_empty():
    ours = batteries([0.0, 100.0], 0.0, 5.0, reserve=0.5, start_level=0.2)
    assert ours.empties(0, 0, 1e9, 10) == math.inf and ours.empties(0, 0, 1e9, 0) == math.inf
    assert ours.spend(0, 0, 10, 1e9) == math.inf
    assert ours.share(np.arange(2), 1e6).tolist() == [1, 0]
    assert ours.declines(np.arange(2), 0.0) == ["", "battery at 20 %, reserve is 50 %"]


def test_reasons_by_hand():
    """Reserve 20 %: of 1 kJ at 21 % a watt takes the willingness within 10 s; a share is shown rounded down."""
    ours = batteries(1000.0, 0.0, 1.0, reserve=0.2, start_level=0.21)
    reasons = [ours.declines(ONE, time)[0] for time in (0, 9.9, 10.1, 90, 250)]
    assert reasons == ["", "", "battery at 19.9 %, reserve is 20 %", "battery at 12 %, reserve is 20 %", "battery is empty"]
    assert batteries(1000.0, start_level=0.0).declines(ONE, 0) == ["battery is empty"]


def test_a_daily_budget_ends_at_local_midnight():
    """50 J a day at UTC+2, so the day ends at 22:00 UTC. Work of 40 J around midnight: its 3 quarters behind it are of the new day."""
    ours = batteries([1000.0, 0.0], 0.0, 0.0, 2 * HOUR, daily_joules=50.0)
    both, spent = np.arange(2), "daily budget of 50 J is spent"
    ours.spend(0, 0, 10, 30.0)
    assert ours.declines(both, 10.0) == ["", ""]
    ours.spend(0, 20, 30, 20.0)
    ours.spend(1, 20, 30, 90.0)
    assert ours.declines(both, 30.0) == [spent, spent]
    assert ours.declines(both, 22 * HOUR - 1) == [spent, spent]
    assert ours.declines(both, 22 * HOUR) == ["", ""]
    ours.spend(0, 22 * HOUR - 10, 22 * HOUR + 30, 40.0)
    assert ours.spent_j.tolist() == [30, 90] and ours.day.tolist() == [1, 0]
    ours.spend(0, 23 * HOUR, 23 * HOUR, 20.0)
    assert ours.declines(ONE, 23 * HOUR) == [spent] and batteries(1000.0).declines(ONE, 0.0) == [""]


def test_who_is_asked_about_the_time_of_its_work_answers_as_of_its_end():
    ours = batteries(1000.0, daily_joules=200.0)
    ours.spend(0, 0, 100, 200.0)
    assert ours.share(ONE, 50)[0] == 0.8 and ours.declines(ONE, 50) == ["daily budget of 200 J is spent"]


def test_start_levels_are_spread_evenly_and_cut():
    """Uniform in 0.9 +- 0.2, cut at 1: a quarter is full, the rest even from 0.7 to 1."""
    shares = batteries(np.full(4000, 50.0), start_level=0.9, start_spread=0.2).share(np.arange(4000), 0)
    assert (shares == 1).mean() == pytest.approx(0.25, abs=0.03) and 0.7 <= shares.min() < 0.71
    assert shares[shares < 1].mean() == pytest.approx(0.85, abs=0.01)
    assert not np.array_equal(shares, batteries(np.full(4000, 50.0), start_level=0.9, start_spread=0.2, seed=1).share(np.arange(4000), 0))


@pytest.mark.parametrize(
    ("work", "message"),
    [
        ((2, 99.0, 200.0, 1.0), "work of device 2 begins at 99 s, and it is booked up to 100 s: a device does one thing at a time"),
        ((2, 200.0, 150.0, 1.0), "work of device 2 is of -50 seconds: they must be finite and not negative"),
        ((0, 0.0, 1.0, -1.0), "work of device 0 is of -1 joules"),
        ((0, 0.0, 1.0, math.nan), "work of device 0 is of nan joules"),
        ((0, 0.0, math.inf, 1.0), "work of device 0 is of inf seconds"),
        ((0, math.nan, math.nan, 1.0), "work of device 0 is of nan seconds"),
        ((np.array([1, 1]), 0.0, 1.0, 1.0), "a device stands twice in one call of spend"),
    ],
)
def test_work_that_cannot_be_is_refused_and_changes_nothing(work, message):
    ours = fleet()
    ours.spend(2, 0, 100, 5.0)
    before = {name: array.copy() for name, array in ours.snapshot().items()}
    with pytest.raises(ValueError, match=message):
        ours.spend(*work)
    assert all(np.array_equal(array, before[name]) for name, array in ours.snapshot().items())


def test_a_snapshot_of_another_fleet_is_refused():
    with pytest.raises(ValueError, match=r"batteries in the snapshot are .*\(1,\).* and in this run .*\(4,\).*resume it with its own"):
        fleet().restore(batteries().snapshot())


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({"capacity": [1.0, -1.0]}, "capacity_j of device 1 is -1.0: it must be finite and not negative"),
        ({"charge": math.inf}, "charge_w of device 0 is inf"),
        ({"idle": math.nan}, "idle_w of device 0 is nan"),
        ({"offset": math.nan}, "offsets of device 0 is nan: it must be finite"),
    ],
)
def test_figures_that_cannot_be_are_refused(figures, message):
    with pytest.raises(ValueError, match=message):
        batteries(**figures)


def test_arrays_of_different_fleets_are_refused():
    with pytest.raises(ValueError, match=r"idle_w is of shape \(3,\): there are 2 devices, so give as many numbers"):
        Batteries(EnergyConfig(), capacity_j=np.ones(2), charge_w=np.ones(2), idle_w=np.ones(3), offsets=np.zeros(2), seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"charging": "wind"}, "charging is 'wind': choose one of none, always, windows, solar"),
        ({"from_hour": -1}, "from_hour is -1: a local time from 0 to below 24"),
        ({"hours": 24.5}, "hours is 24.5"),
        (
            {"sunrise_hour": 18},
            "sunrise_hour is 18 and sunset_hour is 18.0: local times from 0 to 24, sunset a minute after sunrise",
        ),
        ({"sunset_hour": 25}, "sunset_hour is 25"),
        ({"clouds": 1.1}, "clouds is 1.1: a share from 0 to 1; the default is 0.5"),
        ({"start_level": -0.1}, "start_level is -0.1"),
        ({"start_spread": 2}, "start_spread is 2"),
        ({"reserve": math.nan}, "reserve is nan"),
        ({"daily_joules": -1}, "daily_joules is -1: finite and not negative; 0 sets no budget"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EnergyConfig(**settings)
