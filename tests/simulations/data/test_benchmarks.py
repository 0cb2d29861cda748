"""The field's data sets by name: one and the same from every layout in which people have them, and never another one."""

from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from data_files import (
    grey_digits,
    idx,
    images,
    leaf,
    save,
    write_cifar10,
    write_cifar100_binary,
    write_classes,
    write_idx,
    write_parquet,
    write_svhn,
    write_tiny_imagenet,
)

from simulations.config.data import DataConfig
from simulations.config.errors import ConfigError
from simulations.data.sources import load_data

DIGITS = grey_digits()


def load(name: str, path: Path, **settings):
    return load_data(DataConfig(name=name, path=str(path), **settings), 0)


def as_npz(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / "mnist.npz", **dict(zip(("x_train", "y_train", "x_test", "y_test"), DIGITS, strict=True)))


def as_parquet(folder: Path) -> None:
    x, y, test_x, test_y = DIGITS
    write_parquet(folder / "train-00000-of-00001.parquet", x, y)
    write_parquet(folder / "test-00000-of-00001.parquet", test_x, test_y)


def as_classes(folder: Path) -> None:
    x, y, test_x, test_y = DIGITS
    write_classes(folder / "train", x, y)
    write_classes(folder / "test", test_x, test_y)


LAYOUTS = {
    "torchvision": lambda folder: write_idx(folder / "MNIST" / "raw", DIGITS),
    "its-own-folder": lambda folder: write_idx(folder / "raw", DIGITS),
    "packed": lambda folder: write_idx(folder, DIGITS, packed=True),
    "with-dots": lambda folder: write_idx(folder, DIGITS, sign="."),
    "hub": lambda folder: as_parquet(folder / "mnist"),
    "hub-in-root": as_parquet,
    "classes": as_classes,
    "keras": as_npz,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["seq-mnist", "perm-mnist"])
def test_mnist_is_the_same_from_every_layout(tmp_path, name, layout):
    LAYOUTS[layout](tmp_path)
    data = load(name, tmp_path)
    order = np.argsort(DIGITS[1], kind="stable") if layout == "classes" else slice(None)
    assert data.inputs.shape == (1, 28, 28) and data.names == tuple("0123456789")
    assert np.array_equal(data.raw.train_x[:, 0], DIGITS[0][order]) and np.array_equal(data.raw.train_y, DIGITS[1][order])
    assert np.array_equal(data.raw.test_x[:, 0], DIGITS[2]) and np.array_equal(data.raw.test_y, DIGITS[3])


def test_one_root_with_several_data_sets(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw", DIGITS)
    clothes = grey_digits(seed=5)
    write_idx(tmp_path / "FashionMNIST" / "raw", clothes)
    assert np.array_equal(load("seq-fmnist", tmp_path).raw.train_x[:, 0], clothes[0])
    assert np.array_equal(load("seq-mnist", tmp_path).raw.train_x[:, 0], DIGITS[0])
    assert load("seq-fmnist", tmp_path).names[9] == "Ankle boot"


def test_the_place_of_downloads_is_looked_at_where_no_path_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARCL_DATA", str(tmp_path))
    write_idx(tmp_path / "MNIST" / "raw", DIGITS)
    assert len(load_data(DataConfig(name="rot-mnist"), 0).raw.train_y) == 30


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda data: data[:-5], "its header says 30 bytes, and there are 25"),
        (lambda data: b"\0\0\x0d" + data[3:], "its header is none of unsigned bytes"),
        (lambda data: b"", "unpack_from requires a buffer"),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path, damage, told):
    write_idx(tmp_path, DIGITS)
    file = tmp_path / "train-labels-idx1-ubyte"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ConfigError, match=rf"{file} is no whole IDX file \({told}"):
        load("seq-mnist", tmp_path)


def test_a_cut_archive_and_too_few_labels_are_named(tmp_path):
    write_idx(tmp_path, DIGITS, packed=True)
    file = tmp_path / "t10k-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="t10k-images-idx3-ubyte.gz is no whole IDX file .*fetch it again"):
        load("seq-mnist", tmp_path)
    write_idx(tmp_path, (*DIGITS[:3], DIGITS[3][:4]))  # what is not packed goes first
    with pytest.raises(ConfigError, match=r"has 10 images and .*t10k-labels-idx1-ubyte 4 labels"):
        load("seq-mnist", tmp_path)


# -- CIFAR, SVHN


def colour(classes: int, each: int = 2, seed: int = 0):
    y = np.tile(np.arange(classes), each)
    return images(len(y), (3, 32, 32), seed), y, images(classes, (3, 32, 32), seed + 1), np.arange(classes)


@pytest.fixture
def any_md5(monkeypatch):
    """torchvision takes any content: ours is none of the authors'."""
    cifar, svhn = torchvision.datasets.CIFAR10, torchvision.datasets.SVHN
    monkeypatch.setattr(cifar, "train_list", [[name, None] for name, _ in cifar.train_list])
    monkeypatch.setattr(cifar, "test_list", [[name, None] for name, _ in cifar.test_list])
    monkeypatch.setattr(cifar, "meta", cifar.meta | {"md5": None})
    monkeypatch.setattr(svhn, "split_list", {part: [*told[:2], None] for part, told in svhn.split_list.items()})


@pytest.mark.parametrize("inner", ["cifar-10-batches-py", "renamed"])
def test_cifar10_as_its_authors_publish_it(tmp_path, any_md5, inner):
    x, y, test_x, test_y = colour(10)
    write_cifar10(tmp_path / inner, x, y, test_x, test_y)
    data = load("seq-cifar10", tmp_path if inner.startswith("cifar") else tmp_path / inner)
    assert np.array_equal(data.raw.train_x, x) and np.array_equal(data.raw.train_y, y)
    assert np.array_equal(data.raw.test_x, test_x) and np.array_equal(data.raw.test_y, test_y)
    assert data.names[3] == "thing 3"


def test_pickles_of_somebody_else_are_not_opened(tmp_path):
    write_cifar10(tmp_path / "cifar-10-batches-py", *colour(10, seed=3))
    with pytest.raises(ConfigError, match="does not hold the files of CIFAR10 as they were published .*is not read; fetch them again"):
        load("seq-cifar10", tmp_path)


def test_cifar100_in_binary_takes_the_fine_label(tmp_path):
    x, y, test_x, test_y = colour(100)
    write_cifar100_binary(tmp_path / "cifar-100-binary", x, y, test_x, test_y)
    data = load("seq-cifar100", tmp_path)
    assert np.array_equal(data.raw.train_x, x) and np.array_equal(data.raw.train_y, y) and data.names[42] == "sort_42"
    save(tmp_path / "cifar-100-binary" / "test.bin", b"short")
    with pytest.raises(ConfigError, match=r"test\.bin has 5 bytes, no whole rows of 3074"):
        load("seq-cifar100", tmp_path, fold=1)


def test_svhn_calls_the_digit_0_by_its_name(tmp_path, any_md5):
    x, y, test_x, test_y = colour(10)
    write_svhn(tmp_path, x, y, test_x, test_y)
    data = load("seq-svhn", tmp_path)
    assert np.array_equal(data.raw.train_x, x) and np.array_equal(data.raw.train_y, y) and np.array_equal(data.raw.test_y, test_y)


# -- Tiny-ImageNet, FEMNIST


def test_tiny_imagenet_as_it_was_published(tmp_path):
    ids = [f"n{number:08d}" for number in range(200)]
    x, test_x = images(400, (64, 64, 3)).reshape(200, 2, 64, 64, 3), images(200, (64, 64, 3), seed=1)
    order = write_tiny_imagenet(tmp_path / "tiny-imagenet-200", ids, x, test_x)
    data = load("seq-tinyimg", tmp_path)
    assert data.num_classes == 200 and data.names[7] == "word n00000007"
    assert np.array_equal(data.raw.train_x[14:16], x[7].transpose(0, 3, 1, 2)) and data.raw.train_y[14:16].tolist() == [7, 7]
    by_label = dict(zip(data.raw.test_y.tolist(), data.raw.test_x, strict=True))
    assert np.array_equal(by_label[ids.index(order[0])], test_x[0].transpose(2, 0, 1))
    (tmp_path / "tiny-imagenet-200" / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn99999999\t0\n")
    with pytest.raises(ConfigError, match=r"val_annotations\.txt, row 0: class 'n99999999' is not in wnids\.txt"):
        load("seq-tinyimg", tmp_path, fold=1)


def test_a_truncated_image_of_tiny_imagenet_is_named(tmp_path):
    ids, x = [f"n{number}" for number in range(3)], images(6, (64, 64, 3)).reshape(3, 2, 64, 64, 3)
    write_tiny_imagenet(tmp_path, ids, x, images(3, (64, 64, 3)))
    broken = tmp_path / "train" / "n1" / "images" / "n1_0.JPEG"
    broken.write_bytes(broken.read_bytes()[:500])
    with pytest.raises(ConfigError, match=rf"in {tmp_path}: train/n1/images/n1_0\.JPEG: no readable image \("):
        load("seq-tinyimg", tmp_path)


def writers(seed: int = 0) -> dict:
    """Three writers with all classes, once."""
    return {f"f{number:04d}_{number}": (images(62, (28, 28), seed + number), list(range(62))) for number in (3, 1, 2)}


def test_femnist_as_leaf_writes_it_is_by_writer(tmp_path):
    train, test = writers(), writers(seed=9)
    parts = list(train.items())
    save(tmp_path / "data" / "train" / "all_data_0.json", leaf(dict(parts[:2])))
    save(tmp_path / "data" / "train" / "all_data_1.json", leaf(dict(parts[2:])))
    save(tmp_path / "data" / "test" / "all_data_0.json", leaf(test))
    data = load("femnist", tmp_path)
    assert data.names[10] == "A" and data.num_classes == 62
    assert np.array_equal(data.raw.train_x[:62, 0], train["f0003_3"][0])  # x / 255, written as text and read, is x
    assert data.raw.train_ids.tolist() == [2] * 62 + [0] * 62 + [1] * 62


def test_femnist_that_is_not_divided_is_split_into_folds(tmp_path):
    save(tmp_path / "all_data" / "all_data_0.json", leaf(writers()))
    raw = load("femnist", tmp_path, folds=3).raw
    assert np.bincount(raw.test_y).tolist() == [1] * 62 and len(raw.train_ids) == len(raw.train_y) == 124


def test_femnist_from_a_hub_has_its_writers(tmp_path):
    y = [0, 1, 2, 3, 61] * 4
    columns = {"writer_id": ["b", "a"] * 10, "character": y}
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", images(20, (28, 28)), **columns)
    raw = load("femnist", tmp_path, folds=4).raw
    assert len(raw.train_y) == 15 and set(raw.train_ids.tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"[]", r"all_data_0\.json is no JSON of LEAF with users and user_data \(TypeError"),
        (b'{"users": ["u"], "user_data": {}}', r"is no JSON of LEAF .*KeyError"),
        (
            b'{"users": ["u"], "user_data": {"u": {"x": [[0.5, 1]], "y": [0]}}}',
            r"_0\.json, user 'u': sample 0 has 2 values, not 784",
        ),
        (b'{"users": ["u"], "user_data": {"u": {"x": [], "y": [1]}}}', "user 'u': 0 images and 1 labels"),
        (b'{"users": ["u"], "user_data": {"u": {"y": [1]}}}', "user 'u': no 'x'"),
    ],
)
def test_json_that_is_not_leafs(tmp_path, content, told):
    save(tmp_path / "train" / "all_data_0.json", content)
    save(tmp_path / "test" / "all_data_0.json", leaf(writers()))
    with pytest.raises(ConfigError, match=told):
        load("femnist", tmp_path)


# -- what is not what its name says


@pytest.mark.parametrize("name", ["seq-mnist", "seq-cifar10", "seq-tinyimg", "femnist"])
def test_a_benchmark_that_is_not_there_says_how_it_may_lie_and_how_to_get_it(tmp_path, name):
    with pytest.raises(ConfigError) as caught:
        load(name, tmp_path)
    text = str(caught.value)
    assert f"is not in {tmp_path}, which has none of these: " in text and "data.path names another folder" in text
    assert ("--download fetches it there" in text) == (name != "femnist") and "\n" not in text


def test_another_data_set_under_a_benchmarks_name_is_refused(tmp_path):
    x, y, test_x, test_y = colour(10)
    write_parquet(tmp_path / "train.parquet", x.transpose(0, 2, 3, 1), y)
    write_parquet(tmp_path / "test.parquet", test_x.transpose(0, 2, 3, 1), test_y)
    with pytest.raises(ConfigError, match="data.name is 'seq-mnist', but the images are 3x32x32, and those of MNIST 1x28x28"):
        load("seq-mnist", tmp_path)
    write_parquet(tmp_path / "train.parquet", x.transpose(0, 2, 3, 1), y + 5)
    with pytest.raises(ConfigError, match="there is a label 14: CIFAR-10 has 10 classes, from 0"):
        load("seq-cifar10", tmp_path)


def test_the_header_of_an_idx_file_is_what_mnists_page_says():
    """0x00000803 is 2051: the magic number of a file of images."""
    assert idx(DIGITS[0])[:4] == (2051).to_bytes(4, "big") and idx(DIGITS[1])[:4] == (2049).to_bytes(4, "big")
