"""Sphinx: `make docs` builds the site into build/docs; a warning is an error."""

import mmattn

project = "mmattn"
author = "The mmattn authors"
release = version = mmattn.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"mmattn {release}"
html_static_path = html_css_files = ["site.css"]
html_show_copyright = False
nb_execution_mode = "off"  # the notebook keeps the output of its own run; a test runs it again
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
maximum_signature_line_length = 90
autodoc_default_options = {"members": True}
exclude_patterns = ["api/_*"]
