"""SDEdit on real pictures: a digit from a few strokes, and patches of photographs."""

import numpy as np
from PIL import Image, ImageDraw

from common import metrics, plot
from sdedit import sde, train
from sdedit.guides import strokes
from sdedit.measure import World, claim, realism_and_distance
from sdedit.model import load
from sdedit.sample import draw

# Strokes of 0..9 from point to point of a 3 x 5 lattice, x then y.
STROKES = ("00 20 24 04 00", "10 14", "00 20 22 02 04 24", "00 20 22 02 22 24 04", "00 02 22 20 24",
           "20 00 02 22 24 04", "20 00 04 24 22 02", "00 20 14", "00 20 24 04 00 02 22",
           "22 02 00 20 24 04")  # fmt: skip
T0S = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1)
VE_T0S = (0.2, 0.3, 0.4, 0.5, 0.6, 1)  # below, sigma is that of a printed pixel
TRAINING = {"digits": 1000, "digits_ve": 1000, "photos": 800}  # steps of 32 pictures


def digit_strokes() -> np.ndarray:
    """The ten digits as lines of one pixel and one grey, uint8 (10, 8, 8, 3)."""
    drawn = []
    for points in STROKES:
        image = Image.new("RGB", (8, 8))
        at = [(round(2 + 1.75 * int(x)), round(0.5 + 1.5 * int(y))) for x, y in points.split()]
        ImageDraw.Draw(image).line(at, fill=(220, 220, 220))
        drawn.append(np.asarray(image))
    return np.stack(drawn)


def network(w: World, name: str) -> tuple:
    """(config, params) of a small network of real pictures, trained if it is not there yet."""
    out = w.c.runs / name
    if not (out / "weights.safetensors").exists():
        train.main(train.TrainConfig(
            preset=name, dataset=name.removesuffix("_ve"), out=out, steps=TRAINING[name],
            seed=w.c.seed, batch_size=32, sample_every=TRAINING[name],
            save_every=TRAINING[name],
        ))  # fmt: skip
    return load(out / "weights.safetensors")[:2]


def swept(w: World, name: str, guides: np.ndarray, real: np.ndarray, judged=lambda x: {}) -> tuple:
    """(rows, claims, pictures of each t0) of guides, over T0S by VP."""
    config, params = network(w, name)
    rows, films, features = {}, [], metrics.scene_features(real)
    for t0 in T0S:
        images = draw(config, params, guides, t0=t0, steps=w.c.steps, seed=w.c.seed)
        found = realism_and_distance(images, guides, features) | judged(images)
        rows[f"{t0:g}"] = {"t0": t0, **found}
        films.append(images)
    claims = [claim("KID falls from the strokes to t0 = 0.5", "kid", rows, "0", "0.5"),
              claim("L2 rises from t0 = 0.2 to 1", "l2", rows, "1", "0.2")]  # fmt: skip
    return list(rows.values()), claims, films


def drawn_digits(w: World) -> tuple:
    """(guides, real test digits with labels, which digit each guide is, a judge's share right)."""
    from sklearn.svm import SVC

    known, test = (train.pictures("digits", split, 8) for split in ("train", "test"))
    flat = lambda images: images[..., 0].reshape(len(images), -1) / 255.0  # noqa: E731
    judge = SVC().fit(flat(known["image"]), known["label"])
    wanted = np.arange(max(20, w.c.num)) % 10

    def right(images, labels=wanted):
        return metrics.proportion(int((judge.predict(flat(images)) == labels).sum()), len(labels))

    return digit_strokes()[wanted], test, right


def digits(w: World):
    """Ten drawn digits, num / 10 times each; a classifier of real ones says what it sees."""
    guides, test, right = drawn_digits(w)
    judged = lambda images: {"read": right(images)}  # noqa: E731
    rows, claims, films = swept(w, "digits", guides, test["image"], judged)
    rows.append({"pictures": "real test digits", "read": right(test["image"], test["label"])})
    labels = ["strokes", *(f"t0 {t0:g}" for t0 in T0S[1:]), "real"]
    real = test["image"][[int(np.argmax(test["label"] == digit)) for digit in range(10)]]
    shown = np.concatenate([*(film[:10] for film in films), real])
    return rows, claims, plot.grid(shown, columns=10, row_labels=labels, scale=6)


def objective(w: World):
    """VE's algorithm driven by a network of VE's own objective, and by the VP one, on digits."""
    guides, test, right = drawn_digits(w)
    rows, films, features = {}, [guides[:10]], metrics.scene_features(test["image"])
    for name in ("digits", "digits_ve"):
        config, params = network(w, name)
        for t0 in VE_T0S:
            images = draw(config, params, guides, t0=t0, sde_name="ve", steps=w.c.steps,
                          seed=w.c.seed)  # fmt: skip
            rows[f"{name} {t0:g}"] = {
                "network": name, "t0": t0, "sigma": sde.sigma_at(sde.ve(1, 1000), t0),
                **realism_and_distance(images, guides, features), "read": right(images),
            }  # fmt: skip
            films.append(images[:10])
    claims = [claim(f"KID is lower by the network trained for VE, t0 = {t0:g}", "kid", rows,
                    f"digits {t0:g}", f"digits_ve {t0:g}") for t0 in VE_T0S]  # fmt: skip
    labels = ["strokes", *(f"{kind}, t0 {t0:g}" for kind in ("VP", "VE") for t0 in VE_T0S)]
    return list(rows.values()), claims, plot.grid(np.concatenate(films), columns=10,
                                                  row_labels=labels, scale=6)  # fmt: skip


def photos(w: World):
    """Stroke paintings of patches from parts of the photographs that were not trained on."""
    images = train.pictures("photos", "test", 32)["image"]
    images = images[np.random.default_rng(w.c.seed).permutation(len(images))]
    truth, others = images[: w.c.num], images[w.c.num :][:512]
    rows, claims, films = swept(w, "photos", strokes(truth), others)
    labels = ["patch", "strokes", *(f"t0 {t0:g}" for t0 in T0S[1:])]
    shown = np.concatenate([truth[:8], *(film[:8] for film in films)])
    return rows, claims, plot.grid(shown, columns=len(truth[:8]), row_labels=labels, scale=2)
