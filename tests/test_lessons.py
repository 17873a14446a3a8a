"""Every lesson runs; its notebook is current and holds no solution; its checks catch wrong answers.

The checks are tried on the solutions and on lesson_wrong_answers.py, inside one run of the lesson.
"""

import ast
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jupytext
import nbformat
import pytest
from lesson_wrong_answers import WRONG

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "lessons"))

import build  # noqa: E402

LESSONS = build.sources()
STEMS = [p.stem for p in LESSONS]
# A student's jax: ours in conftest.py is stricter, and would raise where a check should explain.
STUDENT = {"JAX_PLATFORMS": "cpu", "JAX_NUMPY_RANK_PROMOTION": "allow", "QUICK": "1"}
HASTY = "jax_disable_most_optimizations"  # on in the other tests
COLAB = "# Only Colab needs this cell", "[![Open in Colab]"
DEVICES = "--xla_force_host_platform_device_count"
STUDENT |= {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}


def cells(path):
    return jupytext.read(path, fmt="py:percent").cells


def code_cells(path):
    return [c for c in cells(path) if c.cell_type == "code"]


def is_check(cell):
    return "check" in cell.metadata.get("tags", [])


def is_exercise(cell):
    return "exercise" in cell.metadata.get("tags", [])


def run(source, namespace):
    exec(compile(source, "<cell>", "exec"), namespace)


def answered(source, answer):
    """An exercise cell with this answer in it."""
    return build.replace_solution(source, textwrap.dedent(answer).strip("\n"))


def wants_devices(path):
    """Does the lesson simulate devices, and has this process only one?"""
    return DEVICES in path.read_text() and jax.device_count() == 1


def run_with_devices(node):
    """The same test in a process of its own: devices are simulated before jax is imported."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}=8"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", node.nodeid]
    options = {"cwd": ROOT, "env": {**os.environ, "XLA_FLAGS": flags}, "text": True}
    result = subprocess.run(command, capture_output=True, **options)
    assert result.returncode == 0 and "1 passed" in result.stdout, result.stdout + result.stderr


@pytest.fixture(autouse=True)
def as_a_student(monkeypatch, request):
    """No display, short runs, and jax as it comes; programs that draw much are optimised."""
    for name, value in STUDENT.items():
        monkeypatch.setenv(name, value)
    with jax.numpy_rank_promotion("allow"), jax.debug_key_reuse(False):
        path = getattr(request.node, "callspec", None) and request.node.callspec.params.get("path")
        if path and "SHIPPED" in path.read_text():  # others compile more than they draw
            jax.config.update(HASTY, False)
        yield
    jax.config.update(HASTY, os.environ.get(HASTY.upper()) == "1")
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.mark.parametrize("path", LESSONS, ids=STEMS)
def test_a_picture_ends_its_cell_or_a_notebook_would_not_show_it(path):
    for cell in code_cells(path):
        for statement in ast.parse(cell.source).body[:-1]:
            call = getattr(getattr(statement, "value", None), "func", None)
            drawn = isinstance(statement, ast.Expr) and ast.unparse(call or statement)
            assert drawn not in ("plot.grid", "plot.curve", "plot.strip"), cell.source


@pytest.mark.slow
def test_a_lesson_runs_in_a_kernel_and_shows_its_figures(monkeypatch):
    """The first one, solutions in, started in the folder of its notebook; no path is set."""
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.delenv("MPLBACKEND")
    book = nbformat.from_dict(jupytext.read(LESSONS[0], fmt="py:percent"))
    book.metadata["kernelspec"] = build.KERNEL
    where = {"metadata": {"path": str(build.NOTEBOOKS)}}
    nbclient.NotebookClient(book, timeout=300, resources=where).execute()
    shown = [o["data"] for c in book.cells for o in c.get("outputs", []) if "data" in o]
    assert sum("image/png" in data for data in shown) == 2


@pytest.mark.slow
@pytest.mark.parametrize("path", LESSONS, ids=STEMS)
def test_a_lesson_runs_for_a_stuck_student_and_checks_tell_right_from_wrong(path, request):
    """One run of the cells as handed out, which only exercises and checks may stop.

    After each exercise its checks are also tried on the solution and on the wrong answers.
    """
    if wants_devices(path):
        return run_with_devices(request.node)
    blank, solved, tries = {"__name__": "__main__"}, {}, {}
    wrong = dict(WRONG.get(path.stem, {}))
    for cell in code_cells(path):
        if not is_check(cell):
            assert not set(tries) - {"solution"}, f"passed: {set(tries) - {'solution'}}"
            tries = {}
        exercise = build.SOLUTION.search(cell.source)
        stopped = False
        try:
            run(build.strip(cell.source) if exercise else cell.source, blank)
        except NotImplementedError as error:
            stopped = True
            assert "your turn" in str(error) and (exercise or is_check(cell))
        if exercise:
            name = build.exercise_name(cell.source)
            answers = wrong.pop(name, ())
            sources = {"solution": cell.source} | {a: answered(cell.source, a) for a in answers}
            tries = {answer: {**blank, **solved} for answer in sources}
            for answer, source in sources.items():
                run(source, tries[answer])
            solved[name] = tries["solution"][name]  # a later exercise may use it
        elif tries:
            assert stopped, f"nothing was answered, and this passed: {cell.source}"
        for answer, namespace in list(tries.items()) if is_check(cell) else ():
            try:
                run(cell.source, namespace)
            except Exception as error:
                if answer == "solution":
                    raise
                del tries[answer]
                assert not isinstance(error, NotImplementedError), answer
                assert len(str(error)) >= 20, f"{answer}: {error!r} teaches nothing"
    assert not tries, "an exercise without a check"
    assert not wrong, f"no such exercise in {path.name}: {', '.join(wrong)}"


@pytest.mark.parametrize("stem", STEMS)
def test_each_exercise_has_three_wrong_answers(stem):
    path = ROOT / "lessons" / f"{stem}.py"
    exercises = [c.source for c in code_cells(path) if build.SOLUTION.search(c.source)]
    names = [build.exercise_name(source) for source in exercises]
    assert 1 <= len(names) <= 3
    for name in names:
        assert len(WRONG[stem][name]) >= 3, name


@pytest.mark.parametrize("path", LESSONS, ids=STEMS)
def test_a_lesson_is_short_and_its_notebook_gives_nothing_away(path):
    assert len(path.read_text().splitlines()) <= 250
    given = nbformat.read(build.NOTEBOOKS / f"{path.stem}.ipynb", 4)
    nbformat.validate(given)
    text = "\n".join(c.source for c in given.cells)
    assert "SOLUTION" not in text
    for_colab = [c for c in given.cells if c.source.startswith(COLAB)]
    assert COLAB[0] in for_colab[-1].source and given.cells.index(for_colab[-1]) <= 2
    own = [c for c in given.cells if c not in for_colab]
    for cell, handed in zip(cells(path), own, strict=True):
        assert not handed.get("outputs")
        match = build.SOLUTION.search(cell.source)
        if match:
            assert "raise NotImplementedError" in handed.source and is_exercise(cell)
            assert match[2] not in text
        else:
            assert handed.source == cell.source


def test_the_notebooks_are_current_and_built_alike_twice():
    command = [sys.executable, str(ROOT / "lessons" / "build.py"), "--check"]
    result = subprocess.run(command, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert all(build.notebook(path) == build.notebook(path) for path in LESSONS)


def test_a_stale_or_orphaned_notebook_is_named_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "LESSONS", tmp_path)
    monkeypatch.setattr(build, "NOTEBOOKS", tmp_path / "notebooks")
    (tmp_path / "00_a.py").write_text("# %%\nprint(1)\n")
    build.main(check=False)
    build.main(check=True)
    (tmp_path / "00_a.py").write_text("# %%\nprint(2)\n")
    (tmp_path / "notebooks" / "99_gone.ipynb").write_text("{}")
    with pytest.raises(SystemExit, match=r"stale \(00_a.ipynb, 99_gone.ipynb\): run python \S+$"):
        build.main(check=True)
    build.main(check=False)
    assert [p.name for p in (tmp_path / "notebooks").iterdir()] == ["00_a.ipynb"]


PROJECT = {"dependencies": ["jax>=0.7", "numpy>=2.0", "pytest>=8", "no-such_package>=1"]}


def set_up(tmp_path, monkeypatch, project):
    """Runs Colab's cell in an empty folder, as Colab would -> the commands that it gives."""
    commands = []

    def run(command, check):
        assert check
        commands.append(command)
        if command[0] == "git":
            (tmp_path / "guidebook").mkdir()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GUIDEBOOK", "")
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    monkeypatch.setattr(subprocess, "run", run)
    run_setup(project)
    return commands


def run_setup(project):
    exec(build.colab("00_a", project)[1].source, {})


def test_colabs_cell_fetches_what_is_missing_and_keeps_jax_and_numpy(tmp_path, monkeypatch):
    address = "https://github.com/someone/guidebook"
    project = PROJECT | {"urls": {"Repository": address}}
    clone, install = set_up(tmp_path, monkeypatch, project)
    assert clone[:2] == ["git", "clone"] and address in clone
    assert os.environ["GUIDEBOOK"] == str(tmp_path / "guidebook")
    assert install[install.index("-c") + 2 :] == ["no-such-package"]  # pytest is there
    kept = (tmp_path / "kept.txt").read_text().splitlines()
    assert kept[0] == f"jax=={jax.__version__}" and [k.split("==")[0] for k in kept][2] == "numpy"
    badge = build.colab("00_a", project)[0][0].source
    assert "/github/someone/guidebook/blob/main/lessons/notebooks/00_a.ipynb)" in badge


def test_colabs_cell_does_nothing_elsewhere_and_without_an_address_asks_for_the_files(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    run_setup(PROJECT)
    assert not list(tmp_path.iterdir()) and not build.colab("00_a", PROJECT)[0]
    with pytest.raises(FileNotFoundError, match="into a folder 'guidebook'"):
        set_up(tmp_path, monkeypatch, PROJECT)
