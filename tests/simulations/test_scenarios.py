"""The scenarios that come with the project: whole as they are, and the same to the byte when a small one is run again."""

import pyarrow.parquet as pq
import pytest

from server.rounds.registration import enrol
from simulations.build import make_roster, make_strategy, make_world
from simulations.config.data import STREAMS
from simulations.config.loading import EXPERIMENTS, available, load
from simulations.results.write import write_run
from simulations.run import Result, run_world

SCENARIOS = [name for name in available() if not name.startswith(("split-", "smoke")) and name not in STREAMS]
TABLES = ("ledger.parquet", "devices.parquet", "classes.parquet", "rounds.parquet")
SMALL = (
    "stream.devices=12", "stream.tasks=2", "stream.samples=8", "federation.rounds=5", "federation.rounds_per_task=4",
    "federation.local_epochs=1", "federation.cohort_size=4", "tdm.stage_epochs=1", "ddr.stage_epochs=1", "learner.batch_size=4",
    "kernels.mode=sparse",
)  # fmt: skip
NARROW = ("model.width=8", "model.hidden=16")  # but where memory is what the scenario is about
BUFFERED = {
    "async": ("clock.mode=async", "clock.buffer_size=3", "clock.deadline_s=0", "clock.period_s=0"),
    "semi-sync": ("clock.mode=semi-sync", "clock.period_s=0.15", "clock.deadline_s=0"),
}
# what a variant runs, and outcomes that it must show: else it would not be that scenario any more
VARIANTS = {
    "phones-at-night": ("phones-at-night", NARROW, {"ok"}),
    "solar-cameras": ("solar-cameras", NARROW, {"ok", "skipped"}),
    "stragglers": ("stragglers", (*NARROW, "clock.deadline_s=0.1"), {"ok", "late"}),
    "drift": ("drift", NARROW, {"ok"}),
    "new-classes": ("new-classes", NARROW, {"ok"}),
    "microcontrollers": ("microcontrollers", (), {"ok"}),
    "stragglers, async": ("stragglers", (*NARROW, *BUFFERED["async"]), {"ok", "cancelled"}),
    "stragglers, semi-sync": ("stragglers", (*NARROW, *BUFFERED["semi-sync"]), {"ok"}),
    "phones-at-night, async": ("phones-at-night", (*NARROW, *BUFFERED["async"]), {"ok"}),
    "new-classes, oort": ("new-classes", (*NARROW, "clock.over_selection=0.5", "selection.policy=oort"), {"ok", "cancelled"}),
}


def run_small(variant: str, engine: str = "inline", workers: int = 0) -> Result:
    name, overrides, _ = VARIANTS[variant]
    return run_world(make_world(load(name, [*SMALL, *overrides])), engine, workers)


def tables(result: Result, folder) -> dict[str, bytes]:
    folder.mkdir()
    write_run(folder, result)
    return {name: (folder / name).read_bytes() for name in TABLES}


# -- as they are


def test_there_are_six_scenarios_and_every_experiment_is_named_as_its_file():
    assert SCENARIOS == ["drift", "microcontrollers", "new-classes", "phones-at-night", "solar-cameras", "stragglers"]
    assert [load(name).name for name in available()] == available() == sorted(path.stem for path in EXPERIMENTS.folder.glob("*.toml"))


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_is_whole(name):
    """At full size: hardware, streams and presence of at least 100 devices; whoever has data can take part, and rounds fit deadlines."""
    experiment = load(name)
    world = make_world(experiment)
    strategy = make_strategy(world)
    enrol(strategy.federation, make_roster(world.streams))  # refuses a deadline that nobody meets
    cohorts, devices = strategy.federation.cohorts, experiment.stream.devices
    assert experiment.description and 0 < experiment.target < 1 and experiment.sparsity == 0.9
    assert devices >= 100 and len(world.streams) == len(cohorts.conditions.hardware) == devices
    assert world.streams.sizes.max(axis=1).min() > 0
    assert cohorts.tiers.reasons == {} and (cohorts.tiers.of >= 0).all()
    assert 0 < cohorts.least_seconds() <= experiment.clock.deadline
    assert cohorts.anyone_comes(strategy.federation.now)
    assert experiment.federation.cohort_size <= devices


def test_tiers_of_the_microcontrollers():
    """Nested masks: as many levels as there are memories, boards at the experiment's own sparsity."""
    world = make_world(load("microcontrollers"))
    cohorts = make_strategy(world).federation.cohorts
    hardware, tiers = cohorts.conditions.hardware, cohorts.tiers
    sparsity = {hardware.kinds[kind].name: tiers.levels[tier].sparsity for kind, tier in zip(hardware.kind, tiers.of, strict=True)}
    memory = {hardware.kinds[kind].name: hardware.kinds[kind].memory_bytes for kind in hardware.kind}
    by_memory = [sparsity[name] for name in sorted(memory, key=memory.get, reverse=True)]
    assert by_memory == sorted(by_memory) and by_memory[0] == 0.9 and len(set(by_memory)) >= 3


# -- small ones


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_seed_is_the_same_run_to_the_byte(variant, tmp_path):
    first, again = run_small(variant), run_small(variant)
    assert tables(first, tmp_path / "first") == tables(again, tmp_path / "again")
    outcomes = {row.outcome for row in first.strategy.ledger.rows}
    assert outcomes >= VARIANTS[variant][2], outcomes
    assert len(first.rounds) == 6 and any(record.num_devices for record in first.rounds)
    for name in TABLES:
        assert pq.read_table(tmp_path / "first" / name).num_rows > 0


def test_another_seed_is_another_run(tmp_path):
    name, overrides, _ = VARIANTS["stragglers"]
    other = run_world(make_world(load(name, [*SMALL, *overrides, "seed=1"])), "inline")
    assert tables(other, tmp_path / "other")["ledger.parquet"] != tables(run_small("stragglers"), tmp_path / "own")["ledger.parquet"]


@pytest.mark.slow  # tests/simulations/engine/test_engines.py has smaller ones
def test_two_workers_leave_the_same_bytes_as_one_process(tmp_path):
    one, two = run_small("stragglers, async"), run_small("stragglers, async", "ray", 2)
    assert (one.workers, two.workers) == (1, 2)
    assert tables(one, tmp_path / "one") == tables(two, tmp_path / "two")
