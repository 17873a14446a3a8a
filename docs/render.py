"""The site: python docs/render.py [--no-execute]

Gathers its pages in build/docs, laid out as the repository is (so that links between them hold),
and renders them with Sphinx into build/site: the lessons, run (QUICK= for their full length), the
packages' pages, the figures of the studies, the instructors' page and every public docstring.
"""

import argparse
import json
import os
import re
import shutil
import sys
from pathlib import Path

import jupytext
import nbformat

ROOT = Path(__file__).resolve().parent.parent
PAGES, SITE = ROOT / "build" / "docs", ROOT / "build" / "site"
PACKAGES = ("common", "glide", "ldm", "unclip", "sdedit")
sys.path.insert(0, str(ROOT / "lessons"))

import build  # noqa: E402  (lessons/build.py)


def fold(cell, what: str) -> None:
    """The cell's code behind a button; what it shows stays."""
    prompts = {"code_prompt_show": f"Show {what}", "code_prompt_hide": f"Hide {what}"}
    cell.metadata = {"tags": ["hide-input"], "mystnb": prompts}


def lesson(path: Path) -> nbformat.NotebookNode:
    """The lesson to read: exercises as handed out, their solutions and checks folded away."""
    book, cells = jupytext.read(path, fmt="py:percent"), []
    for cell in book.cells:
        if build.SOLUTION.search(cell.source):
            stub = f"```python\n{build.strip(cell.source)}\n```"
            cells.append(nbformat.v4.new_markdown_cell(stub))
            cell.source = re.sub(r"^[ \t]*# (BEGIN|END) SOLUTION\n?", "", cell.source, flags=re.M)
            fold(cell, "a solution")
        elif "check" in cell.metadata.get("tags", []):
            fold(cell, "the check")
        cells.append(cell)
    for i, cell in enumerate(cells):
        cell.id = f"{path.stem}-{i:02d}"
    metadata = {"kernelspec": build.KERNEL, "language_info": {"name": "python"}}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def lesson_table() -> str:
    """One row a lesson, from the lesson itself: title, minutes, "After this you can ..."."""
    rows = ["| lesson | minutes | after it you can |", "|---|---|---|"]
    for path in build.sources():
        text = re.sub(r"^# ?", "", path.read_text(), flags=re.M)
        title = re.search(r"^# (.*)", text, re.M)[1]
        minutes = re.search(r"\*\*(\d+) minutes\*\*", text)[1]
        aim = re.search(r"After this you can\s+(.*?)[.:]\s", text, re.S)[1].replace("\n", " ")
        rows.append(f"| [{title}](lessons/{path.stem}.ipynb) | {minutes} | {aim} |")
    return "\n".join(rows)


def figures() -> str:
    """Every picture in lessons/figures, with what a README says of it and how it was made."""
    said = "\n".join(p.read_text() for p in [ROOT / "README.md", *ROOT.glob("*/README.md")])
    parts = ["# Figures of the studies"]
    parts += ["Each is drawn by `python -m PACKAGE study`, with its numbers in the JSON beside it."]
    for path in sorted((ROOT / "lessons" / "figures").glob("*.webp")):
        title = path.stem.replace("_", " · ", 1).replace("_", " ")
        alt = re.search(rf"!\[([^]]*)\]\([^)]*{path.name}\)(?:\n+\*([^*]+)\*\n)?", said)
        image = f"![{alt[1] if alt else title}](lessons/figures/{path.name})"
        parts += [f"## {title}", image, *([alt[2].replace("\n", " ")] if alt and alt[2] else [])]
        if (numbers := path.with_suffix(".json")).exists():
            facts = json.loads(numbers.read_text())
            known = [f"`{facts['command']}`"] if "command" in facts else []
            known += [f"{name} {facts[name]}" for name in ("seed", "n", "num") if name in facts]
            parts.append(f"{', '.join(known)} · [numbers](lessons/figures/{numbers.name})")
    return "\n\n".join(parts) + "\n"


def api(package: str) -> str:
    """A page of a package: the docstrings of its public modules, in the order of their names."""
    parts = [f"# {package}"]
    for path in sorted((ROOT / package).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if path.stem == "__main__" or not path.read_text().strip():
            continue
        directive = f"```{{eval-rst}}\n.. automodule:: {module}\n```"
        parts.append(f"## {module}\n\n{directive}")
    return "\n\n".join(parts) + "\n"


def gather() -> None:
    """All pages into build/docs. A page that did not change is not touched: Sphinx skips it."""
    pages = {
        f"lessons/{path.stem}.ipynb": nbformat.writes(lesson(path)) for path in build.sources()
    }
    pages |= {name: (ROOT / name).read_text() for name in map("{}/README.md".format, PACKAGES[1:])}
    own = "conf.py", "style.css", "instructors.md", "scale.md", "speed.md", "studio.md"
    pages |= {name: (ROOT / "docs" / name).read_text() for name in own}
    pages["index.md"] = (ROOT / "docs/index.md").read_text().replace("LESSONS", lesson_table())
    pages["figures.md"] = figures()
    pages |= {f"api/{package}.md": api(package) for package in PACKAGES}
    for old in (p for p in PAGES.rglob("*") if p.is_file()):
        if old.relative_to(PAGES).as_posix() not in pages:
            old.unlink()
    for name, text in pages.items():
        path = PAGES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    shutil.copytree(ROOT / "lessons/figures", PAGES / "lessons/figures", dirs_exist_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-execute", action="store_true", help="lessons without their outputs")
    asked = parser.parse_args()
    from sphinx.cmd.build import build_main

    gather()
    os.environ.setdefault("QUICK", "1")
    os.environ |= {"GUIDEBOOK": str(ROOT), "EXECUTE": "off" if asked.no_execute else "cache"}
    sys.path.insert(0, str(ROOT))
    trees = str(ROOT / "build" / "doctrees")
    return build_main(["-q", "-W", "--keep-going", "-d", trees, str(PAGES), str(SITE)])


if __name__ == "__main__":
    sys.exit(main())
