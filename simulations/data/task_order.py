"""Which task a device meets when: the order of tasks, recurring tasks, devices without new classes, single-pass pieces, domains."""

import logging

import numpy as np

from client.streams.stream import Streams
from client.streams.task_order import ArrangedStreams
from simulations.config.errors import ConfigError
from simulations.config.sections import StreamConfig
from sparcl_core.domains import Domains
from sparcl_core.seeding import generator

log = logging.getLogger(__name__)


def arranged(
    config: StreamConfig, base: Streams, classes: tuple[tuple[int, ...], ...], *, seed: int, rounds_per_task: int | None = None
) -> Streams:
    """`base` in the order that the settings ask for; `base` itself if it is that of its tasks.

    Args:
        base: the tasks in their own order; the one task of all classes where there are domains.
        classes: per task.
        rounds_per_task: pieces that a task comes in if `config.online`; else not read.

    Raises:
        ValueError: if it is needed and missing.
    """
    chunks = 1
    if config.online:
        if rounds_per_task is None:
            raise ValueError("rounds_per_task is None: an online stream comes in one piece a round; pass federation.rounds_per_task")
        chunks = rounds_per_task
    sequences, domains = task_sequences(config, seed), make_domains(config, seed)
    is_plain = np.array_equal(sequences, np.arange(config.tasks)[None])
    if is_plain and config.cycles == chunks == 1 and domains is None:
        return base
    return ArrangedStreams.of(base, sequences, classes, cycles=config.cycles, chunks=chunks, domains=domains)


def make_domains(config: StreamConfig, seed: int) -> Domains | None:
    """What is done to the images of a task, on devices and in the test set; None outside of `domain-il`."""
    return Domains(config.domain, seed, config.rotation) if config.setting == "domain-il" else None


def task_sequences(config: StreamConfig, seed: int) -> np.ndarray:
    """The tasks of each device in order, [devices, tasks] int32; [1, tasks] if all have the same."""
    sequences = np.arange(config.tasks, dtype=np.int32)[None]
    if config.order == "shuffled":  # row by row from one generator: a device's row does not depend on how many there are
        sequences = generator(seed, "task-order").random((config.devices, config.tasks)).argsort(axis=1).astype(np.int32)
    if config.new_classes_share < 1:
        count = max(1, round(config.new_classes_share * config.devices))
        stays = generator(seed, "new-classes").permutation(config.devices) >= count
        sequences = np.where(stays[:, None], sequences[:, :1], sequences)
    return sequences


def check_tested(classes: tuple[tuple[int, ...], ...], test_y: np.ndarray) -> None:
    """Raises ConfigError if there are tasks without test samples: their accuracy would be that of nothing."""
    if untested := [f"{task} (classes {members})" for task, members in enumerate(classes) if not np.isin(test_y, members).any()]:
        raise ConfigError(
            f"no test sample of task {', '.join(untested)}: nobody would know how well it is learned; add samples to the test data, leave "
            f"these classes out of the training data, or set data.validation=0.1 to test on a share of the training samples"
        )


def check_batches(streams: Streams, least: int) -> None:
    """Every task has a device that can be trained on it; those that have data and cannot are told of in a line of the log.

    Args:
        least: samples that a batch must have, see `sparcl_core.batches`.

    Raises:
        ConfigError: naming the first task that no device can be trained on.
    """
    sizes, order = streams.sizes, streams.order
    what = f"BatchNorm on images of {streams.x.shape[2]}x{streams.x.shape[3]} needs {least} samples at once"
    for task, members in enumerate(streams.classes):
        if (own := sizes[order == task]).any() and (own < least).all():
            raise ConfigError(
                f"task {task} (classes {members}) has at most {own.max()} sample on every device, and {what}; "
                f"take fewer devices, or a net without BatchNorm (model.name=cnn)"
            )
    few = (sizes > 0) & (sizes < least)
    if few.any():
        log.warning(
            "%d of %d devices sit out steps of their stream, %d steps in all: they have a single sample there, and %s",
            np.count_nonzero(few.any(axis=1)), len(streams), np.count_nonzero(few), what,
        )  # fmt: skip


def check_data(streams: Streams) -> None:
    """Every task has data on some device, and every device in some step.

    Raises:
        ConfigError: naming the first task or device that has none.
    """
    sizes, order = streams.sizes, streams.order
    if sizes.strides[0] == order.strides[0] == 0:  # all devices are alike: one stands for a fleet of any size
        sizes, order = sizes[:1], order[:1]
    for task, members in enumerate(streams.classes):
        if not sizes[order == task].any():
            raise ConfigError(
                f"task {task} (classes {members}) has no data on any device that meets it; "
                f"set stream.new_classes_share larger, or take fewer tasks"
            )
    per_device = sizes.max(axis=1)
    if not per_device.all():
        raise ConfigError(
            f"device {int(np.argmin(per_device))} has no data in any step ({np.count_nonzero(per_device == 0)} of {len(streams)} devices "
            f"have none); take fewer devices, or a partition that is less skewed (stream.alpha larger, or stream.partition=iid)"
        )
