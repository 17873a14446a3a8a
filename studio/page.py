"""The page: four tabs of one shape, controls on the left and the picture on the right."""

import threading
from pathlib import Path

import gradio as gr
import numpy as np
from PIL import Image

from common import devices, plot
from common.pictures import MAX_SIDE, on_white, open_picture
from common.scenes import scene
from common.scenes.render import render
from sdedit.guides import strokes
from studio import jobs, parts
from studio.parts import CANVAS, INK

UPLOAD, WAITING = "5mb", 32  # the largest file, and the most requests in the queue
EXAMPLES = {
    "a green heart on a white background": 3,
    "a blue ball at night": 3,
    "a mosaic of a purple cube": 1,
    "a pink ring right of a cyan cone": 5,
}


def serve(port: int | None, share: bool) -> None:
    """Start the server and compile meanwhile; blocks unless in a notebook."""
    Image.MAX_IMAGE_PIXELS = MAX_SIDE**2 // 2  # above twice that Pillow refuses, also in gradio
    devices.start()
    threading.Thread(target=jobs.warm_up, daemon=True).start()
    build().queue(max_size=WAITING, default_concurrency_limit=1).launch(
        server_name="127.0.0.1", server_port=port, share=share, max_file_size=UPLOAD,
        height=900, css=parts.CSS, theme=parts.THEME, footer_links=[],
    )  # fmt: skip


def build() -> gr.Blocks:
    with gr.Blocks(title="guidebook studio", delete_cache=(600, 3600)) as page:
        gr.Markdown("# guidebook studio\nGuided pictures, drawn on this machine.")
        for name, tab in (("Guidance", guidance), ("Inpaint", inpaint),
                          ("SDEdit", sdedit), ("Search", search)):  # fmt: skip
            with gr.Tab(name), gr.Row():
                tab()
    return page


def guidance() -> None:
    with gr.Column():
        prompt = parts.prompt("a small red ball above a large blue cube")
        scale = gr.Slider(0, 10, 3, step=0.5, label="Guidance scale",
                          info="0 ignores the prompt, more than 1 exaggerates it")  # fmt: skip
        seed = parts.seed()
        buttons = parts.buttons("Draw", "Row of scales")
        parts.examples(EXAMPLES.items(), [prompt, scale])
    parts.watched(jobs.Guidance, [prompt, scale, seed], buttons)


def inpaint() -> None:
    holes = [(slice(2, 30), slice(17, 31)), (slice(17, 31), slice(8, 25)),
             (slice(15, 32), slice(6, 25))]  # fmt: skip
    canvases = [_erased(*drawn) for drawn in zip(_scenes(9, 17, 4), holes, strict=True)]
    prompts = [
        "a small orange cube left of a small red heart",
        "a small green ball above a small blue star",
        "a large yellow cube at the bottom",
    ]
    with gr.Column():
        canvas = parts.canvas("Brush a hole", [INK], canvases[0])
        own = gr.UploadButton("Own picture", file_types=["image"], size="sm")
        prompt = parts.prompt(prompts[0], "Caption of the whole picture")
        seed = parts.seed()
        buttons = parts.buttons("Fill", "Four answers")
        values = list(zip(canvases, prompts, strict=True))
        parts.painted_examples([c["composite"] for c in canvases], values, [canvas, prompt])

    @parts.polite
    def opened(path):
        try:
            picture = open_picture(path, jobs.SIZE, resize=True)
        except ValueError as error:  # the file as its owner knows it
            raise ValueError(str(error).replace(path, Path(path).name)) from None
        return parts.enlarged(on_white(picture), CANVAS)

    def job(prompt, seed, canvas):
        image = on_white(parts.reduced(canvas, "background"))
        keep_mask = np.ones((*image.shape[:2], 1), bool)
        for i in range(len(canvas["layers"])):
            keep_mask &= parts.reduced(canvas, "layers", i)[..., 3:] == 0
        return jobs.Inpaint(prompt, 3.0, seed, image, keep_mask)

    own.upload(opened, own, canvas, **parts.LIGHT)
    parts.watched(job, [prompt, seed, canvas], buttons)


def sdedit() -> None:
    colours = [*scene.COLOURS.values(), *scene.BACKGROUNDS.values()]
    paintings = [parts.enlarged(p, CANVAS) for p in strokes(_scenes(17, 22, 9))]
    paintings.append(Image.new("RGB", (CANVAS, CANVAS), parts.css(scene.BACKGROUNDS["sky"])))
    prompts = ["a green ball above an orange cube", "a red heart above a blue cube",
               "an orange cube left of a purple ring", ""]  # fmt: skip
    with gr.Column():
        canvas = parts.canvas("Paint", colours, paintings[0])
        prompt = parts.prompt(prompts[0], "Prompt, or none")
        t0 = gr.Slider(0, 1, 0.5, step=0.05, label="t0", info="0 keeps the strokes, 1 forgets them")
        seed = parts.seed()
        buttons = parts.buttons("Draw", "Strip over t0")
        values = list(zip(paintings, prompts, strict=True))
        parts.painted_examples(paintings, values, [canvas, prompt])

    def job(prompt, t0, seed, canvas):
        return jobs.Strokes(prompt, 3.0, seed, t0, on_white(parts.reduced(canvas, "composite")))

    parts.watched(job, [prompt, t0, seed, canvas], buttons)


def search() -> None:
    with gr.Column():
        query = parts.prompt("a red ball", "Look for")
        duplicates = gr.Slider(0.5, 1, 0.94, step=0.01, label="Near-duplicates",
                               info="hits nearer to a better one are left out")  # fmt: skip
        find = gr.Button("Search", variant="primary", size="md")
        parts.examples([["a red ball"], ["a yellow star at night"], ["a mosaic"]], [query])
    with gr.Column():
        hits = gr.Image(label="Nearest by CLIP", elem_classes="picture", **parts.LOOKS)
        fold, code = parts.code()

    @parts.polite
    def run(query, duplicates):
        job = jobs.Search(query, 9, duplicates)
        pictures, captions = zip(*job.hits(), strict=True)
        sheet = plot.grid(np.stack(pictures), captions=captions, columns=3, scale=5)
        sheet.info.update(job.settings())
        return sheet, gr.Accordion(visible=True), job.code()

    gr.on([find.click, query.submit], run, [query, duplicates], [hits, fold, code], **parts.WORK)


def _scenes(*rows: int) -> np.ndarray:
    """Some random scenes, always the same."""
    rng = np.random.default_rng(4)
    drawn = [scene.draw_scene(rng) for _ in range(24)]
    return render([drawn[row] for row in rows], jobs.SIZE)


def _erased(picture: np.ndarray, hole: tuple[slice, slice]) -> dict:
    """A picture with a hole brushed over it, as the canvas holds them."""
    layer = np.zeros((*picture.shape[:2], 4), np.uint8)
    layer[hole] = [*np.rint(255 * np.array(INK)), 255]
    composite = np.where(layer[..., 3:] > 0, layer[..., :3], picture)
    background, layer, composite = (parts.enlarged(a, CANVAS) for a in (picture, layer, composite))
    return {"background": background, "layers": [layer], "composite": composite}
