"""Whatever lies in and beside a store or a run's folder: what is ours goes when it should, everything else stays as it was."""

import os
import shutil
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worlds import tiny

from simulations import disk
from simulations.disk import LinkRefused, delete, flush, make_folder, put
from simulations.engine.files import FsspecFiles, LocalFiles, StoreError, StoreLinked, open_files
from simulations.engine.parcel import Parcel
from simulations.engine.store import SHARED_BYTES, StateStore
from simulations.results.control_file import How
from simulations.results.resumable import give_up, new_run, open_run

BLOB = "ab" * 16
OWN_FILES = (  # in a store
    "states/05/5-6", "states/05/5-7.0123456789abcdef.tmp", "states/2c/300-12", f"blobs/ab/{BLOB}", f"blobs/ab/{BLOB}.0123456789abcdef.tmp",
    "states/probe-0123456789abcdef",
)  # fmt: skip
FOREIGN = (  # much like ours, but not ours
    "thesis.tex", "states/thesis.tex", "states/05/thesis.tex", "states/05/5-6.txt", "states/05/5-6.tmp", "states/5/5-6", "states/05/-6",
    "states/05/5-6.0123456789abcdef.tmp.bak", "states/05/a/5-6", "blobs/ab/abcd", f"blobs/{BLOB}", f"blobs/AB/{BLOB}", f"Blobs/ab/{BLOB}",
    "states/probe", "devices/run/states/05/5-6", "states/05/5-6\n", "states/05/٥-٦",
)  # fmt: skip
# what lies under a name: a file, an empty folder, a folder with a file in it, a link to a file, to a folder, or to nowhere
kinds = st.sampled_from(["file", "empty folder", "folder", "link to a file", "link to a folder", "link to nowhere"])
files_of = st.dictionaries(st.sampled_from(OWN_FILES), st.sampled_from(["file", "link to a file", "link to a folder", "link to nowhere"]))
others_of = st.dictionaries(st.sampled_from(FOREIGN), kinds)


def lay(path: Path, kind: str, beside: Path) -> None:
    """Put something under this name. `beside`: a folder that links lead to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "file":
        path.write_text(f"content of {path.name}")
    elif kind.endswith("folder") and not kind.startswith("link"):
        path.mkdir(parents=True)
        if kind == "folder":
            (path / "inside").write_text("content")
    else:
        path.symlink_to({"link to a file": beside / "precious", "link to a folder": beside, "link to nowhere": beside / "x"}[kind])


def everything(folder: Path) -> dict[str, str]:
    """Relative path -> what lies there; nothing is followed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        kind = f"link to {os.readlink(path)}" if path.is_symlink() else "folder" if path.is_dir() else repr(path.read_bytes())
        found[str(path.relative_to(folder))] = kind
    return found


def precious(tmp_path_factory) -> tuple[Path, Path]:
    """A folder for the test, and one beside it that looks like a store and a run, too."""
    here, beside = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("beside")
    for name in ("precious", "states/05/5-6", f"blobs/ab/{BLOB}", BLOB, "5-6", "run/states/05/5-6", "state-3.safetensors", "run.json"):
        lay(beside / name, "file", beside)
    return here, beside


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=50)
@given(files_of, others_of, st.booleans(), st.booleans())
def test_a_store_deletes_its_own_names_and_nothing_else(tmp_path_factory, own, others, by_fsspec, destroys):
    root, beside = precious(tmp_path_factory)
    names = {**own, **others}
    for name, kind in names.items():
        lay(root / name, kind if not by_fsspec else kind.removeprefix("link to a ").replace("link to nowhere", "file"), beside)
    own = {name for name in own if (root / name).is_symlink() or not (root / name).is_dir()}
    expected, outside = everything(root), everything(beside)
    files = FsspecFiles(f"file://{root}") if by_fsspec else LocalFiles(str(root))  # the former for backends with folders
    assert set(files.keys()) == own
    store = StateStore(files)
    store.destroy() if destroys else store.keep_only(set(), set())
    left = everything(root) if root.exists() else {}
    expected = {name: kind for name, kind in expected.items() if name not in own}
    gone = expected.keys() - left.keys()
    assert all(expected[name] == "folder" and name.split("/")[0] in ("states", "blobs") for name in gone)  # empty ones of ours
    assert left == {name: kind for name, kind in expected.items() if name not in gone}
    assert everything(beside) == outside


@pytest.mark.parametrize("where", ["states", "blobs", "states/05", "blobs/ab"])
def test_a_link_in_the_place_of_a_folder_is_refused_before_anything_is_deleted(tmp_path_factory, where):
    root, beside = precious(tmp_path_factory)
    store = StateStore(open_files(str(root)))
    store.put(1, 1, Parcel(b"x", (b"y" * SHARED_BYTES,)))
    (root / where).parent.mkdir(exist_ok=True)
    shutil.rmtree(root / where, ignore_errors=True)
    (root / where).symlink_to(beside / where)
    inside, outside = everything(root), everything(beside)
    for action in (store.destroy, lambda: store.keep_only(set(), set()), lambda: open_files(str(root))):
        with pytest.raises(StoreLinked, match=f"{root / where} is a link, and would be followed: put the folder itself in its place"):
            action()
    with pytest.raises(StoreLinked, match="is a link or no folder"):
        store.drop([(5, 6)], [BLOB])
    assert (everything(root), everything(beside)) == (inside, outside)


def test_a_path_that_leads_to_the_store_may_have_links(tmp_path):
    """They are the user's own, as on many a cluster."""
    (tmp_path / "large").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "large")
    store = StateStore(open_files(f"{tmp_path}/link/id/run", own_parts=2))
    store.put(1, 1, Parcel(b"x", ()))
    assert (tmp_path / "large/id/run/states/01/1-1").exists()
    store.destroy()
    (tmp_path / "large/id/run").symlink_to(tmp_path)
    for url in (f"{tmp_path}/link/id/run", f"file://{tmp_path}/link/id/run"):
        with pytest.raises(StoreLinked, match="id/run is a link"):
            open_files(url, own_parts=2)


# -- a run's folder

RUN_FILES = (
    "summary.json", "model.safetensors", "report.png", "checkpoint/run/state-3.safetensors", "checkpoint/run/latest.json",
    "checkpoint/twin/previous.json.new", "checkpoint/run/journal/17.safetensors", "devices/run/states/05/5-6",
    f"devices/twin/blobs/ab/{BLOB}",
)  # fmt: skip
RUN_FOREIGN = (
    "notes.txt", "summary.json.bak", "checkpoint/notes.txt", "checkpoint/best/state-3.safetensors", "checkpoint/run/journal/a.safetensors",
    "checkpoint/run/state-best.safetensors", "devices/notes.txt", "devices/run/notes.txt", "devices/run/states/05/notes.txt", "data/x",
    ".git",
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=50)
@given(
    st.dictionaries(st.sampled_from(RUN_FILES), st.sampled_from(["file", "link to a file", "link to a folder", "link to nowhere"])),
    st.dictionaries(st.sampled_from(RUN_FOREIGN), kinds),
    st.sampled_from(["forget", "failure", "finish"]),
)
def test_a_run_deletes_its_own_names_and_nothing_else(tmp_path_factory, own, others, how):
    out, beside = precious(tmp_path_factory)
    if how == "failure":  # a pointer that cannot be read is not taken for none: such a run stays, see test_unfinished
        own.pop("checkpoint/run/latest.json", None)
    names = {**own, **others}
    if how == "failure":
        with pytest.raises(KeyboardInterrupt) as failed, new_run(out, tiny(), How("inline", False)) as run:
            for name in names:
                lay(run.folder / name, names[name], beside)
            outside, expected = everything(beside), everything(run.folder)
            raise KeyboardInterrupt
        said = getattr(failed.value, "__notes__", [""])[0]
    else:
        with new_run(out, tiny(), How("inline", False)) as run:
            pass
        for name in names:
            lay(run.folder / name, names[name], beside)
        outside, expected = everything(beside), everything(run.folder)
        with open_run(run.folder) as run:
            said = give_up(run) if how == "forget" else run.finish() or ""
    mine = {"run.json", "config.toml", *own}
    if how == "finish":  # results stay
        mine -= {"config.toml", "summary.json", "model.safetensors", "report.png"}
    left = everything(run.folder) if run.folder.exists() else {}
    expected = {name: kind for name, kind in expected.items() if name not in mine}
    gone = expected.keys() - left.keys()
    assert all(expected[name] == "folder" and name.split("/")[0] in ("checkpoint", "devices") for name in gone)
    assert left == {name: kind for name, kind in expected.items() if name not in gone}
    assert everything(beside) == outside
    if how != "finish":
        assert all(name.split("/")[0] in said for name in left) and (run.folder.exists() == bool(left))


LINKED = (
    "checkpoint", "checkpoint/run", "checkpoint/run/journal", "devices", "devices/run", "devices/run/states", "devices/run/blobs",
    "devices/run/states/05",
)  # fmt: skip


@pytest.mark.parametrize("where", LINKED)
def test_a_run_with_a_link_in_the_place_of_a_folder_is_refused_whole(tmp_path_factory, where):
    """Resumed, forgotten, finished or failed."""
    out, beside = precious(tmp_path_factory)
    with new_run(out, tiny(), How("inline", False)) as run:
        pass
    (run.folder / where).parent.mkdir(parents=True, exist_ok=True)
    (run.folder / where).symlink_to(beside)
    inside, outside = everything(run.folder), everything(beside)
    for action in (lambda run: pytest.fail("the block must not run"), give_up):
        with pytest.raises(LinkRefused, match=f"{run.folder / where} is a link"), open_run(run.folder) as opened:
            action(opened)
    for action in (run.forget, run.finish):
        with pytest.raises((LinkRefused, StoreError), match=f"{run.folder / where} is a link"):
            action()
    assert everything(beside) == outside
    assert inside.keys() - everything(run.folder).keys() <= {"run.json"}  # finish has renamed it


def test_a_failure_that_meets_a_link_says_so_and_deletes_nothing(tmp_path_factory):
    out, beside = precious(tmp_path_factory)
    outside = everything(beside)
    with pytest.raises(KeyboardInterrupt) as failed, new_run(out, tiny(), How("inline", False)) as run:
        (run.folder / "devices").symlink_to(beside)
        raise KeyboardInterrupt
    assert run.folder.exists() and everything(beside) == outside
    assert failed.value.__notes__ == [
        f"{run.folder} is left behind: {run.folder}/devices is a link, and would be followed: put the folder itself in its place"
    ]


# -- the tools


def test_what_is_put_replaces_a_link_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "thesis").write_text("years of work")
    for make in (os.symlink, os.link):
        make(tmp_path / "thesis", tmp_path / "ours")
        put(tmp_path / "ours", [b"a", b"b"])
        assert (tmp_path / "ours").read_bytes() == b"ab" and (tmp_path / "thesis").read_text() == "years of work"
        (tmp_path / "ours").unlink()


def test_deleting_what_is_not_there_is_no_error(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b").touch()
    delete(tmp_path, ["a/b", "a/c", "d/e", "f", "a"])
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]
    delete(tmp_path / "nowhere", ["a"])


def test_flushing_reaches_every_file_and_folder(tmp_path, monkeypatch):
    flushed, true = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda held: (flushed.append(os.readlink(f"/proc/self/fd/{held}")), true(held)))
    paths = [tmp_path / str(number) for number in range(100)]
    for path in paths:
        path.touch()
    flush([*paths, tmp_path])
    assert sorted(flushed) == sorted(map(str, [*paths, tmp_path]))
    flushed.clear()
    make_folder(tmp_path / "a/b/c")
    assert sorted(flushed) == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a/b")]
    make_folder(tmp_path / "a/b/c")
    with pytest.raises(FileNotFoundError):
        flush([tmp_path / "x", tmp_path / "y"])


def test_a_disk_that_cannot_flush_a_folder_will_do_and_one_that_is_broken_will_not(tmp_path, monkeypatch):
    def fail(number):
        def fsync(held):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fsync)

    fail(22)
    flush([tmp_path])
    fail(5)
    with pytest.raises(OSError, match="Input/output error"):
        flush([tmp_path])


def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"kept")
    assert disk.read(tmp_path / "file") == b"kept"
    for wrong in ("pipe", "", "nowhere"):
        with pytest.raises(OSError):
            disk.read(tmp_path / wrong)
    with pytest.raises(OSError, match="no ordinary file"):
        LocalFiles(str(tmp_path)).read("pipe")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_files_are_flushed_waits_until_all_are(tmp_path, monkeypatch, number):
    """It was seen once that a Ctrl-C between two steps of the pool of threads left a lock taken: the process hung for ever."""
    paths, flushed, real = [tmp_path / f"{place}" for place in range(40)], [], disk._flush
    for path in paths:
        path.write_text("x")

    def flush(path):
        os.kill(os.getpid(), number)
        real(path)
        flushed.append(path)

    def stop(number, frame):
        raise KeyboardInterrupt

    monkeypatch.setattr(disk, "_flush", flush)
    before = signal.signal(number, stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            disk.flush(paths)
        assert sorted(flushed) == sorted(paths) and signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with disk.undisturbed():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
