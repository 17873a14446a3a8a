"""The pickle in a file of PyTorch's, read as the data it is.

An interpreter that can make dicts, lists, numbers, strings and tensors and nothing else: a name
that the pickle mentions is looked up in a table, never imported, so nothing runs.
"""

import math
import struct
from collections.abc import Callable
from typing import IO, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": jnp.bfloat16,
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1", "U8": "<u1", "BOOL": "?",
}  # fmt: skip
STORAGES = {
    "torch.DoubleStorage": "F64", "torch.FloatStorage": "F32", "torch.HalfStorage": "F16",
    "torch.BFloat16Storage": "BF16", "torch.LongStorage": "I64", "torch.IntStorage": "I32",
    "torch.ShortStorage": "I16", "torch.CharStorage": "I8", "torch.ByteStorage": "U8",
    "torch.BoolStorage": "BOOL",
}  # fmt: skip


def dtype_of(kind: str) -> np.dtype:
    if kind not in DTYPES:
        raise ValueError(f"{kind} is no type of numpy")
    return np.dtype(DTYPES[kind])


def sizes(numbers: Any) -> tuple[int, ...]:
    if not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(f"{numbers} are no sizes")
    return tuple(numbers)


class Forbidden(Exception):
    """A pickle names something else than what tensors are made of."""


class Name(str):
    """What a pickle calls a thing of Python: the word, not the thing."""


class Module(dict):
    """An object of TorchScript, as CLIP is published: its attributes, without its code."""


class Storage(NamedTuple):
    """The flat memory that tensors are views of."""

    data: memoryview
    dtype: np.dtype

    @classmethod
    def of(cls, data: memoryview, kind: str, count: int) -> "Storage":
        """`count` numbers of a kind in DTYPES, in exactly their bytes."""
        dtype = dtype_of(kind)
        if len(data) != count * dtype.itemsize:
            raise ValueError(f"{len(data)} bytes for {count} numbers of {kind}")
        return cls(data, dtype)


def _tensor(storage: Storage, offset: int, shape: tuple, stride: tuple, *_) -> np.ndarray:
    """torch._utils._rebuild_tensor_v2: a strided view, which must lie within its storage."""
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without storage")
    (data, dtype), (offset, *shape), stride = storage, sizes((offset, *shape)), sizes(stride)
    if 0 in shape:
        return np.zeros(shape, dtype)
    end = offset + 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    if max(end, math.prod(shape)) * dtype.itemsize > len(data):
        raise ValueError(f"a tensor of shape {shape} that reaches beyond its storage")
    strides = [n * dtype.itemsize for n in stride]
    return np.ndarray(shape, dtype, data, offset * dtype.itemsize, strides)


# Training states of Lightning mention a little more than tensors; it becomes None.
LIGHTNING = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype",
    "_codecs.encode",
)  # fmt: skip
TENSOR = "torch._utils._rebuild_tensor_v2"
CALLS: dict[str, Callable] = {
    "collections.OrderedDict": lambda: {},
    TENSOR: _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    **dict.fromkeys(LIGHTNING, lambda *_: None),
    **{f"torch.jit._pickle.{name}": lambda value, *_: value for name in (
        "build_intlist", "build_doublelist", "build_boollist", "build_tensorlist",
        "restore_type_tag")},
}  # fmt: skip
SCRIPTED = "__torch__."  # what TorchScript calls its classes: a word, and their objects are dicts
# Opcodes that do one simple thing: make a value, read a number or a string, pack a tuple.
NEW = {b"N": lambda: None, b"\x88": lambda: True, b"\x89": lambda: False}
NEW |= {b"}": dict, b"]": list, b")": tuple}
NUMBERS = {b"J": "<i", b"K": "<B", b"M": "<H", b"G": ">d"}
STRINGS = {b"X": "<I", b"\x8c": "<B", b"B": "<I", b"C": "<B"}
TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}
PUT, GET = {b"q": "<B", b"r": "<I"}, {b"h": "<B", b"j": "<I"}
SKIP = {b"\x80": 1, b"\x95": 8}  # the protocol's number, a frame's length


def unpickle(
    file: IO[bytes], storage: Callable[..., Any], calls: dict[str, Callable] = CALLS
) -> Any:
    """The value that a pickle (protocol 2 to 5) describes, if it is made of plain data and tensors.

    storage(*persistent id) gives the memory that the file keeps outside of the pickle. calls: what
    the names of CALLS make. The file stands behind the pickle afterwards.
    Forbidden: any name but those of CALLS and STORAGES, at the place where it is mentioned.
    """
    stack, marks, memo = [], [], {}

    def number(form: str) -> int | float:
        return struct.unpack(form, file.read(struct.calcsize(form)))[0]

    def line() -> str:
        return file.readline()[:-1].decode()

    def pop(count: int) -> list:
        if count > len(stack):
            raise ValueError("a pickle that takes more than it has")
        items = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return items

    def name(module: str, word: str) -> Name:
        full = f"{module}.{word}"
        if full not in CALLS and full not in STORAGES and not full.startswith(SCRIPTED):
            raise Forbidden(full)
        return Name(full)

    while (op := file.read(1)) != b".":
        if op in SKIP:
            file.read(SKIP[op])
        elif op in NEW:
            stack.append(NEW[op]())
        elif op in NUMBERS:
            stack.append(number(NUMBERS[op]))
        elif op == b"\x8a":  # an int of so many bytes
            stack.append(int.from_bytes(file.read(number("<B")), "little", signed=True))
        elif op in STRINGS:
            text = file.read(number(STRINGS[op]))
            stack.append(text if op in b"BC" else text.decode())
        elif op == b"(":
            marks.append(len(stack))
        elif op in TUPLES or op == b"t":
            stack.append(tuple(pop(TUPLES[op] if op in TUPLES else len(stack) - marks.pop())))
        elif op in (b"a", b"e"):  # one item, or those after the mark, to a list
            items = pop(1 if op == b"a" else len(stack) - marks.pop())
            stack[-1].extend(items)
        elif op in (b"s", b"u"):  # the same to a dict
            items = pop(2 if op == b"s" else len(stack) - marks.pop())
            if not all(isinstance(key, str | int | float) for key in items[::2]):
                raise ValueError("a dict whose keys are no words or numbers")
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif op in PUT or op == b"\x94":
            memo[number(PUT[op]) if op in PUT else len(memo)] = stack[-1]
        elif op in GET:
            stack.append(memo[number(GET[op])])
        elif op in (b"c", b"i"):
            stack.append(name(line(), line()))
        elif op == b"\x93":
            stack.append(name(*pop(2)))
        elif op == b"Q":
            stack.append(storage(*pop(1)[0]))
        elif op in (b"R", b"\x81"):
            called, arguments = pop(2)
            if isinstance(called, Name) and called.startswith(SCRIPTED) and op == b"\x81":
                stack.append(Module())
                continue
            if not isinstance(called, Name) or called not in CALLS:
                raise ValueError(f"a pickle that calls {called!r}")
            stack.append(calls[called](*arguments))
        elif op == b"b":  # attributes, such as the version of a state_dict: not needed
            attributes = pop(1)[0]
            if isinstance(stack[-1], Module):
                stack[-1].update(attributes)
        else:
            raise ValueError(f"a pickle with the operation {op!r}, which weights do not need")
    return pop(1)[0]
