"""What is in an image embedding: the modality gap, a linear probe, and how near the priors come."""

import numpy as np

from common import data, plot
from common.scenes.captions import caption
from unclip.scoring import World, row, shown

PROBE = 6_000  # training pictures of the probe


def prior_cosines(w: World, texts: list[str], images: np.ndarray, seed: int) -> list[dict]:
    """Cosine of what stands for z_i with the true one, and of others: what would chance give?"""
    true, z_t = w.clip.images(images), w.clip.texts(texts)
    unit = lambda z: z / np.linalg.norm(z, axis=1, keepdims=True)  # noqa: E731
    among = true @ true.T
    np.fill_diagonal(among, np.nan)
    rows = [{"of": "another picture, any", "cosine": shown(np.nanmean(among, 1))},
            {"of": "another picture, the nearest", "cosine": shown(np.nanmax(among, 1))},
            {"of": "its caption", "cosine": shown((z_t * true).sum(1))}]  # fmt: skip
    for kind in ("ar prior", "diffusion prior"):
        z = unit(w.embed(kind, texts, seed))
        cosine = (z * true).sum(1)
        others = z @ true.T
        nearest = others.argmax(1) == np.arange(len(true))
        rows.append({"of": kind, "cosine": shown(cosine), "above_any_other": row(nearest),
                     "to_its_text": shown((z * z_t).sum(1))})  # fmt: skip
    return rows


def gap(c, w: World):
    """Cosines of pictures and captions: a picture is nearer to any picture than to its caption?"""
    scenes, images = w.scenes["scenes"][: c.count], w.scenes["image"][: c.count]
    rng = np.random.default_rng(c.seed)
    z_i, z_t = w.clip.images(images), w.clip.texts([caption(s, rng) for s in scenes])
    apart = ~np.eye(len(z_i), dtype=bool)
    cosines = {
        "picture and its caption": (z_i * z_t).sum(1),
        "picture and another's caption": (z_i @ z_t.T)[apart],
        "two pictures": (z_i @ z_i.T)[apart],
        "two captions": (z_t @ z_t.T)[apart],
    }
    means = z_i.mean(0), z_t.mean(0)
    cosine = means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1])
    between = z_i.mean(0) - z_t.mean(0)
    side = np.concatenate([z_i, z_t]) @ between > (means[0] + means[1]) @ between / 2
    right = np.concatenate([side[: len(z_i)], ~side[len(z_i) :]])
    rows = [{"of": k, "mean": float(v.mean()), "std": float(v.std()), "n": len(v)}
            for k, v in cosines.items()]  # fmt: skip
    found = {"rows": rows, "angle_between_means_degrees": float(np.degrees(np.arccos(cosine))),
             "distance_of_means": float(np.linalg.norm(between)),
             "told_apart_by_the_line_between_means": row(right)}  # fmt: skip
    print(f"angle between the means {found['angle_between_means_degrees']:.0f} degrees")
    edges, series = np.linspace(-1, 1, 61), {}
    for name, values in cosines.items():
        density = np.histogram(values, edges, density=True)[0]
        series[name] = ((edges[1:] + edges[:-1]) / 2, density)
    figure = plot.curve(series, xlabel="cosine", ylabel="density", title="The modality gap")
    return found, figure


def targets(scenes: list) -> dict[str, list]:
    """What a probe is to find: of the first object (left or top), and of the whole picture."""
    first = [s.objects[0] for s in scenes]
    return {
        "shape": [o.shape for o in first], "colour": [o.colour for o in first],
        "size": [o.size for o in first], "place": [o.place for o in first],
        "background": [s.background for s in scenes], "style": [s.style for s in scenes],
        "material": [o.material for o in first],
        "shape and colour": [f"{o.colour} {o.shape}" for o in first],
    }  # fmt: skip


def probe(c, w: World):
    """Logistic regression on z_i: pictures of one object, and the first of two (binding)."""
    from sklearn.linear_model import LogisticRegression  # here: it takes a second to import

    known, count = data.load("scenes", "train", size=w.config.size), PROBE // (6 if c.quick else 1)
    z, test = w.clip.images(known["image"][:count]), w.clip.images(w.scenes["image"])
    rows, scenes = [], known["scenes"][:count]
    for objects in (1, 2):
        of = lambda s, n=objects: np.array([len(one.objects) == n for one in s])  # noqa: E731
        here, there = of(scenes), of(w.scenes["scenes"])
        learn = targets([s for s in scenes if len(s.objects) == objects])
        check = targets([s for s in w.scenes["scenes"] if len(s.objects) == objects])
        for name, values in learn.items():
            scaled = np.sqrt(z.shape[1])
            fitted = LogisticRegression(max_iter=300).fit(scaled * z[here], values)
            right = fitted.predict(scaled * test[there]) == np.array(check[name])
            _, counts = np.unique(check[name], return_counts=True)
            rows.append({"objects": objects, "of_the_first": name, "accuracy": row(right),
                         "chance": float(counts.max() / counts.sum())})  # fmt: skip
            print(f"{objects} object(s)  {name:16} {right.mean():.3f}")
    names = [r["of_the_first"] for r in rows[: len(rows) // 2]]
    series = {}
    for objects in (1, 2):
        values = [r["accuracy"] for r in rows if r["objects"] == objects]
        series[f"{objects} object{'s' * (objects - 1)}"] = (
            names, *([v[k] for v in values] for k in ("value", "low", "high")))  # fmt: skip
    return {"rows": rows, "train": count}, plot.curve(
        series,
        xlabel="of the first object, or of the picture",
        ylabel="right",
        title="What a linear probe finds in z_i",
        size=(9, 4),
    )
