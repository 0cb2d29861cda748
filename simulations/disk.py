"""What files of ours have to stand on a disk: a power cut, and a folder that also holds what is not ours.

`put` and `flush`: a name that was flushed together with its folder is there after a power cut, with its content. `Own`: only what has a
name of ours is ever deleted, no link is ever followed, and what is not ours stays, with the folders around it.
"""

import errno
import os
import re
import signal
import stat
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

AT_ONCE = 32  # flushes: a file system writes those that wait together in one go


def read(path: str | Path) -> bytes:
    """What is in a file. A pipe or a device in its place is refused, where a plain read would wait for ever. Raises OSError."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no ordinary file", str(path))
        return file.readall()


class LinkRefused(ValueError):
    """A link lies where a folder of ours should: nothing was read through it and nothing deleted."""


@dataclass(frozen=True)
class Own:
    """Names of ours below a folder: patterns of whole relative paths, of files and of the folders that they lie in."""

    files: re.Pattern[str]
    folders: re.Pattern[str]

    def find(self, root: str | Path) -> tuple[list[str], list[str]]:
        """Files (links under their names, too) and folders that have such a name, a folder before what lies in it.

        Raises:
            LinkRefused: if one of the folders is a link.
            OSError: if a folder cannot be read; none at all is no error.
        """
        files, folders, waiting = [], [], [""]
        while waiting:
            inside = waiting.pop()
            try:
                entries = os.scandir(f"{root}/{inside}")
            except FileNotFoundError:
                continue
            with entries:
                for entry in entries:
                    path = f"{inside}{entry.name}"
                    is_folder = entry.is_dir(follow_symlinks=False)
                    if self.folders.fullmatch(path):
                        if entry.is_symlink():
                            raise LinkRefused(f"{entry.path} is a link, and would be followed: put the folder itself in its place")
                        if is_folder:
                            folders.append(path)
                            waiting.append(f"{path}/")
                    elif self.files.fullmatch(path) and not is_folder:
                        files.append(path)
        return files, folders

    def remove(self, root: str | Path) -> None:
        """Delete all that `find` finds, folders only if they are empty then. Raises as `find`, before anything is deleted."""
        files, folders = self.find(root)
        delete(root, files)
        for path in reversed(folders):
            with suppress(OSError):  # something else is in it
                os.rmdir(f"{root}/{path}")


def delete(root: str | Path, paths: Iterable[str]) -> None:
    """Delete files by their paths relative to `root`; those that are not there are ignored, as are folders under such a name.

    Raises:
        LinkRefused: if a folder on the way, below `root`, is a link. What comes before it is deleted.
    """
    by_folder: dict[str, list[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        by_folder.setdefault(folder, []).append(name)
    for folder, names in by_folder.items():
        with suppress(FileNotFoundError):
            held = _open_folder(root, folder)
            try:
                for name in names:
                    with suppress(FileNotFoundError, IsADirectoryError):
                        os.unlink(name, dir_fd=held)
            finally:
                os.close(held)


def _open_folder(root: str | Path, folder: str) -> int:
    """A descriptor of `root/folder` of which only `root` may be, or lie behind, a link: what is checked is what is deleted from."""
    held = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for part in filter(None, folder.split("/")):
        try:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=held)
        except NotADirectoryError as error:
            raise LinkRefused(f"{root}/{folder}: {part} is a link or no folder: put the folder itself in its place") from error
        finally:
            os.close(held)
        held = inner
    return held


def expect_no_link(root: str | Path, path: str) -> None:
    """Raises LinkRefused if a part of `path`, which is relative to `root`, is a link."""
    at = str(root)
    for part in Path(path).parts:
        at = f"{at}/{part}"
        if os.path.islink(at):
            raise LinkRefused(f"{at} is a link, and would be followed: put the folder itself in its place")


def put(path: str | Path, parts: Iterable, private: bool = False) -> None:
    """A new file of these bytes or arrays of bytes, in the place of one of that name, or of a link, whose target stays as it is.

    `private`: nobody but its owner can read it; else as the umask says.
    """
    with suppress(FileNotFoundError):
        os.unlink(path)
    with open(path, "xb", opener=_private if private else None) as file:
        file.writelines(parts)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def make_folder(path: str | Path) -> None:
    """As `os.makedirs`, with its name on the disk. One that is there is no error."""
    path = Path(path)
    missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    path.mkdir(parents=True, exist_ok=True)
    flush({folder.parent for folder in missing})


def flush(paths: Iterable[str | Path]) -> None:
    """Have files and folders written to the disk (fsync). A folder's own flush is what keeps the names in it.

    A signal that comes meanwhile has its effect when all are written.
    """
    paths = list(paths)
    if len(paths) < 2:
        for path in paths:
            _flush(path)
        return
    with undisturbed(), ThreadPoolExecutor(min(AT_ONCE, len(paths))) as threads:
        for _ in threads.map(_flush, paths):
            pass


@contextmanager
def undisturbed() -> Iterator[None]:
    """Signals that end a command have their effect behind the block.

    A KeyboardInterrupt may be raised between any two steps of Python's own code, also where a pool of threads has just taken a lock: then
    nobody ever gives it back, and the process waits for its threads for ever.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in _ENDING}
    before = {number: handler for number, handler in before.items() if callable(handler)}
    for number in before:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


_ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def _flush(path: str | Path) -> None:
    held = os.open(path, os.O_RDONLY)
    try:
        os.fsync(held)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    finally:
        os.close(held)


_CANNOT = {errno.EINVAL, errno.ENOTSUP}  # a file system that has no flush, of folders above all
