"""A process for test_checkpoint.py: `loop` saves until it is killed, `sharded` uses 8 devices."""

import os
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from common import checkpoint

CONFIG = {"model": {"width": 8}}


def state_at(step: int) -> dict:
    """What the checkpoint of `step` holds, whoever asks."""
    return {"w": jnp.arange(1024 * 96, dtype=jnp.float32).reshape(1024, 96) * (step + 1),
            "b": jnp.full((64, 64), step, jnp.bfloat16), "key": jax.random.key(step)}


def loop(folder: str, die_at: int) -> None:
    """Save the newest step again, then step after step; die at file operation `die_at`, if any."""
    step = checkpoint.latest(folder)
    step = 0 if step is None else step
    operations = iter(range(1, sys.maxsize))

    def watch(event: str, args: tuple) -> None:
        ours = event == "open" and folder in str(args[0])
        if ours or event in ("os.mkdir", "os.remove", "os.rmdir", "os.rename"):
            if next(operations) == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    while True:
        checkpoint.save(folder, step, state_at(step), CONFIG)
        print(step, flush=True)
        step += 1


def sharded(folder: str) -> None:
    """Save rows spread over 8 devices, restore columns spread over 4 and copies on all."""
    devices = np.array(jax.devices())
    rows = NamedSharding(Mesh(devices, ("data",)), PartitionSpec("data"))
    columns = NamedSharding(Mesh(devices[:4], ("data",)), PartitionSpec(None, "data"))
    copies = NamedSharding(Mesh(devices, ("data",)), PartitionSpec())
    wanted = state_at(3)
    state = wanted | jax.device_put({"w": wanted["w"], "b": wanted["b"]}, rows)
    checkpoint.save(folder, 3, state, CONFIG)
    onto = {"w": columns, "b": copies, "key": copies}
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                            jax.eval_shape(lambda: wanted), onto)
    found, _, _ = checkpoint.restore(folder, abstract, CONFIG)
    for name, sharding in onto.items():
        assert found[name].sharding.is_equivalent_to(sharding, found[name].ndim), name
    np.testing.assert_array_equal(found["w"], wanted["w"])
    np.testing.assert_array_equal(found["b"], wanted["b"])
    assert (found["key"] == wanted["key"]).all()


if __name__ == "__main__":
    loop(sys.argv[2], int(sys.argv[3])) if sys.argv[1] == "loop" else sharded(sys.argv[2])
