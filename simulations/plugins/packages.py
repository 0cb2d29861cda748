"""What of other packages a run uses: their versions belong to those of its software, so that a resume with others says so."""

import hashlib
import json
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from simulations.config.experiment import Experiment
from simulations.plugins.catalogue import CATALOGUE
from sparcl_core.plugins.kinds import OURS
from sparcl_core.plugins.named_files import NamedFiles


def used_by(experiment: Experiment) -> dict[str, str]:
    """Package -> version of all that the experiment names by entry points or import paths and that is not ours.

    What belongs to no installed package, or to one that is installed from a folder that may change (`pip install -e`), comes with the
    SHA-256 of its source, as `my_package's source`. Profiles that the rows of `fleet.file` name are not looked for.
    """
    found: dict[str, str] = {}
    for kind, name in _named(experiment):
        if isinstance(kind, NamedFiles):
            if (origin := kind.origin(name)) not in ("", OURS):
                found |= _version(origin.rpartition(" ")[0], "")
        elif name not in kind.ours:
            offer = kind.offer(name)
            module = offer.path.partition(":")[0].partition(".")[0]
            found |= _version(_distribution_of(module) if offer.name == offer.path else offer.origin.rpartition(" ")[0], module)
    return found


def _named(experiment: Experiment):
    names = {
        "methods": experiment.learner.method, "corrections": experiment.federation.correction, "schemes": experiment.masks.scheme,
        "data": experiment.data.name, "models": experiment.model.name,
        "rules": experiment.aggregation.rule, "policies": experiment.selection.policy, "availability": experiment.availability.kind,
    }  # fmt: skip
    yield from ((CATALOGUE[what].kind, name) for what, name in names.items())
    profiles = [] if experiment.fleet.file else list(experiment.fleet.mix) or [experiment.profile]
    yield from ((CATALOGUE["profiles"].kind, name) for name in profiles)


def _version(package: str, module: str) -> dict[str, str]:
    try:
        installed = metadata.distribution(package) if package else None
    except metadata.PackageNotFoundError:
        installed = None
    found = {package: installed.version} if installed else {}
    if module and (installed is None or _may_change(installed)):
        found[f"{module}'s source"] = _digest(module)
    return found


def _may_change(installed: metadata.Distribution) -> bool:
    return bool(json.loads(installed.read_text("direct_url.json") or "{}").get("dir_info", {}).get("editable"))


def _distribution_of(module: str) -> str:
    """The installed package that brings a module; empty if none does."""
    return next(iter(metadata.packages_distributions().get(module, ())), "")


def _digest(module: str) -> str:
    spec = find_spec(module)
    if spec is None or not (spec.origin or spec.submodule_search_locations):
        return "unknown"
    folders = [Path(one) for one in spec.submodule_search_locations or ()]
    paths = sorted(path for folder in folders for path in folder.rglob("*.py")) or [Path(spec.origin)]
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]
