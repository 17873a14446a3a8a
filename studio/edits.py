"""Jobs that begin with a picture: strokes and patches (SDEdit), latents, unCLIP's manipulations."""

import functools
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

import ldm.model
import ldm.sample
import sdedit.model
import unclip.model
import unclip.sample
from common import sampler
from glide.model import tokenizer
from sdedit import sde
from studio import forming, jobs
from studio.forming import ONE, STEPS, Frames
from studio.jobs import OPENING, Job, check, load, opened
from unclip import manipulate


@dataclass(frozen=True)
class Strokes(Job):
    """A picture near strokes, by SDEdit; its row: from faithful to realistic."""

    prompt: str
    guidance_scale: float
    seed: int
    t0: float
    guide: np.ndarray  # uint8 (32, 32, 3)
    edit_mask: np.ndarray | None = None  # bool (32, 32, 1), False is kept; None: all may change

    needs = (sdedit.model.SHIPPED,)
    shown = ("prompt", "guidance_scale", "seed", "t0")
    varied = "t0"
    head = "from sdedit.model import SHIPPED, load\nfrom sdedit.sample import draw\n"
    call = """draw(config, params, guide[None], edit_masks=edit_masks,
    prompts=[{prompt}],
    t0={t0}, guidance_scale={guidance_scale},
    steps={STEPS}, seed={seed})[0]"""

    def values(self) -> list[float]:
        return sorted({0.0, 0.2, 0.35, 0.5, 0.65, 0.8, float(self.t0)})

    def given(self) -> str:
        some = self.edit_mask is not None
        mask = f"{opened(self.edit_mask[..., 0])}[None, ..., None]" if some else None
        return f"{OPENING}guide = {opened(self.guide)}\nedit_masks = {mask}\n"

    def frames(self) -> Frames:
        check(self.prompt or "a", self.guidance_scale, self.seed)
        if (self.guide == self.guide[0, 0]).all():
            raise ValueError("nothing is painted yet: paint a few strokes")
        if self.edit_mask is not None and not self.edit_mask.any():
            raise ValueError("nothing is painted or pasted on the picture: all of it would be kept")
        config, params, _ = load(sdedit.model, self.weights)
        tokens = sdedit.model.tokenize(config, [self.prompt])
        schedule, guide = sde.vp(self.t0, STEPS), self.guide[None]
        mask = np.ones((*guide.shape[:3], 1), bool) if self.edit_mask is None else self.edit_mask
        if not self.t0:
            return iter([guide])
        x, key = forming.strokes_at(schedule, guide, self.seed)
        given = params, tokens, np.float32(self.guidance_scale), schedule, guide, mask, key
        return forming.stream(forming.edited(config), x, np.arange(STEPS, -1, -1), *given)


@dataclass(frozen=True)
class Latents(Job):
    """A picture of 64 px of a caption, from noise or from a picture's noised latent."""

    prompt: str
    guidance_scale: float
    seed: int
    strength: float = 1.0  # share of the steps that are taken; 1 begins with noise alone
    image: np.ndarray | None = None  # uint8 (64, 64, 3)

    needs = ldm.sample.SHIPPED, ldm.sample.SHIPPED.with_name(ldm.model.BESIDE)
    shown = ("prompt", "guidance_scale", "seed", "strength")
    head = "from ldm.model import load\nfrom ldm.sample import SHIPPED, draw\n"

    @property
    def steps(self) -> int:
        return max(1, int(self.strength * STEPS))

    @property
    def varied(self) -> str:
        return "guidance_scale" if self.image is None else "strength"

    def values(self) -> list[float]:
        several = (0.0, 1.0, 3.0, 8.0) if self.image is None else (0.2, 0.4, 0.6, 0.8)
        return sorted({*several, float(getattr(self, self.varied))})

    @property
    def call(self) -> str:
        begin = "" if self.image is None else "\n    images=image[None], strength={strength},"
        return jobs.Guidance.call.replace("scale},", "scale}," + begin)

    def given(self) -> str:
        return "" if self.image is None else f"{OPENING}image = {opened(self.image)}\n"

    def frames(self) -> Frames:
        check(self.prompt, self.guidance_scale, self.seed)
        config, params, _ = load(ldm.model, self.weights)
        cond = ldm.model.conditions(config, [self.prompt])
        ts = ldm.sample.times(config, STEPS, self.strength)
        z, _ = forming.start(ldm.model.latent_shape(config), self.seed)
        if self.image is not None:
            with ONE:
                z = forming.latent_at(config)(params, self.image[None], ts[0], z)
        given = params, cond, np.full(1, self.guidance_scale, np.float32)
        return forming.stream(forming.latent(config), z, ts, *given)


@dataclass(frozen=True)
class Inverted(Job):
    """Begins with pictures, taken apart into z_i and x_T; a row over theta unless said."""

    images: np.ndarray  # uint8 (n, 32, 32, 3)

    needs = unclip.sample.SHIPPED, unclip.sample.SHIPPED_CLIP
    varied = "theta"
    head = """\
from unclip.manipulate import interpolate, invert, reconstruct, text_diff, vary
from unclip.model import load, open_clip
from unclip.sample import SHIPPED, SHIPPED_CLIP
"""
    setup = """\
config, params, _ = load(SHIPPED)
clip = open_clip(SHIPPED_CLIP)
z = clip.images(images)
x = invert(config, params, images, z, steps={STEPS})
"""

    def values(self) -> list[float]:
        return sorted({0.0, 0.2, 0.4, 0.6, 0.8, 1.0, float(self.theta)})

    def given(self) -> str:
        pictures = "".join(f"\n    {opened(image)}," for image in self.images)
        return f"{OPENING}images = np.stack([{pictures}\n])\n"

    def inverted(self, share: float) -> tuple[np.ndarray, np.ndarray]:
        """z_i (n, D) and x_T (n, H, W, 3) of the pictures; share: eta or theta, to be checked."""
        if not 0 <= share <= 1:
            raise ValueError(f"the slider goes from 0 to 1, not to {share}")
        each = [_inverted(self.weights, image.tobytes()) for image in self.images]
        z, x = zip(*each, strict=True)
        return np.concatenate(z), np.concatenate(x)

    def decoded(self, z: np.ndarray, x: np.ndarray, eta: float = 0.0, seed: int = 0) -> Frames:
        config, params, _ = load(unclip.model, self.weights)
        tokens, ts = tokenizer(config).encode([""]), sampler.timesteps(config.T, STEPS)
        key = jax.random.fold_in(jax.random.key(seed), 0)
        given = params, tokens, z / np.linalg.norm(z), np.float32(eta), key
        return forming.stream(forming.decoded(config), x, ts, *given)


@dataclass(frozen=True)
class Variation(Inverted):
    """Another picture that CLIP sees as the same; its row: from other noise."""

    eta: float  # 0 gives the picture back, 1 keeps only what CLIP sees
    seed: int

    shown = ("eta", "seed")
    varied = "seed"
    call = "vary(config, params, z[0], x[0], [{eta}], 1, {seed}, steps={STEPS})[0, 0]"

    values = Job.values

    def frames(self) -> Frames:
        check("a", seed=self.seed)
        return self.decoded(*self.inverted(self.eta), eta=self.eta, seed=self.seed)


@dataclass(frozen=True)
class Interpolation(Inverted):
    """What lies between two pictures; its row: from one to the other."""

    theta: float  # 0 is the first picture, 1 the second

    shown = ("theta",)
    call = "interpolate(config, params, z, x, [{theta}], steps={STEPS})[0]"

    def frames(self) -> Frames:
        z, x = (manipulate.slerp(a[:1], a[1:], self.theta) for a in self.inverted(self.theta))
        return self.decoded(z, x)


@dataclass(frozen=True)
class TextDiff(Inverted):
    """A picture changed by the difference of two captions; its row: from it to the change."""

    source: str  # what it is
    prompt: str  # what it is to become
    theta: float  # how far to turn

    shown = ("source", "prompt", "theta")
    setup = Inverted.setup + "z_t, z_t0 = clip.texts([{prompt}, {source}])\n"
    call = """reconstruct(config, params,
    text_diff(z, z_t[None], z_t0[None], {theta}), x, steps={STEPS})[0]"""

    def frames(self) -> Frames:
        check(self.prompt)
        check(self.source)
        with ONE:
            z_t, z_t0 = open_clip().texts([self.prompt, self.source])
        z, x = self.inverted(self.theta)
        return self.decoded(manipulate.text_diff(z, z_t[None], z_t0[None], self.theta), x)


@functools.cache
def open_clip() -> unclip.model.Clip:
    return unclip.model.open_clip(unclip.sample.SHIPPED_CLIP)


@functools.lru_cache(16)
def _inverted(weights: Path, picture: bytes) -> tuple[np.ndarray, np.ndarray]:
    """z_i (1, D) and x_T (1, H, W, 3), kept: only the slider moves from one picture to the next."""
    config, params, _ = load(unclip.model, weights)
    images = np.frombuffer(picture, np.uint8).reshape(1, config.size, config.size, -1)
    with ONE:
        z = open_clip().images(images)
        return z, manipulate.invert(config, params, images, z, STEPS)
