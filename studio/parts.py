"""The parts that the tabs are made of, and the one way in which a picture is watched."""

import functools
import inspect
import os
import tempfile
import time
from collections.abc import Callable, Iterable

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported

import gradio as gr  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from common import plot  # noqa: E402
from common.scenes import scene  # noqa: E402
from studio import jobs  # noqa: E402
from studio.forming import STEPS  # noqa: E402

CANVAS, TALL = 384, "min(460px, 92vw)"  # pixels of a side to paint on; height of a picture
INK = (0.125, 0.13, 0.14)  # what a hole is brushed with
WORDS = f"{', '.join(scene.SHAPES)} · {', '.join(scene.COLOURS)} · small, large · left of, above"
CSS = """
.gradio-container, .gradio-container > main {width: 100% !important; max-width: 1080px !important}
.gradio-container {margin: auto}
.picture img {image-rendering: pixelated}
.said {min-height: 1.6em}
.try .grid-wrap {min-height: 0 !important; max-height: none !important; height: auto !important}
.try .grid-container {grid-template-columns: repeat(4, 1fr) !important}
@media (max-width: 500px) {.tab-container button {padding: 0 9px !important; font-size: 15px}}
"""
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
THEME = gr.themes.Default(primary_hue="slate", neutral_hue="slate", **FONTS)
LOOKS = {"format": "png", "interactive": False, "buttons": ["download"]}  # of a result
# One computation at a time, whatever the tab; nothing of it is offered to programs.
WORK = {"concurrency_id": "work", "concurrency_limit": 1, "api_visibility": "private"}
LIGHT = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


def prompt(value: str, label: str = "Prompt") -> gr.Textbox:
    return gr.Textbox(value, label=label, info=WORDS, max_length=300, lines=1, max_lines=2)


def seed() -> gr.Number:
    return gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1)


def canvas(label: str, colours: list[tuple], value) -> gr.ImageEditor:
    brush = gr.Brush(16, colors=[css(c) for c in colours], default_color=css(colours[0]),
                     color_mode="fixed")  # fmt: skip
    return gr.ImageEditor(value, label=label, image_mode="RGBA", format="png", sources=(),
                          transforms=(), layers=False, canvas_size=(CANVAS, CANVAS),
                          fixed_canvas=True, height=TALL, brush=brush)  # fmt: skip


def buttons(first: str, second: str) -> list[gr.Button]:
    with gr.Row():
        return [gr.Button(first, variant="primary", size="md", scale=2, min_width=60),
                gr.Button(second, size="md", scale=3, min_width=130),
                gr.Button("Stop", size="md", scale=2, min_width=60)]  # fmt: skip


def examples(rows: Iterable, inputs: list) -> None:
    gr.Examples([list(row) for row in rows], inputs, visible_columns=[0], label="Try")


def painted_examples(pictures: list, values: list, inputs: list) -> None:
    """Pictures to click on. (gr.Examples of a canvas lets it load itself again and again.)"""
    looks = {
        "columns": 5,
        "height": "auto",
        "allow_preview": False,
        "show_label": False,
        "format": "png",
    }
    tried = gr.Gallery(pictures, elem_classes="try", interactive=False, buttons=[], **looks)

    def chosen(event: gr.SelectData):
        return values[event.index]

    tried.select(chosen, None, inputs, **LIGHT)


def code() -> tuple[gr.Accordion, gr.Code]:
    """The fold with the Python of the picture, hidden until there is one."""
    with gr.Accordion("Show me the code", open=False, visible=False) as fold:
        return fold, gr.Code(language="python", interactive=False, show_label=False)


def watched(make: Callable, inputs: list, buttons: list[gr.Button]) -> None:
    """The right column, and what the three buttons do to it; make(*inputs) is a job of jobs.py."""
    with gr.Column():
        picture = gr.Image(label="Picture", height=TALL, elem_classes="picture", **LOOKS)
        said = gr.Markdown(elem_classes="said")
        more = gr.Image(visible=False, **LOOKS)
        fold, text = code()

    @polite
    def draw(*values):
        job, began, pieces = make(*values), time.time(), []
        for piece in job.frames():
            pieces.append(piece)
            steps = f"step {sum(map(len, pieces))} of {STEPS}"
            yield {picture: enlarged(piece[-1]), said: steps}
        frames, seconds = np.concatenate(pieces), f"{time.time() - began:.1f} s"
        yield {picture: enlarged(frames[-1], settings=job.settings()), said: seconds,
               fold: gr.Accordion(visible=True), text: job.code()}  # fmt: skip
        told = {said: f"{seconds} · the reader sees {jobs.reading(frames[-1])}"}
        if len(frames) == 1:
            yield told | {more: gr.Image(visible=False)}
            return
        with tempfile.TemporaryDirectory() as folder:
            film = jobs.film(frames, f"{folder}/film.webp")
            yield told | {more: gr.Image(film, visible=True, label="Film")}

    @polite
    def compare(*values):
        job = make(*values)
        row, done = job.row(), []
        for other in row.values():
            *_, piece = other.frames()
            done.append(piece[-1])
            columns, labels = 2 if len(row) <= 4 else 3, list(row)[: len(done)]
            sheet = plot.grid(np.stack(done), captions=labels, columns=columns, scale=6)
            sheet.info.update(job.settings())
            count = f"{len(done)} of {len(row)}"
            yield {picture: enlarged(piece[-1], settings=other.settings()), said: labels[-1],
                   more: gr.Image(sheet, visible=True, label=count)}  # fmt: skip
        yield {fold: gr.Accordion(visible=True), text: job.code(row=True)}

    shown = [picture, said, more, fold, text]
    submits = [box.submit for box in inputs if isinstance(box, gr.Textbox)]
    options = WORK | {"show_progress": "minimal", "show_progress_on": said}
    runs = [gr.on([buttons[0].click, *submits], draw, inputs, shown, **options),
            buttons[1].click(compare, inputs, shown, **options)]  # fmt: skip
    buttons[2].click(lambda: "stopped", None, said, cancels=runs, **LIGHT)


def polite(run: Callable) -> Callable:
    """Wrong input becomes a message in the page: the ValueError's own line."""

    def refusal(error):
        return gr.Error(" ".join(str(error).split()), title="Not like this", print_exception=False)

    @functools.wraps(run)
    def steps(*values):
        try:
            yield from run(*values)
        except ValueError as error:
            raise refusal(error) from None

    @functools.wraps(run)
    def once(*values):
        try:
            return run(*values)
        except ValueError as error:
            raise refusal(error) from None

    return steps if inspect.isgeneratorfunction(run) else once


def reduced(canvas: dict | None, name: str, row: int | None = None) -> np.ndarray:
    """What the canvas holds under that name as RGBA (32, 32, 4), the mean over areas."""
    held = (canvas or {}).get(name)
    held = held if row is None else held[row]
    if held is None:
        raise ValueError("there is no picture yet: choose one below, or bring your own")
    size = (jobs.SIZE, jobs.SIZE)
    return np.asarray(Image.fromarray(held).convert("RGBA").resize(size, Image.Resampling.BOX))


def enlarged(picture: np.ndarray, side: int = 512, settings: dict | None = None) -> Image.Image:
    """Pixels as squares; the settings go into the PNG that gradio makes of it."""
    large = Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST)
    large.info.update(settings or {})
    return large


def css(colour: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{round(255 * level):02x}" for level in colour)
