"""Sphinx's settings of the site; docs/render.py gathers the pages and runs it."""

import importlib.util
import os
import re
from pathlib import Path

project = "guidebook"
html_title = "guidebook"
copyright = "the authors of guidebook"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx.ext.mathjax"]

# Lessons run once; what they gave is kept beside the site until their code changes.
nb_execution_mode = os.environ.get("EXECUTE", "cache")  # or "off"
nb_execution_cache_path = str(Path(__file__).parent.parent / "cache")
nb_execution_timeout = 1800
nb_execution_raise_on_error = True
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_dmath_double_inline = True
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing", "mystnb.unknown_mime_type"]  # docs/check.py checks links

# Mathematics is drawn by one file of a package that pip installed: no other host, no fonts.
mathjax = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent
html_static_path = ["style.css", str(mathjax / "static" / "mathjax" / "tex-svg.js")]
mathjax_path = "tex-svg.js"
mathjax3_config = {"options": {"enableMenu": False}}

html_theme = "furo"
html_css_files = ["style.css"]
html_copy_source = html_show_sourcelink = False
html_show_sphinx = False

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
add_module_names = False
python_maximum_signature_line_length = 90


def plain(app, what, name, thing, options, lines):
    """Docstrings here are plain text: `code`, paragraphs, indented formulas that stay as typed."""
    text, lines[:] = "\n".join(lines), []
    for part in re.findall(r"(?:^[ \t]+\S.*\n?|^\n)+|(?:^\S.*\n?)+", text, re.M):
        part = part.strip("\n")
        if part.startswith((" ", "\t")):
            lines += ["", ".. code-block:: text", ""]
            lines += ["    " + line for line in part.split("\n")]
            continue
        pieces = re.split(r"`+", part)
        pieces[::2] = [re.sub(r"([\\*_|])", r"\\\1", piece) for piece in pieces[::2]]
        pieces[1::2] = [f"\\ ``{piece}``\\ " for piece in pieces[1::2]]
        lines += ["", *"".join(pieces).split("\n"), ""]


def setup(app):
    app.connect("autodoc-process-docstring", plain)
