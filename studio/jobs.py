"""What the tabs draw: each job knows its pictures, its settings and the Python that makes the same.

Nothing here knows gradio. Jobs that begin with a picture are in edits.py.
"""

import base64
import functools
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from common import clip, data, plot, sampler
from common.scenes import reader
from common.scenes.captions import VOCABULARY, canonical, claims
from common.text import WordTokenizer
from glide import classes, classifier, inpaint, model, sample, search
from glide import clip as glide_clip
from studio import forming
from studio.forming import ONE, STEPS, Frames

SIZE = 32  # pixels of a picture
BLANK = np.zeros((SIZE, SIZE, 3), np.uint8)
SCENES = 1000  # that Search looks at


@functools.cache
def load(package, *what):
    """What package.load gives, read once."""
    return package.load(*what)


@dataclass(frozen=True)
class Job:
    """One picture, and a row of them in which one setting varies."""

    needs: ClassVar[tuple[Path, ...]]  # its weights, the drawing model's first
    shown: ClassVar[tuple]  # the settings, beside steps and weights
    varied: ClassVar[str]  # in the row
    head: ClassVar[str]  # Python: imports,
    setup: ClassVar[str] = "config, params, _ = load(SHIPPED)\n"  # what is loaded,
    call: ClassVar[str]  # and what is called
    steps = STEPS

    @property
    def weights(self) -> Path:
        return self.needs[0]

    @classmethod
    def missing(cls) -> list[Path]:
        return [path for path in cls.needs if not path.is_file()]

    def values(self) -> list:
        """Of what is varied, in a row."""
        return [self.seed + i for i in range(4)]

    def row(self) -> dict[str, "Job"]:
        name = self.varied.replace("_", " ")
        return {f"{name} {v:g}": replace(self, **{self.varied: v}) for v in self.values()}

    def settings(self) -> dict[str, str]:
        values = {name: str(getattr(self, name)) for name in self.shown}
        return values | {"steps": str(self.steps), "weights": self.weights.name}

    def code(self, row: bool = False) -> str:
        """Python that makes this `picture`, or the `pictures` of its row."""
        written = {name: repr(getattr(self, name)) for name in self.shown}
        written |= {self.varied: self.varied} if row else {}
        written |= {"STEPS": str(STEPS), "label": getattr(self, "label", "")}
        call = self.call.format(**written)
        loop = f"[\n    {call}\n    for {self.varied} in {self.values()}\n]"
        made = f"pictures = {loop}" if row else f"picture = {call}"
        return f"{self.head}{self.given()}\n{self.setup.format(**written)}{made}\n"

    def given(self) -> str:
        """Python of the pictures that it starts from."""
        return ""


@dataclass(frozen=True)
class Guidance(Job):
    """A picture of a caption, guided without a classifier; its row: the same noise at scales."""

    prompt: str
    guidance_scale: float
    seed: int

    needs = (sample.SHIPPED,)
    shown = ("prompt", "guidance_scale", "seed")
    varied = "guidance_scale"
    scales: ClassVar[tuple] = (0.0, 1.0, 3.0, 8.0)
    head = "from glide.model import load\nfrom glide.sample import SHIPPED, draw\n"
    call = """draw(config, params, [{prompt}],
    guidance_scale={guidance_scale},
    steps={STEPS}, seed={seed})[0]"""

    def values(self) -> list:
        return sorted({*self.scales, float(self.guidance_scale)})

    def frames(self) -> Frames:
        check(self.prompt, self.guidance_scale, self.seed)
        return self.guided()

    def guided(self, image=BLANK, keep_mask=BLANK[..., :1] > 0, guide: tuple = ()) -> Frames:
        """guide: a CLIP's (config, params, tokens)."""
        config, params, _ = load(model, self.weights)
        given = (params, model.tokenizer(config).encode([canonical(self.prompt)]),
                 np.float32(self.guidance_scale), image[None], keep_mask[None])  # fmt: skip
        x, _ = forming.start((config.size, config.size, config.channels), self.seed)
        run, ts = forming.captioned(config, *guide[:1]), sampler.timesteps(config.T, STEPS)
        return forming.stream(run, x, ts, *given, *guide[1:])


@dataclass(frozen=True)
class ClipGuidance(Guidance):
    """Guided by the gradient of a CLIP that has not seen noise."""

    needs = (sample.SHIPPED, sample.JUDGE)
    scales = (0.0, 0.5, 1.0, 2.0)
    head = """\
from glide import clip
from glide.clip_guidance import draw
from glide.model import load
from glide.sample import JUDGE, SHIPPED
"""
    setup = Job.setup + "guide = clip.load(JUDGE)[:2]\n"
    call = Guidance.call.replace("config, params", "(config, params), guide")

    def guided(self) -> Frames:
        config, params, _ = load(glide_clip, self.needs[1])
        tokens = WordTokenizer(VOCABULARY, config.text.length).encode([canonical(self.prompt)])
        return super().guided(guide=(config, params, tokens))


@dataclass(frozen=True)
class ClassifierGuidance(Guidance):
    """GLIDE without words, guided by the gradient of a classifier: one object of one colour."""

    needs = (sample.SHIPPED, classifier.SHIPPED)
    scales = (0.0, 1.0, 3.0, 10.0)
    head = """\
from glide import classifier
from glide.model import load
from glide.sample import SHIPPED
"""
    setup = "glide, judge = load(SHIPPED)[:2], classifier.load(classifier.SHIPPED)[:2]\n"
    call = """classifier.draw(glide, judge, [{label}], conditional=False,
    guidance_scale={guidance_scale}, steps={STEPS}, seed={seed})[0]"""

    @property
    def label(self) -> int:
        named = claims(self.prompt)["objects"]
        if len(named) != 1 or "colour" not in named[0]:
            raise ValueError("the classifier knows one shape and its colour: say 'a red ball'")
        return classes.CLASSES.index((named[0]["shape"], named[0]["colour"]))

    def guided(self) -> Frames:
        config, params, _ = load(model, self.needs[0])
        judge, judge_params, _ = load(classifier, self.needs[1])
        words = classifier.told(config, [classes.NULL])
        given = (params, judge_params, words, np.array([self.label]),
                 np.float32(self.guidance_scale))  # fmt: skip
        x, key = forming.start((config.size, config.size, config.channels), self.seed)
        run, ts = forming.classified(config, judge), sampler.timesteps(config.T, STEPS)
        return forming.stream(run, x, ts, *given, key)


GUIDES = {"classifier-free": Guidance, "CLIP": ClipGuidance, "classifier": ClassifierGuidance}


@dataclass(frozen=True)
class Inpaint(Guidance):
    """What a caption says, in the hole of a picture; its row: from other noise."""

    image: np.ndarray  # uint8 (32, 32, 3)
    keep_mask: np.ndarray  # bool (32, 32, 1), False is drawn anew

    needs = (inpaint.SHIPPED,)
    varied = "seed"
    head = "from glide.inpaint import SHIPPED, inpaint\nfrom glide.model import load\n"
    call = """inpaint(config, params, [{prompt}],
    image[None], keep_mask[None], guidance_scale={guidance_scale},
    steps={STEPS}, seed={seed})[0]"""

    def given(self) -> str:
        mask = f"keep_mask = {opened(self.keep_mask[..., 0])}[..., None]"
        return f"{OPENING}image = {opened(self.image)}\n{mask}\n"

    def guided(self) -> Frames:
        if self.keep_mask.all():
            raise ValueError("nothing is erased: brush over what is to be drawn anew")
        return super().guided(self.image, self.keep_mask)


@dataclass(frozen=True)
class Search(Job):
    """The scenes of the test split that CLIP finds nearest to a text."""

    query: str
    num: int
    duplicates: float

    needs = (search.SHIPPED,)

    def settings(self) -> dict[str, str]:
        return {"query": self.query, "duplicates": f"{self.duplicates:g}", "split": "test",
                "weights": search.SHIPPED.name}  # fmt: skip

    def code(self, row: bool = False) -> str:
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
        check(self.query)
        with ONE:
            config, params, scenes, embeddings = _library()
            query = clip.embed_texts(config, params, [self.query])[0]
        rows, scores = search.search(query, embeddings, self.num, self.duplicates)
        told = [search.describe(scenes["scenes"][row]) for row in rows]
        labels = [f"{score:.3f}  {text}" for score, text in zip(scores, told, strict=True)]
        return list(zip(scenes["image"][rows], labels, strict=True))


@functools.cache
def _library():
    config, params, _ = load(glide_clip, search.SHIPPED)
    scenes = data.load("scenes", "test", size=config.size)
    scenes = {name: values[:SCENES] for name, values in scenes.items()}
    return config, params, scenes, clip.embed_images(config, params, scenes["image"])


def film(frames: np.ndarray, path: str) -> str:
    """The denoising (F, H, W, 3) as an animated WebP, half of its frames."""
    chosen = np.concatenate([frames[:-1:2], frames[-1:]])
    return str(plot.animate(chosen[:, None], path, scale=192 // frames.shape[1]))


def reading(picture: np.ndarray) -> str:
    """What the reader sees in it."""
    (seen,) = reader.read(picture[None])
    if not seen["valid"]:
        return "no scene"
    objects = ", ".join(f"{o['size']} {o['colour']} {o['shape']}" for o in seen["objects"])
    return f"{objects}; {seen['background']}, {seen['style']}"


def check(prompt: str, guidance_scale: float = 1.0, seed: int = 0) -> None:
    """ValueError for what a page does not send but a program might."""
    if len(prompt) > 300:
        raise ValueError(f"the prompt has {len(prompt)} letters, at most 300 fit; shorten it")
    sample.check(sample.DrawConfig(prompt, guidance_scale=guidance_scale))
    if not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise ValueError(f"the seed must be a whole number in 0..{2**31 - 1}, not {seed}")


OPENING = """
import base64, io
import numpy as np
from PIL import Image

opened = lambda png: np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))
"""


def opened(picture: np.ndarray) -> str:
    """Python that holds the whole picture."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return f'opened("{base64.b64encode(file.getvalue()).decode()}")'
