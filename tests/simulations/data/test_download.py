"""`--download`: from a server of our own, through torchvision's real code; whole or not at all, and never unasked."""

import hashlib
import http.server
import io
import tarfile
import threading
import zipfile
from functools import partial

import numpy as np
import pytest
import torchvision.datasets
from data_files import grey_digits, images, save, write_cifar10, write_idx, write_svhn, write_tiny_imagenet

from simulations.config.data import DataConfig
from simulations.config.errors import ConfigError
from simulations.data import download as downloading
from simulations.data.download import PREFIX, download
from simulations.data.sources import load_data

DIGITS = grey_digits()


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


class Quiet(http.server.SimpleHTTPRequestHandler):
    asked = 0

    def do_GET(self):  # noqa: N802  (http.server calls it so)
        Quiet.asked += 1
        super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder, and the URL under which it is served; torchvision's mirrors of MNIST lead there."""
    (tmp_path / "served").mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "served")) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        Quiet.asked = 0
        url = f"http://127.0.0.1:{served.server_port}/"
        write_idx(tmp_path / "served", DIGITS, packed=True)
        kind = torchvision.datasets.MNIST
        monkeypatch.setattr(kind, "mirrors", [url])
        monkeypatch.setattr(kind, "resources", [(name, md5((tmp_path / "served" / name).read_bytes())) for name, _ in kind.resources])
        yield tmp_path / "served", url
        served.shutdown()


def config(tmp_path, name: str = "seq-mnist") -> DataConfig:
    return DataConfig(name=name, path=str(tmp_path / "deep" / "root"))


def files(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []


def test_mnist_is_fetched_once_and_read(tmp_path, server):
    told = []
    download(config(tmp_path), told.append)
    root = tmp_path / "deep" / "root"
    assert told == [f"fetching MNIST, 12 MB, into {root}"] and [path.name for path in root.iterdir()] == ["MNIST"]
    assert np.array_equal(load_data(config(tmp_path, "perm-mnist"), 0).raw.train_x[:, 0], DIGITS[0])
    asked = Quiet.asked
    download(config(tmp_path, "rot-mnist"), told.append)
    assert told[1:] == [f"MNIST is in {root} already: nothing is fetched"] and Quiet.asked == asked


def test_nothing_is_fetched_unasked(tmp_path, server):
    with pytest.raises(ConfigError, match="--download fetches it there"):
        load_data(config(tmp_path), 0)
    assert Quiet.asked == 0


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:99]), lambda path: path.unlink()])
def test_a_download_that_is_cut_leaves_nothing_behind(tmp_path, server, damage):
    """The third of four files: two are whole by then."""
    damage(server[0] / "t10k-images-idx3-ubyte.gz")
    with pytest.raises(ConfigError, match=r"--download: MNIST cannot be fetched \(.*and nothing is left of it; try again, or put it into"):
        download(config(tmp_path), print)
    assert not (tmp_path / "deep").exists()


def test_an_interrupted_download_leaves_nothing_behind_but_what_was_there(tmp_path, server, monkeypatch):
    root = tmp_path / "deep" / "root"
    save(root / "mine.txt", b"stays")

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(torchvision.datasets.mnist, "extract_archive", interrupted, raising=False)
    monkeypatch.setattr(torchvision.datasets.utils, "extract_archive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download(config(tmp_path), print)
    assert files(root) == ["mine.txt"]


def test_what_a_killed_download_has_left_goes_with_the_next_one(tmp_path, server):
    root = tmp_path / "deep" / "root"
    for name in ("0123abcd", "4567ef01"):
        save(root / f"{PREFIX}{name}" / "lock", b"")
    with downloading._locked(root / f"{PREFIX}4567ef01"):  # another process is at it
        download(config(tmp_path), print)
        assert sorted(path.name for path in root.iterdir()) == [f"{PREFIX}4567ef01", "MNIST"]


def test_what_lies_in_the_way_is_not_touched(tmp_path, server):
    save(tmp_path / "deep" / "root" / "MNIST" / "raw" / "train-images-idx3-ubyte", b"half of it")
    with pytest.raises(ConfigError, match=r"root/MNIST is there, and not a whole MNIST: move it away, or set data\.path"):
        download(config(tmp_path), print)
    assert Quiet.asked == 0


def test_cifar10_svhn_and_tiny_imagenet_are_fetched(tmp_path, server, monkeypatch):
    folder, url = server
    y = np.arange(10)
    arrays = (images(10, (3, 32, 32)), y, images(10, (3, 32, 32)), y)
    write_cifar10(tmp_path / "made" / "cifar-10-batches-py", *arrays)
    with tarfile.open(folder / "cifar.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "made" / "cifar-10-batches-py", "cifar-10-batches-py")
    cifar = torchvision.datasets.CIFAR10
    for key, value in {
        "url": f"{url}cifar.tar.gz",
        "filename": "cifar.tar.gz",
        "tgz_md5": md5((folder / "cifar.tar.gz").read_bytes()),
    }.items():
        monkeypatch.setattr(cifar, key, value)
    here = tmp_path / "made" / "cifar-10-batches-py"
    for key in ("train_list", "test_list"):
        monkeypatch.setattr(cifar, key, [[name, md5((here / name).read_bytes())] for name, _ in getattr(cifar, key)])
    monkeypatch.setattr(cifar, "meta", cifar.meta | {"md5": md5((here / "batches.meta").read_bytes())})
    write_svhn(folder, *arrays)
    split_list = {
        part: [f"{url}{part}_32x32.mat", f"{part}_32x32.mat", md5((folder / f"{part}_32x32.mat").read_bytes())]
        for part in ("train", "test")
    }
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", split_list)
    write_tiny_imagenet(
        tmp_path / "made" / "tiny-imagenet-200", ["n0", "n1"], images(4, (64, 64, 3)).reshape(2, 2, 64, 64, 3), images(2, (64, 64, 3))
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in (tmp_path / "made").rglob("tiny-imagenet-200/**/*"):
            archive.write(path, path.relative_to(tmp_path / "made"))
    (folder / "tiny-imagenet-200.zip").write_bytes(buffer.getvalue())
    monkeypatch.setattr(downloading, "TINY_IMAGENET", (f"{url}tiny-imagenet-200.zip", md5(buffer.getvalue())))
    for name, there in (("seq-cifar10", "cifar-10-batches-py"), ("seq-svhn", "SVHN"), ("seq-tinyimg", "tiny-imagenet-200")):
        download(config(tmp_path, name), print)
        assert (tmp_path / "deep" / "root" / there).is_dir() and len(load_data(config(tmp_path, name), 0).raw.train_y)
    assert sorted(path.name for path in (tmp_path / "deep" / "root").iterdir()) == ["SVHN", "cifar-10-batches-py", "tiny-imagenet-200"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "--download: data.name is 'digits', which cannot be fetched: it is built in; leave --download out"),
        ({"name": "femnist"}, "make LEAF's JSON with its data/femnist/preprocess.sh"),
    ],
)
def test_what_cannot_be_fetched_says_where_it_is_to_be_had(settings, told):
    with pytest.raises(ConfigError, match=told):
        download(DataConfig(**settings), print)
