"""The command line, `sparcl` or `python -m simulations`: importing the modules of `cli` gives its app their commands."""

from simulations.cli import data, messages, runs, studies
from simulations.cli.options import app

__all__ = ["app", "data", "main", "runs", "studies"]


def main() -> None:
    """The command: what `sparcl` and `python -m simulations` run."""
    messages.is_process = True
    app()


if __name__ == "__main__":
    main()
