"""The C kernels as a loaded library: compiled on first use, kept in a cache folder, checked before they are loaded.

A library's file name says for what it was made (source, compiler, flags, CPU) and what is in it (SHA-256 of its bytes). So a
home folder that different machines share is safe, a damaged file is seen before the loader maps it, and processes that build
at once cannot disturb each other, even where a compiler does not give the same bytes twice. Without a compiler there is no
library: dense products are slower, and right.

    SPARCL_KERNELS        dense: no kernels; sparse: an error where there are none; unset: kernels where they can be had
    SPARCL_KERNEL_CACHE   the cache folder; default $XDG_CACHE_HOME/sparcl/kernels, else ~/.cache/sparcl/kernels
    SPARCL_KERNEL_FLAGS   more flags for the compiler, e.g. those of a sanitizer
    CC                    the compiler; default the first of cc, gcc and clang
"""

import ctypes
import os
import platform
import tempfile
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

from sparcl_core.kernels import compiler
from sparcl_core.kernels.compiler import KernelError, Recipe, make_recipe
from sparcl_core.kernels.library import cache_folder, open_if_sound, open_library, own_folder, publish, reason_of


@dataclass(frozen=True)
class Backend:
    """What a process multiplies sparse weights with.

    `library`: None where dense products stand in for the kernels; `name`: the vectors that are used, or "dense"; `reason`: why, one
    sentence; `path`: the library's file, "" if it lies in none; `compiler`: its path, "" if there is none; `seconds`: of compiling,
    0 if the library was found.
    """

    library: ctypes.CDLL | None
    name: str
    reason: str
    path: str
    compiler: str
    seconds: float


_warned = False
_chosen: Backend | None = None
_lock = threading.RLock()  # `backend` warns while it holds it


def backend() -> Backend:
    """The backend of this process: `choose()`, once."""
    global _chosen
    if _chosen is None:
        with _lock:
            if _chosen is None:
                _chosen = choose()
    return _chosen


def choose(*, rebuild: bool = False) -> Backend:
    """The backend that the environment variable SPARCL_KERNELS asks for; `rebuild` as for `load`.

    Raises:
        KernelError: if it asks for kernels and there are none.
        ValueError: if it asks for what is not known.
    """
    wanted = os.environ.get("SPARCL_KERNELS", "")
    if wanted not in ("", "dense", "sparse"):
        rule = "write 'sparse' (kernels or an error) or 'dense' (no kernels), or leave it unset (kernels where they can be had)"
        raise ValueError(f"SPARCL_KERNELS is {wanted!r}: {rule}")
    if wanted == "dense":
        return Backend(None, "dense", "SPARCL_KERNELS is 'dense'", "", "", 0.0)
    found, warning = _load(rebuild=rebuild)
    if wanted and found.library is None:
        raise KernelError(f"SPARCL_KERNELS is 'sparse' and there are no kernels: {found.reason}; unset SPARCL_KERNELS for dense products")
    _warn(warning)
    return found


def load(cache: Path | None = None, source: bytes | None = None, *, rebuild: bool = False) -> Backend:
    """The kernels for this CPU, compiled if the cache folder does not hold them; never raises for want of a compiler or a folder.

    `cache` and `source` take the place of the default folder and of sparse.c; `rebuild` deletes what is cached first. Warns if there
    are no kernels or no folder to keep them in, at most once per process.
    """
    found, warning = _load(cache, source, rebuild)
    _warn(warning)
    return found


def _load(cache: Path | None = None, source: bytes | None = None, rebuild: bool = False) -> tuple[Backend, str]:
    """With the text of a warning, or ""."""
    recipe, deadline = None, time.monotonic() + compiler.PATIENCE_S
    try:
        recipe = make_recipe(source, deadline)
        return _provide(recipe, cache, rebuild, deadline)
    except KernelError as error:
        reason = str(error)
    except OSError as error:
        reason = f"there is no temporary folder to compile in ({error}): set TMPDIR"
    dense = Backend(None, "dense", reason, "", recipe.compiler[0] if recipe else "", 0.0)
    return dense, f"dense products stand in for the sparse kernels: {reason}"


def _provide(recipe: Recipe, cache: Path | None, rebuild: bool, deadline: float) -> tuple[Backend, str]:
    folder, trouble, library, path = None, "", None, ""
    try:
        folder = own_folder(cache_folder() if cache is None else Path(cache))
        for file in sorted(folder.glob(f"{recipe.key}-*.so")):
            if not rebuild and library is None and (library := open_if_sound(file)):
                path = str(file)
            elif library is None:
                file.unlink()  # never overwritten in place: another process may have it mapped
    except OSError as error:
        trouble = reason_of(error)
    if library:
        return _backend(library, "found in the cache", path, recipe, 0.0), ""
    with tempfile.TemporaryDirectory(prefix="sparcl-kernels-", ignore_cleanup_errors=True) as place:
        started = time.monotonic()
        built = recipe.compile(Path(place), deadline)
        seconds = time.monotonic() - started
        if folder and not trouble:
            try:
                library, path = publish(built, folder, recipe.key)
            except OSError as error:
                trouble = reason_of(error)
        if library is None:  # it stays mapped when its file is gone, so that a process that is killed leaves none
            try:
                library = open_library(built)
            except OSError as error:
                raise KernelError(f"what {recipe.compiler[0]} made cannot be loaded ({error}): set CC to another compiler") from error
    reason = "compiled for this CPU" + (f", in a temporary folder: {trouble}" if trouble else "")
    warning = f"the sparse kernels are compiled again by every process: {trouble}" if trouble else ""
    return _backend(library, reason, path, recipe, seconds), warning


def _backend(library: ctypes.CDLL, reason: str, path: str, recipe: Recipe, seconds: float) -> Backend:
    return Backend(library, _name(library.sparcl_vector_floats(), platform.machine()), reason, path, recipe.compiler[0], seconds)


def _name(floats: int, machine: str) -> str:
    if floats != 4:
        return {8: "avx2", 16: "avx512"}[floats]
    if machine.lower().startswith(("arm", "aarch64")):
        return "neon"
    return "sse" if machine.lower() in ("x86_64", "amd64", "i386", "i686") else "simd4"


def _warn(text: str) -> None:
    global _warned
    with _lock:
        if not text or _warned:
            return
        _warned = True
    warnings.warn(text, RuntimeWarning, stacklevel=3)
