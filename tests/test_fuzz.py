"""Whatever is thrown at a reader, it reads it or refuses it in one line: nothing else is raised."""

import contextlib
import io
import json
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

pytest.importorskip("hypothesis")
from hypothesis import example, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import glide.sample  # noqa: E402
from common import checkpoint, command, devices, pictures, run, sampler  # noqa: E402
from common.scenes import __main__ as scenes  # noqa: E402
from common.scenes.captions import VOCABULARY, canonical, claims  # noqa: E402
from common.tensorfile import load_tensors  # noqa: E402
from common.text import WordTokenizer  # noqa: E402
from glide.model import TINY  # noqa: E402

WORDS = WordTokenizer(VOCABULARY, 24)


def fuzz(examples):
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None)


def told(call, *args, kind=ValueError):
    """call(*args), or None if it was refused by an error of that kind, in one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return call(*args)
    except kind as error:
        assert str(error) and "\n" not in str(error)
        return None


# ---- prompts ----

NEAR = [*VOCABULARY, "gray", "TINY", "a", ",", "\n", "ball."]
near = st.lists(st.sampled_from(NEAR), max_size=30)


@fuzz(200)
@given(st.one_of(st.text(max_size=60), near.map(" ".join)))
def test_any_prompt_is_read_or_refused(text):
    words = canonical(text)
    assert canonical(words) == words
    tokens = told(WORDS.encode, [words])
    assert tokens is None or (tokens.shape == (1, 24) and 0 <= tokens.min() <= tokens.max() < 99)
    told(WORDS.encode, [text])
    found = told(claims, text)
    assert found is None or 1 <= len(found["objects"]) <= 2


# ---- pictures and masks ----


def kinds():
    """One small file of each kind, in memory."""
    rgb = np.arange(32 * 32 * 3, dtype=np.uint32).reshape(32, 32, 3).astype(np.uint8)
    deep = Image.fromarray((np.arange(32 * 32, dtype=np.uint16) * 60).reshape(32, 32))
    rgba = Image.fromarray(np.dstack([rgb, rgb[..., :1]]))
    image = Image.fromarray(rgb)
    for name, picture in (("PNG", image), ("PNG", deep), ("PNG", rgba), ("JPEG", image),
                          ("GIF", image), ("WEBP", image), ("BMP", image), ("TIFF", image),
                          ("TIFF", deep), ("PPM", image), ("TGA", image), ("ICO", rgba),
                          ("PNG", image.convert("1")), ("PNG", image.quantize(8))):  # fmt: skip
        file = io.BytesIO()
        picture.save(file, name)
        yield file.getvalue()


FILES = list(kinds())


def bomb(side):
    """A PNG of a few kilobytes that says it has side x side pixels, and has the first millions."""

    def chunk(kind, data):
        data = kind + data
        return struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(min((side // 8 + 1) * side, 1 << 24)), 9)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows)
            + chunk(b"IEND", b""))  # fmt: skip


@st.composite
def damaged(draw, files):
    """A file with some bytes changed, put in or cut off."""
    data = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        data[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(data[: draw(st.one_of(st.none(), st.integers(0, len(data))))])


@fuzz(300)
@given(st.one_of(damaged(FILES), st.binary(max_size=200)))
@example(b"")
@example(bomb(30_000))
@example(bomb(2**31 - 1))
def test_any_file_is_a_picture_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "picture"
    path.write_bytes(data)
    image = told(pictures.open_picture, path)
    assert image is None or (image.dtype == np.uint8 and image.shape[2:] == (4,))
    image = told(pictures.open_picture, path, 8, True)
    assert image is None or image.shape == (8, 8, 4)
    mask = told(pictures.open_mask, path, 8, True)
    assert mask is None or (mask.dtype == bool and mask.shape == (8, 8, 1))
    image = told(scenes._open, path, kind=scenes.WrongInput)
    assert image is None or image.shape == (32, 32, 3)


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path):
    for side in (5_000, 30_000, 2**31 - 1):
        (tmp_path / "bomb.png").write_bytes(bomb(side))
        for call, kind in ((pictures.open_picture, ValueError), (scenes._open, scenes.WrongInput)):
            with pytest.raises(kind, match="bomb.png") as error:
                call(tmp_path / "bomb.png")
            assert "\n" not in str(error.value)


# ---- weights ----


def weights():
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    yield len(header).to_bytes(8, "little") + header + bytes(8)
    yield safetensors.numpy.save({"a": np.ones(3, np.float32)}, {"digest": '"0"', "x": "1"})
    for word in (b"posix\nsystem\n", b"torch._utils\n_rebuild_tensor_v2\n"):
        for start in (b"", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."):
            yield start + b"\x80\x02c" + word + b"(X\x02\x00\x00\x00lstR." + bytes(20)


WEIGHTS = list(weights())


@fuzz(200)
@given(st.one_of(damaged(WEIGHTS), st.binary(max_size=100)))
def test_any_file_is_weights_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "weights.pt"
    path.write_bytes(data)
    told(checkpoint.load_weights, path, kind=checkpoint.CheckpointError)
    told(load_tensors, path, kind=checkpoint.CheckpointError)


# ---- numbers on command lines ----

WILD = ["nan", "inf", "-inf", "1e999", "1e39", "-1", "0", "", "0x10", "1_0", "1e3", "9" * 5000,
        str(2**31), str(2**32), str(2**63), str(2**64), "-" + "9" * 30, "2.5"]  # fmt: skip
numbers = st.one_of(st.sampled_from(WILD), st.integers(-(10**25), 10**25).map(str),
                    st.integers(-3, 70).map(str), st.floats().map(repr))  # fmt: skip


@dataclass(frozen=True)
class Other:
    x: int = 0


def outcome(commands, *argv):
    """The exit code of a command; what it said was a line (what tyro cannot parse, some lines)."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            command.run("fuzz", commands, list(argv))
        return 0
    except SystemExit as stop:
        said = said.getvalue().strip()
        assert said and ("\n" not in said or not said.startswith("fuzz:")), said
        return stop.code


def wild_options(names):
    return st.dictionaries(st.sampled_from(names), numbers, min_size=1, max_size=2)


def flags(options):
    return [f"--{k.replace('_', '-')}={v}" for k, v in options.items()]


TRAIN = ["seed", "steps", "batch_size", "lr", "warmup", "ema", "log_every", "sample_every",
         "save_every", "hosts", "host"]  # fmt: skip


@fuzz(50)
@given(wild_options(TRAIN))
def test_any_number_for_a_training_is_taken_or_refused(options):
    def main(c):
        run.start(c)
        jax.random.key(c.seed)
        assert np.isfinite(float(run.learning_rate(c)(1)))
        assert 1 % c.log_every + 1 % c.sample_every + 1 % c.save_every >= 0
        assert c.steps >= 1 and 0 <= c.ema < 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "start", lambda *args: None)
        commands = {"train": (run.RunConfig, main), "other": (Other, print)}
        assert outcome(commands, "train", *flags(options)) in (0, 2)


@fuzz(50)
@given(wild_options(["guidance_scale", "num", "steps", "seed", "size", "best_of"]))
def test_any_number_for_a_drawing_is_taken_or_refused(options):
    def draw(config, params, prompts, *, guidance_scale, steps, seed, **_):
        jax.random.key(seed)
        assert np.isfinite(np.float32(guidance_scale)) and len(prompts) <= 4096
        sampler.timesteps(config.T, steps)
        return np.zeros((len(prompts), 1, 1, 3), np.uint8)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "start", lambda *args: None)
        patch.setattr(glide.sample, "draw", draw)
        patch.setattr(glide.sample, "open_weights", lambda *args: (TINY, {}, None))
        patch.setattr(glide.sample, "JUDGE", Path("none"))
        patch.setattr(glide.sample, "save", lambda *args: None)
        patch.setattr(command, "check_out", lambda out: True)
        patch.setattr(glide.sample.glide_clip, "load", lambda path: ({}, {}))
        patch.setattr(glide.sample.clip_guidance, "rerank", lambda a, b, groups, p: (groups,))
        commands = {"sample": (glide.sample.SampleConfig, glide.sample.main), "x": (Other, print)}
        argv = ["sample", "--prompt", "a red ball", *flags(options)]
        assert outcome(commands, *argv) in (0, 2)


@fuzz(30)
@given(st.sampled_from(["--num", "--seed"]), numbers)
def test_any_number_for_the_scenes_is_taken_or_refused(option, number):
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.setattr(scenes, "draw_scene", lambda rng: None)
        patch.setattr(scenes, "caption", lambda scene, rng: "")
        patch.setattr(scenes, "render", lambda scenes, size: np.zeros((len(scenes), 1, 1, 3)))
        patch.setattr(scenes, "sheet", lambda images, captions: Image.new("1", (1, 1)))
        patch.setattr(Image.Image, "save", lambda *args: None)
        try:
            assert scenes.main(["show", f"{option}={number}"]) in (0, 2)
        except SystemExit as stop:
            assert stop.code == 2
