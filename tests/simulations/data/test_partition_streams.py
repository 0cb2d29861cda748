"""From settings to streams: the default is untouched, every kind is what it says, contradictions are refused."""

import hashlib

import numpy as np
import pytest

from client.streams.stream import DrawnStreams, SplitStreams
from client.streams.task_order import ArrangedStreams
from simulations.config.errors import ConfigError
from simulations.config.experiment import DataConfig, StreamConfig
from simulations.config.loading import from_tree
from simulations.data.partition import make_streams, stream_classes
from simulations.data.raw import Dataset, Raw
from simulations.data.sources import load_data
from simulations.data.task_order import make_domains, task_sequences
from sparcl_core.inputs import InputSpec
from sparcl_core.seeding import generator


def dataset(per_class: int = 60, classes: int = 6) -> Dataset:
    y = np.repeat(np.arange(classes), per_class)
    x = generator(0, "images").integers(0, 256, (len(y), 1, 4, 4)).astype(np.uint8)
    return Dataset(Raw(x, y, x[:1], y[:1]), InputSpec((1, 4, 4), classes, (0.0,), (1.0,)))


def test_settings_at_their_defaults_leave_the_streams_as_they_were():
    """The digest is of the release before there were other kinds: digits, seed 0."""
    streams = make_streams(StreamConfig(), load_data(DataConfig(), 0), 0)
    assert type(streams) is SplitStreams and streams.chunks == 1 and streams.domains is None
    assert (streams.order == np.arange(5)).all() and streams.order.strides[0] == 0
    digest = hashlib.sha256(streams.flat.tobytes() + streams.offsets.tobytes())
    assert digest.hexdigest()[:16] == "b4b8e6af5295fac3"


def test_task_il_is_the_same_stream():
    plain, task_il = (make_streams(StreamConfig(3, 4, setting=setting), dataset(), 0) for setting in ("class-il", "task-il"))
    assert type(task_il) is SplitStreams and np.array_equal(plain.flat, task_il.flat)


# -- domain-il


@pytest.mark.parametrize("partition", ["dirichlet", "drawn"])
def test_every_task_of_domain_il_has_all_classes_and_the_same_samples_transformed(partition):
    data = dataset()
    config = StreamConfig(4, 3, partition, samples=30 * (partition == "drawn"), setting="domain-il", domain="rotated", rotation=90.0)
    streams = make_streams(config, data, 0)
    assert streams.classes == ((0, 1, 2, 3, 4, 5),) * 4 == stream_classes(config, 6)
    for stream in streams:
        first = stream.task(0)
        for task in range(1, 4):
            now = stream.task(task)
            assert np.array_equal(now.x, np.rot90(first.x, task, axes=(2, 3))) and np.array_equal(now.y, first.y)
    assert np.array_equal(make_domains(config, 0).apply(data.raw.test_x, 1), np.rot90(data.raw.test_x, 1, axes=(2, 3)))
    if partition == "dirichlet":
        assert streams.sizes[:, 0].sum() == 360


def test_domains_need_no_even_cut_of_classes():
    assert make_streams(StreamConfig(4, 2, setting="domain-il"), dataset(), 0).sizes.shape == (2, 4)
    assert make_domains(StreamConfig(), 0) is None


# -- orders


def test_every_device_has_its_own_order():
    """60 devices, 3 tasks: each of the 6 orders on 10 of them, deviation 2.9. Allowed: 4 of them."""
    config = StreamConfig(3, 60, "iid", order="shuffled")
    streams, plain = make_streams(config, dataset(), 0), make_streams(StreamConfig(3, 60, "iid"), dataset(), 0)
    _, counts = np.unique(streams.order, axis=0, return_counts=True)
    assert len(counts) == 6 and (np.abs(counts - 10) < 12).all()
    for device in range(60):
        for step, task in enumerate(streams.order[device].tolist()):
            assert np.array_equal(streams.samples(device, step), plain.samples(device, task))


def test_an_order_is_a_function_of_seed_and_device():
    few, many, other = (task_sequences(StreamConfig(5, n, order="shuffled"), seed) for n, seed in ((3, 1), (90, 1), (3, 2)))
    assert np.array_equal(few, many[:3]) and not np.array_equal(few, other)


def test_cycles_by_hand():
    streams = make_streams(StreamConfig(3, 4, cycles=2), dataset(), 0)
    assert streams.order.tolist() == [[0, 1, 2, 0, 1, 2]] * 4 and streams.order.strides[0] == 0
    assert StreamConfig(3, cycles=2).steps == 6


@pytest.mark.parametrize("order", ["same", "shuffled"])
def test_new_classes_reach_a_share_of_the_devices(order):
    """A quarter of 12: three go on, the others meet their first task in every step."""
    streams = make_streams(StreamConfig(3, 12, "iid", new_classes_share=0.25, order=order), dataset(), 0)
    goes_on = (streams.order != streams.order[:, :1]).any(axis=1)
    assert goes_on.sum() == 3
    for device in np.flatnonzero(~goes_on).tolist():
        assert len({own.tobytes() for own in streams.all_samples(device)}) == 1
    assert all(sorted(streams.order_of(device)) == [0, 1, 2] for device in np.flatnonzero(goes_on).tolist())
    other = make_streams(StreamConfig(3, 12, "iid", new_classes_share=0.25, order=order), dataset(), 1)
    assert not np.array_equal(streams.order, other.order)


def test_at_least_one_device_meets_new_classes():
    assert (task_sequences(StreamConfig(3, 12, new_classes_share=1e-6), 0)[:, 1] == 1).sum() == 1


# -- online and blurry


def test_online_hands_out_a_task_in_as_many_pieces_as_rounds():
    """Step t * rounds + r is piece r of task t; together they are the task, each sample once."""
    plain = make_streams(StreamConfig(3, 4), dataset(), 0)
    streams = make_streams(StreamConfig(3, 4, online=True), dataset(), 0, rounds_per_task=5)
    assert isinstance(streams, ArrangedStreams) and streams.chunks == 5 and streams.sizes.shape == (4, 15)
    for device in range(4):
        own = streams.all_samples(device)
        for task in range(3):
            assert np.array_equal(np.concatenate(own[5 * task : 5 * task + 5]), plain.samples(device, task))


def test_online_must_know_the_rounds():
    with pytest.raises(ValueError, match=r"rounds_per_task is None.*pass federation\.rounds_per_task"):
        make_streams(StreamConfig(3, 4, online=True), dataset(), 0)


@pytest.mark.parametrize("partition", ["iid", "drawn"])
def test_blur_mixes_tasks(partition):
    """12 devices, 10 samples of each class, 20 of a task: 0.3 of them are 6, 3 of each of the other tasks."""
    config = StreamConfig(3, 6, partition, alpha=1e6, samples=20 * (partition == "drawn"), blur=0.3)
    streams = make_streams(config, dataset(), 0)
    assert isinstance(streams, DrawnStreams if partition == "drawn" else SplitStreams) and streams.blur == 0.3
    assert streams.classes == ((0, 1), (2, 3), (4, 5)) and (streams.sizes == 20).all()
    for stream in streams:
        for task, own in enumerate(stream.samples):
            by_task = np.bincount(streams.y[own] // 2, minlength=3)
            assert by_task[task] == 14 and (np.delete(by_task, task) == 3).all()
            assert stream.classes[task] == tuple(np.unique(streams.y[own]))


def test_all_at_once_and_the_same_every_time():
    config = StreamConfig(3, 4, online=True, blur=0.2, order="shuffled", cycles=2, new_classes_share=0.5)
    a, b = (make_streams(config, dataset(), 3, 4) for _ in range(2))
    assert a.sizes.shape == (4, 24)
    for device in (3, 0, 2, 1):
        for own, same in zip(a.all_samples(device), b.all_samples(device), strict=True):
            assert np.array_equal(own, same)


def test_a_large_fleet_that_draws():
    config = StreamConfig(3, 100_000, "drawn", samples=20, order="shuffled", cycles=2, online=True)
    streams = make_streams(config, dataset(), 0, rounds_per_task=10)
    assert streams.sizes.strides[0] == 0 and streams.sequences.nbytes == 1_200_000
    assert streams[99_999].sizes == [2] * 60


# -- without data


def test_a_device_without_data_is_named():
    """One sample of each class for three devices: device 1 or 2 gets none of its first task."""
    data = dataset(per_class=1, classes=6)
    for seed in range(10):
        plain = make_streams(StreamConfig(3, 5, "iid"), data, seed)
        config, stays = StreamConfig(3, 5, "iid", new_classes_share=0.2), ~plain.sizes[:, 0].astype(bool)
        lost = np.flatnonzero(stays & (task_sequences(config, seed)[:, 1] == 0))
        if len(lost):
            with pytest.raises(
                ConfigError, match=rf"device {lost[0]} has no data in any step \({len(lost)} of 5.*stream\.alpha larger|task"
            ):
                make_streams(config, data, seed)
            return
    raise AssertionError("no seed leaves a device without data")


def test_a_task_without_data_is_named():
    """The one device that goes on has nothing of task 1: of 4 devices that share one sample of each of its classes."""
    y = np.array([0] * 40 + [1] * 40 + [2, 3])
    x = np.zeros((len(y), 1, 1, 1), dtype=np.uint8)
    data = Dataset(Raw(x, y, x[:1], y[:1]), InputSpec((1, 1, 1), 4, (0.0,), (1.0,)))
    refused = 0
    for seed in range(8):
        config = StreamConfig(2, 8, "iid", new_classes_share=0.125)
        goes_on = int(task_sequences(config, seed)[:, 1].argmax())
        if make_streams(StreamConfig(2, 8, "iid"), data, seed).sizes[goes_on, 1]:
            make_streams(config, data, seed)
        else:
            with pytest.raises(ConfigError, match=r"task 1 \(classes \(2, 3\)\) has no data on any device.*new_classes_share larger"):
                make_streams(config, data, seed)
            refused += 1
    assert refused > 0


# -- settings


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"shards_per_device": 0}, "shards_per_device is 0"),
        ({"classes_per_device": 0}, "classes_per_device is 0"),
        ({"setting": "domain-il", "domain": "rotated", "rotation": 360.0}, "rotation is 360.0: tasks would not differ"),
        ({"setting": "domain-il", "blur": 0.1}, "blur is 0.1: in domain-il every task has the same samples"),
        ({"blur": 1.0}, r"blur is 1.0: a share in \[0, 1\)"),
        ({"blur": 0.1, "tasks": 1}, r"tasks is 1: blur \(0.1\)"),
        ({"new_classes_share": 0.5, "tasks": 1}, r"new_classes_share \(0.5\) need at least 2"),
        ({"new_classes_share": 0.0}, r"new_classes_share is 0.0: a share of the devices in \(0, 1\]"),
        ({"cycles": 0}, "cycles is 0"),
        ({"task_hours": 0.0}, "task_hours is 0.0"),
        ({"pace_spread": -0.1}, "pace_spread is -0.1"),
        ({"start_spread": float("inf")}, "start_spread is inf"),
    ],
)
def test_bad_settings(setting, text):
    with pytest.raises(ValueError, match=text):
        StreamConfig(**setting)


def test_settings_in_a_file():
    tree = {"setting": "domain-il", "domain": "rotated", "rotation": 20, "order": "shuffled", "advance": "time", "task_hours": 6}
    assert from_tree({"stream": tree}).stream == StreamConfig(**tree)
    with pytest.raises(ConfigError, match=r"stream\.advance"):
        from_tree({"stream": {"advance": "wishes"}})
