"""The ClientApp of the simulated devices, apart from all that only the driver needs: worker processes import this."""

from flwr.clientapp import ClientApp

from client.app import make_client_app
from client.config import ClientConfig
from client.streams.stream import Streams


def client_app(config: ClientConfig, streams: Streams) -> ClientApp:
    """The ClientApp of any device; made in every worker process from arguments that travel once."""
    return make_client_app(config, streams.__getitem__)
