"""The page: six tabs of one shape, controls on the left and the picture on the right."""

import threading
from dataclasses import replace

import gradio as gr
import numpy as np
from PIL import Image
from scipy.ndimage import binary_fill_holes

from common import devices, plot
from common.pictures import MAX_SIDE, on_white
from common.scenes import scene
from common.scenes.render import render
from sdedit.guides import grow, strokes
from studio import edits, jobs, parts, warm
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
    threading.Thread(target=warm.up, daemon=True).start()
    build().queue(max_size=WAITING, default_concurrency_limit=1).launch(
        server_name="127.0.0.1", server_port=port, share=share, max_file_size=UPLOAD,
        height=900, css=parts.CSS, theme=parts.THEME, footer_links=[],
    )  # fmt: skip


def build() -> gr.Blocks:
    tabs = {"Guidance": (guidance, jobs.Guidance), "Inpaint": (inpaint, jobs.Inpaint),
            "Latents": (latents, edits.Latents), "unCLIP": (unclip, edits.Variation),
            "SDEdit": (sdedit, edits.Strokes), "Search": (search, jobs.Search)}  # fmt: skip
    with gr.Blocks(title="guidebook studio", delete_cache=(600, 3600)) as page:
        gr.Markdown("# guidebook studio\nGuided pictures, drawn on this machine.")
        for name, (tab, job) in tabs.items():
            with gr.Tab(name), gr.Row():
                missing = job.missing()
                if missing:
                    gr.Markdown(f"This tab needs weights that are not here yet: {told(missing)}.")
                else:
                    tab()
    return page


def told(missing: list) -> str:
    """Which weights, and how they are made."""
    package = missing[0].parent.parent.name
    return f"`{package}/weights/{missing[0].name}` (see `python -m {package} --help`)"


def guidance() -> None:
    ways = [name for name, job in jobs.GUIDES.items() if not job.missing()]
    with gr.Column():
        prompt = parts.prompt("a small red ball above a large blue cube")
        by = gr.Radio(ways, value=ways[0], label="Guided by", visible=len(ways) > 1)
        scale = gr.Slider(0, 10, 3, step=0.5, label="Guidance scale",
                          info="0 ignores the prompt (by CLIP: is the caption alone)")  # fmt: skip
        seed = parts.seed()
        buttons = parts.buttons("Draw", "Row of scales")
        parts.examples(EXAMPLES.items(), [prompt, scale])

    def job(by, *values):
        return jobs.GUIDES[by](*values)

    parts.watched(job, [by, prompt, scale, seed], buttons)


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
        parts.own("Own picture", jobs.SIZE, _on_canvas, [], canvas)
        prompt = parts.prompt(prompts[0], "Caption of the whole picture")
        seed = parts.seed()
        buttons = parts.buttons("Fill", "Four answers")
        values = list(zip(canvases, prompts, strict=True))
        parts.pictures([c["composite"] for c in canvases], values, [canvas, prompt])

    def job(prompt, seed, canvas):
        image = on_white(parts.reduced((canvas or {}).get("background")))
        return jobs.Inpaint(prompt, 3.0, seed, image, ~parts.painted(canvas))

    parts.watched(job, [prompt, seed, canvas], buttons)


def latents() -> None:
    images = [parts.enlarged(p, CANVAS) for p in _scenes(5, 11, 4, 22, size=64)]
    prompts = ["a large green ball", "a purple star on grass", "a drawing of a pink ring",
               "a red ball above a blue cube"]  # fmt: skip
    with gr.Column():
        prompt = parts.prompt("a small red ball above a large blue cube")
        scale = gr.Slider(0, 10, 3, step=0.5, label="Guidance scale")
        strength = gr.Slider(0.1, 1, 1, step=0.1, label="Strength", 
                             info="below 1 it begins with the picture, and keeps less of it the "
                                  "higher it is")  # fmt: skip
        seed = parts.seed()
        buttons = parts.buttons("Draw", "Row")
        parts.examples([[words, 1.0] for words in EXAMPLES], [prompt, strength])
        image = parts.picture("Picture to begin with", images[0])
        parts.own("Own picture", 64, _shown, [], image)
        values = [*zip(images, prompts, [0.6] * len(images), strict=True)]
        parts.pictures(images, values, [image, prompt, strength])

    def job(prompt, scale, seed, strength, image):
        begin = None if strength == 1 else on_white(parts.reduced(image, 64))
        return edits.Latents(prompt, scale, seed, strength, begin)

    parts.watched(job, [prompt, scale, seed, strength, image], buttons)


def unclip() -> None:
    shares = {"Variation": "eta: 0 gives the picture back, 1 keeps only what CLIP sees",
              "Between two": "theta: 0 is the first picture, 1 the second",
              "Text difference": "theta: how far from the one caption to the other"}  # fmt: skip
    images = [parts.enlarged(p, CANVAS) for p in _scenes(5, 11, 4, 16, 20)]
    texts = [("a photo of a red ball", "a drawing of a red ball"), ("a purple cube", "a blue cube"),
             ("a pink ring", "a pink ring at night"), ("a red ring", "a mosaic of a red ring"),
             ("a blue heart", "a yellow star")]  # fmt: skip
    with gr.Column():
        mode = gr.Radio([*shares], value="Variation", label="What to do")
        with gr.Row():
            with gr.Column(min_width=130):
                image = parts.picture("Picture", images[0])
                parts.own("Own picture", jobs.SIZE, _shown, [], image)
            with gr.Column(min_width=130, visible=False) as second:
                other = parts.picture("Second picture", images[1])
                parts.own("Own picture", jobs.SIZE, _shown, [], other)
        source = parts.prompt(texts[0][0], "What it is", visible=False)
        prompt = parts.prompt(texts[0][1], "What it is to become", visible=False)
        share = gr.Slider(0, 1, 0.7, step=0.05, label="How far", info=shares["Variation"])
        seed = parts.seed()
        buttons = parts.buttons("Draw", "Row")
        following = [*images[1:], images[0]]
        values = [(a, b, *t) for a, b, t in zip(images, following, texts, strict=True)]
        parts.pictures(images, values, [image, other, source, prompt])

    def chosen(mode):
        two, texts, one = (gr.update(visible=mode == name)
                           for name in ("Between two", "Text difference", "Variation"))  # fmt: skip
        return two, texts, texts, gr.Slider(info=shares[mode]), one

    def job(mode, image, other, source, prompt, share, seed):
        pair = [image, other] if mode == "Between two" else [image]
        given = np.stack([on_white(parts.reduced(p)) for p in pair])
        if mode == "Text difference":
            return edits.TextDiff(given, source, prompt, share)
        between = mode == "Between two"
        return edits.Interpolation(given, share) if between else edits.Variation(given, share, seed)

    mode.change(chosen, mode, [second, source, prompt, share, seed], **parts.LIGHT)
    parts.watched(job, [mode, image, other, source, prompt, share, seed], buttons)


def sdedit() -> None:
    colours = [*scene.COLOURS.values(), *scene.BACKGROUNDS.values()]
    sky = np.broadcast_to(np.rint(255 * np.array(scene.BACKGROUNDS["sky"])), (1, 32, 32, 3))
    canvases = [parts.on_canvas(p) for p in [*strokes(_scenes(17, 22)), *sky.astype(np.uint8)]]
    patches = _patches(5, 20, 18, 11)
    spot = _erased(_scenes(3)[0], (slice(9, 19), slice(19, 29)))
    canvases.append(pasted(patches[1], spot))
    prompts = ["a green ball above an orange cube", "a red heart above a blue cube", "",
               "a yellow cone and a blue heart on grass"]  # fmt: skip
    with gr.Column():
        canvas = parts.canvas("Paint", colours, canvases[0])
        with gr.Row():
            parts.own("Own picture", jobs.SIZE, _on_canvas, [], canvas)
            parts.own("Own patch", 12, pasted, [canvas], canvas)
        prompt = parts.prompt(prompts[0], "Prompt, or none")
        t0 = gr.Slider(0, 1, 0.5, step=0.05, label="t0", info="0 keeps the strokes, 1 forgets them")
        only = gr.Checkbox(label="Change only what is painted or pasted")
        seed = parts.seed()
        buttons = parts.buttons("Draw", "Strip over t0")
        values = [(c, p, c is canvases[3], 0.4 if c is canvases[3] else 0.5)
                  for c, p in zip(canvases, prompts, strict=True)]  # fmt: skip
        parts.pictures([c["composite"] for c in canvases], values, [canvas, prompt, only, t0])
        gr.Markdown("Patches: one lands where you have painted, or in the middle.")
        shown = [parts.enlarged(patch, 96) for patch in patches]

        def stuck(event: gr.SelectData, canvas):
            return pasted(patches[event.index], canvas)

        parts.gallery(shown).select(stuck, canvas, canvas, **parts.LIGHT)

    def job(prompt, t0, seed, canvas, only):
        guide = on_white(parts.reduced((canvas or {}).get("composite")))
        edit_mask = grow(parts.painted(canvas), 1) if only else None
        return edits.Strokes(prompt, 3.0, seed, t0, guide, edit_mask)

    parts.watched(job, [prompt, t0, seed, canvas, only], buttons)


def search() -> None:
    with gr.Column():
        query = parts.prompt("a red ball", "Look for")
        duplicates = gr.Slider(0.5, 1, 0.94, step=0.01, label="Near-duplicates",
                               info="hits nearer to a better one are left out")  # fmt: skip
        find = gr.Button("Search", variant="primary", size="md")
        parts.examples([["a red ball"], ["a yellow star at night"], ["a mosaic"]], [query])
    with gr.Column():
        hits = gr.Image(label="Nearest by CLIP", **parts.LOOKS)
        fold, code = parts.code()

    @parts.polite
    def run(query, duplicates):
        job = jobs.Search(query, 9, duplicates)
        pictures, captions = zip(*job.hits(), strict=True)
        sheet = plot.grid(np.stack(pictures), captions=captions, columns=3, scale=5)
        sheet.info.update(job.settings())
        return sheet, gr.Accordion(visible=True), job.code()

    gr.on([find.click, query.submit], run, [query, duplicates], [hits, fold, code], **parts.WORK)


def pasted(patch: np.ndarray, canvas: dict | None) -> dict:
    """The canvas with the patch (h, w, 4) over the spot that is painted, else in the middle."""
    layer = Image.new("RGBA", (jobs.SIZE, jobs.SIZE))
    spot = Image.fromarray(parts.painted(canvas)[..., 0]).getbbox() or (10, 10, 22, 22)
    side = max(spot[2] - spot[0], spot[3] - spot[1], 4)
    corner = [(a + b - side) // 2 for a, b in zip(spot[:2], spot[2:], strict=True)]
    layer.paste(Image.fromarray(patch).resize((side, side), Image.Resampling.BOX), corner)
    background = on_white(parts.reduced((canvas or {}).get("background")))
    return parts.on_canvas(background, np.asarray(layer))


def _on_canvas(picture: np.ndarray) -> dict:
    return parts.on_canvas(on_white(picture))


def _shown(picture: np.ndarray) -> Image.Image:
    return parts.enlarged(on_white(picture), CANVAS)


def _drawn(rows: tuple[int, ...]) -> list[scene.Scene]:
    """Some random scenes, always the same."""
    rng = np.random.default_rng(4)
    drawn = [scene.draw_scene(rng) for _ in range(24)]
    return [drawn[row] for row in rows]


def _scenes(*rows: int, size: int = jobs.SIZE) -> np.ndarray:
    return render(_drawn(rows), size)


def _patches(*rows: int) -> list[np.ndarray]:
    """Their first objects, cut out: RGBA squares."""
    there, empty = (render([replace(s, objects=s.objects[:n]) for s in _drawn(rows)], jobs.SIZE)
                    for n in (1, 0))  # fmt: skip
    alpha = np.abs(there.astype(int) - empty).max(-1) > 60  # more than its shadow
    alpha = np.stack([binary_fill_holes(a) for a in alpha])[..., None]  # its highlight, too
    cut = np.concatenate([there, 255 * alpha.astype(np.uint8)], -1)

    def square(image):
        left, top, right, bottom = image.getchannel("A").getbbox()
        side = max(right - left, bottom - top)
        x, y = (left + right - side) // 2, (top + bottom - side) // 2
        return np.asarray(image.crop((x, y, x + side, y + side)))

    return [square(Image.fromarray(image)) for image in cut]


def _erased(picture: np.ndarray, hole: tuple[slice, slice]) -> dict:
    """A picture with a hole brushed over it."""
    layer = np.zeros((*picture.shape[:2], 4), np.uint8)
    layer[hole] = [*np.rint(255 * np.array(INK)), 255]
    return parts.on_canvas(picture, layer)
