"""How good the model is: of the server, or of the devices, each of which may have its own (`evaluate_on = "devices"`).

A device is sent the global model as it is and answers with its accuracy on the test data of every task, with what is its own: tensors of
BatchNorm that stay on it, what its learning method keeps. That is a measurement of the simulation: it is not charged, and moves neither
the clock nor what a device keeps. A task's accuracy is the mean over the devices that have had it, and of one that
none has had yet, over all. Before anybody has trained all devices are the untrained model, which the server evaluates.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict

from server.fleet.roster import Member
from server.ledger import Where
from server.rounds import replies
from server.rounds.federation import Federation, Talk
from sparcl_core.codec import CodecError
from sparcl_core.methods.given import Arrays
from sparcl_core.metrics.continual import accuracy_by_class, accuracy_by_task
from sparcl_core.seeding import generator
from sparcl_core.sparsity.masks import State
from sparcl_core.sparsity.packnet import Owners
from sparcl_core.wire.protocol import Instruction


@dataclass(frozen=True, eq=False)
class OwnModels:
    """devices: [n] int64; accuracy: [n, 2, T], each device's own, NaN for a task that it has not had."""

    devices: np.ndarray
    accuracy: np.ndarray


@dataclass(frozen=True)
class Evaluation:
    """accuracy: [2, T], Class-IL and Task-IL per task. by_class: [2, T, C], the same per true class; NaN where there is no test sample.

    own: of which devices it is the mean; None: it is of the server's model.
    """

    accuracy: np.ndarray
    by_class: np.ndarray
    own: OwnModels | None = None


Evaluate = Callable[[State, Owners, Arrays], Evaluation]  # weights, whose each is where tasks own them, what is kept for the method


@dataclass(frozen=True, eq=False)
class _Answer:
    """correct: [2, T, C] right answers; total: [T, C] test samples; has_had: [T] bool, the tasks that the device has had."""

    correct: np.ndarray
    total: np.ndarray
    has_had: np.ndarray


def evaluate_devices(federation: Federation, server_round: int, talk: Talk, most: int) -> Evaluation | None:
    """The mean over devices that have trained, behind a round; None before any has. A device that fails has a row in the ledger.

    `most`: so many devices, drawn for every evaluation; 0: all.
    """
    answers = _ask(federation, server_round, talk, _members(federation, server_round, most))
    if not answers:
        return None
    found = list(answers.values())
    has_had = np.stack([one.has_had for one in found])  # [n, T]
    counts = has_had | ~has_had.any(0)
    accuracy = np.stack([accuracy_by_task(one.correct, one.total) for one in found])
    by_class = np.stack([accuracy_by_class(one.correct, one.total) for one in found])
    own = OwnModels(np.array(list(answers), np.int64), np.where(has_had[:, None], accuracy, np.nan))
    return Evaluation(_mean(accuracy, counts[:, None]), _mean(by_class, counts[:, None, :, None]), own)


def _members(federation: Federation, server_round: int, most: int) -> tuple[Member, ...]:
    """Devices that have trained, at most so many, in device order."""
    roster = federation.cohorts.roster
    rows = np.flatnonzero(federation.history.finished[roster.devices] > 0)
    if most and len(rows) > most:
        rng = generator(federation.model.settings.seed, "evaluate-devices", server_round)
        rows = np.sort(rng.permutation(rows)[:most])
    return roster.members(rows)


def _ask(federation: Federation, server_round: int, talk: Talk, members: tuple[Member, ...]) -> dict[int, _Answer]:
    """The answers by device, in device order."""
    model, step = federation.model, max(federation.usual_task(server_round), 0)
    payload = model.broadcast.whole_of(model.weights).data
    parts = {"control": Instruction(server_round, step, 1, False, ()).control, "payloads": [payload]}
    if model.beside.scores:
        parts["auxiliary"] = model.beside.encode(model.broadcast.base).data
    wire = {"instruction": ConfigRecord(parts)}
    asked = {one.node_id: one for one in members}
    messages = [Message(RecordDict(dict(wire)), node, "evaluate", group_id=str(server_round)) for node in asked]
    answers, problems = {}, {one.device: "no reply" for one in members}
    for reply in talk(messages) if messages else ():
        if member := asked.get(reply.metadata.src_node_id):
            try:
                answers[member.device] = _read(reply, model.num_classes, f"device {member.device}, round {server_round}")
                del problems[member.device]
            except CodecError as error:
                problems[member.device] = str(error)
    for device, problem in problems.items():
        federation.ledger.absent(Where(server_round, step, device, federation.now), "failed", problem, "evaluate")
    return {device: answers[device] for device in sorted(answers)}


def _read(reply: Message, classes: int, where: str) -> _Answer:
    """Raises CodecError if the reply is no evaluation."""
    if problem := replies.missing(reply, where, ("evaluation",)):
        raise CodecError(problem)
    wire = reply.content["evaluation"]
    total, correct, had = (np.array(wire.get(key, ()), dtype=object) for key in ("total", "correct", "tasks"))
    whole = all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in (*total, *correct, *had))
    if not whole or not total.size or total.size % classes or correct.size != 2 * total.size:
        raise CodecError(f"{where}: the evaluation does not count right answers for {classes} classes")
    tasks = total.size // classes
    total, correct = total.astype(np.int64).reshape(tasks, classes), correct.astype(np.int64).reshape(2, tasks, classes)
    if (correct > total).any() or (had >= tasks).any():
        raise CodecError(f"{where}: the evaluation counts more right answers than samples, or tasks that there are not")
    has_had = np.zeros(tasks, bool)
    has_had[had.astype(np.int64)] = True
    return _Answer(correct, total, has_had)


def _mean(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Over the devices, in their order, of those that count; NaN where there is no test sample."""
    counts = np.broadcast_to(counts, values.shape)
    return np.where(counts, values, 0).sum(0) / counts.sum(0)
