"""A process on a node, known well enough that nobody else's is ended in its place.

Ray takes a worker for lost when their connection breaks. An app that closes files it does not own breaks it, and the process goes on: it
spins on what it has left, and writes a complaint into its log each time.
"""

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import ray

from simulations.engine.cluster import on_node


@dataclass(frozen=True)
class ProcessOnNode:
    """started: when it was, in ticks since the node was booted, as a number is given to another process some day; empty: not known."""

    node: str
    number: int
    started: str


def this_process() -> ProcessOnNode:
    return ProcessOnNode(ray.get_runtime_context().get_node_id(), os.getpid(), _started(os.getpid()))


def end_process(process: ProcessOnNode) -> None:
    """End it wherever it runs, if it still does. On another node some time later, and not at all where the node is gone."""
    if process.node == ray.get_runtime_context().get_node_id():
        _end(process)
    else:
        ray.remote(num_cpus=0, max_retries=0)(_end).options(scheduling_strategy=on_node(process.node)).remote(process)


def _end(process: ProcessOnNode) -> None:
    if process.started and process.started == _started(process.number):
        with contextlib.suppress(OSError):
            os.kill(process.number, signal.SIGKILL)


def _started(number: int) -> str:
    """From /proc/NUMBER/stat: behind the name, which may hold anything, the 20th figure."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):  # it ended, or this system has no such files
        return ""
