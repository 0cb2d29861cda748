"""Settings of an experiment that contradict each other: what each section cannot see by itself, one message each.

Every function takes an `Experiment`, whose sections have been checked.
"""

from collections.abc import Iterator

from server.aggregation.registry import make_rule
from simulations.config import data
from sparcl_core.methods.base import LearningMethod
from sparcl_core.methods.registry import make_correction, make_method
from sparcl_core.methods.situation import Situation
from sparcl_core.sparsity.schedule import Pruning


def schedule(e) -> Iterator[str]:
    """What the rules of the masks' scheme say of sparsity and the length of tasks."""
    federation, name = e.federation, e.masks.scheme
    try:
        scheme = e.method.scheme(federation.task_epochs, e.seed)
        scheme.check()
    except ValueError as error:
        yield str(error)
        return
    if e.sparsity == 0 or name == "static" or (name == "tdm" and not e.tdm.enabled):
        return
    schedule = scheme.schedule(federation.local_epochs)
    if not any(schedule.action(1, session) == "adapt" for session in range(schedule.sessions)):
        off = {"tdm": "tdm.enabled=false", "packnet": "a smaller masks.until"}.get(name, "masks.scheme=static")
        yield (
            f"federation.local_epochs is {federation.local_epochs}: with rounds of that length masks would never adapt in a task of "
            f"{federation.task_epochs} epochs; take shorter rounds, or set {off}"
        )


def contradictions(e) -> Iterator[str]:
    """Settings that contradict each other."""
    federation, stream = e.federation, e.stream
    yield from _federated(e)
    yield from _of_the_method(e)
    yield from data.contradictions(e.data, stream)
    if e.clock.is_buffered and federation.batchnorm not in ("global", "fedbn"):
        yield (
            f"federation.batchnorm is {federation.batchnorm!r}: in mode {e.clock.mode!r} there is no instant at which all devices "
            f"of a round could be asked for their statistics; take global, or clock.mode=sync"
        )
    if e.clock.over_selection and not federation.cohort_size:
        yield "clock.over_selection asks more devices than federation.cohort_size, which is 0 (all): set it"
    asked = e.clock.buffer_size or min(federation.cohort_size or stream.devices, stream.devices)
    if asked < (least := make_rule(e.aggregation).least_updates):
        yield (
            f"aggregation.rule is {e.aggregation.rule!r}, which needs {least} updates to compare and gets {asked} in a round: ask "
            f"more devices, or count on fewer that are hostile (aggregation.options.byzantine)"
        )
    if e.budget.memory == "fit" and federation.mask == "local":
        yield "budget.memory is 'fit', but federation.mask is 'local': nested masks need the shared one; take mask=shared"
    if e.budget.memory == "fit" and e.masks.densities != "uniform":
        yield (
            f"budget.memory is 'fit', but masks.densities {e.masks.densities!r}: nested masks thin all layers alike; "
            f"take masks.densities=uniform"
        )
    if e.masks.initial == "snip" and e.model.weights:
        yield (
            "masks.initial is 'snip', but model.weights names a file: devices draw the dense network that they rank from the seed, and "
            "have no such file; take masks.initial=magnitude, or leave model.weights empty"
        )
    if e.masks.scheme == "tdm" and e.tdm.gradient == "last-step" and federation.mask == "local":
        yield (
            "tdm.gradient is 'last-step', but federation.mask is 'local': such masks change before a round, when the last step was of "
            "another model; take tdm.gradient=mean, or federation.mask=shared"
        )
    if stream.online and e.ddr.enabled:
        yield (
            "stream.online is true, but ddr.enabled too: data removal judges samples by several passes, and an online stream has one; "
            "set ddr.enabled=false"
        )
    if stream.online and federation.local_epochs > 1:
        yield (f"stream.online is true, but federation.local_epochs is {federation.local_epochs}: a single pass is one epoch; set it to 1")


def _federated(e) -> Iterator[str]:
    """Where the correction of the devices' steps, or what a method sends, does not fit the rest."""
    federation, method = e.federation, make_method(e.learner)
    correction = make_correction(e.method.correction, e.learner.lr)
    named = f"federation.correction is {federation.correction!r}", f"learner.method is {e.learner.method!r}"
    for shown, sender in zip(named, (correction, method), strict=True):
        if sender.in_order and e.clock.is_buffered:
            yield (
                f"{shown}, but clock.mode is {e.clock.mode!r}: what its devices send beside their updates is of one round, and "
                f"there updates of several are averaged; take clock.mode=sync"
            )
        if sender.needs_shared_masks and federation.mask == "local":
            yield f"{shown}, but federation.mask is 'local': its arrays are over masks that all devices share; take mask=shared"
    if correction.all_gradients and e.method.is_sparse and e.dgm.enabled:
        yield (
            f"federation.correction is {federation.correction!r}, but dgm.enabled is true: it needs the gradients of all active "
            f"weights, of which DGM computes a part; set dgm.enabled=false"
        )
    yield from _of_networks_by_task(e, method)
    if e.evaluate_on == "server" and (federation.batchnorm == "fedbn" or method.personal):
        why = "federation.batchnorm is 'fedbn'" if federation.batchnorm == "fedbn" else f"learner.method is {e.learner.method!r}"
        yield f"{why}, where every device has a model of its own, but evaluate_on is 'server': set evaluate_on=devices"
    if federation.batchnorm == "fedbn" and e.model.weights:
        yield "federation.batchnorm is 'fedbn', but model.weights names a file: what it has of BatchNorm would reach no device"


def _of_the_method(e) -> Iterator[str]:
    """Why the learning method cannot run in this situation."""
    method, stream, federation = make_method(e.learner), e.stream, e.federation
    at_once = stream.advance == "rounds" and not stream.pace_spread and not stream.start_spread
    alike = stream.order == "same" and stream.cycles == 1 and stream.new_classes_share == 1
    situation = Situation(
        tasks=stream.tasks, blur=stream.blur, sparsity=e.sparsity, scheme=e.masks.scheme,
        is_in_step=stream.boundaries == "known" and at_once and alike, batchnorm=federation.batchnorm, evaluate_on=e.evaluate_on,
        optimizer=e.server_optimizer.name, fits_memory=e.budget.memory == "fit", latest_start=_latest_start(e),
    )  # fmt: skip
    found = [*method.problems(situation)]
    yield from found
    if method.draws and not found and not e.learner.buffer_size and not e.learner.buffer_share:
        yield (
            f"learner.method is {e.learner.method!r}, which draws from a buffer, but learner.buffer_size and buffer_share are 0: it could "
            f"do nothing that sgd does not; set learner.buffer_size to places of a device's buffer, or learner.method=sgd"
        )
    if e.method.scheme(federation.task_epochs, e.seed).needs == "owners" and not method.owns:
        yield (
            f"masks.scheme is {e.masks.scheme!r}, but learner.method {e.learner.method!r}: these masks are for methods whose "
            f"tasks own weights; set learner.method=packnet or lps, or another masks.scheme"
        )


def _latest_start(e) -> float:
    """See `Situation`."""
    federation = e.federation
    schedule = e.method.scheme(federation.task_epochs, e.seed).schedule(federation.local_epochs)
    if not isinstance(schedule, Pruning):
        return 1.0
    pruned = next((session for session in range(schedule.sessions) if schedule.action(0, session) == "adapt"), 0)
    return max(pruned - 1, 0) * federation.local_epochs / (schedule.until * federation.task_epochs)


def _of_networks_by_task(e, method: LearningMethod) -> Iterator[str]:
    """What does not fit a method whose devices have a network for each task, or that moves weights by itself."""
    shown = f"learner.method is {e.learner.method!r}"
    if method.needs_task_ids and e.stream.setting != "task-il":
        setting = e.stream.setting
        yield f"{shown}, which must be told at a test which task an image is of: stream.setting is {setting!r}, take task-il"
    if method.moves_weights and e.sparsity:
        yield f"{shown}, whose steps no mask can follow, but sparsity is {e.sparsity}: set sparsity=0"
    if method.moves_weights and e.federation.correction != "none":
        yield f"{shown}, whose steps nothing corrects: set federation.correction=none"
