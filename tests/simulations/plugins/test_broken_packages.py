"""Packages whose entry points fail, or take names that are taken: they are shown, end nothing else, and a run that names them says so."""

import pytest
from installed import install_by_hand, sparcl


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    (folder / "their_ruins.py").write_text("raise OSError('no disk')\n")
    (folder / "their_rules.py").write_text('def nothing(changes):\n    """Leaves all as it is."""\n    return 0.0\n')
    (folder / "their_exit.py").write_text("import sys\nsys.exit(3)\n")
    tables = folder / "their_tables" / "experiments"
    tables.mkdir(parents=True)
    (tables / "half.toml").write_text("name = \n")
    (tables / "smoke.toml").write_text('name = "smoke"\n')
    (folder / "their_empty").mkdir()
    install_by_hand(
        folder, "ruins",
        {
            "sparcl.rules": {
                "ruined": "their_ruins:rule", "leaves": "their_exit:rule", "gone": "their_rules:nothin", "still": "their_rules:nothing",
                "median": "their_rules:nothing",
            },
            "sparcl.experiments": {"a": "their_tables.experiments", "b": "their_tables.nowhere", "c": "their_empty"},
            "sparcl.profiles": {"a": "no_such_package.profiles"},
        },
    )  # fmt: skip
    return folder


def test_broken_ones_are_shown_and_do_not_end_the_list(site, tmp_path):
    told = sparcl("list", "rules", path=site, cwd=tmp_path)
    assert (told.returncode, told.stderr) == (0, "") and "  rfa " in told.stdout
    fine, broken = told.stdout.split("cannot be used:")
    assert "from ruins 1.5:\n  still" in fine and "Leaves all as it is" in fine
    broken = " ".join(broken.split())
    for part in (
        "'ruined', but their_ruins cannot be imported (OSError: no disk)", "(it is offered by ruins 1.5)",
        "'leaves', but their_exit cannot be imported (SystemExit: 3)", "'gone', but their_rules has no nothin; did you mean nothing?",
        "rule 'median' is offered by sparcl-fleet and by ruins 1.5",
    ):  # fmt: skip
        assert part in broken, part


def test_files_that_are_broken_are_shown_too(site, tmp_path):
    told = sparcl("list", "experiments", path=site, cwd=tmp_path)
    assert (told.returncode, told.stderr) == (0, "") and "  smoke " in told.stdout
    broken = " ".join(told.stdout.split("cannot be used:")[1].split())
    for part in (
        "experiment 'half' of ruins 1.5:", "is no TOML", "experiment 'smoke' is offered by sparcl-fleet and by ruins 1.5",
        "b = their_tables.nowhere of ruins 1.5: there is no such package or folder",
        "c = their_empty of ruins 1.5: there are no TOML files in it",
    ):  # fmt: skip
        assert part in broken, part
    told = sparcl("list", "profiles", path=site, cwd=tmp_path)
    assert "a = no_such_package.profiles of ruins 1.5: there is no such package or folder" in " ".join(told.stdout.split())


def test_ours_are_still_ours_and_a_run_of_them_is_not_disturbed(site, tmp_path):
    told = sparcl("list", path=site, cwd=tmp_path)
    assert (told.returncode, told.stderr) == (0, "") and "a few seconds of split-digits" in told.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("smoke", "--set", "aggregation.rule=ruined"), "aggregation.rule is 'ruined', but their_ruins cannot be imported (OSError: "),
        (("smoke", "--set", "aggregation.rule=leaves"), "aggregation.rule is 'leaves', but their_exit cannot be imported (SystemExit: 3)"),
        (("smoke", "--set", "aggregation.rule=gone"), "aggregation.rule is 'gone', but their_rules has no nothin"),
        (("half",), "is no TOML"),
    ],
)  # fmt: skip
def test_a_run_that_names_one_ends_with_one_message_and_nothing_written(site, tmp_path, arguments, message):
    done = sparcl("run", *arguments, "--out", tmp_path / "runs", path=site, cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: ") and message in done.stderr and not (tmp_path / "runs").exists()
