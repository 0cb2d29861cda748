"""Experiments: configuration, data, engines, results and the command line."""

import sys
from importlib.util import find_spec
from pathlib import Path

_NEIGHBOURS = {"sparcl_core": "learner.py", "client": "app.py", "server": "strategy.py"}  # each with a file that it has


def expect_ours() -> None:
    """Are the packages beside this one those that Python would import?

    Raises:
        ImportError: if a script's folder, or another distribution, has something of the same name; it says what and where.
    """
    for name, part in _NEIGHBOURS.items():
        module = sys.modules.get(name)
        spec = module.__spec__ if module else find_spec(name)
        folders = (spec.submodule_search_locations or ()) if spec else ()
        if not any((Path(folder) / part).is_file() for folder in folders):
            there = (
                getattr(module, "__file__", None) or (spec and spec.origin) or next((f"the folder {path}" for path in folders), "nowhere")
            )
            raise ImportError(
                f"{name!r} is {there} here, and SparCL Fleet needs its own package of that name: rename it, or keep it where Python does "
                f"not search; the commands `sparcl` and `python -m sparcl` work beside it"
            )


expect_ours()
