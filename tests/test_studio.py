"""The studio: its pictures are those of the packages, its page works in a browser and stays up."""

import functools
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import made
from PIL import Image

import glide.inpaint
import glide.model
import glide.sample
import sdedit.model
from common.scenes.captions import agrees, claims
from common.scenes.reader import read
from studio import forming, jobs

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (32, 32, 3), np.uint8)
KEEP = np.ones((32, 32, 1), bool)
KEEP[8:20, 4:30] = False

GUIDANCE = jobs.Guidance("a red ball", 2.0, 7)
INPAINT = jobs.Inpaint("a red ball", 3.0, 7, PICTURE, KEEP)
STROKES = jobs.Strokes("a red ball", 3.0, 7, 0.4, PICTURE)


@pytest.fixture
def tiny(monkeypatch):
    """Tiny networks in place of the shipped weights, for the studio and for the code it shows."""

    @functools.cache
    def load(path):
        name = "tiny_inpaint" if path == glide.inpaint.SHIPPED else "tiny"
        config = glide.model.PRESETS[name]
        return config, made(lambda key: glide.model.init_params(config, key)), {}

    @functools.cache
    def load_strokes(path):
        return (
            sdedit.model.TINY,
            made(lambda key: sdedit.model.init_params(sdedit.model.TINY, key)),
            {},
        )

    monkeypatch.setattr(forming, "weights", load)
    monkeypatch.setattr(glide.model, "load", load)
    monkeypatch.setattr(jobs, "_strokes_weights", load_strokes)
    monkeypatch.setattr(sdedit.model, "load", load_strokes)


@pytest.mark.parametrize("job", [GUIDANCE, INPAINT, STROKES], ids=lambda j: type(j).__name__)
def test_the_code_that_is_shown_makes_the_picture_that_was_watched(job, tiny):
    frames = np.concatenate(list(job.frames())).astype(int)
    shown = {}
    exec(job.code(), shown)
    np.testing.assert_allclose(frames[-1], shown["picture"], atol=1)
    assert len(frames) == (1 if job is STROKES else 50)
    if job is INPAINT:
        np.testing.assert_array_equal(frames[-1][KEEP[..., 0]], PICTURE[KEEP[..., 0]])


@pytest.mark.parametrize("job", [GUIDANCE, INPAINT, STROKES], ids=lambda j: type(j).__name__)
def test_the_code_of_a_row_asks_for_the_settings_of_the_row(job):
    asked, loop = [], job.code(row=True)
    head, body = loop[: loop.index("config, params")], loop[loop.index("pictures = ") :]
    shown = {}
    exec(head, shown)
    fake = lambda *_, **settings: [asked.append(settings)]  # noqa: E731
    exec(body, shown | {"config": 0, "params": 0, "draw": fake, "inpaint": fake})
    for name in ("guidance_scale", "seed"):
        assert [a[name] for a in asked] == [getattr(j, name) for j in job.row().values()]
    assert len(asked) >= 4 and len({str(a) for a in asked}) == len(asked)


@pytest.mark.parametrize(
    "job, line",
    [
        (jobs.Guidance(" ", 3.0, 0), "the prompt is empty"),
        (jobs.Guidance("a red dragon", 3.0, 0), "unknown word 'dragon'"),
        (jobs.Guidance("red " * 40, 3.0, 0), "at most 23 fit"),
        (jobs.Guidance("x" * 10_000, 3.0, 0), "at most 300 fit"),
        (jobs.Guidance("a red ball", float("nan"), 0), "finite"),
        (jobs.Guidance("a red ball", 3.0, None), "the seed must be"),
        (jobs.Inpaint("a red ball", 3.0, 0, PICTURE, KEEP | True), "nothing is erased"),
        (jobs.Strokes("", 3.0, 0, 0.5, 0 * PICTURE), "nothing is painted"),
        (jobs.Strokes("a red ball", 3.0, 0, 1.5, PICTURE), "t0 must be in 0..1"),
    ],
)
def test_a_wrong_job_is_refused_in_one_line(job, line):
    with pytest.raises(ValueError, match=line) as error:
        list(job.frames())
    assert "\n" not in str(error.value)


# In a browser. What follows needs the extra `studio`, playwright and a chromium.


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def address():
    """The studio as `python -m studio` serves it."""
    pytest.importorskip("gradio")
    pytest.importorskip("playwright")
    if not CHROMIUM:
        pytest.skip("no chromium")
    port = free_port()
    # As a user has it, without the tests' compiler flags; but compiled programs are kept.
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    plain["JAX_COMPILATION_CACHE_DIR"] = os.environ["JAX_COMPILATION_CACHE_DIR"]
    program = [sys.executable, "-m", "studio", "--port", str(port)]
    server = subprocess.Popen(program, cwd=ROOT, env=plain, stdout=subprocess.DEVNULL)
    try:
        for _ in range(240):
            assert server.poll() is None, "the studio ended"
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
        assert server.poll() is None, "the studio ended"
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        yield p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture
def page(address, browser):
    """A fresh page; no request of it leaves the machine."""
    page, asked = browser.new_page(viewport={"width": 1280, "height": 1000}), []
    page.on("request", lambda request: asked.append(request.url))
    page.set_default_timeout(240_000)  # where others compute, too
    page.goto(address)
    page.get_by_role("tab").first.wait_for()
    yield page
    page.close()
    away = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert asked and not away


def seen(page, selector):
    return page.locator(selector).locator("visible=true")


def press(page, name):
    page.get_by_role("button", name=name, exact=True).locator("visible=true").click()


def drawn(page):
    """Wait for the end; the picture that the page offers, at 32 px, and the settings in it."""
    seen(page, ".said").filter(has_text="the reader sees").first.wait_for()
    source = seen(page, ".picture img").first.get_attribute("src")
    image = Image.open(io.BytesIO(page.request.get(source).body()))
    small = image.convert("RGB").resize((32, 32), Image.Resampling.NEAREST)
    return np.asarray(small), image.text


def choose(page, tab, example):
    """Go to a tab and click on one of its pictures to try."""
    page.get_by_role("tab", name=tab).click()
    page.wait_for_timeout(3000)
    seen(page, ".try .thumbnail-item").nth(example).click()
    page.wait_for_timeout(5000)


def scribble(page, left, top, right, bottom):
    """Paint a rectangle of the canvas, in pixels from its middle, with one long stroke."""
    box = seen(page, "canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x + left, y + top)
    page.mouse.down()
    for i, down in enumerate(range(top, bottom, 12)):
        page.mouse.move(x + (left if i % 2 else right), y + down, steps=6)
    page.mouse.up()
    page.wait_for_timeout(1000)


def test_a_caption_becomes_the_picture_that_it_names(page):
    prompt = "a red ball"
    seen(page, "textarea").first.fill(prompt)
    page.evaluate("""() => { window.sources = new Set(); new MutationObserver(() =>
        document.querySelectorAll('.picture img').forEach(i => window.sources.add(i.src))
        ).observe(document.body, {subtree: true, childList: true, attributes: true}) }""")
    press(page, "Draw")
    picture, settings = drawn(page)
    assert agrees(claims(prompt), read(picture[None])[0])["shape_colour"]
    assert settings["prompt"] == prompt and settings["steps"] == "50"
    assert page.evaluate("window.sources.size") >= 4  # it was seen forming
    seen(page, "text=Show me the code").first.click()
    seen(page, ".cm-content").filter(has_text=prompt).first.wait_for()


def test_an_unknown_word_is_named_and_the_next_picture_comes(page):
    seen(page, "textarea").first.fill("a red dragon")
    press(page, "Draw")
    page.get_by_text("unknown word 'dragon'").first.wait_for()
    seen(page, "textarea").first.fill("a red ball")
    press(page, "Draw")
    assert drawn(page)[1]["prompt"] == "a red ball"


def test_a_brushed_hole_is_drawn_anew_and_the_rest_is_kept(page):
    choose(page, "Inpaint", 2)  # a pink ring below, with a hole over it
    scribble(page, -60, -150, 60, -90)  # a second hole, above
    press(page, "Fill")
    picture, settings = drawn(page)
    assert settings["weights"] == "inpaint.safetensors"
    white = (np.abs(picture.astype(int) - 242) < 12).all(-1)
    assert white[12:15, :5].all() and white[:2, :].all()  # kept: untouched paper
    (seen_there,) = read(picture[None])
    assert seen_there["valid"] and seen_there["background"] == "white"


def test_painted_strokes_become_the_object_that_was_painted(page):
    choose(page, "SDEdit", 3)  # an empty sky
    scribble(page, -30, -40, 30, 40)  # red is the first colour
    seen(page, "textarea").first.fill("a red ball")
    press(page, "Draw")
    (seen_there,) = read(drawn(page)[0][None])
    assert seen_there["background"] == "sky"
    (thing,) = seen_there["objects"]
    assert (thing["colour"], thing["place"]) == ("red", "centre")


def test_a_stopped_row_stops_and_the_next_picture_comes(page):
    press(page, "Row of scales")
    page.get_by_text("1 of 4").first.wait_for()
    press(page, "Stop")
    seen(page, ".said").filter(has_text="stopped").first.wait_for()
    page.wait_for_timeout(4000)
    assert not page.get_by_text("4 of 4").count()
    press(page, "Draw")
    drawn(page)


def test_search_shows_what_is_asked_for(page):
    page.get_by_role("tab", name="Search").click()
    seen(page, "textarea").first.fill("a yellow star")
    press(page, "Search")
    seen(page, ".picture img").first.wait_for()
    source = seen(page, ".picture img").first.get_attribute("src")
    assert "a yellow star" in Image.open(io.BytesIO(page.request.get(source).body())).text["query"]


def ask(address, name, values, session, wait=True):
    """A request as the page sends it; the last message of its stream, or the refusal's status."""
    import httpx

    api = f"{address}/gradio_api"
    functions = httpx.get(f"{address}/config", timeout=60).json()["dependencies"]
    number = next(d["id"] for d in functions if d["api_name"] == name)
    body = {"data": values, "fn_index": number, "session_hash": session}
    joined = httpx.post(f"{api}/queue/join", json=body, timeout=60)
    if joined.status_code != 200 or not wait:
        return joined.status_code
    with httpx.stream("GET", f"{api}/queue/data?session_hash={session}", timeout=590) as stream:
        for line in stream.iter_lines():
            message = json.loads(line[5:]) if line.startswith("data:") else {}
            if message.get("msg") in ("process_completed", "unexpected_error", "close_stream"):
                return message


def test_twenty_requests_at_once_are_all_answered(address):
    answers = {}

    def one(i):
        answers[i] = ask(address, "draw", ["a red ball", 3, i], f"many{i}")

    threads = [threading.Thread(target=one, args=(i,)) for i in range(20)]
    [t.start() for t in threads]
    [t.join(580) for t in threads]
    assert [answers[i]["success"] for i in range(20)] == [True] * 20


def test_two_hundred_hostile_requests_leave_it_serving(address):
    import httpx

    api = f"{address}/gradio_api"
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    strange = [["x" * 10**6, 3, 0], [None] * 3, ["a red ball", 1e30, 0], [{}, [], ""],
               ["a red ball", 3, -1], ["a red ball", "NaN", 2**80], []]  # fmt: skip

    def send(where, **content):
        """Its status; 0 where the server hangs up."""
        try:
            return httpx.post(f"{api}/{where}", timeout=120, **content).status_code
        except httpx.TransportError:
            return 0

    for i in range(40):
        send("queue/join", content=b"{" * 999)
        body = {"data": strange[i % 7], "fn_index": i, "session_hash": f"hostile{i}"}
        send("queue/join", json=body)
        for path in ("/etc/passwd", f"{ROOT}/README.md", "../../../etc/passwd"):
            assert httpx.get(f"{api}/file={path}", timeout=60).status_code in (403, 404)
    assert send("upload", files={"files": ("large.png", b"0" * (6 << 20))}) in (0, 400, 413)
    files = {"files": ("b.png", bomb.getvalue())}
    (path,) = httpx.post(f"{api}/upload", files=files, timeout=60).json()
    hidden = {"path": path, "meta": {"_type": "gradio.FileData"}}
    answer = ask(address, "opened", [hidden], "bomb")
    assert not answer["success"] and "at most 4096 x 4096 pixels" in str(answer)
    canvas = {"background": hidden, "layers": [hidden], "composite": hidden}
    assert not ask(address, "draw_1", ["a red ball", 0, canvas], "bomb2")["success"]
    assert ask(address, "draw", ["a red ball", 3, 0], "after")["success"]


def test_it_listens_on_this_machine_only(address):
    port = int(address.rsplit(":", 1)[1])
    with socket.socket() as s:
        assert s.connect_ex(("127.0.0.2", port)) != 0  # who listens everywhere answers here, too
