"""Options of somebody else's function: unknown ones, missing ones, and types by annotation."""

from typing import Any, Literal

import pytest

from sparcl_core.plugins.options import check_options


def read(
    config, seed, *, folder: str, share: float = 0.5, limit: int | None = None, kind: Literal["a", "b"] = "a", sizes: tuple[int, ...] = ()
):
    raise AssertionError("options are checked without a call")


class Made:
    def __init__(self, settings, trim: float = 0.1, deep: "Unresolved" = None):  # noqa: F821
        raise AssertionError("options are checked without a call")


class Called:
    def __call__(self, changes, *, power: int = 2):
        raise AssertionError("options are checked without a call")


@pytest.mark.parametrize(
    "options",
    [
        {"folder": "x"},
        {"folder": "x", "share": 1, "limit": 3, "kind": "b", "sizes": [1, 2]},
        {"folder": "", "share": 0.25, "sizes": []},
    ],
)
def test_options_that_fit(options):
    check_options(read, options, setting="data.options", given=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "data.options.folder is missing: read has no default for it"),
        ({"folder": "x", "shares": 1.0}, "data.options.shares is no option of read; did you mean 'share'?"),
        ({"folder": "x", "zzz": 1}, "data.options.zzz is no option of read; there are folder, share, limit, kind, sizes"),
        ({"folder": "x", "seed": 3}, "data.options.seed is no option of read; there are folder, share"),
        ({"folder": 3}, "data.options.folder is 3: input should be a text"),
        ({"folder": "x", "share": "half"}, "data.options.share is 'half': input should be a number"),
        ({"folder": "x", "share": True}, "data.options.share is True: input should be a number"),
        ({"folder": "x", "limit": 1.5}, "data.options.limit is 1.5: input should be a whole number or nothing"),
        ({"folder": "x", "kind": "c"}, "data.options.kind is 'c': input should be 'a' or 'b'"),
        ({"folder": "x", "sizes": [1, "2"]}, "data.options.sizes is [1, '2']: input should be a list of which each is a whole number"),
        ({"folder": "x", "sizes": 1}, "data.options.sizes is 1: input should be a list"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError) as error:
        check_options(read, options, setting="data.options", given=2)
    assert str(error.value).startswith(message)


def test_all_that_is_wrong_is_in_one_message():
    with pytest.raises(ValueError) as error:
        check_options(read, {"shares": 1, "limit": "x"}, setting="data.options", given=2)
    assert [part.partition(" ")[0] for part in str(error.value).split("; ") if part.startswith("data.")] == [
        "data.options.shares", "data.options.folder", "data.options.limit",
    ]  # fmt: skip


def test_a_class_is_its_constructor_and_an_annotation_that_cannot_be_resolved_is_left_alone():
    check_options(Made, {"trim": "a tenth", "deep": 3}, setting="aggregation.options", given=1)
    with pytest.raises(ValueError, match="aggregation.options.trip is no option of Made; did you mean 'trim'?"):
        check_options(Made, {"trip": 0.2}, setting="aggregation.options", given=1)


def test_an_object_that_can_be_called():
    check_options(Called(), {"power": 3}, setting="s", given=1)
    with pytest.raises(ValueError, match="s.pow is no option of Called; did you mean 'power'?"):
        check_options(Called(), {"pow": 3}, setting="s", given=1)


def test_a_function_that_takes_anything_is_not_checked_for_names():
    def any_of(config, **options: Any): ...

    check_options(any_of, {"whatever": [1]}, setting="s", given=1)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (3, "s: int is no function whose arguments can be told"),
        (lambda one: None, "s: .* takes 1 arguments by position, and is given 2"),
    ],
)
def test_what_cannot_be_called_that_way(function, message):
    with pytest.raises(ValueError, match=message):
        check_options(function, {}, setting="s", given=2)
