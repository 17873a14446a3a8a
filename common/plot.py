"""Pictures about pictures: labelled grids, film strips, animations, curves, and saving them.

The only room that imports matplotlib, and that only inside the functions that need it.
Pictures come in as float [-1, 1] or uint8, (N, H, W, 3) or (N, H, W, 1); drawings leave as PIL.
"""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

INK, PAPER, GUTTER, MARGIN = (32, 33, 36), (255, 255, 255), 4, 12  # colours; pixels
TEXT, HEADING = 15, 19  # font sizes, pixels
COLOURS = ("#3366cc", "#d9542b", "#2a9d6f", "#8c52b8", "#b8860b", "#4c5564")  # of the curves
FORMATS = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG", ".gif": "GIF"}


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Pictures for the eye: x in [-1, 1] -> round(127.5 (x + 1)) clipped to 0..255; uint8 stays."""
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind not in "fV":  # V: bfloat16 in numpy's eyes
        raise ValueError(f"images must be uint8 or float in [-1, 1], not {images.dtype}")
    images = images.astype(np.float32)
    if not np.isfinite(images).all():
        raise ValueError("images hold NaN or infinity")
    return np.rint((images.clip(-1, 1) + 1) * 127.5).astype(np.uint8)


def from_uint8(images: np.ndarray) -> np.ndarray:
    """Pictures for the network: uint8 0..255 -> float32 x / 127.5 - 1 in [-1, 1]."""
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise ValueError(f"images must be uint8, not {images.dtype}")
    return (images / 127.5 - 1).astype(np.float32)


def grid(
    images: np.ndarray,
    *,
    columns: int | None = None,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
    title: str | None = None,
    scale: int | None = None,
) -> Image.Image:
    """Pictures in rows on white, pixels enlarged by `scale`, with labels that wrap when long.

    images (N, H, W, 3) in reading order; row_labels and column_labels one per row and column,
    captions one per picture, below it. By default near square, and near 128 px a picture (96 px
    where there are more than 8 columns).
    """
    images = _batch(images)
    columns = columns or (len(column_labels) if column_labels else _near_square(len(images)))
    rows = -(-len(images) // columns)
    for name, labels, count in (
        ("row_labels", row_labels, rows), ("column_labels", column_labels, columns),
        ("captions", captions, len(images)),
    ):  # fmt: skip
        if labels is not None and len(labels) != count:
            raise ValueError(f"{name} must hold {count} texts, not {len(labels)}")
    scale = scale or max(1, round((128 if columns <= 8 else 96) / images.shape[2]))
    images = images.repeat(scale, 1).repeat(scale, 2)
    cell_h, cell_w = images.shape[1:3]

    text = _fitting(" ".join([*(captions or ()), *(column_labels or ())]), cell_w - 6)
    below = [_wrap(c, cell_w, text) for c in captions or [""] * len(images)]
    heads = [_wrap(c, cell_w, text) for c in column_labels or ()]
    sides = [_wrap(c, 150, TEXT) for c in row_labels or [""] * rows]
    heading = _wrap(title or "", columns * (cell_w + GUTTER) - GUTTER, HEADING)
    left = MARGIN + (max(_width(s, TEXT) for s in sides) + 10 if row_labels else 0)
    top = MARGIN + _height(heading, HEADING, 10)
    top += max((_height(h, text, 6) for h in heads), default=0)
    row_h = []
    for r, side in enumerate(sides):
        captioned = max(_height(c, text, 8) for c in below[r * columns : (r + 1) * columns])
        row_h.append(max(_height(side, TEXT), cell_h + captioned) + GUTTER)

    width = left + columns * (cell_w + GUTTER) - GUTTER + MARGIN
    page = Image.new("RGB", (width, top + sum(row_h) - GUTTER + MARGIN), PAPER)
    draw = ImageDraw.Draw(page)
    _write(draw, ((left + width - MARGIN) / 2, MARGIN), heading, HEADING, "ma")
    for c, head in enumerate(heads):
        _write(draw, (left + c * (cell_w + GUTTER) + cell_w / 2, top - 6), head, text, "md")
    for i, picture in enumerate(images):
        r, c = divmod(i, columns)
        x, y = left + c * (cell_w + GUTTER), top + sum(row_h[:r])
        page.paste(Image.fromarray(picture), (x, y))
        _write(draw, (x + cell_w / 2, y + cell_h + 3), below[i], text, "ma")
        if c == 0:
            _write(draw, (left - 10, y + cell_h / 2), sides[r], TEXT, "rm")
    return page


def strip(
    frames: np.ndarray, labels: Sequence[str] | None = None, *, title: str | None = None,
    row_labels: Sequence[str] | None = None, scale: int | None = None,
) -> Image.Image:  # fmt: skip
    """A film strip: time runs from left to right under one label per frame.

    frames (F, H, W, 3), or (F, N, H, W, 3) for N films below each other
    """
    frames = np.asarray(frames)
    films = frames[:, None] if frames.ndim == 4 else frames
    if films.ndim != 5:
        raise ValueError(f"frames must be (F, H, W, 3) or (F, N, H, W, 3), got {frames.shape}")
    flat = films.swapaxes(0, 1).reshape(-1, *films.shape[2:])
    return grid(flat, columns=len(films), column_labels=labels, row_labels=row_labels,
                title=title, scale=scale)  # fmt: skip


def animate(
    frames: np.ndarray, path: str | Path, *, columns: int | None = None, fps: float = 12,
    hold_last_s: float = 1.5, **grid_options,
) -> Path:  # fmt: skip
    """Save frames (F, N, H, W, 3) as an endless film of grids: animated .webp or .gif.

    The last frame stays for hold_last_s seconds; further options (captions, title...) go to grid.
    """
    path = Path(path)
    if path.suffix.lower() not in (".webp", ".gif"):
        raise ValueError(f"an animation is saved as .webp or .gif, not as {path.name!r}")
    if np.ndim(frames) != 5 or not len(frames):
        raise ValueError(f"frames must be (F, N, H, W, 3) with F > 0, got {np.shape(frames)}")
    pages = [grid(f, columns=columns, **grid_options) for f in frames]
    times = [round(1000 / fps)] * (len(pages) - 1) + [round(1000 * hold_last_s)]
    return _save(pages[0], path, save_all=True, append_images=pages[1:], duration=times, loop=0,
                 quality=85, method=2)  # method 6: 4% smaller, five times as long  # fmt: skip


def curve(
    series: dict[str, tuple], *, xlabel: str, ylabel: str, title: str = "", logx: bool = False,
    logy: bool = False, limits: dict[str, float] | None = None,
    size: tuple[float, float] = (6.4, 4.0),
) -> Image.Image:  # fmt: skip
    """Lines with interval bands: series {name: (x, y, low, high)} or {name: (x, y)}, in inches.

    Where x are names, there is no line: points with their intervals, side by side.
    limits {name: y}: a level that this series cannot pass, dashed in its colour.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=150, layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    for i, (name, values) in enumerate(series.items()):
        if len(values) not in (2, 4) or len({np.shape(v) for v in values}) != 1:
            raise ValueError(f"series {name!r} must be (x, y) or (x, y, low, high) of one length")
        x, (y, *band) = np.asarray(values[0]), (np.asarray(v, float) for v in values[1:])
        colour = COLOURS[i % len(COLOURS)]
        if x.dtype.kind == "U":
            place = np.arange(len(x)) + 0.16 * (i - (len(series) - 1) / 2)
            reach = [y - band[0], band[1] - y] if band else None
            axes.errorbar(place, y, reach, color=colour, label=name, fmt="o", ms=6, elinewidth=2)
            axes.set_xticks(np.arange(len(x)), x)
            continue
        axes.plot(x, y, color=colour, lw=2, label=name, marker="o" if len(x) <= 24 else "", ms=4.5)
        if band and (np.diff(x) > 0).all():
            axes.fill_between(x, *band, color=colour, alpha=0.16, lw=0)
        elif band:  # a path that turns back would twist its band
            axes.vlines(x, *band, color=colour, alpha=0.5, lw=1.2)
        if limits and name in limits:
            axes.axhline(limits[name], color=colour, lw=1.2, ls=(0, (4, 3)))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if logx:
        axes.set_xscale("log")
        if len(named := sorted({float(x) for xs, *_ in series.values() for x in xs})) <= 8:
            axes.set_xticks(named, [f"{x:g}" for x in named])
            axes.minorticks_off()
    if logy:
        axes.set_yscale("log")
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    axes.grid(color="#e4e6ea", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(series) > 1:
        axes.legend(frameon=False)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def save(image: Image.Image | np.ndarray, path: str | Path, metadata: dict | None = None) -> Path:
    """Write a drawing, or one picture (H, W, 3), whole or not at all; the suffix says the format.

    metadata {key: value} becomes text in a PNG, read back by PIL.Image.open(path).text.
    """
    path = Path(path)
    if not isinstance(image, Image.Image):
        image = Image.fromarray(_batch(np.asarray(image)[None])[0])
    kind = FORMATS.get(path.suffix.lower())
    if metadata and kind != "PNG":
        raise ValueError(f"only a .png carries metadata, not {path.name!r}")
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 92, "subsampling": 0}}
    info = PngImagePlugin.PngInfo()
    for key, value in (metadata or {}).items():
        info.add_itxt(str(key), str(value))
    return _save(image, path, **({"pnginfo": info} if kind == "PNG" else options.get(kind, {})))


def _save(image: Image.Image, path: Path, **options) -> Path:
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"cannot save {path.name!r}: its suffix is none of {', '.join(FORMATS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        image.save(partial, format=kind, **options)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _batch(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[3] not in (1, 3) or not images.size:
        raise ValueError(f"images must be (N, H, W, 3) or (N, H, W, 1), N > 0: got {images.shape}")
    return np.broadcast_to(to_uint8(images), (*images.shape[:3], 3))


def _near_square(n: int) -> int:
    side = int(np.ceil(n**0.5))
    return next((c for c in range(side, 2 * side) if n % c == 0), side)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # for its bundled DejaVu, which knows Greek letters and arrows

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)


def _fitting(text: str, width: int) -> int:
    """The largest font size, of 10 to TEXT, at which no word is wider than `width`."""
    longest = max((_font(TEXT).getlength(word) for word in text.split()), default=1)
    return max(10, min(TEXT, int(TEXT * width / longest)))


def _wrap(text: str, width: float, size: int) -> str:
    """Break the text into as few lines as fit the width, and those as even as can be."""
    words, font = str(text).split(), _font(size)

    def greedy(width):
        lines = words[:1]
        for word in words[1:]:
            longer = f"{lines[-1]} {word}"
            lines = [*lines[:-1], longer] if font.getlength(longer) <= width else [*lines, word]
        return lines

    count = len(greedy(width))
    while count > 1 and len(greedy(width - 4)) == count and width > 4:
        width -= 4
    return "\n".join(greedy(width))


def _width(text: str, size: int) -> int:
    return round(max(_font(size).getlength(line) for line in text.split("\n")))


def _height(text: str, size: int, gap: int = 0) -> int:
    return round(1.25 * size) * (text.count("\n") + 1) + gap if text else 0


def _write(draw: ImageDraw.ImageDraw, at: tuple, text: str, size: int, anchor: str) -> None:
    align = {"m": "center", "r": "right"}[anchor[0]]
    draw.multiline_text(at, text, INK, _font(size), anchor, 0.25 * size, align)
