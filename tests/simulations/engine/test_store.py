"""Device states come back bit for bit, wherever they are kept; what is shared is there once; what is damaged is noticed."""

import multiprocessing
import os
import pickle
import signal
import traceback
import uuid

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from simulations.engine.address import masked, secrets_of
from simulations.engine.files import FsspecFiles, LocalFiles, MemoryFiles, StoreError, open_files
from simulations.engine.parcel import Parcel
from simulations.engine.states import StateChanges
from simulations.engine.store import SHARED_BYTES, StateLost, StateStore, StoredState, digest, split

MODEL, OTHER, OWN = b"M" * (SHARED_BYTES + 7), b"O" * SHARED_BYTES, b"o" * (SHARED_BYTES - 1)
STATE = Parcel(b"shell", (MODEL, OWN, b"", MODEL))
forked = multiprocessing.get_context("fork")


@pytest.fixture(params=["memory", "folder", "file://", "memory://", "folders by fsspec"])
def files(request, tmp_path):
    """All kinds of places; the last stands for backends that have folders and say when a file is not there."""
    if request.param == "memory":
        return MemoryFiles()
    if request.param == "folders by fsspec":
        return FsspecFiles(f"file://{tmp_path}/d")
    urls = {"folder": str(tmp_path / "a" / "b"), "file://": f"file://{tmp_path}/c", "memory://": f"memory://{uuid.uuid4().hex}/run"}
    return open_files(urls[request.param])


@pytest.fixture
def store(files):
    return StateStore(files)


class Recording(MemoryFiles):
    """Remembers which files were written."""

    def __init__(self):
        super().__init__()
        self.written: list[str] = []

    def write(self, key, data):
        self.written.append(key)
        super().write(key, data)


def everything(store: StateStore) -> dict[str, bytes]:
    keys = store.files.keys()
    return {key: store.files.read(key) for key in sorted(keys)}


# -- what was put is what comes back


def test_a_state_comes_back(store):
    assert store.put(300, 12, STATE) == (digest(MODEL),)
    assert store.get(300, 12) == STATE
    assert list(everything(store)) == [f"blobs/{digest(MODEL)[:2]}/{digest(MODEL)}", "states/2c/300-12"]


def test_every_version_stays(store):
    parcels = {(device, exchange): Parcel(b"%d at %d" % (device, exchange), (OWN,)) for device in (0, 256, 2**40) for exchange in (1, 2)}
    for key, parcel in parcels.items():
        assert store.put(*key, parcel) == ()
    assert {key: store.get(*key) for key in parcels} == parcels


def test_putting_again_changes_nothing(store):
    store.put(1, 1, STATE)
    before = everything(store)
    assert store.put(1, 1, STATE) == (digest(MODEL),)
    assert everything(store) == before


def test_the_last_of_two_contents_counts(store):
    store.put(1, 1, STATE)
    store.put(1, 1, Parcel(b"other", ()))
    assert store.get(1, 1) == Parcel(b"other", ())


small = st.binary(max_size=20)
blobs = st.one_of(small, st.sampled_from([OWN, OTHER, MODEL]))


@given(st.builds(lambda shell, blobs: Parcel(shell, tuple(blobs)), small, st.lists(blobs, max_size=5)))
def test_any_parcel_survives_its_file(parcel):
    state, shared = split(parcel)
    back = StoredState.from_bytes(state.to_bytes(3, 4), 3, 4)
    assert back == state and back.parcel(shared.__getitem__) == parcel
    assert set(state.digests) == set(shared) == {digest(blob) for blob in parcel.blobs if len(blob) >= SHARED_BYTES}


# -- what is shared


def test_a_shared_value_is_written_once_for_all_devices():
    store = StateStore(Recording())
    for device in range(5):
        store.put(device, 1, Parcel(b"%d" % device, (MODEL, OWN, OTHER)))
    written = store.files.written
    assert sum(key.startswith("blobs") for key in written) == 2
    assert written.index("states/00/0-1") == 2  # behind what it refers to
    assert max(len(store.files.read(f"states/{device:02x}/{device}-1")) for device in range(5)) < len(OWN) + 200


def test_a_shared_value_that_was_cut_off_is_written_again(store):
    (name,) = store.put(1, 1, STATE)
    store.files.write(f"blobs/{name[:2]}/{name}", b"")
    store.put(2, 1, STATE)
    assert store.get(1, 1) == STATE


def test_digests_come_in_order_and_once():
    assert split(Parcel(b"", (OTHER, MODEL, OTHER)))[0].digests == (digest(OTHER), digest(MODEL))


# -- deleting


def test_dropped_states_are_gone_and_others_stay(store):
    store.put(1, 1, STATE)
    store.put(1, 2, STATE)
    store.put(2, 1, Parcel(b"", (OTHER,)))
    store.drop([(1, 1), (9, 9)], [digest(OTHER), "00" * 16])
    assert store.get(1, 2) == STATE
    with pytest.raises(StateLost, match="device 1 after exchange 1 .* it is not there$"):
        store.get(1, 1)
    with pytest.raises(StateLost, match=f"device 2 .* refers to blob {digest(OTHER)}, which is not there"):
        store.get(2, 1)
    store.drop([], [])
    store.drop([(1, 1)], [])
    assert store.get(1, 2) == STATE


def test_only_what_is_wanted_is_kept(store):
    """Half of a file that a killed process has left goes, too."""
    for device in (1, 2):
        for exchange in (1, 2):
            store.put(device, exchange, Parcel(b"%d" % exchange, (MODEL, OTHER)))
    store.files.write("states/01/1-3.0123456789abcdef.tmp", b"half")
    store.files.write(f"blobs/ab/{'ab' * 16}.0123456789abcdef.tmp", b"half")
    store.keep_only({(1, 2), (2, 1), (3, 3)}, {digest(MODEL)})
    assert list(everything(store)) == [f"blobs/{digest(MODEL)[:2]}/{digest(MODEL)}", "states/01/1-2", "states/02/2-1"]
    store.keep_only(set(), set())
    assert store.files.keys() == []


def test_nothing_is_left_of_a_destroyed_store(store):
    store.put(1, 1, STATE)
    store.destroy()
    assert store.files.keys() == []
    with pytest.raises(StateLost):
        store.get(1, 1)
    store.destroy()
    store.put(1, 1, STATE)  # it can be used again
    assert store.get(1, 1) == STATE


def test_what_is_not_ours_is_never_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    store = StateStore(open_files(str(tmp_path)))
    store.put(1, 1, STATE)
    store.keep_only(set(), set())
    store.destroy()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    folder = tmp_path / "own"
    StateStore(open_files(str(folder))).destroy()
    assert not folder.exists()


# -- damage


def damaged(store: StateStore, key: str, data: bytes) -> StateLost:
    """What reading says once the file holds `data`."""
    store.files.write(key, data)
    with pytest.raises(StateLost) as caught:
        store.get(5, 6)
    return caught.value


def test_a_state_cut_off_anywhere_is_lost(store):
    store.put(5, 6, Parcel(b"shell", (b"small", MODEL)))
    key = "states/05/5-6"
    whole = store.files.read(key)
    for length in range(len(whole)):
        damaged(store, key, whole[:length])
    damaged(store, key, whole + b"\0")
    error = str(damaged(store, key, whole[:-1]))
    assert error.startswith(f"the state of device 5 after exchange 6 is lost from the store {store.files.url}: its file has ")
    store.files.write(key, whole)
    assert store.get(5, 6).blobs == (b"small", MODEL)


def test_a_state_with_any_byte_changed_is_lost():
    store = StateStore(MemoryFiles())
    store.put(5, 6, Parcel(b"shell", (b"small", MODEL)))
    whole = store.files.read("states/05/5-6")
    for at in range(len(whole)):
        damaged(store, "states/05/5-6", whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])


def test_a_state_under_a_wrong_name_is_lost(store):
    store.put(7, 6, STATE)
    assert "its file is of device 7, exchange 6" in str(damaged(store, "states/05/5-6", store.files.read("states/07/7-6")))


def test_another_format_says_so(store):
    store.put(5, 6, STATE)
    data = bytearray(store.files.read("states/05/5-6"))
    data[3] = 9
    assert "its file has format version 9, this program reads 2" in str(damaged(store, "states/05/5-6", bytes(data)))


@pytest.mark.parametrize("content", [b"", MODEL[:-1], MODEL[:-1] + b"x", MODEL + b"x"], ids=["empty", "short", "changed", "long"])
def test_a_damaged_shared_value_is_noticed(store, content):
    (name,) = store.put(5, 6, STATE)
    error = damaged(store, f"blobs/{name[:2]}/{name}", content)
    assert f"it refers to blob {name}, which is damaged: {len(content)} bytes with another digest" in str(error)


# -- several processes


def run_forked(*targets) -> list[int]:
    """Exit codes of processes that run these at once."""
    processes = [forked.Process(target=target) for target in targets]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def test_processes_that_put_the_same_at_once_do_no_harm(tmp_path):
    store = StateStore(open_files(str(tmp_path / "store")))

    def put_and_get():
        for exchange in range(20):
            store.put(1, exchange, Parcel(b"%d" % exchange, (MODEL, bytes([exchange]) * SHARED_BYTES)))
            if store.get(1, exchange).shell != b"%d" % exchange:
                os._exit(1)

    assert run_forked(put_and_get, put_and_get, put_and_get) == [0, 0, 0]
    assert len(store.files.keys()) == 20 + 21  # states, shared values, nothing unfinished
    assert all(store.get(1, exchange).blobs[0] == MODEL for exchange in range(20))


@pytest.mark.parametrize("dies_at", [1, 2], ids=["shared value", "state"])
def test_a_process_killed_while_it_writes_leaves_the_store_as_it_was(tmp_path, monkeypatch, dies_at):
    store = StateStore(open_files(str(tmp_path / "store")))
    store.put(1, 1, Parcel(b"before", ()))
    calls = []

    def replace(source, target, really=os.replace):
        calls.append(target)
        if len(calls) == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        really(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        assert run_forked(lambda: store.put(1, 2, STATE)) == [-signal.SIGKILL]
    assert store.get(1, 1).shell == b"before"
    with pytest.raises(StateLost, match="it is not there"):
        store.get(1, 2)
    assert sum(key.endswith(".tmp") for key in everything(store)) == 1
    store.put(1, 2, STATE)
    store.keep_only({(1, 1), (1, 2)}, {digest(MODEL)})
    assert len(store.files.keys()) == 3 and store.get(1, 2) == STATE


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    store = StateStore(open_files(str(tmp_path / "store")))

    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StoreError, match="cannot write the state of device 4 to the store .*/store: .*No space left.*--store") as caught:
        store.put(4, 1, STATE)
    assert not isinstance(caught.value, StateLost)
    assert store.files.keys() == []


def test_only_the_url_travels_to_another_process(files):
    if isinstance(files, MemoryFiles):
        with pytest.raises(StoreError, match="cannot go to another process: name a folder or a URL with --store"):
            pickle.dumps(files)
        return
    StateStore(files).put(1, 1, STATE)
    packed = pickle.dumps(files)
    assert len(packed) < 300
    assert StateStore(pickle.loads(packed)).get(1, 1) == STATE


# -- opening


def test_what_a_url_opens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_files("here") == LocalFiles(f"{tmp_path}/here") == open_files(f"file://{tmp_path}/here")
    assert isinstance(open_files("memory://there"), FsspecFiles)
    assert open_files("here").keys() == []  # what was tried out is gone


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for url in (f"{tmp_path}/file/store", f"file://{tmp_path}/file/store"):
        with pytest.raises(StoreError, match=f"device states cannot be kept in {url}: .*Not a directory.*; name with --store a folder"):
            open_files(url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [("nowhere://bucket/run", "Protocol not known: nowhere"), ("memory://run[1]", "none of the wildcards"), ("a\0b", "null")],
)
def test_a_url_that_means_nothing_is_refused(url, reason):
    with pytest.raises(StoreError, match=f"{reason}.*--store"):
        open_files(url)


def test_a_place_that_forgets_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(LocalFiles, "read", lambda self, key: b"")
    with pytest.raises(StoreError, match="b'sparcl' was written and b'' read back"):
        open_files(str(tmp_path / "store"))


# -- passwords


@pytest.mark.parametrize(
    ("url", "shown", "secrets"),
    [
        ("ftp://user:pw@host/x", "ftp://user:***@host/x", {"pw"}),
        ("ftp://user:p%40w:1@host:21/x", "ftp://user:***@host:21/x", {"p%40w:1", "p@w:1"}),
        ("ftp://user:p@w@host/x", "ftp://user:***@host/x", {"p@w"}),
        ("ftp://:pw@host/x", "ftp://:***@host/x", {"pw"}),
        ("simplecache::sftp://a:b@c/d", "simplecache::sftp://a:***@c/d", {"b"}),
        ("a://u:one@h/x::b://v:two@h/y", "a://u:***@h/x::b://v:***@h/y", {"one", "two"}),
        ("s3://bucket/x?key=abc&secret=d%2Fe", "s3://bucket/x?key=***&secret=***", {"abc", "d%2Fe", "d/e"}),
        ("ftp://user@host/x", "ftp://user@host/x", set()),
        ("ftp://host:21/x:y@z", "ftp://host:21/x:y@z", set()),
        ("/home/me:you@here/x?y=z", "/home/me:you@here/x?y=z", set()),
        ("memory://there", "memory://there", set()),
    ],
)
def test_what_of_a_url_is_shown(url, shown, secrets):
    assert masked(url) == shown and set(secrets_of(url)) == secrets


class Leaky(MemoryFileSystem):
    """A backend whose errors repeat what it was given."""

    protocol, broken = "leaky", ""

    def _fail(self, *args, **kwargs):
        raise type(self).broken("cannot reach leaky://me:geheim@host/store as me with geheim")

    def pipe_file(self, path, value, **kwargs):
        self._fail() if type(self).broken else super().pipe_file(path, value, **kwargs)

    def cat_file(self, path, **kwargs):
        return self._fail() if type(self).broken else super().cat_file(path, **kwargs)


@pytest.fixture
def leaky(monkeypatch):
    fsspec.register_implementation("leaky", Leaky, clobber=True)
    return lambda error: monkeypatch.setattr(Leaky, "broken", error)


@pytest.mark.parametrize("error", [OSError, RuntimeError, ValueError, PermissionError])
def test_no_message_repeats_a_password(leaky, error):
    """Neither ours, nor what Python prints beneath it of the error behind."""
    url = f"leaky://me:geheim@host/{uuid.uuid4().hex}"
    store = StateStore(open_files(url))
    store.put(1, 1, STATE)
    leaky(error)
    for action in (lambda: open_files(url), lambda: store.get(1, 1), lambda: store.put(1, 2, STATE)):
        with pytest.raises(StoreError) as caught:
            action()
        assert "leaky://me:***@host/" in str(caught.value)
        assert "geheim" not in "".join(traceback.format_exception(caught.value))
    assert "geheim" not in store.files.url and StateStore(pickle.loads(pickle.dumps(store.files))).files._address == url


def test_nor_does_a_real_backend_that_cannot_be_reached():
    url = "ftp://user:geheim@127.0.0.1:1/x"
    with pytest.raises(StoreError, match=r"cannot be kept in ftp://user:\*\*\*@127.0.0.1:1/x: .*refused") as caught:
        open_files(url)
    assert "geheim" not in "".join(traceback.format_exception(caught.value))


# -- several runs


def test_states_are_of_one_run(store):
    store.put(5, 6, STATE)
    for run in (b"r" * 16, b"s" * 16):
        other = StateStore(store.files, run)
        with pytest.raises(StateLost, match="device 5 after exchange 6 .* its file is of another run"):
            other.get(5, 6)
        other.put(5, 6, STATE)
        assert other.get(5, 6) == STATE


def changes_of(*states: tuple[int, int, tuple[str, ...]]) -> StateChanges:
    devices, exchanges, blobs = zip(*states, strict=True)
    return StateChanges(np.array(devices), np.array(exchanges), list(blobs))


def test_a_check_reads_all_of_what_changed(store):
    changes = changes_of((1, 1, store.put(1, 1, STATE)), (2, 1, store.put(2, 1, Parcel(b"", (OTHER,)))))
    store.check(changes)
    store.check(StateChanges.none())
    for key in list(everything(store)):
        whole = store.files.read(key)
        store.files.write(key, whole[:-1] + b"x")
        with pytest.raises(StateLost):
            store.check(changes)
        store.files.write(key, whole)
    store.check(changes)


def test_a_flush_reaches_states_shared_values_and_their_folders(tmp_path, monkeypatch):
    store, flushed = StateStore(open_files(str(tmp_path))), set()
    changes = changes_of((1, 1, store.put(1, 1, STATE)), (300, 1, store.put(300, 1, STATE)))
    store.put(7, 1, STATE)  # of another round
    monkeypatch.setattr(os, "fsync", lambda held: flushed.add(os.path.relpath(os.readlink(f"/proc/self/fd/{held}"), tmp_path)))
    store.flush(changes)
    name = digest(MODEL)
    files = {"states/01/1-1", "states/2c/300-1", f"blobs/{name[:2]}/{name}"}
    assert flushed == files | {os.path.dirname(file) for file in files} | {"states", "blobs", "."}
