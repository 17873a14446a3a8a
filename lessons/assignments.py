"""Lessons as assignments: python lessons/assignments.py [build | check | grade] [NAME] [FILE ...]

    build [NAME]        an nbgrader course in build/assignments: source/ with solutions and hidden
                        tests, release/ for students
    check [NAME]        run both of them: the solution must get every point and the stub none
    grade NAME FILE...  points of students' notebooks, as CSV; needs no database

A lesson's exercises become solution cells; the first check after each gets its point, and the
hidden test. docs/instructors.md says how to hand out, collect and grade.
"""

import argparse
import os
import runpy
import sys
from argparse import RawTextHelpFormatter
from pathlib import Path
from textwrap import indent

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

import build

ROOT = Path(__file__).resolve().parent.parent
COURSE = ROOT / "build" / "assignments"
HIDDEN = Path(__file__).parent / "hidden_tests.py"
STUB = 'raise NotImplementedError("your turn")'
TIMEOUT = 300  # seconds that a cell may take
CONFIG = f"""import os

os.environ.setdefault("QUICK", "1")  # the lessons' short runs
os.environ.setdefault("GUIDEBOOK", {str(ROOT)!r})  # for the kernels
c = get_config()
c.CourseDirectory.course_id = "guidebook"
c.ClearSolutions.code_stub = {{"python": {STUB!r}}}
c.ExecutePreprocessor.timeout = {TIMEOUT}
"""


def source(path: Path, hidden: dict[str, str]) -> NotebookNode:
    """The instructor's notebook of a lesson, with nbgrader's marks; hidden: {exercise: code}."""
    book = build.with_colab(jupytext.read(path, fmt="py:percent"), path.stem)
    exercise, unused = None, dict(hidden)
    for i, cell in enumerate(book.cells):
        tags, cell.id = cell.metadata.get("tags", []), f"{path.stem}-{i:02d}"
        if build.SOLUTION.search(cell.source):
            exercise = build.exercise_name(cell.source)
            mark = {"solution": True, "locked": False, "grade": False, "grade_id": exercise}
        elif "check" in tags and exercise:
            mark = {"solution": False, "locked": True, "grade": True, "points": 1}
            mark["grade_id"] = f"check-{exercise}"
            if code := unused.pop(exercise, ""):
                body = indent(code.strip("\n"), "    ")  # a function: the notebook's names stay
                body = f"def hidden_test():\n{body}\n\n\nhidden_test()"
                cell.source += f"\n### BEGIN HIDDEN TESTS\n{body}\n### END HIDDEN TESTS"
            exercise = None
        else:
            continue
        cell.metadata["nbgrader"] = mark | {"schema_version": 3, "task": False}
    if unused:
        raise ValueError(f"{path.name} has no check of {', '.join(unused)}: mend the hidden tests")
    book.metadata, book.nbformat, book.nbformat_minor = {"kernelspec": build.KERNEL}, 4, 5
    return book


def release(book: NotebookNode) -> NotebookNode:
    """What students get: nbgrader's own steps, without its database."""
    from nbgrader import preprocessors as steps

    solutions = steps.ClearSolutions(code_stub={"python": STUB})
    others = steps.ClearOutput(), steps.ClearHiddenTests(), steps.ComputeChecksums()
    book = nbformat.from_dict(book)
    for step in (steps.LockCells(), solutions, *others, steps.CheckCellMetadata()):
        book, _ = step.preprocess(book, {})
    return book


def answers(submission: NotebookNode, exercises: dict[str, str]) -> dict[str, str]:
    """{exercise: code} from a student's notebook; exercises: their code in the source.

    A cell is known by nbgrader's mark or, where an editor dropped it, by the line that it begins
    with. Of two the last counts, as when the notebook is run.
    """
    heads = {code.split("\n")[0]: name for name, code in exercises.items()}
    found = {}
    for cell in submission.cells:
        marked = cell.metadata.get("nbgrader", {}).get("grade_id")
        name = marked if marked in exercises else heads.get(cell.source.split("\n")[0])
        if cell.cell_type == "code" and name:
            found[name] = cell.source
    return found


def grade(book: NotebookNode, submission: NotebookNode, timeout: int = TIMEOUT) -> dict[str, float]:
    """{exercise: points}: the source notebook, run with the student's answers in it.

    Nothing else of the submission is run: checks that were changed, deleted or duplicated do not
    matter. An exercise that is not there counts as not answered.
    """
    from nbgrader.utils import determine_grade, is_grade, is_solution

    book, path = nbformat.from_dict(book), str(COURSE)
    marked = {c.metadata.nbgrader.grade_id: c for c in book.cells if is_solution(c)}
    given = answers(submission, {name: cell.source for name, cell in marked.items()})
    for name, cell in marked.items():
        cell.source = given.get(name, STUB)
    options = {"timeout": timeout, "allow_errors": True, "interrupt_on_timeout": True}
    NotebookClient(book, resources={"metadata": {"path": path}}, **options).execute()
    checks = [cell for cell in book.cells if is_grade(cell)]
    names = [c.metadata.nbgrader.grade_id.removeprefix("check-") for c in checks]
    return {name: determine_grade(c)[0] for name, c in zip(names, checks, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("command", choices=["build", "check", "grade"], nargs="?", default="build")
    parser.add_argument("name", nargs="?", help="a lesson, such as 00_jax; none means all")
    parser.add_argument("files", nargs="*", type=Path, help="students' notebooks")
    parser.add_argument("--hidden", type=Path, default=HIDDEN, help="a file like hidden_tests.py")
    asked = parser.parse_args()
    lessons = [path for path in build.sources() if asked.name in (None, path.stem)]
    if not lessons or (asked.command == "grade" and not asked.files):
        sys.exit(f"no lesson {asked.name}" if not lessons else "grade needs a lesson and notebooks")
    tests = runpy.run_path(str(asked.hidden))["HIDDEN"]
    books = {path.stem: source(path, tests.get(path.stem, {})) for path in lessons}
    COURSE.mkdir(parents=True, exist_ok=True)
    os.environ.update(QUICK="1", GUIDEBOOK=str(ROOT))
    if asked.command == "build":
        (COURSE / "nbgrader_config.py").write_text(CONFIG)
        for stem, book in books.items():
            for kind, version in {"source": book, "release": release(book)}.items():
                path = COURSE / kind / stem / f"{stem}.ipynb"
                path.parent.mkdir(parents=True, exist_ok=True)
                nbformat.write(version, path)
        print(
            f"{len(books)} assignments in {COURSE.relative_to(ROOT)}, hidden tests in source/ only"
        )
    for stem, book in books.items() if asked.command == "check" else ():
        for name, version, point in ("solution", book, 1.0), ("stub", release(book), 0.0):
            marks = grade(book, version)
            print(stem, name, marks, flush=True)
            if set(marks.values()) != {point}:
                sys.exit(f"{stem}: the {name} must get {point:g} everywhere; is all installed?")
    for file in asked.files if asked.command == "grade" else ():
        marks = grade(books[asked.name], nbformat.read(file, 4))
        if file == asked.files[0]:
            print("file,points,of", *marks, sep=",")
        print(file, sum(marks.values()), len(marks), *marks.values(), sep=",", flush=True)


if __name__ == "__main__":
    main()
