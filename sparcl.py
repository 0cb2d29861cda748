"""SparCL Fleet in a script or a notebook, and `python -m sparcl` is the command line.

    import sparcl

    result = sparcl.run("split-digits", "learner.lr=0.05", "seed=3", engine="inline")
    print(result.scores(0).average)  # Class-IL accuracy over all tasks

Nothing heavy is imported before it is needed: `import sparcl` and `sparcl.load` know neither PyTorch nor Ray.
"""

import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from simulations.config.errors import ConfigError
    from simulations.config.experiment import Experiment
    from simulations.run import Observer, Result
    from simulations.single_device import SoloResult

__all__ = ["ConfigError", "Experiment", "Observer", "Result", "SoloResult", "load", "run", "train_one"]
_WHERE = {
    "ConfigError": "simulations.config.errors", "Experiment": "simulations.config.experiment",
    "Observer": "simulations.run", "Result": "simulations.run",
    "SoloResult": "simulations.single_device",
}  # fmt: skip


def load(experiment: str = "split-digits", *overrides: str, dense: bool = False) -> "Experiment":
    """An experiment, checked and complete.

    Args:
        experiment: a name from `sparcl list`, or the path of a TOML file.
        overrides: `learner.lr=0.05`, as with `--set`.
        dense: its dense twin, without sparsity of any kind.

    Raises:
        ConfigError: names all that is wrong.
    """
    return _load(experiment, overrides, dense)


def run(
    experiment: "str | Experiment" = "split-digits",
    *overrides: str,
    engine: Literal["ray", "inline"] = "ray",
    workers: int = 0,
    dense: bool = False,
    observer: "Observer | None" = None,
) -> "Result":
    """A fleet learns a task stream, as with `sparcl run`, but nothing is written.

    Args:
        experiment, overrides, dense: as for `load`; or an experiment that is loaded already, without overrides.
        engine: `ray` for worker processes, `inline` for this one. The result is the same.
        workers: Ray workers; 0: one per core.
        observer: is told of every round.

    Raises:
        ConfigError: before anything starts, if something is wrong.
    """
    made = _resolved(experiment, overrides, dense)
    preflight = _import("simulations.preflight")
    known = () if engine in ("ray", "inline") else (f"engine is {engine!r}: there are ray and inline",)
    is_there = "ray" in sys.modules and sys.modules["ray"].is_initialized()  # else Ray is started here, and ended behind the run
    preflight.expect(known, preflight.experiment_files(made), preflight.engine_options(engine, "", 0 if is_there else workers))
    from simulations.build import bind_data, choose_kernels, make_world
    from simulations.run import run_world

    world = make_world(choose_kernels(bind_data(made)))
    if engine == "inline":
        return run_world(world, engine, observer=observer)
    try:
        return run_world(world, engine, workers, observer=observer)
    finally:
        if not is_there:
            _import("simulations.engine.cluster").stop_ray()


def train_one(experiment: "str | Experiment" = "split-digits", *overrides: str, dense: bool = False) -> "SoloResult":
    """One device that sees all data, without Flower or Ray, as with `sparcl train-one`. Arguments and errors: as for `run`."""
    made = _resolved(experiment, overrides, dense, alone=True)
    preflight = _import("simulations.preflight")
    preflight.expect(preflight.alone(made), preflight.experiment_files(made))
    from simulations.build import bind_data, choose_kernels
    from simulations.single_device import train_one

    return train_one(choose_kernels(bind_data(made)), lambda progress, accuracy: None)


def main() -> None:
    """The command line."""
    try:
        command = _import("simulations.__main__")
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    command.main()


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(_import(_WHERE[name]), name)
    raise AttributeError(f"module 'sparcl' has no attribute {name!r}; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])


def _load(experiment: str, overrides: tuple[str, ...], dense: bool, *, alone: bool = False) -> "Experiment":
    made = _import("simulations.config.loading").load(experiment, list(overrides))
    unread = _import("simulations.config.unread")
    unread.expect_read(made, unread.Given.of(experiment, overrides), alone=alone)
    return _import("simulations.config.experiment").dense_twin(made) if dense else made


def _resolved(experiment: "str | Experiment", overrides: tuple[str, ...], dense: bool, *, alone: bool = False) -> "Experiment":
    if isinstance(experiment, str | os.PathLike):
        return _load(os.fspath(experiment), overrides, dense, alone=alone)
    if overrides:
        _import("simulations.config.errors").several("", ["overrides need an experiment's name or file: give them to sparcl.load"])
    return _import("simulations.config.experiment").dense_twin(experiment) if dense else experiment


def _import(name: str):
    """A module of ours; `simulations` itself looks whether its neighbours are ours too."""
    found = importlib.import_module("simulations")
    if not hasattr(found, "expect_ours"):
        where = getattr(found, "__file__", None) or f"the folder {list(getattr(found, '__path__', ['?']))[0]}"
        raise ImportError(f"'simulations' is {where} here, and SparCL Fleet needs its own package of that name: rename it")
    return importlib.import_module(name)


if __name__ == "__main__":
    here = os.getcwd()
    if Path(here) != Path(__file__).resolve().parent and sys.path[:1] in ([""], [here]):
        del sys.path[0]  # `python -m` put it there; what lies in the folder is none of our modules, whatever its name
    main()
