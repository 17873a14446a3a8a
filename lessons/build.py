"""Lessons to notebooks: python lessons/build.py [--check]

Every lessons/NN_name.py (py:percent, the only edited form) becomes lessons/notebooks/NN_name.ipynb:
no outputs, no solutions, the same bytes on every machine. --check writes nothing and fails, in one
line, when a notebook is not what its lesson gives.
"""

import re
import sys
from pathlib import Path

import jupytext
import nbformat

LESSONS = Path(__file__).resolve().parent
NOTEBOOKS = LESSONS / "notebooks"
SOLUTION = re.compile(r"^([ \t]*)# BEGIN SOLUTION\n(.*?)^[ \t]*# END SOLUTION[ \t]*$", re.M | re.S)
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


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


def notebook(source: Path) -> str:
    """The notebook's text: solutions out, cell ids counted, nothing that varies."""
    book = jupytext.read(source, fmt="py:percent")
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
