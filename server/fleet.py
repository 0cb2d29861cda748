"""The roster of devices, and the cohort of a round as a function of (seed, round)."""

from dataclasses import dataclass

from sparcl_core.seeding import generator


@dataclass(frozen=True)
class Member:
    """A device as the server knows it: its number, the runtime's node id, its samples per task, and what it holds."""

    device: int
    node_id: int
    samples: tuple[int, ...]


@dataclass(frozen=True)
class Roster:
    """All devices, in device order."""

    members: tuple[Member, ...]

    @classmethod
    def of(cls, members: list[Member]) -> "Roster":
        ordered = tuple(sorted(members, key=lambda member: member.device))
        if [m.device for m in ordered] != sorted({m.device for m in ordered}):
            raise ValueError(f"two nodes say they are the same device: {[m.device for m in ordered]}")
        return cls(ordered)

    def cohort(self, seed: int, server_round: int, task: int, size: int) -> tuple[Member, ...]:
        """The devices of a round, in device order: `size` (0: all) drawn uniformly from those that have data for `task`."""
        able = [member for member in self.members if member.samples[task] > 0]
        if size == 0 or size >= len(able):
            return tuple(able)
        chosen = generator(seed, "cohort", server_round).permutation(len(able))[:size]
        return tuple(able[index] for index in sorted(chosen))

    def without_data(self, task: int) -> tuple[Member, ...]:
        """The devices that sit `task` out."""
        return tuple(member for member in self.members if member.samples[task] == 0)
