"""The documentation site: ``sphinx-build -W --keep-going docs build/site`` (needs the extra ``jaxgen[docs]``)."""

import os
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]  # the checkout that these pages belong to; generated.py
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from generated import list_notebooks, write_pages  # noqa: E402

import jaxgen  # noqa: E402

project = "jaxgen"
copyright = "The jaxgen maintainers, Apache-2.0"
release = version = jaxgen.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinxcontrib.mermaid",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints", "notebooks/README.md"]

# Pages are written for readers on GitHub too: anchors of headings are GitHub's, and a block ```mermaid is a diagram.
myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]
# CI executes the notebooks on its own (jaxgen[docs]); the site shows the outputs that they are saved with.
nb_execution_mode = "off"
suppress_warnings = ["misc.highlighting_failure"]  # shell commands in notebooks

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signatures of array functions are unreadable; Args and Returns say what a caller needs
autodoc_preserve_defaults = True
toc_object_entries_show_parents = "hide"
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # a field with a comment of its own would be described twice

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_title = f"jaxgen {release}"
html_show_sphinx = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


#: Links to files that GitHub shows, and the pages of the site that stand for them.
PROJECT = {"](../CHANGELOG.md": "](generated/changelog.md", "](../CONTRIBUTING.md": "](generated/contributing.md"}
NOTEBOOKS = {"](README.md": "](../tutorials.md"}


def adapt(app, page, source):
    """Make links lead to the pages of the site, and list the notebooks."""
    for there, here in (NOTEBOOKS if page.startswith("notebooks/") else PROJECT).items():
        source[0] = source[0].replace(there, here)
    if page == "tutorials":
        source[0] += list_notebooks(DOCS / "notebooks")


def setup(app):
    """Write the pages that repeat code before Sphinx looks for documents."""
    app.connect("config-inited", lambda *_: write_pages(DOCS / "generated"))
    app.connect("source-read", adapt)
