"""Data: folds that cover everything once, parts that do not overlap, parquet files good and bad."""

import io
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from simulations.config import ConfigError, DataConfig
from simulations.data import load_data

CIFAR10 = Path(__file__).parents[2].parent / "shared" / "data" / "cifar10"


def rows(x: np.ndarray, y: np.ndarray) -> list[bytes]:
    """One hashable thing per sample."""
    return [image.tobytes() + bytes([label]) for image, label in zip(x, y, strict=True)]


def sample_counts(values: list[bytes]) -> dict[bytes, int]:
    return {value: values.count(value) for value in set(values)}


# -- digits


def test_the_folds_of_digits_cover_all_samples_once():
    """Seeds 0 to 4 take folds 0 to 4: every one of the 1,797 images is tested on exactly once, and never trained on meanwhile."""
    tested = []
    for seed in range(5):
        raw = load_data(DataConfig(), seed).raw
        train, test = rows(raw.train_x, raw.train_y), rows(raw.test_x, raw.test_y)
        assert len(train) + len(test) == 1797
        assert all(abs(np.bincount(raw.test_y) - np.bincount(load_digits().target) / 5) <= 1)  # stratified
        tested += test
    x, y = load_digits(return_X_y=True)
    whole = rows(x.reshape(-1, 1, 8, 8).astype(np.uint8), y)
    assert sorted(tested) == sorted(whole)


def test_a_fold_does_not_depend_on_the_seed():
    a, b = (load_data(DataConfig(fold=2), seed).raw for seed in (0, 7))
    assert np.array_equal(a.test_x, b.test_x) and np.array_equal(a.train_y, b.train_y)
    assert np.array_equal(load_data(DataConfig(), 7).raw.test_x, a.test_x)  # 7 mod 5


def test_images_are_what_scikit_learn_gives():
    data = load_data(DataConfig(), 0)
    assert data.raw.train_x.dtype == np.uint8 and data.raw.train_y.dtype == np.int64
    assert data.inputs.shape == (1, 8, 8) and data.num_classes == 10
    assert data.raw.train_x.max() == 16
    assert data.inputs.mean == pytest.approx([data.raw.train_x.astype(float).mean()])
    assert data.inputs.std == pytest.approx([data.raw.train_x.astype(float).std()])


def test_validation_is_taken_from_training_and_replaces_the_test_set():
    """Tuning must not see the test set: not in training, not in what it is judged by, not in the normalisation."""
    plain, held = load_data(DataConfig(), 3).raw, load_data(DataConfig(validation=0.25), 3)
    train, validation = (rows(held.raw.train_x, held.raw.train_y), rows(held.raw.test_x, held.raw.test_y))
    assert sorted(train + validation) == sorted(rows(plain.train_x, plain.train_y))
    assert abs(len(validation) / (len(train) + len(validation)) - 0.25) < 0.01
    assert np.array_equal(np.unique(held.raw.test_y), np.arange(10))
    assert held.inputs.mean == pytest.approx([held.raw.train_x.astype(float).mean()])


def test_a_limit_keeps_so_many_samples_of_each_class():
    limited = load_data(DataConfig(train_limit=7), 0).raw
    plain = load_data(DataConfig(), 0).raw
    assert np.bincount(limited.train_y).tolist() == [7] * 10
    assert np.array_equal(limited.test_y, plain.test_y)
    full, part = (sample_counts(rows(raw.train_x, raw.train_y)) for raw in (plain, limited))
    assert all(part[row] <= full[row] for row in part)
    other = load_data(DataConfig(train_limit=7, fold=0), 5).raw
    assert not np.array_equal(other.train_x, limited.train_x)  # which ones depends on the seed


# -- parquet


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, images: list, labels, image_column="img", label_column="label", as_struct=True) -> None:
    column = [{"bytes": image, "path": f"{i}.png"} for i, image in enumerate(images)] if as_struct else images
    pq.write_table(pa.table({image_column: column, label_column: labels}), path)


def pictures(count: int, shape=(6, 5, 3), seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Eight training images and four to test on, of four classes."""
    write(tmp_path / "train.parquet", [png(image) for image in pictures(8)], [0, 1, 2, 3] * 2)
    write(tmp_path / "test.parquet", [png(image) for image in pictures(4, seed=1)], [0, 1, 2, 3])
    return tmp_path


def parquet(folder: Path, **settings) -> DataConfig:
    return DataConfig(name="parquet", path=str(folder), **settings)


def test_a_parquet_folder_becomes_arrays(folder):
    data = load_data(parquet(folder), 0)
    assert np.array_equal(data.raw.train_x, pictures(8).transpose(0, 3, 1, 2))  # [N, C, H, W]
    assert np.array_equal(data.raw.test_x, pictures(4, seed=1).transpose(0, 3, 1, 2))
    assert data.raw.train_y.tolist() == [0, 1, 2, 3] * 2 and data.raw.train_y.dtype == np.int64
    assert data.inputs.shape == (3, 6, 5) and data.num_classes == 4
    assert data.inputs.mean == pytest.approx(pictures(8).mean((0, 1, 2)))


def test_plain_bytes_other_column_names_and_grey_images(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / f"{split}.parquet", [png(image) for image in pictures(3, (4, 4))], [0, 1, 1], "image", "class", as_struct=False)
    data = load_data(parquet(tmp_path, image_column="image", label_column="class"), 0)
    assert np.array_equal(data.raw.train_x, pictures(3, (4, 4))[:, None])
    assert data.inputs.shape == (1, 4, 4)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.path: cannot read .*train\.parquet .*a folder with train\.parquet and test\.parquet"):
        load_data(parquet(tmp_path / "nowhere"), 0)


def test_a_file_that_is_no_parquet(folder):
    (folder / "test.parquet").write_bytes(b"hello")
    with pytest.raises(ConfigError, match=r"data\.path: cannot read .*test\.parquet"):
        load_data(parquet(folder), 0)


@pytest.mark.parametrize("key", ["image_column", "label_column"])
def test_a_column_that_is_missing(folder, key):
    with pytest.raises(ConfigError, match=rf"train\.parquet has no column 'nope'; it has img, label: set data\.{key}"):
        load_data(parquet(folder, **{key: "nope"}), 0)


def broken_images():
    whole = png(pictures(1)[0])
    yield from (b"", b"not an image", None, whole[:20], whole[: len(whole) // 2])
    yield whole[:29] + b"\0\0\0\0" + whole[33:]  # the checksum of its header
    bitmap = io.BytesIO()
    Image.fromarray(pictures(1)[0]).save(bitmap, "BMP")
    yield bitmap.getvalue()[:18] + struct.pack("<ii", 60_000, 60_000) + bitmap.getvalue()[26:]  # says that it has 3.6e9 pixels


@pytest.mark.parametrize("image", list(broken_images()), ids=lambda image: f"{len(image) if image is not None else 'no'}-bytes")
def test_an_image_that_is_broken(folder, image):
    write(folder / "train.parquet", [png(pictures(1)[0]), image], [0, 1])
    with pytest.raises(ConfigError, match=r"train\.parquet, row 1: column 'img' holds no readable image"):
        load_data(parquet(folder), 0)


def test_randomly_damaged_images_load_or_are_named(folder):
    """Whatever Pillow makes of damage, the user hears of a row, not of a traceback from the depths of a decoder."""
    rng, whole, refused = np.random.default_rng(0), png(pictures(1)[0]), 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= int(rng.integers(1, 256))
        write(folder / "test.parquet", [bytes(damaged)], [0])
        try:
            load_data(parquet(folder), 0)
        except ConfigError:
            refused += 1
    assert refused


def test_images_of_different_sizes(folder):
    write(folder / "train.parquet", [png(pictures(1)[0]), png(pictures(1, (5, 5, 3))[0])], [0, 1])
    with pytest.raises(ConfigError, match=r"row 1: image is \(5, 5, 3\), the first \(6, 5, 3\): all must have one size"):
        load_data(parquet(folder), 0)
    write(folder / "train.parquet", [png(image) for image in pictures(2, (5, 5, 3))], [0, 1])
    with pytest.raises(ConfigError, match=r"training images are \(3, 5, 5\), test images \(3, 6, 5\)"):
        load_data(parquet(folder), 0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (pa.array(["a", "b"]), "must hold an integer in every row; it is string"),
        (pa.array([0.0, 1.0]), "it is double"),
        (pa.array([0, None]), "1 of 2 rows are empty"),
        (pa.array([0, -1]), "label -1 is negative"),
    ],
)
def test_labels_that_are_no_classes(folder, labels, message):
    write(folder / "train.parquet", [png(image) for image in pictures(2)], labels)
    with pytest.raises(ConfigError, match=message):
        load_data(parquet(folder), 0)


def test_an_empty_table(folder):
    schema = pa.schema([("img", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())])
    pq.write_table(schema.empty_table(), folder / "train.parquet")
    with pytest.raises(ConfigError, match="0 of 0 rows are empty"):
        load_data(parquet(folder), 0)


def test_a_struct_without_bytes(folder):
    pq.write_table(pa.table({"img": [{"path": "x.png"}], "label": [0]}), folder / "train.parquet")
    with pytest.raises(ConfigError, match="a struct needs a field 'bytes'"):
        load_data(parquet(folder), 0)


def test_cifar10_as_it_is_published(tmp_path):
    if not CIFAR10.is_dir():
        pytest.skip("no CIFAR-10 beside this checkout")
    for split, count in (("train", 300), ("test", 100)):  # decoding all 60,000 images takes a minute
        pq.write_table(pq.read_table(CIFAR10 / f"{split}.parquet").slice(0, count), tmp_path / f"{split}.parquet")
    data = load_data(parquet(tmp_path, train_limit=20), 0)
    assert data.inputs.shape == (3, 32, 32) and data.num_classes == 10
    assert np.bincount(data.raw.train_y).tolist() == [20] * 10 and len(data.raw.test_y) == 100
    assert 100 < data.raw.train_x.mean() < 140  # photographs: 121 over the whole set
