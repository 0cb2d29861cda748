"""Flower's own Grid over nodes of its simulation, as `flwr.simulation` builds it; only that apps run in threads and not on Ray."""

import copy
import threading
from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.client_app import ClientAppException
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.fleet.vce import vce_api
from flwr.server.superlink.fleet.vce.backend.backend import Backend
from flwr.server.superlink.fleet.vce.metrics import VceMetrics
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import InMemoryGrid

from simulations.engine.adapter import RUN_ID, identify_process


class Threads(Backend):
    """Two workers. As on Ray, message and Context reach an app as copies."""

    num_workers = 2

    def build(self, app_fn: Callable[[], ClientApp]) -> None:
        self._app = app_fn()

    def is_worker_idle(self) -> bool:
        return True

    def terminate(self) -> None:
        pass

    def process_message(self, message: Message, context: Context) -> tuple[Message, Context]:
        message, context = copy.deepcopy(message), copy.deepcopy(context)
        try:
            return self._app(message, context), context
        except Exception as error:
            raise ClientAppException(str(error)) from error


class FlowersGrid(InMemoryGrid):
    """`close` ends its threads."""

    def __init__(self, app: ClientApp, num_nodes: int):
        identify_process()
        states = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory())
        run = Run.create_empty(RUN_ID)
        run.primary_task_id, run.federation_id = 1, NOOP_FEDERATION_ID
        states.state().run_ids[RUN_ID] = RunRecord(run=run)
        states.state().task_store[1] = Task(task_id=1, run_id=RUN_ID)
        super().__init__(states)
        self.set_run(run)
        nodes = vce_api._register_nodes(num_nodes=num_nodes, state_factory=states)
        stores = vce_api._register_node_info_stores(nodes_mapping=nodes, run=run)
        self._stop = threading.Event()
        runtime = (lambda: app, lambda: Threads({}), nodes, states, stores, self._stop, VceMetrics())
        self._runtime = threading.Thread(target=vce_api.run_api, args=runtime)
        self._runtime.start()

    def close(self) -> None:
        self._stop.set()
        self._runtime.join()
