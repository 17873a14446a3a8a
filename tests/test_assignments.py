"""Assignments: what students get holds nothing that they should not see, and grades are just."""

import sys
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("nbgrader", reason="nbgrader is not installed: make assignments installs it")

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "lessons"))

import assignments  # noqa: E402
import build  # noqa: E402
from hidden_tests import HIDDEN  # noqa: E402

LESSON = '''# %% tags=["exercise"]
def double(x):
    """Twice x."""
    # BEGIN SOLUTION
    return 2 * x
    # END SOLUTION

# %% tags=["check"]
assert double(3) == 6, "twice three is six: multiply by two"
'''
TESTS = {"double": "assert double(5) == 10, 'hidden words'"}


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    path = tmp_path_factory.mktemp("lesson") / "00_short.py"
    path.write_text(LESSON)
    assignments.COURSE = path.parent
    return assignments.source(path, TESTS)


def submission(book, answer):
    """The students' notebook with the answer where the stub was."""
    handed = assignments.release(book)
    assert assignments.STUB in handed.cells[0].source
    handed.cells[0].source = handed.cells[0].source.replace(assignments.STUB, answer)
    return handed


def tampered(handed):
    handed.cells[1].source = "pass"
    return handed


def undone(handed):
    """As an editor that drops the marks of cells leaves it, and with its check deleted."""
    del handed.cells[1:], handed.cells[0].metadata["nbgrader"]
    return handed


@pytest.mark.parametrize(
    "hand_in, points",
    [
        (lambda book: book, 1),
        (lambda book: assignments.release(book), 0),
        (lambda book: submission(book, "return x + 3"), 0),  # right for the visible check only
        (lambda book: tampered(submission(book, "return x")), 0),
        (lambda book: undone(submission(book, "return x + x")), 1),
    ],
    ids=["solution", "stub", "wrong answer", "tampered test", "right, marks and check lost"],
)
def test_a_grade_is_just(book, hand_in, points):
    assert assignments.grade(book, hand_in(book)) == {"double": points}


def test_an_endless_loop_is_stopped_and_gets_nothing(book):
    endless = submission(book, "while True: pass")
    assert assignments.grade(book, endless, timeout=2) == {"double": 0}


def test_of_two_answers_the_last_counts_and_a_missing_one_is_none(book):
    code = {"double": book.cells[0].source}
    twice = submission(book, "return 1")
    twice.cells.append(nbformat.v4.new_code_cell("def double(x):\n    return 2"))
    assert assignments.answers(twice, code) == {"double": twice.cells[-1].source}
    twice.cells = []
    assert assignments.answers(twice, code) == {}


@pytest.mark.parametrize("path", build.sources(), ids=lambda p: p.stem)
def test_students_get_no_solution_and_no_hidden_test(path):
    book = assignments.source(path, HIDDEN.get(path.stem, {}))
    handed = assignments.release(book)
    nbformat.validate(handed)
    text = nbformat.writes(handed)
    assert "SOLUTION" not in text and "hidden_test" not in text and "HIDDEN" not in text
    pairs = list(zip(book.cells, handed.cells, strict=True))
    for ours, theirs in pairs:
        mark = ours.metadata.get("nbgrader", {})
        if mark.get("solution"):
            assert assignments.STUB in theirs.source
            assert build.SOLUTION.search(ours.source)[2] not in theirs.source
        if mark.get("grade"):
            assert theirs.metadata.editable is False and theirs.metadata.deletable is False
    points = sum(ours.metadata.get("nbgrader", {}).get("points", 0) for ours, _ in pairs)
    assert points == sum(bool(build.SOLUTION.search(ours.source)) for ours, _ in pairs) > 0


def test_hidden_tests_belong_to_an_exercise(tmp_path):
    assert set(HIDDEN) <= {path.stem for path in build.sources()}
    (tmp_path / "00_short.py").write_text(LESSON)
    with pytest.raises(ValueError, match="00_short.py has no check of triple"):
        assignments.source(tmp_path / "00_short.py", {"triple": "assert True"})
