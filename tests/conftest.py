"""One torch thread, examples that are the same in every run, and what becomes of the suite when several processes share it."""

import gc
import os
import signal
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None, database=None, max_examples=50)
settings.load_profile("fixed")
gc.disable()  # while tests are collected: nothing of what is imported goes
signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal: jobs in the background of a script ignore it


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Not at the import of this file, which the process that only hands out tests imports as well."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache_of_their_own(tmp_path_factory) -> None:
    """Decoded images, and data sets that could be there, are not those of whoever runs the tests; child processes inherit it."""
    place = tmp_path_factory.mktemp("cache")
    os.environ |= {"SPARCL_DATA_CACHE": str(place / "images"), "SPARCL_DATA": str(place / "downloads")}


@cache
def starts_ray(file: Path) -> bool:
    """Is a test in it marked so?"""
    return "pytest.mark.ray" in file.read_text()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts a Ray comes first, since it takes longest."""
    items.sort(key=lambda item: not starts_ray(item.path))


def pytest_collection_finish() -> None:
    """Whoever collects garbage from now on need not look at what was imported."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """All tests of a file go to one process, in order, since they share what is costly to make. Files that start a Ray go to the same one:
    two Rays at a time would want the same cores."""
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "ray" if starts_ray(config.rootpath / file) else file

    gc.enable()  # this process collects no tests itself
    config.option.loadscopereorder = False  # the order is that of the files, but for what comes first
    return Files(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """Tests hand around text with lone surrogates. Where one fails, its report must still reach the process that shows it."""
    report = yield
    if report.failed and not str(report.longrepr).isascii():
        report.longrepr = str(report.longrepr).encode(errors="backslashreplace").decode()
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report
