"""The compiler of the kernels: which one there is, what a library depends on, and the library that it makes in a folder."""

import hashlib
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from urllib.parse import unquote

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


def make_recipe(source: bytes | None, deadline: float) -> Recipe:
    if os.name != "posix":
        raise KernelError(f"kernels are for POSIX systems, and this one is {os.name!r}")
    if source is None:
        try:
            source = resources.files("sparcl_core.kernels").joinpath("sparse.c").read_bytes()
        except OSError:
            source = _installed_source()
    compiler, flags = find_compiler(), tuple(_words("SPARCL_KERNEL_FLAGS"))
    code, version = _call([*compiler, "--version"], deadline)  # one that knows no --version may still compile
    return Recipe(source, compiler, f"{code}: {version}", flags, this_cpu())


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


def find_compiler() -> tuple[str, ...]:
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


def this_cpu() -> str:
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
