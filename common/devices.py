"""The only room that knows devices: start-up, and one train step wrapped three ways.

    jit_step      one device
    pmap_step     all local devices, one program each: the named default (one device included)
    sharded_step  all devices of all hosts, one program over a mesh

Each takes the pure step of train.py and data (a pytree of arrays (N, ...) that is put on the
devices once) and returns step(state, rows, keys): the rows are gathered inside the compiled step.
With data = None the second argument is the batch itself. They agree to rounding (a test).
"""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from tqdm import tqdm

CHUNK = 64  # pictures drawn in one call
AXIS = "data"


def start(coordinator: str | None = None, hosts: int | None = None, host: int | None = None):
    """Call once, first in `main`: join the other hosts if any, keep compiled programs on disk.

    coordinator "address:port", hosts and this host's number: jax.distributed (on a TPU pod, under
    Slurm and Open MPI hosts alone is enough: the rest is found). The cache is
    JAX_COMPILATION_CACHE_DIR or ~/.cache/guidebook/jax, a private folder: programs found there are
    trusted.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = os.path.expanduser("~/.cache/guidebook/jax")
        os.makedirs(cache, mode=0o700, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    if hosts and hosts > 1:
        # A number given where the cluster knows it would make every host this one.
        jax.distributed.initialize(coordinator, hosts, None if coordinator is None else host)


@functools.cache
def compiler_options() -> dict[str, str]:
    """Options for jax.jit: on CPU, the older and up to 15 times faster convolution path.

    jaxlib 0.10 sends convolutions through YNNPACK on one core; leaving them out of its fusions
    brings the multi-threaded ones back. Tried once; a jaxlib that does not know the name has the
    older path anyway. A user's own XLA_FLAGS on the matter are respected.
    """
    if jax.default_backend() != "cpu" or "ynn" in os.environ.get("XLA_FLAGS", ""):
        return {}
    options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
    try:
        jax.jit(lambda x: x + 1, compiler_options=options).lower(jnp.zeros(())).compile()
    except Exception:  # the error's type differs between versions; any means "unknown option"
        return {}
    return options


def jit(fn: Callable, **kwargs) -> Callable:
    """jax.jit with this machine's compiler options."""
    return jax.jit(fn, compiler_options=compiler_options() or None, **kwargs)


def preempted(step: int) -> bool:
    """Asked after every step: True on all hosts at the same one, soon after one got SIGTERM."""
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """When a host dies, what the others wait for fails: they end at once, with one line.

    An orderly exit would wait for the dead one. Where nothing fails (NCCL waits for ever), jax ends
    a process 100 s after the last sign of life of another.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = str(error).splitlines()[0]
        print(
            f"this host or another one failed ({reason}): start all hosts again, "
            "the same command goes on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)


def check_batch(batch_size: int, devices: int) -> None:
    """ValueError unless the devices divide the batch."""
    if batch_size < 1 or batch_size % devices:
        raise ValueError(
            f"a batch of {batch_size} does not divide over {devices} devices; "
            f"choose a multiple of {devices}"
        )


def _gathered(step: Callable) -> Callable:
    """step(state, batch, keys) -> step(state, data, rows, keys); data None: rows are the batch."""

    def gathered(state, data, rows, keys):
        batch = rows if data is None else jax.tree.map(lambda a: a[rows], data)
        return step(state, batch, keys)

    return gathered


def jit_step(step: Callable, data: Any = None) -> Callable:
    """One device."""
    compiled = jit(_gathered(step), donate_argnums=0)
    data = jax.device_put(data)
    return lambda state, rows, keys: compiled(state, data, rows, keys)


def pmap_step(step: Callable, data: Any = None) -> Callable:
    """All local devices; `step` was made with axis_name=AXIS. The batch must divide.

    The state goes in and comes out as one copy (in_axes and out_axes None), so callers see the
    same shapes as with jit.
    """
    D = jax.local_device_count()
    mapped = jax.pmap(_gathered(step), AXIS, in_axes=(None, None, 0, 0), out_axes=None)
    # pmap takes no compiler options; since jax 0.8 it is a jit inside, so an outer one passes them.
    compiled = jit(mapped, donate_argnums=0) if compiler_options() else mapped
    everywhere = _replicated(jax.local_devices())
    data = jax.device_put(data, everywhere)

    def split(x):
        check_batch(x.shape[0], D)
        return x.reshape(D, x.shape[0] // D, *x.shape[1:])

    def call(state, rows, keys):
        # A fresh state moves to where the next ones will be: else the second call compiles anew.
        if isinstance(jax.tree.leaves(state)[0].sharding, SingleDeviceSharding):
            state = jax.device_put(state, everywhere)
        return compiled(state, data, jax.tree.map(split, rows), split(keys))

    return call


def mesh() -> Mesh:
    """All devices of all hosts on one axis. (jax.make_mesh differs between versions.)"""
    return Mesh(np.array(jax.devices()), (AXIS,))


def _replicated(devices) -> NamedSharding:
    return NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec())


def replicate(tree: Any) -> Any:
    """The same arrays on every device of every host; each host passes equal values."""
    sharding = _replicated(jax.devices())
    return jax.tree.map(lambda a: _place(a, sharding), tree)


def shard(tree: Any) -> Any:
    """Global arrays split over all devices by their first axis; each host passes the whole."""
    sharding = NamedSharding(mesh(), PartitionSpec(AXIS))

    def place(a):
        check_batch(a.shape[0], jax.device_count())
        return _place(a, sharding)

    return jax.tree.map(place, tree)


def split_axis(shape: tuple[int, ...], devices: int) -> int | None:
    """The largest axis that the devices divide."""
    axes = [i for i, n in enumerate(shape) if n and n % devices == 0]
    return max(axes, key=lambda i: shape[i], default=None)


def spread(tree: Any) -> Any:
    """Shapes with the sharding of FSDP (ZeRO-3): each array over all devices, along its split_axis;
    if it has none, replicated."""

    def sharded(x):
        axis = split_axis(x.shape, jax.device_count())
        spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, AXIS)
        sharding = NamedSharding(mesh(), spec)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(sharded, tree)


def local(tree: Any) -> Any:
    """This host's own copy of arrays, for what one host does alone; all hosts call it."""
    if not all(a.is_fully_replicated for a in jax.tree.leaves(tree)):
        tree = jax.jit(lambda tree: tree, out_shardings=_replicated(jax.devices()))(tree)
    return jax.tree.map(lambda a: a.addressable_data(0), tree)


def _place(array: Any, sharding: NamedSharding) -> jax.Array:
    """device_put that also works over hosts: each takes the pieces its devices hold."""
    if isinstance(array, jax.Array) and array.sharding == sharding:
        return array
    if jax.process_count() == 1:
        return jax.device_put(array, sharding)
    if jnp.issubdtype(jnp.asarray(array).dtype, jax.dtypes.prng_key):
        data = _place(jax.random.key_data(array), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def sharded_step(step: Callable, data: Any = None, *, shard_state: bool = False) -> Callable:
    """All devices of all hosts; `step` was made without axis_name. The batch must divide.

    The compiler sees one global batch and inserts the communication itself; data and state are
    replicated, the state with shard_state as `spread` says. Rows and keys are given whole on every
    host.
    """

    def placed(state):
        return jax.tree.map(lambda a, to: _place(a, to.sharding), state, spread(state))

    def constrained(state, data, rows, keys):
        state, metrics = gathered(state, data, rows, keys)
        shardings = jax.tree.map(lambda to: to.sharding, spread(state))
        return jax.lax.with_sharding_constraint(state, shardings), metrics

    gathered = _gathered(step)
    compiled = jit(constrained if shard_state else gathered, donate_argnums=0)
    data, place = replicate(data), placed if shard_state else replicate
    return lambda state, rows, keys: compiled(place(state), data, shard(rows), shard(keys))


def in_chunks(
    run: Callable, total: int, chunk: int, verb: str, progress: bool, axis: int = 0
) -> np.ndarray:
    """run(row numbers, number of the chunk) on `chunk` rows at a time, joined along `axis`.

    The last chunk is filled up with rows from the beginning: one compilation.
    """
    size = min(chunk, total)
    starts = tqdm(range(0, total, size), desc=verb, unit="batch", disable=not progress)
    parts = [np.asarray(run(np.arange(i, i + size) % total, i // size)) for i in starts]
    return np.take(np.concatenate(parts, axis), np.arange(total), axis)
