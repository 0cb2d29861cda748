"""Section [data]: which images, by name; and what the field's names say of the stream that is made of them."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from simulations.config.sections import StreamConfig
from sparcl_core.plugins.kinds import OURS, Kind

# tasks and scenario of mammoth's benchmarks of these names; its rotations are drawn from [0, 180), ours are 9 degrees apart
STREAMS: dict[str, dict[str, Any]] = {
    "seq-mnist": {"tasks": 5, "setting": "class-il"},
    "perm-mnist": {"tasks": 20, "setting": "domain-il", "domain": "permuted"},
    "rot-mnist": {"tasks": 20, "setting": "domain-il", "domain": "rotated", "rotation": 9.0},
    "seq-fmnist": {"tasks": 5, "setting": "class-il"},
    "seq-svhn": {"tasks": 5, "setting": "class-il"},
    "seq-cifar10": {"tasks": 5, "setting": "class-il"},
    "seq-cifar100": {"tasks": 10, "setting": "class-il"},
    "seq-tinyimg": {"tasks": 10, "setting": "class-il"},
    "femnist": {"tasks": 2, "setting": "class-il", "partition": "natural"},
}
FILES = ("parquet", "folder", "npz")  # what a path must be given for
DATA = Kind(
    setting="data.name",
    noun="data set",
    group="sparcl.data",
    ours={"digits": "simulations.data.digits:read", **dict.fromkeys((*FILES, *STREAMS), "simulations.data.reading:read")},
)
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class DataConfig:
    """Where samples come from; docs/data.md has the layouts.

    Attributes:
        name: `digits` (scikit-learn's 8x8 digits, built in); `parquet`, `folder` (one per class) or `npz`, files of your own in `path`; a
            benchmark of the field, `seq-mnist`, `perm-mnist`, `rot-mnist`, `seq-fmnist`, `seq-svhn`, `seq-cifar10`, `seq-cifar100`,
            `seq-tinyimg` or `femnist`, which also says what [stream] does not (`STREAMS`); or a function of your own, `package.module:name`
            or a name that an installed package offers.
        path: folder that the files lie in, or the .npz file; of a benchmark, empty: where `--download` puts it.
        image_column, label_column: columns of parquet files; images as struct(bytes, path) or bytes, labels as integers. Where the files do
            not have the default, the usual other name is taken (image; labels, fine_label), and a line says so.
        id_column: column of train.parquet that says whose sample it is, integers or text; for stream.partition=natural, else empty.
        size: height and width that images of `folder` and `parquet` are brought to; 0 leaves them as they are, all of one size.
        resize: how: `none`, `stretch` (each side by itself), or `crop` (the largest square in the middle, then scaled).
        folds: data without a test part of its own (digits, a folder of classes alone) has this many stratified folds; one is the test set.
        fold: which; None takes seed mod folds, so that seeds 0 to folds - 1 cover all samples.
        validation: share of the training samples that is held out and tested on *instead* of the test set; for tuning.
        train_limit: keep at most this many training samples per class; 0 keeps all.
        options: what a function of your own is called with beside (config, seed).
        sha256: of the files' content, as the run has found it (`simulations.data.content`); empty: not looked at yet.
    """

    read_with: ClassVar[dict[str, tuple[str, ...]]] = {
        f"data.name={'|'.join((*FILES, *STREAMS))}": ("path",),
        f"data.name={'|'.join(('parquet', *STREAMS))}": ("image_column", "label_column"),
        "data.name=digits|folder|npz": ("folds", "fold"),
        "stream.partition=natural": ("id_column",),
    }
    name: str = "digits"
    path: str = ""
    image_column: str = "img"
    label_column: str = "label"
    id_column: str = ""
    size: int = 0
    resize: Literal["none", "stretch", "crop"] = "none"
    folds: int = 5
    fold: int | None = None
    validation: float = 0.0
    train_limit: int = 0
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    sha256: str = ""

    def __post_init__(self):
        is_own = DATA.offer(self.name).origin != OURS
        if self.name in FILES and not self.path:
            what = {"parquet": "a folder with train.parquet and test.parquet", "folder": "a folder that has one for each class"}
            raise ValueError(f"name is {self.name!r}, but path is empty: set data.path to {what.get(self.name, 'the .npz file')}")
        if self.id_column and (self.name in ("digits", "folder", "npz")):
            who = "the built-in digits do not say who wrote them" if self.name == "digits" else f"{self.name} has no columns"
            raise ValueError(f"id_column is {self.id_column!r}: {who}; leave it empty, or set data.name=parquet")
        self._check_size()
        if self.options and not is_own:
            raise ValueError(f"options has {', '.join(self.options)}: they are for functions of your own, and {self.name!r} is ours")
        if self.folds < 2:
            raise ValueError(f"folds is {self.folds}: at least 2 are needed to train on one part and test on another")
        if self.fold is not None and not 0 <= self.fold < self.folds:
            raise ValueError(f"fold is {self.fold}: folds are numbered 0 to {self.folds - 1}")
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation is {self.validation}: a share in [0, 1); 0 uses the test set")
        if self.train_limit < 0:
            raise ValueError(f"train_limit is {self.train_limit}: samples per class, or 0 for all")
        if self.sha256 and not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"sha256 is {self.sha256[:70]!r}: 64 hexadecimal digits, or empty for whatever is there")

    def _check_size(self) -> None:
        if self.size < 0:
            raise ValueError(f"size is {self.size}: pixels of a side, or 0 to leave images as they are")
        if (self.size > 0) != (self.resize != "none"):
            way = "set data.resize to stretch or crop" if self.size else "set data.size to pixels of a side"
            raise ValueError(f"size is {self.size} and resize {self.resize!r}: both are needed to bring images to a size; {way}")
        if self.size and self.name not in ("folder", "parquet"):
            raise ValueError(f"size is {self.size}: only images of data.name=folder and parquet are brought to a size; leave it at 0")


def bring_stream(tree: dict[str, Any], overridden: Iterable[str]) -> None:
    """Write what a benchmark's name says of the stream into the tables of an experiment, in place.

    In a file the name says what [stream] leaves out. A name that an override gives replaces what the file says too, as the file was
    written for another data set. What an override sets itself stays; so does `task-il`, which is the same stream as `class-il`.
    """
    data, stream, overridden = tree.get("data"), tree.setdefault("stream", {}), set(overridden)
    name = data.get("name") if isinstance(data, dict) else None
    if not isinstance(stream, dict) or not isinstance(name, str) or "stream" in overridden:
        return
    is_late = bool({"data", "data.name"} & overridden)
    for key, value in STREAMS.get(name, {}).items():
        keeps = f"stream.{key}" in overridden or (key in stream and not is_late) or (value == "class-il" and stream.get(key) == "task-il")
        if not keeps:
            stream[key] = value


def contradictions(data: DataConfig, stream: StreamConfig) -> Iterator[str]:
    """A name that says what is done to the images of a task, and a stream that does another thing."""
    said = STREAMS.get(data.name, {})
    if (domain := said.get("domain")) and (stream.setting, stream.domain) != ("domain-il", domain):
        yield (
            f"data.name is {data.name!r}, whose tasks are {domain} images, but stream.setting is {stream.setting!r} and stream.domain "
            f"{stream.domain!r}: leave both out, or set stream.setting=domain-il and stream.domain={domain}, or take data.name=seq-mnist"
        )
