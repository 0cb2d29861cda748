"""A run's folder from its first moment on: what it needs to be resumed lies beside its results until they are whole.

    config.toml        the resolved experiment
    run.json           how it is carried out; while it is there the run is unfinished, and its process holds a lock on it
    checkpoint/        the server's side, `simulations.checkpoints.checkpoint`; with --baseline `run` and `twin` apart
    devices/           the devices' states, unless they are kept elsewhere

Results are written when all rounds are done, and flushed to the disk; then run.json becomes whole.json, checkpoint and states go, and at
last whole.json: with that the run is finished. What else lies in the folder is nobody's to delete.
"""

import hashlib
import logging
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from server.errors import Diverged, NobodyCame
from simulations.checkpoints.checkpoint import OWN as CHECKPOINT
from simulations.checkpoints.checkpoint import Checkpoints
from simulations.checkpoints.pointer import CheckpointError, Identity
from simulations.config.errors import ConfigError, Lost, command
from simulations.config.experiment import Experiment
from simulations.config.loading import config_bytes
from simulations.data.content import DataChanged, DataGone
from simulations.disk import LinkRefused, Own, flush
from simulations.engine.files import OWN as STORE
from simulations.engine.files import Files, LocalFiles, StoreError, StoreLinked, is_local, open_files
from simulations.engine.store import StateStore
from simulations.plugins.packages import used_by
from simulations.preflight import WHOLE
from simulations.results.control_file import How, locked, read_control, write_control
from simulations.results.folder import FILES as RESULTS
from simulations.results.folder import claim_folder
from simulations.run import Keep
from sparcl_core.foreign import printable

log = logging.getLogger(__name__)
PARTS = ("run", "twin")
KEPT = Own(  # what it takes to resume a run
    files=re.compile(f"checkpoint/(run|twin)/({CHECKPOINT.files.pattern})|devices/(run|twin)/({STORE.files.pattern})"),
    folders=re.compile(f"checkpoint(/(run|twin)(/({CHECKPOINT.folders.pattern}))?)?|devices(/(run|twin)(/({STORE.folders.pattern}))?)?"),
)
ALL = Own(re.compile(f"{'|'.join(map(re.escape, ('run.json', WHOLE, *RESULTS)))}|{KEPT.files.pattern}"), KEPT.folders)


class Unfinished:
    """The folder of a run that is not finished, locked for this process."""

    def __init__(self, folder: Path, experiment: Experiment, how: How):
        self.folder, self.experiment, self.how = folder, experiment, how
        self.is_finished = False
        self._keeps: dict[str, Keep] = {}

    def keep(self, part: str) -> Keep:
        """Where `run` or `twin` is kept. On the Ray engine to be called when Ray is there.

        Raises:
            StoreError: if device states cannot be kept there.
        """
        if part not in self._keeps:
            checkpoints = self._checkpoints(part)
            self._keeps[part] = Keep(checkpoints, StateStore(self._files(part, checkpoints.is_begun), checkpoints.identity.tag))
        return self._keeps[part]

    def _checkpoints(self, part: str) -> Checkpoints:
        identity = Identity(self.how.id, part, hashlib.sha256(config_bytes(self.experiment)).hexdigest())
        return Checkpoints(self.folder / "checkpoint" / part, identity, used_by(self.experiment))

    def _files(self, part: str, has_begun: bool) -> Files:
        how = self.how
        if how.on_nodes:
            from simulations.engine import replicas

            name = f"sparcl-{how.id}-{part}"
            return replicas.find(name) if has_begun else replicas.on_two_nodes(name)
        store = how.store if how.store.endswith("/") else f"{how.store}/"
        url = f"{store}{how.id}/{part}" if how.store else str(self.folder / "devices" / part)
        if has_begun and how.store and is_local(url) and not os.path.isdir(url):
            raise StoreError(f"the store {how.store} does not hold this run's device states: is it mounted, is it where it was?")
        files = open_files(url, own_parts=2)
        if how.address:
            from simulations.engine import replicas

            replicas.expect_shared(files)
        return files

    @property
    def rounds_done(self) -> int | None:
        """Rounds that need not be trained again; None if the checkpoints are there and do not say."""
        try:
            return sum(self._checkpoints(part).last_round or 0 for part in PARTS)
        except CheckpointError:  # whoever loads it says what is wrong with it
            return None

    @property
    def is_whole(self) -> bool:
        """Are all results written? What is left is `finish`."""
        return (self.folder / WHOLE).exists()

    def finish(self) -> None:
        """The results are written: forget what it took to resume the run. If that is interrupted, it can be called again."""
        if not self.is_whole:
            flush([*(path for name in RESULTS if (path := self.folder / name).is_file()), self.folder])
            (self.folder / "run.json").rename(self.folder / WHOLE)  # one step, and the lock stays
            flush([self.folder])
        self.is_finished = True
        self.open_all(PARTS[: 1 + self.how.baseline])
        self.forget()
        (self.folder / WHOLE).unlink()
        flush([self.folder])

    def open_all(self, parts: tuple[str, ...] = PARTS) -> None:
        """Look for the device states of these parts, wherever they are: `forget` will delete them. Those that cannot be reached are left
        with a word; a link in the place of a folder is an error."""
        for part in parts:
            try:
                self.keep(part)
            except StoreLinked:
                raise
            except StoreError as error:
                if not isinstance(error, Lost):
                    log.warning("device states are left behind: %s", error)

    def forget(self) -> None:
        """Remove checkpoints and device states.

        Raises:
            LinkRefused: if a link lies in the place of a folder of ours; nothing in the run's folder is deleted then.
        """
        KEPT.find(self.folder)
        for keep in self._keeps.values():
            try:
                keep.store.destroy()
            except StoreLinked:
                raise
            except StoreError as error:
                log.warning("device states are left behind: %s", error)
            if self.how.store and isinstance(keep.store.files, LocalFiles):
                with suppress(OSError):  # the other part is still in it
                    Path(keep.store.files.url).parent.rmdir()
        KEPT.remove(self.folder)


@contextmanager
def new_run(parent: Path, experiment: Experiment, how: How, name: str = "") -> Iterator[Unfinished]:
    """A new run's folder, `parent/NAME[-K]`. If the block fails before a round was trained, or as nobody
    ever could, nothing is left of it.

    `name`: empty for that of the experiment and the seed.

    Raises:
        ConfigError: if the folder cannot be written.
    """
    folder = claim_folder(parent, name or f"{experiment.name}-seed{experiment.seed}")
    store = how.store
    if store and is_local(store):  # a run may be resumed from another folder
        store = os.path.abspath(os.path.expanduser(store))
    run = Unfinished(folder, experiment, replace(how, id=secrets.token_hex(6), store=store))
    try:
        write_control(folder, experiment, run.how)
        with locked(folder):
            yield run
    except BaseException as error:
        if not run.is_finished and (run.rounds_done == 0 or isinstance(error, NobodyCame)):
            try:
                left = _remove(run)
            except (OSError, LinkRefused, StoreError) as trouble:
                left = f"{folder} is left behind: {trouble}"
            if left:
                error.add_note(left)
        else:
            error.add_note(_way_on(run, error))
        raise


@contextmanager
def open_run(folder: Path) -> Iterator[Unfinished]:
    """An unfinished run's folder.

    Raises:
        ConfigError: if there is none at `folder`, it is finished, or another process is at it.
        LinkRefused: if a link lies in the place of a folder of ours.
    """
    if not (folder / "config.toml").is_file():
        raise ConfigError(f"{folder} is no run folder: it has no config.toml; name the folder that `sparcl run` has printed")
    with locked(folder):
        run = Unfinished(folder, *read_control(folder))
        run.is_finished = run.is_whole
        try:
            ALL.find(folder)
            yield run
        except BaseException as error:
            error.add_note(_way_on(run, error))
            raise


def give_up(run: Unfinished) -> str:
    """Remove an unfinished run, wherever it is kept, but no results that are whole, and nothing that is not ours. Returns what it did.

    On a cluster to be called when Ray is attached. Raises LinkRefused or StoreError as `forget`.
    """
    if run.is_whole:
        run.finish()
        return f"{run.folder} is whole, and stays"
    run.open_all()
    return _remove(run) or f"{run.folder} is removed"


def _remove(run: Unfinished) -> str:
    """Delete the run, its folder last. Returns "", or what is left in it."""
    ALL.find(run.folder)
    run.forget()
    ALL.remove(run.folder)
    with suppress(OSError):
        run.folder.rmdir()
    if not run.folder.exists():
        return ""
    others = ", ".join(sorted(path.name for path in run.folder.iterdir()))
    return f"{run.folder} stays with what is not the run's, the rest is removed: {printable(others)}"


def _way_on(run: Unfinished, error: BaseException) -> str:
    if run.is_finished:
        return f"the run is whole: {run.folder}"
    repeats, removes = run.folder / "config.toml", command("forget", run.folder)
    if _comes_from(error, DataGone):
        return f"{command('resume', run.folder)} goes on when the data is back where it was; {removes} removes the run"
    if _comes_from(error, DataChanged):
        anew = command("run", repeats, "--set", "data.sha256=")
        return f"the run cannot be resumed with other data: {anew} begins anew with what is there now, {removes} removes the run"
    if _comes_from(error, Lost):
        return f"the run cannot be resumed as it is: {command('run', repeats)} repeats it, {removes} removes it"
    if _comes_from(error, Diverged):
        server, device = run.experiment.server_optimizer.lr, run.experiment.learner.lr
        anew = command("run", repeats, "--set", "server_optimizer.lr=1" if server > 1 else f"learner.lr={device / 10:g}")
        return f"resumed, the run would diverge again: {anew} begins anew with smaller steps, {removes} removes the run"
    if isinstance(error, NobodyCame):
        return f"nobody has trained, and nobody will: {command('forget', run.folder)} removes the run"
    done, held = run.rounds_done, "; the cluster holds its device states until then" if run.how.on_nodes else ""
    if done is None:
        return f"the run stays as it is: {command('resume', run.folder)} goes on as soon as its checkpoint can be read{held}"
    return f"stopped after {done} rounds: {command('resume', run.folder)} goes on from there{held}"


def _comes_from(error: BaseException | None, kind: type) -> bool:
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__
    return False
