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
import hashlib
import json
import os
import platform
import secrets
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from urllib.parse import unquote

ABI = 3  # of the calls between sparse.c and Python; both sides change it together
SOURCE_SHA256 = "5e3c80ec30bd02d0359379c444c32c8fd20e1c9b566446ea9e69aa14ed21d7a8"  # of the sparse.c that belongs here
FLAGS = ("-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-std=gnu11")
TUNINGS = (("-march=native",), ("-mcpu=native",), ())  # the first that the compiler takes: some for ARM know only the second
PATIENCE_S = 60.0  # for all that the compiler is asked
CPU_FIELDS = {"vendor_id", "cpu family", "model", "model name", "stepping", "flags", "Features", "isa", "cpu"} | {
    f"CPU {field}" for field in ("implementer", "architecture", "variant", "part", "revision")
}


class KernelError(RuntimeError):
    """There are no kernels here; the message says why and what to do."""


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


@dataclass(frozen=True)
class Recipe:
    """All that a library depends on. `compiler`: path and arguments; `version`: what it says of itself; `flags`: added to ours."""

    source: bytes
    compiler: tuple[str, ...]
    version: str
    flags: tuple[str, ...]
    cpu: str

    @property
    def key(self) -> str:
        digest = hashlib.sha256()
        for part in (self.source, *map(repr, (self.compiler, self.version, FLAGS, TUNINGS, self.flags, self.cpu))):
            data = part if isinstance(part, bytes) else part.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()[:16]

    def compile(self, folder: Path, deadline: float) -> Path:
        """The library in this folder, before this time of `time.monotonic`.

        Raises:
            KernelError: if the compiler does not make one.
        """
        built = folder / "kernels.so"
        (folder / "sparse.c").write_bytes(self.source)
        for tuning in TUNINGS:
            code, told = _call([*self.compiler, *FLAGS, *tuning, "-o", built.name, "sparse.c", *self.flags], deadline, folder)
            if code == 0 and built.is_file() and built.stat().st_size:
                return built
        way_out = "set CC to another compiler" + (" or unset SPARCL_KERNEL_FLAGS" if self.flags else "")
        raise KernelError(f"{self.compiler[0]} cannot compile the kernels (exit code {code}: {_gist(told)}): {way_out}")


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
    recipe, deadline = None, time.monotonic() + PATIENCE_S
    try:
        recipe = _recipe(source, deadline)
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
        folder = _own_folder(_cache_folder() if cache is None else Path(cache))
        for file in sorted(folder.glob(f"{recipe.key}-*.so")):
            if not rebuild and library is None and (library := _open_if_sound(file)):
                path = str(file)
            elif library is None:
                file.unlink()  # never overwritten in place: another process may have it mapped
    except OSError as error:
        trouble = _reason(error)
    if library:
        return _backend(library, "found in the cache", path, recipe, 0.0), ""
    with tempfile.TemporaryDirectory(prefix="sparcl-kernels-", ignore_cleanup_errors=True) as place:
        started = time.monotonic()
        built = recipe.compile(Path(place), deadline)
        seconds = time.monotonic() - started
        if folder and not trouble:
            try:
                library, path = _publish(built, folder, recipe.key)
            except OSError as error:
                trouble = _reason(error)
        if library is None:  # it stays mapped when its file is gone, so that a process that is killed leaves none
            try:
                library = _open(built)
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


# -- files


def _cache_folder() -> Path:
    if named := os.environ.get("SPARCL_KERNEL_CACHE"):
        return Path(os.path.expanduser(named))
    if os.path.isabs(above := os.environ.get("XDG_CACHE_HOME", "")):  # the standard has others ignored
        return Path(above, "sparcl", "kernels")
    if os.path.isabs(home := os.environ.get("HOME", "")):
        return Path(home, ".cache", "sparcl", "kernels")
    raise OSError(f"HOME is {os.environ.get('HOME')!r} and no folder; name one with SPARCL_KERNEL_CACHE")


def _own_folder(folder: Path) -> Path:
    """Made if it is not there. OSError if it cannot be, or if somebody else could put code of theirs into it."""
    folder = Path(os.path.realpath(folder))  # what is checked is what is used, wherever a link will point to by then
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        fault = "belongs to another user" if status.st_uid != os.geteuid() else "can be written by other users (`chmod go-w` ends that)"
        raise OSError(f"kernel cache {folder} {fault}; it is not used: name a folder of your own with SPARCL_KERNEL_CACHE")
    return folder


def _publish(built: Path, folder: Path, key: str) -> tuple[ctypes.CDLL, str]:
    """The library from the cache folder, once it is there as a whole. OSError if it cannot be put there or not be loaded from there."""
    data = built.read_bytes()
    final = folder / f"{key}-{_digest(data)}.so"
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
        return _open(final), str(final)
    except (KernelError, OSError) as error:
        with suppress(OSError):
            final.unlink()
        if isinstance(error, KernelError):
            raise
        raise OSError(f"kernel cache {folder} holds nothing that can be loaded ({error}); name another with SPARCL_KERNEL_CACHE") from error


def _open_if_sound(file: Path) -> ctypes.CDLL | None:
    """The loader would end the process with a signal over a file that was cut off: bytes first. OSError if the file is not our own."""
    if _digest(_own_bytes(file)) != file.stem.rpartition("-")[2]:
        return None
    with suppress(KernelError, OSError):
        return _open(file)
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


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]  # a name stays short enough for any file system


def _open(file: Path) -> ctypes.CDLL:
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


# -- the compiler


def _recipe(source: bytes | None, deadline: float) -> Recipe:
    if os.name != "posix":
        raise KernelError(f"kernels are for POSIX systems, and this one is {os.name!r}")
    if source is None:
        try:
            source = resources.files("sparcl_core.kernels").joinpath("sparse.c").read_bytes()
        except OSError:
            source = _installed_source()
    compiler, flags = _compiler(), tuple(_words("SPARCL_KERNEL_FLAGS"))
    code, version = _call([*compiler, "--version"], deadline)  # one that knows no --version may still compile
    return Recipe(source, compiler, f"{code}: {version}", flags, _cpu())


def _installed_source() -> bytes:
    """The sparse.c of the installed package, for Python files that were copied without it: Flower's bundles carry no C files.

    Raises:
        KernelError: if the package is not installed, or its file is another than these Python files were written for.
    """
    from importlib.metadata import distributions

    others = []
    for installed in distributions(name="sparcl-fleet"):
        places = [Path(str(installed.locate_file("")))]
        if url := json.loads(installed.read_text("direct_url.json") or "{}").get("url", "").removeprefix("file://"):
            places.append(Path(unquote(url)))  # of an editable one
        for file in (place / "sparcl_core" / "kernels" / "sparse.c" for place in places):
            with suppress(OSError):
                source = file.read_bytes()
                if hashlib.sha256(source).hexdigest() == SOURCE_SHA256:
                    return source
                others.append(file)
    if others:
        told = f"sparse.c is not beside build.py, and the installed one ({others[0]}) is of another version than these Python files"
        raise KernelError(f"{told}: install the sparcl-fleet that they come from")
    raise KernelError("sparse.c is not beside build.py, and sparcl-fleet is not installed: install it, not its Python files alone")


def _compiler() -> tuple[str, ...]:
    if named := _words("CC"):
        if not (path := shutil.which(named[0])):
            raise KernelError(f"CC is {os.environ['CC']!r} and no program of that name is found: install it, or unset CC")
        return os.path.abspath(path), *named[1:]
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            return (os.path.abspath(path),)
    raise KernelError("no C compiler found: install gcc or clang, or set CC")


def _words(variable: str) -> list[str]:
    try:
        return shlex.split(os.environ.get(variable, ""))
    except ValueError as error:
        raise KernelError(f"{variable} is {os.environ[variable]!r} and cannot be cut into words ({error}): quote as in a shell") from error


def _cpu() -> str:
    """What the instructions of a library depend on; the clock rate and the like, which change from call to call, are not in it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            known = sorted({line.strip() for line in lines if line.partition(":")[0].strip() in CPU_FIELDS})
    except OSError:
        known = []
    return "\n".join([platform.machine(), *(known or [platform.processor()])])


def _call(command: list[str], deadline: float, folder: Path | None = None) -> tuple[int, str]:
    """Exit code and what it printed. KernelError if it cannot be started or is not done in time."""
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # a sanitizer is for us, not for the compiler
    environment["LC_ALL"] = "C"
    piped = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    try:
        process = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **piped)
    except OSError as error:
        raise KernelError(f"{command[0]} cannot be started ({error.strerror}): set CC to another compiler") from error
    with process:
        try:
            told, _ = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
        except BaseException as error:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)  # with what it started, which holds our pipe open
            if isinstance(error, subprocess.TimeoutExpired):
                raise KernelError(f"{command[0]} was not done after {PATIENCE_S:g} s: set CC to another compiler") from error
            raise
    return process.returncode, told.decode(errors="replace")


def _gist(told: str) -> str:
    """The line of a compiler's messages that says most."""
    lines = [line.strip() for line in told.splitlines() if line.strip()] or ["it says nothing"]
    return next((line for line in lines if "error" in line), lines[-1])[:200]


def _reason(error: OSError) -> str:
    if error.errno is None:  # one of ours, or the loader's
        return str(error)
    return f"kernel cache {error.filename or 'folder'} cannot be used ({error.strerror}); name another with SPARCL_KERNEL_CACHE"


def _warn(text: str) -> None:
    global _warned
    with _lock:
        if not text or _warned:
            return
        _warned = True
    warnings.warn(text, RuntimeWarning, stacklevel=3)
