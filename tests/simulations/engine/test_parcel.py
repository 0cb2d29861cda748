"""A parcel is the message again, with the large values by reference: the same objects out and in, the original left alone."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from simulations.engine.adapter import from_bytes, identify_process, number_message, to_bytes
from simulations.engine.parcel import (
    BLOB_BYTES,
    Parcel,
    attach_message,
    attach_records,
    detach_message,
    detach_records,
)

identify_process()
LARGE, SMALL = b"L" * BLOB_BYTES, b"s" * (BLOB_BYTES - 1)


# -- any records


def fill(size: int, letter: int) -> bytes:
    return bytes([letter]) * size


texts = st.text(max_size=5)
data = st.one_of(
    st.binary(max_size=8),
    st.builds(fill, st.sampled_from([0, BLOB_BYTES - 1, BLOB_BYTES, BLOB_BYTES + 1]), st.integers(0, 255)),
)
scalars = (st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), texts, data)
config_values = st.one_of(*scalars, *(st.lists(scalar, max_size=4) for scalar in (st.booleans(), st.integers(-9, 9), texts, data)))
arrays = st.builds(lambda data, shape: Array("float32", tuple(shape), "numpy.ndarray", data), data, st.lists(st.integers(0, 9), max_size=3))
records = st.one_of(
    st.dictionaries(texts, config_values, max_size=4).map(ConfigRecord),
    st.dictionaries(texts, arrays, max_size=4).map(ArrayRecord),
    st.dictionaries(texts, st.integers(0, 9) | st.lists(st.floats(allow_nan=False), max_size=3), max_size=3).map(MetricRecord),
)
record_dicts = st.dictionaries(texts, records, max_size=4).map(RecordDict)


def values_of(records: RecordDict) -> list[tuple]:
    """Everything in order, with types: 1, 1.0 and True are different values."""
    found = []
    for key, record in records.items():
        for name, value in record.items():
            items = value if isinstance(value, list) else [value]
            found += [(key, type(record), name, type(value), type(item), item) for item in items or [None]]
        found.append((key, type(record)))
    return found


def objects_of(records: RecordDict) -> list[int]:
    """The identity of every object inside."""
    found = []
    for record in records.values():
        found.append(id(record))
        for value in record.values():
            found += [id(value), *(id(item) for item in (value if isinstance(value, list) else []))]
            found += [id(value.data)] if isinstance(value, Array) else []
    return found


def blobs_of(records: RecordDict) -> list[bytes]:
    values = [item for *_, item in values_of(records)]
    values = [value.data if isinstance(value, Array) else value for value in values]
    return [value for value in values if isinstance(value, bytes) and len(value) >= BLOB_BYTES]


@given(record_dicts)
def test_records_come_back_with_the_very_same_blobs(records):
    before, inside = values_of(records), objects_of(records)
    parcel = detach_records(records)
    back = attach_records(parcel)
    assert values_of(back) == before
    large = blobs_of(records)
    assert [id(blob) for blob in parcel.blobs] == [id(blob) for blob in large] == [id(blob) for blob in blobs_of(back)]
    assert parcel.num_bytes == len(parcel.shell) + sum(map(len, large))
    assert values_of(records) == before and objects_of(records) == inside  # the original is as it was


@given(record_dicts, texts, st.floats(1, 1e6))
def test_messages_come_back_with_metadata(records, group_id, ttl):
    message = Message(records, 7, "train", ttl=ttl, group_id=group_id)
    number_message(message, "12")
    before, inside = vars(message.metadata).copy(), objects_of(records)
    parcel = detach_message(message)
    back, plain = attach_message(parcel), from_bytes(to_bytes(message))
    assert back.metadata == message.metadata == plain.metadata
    assert values_of(back.content) == values_of(records) == values_of(plain.content)
    assert [id(blob) for blob in blobs_of(back.content)] == [id(blob) for blob in parcel.blobs] == [id(blob) for blob in blobs_of(records)]
    assert message.content is records and vars(message.metadata) == before and objects_of(records) == inside
    assert detach_message(message) == parcel  # the same bytes again


# -- cases


def message_with(**values) -> Message:
    return Message(RecordDict({"it": ConfigRecord(values)}), 3, "train", group_id="1")


def test_a_message_without_large_values_costs_four_bytes_more():
    message = message_with(n=1, small=SMALL, many=[SMALL, b""])
    assert detach_message(message).blobs == ()
    assert len(detach_message(message).shell) == len(to_bytes(message)) + 4


def test_a_broadcast_object_is_one_object_in_every_parcel():
    parcels = [detach_message(message_with(device=device, model=LARGE, twice=[b"", LARGE])) for device in range(100)]
    assert all(blob is LARGE for parcel in parcels for blob in parcel.blobs)
    assert all(len(parcel.blobs) == 2 and len(parcel.shell) < 300 for parcel in parcels)


def test_arrays_of_numpy_come_back():
    values = [np.arange(10_000.0).reshape(100, 100), np.float32(1.0), np.empty((0, 3))]
    records = RecordDict({"arrays": ArrayRecord([np.asarray(value) for value in values])})
    parcel = detach_records(records)
    assert len(parcel.blobs) == 1
    for back, value in zip(attach_records(parcel)["arrays"].to_numpy_ndarrays(), values, strict=True):
        assert np.array_equal(back, value) and back.dtype == value.dtype


def test_every_attachment_is_a_new_one():
    """An app may change its state in place: the next one to attach the same parcel must not see that."""
    parcel = detach_records(RecordDict({"it": ConfigRecord({"many": [LARGE, SMALL]}), "arrays": ArrayRecord([np.zeros(9_999)])}))
    first, before = attach_records(parcel), values_of(attach_records(parcel))
    first["it"]["many"][0] = b"other"
    first["arrays"]["0"].data = b"other"
    assert values_of(attach_records(parcel)) == before


def test_a_reply_keeps_what_it_replies_to():
    message = message_with(model=LARGE)
    number_message(message, "41")
    received = attach_message(detach_message(message))
    reply = attach_message(detach_message(Message(RecordDict(), reply_to=received)))
    assert reply.metadata.reply_to_message_id == "41" == received.metadata.message_id
    assert (reply.metadata.src_node_id, reply.metadata.dst_node_id) == (3, message.metadata.src_node_id)


@pytest.mark.parametrize("reason", ["no memory", "x" * 3 * BLOB_BYTES, None])
def test_errors_travel(reason):
    message = message_with(model=LARGE)
    number_message(message, "41")
    error = Message(Error(7, reason), reply_to=message)
    parcel = detach_message(error)
    back = attach_message(parcel)
    assert parcel.blobs == () and back.has_error() and not back.has_content()
    assert (back.error.code, back.error.reason) == (7, reason) and back.metadata == error.metadata


@pytest.mark.parametrize("value", [b"[]", b'[["it","value"]]', b"\0\0\0\0", b"", b'\2\0\0\0[]{"blob": 0}'], ids=repr)
def test_no_value_of_a_user_looks_like_a_blob(value):
    message = message_with(value=value, other=LARGE, **{'it"],[': LARGE, "0": [value, LARGE, value]})
    back = attach_message(detach_message(message)).content["it"]
    assert dict(back) == dict(message.content["it"])


def test_a_subclass_of_bytes_is_left_to_protobuf():
    message = message_with(value=np.bytes_(LARGE))
    assert detach_message(message).blobs == ()
    assert attach_message(detach_message(message)).content["it"]["value"] == LARGE


@pytest.mark.parametrize("blobs", [(), (LARGE, LARGE)])
def test_a_shell_with_the_blobs_of_another_is_refused(blobs):
    shell = detach_message(message_with(model=LARGE)).shell
    with pytest.raises(ValueError, match=f"a parcel with {len(blobs)} blobs, but its shell has places for 1"):
        attach_message(Parcel(shell, blobs))


def test_a_parcel_does_not_print_its_bytes():
    assert repr(Parcel(LARGE, (LARGE,))) == "Parcel()"
