"""Messages as values and as bytes: nothing is lost on the way, and what is counted is what is sent."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparcl_core.codec import CodecError
from sparcl_core.wire.protocol import Instruction, Report

REPORTS = st.builds(
    Report,
    base_version=st.integers(0, 2**32 - 1),
    samples=st.integers(0, 2**32 - 1),
    classes=st.lists(st.booleans(), min_size=1, max_size=40).map(np.array),
    delta=st.binary(max_size=30),
    masks=st.binary(max_size=30),
    has_changed=st.booleans(),
)
INSTRUCTIONS = st.builds(
    Instruction,
    round=st.integers(0, 2**32 - 1),
    task=st.integers(0, 2**16 - 1),
    epochs=st.integers(0, 2**16 - 1),
    report_importance=st.booleans(),
    payloads=st.lists(st.binary(max_size=30), max_size=5).map(tuple),
)


@given(INSTRUCTIONS)
def test_an_instruction_survives_the_wire(instruction):
    assert Instruction.from_wire(instruction.control, list(instruction.payloads)) == instruction
    assert instruction.num_bytes == len(instruction.control + b"".join(instruction.payloads))


@given(REPORTS)
def test_a_report_survives_the_wire(report):
    arrived = Report.from_wire(report.control, report.delta, report.masks)
    assert np.array_equal(arrived.classes, report.classes) and arrived.classes.dtype == bool
    assert vars(arrived) | {"classes": None} == vars(report) | {"classes": None}
    assert report.num_bytes == len(report.control + report.delta + report.masks)


def test_a_change_that_was_noticed_takes_no_byte():
    """It is the top bit of the number of classes, of which there may be 32,767."""
    for count in (1, 10, (1 << 15) - 1):
        quiet, loud = (Report(7, 120, np.arange(count) < 4, b"delta", b"", has_changed) for has_changed in (False, True))
        assert len(quiet.control) == len(loud.control) and quiet.control != loud.control
        arrived = Report.from_wire(loud.control, b"delta", b"")
        assert arrived.has_changed and arrived.classes.size == count and np.array_equal(arrived.classes, loud.classes)
        assert not Report.from_wire(quiet.control, b"delta", b"").has_changed


def flips(data: bytes):
    for place in range(len(data)):
        for bit in range(8):
            yield data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def cuts(data: bytes):
    yield from (data[:length] for length in range(len(data)))
    yield data + b"\0"


@pytest.mark.parametrize("damage", [flips, cuts])
def test_damaged_control_bytes_are_noticed(damage):
    """Control bytes carry n_k, which weights the average: damage there must not pass for a number of samples."""
    instruction = Instruction(3, 1, 2, True, (b"payload",))
    for control in damage(instruction.control):
        with pytest.raises(CodecError, match="control of an instruction"):
            Instruction.from_wire(control, [b"payload"])
    report = Report(7, 120, np.arange(10) < 4, b"delta", b"")
    for control in damage(report.control):
        with pytest.raises(CodecError, match="control of a report"):
            Report.from_wire(control, b"delta", b"")
