"""Images in a folder per class: parts or folds, sizes, colours, and what is wrong with them, by name."""

import numpy as np
import pytest
from data_files import encoded, images, save, write_classes
from PIL import Image

from simulations.config.data import DataConfig
from simulations.config.errors import ConfigError
from simulations.data.sources import load_data

NAMES = ["cat", "dog", "eel"]


def load(path, seed: int = 0, **settings):
    return load_data(DataConfig(name="folder", path=str(path), **settings), seed)


@pytest.fixture
def photos(tmp_path):
    """Four images of each of three classes to train on, two to test on."""
    write_classes(tmp_path / "train", images(12, (6, 5, 3)), [0, 1, 2] * 4, NAMES)
    write_classes(tmp_path / "test", images(6, (6, 5, 3), seed=1), [0, 1, 2] * 2, NAMES)
    return tmp_path


@pytest.mark.parametrize("test", ["test", "val", "validation", "Test"])
def test_train_and_test_folders(photos, test):
    (photos / "test").rename(photos / test)
    save(photos / "train" / "cat" / "notes.txt", b"not an image")
    save(photos / "train" / ".hidden" / "x.png", b"not a class")
    data = load(photos)
    order = np.argsort([0, 1, 2] * 4, kind="stable")
    assert data.names == ("cat", "dog", "eel") and data.inputs.shape == (3, 6, 5)
    assert np.array_equal(data.raw.train_x, images(12, (6, 5, 3))[order].transpose(0, 3, 1, 2))
    assert data.raw.train_y.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and data.raw.test_y.tolist() == [0, 0, 1, 1, 2, 2]


def test_classes_that_are_numbers_are_in_their_order(tmp_path):
    write_classes(tmp_path, images(24, (4, 4)), list(range(12)) * 2)
    assert load(tmp_path, folds=2).names == tuple(map(str, range(12)))


def test_without_a_test_folder_every_image_is_tested_on_once_over_the_folds(tmp_path):
    x = images(30, (4, 4))
    write_classes(tmp_path, x, [0, 1, 2] * 10, NAMES)
    tested = []
    for seed in range(5):
        raw = load(tmp_path, seed).raw
        assert np.bincount(raw.test_y).tolist() == [2, 2, 2] and np.bincount(raw.train_y).tolist() == [8, 8, 8]
        tested += [image.tobytes() for image in raw.test_x]
        assert not set(tested[-6:]) & {image.tobytes() for image in raw.train_x}
    assert sorted(tested) == sorted(image.tobytes() for image in x)
    assert np.array_equal(load(tmp_path, 7, fold=2).raw.test_x, load(tmp_path, 2).raw.test_x)
    with pytest.raises(ConfigError, match=r"data\.folds is 11: class cat of the folder has 10 samples, and a fold needs one of each"):
        load(tmp_path, folds=11)


def test_images_deep_within_a_class_are_its_own(tmp_path):
    write_classes(tmp_path / "train", images(2, (4, 4)), [0, 1], NAMES)
    write_classes(tmp_path / "test", images(2, (4, 4)), [0, 1], NAMES)
    save(tmp_path / "train" / "dog" / "2024" / "may" / "rex.JPG", encoded(images(1, (4, 4))[0]))
    assert load(tmp_path).raw.train_y.tolist() == [0, 1, 1]


# -- sizes


def test_mixed_sizes_are_named_and_the_way_out_works(photos):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200  # the square in the middle
    save(photos / "train" / "dog" / "wide.png", encoded(wide))
    with pytest.raises(ConfigError, match=r"train/dog/wide\.png: image is 10x30, the first 6x5: all .*data\.size=32 data\.resize=crop"):
        load(photos)
    stretched, cropped = (load(photos, size=10, resize=way).raw for way in ("stretch", "crop"))
    assert stretched.train_x.shape == cropped.train_x.shape == (13, 3, 10, 10) and cropped.test_x.shape == (6, 3, 10, 10)
    assert (cropped.train_x[8] == 200).all() and not (stretched.train_x[8] == 200).all()  # dog/wide.png is behind dog's other four
    assert stretched.train_x[8].mean() == pytest.approx(wide.mean(), abs=3)


def test_parts_of_different_sizes(photos):
    write_classes(photos / "test", images(6, (7, 7, 3)), [0, 1, 2] * 2, NAMES)
    with pytest.raises(ConfigError, match=r"train/ are 6x5 and test/ are 7x7: all must have one size; data\.size=32"):
        load(photos)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"size": 8}, "both are needed to bring images to a size; set data.resize to stretch or crop"),
        ({"resize": "crop"}, "set data.size to pixels of a side"),
        ({"size": -1, "resize": "crop"}, "pixels of a side"),
    ],
)
def test_sizes_that_say_too_little(settings, told):
    with pytest.raises(ValueError, match=told):
        DataConfig(name="folder", path="x", **settings)
    with pytest.raises(ValueError, match="only images of data.name=folder and parquet are brought to a size"):
        DataConfig(name="seq-mnist", size=8, resize="crop")


# -- colours and orientation


def one_image(tmp_path, content: bytes, suffix: str = "png") -> np.ndarray:
    """[C, H, W] of the only training image of class cat."""
    for part in ("train", "test"):
        save(tmp_path / part / "cat" / f"x.{suffix}", content)
    return load(tmp_path).raw.train_x[0]


def test_transparent_parts_are_laid_on_white_and_it_is_said(tmp_path, caplog):
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], dtype=np.uint8)
    x = one_image(tmp_path, encoded(pixels))
    assert x.transpose(1, 2, 0).tolist() == [[[10, 20, 30], [255, 255, 255], [204, 204, 204]]]  # 255 - 51
    assert "2 images have transparent parts, which are laid on white" in "\n".join(caplog.messages)


def test_a_palette_becomes_the_colours_it_stands_for(tmp_path):
    colour = np.array([[[255, 0, 0], [0, 0, 255]]], dtype=np.uint8)
    palette = Image.fromarray(colour).convert("P", palette=Image.Palette.ADAPTIVE)
    assert palette.mode == "P"
    save(tmp_path / "x.png", b"")
    palette.save(tmp_path / "x.png")
    assert one_image(tmp_path / "data", (tmp_path / "x.png").read_bytes()).transpose(1, 2, 0).tolist() == colour.tolist()


def test_grey_stays_grey_and_becomes_colour_among_colours(photos, caplog):
    grey = images(1, (6, 5))[0]
    assert np.array_equal(one_image(photos / "grey", encoded(grey)), grey[None])
    save(photos / "train" / "eel" / "a.png", encoded(grey))  # "a" comes behind 0000 to 0011
    assert np.array_equal(load(photos).raw.train_x[-1], np.repeat(grey[None], 3, axis=0))
    assert "some images are grey and some in colour; the grey ones become colour" in "\n".join(caplog.messages)


def test_a_grey_test_part_of_a_training_part_in_colour(photos):
    write_classes(photos / "test", images(6, (6, 5), seed=1), [0, 1, 2] * 2, NAMES)
    assert load(photos).raw.test_x.shape == (6, 3, 6, 5)


@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_an_image_stands_as_its_camera_was_held(tmp_path, orientation, turn):
    """6 means that the top of the scene is at the right: it has to be turned clockwise, three quarters the other way."""
    pixels = images(1, (8, 16))[0]
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(one_image(tmp_path, encoded(pixels, "WEBP", lossless=True, exif=exif), "webp")[0], np.rot90(pixels, turn))


# -- what is wrong


@pytest.mark.parametrize("part", ["train", "test"])
def test_images_that_cannot_be_read_are_named_with_their_path(photos, part):
    whole = encoded(images(1, (60, 60, 3))[0], "JPEG")
    save(photos / part / "dog" / "cut.jpg", whole[: len(whole) // 2])
    save(photos / part / "dog" / "text.png", b"hello")
    save(photos / part / "eel" / "empty.png", b"")
    with pytest.raises(ConfigError) as caught:
        load(photos, size=6, resize="stretch")
    for told in (f"in {photos}: ", f"{part}/dog/cut.jpg: no readable image (image file is truncated", f"{part}/dog/text.png: no readable"):
        assert told in str(caught.value)
    assert f"{part}/eel/empty.png: no readable image (there is nothing in it)" in str(caught.value)


def test_of_many_broken_images_the_first_are_named(tmp_path):
    for number in range(20):
        save(tmp_path / "cat" / f"{number:02d}.png", b"?")
    with pytest.raises(ConfigError, match=r"cat/04\.png: no readable image \([^;]*\); and 15 images more$"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ([], r"has no classes, there is no folder with images in it; put the images of each class into a folder of its name"),
        (["a.png", "b.png"], "has no classes, there are images, but in no folder of a class"),
        (["cat/readme.txt"], "has no classes, there is no folder with images in it"),
        (["cat/a.png", "dog/readme.txt"], r"no image in .*/dog: each folder in .* is a class; add its images .*or remove it"),
        (["train/cat/a.png"], r"has train/ but no test/ or val/ beside it: add one, or give .*/train itself, of which a fold is tested on"),
        (["train/cat/a.png", "train/dog/a.png", "test/cat/a.png"], "has no test images of class dog: add some, remove the class, or give"),
        (["train/cat/a.png", "test/cat/a.png", "test/dog/a.png"], "has no training images of class dog: add some, or remove the class"),
        (["train/cat/a.png", "test/readme.txt"], "/test has no classes"),
    ],
)  # fmt: skip
def test_a_folder_without_classes_or_a_class_without_images(tmp_path, files, told):
    for name in files:
        save(tmp_path / name, encoded(images(1, (4, 4))[0]))
    with pytest.raises(ConfigError, match=told):
        load(tmp_path)


def test_what_a_system_has_left_is_no_class(photos):
    for part in (photos, photos / "train", photos / "train" / "cat"):
        save(part / "__MACOSX" / "._x.png", b"no image")
        save(part / "__MACOSX" / "x.png", b"no image")
        save(part / ".DS_Store", b"")
        save(part / "@eaDir" / "x.png" / "thumb.png", b"no image")
    assert load(photos).names == tuple(NAMES)


def test_folders_beside_the_parts_are_told_of(photos, caplog):
    write_classes(photos / "extra", images(2, (6, 5, 3)), [0, 1], NAMES)
    (photos / "empty").mkdir()
    load(photos)
    assert "passed over beside train/ and test/: extra/" in caplog.text and "empty" not in caplog.text


def test_a_class_with_one_image_is_named(tmp_path):
    write_classes(tmp_path, images(13, (4, 4)), [0, 1] * 6 + [2], NAMES)
    with pytest.raises(
        ConfigError, match=r"class eel of the folder has 1 sample, and a fold needs one of each; add some, or remove the class"
    ):
        load(tmp_path)
