"""The site's own code: pages gathered from what is there, and a check that finds faults.

Sphinx is not needed here; `make site` runs it, and docs/check.py over what it made.
"""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "lessons")]

import build  # noqa: E402
import check  # noqa: E402
import render  # noqa: E402

LESSONS = build.sources()


def test_every_lesson_has_a_row_with_its_minutes_and_its_aim():
    rows = render.lesson_table().splitlines()[2:]
    assert len(rows) == len(LESSONS)
    for row, path in zip(rows, LESSONS, strict=True):
        assert re.fullmatch(rf"\| \[.+\]\(lessons/{path.stem}.ipynb\) \| \d+ \| .{{15,}} \|", row)


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_a_lesson_to_read_runs_the_solution_and_shows_the_stub(path):
    cells = render.lesson(path).cells
    assert "SOLUTION" not in "".join(cell.source for cell in cells)
    solutions = [i for i, c in enumerate(cells) if "a solution" in str(c.metadata)]
    sources = re.findall("BEGIN SOLUTION", path.read_text())
    assert len(solutions) == len(sources) > 0
    for i in solutions:
        assert "raise NotImplementedError" in cells[i - 1].source
        assert "raise NotImplementedError" not in cells[i].source


def test_every_public_module_and_every_figure_has_a_place():
    text = "".join(map(render.api, render.PACKAGES))
    for name in ("common.guidance", "common.scenes.reader", "glide.model", "unclip.edit"):
        assert f"automodule:: {name}\n" in text
    shown = render.figures()
    for path in (ROOT / "lessons" / "figures").glob("*.webp"):
        assert f"](lessons/figures/{path.name})" in shown


def test_dead_links_and_other_hosts_are_found(tmp_path):
    (tmp_path / "b.html").write_text('<p id="here">')
    good = '<a href="b.html#here"></a><a href="https://elsewhere.example"></a><img src="data:,">'
    (tmp_path / "a.html").write_text(good)
    assert check.faults_of_links(tmp_path) == []
    bad = '<a href="c.html"></a><a href="b.html#there"></a><script src="https://x.example/y.js">'
    (tmp_path / "a.html").write_text(bad)
    assert check.faults_of_links(tmp_path) == [
        "a.html: no c.html",
        "a.html: no b.html#there (the place in the page)",
        "a.html: loads https://x.example/y.js",
    ]
