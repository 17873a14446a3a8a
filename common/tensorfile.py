"""Files of tensors: safetensors, and those of PyTorch without PyTorch.

A `.pt` is a zip of raw tensors and of a pickle that says which is which; before PyTorch 1.6 it was
the same in a row. The pickle is read by tensorpickle.py, which runs nothing.
"""

import io
import json
import math
import mmap
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from common.checkpoint import CheckpointError
from common.tensorpickle import (
    CALLS,
    STORAGES,
    TENSOR,
    Forbidden,
    Module,
    Storage,
    dtype_of,
    sizes,
    unpickle,
)

LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the mark, pickled: how such files begin
# What is said of a file that cannot be read, whatever is wrong in it.
DAMAGE = (
    LookupError, TypeError, ValueError, AttributeError, OverflowError, OSError, RecursionError,
    NotImplementedError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


def load_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """{official name: array} of a safetensors file or one of PyTorch's (.pt, .ckpt, .pth).

    Arrays are read-only views of the mapped file, so memory is used by what is made of them. The
    "state_dict" of a Lightning checkpoint is unwrapped, that of a TorchScript module put together,
    a list is numbered: "0", "1", ...
    CheckpointError, in one line: missing, truncated, damaged, a pickle that names anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}: fetch them, or fix the path")
    if path.stat().st_size < 16:
        raise CheckpointError(f"{path} is truncated: fetch it again")
    with open(path, "rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        if data[:4] == b"PK\3\4":
            return _named(_read_zip(path, data))
        if data[: len(LEGACY)] == LEGACY:
            return _named(_read_legacy(data))
        if data[8:9] == b"{":
            return _read_safetensors(data)
    except Forbidden as error:
        raise CheckpointError(
            f"{path} names {str(error)!r}, which no weights need: refused, nothing of it was run; "
            "get the file from its publisher, or as safetensors"
        ) from error
    except DAMAGE as error:
        raise CheckpointError(
            f"{path} is truncated, damaged or holds no tensors ({error}): fetch it again"
        ) from error
    raise CheckpointError(f"{path} is neither safetensors nor of PyTorch: fetch it again")


def _read_safetensors(data: memoryview) -> dict[str, np.ndarray]:
    """Eight bytes of header length; JSON {name: dtype, shape, data_offsets}; the tensors."""
    start = 8 + int.from_bytes(data[:8], "little")
    if start > len(data):
        raise ValueError("the header is cut off")
    header = json.loads(bytes(data[8:start]))
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        shape, (begin, end) = sizes(entry["shape"]), sizes(entry["data_offsets"])
        part = Storage.of(data[start + begin : start + end], entry["dtype"], math.prod(shape))
        tensors[name] = np.ndarray(shape, part.dtype, part.data)
    return tensors


def _read_zip(path: Path, data: memoryview) -> Any:
    """NAME/data.pkl, NAME/data/0, NAME/data/1, ..., NAME/byteorder, stored without compression."""
    with zipfile.ZipFile(path) as archive:
        files = {info.filename: info for info in archive.infolist()}
    folders = [name[: -len("data.pkl")] for name in files if f"/{name}".endswith("/data.pkl")]
    if len(folders) != 1:
        raise ValueError("a zip, but not one of PyTorch's: no data.pkl")
    checked: dict[str, memoryview] = {}

    def member(name: str) -> memoryview:
        if name not in checked:
            if folders[0] + name not in files:
                raise ValueError(f"no member {name}")
            info = files[folders[0] + name]
            at = info.header_offset  # of a header of 30 bytes, a name and extra fields
            at += 30 + sum(struct.unpack("<HH", data[at + 26 : at + 30]))
            part = data[at : at + info.file_size]
            if info.compress_type != zipfile.ZIP_STORED or zlib.crc32(part) != info.CRC:
                raise ValueError(f"member {name} is not what was stored")
            checked[name] = part
        return checked[name]

    def storage(tag: str, kind: str, key: str, device: str, count: int) -> Storage:
        return Storage.of(member(f"data/{key}"), STORAGES[kind], count)

    if folders[0] + "byteorder" in files and member("byteorder") != b"little":
        raise ValueError("big-endian: save it on a common machine")
    return unpickle(io.BytesIO(member("data.pkl")), storage)


def _read_legacy(data: memoryview) -> Any:
    """Pickles of a number that marks it, the format's version, the machine, the tensors, the keys
    of their storages; then each storage: eight bytes of count, and its numbers."""
    file = data.obj  # the map itself, which reads on where it stands
    kinds, storages = {}, {}

    def kind_of(tag: str, kind: str, key: str, device: str, count: int, view: None) -> None:
        kinds[key] = kind

    def storage(tag: str, kind: str, key: str, device: str, count: int, view: None) -> Storage:
        if view is not None:
            raise ValueError("a storage that is a part of another")
        return Storage.of(storages[key], STORAGES[kind], count)

    _, version, machine = (unpickle(file, storage) for _ in range(3))
    if version != 1001 or not machine["little_endian"]:
        raise ValueError("of another version, or big-endian: save it on a common machine")
    start = file.tell()
    unpickle(file, kind_of, {**CALLS, TENSOR: lambda *_: None})  # where the storages begin
    keys = unpickle(file, storage)
    at = file.tell()
    for key in keys:
        count = int.from_bytes(data[at : at + 8], "little")
        end = at + 8 + count * dtype_of(STORAGES[kinds[key]]).itemsize
        storages[key], at = data[at + 8 : end], end
    file.seek(start)
    return unpickle(file, storage)


def _named(tensors: Any) -> dict[str, np.ndarray]:
    """The tensors of what a pickle held, by their names."""
    if isinstance(tensors, Module):
        tensors = dict(_state(tensors))
    if isinstance(tensors, dict) and "state_dict" in tensors:
        tensors = tensors["state_dict"]
    if isinstance(tensors, list | tuple):
        tensors = {str(i): x for i, x in enumerate(tensors)}
    if not isinstance(tensors, dict):
        raise ValueError(f"a {type(tensors).__name__} instead of a dict of tensors")
    for name, tensor in tensors.items():
        if type(name) is not str or not isinstance(tensor, np.ndarray):
            raise ValueError(f"{name!r} is no tensor")
    return tensors


def _state(module: Module, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """("path.to.tensor", tensor) of a module and of those in it: its state_dict."""
    for name, value in module.items():
        if isinstance(value, Module):
            yield from _state(value, f"{prefix}{name}.")
        elif isinstance(value, np.ndarray):
            yield f"{prefix}{name}", value
