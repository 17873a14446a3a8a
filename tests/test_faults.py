"""Faults of a training: batches without a finite loss, a full disk; another number of devices.

Run as a program: a training whose state is spread over the devices (for one test below).
"""

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from common import checkpoint, devices, disk, run, train

BAD = 7  # the row whose target is NaN


@dataclass(frozen=True)
class Line:
    width: int = 1


def line_loss(params, batch, keys):
    """Least squares on y = w x + b."""
    return jnp.square(params["w"] * batch["x"] + params["b"] - batch["y"]).mean()


def line_data(y=0.0):
    x = np.linspace(-1, 1, 64, dtype=np.float32)
    return {"x": x, "y": 3 * x + np.float32(y)}


def init(key):
    return {"w": jnp.zeros(()), "b": jnp.zeros(())}


def go(out, batches, **options):
    c = run.RunConfig(out=out, batch_size=8, warmup=2, **options)
    return run.run(c, model="line", config=Line(), init=init, loss_fn=line_loss, batches=batches)


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("wrap, axis", [(devices.jit_step, None), (devices.pmap_step, "data")])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_batch_without_a_finite_loss_changes_nothing_but_the_step(wrap, axis, value):
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
    data = line_data()
    data["y"][BAD] = value
    step = wrap(train.make_train_step(line_loss, tx, axis_name=axis), data)
    keys = lambda i: train.example_keys(jax.random.key(0), i, 8)  # noqa: E731
    state, good = step(train.init_state(init, tx, jax.random.key(0)), jnp.arange(8, 16), keys(0))
    before = jax.tree.map(np.asarray, state)
    after, bad = step(state, jnp.arange(8), keys(1))
    assert (float(good["skipped"]), float(bad["skipped"])) == (0, 1)
    assert not np.isfinite(float(bad["loss"]))
    assert int(after.step) == 2
    jax.tree.map(assert_array_equal, after.replace(step=before.step), before)
    _, metrics = step(after, jnp.arange(8, 16), keys(2))
    assert float(metrics["skipped"]) == 0 and np.isfinite(float(metrics["loss"]))


def test_skipped_batches_are_counted_apart_and_a_run_of_them_is_seen_across_windows():
    good, bad = {"loss": 2.0, "skipped": 0.0}, {"loss": np.nan, "skipped": 1.0}
    row, longest, streak = run.means([good, bad, {"loss": 4.0}], 0)
    assert (row, longest, streak) == ({"loss": 3.0, "skipped": 1}, 1, 0)
    row, longest, streak = run.means([bad] * 6, 0)
    assert (row, longest, streak) == ({"skipped": 6}, 6, 6)
    assert run.means([bad] * 4 + [good], streak) == ({"loss": 2.0, "skipped": 4}, 10, 0)


def test_a_run_of_batches_without_a_finite_loss_stops_the_training_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="10 batches in a row up to step 10 .*--lr") as error:
        go(tmp_path, line_data(np.nan), steps=30, log_every=5, save_every=7)
    assert "\n" not in str(error.value)
    assert rows(tmp_path) == [{"step": 5, "skipped": 5}, {"step": 10, "skipped": 5}]
    # Resumed in the middle of the run of them, it is seen all the same.
    with pytest.raises(ValueError, match="10 batches in a row up to step 10"):
        go(tmp_path, line_data(np.nan), steps=30, log_every=5, save_every=7)


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_costs_the_saves_alone(tmp_path, monkeypatch, capsys):
    options = {"steps": 12, "log_every": 2, "save_every": 3}
    go(tmp_path / "whole", line_data(), **options)
    save, truncate = checkpoint._write, "orbax says: No space left on device [os_error_code='28']"

    def at_times(path, data):
        if "/6/" in str(path) or "/9/" in str(path):
            full()
        save(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write", at_times)
        go(tmp_path / "mended", line_data(), **options)
    err = [line for line in capsys.readouterr().err.splitlines() if "cannot save" in line]
    assert len(err) == 2 and "cannot save step 6 in" in err[0]
    assert "No space left on device; what was saved before is whole; training goes on" in err[0]
    assert rows(tmp_path / "mended") == rows(tmp_path / "whole")
    assert {p.name for p in (tmp_path / "mended" / "checkpoints").iterdir()} == {"3", "12"}
    ours, theirs = (
        checkpoint.load_weights(tmp_path / name / "weights.safetensors")[0]
        for name in ("mended", "whole")
    )
    jax.tree.map(assert_array_equal, ours, theirs)
    with pytest.raises(disk.SaveError, match="cannot save here: No space left on device; what"):
        with disk.saving("here"):
            raise ValueError(truncate)


def test_the_last_save_and_the_weights_are_not_given_up_silently(tmp_path, monkeypatch):
    options = {"steps": 6, "log_every": 2, "save_every": 3}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write", full)
        with pytest.raises(disk.SaveError, match="cannot save step 6 in .*No space") as error:
            go(tmp_path, line_data(), **options)
    assert "\n" not in str(error.value)
    assert checkpoint.latest(tmp_path / "checkpoints") is None
    assert not list((tmp_path / "checkpoints").glob("*/arrays*"))  # no halves fill the disk
    go(tmp_path, line_data(), **options)
    before = (tmp_path / "weights.safetensors").read_bytes()
    monkeypatch.setattr(disk.os, "fsync", full)
    with pytest.raises(disk.SaveError, match="cannot save weights .*No space"):
        checkpoint.save_weights(tmp_path / "weights.safetensors", {"w": np.ones(3)}, {})
    assert (tmp_path / "weights.safetensors").read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))


def test_rows_that_a_full_disk_does_not_take_are_written_later(tmp_path, monkeypatch, capsys):
    path = tmp_path / "metrics.jsonl"
    record = run.recorder(path, 0)
    record({"step": 1})
    opened = type(path).open

    class Full:
        """A file that takes half of what it is given."""

        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self.file.close()

        def write(self, data):
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            full()

    with monkeypatch.context() as patch:
        patch.setattr(type(path), "open", lambda *args: Full(opened(*args)))
        record({"step": 2})
    assert "cannot save row of step 2" in capsys.readouterr().err
    assert rows(tmp_path) == [{"step": 1}]
    record({"step": 3})
    assert rows(tmp_path) == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_sigterm_saves_and_exits_0_and_control_c_130_in_words(tmp_path, capsys, monkeypatch):
    fit = train.fit
    for number, kind in ((signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)):

        def interrupted(*args, number=number, **kwargs):
            for i, *rest in fit(*args, **kwargs):
                if i == 4:
                    os.kill(os.getpid(), number)
                yield i, *rest

        out = tmp_path / kind.__name__
        monkeypatch.setattr(train, "fit", interrupted)
        with pytest.raises(kind) as stop:
            go(out, line_data(), steps=12, log_every=2, save_every=100)
        said = capsys.readouterr().err if kind is SystemExit else str(stop.value)
        assert "step 4 is saved, the same command goes on from there" in said
        assert getattr(stop.value, "code", 0) == 0
        assert checkpoint.latest(out / "checkpoints") == 4


# ---- another number of devices ----


def test_a_cluster_that_numbers_its_hosts_is_not_contradicted(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args: calls.append(args))
    for given in ((None, 1, 0), (None, 4, 0), ("here:1234", 4, 2)):
        devices.start(*given)
    assert calls == [(None, 4, None), ("here:1234", 4, 2)]


def net_init(key):
    keys = jax.random.split(key, 2)
    first, last = jax.random.normal(keys[0], (6, 24)), jax.random.normal(keys[1], (24, 3))
    return {"first": first, "last": last / 5, "bias": jnp.zeros(3)}


def net_loss(params, batch, keys):
    out = jnp.tanh(batch["x"] @ params["first"]) @ params["last"] + params["bias"][None]
    return jnp.square(out - batch["y"]).mean()


def net(out, **options):
    rng = np.random.default_rng(0)
    batches = {k: rng.normal(size=(64, n)).astype(np.float32) for k, n in (("x", 6), ("y", 3))}
    c = run.RunConfig(out=out, batch_size=16, warmup=2, **options)
    return run.run(c, model="net", config=Line(), init=net_init, loss_fn=net_loss, batches=batches,
                   tx=optax.sgd(0.1, momentum=0.9))  # fmt: skip


@pytest.mark.slow
def test_a_state_spread_over_8_devices_trains_as_a_whole_one_and_goes_on_on_one_device(tmp_path):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    env = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, __file__, tmp_path / "spread"]
    spread = subprocess.run(command, env=env, text=True, capture_output=True, timeout=300)
    assert spread.returncode == 0, spread.stderr
    # first (6, 24) and last (24, 3) by their 24, the bias whole: (144 + 72) / 8 + 3 numbers.
    assert json.loads(spread.stdout.splitlines()[0]) == [30, 219]
    options = {"steps": 8, "log_every": 1, "save_every": 4}
    net(tmp_path / "alone", **options)
    there = tmp_path / "spread" / "checkpoints" / "8"
    (there / "manifest.json").unlink()  # as if killed after step 4; here is one device
    resumed = net(tmp_path / "spread", **options)
    losses = [[row["loss"] for row in rows(tmp_path / name)] for name in ("alone", "spread")]
    assert len(losses[0]) == 8
    assert_allclose(losses[1], losses[0], rtol=1e-5)
    alone = checkpoint.load_weights(tmp_path / "alone" / "weights.safetensors")[0]
    jax.tree.map(lambda a, b: assert_allclose(a, b, atol=1e-3), dict(resumed), alone)


if __name__ == "__main__":
    fit = train.fit

    def kept(*args, **kwargs):
        for i, state, metrics in fit(*args, **kwargs):
            leaves = jax.tree.leaves(state.params)
            sizes = [sum(x.addressable_data(0).size for x in leaves), sum(x.size for x in leaves)]
            yield i, state, metrics
        print(json.dumps(sizes))

    train.fit = kept
    net(Path(sys.argv[1]), steps=8, log_every=1, save_every=4, shard=True)
