"""Two Flower apps as its PyTorch quickstart writes them, on Flower's Ray engine and, unchanged, on ours.

The ClientApp builds a model, loads the ArrayRecord into it, trains and sends an ArrayRecord back; the ServerApp is Flower's own FedAvg.
Times are taken from inside the strategy.
"""

import time

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from benchmarks.engine import work

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    torch.set_num_threads(1)
    model = work.Net()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    images, labels = work.data()
    device = context.node_config["partition-id"]
    work.train(model, images[device], labels[device])
    metrics = MetricRecord({"num-examples": work.SAMPLES})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=msg)


def client_app() -> ClientApp:
    return app


class TimedFedAvg(FedAvg):
    """FedAvg that notes when a round begins and when its new model is there."""

    def __init__(self):
        super().__init__(fraction_train=1.0, fraction_evaluate=0.0)
        self.rounds_s: list[float] = []
        self._begin = 0.0

    def configure_train(self, server_round, arrays, config, grid):
        self._begin = time.perf_counter()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        if (count := sum(not reply.has_error() for reply in replies)) != work.DEVICES:
            raise RuntimeError(f"only {count} of {work.DEVICES} devices could be used")
        result = super().aggregate_train(server_round, replies)
        self.rounds_s.append(time.perf_counter() - self._begin)
        return result


def server_app(strategy: FedAvg, rounds: int) -> ServerApp:
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy.start(grid=grid, initial_arrays=ArrayRecord(work.build().state_dict()), num_rounds=rounds + 1)

    return server


def flower(rounds: int, cores: int) -> dict:
    strategy = TimedFedAvg()
    first_reply_s = simulate(server_app(strategy, rounds), app, cores)
    return work.measured(strategy.rounds_s[1:], first_reply_s)


def ours(rounds: int, cores: int) -> dict:
    from simulations.engine.adapter import RUN_ID
    from simulations.engine.ray import RayGrid

    strategy, start, heard = TimedFedAvg(), time.perf_counter(), []
    grid = RayGrid(client_app, (), work.DEVICES, workers=cores, on_reply=lambda device: heard.append(time.perf_counter()))
    try:
        server_app(strategy, rounds)(grid, Context(RUN_ID, 0, {}, RecordDict(), {}))
    finally:
        grid.close()
    return work.measured(strategy.rounds_s[1:], heard[0] - start)


def simulate(server: ServerApp, client: ClientApp, cores: int) -> float:
    """Run two apps on Flower's Ray engine. Returns seconds until the server saw the first reply."""
    import ray  # noqa: F401  imported before the clock starts, as on our engine
    from flwr.simulation import run_simulation
    from flwr.superlink.grid import InMemoryGrid

    heard, pull = [], InMemoryGrid.pull_messages

    def pull_and_note(self, message_ids):
        replies = list(pull(self, message_ids))
        heard.extend(time.perf_counter() for _ in replies[: not heard])
        return replies

    InMemoryGrid.pull_messages = pull_and_note
    start = time.perf_counter()
    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": cores, "log_to_driver": False}}
    run_simulation(server, client, num_supernodes=work.DEVICES, backend_config=resources)
    return heard[0] - start
