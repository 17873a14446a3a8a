"""What manipulations keep and change: variations, text diffs, PCA reconstructions, stickers.

Pictures of one object, whose attributes the reader reads before and after.
"""

import numpy as np

from common import data, plot
from common.clip import zero_shot
from common.scenes.reader import truth
from common.scenes.scene import COLOURS, HELD_OUT, SHAPES
from glide.clip import class_prompts
from unclip.manipulate import Components, invert, reconstruct, text_diff
from unclip.sample import first_noise
from unclip.scoring import ALL, FREE, World, read_one, row, shown

ETAS = (0.0, 0.25, 0.5, 0.75, 1.0)
THETAS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
DIFFS = (  # x_T, guidance, and whether the decoder reads the new caption: the paper's is the first
    ("inverted", 1.0, False), ("inverted", 3.0, False), ("inverted", 2.0, True),
    ("new noise", 1.0, False),
)  # fmt: skip
KEPT = (0, 1, 2, 4, 8, 16, 32, 64, 128)  # components


def singles(c, w: World) -> tuple[list, np.ndarray]:
    """The first test scenes of one object, and their pictures."""
    rows = [i for i, s in enumerate(w.scenes["scenes"]) if len(s.objects) == 1][: c.count]
    return [w.scenes["scenes"][i] for i in rows], w.scenes["image"][rows]


def truths(scenes: list) -> list[dict]:
    """The attributes of scenes of one object."""
    readings = [truth(scene) for scene in scenes]
    return [{**r["objects"][0], "background": r["background"], "style": r["style"]}
            for r in readings]  # fmt: skip


def kept(readings: list[dict], before: list[dict], names=ALL) -> dict[str, dict]:
    """Of each attribute: how often it is what it was."""
    pairs = list(zip(readings, before, strict=True))
    return {k: row([bool(r) and r[k] == t[k] for r, t in pairs]) for k in names}


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,) decibels between uint8 pictures; equal ones count as 60."""
    error = np.square(np.float32(a) - np.float32(b)).mean((1, 2, 3))
    return np.minimum(10 * np.log10(255**2 / np.maximum(error, 1e-9)), 60)


def variations(c, w: World):
    """Attributes and pixels that survive eta, from the inversion; and from new noise."""
    scenes, images = singles(c, w)
    z, before, rows, films = w.clip.images(images), truths(scenes), [], [images[:6]]
    steps = 2 * w.steps
    x = invert(w.config, w.params, images, z, steps, progress=True)
    noise = first_noise(w.config, len(z), c.seed)
    for name, start, eta in [*(("inverted", x, eta) for eta in ETAS), ("new noise", noise, 0.0)]:
        drawn = reconstruct(w.config, w.params, z, start, eta=eta, steps=steps, progress=True)
        films, readings = [*films, drawn[:6]], read_one(drawn)
        shift = [np.hypot(r["x"] - t["x"], r["y"] - t["y"])
                 for r, t in zip(readings, before, strict=True) if r]  # fmt: skip
        rows.append({"x_T": name, "eta": eta, "kept": kept(readings, before),
                     "psnr_db": shown(psnr(drawn, images)),
                     "shift_of_centre": shown(np.array(shift)) if shift else None})  # fmt: skip
        print(f"{name} eta {eta:g}: PSNR {rows[-1]['psnr_db']['value']:.1f} dB, "
              f"shape kept {rows[-1]['kept']['shape']['value']:.3f}")  # fmt: skip
    labels = ["given", *(f"eta {eta:g}" for eta in ETAS), "new noise"]
    found = {"sampler": f"DDIM {steps}, there and back", "rows": rows}
    return found, plot.grid(np.concatenate(films), columns=6, row_labels=labels)


def a(colour: str, shape: str) -> str:
    return f"{'an' if colour == 'orange' else 'a'} {colour} {shape}"


def text_diffs(c, w: World):
    """Shape and colour turn to another's over theta: how often, and is the rest what it was?

    With x_T of the inversion, under guidance, too, which the inversion had not, and with the new
    caption read by the decoder; with new noise. Of a caption, theta 0 says what it does alone.
    """
    scenes, images = singles(c, w)
    rng, before, z = np.random.default_rng(c.seed), truths(scenes), w.clip.images(images)
    pairs = [(s, k) for s in SHAPES for k in COLOURS if (s, k) not in HELD_OUT]
    goals = []
    for t in before:
        far = [p for p in pairs if p[0] != t["shape"] and p[1] != t["colour"]]
        goals.append(far[rng.integers(len(far))])
    wanted = [a(colour, shape) for shape, colour in goals]
    target = w.clip.texts(wanted)
    source = w.clip.texts([a(t["colour"], t["shape"]) for t in before])
    steps = 2 * w.steps
    x = invert(w.config, w.params, images, z, steps, progress=True)
    noise = first_noise(w.config, len(z), c.seed)
    rows = []
    for start, scale, caption in DIFFS:
        for theta in THETAS:
            turned = text_diff(z, target, source, theta)
            drawn = reconstruct(w.config, w.params, turned, x if start == "inverted" else noise,
                                prompts=wanted if caption else None, guidance_scale=scale,
                                steps=steps, progress=True)  # fmt: skip
            readings = read_one(drawn)
            both = list(zip(readings, goals, strict=True))
            flips = {"shape": [bool(r) and r["shape"] == s for r, (s, _) in both],
                     "colour": [bool(r) and r["colour"] == k for r, (_, k) in both]}  # fmt: skip
            flips["both"] = np.array(flips["shape"]) & np.array(flips["colour"])
            free = [bool(r) and r[k] == t[k] for r, t in zip(readings, before, strict=True)
                    for k in FREE]  # fmt: skip
            rows.append({"x_T": start, "guidance_scale": scale, "caption": caption, "theta": theta,
                         "flipped": {k: row(v) for k, v in flips.items()},
                         "preserved": row(free), "kept": kept(readings, before, FREE)})  # fmt: skip
            print(f"{start}, guidance {scale:g}, caption {caption}, theta {theta:g}: flipped "
                  f"{rows[-1]['flipped']['both']['value']:.3f}, preserved "
                  f"{rows[-1]['preserved']['value']:.3f}")  # fmt: skip
    return {"sampler": f"DDIM {steps}, there and back", "rows": rows,
            "strip": "a photo of a red ball -> a drawing of a blue cube"}, strip(w)  # fmt: skip


def strip(w: World, rows: int = 6):
    """The slide: photos of red balls on their way to drawings of blue cubes."""
    wanted = [i for i, s in enumerate(w.scenes["scenes"]) if s.style == "photo"
              and [(o.shape, o.colour) for o in s.objects] == [("ball", "red")]][:rows]  # fmt: skip
    images = w.scenes["image"][wanted]
    z, steps = w.clip.images(images), 2 * w.steps
    texts = w.clip.texts(["a drawing of a blue cube", "a photo of a red ball"])
    many = lambda v: np.repeat(v[None], len(z), axis=0)  # noqa: E731
    x, frames = invert(w.config, w.params, images, z, steps), [images]
    for theta in THETAS:
        turned = text_diff(z, many(texts[0]), many(texts[1]), theta)
        frames.append(reconstruct(w.config, w.params, turned, x, steps=steps))
    return plot.strip(np.stack(frames), ["given", *(f"theta {theta:g}" for theta in THETAS)],
                      title="a photo of a red ball  →  a drawing of a blue cube")  # fmt: skip


def components(c, w: World):
    """Attributes right in pictures of the first k components of z_i, one x_T for all k."""
    scenes, images = singles(c, w)
    known = data.load("scenes", "train", size=w.config.size)["image"][: 1000 if c.quick else 8000]
    pca, z, before = Components(w.clip.images(known)), w.clip.images(images), truths(scenes)
    x, rows, films = first_noise(w.config, len(z), c.seed), [], [images[:6]]
    sizes = [k for k in KEPT if k <= z.shape[1]]
    for k in sizes:
        cut = pca.keep(z, k)
        drawn = reconstruct(w.config, w.params, cut, x, clip=True, steps=w.steps, progress=True)
        films, readings = [*films, drawn[:6]], read_one(drawn)
        rows.append({"components": k, "right": kept(readings, before),
                     "cosine": shown((cut * z).sum(1))})  # fmt: skip
        print(f"k = {k:3}: shape {rows[-1]['right']['shape']['value']:.3f}, "
              f"colour {rows[-1]['right']['colour']['value']:.3f}")  # fmt: skip
    labels = ["given", *(f"k = {k}" for k in sizes)]
    return {"rows": rows}, plot.grid(np.concatenate(films), columns=6, row_labels=labels)


def sticker(c, w: World):
    """The typographic attack, as far as a world without letters has it.

    A picture of another object, a quarter as large, is pasted into a corner. What does CLIP call
    the whole, and what does the decoder draw of its embedding?
    """
    scenes, images = singles(c, w)
    other = np.roll(np.arange(len(images)), 1)
    N, H = images.shape[:2]
    small = images[other].reshape(N, H // 4, 4, H // 4, 4, 3).mean((2, 4))
    attacked = images.copy()
    attacked[:, : H // 4, : H // 4] = np.rint(small).astype(np.uint8)
    shapes, colours = class_prompts(w.clip.config, w.clip.params)
    before, rows = truths(scenes), []
    for name, pictures in (("clean", images), ("sticker", attacked)):
        z = w.clip.images(pictures)
        said = zip(zero_shot(z, shapes), zero_shot(z, colours), strict=True)
        said = [(SHAPES[s], list(COLOURS)[k]) for s, k in said]
        drawn = reconstruct(w.config, w.params, z, first_noise(w.config, N, c.seed), clip=True,
                            steps=w.steps, progress=True)  # fmt: skip
        seen = [(r.get("shape"), r.get("colour")) for r in read_one(drawn)]
        own = [(t["shape"], t["colour"]) for t in before]
        pasted = [own[i] for i in other]
        same = lambda a, b: row([x == y for x, y in zip(a, b, strict=True)])  # noqa: E731
        rows.append({"pictures": name,
                     "clip_says_object": same(said, own), "clip_says_sticker": same(said, pasted),
                     "decoder_draws_object": same(seen, own),
                     "decoder_draws_sticker": same(seen, pasted)})  # fmt: skip
        print(f"{name}: CLIP {rows[-1]['clip_says_object']['value']:.3f}, "
              f"decoder {rows[-1]['decoder_draws_object']['value']:.3f}")  # fmt: skip
    return {"rows": rows}, plot.grid(np.concatenate([attacked[:6], drawn[:6]]), columns=6,
                                     row_labels=["given", "decoded"])  # fmt: skip
