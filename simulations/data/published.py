"""Benchmarks of the field by name: what they are, and the layouts in which people have them.

A name decides which images; what is done with them is section [stream].
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from simulations.data import cifar, idx, layouts, leaf, svhn, tiny_imagenet
from simulations.data.content import Files

Finder = Callable[[Path], Files | None]
ANYWHERE: tuple[Finder, ...] = (layouts.published_parquet, layouts.published_folder, layouts.published_npz)
ALSO = "parquet files as hubs have them, train/CLASS/ and test/CLASS/ with images, or an .npz"
DIGITS = tuple("0123456789")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Published:
    """A data set of the field.

    Attributes:
        title: what its authors call it.
        shape: of an image, channels, height and width.
        classes: their number.
        folders: what people call the folder that it lies in.
        own: finds its own layout in a folder; the general ones are tried behind it.
        layouts: in words.
        size: of the download.
        source: where it is to be had if it cannot be downloaded from here.
        names: of the classes.
        id_column: of parquet files, if the data is by writer.
    """

    title: str
    shape: tuple[int, int, int]
    classes: int
    folders: tuple[str, ...]
    own: Finder
    layouts: str
    size: str = ""
    source: str = ""
    names: tuple[str, ...] = ()
    id_column: str = ""

    @property
    def is_fetched(self) -> bool:
        return bool(self.size)

    @property
    def finders(self) -> tuple[Finder, ...]:
        return (self.own, *ANYWHERE)


IDX = f"MNIST/raw/train-images-idx3-ubyte as torchvision has it, these files in one folder, also as .gz, {ALSO}"
MNIST = Published("MNIST", (1, 28, 28), 10, ("MNIST", "mnist"), idx.find, IDX, "12 MB", names=DIGITS)
PUBLISHED = {
    "seq-mnist": MNIST,
    "perm-mnist": MNIST,
    "rot-mnist": MNIST,
    "seq-fmnist": Published(
        "Fashion-MNIST", (1, 28, 28), 10, ("FashionMNIST", "fashion-mnist", "fashion_mnist", "fmnist"), idx.find,
        IDX.replace("MNIST/raw", "FashionMNIST/raw"), "31 MB", names=CLOTHES,
    ),
    "seq-svhn": Published(
        "SVHN (cropped digits)", (3, 32, 32), 10, ("SVHN", "svhn", "cropped_digits"), svhn.find,
        f"train_32x32.mat and test_32x32.mat, {ALSO}", "246 MB", names=DIGITS,
    ),
    "seq-cifar10": Published(
        "CIFAR-10", (3, 32, 32), 10, ("cifar10", "cifar-10", "CIFAR10"), cifar.find_10,
        f"cifar-10-batches-py or -bin, {ALSO}", "170 MB", names=THINGS,
    ),
    "seq-cifar100": Published(
        "CIFAR-100", (3, 32, 32), 100, ("cifar100", "cifar-100", "CIFAR100"), cifar.find_100,
        f"cifar-100-python or -binary, {ALSO}", "169 MB",
    ),
    "seq-tinyimg": Published(
        "Tiny-ImageNet", (3, 64, 64), 200, ("tiny-imagenet-200", "tiny-imagenet", "TINYIMG"), tiny_imagenet.find,
        f"tiny-imagenet-200 with train/CLASS/images and val/val_annotations.txt, {ALSO}", "248 MB",
    ),
    "femnist": Published(
        "FEMNIST", (1, 28, 28), 62, ("femnist", "FEMNIST"), leaf.find, f"LEAF's data/train/*.json and data/test/*.json, {ALSO}",
        source="make LEAF's JSON with its data/femnist/preprocess.sh, or take parquet files from a hub (flwrlabs/femnist)",
        names=(*DIGITS, *LETTERS, *LETTERS.lower()), id_column="writer_id",
    ),
}  # fmt: skip
