"""`--download`: a benchmark from where its authors publish it, through torchvision, which looks at each file's MD5.

What is fetched lies in a folder of its own until it is whole, and is moved to its place in one step. If that is interrupted, nothing is
left; what a killed process has left is removed by the next download.
"""

import contextlib
import fcntl
import io
import os
import secrets
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from simulations.config.data import DataConfig
from simulations.config.errors import ConfigError
from simulations.data.places import find, where
from simulations.data.published import PUBLISHED
from sparcl_core.foreign import printable

TINY_IMAGENET = ("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de")  # torchvision has no class for it
PREFIX = ".sparcl-download-"


@dataclass(frozen=True)
class Fetch:
    """How a data set is fetched.

    Attributes:
        makes: what there is in the end, a folder's name.
        call: fetches it into a folder, within which `makes` is then.
    """

    makes: str
    call: Callable[[Path], None]


def _torchvision(name: str, makes: str) -> Fetch:
    def call(folder: Path) -> None:
        import torchvision.datasets

        getattr(torchvision.datasets, name)(folder, download=True)

    return Fetch(makes, call)


def _svhn(folder: Path) -> None:
    from torchvision.datasets import SVHN

    for part in ("train", "test"):
        SVHN(folder / "SVHN", split=part, download=True)


def _tiny_imagenet(folder: Path) -> None:
    from torchvision.datasets.utils import download_and_extract_archive

    url, md5 = TINY_IMAGENET
    download_and_extract_archive(url, folder, md5=md5)


MNIST = _torchvision("MNIST", "MNIST")
FETCHED = {
    "seq-mnist": MNIST,
    "perm-mnist": MNIST,
    "rot-mnist": MNIST,
    "seq-fmnist": _torchvision("FashionMNIST", "FashionMNIST"),
    "seq-svhn": Fetch("SVHN", _svhn),
    "seq-cifar10": _torchvision("CIFAR10", "cifar-10-batches-py"),
    "seq-cifar100": _torchvision("CIFAR100", "cifar-100-python"),
    "seq-tinyimg": Fetch("tiny-imagenet-200", _tiny_imagenet),
}


def download(config: DataConfig, tell: Callable[[str], None]) -> None:
    """Fetch a benchmark into `config.path` (empty: `simulations.data.places.downloads`), if it is not there in any layout.

    Args:
        tell: is told what is done, a line each.

    Raises:
        ConfigError: if there is nothing to fetch by this name, or it cannot be fetched.
    """
    if config.name not in FETCHED:
        source = "it is built in" if config.name == "digits" else "its files are yours"
        source = PUBLISHED[config.name].source if config.name in PUBLISHED else source
        raise ConfigError(f"--download: data.name is {config.name!r}, which cannot be fetched: {source}; leave --download out")
    known, fetch, root = PUBLISHED[config.name], FETCHED[config.name], where(config)
    if is_there(config):
        tell(f"{known.title} is in {root} already: nothing is fetched")
        return
    if os.path.lexists(root / fetch.makes):
        raise ConfigError(f"--download: {root / fetch.makes} is there, and not a whole {known.title}: move it away, or set data.path")
    tell(f"fetching {known.title}, {known.size}, into {root}")
    try:
        with _beside(root) as folder, _progress():
            fetch.call(folder)
            (folder / fetch.makes).rename(root / fetch.makes)
    except (OSError, RuntimeError, ValueError, EOFError, HTTPException, tarfile.TarError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"--download: {known.title} cannot be fetched ({printable(error)}), and nothing is left of it; try again, or put it into "
            f"{root} yourself: {known.layouts}"
        ) from error
    find(config)


def is_there(config: DataConfig) -> bool:
    """Are the files found?"""
    try:
        return find(config) is not None
    except ConfigError:
        return False


@contextlib.contextmanager
def _beside(root: Path) -> Iterator[Path]:
    """A folder within `root` that is gone in the end, as are those above it that were made for it and are empty."""
    missing = [folder for folder in (root, *root.parents) if not folder.exists()]
    folder = root / f"{PREFIX}{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True)
        with _locked(folder):
            _remove_abandoned(root, folder)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for made in missing:
            with contextlib.suppress(OSError):  # something is in it
                made.rmdir()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _remove_abandoned(root: Path, own: Path) -> None:
    """What processes have left that were killed: nobody holds its lock."""
    for folder in root.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder != own and not folder.is_symlink():
                with _locked(folder):
                    shutil.rmtree(folder, ignore_errors=True)


def _progress() -> contextlib.AbstractContextManager:
    """torchvision's bars are for a person who watches."""
    return contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
