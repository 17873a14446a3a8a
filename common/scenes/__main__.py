"""Look at the scenes, read pictures, write them out, measure the reader."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from common.pictures import open_picture
from common.scenes.captions import caption
from common.scenes.reader import read
from common.scenes.render import render
from common.scenes.scene import Scene, draw_scene, scene_to_json

MOST = 100_000  # scenes drawn in one go: they are held in memory


class WrongInput(Exception):
    """What the user asked for cannot be done; told in one line, exit code 2."""


def main(argv: list[str] | None = None) -> int:
    """Runs one sub-command; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except WrongInput as error:
        print(f"common.scenes {args.command}: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m common.scenes", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name, run, text):
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    show = command("show", _show, "draw random scenes, with captions, on one sheet")
    show.add_argument("--num", type=_positive, default=64, help="scenes (64)")
    show.add_argument("--seed", type=int, default=0)
    show.add_argument("--size", type=int, choices=(32, 64), default=64, help="pixels (64)")
    show.add_argument("--out", type=Path, default=Path("scenes.png"), help="sheet (scenes.png)")
    reading = command("read", _read, "read the attributes off pictures")
    reading.add_argument("files", nargs="+", type=Path, metavar="FILE", help="square, 32 k pixels")
    reading.add_argument("--json", action="store_true", help="print a JSON list, not sentences")
    export = command("export", _export, "write scenes of the data set as PNG files with captions")
    export.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new or empty")
    export.add_argument("--num", type=_positive, default=100, help="scenes (100)")
    export.add_argument("--split", choices=("train", "test", "held_out"), default="test")
    export.add_argument("--size", type=int, choices=(32, 64), default=64, help="pixels (64)")
    command("prepare", _prepare, "write the data set to $GUIDEBOOK_DATA or ~/.cache/guidebook/data")
    check = command("check", _check, "measure the reader on fresh, disturbed and nonsense pictures")
    check.add_argument("--num", type=_positive, default=5000, help="scenes (5000)")
    check.add_argument("--seed", type=int, default=99)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number in 1..{MOST}")
    return int(text)


def _show(args) -> None:
    if args.seed < 0:
        raise WrongInput("--seed must be 0 or more")
    rng = np.random.default_rng(args.seed)
    scenes = [draw_scene(rng) for _ in range(args.num)]
    captions = [caption(scene, rng) for scene in scenes]
    image = sheet(render(scenes, args.size), captions)
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        image.save(args.out)
    except (OSError, ValueError) as error:
        raise WrongInput(f"cannot write {args.out}: {error}") from None
    print(f"{args.out}: {len(scenes)} scenes, seed {args.seed}")


def sheet(images: np.ndarray, captions: list[str], columns: int = 8) -> Image.Image:
    """Pictures uint8 (N, H, W, 3), each at 128 pixels over its caption, on one white sheet."""
    side, gap, lines = 128, 12, 4
    cell_w, cell_h = side + gap, side + gap + 12 * lines
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (columns * cell_w + gap, rows * cell_h + gap), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=10)
    for i, (image, text) in enumerate(zip(images, captions, strict=True)):
        x, y = gap + i % columns * cell_w, gap + i // columns * cell_h
        page.paste(Image.fromarray(image).resize((side, side), Image.NEAREST), (x, y))
        pen.multiline_text((x, y + side + 2), _wrap(text, font, side), "black", font, spacing=2)
    return page


def _wrap(text: str, font, width: int) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def _read(args) -> None:
    readings = read(np.stack([_open(file) for file in args.files]))
    records = [{"file": str(f), **r} for f, r in zip(args.files, readings, strict=True)]
    if args.json:
        print(json.dumps(records, indent=1))
        return
    for r in records:
        print(f"{r['file']}: {_sentence(r) if r['valid'] else 'no scene'}")


def _open(file: Path) -> np.ndarray:
    """A picture file as uint8 (32, 32, 3), reduced by area."""
    try:
        image = Image.fromarray(open_picture(file)).convert("RGB")
    except ValueError as error:
        raise WrongInput(str(error)) from None
    width, height = image.size
    if width != height or width % 32:
        raise WrongInput(
            f"{file} is {width} x {height}: a square of 32, 64, 96, ... pixels is needed"
        )
    return np.asarray(image.resize((32, 32), Image.BOX))


def _sentence(reading: dict) -> str:
    nouns = [f"a {o['size']} {o['colour']} {o['shape']} ({o['place']})" for o in reading["objects"]]
    return f"{' and '.join(nouns)}, background {reading['background']}, style {reading['style']}"


def _export(args) -> None:
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise WrongInput(f"{args.out} exists and is not an empty folder; nothing was written")
    from common.scenes.builder import SPLITS, load  # tfds takes a second to import

    if args.num > SPLITS[args.split]:
        raise WrongInput(f"split {args.split} has only {SPLITS[args.split]} scenes")
    data = load(args.split, args.size)
    scenes: list[Scene] = data["scenes"][: args.num]
    rng = np.random.default_rng(0)
    captions = [caption(scene, rng) for scene in scenes]
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        with open(args.out / "captions.jsonl", "w") as records:
            for i, (scene, text) in enumerate(zip(scenes, captions, strict=True)):
                Image.fromarray(data["image"][i]).save(args.out / f"{i:05d}.png")
                scene_fields = json.loads(scene_to_json(scene))
                record = {"file": f"{i:05d}.png", "caption": text, "scene": scene_fields}
                records.write(json.dumps(record) + "\n")
        (args.out / "captions.txt").write_text("\n".join(captions) + "\n")
    except OSError as error:
        raise WrongInput(f"cannot write {args.out}: {error.strerror}") from None
    print(f"{args.out}: {len(scenes)} pictures, captions.txt, captions.jsonl")


def _prepare(args) -> None:
    from common.scenes.builder import prepare

    print(prepare().data_path)


def _check(args) -> None:
    if args.seed < 0:
        raise WrongInput("--seed must be 0 or more")
    from common.scenes.check import table

    print(table(args.num, args.seed))


if __name__ == "__main__":
    sys.exit(main())
