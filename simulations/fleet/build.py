"""From an experiment to the physical side of its fleet: when devices are there, batteries, pace, and how sparse each device trains."""

import numpy as np

from client.streams.stream import Streams
from server.fleet.availability import Availability, make_availability
from server.fleet.battery import make_batteries
from server.fleet.conditions import Conditions
from server.fleet.hardware import Hardware
from server.fleet.local_time import HOUR, draw_offsets
from server.fleet.stream_progress import Pace
from server.selection.cohort import Cohorts
from server.selection.estimate import Workload
from server.selection.sparsity_tiers import assign
from simulations.config.errors import ConfigError
from simulations.config.experiment import Experiment
from sparcl_core.costs.memory import activation_bytes
from sparcl_core.learner import Learner
from sparcl_core.methods.registry import make_method


def make_cohorts(experiment: Experiment, hardware: Hardware, streams: Streams, learner: Learner) -> Cohorts:
    """The fleet of an experiment, as the server knows it.

    Raises:
        ConfigError: if a trace is wrong.
    """
    e, count = experiment, len(streams)
    workload = _workload(e, learner)
    buffered, most = _per_device(streams.sizes, e)
    conditions = Conditions(
        hardware=hardware,
        availability=_availability(e, count),
        batteries=make_batteries(e.energy, hardware, draw_offsets(e.availability.time_zones, count, e.seed), e.seed),
        pace=_pace(e, streams),
        failure=e.availability.failure,
        seed=e.seed,
    )
    return Cohorts(
        conditions,
        assign(e.budget, workload, hardware, buffered=buffered, samples=most),
        workload,
        e.selection,
        origin=e.clock.start_s,
        chunks=streams.chunks,
        most_samples=int(streams.sizes.max(initial=0)),
    )


def _workload(e: Experiment, learner: Learner) -> Workload:
    layout = learner.layout
    return Workload(
        method=e.method,
        epochs=e.federation.local_epochs,
        layers=learner.layers,
        model=learner.held,
        shapes={name: shape for name, shape in layout.shapes.items() if name in layout.masked},
        moved=activation_bytes(learner.model, learner.inputs.shape),
        input_bytes=int(np.prod(learner.inputs.shape)),
        classes=learner.inputs.num_classes,
        is_joint=learner.is_joint,
        least=learner.least,
    )


def _per_device(sizes: np.ndarray, e: Experiment) -> tuple[np.ndarray, np.ndarray]:
    """Samples that each device's buffer can hold, and the most that it has in a step; [N] each. A large fleet of equals is one row."""
    rows = sizes if any(sizes.strides) else sizes[:1]
    method = make_method(e.learner)
    capacity = np.array([method.buffer_capacity(total) for total in rows.sum(axis=1).tolist()])
    return np.broadcast_to(capacity, len(sizes)), np.broadcast_to(rows.max(axis=1), len(sizes))


def _availability(e: Experiment, count: int) -> Availability:
    try:
        return make_availability(e.availability, count, e.seed)
    except (ValueError, OSError) as error:
        raise ConfigError(f"availability: {error}") from error


def _pace(e: Experiment, streams: Streams) -> Pace:
    chunks, stream = streams.chunks, e.stream
    rounds = max(1, e.federation.rounds_per_task // chunks)  # a chunk of an online stream is one round's data
    return Pace.of(
        e.seed,
        len(streams),
        streams.sizes.shape[1],
        rounds,
        advance=stream.advance,
        task_s=stream.task_hours * HOUR / chunks,
        pace_spread=stream.pace_spread,
        start_spread=stream.start_spread * chunks,
    )
