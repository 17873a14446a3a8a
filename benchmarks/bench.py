"""Ours against PyTorch, side by side: python -m benchmarks.bench  (or make bench)

The same network with the same weights on both sides (outputs and parameter counts are compared
first), the same work, in turns. ratio = median of ours / median of the fastest PyTorch variant:
eager, channels_last, torch.compile, and for the latent U-Net diffusers. Below 1 ours is faster.
Writes lessons/figures/bench.json and .webp; with --only, the rows it measured replace theirs.
"""

import json
import os
import platform
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image, ImageDraw, ImageFont

from benchmarks import cases, work
from common import devices, plot

GOALS = {"train step": 1.0, "forward": 1.0, "sampler": 0.9}
STEPS = 50  # of the guided sampler
ORDER = [f"{name} {width} {kind}" for name, (_, kinds) in cases.CASES.items()
         for width in cases.WIDTHS for kind in kinds]  # fmt: skip


@dataclass(frozen=True)
class BenchConfig:
    quick: bool = False  # the small width, three rounds, five steps of the sampler
    only: str = ""  # rows with this in their name, such as "glide 32" or "train"
    rounds: int = 7  # turns of each contestant
    torch_compile: bool = True  # takes a minute or two each, the first time
    out: Path = Path("lessons/figures")


def clock() -> float:
    """Seconds of this process: on one core its own (others may share the core), else wall."""
    return time.process_time() if len(os.sched_getaffinity(0)) == 1 else time.perf_counter()


def race(contestants: dict, rounds: int) -> tuple[dict, dict]:
    """({name: (rounds,) seconds}, {name: seconds of the first call}); all run in turns.

    Each turn is two calls, the second one timed: nothing else runs between two steps of a training.
    Where torch.compile fails (2.14: at times the latent U-Net's backward pass) its time is None.
    """
    first, contestants = {}, dict(contestants)
    for name in list(contestants):
        began = clock()
        try:
            contestants[name]()
        except torch._dynamo.exc.TorchDynamoException as error:
            print(f"{name} failed: {str(error).splitlines()[0]}", flush=True)
            first[name] = None
            del contestants[name]
            continue
        first[name] = round(clock() - began, 1)
    times = {name: [] for name in contestants}
    for i in range(rounds):
        names = list(contestants)
        for name in names[i % len(names) :] + names[: i % len(names)]:
            contestants[name]()  # the first call after another's finds memory in disorder
            began = clock()
            contestants[name]()
            times[name].append(clock() - began)
    return {name: np.array(t) for name, t in times.items()}, first


def row(name: str, goal: float, times: dict, first: dict, parameters: int) -> dict:
    """{name, ratio, goal, spread (its quartiles over the rounds)} and what they come from."""
    medians = {k: float(np.median(t)) for k, t in times.items()}
    ours = medians.pop("ours")
    best = min(medians, key=medians.get)
    low, high = np.percentile(times["ours"] / times[best], [25, 75])
    return {
        "name": name, "ratio": round(ours / medians[best], 3), "goal": goal,
        "spread": [round(float(low), 3), round(float(high), 3)], "best": best,
        "ms": {k: round(1e3 * t, 1) for k, t in {"ours": ours, **medians}.items()},
        "first_call_s": first, "rounds": len(times["ours"]), "parameters": parameters,
    }  # fmt: skip


def picture(rows: list[dict]) -> Image.Image:
    """A bar for each ratio, a line through it for its spread, a mark at its goal."""
    unit, left, line = 260, 330, 26  # pixels: of a ratio of 1, of the names, of a row
    font = ImageFont.load_default(15)
    widest = max(max(r["ratio"], r["spread"][1], 1.2) for r in rows)
    page = Image.new("RGB", (left + round(unit * widest) + 70, line * (len(rows) + 2)), plot.PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((12, 6), "time of ours / best PyTorch; black: the goal", plot.INK, font)
    for i, r in enumerate(rows, 1):
        y = line * i + 8
        met = r["ratio"] <= r["goal"]
        draw.text((12, y), r["name"], plot.INK, font)
        draw.rectangle(
            (left, y, left + unit * r["ratio"], y + 17), plot.COLOURS[2] if met else plot.COLOURS[1]
        )
        low, high = (left + unit * s for s in r["spread"])
        draw.line((low, y + 8, high, y + 8), plot.INK, 3)
        draw.line((left + unit * r["goal"], y - 3, left + unit * r["goal"], y + 20), plot.INK, 2)
        draw.text((max(high, left + unit * r["ratio"]) + 8, y), f"{r['ratio']:.2f}", plot.INK, font)
    return page


def save(c: BenchConfig, new: list[dict]) -> None:
    """bench.json and .webp; rows that were not measured now stay as they are."""
    path = c.out / "bench.json"
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    command = (f"python -m benchmarks.bench --rounds {c.rounds}" + " --quick" * c.quick
               + f" --only '{c.only}'" * bool(c.only)
               + " --no-torch-compile" * (not c.torch_compile))  # fmt: skip
    rows = {r["name"]: r for r in [*old, *({**r, "command": command} for r in new)]}
    rows = [rows[name] for name in ORDER if name in rows]
    threads = len(os.sched_getaffinity(0))
    report = {
        "command": command,  # of the run before this was written; each row has its own
        "machine": {"cpu": platform.machine(), "cores": threads, "threads": threads},
        "clock": "CPU seconds of the process" if threads == 1 else "wall",
        "versions": {k: metadata.version(k) for k in ("jax", "jaxlib", "flax", "torch")},
        "rows": rows,
    }  # fmt: skip
    c.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    plot.save(picture(rows), path.with_suffix(".webp"))


def main(c: BenchConfig) -> None:
    devices.start()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rows = []
    for name, (build, kinds) in cases.CASES.items():
        for i, width in enumerate(cases.WIDTHS[: 1 if c.quick else None]):
            wanted = {f"{name} {width} {kind}": (kind, kinds[kind][i]) for kind in kinds}
            wanted = {k: v for k, v in wanted.items() if c.only in k}
            case = build(width) if wanted else None
            for label, (kind, batch) in wanted.items():
                steps, rounds = (5, 3) if c.quick else (STEPS, c.rounds)
                runs = work.contestants(case, kind, batch, steps, c.torch_compile)
                times, first = race(runs, rounds)
                rows.append(row(label, GOALS[kind], times, first, case.parameters))
                rows[-1]["batch"] = batch
                print({k: rows[-1][k] for k in ("name", "ratio", "spread", "ms")}, flush=True)
                save(c, rows)


if __name__ == "__main__":
    main(tyro.cli(BenchConfig))
