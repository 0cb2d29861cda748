"""What a message costs: an app that sends back what it was sent, and a server that sums the replies in float64 in device order."""

import time

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from benchmarks.engine import work
from benchmarks.engine.dense import OrderedSum, exchange
from benchmarks.engine.quickstart import simulate

SIZES = {"dense": work.PARAMETERS, "small": 1024}  # float32 values: 8.7 MB and 4 KB
app = ClientApp()


@app.query()
def echo(message: Message, context: Context) -> Message:
    """A copy of the payload goes back, as from an app that has made something new of it."""
    values = np.frombuffer(message.content["global"]["weights"], np.float32)
    return Message(RecordDict({"local": ConfigRecord({"weights": values.tobytes()})}), reply_to=message)


def client_app() -> ClientApp:
    return app


def ours(rounds: int, cores: int) -> dict:
    from simulations.engine.ray import RayGrid

    grid = RayGrid(client_app, (), work.DEVICES, workers=cores)
    try:
        return _measure(grid, rounds)
    finally:
        grid.close()


def flower(rounds: int, cores: int) -> dict:
    server, found = ServerApp(), {}

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        while len(list(grid.get_node_ids())) < work.DEVICES:
            time.sleep(0.1)
        found.update(_measure(grid, rounds))

    simulate(server, app, cores)
    return found


def bare_ray(rounds: int, cores: int) -> dict:
    """One actor per core; the payload goes into the store once a round, and an actor has at most two calls waiting."""
    import ray

    from simulations.engine.cluster import start_ray

    start_ray(cores)
    actors = [ray.remote(num_cpus=1)(_Echo).remote() for _ in range(cores)]
    found = {}
    for name, size in SIZES.items():
        payload, total, rounds_s = np.ones(size, np.float32), OrderedSum(size), []
        for _ in range(rounds + 1):
            begin = time.perf_counter()
            sent, running, waiting, free = ray.put(payload), {}, list(range(work.DEVICES))[::-1], actors * 2
            while waiting or running:
                while waiting and free:
                    actor = free.pop()
                    device = waiting.pop()
                    running[actor.echo.remote(sent)] = (device, actor)
                done, _ = ray.wait(list(running), num_returns=1)
                device, actor = running.pop(done[0])
                free.append(actor)
                total.add(device, ray.get(done[0]))
            _check(total.take(work.DEVICES))
            rounds_s.append(time.perf_counter() - begin)
        found[name] = _per_message(rounds_s)
    return found


class _Echo:
    def echo(self, values: np.ndarray) -> np.ndarray:
        return values.copy()


def _measure(grid: Grid, rounds: int) -> dict:
    """Milliseconds per message, by size."""
    found = {}
    for name, size in SIZES.items():
        payload, total, rounds_s = np.ones(size, np.float32), OrderedSum(size), []
        for number in range(rounds + 1):
            begin = time.perf_counter()
            _check(exchange(grid, "query", payload.tobytes(), total, f"{name}-{number}"))
            rounds_s.append(time.perf_counter() - begin)
        found[name] = _per_message(rounds_s)
    return found


def _check(summed: np.ndarray) -> None:
    if summed[0] != work.DEVICES or summed[-1] != work.DEVICES:
        raise RuntimeError(f"the sum is {summed[0]} instead of {work.DEVICES}")


def _per_message(rounds_s: list[float]) -> float:
    """The first round is not counted."""
    return 1000 * sum(rounds_s[1:]) / len(rounds_s[1:]) / work.DEVICES
