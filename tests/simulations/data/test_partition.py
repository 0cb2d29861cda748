"""Device x task splits: nothing lost, nothing twice, skewed when asked to be. What devices draw for themselves is in test_stream.py."""

import hashlib

import numpy as np
import pytest
from effort import at_most

from client.streams.stream import DrawnStreams, SplitStreams
from simulations.config.errors import ConfigError
from simulations.config.experiment import StreamConfig
from simulations.data.partition import make_streams, task_classes
from simulations.data.raw import Dataset, Raw
from sparcl_core.inputs import InputSpec


def dataset(per_class: int = 60, classes: int = 4) -> Dataset:
    y = np.repeat(np.arange(classes), per_class)
    x = np.arange(len(y), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return Dataset(Raw(x, y, x[:1], y[:1]), InputSpec((1, 1, 1), classes, (0.0,), (1.0,)))


def counts(streams, data: Dataset) -> np.ndarray:
    """[devices, classes]"""
    y = data.raw.train_y
    return np.array([np.bincount(y[np.concatenate(stream.samples)], minlength=data.num_classes) for stream in streams])


@pytest.mark.parametrize("partition", ["iid", "dirichlet"])
@pytest.mark.parametrize(("devices", "tasks"), [(1, 1), (3, 2), (7, 4), (240, 2)])
def test_every_sample_goes_to_exactly_one_device(partition, devices, tasks):
    data = dataset()
    streams = make_streams(StreamConfig(tasks, devices, partition, alpha=0.3), data, seed=1)
    assert len(streams) == devices
    dealt = np.concatenate([indices for stream in streams for indices in stream.samples])
    assert np.array_equal(np.sort(dealt), np.arange(240))


def test_a_task_holds_its_own_classes_only():
    data = dataset()
    for stream in make_streams(StreamConfig(2, 3), data, seed=0):
        assert stream.classes == ((0, 1), (2, 3))
        for task, members in enumerate(stream.classes):
            assert np.isin(data.raw.train_y[stream.samples[task]], members).all()


def test_iid_is_even():
    """60 samples of a class over 7 devices: 8 or 9 each; the larger shares are not always the first devices'."""
    table = counts(make_streams(StreamConfig(2, 7, "iid"), dataset(), seed=0), dataset())
    assert set(table.ravel()) == {8, 9}
    assert len({tuple(column) for column in table.T}) > 1


def test_a_small_alpha_is_skewed_and_a_large_one_even():
    """Skew: the largest share of a class on one device, a mean over classes; 1/5 is even."""

    def skew(alpha: float) -> float:
        return float(np.mean([
            counts(make_streams(StreamConfig(2, 5, alpha=alpha), dataset(), seed), dataset()).max(0).mean() / 60 for seed in range(10)
        ]))  # fmt: skip

    skews = [skew(alpha) for alpha in (0.05, 0.5, 5.0, 1000.0)]
    assert skews == sorted(skews, reverse=True)
    assert skews[0] > 0.75 and skews[-1] < 0.25


def test_dirichlet_shares_are_those_of_the_distribution():
    """Dirichlet(1, 1, 1): a share has mean 1/3 and variance 1/18. 400 draws: the mean errs by sqrt(1/18/400) = 0.012, times 4."""
    shares = []
    for seed in range(100):
        table = counts(make_streams(StreamConfig(2, 3, alpha=1.0), dataset(200), seed), dataset(200))
        shares += list(table[0] / 200)
    assert abs(np.mean(shares) - 1 / 3) < 0.048
    assert abs(np.var(shares) - 1 / 18) < 0.015


def test_a_split_is_a_function_of_the_seed():
    a, b, c = (make_streams(StreamConfig(2, 3), dataset(), seed) for seed in (4, 4, 5))
    for stream, same in zip(a, b, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(stream.samples, same.samples, strict=True))
    assert any(stream.sizes != other.sizes for stream, other in zip(a, c, strict=True))


SPLITS = {
    ("iid", 7, 2): "4beaa772ed8f1706",
    ("dirichlet", 7, 2): "c05b7c197ac35ca2",
    ("dirichlet", 240, 1): "bbd6a06aee72676c",
}


@pytest.mark.parametrize(("partition", "devices", "tasks"), SPLITS)
def test_splits_are_those_of_the_first_release(partition, devices, tasks):
    """Digests of what published tables were made with; a change of the code must not deal the samples out anew."""
    digest = hashlib.sha256()
    for stream in make_streams(StreamConfig(tasks, devices, partition, alpha=0.3), dataset(), seed=1):
        for own in stream.samples:
            digest.update(f"{own.dtype} {len(own)} ".encode() + own.tobytes())
    assert digest.hexdigest()[:16] == SPLITS[partition, devices, tasks]


def test_a_fleet_of_ten_thousand_is_split_with_little_work_per_device():
    data = dataset(per_class=10_000)
    with at_most(calls=1_000_000):
        streams = make_streams(StreamConfig(2, 10_000), data, seed=0)
    assert isinstance(streams, SplitStreams) and streams.sizes.sum() == 40_000


# -- drawn


def test_devices_that_draw_may_be_more_than_samples():
    streams = make_streams(StreamConfig(2, 100_000, "drawn", 0.5, samples=20), dataset(), seed=3)
    assert isinstance(streams, DrawnStreams) and (streams.alpha, streams.seed) == (0.5, 3)
    assert len(streams) == 100_000 and (streams.sizes == 20).all() and streams.classes == ((0, 1), (2, 3))
    assert streams[99_999].sizes == [20, 20]


def test_more_samples_to_draw_than_a_task_has():
    with pytest.raises(ConfigError, match=r"^stream\.samples: size is 121: task 0 .* has only 120 samples.*; take fewer$"):
        make_streams(StreamConfig(2, 5, "drawn", samples=121), dataset(), 0)


# -- bad input


def test_more_devices_than_samples():
    with pytest.raises(ConfigError, match=r"stream\.devices is 241: there are only 240 training samples.*stream\.partition=drawn"):
        make_streams(StreamConfig(2, 241), dataset(), 0)


def test_classes_must_divide_into_tasks():
    assert task_classes(6, 3) == ((0, 1), (2, 3), (4, 5))
    with pytest.raises(ConfigError, match=r"stream\.tasks is 3: 4 classes cannot be cut"):
        task_classes(4, 3)


def test_a_task_without_a_sample():
    data = dataset()
    empty = Dataset(Raw(data.raw.train_x[:120], data.raw.train_y[:120], data.raw.test_x, data.raw.test_y), data.inputs)
    for config in (StreamConfig(2, 3), StreamConfig(2, 3, "drawn", samples=5)):
        with pytest.raises(ConfigError, match=r"task 1 \(classes \(2, 3\)\) has no training sample"):
            make_streams(config, empty, 0)
