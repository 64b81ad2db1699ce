"""The table of a comparison: scores and categories as rows, models side by side, for terminal and Markdown alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dipole_trainer.evaluation.statistics import sure

Evaluation = Mapping[str, Any]  # comparison.report
Figure = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """`sure` as figures.sure."""

    text: str
    sure: int = 0


@dataclass(frozen=True)
class Row:
    """A score's row, or one of a category below it."""

    label: str
    cells: Sequence[Cell]
    main: bool = True


def title(evaluation: Evaluation) -> str:
    count, images = len(evaluation["prompts"]), evaluation["images_per_prompt"]
    scored = ", all scored" if _complete(evaluation) else ""
    said = f"{counted(count, 'prompt')}, {counted(images, 'image')} each{scored}; ± is 95 % over prompts"
    several = len(evaluation["models"]) > 1
    return f"{said}; difference and wins on the same noises, against {evaluation['baseline']}" if several else said


def headings(evaluation: Evaluation) -> list[str]:
    first, *others = (model["label"] for model in evaluation["models"])
    counts = [] if _complete(evaluation) else ["scored"]
    return ["score", *counts, first, *(heading for label in others for heading in (label, "difference", "wins"))]


def rows(evaluation: Evaluation) -> list[Row]:
    figures, count = [model["figures"] for model in evaluation["models"]], len(evaluation["prompts"])
    tags = sorted({tag for figure in figures for tag in figure["by_tag"]})
    complete = _complete(evaluation)

    def row(label: str, each: Sequence[Figure], prompts: int, *, main: bool = True) -> Row:
        counts = [] if complete else [_scored(each, prompts * evaluation["images_per_prompt"])]
        return Row(label, [*counts, *_cells(each)], main)

    found = []
    for name in score_names(evaluation):
        found.append(row(name, [figure["scores"].get(name, {}) for figure in figures], count))
        for tag in tags:
            prompts = sum(prompt["tag"] == tag for prompt in evaluation["prompts"])
            inside = [figure["by_tag"].get(tag, {}).get(name, {}) for figure in figures]
            found.append(row(f"  {tag} ({prompts})", inside, prompts, main=False))
    diversities = {name: [figure["diversities"][name] for figure in figures] for name in figures[0]["diversities"]}
    known = {name: each for name, each in diversities.items() if any("mean" in figure for figure in each)}
    return [*found, *(row(f"diversity, {name}", each, 0) for name, each in known.items())]


def score_names(evaluation: Evaluation) -> list[str]:
    """Rewards in the order asked for, each followed by its parts."""
    rewards = [reward["name"] for reward in evaluation["rewards"]]
    known = {name for model in evaluation["models"] for name in model["figures"]["scores"]} - {*rewards}
    parts = {reward: sorted(name for name in known if name.startswith(f"{reward}.")) for reward in rewards}
    return [name for reward in rewards for name in (reward, *parts[reward])]


def markdown(evaluation: Evaluation) -> str:
    """Title, table and notes; what is sure stands in bold."""
    titles = headings(evaluation)
    lines = [f"{title(evaluation)}.", "", _line(titles), _line(["---", *["---:"] * (len(titles) - 1)])]
    for row in rows(evaluation):
        label = row.label if row.main else f"&nbsp;&nbsp;{row.label.strip()}"
        lines.append(_line([label, *(f"**{cell.text}**" if cell.sure else cell.text for cell in row.cells)]))
    notes = [f"- {note}" for note in evaluation["notes"]]
    return "\n".join([*lines, *(["", *notes] if notes else []), ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _cells(figures: Sequence[Figure]) -> list[Cell]:
    first, *others = figures
    cells = [Cell(estimate_text(first))]
    for figure in others:
        cells += [Cell(estimate_text(figure)), _difference(figure.get("difference")), _wins(figure.get("win_rate"))]
    return cells


def _scored(figures: Sequence[Figure], images: int) -> Cell:
    """Over all models; `images` is each one's."""
    return Cell(f"{sum(figure.get('scored', 0) for figure in figures)} of {images * len(figures)}" if images else "")


def _complete(evaluation: Evaluation) -> bool:
    """Whether every score is there: then nobody needs to be told how many are."""
    images = len(evaluation["prompts"]) * evaluation["images_per_prompt"]
    return all(
        model["figures"]["scores"].get(name, {}).get("scored") == images
        for model in evaluation["models"]
        for name in score_names(evaluation)
    )


def estimate_text(figure: Figure, *, sign: bool = False) -> str:
    if "mean" not in figure:
        return "–"
    mean, half = figure["mean"], "" if figure["low"] is None else f" ± {_number((figure['high'] - figure['low']) / 2)}"
    return f"{'+' if sign and mean >= 0 else ''}{_number(mean)}{half}"


def _difference(figure: Figure | None) -> Cell:
    return Cell("–") if figure is None else Cell(estimate_text(figure, sign=True), sure(figure))


def _wins(rate: Figure | None) -> Cell:
    if rate is None:
        return Cell("")
    between = "" if rate["low"] is None else f" [{100 * rate['low']:.0f}, {100 * rate['high']:.0f}]"
    return Cell(f"{100 * rate['mean']:.0f} %{between}", sure(rate, 0.5))


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
