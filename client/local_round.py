"""What a device does in a round: adapt its mask where it has one of its own, train, and report what changed.

The update that is sent is taken against the model that was received; what a lossy code loses stays here as a residual and is
added to the next update (error feedback).
"""

from dataclasses import dataclass, replace

import numpy as np

from client.config import ClientConfig
from client.state import packing
from client.state.device_state import DeviceState
from client.streams.stream import Stream
from sparcl_core import codec, task_change
from sparcl_core.codec import Encoded, Layout, SparseTensor
from sparcl_core.costs.flops import Counted, Flops
from sparcl_core.learner import Learner
from sparcl_core.networks.models import initial_weights
from sparcl_core.replay.memory import Memory
from sparcl_core.seeding import generator
from sparcl_core.sparsity import ddr as data_removal
from sparcl_core.sparsity.initial import highest_masks
from sparcl_core.sparsity.masks import Masks, State
from sparcl_core.sparsity.update import MaskUpdate
from sparcl_core.task_data import TaskData
from sparcl_core.training.session import Session
from sparcl_core.wire.auxiliary import Channel
from sparcl_core.wire.error_feedback import code_active, code_update, statistics_form
from sparcl_core.wire.protocol import Instruction, Report


@dataclass(frozen=True, kw_only=True)
class Round:
    """One device's round, done.

    Attributes:
        session: the training session.
        masks: the weight masks that it trained with.
        update: how they differ from those that the server knows; None where they do not.
        importance: what the masks' scheme ranks by, if a report of it was asked for.
        flops: everything that was computed; `dense_flops`: by the dense twin meanwhile.
        has_changed: the device noticed that its task did; never where it is told.
    """

    session: Session
    masks: Masks
    update: MaskUpdate | None
    importance: dict[str, np.ndarray] | None
    flops: Flops
    dense_flops: Flops
    has_changed: bool = False


def train(
    device: DeviceState, instruction: Instruction, learner: Learner, stream: Stream, *, number: int, config: ClientConfig
) -> tuple[DeviceState, Round]:
    """The device after one round of local training, and the round that it was. `number`: the device's number."""
    device, data, has_changed, counted = _meet(device, instruction, learner, stream, number=number, config=config)
    start, masks, update, flops = device.base, device.masks, None, counted.flops
    if config.mask == "local":
        device, start, masks, update, cost = _adapt(device, instruction, data, learner, number=number, config=config)
        flops += cost
    session = learner.train(start, masks, data, device.memory, epochs=instruction.epochs, device=number)
    flops += session.flops
    importance = None
    if instruction.report_importance:  # what the masks' scheme asks for
        importance, cost = learner.importance_after(session, masks, data, number)
        flops += cost
    seen = device.seen.copy()
    seen[np.unique(data.y)] = True
    device = replace(device, memory=replace(session.memory, received={}), seen=seen)
    if config.batchnorm in ("local", "fedbn"):
        device = replace(device, statistics={name: session.state[name] for name in device.statistics})
    return device, Round(
        session=session, masks=masks, update=update, importance=importance, flops=flops,
        dense_flops=counted.dense_flops + session.dense_flops, has_changed=has_changed,
    )  # fmt: skip


def places_to_keep(
    learner: Learner, stream: Stream, instruction: Instruction, *, number: int, config: ClientConfig
) -> tuple[Report, Flops]:
    """Before the first round, where SNIP finds the first mask: which weights of the dense network, drawn from the seed, the device would
    keep by its data; and what that cost."""
    data = _known(stream.task(instruction.task), instruction.task // config.chunks, config)
    weights, memory = initial_weights(learner.model, config.seed), learner.new_memory(sum(stream.sizes)).in_task(len(data.y))
    scores, flops = learner.sensitivity(weights, data, memory, device=number)
    masks, layout = highest_masks(scores, config.method.masks, config.method.sparsity), config.layout(learner.layout)
    places = {name: np.flatnonzero(mask) for name, mask in masks.items()}
    named = codec.encode_places("keep", layout, places, masks, versions=(0, 0))
    seen = np.zeros(learner.inputs.num_classes, dtype=bool)
    return Report(0, len(data.y), seen, b"", named.data), flops


def _meet(
    device: DeviceState, instruction: Instruction, learner: Learner, stream: Stream, *, number: int, config: ClientConfig
) -> tuple[DeviceState, TaskData, bool, Counted]:
    """The data of the round, and the device at its beginning: in a new task if it is told so, or notices it.

    What data removal knows is of samples, and goes with them; its schedule goes by the epochs of the task, as that of the masks.
    """
    data, losses, counted = stream.task(instruction.task), device.losses, Counted()
    task, has_changed = instruction.task // config.chunks, False
    if config.change:
        loss, flops = learner.loss(device.base, device.masks, data, config.change.batches)
        has_changed = device.task >= 0 and task_change.has_changed(losses, loss, config.change)
        task = max(device.task, 0) + has_changed
        losses = task_change.remember(losses[: 0 if has_changed else None], loss, config.change)
        counted += Counted(flops)
    data, memory = _known(data, task, config), device.memory
    if task != device.task:
        memory, cost = _cross(device, data, learner, stream, number=number, config=config)
        counted += cost
    elif instruction.task != device.step:
        memory = replace(memory, ddr=data_removal.start(len(data.y)))
    return replace(device, memory=memory, task=task, step=instruction.task, losses=losses), data, has_changed, counted


def _cross(
    device: DeviceState, data: TaskData, learner: Learner, stream: Stream, *, number: int, config: ClientConfig
) -> tuple[Memory, Counted]:
    """What the device keeps as it goes on to the task of `data`. It ends the one before now, with the data that it had of it and the model
    that it was sent now: before, it could not know that there would be no further round of it."""
    memory, ended = device.memory, Counted()
    if device.task >= 0:
        old = _known(stream.task(device.step), device.task, config)
        memory, ended = learner.end_task(device.base, device.masks, old, memory, device=number)
    memory, begun = learner.begin_task(device.base, device.masks, data, memory, device=number)
    return memory, ended + begun


def _known(data: TaskData, task: int, config: ClientConfig) -> TaskData:
    """`data` as a device sees it that thinks it is of `task`; where nobody tells it, its classes are those that there are."""
    classes = tuple(np.unique(data.y).tolist()) if config.change else data.classes
    return replace(data, task=task, classes=classes)


def _adapt(
    device: DeviceState, instruction: Instruction, data: TaskData, learner: Learner, *, number: int, config: ClientConfig
) -> tuple[DeviceState, State, Masks, MaskUpdate | None, Flops]:
    """Where masks are the device's own: an update by the device's own epochs, before it trains (FedDST, Bibikar et al. 2022; with
    `masks.scheme = "rigl"` also its readjustment, by magnitude and gradient on a cosine).

    The server thins what comes back to the target sparsity, so TDM's inter-task growth lasts for one round. A residual goes with the weight
    that was dropped, also where the same update grows it back.
    """
    scheme, epoch = learner.scheme, device.memory.epochs
    what = scheme.schedule(instruction.epochs).action(data.task, epoch // instruction.epochs)
    if what == "rest":
        return device, device.base, device.masks, None, Flops()
    importance, flops = {}, Flops()
    start, residual = ({name: value.copy() for name, value in own.items()} for own in (device.base, device.residual))
    if what == "adapt" and scheme.asks:
        importance, flops = learner.importance(start, device.masks, data, device.memory, device=number)
    update = replace(scheme.plan(what, device.masks, start, importance, number=instruction.round, epoch=epoch), device=number)
    masks = scheme.redo(device.masks, [start, residual], update)
    return replace(device, residual=residual), start, masks, update, flops


def report(
    device: DeviceState, done: Round, whole: Layout, *, number: int, config: ClientConfig, server_round: int, channel: Channel
) -> tuple[DeviceState, Report]:
    """The round's update as bytes, and the device with what encoding lost kept back. channel: for what is sent beside it."""
    layout, wire, base = config.layout(whole), config.wire, device.model.base
    coded, residuals = {}, {}
    for name in layout.shapes:
        form = statistics_form(wire.up) if name in layout.statistics else wire.up
        rng = generator(config.seed, "rounding", number, server_round, name) if wire.rounding == "stochastic" else None
        over = device.model.references[name] if done.update is None else codec.reference("delta", layout, name, done.masks)
        share = 1.0 if name in layout.statistics else wire.up_share
        after, before, residual = done.session.state[name], base[name], device.residual[name]
        if name in done.session.frozen:  # what was lost of an update before must not move it any more
            residual = np.where(done.session.frozen[name], residual.dtype.type(0), residual)
        if name in done.masks:  # a dropped weight is gone, not changed: the mask update says so
            after, before, residual = (packing.take(array, over.places) for array in (after, before, residual))
            sent = code_active(after - before, residual, over, form, name=name, rng=rng, block=wire.block, share=share)
            residuals[name] = packing.put(sent.residual, over.places, layout.shapes[name])
        else:
            sent = code_update(after - before, residual, over, form, name=name, rng=rng, block=wire.block, share=share)
            residuals[name] = sent.residual
        coded[name] = sent.coded
    versions = (device.version, device.mask_version)
    delta = codec.encode("delta", layout, coded, model_version=device.version, mask_version=device.mask_version)
    masks = _mask_payload(device, done, layout=layout, config=config, versions=versions)
    beside = channel.encode(done.session.upload, device.masks, device.version).data if channel else b""
    mask_update = masks.data if masks else b""
    told = Report(device.version, done.session.samples, device.seen, delta.data, mask_update, done.has_changed, beside)
    return replace(device, residual=residuals), told


def _mask_payload(device: DeviceState, done: Round, *, layout: Layout, config: ClientConfig, versions: tuple[int, int]) -> Encoded | None:
    """The device's part in the next masks: how its own differ, or what it thinks of the shared ones."""
    if done.update is not None and not config.method.scheme(config.task_epochs, config.seed).draws_growth:
        flipped = {name: np.flatnonzero(mask ^ done.masks[name]) for name, mask in device.masks.items()}
        return codec.encode_places("flip", layout, flipped, device.masks, versions=versions)
    if done.update is not None:
        return codec.encode_places(done.update.what, layout, done.update.dropped, device.masks, versions=versions)
    if done.importance is None:
        return None
    scheme, form = config.method.scheme(config.task_epochs, config.seed), config.wire.importance
    if form == "votes" or scheme.needs == "gradients":
        kind = "candidates" if scheme.needs == "gradients" else "votes"
        named = scheme.votes(device.masks, done.session.state, done.importance, done.session.memory.epochs)
        return codec.encode_places(kind, layout, named, device.masks, versions=versions)
    scores = {}
    for name in device.masks:
        over = device.model.references[name]
        values = done.importance[name].reshape(-1)[over.places]
        scores[name] = codec.quantise(SparseTensor(over.places, values), over, form, name)
    return codec.encode("importance", layout, scores, model_version=versions[0], mask_version=versions[1])
