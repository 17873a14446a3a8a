"""Checkpoints that are whole or refused, each kept together with the config it belongs to.

    training checkpoint   folder/<step>/arrays-a/...    the state, written by orbax
                          folder/<step>/manifest.json   sha256 of its files, config; written last
    released weights      NAME.safetensors              float16; config, recipe, digest inside

Orbax alone restores a flipped bit without a word, so only what matches its manifest is restored.
Folders are local or mounted paths; several hosts share one.
"""
import contextlib
import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax.traverse_util import unflatten_dict
from jax.experimental import multihost_utils

from common.disk import SaveError, saving
from common.disk import write as _write

PyTree = Any


class CheckpointError(ValueError):
    """A file or folder that cannot be used; the message is one line and says what to do."""


def save(folder: str | Path, step: int, state: PyTree, config: dict, extra: dict | None = None,
         keep: int = 2) -> None:
    """Write `state` to folder/<step>/ and wait for it; a kill leaves the checkpoint before usable.

    state: a pytree of arrays and typed keys. config, extra: JSON values. The newest `keep` (>= 1)
    undamaged checkpoints stay, older and half-written ones are deleted.
    CheckpointError: `folder` holds an undamaged later step, of another run. SaveError: a full disk.
    """
    folder, step = Path(folder).absolute(), int(step)
    here = folder / str(step)
    if any(s > step for s in _steps(folder)) and (latest(folder) or 0) > step:
        raise CheckpointError(f"{folder} holds a step after {step}: resume it or use a new folder")
    manifest = _plain({"config": config, "extra": extra or {}, "leaves": _describe(_target(state))})
    # A step saved again goes to the other of two folders: the old arrays count until the manifest
    # that names the new ones has replaced theirs.
    arrays = "arrays-b" if _manifest(here).get("arrays") == "arrays-a" else "arrays-a"
    try:
        with saving(f"step {step} in {folder}"):
            with _orbax() as (args, checkpointer):
                checkpointer.save(here / arrays, args=args.StandardSave(state), force=True)
            if jax.process_index() == 0:  # orbax has written the arrays of every host
                files = [p for p in (here / arrays).rglob("*") if p.is_file()]
                listing = {str(p.relative_to(here)): [p.stat().st_size, _sha256(p)] for p in files}
                manifest |= {"step": step, "arrays": arrays, "files": listing}
                manifest["digest"] = _sha256(manifest)
                _write(here / "manifest.json", json.dumps(manifest, indent=1).encode())
    except SaveError:
        # Half of it only fills the disk. Of several hosts another one may have finished it.
        for path in here.glob(f"{arrays}*") if jax.process_count() == 1 else ():
            shutil.rmtree(path, ignore_errors=True)
        raise
    if jax.process_index() == 0:
        _prune(folder, max(keep, 1))
    if jax.process_count() > 1:  # nobody starts the next save while process 0 still deletes
        multihost_utils.sync_global_devices(f"checkpoint {step}")


def latest(folder: str | Path) -> int | None:
    """The step `restore` would give, or None; reads all its bytes and warns of damaged ones."""
    return next((step for step, _ in _intact(Path(folder).absolute())), None)


def restore(folder: str | Path, abstract_state: PyTree, config: dict) -> tuple[PyTree, int, dict]:
    """(state, step, extra) of the newest undamaged checkpoint; warns of damaged ones by name.

    abstract_state: a state, or `jax.eval_shape` of what builds one. It gives the tree and, where
    its leaves carry one, the sharding (else the first device; with several hosts all must).
    CheckpointError: none there, all damaged, another config, another tree, shape or dtype.
    """
    folder, target = Path(folder).absolute(), _target(abstract_state)
    step, manifest = next(_intact(folder), (None, {}))
    here = folder / str(step)
    if step is None:
        damaged = ", ".join(str(folder / str(s)) for s in _steps(folder))
        raise CheckpointError(f"all checkpoints are damaged, delete them and train anew: {damaged}"
                              if damaged else f"no checkpoint in {folder}: train, or fix the path")
    stored = {"config": manifest["config"], "state": manifest["leaves"]}
    _require_same(f"checkpoint {here}", stored,
                  {"config": _plain(config), "state": _describe(target)})
    with _orbax() as (args, checkpointer):
        state = checkpointer.restore(here / manifest["arrays"], args=args.StandardRestore(target))
    return state, step, manifest["extra"]


def save_weights(path: str | Path, params: PyTree, metadata: dict) -> None:
    """Write `params` as float16 (integers as they are) to `path`; with several hosts, on one only.

    metadata: JSON values (config, recipe, numbers); `digest`, of the tensors, is added to them.
    CheckpointError: NaN or values beyond 65504, or two leaves of one name.
    """
    tensors = {}
    for name, leaf in _named(params).items():
        leaf = np.asarray(leaf)
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            with np.errstate(over="ignore"):
                leaf = leaf.astype(np.float16)
            if not np.isfinite(leaf).all():
                raise CheckpointError(f"{name} holds NaN or values beyond float16: train it stably")
        tensors[name] = np.asarray(leaf, order="C")  # safetensors copies memory, blind to strides
    own = ("digest", "metadata_digest")  # there already if loaded weights are saved again
    strings = {k: json.dumps(v) for k, v in metadata.items() if k not in own}
    digests = {"digest": _tensor_digest(tensors), "metadata_digest": _sha256(strings)}
    with saving(f"weights {path}"):
        _write(Path(path), safetensors.numpy.save(tensors, metadata=strings | digests))


def load_weights(path: str | Path, abstract_params: PyTree | None = None,
                 config: dict | None = None) -> tuple[dict, dict]:
    """(params, metadata): nested dicts of float32 numpy arrays (integers as stored), JSON values.

    CheckpointError: missing, not safetensors (a pickle is never opened), truncated, changed, saved
    with another config than `config`, or of other names or shapes than `abstract_params`.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"no weights at {path}: train them, or fix the path")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            strings = file.metadata() or {}
            # another tool's file may hold dtypes that numpy has not; without a digest it is refused
            tensors = {k: file.get_tensor(k) for k in file.keys()} if "digest" in strings else {}
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file (a pickle is never "
                              f"opened), fetch or save it again: {error}") from error
    digest, metadata_digest = (strings.pop(k, None) for k in ("digest", "metadata_digest"))
    if digest != _tensor_digest(tensors) or metadata_digest != _sha256(strings):
        raise CheckpointError(f"{path} is not as save_weights wrote it: fetch or save it again")
    metadata = {k: json.loads(v) for k, v in strings.items()} | {"digest": digest}
    if config is not None:
        _require_same(f"weights {path}", {"config": metadata.get("config", "absent")},
                      {"config": _plain(config)})
    if abstract_params is not None:
        has = {k: x.shape for k, x in tensors.items()}
        needs = {k: x.shape for k, x in _named(abstract_params).items()}
        misfits = [f"missing {k}" for k in needs if k not in has]
        misfits += [f"unexpected {k}" for k in has if k not in needs]
        misfits += [f"{k} is {has[k]}, not {s}" for k, s in needs.items() if has.get(k, s) != s]
        if misfits:
            shown = "; ".join(misfits[:4]) + (f"; {len(misfits) - 4} more" if misfits[4:] else "")
            raise CheckpointError(f"weights {path} fit another model, use their config: {shown}")
    params = {k: x.astype(np.float32) if x.dtype == np.float16 else x for k, x in tensors.items()}
    return unflatten_dict(params, sep="/"), metadata


def load_model(path: str | Path, models: str | tuple[str, ...], config: type,
               init_params: Callable[[Any, jax.Array], PyTree]) -> tuple[Any, dict, dict]:
    """(config, params, metadata) of released weights that name themselves one of `models`.

    config: the dataclass to build, an empty option of another model's is left out;
    init_params(config, key) gives the names and shapes it needs.
    CheckpointError: as load_weights, or weights of something else, or of another version.
    """
    _, metadata = load_weights(path)
    models = (models,) if isinstance(models, str) else models
    kind = metadata.get("model", "an unnamed model")
    if kind not in models:
        raise CheckpointError(f"{path} holds weights of {kind}, not of {' or '.join(models)}")
    try:
        built = _rebuild(config, metadata["config"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is of another version of {kind}: {error}") from error
    abstract = jax.eval_shape(lambda: init_params(built, jax.random.key(0)))
    params, metadata = load_weights(path, abstract)
    return built, params, metadata


def _rebuild(kind: type, values: dict) -> Any:
    """A dataclass from its asdict after JSON: lists were tuples, dicts are nested dataclasses."""
    types = {f.name: f.type for f in fields(kind)}
    plain = {}
    for name, value in values.items():
        if name not in types and not value:
            continue
        options = [t for t in (types.get(name), *get_args(types.get(name))) if is_dataclass(t)]
        value = _rebuild(options[0], value) if options and isinstance(value, dict) else value
        plain[name] = tuple(value) if isinstance(value, list) else value
    return kind(**plain)


def _steps(folder: Path) -> list[int]:
    """Steps that have a manifest, good or bad, newest first."""
    names = (p.parent.name for p in folder.glob("*/manifest.json"))
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def _manifest(here: Path) -> dict:
    """The manifest in folder `here`; {} if there is none or it does not match its own digest."""
    try:
        manifest = json.loads((here / "manifest.json").read_bytes())
        return manifest if manifest.pop("digest") == _sha256(manifest) else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _intact(folder: Path) -> Iterator[tuple[int, dict]]:
    """(step, manifest) of the checkpoints whose files match it, newest first."""
    for step in _steps(folder):
        here, manifest = folder / str(step), _manifest(folder / str(step))
        files = manifest.get("files", {"manifest.json": [0, ""]})
        bad = [name for name, (size, digest) in files.items() if not (here / name).is_file()
               or (here / name).stat().st_size != size or _sha256(here / name) != digest]
        if not bad:
            yield step, manifest
        else:
            warnings.warn(f"checkpoint {here} is passed over: {bad[0]} is damaged", stacklevel=3)


def _prune(folder: Path, keep: int) -> None:
    """Delete all our files but those of the newest `keep` undamaged checkpoints."""
    kept = {str(step): manifest["arrays"] for step, manifest in islice(_intact(folder), keep)}
    for here in (p for p in folder.iterdir() if p.name.isdecimal() and p.is_dir()):
        if here.name in kept:
            for path in here.glob("arrays-*"):
                if path.name != kept[here.name]:
                    shutil.rmtree(path)
        elif {p.name.split(".")[0] for p in here.iterdir()} <= {"arrays-a", "arrays-b", "manifest"}:
            (here / "manifest.json").unlink(missing_ok=True)  # first: half-deleted is no checkpoint
            shutil.rmtree(here)  # a folder that holds anything else is not ours


@contextlib.contextmanager
def _orbax() -> Iterator[tuple[Any, Any]]:
    """(orbax.checkpoint.args, a blocking checkpointer), with orbax's log chatter off the screen."""
    import orbax.checkpoint as ocp  # here, because importing it adds a handler to the root logger
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            yield ocp.args, checkpointer
    finally:
        log.setLevel(level)


def _sha256(what: Path | dict) -> str:
    if isinstance(what, dict):
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    with open(what, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tensor_digest(tensors: dict[str, np.ndarray]) -> str:
    """sha256 over the tensors sorted by name: name, dtype, shape, bytes."""
    digest = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        digest.update(f"{name} {x.dtype} {x.shape}\n".encode() + x.tobytes())
    return digest.hexdigest()


def _target(state: PyTree) -> PyTree:
    """What orbax shall restore each leaf to: shape, dtype, sharding."""
    def target(x):
        x = x if hasattr(x, "sharding") else jnp.asarray(x)
        sharding = x.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return jax.tree.map(target, state)


def _named(tree: PyTree) -> dict[str, Any]:
    """{"path/to/leaf": leaf}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(named) < len(leaves):
        raise CheckpointError("two leaves have one name when joined by '/': rename one of them")
    return named


def _describe(tree: PyTree) -> dict[str, str]:
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in _named(tree).items()}


def _plain(value: dict) -> dict:
    return json.loads(json.dumps(value))  # as the file will give it back: tuples become lists


def _require_same(what: str, stored: Any, given: Any, field: str = "") -> None:
    """CheckpointError that names the first field in which two nested dicts differ."""
    if isinstance(stored, dict) and isinstance(given, dict):
        for key in stored | given:
            path = f"{field}.{key}" if field else key
            _require_same(what, stored.get(key, "absent"), given.get(key, "absent"), path)
    elif stored != given:
        raise CheckpointError(f"{what} cannot be used: {field} is {stored} there, {given} here")
