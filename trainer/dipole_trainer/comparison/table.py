"""The table of a comparison: scores and categories as rows, models side by side, for terminal and Markdown alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dipole_trainer.evaluation.figure_texts import Evaluation, Figure, format_estimate, pluralize_count, score_names
from dipole_trainer.evaluation.statistics import significant_sign


@dataclass(frozen=True)
class TableCell:
    """`sign` as statistics.significant_sign."""

    text: str
    sign: int = 0


@dataclass(frozen=True)
class TableRow:
    """A score's row, or one of a category below it."""

    label: str
    cells: Sequence[TableCell]
    main: bool = True


def table_title(evaluation: Evaluation) -> str:
    count, images = len(evaluation["prompts"]), evaluation["images_per_prompt"]
    scored = ", all scored" if _is_complete(evaluation) else ""
    said = (
        f"{pluralize_count(count, 'prompt')}, {pluralize_count(images, 'image')} each{scored}; ± is 95 % over prompts"
    )
    several = len(evaluation["models"]) > 1
    return f"{said}; difference and wins on the same noises, against {evaluation['baseline']}" if several else said


def column_headings(evaluation: Evaluation) -> list[str]:
    first, *others = (model["label"] for model in evaluation["models"])
    counts = [] if _is_complete(evaluation) else ["scored"]
    return ["score", *counts, first, *(heading for label in others for heading in (label, "difference", "wins"))]


def table_rows(evaluation: Evaluation) -> list[TableRow]:
    figures, count = [model["figures"] for model in evaluation["models"]], len(evaluation["prompts"])
    tags = sorted({tag for figure in figures for tag in figure["by_tag"]})
    complete = _is_complete(evaluation)

    def make_row(label: str, each: Sequence[Figure], prompts: int, *, main: bool = True) -> TableRow:
        counts = [] if complete else [_scored_cell(each, prompts * evaluation["images_per_prompt"])]
        return TableRow(label, [*counts, *_figure_cells(each)], main)

    found = []
    for name in score_names(evaluation):
        found.append(make_row(name, [figure["scores"].get(name, {}) for figure in figures], count))
        for tag in tags:
            prompts = sum(prompt["tag"] == tag for prompt in evaluation["prompts"])
            inside = [figure["by_tag"].get(tag, {}).get(name, {}) for figure in figures]
            found.append(make_row(f"  {tag} ({prompts})", inside, prompts, main=False))
    diversities = {name: [figure["diversities"][name] for figure in figures] for name in figures[0]["diversities"]}
    known = {name: each for name, each in diversities.items() if any("mean" in figure for figure in each)}
    return [*found, *(make_row(f"diversity, {name}", each, 0) for name, each in known.items())]


def render_markdown(evaluation: Evaluation) -> str:
    """Title, table and notes; what is sure stands in bold."""
    titles = column_headings(evaluation)
    lines = [
        f"{table_title(evaluation)}.",
        "",
        _markdown_line(titles),
        _markdown_line(["---", *["---:"] * (len(titles) - 1)]),
    ]
    for row in table_rows(evaluation):
        label = row.label if row.main else f"&nbsp;&nbsp;{row.label.strip()}"
        lines.append(_markdown_line([label, *(f"**{cell.text}**" if cell.sign else cell.text for cell in row.cells)]))
    notes = [f"- {note}" for note in evaluation["notes"]]
    return "\n".join([*lines, *(["", *notes] if notes else []), ""])


def _markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _figure_cells(figures: Sequence[Figure]) -> list[TableCell]:
    first, *others = figures
    cells = [TableCell(format_estimate(first))]
    for figure in others:
        cells += [
            TableCell(format_estimate(figure)),
            _difference_cell(figure.get("difference")),
            _win_rate_cell(figure.get("win_rate")),
        ]
    return cells


def _scored_cell(figures: Sequence[Figure], images: int) -> TableCell:
    """Over all models; `images` is each one's."""
    return TableCell(
        f"{sum(figure.get('scored', 0) for figure in figures)} of {images * len(figures)}" if images else ""
    )


def _is_complete(evaluation: Evaluation) -> bool:
    """Whether every score is there: then the column of counts is left out."""
    images = len(evaluation["prompts"]) * evaluation["images_per_prompt"]
    return all(
        model["figures"]["scores"].get(name, {}).get("scored") == images
        for model in evaluation["models"]
        for name in score_names(evaluation)
    )


def _difference_cell(figure: Figure | None) -> TableCell:
    return TableCell("–") if figure is None else TableCell(format_estimate(figure, sign=True), significant_sign(figure))


def _win_rate_cell(rate: Figure | None) -> TableCell:
    if rate is None:
        return TableCell("")
    between = "" if rate["low"] is None else f" [{100 * rate['low']:.0f}, {100 * rate['high']:.0f}]"
    return TableCell(f"{100 * rate['mean']:.0f} %{between}", significant_sign(rate, 0.5))
