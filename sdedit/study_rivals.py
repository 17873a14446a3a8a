"""SDEdit against GAN inversion and blending: the paper's Tables 1, 2 (strokes) and 3 (patches)."""

from dataclasses import replace

import numpy as np

from common import metrics, plot
from common.scenes.captions import caption
from common.scenes.reader import read
from common.scenes.render import render
from sdedit import blend
from sdedit.guides import object_masks, strokes
from sdedit.measure import REAL, World, claim, mean, squared, timed, with_reader

SHOWN = 6  # pictures of a figure's row


def stroke_paintings(w: World):
    """Pictures from strokes by every method: realism, distance to the guide, seconds."""
    guides = strokes(w.truth)
    rng = np.random.default_rng(w.c.seed)
    texts = [caption(scene, rng) for scene in w.scenes[: len(guides)]]
    methods = w.inversions | {
        "SDEdit": w.edited,
        "SDEdit, with a caption": lambda guides: w.edited(guides, prompts=texts),
    }
    rows, films = {"guide": with_reader(guides, guides, w.real)}, [w.truth[:SHOWN], guides[:SHOWN]]
    for name, method in methods.items():
        images, seconds = timed(method, guides)
        rows[name] = with_reader(images, guides, w.real) | {"seconds": seconds}
        films.append(images[:SHOWN])
    claims = [claim(f"SDEdit is {word} than {rival} (Table 2)", metric, rows, rival, "SDEdit")
              for rival in w.inversions
              for metric, word in (("kid", "more realistic"), ("l2", "more faithful"))]  # fmt: skip
    figure = plot.grid(np.concatenate(films), columns=len(films[0]),
                       row_labels=["picture", "strokes", *methods], scale=2)  # fmt: skip
    return [{"method": name, **row} for name, row in rows.items()], claims, figure


def compositing(w: World):
    """The object of one picture put into another: `num` pairs of pictures of one object each.

    l2: to the pasted picture; kept_l2: outside of the edit mask, the paper's masked distance (there
    LPIPS); found, colour: shares in which the reader finds the object, or one of its colour.
    """
    size = w.images.shape[1]
    alone = [i for i, scene in enumerate(w.scenes) if len(scene.objects) == 1][: 2 * w.c.num]
    masks = object_masks([w.scenes[i] for i in alone], size)[1::2]
    behind = render([replace(w.scenes[i], objects=()) for i in alone[::2]], size)
    before = w.images[alone[1::2]]
    wanted = [w.scenes[i].objects[0] for i in alone[1::2]]
    naive = np.where(masks, before, behind)
    real = metrics.scene_features(np.delete(w.images, alone, 0)[:REAL])
    each = lambda blended: lambda _: np.stack([*map(blended, behind, before, masks)])  # noqa: E731
    methods = {
        "naive paste": lambda _: naive,
        "Poisson": each(blend.poisson),
        "Laplacian pyramid": each(blend.laplacian_pyramid),
        **w.inversions,
        "SDEdit": lambda guides: w.edited(guides, edit_masks=masks),
    }
    rows, films = {}, [behind[:SHOWN]]
    for name, method in methods.items():
        images, seconds = timed(method, naive)
        seen = [[(o["shape"], o["colour"]) for o in reading["objects"]] for reading in read(images)]
        found = sum((o.shape, o.colour) in s for s, o in zip(seen, wanted, strict=True))
        colour = sum(o.colour in [c for _, c in s] for s, o in zip(seen, wanted, strict=True))
        rows[name] = with_reader(images, naive, real) | {
            "kept_l2": mean(squared(np.where(masks, behind, images), behind)),
            "found": metrics.proportion(found, len(wanted)),
            "colour": metrics.proportion(colour, len(wanted)), "seconds": seconds,
        }  # fmt: skip
        films.append(images[:SHOWN])
    against = ["Poisson", "Laplacian pyramid", *w.inversions]  # the first keeps all, too
    claims = [
        claim("SDEdit keeps the object's colour more often than Poisson", "colour", rows,
              "SDEdit", "Poisson"),
        *(claim(f"SDEdit is more faithful than {rival} (Table 3)", "l2", rows, rival, "SDEdit")
          for rival in against),
        *(claim(f"{rival} changes what is kept, SDEdit does not (Table 3)", "kept_l2", rows, rival,
                "SDEdit") for rival in against[1:]),
    ]  # fmt: skip
    labels = ["background", *methods]
    figure = plot.grid(np.concatenate(films), columns=len(films[0]), row_labels=labels, scale=2)
    return [{"method": name, **row} for name, row in rows.items()], claims, figure
