"""What all engines share, on the inline one: replies are handed out once, what is given up never happened, a grid that dies goes on from
its last commit. The app counts the messages of a device in its state."""

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given
from hypothesis import strategies as st

from simulations.engine.adapter import ErrorCode
from simulations.engine.cache import StateCache
from simulations.engine.files import LocalFiles, MemoryFiles, StoreError, open_files
from simulations.engine.inline import InlineGrid
from simulations.engine.states import StateChanges
from simulations.engine.store import SHARED_BYTES, StateLost, StateStore

DEVICES = 4


def counting_app(handled: list[int]) -> ClientApp:
    """Counts a device's messages, and keeps the bytes that it is told to; `handled`: the devices that were at work."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        device, order = context.node_config["partition-id"], message.content["order"]
        handled.append(device)
        count = context.state["count"]["n"] + 1 if "count" in context.state else 1
        context.state["count"] = ConfigRecord({"n": count})
        if order["keep"]:
            context.state["kept"] = ConfigRecord({"bytes": order["keep"]})
        if order["do"] == "raise":
            raise ValueError("told to")
        if order["do"] == "interrupt":
            signal.raise_signal(signal.SIGINT)
        kept = context.state["kept"]["bytes"] if "kept" in context.state else b""
        return Message(RecordDict({"answer": ConfigRecord({"count": count, "kept": kept})}), reply_to=message)

    return app


class Grid(InlineGrid):
    """Four devices; knows who was at work."""

    def __init__(self, store: StateStore | None = None, num_devices: int = DEVICES, **kwargs):
        self.handled: list[int] = []
        super().__init__(counting_app, (self.handled,), num_devices, store=store, **kwargs)


def order(device: int, do: str = "", keep: bytes = b"") -> Message:
    return Message(RecordDict({"order": ConfigRecord({"do": do, "keep": keep})}), device + 1, "train", group_id="1")


def orders(*devices: int, **kwargs) -> list[Message]:
    return [order(device, **kwargs) for device in devices]


def device_of(reply: Message) -> int:
    return reply.metadata.src_node_id - 1


def answers(replies) -> dict[int, int | str]:
    """Device -> how many messages it has had, or the reason of an error."""
    return {device_of(reply): reply.error.reason if reply.has_error() else reply.content["answer"]["count"] for reply in replies}


def counts(grid: InlineGrid) -> list[int]:
    """How many messages each device has had, by its state."""
    states = [grid.state(device) for device in range(grid.num_devices)]
    return [state["count"]["n"] if "count" in state else 0 for state in states]


def all_done(grid: InlineGrid) -> bool:
    """Nothing is left over that a later exchange could trip over."""
    return not grid._open and not grid._replies and not grid._waiting


def store_in(folder: Path) -> StateStore:
    return StateStore(open_files(str(folder)))


def names_of(store: StateStore, folder: str) -> list[str]:
    """The last parts of the keys in states or blobs."""
    keys = store.files.keys()
    return sorted(key.rpartition("/")[2] for key in keys if key.startswith(folder))


# -- exchanges


def test_every_message_is_answered_once():
    grid = Grid()
    assert answers(grid.send_and_receive(orders(0, 2, 3))) == {0: 1, 2: 1, 3: 1}
    assert answers(grid.send_and_receive(orders(3, 1))) == {3: 2, 1: 1}
    assert counts(grid) == [1, 1, 1, 2] and all_done(grid)
    assert list(grid.send_and_receive([])) == []


def test_a_stream_hands_out_each_reply_when_it_is_there():
    grid = Grid()
    seen = [(device_of(reply), list(grid.handled)) for reply in grid.stream(orders(2, 0, 1))]
    assert seen == [(2, [2]), (0, [2, 0]), (1, [2, 0, 1])] and all_done(grid)


def test_a_failure_is_a_reply_and_leaves_the_state_as_it_was():
    grid = Grid()
    grid.send_and_receive(orders(0, 1))
    assert answers(grid.send_and_receive([order(0, "raise"), order(1)])) == {0: "told to", 1: 2}
    assert counts(grid) == [1, 2, 0, 0]


def test_whoever_watches_is_told_of_every_reply_even_of_a_failure():
    heard = []
    grid = Grid(on_reply=heard.append)
    grid.send_and_receive([order(3), order(1, "raise")])
    assert heard == [3, 1]


@pytest.mark.parametrize("send", [InlineGrid.send_and_receive, lambda *args: list(InlineGrid.stream(*args))])
def test_messages_for_nobody_are_left_out_and_named(send, caplog):
    grid = Grid()
    with caplog.at_level(logging.WARNING):
        assert answers(send(grid, [order(0), *orders(-1, -2, DEVICES), order(1)])) == {0: 1, 1: 1}
    assert [record.getMessage() for record in caplog.records] == [f"nothing is sent to node 0, -1, 5: there are nodes 1 to {DEVICES}"]
    assert grid.handled == [0, 1] and all_done(grid)


def test_a_message_that_is_a_reply_or_lives_for_no_time_is_refused_before_anything_is_sent():
    grid = Grid()
    (reply,) = grid.send_and_receive(orders(0))
    dead = order(1)
    dead.metadata.ttl = -1.0
    for wrong in (reply, dead):
        with pytest.raises(ValueError, match="it must be no reply, and have a ttl above 0"):
            grid.push_messages([order(2), wrong])
    assert grid.handled == [0] and all_done(grid)


def test_two_messages_for_one_device_in_one_exchange_are_handled_one_after_the_other():
    """And the state that counts is in the store after the commit: its file was written over, and is no garbage."""
    grid = Grid()
    assert sorted(reply.content["answer"]["count"] for reply in grid.send_and_receive(orders(1, 1))) == [1, 2]
    assert counts(grid) == [0, 2, 0, 0]


def test_a_grid_is_one_of_flower():
    grid = Grid(run_config={"lr": 0.1})
    assert list(grid.get_node_ids()) == [1, 2, 3, 4] and grid.num_workers == 1
    assert grid.node_config(3) == {"partition-id": 2, "num-partitions": 4}
    metadata = grid.create_message(RecordDict(), "train", 2, "7", ttl=5.0).metadata
    assert (metadata.dst_node_id, metadata.message_type, metadata.group_id, metadata.ttl) == (2, "train", "7", 5.0)
    grid.close()


# -- stopping in the middle


@given(sent=st.permutations(range(DEVICES)), taken=st.integers(0, DEVICES))
def test_what_the_caller_does_not_wait_for_never_happened(sent, taken):
    grid = Grid()
    grid.send_and_receive(orders(0, 1, 2, 3))
    grid.handled.clear()
    stream = grid.stream(orders(*sent))
    got = [device_of(next(stream)) for _ in range(taken)]
    stream.close()
    assert got == grid.handled == sent[:taken]
    assert counts(grid) == [2 if device in got else 1 for device in range(DEVICES)]
    assert all_done(grid)
    assert answers(grid.send_and_receive(orders(0, 1, 2, 3))) == {device: 3 if device in got else 2 for device in range(DEVICES)}


def test_a_stream_that_is_never_looked_at_sends_nothing():
    grid = Grid()
    grid.stream(orders(0)).close()
    assert grid.handled == [] and all_done(grid) and grid.manifest.exchange == 0


def test_a_caller_that_fails_in_the_middle_gives_up_the_rest():
    grid = Grid()
    with pytest.raises(ZeroDivisionError):
        take_and_fail(grid.stream(orders(0, 1, 2)))
    assert counts(grid) == [1, 0, 0, 0] and all_done(grid)


def take_and_fail(stream: Iterator[Message]) -> None:
    for _ in stream:
        1 / 0  # noqa: B018


def test_an_interrupt_in_a_device_ends_the_stream_and_leaves_its_state():
    grid = Grid()
    with pytest.raises(KeyboardInterrupt):
        list(grid.stream([order(0), order(1, "interrupt"), order(2)]))
    assert counts(grid) == [1, 0, 0, 0] and all_done(grid)
    assert answers(grid.send_and_receive(orders(0, 1))) == {0: 2, 1: 1}


def test_what_was_pushed_still_waits_behind_an_interrupt():
    """As at a debugger's prompt: the device that was interrupted is handled again, from the state that it had."""
    grid = Grid()
    first, second = grid.push_messages([order(0, "interrupt"), order(1)])
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            grid.pull_messages([second])
    assert grid.handled == [0, 0] and counts(grid) == [0, 0, 0, 0]


def test_no_time_at_all_handles_nothing():
    grid = Grid()
    assert grid.send_and_receive(orders(0, 1), timeout=0.0) == []
    assert grid.handled == [] and all_done(grid)
    assert answers(grid.send_and_receive(orders(0))) == {0: 1}


def test_when_the_time_is_over_the_rest_is_given_up(monkeypatch):
    """A clock of our own: each device takes a second, and after two and a half nobody waits for more."""
    grid = Grid()
    monkeypatch.setattr("time.monotonic", lambda: float(len(grid.handled)))
    assert answers(grid.send_and_receive(orders(3, 1, 0, 2), timeout=2.5)) == {3: 1, 1: 1, 0: 1}
    assert grid.handled == [3, 1, 0] and counts(grid) == [1, 1, 0, 1] and all_done(grid)
    assert answers(grid.send_and_receive(orders(0, 2), timeout=2.5)) == {0: 2, 2: 1}


# -- push and pull


def test_a_pull_handles_one_message_at_most_and_hands_out_what_is_there():
    grid = Grid()
    first, second, third = grid.push_messages(orders(0, 1, 2))
    assert grid.handled == []
    assert grid.pull_messages([second]) == [] and grid.handled == [0]
    assert answers(grid.pull_messages([third, second, second, first])) == {1: 1, 0: 1} and grid.handled == [0, 1]
    assert answers(grid.pull_messages([third])) == {2: 1} and all_done(grid)


def test_one_message_that_is_pushed_again_is_another_job():
    """As it is the same object, its id changes under the first one."""
    grid, message = Grid(), order(0)
    ids = [*grid.push_messages([message]), *grid.push_messages([message])]
    replies = grid.pull_messages(ids) + grid.pull_messages(ids[1:])
    assert [reply.metadata.reply_to_message_id for reply in replies] == ids == ["1-0", "2-0"]
    assert [reply.content["answer"]["count"] for reply in replies] == [1, 2] and all_done(grid)


@given(st.data())
def test_pushes_and_pulls_in_any_order_hand_out_every_reply_once(data):
    """Several exchanges are on their way at once; a device's messages are handled in the order in which they were pushed."""
    grid, sent, got = Grid(), {}, {}
    for _ in range(data.draw(st.integers(1, 8))):
        if data.draw(st.booleans()):
            devices = data.draw(st.lists(st.integers(0, DEVICES - 1), max_size=4, unique=True))
            sent |= dict(zip(grid.push_messages(orders(*devices)), devices, strict=True))
        elif sent:
            for reply in grid.pull_messages(data.draw(st.lists(st.sampled_from(sorted(sent)), max_size=4, unique=True))):
                number = reply.metadata.reply_to_message_id
                if number in got:
                    assert reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE  # each once
                got.setdefault(number, reply)
    for _ in range(len(sent)):
        for reply in grid.pull_messages([number for number in sent if number not in got]):
            assert got.setdefault(reply.metadata.reply_to_message_id, reply) is reply
    assert {number: device_of(reply) for number, reply in got.items()} == sent
    for device in range(DEVICES):
        own = [number for number in sent if sent[number] == device]  # in the order of the pushes
        assert [got[number].content["answer"]["count"] for number in own] == list(range(1, len(own) + 1))
    assert all_done(grid)


def test_a_stream_leaves_alone_what_was_pushed():
    grid = Grid()
    (pushed,) = grid.push_messages(orders(0))
    assert answers(grid.stream(orders(1))) == {1: 1}
    stream = grid.stream(orders(1, 2))
    next(stream)
    stream.close()
    assert answers(grid.pull_messages([pushed])) == {0: 1} and all_done(grid)


def test_a_stream_waits_whatever_the_ttl_and_a_message_that_has_expired_is_not_even_begun(monkeypatch):
    """A clock of our own, on which every device takes a second. The result of a run must not depend on the machine's speed."""
    grid, begin = Grid(), 2_000_000_000.0
    monkeypatch.setattr("time.time", lambda: begin + len(grid.handled))

    def short(*devices: int) -> list[Message]:
        messages = orders(*devices)
        for message in messages:
            message.metadata.created_at, message.metadata.ttl = begin + len(grid.handled), 1.5
        return messages

    assert answers(grid.stream(short(0, 1, 2))) == {0: 1, 1: 1, 2: 1}
    grid.handled.clear()
    replies = grid.send_and_receive(short(0, 1, 2))
    assert [reply.error.code if reply.has_error() else device_of(reply) for reply in replies] == [0, 3, 3]
    assert grid.handled == [0, 1] and counts(grid) == [2, 1, 1, 0] and all_done(grid)  # the second was over too late: it never happened


# -- states


def test_states_are_the_stores_and_not_the_grids(tmp_path):
    """A grid keeps nothing but numbers: without its file a state is lost, and said to be."""
    grid = Grid(store_in(tmp_path))
    grid.send_and_receive(orders(0, 1))
    assert names_of(grid.store, "states") == ["0-1", "1-1"]
    (path,) = tmp_path.glob("states/*/1-1")
    path.unlink()
    assert grid.state(0)["count"]["n"] == 1
    with pytest.raises(StateLost, match=r"the state of device 1 after exchange 1 is lost from the store .*it is not there"):
        grid.send_and_receive(orders(0, 1))
    assert all_done(grid)


def test_a_cache_of_states_changes_nothing(tmp_path):
    for cache_bytes in (0, 10**6):
        grid = Grid(store_in(tmp_path / str(cache_bytes)), cache_bytes=cache_bytes)
        for keep in (b"x" * SHARED_BYTES, b""):
            grid.send_and_receive(orders(0, 1, keep=keep))
        assert counts(grid) == [2, 2, 0, 0] and names_of(grid.store, "states") == ["0-2", "1-2"]


def test_a_device_without_a_state_has_an_empty_one():
    assert list(Grid().state(2).keys()) == []


def test_large_values_go_there_and_back_and_lie_in_the_store_once(tmp_path):
    grid = Grid(store_in(tmp_path))
    large, other = bytes(range(256)) * 1024, b"\xff" * (SHARED_BYTES + 1)
    replies = grid.send_and_receive([*orders(0, 1, 2, keep=large), order(3, keep=b"small")])
    assert {device_of(reply): reply.content["answer"]["kept"] for reply in replies} == {0: large, 1: large, 2: large, 3: b"small"}
    assert len(names_of(grid.store, "blobs")) == 1 and len(names_of(grid.store, "states")) == 4
    grid.send_and_receive(orders(0, keep=other))
    assert len(names_of(grid.store, "blobs")) == 2
    replies = grid.send_and_receive(orders(0, 1, 2, 3))
    assert {device_of(reply): reply.content["answer"]["kept"] for reply in replies} == {0: other, 1: large, 2: large, 3: b"small"}
    grid.send_and_receive(orders(1, 2, keep=b"small"))
    (blob,) = (path for path in tmp_path.glob("blobs/*/*"))
    assert blob.read_bytes() == other


@pytest.mark.parametrize("files", ["folder", "memory"])
@given(rounds=st.lists(st.tuples(st.lists(st.integers(0, DEVICES - 1), unique=True), st.integers(0, DEVICES), st.booleans()), max_size=6))
def test_a_grid_that_nobody_commits_deletes_what_is_superseded_by_itself(tmp_path_factory, files, rounds):
    """Exactly one state per device that has one, after every exchange, whether it was waited for to the end or not."""
    grid = Grid(store_in(tmp_path_factory.mktemp("store")) if files == "folder" else StateStore(MemoryFiles()))
    made = {}
    for devices, taken, fails in rounds:
        stream = grid.stream([order(device, "raise" if fails and device == 0 else "") for device in devices])
        for _, reply in zip(range(taken), stream, strict=False):
            if not reply.has_error():
                made[device_of(reply)] = grid.manifest.exchange
        stream.close()
        assert names_of(grid.store, "states") == sorted(f"{device}-{exchange}" for device, exchange in made.items())


def test_a_grid_that_waits_for_a_commit_keeps_what_was_final(tmp_path):
    grid = Grid(store_in(tmp_path), waits_for_commit=True)
    grid.send_and_receive(orders(0, 1))
    grid.commit()
    grid.send_and_receive(orders(1))
    grid.send_and_receive(orders(1, 2))
    assert names_of(grid.store, "states") == ["0-1", "1-1", "1-2", "1-3", "2-3"]
    assert grid.changes().devices.tolist() == [1, 2] and grid.changes().exchanges.tolist() == [3, 3]
    grid.commit()
    assert names_of(grid.store, "states") == ["0-1", "1-1", "1-3", "2-3"] and grid.changes().devices.tolist() == []
    grid.commit()
    assert names_of(grid.store, "states") == ["0-1", "1-3", "2-3"]  # nobody goes back before the last but one
    assert counts(grid) == [1, 3, 1, 0]


# -- death


def next_life(folder: Path, exchange: int, history: list[StateChanges]) -> Grid:
    grid = Grid(store_in(folder), waits_for_commit=True)
    grid.restore(exchange, history)
    return grid


def test_a_grid_that_dies_goes_on_from_its_last_commit(tmp_path):
    """The uncommitted round might not have happened: its files are gone, its exchange numbers are given out again."""
    first, history = Grid(store_in(tmp_path), waits_for_commit=True), []
    for devices, keep in (((0, 1, 2), b"a" * SHARED_BYTES), ((1,), b"b" * SHARED_BYTES)):
        first.send_and_receive(orders(*devices, keep=keep))
        history.append(first.changes())
        first.commit()
    last = first.manifest.exchange
    first.send_and_receive(orders(0, 2, 3, keep=b"c" * SHARED_BYTES))
    next(stream := first.stream(orders(0, 1)))  # dies in the middle of an exchange
    assert names_of(first.store, "states") == ["0-1", "0-3", "0-4", "1-1", "1-2", "2-1", "2-3", "3-3"]
    LocalFiles(str(tmp_path)).write("states/00/0-9.0123456789abcdef.tmp", b"half a st")
    assert (last, len(names_of(first.store, "blobs"))) == (2, 3)

    second = next_life(tmp_path, last, history)
    stream.close()
    assert names_of(second.store, "states") == ["0-1", "1-1", "1-2", "2-1"] and len(names_of(second.store, "blobs")) == 2
    assert counts(second) == [1, 2, 1, 0] and second.changes().devices.tolist() == []
    replies = second.send_and_receive(orders(0, 1, 2, 3))
    assert answers(replies) == {0: 2, 1: 3, 2: 2, 3: 1}
    kept = {device_of(reply): reply.content["answer"]["kept"][:1] for reply in replies}
    assert kept == {0: b"a", 1: b"b", 2: b"a", 3: b""} and second.changes().exchanges.tolist() == [3] * 4
    second.commit()
    second.commit()
    assert names_of(second.store, "states") == ["0-3", "1-3", "2-3", "3-3"]


def test_message_ids_of_a_restored_grid_are_those_of_one_that_did_not_die(tmp_path):
    """They travel in replies, whose bytes the ledger counts: a counter of the process would make it another ledger."""
    first = Grid(store_in(tmp_path))
    ids = [list(first.push_messages(orders(0, 1, 2))) for _ in range(3)]
    assert len(set(sum(ids, []))) == 9
    second = next_life(tmp_path, 1, [])
    assert [list(second.push_messages(orders(0, 1, 2))) for _ in range(2)] == ids[1:]


ROUNDS = st.lists(
    st.tuples(
        st.lists(st.lists(st.integers(0, DEVICES - 1), unique=True), max_size=2),  # its exchanges
        st.sampled_from(["commit", "commit", "die", "die after the checkpoint", "die while deleting", "die and lose it"]),
    ),
    max_size=8,
)


@given(ROUNDS)
def test_whatever_dies_between_commits_never_happened(tmp_path_factory, rounds):
    """Against a list of counts. A checkpoint is what a run keeps: the changes and the exchange; the commit comes behind it, and a grid may
    die before, in the middle of it, or behind it and find the last checkpoint damaged."""
    folder = tmp_path_factory.mktemp("store")
    grid, history = Grid(store_in(folder), waits_for_commit=True), []
    kept = [(0, [0] * DEVICES)]  # exchange and counts at every checkpoint
    may_go_back = False
    for exchanges, end in rounds:
        played = list(kept[-1][1])
        for devices in exchanges:
            replies = answers(grid.send_and_receive([order(device, keep=bytes([device]) * SHARED_BYTES) for device in devices]))
            for device in devices:
                played[device] += 1
            assert replies == {device: played[device] for device in devices}
        if end != "die":
            history.append(grid.changes())
            kept.append((grid.manifest.exchange, played))
        if end in ("commit", "die and lose it"):
            grid.commit()
        elif end == "die while deleting":
            states, blobs = grid.manifest.commit()
            grid.store.drop(states[:1], blobs[:1])
        if end == "die and lose it" and may_go_back:
            del history[-1], kept[-1]
        may_go_back = end not in ("die", "die and lose it") or (end == "die" and may_go_back)
        exchange, expected = kept[-1]
        if end != "commit":
            grid = next_life(folder, exchange, history)
        assert counts(grid) == expected and grid.manifest.exchange == exchange
        reached = [str(device) for device in range(DEVICES) if expected[device]]
        found = [name.split("-")[0] for name in names_of(grid.store, "states")]
        assert list(dict.fromkeys(found)) == reached and len(found) <= 2 * len(reached)  # the last and the one before, nothing else
        assert len(names_of(grid.store, "blobs")) == len(reached)
    for _ in range(2):
        grid.commit()
    assert len(names_of(grid.store, "states")) == sum(count > 0 for count in kept[-1][1])


def test_a_grid_that_is_told_nothing_starts_afresh(tmp_path):
    Grid(store_in(tmp_path)).send_and_receive(orders(0, 1))
    grid = next_life(tmp_path, 0, [])
    assert names_of(grid.store, "states") == [] and counts(grid) == [0, 0, 0, 0]


def test_a_store_that_fails_in_an_exchange_ends_it_and_the_state_counts_as_before(tmp_path):
    """A full disk, say. The next exchange may work again."""

    class Full(LocalFiles):
        def write(self, key, data):
            if key.endswith("1-2"):
                raise OSError(28, "No space left on device")
            super().write(key, data)

    grid = Grid(StateStore(Full(str(tmp_path))))
    grid.send_and_receive(orders(0, 1))
    with pytest.raises(StoreError, match="No space left on device"):
        grid.send_and_receive(orders(0, 1, 2))
    assert counts(grid) == [2, 1, 0, 0] and all_done(grid)
    assert answers(grid.send_and_receive(orders(1))) == {1: 2}


def test_a_cache_told_of_another_store_uses_it(tmp_path):
    """As when a node that held states is lost."""
    old, new = store_in(tmp_path / "old"), store_in(tmp_path / "new")
    grid = Grid(old)
    cache = StateCache(old, 0)
    grid.send_and_receive(orders(0))
    parcel = cache.get(0, 1)
    cache.use(new)
    cache.put(5, 1, parcel)
    assert (names_of(old, "states"), names_of(new, "states")) == (["0-1"], ["5-1"])
    with pytest.raises(StateLost):
        cache.get(0, 1)
