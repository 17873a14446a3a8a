"""The studio without its page: its pictures are those of the packages, its code makes them."""

import functools
import types

import numpy as np
import pytest
from helpers import made

import common.clip
import glide.classes
import glide.classifier
import glide.clip
import glide.model
import ldm.autoencoder
import ldm.model
import ldm.presets
import ldm.sample
import sdedit.model
import unclip.model
from studio import edits, jobs

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (2, 32, 32, 3), np.uint8)
KEEP = np.ones((32, 32, 1), bool)
KEEP[8:20, 4:30] = False

GUIDANCE = jobs.Guidance("a red ball", 2.0, 7)
INPAINT = jobs.Inpaint("a red ball", 3.0, 7, PICTURES[0], KEEP)
STROKES = edits.Strokes("a red ball", 3.0, 7, 0.4, PICTURES[0])
JOBS = {
    "guidance": GUIDANCE,
    "clip": jobs.ClipGuidance("a red ball", 0.5, 7),
    "classifier": jobs.ClassifierGuidance("a red ball", 3.0, 7),
    "inpaint": INPAINT,
    "strokes": STROKES,
    "patch": edits.Strokes("", 3.0, 7, 0.4, PICTURES[0], ~KEEP),
    "latents": edits.Latents("a red ball", 3.0, 7),
    "img2img": edits.Latents("a red ball", 3.0, 7, 0.6, PICTURES[0]),
    "variation": edits.Variation(PICTURES[:1], 0.5, 7),
    "interpolation": edits.Interpolation(PICTURES, 0.3),
    "text diff": edits.TextDiff(PICTURES[:1], "a red ball", "a blue ball", 0.4),
}


@pytest.fixture
def tiny(monkeypatch):
    """Tiny networks in place of the shipped weights, for the studio and for the code it shows."""
    clip_config = common.clip.TINY
    decoder = unclip.model.from_glide(glide.model.TINY, dim=clip_config.dim)

    @functools.cache
    def build(init, config):
        return made(lambda key: init(config, key))

    def give(package, config, init=None):
        def load(path):
            wanted = config(path) if callable(config) else config
            return wanted, build(init or package.init_params, wanted), {"digest": ""}

        monkeypatch.setattr(package, "load", load)

    def glide_of(path):
        name = "tiny_inpaint" if path == jobs.Inpaint.needs[0] else "tiny"
        return glide.model.PRESETS[name]

    give(glide.model, glide_of)
    give(glide.clip, clip_config, common.clip.init_params)
    give(glide.classes, glide.classes.PRESETS["tiny"])
    give(glide.classifier, glide.classifier.PRESETS["tiny"])
    give(sdedit.model, sdedit.model.TINY)
    give(unclip.model, decoder)
    first = build(ldm.autoencoder.init_params, ldm.presets.TINY_KL)
    whole = build(ldm.model.init_params, ldm.presets.TINY) | {"first_stage": first}
    monkeypatch.setattr(ldm.model, "load", lambda path: (ldm.presets.TINY, whole, {}))
    clip = unclip.model.Clip(clip_config, build(common.clip.init_params, clip_config), "")
    monkeypatch.setattr(unclip.model, "open_clip", lambda path: clip)
    caches = jobs.load, edits.open_clip, edits._inverted
    [cache.cache_clear() for cache in caches]
    yield
    [cache.cache_clear() for cache in caches]


def last(job):
    return np.concatenate(list(job.frames()))


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_the_code_that_is_shown_makes_the_picture_that_was_watched(name, tiny):
    job, shown = JOBS[name], {}
    frames = last(job).astype(int)
    exec(job.code(), shown)
    height = frames.shape[1]
    np.testing.assert_allclose(frames[-1][:, :height], shown["picture"], atol=1)
    assert len(frames) == (10 if name == "classifier" else job.steps)
    if name in ("inpaint", "patch"):
        np.testing.assert_array_equal(frames[-1][KEEP[..., 0]], PICTURES[0][KEEP[..., 0]])
    assert (frames.shape[2] == 2 * height) == isinstance(job, edits.Latents)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["guidance", "img2img", "variation"])
def test_the_code_of_a_row_makes_the_pictures_of_the_row(name, tiny):
    row, shown = JOBS[name].row(), {}
    exec(JOBS[name].code(row=True), shown)
    assert len(row) >= 4 and len(shown["pictures"]) == len(row)
    for job, picture in zip(row.values(), shown["pictures"], strict=True):
        np.testing.assert_allclose(last(job)[-1][:, :32].astype(int), picture, atol=1)


@pytest.mark.parametrize("name", JOBS)
def test_settings_name_all_that_the_picture_depends_on_but_pictures(name):
    job = JOBS[name]
    own = {k for k, v in vars(job).items() if not isinstance(v, np.ndarray | types.NoneType)}
    assert own <= set(job.settings()) and {"steps", "weights"} <= set(job.settings())


@pytest.mark.parametrize(
    "job, line",
    [
        (jobs.Guidance(" ", 3.0, 0), "the prompt is empty"),
        (jobs.Guidance("a red dragon", 3.0, 0), "unknown word 'dragon'"),
        (jobs.Guidance("red " * 40, 3.0, 0), "at most 23 fit"),
        (jobs.Guidance("x" * 10_000, 3.0, 0), "at most 300 fit"),
        (jobs.Guidance("a red ball", float("nan"), 0), "finite"),
        (jobs.Guidance("a red ball", 3.0, None), "the seed must be"),
        (jobs.ClassifierGuidance("a red ball and a blue cube", 3.0, 0), "one shape and its colour"),
        (jobs.Inpaint("a red ball", 3.0, 0, PICTURES[0], KEEP | True), "nothing is erased"),
        (edits.Strokes("", 3.0, 0, 0.5, 0 * PICTURES[0]), "nothing is painted"),
        (edits.Strokes("", 3.0, 0, 0.5, PICTURES[0], KEEP & False), "nothing is painted or pasted"),
        (edits.Strokes("a red ball", 3.0, 0, 1.5, PICTURES[0]), "t0 must be in 0..1"),
        (edits.Latents("a red ball", 3.0, 0, 1.5), "strength must lie in 0..1"),
        (edits.Latents("a red dragon", 3.0, 0), "unknown word 'dragon'"),
        (edits.Variation(PICTURES[:1], 2.0, 0), "from 0 to 1"),
        (edits.Variation(PICTURES[:1], 0.5, -1), "the seed must be"),
        (edits.TextDiff(PICTURES[:1], "a red ball", "a red ball", 0.5), "nothing is to be changed"),
    ],
)
def test_a_wrong_job_is_refused_in_one_line(job, line, tiny):
    with pytest.raises(ValueError, match=line) as error:
        list(job.frames())
    assert "\n" not in str(error.value)
