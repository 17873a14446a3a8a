"""Lessons to notebooks: python lessons/build.py [--check]

Every lessons/NN_name.py (py:percent, the only edited form) becomes lessons/notebooks/NN_name.ipynb:
no outputs, no solutions, the same bytes on every machine, and a cell that only Colab needs. --check
writes nothing and fails, in one line, when a notebook is not what its lesson gives.

Once pyproject.toml says where the repository is published ([project.urls] Repository = "https://
github.com/OWNER/NAME"), each notebook begins with a badge that opens it in Colab.
"""

import re
import sys
import tomllib
from pathlib import Path

import jupytext
import nbformat

LESSONS = Path(__file__).resolve().parent
NOTEBOOKS = LESSONS / "notebooks"
SOLUTION = re.compile(r"^([ \t]*)# BEGIN SOLUTION\n(.*?)^[ \t]*# END SOLUTION[ \t]*$", re.M | re.S)
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
BADGE = """[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]\
(https://colab.research.google.com/github/{name}/blob/main/lessons/notebooks/{stem}.ipynb)"""
SETUP = """# Only Colab needs this cell: it fetches the guidebook and the packages that are missing.
# Colab's own jax and numpy stay as they are.
import importlib.metadata
import os
import subprocess
import sys

address = "{address}"
needs = "{needs}"
if "google.colab" in sys.modules:
    if address and not os.path.exists("guidebook"):
        subprocess.run(["git", "clone", "--depth", "1", address, "guidebook"], check=True)
    if not os.path.exists("guidebook"):
        raise FileNotFoundError("put the guidebook's files into a folder 'guidebook' here")
    os.environ["GUIDEBOOK"] = os.path.abspath("guidebook")
    here = {{d.name.lower().replace("_", "-") for d in importlib.metadata.distributions()}}
    with open("kept.txt", "w") as file:
        for name in ("jax", "jaxlib", "numpy"):
            print(f"{{name}}=={{importlib.metadata.version(name)}}", file=file)
    missing = [name for name in needs.split() if name not in here]
    if missing:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "-c", "kept.txt"]
        subprocess.run([*pip, *missing], check=True)"""


def sources() -> list[Path]:
    """The lessons, in order."""
    return sorted(LESSONS.glob("[0-9][0-9]_*.py"))


def exercise_name(code: str) -> str:
    """What an exercise cell is called: the last function or name begun before its solution."""
    before = code[: SOLUTION.search(code).start()]
    return re.findall(r"^(?:def )?(\w+)(?=\(| =)", before, re.M)[-1]


def replace_solution(code: str, answer: str) -> str:
    """The cell with `answer`, any number of unindented lines, where the solution was."""

    def put(match):
        return "\n".join(match[1] + line if line else line for line in answer.splitlines())

    return SOLUTION.sub(put, code)


def strip(code: str) -> str:
    """The cell as the student gets it."""
    if not SOLUTION.search(code):
        return code
    return replace_solution(code, f'raise NotImplementedError("your turn: {exercise_name(code)}")')


def colab(stem: str, project: dict) -> tuple[list, object]:
    """(its badge as a list of cells, none without an address; the set-up cell) of a lesson."""
    address = project.get("urls", {}).get("Repository", "")
    needs = [re.match(r"[\w-]+", d)[0].replace("_", "-") for d in project["dependencies"]]
    needs = " ".join(name for name in needs if name not in ("jax", "numpy"))
    name = address.removeprefix("https://github.com/")
    badge = [nbformat.v4.new_markdown_cell(BADGE.format(name=name, stem=stem))] if address else []
    return badge, nbformat.v4.new_code_cell(SETUP.format(address=address, needs=needs))


def with_colab(book, stem: str):
    """The notebook with Colab's cells: the badge on top, the set-up behind the title, if any."""
    if book.cells[0].cell_type != "markdown":
        return book
    project = tomllib.loads((LESSONS.parent / "pyproject.toml").read_text())["project"]
    badge, setup = colab(stem, project)
    book.cells = [*badge, book.cells[0], setup, *book.cells[1:]]
    return book


def notebook(source: Path) -> str:
    """The notebook's text: solutions out, cell ids counted, nothing that varies."""
    book = with_colab(jupytext.read(source, fmt="py:percent"), source.stem)
    for i, cell in enumerate(book.cells):
        cell.id = f"{source.stem}-{i:02d}"
        cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags"}
        if cell.cell_type == "code":
            cell.source, cell.outputs, cell.execution_count = strip(cell.source), [], None
    book.metadata, book.nbformat, book.nbformat_minor = {"kernelspec": KERNEL}, 4, 5
    nbformat.validate(book)
    return nbformat.writes(book) + "\n"


def main(check: bool) -> None:
    wanted = {NOTEBOOKS / f"{s.stem}.ipynb": notebook(s) for s in sources()}
    there = set(NOTEBOOKS.glob("*.ipynb"))
    stale = {p for p, text in wanted.items() if p not in there or p.read_text() != text}
    stale |= there - set(wanted)
    if check and stale:
        names = ", ".join(sorted(p.name for p in stale))
        sys.exit(f"lessons/notebooks is stale ({names}): run python lessons/build.py")
    NOTEBOOKS.mkdir(exist_ok=True)
    for path in sorted(stale) if not check else ():
        path.write_text(wanted[path]) if path in wanted else path.unlink()
        print(("wrote " if path in wanted else "removed ") + str(path.relative_to(LESSONS.parent)))


if __name__ == "__main__":
    if set(sys.argv[1:]) - {"--check"}:
        sys.exit(__doc__)
    main("--check" in sys.argv)
