"""Which states count: what is needed is never handed out for deletion, and what nobody needs always is.

The reference keeps whole copies: the files of a store, what counts now, and what counted at every commit. It looks for garbage by
going through all of them.
"""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from simulations.engine.manifest import Manifest
from simulations.engine.states import StateChanges

Version = tuple[int, tuple[str, ...]]  # exchange, blobs


class Reference:
    """A store without any cleverness. `generations`: so many commits can be gone back to."""

    def __init__(self, generations: int):
        self.generations = generations
        self.states: dict[tuple[int, int], tuple[str, ...]] = {}
        self.blobs: set[str] = set()
        self.current: dict[int, Version] = {}
        self.finals: list[tuple[int, dict[int, Version]]] = [(0, {})]  # of every commit
        self.exchange = 0
        self.gone: tuple[set, set] = (set(), set())  # needed by a commit that had been given up when the run went back behind it

    @property
    def final(self) -> dict[int, Version]:
        return self.finals[-1][1]

    def moved(self, device: int, exchange: int, blobs: tuple[str, ...]) -> None:
        self.states[device, exchange] = blobs
        self.blobs |= set(blobs)
        self.current[device] = (exchange, blobs)

    def undo(self, device: int) -> None:
        self.current.pop(device, None)
        if device in self.final:
            self.current[device] = self.final[device]

    def commit(self) -> None:
        self.finals.append((self.exchange, dict(self.current)))

    def crash(self, back: int) -> None:
        """The last `back` commits are damaged."""
        del self.finals[len(self.finals) - back :]
        self.exchange, self.current = self.finals[-1][0], dict(self.final)

    def needed(self) -> tuple[set[tuple[int, int]], set[str]]:
        versions = [item for _, final in self.finals[-self.generations :] for item in final.items()] + [*self.current.items()]
        return {(device, made) for device, (made, _) in versions}, {blob for _, (_, blobs) in versions for blob in blobs}

    def keep_only(self, states, blobs) -> None:
        """What a manifest says when it is restored must be what is needed, and what the last commit needs must be there."""
        assert (states, blobs) == self.needed()
        self.states = {state: own for state, own in self.states.items() if state in states}
        self.blobs &= blobs
        self.gone = (states - self.states.keys(), blobs - self.blobs)
        for device, (made, own) in self.final.items():
            assert (device, made) in self.states and set(own) <= self.blobs

    def delete(self, states, blobs) -> None:
        """What a manifest hands out must be there, each once, and nobody may need it."""
        needed_states, needed_blobs = self.needed()
        assert len(set(states)) == len(states) and len(set(blobs)) == len(blobs)
        assert set(states) <= (self.states.keys() | self.gone[0]) - needed_states
        assert set(blobs) <= (self.blobs | self.gone[1]) - needed_blobs
        for state in states:
            self.states.pop(state, None)
        self.blobs -= set(blobs)

    def assert_tidy(self) -> None:
        """There is what is needed, and nothing else."""
        states, blobs = self.needed()
        assert set(self.states) | (self.gone[0] & states) == states
        assert self.blobs | (self.gone[1] & blobs) == blobs


DEVICES, BLOBS = st.integers(0, 3), st.sets(st.sampled_from("abc")).map(lambda found: tuple(sorted(found)))
STEPS = st.one_of(
    st.just(("begin",)),
    st.just(("begin",)),
    st.tuples(st.just("moved"), DEVICES, st.integers(0, 2), BLOBS),
    st.tuples(st.just("moved"), DEVICES, st.integers(0, 2), BLOBS),
    st.tuples(st.just("undo"), DEVICES),
    st.just(("commit",)),
    st.tuples(st.just("crash"), st.integers(0, 1)),
)


@given(st.lists(STEPS, max_size=40), st.booleans())
@example([("begin",), ("moved", 0, 0, ("a",)), ("moved", 0, 0, ("b",)), ("commit",), ("begin",), ("moved", 0, 0, ()), ("commit",)], True)
@example([("begin",), ("moved", 0, 0, ("a",)), ("moved", 0, 0, ("a",)), ("commit",), ("begin",), ("moved", 0, 0, ()), ("commit",)], True)
@example([("begin",), ("moved", 0, 0, ("a",)), ("undo", 0), ("moved", 0, 0, ("b",)), ("undo", 0), ("commit",), ("crash", 0)], True)
@example([("begin",), ("moved", 0, 0, ("a",)), ("commit",), ("begin",), ("moved", 0, 0, ("a",)), ("undo", 0), ("commit",)], True)
@example([("begin",), ("begin",), ("moved", 0, 1, ()), ("moved", 0, 0, ()), ("moved", 0, 1, ("a",)), ("commit",), ("crash", 0)], True)
def test_whatever_happens_what_is_needed_stays_and_nothing_else(steps, keeps_older):
    """`moved` is told of one of the last exchanges: replies of two that are on their way together come in any order, and twice if a
    device got two messages in one; its file is written over then. No file of a final state is ever written over. Where older states
    are kept, a crash may find the last commit damaged, but not two in a row without another commit."""
    manifest, reference, history, may_go_back = Manifest(keeps_older), Reference(1 + keeps_older), [], False
    for what, *how in steps:
        if what == "begin":
            reference.exchange += 1
            assert manifest.begin() == reference.exchange
        elif what == "moved":
            device, back, blobs = how
            exchange = reference.exchange - back
            if exchange < 1 or reference.final.get(device, (0, ()))[0] == exchange:
                continue
            reference.moved(device, exchange, blobs)
            manifest.moved(device, exchange, blobs)
        elif what == "undo":
            reference.undo(*how)
            manifest.undo(*how)
        elif what == "commit":
            history.append((manifest.exchange, manifest.changes()))
            reference.commit()
            reference.delete(*manifest.commit())
            reference.assert_tidy()
            may_go_back = True
        elif what == "crash":
            if not keeps_older:
                continue  # without checkpoints nobody goes on
            back = how[0] if may_go_back else 0
            may_go_back = may_go_back and not back
            reference.crash(back)
            history = history[: len(history) - back]
            manifest = Manifest()
            reference.keep_only(*manifest.restore(reference.exchange, [changes for _, changes in history]))
            assert not history or history[-1][0] == reference.exchange
            reference.assert_tidy()
        assert manifest.exchange == reference.exchange
        assert [manifest.current(device) for device in range(5)] == [reference.current.get(device, (0, ()))[0] for device in range(5)]


# -- by hand


def test_a_new_manifest_knows_nobody():
    manifest = Manifest()
    assert (manifest.current(7), manifest.exchange, manifest.commit()) == (0, 0, ([], []))
    assert manifest.changes().devices.tolist() == [] and manifest.restore(0, []) == (set(), set())


def test_exchanges_are_numbered_from_one():
    manifest = Manifest()
    assert [manifest.begin() for _ in range(3)] == [1, 2, 3] and manifest.exchange == 3


def moved(manifest: Manifest, **blobs: str) -> None:
    """In a new exchange: d5="ab" is device 5, whose new state refers to blobs a and b."""
    exchange = manifest.begin()
    for name, own in blobs.items():
        manifest.moved(int(name[1:]), exchange, tuple(own))


def test_the_state_before_the_last_commit_stays_until_the_next():
    manifest = Manifest(keeps_older=False)
    moved(manifest, d0="a", d1="a")
    assert manifest.commit() == ([], [])
    moved(manifest, d0="b")
    assert manifest.current(0) == 2 and manifest.current(1) == 1
    assert manifest.commit() == ([(0, 1)], [])  # device 1 still refers to a
    moved(manifest, d1="b")
    assert manifest.commit() == ([(1, 1)], ["a"])
    assert manifest.commit() == ([], [])


def test_where_there_are_checkpoints_it_stays_until_the_one_after_that():
    manifest = Manifest()
    moved(manifest, d0="a", d1="a")
    assert manifest.commit() == ([], [])
    moved(manifest, d0="b")
    moved(manifest, d0="c")
    assert manifest.commit() == ([(0, 2)], ["b"])  # it was never final
    moved(manifest, d1="c")
    assert manifest.commit() == ([(0, 1)], [])  # device 1 referred to a before this
    assert manifest.commit() == ([(1, 1)], ["a"])
    assert manifest.commit() == ([], [])


def test_a_device_moved_twice_before_a_commit():
    """The state between was never final: it goes together with the one before both."""
    manifest = Manifest(keeps_older=False)
    moved(manifest, d0="a")
    manifest.commit()
    moved(manifest, d0="b")
    moved(manifest, d0="c")
    changes = manifest.changes()
    assert (changes.devices.tolist(), changes.exchanges.tolist(), changes.blobs) == ([0], [3], [("c",)])
    states, blobs = manifest.commit()
    assert (sorted(states), sorted(blobs)) == ([(0, 1), (0, 2)], ["a", "b"])


def test_a_device_moved_twice_before_its_first_commit():
    manifest = Manifest()
    moved(manifest, d0="a")
    moved(manifest, d0="a")
    assert manifest.commit() == ([(0, 1)], [])


@pytest.mark.parametrize("second", ["a", "b", ""])
def test_the_same_exchange_reported_twice_keeps_the_one_state_that_there_is(second):
    """Its file was written over: it is not garbage, but what only its first version referred to is."""
    manifest = Manifest(keeps_older=False)
    moved(manifest, d0="a")
    manifest.moved(0, 1, tuple(second))
    assert manifest.changes().blobs == [tuple(second)]
    assert manifest.commit() == ([], [] if second == "a" else ["a"])
    moved(manifest, d0="c")
    assert manifest.commit() == ([(0, 1)], list(second))


def test_a_blob_that_comes_back_before_the_commit_is_not_garbage():
    manifest = Manifest(keeps_older=False)
    moved(manifest, d0="a")
    manifest.commit()
    moved(manifest, d0="b")
    moved(manifest, d1="a")
    assert manifest.commit() == ([(0, 1)], [])
    moved(manifest, d1="")
    assert manifest.commit() == ([(1, 3)], ["a"])


def test_a_device_that_is_undone_has_the_state_of_the_last_commit():
    """What it did since is garbage, and it has not changed; one that had no state has none again."""
    manifest = Manifest()
    moved(manifest, d0="a")
    manifest.commit()
    moved(manifest, d0="b", d1="b")
    manifest.undo(0)
    manifest.undo(1)
    assert (manifest.current(0), manifest.current(1), manifest.changes().devices.tolist()) == (1, 0, [])
    states, blobs = manifest.commit()
    assert (sorted(states), blobs) == ([(0, 2), (1, 2)], ["b"])


def test_all_that_a_device_did_since_the_last_commit_is_undone():
    manifest = Manifest(keeps_older=False)
    moved(manifest, d0="a")
    manifest.commit()
    moved(manifest, d0="b")
    moved(manifest, d0="c")
    manifest.undo(0)
    moved(manifest, d0="d")
    assert manifest.current(0) == 4 and manifest.changes().blobs == [("d",)]
    states, blobs = manifest.commit()
    assert (sorted(states), sorted(blobs)) == ([(0, 1), (0, 2), (0, 3)], ["a", "b", "c"])


def test_without_a_change_there_is_nothing_to_undo():
    manifest = Manifest()
    manifest.undo(3)
    moved(manifest, d0="a")
    manifest.commit()
    manifest.undo(0)
    assert manifest.current(0) == 1 and manifest.commit() == ([], [])


def test_changes_are_since_the_last_commit_and_in_device_order():
    manifest = Manifest()
    moved(manifest, d7="", d2="ab", d4="b")
    first = manifest.changes()
    assert (first.devices.tolist(), first.exchanges.tolist(), first.blobs) == ([2, 4, 7], [1, 1, 1], [("a", "b"), ("b",), ()])
    assert first.devices.dtype == first.exchanges.dtype == np.int64
    assert manifest.changes().blobs == first.blobs  # looking changes nothing
    manifest.commit()
    assert manifest.changes().devices.tolist() == []
    moved(manifest, d4="a")
    assert (manifest.changes().devices.tolist(), manifest.changes().exchanges.tolist()) == ([4], [2])


def test_a_restored_manifest_goes_on_with_the_next_exchange():
    """Exchange 3 died: its number is given out again, and device 1 is back at what it had after the first."""
    manifest, history = Manifest(), []
    moved(manifest, d0="a", d1="ab")
    history.append(manifest.changes())
    manifest.commit()
    moved(manifest, d0="b")
    history.append(manifest.changes())
    manifest.commit()
    moved(manifest, d1="c", d2="c")

    restored = Manifest()
    assert restored.restore(2, history) == ({(0, 1), (0, 2), (1, 1)}, {"a", "b"})
    assert [restored.current(device) for device in range(3)] == [2, 1, 0]
    assert restored.changes().devices.tolist() == [] and restored.begin() == 3
    restored.moved(1, 3, ("d",))
    assert restored.commit() == ([(0, 1)], [])
    assert restored.commit() == ([(1, 1)], ["a"])


def test_a_manifest_without_a_history_keeps_nothing():
    assert Manifest().restore(4, []) == (set(), set())


# -- the value that it tells


@pytest.mark.parametrize(("devices", "exchanges", "blobs"), [([1], [1, 2], [()]), ([1, 2], [1, 2], [()]), ([[1]], [1], [()])])
def test_changes_of_different_lengths_are_refused(devices, exchanges, blobs):
    with pytest.raises(ValueError, match=r"must be \[n\], \[n\] and n"):
        StateChanges(np.array(devices), np.array(exchanges), blobs)


def test_no_changes():
    assert (StateChanges.none().devices.tolist(), StateChanges.none().exchanges.tolist(), StateChanges.none().blobs) == ([], [], [])
