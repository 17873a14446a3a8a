"""The numbers and figures of the package, one part at a time, each a JSON and a WebP.

    t0           realism and faithfulness against t0, VE and VP over one sigma, and a strip of
                 pictures (Figures 3 and 12)
    strokes      pictures from strokes, against three ways of GAN inversion (Tables 1 and 2)
    compositing  pasted objects, against those, Poisson and the Laplacian pyramid (Table 3)
    palette      strokes of more and fewer colours (Table 4)
    repeats      the paper's K
    proposition  Proposition 1 on an exact mixture
    bisection    t0 chosen by how far the result may be from its guide
    digits       scikit-learn's handwritten digits, from strokes
    photos       patches of scikit-learn's photographs, from strokes

The last two train a small network first, into the folder `runs`, and find it there the next time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from common import command, devices, metrics, plot, report
from common.pretrained import defaults
from sdedit import invert, sde, study_real, study_rivals
from sdedit.guides import strokes
from sdedit.measure import World, claim, mean, open_world, squared, with_reader
from sdedit.model import SHIPPED
from sdedit.proposition import proposition1
from sdedit.sample import bisect

FULL = {"num": 256, "steps": 100}
QUICK = {"num": 32, "steps": 40}


def over_t0(w: World):
    """11 points of both SDEs; at t0 = 1 also how far pictures of other guides with the same noise
    are, next to pictures of the same guide with other noise."""
    guides, rows, films = strokes(w.truth), [], []
    for name in ("vp", "ve"):
        for t0 in np.linspace(0, 1, w.c.points):
            images = w.edited(guides, t0=t0, sde_name=name)
            films.append(images[:2])
            at = {"sde": name, "t0": float(t0), "sigma": sigma_of(name, t0, w.c.steps)}
            rows.append(at | with_reader(images, guides, w.real))
        other = w.edited(guides[::-1], t0=1, sde_name=name)
        rows[-1]["other_guide"] = mean(squared(images, other))
        rows[-1]["other_noise"] = mean(squared(images, np.roll(images, 1, 0)))
    by = {f"{r['sde']} {r['t0']:g}": r for r in rows}
    first, last = min(r["t0"] for r in rows if r["t0"]), 1
    claims = [claim(f"{text} (Figure 3)", metric, by, f"{name} {larger:g}", f"{name} {smaller:g}")
              for name in ("vp", "ve")
              for text, metric, larger, smaller in (
                  ("KID falls from the guide to the first t0", "kid", 0, first),
                  ("KID falls from the first t0 to 1", "kid", first, last),
                  ("L2 rises from the first t0 to 1", "l2", last, first))]  # fmt: skip
    films = np.concatenate(np.split(np.stack(films), 2), 1)
    film = plot.strip(films, [f"t0 {r['t0']:.2g}" for r in rows[: w.c.points]], scale=2,
                      row_labels=["VP", "VP", "VE", "VE"])  # fmt: skip
    return rows, claims, {"t0": curves(rows), "strip": film}


def palette(w: World):
    rows, films = [], [w.truth[:6]]
    for colours in w.c.colours:
        painted = strokes(w.truth, colours)
        images = w.edited(painted)
        rows.append({"colours": colours} | with_reader(images, painted, w.real))
        films += [painted[:6], images[:6]]
    few, many = str(w.c.colours[0]), str(w.c.colours[-1])
    by = {str(r["colours"]): r for r in rows}
    claims = [claim("KID falls with the number of colours (Table 4)", "kid", by, few, many)]
    labels = ["picture", *(f"{what}{n}" for n in w.c.colours for what in ("strokes, ", "SDEdit, "))]
    return rows, claims, plot.grid(np.concatenate(films), columns=len(films[0]), row_labels=labels,
                                   scale=2)  # fmt: skip


def repeats(w: World):
    guides = strokes(w.truth)
    rows, films = [], [guides[:6]]
    for times in w.c.repeats:
        images = w.edited(guides, repeats=times)
        rows.append({"repeats": times} | with_reader(images, guides, w.real))
        films.append(images[:6])
    by = {str(r["repeats"]): r for r in rows}
    most = str(w.c.repeats[-1])
    claims = [claim("KID falls with K (App. A)", "kid", by, str(w.c.repeats[0]), most),
              claim("L2 rises with K (App. A)", "l2", by, most, str(w.c.repeats[0]))]  # fmt: skip
    labels = ["strokes", *(f"K = {r}" for r in w.c.repeats)]
    return rows, claims, plot.grid(np.concatenate(films), columns=len(films[0]), row_labels=labels,
                                   scale=2)  # fmt: skip


def proposition(w: World):
    rows = proposition1(w.c.seed)
    series = {}
    for score in ("exact", "none"):
        words = "exact" if score == "exact" else "no"
        chosen = [r for r in rows if r["score"] == score and r["delta"] == 0.1]
        for i, which in enumerate(("as printed", "all noise counted")):
            share = [r["broken"][i] for r in chosen]
            band = ([r[end][i] for r in chosen] for end in ("low", "high"))
            series[f"{which}, {words} score"] = ([r["t0"] for r in chosen], share, *band)
    figure = plot.curve(series, xlabel="t0", ylabel="share beyond the bound (allowed: 0.1)",
                        title="Proposition 1, VE")  # fmt: skip
    return rows, [], figure


def bisection(w: World):
    """t0 for one guide, then for all: the same distance is another t0 in VE and VP, but one sigma.

    Paper: people bisect, until they find the pictures real; here a distance is asked for.
    """
    guides, rows, films = strokes(w.truth[:64]), [], []
    for target in w.c.targets:
        for name in ("vp", "ve"):
            draw = lambda t0, name=name: w.edited(guides[:1].repeat(8, 0), t0=t0, sde_name=name)  # noqa: E731
            alone = bisect(draw, guides[:1], target)
            draw = lambda t0, name=name: w.edited(guides, t0=t0, sde_name=name)  # noqa: E731
            shared = bisect(draw, guides, target)
            images = draw(shared)
            rows.append({"target": target, "sde": name, "t0_of_one_guide": alone, "t0": shared,
                         "sigma": sigma_of(name, shared, w.c.steps)}
                        | with_reader(images, guides, w.real))  # fmt: skip
            films.append(images[:6])
    labels = ["strokes", *(f"L2 {r['target']:g}: {r['sde'].upper()}, t0 = {r['t0']:.2f}"
                           for r in rows)]  # fmt: skip
    films = [guides[:6], *films]
    return rows, [], plot.grid(np.concatenate(films), columns=len(films[0]), row_labels=labels,
                               scale=2)  # fmt: skip


def sigma_of(name: str, t0: float, steps: int) -> float:
    """noise / signal from which an edit starts, in [-1, 1] units."""
    schedule = sde.SDES[name](t0, steps)
    return float(schedule.noise[-1] / schedule.signal[-1])


def curves(rows: list[dict]):
    """KID and L2, over t0 and over sigma (from t0 > 0 on, logarithmic), each a line per SDE."""
    panels = []
    for x in ("t0", "sigma"):
        for y, label in (("kid", "KID-scenes"), ("l2", "squared L2 to the guide")):
            series = {}
            for name in ("vp", "ve"):
                chosen = [r for r in rows if r["sde"] == name and (x == "t0" or r["t0"] > 0)]
                values = ([r[y][k] for r in chosen] for k in ("value", "low", "high"))
                series[name.upper()] = ([r[x] for r in chosen], *values)
            panels.append(plot.curve(series, xlabel="t0" if x == "t0" else "sigma of [-1, 1]",
                                     ylabel=label, logx=x == "sigma", size=(4.2, 3)))  # fmt: skip
    rows = [np.concatenate([*map(np.asarray, panels[i : i + 2])], 1) for i in (0, 2)]
    return np.concatenate(rows)


PARTS: dict[str, Callable] = {
    "t0": over_t0, "strokes": study_rivals.stroke_paintings,
    "compositing": study_rivals.compositing, "palette": palette, "repeats": repeats,
    "proposition": proposition, "bisection": bisection,
    "digits": study_real.digits, "objective": study_real.objective,
    "photos": study_real.photos,
}  # fmt: skip


@dataclass(frozen=True)
class StudyConfig:
    """`python -m sdedit study`: guides are stroke paintings of test pictures."""

    part: Literal[tuple(PARTS)] = "t0"
    quick: bool = False  # fewer pictures and steps: minutes on two CPU cores
    num: int | None = None  # guides: 256, quick 32
    steps: int | None = None  # of the reverse SDE: 100, quick 40
    t0: float = 0.2  # where it is not what varies
    points: int = 11  # values of t0 from 0 to 1
    colours: tuple[int, ...] = (3, 6, 16, 30, 50)
    repeats: tuple[int, ...] = (1, 2, 3)
    targets: tuple[float, ...] = (15,)  # squared L2 of part bisection
    seed: int = 1
    weights: Path = SHIPPED
    gan: Path = invert.GAN
    encoder: Path = invert.ENCODER
    runs: Path = Path("runs/sdedit_study")  # where the networks of real pictures are kept
    out: Path = Path("lessons/figures")  # folder for sdedit_PART.json and .webp


def main(given: StudyConfig) -> None:
    c = defaults(given, **(QUICK if given.quick else FULL))
    if not 6 <= c.num <= 512:  # the figures show six
        raise ValueError(f"num must be in 6..512, not {c.num}")
    devices.start()
    world = open_world(c)
    command.check_out(c.out)
    rows, claims, figures = PARTS[c.part](world)
    numbers = {
        "command": report.command("sdedit study", given), "seed": c.seed,
        "n": rows[0].get("n", c.num),
        "steps": c.steps, "t0": c.t0, "weights": world.digest,
        "intervals": "95%: Wilson of shares, bootstrap of the rest; of differences Newcombe's",
        "features": metrics.SCENE_FEATURES, "rows": rows, "claims": claims,
    }  # fmt: skip
    report.save(c.out / f"sdedit_{c.part}.json", numbers, figures)
