"""Checkpoints: what was saved comes back bit for bit, or is refused in one clear line."""

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checkpoint_worker import CONFIG as WORKER_CONFIG
from checkpoint_worker import state_at

from common import checkpoint
from common.checkpoint import CheckpointError

ROOT = Path(__file__).parent.parent
CONFIG = {"model": {"width": 8, "depths": (1, 2)}, "lr": 1e-3}


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    ema_params: dict
    opt_state: optax.OptState
    key: jax.Array


def make_state(step: int = 0) -> State:
    keys = jax.random.split(jax.random.key(step + 1), 4)
    params = {"dense": {"kernel": jax.random.normal(keys[0], (8, 4)), "bias": jnp.full((4,), -0.0)},
              "half": jax.random.normal(keys[1], (3,), jnp.bfloat16)}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    opt_state = tx.update(params, tx.init(params), params)[1]
    ema = jax.tree.map(lambda x: x * 0.5, params)
    return State(jnp.asarray(step), params, ema, opt_state, keys[2])


def bits(tree) -> list[bytes]:
    def of(x):
        key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        data = np.asarray(jax.random.key_data(x) if key else x)
        return data.tobytes() + str((x.dtype, x.shape)).encode()

    return [of(x) for x in jax.tree.leaves(tree)]


def assert_same(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert bits(a) == bits(b)


def steps_on_disk(folder: Path) -> list[int]:
    return sorted(int(p.name) for p in folder.iterdir())


def restore(folder: Path, config: dict = CONFIG):
    return checkpoint.restore(folder, jax.eval_shape(make_state), config)


def biggest_file(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"),
               key=lambda p: p.stat().st_size)


def flip_a_bit(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at % len(data)] ^= 1 << (at % 8)
    file.write_bytes(data)


@pytest.fixture
def two(tmp_path) -> Path:
    """A folder with checkpoints of steps 1 and 2."""
    for step in (1, 2):
        checkpoint.save(tmp_path, step, make_state(step), CONFIG, {"loss": 0.5 / step})
    return tmp_path


# ---- training checkpoints ----


def test_state_comes_back_bit_for_bit_with_its_optax_tree(two):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state, step, extra = restore(two)
    assert (step, extra, checkpoint.latest(two)) == (2, {"loss": 0.25}, 2)
    assert_same(state, make_state(2))
    assert type(state.opt_state[1][0]).__name__ == "ScaleByAdamState"


def test_a_concrete_state_serves_as_target(two):
    assert_same(checkpoint.restore(two, make_state(0), CONFIG)[0], make_state(2))


def test_no_bit_flipped_in_any_file_goes_unnoticed(two):
    files = sorted(p for p in (two / "2").rglob("*") if p.is_file())
    assert len(files) > 5
    for i, file in enumerate(files):
        whole = file.read_bytes()
        flip_a_bit(file, at=7919 * i + len(whole) // 2)
        with pytest.warns(UserWarning, match=f"{two}/2 is passed over: .*{file.name} is damaged"):
            assert checkpoint.latest(two) == 1, file
        file.write_bytes(whole)
    assert checkpoint.latest(two) == 2
    whole = (two / "2" / "manifest.json").read_bytes()
    for at in range(0, len(whole), len(whole) // 50):  # config, extra and all
        flip_a_bit(two / "2" / "manifest.json", at)
        with pytest.warns(UserWarning, match="2 is passed over: manifest.json is damaged"):
            assert checkpoint.latest(two) == 1, at
        (two / "2" / "manifest.json").write_bytes(whole)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damaged_checkpoint_is_named_and_the_one_before_is_used(two, damage):
    file = biggest_file(two / "2")
    if damage == "flip":
        flip_a_bit(file, 100)
    elif damage == "truncate":
        os.truncate(file, file.stat().st_size // 2)
    else:
        file.unlink()
    with pytest.warns(UserWarning, match=f"{two}/2 is passed over.*{file.name}") as caught:
        state, step, extra = restore(two)
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert step == 1 and extra == {"loss": 0.5}
    assert_same(state, make_state(1))


def test_all_damaged_is_an_error_that_names_them(two):
    for step in (1, 2):
        flip_a_bit(biggest_file(two / str(step)), 50)
    with pytest.warns(UserWarning), pytest.raises(CheckpointError) as error:
        restore(two)
    assert str(two / "1") in str(error.value) and str(two / "2") in str(error.value)


def test_step_without_manifest_does_not_count(two):
    (two / "2" / "manifest.json").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a killed save is no news
        assert checkpoint.latest(two) == 1
    assert_same(restore(two)[0], make_state(1))


def test_no_checkpoint_is_none_and_a_clear_error(tmp_path):
    assert checkpoint.latest(tmp_path / "nowhere") is None
    with pytest.raises(CheckpointError, match="no checkpoint in .*nowhere: train"):
        restore(tmp_path / "nowhere")


@pytest.mark.parametrize("change, words", [
    ({"model": {"width": 16, "depths": (1, 2)}}, "config.model.width is 8 there, 16 here"),
    ({"model": {"width": 8, "depths": (1, 3)}}, r"config.model.depths is \[1, 2\] there, \[1, 3\]"),
    ({"dropout": 0.1}, "config.dropout is absent there, 0.1 here"),
])
def test_another_config_is_refused_by_its_first_differing_field(two, change, words):
    with pytest.raises(CheckpointError, match=words) as error:
        restore(two, CONFIG | change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change, words", [
    ({"key": jnp.zeros(3)}, r"state.key is key<fry>\[\] there, float32\[3\] here"),
    ({"params": {"half": jnp.zeros(3)}}, "state.params/dense/bias is float32.* there, absent here"),
    ({"step": jnp.zeros(())}, r"state.step is int32\[\] there, float32\[\] here"),
])
def test_another_state_is_refused_where_orbax_would_cast(two, change, words):
    with pytest.raises(CheckpointError, match=words):
        checkpoint.restore(two, make_state().replace(**change), CONFIG)


def test_the_newest_two_are_kept_and_a_strangers_folder_is_left_alone(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "a digit.png").write_text("of someone's data set")
    (tmp_path / "log.txt").write_text("")
    for step in range(1, 5):
        checkpoint.save(tmp_path, step, {"x": jnp.ones(3)}, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "4", "7", "log.txt"]
    checkpoint.save(tmp_path, 5, {"x": jnp.ones(3)}, {}, keep=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["5", "7", "log.txt"]


def test_damaged_checkpoints_do_not_count_among_the_kept(two):
    flip_a_bit(biggest_file(two / "2"), 50)
    with pytest.warns(UserWarning, match=f"{two}/2 is passed over"):
        checkpoint.save(two, 3, make_state(3), CONFIG)
    assert steps_on_disk(two) == [1, 3]


def test_a_step_saved_again_is_replaced_whole(two):
    for other in (7, 8, 9):
        checkpoint.save(two, 2, make_state(other), CONFIG)
        assert_same(restore(two)[0], make_state(other))
        assert len(list((two / "2").iterdir())) == 2  # one folder of arrays, one manifest
    assert steps_on_disk(two) == [1, 2]


@pytest.mark.parametrize("step", [2, 3])
@pytest.mark.parametrize("at", ["_orbax", "_write", "_prune"])
def test_a_save_cut_short_leaves_the_last_whole_one(two, monkeypatch, at, step):
    class Killed(BaseException):
        pass

    def die(*args):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, at, die)
        with pytest.raises(Killed):
            checkpoint.save(two, step, make_state(9), CONFIG)
    state, found, _ = restore(two)
    assert found == (step if at == "_prune" else 2)
    assert_same(state, make_state(9 if at == "_prune" else 2))
    checkpoint.save(two, 4, make_state(4), CONFIG)
    assert len(steps_on_disk(two)) == 2 and all(len(list(p.iterdir())) == 2 for p in two.iterdir())


def test_a_deletion_cut_short_leaves_nothing_that_looks_like_a_checkpoint(two, monkeypatch):
    def die(path):
        biggest_file(path).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", die)
        checkpoint.save(two, 3, make_state(3), CONFIG)
    assert (two / "1").exists() and not (two / "1" / "manifest.json").exists()
    assert_same(restore(two)[0], make_state(3))


def test_a_new_run_does_not_start_in_the_folder_of_an_old_one(two):
    with pytest.raises(CheckpointError, match="holds a step after 1"):
        checkpoint.save(two, 1, make_state(1), CONFIG)
    assert_same(restore(two)[0], make_state(2))


def worker(*args, **env) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | env
    command = [sys.executable, ROOT / "tests" / "checkpoint_worker.py", *map(str, args)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env)


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_a_complete_checkpoint(tmp_path):
    rng = random.Random(0)
    announced = -1
    for kill in range(6):  # each takes over what the one before left: three by the clock, three
        die_at = 0 if kill % 2 else rng.randrange(2, 90)  # at a file operation
        process = worker("loop", tmp_path, die_at)
        lines = []
        if not die_at:
            lines += [process.stdout.readline(), process.stdout.readline()]
            time.sleep(rng.uniform(0, 0.3))
            process.kill()
        rest, errors = process.communicate(timeout=120)
        assert process.returncode == -9 and not errors
        announced = max([announced, *map(int, lines + rest.split())])
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing half-written may look like a checkpoint
            step = checkpoint.latest(tmp_path)
        assert step is not None or announced == -1
        if step is not None:
            assert step >= announced
            state, found, _ = checkpoint.restore(tmp_path, state_at(0), WORKER_CONFIG)
            assert found == step
            assert_same(state, state_at(step))
    assert announced >= 3  # each kill by the clock waited for a new step


def test_shards_on_8_devices_are_restored_to_other_shards_and_to_one_device(tmp_path):
    process = worker("sharded", tmp_path, XLA_FLAGS="--xla_force_host_platform_device_count=8")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert not errors  # orbax keeps silent
    assert_same(checkpoint.restore(tmp_path, jax.eval_shape(lambda: state_at(0)), WORKER_CONFIG)[0],
                state_at(3))


# ---- released weights ----

META = {"config": CONFIG, "recipe": {"steps": 100, "data": "scenes"}, "fd": 12.5}


def make_params() -> dict:
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(5, 7)).astype(np.float32)
    return {"block": {"kernel": jnp.asarray(kernel), "strided": kernel.T, "scale": jnp.ones(())},
            "half": jnp.asarray(kernel[0], jnp.bfloat16), "table": np.arange(6, dtype=np.int32)}


@pytest.fixture
def weights(tmp_path) -> Path:
    checkpoint.save_weights(tmp_path / "deep" / "small.safetensors", make_params(), META)
    return tmp_path / "deep" / "small.safetensors"


def test_weights_come_back_within_half_precision(weights):
    params, metadata = checkpoint.load_weights(weights, jax.eval_shape(make_params), CONFIG)
    assert jax.tree.structure(params) == jax.tree.structure(make_params())
    for found, wanted in zip(jax.tree.leaves(params), jax.tree.leaves(make_params()), strict=True):
        assert found.dtype == (np.int32 if wanted.dtype == np.int32 else np.float32)
        np.testing.assert_allclose(found, np.asarray(wanted, found.dtype), rtol=2**-11, atol=2**-25)
    digest = metadata.pop("digest")
    assert len(digest) == 64 and metadata == json.loads(json.dumps(META))
    assert [p.name for p in weights.parent.iterdir()] == ["small.safetensors"]
    again = weights.with_name("again.safetensors")
    checkpoint.save_weights(again, params, metadata | {"digest": "stale"})
    assert checkpoint.load_weights(again)[1]["digest"] == digest


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="no weights at .*none.safetensors: train"):
        checkpoint.load_weights(tmp_path / "none.safetensors")


@pytest.mark.parametrize("size", [0, 4, 9, 200, -1])
def test_truncated_weights_are_refused(weights, size):
    os.truncate(weights, size if size >= 0 else weights.stat().st_size + size)
    with pytest.raises(CheckpointError, match="small.safetensors is truncated or no safetensors"):
        checkpoint.load_weights(weights)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_is_refused_and_never_executed(tmp_path, monkeypatch, name, protocol):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(pickle.dumps(Bomb(), protocol) + b"." * 100)
    with pytest.raises(CheckpointError, match=f"{name} is .*a pickle is never opened"):
        checkpoint.load_weights(name)
    assert not Path("executed").exists()


def test_no_bit_flipped_in_weights_goes_unnoticed(weights):
    whole = weights.read_bytes()
    for at in random.Random(0).sample(range(len(whole)), 400):
        weights.write_bytes(whole)
        flip_a_bit(weights, at)
        with pytest.raises(CheckpointError) as error:
            checkpoint.load_weights(weights)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype, size", [("F32", 4), ("BF16", 2), ("F8_E4M3", 1)])
def test_weights_of_another_tool_are_refused(tmp_path, dtype, size):
    entry = {"dtype": dtype, "shape": [1], "data_offsets": [0, size]}
    header = json.dumps({"a": entry}).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(size)
    (tmp_path / "other.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="not as save_weights wrote it"):
        checkpoint.load_weights(tmp_path / "other.safetensors")


def test_weights_of_another_config_are_refused(weights):
    with pytest.raises(CheckpointError, match="config.lr is 0.001 there, 0.1 here"):
        checkpoint.load_weights(weights, config=CONFIG | {"lr": 0.1})


def test_weights_of_another_model_are_refused_with_the_keys_in_one_line(weights):
    other = make_params() | {"table": np.zeros(7), "new": np.zeros(1), "half": {"x": np.zeros(7)}}
    with pytest.raises(CheckpointError) as error:
        checkpoint.load_weights(weights, other)
    text = str(error.value)
    for words in ("missing new", "missing half/x", "unexpected half", "table is (6,), not (7,)"):
        assert words in text
    assert "more" not in text and "\n" not in text
    with pytest.raises(CheckpointError, match="missing 3; 8 more$"):
        checkpoint.load_weights(weights, [np.zeros(1)] * 7)


@pytest.mark.parametrize("value", [np.nan, np.inf, 7e4])
def test_weights_that_half_precision_cannot_hold_are_refused_and_the_old_file_stays(weights, value):
    with pytest.raises(CheckpointError, match="a/w holds NaN or values beyond float16"):
        checkpoint.save_weights(weights, {"a": {"w": np.full(2, value, np.float32)}}, META)
    assert checkpoint.load_weights(weights)[0].keys() == make_params().keys()


def test_leaves_that_would_share_a_name_are_refused(weights):
    with pytest.raises(CheckpointError, match="one name"):
        checkpoint.save_weights(weights, {"a/b": np.ones(1), "a": {"b": np.ones(1)}}, {})
