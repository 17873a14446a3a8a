"""The house: who imports whom, how long files are, what importing does."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAPERS = ("glide", "ldm", "unclip", "sdedit")
ROOMS = ("common", *PAPERS)
ALLOWED = {paper: {"common", paper} for paper in PAPERS} | {"common": {"common"}}
ALLOWED["unclip"].add("glide")  # its decoder is a modified GLIDE
GROUND = ("schedule", "nn")  # stand on the ground: import no other room of common
FILES = [p for room in ROOMS for p in sorted((ROOT / room).rglob("*.py"))]
STUDIO = sorted((ROOT / "studio").rglob("*.py"))  # imports anything, and nobody imports it


def imports(path):
    """Every module that a file names in an import, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_imports_only_rooms_it_may_enter(path):
    room = path.relative_to(ROOT).parts[0]
    entered = {name.split(".")[0] for name in imports(path)} & {*ROOMS, "studio", "benchmarks"}
    assert entered <= ALLOWED[room]


@pytest.mark.parametrize("name", GROUND)
def test_the_ground_rooms_import_no_other_room(name):
    assert not [m for m in imports(ROOT / "common" / f"{name}.py") if m.startswith("common")]


def test_common_has_no_import_circle():
    edges = {}
    for path in (ROOT / "common").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        edges[module] = {m for m in imports(path) if m.startswith("common.")}

    def visit(module, above):
        assert module not in above, f"circle: {' -> '.join((*above, module))}"
        for other in edges.get(module, ()):
            visit(other, (*above, module))

    for module in edges:
        visit(module, ())


def test_only_plot_imports_matplotlib_and_nobody_private_jax_or_pickle():
    for path in FILES:
        for name in imports(path):
            assert not name.startswith(("jax._src", "pickle")), path
            assert not name.startswith("matplotlib") or path.name == "plot.py", path


@pytest.mark.parametrize("path", [*FILES, *STUDIO], ids=lambda p: str(p.relative_to(ROOT)))
def test_a_library_file_holds_one_idea(path):
    assert len(path.read_text().splitlines()) <= 300


def test_importing_the_packages_starts_no_device_and_loads_no_plotting():
    modules = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in FILES]
    names = ", ".join(m for m in modules if not m.endswith(("__main__", "__init__")))
    # A device started at import would make this platform name an error.
    code = (
        f"import os; os.environ['JAX_PLATFORMS'] = 'none such'; import {names}, sys; "
        "assert 'matplotlib' not in sys.modules and 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_weights_are_small_and_the_readme_is_one_page():
    weights = [p.stat().st_size for p in ROOT.glob("*/weights/*.safetensors")]
    assert all(size <= 5_000_000 for size in weights) and sum(weights) <= 24_000_000
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
