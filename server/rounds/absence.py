"""Fleets of which nobody can ever take part: what would come out is the untrained model, so that is an error, and it says why."""

import numpy as np

from server.errors import NobodyCame
from server.fleet.local_time import DAY
from server.rounds.federation import Federation
from server.selection.cohort import PATIENCE_S

ABSENT = ("skipped", "sat-out", "refused")


def ensure_anyone_comes(federation: Federation) -> None:
    """Before a run. Raises NobodyCame if no device is there now, or ever after."""
    if not federation.cohorts.anyone_comes(federation.now):
        raise NobodyCame(f"no device is there within the horizon: {_when(federation)}")


def ensure_anyone_came(federation: Federation) -> None:
    """Behind a run. Raises NobodyCame if nobody was ever asked to train."""
    rows = federation.ledger.rows
    if any(row.phase in ("download", "train") and row.outcome not in ABSENT for row in rows):
        return
    absent = [row for row in rows if row.outcome in ("skipped", "sat-out")]
    if not absent:
        raise NobodyCame(f"no device is there within the horizon: {_when(federation)}")
    last = absent[-1]
    raise NobodyCame(
        f"no device is there within the horizon: {len(absent)} times one could have been asked, and was not; the last: device "
        f"{last.device}, round {last.round}: {last.reason}"
    )


def _when(federation: Federation) -> str:
    start, now = federation.clock.start_s, federation.now
    first = federation.cohorts.first_comes(start)
    when = f"the first comes at {first:.6g} s" if np.isfinite(first) else "none comes any more"
    return (
        f"the run begins at {start:g} s and is over at {now:g} s, and {when}. Times are seconds from Monday, 00:00 UTC (a trace of UNIX "
        f"time must be shifted), and nobody is waited for longer than {PATIENCE_S / DAY:g} days; see [availability] and clock.start_hour"
    )
