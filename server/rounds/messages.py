"""What goes to a device and what comes back, as values; and how large Flower's messages are."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from flwr.app import Message, Metadata
from flwr.common.serde import message_to_proto, metadata_to_proto

from server.fleet.roster import Member
from server.global_model.broadcast import Base
from server.global_model.contribution import Contribution
from server.ledger import Where
from sparcl_core.codec import Sizes
from sparcl_core.codec.bits import varint
from sparcl_core.costs.flops import Flops
from sparcl_core.sparsity.masks import State
from sparcl_core.wire.protocol import Report


@dataclass(frozen=True, eq=False)
class Request:
    """A message on its way to a device.

    Attributes:
        member, where: to whom; round, step and instant.
        base: the version that it brings the device to.
        sizes: of its payloads by kind.
        rest_bytes: of the Flower message without its metadata.
        extra_s: what jitter adds to the way there and back.
        message: the Flower message, whose id, and with it its size, is known only when it has been pushed; None: all of it is in
            `rest_bytes`.
    """

    member: Member
    where: Where
    base: Base
    sizes: Sizes
    rest_bytes: int
    extra_s: tuple[float, float] = (0.0, 0.0)
    message: Message | None = None

    @property
    def device(self) -> int:
        return self.member.device

    @property
    def message_bytes(self) -> int:
        """Of the Flower message; of one that was pushed, as it was serialised."""
        return self.rest_bytes + (metadata_bytes(self.message.metadata) if self.message else 0)

    def __str__(self) -> str:
        return f"device {self.where.device}, round {self.where.round}"

    def sealed(self) -> "Request":
        """The same as a value: the message was pushed, and will not change any more."""
        return replace(self, rest_bytes=self.message_bytes, message=None)


@dataclass(frozen=True)
class Measures:
    """What the simulator has measured of a round. counts: columns of the ledger's row; loss: mean over the steps."""

    flops: Flops
    dense_flops: Flops
    memory_bytes: int
    counts: dict[str, int]
    loss: float
    wall_s: float
    compute_s: float


@dataclass(frozen=True, eq=False)
class Reply:
    """What came back of a request to train, not decoded yet.

    Attributes:
        missing: why nothing came back.
        problem: why what came back cannot be used.
        measures, report, statistics: what it brought; None where it is not there, or cannot be read.
        message_bytes, report_bytes: of the Flower message, and of the report in it.
    """

    missing: str = ""
    problem: str = ""
    measures: Measures | None = None
    report: Report | None = None
    statistics: State | None = None
    message_bytes: int = 0
    report_bytes: int = 0


@dataclass(frozen=True, eq=False)
class Verdict:
    """What of a reply can be used: its contribution, or a problem with it. Neither: its round was cut short, so that it did not arrive."""

    contribution: Contribution | None = None
    problem: str = ""

    @property
    def sizes(self) -> Sizes | None:
        """Of the report by kind, as far as it could be read."""
        return self.contribution.sizes if self.contribution else None


def answered(requests: Iterable[Request], replies: Iterable[Message]) -> Iterator[tuple[Request, Message]]:
    """Each reply as it comes in, with the request that it answers. What comes from a node that was not asked is no reply."""
    by_node = {request.member.node_id: request for request in requests}
    for message in replies:
        if request := by_node.get(message.metadata.src_node_id):
            yield request, message


def message_bytes(message: Message) -> int:
    """Size of the serialised Flower message."""
    return message_to_proto(message).ByteSize()


def metadata_bytes(metadata: Metadata) -> int:
    """What of that is its metadata: a field of the message, behind its tag and its length."""
    size = metadata_to_proto(metadata).ByteSize()
    return 1 + len(varint(size)) + size
