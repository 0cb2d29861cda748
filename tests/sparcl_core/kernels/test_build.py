"""Kernels that are compiled, found, damaged, or not to be had: a library that works or dense products, never a crash."""

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
import tomllib
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from sparcl_core.kernels import build, compiler, library
from sparcl_core.kernels.build import KernelError, Recipe, backend, choose, load

SMALL = b"#include <stdint.h>\nint32_t sparcl_abi(void) { return %d; }\nint32_t sparcl_vector_floats(void) { return 4; }\n" % library.ABI
OTHER = SMALL + b"int32_t other(void) { return 2; }\n"
ROOT = Path(__file__).parents[3]

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler here")


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """As in a process that has just begun, with a home folder of its own. Gives the cache folder."""
    for name in ("CC", "XDG_CACHE_HOME", "SPARCL_KERNELS", "SPARCL_KERNEL_FLAGS"):
        monkeypatch.delenv(name, raising=False)
    cache = tmp_path / "cache"
    for name, folder in (("HOME", tmp_path / "home"), ("SPARCL_KERNEL_CACHE", cache), ("TMPDIR", tmp_path / "tmp")):
        monkeypatch.setenv(name, str(folder))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(build, "_warned", False)
    monkeypatch.setattr(build, "_chosen", None)
    return cache


@pytest.fixture
def small(monkeypatch):
    """`choose` and `backend` compile the small source."""
    true = build.make_recipe
    monkeypatch.setattr(build, "make_recipe", lambda source, deadline: true(SMALL if source is None else source, deadline))


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def quiet(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load(*args, **options)


def load_elsewhere(**environment: str) -> tuple[int, str]:
    """In a process of its own: the loader knows a library by its name as long as a process has it, whatever lies there by then."""
    code = f"from sparcl_core.kernels.build import load; b = load(source={SMALL!r}); print(b.library.sparcl_vector_floats(), b.path)"
    environment = {**os.environ, "PYTHONWARNINGS": "error", **environment}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    floats, path = done.stdout.split()
    return int(floats), path


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def assert_small(found) -> None:
    assert found.library.sparcl_abi() == library.ABI and found.library.sparcl_vector_floats() == 4
    assert found.name in ("sse", "neon", "simd4") and os.path.isabs(found.compiler)


def assert_dense(found, *parts: str) -> None:
    assert (found.library, found.name, found.path, found.seconds) == (None, "dense", "", 0.0)
    assert "\n" not in found.reason
    for part in parts:
        assert part in found.reason


def left_in_temporary(tmp_path) -> list[Path]:
    return [path for path in (tmp_path / "tmp").iterdir() if path.name.startswith("sparcl")]


# -- built and found


@needs_compiler
def test_the_first_load_compiles_and_the_second_finds(fresh, tmp_path):
    first = quiet(source=SMALL)
    assert_small(first)
    assert first.seconds > 0 and first.reason == "compiled for this CPU"
    assert files(fresh) == [Path(first.path)] and stat.S_IMODE(fresh.stat().st_mode) == 0o700
    second = quiet(source=SMALL)
    assert_small(second)
    assert replace(second, library=None) == replace(first, library=None, reason="found in the cache", seconds=0.0)
    assert left_in_temporary(tmp_path) == []


@needs_compiler
def test_the_source_of_the_package_compiles_and_has_our_abi(tmp_path):
    found = quiet()
    assert found.library is not None and found.name in ("avx512", "avx2", "sse", "neon", "simd4")
    assert 0 < found.seconds < compiler.PATIENCE_S


@needs_compiler
def test_rebuild_compiles_again_and_a_library_in_use_goes_on_working(fresh):
    first = quiet(source=SMALL)
    inode = Path(first.path).stat().st_ino
    again = quiet(source=SMALL, rebuild=True)
    assert again.seconds > 0 and Path(again.path).stat().st_ino != inode and len(files(fresh)) == 1
    assert_small(first)
    assert_small(again)


@needs_compiler
def test_where_the_cache_is(tmp_path, monkeypatch):
    assert Path(quiet(tmp_path / "given", SMALL).path).parent == tmp_path / "given"
    assert Path(quiet(source=SMALL).path).parent == tmp_path / "cache"
    monkeypatch.delenv("SPARCL_KERNEL_CACHE")
    assert Path(quiet(source=SMALL).path).parent == tmp_path / "home/.cache/sparcl/kernels"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert Path(quiet(source=SMALL).path).parent == tmp_path / "xdg/sparcl/kernels"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert Path(quiet(source=SMALL).path).parent == tmp_path / "home/.cache/sparcl/kernels"


def test_all_that_a_library_depends_on_is_in_the_key():
    recipe = Recipe(SMALL, ("/usr/bin/cc",), "cc 12", (), "x86_64")
    others = [
        replace(recipe, source=OTHER),
        replace(recipe, compiler=("/usr/bin/clang",)),
        replace(recipe, compiler=("/usr/bin/cc", "-m32")),
        replace(recipe, version="cc 13"),
        replace(recipe, flags=("-O1",)),
        replace(recipe, flags=("-O", "1")),
        replace(recipe, cpu="aarch64"),
    ]
    assert replace(recipe).key == recipe.key and len({one.key for one in [recipe, *others]}) == len(others) + 1


def test_the_key_tells_processors_apart(monkeypatch):
    before = compiler.this_cpu()
    assert compiler.this_cpu() == before and "MHz" not in before
    monkeypatch.setattr("platform.machine", lambda: "abacus")
    assert compiler.this_cpu() != before


@needs_compiler
def test_another_source_compiler_or_flag_gives_a_library_of_its_own(fresh, tmp_path, monkeypatch):
    paths = [quiet(source=SMALL).path, quiet(source=OTHER).path]
    monkeypatch.setenv("SPARCL_KERNEL_FLAGS", "-DNAME='a b'")
    paths.append(quiet(source=SMALL).path)
    monkeypatch.setenv("CC", script(tmp_path / "mycc", f'exec {compiler.find_compiler()[0]} "$@"'))
    found = quiet(source=SMALL)
    assert found.compiler == str(tmp_path / "mycc")
    assert len({*paths, found.path}) == 4 == len(files(fresh))


@needs_compiler
def test_flags_come_after_ours_and_reach_the_source(monkeypatch):
    source = SMALL.replace(b"return 4", b"return N") + b"#ifdef __OPTIMIZE__\n#error\n#endif\n"
    monkeypatch.setenv("SPARCL_KERNEL_FLAGS", "-O0 '-DN=4 + 4'")
    assert quiet(source=source).library.sparcl_vector_floats() == 8
    monkeypatch.setenv("SPARCL_KERNEL_FLAGS", "-DN=8")
    with pytest.warns(RuntimeWarning):
        assert_dense(load(source=source), "#error", "set CC to another compiler or unset SPARCL_KERNEL_FLAGS")


@needs_compiler
def test_a_compiler_that_knows_no_march_is_asked_in_other_ways(tmp_path, monkeypatch):
    real, log = compiler.find_compiler()[0], tmp_path / "log"
    refuse = 'case "$*" in *march=native*|*mcpu=native*) echo "unknown option" >&2; exit 1;; esac'
    monkeypatch.setenv("CC", script(tmp_path / "old", f'echo "$*" >> {log}\n{refuse}\nexec {real} "$@"'))
    assert_small(quiet(source=SMALL))
    assert ["-march=native" in line for line in log.read_text().splitlines()] == [False, True, False, False]  # --version first


@pytest.mark.parametrize(
    ("floats", "machine", "name"),
    [
        (16, "x86_64", "avx512"),
        (8, "AMD64", "avx2"),
        (4, "x86_64", "sse"),
        (4, "aarch64", "neon"),
        (4, "arm64", "neon"),
        (4, "ppc64le", "simd4"),
    ],
)
def test_names_of_vectors(floats, machine, name):
    assert build._name(floats, machine) == name


def test_nothing_heavy_is_imported():
    code = "import sys, sparcl_core.kernels.build; assert not {'torch', 'numpy', 'flwr', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_source_is_installed_with_the_package():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["sparcl_core.kernels"]
    assert any((ROOT / "sparcl_core/kernels").glob(patterns[0])) and Path("sparse.c").match(patterns[0])


# -- several at once


@needs_compiler
def test_processes_that_build_at_once_do_not_disturb_each_other(fresh, tmp_path, monkeypatch):
    """The compiler waits until all three have called it, so that all of them build."""
    wait = f"touch {tmp_path}/called.$$; while [ $(ls {tmp_path} | grep -c called) -lt 3 ]; do sleep 0.02; done"
    slow = script(tmp_path / "slow", f'[ "$1" = --version ] || {{ {wait}; }}; exec {compiler.find_compiler()[0]} "$@"')
    code = f"from sparcl_core.kernels.build import load; b = load(source={SMALL!r}); print(b.library.sparcl_abi(), b.seconds > 0, b.path)"
    environment = {**os.environ, "CC": slow, "PYTHONWARNINGS": "error"}
    running = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    told = [process.communicate()[0].split() for process in running]
    assert all(process.returncode == 0 for process in running) and all(one[:2] == [str(library.ABI), "True"] for one in told)
    monkeypatch.setenv("CC", slow)
    found = quiet(source=SMALL)
    assert found.seconds == 0 and {one[2] for one in told} >= {found.path}
    assert all(path.suffix == ".so" for path in files(fresh))


@needs_compiler
def test_a_compiler_whose_bytes_differ_each_time_does_no_harm(fresh, tmp_path, monkeypatch):
    """What two processes write can differ, e.g. by a time stamp; both libraries stay whole."""
    monkeypatch.setenv(
        "CC", script(tmp_path / "stamps", f'{compiler.find_compiler()[0]} "$@" && if [ -f kernels.so ]; then date +%N >> kernels.so; fi')
    )
    recipe = build.make_recipe(SMALL, time.monotonic() + compiler.PATIENCE_S)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        fresh.mkdir(mode=0o700, exist_ok=True)
        library.publish(recipe.compile(tmp_path / name, time.monotonic() + compiler.PATIENCE_S), fresh, recipe.key)
    assert len(files(fresh)) == 2
    assert quiet(source=SMALL).seconds == 0 and len(files(fresh)) == 2


def test_backend_is_chosen_once_by_many_threads(monkeypatch):
    chosen, start = [], threading.Barrier(8)

    def slowly():
        time.sleep(0.05)
        chosen.append(object())
        return chosen[-1]

    def ask(_):
        start.wait()
        return backend()

    monkeypatch.setattr(build, "choose", slowly)
    with ThreadPoolExecutor(8) as pool:
        assert {id(found) for found in pool.map(ask, range(8))} == {id(chosen[0])} and len(chosen) == 1


# -- damaged files


DAMAGES = {
    "empty": lambda data: b"",
    "cut off": lambda data: data[: len(data) // 2],
    "one byte short": lambda data: data[:-1],
    "a header only": lambda data: data[:64],
    "one bit": lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
    "random": lambda data: b"\x7fELF" + bytes(i * 197 % 256 for i in range(len(data))),
    "a page": lambda data: b"<!DOCTYPE html><html><body>Please log in</body></html>",
}


@needs_compiler
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_library_is_built_again(fresh, damage):
    path = Path(load_elsewhere()[1])
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    again = quiet(source=SMALL)
    assert_small(again)
    assert again.seconds > 0 and files(fresh) == [Path(again.path)]
    assert library.digest_of(Path(again.path).read_bytes()) == Path(again.path).stem[-32:]
    assert load_elsewhere() == (4, again.path)


@needs_compiler
def test_a_file_whose_digest_is_right_but_which_is_no_library_is_built_again(fresh):
    """Also what another processor architecture left, if two of them ever had one key."""
    path = Path(load_elsewhere()[1])
    path.unlink()
    (fresh / f"{path.name.split('-')[0]}-{library.digest_of(b'no library')}.so").write_bytes(b"no library")
    again = quiet(source=SMALL)
    assert_small(again)
    assert again.seconds > 0 and files(fresh) == [Path(again.path)]


@needs_compiler
def test_a_folder_in_the_place_of_a_library_costs_the_cache_only(fresh):
    path = Path(load_elsewhere()[1])
    path.unlink()
    path.mkdir()
    with pytest.warns(RuntimeWarning, match="cannot be used"):
        assert_small(load(source=SMALL))


# -- no cache folder


def assert_in_a_temporary_folder(tmp_path, *parts: str) -> None:
    with pytest.warns(RuntimeWarning) as told:
        found = load(source=SMALL)
        assert_small(load(source=SMALL))
    assert_small(found)
    assert found.path == "" and found.seconds > 0 and left_in_temporary(tmp_path) == []
    (warning,) = told
    for part in (*parts, "compiled again by every process", "SPARCL_KERNEL_CACHE"):
        assert part in str(warning.message)
    assert "in a temporary folder" in found.reason


@needs_compiler
def test_a_cache_that_is_a_file(fresh, tmp_path):
    fresh.write_text("kept")
    assert_in_a_temporary_folder(tmp_path, str(fresh), "File exists")
    assert fresh.read_text() == "kept"


@needs_compiler
def test_a_cache_below_a_file(fresh, tmp_path, monkeypatch):
    fresh.write_text("kept")
    monkeypatch.setenv("SPARCL_KERNEL_CACHE", str(fresh / "kernels"))
    assert_in_a_temporary_folder(tmp_path, str(fresh), "Not a directory")


@needs_compiler
@pytest.mark.parametrize("home", [None, "", "not/absolute"])
def test_no_home(tmp_path, monkeypatch, home):
    monkeypatch.delenv("SPARCL_KERNEL_CACHE")
    monkeypatch.delenv("HOME") if home is None else monkeypatch.setenv("HOME", home)
    assert_in_a_temporary_folder(tmp_path, f"HOME is {home!r}")


@needs_compiler
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o720, 0o702])
def test_a_cache_that_others_can_write_to_is_not_used(fresh, tmp_path, mode):
    path = quiet(source=SMALL).path
    os.chmod(fresh, mode)
    assert_in_a_temporary_folder(tmp_path, str(fresh), "can be written by other users", "chmod go-w")
    os.chmod(fresh, 0o755)
    assert quiet(source=SMALL).path == path


def to_a_link(path: Path) -> None:
    path.rename(path.parents[1] / path.name)
    path.symlink_to(path.parents[1] / path.name)


def to_somebody_else(path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    os.chown(path, 12345, -1)


@needs_compiler
@pytest.mark.parametrize(
    ("make", "part"),
    [
        (to_a_link, "is a link"),
        (to_somebody_else, "belongs to another user"),
        (lambda path: path.chmod(0o777), "can be written by other users"),
        (lambda path: path.chmod(0o620), "can be written by other users"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "is no file"),
    ],
    ids=["link", "owner", "mode", "group", "pipe"],
)
def test_a_library_that_is_not_our_own_is_neither_loaded_nor_touched(fresh, tmp_path, make, part):
    """Its name and its digest are right: whoever can write it can see to that."""
    path = Path(load_elsewhere()[1])
    make(path)
    before = path.lstat()
    assert_in_a_temporary_folder(tmp_path, str(path), part, "cannot be used")
    after = path.lstat()
    assert (after.st_mode, after.st_uid, after.st_mtime_ns) == (before.st_mode, before.st_uid, before.st_mtime_ns)


@needs_compiler
def test_a_cache_of_somebody_else_is_not_used(fresh, tmp_path, monkeypatch):
    quiet(source=SMALL)
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    assert_in_a_temporary_folder(tmp_path, str(fresh), "belongs to another user")


@needs_compiler
def test_a_link_to_a_cache_that_others_can_write_to_is_not_used(fresh, tmp_path):
    (tmp_path / "open").mkdir()
    os.chmod(tmp_path / "open", 0o777)
    fresh.symlink_to(tmp_path / "open")
    assert_in_a_temporary_folder(tmp_path, str(tmp_path / "open"), "can be written by other users")
    assert files(tmp_path / "open") == []


@needs_compiler
@pytest.mark.parametrize(
    ("options", "part"),
    [("size=4k", "No space left"), ("ro", "Read-only file system"), ("noexec", "nothing that can be loaded")],
    ids=["full", "read-only", "noexec"],
)
def test_a_device_that_is_full_or_refuses(fresh, options, part):
    """A real one, in a mount namespace of its own."""
    fresh.mkdir()
    enter = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o "mode=700,$0" none "$1" && shift && exec "$@"', options, str(fresh)]
    if not shutil.which("unshare") or subprocess.run([*enter, "true"], capture_output=True).returncode:
        pytest.skip("needs root and unshare")
    code = (
        "import os; from sparcl_core.kernels.build import load; "
        f"b = load(source={SMALL!r}); print(b.library.sparcl_abi(), b.path, os.listdir({str(fresh)!r}))"
    )
    done = subprocess.run([*enter, sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == f"{library.ABI}  []\n", done.stderr
    assert done.stderr.count("RuntimeWarning") == 1 and part in done.stderr and "name another with SPARCL_KERNEL_CACHE" in done.stderr


def test_no_temporary_folder_is_no_crash(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("CC", script(tmp_path / "cc", "exit 0"))
    monkeypatch.setattr("tempfile.TemporaryDirectory", full)
    with pytest.warns(RuntimeWarning, match="set TMPDIR"):
        assert_dense(load(source=SMALL), "No space left", "set TMPDIR")


# -- no compiler


def test_no_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.warns(RuntimeWarning, match="dense products stand in for the sparse kernels: no C compiler found"):
        found = load(source=SMALL)
    assert_dense(found)
    assert (found.reason, found.compiler) == ("no C compiler found: install gcc or clang, or set CC", "")


@needs_compiler
def test_cc_may_have_arguments_and_an_empty_one_is_none(monkeypatch):
    real = compiler.find_compiler()
    monkeypatch.setenv("CC", f"{real[0]} -DX='a b'")
    assert compiler.find_compiler() == (*real, "-DX=a b")
    assert_small(quiet(source=SMALL))
    monkeypatch.setenv("CC", " ")
    assert compiler.find_compiler() == real


@pytest.mark.parametrize("name", ["cc", "gcc", "clang"])
def test_the_first_compiler_that_is_there(tmp_path, monkeypatch, name):
    script(tmp_path / name, "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compiler.find_compiler() == (str(tmp_path / name),)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("exit 1", ("exit code 1", "it says nothing", "set CC to another compiler")),
        ("exit 0", ("cannot compile",)),
        ("echo Segmentation fault; kill -SEGV $$", ("exit code -11", "Segmentation fault")),
        ("echo line; echo 'sparse.c:1: error: no luck' >&2; echo more; exit 1", ("sparse.c:1: error: no luck",)),
        ("[ $1 = --version ] || head -c 9999 /dev/urandom > kernels.so", ("cannot be loaded", "set CC to another compiler")),
        ("[ $1 = --version ] || echo '<html>' > kernels.so", ("cannot be loaded",)),
        ("printf '\\377\\376'; exit 3", ("exit code 3",)),
    ],
)
def test_a_broken_compiler(fresh, tmp_path, monkeypatch, text, parts):
    monkeypatch.setenv("CC", script(tmp_path / "broken", text))
    with pytest.warns(RuntimeWarning) as told:
        found = load(source=SMALL)
    assert len(told) == 1
    assert_dense(found, str(tmp_path / "broken"), *parts)
    assert found.compiler == str(tmp_path / "broken") and files(fresh) == [] == left_in_temporary(tmp_path)


def test_a_compiler_that_is_no_program(tmp_path, monkeypatch):
    (tmp_path / "data").write_bytes(b"\x00\x01")
    (tmp_path / "data").chmod(0o755)
    for named, part in (
        (tmp_path / "data", "cannot be started"),
        (tmp_path / "nothing", "no program of that name"),
        ("'", "quote as in a shell"),
    ):
        monkeypatch.setenv("CC", str(named))
        monkeypatch.setattr(build, "_warned", False)
        with pytest.warns(RuntimeWarning, match=part):
            assert_dense(load(source=SMALL), part)


def test_a_compiler_that_hangs_is_ended_with_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(compiler, "PATIENCE_S", 0.5)
    monkeypatch.setenv("CC", script(tmp_path / "hangs", f"sleep 120 & echo $! > {tmp_path}/pid; wait"))
    started = time.monotonic()
    with pytest.warns(RuntimeWarning, match="was not done after 0.5 s"):
        assert_dense(load(source=SMALL), "not done after 0.5 s")
    assert time.monotonic() - started < 60
    state, give_up = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat"), time.monotonic() + 60

    def is_running() -> bool:
        try:
            return state.read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:  # it is gone
            return False

    while is_running() and time.monotonic() < give_up:
        time.sleep(0.05)  # it has got its signal, and ends when its turn comes
    assert not is_running()


@needs_compiler
@pytest.mark.parametrize(
    ("source", "part"),
    [
        (b"int x = ;", "error"),
        (b"int x;", "not one of sparcl's kernels"),
        (SMALL.replace(b"return %d" % library.ABI, b"return 7"), "ABI 7 "),
        (SMALL.replace(b"return 4", b"return 3"), "vectors of 3 floats"),
        (SMALL + b"int nowhere(void); int f(void) { return nowhere(); }\n", "cannot be loaded"),
    ],
    ids=["no C", "no functions", "ABI", "vectors", "unresolved"],
)
def test_a_source_that_is_not_right_leaves_nothing(fresh, source, part):
    with pytest.warns(RuntimeWarning):
        assert_dense(load(source=source), part)
    assert files(fresh) == []


def test_a_source_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    monkeypatch.setattr("importlib.metadata.distributions", lambda **named: [])
    with pytest.warns(RuntimeWarning):
        assert_dense(load(), "sparse.c is not beside build.py, and sparcl-fleet is not installed", "install it")


def test_the_source_is_the_one_that_belongs_to_the_python_files():
    """Whoever changes sparse.c changes this number with it: a bundle of Python files takes no other one."""
    assert hashlib.sha256((ROOT / "sparcl_core/kernels/sparse.c").read_bytes()).hexdigest() == compiler.SOURCE_SHA256


def installed(folder: Path, source: bytes, *, is_editable: bool) -> Path:
    """A folder of packages in which sparcl-fleet is installed with this sparse.c, as the installers write it."""
    packages, project = folder / "packages", folder / "a project"
    info, root = packages / "sparcl_fleet-0.1.0.dist-info", project if is_editable else packages
    (root / "sparcl_core" / "kernels").mkdir(parents=True)
    (root / "sparcl_core" / "kernels" / "sparse.c").write_bytes(source)
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sparcl-fleet\nVersion: 0.1.0\n")
    (info / "RECORD").write_text("")
    if is_editable:
        (info / "direct_url.json").write_text(json.dumps({"url": project.as_uri(), "dir_info": {"editable": True}}))
    return packages


@needs_compiler
@pytest.mark.parametrize("is_editable", [False, True], ids=["installed", "editable"])
@pytest.mark.parametrize("is_same", [True, False], ids=["same", "other"])
def test_a_bundle_of_python_files_takes_the_installed_source_if_it_is_the_right_one(fresh, tmp_path, is_editable, is_same):
    """As under `flwr run`, where the packages' Python files lie in a folder of their own that comes first in the path."""
    source = (ROOT / "sparcl_core/kernels/sparse.c").read_bytes() if is_same else OTHER
    bundle, packages = tmp_path / "bundle", installed(tmp_path, source, is_editable=is_editable)
    for file in (ROOT / "sparcl_core").rglob("*.py"):
        to = bundle / file.relative_to(ROOT)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, to)
    code = "import sparcl_core.kernels.build as build; b = build.load(); print(build.__file__, b.library is not None, b.reason, sep='|')"
    environment = {**os.environ, "PYTHONPATH": f"{bundle}:{packages}"}
    command = [sys.executable, "-S", "-c", code]  # -S: the environment's own installation stays out
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    where, has_library, reason = done.stdout.strip().split("|")
    assert Path(where).is_relative_to(bundle) and has_library == str(is_same)
    if not is_same:
        assert "is of another version than these Python files: install the sparcl-fleet that they come from" in reason
        assert "dense products stand in for the sparse kernels" in done.stderr


# -- what is asked for


@needs_compiler
@pytest.mark.parametrize("wanted", [None, "", "sparse"])
def test_kernels_are_taken_where_they_can_be_had(small, monkeypatch, wanted):
    if wanted is not None:
        monkeypatch.setenv("SPARCL_KERNELS", wanted)
    assert_small(backend())
    assert backend() is backend()


def test_dense_products_can_be_asked_for(fresh, monkeypatch):
    monkeypatch.setenv("SPARCL_KERNELS", "dense")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_dense(backend(), "SPARCL_KERNELS is 'dense'")
    assert not fresh.exists()


def test_kernels_that_are_asked_for_and_cannot_be_had_are_an_error(monkeypatch):
    monkeypatch.setenv("SPARCL_KERNELS", "sparse")
    monkeypatch.setenv("CC", "/bin/false")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(
                KernelError, match="SPARCL_KERNELS is 'sparse' and there are no kernels: /bin/false cannot.*unset SPARCL_KERNELS"
            ):
                backend()
    assert issubclass(KernelError, RuntimeError)


@pytest.mark.parametrize("wanted", ["Sparse", "auto", "1"])
def test_another_value_is_refused(monkeypatch, wanted):
    monkeypatch.setenv("SPARCL_KERNELS", wanted)
    with pytest.raises(ValueError, match=f"SPARCL_KERNELS is '{wanted}'.*'sparse'.*'dense'.*unset"):
        choose()


def test_a_process_warns_once(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "/bin/false")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            assert_dense(backend())
            assert_dense(load(tmp_path, SMALL))
    assert [one.category for one in told] == [RuntimeWarning]
