"""What is lost when things break: python -m benchmarks.faults --kills 50

A small training, through common/run.py like all others, is killed (-9) at random moments, most of
them within saves, and started again until it ends; then its log and weights must be those of a run
that nobody disturbed, to the last bit. Then: SIGTERM, a full disk (a tmpfs of some megabytes, which
takes root), two hosts of which one is killed, and weights files that are damaged, foreign or meant
to do harm. Prints what happened and writes lessons/figures/faults.json.
"""

import json
import multiprocessing
import os
import platform
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from tqdm import tqdm

from benchmarks import broken
from common import checkpoint, command, run, train


@dataclass(frozen=True)
class FaultsConfig:
    kills: int = 50
    hosts: bool = True  # the two hosts, too: some minutes, for jax waits for signs of life
    seed: int = 0
    out: Path = Path("lessons/figures/faults.json")


@dataclass(frozen=True)
class Net:
    width: int = 256


def init(key):
    first, last = jax.random.split(key)
    return {"first": jax.random.normal(first, (64, Net.width)) / 8, "last":
            jax.random.normal(last, (Net.width, 8)) / 16}  # fmt: skip


def loss_fn(params, batch, keys):
    noise = 0.1 * jax.vmap(lambda key: jax.random.normal(key, (64,)))(keys)
    out = jnp.tanh((batch["x"] + noise) @ params["first"]) @ params["last"]
    return jnp.square(out - batch["y"]).mean()


def training(out: Path, begun: Path, hosts: int = 1, host: int = 0, address: str = "") -> None:
    """One life of the training, in a process of its own; it touches `begun` after a step."""
    with open(f"{begun}.{host}.err", "w") as err:
        os.dup2(err.fileno(), 2)
        os.dup2(err.fileno(), 1)
    fit = train.fit

    def told(*args, **kwargs):
        for result in fit(*args, **kwargs):
            begun.touch()
            time.sleep(0.03 if hosts == 1 else 0.1)  # so that not all of the time goes to saves
            yield result

    def main(c):
        run.start(c)
        rng = np.random.default_rng(0)
        batches = {"x": rng.normal(size=(256, 64)), "y": rng.normal(size=(256, 8))}
        batches = {k: v.astype(np.float32) for k, v in batches.items()}
        run.run(c, model="net", config=Net(), init=init, loss_fn=loss_fn, batches=batches,
                tx=optax.adam(1e-3))  # fmt: skip

    train.fit = told
    options = {"out": out, "steps": 60, "batch-size": 8, "log-every": 2, "save-every": 3,
               "hosts": hosts, "host": host}  # fmt: skip
    options |= {"coordinator": address} if hosts > 1 else {}
    argv = [str(part) for k, v in options.items() for part in (f"--{k}", v)]
    command.run("net", {"train": (run.RunConfig, main), "none": (Net, print)}, ["train", *argv])


class Lives:
    """Starts trainings in processes that have imported everything already."""

    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["benchmarks.broken", "common.run", "orbax.checkpoint"])

    def start(self, out: Path, **options):
        """(process, the file that it touches when it trains)."""
        self.count += 1
        begun = self.folder / f"begun-{self.count}"
        process = self.context.Process(target=training, args=(out, begun), kwargs=options)
        process.start()
        return process, begun

    def trains(self, process, begun: Path) -> bool:
        while process.is_alive() and not begun.exists():
            time.sleep(0.005)
        return begun.exists()


def result(out: Path) -> tuple[str, str]:
    """The log, and the digest of the weights."""
    digest = checkpoint.load_weights(out / "weights.safetensors")[1]["digest"]
    return (out / "metrics.jsonl").read_text(), digest


def half_saved(out: Path) -> bool:
    steps = [p for p in (out / "checkpoints").glob("*") if p.is_dir()]
    whole = lambda p: (p / "manifest.json").exists() and not list(p.glob("*tmp*"))  # noqa: E731
    return any(not whole(p) for p in steps)


def kills(lives: Lives, c: FaultsConfig) -> tuple[dict, tuple]:
    """Kill, start again, ..., compare; and the undisturbed result."""
    chance, whole = random.Random(c.seed), lives.folder / "whole"
    began = time.time()
    process, begun = lives.start(whole)
    lives.trains(process, begun)
    startup, began = time.time() - began, time.time()
    process.join()
    span, wanted = time.time() - began, result(whole)
    report = {"kills": 0, "starting": 0, "within_a_save": 0, "runs": 0, "runs_equal": 0}
    with tqdm(total=c.kills, desc="killing", unit="kill") as bar:
        while report["kills"] < c.kills:
            out = lives.folder / f"run-{report['runs']}"
            report["runs"] += 1
            while not (out / "weights.safetensors").exists():
                process, begun = lives.start(out)
                if report["kills"] < c.kills:
                    early = chance.random() < 0.1
                    if early or not lives.trains(process, begun):
                        time.sleep(chance.random() * startup)
                    else:
                        time.sleep(chance.random() * span / 4)
                    process.kill()
                process.join()
                if process.exitcode == -signal.SIGKILL:
                    report["kills"] += 1
                    report["starting"] += not begun.exists()
                    report["within_a_save"] += half_saved(out)
                    bar.update()
                elif process.exitcode:
                    raise SystemExit(f"a life ended by itself: {begun}.0.err")
            report["runs_equal"] += result(out) == wanted
    return report, wanted


def sigterm(lives: Lives, wanted: tuple) -> dict:
    out, codes = lives.folder / "told", []
    while not (out / "weights.safetensors").exists():
        process, begun = lives.start(out)
        if len(codes) < 3 and lives.trains(process, begun):
            time.sleep(0.2)
            process.terminate()
        process.join()
        codes.append(process.exitcode)
    return {"exit_codes": codes, "equal": result(out) == wanted}


def full_disk(lives: Lives, wanted: tuple) -> dict:
    """The disk is full after some saves; room is made later, and the same command goes on."""
    disk = lives.folder / "disk"
    disk.mkdir()
    mount = lambda *o: subprocess.run(["mount", *o, disk], capture_output=True).returncode  # noqa: E731
    if mount("-t", "tmpfs", "-o", "size=4m", "tmpfs"):
        return {"skipped": "no right to mount a tmpfs"}
    try:
        process, begun = lives.start(disk / "out")
        while process.is_alive() and not checkpoint.latest(disk / "out" / "checkpoints"):
            time.sleep(0.05)
        (disk / "filler").write_bytes(bytes(max(0, shutil.disk_usage(disk).free - 100_000)))
        process.join()
        said = [x for x in Path(f"{begun}.0.err").read_text().splitlines() if "cannot save" in x]
        code, kept = process.exitcode, checkpoint.latest(disk / "out" / "checkpoints")
        (disk / "filler").unlink()
        process, _ = lives.start(disk / "out")
        process.join()
        return {"exit_code": code, "messages": len(said), "last": said[-1].replace(f"{disk}/", ""),
                "step_kept": kept, "equal": result(disk / "out") == wanted}  # fmt: skip
    finally:
        subprocess.run(["umount", disk], check=True)


def two_hosts(lives: Lives) -> dict:
    """Kill one of two hosts: when and how does the other end, and what do both make of it?"""

    def start(out):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{s.getsockname()[1]}"
        return [lives.start(out, hosts=2, host=i, address=address) for i in range(2)]

    def finish(pair):
        for process, _ in pair:
            process.join()
        return [process.exitcode for process, _ in pair]

    report = {"whole": finish(start(lives.folder / "hosts"))}
    wanted = result(lives.folder / "hosts")
    out = lives.folder / "hosts-killed"
    report["one_killed"] = []
    for victim in (0, 1, 1, 1):
        pair = start(out)
        lives.trains(*pair[0]) and lives.trains(*pair[1])
        time.sleep(1)
        began = time.time()
        pair[victim][0].kill()
        codes = finish(pair)
        lines = Path(f"{pair[1 - victim][1]}.{1 - victim}.err").read_text().splitlines()
        words = ("this host or another one failed", "Terminating process because", "cannot save")
        said = [x for x in lines if any(w in x for w in words)] or lines or [""]
        words = said[0][:300].replace(f"{lives.folder}/", "")
        ended = {"killed": victim, "seconds": round(time.time() - began, 1), "exit_codes": codes}
        report["one_killed"].append({**ended, "said": words})
    pair = start(out)
    lives.trains(*pair[0]) and lives.trains(*pair[1])
    time.sleep(1)
    pair[1][0].terminate()
    report["sigterm_on_one"] = finish(pair)
    report["resumed"], report["equal"] = finish(start(out)), result(out) == wanted
    return report


def main(c: FaultsConfig) -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as name:
        lives = Lives(Path(name))
        report = {
            "command": f"python -m benchmarks.faults --kills {c.kills} --seed {c.seed}",
            "measure": "log and weights of disturbed trainings against those of an undisturbed one",
            "machine": platform.machine(), "jax": jax.__version__,
        }  # fmt: skip
        report["weights_files"] = broken.files(lives.folder, c.seed)
        report["kill_9"], wanted = kills(lives, c)
        report["sigterm"] = sigterm(lives, wanted)
        report["full_disk"] = full_disk(lives, wanted)
        if c.hosts:
            report["two_hosts"] = two_hosts(lives)
    print(json.dumps(report, indent=1))
    c.out.parent.mkdir(parents=True, exist_ok=True)
    c.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(FaultsConfig))
