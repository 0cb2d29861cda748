"""What can be named, with a line for each, and what of other packages a run uses."""

import pytest
from worlds import tiny

from simulations.plugins.catalogue import CATALOGUE, entries, names
from simulations.plugins.packages import used_by
from sparcl_core.plugins.kinds import OURS


@pytest.mark.parametrize("what", [what for what in CATALOGUE if what != "experiments"])
def test_every_name_of_ours_has_a_line_of_its_own(what):
    own = [entry for entry in entries(what) if entry.origin == OURS]
    assert [entry.name for entry in own] == [name for name in names(what) if CATALOGUE[what].kind.offers()[name].origin == OURS]
    assert all(entry.line and not entry.fault for entry in own)
    lines = [entry.line for entry in own]
    assert len({*lines}) == len(lines), "two have the same line"


def test_a_run_with_nothing_of_others_uses_no_package():
    assert used_by(tiny()) == {}
