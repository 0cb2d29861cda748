"""What the pages say of the code is there: files, modules and pages that are named, and lines that a person can read."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TODAY = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which also speaks of what was
SOURCES = sorted(path for package in ("sparcl_core", "client", "server", "simulations") for path in (ROOT / package).rglob("*.py"))
LONGEST = 140
PACKAGES = "sparcl_core|client|server|simulations|benchmarks"


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_lines_of_prose_are_short(page):
    fenced, wrong = False, []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fenced ^= line.lstrip().startswith("```")
        if len(line) > LONGEST and not fenced and not line.lstrip().startswith("|"):
            wrong.append(f"line {number} has {len(line)} characters")
    assert not wrong, f"{name(page)}: {wrong}"


@pytest.mark.parametrize("page", TODAY, ids=name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing, f"{name(page)} links to {missing}"


@pytest.mark.parametrize("page", TODAY, ids=name)
def test_files_that_a_page_names_exist(page):
    text = page.read_text()
    paths = re.findall(rf"(?<![\w/.])(?:{PACKAGES}|tests|docs)/[\w/.-]*\w\.(?:py|toml|c|md|png)\b", text)
    missing = sorted({path for path in paths if not (ROOT / path).exists()})
    assert not missing, f"{name(page)} names {missing}"


@pytest.mark.parametrize("source", [*TODAY, *SOURCES], ids=name)
def test_modules_that_are_named_in_code_quotes_exist(source):
    """`server.rounds.clock`, or something within it: `server.rounds.clock.ClockConfig`."""
    missing = []
    for dotted in set(re.findall(rf"`((?:{PACKAGES})(?:\.\w+)+)", source.read_text())):
        parts = dotted.split(".")
        path = ROOT.joinpath(*parts)
        if path.with_suffix(".py").exists() or (path / "__init__.py").exists():
            continue
        *parents, last = parts
        within = ROOT.joinpath(*parents)
        while parents and not (within.with_suffix(".py").exists() or (within / "__init__.py").exists()):
            *parents, last = parents
            within = ROOT.joinpath(*parents)
        file = within.with_suffix(".py") if within.with_suffix(".py").exists() else within / "__init__.py"
        if not re.search(rf"\b{last}\b", file.read_text()):
            missing.append(dotted)
    assert not missing, f"{name(source)} names {sorted(missing)}"


@pytest.mark.parametrize("page", TODAY, ids=name)
def test_make_has_the_targets_that_a_page_names(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^    )make ([\w-]+)", page.read_text(), re.MULTILINE))
    assert named <= targets, f"{name(page)} names {sorted(named - targets)}"
