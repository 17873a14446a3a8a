"""What a study leaves: the command that repeats it, its numbers as JSON, its figures as WebP."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import plot

PLACES = ("out", "runs")  # where things lie; the result does not depend on them


def command(program: str, config: Any) -> str:
    """"python -m glide study --quick": the program and the options that are not the default's."""
    plain = asdict(type(config)())
    words = ["python", "-m", program]
    for name, value in asdict(config).items():
        if value != plain[name] and name not in PLACES:
            values = value if isinstance(value, tuple) else () if value is True else (value,)
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return " ".join(words)


def save(path: Path, numbers: dict, figures: Any) -> None:
    """Prints the claims that numbers hold; writes `path` and, beside it, the figure as a WebP.

    figures: a picture, or several by name; each of these is named as `path`, in place of its part:
    glide_guidance.json, {"strip": ...} -> glide_strip.webp.
    """
    for found in numbers.get("claims", ()):
        print(f"{found['holds']:5}{found['claim']}: {found['value']:+.3f} "
              f"({found['low']:+.3f} to {found['high']:+.3f})")  # fmt: skip
    path.write_text(json.dumps(numbers, indent=1) + "\n")
    package, part = path.stem.split("_", 1)
    for name, figure in (figures if isinstance(figures, dict) else {part: figures}).items():
        plot.save(figure, path.with_name(f"{package}_{name}.webp"))
    print(f"numbers: {path}")
