"""A real network between two nodes: two namespaces joined by a virtual cable, which is cut in the middle of a run.

Needs root and iproute2, so it is apart: `make test-network`. The second node sees no copy of our code, and no file of the run.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from worlds import TINY, assert_same_arrays, tiny_world

from simulations.engine.cluster import OUR_PACKAGES, OUR_ROOT
from simulations.run import run_world

pytestmark = [
    pytest.mark.network,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and iproute2"),
]
HEAD, NODE = "10.77.11.1", "10.77.11.2"
PORT = 6399


def sh(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True, text=True)


@pytest.fixture
def network():
    """Two namespaces and a cable. Whatever still runs in them at the end is ended."""
    names = [f"sparcl-{os.getpid()}-{side}" for side in ("head", "node")]
    cables = [f"sp{os.getpid() % 100_000}{side}" for side in "hn"]
    for name in names:
        sh(f"ip netns add {name}")
    try:
        sh(f"ip link add {cables[0]} type veth peer name {cables[1]}")
        for name, cable, address in zip(names, cables, (HEAD, NODE), strict=True):
            sh(f"ip link set {cable} netns {name}")
            sh(f"ip -n {name} addr add {address}/24 dev {cable}")
            sh(f"ip -n {name} link set lo up")
            sh(f"ip -n {name} link set {cable} up")
        yield names, cables
    finally:
        for name in names:
            for process in subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)
            sh(f"ip netns del {name}")


def ray_start(namespace: str, own: str, folder: Path, *options: str, hide: bool = False) -> None:
    """`ray start` in a namespace; with `hide` where our code is not."""
    command = [str(Path(sys.executable).parent / "ray"), "start", "--node-ip-address", own, "--num-cpus", "1", "--temp-dir", str(folder)]
    command += ["--disable-usage-stats", *options]
    if hide:
        mounts = " && ".join(f"mount -t tmpfs none {OUR_ROOT / name}" for name in OUR_PACKAGES)
        command = ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh", *command]
    environment = os.environ | {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "2000"}
    folder.mkdir(parents=True)
    with open(folder / "start.log", "w+") as told:  # not a pipe: the daemons would hold it open
        done = subprocess.run(["ip", "netns", "exec", namespace, *command], env=environment, cwd="/", stdout=told, stderr=told, timeout=120)
        told.seek(0)
        assert done.returncode == 0, told.read()


def test_a_node_that_is_cut_off_in_the_middle_of_a_run_changes_nothing(network, tmp_path):
    """The head goes on alone, with what it has of the states, and the result is that of the inline engine."""
    (head, node), (cable, _) = network
    short = Path("/tmp") / f"sp{os.getpid()}"  # Ray's sockets have short names
    ray_start(head, HEAD, short / "h", "--head", "--port", str(PORT), "--include-dashboard", "false")
    ray_start(node, NODE, short / "n", "--address", f"{HEAD}:{PORT}", hide=True)
    command = [sys.executable, "-m", "simulations", "run", str(TINY), "--ray-address", f"{HEAD}:{PORT}", "--out", str(tmp_path)]
    run = subprocess.Popen(
        ["ip", "netns", "exec", head, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/", env=os.environ
    )
    said = []
    for line in run.stdout:
        said.append(line.rstrip())
        if line.startswith("round 2/"):
            time.sleep(0.1)  # well into round 3
            sh(f"ip -n {head} link set {cable} down")
    shutil.rmtree(short, ignore_errors=True)
    text = "\n".join(said)
    assert run.wait() == 0, text
    assert "was lost" in text or "held device states" in text, text
    inline = run_world(tiny_world(), "inline").strategy
    weights = load_file(tmp_path / "tiny-seed0" / "model.safetensors")
    assert_same_arrays({name: value for name, value in weights.items() if not name.startswith("mask/")}, inline.weights)
