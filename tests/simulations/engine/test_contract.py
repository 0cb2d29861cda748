"""What a ServerApp may expect of a Grid, on our engines and on Flower's own in-memory Grid, with the same expectations."""

import sys
import time
from pathlib import Path

import pytest
import ray
from flowers import FlowersGrid
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from simulations.engine import cluster
from simulations.engine.inline import InlineGrid
from simulations.engine.ray import RayGrid

UNKNOWN, RAISED, UNAVAILABLE = 0, 2, 3


def make_app() -> ClientApp:
    """Counts a node's messages in its state and does what it is told."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message | None:
        order = message.content["order"]
        context.state["count"] = ConfigRecord({"n": 1 + (context.state["count"]["n"] if "count" in context.state else 0)})
        if order["do"] == "raise":
            raise ValueError("told to")
        if order["do"] == "configure":
            context.run_config["lr"] = 1.0
        if order["do"] == "nap":
            time.sleep(0.5)
        while order["do"] == "wait" and not Path(order["until"]).exists():
            time.sleep(0.01)
        if order["do"] == "nothing":
            return None
        return Message(RecordDict({"answer": ConfigRecord({"count": context.state["count"]["n"]})}), reply_to=message)

    return app


@pytest.fixture(scope="module", params=["flower", "inline", pytest.param("ray", marks=pytest.mark.ray)])
def grid(request):
    if request.param == "flower":
        opened = FlowersGrid(make_app(), 3)
    elif request.param == "inline":
        opened = InlineGrid(make_app, (), 3)
    else:
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        cluster.start_ray(2)
        opened = RayGrid(make_app, (), 3, workers=2)
    yield opened
    opened.close()
    if request.param == "ray":
        cluster.stop_ray()


def order(node: int, do: str = "", until: str = "", ttl: float | None = None) -> Message:
    return Message(RecordDict({"order": ConfigRecord({"do": do, "until": until})}), node, "train", ttl=ttl, group_id="7")


def pull_all(grid, ids: list[str]) -> dict[str, Message]:
    """Ask until every message has its reply."""
    found = {}
    while left := [number for number in ids if number not in found]:
        for reply in grid.pull_messages(left):
            assert found.setdefault(reply.metadata.reply_to_message_id, reply) is reply
        time.sleep(0.01)
    return found


def count(grid, node: int) -> int:
    (reply,) = grid.send_and_receive([order(node)])
    return reply.content["answer"]["count"]


def test_a_reply_says_whose_it_is_and_has_an_id(grid):
    nodes = list(grid.get_node_ids())
    sent = [order(node) for node in nodes]
    ids = list(grid.push_messages(sent))
    assert [message.metadata.message_id for message in sent] == ids and len(set(ids)) == 3
    found = pull_all(grid, ids)
    assert [found[number].metadata.src_node_id for number in ids] == nodes
    told = [reply.metadata for reply in found.values()]
    assert {(one.dst_node_id, one.run_id, one.message_type, one.group_id) for one in told} == {(1, 1, "train", "7")}
    assert len({one.message_id for one in told} - {""}) == 3 and all(0 < one.ttl <= 43_200 for one in told)


def test_what_was_pulled_or_never_sent_is_unavailable(grid):
    (number,) = grid.push_messages([order(list(grid.get_node_ids())[0])])
    assert not pull_all(grid, [number])[number].has_error()
    for _ in range(2):
        replies = list(grid.pull_messages([number, "never", number]))
        assert sorted(reply.metadata.reply_to_message_id for reply in replies) == sorted([number, "never"])
        assert {reply.error.code for reply in replies} == {UNAVAILABLE} and all(reply.metadata.message_id for reply in replies)
        assert {(reply.metadata.src_node_id, reply.metadata.dst_node_id) for reply in replies} == {(1, 1)}
    assert list(grid.pull_messages([])) == []


def test_a_pull_does_not_wait(grid, tmp_path):
    """Until the file is there, no reply can be. The inline engine has nobody else to wait for it."""
    if isinstance(grid, InlineGrid):
        pytest.skip("a pull does the work itself")
    go = tmp_path / "go"
    (number,) = grid.push_messages([order(list(grid.get_node_ids())[1], "wait", str(go))])
    assert list(grid.pull_messages([number])) == list(grid.pull_messages([number])) == []
    go.touch()
    assert not pull_all(grid, [number])[number].has_error()


def test_messages_to_unknown_nodes_are_left_out(grid):
    first, second, _ = grid.get_node_ids()
    ids = list(grid.push_messages([order(first), order(987_654_321), order(second)]))
    assert len(ids) == 2
    assert [reply.metadata.src_node_id for reply in map(pull_all(grid, ids).get, ids)] == [first, second]
    (reply,) = grid.send_and_receive([order(987_654_321), order(second)])
    assert reply.metadata.src_node_id == second


def test_a_message_lives_for_its_ttl(grid):
    first, second, _ = grid.get_node_ids()
    long, short = sorted(grid.send_and_receive([order(first, "nap", ttl=0.2), order(second, ttl=60.0)]), key=Message.has_error)
    assert (long.metadata.src_node_id, short.error.code) == (second, UNAVAILABLE) and short.metadata.reply_to_message_id
    (number,) = grid.push_messages([order(first, "nap", ttl=0.2)])
    assert pull_all(grid, [number])[number].error.code == UNAVAILABLE


@pytest.mark.parametrize("wrong", ["reply", "ttl"])
def test_what_is_no_message_to_a_node_is_refused(grid, wrong):
    (node, *_) = grid.get_node_ids()
    (reply,) = grid.send_and_receive([order(node)])
    dead = order(node)
    dead.metadata.ttl = -1.0
    with pytest.raises(ValueError):
        grid.push_messages([reply if wrong == "reply" else dead])


@pytest.mark.parametrize(("do", "code", "reason"), [("raise", RAISED, "told to"), ("configure", UNKNOWN, "cannot be modified")])
def test_a_failure_is_an_error_reply_and_leaves_the_state(grid, do, code, reason):
    node = list(grid.get_node_ids())[2]
    before = count(grid, node)
    (reply,) = grid.send_and_receive([order(node, do)])
    assert (reply.metadata.src_node_id, reply.error.code) == (node, code) and reason in reply.error.reason
    assert count(grid, node) == before + 1


def test_who_returns_no_message_fails_alone(grid):
    """Flower's node never replies, which is why its caller has to bring a timeout; ours says what was returned."""
    first, second, _ = grid.get_node_ids()
    patience_s = 3.0 if isinstance(grid, FlowersGrid) else 60.0
    replies = list(grid.send_and_receive([order(first, "nothing"), order(second)], timeout=patience_s))
    good = [reply for reply in replies if not reply.has_error()]
    assert [reply.metadata.src_node_id for reply in good] == [second]
    if not isinstance(grid, FlowersGrid):
        (bad,) = (reply for reply in replies if reply.has_error())
        assert (bad.metadata.src_node_id, bad.error.code) == (first, RAISED) and "returned None" in bad.error.reason


def test_after_its_timeout_a_call_returns_what_is_there(grid, tmp_path):
    if isinstance(grid, InlineGrid):
        pytest.skip("one message after the other: nothing else is there while one waits")
    first, second, _ = grid.get_node_ids()
    go = tmp_path / "go"
    list(grid.send_and_receive([order(first, "nap"), order(second, "nap")]))  # both workers are there: the timeout is not for their start
    replies = list(grid.send_and_receive([order(first, "wait", str(go)), order(second)], timeout=3.0))
    go.touch()
    assert [reply.metadata.src_node_id for reply in replies] == [second]
