"""Named pieces of bytes in memory, in a folder, or behind any URL that fsspec can open: what a `StateStore` is built on."""

import os
import secrets
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from simulations.engine.adapter import EngineError

FOLDERS = ("states", "blobs")


class StoreError(EngineError):
    """A store cannot be reached; the message says which, why and what to do."""


class Files(Protocol):
    """Named pieces of bytes. A key is a path of two or three parts; `url` is what a person calls the place.

    Methods raise whatever they like if the place cannot be reached: `StateStore` makes a `StoreError` of it.
    """

    url: str

    def write(self, key: str, data: bytes) -> None:
        """All or nothing; replaces what is there."""

    def read(self, key: str) -> bytes | None:
        """None: there is no such file."""

    def size(self, key: str) -> int | None:
        """Bytes; None: there is no such file."""

    def delete(self, keys: Iterable[str]) -> None:
        """Files that are not there are ignored."""

    def keys(self) -> list[str]:
        """All files in `FOLDERS`, with what a process that died has left unfinished."""

    def destroy(self) -> None:
        """Delete `FOLDERS` and all that is in them, and nothing else."""


class MemoryFiles:
    """In this process, by reference: nothing is copied, and nothing survives."""

    url = "memory"

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

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._files.pop(key, None)

    def keys(self) -> list[str]:
        return list(self._files)

    def destroy(self) -> None:
        self._files.clear()


@dataclass(frozen=True)
class LocalFiles:
    """In a folder. `url`: its absolute path."""

    url: str

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
            with open(f"{self.url}/{key}", "rb", buffering=0) as file:
                return file.read()
        except FileNotFoundError:
            return None

    def size(self, key: str) -> int | None:
        try:
            return os.stat(f"{self.url}/{key}").st_size
        except FileNotFoundError:
            return None

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            with suppress(FileNotFoundError):
                os.unlink(f"{self.url}/{key}")

    def keys(self) -> list[str]:
        found = []
        for folder in FOLDERS:
            for path, _, names in os.walk(f"{self.url}/{folder}"):
                found += [f"{path}/{name}"[len(self.url) + 1 :] for name in names]
        return found

    def destroy(self) -> None:
        for folder in FOLDERS:
            with suppress(FileNotFoundError):
                shutil.rmtree(f"{self.url}/{folder}")
        with suppress(OSError):  # of a folder that holds anything else
            os.rmdir(self.url)


class FsspecFiles:
    """Behind a URL that fsspec opens; pickled as the URL. Object stores put a file whole; where a backend does not, digest and CRC tell."""

    def __init__(self, url: str):
        from fsspec.core import url_to_fs

        if set("*?[") & set(url):  # fsspec would delete what they match
            raise ValueError("a URL of a store has none of the wildcards * ? [")
        self.url = url
        self._fs, self._root = url_to_fs(url)

    def __reduce__(self):
        return FsspecFiles, (self.url,)

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
        return [path[len(self._root) + 1 :] for folder in FOLDERS for path in self._fs.find(self._path(folder))]

    def destroy(self) -> None:
        for folder in FOLDERS:
            with suppress(FileNotFoundError):
                self._fs.rm(self._path(folder), recursive=True)


def open_files(url: str) -> Files:
    """The files in a folder (it is made) or behind a URL, once writing and reading back has worked.

    Raises:
        StoreError: if that does not work.
    """
    try:
        files = _files_at(url)
        key, data = f"{FOLDERS[0]}/probe-{secrets.token_hex(8)}", b"sparcl"
        files.write(key, data)
        if (back := files.read(key)) != data:
            raise OSError(f"{data!r} was written and {back!r} read back")
        files.delete([key])
    except Exception as error:  # backends raise what they like
        raise StoreError(
            f"device states cannot be kept in {url}: {reason_of(error)}; name with --store a folder that can be written, "
            f"or a URL such as s3://bucket/run of which fsspec has the backend"
        ) from error
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


def reason_of(error: Exception) -> str:
    """What to tell of an error of a backend: some have no text."""
    return str(error) or type(error).__name__
