"""Sphinx: `make docs` builds the site into build/docs; a warning is an error."""

import re
from typing import get_type_hints

import mmattn

project = "mmattn"
author = "The mmattn authors"
release = version = mmattn.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"mmattn {release}"
html_static_path = html_css_files = ["site.css"]
html_show_copyright = False
nb_merge_streams = True
nb_execution_mode = "off"  # the notebook keeps the output of its own run; a test runs it again
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
maximum_signature_line_length = 90
autodoc_default_options = {"members": True}
exclude_patterns = ["api/_*"]

for kind in (mmattn.DataConfig, mmattn.ModelConfig, mmattn.TrainConfig, mmattn.AugmentConfig):
    kind.__annotations__ = get_type_hints(kind)  # without what is meant for the command line
    kind.__init__.__annotations__ = kind.__annotations__ | {"return": None}


def keep_colons(app, what, name, thing, options, lines):
    """Napoleon takes what is before a colon in an attribute's first line for its type."""
    if what in ("attribute", "property"):
        lines[:0] = ["..", ""]  # a comment


def shorten_defaults(app, what, name, thing, options, signature, returns):
    """Defaults that are no Python, as <factory>, become dots."""
    return signature and re.sub(r"<[^<>]+>", "...", signature), returns


def setup(app):
    app.connect("autodoc-process-docstring", keep_colons, priority=400)  # before Napoleon
    app.connect("autodoc-process-signature", shorten_defaults)
