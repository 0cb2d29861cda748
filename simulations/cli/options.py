"""The command's app, and the arguments and options that several commands share."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import typer

from simulations.engine.address import cluster_address

# Click suggests the nearest command by itself, and Typer would do it once more.
app = typer.Typer(
    suggest_commands=False, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich"
)


class Engine(StrEnum):
    ray = "ray"
    inline = "inline"


class Backbone(StrEnum):
    mlp = "mlp"
    cnn = "cnn"
    resnet18 = "resnet18"
    mobilenetv2 = "mobilenetv2"
    mobilenetv3_small = "mobilenetv3-small"
    efficientnet_b0 = "efficientnet-b0"
    vit_tiny = "vit-tiny"


@dataclass(frozen=True)
class Workers:
    """Options of the Ray engine; their meaning: `simulations.engine.pool.EngineOptions`, which has the same fields."""

    workers: int
    address: str
    gpus_per_worker: float
    cache_mb: int
    device_timeout_s: float
    tries: int

    def problems(self, engine: str) -> Iterator[str]:
        from simulations import preflight

        amounts = {"gpus_per_worker": self.gpus_per_worker, "device_timeout_s": self.device_timeout_s}
        yield from preflight.engine_options(engine, self.address, self.workers, **amounts)
        if engine == "ray":
            yield from cluster_address(self.address)


ExperimentArgument = Annotated[str, typer.Argument(metavar="EXPERIMENT", help="An experiment's name (`sparcl list`), or a TOML file.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of an unfinished run.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. learner.lr=0.05.")]
SeedOption = Annotated[int | None, typer.Option(help="Seed of the run; default: the experiment's own.")]
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the run folder goes.")]
DenseOption = Annotated[bool, typer.Option("--dense", help="Run the dense twin itself: no sparsity of any kind, fp32 on the wire.")]
DownloadOption = Annotated[bool, typer.Option("--download", help="Fetch a benchmark's data first, if it is not there.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
WorkersOption = Annotated[int, typer.Option(min=0, help="Ray workers; 0: one per core. The result does not depend on it.")]
AddressOption = Annotated[str, typer.Option(metavar="auto|HOST:PORT", help="A running Ray cluster; default: a Ray of its own.")]
GpusOption = Annotated[float, typer.Option(min=0, help="Share of a GPU that each worker holds, for ClientApps that use one.")]
CacheOption = Annotated[int, typer.Option(min=0, metavar="MB", help="Device states that each worker keeps in memory.")]
TimeoutOption = Annotated[float, typer.Option(min=0, metavar="SECONDS", help="A device that takes longer counts as hung; 0: never.")]
TriesOption = Annotated[int, typer.Option(min=1, help="How often a device is tried when it loses its worker.")]


@app.callback()
def about() -> None:
    """SparCL Fleet: fleets of edge devices that learn continually, with sparse training, through Flower on Ray."""
