"""How the guidance scale and the number of steps decide what is drawn."""

from pathlib import Path

import jax
import numpy as np

from common import data, metrics, plot
from common.scenes.captions import caption, claims
from common.scenes.scene import COLOURS
from glide.model import load
from glide.sample import SHIPPED, draw
from glide.scoring import asked, band, claim, line, measure, singles, tilted, trained

SCALES = (0, 1, 1.1, 1.3, 1.5, 2, 3, 5)
STEPS = (5, 10, 25, 50, 100)  # the first three in a quick study
SAMPLERS = {"DDIM": (3, 0.0), "DPM-Solver++(2M)": (3, "dpm"), "DDPM": (3, 1.0),
            "DDPM, learned variance": (3, "learned"), "DDIM, unguided": (1, 0.0)}  # fmt: skip
LOOSE = Path("runs/glide_rho/weights.safetensors")  # the shipped model, gone on with loose captions
MAKE_LOOSE = ("train --base glide/weights/small.safetensors --rho 0.3 --steps 400 --text-lr 5e-4 "
              "--out runs/glide_rho")  # fmt: skip


def captions(c, models: list) -> tuple[list[dict], list[dict], object]:
    """Caption accuracy over guidance, seen and held-out pairs, one and two objects apart."""
    config, params, _ = models[0]
    rows, tests, series = [], [], {}
    for split in ("test", "held_out"):
        scenes = data.load("scenes", split, size=config.size)
        rng = np.random.default_rng(c.seed)
        texts = [caption(scene, rng) for scene in scenes["scenes"][: c.num]]
        rows += table(split, "real renders", texts, scenes["image"][: c.num])
        for scale in c.scales:
            images = draw(config, params, texts, guidance_scale=scale, steps=c.steps,
                          seed=c.seed, progress=True)  # fmt: skip
            rows += table(split, scale, texts, images)
        for count in (1, 2):
            mine = [r for r in rows if (r["split"], r["objects"]) == (split, count)
                    and r["guidance_scale"] in c.scales]  # fmt: skip
            name = f"{split.replace('_', '-')}, {count} object{'s' * (count - 1)}"
            series[name] = band(mine, "guidance_scale", "shape_colour")
            at = {r["guidance_scale"]: r["shape_colour"] for r in mine}
            if {1, 3} <= set(at):
                text = f"{name}: scale 3 shows what captions say more often than 1"
                tests.append(claim(text, at[3], at[1]))
    figure = plot.curve(series, xlabel="guidance scale", ylabel="shapes and colours right",
                        title="GLIDE small, read by the reader")  # fmt: skip
    return rows, tests, figure


def table(split: str, scale: float | str, texts: list[str], images: np.ndarray) -> list[dict]:
    """Accuracy of one and two objects apart; prints a line for each and returns the rows."""
    rows, counts = [], np.array([len(claims(text)["objects"]) for text in texts])
    for count in (1, 2):
        chosen = counts == count
        result = metrics.caption_accuracy(list(np.array(texts)[chosen]), images[chosen])
        rows.append({"split": split, "guidance_scale": scale, "objects": count, **result})
        shown = {k: result[k] for k in ("shape_colour", "all")}
        print(f"{split:9} guidance {scale}  {count} object(s)  {line(shown)}  n = {chosen.sum()}")
    return rows


def guidance(c, models: list) -> tuple[list[dict], list[dict], object]:
    """Quality and accuracy over the scale: a line for each model, and the tilted law beside it.

    The models are c.weights; by default the shipped one and one of looser captions.
    """
    if c.weights == (SHIPPED,):
        models = [*models, load(trained(LOOSE, MAKE_LOOSE))]
    rows, tests, series = [], [], {}
    for config, params, metadata in models:
        texts, real = asked(c, config.size)
        one = singles(texts)
        rho, count = metadata["recipe"]["rho"], sum(p.size for p in jax.tree.leaves(params))
        name, mine = f"rho {rho:g}, {count / 1e6:.1f} M", {}
        for scale in SCALES:
            images = draw(config, params, texts, guidance_scale=scale, steps=c.steps, seed=c.seed,
                          progress=True)  # fmt: skip
            alone = metrics.caption_accuracy([t for t, o in zip(texts, one, strict=True) if o],
                                             images[one])  # fmt: skip
            mine[scale] = {"model": name, "rho": rho, "params": count, "guidance_scale": scale,
                           **measure(texts, images, real), "colour_of_one": alone["colour"],
                           "tilted": tilted(scale, rho, len(COLOURS))}  # fmt: skip
            print(name, scale, line(mine[scale]))
        rows += mine.values()
        low, high = (mine[s] for s in (1, 3))
        for text, key, a, b in (
            ("scale 3 shows what captions say more often than 1", "shape_colour", high, low),
            ("scale 3 has less recall than 1", "recall", low, high),
            ("scale 3 has more precision than 1", "precision", high, low),
        ):
            tests.append(claim(f"{name}: {text}", a[key], b[key]))
        series[name] = band(list(mine.values()), "guidance_scale", "colour_of_one")
        series[f"tilted law, rho {rho:g}"] = (SCALES, [r["tilted"] for r in mine.values()])
    return rows, tests, plot.curve(
        series, xlabel="guidance scale", ylabel="colour right, one object",
        title="Classifier-free guidance and the tilted law",
    )  # fmt: skip


def steps(c, models: list) -> tuple[list[dict], list[dict], object]:
    """DDIM, DPM-Solver++ and ancestral steps over their number, guided by 3, and DDIM unguided.

    Guidance evaluates the network twice a step: compare the two at equal `evaluations`.
    """
    config, params, _ = models[0]
    texts, real = asked(c, config.size)
    rows, series = {}, {}
    for name, (scale, eta) in SAMPLERS.items():
        counts = STEPS[:3] if c.quick else STEPS
        for count in counts:
            images = draw(config, params, texts, guidance_scale=scale, steps=count, seed=c.seed,
                          eta=eta, progress=True)  # fmt: skip
            rows[name, count] = {
                "sampler": name, "steps": count, "guidance_scale": scale,
                "evaluations": count * (1 + (scale != 1)),
                **measure(texts, images, real),
            }  # fmt: skip
            print(name, count, line(rows[name, count]))
        mine = [rows[name, count] for count in counts]
        series[name] = band(mine, "evaluations", "shape_colour")
    few, more = counts[:2]
    of = lambda name, count, key: rows[name, count][key]  # noqa: E731
    tests = [
        claim(f"in {few} steps DDIM is nearer to real pictures than DDPM",
              of("DDPM", few, "fd_scenes"), of("DDIM", few, "fd_scenes")),
        claim(f"in {few} steps DPM-Solver++ is right more often than DDIM",
              of("DPM-Solver++(2M)", few, "shape_colour"), of("DDIM", few, "shape_colour")),
        claim(f"in {few} steps the learned variance is better than the small one",
              of("DDPM", few, "fd_scenes"), of("DDPM, learned variance", few, "fd_scenes")),
        claim(f"at {2 * few} evaluations guidance 3 is right more often than none",
              of("DDIM", few, "shape_colour"), of("DDIM, unguided", more, "shape_colour")),
    ]  # fmt: skip
    return list(rows.values()), tests, plot.curve(
        series, xlabel="evaluations of the network", ylabel="shapes and colours right", logx=True,
        title="Fewer steps for the same picture",
    )  # fmt: skip
