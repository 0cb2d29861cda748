"""What a run that cannot go on raises."""


class FleetError(RuntimeError):
    """The run cannot go on; the message says why."""
