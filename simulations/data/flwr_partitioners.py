"""Splits of flwr-datasets' partitioners: who owns each sample of a table.

| partition | partitioner | source |
|---|---|---|
| `shards` | ShardPartitioner | McMahan et al. 2017, arXiv:1602.05629 |
| `pathological` | PathologicalPartitioner, first class of a device in turn | Li et al. 2021, arXiv:2102.02079 |
| `sizes` | LinearPartitioner, SquarePartitioner, ExponentialPartitioner | flwr-datasets |
| `natural` | NaturalIdPartitioner | LEAF (Caldas et al. 2018, arXiv:1812.01097) |

A partitioner sees labels and row numbers only, no images. It gets its rows in an order drawn by us, and a seed drawn by us, and no
network. Importing the package takes as long as the rest of a start, so it is imported when one of these partitions is asked for.

Differences: every sample goes to exactly one device, or there is an error. ShardPartitioner drops what does not fill a shard; here those
samples are taken out evenly over the labels before, and join the shard that they lie next to, so that shards differ by one sample at most.
Which device is which partition is drawn too: number 0 is not always the smallest, nor the one with class 0.
"""

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from types import ModuleType

import numpy as np

from simulations.config.errors import ConfigError
from simulations.config.sections import StreamConfig
from sparcl_core.seeding import generator

OFFLINE = {"FLWR_TELEMETRY_ENABLED": "0", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
LAWS = {"linear": "LinearPartitioner", "square": "SquarePartitioner", "exponential": "ExponentialPartitioner"}
HINTS = {
    "shards": "take fewer devices, or stream.shards_per_device smaller",
    "pathological": "stream.classes_per_device is at most the classes of a task, devices times it at least that, and a class has a sample "
    "for each of its devices",
    "sizes": "take fewer devices, or stream.size_law=linear",
    "natural": "see data.id_column",
}


def owners(config: StreamConfig, labels: np.ndarray, seed: int, task: int) -> np.ndarray:
    """Which device owns each sample of a task, for `shards`, `pathological` and `sizes`: [n] int64.

    Args:
        labels: [n] int64.

    Raises:
        ConfigError: if the samples cannot be split as asked for, or a sample would go to no device.
    """
    devices, rng = config.devices, generator(seed, "flwr-datasets", config.partition, task)
    rows, own_seed = rng.permutation(len(labels)), int(rng.integers(2**31))
    with _partitioners(f"stream.partition={config.partition}, task {task}", HINTS[config.partition]) as package:
        if config.partition == "shards":
            rows = rows[np.argsort(labels[rows], kind="stable")]
            owner = _shards(package, config, labels[rows], own_seed)
        elif config.partition == "pathological":
            partitioner = package.PathologicalPartitioner(
                devices, "label", config.classes_per_device, "first-deterministic", shuffle=False, seed=own_seed
            )
            owner = _owner(partitioner, labels[rows])
        else:
            owner = _owner(getattr(package, LAWS[config.size_law])(devices), labels[rows])
    # a device that is large stays so in every task; otherwise a task has numbers of its own
    numbers = generator(seed, "sizes") if config.partition == "sizes" else rng
    result = np.empty(len(labels), dtype=np.int64)
    result[rows] = numbers.permutation(devices)[owner]
    return result


def natural_owners(config: StreamConfig, ids: np.ndarray | None) -> np.ndarray:
    """Which device owns each sample of the whole data for `natural`, [N] int64: device d is the d-th smallest id.

    Args:
        ids: [N] int64; None if the data has none.

    Raises:
        ConfigError: if there are no ids, or not as many as devices.
    """
    if ids is None:
        raise ConfigError(
            "stream.partition is 'natural', but the data has no ids: take data.name=parquet and set data.id_column to the column that says "
            "whose sample it is"
        )
    if (count := len(np.unique(ids))) != config.devices:
        raise ConfigError(f"stream.devices is {config.devices}: the data has {count} ids, one device each; set stream.devices={count}")
    # it draws a bar on stderr whatever the settings are
    with _partitioners("stream.partition=natural", HINTS["natural"]) as package, contextlib.redirect_stderr(io.StringIO()):
        return _owner(package.NaturalIdPartitioner("label"), ids)


def _shards(package: ModuleType, config: StreamConfig, labels: np.ndarray, seed: int) -> np.ndarray:
    """`labels`: sorted."""
    shards = config.devices * config.shards_per_device
    over = len(labels) % shards
    if len(labels) < shards:
        raise ValueError(f"{len(labels)} samples cannot be cut into {config.devices} x {config.shards_per_device} shards")
    sizes = np.full(shards, len(labels) // shards)
    longer = np.arange(over) * shards // max(over, 1)  # evenly over the labels
    sizes[longer] += 1
    is_over = np.zeros(len(labels), dtype=bool)
    is_over[np.cumsum(sizes)[longer] - 1] = True  # the last of its shard: the sample before it is of the same
    partitioner = package.ShardPartitioner(
        num_partitions=config.devices, partition_by="label", num_shards_per_partition=config.shards_per_device, shuffle=False, seed=seed
    )
    kept = _owner(partitioner, labels[~is_over])
    return kept[np.cumsum(~is_over) - 1]


def _owner(partitioner, column: np.ndarray) -> np.ndarray:
    """Which partition each row is in, [n] int64, of a table whose column `label` is `column`."""
    from datasets import Dataset

    partitioner.dataset = Dataset.from_dict({"label": column, "row": np.arange(len(column))}).with_format("numpy")
    owner = np.full(len(column), -1, dtype=np.int64)
    for partition in range(partitioner.num_partitions):
        rows = np.asarray(partitioner.load_partition(partition)["row"][:])
        if (owner[rows] >= 0).any():
            raise ValueError("a sample is in two partitions")
        owner[rows] = partition
    if len(lost := np.unique(column[owner < 0])):
        raise ValueError(f"samples of class {', '.join(map(str, lost))} go to no device")
    return owner


@contextlib.contextmanager
def _partitioners(what: str, hint: str) -> Iterator[ModuleType]:
    """The package, without network, telemetry and progress bars; what it refuses is a ConfigError from `what` to `hint`."""
    os.environ.update(OFFLINE)  # read by the packages when they are imported
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # samples that go nowhere are an error of ours; other warnings are between the libraries
        import datasets
        from flwr_datasets import partitioner

        datasets.disable_progress_bars()
        try:
            yield partitioner
        except ValueError as error:
            raise ConfigError(f"{what}: {error}; {hint}") from error
