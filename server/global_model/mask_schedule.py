"""When shared masks change depends on how far the fleet is in its task; here is how the server knows that.

Either from the number of the round, as tasks have a fixed number of rounds, or, where devices find out by themselves that their task has
changed, from their reports.
"""

import numpy as np

from server.snapshot import Snapshot


class MaskSchedule:
    """Task and session of a round, both from 0.

    By number: a task has `rounds_per_task` rounds. By reports: a new task begins after a round in which at least half of the devices say
    that theirs has changed. Where changes come one device at a time, it begins when as many reports have come in since the last task
    began as a round has devices.
    The stages of a task whose end nobody noticed go on, and behind the last one the masks rest.
    """

    def __init__(self, rounds_per_task: int, follows_reports: bool):
        self.rounds_per_task, self.follows_reports = rounds_per_task, follows_reports
        self.task = self.session = self.reports = 0

    def position(self, server_round: int) -> tuple[int, int]:
        """Of `server_round`, from 1; by reports, of the round that is next."""
        return (self.task, self.session) if self.follows_reports else divmod(server_round - 1, self.rounds_per_task)

    def advance(self, have_changed: list[bool]) -> None:
        """A round is over; what its devices said about their tasks."""
        self.reports += sum(have_changed)
        if have_changed and (2 * sum(have_changed) >= len(have_changed) or self.reports >= len(have_changed)):
            self.task, self.session, self.reports = self.task + 1, 0, 0
        else:
            self.session += 1

    def snapshot(self) -> Snapshot:
        return {"position": np.array([self.task, self.session, self.reports], np.int64)}

    def restore(self, snapshot: Snapshot) -> None:
        self.task, self.session, self.reports = snapshot["position"].tolist()
