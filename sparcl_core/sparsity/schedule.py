"""When masks change, for a task cut into sessions (a federation's rounds) of some local epochs. An update happens before a session."""

import math
from dataclasses import dataclass

from sparcl_core.sparsity.update import Action


class Sessions:
    """How a task is cut; the last session may be shorter. As it is: masks rest."""

    task_epochs: int
    session_epochs: int

    @property
    def sessions(self) -> int:
        return math.ceil(self.task_epochs / self.session_epochs)

    def epochs(self, session: int) -> int:
        """Local epochs of session `session`, from 0."""
        return min(self.session_epochs, self.task_epochs - session * self.session_epochs)

    def action(self, task: int, session: int) -> Action:
        """What happens to the masks before `session` of `task`; beyond the last session nothing does."""
        return "rest"


@dataclass(frozen=True)
class Resting(Sessions):
    """Masks never change."""

    task_epochs: int
    session_epochs: int


@dataclass(frozen=True)
class Intervals(Sessions):
    """Before the first session of every `length` epochs, while less than the share `until` of the task is over.

    Not before the first session of a task: what is ranked then would be of the task before. Each task begins its schedule anew.
    """

    task_epochs: int
    session_epochs: int
    length: int
    until: float

    def action(self, task: int, session: int) -> Action:
        epoch = session * self.session_epochs
        if not 0 < session < self.sessions or epoch >= self.until * self.task_epochs - 1e-9:
            return "rest"
        return "adapt" if epoch // self.length > (epoch - self.session_epochs) // self.length else "rest"


@dataclass(frozen=True)
class Pruning(Sessions):
    """Growth before the first session of every task but the first; one pruning, before the first session at whose start the share `until`
    of the task is over."""

    task_epochs: int
    session_epochs: int
    until: float

    def action(self, task: int, session: int) -> Action:
        if session == 0:
            return "grow" if task else "rest"
        epoch, due = session * self.session_epochs, self.until * self.task_epochs - 1e-9
        return "adapt" if session < self.sessions and epoch - self.session_epochs < due <= epoch else "rest"


def stage_length(stage_epochs: int, epochs: int) -> int:
    """Epochs between updates in a task of `epochs` epochs; 0 takes a tenth of it."""
    return stage_epochs or max(1, round(epochs / 10))
