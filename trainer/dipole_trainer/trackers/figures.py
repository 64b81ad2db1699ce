"""What a job's events are in a tracker: numbers by name, the same that the events and the dashboard have.

    step         train/loss, train/rewards/<reward>, train/seconds/wait, ...
    evaluation   evaluation/scores/<score>/mean, .../low, .../difference/mean, evaluation/diversities/<name>/mean, ...
    samples      samples/diversity, ...

Beside them stand the dashboard's normalised curves, train/normalised/<reward> and evaluation/normalised/<reward>: how
far a reward came from where it began (from the base, in evaluations), in spreads of the groups of the first steps.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from dipole.protocol import job_events
from dipole_trainer.spec import TrainSpec
from dipole_trainer.storage import job_layout

PREFIXES = {
    job_events.StepFinished.kind: "train",
    job_events.EvaluationFinished.kind: "evaluation",
    job_events.SamplesWritten.kind: "samples",
}
LEFT_OUT = ("step", "steps", "by_tag", "hacking")  # by_tag: an evaluation's file has them
FIRST_STEPS = 3  # whose groups are the unit of normalised curves, as on the dashboard
_UNUSUAL = re.compile(r"[^\w\-. :/]", re.ASCII)

Unit = tuple[float, float]  # of a reward: where it began, and how far the first groups' candidates lay apart


def to_scalars(kind: str, data: Mapping[str, Any], units: Mapping[str, Unit]) -> dict[str, float]:
    """An event's finite numbers by name; empty for an event that has none to show."""
    prefix = PREFIXES.get(kind)
    if prefix is None:
        return {}
    shown = {name: value for name, value in data.items() if name not in LEFT_OUT}
    found = dict(_flatten_numbers(shown, prefix))
    for reward, (start, spread) in units.items():
        value = None
        if kind == job_events.StepFinished.kind:
            raw = data.get("rewards", {}).get(reward)
            value = None if raw is None else (raw - start) / spread
        elif kind == job_events.EvaluationFinished.kind:
            difference = data.get("scores", {}).get(reward, {}).get("difference")
            value = None if difference is None else difference["mean"] / spread
        if value is not None:
            found[tracker_name(f"{prefix}/normalised/{reward}")] = value
    return found


def measure_units(workdir: Path, newest: Sequence[Mapping[str, Any]] = ()) -> dict[str, Unit] | None:
    """Each reward's unit; None before the first steps have been trained. `newest` are steps that are said, and not yet
    written down.
    """
    path, first = workdir / job_layout.METRICS_FILE, list[Mapping[str, Any]]()
    if path.is_file():
        with path.open(encoding="utf-8") as lines:
            first = [json.loads(line) for line in islice(lines, FIRST_STEPS)]
    first = [*first, *newest][:FIRST_STEPS]
    if len(first) < FIRST_STEPS:
        return None
    units = {}
    for name in {name for step in first for name in step.get("rewards", {})}:
        starts = [step["rewards"][name] for step in first if name in step["rewards"]]
        spreads = [step["spread"][name] for step in first if name in step.get("spread", {})]
        if spreads and sum(spreads):
            units[name] = (sum(starts) / len(starts), sum(spreads) / len(spreads))
    return units


def describe_config(spec: TrainSpec) -> dict[str, str | int | float | bool]:
    """A job's settings by dotted name. Of prompts their number, of rewards neither address nor options, and not whom to
    notify: what leaves for somebody's server is what makes runs comparable.
    """
    plain = spec.model_dump(
        mode="json", exclude={"prompts": True, "rewards": True, "notify": True, "evaluation": {"prompts"}}
    )
    plain["prompts"] = len(spec.prompts)
    plain["evaluation"]["prompts"] = len(spec.evaluation.prompts)
    hidden = {"name", "url", "options"}
    plain["rewards"] = {reward.name: reward.model_dump(mode="json", exclude=hidden) for reward in spec.rewards}
    return dict(_flatten_settings(plain, ""))


def tracker_name(name: str) -> str:
    """A name that every tracker takes."""
    return _UNUSUAL.sub("_", name)


def _flatten_numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flatten_numbers(inner, f"{name}/{key}")
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield tracker_name(name), value


def _flatten_settings(value: Any, name: str) -> Iterator[tuple[str, str | int | float | bool]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flatten_settings(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, str | int | float | bool):
        yield tracker_name(name), value
    elif value is not None:
        yield tracker_name(name), json.dumps(value)
