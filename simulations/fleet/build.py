"""From an experiment to the physical side of its fleet: hardware, presence, batteries, pace, and how sparse each device trains."""

from dataclasses import dataclass

import numpy as np

from client.streams.stream import Streams
from server.fleet.availability import make_availability
from server.fleet.battery import make_batteries
from server.fleet.conditions import Conditions
from server.fleet.hardware import Hardware
from server.fleet.local_time import HOUR, draw_offsets
from server.fleet.stream_progress import Pace
from server.selection.cohort import Attendance
from server.selection.estimate import Estimates, Workload
from server.selection.sparsity_tiers import assign
from simulations.config.experiment import ConfigError, Experiment
from simulations.fleet.mix import make_hardware
from sparcl_core.costs.memory import activation_bytes
from sparcl_core.learner import Learner
from sparcl_core.methods.registry import make_method


@dataclass(frozen=True, eq=False)
class Shape:
    """What the fleet's size and work are, before anything is trained."""

    attendance: Attendance
    moved_per_sample: int
    layer_passes: int


def make_attendance(experiment: Experiment, streams: Streams, learner: Learner) -> Shape:
    """The fleet of an experiment, as the server knows it.

    Raises:
        ConfigError: if a profile, the fleet's file or a trace is wrong.
    """
    e, count = experiment, len(streams)
    hardware = make_hardware(e.fleet, e.profile, count, e.seed).hardware
    sizes, moved = streams.sizes, activation_bytes(learner.model, learner.inputs.shape)
    masked = {name: learner.layout.size(name) for name in learner.layout.shapes if name in learner.layout.masked}
    pixels = int(np.prod(learner.inputs.shape))
    model = (learner.layers, learner.held, masked, moved, pixels, learner.inputs.num_classes, learner.is_joint, learner.least)
    workload = Workload(e.method, e.federation.local_epochs, *model)
    buffered, most = _per_device(sizes, e)
    tiers = assign(e.budget, workload, hardware, buffered, most)
    estimates = Estimates(hardware, workload, tiers.levels, tiers.of)
    conditions = Conditions(hardware, _availability(e, count), _batteries(e, hardware), _pace(e, streams), e.availability.failure, e.seed)
    return Shape(
        Attendance(conditions, tiers, estimates, e.selection, e.seed, e.clock.start_hour * HOUR, streams.chunks, int(sizes.max(initial=0))),
        moved,
        workload.layer_passes,
    )


def _per_device(sizes: np.ndarray, e: Experiment) -> tuple[np.ndarray, np.ndarray]:
    """Samples that each device's buffer can hold, and the most that it has in a step; [N] each. A large fleet of equals is one row."""
    rows = sizes if any(sizes.strides) else sizes[:1]
    method = make_method(e.learner)
    capacity = np.array([method.buffer_capacity(total) for total in rows.sum(axis=1).tolist()])
    return np.broadcast_to(capacity, len(sizes)), np.broadcast_to(rows.max(axis=1), len(sizes))


def _availability(e: Experiment, count: int):
    try:
        return make_availability(e.availability, count, e.seed)
    except (ValueError, OSError) as error:
        raise ConfigError(f"availability: {error}") from error


def _batteries(e: Experiment, hardware: Hardware):
    columns = (hardware.column(name) for name in ("battery_j", "charge_w", "idle_w"))
    return make_batteries(e.energy, *columns, draw_offsets(e.availability.time_zones, len(hardware), e.seed), e.seed)


def _pace(e: Experiment, streams: Streams) -> Pace:
    chunks, stream = streams.chunks, e.stream
    rounds = max(1, e.federation.rounds_per_task // chunks)  # a chunk of an online stream is one round's data
    spreads = {"pace_spread": stream.pace_spread, "start_spread": stream.start_spread * chunks}
    steps = streams.sizes.shape[1]
    return Pace.of(e.seed, len(streams), steps, rounds, stream.advance, stream.task_hours * HOUR / chunks, **spreads)
