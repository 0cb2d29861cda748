"""Arrays of a file or of a user's function: their shapes, and what is said of those that are no images or labels."""

import numpy as np
import own_data
import pytest
from data_files import images

from simulations.config.data import DataConfig
from simulations.config.errors import ConfigError
from simulations.data.arrays import as_raw
from simulations.data.own import expect_options
from simulations.data.raw import Raw
from simulations.data.sources import load_data

Y, TEST_Y = np.array([0, 1, 2, 3] * 2), np.array([0, 1, 2, 3])
X, TEST_X = images(8, (6, 5)), images(4, (6, 5), seed=1)


def npz(path, **arrays):
    np.savez(path / "data.npz", **arrays)
    return DataConfig(name="npz", path=str(path / "data.npz"))


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("train_x", "train_y", "test_x", "test_y"),
        ("X_train", "y_train", "X_test", "y_test"),
    ],
)
def test_the_spellings_of_an_npz(tmp_path, names):
    config = npz(tmp_path, **dict(zip(names, (X, Y, TEST_X, TEST_Y), strict=True)))
    raw = load_data(config, 0).raw
    assert np.array_equal(raw.train_x, X[:, None]) and np.array_equal(raw.test_y, TEST_Y) and raw.train_y.dtype == np.int64
    assert np.array_equal(load_data(DataConfig(name="npz", path=str(tmp_path)), 0).raw.train_x, raw.train_x)  # the only one in a folder


def test_medmnists_labels_in_a_column_and_its_third_part(tmp_path, caplog):
    arrays = {"train_images": X, "train_labels": Y[:, None].astype(np.uint8), "test_images": TEST_X, "test_labels": TEST_Y[:, None]}
    config = npz(tmp_path, **arrays, val_images=TEST_X, val_labels=TEST_Y[:, None])
    assert load_data(config, 0).raw.train_y.tolist() == Y.tolist()
    assert "val_images, val_labels are passed over" in "\n".join(caplog.messages)


def test_ids_of_an_npz(tmp_path):
    config = npz(tmp_path, x_train=X, y_train=Y, x_test=TEST_X, y_test=TEST_Y, train_ids=np.arange(8) // 2)
    assert load_data(config, 0).raw.train_ids.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("shape", [(6, 5, 3), (6, 5, 1), (3, 6, 5), (1, 6, 5)])
def test_channels_are_found_wherever_they_are(shape):
    x = images(8, shape)
    raw = as_raw((x, Y, images(4, shape), TEST_Y), "here")
    assert np.array_equal(raw.train_x, x if shape[0] in (1, 3) else x.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("place", "array", "told"),
    [
        (0, X / 255, r"train_x is float64 of shape \[8, 6, 5\], values .* to 1: images are uint8.*scale them, np\.round\(255 \* train_x\)"),
        (0, X.astype(np.float32), r"scale them, np\.round\(train_x\)\.astype\(np\.uint8\)"),
        (2, TEST_X / 127.5 - 1, r"test_x is float64 .*np\.round\(255 \* \(test_x - low\) / \(high - low\)\)\.astype"),
        (0, X.astype(np.int64), r"train_x is int64 .*train_x\.astype\(np\.uint8\) if its values are 0 to 255"),
        (0, X.reshape(8, 30), r"train_x is uint8 of shape \[8, 30\]: images are \[N, H, W\], .*reshape it"),
        (0, images(8, (3, 5, 3)), "either its second or its last axis could be the channels"),
        (0, images(8, (6, 5, 4)), "neither its second nor its last axis is 1 or 3"),
        (1, np.eye(4)[Y], r"train_y is float64 of shape \[8, 4\]: one label per image is needed; .*take train_y\.argmax\(1\)"),
        (1, Y.astype(float), "train_y is float64 .*: whole numbers are needed, one for each image"),
        (1, Y - 1, "from -1 to 2: none may be negative"),
        (1, Y[:5], "train_x has 8 samples, train_y 5"),
        (2, images(4, (7, 7)), r"images of train_x are 1x6x5, those of test_x 1x7x7"),
    ],
)
def test_arrays_that_are_no_data(place, array, told):
    arrays = [X, Y, TEST_X, TEST_Y]
    arrays[place] = array
    with pytest.raises(ConfigError, match=f"^here: .*{told}"):
        as_raw(tuple(arrays), "here")


def test_all_that_is_wrong_is_told_at_once():
    with pytest.raises(ConfigError, match="train_x is float64 .*; test_y is float64"):
        as_raw((X / 1, Y, TEST_X, TEST_Y / 1), "here")
    for given, told in ((None, "NoneType"), ((X, Y), "2 values")):
        with pytest.raises(ConfigError, match=rf"it gave {told}: \(train_x, train_y, test_x, test_y\) is needed"):
            as_raw(given, "here")


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"x_train": X, "y_train": Y}, r"data\.npz has x_train, y_train, and nothing that is called x_test, test_x, test_images"),
        ({"x_train": X, "train_x": X, "y_train": Y, "x_test": TEST_X, "y_test": TEST_Y}, "has x_train and train_x: one of them is enough"),
        ({"x_train": X.astype(object), "y_train": Y, "x_test": TEST_X, "y_test": TEST_Y}, "save its arrays as numbers, not as objects"),
    ],
)
def test_an_npz_that_is_none(tmp_path, arrays, told):
    with pytest.raises(ConfigError, match=told):
        load_data(npz(tmp_path, **arrays), 0)


def test_a_cut_npz_and_a_folder_without_one(tmp_path):
    config = npz(tmp_path, x_train=X, y_train=Y, x_test=TEST_X, y_test=TEST_Y)
    file = tmp_path / "data.npz"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(ConfigError, match=r"data\.npz is no whole \.npz file \(.*\); fetch it again"):
        load_data(config, 0)
    (tmp_path / "other.npz").touch()
    with pytest.raises(ConfigError, match=r"has data\.npz, other\.npz: name one of them"):
        load_data(DataConfig(name="npz", path=str(tmp_path)), 0)
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(ConfigError, match=r"x\.npy is one array: an \.npz with x_train"):
        load_data(DataConfig(name="npz", path=str(tmp_path / "x.npy")), 0)


# -- functions


def test_a_function_of_ones_own_gets_its_options():
    data = load_data(DataConfig(name="own_data:load", options={"classes": 6, "each": 3}), 5)
    assert np.array_equal(data.raw.train_x[:, 0], own_data.load(None, 5, classes=6, each=3)[0]) and data.num_classes == 6
    assert len(data.raw.sha256) == 64 and data.raw.sha256 != load_data(DataConfig(name="own_data:load"), 5).raw.sha256


def test_a_function_may_say_whose_samples_they_are():
    assert load_data(DataConfig(name="own_data:by_user"), 0).raw.train_ids.tolist() == np.repeat(np.arange(10), 4).tolist()


def test_a_raw_is_taken_as_it_is_and_checked():
    x, test_x = images(8, (2, 6, 5)), images(4, (2, 6, 5))  # two channels, which only a Raw can have
    assert as_raw(Raw(x, Y, test_x, TEST_Y, names=("a", "b")), "here").names == ("a", "b")
    with pytest.raises(ConfigError, match=r"train_x is uint8 of shape \[8, 6, 5\]: images are"):
        as_raw(Raw(X, Y, TEST_X, TEST_Y), "here")


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("own_data:load", {"clases": 3}, r"data\.options\.clases is no option of load; did you mean 'classes'\?"),
        ("own_data:load", {"zzz": 3}, "no option of load; there are classes, each"),
        ("own_data:by_user", {"each": 3}, "no option of by_user; it has none"),
        ("own_data:needs", {}, r"data\.options\.rooms is missing: needs has no default for it"),
        ("own_data:not_a_function", {}, r"which is no function: one of \(config, seed, \*\*options\) is needed"),
        ("own_data:takes_nothing", {}, r"takes 0 arguments by position, and is given 2; it is called with \(config, seed\)"),
        ("own_data:lod", {}, "own_data has no lod; did you mean load"),
        ("no_such_module:load", {}, "no_such_module cannot be imported"),
    ],
)
def test_what_is_wrong_with_a_function_is_said_before_anything_starts(name, options, told):
    with pytest.raises(ValueError, match=told):
        expect_options(DataConfig(name=name, options=options))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("own_data:fails", r"data\.name is 'own_data:fails', and it failed \(KeyError: 'no such key'\)"),
        ("own_data:floats", r"data\.name 'own_data:floats': train_x is float64 .*np\.round\(255 \* train_x\)"),
    ],
)
def test_a_function_that_fails_is_named(name, told):
    with pytest.raises(ConfigError, match=told):
        load_data(DataConfig(name=name), 0)


def test_options_are_for_functions_alone():
    with pytest.raises(ValueError, match="options has rooms: they are for functions of your own, and 'digits' is ours"):
        DataConfig(options={"rooms": 1})
