"""Data: folds that cover everything once, parts that do not overlap, parquet files good and bad."""

import io
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from worlds import tiny

from simulations import preflight
from simulations.build import make_world
from simulations.config.errors import ConfigError
from simulations.config.experiment import DataConfig
from simulations.data.pictures import decode
from simulations.data.sources import load_data, load_unbound
from simulations.single_device import train_one

CIFAR10 = Path(__file__).parents[3].parent / "shared" / "data" / "cifar10"


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


def test_a_folder_in_ones_home_is_found_where_the_check_before_the_start_has_found_it(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    config = parquet(Path("~", folder.name))
    assert list(preflight.experiment_files(replace(tiny(), data=config))) == []
    assert len(load_data(config, 0).raw.train_y) == 8
    nobody = parquet(Path("~no-such-user-here/data"))
    assert "there is no such folder" in list(preflight.experiment_files(replace(tiny(), data=nobody)))[0]


def test_plain_bytes_other_column_names_and_grey_images(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / f"{split}.parquet", [png(image) for image in pictures(3, (4, 4))], [0, 1, 1], "image", "class", as_struct=False)
    data = load_data(parquet(tmp_path, image_column="image", label_column="class"), 0)
    assert np.array_equal(data.raw.train_x, pictures(3, (4, 4))[:, None])
    assert data.inputs.shape == (1, 4, 4)


def lines(caplog) -> str:
    return "\n".join(caplog.messages)


# -- where files lie, and what they are called


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (["train.parquet"], ["test.parquet"]),
        (["data/train-00000-of-00001.parquet"], ["data/test-00000-of-00001.parquet"]),
        (["text/train-00000-of-00002.parquet", "text/train-00001-of-00002.parquet"], ["text/test-00000-of-00001.parquet"]),
        (["train-00000-of-00002-1a2b3c.parquet", "train-00001-of-00002-4d5e6f.parquet"], ["test-00000-of-00001-7a8b9c.parquet"]),
        (["default/train/0000.parquet", "default/train/0001.parquet"], ["default/test-00000-of-00001.parquet"]),
    ],
)
def test_the_layouts_of_hubs(tmp_path, train, test):
    """Shards in their order, and nothing else: other splits and other files of the folder are not read."""
    x, y = pictures(6), [0, 1, 2, 3, 0, 1]
    shares = np.array_split(np.arange(6), len(train))
    for name, own in [*zip(train, shares, strict=True), (test[0], np.arange(4))]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, [png(x[i]) for i in own], [y[i] for i in own])
    (tmp_path / Path(test[0]).parent / "unsupervised-00000-of-00009.parquet").write_bytes(b"not read")
    (tmp_path / "README.md").write_text("a card")
    (tmp_path / ".cache").mkdir()
    raw = load_data(parquet(tmp_path), 0).raw
    assert np.array_equal(raw.train_x, x.transpose(0, 3, 1, 2)) and raw.train_y.tolist() == y
    assert np.array_equal(raw.test_x, x[:4].transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([], r"has no train and test part, there is no parquet file; it must hold .*data/train-00000-of-00001\.parquet.*--set data\.path="),
        (["train.parquet", "validation.parquet"], "there are parts named train, validation"),
        (["a/train.parquet", "a/test.parquet", "b/train.parquet", "b/test.parquet"], "several data sets, a, b: name the folder of one"),
        (["data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"], "shards 00000 to 00001 are needed, each once"),
        (["train-00000-of-00001.parquet", "train-00000-of-00002.parquet", "test.parquet"], "remove what is of another version"),
    ],
)
def test_a_folder_that_has_no_data_set(tmp_path, names, told):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ConfigError, match=told):
        load_data(parquet(tmp_path), 0)


def test_a_folder_that_is_not_there_says_where_to_get_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = rf"data\.path: cannot read 'no/where': there is no such folder \({tmp_path}/no/where\); .*uoft-cs/cifar10"
    with pytest.raises(ConfigError, match=told):
        load_data(DataConfig(name="parquet", path="no/where"), 0)
    (tmp_path / "train.parquet").write_bytes(b"")
    with pytest.raises(ConfigError, match="it is no folder, give the one that it lies in"):
        load_data(parquet(tmp_path / "train.parquet"), 0)


@pytest.mark.parametrize("key", ["image_column", "label_column"])
def test_a_column_that_is_missing(folder, key):
    with pytest.raises(ConfigError, match=rf"train\.parquet has no column 'nope'; it has img, label: set data\.{key}"):
        load_data(parquet(folder, **{key: "nope"}), 0)


def test_usual_names_of_columns_are_found_and_said(tmp_path, caplog):
    for split in ("train", "test"):
        table = {"image": [png(image) for image in pictures(4)], "fine_label": [0, 1, 2, 3], "coarse_label": [0, 0, 1, 1]}
        pq.write_table(pa.table(table), tmp_path / f"{split}.parquet")
    assert load_data(parquet(tmp_path), 0).raw.train_y.tolist() == [0, 1, 2, 3]
    told = [line.removeprefix(f"{tmp_path}: ") for line in caplog.messages]
    assert told == [
        "there is no column 'img', so 'image' is read; data.image_column names another",
        "there is no column 'label', so 'fine_label' is read; data.label_column names another",
    ]
    load_unbound.cache_clear()
    pq.write_table(pa.table(table | {"labels": [0, 1, 2, 3]}), tmp_path / "test.parquet")
    with pytest.raises(ConfigError, match=r"test\.parquet has no column 'label'; it has image, fine_label, coarse_label, labels: set"):
        load_data(parquet(tmp_path), 0)
    with pytest.raises(ConfigError, match="has no column 'picture'"):  # a name that somebody wrote is not guessed at
        load_data(parquet(tmp_path, image_column="picture"), 0)


def test_two_columns_of_one_name(folder):
    table = pa.table([pa.array([png(pictures(1)[0])]), pa.array([0]), pa.array([1])], names=["img", "label", "label"])
    pq.write_table(table, folder / "train.parquet")
    with pytest.raises(ConfigError, match=r"train\.parquet has 2 columns 'label'; it has img, label, label: set data\.label_column"):
        load_data(parquet(folder), 0)


# -- files that are broken


def test_what_is_wrong_with_all_files_is_told_at_once(folder):
    write(folder / "train.parquet", [png(pictures(1)[0]), b"junk", b""], pa.array([0.0, 1.0, 2.0]))
    (folder / "test.parquet").write_bytes(b"hello")
    with pytest.raises(ConfigError) as caught:
        load_data(parquet(folder), 0)
    for part in (
        "train.parquet, column 'img': row 1: no readable image", "row 2: no readable image", "train.parquet, column 'label': it must hold",
        "test.parquet: it is no whole parquet file",
    ):  # fmt: skip
        assert part in str(caught.value)
    assert "BytesIO" not in str(caught.value) and "\n" not in str(caught.value)


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
    with pytest.raises(ConfigError, match=r"train\.parquet, column 'img': row 1: no readable image \((?!.*BytesIO)"):
        load_data(parquet(folder), 0)


def test_a_row_without_a_picture(folder):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": png(pictures(1)[0]), "path": None}, None, {"bytes": None, "path": "far/away.png"}], kind)
    pq.write_table(pa.table({"img": images, "label": [0, 1, 2]}), folder / "train.parquet")
    with pytest.raises(ConfigError, match=r"row 1: no readable image \(there is nothing in it\); row 2: no readable image"):
        load_data(parquet(folder), 0)


def test_of_many_broken_rows_the_first_are_named(folder):
    write(folder / "train.parquet", [b"?"] * 1000, [0] * 1000)
    with pytest.raises(ConfigError, match=r"row 4: no readable image \([^;]*\); and 995 rows more$"):
        load_data(parquet(folder), 0)


def test_randomly_damaged_images_load_or_are_named(folder):
    """Whatever Pillow makes of damage, the user hears of a row, not of a traceback from the depths of a decoder."""
    rng, whole, refused = np.random.default_rng(0), png(pictures(1)[0]), 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= int(rng.integers(1, 256))
        try:
            decode([bytes(damaged)])
        except ValueError as error:
            refused += 1
            assert "row 0" in str(error) and "BytesIO" not in str(error)
    assert refused


def test_a_randomly_damaged_file_loads_or_is_named(folder):
    """Bit rot in the file itself: some of it nobody can see; the rest is told with the file's name, whatever pyarrow raises."""
    rng, path, refused = np.random.default_rng(0), folder / "train.parquet", 0
    whole = path.read_bytes()
    for turn in range(200):
        damaged = bytearray(whole[: rng.integers(len(whole))] if turn % 4 == 0 else whole)
        if turn % 4 and damaged:
            damaged[rng.integers(len(damaged))] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            load_unbound.__wrapped__(parquet(folder), 0)
        except ConfigError as error:
            refused += 1
            assert str(path) in str(error) or "images of" in str(error)
    assert refused > 50


def test_images_of_different_sizes(folder):
    write(folder / "train.parquet", [png(pictures(1)[0]), png(pictures(1, (5, 5, 3))[0])], [0, 1])
    with pytest.raises(ConfigError, match=r"row 1: image is 5x5, the first 6x5: all must have one size"):
        load_data(parquet(folder), 0)
    write(folder / "train.parquet", [png(image) for image in pictures(2, (5, 5, 3))], [0, 1])
    with pytest.raises(ConfigError, match=r"images of .*test\.parquet are 6x5, those of .*train\.parquet 5x5"):
        load_data(parquet(folder), 0)


# -- pixels


def encoded(pixels: np.ndarray, form: str = "PNG", mode: str | None = None) -> bytes:
    buffer, image = io.BytesIO(), Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_images_of_16_bits_are_scaled_by_their_depth(folder, caplog, form):
    deep = np.array([[0, 128, 129, 257], [1000, 32768, 65407, 65535]], dtype=np.uint16)
    for split in ("train", "test"):
        write(folder / f"{split}.parquet", [encoded(deep, form)] * 2, [0, 1])
    x = load_data(parquet(folder), 0).raw.train_x
    assert x.shape == (2, 1, 2, 4) and x[0, 0].tolist() == [[0, 0, 1, 1], [4, 128, 255, 255]]  # v / 257, rounded
    assert "images with 16 bits a pixel become 8: 65535 is 255, and the brightest pixel, 65535, is 255" in lines(caplog)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_images_of_32_bits_are_refused(folder, dtype):
    write(folder / "train.parquet", [png(pictures(1)[0]), encoded(np.arange(30, dtype=dtype).reshape(6, 5), "TIFF")], [0, 1])
    with pytest.raises(ConfigError, match=r"train\.parquet, column 'img': row 1: a TIFF image with 32 bits a pixel.* save it with 8 or 16"):
        load_data(parquet(folder), 0)


def test_images_of_few_bits_reach_from_black_to_white(folder):
    black_and_white = np.array([[0, 255], [255, 0]], dtype=np.uint8)
    for split in ("train", "test"):
        write(folder / f"{split}.parquet", [encoded(black_and_white, mode="1")] * 2, [0, 1])
    assert load_data(parquet(folder), 0).raw.train_x[0].tolist() == [black_and_white.tolist()]


def test_grey_among_colour_becomes_colour(folder, caplog):
    grey, colour = pictures(1, (6, 5))[0], pictures(1)[0]
    write(folder / "train.parquet", [png(grey), png(colour)], [0, 1])
    write(folder / "test.parquet", [png(grey), png(grey)], [0, 1])
    raw = load_data(parquet(folder), 0).raw
    assert np.array_equal(raw.train_x[0], np.repeat(grey[None], 3, axis=0)) and np.array_equal(raw.train_x[1], colour.transpose(2, 0, 1))
    assert raw.test_x.shape == (2, 3, 6, 5)
    assert "some images are grey and some in colour" in lines(caplog)


# -- labels and ids


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (pa.array(["a", "b"]), "must hold an integer in every row; it is string.*; write every class as an integer from 0 on"),
        (pa.array(["a", "b"]).dictionary_encode(), "must hold an integer in every row; it is string"),
        (pa.array([0.0, 1.0]), "it is double"),
        (pa.array([True, False]), "it is bool"),
        (pa.array([0, None]), r"1 of 2 rows are empty \(the first is row 1\)"),
        (pa.array([0, -1]), "row 1: label -1 is negative, as 1 of 2 are"),
        (pa.array([0, 1 << 63], pa.uint64()), "a label is beyond 64 bits"),
    ],
)
def test_labels_that_are_no_classes(folder, labels, message):
    write(folder / "train.parquet", [png(image) for image in pictures(2)], labels)
    with pytest.raises(ConfigError, match=rf"train\.parquet, column 'label': .*{message}"):
        load_data(parquet(folder), 0)


@pytest.mark.parametrize("labels", [[1, 2, 3, 4], [0, 1, 3, 9], [10**12, 5, 10**18, 7]])
def test_labels_with_gaps_are_renumbered_and_said(folder, caplog, labels):
    """No output stands for a class that nobody has; which label a class has stays known."""
    write(folder / "train.parquet", [png(image) for image in pictures(8)], labels * 2)
    write(folder / "test.parquet", [png(image) for image in pictures(4)], labels[::-1])
    data = load_data(parquet(folder), 0)
    assert data.num_classes == 4 and data.labels == tuple(sorted(labels))
    assert [data.labels[y] for y in data.raw.train_y] == labels * 2 and [data.labels[y] for y in data.raw.test_y] == labels[::-1]
    assert f"{', '.join(map(str, sorted(labels)))} become classes 0 to 3 in that order" in lines(caplog)


def test_labels_without_gaps_stay_and_nothing_is_said(folder, caplog):
    assert load_data(parquet(folder), 0).labels == (0, 1, 2, 3) and not caplog.messages


def test_packed_labels_and_ids_are_read(folder):
    ids = pa.array(["zoe", "ann", "zoe", "bob"]).dictionary_encode()
    table = {"img": [png(image) for image in pictures(4)], "label": pa.array([0, 1, 2, 3]).dictionary_encode(), "who": ids}
    pq.write_table(pa.table(table), folder / "train.parquet")
    raw = load_data(parquet(folder, id_column="who"), 0).raw
    assert raw.train_ids.tolist() == [2, 0, 2, 1] and raw.train_y.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("ids", [pa.array([10**12, 5, 10**12, -(10**15)]), pa.array([2**64 - 1, 6, 2**64 - 1, 5], pa.uint64())])
def test_ids_of_any_size_are_places_in_their_order(folder, ids):
    pq.write_table(pa.table({"img": [png(image) for image in pictures(4)], "label": [0, 1, 2, 3], "who": ids}), folder / "train.parquet")
    assert load_data(parquet(folder, id_column="who"), 0).raw.train_ids.tolist() == [2, 1, 2, 0]


@pytest.mark.parametrize(
    ("ids", "message"),
    [(pa.array([1.5] * 4), "it is double"), (pa.array(["a", None, "b", "c"]), r"1 of 4 rows are empty \(the first is row 1\)")],
)
def test_ids_that_are_none(folder, ids, message):
    pq.write_table(pa.table({"img": [png(image) for image in pictures(4)], "label": [0, 1, 2, 3], "who": ids}), folder / "train.parquet")
    with pytest.raises(ConfigError, match=rf"train\.parquet, column 'who': it must hold an integer or text in every row; .*{message}"):
        load_data(parquet(folder, id_column="who"), 0)
    with pytest.raises(ConfigError, match=r"has no column 'writer'; it has img, label, who: set data\.id_column"):
        load_data(parquet(folder, id_column="writer"), 0)


def test_classes_that_a_part_lacks_are_said(folder, caplog):
    write(folder / "train.parquet", [png(image) for image in pictures(3)], [0, 1, 2])
    write(folder / "test.parquet", [png(image) for image in pictures(3)], [0, 1, 3])
    assert load_data(parquet(folder), 0).num_classes == 4
    assert "no training sample of label 3: what is tested of them counts as wrong" in lines(caplog)
    assert "no test sample of label 2: nothing says how well they are learned" in lines(caplog)


def test_a_task_without_test_samples_is_refused_before_anything_is_trained(folder):
    write(folder / "test.parquet", [png(image) for image in pictures(2)], [0, 1])
    experiment = tiny("data.name=parquet", f"data.path={folder}", "data.train_limit=0", "stream.devices=1", "model.name=mlp")
    for start in (make_world, lambda experiment: train_one(experiment, lambda *told: None)):
        with pytest.raises(ConfigError, match=r"no test sample of task 1 \(classes \(2, 3\)\): nobody would know"):
            start(experiment)


def test_an_empty_table(folder):
    schema = pa.schema([("img", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())])
    pq.write_table(schema.empty_table(), folder / "train.parquet")
    with pytest.raises(ConfigError, match=r"train\.parquet has no rows"):
        load_data(parquet(folder), 0)


@pytest.mark.parametrize(
    ("column", "message"),
    [({"path": "x.png"}, "a struct needs a field 'bytes'"), ("x.png", "it is string: encoded images"), ([0, 1], "it is list")],
)
def test_a_column_that_holds_no_images(folder, column, message):
    pq.write_table(pa.table({"img": [column], "label": [0]}), folder / "train.parquet")
    with pytest.raises(ConfigError, match=rf"train\.parquet, column 'img': .*{message}"):
        load_data(parquet(folder), 0)


# -- parts


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation": 0.999}, r"data\.validation is 0\.999: of a class with \d+ samples .* none to train on; take at most 0\.99\d*"),
        ({"folds": 2000}, r"data\.folds is 2000: class 8 of the digits has 174 samples, and a fold needs one of each"),
    ],
)
def test_parts_that_would_be_empty(settings, message):
    with pytest.raises(ConfigError, match=message):
        load_data(DataConfig(**settings), 0)
    load_data(DataConfig(folds=174), 173)


def test_a_class_with_one_sample_is_not_held_out(folder, caplog):
    write(folder / "train.parquet", [png(image) for image in pictures(7)], [0, 0, 1, 1, 2, 2, 3])
    raw = load_data(parquet(folder, validation=0.5), 0).raw
    assert np.bincount(raw.train_y).tolist() == [1, 1, 1, 1] and np.bincount(raw.test_y).tolist() == [1, 1, 1]
    assert "no test sample of label 3" in lines(caplog)


def test_cifar10_as_it_is_published(tmp_path):
    if not CIFAR10.is_dir():
        pytest.skip("no CIFAR-10 beside this checkout")
    for split, count in (("train", 300), ("test", 100)):  # decoding all 60,000 images takes a minute
        pq.write_table(pq.read_table(CIFAR10 / f"{split}.parquet").slice(0, count), tmp_path / f"{split}.parquet")
    data = load_data(parquet(tmp_path, train_limit=20), 0)
    assert data.inputs.shape == (3, 32, 32) and data.num_classes == 10
    assert np.bincount(data.raw.train_y).tolist() == [20] * 10 and len(data.raw.test_y) == 100
    assert 100 < data.raw.train_x.mean() < 140  # photographs: 121 over the whole set
