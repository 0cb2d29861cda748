"""The apps as `flwr run .` loads them: its checks of pyproject.toml, its loader, its run config. Nothing is started."""

import json
import logging
import tomllib
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.cli.build import build_fab_from_files, get_filtered_fab_paths
from flwr.clientapp import ClientApp
from flwr.clientapp.client_app import LoadClientAppError
from flwr.common.config import fuse_dicts, get_fused_config_from_dir, parse_config_args, validate_config
from flwr.serverapp import ServerApp
from flwr.serverapp.server_app import LoadServerAppError
from flwr.supercore.object_ref import load_app
from worlds import TINY, tiny_world

from server.errors import FleetError
from simulations.engine.adapter import RUN_ID, identify_process
from simulations.engine.inline import InlineGrid
from simulations.flower_apps import overrides
from simulations.run import run_world

ROOT = Path(__file__).parents[2]
PACKAGES = ("sparcl_core", "client", "server", "simulations")


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def load_apps(project: dict) -> tuple[ServerApp, ClientApp]:
    names = project["tool"]["flwr"]["app"]["components"]
    return load_app(names["serverapp"], LoadServerAppError, ROOT), load_app(names["clientapp"], LoadClientAppError, ROOT)


def run(project: dict, config: str, nodes: int = 3) -> None:
    """Both apps with `--run-config config` on the inline engine."""
    server_app, client_app = load_apps(project)
    run_config = get_fused_config_from_dir(ROOT, parse_config_args([config]))
    grid = InlineGrid(lambda: client_app, (), nodes, run_config=run_config)
    server_app(grid, Context(RUN_ID, 0, {}, RecordDict(), run_config))


def test_flower_accepts_the_project(project):
    assert validate_config(project, check_module=True, project_dir=ROOT) == (True, [], [])
    server_app, client_app = load_apps(project)
    assert isinstance(server_app, ServerApp) and isinstance(client_app, ClientApp)


def test_everything_that_the_apps_need_is_bundled_and_nothing_else(project):
    """Code and experiments; no tests, and no file that Flower's own rules would refuse."""
    ours = {str(path.relative_to(ROOT)): path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.suffix in (".py", ".toml")}
    others = {str(path.relative_to(ROOT)): path for path in (ROOT / "tests").rglob("*.py")}
    assert set(get_filtered_fab_paths(ours | others | {"README.md": ROOT / "README.md"}, project)) == ours.keys()
    bundle, _ = build_fab_from_files(ours | {"pyproject.toml": ROOT / "pyproject.toml"})
    assert 0 < len(bundle) < 2_000_000


def test_a_run_has_the_result_of_our_own_command(project, tmp_path, caplog):
    out = tmp_path / "result.json"
    with caplog.at_level(logging.INFO, "flwr"):
        run(project, f'experiment="{TINY}" set="stream.tasks=1 seed=1" out="{out}"')
    own = run_world(tiny_world("stream.tasks=1", "seed=1"), "inline")
    found = json.loads(out.read_text())
    assert (found["experiment"], found["seed"]) == ("tiny", 1)
    for row, name in enumerate(("class-il", "task-il")):
        assert found["matrices"][name] == own.accuracy[row].tolist()
        assert found["accuracy"][name]["average"] == own.scores(row).average
    totals = own.strategy.ledger.totals()
    assert found["totals"].pop("message_bytes") > totals.pop("message_bytes")  # here devices are asked who they are
    assert found["totals"] == json.loads(json.dumps(totals))
    rounds = [message.partition(",")[0] for message in caplog.messages if message.startswith("round ")]
    assert rounds == [f"round {record.round}" for record in own.rounds]
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("error", [ValueError("\x1b[31mso\ud800rry" + "y" * 10_000), KeyError()])
def test_a_device_that_fails_says_so_in_one_printable_line(project, monkeypatch, caplog, error):
    def fail(*_):
        raise error

    monkeypatch.setattr("simulations.flower_apps._client", lambda *_: fail)
    _, app = load_apps(project)
    context = Context(RUN_ID, 7, {}, RecordDict(), get_fused_config_from_dir(ROOT, parse_config_args(["patience-seconds=0"])))
    identify_process()
    for kind in ("query", "train", "query.calibrate"):
        reply = app(Message(RecordDict(), 7, kind), context)
        assert reply.has_error() and reply.error.reason.isprintable() and len(reply.error.reason) <= 500
        assert reply.error.reason.startswith(("so\ufffdrry", "KeyError")) and "in fail" in caplog.messages[-1]


def test_a_fleet_that_is_too_small_is_refused(project):
    with pytest.raises(FleetError, match="stream.devices is 3, but 2 SuperNodes are connected"):
        run(project, f'experiment="{TINY}" patience-seconds=0', 2)


def test_a_node_too_many_is_left_out(project, caplog):
    with caplog.at_level(logging.WARNING):
        run(project, f'experiment="{TINY}" set="stream.tasks=1 federation.rounds=1" patience-seconds=0', 4)
    assert sum("could not be registered" in message for message in caplog.messages) == 1


def test_settings_in_one_string():
    assert overrides("") == []
    assert overrides(" learner.lr=0.1  seed=3 ") == ["learner.lr=0.1", "seed=3"]
    assert overrides('model.sparse=["conv2.weight", "fc.weight"]; seed=3;') == ['model.sparse=["conv2.weight", "fc.weight"]', "seed=3"]


def test_a_key_that_there_is_not_is_refused(project):
    with pytest.raises(ValueError, match="Key 'experimnt' is not present"):
        fuse_dicts(project["tool"]["flwr"]["app"]["config"], {"experimnt": "x"})
