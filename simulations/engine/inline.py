"""The inline engine: every device in this process, one after another. For a debugger, and as the slow twin of the Ray engine."""

from collections.abc import Callable, Iterable

from flwr.app import Message

from simulations.engine.adapter import AppFactory, EngineGrid, from_bytes, handle, to_bytes


class InlineGrid(EngineGrid):
    """Runs `make_app(*args)` in this process."""

    def __init__(
        self,
        make_app: AppFactory,
        args: tuple,
        num_devices: int,
        run_config: dict | None = None,
        on_reply: Callable[[int], None] | None = None,
    ):
        super().__init__(num_devices, run_config, on_reply)
        self._app = make_app(*args)
        self._states: dict[int, bytes] = {}

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Replies in the order of the messages; `timeout` has no meaning here, since nothing runs in the background."""
        replies = []
        for message in self._prepare(messages):
            node = message.metadata.dst_node_id
            handled = handle(self._app, to_bytes(message), self._states.get(node, b""), self.node_config(node), self.run_config)
            if handled.state is not None:
                self._states[node] = handled.state
            replies.append(from_bytes(handled.reply))
            self.on_reply(node - 1)
        return replies
