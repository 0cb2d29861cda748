"""Small data sets in the real layouts, written to disk: what people have, with a few images of each class."""

import gzip
import io
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from scipy.io import savemat


def images(count: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """[count, *shape] uint8 noise."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def encoded(pixels: np.ndarray, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def save(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def grey_digits(seed: int = 0, each: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """As MNIST: [10 * each, 28, 28] to train on, one of each class to test on."""
    y, test_y = np.tile(np.arange(10), each), np.arange(10)
    return images(len(y), (28, 28), seed), y, images(10, (28, 28), seed + 1), test_y


def idx(values: np.ndarray) -> bytes:
    return struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape) + values.astype(np.uint8).tobytes()


def write_idx(folder: Path, arrays, *, packed: bool = False, sign: str = "-") -> None:
    names = [f"{part}-{what}{sign}idx{axes}-ubyte" for part in ("train", "t10k") for what, axes in (("images", 3), ("labels", 1))]
    for name, values in zip(names, arrays, strict=True):
        save(folder / (f"{name}.gz" if packed else name), gzip.compress(idx(values), mtime=0) if packed else idx(values))


def write_cifar10(folder: Path, x: np.ndarray, y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray) -> None:
    """The batches for Python. x: [N, 3, 32, 32]."""
    parts = {f"data_batch_{number + 1}": rows for number, rows in enumerate(np.array_split(np.arange(len(y)), 5))}
    for name, rows in parts.items():
        save(folder / name, pickle.dumps({"data": x[rows].reshape(len(rows), -1), "labels": y[rows].tolist()}))
    save(folder / "test_batch", pickle.dumps({"data": test_x.reshape(len(test_x), -1), "labels": test_y.tolist()}))
    save(folder / "batches.meta", pickle.dumps({"label_names": [f"thing {label}" for label in range(10)]}))


def write_cifar100_binary(folder: Path, x: np.ndarray, fine: np.ndarray, test_x: np.ndarray, test_fine: np.ndarray) -> None:
    for name, pixels, labels in (("train", x, fine), ("test", test_x, test_fine)):
        rows = np.concatenate([labels[:, None] // 5, labels[:, None], pixels.reshape(len(pixels), -1)], axis=1)
        save(folder / f"{name}.bin", rows.astype(np.uint8).tobytes())
    save(folder / "fine_label_names.txt", "\n".join(f"sort_{label}" for label in range(100)).encode())


def write_svhn(folder: Path, x: np.ndarray, y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray) -> None:
    """x: [N, 3, 32, 32]; the digit 0 has label 10 there."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, pixels, labels in (("train", x, y), ("test", test_x, test_y)):
        savemat(folder / f"{part}_32x32.mat", {"X": pixels.transpose(2, 3, 1, 0), "y": np.where(labels == 0, 10, labels)[:, None]})


def write_tiny_imagenet(folder: Path, ids: list[str], x: np.ndarray, test_x: np.ndarray) -> list[str]:
    """x: [ids, each, 64, 64, 3], test_x: [ids, 64, 64, 3], as PNG so that they can be compared. Returns the ids of the test images."""
    for name, own in zip(ids, x, strict=True):
        for number, pixels in enumerate(own):
            save(folder / "train" / name / "images" / f"{name}_{number}.JPEG", encoded(pixels))
    order = ids[::-1]
    for number, pixels in enumerate(test_x):
        save(folder / "val" / "images" / f"val_{number}.JPEG", encoded(pixels))
    lines = [f"val_{number}.JPEG\t{name}\t0\t0\t10\t10\n" for number, name in enumerate(order)]
    save(folder / "val" / "val_annotations.txt", "".join(lines).encode())
    save(folder / "test" / "images" / "test_0.JPEG", b"has no label and is not read")
    save(folder / "wnids.txt", "\n".join(ids[::-1]).encode())
    save(folder / "words.txt", "".join(f"{name}\tword {name}, another\n" for name in ids).encode())
    return order


def leaf(users: dict[str, tuple[np.ndarray, list[int]]]) -> bytes:
    """LEAF's JSON of writer -> images [n, 28, 28] uint8 and labels."""
    data = {name: {"x": (x.reshape(len(x), -1) / 255).tolist(), "y": y} for name, (x, y) in users.items()}
    return json.dumps({"users": list(users), "num_samples": [len(y) for _, y in users.values()], "user_data": data}).encode()


def write_parquet(path: Path, pictures, labels=None, names: list[str] | None = None, **columns) -> None:
    """As hubs publish it: image as struct(bytes, path); `names` of the classes in the schema, as the `datasets` library writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = {"image": [{"bytes": encoded(pixels), "path": None} for pixels in pictures]} | ({} if labels is None else {"label": labels})
    table = pa.table(own | columns)
    if names:
        told = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(told)})
    pq.write_table(table, path)


def write_classes(folder: Path, x: np.ndarray, y, names=None) -> None:
    """A folder per class with PNGs."""
    for number, (pixels, label) in enumerate(zip(x, y, strict=True)):
        save(folder / (names[label] if names else str(label)) / f"{number:04d}.png", encoded(pixels))
