"""Named pieces of bytes in memory, in a folder, or behind any URL that fsspec can open: what a `StateStore` is built on."""

import os
import re
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from simulations import disk
from simulations.disk import LinkRefused, Own, delete, expect_no_link, flush, make_folder
from simulations.engine.adapter import EngineError
from simulations.engine.address import masked, redacted, secrets_of
from sparcl_core.foreign import printable

FOLDERS = ("states", "blobs")
OWN = Own(  # all that a store ever writes: states, shared values, what is half written of them, and what `open_files` tries out
    files=re.compile(r"(states/[0-9a-f]{2}/[0-9]+-[0-9]+|blobs/[0-9a-f]{2}/[0-9a-f]{32}|states/probe-[0-9a-f]{16})(\.[0-9a-f]{16}\.tmp)?"),
    folders=re.compile(r"(states|blobs)(/[0-9a-f]{2})?"),
)


class StoreError(EngineError):
    """A store cannot be reached; the message says which, why and what to do."""


class StoreLinked(StoreError):
    """A link lies where a folder of the store should; nothing was deleted."""


class Files(Protocol):
    """Named pieces of bytes. A key is a path of two or three parts; `url` is what a person calls the place, without its passwords.

    Methods raise whatever they like if the place cannot be reached: `StateStore` makes a `StoreError` of it. Whatever else lies at
    the place is neither seen nor touched.
    """

    url: str
    secrets: tuple[str, ...]  # what no message may repeat

    def write(self, key: str, data: bytes) -> None:
        """All or nothing; replaces what is there."""

    def read(self, key: str) -> bytes | None:
        """None: there is no such file."""

    def size(self, key: str) -> int | None:
        """Bytes; None: there is no such file."""

    def flush(self, keys: Iterable[str]) -> None:
        """From now on a power cut leaves these files whole, if the place survives one at all."""

    def delete(self, keys: Iterable[str]) -> None:
        """Files that are not there are ignored."""

    def keys(self) -> list[str]:
        """All files with a name of `OWN`, with what a process that died has left unfinished."""

    def destroy(self) -> None:
        """Delete all of `keys`, and the folders that are empty then."""


class MemoryFiles:
    """In this process, by reference: nothing is copied, and nothing survives."""

    url = "memory"
    secrets = ()

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}

    def __reduce__(self):
        raise StoreError("states in memory cannot go to another process: name a folder or a URL with --store")

    def write(self, key: str, data: bytes) -> None:
        self._files[key] = data

    def read(self, key: str) -> bytes | None:
        return self._files.get(key)

    def size(self, key: str) -> int | None:
        data = self._files.get(key)
        return None if data is None else len(data)

    def flush(self, keys: Iterable[str]) -> None:
        pass

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._files.pop(key, None)

    def keys(self) -> list[str]:
        return list(self._files)

    def destroy(self) -> None:
        self._files.clear()


@dataclass(frozen=True)
class LocalFiles:
    """In a folder. `url`: its absolute path. Links are not followed below it."""

    url: str
    secrets = ()

    def write(self, key: str, data: bytes) -> None:
        path = f"{self.url}/{key}"
        temporary = f"{path}.{secrets.token_hex(8)}.tmp"  # a name of its own: several processes may write the same file
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise

    def read(self, key: str) -> bytes | None:
        try:
            return disk.read(f"{self.url}/{key}")
        except FileNotFoundError:
            return None

    def size(self, key: str) -> int | None:
        try:
            return os.stat(f"{self.url}/{key}").st_size
        except FileNotFoundError:
            return None

    def flush(self, keys: Iterable[str]) -> None:
        files = {f"{self.url}/{key}" for key in keys}
        folders = {os.path.dirname(file) for file in files}
        above = {os.path.dirname(folder) for folder in folders} | {self.url}  # where a folder is new
        flush([*files, *folders, *above] if files else [])

    def delete(self, keys: Iterable[str]) -> None:
        delete(self.url, keys)

    def keys(self) -> list[str]:
        return OWN.find(self.url)[0]

    def destroy(self) -> None:
        OWN.remove(self.url)
        with suppress(OSError):  # of a folder that holds anything else
            os.rmdir(self.url)


class FsspecFiles:
    """Behind a URL that fsspec opens; pickled as the URL. Object stores put a file whole, and it is on their disks when that returns;
    where a backend promises neither, digest and CRC tell.
    """

    def __init__(self, url: str):
        from fsspec.core import url_to_fs

        if set("*?[") & set(url):  # fsspec would delete what they match
            raise ValueError("a URL of a store has none of the wildcards * ? [")
        self.url, self.secrets, self._address = masked(url), secrets_of(url), url
        self._fs, self._root = url_to_fs(url)

    def __reduce__(self):
        return FsspecFiles, (self._address,)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def write(self, key: str, data: bytes) -> None:
        path = self._path(key)
        try:
            self._fs.pipe_file(path, data)
        except FileNotFoundError:  # a backend with real folders
            if not self._fs.exists(self._root[:1] + self._root[1:].split("/")[0]):
                raise  # a bucket that is not there: making one is not for us
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(path, data)

    def read(self, key: str) -> bytes | None:
        try:
            return self._fs.cat_file(self._path(key))
        except FileNotFoundError:
            return None

    def size(self, key: str) -> int | None:
        self._fs.invalidate_cache()  # other processes write and delete here, too
        try:
            return self._fs.size(self._path(key))
        except FileNotFoundError:
            return None

    def flush(self, keys: Iterable[str]) -> None:
        pass

    def delete(self, keys: Iterable[str]) -> None:
        paths = [self._path(key) for key in keys]
        if not paths:
            return
        try:
            self._fs.rm(paths)  # one request for many where the backend can
        except FileNotFoundError:
            for path in paths:
                with suppress(FileNotFoundError):
                    self._fs.rm_file(path)

    def keys(self) -> list[str]:
        self._fs.invalidate_cache()
        found = [path[len(self._root) + 1 :] for folder in FOLDERS for path in self._fs.find(self._path(folder))]
        return [key for key in found if OWN.files.fullmatch(key)]

    def destroy(self) -> None:
        self.delete(self.keys())
        for folder in FOLDERS:
            with suppress(Exception):  # a backend without folders, each of which says so in its own way
                self._fs.invalidate_cache()
                left = {self._path(folder), *self._fs.find(self._path(folder), withdirs=True)}
                for path in sorted(left, reverse=True):  # what lies in a folder comes before it; some backends' rmdir takes it along
                    if OWN.folders.fullmatch(path[len(self._root) + 1 :]) and not any(other.startswith(f"{path}/") for other in left):
                        self._fs.rmdir(path)
                        left.discard(path)


def open_files(url: str, own_parts: int = 0) -> Files:
    """The files in a folder (it is made) or behind a URL, once writing and reading back has worked.

    Args:
        own_parts: so many of the path's last parts are ours, and so may be no links.

    Raises:
        StoreError: if that does not work, or links lie where the folders should.
    """
    hidden = secrets_of(url)
    try:
        files = _files_at(url)
        if isinstance(files, LocalFiles):
            if own_parts:
                path = Path(files.url)
                expect_no_link(path.parents[own_parts - 1], "/".join(path.parts[-own_parts:]))
            OWN.find(files.url)
            make_folder(files.url)
        key, data = f"{FOLDERS[0]}/probe-{secrets.token_hex(8)}", b"sparcl"
        files.write(key, data)
        if (back := files.read(key)) != data:
            raise OSError(f"{data!r} was written and {back!r} read back")
        files.delete([key])
    except LinkRefused as error:
        raise StoreLinked(f"device states cannot be kept in {masked(url)}: {error}") from error
    except Exception as error:  # backends raise what they like
        raise StoreError(
            f"device states cannot be kept in {masked(url)}: {reason_of(error, hidden)}; name with --store a folder that can be written, "
            f"or a URL such as s3://bucket/run of which fsspec has the backend"
        ) from (None if hidden else error)
    return files


def is_local(url: str) -> bool:
    """A path, and no URL of fsspec's."""
    return "://" not in url and "::" not in url


def _files_at(url: str) -> Files:
    if is_local(url):
        return LocalFiles(os.path.abspath(os.path.expanduser(url)))
    from fsspec.implementations.local import LocalFileSystem

    files = FsspecFiles(url)
    return LocalFiles(files._root) if isinstance(files._fs, LocalFileSystem) else files


def reason_of(error: Exception, hidden: tuple[str, ...] = ()) -> str:
    """What to tell of an error of a backend, on one line and without what is `hidden`: some have no text."""
    return printable(redacted(str(error), hidden)) or type(error).__name__
