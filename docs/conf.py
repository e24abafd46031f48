"""Settings of Sphinx for `make docs`."""

import re
from typing import Any

from sphinx.application import Sphinx

import sb3_pwm

project = "sb3_pwm"
author = "The sb3_pwm developers"
release = version = sb3_pwm.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = f"sb3_pwm {release}"
html_copy_source = False

exclude_patterns = ["research"]  # an archive, to be read in the repository

highlight_language = "none"  # of blocks that name no language: commands, formulas, drawings

# Headings get the anchors that they have where repositories are browsed.
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"


def escape_shapes(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep the star of shapes such as (N, *obs_shape), which would else begin emphasis."""
    lines[:] = [re.sub(r"(?<=[ (])\*(?=\w+_shape)", r"\\*", line) for line in lines]


def setup(app: Sphinx) -> None:
    """Register the above."""
    app.connect("autodoc-process-docstring", escape_shapes)
