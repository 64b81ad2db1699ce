"""`dipole ratings …`: links for raters, how the queue does, and what people said as a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from dipole.cli.terminal import JsonOption, out, print_list, printable
from dipole.client.ratings_api import DEFAULT_RATINGS_URL, RatingsApi
from dipole.errors import InvalidInput

RatingsUrlOption = Annotated[
    str,
    typer.Option("--url", envvar="DIPOLE_RATINGS_URL", help="URL of the rating service, as raters reach it."),
]
RatingsKeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        envvar=["DIPOLE_RATINGS_OPERATOR_KEY", "DIPOLE_RATINGS_KEY"],
        help="Operator's key of the rating service.",
        show_default=False,
    ),
]
DAY_S = 86_400.0

app = typer.Typer(no_args_is_help=True, help="People as a reward: invite raters, see how the queue does, export.")


@app.command("invite")
def invite_rater(
    name: Annotated[str | None, typer.Argument(help="Who it is for; operators alone see it.", metavar="[NAME]")] = None,
    days: Annotated[float | None, typer.Option(min=0.001, max=3650, help="Days until the link ends.")] = None,
    as_json: JsonOption = False,
    url: RatingsUrlOption = DEFAULT_RATINGS_URL,
    key: RatingsKeyOption = None,
) -> None:
    """Make a link for a new rater and print it. It is shown this once; whoever has it ranks.

    dipole ratings invite Ada

    dipole ratings invite Ada --url https://rate.example.org     for raters elsewhere
    """
    with RatingsApi(url, key) as ratings:
        made = ratings.invite_rater(name, expires_in_s=None if days is None else days * DAY_S)
    print(json.dumps(made, ensure_ascii=False) if as_json else made["link"])


@app.command("status")
def show_queue(
    as_json: JsonOption = False, url: RatingsUrlOption = DEFAULT_RATINGS_URL, key: RatingsKeyOption = None
) -> None:
    """Say what waits for people, how fast they answer, whether they agree, and how each rater does."""
    with RatingsApi(url, key) as ratings:
        queue, raters = ratings.describe_queue(), ratings.list_raters()
    if as_json:
        print(json.dumps({**queue, "raters": raters}, ensure_ascii=False))
        return
    oldest = "" if queue["oldest_s"] is None else f", the oldest for {_format_duration(queue['oldest_s'])}"
    out.print(f"Tasks: {queue['pending']} pending{oldest}; {queue['leased']} leased, {queue['answered']} answered.")
    agreement = "not known yet" if queue["agreement"] is None else f"{queue['agreement']:.2f} (1 is perfect, 0 chance)"
    out.print(f"Ratings in the last hour: {queue['ratings_per_hour']}. Agreement: {agreement}.")
    if not raters:
        out.print("Nobody was invited yet: `dipole ratings invite` makes a link.")
        return
    columns = {
        "rater": lambda rater: rater["name"] or rater["rater"],
        "answers": lambda rater: rater["answers"],
        "weight": lambda rater: f"{rater['weight']:.2f}",
        "agreement": lambda rater: _format_share(rater["agreement"]),
        "repeats agreed": lambda rater: _format_share(rater["repeats_agreed"]),
        "gold right": lambda rater: _format_share(rater["gold_right"]),
        "state": _describe_rater,
    }
    print_list(raters, columns, as_json=False)


@app.command("export")
def export_answers(
    file: Annotated[Path, typer.Argument(help="File to write: .jsonl or .parquet.", metavar="FILE", dir_okay=False)],
    url: RatingsUrlOption = DEFAULT_RATINGS_URL,
    key: RatingsKeyOption = None,
) -> None:
    """Write what people said as preference pairs, which a job trains on as they are (docs/training.md)."""
    form = file.suffix.lower().removeprefix(".")
    if form not in ("jsonl", "parquet"):
        raise InvalidInput(f"{file}: its name must end with .jsonl or .parquet, which says what is written")
    with RatingsApi(url, key) as ratings:
        size = ratings.download_export(file, "jsonl" if form == "jsonl" else "parquet")
    out.print(f"Wrote {size:,} bytes to {printable(str(file))}.")


def _describe_rater(rater: dict[str, Any]) -> str:
    if rater["paused"]:
        return "paused"
    return f"seen {rater['last_seen']}" if rater["last_seen"] else "has not come yet"


def _format_share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _format_duration(seconds: float) -> str:
    for size, name in ((DAY_S, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} s"
