"""Weights files that are damaged, foreign or meant to do harm, for benchmarks/faults.py.

Each must be refused in one line, and nothing of it run.
"""

import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common import checkpoint
from common.checkpoint import CheckpointError
from common.tensorfile import load_tensors

WEIGHTS = Path("glide/weights/small.safetensors")


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def files(folder: Path, seed: int) -> dict:
    """Each file goes to both readers. load_tensors knows no digest: a flipped bit is a number."""
    rng, whole, cases = np.random.default_rng(seed), WEIGHTS.read_bytes(), {}
    for i in range(100):
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        cases[f"flipped {i}"] = bytes(data)
        cases[f"truncated {i}"] = whole[: int(rng.integers(len(whole)))]
    header = lambda d, n=0: (n or len(d)).to_bytes(8, "little") + d + bytes(64)  # noqa: E731
    entry = lambda **kw: json.dumps(  # noqa: E731
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | kw}
    ).encode()
    for protocol in range(6):
        cases[f"pickle {protocol}"] = pickle.dumps(Bomb(), protocol) + b"." * 64
    zipped = folder / "bomb.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(Bomb(), 2))
    cases |= {
        "pickle in a zip": zipped.read_bytes(), "empty": b"", "text": b"no weights\n" * 99,
        "picture": Path("lessons/figures/glide_first_light.webp").read_bytes(),
        "zeros": bytes(10_000), "noise": rng.bytes(10_000),
        "header of 2^63 bytes": header(b"{}", 2**63), "header cut": header(b'{"a": ', 9_999),
        "offsets beyond": header(entry(data_offsets=[0, 2**40], shape=[2**38])),
        "offsets below 0": header(entry(data_offsets=[-4, 0])),
        "shape of 2^64": header(entry(shape=[2**32, 2**32])),
        "shape of -1": header(entry(shape=[-1])), "unknown type": header(entry(dtype="X")),
        "nested header": header(b"[" * 50_000), "deep header": header(b'{"a":' * 50_000),
    }  # fmt: skip
    counts = {"files": len(cases), "load_weights_refused": 0, "load_tensors_refused": 0}
    path, here = folder / "weights.pt", os.getcwd()
    surprises = []
    os.chdir(folder)
    try:
        for name, data in tqdm(cases.items(), desc="weights files"):
            path.write_bytes(data)
            for reader in (checkpoint.load_weights, load_tensors):
                try:
                    reader(path)
                    if reader is checkpoint.load_weights:
                        surprises.append(f"{name}: taken")
                except CheckpointError as error:
                    counts[f"{reader.__name__}_refused"] += 1
                    if "\n" in str(error):
                        surprises.append(f"{name}: more than a line")
                except Exception as error:
                    surprises.append(f"{name}: {reader.__name__}: {type(error).__name__}")
        counts["executed"] = Path("executed").exists()
    finally:
        os.chdir(here)
    return counts | {"surprises": surprises}
