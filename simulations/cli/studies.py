"""Commands around runs: `list`, `reproduce`, `doctor`, `calibrate`."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from simulations.cli.messages import console, errors, one_message, say
from simulations.cli.options import Backbone, DebugOption, ExperimentArgument, OutOption, SeedOption, SetOption, app
from sparcl_core.foreign import printable

LISTED = (
    "experiments",
    "methods",
    "corrections",
    "schemes",
    "data",
    "models",
    "rules",
    "policies",
    "availability",
    "profiles",
    "claims",
    "settings",
)


@app.command("list")
def list_names(
    what: Annotated[str, typer.Argument(metavar="[KIND]", help=f"One of {', '.join(LISTED)}.")] = "",
    which: Annotated[str, typer.Argument(metavar="[SETTING]", help="Of settings: a section, or how a key begins.")] = "",
) -> None:
    """What a run can name: experiments, methods, data sets and so on, with a line for each and where it comes from; and what can be set."""
    with one_message(debug=False):
        from simulations.cli.listing import all_settings, everything, one_kind, some_settings
        from simulations.config.errors import ConfigError, did_you_mean

        if what and what not in LISTED:
            hint = did_you_mean(what, LISTED)
            raise ConfigError(f"there is no list of {printable(repr(what), 120)};{hint} there are {', '.join(LISTED)}")
        if which and what != "settings":
            raise ConfigError(f"{printable(which, 120)} is one too many: sparcl list {what} lists them all; only settings have sections")
        if what == "settings":
            lines = some_settings(which) if which else all_settings()
        else:
            lines = one_kind(what) if what else everything()
        for line in lines:
            say(line)


@app.command()
def reproduce(
    claim: Annotated[str, typer.Argument(metavar="CLAIM", help="A published table, e.g. masks, or a TOML file.")] = "split-digits",
    processes: Annotated[int, typer.Option(min=0, help="Runs at once; 0: one per core.")] = 0,
    out: OutOption = Path("runs"),
    debug: DebugOption = False,
) -> None:
    """Repeat a published table: all rows and seeds, paired differences with a 95 % interval."""
    with one_message(debug):
        from simulations import preflight
        from simulations.tables.claim_file import load_claim
        from simulations.tables.reproduce import run_claim

        loaded = load_claim(claim)
        total, count = len(loaded.jobs), 0
        wrong: dict[str, list[str]] = {}  # rows have most of their settings in common, and so what is wrong with them
        for row, seed in loaded.jobs:
            for problem in preflight.experiment_files(loaded.experiment_of(row, seed)):
                wrong.setdefault(problem, []).append(row.name)
        told = (f"{', '.join(dict.fromkeys(rows))}: {problem}" for problem, rows in wrong.items())
        preflight.expect(told, preflight.output_folder(out))
        say(f"{loaded.name}: starting {total} runs of {len(loaded.rows)} rows")
        from simulations.environment import software
        from simulations.results.folder import kept_folder, new_folder
        from simulations.results.write import write_claim
        from simulations.tables.markdown import markdown
        from simulations.tables.picture import draw_sweep

        def done(row: str, seed: int, summary: dict) -> None:
            nonlocal count
            count += 1
            figures = summary["accuracy"]
            scenario = "Class-IL" if figures["class-il"]["average"] is not None else "Task-IL"
            say(f"{count}/{total}  {row}  seed {seed}  {scenario} {figures[scenario.lower()]['average']:.1%}")

        with kept_folder(out, f".claim-{loaded.name}.runs") as kept, new_folder(out, f"claim-{loaded.name}") as (folder, final):
            results = run_claim(loaded, min(processes or os.cpu_count() or 1, total), done, kept)
            table = markdown(loaded, results)
            write_claim(folder, table, results)
            if loaded.sweep:
                draw_sweep(loaded, results, folder / "sweep.png")
        console.print(f"\n{table}\n", soft_wrap=True, markup=False)
        made = [summary["software"] for row in results.values() for summary in row.values()]
        if others := sum(one != software() for one in made):
            say(f"{others} of {total} runs are of before, made by other versions of the software; runs.json says which")
        say(f"folder: {final}")


@app.command()
def layers(
    experiment: ExperimentArgument = "split-digits", set_: SetOption = None, seed: SeedOption = None, debug: DebugOption = False
) -> None:
    """Which layers of an experiment's model are sparse, which stay dense, and why."""
    with one_message(debug):
        from simulations import preflight
        from simulations.cli.carrying_out import load_experiment
        from simulations.config.errors import ConfigError

        resolved = load_experiment(experiment, set_, seed=seed, dense=False, baseline=False)
        if not resolved.sparsity:
            raise ConfigError("sparsity is 0: all layers are dense; set sparsity above 0")
        preflight.expect(preflight.experiment_files(resolved))
        from simulations.build import show_layers

        rows = show_layers(resolved)
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        for name, shape, state in rows:
            say(f"{name:{widths[0]}}  {shape:{widths[1]}}  {state}")


@app.command()
def doctor(
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Compile the kernels again, whatever is cached.")] = False,
    debug: DebugOption = False,
) -> None:
    """What a run finds on this machine: versions, processor, and the sparse kernels; without a compiler these are dense products."""
    with one_message(debug):
        from simulations.doctor import examine, table

        rows, works = examine(rebuild)
        console.print(table(rows), soft_wrap=True, markup=False)
        if not works:
            raise typer.Exit(2)


@app.command()
def calibrate(
    out: Annotated[Path | None, typer.Option(metavar="FILE.toml", help="The profile; default: named after the processor, here.")] = None,
    name: Annotated[str, typer.Option(help="The device's name in the profile; default: its processor.")] = "",
    model: Annotated[list[Backbone] | None, typer.Option(help="Backbones that are trained; default: cnn and resnet18.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer sessions, fewer repeats: less exact.")] = False,
    idle_w: Annotated[float | None, typer.Option(metavar="W", help="Power of the idle device, if you have measured it.")] = None,
    active_w: Annotated[float | None, typer.Option(metavar="W", help="Power of the device while it trains.")] = None,
    down_mbit: Annotated[float | None, typer.Option(metavar="MBIT/S", help="Its network, downwards.")] = None,
    up_mbit: Annotated[float | None, typer.Option(metavar="MBIT/S", help="Its network, upwards.")] = None,
    latency_ms: Annotated[float | None, typer.Option(metavar="MS", help="What a message takes whatever its size.")] = None,
    debug: DebugOption = False,
) -> None:
    """Measure this machine, and write a device profile: rates of training, memory, and power where the system shows it."""
    options = {
        "idle_w": (idle_w, 1.0), "active_w": (active_w, 1.0), "down_bits_per_s": (down_mbit, 1e6), "up_bits_per_s": (up_mbit, 1e6),
        "latency_s": (latency_ms, 1e-3),
    }  # fmt: skip
    given = {key: value * unit for key, (value, unit) in options.items() if value is not None}
    with one_message(debug):
        from simulations import preflight
        from simulations.fleet.profiles import new_profile

        preflight.expect(preflight.figures(given))
        with ExitStack() as stack:
            file = stack.enter_context(new_profile(out)) if out else None  # before PyTorch and the kernels are there
            from simulations.calibration.fit import calibrate, default_name, table, write

            path = out or Path(default_name())
            file = file or stack.enter_context(new_profile(path))
            with errors.status("starting") as status:
                found = calibrate([*(model or (Backbone.cnn, Backbone.resnet18))], quick, name=name, given=given, observe=status.update)
            write(file, found)
        console.print(table(found), soft_wrap=True, markup=False)
        assumed = [key for key, figure in found.figures.items() if figure.source.startswith("assumption")]
        console.print()
        if assumed:
            say(f"not measured, so assumed: {', '.join(assumed)}")
        if found.no_power:
            say(f"no power was read: {found.no_power}")
        console.print()
        say(f"profile: {path}")
