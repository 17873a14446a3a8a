"""What a study leaves behind can be made again from what it says."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from common import report


@dataclass(frozen=True)
class Config:
    part: str = "all"
    quick: bool = False
    guidance_scale: float = 3.0
    scales: tuple[float, ...] = (1, 2)
    weights: tuple[Path, ...] = (Path("a"),)
    num: int | None = None
    out: Path = Path("here")


def test_the_command_names_what_is_not_the_default_and_not_where_files_lie():
    assert report.command("glide study", Config(out=Path("there"))) == "python -m glide study"
    given = Config(quick=True, guidance_scale=2.5, scales=(3,), weights=(Path("b"), Path("c")))
    wanted = "python -m x --quick --guidance-scale 2.5 --scales 3 --weights b c"
    assert report.command("x", given) == wanted


def test_a_study_leaves_its_numbers_and_each_figure_under_its_name(tmp_path, capsys):
    claim = {"claim": "more is more", "value": 0.5, "low": 0.25, "high": 0.75, "holds": "yes"}
    numbers = {"rows": [1, 2], "claims": [claim]}
    figures = {"t0": np.zeros((8, 8, 3), np.uint8), "strip": np.full((8, 16, 3), 255, np.uint8)}
    report.save(tmp_path / "sdedit_t0.json", numbers, figures)
    assert "yes  more is more: +0.500 (+0.250 to +0.750)" in capsys.readouterr().out
    assert json.loads((tmp_path / "sdedit_t0.json").read_text()) == numbers
    assert Image.open(tmp_path / "sdedit_strip.webp").size == (16, 8)
    report.save(tmp_path / "glide_a_b.json", {"rows": []}, figures["t0"])
    assert Image.open(tmp_path / "glide_a_b.webp").size == (8, 8)
