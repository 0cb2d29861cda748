"""Libraries as files: the cache folder, what is believed of it, and how one gets into it and is opened.

A library's file name says for what it was made and what is in it (SHA-256 of its bytes), so that a damaged file is seen before the loader
maps it. What another user could have written is not used.
"""

import ctypes
import hashlib
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from sparcl_core.kernels.compiler import KernelError

ABI = 3  # of the calls between sparse.c and Python; both sides change it together


def cache_folder() -> Path:
    if named := os.environ.get("SPARCL_KERNEL_CACHE"):
        return Path(os.path.expanduser(named))
    if os.path.isabs(above := os.environ.get("XDG_CACHE_HOME", "")):  # the standard has others ignored
        return Path(above, "sparcl", "kernels")
    if os.path.isabs(home := os.environ.get("HOME", "")):
        return Path(home, ".cache", "sparcl", "kernels")
    raise OSError(f"HOME is {os.environ.get('HOME')!r} and no folder; name one with SPARCL_KERNEL_CACHE")


def own_folder(folder: Path) -> Path:
    """Made if it is not there. OSError if it cannot be, or if somebody else could put code of theirs into it."""
    folder = Path(os.path.realpath(folder))  # what is checked is what is used, wherever a link will point to by then
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        fault = "belongs to another user" if status.st_uid != os.geteuid() else "can be written by other users (`chmod go-w` ends that)"
        raise OSError(f"kernel cache {folder} {fault}; it is not used: name a folder of your own with SPARCL_KERNEL_CACHE")
    return folder


def publish(built: Path, folder: Path, key: str) -> tuple[ctypes.CDLL, str]:
    """The library from the cache folder, once it is there as a whole. OSError if it cannot be put there or not be loaded from there."""
    data = built.read_bytes()
    final = folder / f"{key}-{digest_of(data)}.so"
    temporary = folder / f"{key}-{secrets.token_hex(8)}.tmp"
    try:
        with open(temporary, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(data)
        os.replace(temporary, final)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    try:
        return open_library(final), str(final)
    except (KernelError, OSError) as error:
        with suppress(OSError):
            final.unlink()
        if isinstance(error, KernelError):
            raise
        raise OSError(f"kernel cache {folder} holds nothing that can be loaded ({error}); name another with SPARCL_KERNEL_CACHE") from error


def open_if_sound(file: Path) -> ctypes.CDLL | None:
    """The loader would end the process with a signal over a file that was cut off: bytes first. OSError if the file is not our own."""
    if digest_of(_own_bytes(file)) != file.stem.rpartition("-")[2]:
        return None
    with suppress(KernelError, OSError):
        return open_library(file)
    return None


def _own_bytes(file: Path) -> bytes:
    """OSError if it is a link or no file, or if somebody else has or could have written it: its name says nothing then."""
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode):
        fault = "is a link" if stat.S_ISLNK(status.st_mode) else "is no file"
    elif status.st_uid != os.geteuid():
        fault = "belongs to another user"
    elif status.st_mode & 0o022:
        fault = "can be written by other users"
    else:
        return file.read_bytes()
    raise OSError(f"kernel cache {file} {fault}, and cannot be used: remove it, or name another folder with SPARCL_KERNEL_CACHE")


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]  # a name stays short enough for any file system


def open_library(file: Path) -> ctypes.CDLL:
    """OSError if the loader refuses it, KernelError if it is not ours."""
    library = ctypes.CDLL(str(file))
    try:
        abi, floats = library.sparcl_abi(), library.sparcl_vector_floats()
    except AttributeError as error:
        raise KernelError(f"the library is not one of sparcl's kernels ({error}): install sparcl-fleet again") from error
    if abi != ABI or floats not in (4, 8, 16):
        told = f"ABI {abi} and vectors of {floats} floats, not {ABI} and 4, 8 or 16"
        raise KernelError(f"the kernels have {told}: install sparcl-fleet again")
    return library


def reason_of(error: OSError) -> str:
    if error.errno is None:  # one of ours, or the loader's
        return str(error)
    return f"kernel cache {error.filename or 'folder'} cannot be used ({error.strerror}); name another with SPARCL_KERNEL_CACHE"
