"""Jinja2 templates beside this file. They escape whatever they are given, but for what is marked as HTML already."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape


def render_template(name: str, **values: Any) -> Markup:
    """A template of static/ with these values."""
    return Markup(_environment().get_template(name).render(**values))  # noqa: S704 (it has escaped them)


@cache
def _environment() -> Environment:
    folder = resources.files(__package__) / "static"
    environment = Environment(
        loader=FunctionLoader(lambda name: (folder / name).read_text("utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = to_prose
    return environment


def to_prose(text: str) -> Markup:
    """Paragraphs of a docstring as HTML, with `code` between backticks; other marks stay as they are."""
    paragraphs = [" ".join(each.split()) for each in re.split(r"\n\s*\n", text.strip())]
    return Markup("").join(Markup("<p>{}</p>").format(_mark_code(each)) for each in paragraphs if each)


def _mark_code(text: str) -> Markup:
    parts = re.split(r"`([^`]+)`", text)
    marked = (Markup("<code>{}</code>").format(part) if index % 2 else escape(part) for index, part in enumerate(parts))
    return Markup("").join(marked)
