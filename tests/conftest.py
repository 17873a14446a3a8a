"""How the tests run jax: on the CPU, strict about shapes and keys, and compiling only once.

Set before jax is imported. Tests that want several devices start a process of their own.
"""

import os
from pathlib import Path

CACHE = Path.home() / ".cache" / "guidebook" / "tests-jax"

for name, value in {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUMPY_RANK_PROMOTION": "raise",  # (B,) + (B, C) is a bug, not a broadcast
    # Most tests run a thing once: these two compile three times as fast.
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false",
    "JAX_COMPILATION_CACHE_DIR": str(CACHE),  # a second run of the tests compiles nothing
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}.items():
    os.environ.setdefault(name, value)

import jax  # noqa: E402

jax.config.update("jax_debug_key_reuse", True)  # a key drawn from twice raises

TRAINED = {"uninterrupted", "trained"}  # fixtures that train a model


def pytest_collection_modifyitems(items):
    """Who asks for a trained model is as slow as what says so itself: `make test-slow`."""
    for item in items:
        if TRAINED & set(item.fixturenames):
            item.add_marker("slow")
