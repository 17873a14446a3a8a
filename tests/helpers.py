"""What several test files need: parameters that cost nothing, and programs without a process."""

import subprocess

import jax
import numpy as np

from common import command


def made(init, seed=1):
    """Parameters of the shapes that init(key) gives, from numpy: drawing them by jax compiles.

    All are away from zero, also in the layers that a training starts at zero.
    """
    rng = np.random.default_rng(seed)

    def leaf(path, p):
        if path[-1].key == "scale":
            return np.ones(p.shape, np.float32)
        wide = np.sqrt(np.prod(p.shape[:-1])) if path[-1].key == "kernel" else 10
        return np.float32(rng.normal(size=p.shape) / wide)

    return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(init, jax.random.key(0)))


def program(capsys, name, commands, *args):
    """python -m name args, in this process: its exit code and what it printed."""
    capsys.readouterr()
    code = 0
    try:
        command.run(name, commands, [str(a) for a in args])
    except SystemExit as stop:
        code = stop.code
    return subprocess.CompletedProcess(args, code, *capsys.readouterr())
