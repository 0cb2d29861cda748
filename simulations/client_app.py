"""The ClientApp of the simulated devices, apart from all that only the driver needs: worker processes import this."""

from flwr.clientapp import ClientApp

from client.app import make_client_app
from client.config import ClientConfig
from client.streams.stream import Streams
from sparcl_core.evaluation import TestData


def client_app(config: ClientConfig, streams: Streams, test_data: TestData | None = None) -> ClientApp:
    """The ClientApp of any device; made in every worker process from arguments that travel once."""
    return make_client_app(config, streams.__getitem__, test_data=test_data)
