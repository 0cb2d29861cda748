"""What a run that cannot go on raises."""


class FleetError(RuntimeError):
    """The run cannot go on; the message says why."""


class NobodyCame(FleetError):
    """No device ever took part, and none will: going on would change nothing."""
