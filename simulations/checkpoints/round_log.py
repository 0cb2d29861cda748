"""What one round alone added to a run, as a value, and as named arrays: the part of a checkpoint that is never written twice."""

from dataclasses import dataclass, fields
from operator import attrgetter

import numpy as np

from server.app import RoundRecord
from server.global_model.masks import Diversity
from server.ledger import Row, WallTime
from server.rounds.evaluation import OwnModels
from server.snapshot import Snapshot, under, within
from simulations.engine.states import StateChanges


@dataclass(frozen=True, eq=False)
class Journal:
    """One round's own part.

    Attributes:
        record: the round as it was observed.
        rows: its ledger rows, in the order in which they were written.
        wall_times: measured seconds of its devices.
        changes: whose states it replaced.
        exchange: the engine's counter of exchanges at the end of the round.
    """

    record: RoundRecord
    rows: list[Row]
    wall_times: list[WallTime]
    changes: StateChanges
    exchange: int


def to_arrays(journal: Journal) -> Snapshot:
    """Integers as int64, floats as float64 to the bit, strings as UTF-8; what a record has None for is left out."""
    record, changes = journal.record, journal.changes
    counts = (record.round, record.task, record.ends_task, record.num_devices, record.num_samples, journal.exchange)
    arrays = {"counts": np.array(counts, np.int64)}
    if record.accuracy is not None:
        arrays["accuracy"] = np.asarray(record.accuracy)
    arrays["time"] = np.array(record.time)
    if record.by_class is not None:
        arrays["by_class"] = np.asarray(record.by_class)
    if record.own is not None:
        arrays |= {"own/devices": record.own.devices, "own/accuracy": record.own.accuracy}
    if record.diversity is not None:
        arrays["diversity"] = np.array([record.diversity.union_density, record.diversity.distance])
    columns = list(zip(*map(attrgetter(*_COLUMNS), journal.rows), strict=True)) or [()] * len(_COLUMNS)
    for (name, kind), values in zip(_COLUMNS.items(), columns, strict=True):
        arrays |= under(f"rows/{name}", _strings(values)) if kind is str else {f"rows/{name}": np.array(values, _DTYPES[kind])}
    measured = journal.wall_times
    arrays["wall/places"] = np.array([[own.round for own in measured], [own.device for own in measured]], np.int64)
    arrays["wall/seconds"] = np.array([[own.wall_s for own in measured], [own.compute_s for own in measured]], np.float64)
    arrays |= {"changes/devices": changes.devices, "changes/exchanges": changes.exchanges}
    arrays["changes/counts"] = np.array([len(own) for own in changes.blobs], np.int64)
    return arrays | under("changes/digests", _strings([digest for own in changes.blobs for digest in own]))


def from_arrays(arrays: Snapshot) -> Journal:
    """The inverse of `to_arrays`.

    Raises:
        KeyError: if an array is not there.
        ValueError: if they do not fit each other.
    """
    server_round, task, ends_task, num_devices, num_samples, exchange = arrays["counts"].tolist()
    apart = Diversity(*arrays["diversity"].tolist()) if "diversity" in arrays else None
    own = OwnModels(arrays["own/devices"], arrays["own/accuracy"]) if "own/devices" in arrays else None
    found = (arrays.get("accuracy"), apart, arrays.get("by_class"), float(arrays["time"]), own)
    record = RoundRecord(server_round, task, bool(ends_task), num_devices, num_samples, *found)
    columns = [
        _strings_of(within(f"rows/{name}", arrays)) if kind is str else arrays[f"rows/{name}"].tolist() for name, kind in _COLUMNS.items()
    ]
    rows = [Row(*values) for values in zip(*columns, strict=True)]
    if arrays["wall/seconds"].shape != arrays["wall/places"].shape:
        raise ValueError(f"seconds of shape {arrays['wall/seconds'].shape} for devices of shape {arrays['wall/places'].shape}")
    measured = zip(*arrays["wall/places"].tolist(), *arrays["wall/seconds"].tolist(), strict=True)
    wall_times = [WallTime(*own) for own in measured]
    digests, counts = _strings_of(within("changes/digests", arrays)), arrays["changes/counts"]
    if counts.sum() != len(digests):
        raise ValueError(f"{len(digests)} digests for states that refer to {counts.sum()}")
    blobs = [tuple(digests[end - count : end]) for count, end in zip(counts.tolist(), np.cumsum(counts).tolist(), strict=True)]
    changes = StateChanges(arrays["changes/devices"].copy(), arrays["changes/exchanges"].copy(), blobs)
    return Journal(record, rows, wall_times, changes, exchange)


_COLUMNS: dict[str, type] = {field.name: field.type for field in fields(Row)}
_DTYPES = {int: np.int64, float: np.float64}


def _strings(values) -> Snapshot:
    """Strings as arrays; most columns repeat a few. codes: [n] int64 into the different ones; lengths: bytes of each; text: uint8."""
    different = {value: code for code, value in enumerate(dict.fromkeys(values))}
    encoded = [value.encode("utf-8", "surrogatepass") for value in different]
    return {
        "codes": np.array([different[value] for value in values], np.int64),
        "lengths": np.array([len(value) for value in encoded], np.int64),
        "text": np.frombuffer(b"".join(encoded), np.uint8),
    }


def _strings_of(arrays: Snapshot) -> list[str]:
    text, ends = arrays["text"].tobytes(), np.cumsum(arrays["lengths"])
    starts = (ends - arrays["lengths"]).tolist()
    different = [text[start:end].decode("utf-8", "surrogatepass") for start, end in zip(starts, ends.tolist(), strict=True)]
    return [different[code] for code in arrays["codes"].tolist()]
