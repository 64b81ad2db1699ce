"""The curves of evaluation/curves.py as SVG that stands inside a page: its colours are the page's variables, so that it
follows light, dark and paper, and its texts are texts.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib
from cycler import cycler
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dipole_trainer.evaluation import curves

MAX_REWARDS = 12  # that have a curve of their own
SERIES = 6
# drawn in these colours, which nothing else has, and then named
_VARIABLES = {
    **{f"#0000a{index}": f"var(--series-{index})" for index in range(1, SERIES + 1)},
    "#0000b1": "var(--muted)",
    "#0000b2": "var(--grid)",
    "#808080": "var(--muted)",
}
_STYLE: dict[Any, Any] = {
    "axes.prop_cycle": cycler(color=[f"#0000a{index}" for index in range(1, SERIES + 1)]),
    "axes.edgecolor": "#0000b1", "axes.labelcolor": "#0000b1", "text.color": "#0000b1",
    "xtick.color": "#0000b1", "ytick.color": "#0000b1", "grid.color": "#0000b2", "axes.grid": True,
    "axes.axisbelow": True, "axes.linewidth": 0.8, "lines.linewidth": 1.6, "font.size": 10.0, "legend.fontsize": 9.5,
    "svg.fonttype": "none",
}  # fmt: skip
_OWN_ID = re.compile(r' id="(?:[A-Za-z.]+\d*_)+\d+"')  # matplotlib's names of its parts: the same in every figure
_FONT = re.compile(r"'DejaVu Sans'[^;\"]*")


@dataclass(frozen=True)
class Chart:
    """A panel of the report. `svg` is safe to stand in a page."""

    title: str
    caption: str
    svg: Markup


def draw_charts(run: curves.Run) -> Iterator[Chart]:
    """A chart for each reward, then those of the whole run."""
    names = run.reward_names()
    for name in names[:MAX_REWARDS]:
        what = "held out: watched, never trained on" if name in run.watched else "trained on"
        text = f"In its own units; {what}."
        yield _draw_chart(name, text, run, partial(curves.draw_reward, name=name))
    if len(names) > 1:
        text = "One scale for all: standard deviations of the base's images. Dashed: held out."
        yield _draw_chart("Rewards against the base", text, run, curves.draw_fixed_rewards)
    panels: list[tuple[str, str, curves.Draw]] = [
        ("Diversity", "Between the images of one prompt; it falls when they become alike.", curves.draw_diversity),
        (
            "Spread within a group",
            f"What there is to learn from: how far a reward tells a prompt's candidates apart. Mean of the last "
            f"{curves.RUNNING_MEAN} updates.",
            curves.draw_spread,
        ),
        ("Loss", "The training loss and its parts.", curves.draw_losses),
        ("Rate", "Images a second, evaluations left out.", curves.draw_rate),
        ("Time by phase", "Seconds of each update.", curves.draw_seconds),
    ]
    if run.compares_decoders():
        text = "Kendall's τ of the two orders, and the share of chosen candidates that both have."
        panels.append(("Tiny decoder against the VAE", text, curves.draw_decoder))
    for title, caption, draw in panels:
        yield _draw_chart(title, caption, run, draw)


def _draw_chart(title: str, caption: str, run: curves.Run, draw: Callable[[Axes, curves.Run], None]) -> Chart:
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(5.4, 3.1), layout="constrained")
        axis = figure.subplots()
        draw(axis, run)
        axis.set_title("")  # the page has it, as a heading
        curves.finish_panel(axis, legend=False)
        axis.margins(x=0.02)
        handles, labels = axis.get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower left", ncols=2, frameon=False, handlelength=2.4)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Chart(title, caption, _embed_svg(drawn.getvalue(), f"Curve: {title}. {caption}"))


def _embed_svg(document: str, label: str) -> Markup:
    """The drawing alone, of a whole SVG document; matplotlib has escaped its texts."""
    drawing = document[document.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    head, _, rest = drawing.partition(">")
    box = re.search(r'viewBox="[\d. ]+"', head)
    assert box is not None, "matplotlib gives every drawing its box"
    rest = _FONT.sub("system-ui, sans-serif", _OWN_ID.sub("", rest))
    for colour, variable in _VARIABLES.items():
        rest = rest.replace(colour, variable)
    links = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
    return Markup(f'<svg {links} {box[0]} role="img" aria-label="{escape(label)}">{rest.strip()}')  # noqa: S704
