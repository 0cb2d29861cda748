"""What a run that cannot go on raises."""


class FleetError(RuntimeError):
    """The run cannot go on; the message says why."""


class Diverged(FleetError):
    """Training diverged, on devices or in the server's model: gone on with, the run would come to the same end."""


class NobodyCame(FleetError):
    """No device ever took part, and none will: going on would change nothing."""
