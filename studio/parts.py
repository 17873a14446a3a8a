"""The parts that the tabs are made of, and the one way in which a picture is watched."""

import functools
import inspect
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported

import gradio as gr  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from common import plot  # noqa: E402
from common.pictures import open_picture  # noqa: E402
from common.scenes import scene  # noqa: E402
from studio import jobs  # noqa: E402
from studio.forming import PIECE  # noqa: E402

CANVAS, TALL = 384, "min(460px, 92vw)"  # pixels of a side to paint on; height of a picture
INK = (0.125, 0.13, 0.14)  # what a hole is brushed with
WORDS = f"{', '.join(scene.SHAPES)} · {', '.join(scene.COLOURS)} · small, large · left of, above"
CSS = """
.gradio-container, .gradio-container > main {width: 100% !important; max-width: 1080px !important}
.gradio-container {margin: auto}
.picture img {image-rendering: pixelated}
.said {min-height: 1.6em}
.try .grid-wrap {min-height: 0 !important; max-height: none !important; height: auto !important}
.try .grid-container {
  grid-template-columns: repeat(5, minmax(0, 1fr)) !important; grid-auto-rows: auto !important}
.try .gallery-item {height: auto !important}
.try .thumbnail-item {min-width: 0 !important; width: 100% !important; height: auto !important}
@media (max-width: 500px) {
  .gradio-container .main.app {padding: 12px !important}
  .tab-container button {padding: 0 3px !important; font-size: 13px !important}
}
"""
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
THEME = gr.themes.Default(primary_hue="slate", neutral_hue="slate", **FONTS)
LOOKS = {"format": "png", "interactive": False, "buttons": ["download"],
         "elem_classes": "picture result"}  # of a result  # fmt: skip
# One computation at a time, whatever the tab; nothing of it is offered to programs.
WORK = {"concurrency_id": "work", "concurrency_limit": 1, "api_visibility": "private"}
LIGHT = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


def prompt(value: str, label: str = "Prompt", visible: bool = True) -> gr.Textbox:
    return gr.Textbox(value, label=label, info=WORDS, max_length=300, lines=1, max_lines=2,
                      visible=visible)  # fmt: skip


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
                gr.Button(second, size="md", scale=4, min_width=130),
                gr.Button("Stop", size="md", scale=2, min_width=60)]  # fmt: skip


def examples(rows: Iterable, inputs: list) -> None:
    gr.Examples([list(row) for row in rows], inputs, visible_columns=[0], label="Try")


def picture(label: str, value: Image.Image) -> gr.Image:
    """A picture to begin with."""
    return gr.Image(value, label=label, height=160, format="png", interactive=False, buttons=[],
                    elem_classes="picture given")  # fmt: skip


def gallery(pictures: list) -> gr.Gallery:
    return gr.Gallery(pictures, elem_classes="try", interactive=False, buttons=[], height="auto",
                      columns=5, allow_preview=False, show_label=False, format="png")  # fmt: skip


def pictures(shown: list, values: list, inputs: list) -> None:
    """Pictures to click on. (gr.Examples of a canvas lets it load itself again and again.)"""

    def chosen(event: gr.SelectData):
        return values[event.index]

    gallery(shown).select(chosen, None, inputs, **LIGHT)


def code() -> tuple[gr.Accordion, gr.Code]:
    """The fold with the Python of the picture, hidden until there is one."""
    with gr.Accordion("Show me the code", open=False, visible=False) as fold:
        return fold, gr.Code(language="python", interactive=False, show_label=False)


def own(label: str, size: int, use: Callable, inputs: list, output) -> None:
    """A button for a file of the user's; use(RGBA (size, size, 4), *inputs) goes to the output."""
    button = gr.UploadButton(label, file_types=["image"], size="sm", min_width=60)

    @polite
    def taken(path, *values):
        try:
            picture = open_picture(path, size, resize=True)
        except ValueError as error:  # the file as its owner knows it
            raise ValueError(str(error).replace(path, Path(path).name)) from None
        return use(picture, *values)

    button.upload(taken, [button, *inputs], output, **LIGHT)


def watched(make: Callable, inputs: list, buttons: list[gr.Button]) -> None:
    """The right column, and what the three buttons do to it; make(*inputs) is a job."""
    with gr.Column():
        picture = gr.Image(label="Picture", height=TALL, **LOOKS)
        said = gr.Markdown(elem_classes="said")
        beside = gr.Image(visible=False, label="Its latent: four channels, black -3, white 3",
                          height=220, **LOOKS | {"elem_classes": "picture beside"})  # fmt: skip
        more = gr.Image(visible=False, **LOOKS | {"elem_classes": "more"})
        fold, text = code()
        kept = gr.State()  # the frames of the last picture

    def view(frame, settings=None):
        """The picture of a frame, and what stands beside it there."""
        side, rest = len(frame), frame[:, len(frame) :]
        shown = {picture: enlarged(frame[:, :side], settings=settings)}
        return shown | ({beside: gr.Image(enlarged(rest), visible=True)} if rest.size else {})

    def forming(job, told):
        """Each piece of a job is shown; -> all its frames."""
        pieces = []
        for piece in job.frames():
            pieces.append(piece)
            count = min(job.steps, sum(map(len, pieces)) * (1 if len(piece) > 1 else PIECE))
            yield view(piece[-1]) | {said: f"{told}step {count} of {job.steps}"}
        return np.concatenate(pieces)

    @polite
    def draw(*values):
        job, began = make(*values), time.time()
        frames = yield from forming(job, "")
        seconds = f"{time.time() - began:.1f} s"
        square = frames[-1][:, : frames.shape[1]]
        yield view(frames[-1], job.settings()) | {
            said: seconds, fold: gr.Accordion(visible=True), text: job.code(),
        }  # fmt: skip
        yield {said: f"{seconds} · the reader sees {jobs.reading(square)}", kept: frames}

    def film(frames):
        with tempfile.TemporaryDirectory() as folder:
            path = jobs.film(frames, f"{folder}/film.webp")
            yield gr.Image(path, visible=True, label="Film")  # copied before the folder goes

    @polite
    def compare(*values):
        job = make(*values)
        row, done = job.row(), []
        for label, other in row.items():
            count = f"{len(done) + 1} of {len(row)}"
            frames = yield from forming(other, f"{count} · {label} · ")
            done.append(frames[-1][:, : frames.shape[1]])
            columns, scale = 2 if len(row) <= 4 else 3, 192 // frames.shape[1]
            sheet = plot.grid(np.stack(done), captions=list(row)[: len(done)], columns=columns,
                              scale=scale)  # fmt: skip
            sheet.info.update(job.settings())
            yield view(frames[-1], other.settings()) | {
                said: f"{count} · {label}", more: gr.Image(sheet, visible=True, label=count),
            }  # fmt: skip
        yield {fold: gr.Accordion(visible=True), text: job.code(row=True)}

    shown = [picture, said, beside, more, fold, text, kept]
    submits = [box.submit for box in inputs if isinstance(box, gr.Textbox)]
    # A click while the last picture is being drawn is not lost.
    options = WORK | {"show_progress": "minimal", "show_progress_on": said,
                      "trigger_mode": "always_last"}  # fmt: skip
    runs = [gr.on([buttons[0].click, *submits], draw, inputs, shown, **options),
            buttons[1].click(compare, inputs, shown, **options)]  # fmt: skip
    # Nobody waits for the film: the next picture is drawn meanwhile.
    runs[0].success(film, kept, more, show_progress="hidden", api_visibility="private")
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


def reduced(picture: np.ndarray | None, size: int = jobs.SIZE) -> np.ndarray:
    """An enlarged picture as RGBA (size, size, 4), the mean over areas."""
    if picture is None:
        raise ValueError("there is no picture yet: choose one below, or bring your own")
    image = Image.fromarray(np.asarray(picture)).convert("RGBA")
    return np.asarray(image.resize((size, size), Image.Resampling.BOX))


def painted(canvas: dict | None) -> np.ndarray:
    """bool (32, 32, 1), True where something is painted or pasted on the canvas."""
    layers = [reduced(layer) for layer in (canvas or {}).get("layers") or []]
    return sum((layer[..., 3:] > 0 for layer in layers), np.zeros((jobs.SIZE, jobs.SIZE, 1), bool))


def on_canvas(background: np.ndarray, layer: np.ndarray | None = None) -> dict:
    """A picture (32, 32, 3), and what is painted on it, RGBA, as the canvas holds them."""
    held = enlarged(background, CANVAS).convert("RGBA")
    layers = [] if layer is None else [enlarged(layer, CANVAS)]
    composite = functools.reduce(Image.alpha_composite, layers, held)
    return {"background": held, "layers": layers, "composite": composite}


def enlarged(picture: np.ndarray, side: int = 512, settings: dict | None = None) -> Image.Image:
    """Pixels as squares; the settings go into the PNG that gradio makes of it."""
    large = Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST)
    large.info.update(settings or {})
    return large


def css(colour: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{round(255 * level):02x}" for level in colour)
