"""What the tabs draw: each job knows its pictures, its settings and the Python that makes the same.

Nothing here knows gradio.
"""

import base64
import functools
import io
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from common import clip, data, plot
from common.scenes import reader
from glide import clip as glide_clip
from glide import inpaint, sample, search
from sdedit import sample as sdedit
from studio.forming import ONE, STEPS, Frames, frames

SIZE = 32  # pixels of a picture
SCENES = 1000  # that Search looks at


@dataclass(frozen=True)
class Guidance:
    """A picture of a caption; its row: the same noise at other scales."""

    prompt: str
    guidance_scale: float
    seed: int

    weights = sample.SHIPPED
    shown = ("prompt", "guidance_scale", "seed")  # the settings, beside steps and weights
    varied = "guidance_scale"  # in the row
    head = """\
from glide.model import load
from glide.sample import SHIPPED, draw
"""
    call = "draw(config, params, [{prompt}],\n    guidance_scale={guidance_scale},"

    def values(self) -> list:
        """Of what is varied."""
        return sorted({0.0, 1.0, 3.0, 8.0, float(self.guidance_scale)})

    def row(self) -> dict[str, "Guidance"]:
        name = self.varied.replace("_", " ")
        return {f"{name} {v:g}": replace(self, **{self.varied: v}) for v in self.values()}

    def settings(self) -> dict[str, str]:
        values = {name: str(getattr(self, name)) for name in self.shown}
        return values | {"steps": str(STEPS), "weights": self.weights.name}

    def code(self, row: bool = False) -> str:
        """Python that makes this `picture`, or the `pictures` of its row."""
        written = {name: repr(getattr(self, name)) for name in self.shown}
        written |= {"seed": str(self.seed)} | ({self.varied: self.varied} if row else {})
        call = self.call.format(**written)
        call += f"\n    steps={STEPS}, seed={written['seed']})[0]"
        loop = f"[\n    {call}\n    for {self.varied} in {self.values()}\n]"
        made = f"pictures = {loop}" if row else f"picture = {call}"
        return f"{self.head}{self.given()}\nconfig, params, _ = load(SHIPPED)\n{made}\n"

    def given(self) -> str:
        """Python of the pictures that it starts from."""
        return ""

    def frames(self) -> Frames:
        blank = np.zeros((SIZE, SIZE, 3), np.uint8)
        return self.glide(blank, blank[..., :1] > 0)

    def glide(self, image: np.ndarray, keep_mask: np.ndarray) -> Frames:
        _check(self.prompt, self.guidance_scale, self.seed)
        settings = self.prompt, self.guidance_scale, self.seed
        return frames(self.weights, *settings, image, keep_mask)


@dataclass(frozen=True)
class Inpaint(Guidance):
    """What a caption says, in the hole of a picture; its row: from other noise."""

    image: np.ndarray  # uint8 (32, 32, 3)
    keep_mask: np.ndarray  # bool (32, 32, 1), False is drawn anew

    weights = inpaint.SHIPPED
    varied = "seed"
    head = """\
from glide.inpaint import SHIPPED, inpaint
from glide.model import load
"""
    call = """inpaint(config, params, [{prompt}],
    image[None], keep_mask[None], guidance_scale={guidance_scale},"""

    def values(self) -> list[int]:
        return [self.seed + i for i in range(4)]

    def given(self) -> str:
        mask = f"keep_mask = {_opened(self.keep_mask[..., 0])}[..., None]"
        return f"{_OPENING}image = {_opened(self.image)}\n{mask}\n"

    def frames(self) -> Frames:
        if self.keep_mask.all():
            raise ValueError("nothing is erased: brush over what is to be drawn anew")
        return self.glide(self.image, self.keep_mask)


@dataclass(frozen=True)
class Strokes(Guidance):
    """A picture near strokes, by SDEdit; its row: from faithful to realistic."""

    t0: float
    guide: np.ndarray  # uint8 (32, 32, 3)

    weights = sdedit.SHIPPED
    shown = ("prompt", "guidance_scale", "seed", "t0")
    varied = "t0"
    head = """\
from sdedit.model import SHIPPED, load
from sdedit.sample import draw
"""
    call = """draw(config, params, guide[None],
    prompts=[{prompt}],
    t0={t0}, guidance_scale={guidance_scale},"""

    def values(self) -> list[float]:
        return sorted({0.0, 0.2, 0.35, 0.5, 0.65, 0.8, float(self.t0)})

    def given(self) -> str:
        return f"{_OPENING}guide = {_opened(self.guide)}\n"

    def frames(self) -> Frames:
        _check(self.prompt or "a", self.guidance_scale, self.seed)
        if (self.guide == self.guide[0, 0]).all():
            raise ValueError("nothing is painted yet: paint a few strokes")
        config, params, _ = _strokes_weights(self.weights)
        with ONE:
            picture = sdedit.draw(config, params, self.guide[None], t0=self.t0, steps=STEPS,
                                  prompts=[self.prompt], guidance_scale=self.guidance_scale,
                                  seed=self.seed)  # fmt: skip
        yield picture


@dataclass(frozen=True)
class Search:
    """The scenes of the test split that CLIP finds nearest to a text."""

    query: str
    num: int
    duplicates: float

    def settings(self) -> dict[str, str]:
        return {"query": self.query, "duplicates": f"{self.duplicates:g}", "split": "test",
                "weights": search.SHIPPED.name}  # fmt: skip

    def code(self) -> str:
        return f"""\
from common import clip, data
from glide.clip import load
from glide.search import SHIPPED, search

config, params, _ = load(SHIPPED)
images = data.load("scenes", "test", size=config.size)["image"][:{SCENES}]
query = clip.embed_texts(config, params, [{self.query!r}])[0]
embeddings = clip.embed_images(config, params, images)
rows, scores = search(query, embeddings, {self.num}, {self.duplicates!r})
pictures = images[rows]
"""

    def hits(self) -> list[tuple[np.ndarray, str]]:
        """(picture, its score and what there is), the best first."""
        _check(self.query, 1, 0)
        with ONE:
            config, params, scenes, embeddings = _library()
            query = clip.embed_texts(config, params, [self.query])[0]
        rows, scores = search.search(query, embeddings, self.num, self.duplicates)
        told = [search.describe(scenes["scenes"][row]) for row in rows]
        labels = [f"{score:.3f}  {text}" for score, text in zip(scores, told, strict=True)]
        return list(zip(scenes["image"][rows], labels, strict=True))


def film(frames: np.ndarray, path: str) -> str:
    """The denoising (F, H, W, 3) as an animated WebP, half of its frames."""
    chosen = np.concatenate([frames[:-1:2], frames[-1:]])
    return str(plot.animate(chosen[:, None], path, scale=6))


def reading(picture: np.ndarray) -> str:
    """What the reader sees in it."""
    (seen,) = reader.read(picture[None])
    if not seen["valid"]:
        return "no scene"
    objects = ", ".join(f"{o['size']} {o['colour']} {o['shape']}" for o in seen["objects"])
    return f"{objects}; {seen['background']}, {seen['style']}"


def warm_up() -> None:
    """Compile what the tabs need, the first tab first; it stays on disk for the next start."""
    blank = np.zeros((SIZE, SIZE, 3), np.uint8)
    hole = np.zeros((SIZE, SIZE, 1), bool)
    guide = np.arange(blank.size, dtype=np.uint8).reshape(blank.shape)
    jobs = (Guidance("a red ball", 3.0, 0), Inpaint("a red ball", 3.0, 0, blank, hole),
                Strokes("a red ball", 3.0, 0, 0.5, guide))  # fmt: skip
    for job in jobs:
        next(job.frames())
    reader.read(blank[None])


_strokes_weights = functools.cache(sdedit.load)  # the same file, as SDEdit's network


@functools.cache
def _library():
    config, params, _ = glide_clip.load(search.SHIPPED)
    scenes = data.load("scenes", "test", size=config.size)
    scenes = {name: values[:SCENES] for name, values in scenes.items()}
    return config, params, scenes, clip.embed_images(config, params, scenes["image"])


def _check(prompt: str, guidance_scale: float, seed: int) -> None:
    """ValueError for what a page does not send but a program might."""
    if len(prompt) > 300:
        raise ValueError(f"the prompt has {len(prompt)} letters, at most 300 fit; shorten it")
    sample.check(sample.DrawConfig(prompt, guidance_scale=guidance_scale))
    if not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise ValueError(f"the seed must be a whole number in 0..{2**31 - 1}, not {seed}")


_OPENING = """
import base64, io
import numpy as np
from PIL import Image

opened = lambda png: np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))
"""


def _opened(picture: np.ndarray) -> str:
    """Python that holds the whole picture."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return f'opened("{base64.b64encode(file.getvalue()).decode()}")'
