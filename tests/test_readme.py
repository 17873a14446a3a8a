"""Every command of every README runs, in a folder of its own, with options that make it short."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
READMES = [ROOT / "README.md", *sorted(ROOT.glob("*/README.md"))]
SHORT = {  # what is added so that a command takes seconds
    "-m glide sample": "--steps 2",
    "-m glide train-clip": "--preset tiny --steps 2 --batch-size 2 --group 2 --examples 8",
    "-m glide train": "--preset tiny --steps 2 --batch-size 4 --examples 8",
    "-m glide study --part": "--num 8 --steps 2",
    "-m glide study": "--num 8 --scales 1 --steps 2",
    "-m common.scenes check": "--num 40",
    "-m sdedit": "--num 1 --steps 25",
    "-m benchmarks.stem": "--minutes 0.01 --turn 0.2",
}


def commands():
    """The lines of ```sh blocks and of inline `python -m ...`, comments cut off.

    Commands that need weights which are not shipped yet stand in *italics* or plain blocks; the
    tests of their packages run them on untrained weights.
    """
    for readme in READMES:
        text = readme.read_text()
        lines = re.findall(r"`((?:python -m|make) [^`]+)`", text)
        for block in re.findall(r"```sh\n(.*?)```", text, re.S):
            lines += block.splitlines()
        for line in lines:
            yield line.split("#")[0].strip()


PYTHON = [c for c in dict.fromkeys(commands()) if c.startswith("python")]
MAKE = [c for c in dict.fromkeys(commands()) if c.startswith("make")]


@pytest.fixture
def folder(tmp_path):
    """The files that a package brings to try its commands on are there, as in the repository."""
    for examples in ROOT.glob("*/examples"):
        (tmp_path / examples.parent.name).mkdir()
        (tmp_path / examples.parent.name / "examples").symlink_to(examples)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("line", PYTHON)
def test_a_python_command_of_a_readme_runs(line, folder):
    reads = "out/scenes/00000.png" in line  # what the command before it wrote
    before = [c for c in PYTHON if reads and "common.scenes export" in c]
    for each in [*before, line]:
        short = next((more for start, more in SHORT.items() if start in each), "")
        if "--help" in each:
            short = ""
        command = [sys.executable, *shlex.split(each)[1:], *short.split()]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        result = subprocess.run(command, cwd=folder, env=env, text=True, capture_output=True)
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("line", MAKE)
def test_a_make_command_of_a_readme_has_a_target(line):
    """Not run: `make test` is what runs this, and `make run` is the demo below after a set-up."""
    options = {"cwd": ROOT, "text": True, "capture_output": True}
    assert subprocess.run([*line.split(), "--dry-run"], **options).returncode == 0


@pytest.mark.slow
def test_the_main_job_draws_a_grid_and_a_film_and_counts(tmp_path):
    command = [sys.executable, "-m", "glide", "demo", "--num", "1", "--steps", "2"]
    command += ["--out", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    for scale in ("guidance 0", "guidance 1", "guidance 3", "real renders"):
        assert scale in result.stdout
    for name in ("grid.png", "film.webp"):
        assert str(tmp_path / name) in result.stdout and (tmp_path / name).stat().st_size > 1000


def test_make_help_lists_every_target():
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"\.PHONY: (.*)", text).group(1).split()
    out = subprocess.run(["make", "help"], cwd=ROOT, text=True, capture_output=True).stdout
    assert all(re.search(rf"^{target}\b", out, re.M) for target in phony)


def test_links_of_the_readmes_lead_somewhere():
    for readme in READMES:
        for link in re.findall(r"\]\(([^)#]+)\)", readme.read_text()):
            assert link.startswith("http") or (readme.parent / link).exists(), link
