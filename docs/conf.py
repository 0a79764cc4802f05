"""Settings of the documentation site, which ``uv run --extra docs sphinx-build -W -b html docs docs/_build`` builds."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

project = "Delta Distill"
author = "Delta Distill contributors"
copyright = f"2026, {author}. Apache-2.0"
release = version = "0.1.0"

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_parser", "methods_directive"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "Delta Distill"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
templates_path = []

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
autodoc_default_options = {"exclude-members": "Settings, model_config, model_post_init, component"}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Class attributes", "params_style")]
add_module_names = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
