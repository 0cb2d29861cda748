"""From an experiment to the physical side of its fleet: every section reaches the part of the server that reads it."""

import numpy as np
import pytest
from worlds import TOY, tiny, tiny_world, toy_fleet

from server.fleet.local_time import HOUR, draw_offsets
from server.fleet.stream_progress import Pace
from server.selection.cohort import Cohorts
from simulations.build import make_roster, make_strategy
from simulations.config.errors import ConfigError
from simulations.fleet.build import make_cohorts
from sparcl_core.costs.memory import activation_bytes
from sparcl_core.learner import Learner
from sparcl_core.methods.registry import make_method


def cohorts_of(*overrides: str) -> Cohorts:
    world = tiny_world(*overrides)
    cohorts = make_strategy(world).federation.cohorts
    cohorts.enrol(make_roster(world.streams))
    return cohorts


def test_hardware_is_that_of_the_fleet(tmp_path):
    cohorts = cohorts_of(*toy_fleet(tmp_path, 3, flops_per_s=[1e6, 2e6, 3e6]))
    hardware = cohorts.conditions.hardware
    assert hardware.column("flops_per_s").tolist() == [1e6, 2e6, 3e6]
    assert [cohorts.conditions.profile(device).active_w for device in range(3)] == [TOY["active_w"]] * 3


def test_hardware_is_made_once(tmp_path):
    """What results say of it is said of the fleet that was simulated."""
    world = tiny_world(*toy_fleet(tmp_path, 3))
    assert make_strategy(world).federation.conditions.hardware is world.fleet.hardware and world.fleet is world.fleet


def test_the_shape_of_the_work_is_that_of_the_model():
    world = tiny_world()
    learner = Learner(world.experiment.method, world.data.inputs, world.experiment.federation.task_epochs, 0)
    workload = make_cohorts(world.experiment, world.fleet.hardware, world.streams, learner).workload
    assert workload.moved == activation_bytes(learner.model, learner.inputs.shape) > 0
    assert workload.layer_passes == len(learner.layers) * (1 if learner.is_joint else 3)  # derpp draws twice


def test_a_run_and_its_streams_begin_at_the_start_hour():
    """The first step begins where the run does, not at second 0."""
    by_time = ("stream.advance=time", "stream.task_hours=3", "clock.start_hour=20")
    cohorts = cohorts_of(*by_time)
    assert cohorts.origin == 20 * HOUR == make_strategy(tiny_world(*by_time)).federation.now
    assert cohorts.steps(1, 20 * HOUR).tolist() == [0] * 3
    assert cohorts.steps(1, 23 * HOUR - 1).tolist() == [0] * 3 and cohorts.steps(1, 23 * HOUR).tolist() == [1] * 3


def test_pace_is_that_of_the_stream():
    settings = {"pace_spread": 0.5, "start_spread": 1.5}
    made = cohorts_of("stream.advance=participation", *(f"stream.{key}={value}" for key, value in settings.items())).conditions.pace
    expected = Pace.of(0, 3, 2, 4, advance="participation", task_s=24 * HOUR, **settings)
    assert (made.steps, made.rounds_per_task, made.advance) == (2, 4, "participation")
    assert made.speed.tolist() == expected.speed.tolist() and made.delay.tolist() == expected.delay.tolist()


@pytest.mark.parametrize("advance", ["rounds", "time"])
def test_pieces_of_an_online_stream_take_a_task_together(advance):
    """Four rounds a task, four pieces: eight steps of a round each, or of a quarter of the task's hours; a late start in tasks, too."""
    online = ("stream.online=true", "ddr.enabled=false", f"stream.advance={advance}", "stream.task_hours=8", "stream.partition=iid")
    cohorts = cohorts_of(*online)
    assert cohorts.chunks == 4 and cohorts.conditions.pace.steps == 8
    if advance == "time":
        assert [cohorts.steps(1, hour * HOUR)[0] for hour in (0, 1.9, 2, 8, 15.9)] == [0, 0, 1, 4, 7]
    else:
        assert [cohorts.steps(number, 0.0)[0] for number in (1, 2, 5, 8)] == [0, 1, 4, 7]
    assert [cohorts.usual_task(number, (number - 1) * 2 * HOUR) for number in (1, 4, 5, 8)] == [0, 0, 1, 1]
    late = cohorts_of(*online, "stream.start_spread=1").conditions.pace.delay
    assert late.tolist() == pytest.approx(Pace.of(0, 3, 8, 1, start_spread=4.0).delay.tolist())


def test_batteries_are_the_profiles_and_their_day_is_that_of_the_time_zone(tmp_path):
    """Second 0 is midnight UTC: of zones -8, 0 and 9 only 0 is in its charging hours, 22 to 6.

    A quarter of an hour of idling takes 2 W * 900 s of 7,200 J, a charger of 1 W brings half of that.
    """
    settings = ("availability.time_zones=[-8, 0, 9]", "energy.charging=windows", "energy.from_hour=22", "energy.hours=8")
    cohorts = cohorts_of(*toy_fleet(tmp_path, 3, battery_j=[7200] * 3, charge_w=[1] * 3), *settings)
    batteries, offsets = cohorts.conditions.batteries, draw_offsets((-8, 0, 9), 3, 0)
    expected = [0.875 if offset == 0 else 0.75 for offset in offsets]
    assert sorted(offsets.tolist()) == [-8 * HOUR, 0, 9 * HOUR]
    assert batteries.share(np.arange(3), 900.0).tolist() == pytest.approx(expected)


def test_presence_and_failures_are_those_of_the_section(tmp_path):
    (tmp_path / "trace.csv").write_text("device,on,off\n0,0,100\n2,50,inf\n")
    cohorts = cohorts_of("availability.kind=trace", f"availability.trace={tmp_path}/trace.csv", "availability.failure=0.25")
    assert cohorts.present(1, 60.0).tolist() == [0, 2] and cohorts.present(1, 100.0).tolist() == [2]
    assert cohorts.conditions.failure == 0.25


def test_a_wrong_trace_is_an_error_of_the_experiment(tmp_path):
    (tmp_path / "trace.csv").write_text("device,on,off\n0,5,1\n")
    for trace, part in ((tmp_path / "trace.csv", "trace.csv, line 2: off is 1 s"), (tmp_path / "none.csv", "cannot be read")):
        with pytest.raises(ConfigError, match=part):
            make_strategy(tiny_world("availability.kind=trace", f"availability.trace={trace}"))


def test_a_device_with_more_samples_needs_more_memory(tmp_path):
    """What a buffer holds counts: with memory between what two amounts of data need, the larger one takes a sparser model, or none fits."""
    few, many = (("stream.partition=drawn", f"stream.samples={samples}") for samples in (2, 40))
    share = ("learner.buffer_share=0.5", "budget.memory=fit")
    whole = cohorts_of(*few, *share).workload

    def needs(settings: tuple[str, ...]) -> float:
        method = make_method(tiny(*settings, *share).learner)
        samples = int(settings[1].split("=")[1])
        return float(whole.memory(0.9, np.array([method.buffer_capacity(2 * samples)]), np.array([samples]))[0])

    assert needs(few) < needs(many)
    fleet = toy_fleet(tmp_path, 3, memory_bytes=[(needs(few) + needs(many)) / 2] * 3)
    assert cohorts_of(*few, *share, *fleet).tiers.of.tolist() == [0] * 3
    assert 0 not in cohorts_of(*many, *share, *fleet).tiers.of


def test_a_large_fleet_of_equals_takes_no_memory_of_its_own():
    """Sizes and buffers of devices that draw alike are one row, whatever their number."""
    cohorts = cohorts_of("stream.partition=drawn", "stream.samples=4", "stream.devices=100000", "federation.cohort_size=3")
    assert len(cohorts.tiers.of) == 100_000 and (cohorts.tiers.of == 0).all()
    assert cohorts.conditions.pace.speed.strides == (0,)
