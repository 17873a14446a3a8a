"""The numbers and figures of the package, one part at a time, each a JSON and a WebP.

systems     both priors, GLIDE, and what else may stand for z_i (Table 1, Figure 8, section 5.1)
guidance    accuracy and diversity against the decoder's scale, z_i fixed (Figures 9 to 11)
reranking   the best of n draws of the prior, and the dot product asked of the AR prior
binding     colours that change sides between two objects (Figures 14 and 15)
variations, text_diff, components, sticker    see study_edits.py
gap, probe                                    see study_embeddings.py
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from common import command, data, devices, plot, report
from common.scenes.captions import caption
from common.scenes.reader import read
from common.scenes.scene import COLOURS, HELD_OUT, SHAPES
from glide import model as glide
from glide.sample import SHIPPED as GLIDE
from unclip import study_edits, study_embeddings
from unclip.model import load
from unclip.sample import SHIPPED, SHIPPED_CLIP, SHIPPED_PRIORS, load_all, load_prior
from unclip.scoring import World, diversity, ordering, outcomes, row, shown

FIGURES = Path("lessons/figures")
QUICK = 48  # captions, or pictures, of each point in a quick study
FEW = (6, 8)  # captions of the diversity there, and pictures of each


@dataclass(frozen=True)
class StudyConfig:
    """`python -m unclip study`: what the README's tables and the lessons' figures are made of."""

    part: Literal[
        "systems", "guidance", "reranking", "binding", "variations", "text_diff", "components",
        "sticker", "gap", "probe",
    ] = "systems"  # fmt: skip
    quick: bool = False  # fewer pictures: minutes on two CPU cores
    num: int = 256  # captions, or pictures
    pairs: int = 24  # shapes and colours whose pictures are compared with each other
    draws: int = 16  # pictures of each pair
    guidance_scale: float = 2.0  # of the decoder and GLIDE, where it is not what varies
    scales: tuple[float, ...] = (1, 2, 3, 5, 8)
    steps: int = 50  # DDIM steps
    seed: int = 1
    weights: Path = SHIPPED  # of the decoder
    prior: Path = SHIPPED_PRIORS["diffusion"]
    ar_prior: Path = SHIPPED_PRIORS["ar"]
    text_decoder: Path | None = None  # a decoder trained with --embedding text, for its row
    glide: Path = GLIDE
    clip: Path = SHIPPED_CLIP
    out: Path = FIGURES  # folder for unclip_PART.json and .webp

    @property
    def count(self) -> int:
        return min(self.num, QUICK) if self.quick else self.num

    @property
    def grid(self) -> tuple[int, int]:
        return FEW if self.quick else (self.pairs, self.draws)


def captions_of(scenes: list, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [caption(scene, rng) for scene in scenes]


def pair_prompts(c: StudyConfig) -> list[str]:
    """`pairs` captions of a shape and a colour, `draws` times each, next to each other."""
    known = [(s, k) for s in SHAPES for k in COLOURS if (s, k) not in HELD_OUT]
    pairs, draws = c.grid
    order = np.random.default_rng(c.seed).permutation(len(known))[:pairs]
    texts = [f"{'an' if known[i][1] == 'orange' else 'a'} {known[i][1]} {known[i][0]}"
             for i in order]  # fmt: skip
    return [text for text in texts for _ in range(draws)]


def systems(c: StudyConfig, w: World):
    """-> ({"rows", "priors", "orderings"}, figure): what stands for z_i decides the picture."""
    scenes, images = w.scenes["scenes"][: c.count], w.scenes["image"][: c.count]
    texts, pairs = captions_of(scenes, c.seed), pair_prompts(c)
    true_z, rows, wins, films = w.clip.images(images), [], {}, [images[:6]]
    kinds = ["caption only", "text embedding", *(["text decoder"] if w.text_decoder else []),
             "ar prior", "diffusion prior", "true z_i", "glide"]  # fmt: skip
    for kind in kinds:
        z = true_z if kind == "true z_i" else w.embed(kind, texts, c.seed)
        drawn = w.pictures(kind, texts, z, scale=c.guidance_scale)
        films, found = [*films, drawn[:6]], outcomes(texts, drawn)
        rows.append({"system": kind, **{k: row(v) for k, v in found.items()}})
        if kind in ("ar prior", "diffusion prior", "glide", "caption only"):
            z = w.embed(kind, pairs, c.seed + 1)
            many = w.pictures(kind, pairs, z, scale=c.guidance_scale, seed=c.seed + 1)
            found["diversity"] = diversity(many, c.grid[1])
            rows[-1]["diversity_bits"] = shown(found["diversity"])
        wins[kind] = found
        print(f"{kind:16} right {rows[-1]['all']['value']:.3f}  "
              f"valid {rows[-1]['valid']['value']:.3f}  n = {c.count}")  # fmt: skip
    rows.insert(0, {"system": "real renders",
                    **{k: row(v) for k, v in outcomes(texts, images).items()},
                    "diversity_bits": shown(real_diversity(c, w))})  # fmt: skip
    claims = [
        ("diffusion prior above AR prior (Table 1)", "all", "diffusion prior", "ar prior"),
        ("diffusion prior above AR prior (Table 1)", "valid", "diffusion prior", "ar prior"),
        ("unCLIP below GLIDE in captions (Table 1)", "all", "glide", "diffusion prior"),
        ("unCLIP more diverse than GLIDE (Table 1)", "diversity", "diffusion prior", "glide"),
        ("prior above text embedding (5.1)", "all", "diffusion prior", "text embedding"),
        ("prior above text embedding (5.1)", "valid", "diffusion prior", "text embedding"),
        ("text embedding above caption only (Figure 8)", "all", "text embedding", "caption only"),
        ("prior above caption only (Figure 8)", "all", "diffusion prior", "caption only"),
        ("true z_i above the prior (its ceiling)", "all", "true z_i", "diffusion prior"),
    ]
    if w.text_decoder:
        claims.append(("prior above a decoder of text embeddings (5.1)", "all",
                       "diffusion prior", "text decoder"))  # fmt: skip
    orderings = [ordering(claim, m, wins[a][m], wins[b][m]) | {"above": a, "below": b}
                 for claim, m, a, b in claims]  # fmt: skip
    names = ["real", *kinds]
    figure = plot.grid(np.concatenate(films), columns=6, row_labels=names)
    cosines = study_embeddings.prior_cosines(w, texts, images, c.seed)
    return {"rows": rows, "prior_cosines": cosines, "orderings": orderings}, figure


def real_diversity(c: StudyConfig, w: World) -> np.ndarray:
    """Of real pictures of one object, as many: the free attributes do not depend on the pair."""
    single = [i for i, s in enumerate(w.scenes["scenes"]) if len(s.objects) == 1]
    pairs, draws = c.grid
    chosen = np.random.default_rng(c.seed).choice(single, pairs * draws)
    return diversity(w.scenes["image"][chosen], draws)


def guidance(c: StudyConfig, w: World):
    """The same z_i at every scale: unCLIP's semantics are settled before guidance acts."""
    texts = pair_prompts(c)
    z, rows = w.embed("diffusion prior", texts, c.seed), []
    for kind in ("diffusion prior", "glide"):
        for scale in c.scales:
            drawn = w.pictures(kind, texts, z, scale=scale)
            found = {k: row(v) for k, v in outcomes(texts, drawn).items()}
            spread = shown(diversity(drawn, c.grid[1]))
            rows.append({"system": kind, "scale": scale, **found, "diversity_bits": spread})
            print(f"{kind:16} scale {scale:g}  right {found['all']['value']:.3f}  "
                  f"diversity {spread['value']:.3f} bits")  # fmt: skip
    series = {}
    for kind, name in (("diffusion prior", "unCLIP, z_i fixed"), ("glide", "GLIDE")):
        points = [(r["scale"], r["diversity_bits"]) for r in rows if r["system"] == kind]
        x, y = zip(*points, strict=True)
        series[name] = (x, *([v[k] for v in y] for k in ("value", "low", "high")))
    figure = plot.curve(series, xlabel="guidance scale", ylabel="bits an uncaptioned attribute",
                        title="Diversity against guidance")  # fmt: skip
    return {"rows": rows}, figure


def reranking(c: StudyConfig, w: World):
    """n draws of the diffusion prior, the best kept; percentiles of the AR prior's dot product."""
    texts, rows = pair_prompts(c), []
    z_t = w.clip.texts(texts)
    for kind, option, values in (("diffusion prior", "best_of", (1, 2, 4, 8)),
                                 ("ar prior", "percentile", (0, 50, 85, 95))):  # fmt: skip
        for value in values:
            z = w.embed(kind, texts, c.seed, **{option: value})
            drawn = w.pictures(kind, texts, z, scale=c.guidance_scale)
            dots = (z * z_t).sum(1)
            rows.append({"system": kind, option: value,
                         **{k: row(v) for k, v in outcomes(texts, drawn).items()},
                         "dot_with_text": shown(dots),
                         "diversity_bits": shown(diversity(drawn, c.grid[1]))})  # fmt: skip
            print(f"{kind:16} {option} {value:2}  right {rows[-1]['all']['value']:.3f}")
    points = [r["all"] for r in rows if "best_of" in r]
    bands = ([p[k] for p in points] for k in ("value", "low", "high"))
    series = {"best of n": ((1, 2, 4, 8), *bands)}
    return {"rows": rows}, plot.curve(series, xlabel="draws of the prior", ylabel="captions right",
                                      title="Re-ranking by the dot product")  # fmt: skip


def binding(c: StudyConfig, w: World):
    """Two objects: both pairs right, or the right shapes and colours the wrong way round."""
    two = [s for s in w.scenes["scenes"] if len(s.objects) == 2][: c.count]
    texts, rows, films = captions_of(two, c.seed), [], []
    for kind in ("diffusion prior", "glide"):
        drawn = w.pictures(kind, texts, w.embed(kind, texts, c.seed), scale=c.guidance_scale)
        films.append(drawn[:6])
        right, swapped = [], []
        for reading, scene in zip(read(drawn), two, strict=True):
            got = [(o["shape"], o["colour"]) for o in reading["objects"]]
            want = [(o.shape, o.colour) for o in scene.objects]
            right.append(sorted(got) == sorted(want))
            parts = [sorted(p) for p in zip(*got, strict=True)] == [
                sorted(p) for p in zip(*want, strict=True)]  # fmt: skip
            swapped.append(parts and not right[-1])
        both = np.array(right) | np.array(swapped)
        share = np.array(swapped)[both] if both.any() else np.zeros(0)
        rows.append({"system": kind, "right": row(right), "swapped": row(swapped),
                     "swapped_of_found": row(share)})  # fmt: skip
        print(f"{kind:16} right {rows[-1]['right']['value']:.3f}  "
              f"swapped {rows[-1]['swapped']['value']:.3f}")  # fmt: skip
    figure = plot.grid(np.concatenate(films), columns=6, row_labels=["unCLIP", "GLIDE"])
    return {"rows": rows}, figure


PARTS: dict[str, Callable] = {
    "systems": systems, "guidance": guidance, "reranking": reranking, "binding": binding,
    "variations": study_edits.variations, "text_diff": study_edits.text_diffs,
    "components": study_edits.components, "sticker": study_edits.sticker,
    "gap": study_embeddings.gap, "probe": study_embeddings.probe,
}  # fmt: skip


WITH_AR = ("systems", "reranking")  # the parts that need the prior that is not shipped


def open_world(c: StudyConfig) -> World:
    config, params, metadata, clip = load_all(c)
    paths = {"diffusion": c.prior} | ({"ar": c.ar_prior} if c.part in WITH_AR else {})
    priors = {kind: load_prior(kind, path, clip) for kind, path in paths.items()}
    text_decoder = load(c.text_decoder)[:2] if c.text_decoder else None
    scenes = data.load("scenes", "test", size=config.size)
    return World(config, params, metadata["digest"], clip, priors, glide.load(c.glide)[:2],
                 text_decoder, scenes, c.steps, c.seed)  # fmt: skip


def main(c: StudyConfig) -> None:
    devices.start()
    world = open_world(c)
    command.check_out(c.out)
    found, figure = PARTS[c.part](c, world)
    numbers = {"command": report.command("unclip study", c), "seed": c.seed,
               "n": c.count, "weights": world.digest, "sampler": f"DDIM {c.steps}",
               "intervals": "95%: Wilson of shares, bootstrap of means", **found}  # fmt: skip
    report.save(c.out / f"unclip_{c.part}.json", numbers, figure)
