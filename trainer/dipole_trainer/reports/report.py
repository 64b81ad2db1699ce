"""A job's report, export/report.html: what was trained on what and how, what came of it, and what was odd about it.

One file that asks for nothing: styles, curves (SVG) and images (WebP) are in it, and no script. It is made when a job
ends, whichever way, of the files in its folder and of what the database knows. Prompts, names and what endpoints say of
themselves are texts of strangers: Jinja2 escapes all of it, and the page's own policy lets nothing load or run.

It stays below MAX_BYTES: images below gallery.MAX_BYTES, lines of curves.MAX_POINTS points, texts cut.
"""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2

from dipole.whole_files import replacing
from dipole_trainer.evaluation import curves, pictures, statistics
from dipole_trainer.evaluation.contact_sheet import VERDICT
from dipole_trainer.evaluation.figure_texts import format_estimate
from dipole_trainer.jobs.job_record import AnsweringReward, EndedStatus, JobRecord
from dipole_trainer.ranking.forwarding.unverified import read_found_rewards
from dipole_trainer.ranking.weight_changes import RewardSchedule, describe_role
from dipole_trainer.reports import gallery, vector_curves
from dipole_trainer.spec import RewardSpec, TrainSpec
from dipole_trainer.storage import job_layout

MAX_BYTES = 8 * 2**20
MAX_REQUEST_CHARS, MAX_TEXT_CHARS, MAX_TAGS, MAX_ROWS = 32_768, 600, 24, 60
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
PACKAGES = ("dipole", "torch", "diffusers", "transformers", "peft", "numpy")
METHOD_NAMES = {"drpo": "DrPO", "dpo": "DPO", "grpo": "GRPO", "pso": "PSO", "sft": "regression to the best", "random":
                "DrPO on shuffled ranks, the control,"}  # fmt: skip

_PLAIN_LIST = re.compile(r"\[\s+((?:[-\w.+]+|\"[-\w./]*\")(?:,\s+(?:[-\w.+]+|\"[-\w./]*\"))*)\s+\]")


Figure = Mapping[str, Any]


@dataclass(frozen=True)
class ScoreRow:
    """A line of the table. `sign` is 1, -1 or 0 where a change is no sure one; `is_part`: of the reward above it."""

    name: str
    role: str
    is_part: bool
    base: str
    trained: str
    difference: str
    win_rate: str
    sign: int


def write_report(
    workdir: Path, spec: TrainSpec, record: JobRecord, *, status: EndedStatus, error: str | None = None
) -> Path | None:
    """Write the report of a job that ends as `status`, and its pictures where there are none; the report's path.

    None where the job ended before it had anything to show: no step, no image, no evaluation.
    """
    spec = pictures.evaluation_spec(spec)
    run = pictures.read_run(workdir, spec)
    if not run.points and (status != "succeeded" or not run.updates):
        return None
    target = workdir / job_layout.REPORT_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    if status != "succeeded":  # a run that came to its end has drawn them
        pictures.draw_pictures(workdir, spec, target.parent)
    page = render_report(workdir, spec, run, record, status=status, error=error)
    with replacing(target) as partial:
        partial.write_text(page, encoding="utf-8")
    return target


def render_report(
    workdir: Path, spec: TrainSpec, run: curves.Run, record: JobRecord, *, status: EndedStatus, error: str | None
) -> str:
    first, last = compared_points(workdir, run)
    done = max((int(each["step"]) for each in run.updates), default=0)
    schedule = RewardSchedule(spec.rewards, record.weight_changes)
    rows = list(table_rows(schedule, first, last)) if first and last else []
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dipole_trainer.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cut"] = cut_text
    return environment.get_template("report.html").render(
        policy=CONTENT_SECURITY_POLICY,
        record=record,
        title=record.summary.get("suffix") or Path(spec.model).name,
        status=status,
        error=error,
        lead=describe_run(spec, done, schedule),
        results=describe_results(spec, rows),
        rows=rows[:MAX_ROWS],
        point_text=describe_points(last, spec) if last else "",
        last_step=last["step"] if last else None,
        diversity=list(diversity_rows(first, last)) if first and last else [],
        categories=category_table(spec, first, last) if first and last else None,
        charts=list(vector_curves.draw_charts(run)) if run.updates or run.points else [],
        gallery=gallery.build_gallery(workdir, spec, record.best["step"] if record.best else None),
        rewards=[describe_reward(reward, schedule, record.answers, workdir) for reward in spec.rewards],
        facts=list(training_facts(spec, record, workdir, run.updates)),
        request=build_request(spec, record),
        written=format_time(record.written_at),
    )


def compared_points(workdir: Path, run: curves.Run) -> tuple[Figure | None, Figure | None]:
    """The base's figures and the newest: of every held-out prompt, or of the pictures' where those came further."""
    evaluated = pictures.evaluated_steps(workdir)
    newest = run.points[-1]["step"] if run.points else 0
    if evaluated and (evaluated[-1] or not newest):
        files = [workdir / job_layout.evaluation_file(step) for step in (evaluated[0], evaluated[-1])]
        return pictures.read_point(files[0]), pictures.read_point(files[1])
    return (run.points[0], run.points[-1]) if run.points else (None, None)


# ---- what came of it ------------------------------------------------------------------------------------------------


def describe_run(spec: TrainSpec, done: int, schedule: RewardSchedule) -> str:
    """What was done, in a sentence."""
    method = METHOD_NAMES.get(spec.method.type, spec.method.type)
    trained = list(schedule.trained_before(done))
    of = f"{done} of {spec.steps}" if done != spec.steps else f"{done}"
    target = "recorded preferences" if spec.is_offline else join_names(trained)
    return f"{method} trained {Path(spec.model).name} for {of} updates on {target}."


def describe_results(spec: TrainSpec, rows: Sequence[ScoreRow]) -> list[str]:
    """What became of each reward, in a sentence each, trained ones first."""
    found = []
    for row in rows:
        if row.is_part or row.difference == "–":
            continue
        how = {1: "rose", -1: "fell", 0: "did not surely change"}[row.sign]
        change = f" from {_mean_of(row.base)} to {_mean_of(row.trained)}" if row.sign else ""
        found.append(f"{row.name} ({row.role}) {how}{change}: {row.difference}.")
    return found


def table_rows(schedule: RewardSchedule, first: Figure, last: Figure) -> Iterator[ScoreRow]:
    """Every reward, trained ones first, each followed by its parts."""
    for reward in sorted(schedule.rewards, key=lambda each: each.is_held_out):
        role = describe_role(reward, schedule.changes)
        names = sorted(name for name in last["scores"] if name == reward.name or name.startswith(f"{reward.name}."))
        for name in names:
            before, after = first["scores"].get(name, {}), last["scores"][name]
            difference = after.get("difference") or {}
            yield ScoreRow(
                name=name,
                role=role,
                is_part=name != reward.name,
                base=format_estimate(before),
                trained=format_estimate(after) if last["step"] else "–",
                difference=format_estimate(difference, sign=True),
                win_rate=format_estimate(after.get("win_rate") or {}),
                sign=statistics.significant_sign(difference) if difference else 0,
            )


def diversity_rows(first: Figure, last: Figure) -> Iterator[dict[str, str]]:
    for name, before in first["diversities"].items():
        after = last["diversities"].get(name, {})
        if "mean" in before and "mean" in after:
            share = f"{after['mean'] / before['mean']:.2f}" if before["mean"] else "–"
            difference = format_estimate(after.get("difference") or {}, sign=True)
            yield {"name": name, "base": format_estimate(before), "trained": format_estimate(after),
                   "difference": difference, "share": share}  # fmt: skip


def category_table(spec: TrainSpec, first: Figure, last: Figure) -> dict[str, Any] | None:
    """Each category's scores, the base's and the trained model's; None where prompts have no categories."""
    tags = sorted(last.get("by_tag") or {})
    rewards = [reward.name for reward in spec.rewards if reward.name in last["scores"]]
    names = [name for reward in rewards for name in (reward, f"{reward}{VERDICT}") if name in last["scores"]]
    if not tags or not names or not last["step"]:
        return None
    return {
        "names": names[:4],
        "more": max(0, len(tags) - MAX_TAGS),
        "rows": [
            {
                "tag": tag,
                "cells": [
                    (format_estimate(first.get("by_tag", {}).get(tag, {}).get(name, {})),
                     format_estimate(last["by_tag"][tag].get(name, {})))
                    for name in names[:4]
                ],
            }
            for tag in tags[:MAX_TAGS]
        ],
    }  # fmt: skip


def describe_points(last: Figure, spec: TrainSpec) -> str:
    """What the table's figures are of."""
    count, images = len(last["prompts"]), spec.evaluation.images_per_prompt
    average = " Of the moving average of the weights." if last.get("weights") == "ema" else ""
    held_out = last.get("of", "held_out") == "held_out"
    kind = "held-out prompts, which training never draws" if held_out else "training prompts: the job holds none out"
    interval = "± is a 95\N{NO-BREAK SPACE}% interval over prompts."
    return f"{count} {kind}, × {images} noises, the same for both; {interval}{average}"


# ---- how it was trained ---------------------------------------------------------------------------------------------


def describe_reward(
    reward: RewardSpec, schedule: RewardSchedule, answers: Sequence[AnsweringReward], workdir: Path
) -> dict[str, Any]:
    """Its place in the job, who answered, and whether anybody compared that with what was published."""
    found = {
        name: read_found_rewards(workdir / file).get(reward.name)
        for name, file in (
            ("unverified", job_layout.UNVERIFIED_REWARDS_FILE),
            ("verified", job_layout.VERIFIED_REWARDS_FILE),
        )
    }

    def state_of(answer: AnsweringReward) -> str:
        what = f"{answer.model} at {answer.revision}"
        return next((name for name, known in found.items() if known == what), "its endpoint does not say")

    return {
        "name": reward.name,
        "role": describe_role(reward, schedule.changes),
        "url": reward.url,
        "answers": [(each, state_of(each)) for each in answers if each.reward == reward.name],
    }


def training_facts(
    spec: TrainSpec, record: JobRecord, workdir: Path, updates: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, str]]:
    yield "Job", record.job_id
    yield "Base", Path(spec.model).name + (f" at {spec.revision}" if spec.revision else "")
    if (initial := spec.initial_checkpoint) is not None:
        yield "Started from", f"{initial.name}, step {initial.step} of job {initial.job}"
    yield (
        "Method",
        f"{spec.method.type}, {_flatten(spec.method.settings.model_dump(mode='json', exclude_defaults=True))}",
    )
    yield "Features", f"{spec.features.type}"
    if spec.tune == "lora":
        yield "LoRA", f"rank {spec.lora.rank}, alpha {spec.lora.alpha:g}, on {', '.join(spec.lora.target_modules)}"
    else:
        yield "Tuned", "every weight"
    yield "Each update", f"{spec.prompts_per_step} prompts × {spec.candidates} candidates"
    yield (
        "Optimiser",
        (
            f"AdamW, rate {spec.optimizer.lr:g}, {spec.optimizer.warmup_steps} steps of warm-up, "
            f"{spec.optimizer.decay_steps} of decay, gradient norm at most {spec.optimizer.max_grad_norm:g}"
        ),
    )
    if (ema := spec.optimizer.ema) is not None:
        yield "Moving average", f"decay {ema.decay:g}, exported in ema/"
    for field, what in (("training_file", "Prompts"), ("validation_file", "Held-out prompts")):
        count = len(spec.prompts if field == "training_file" else spec.evaluation.prompts)
        if count:
            file, name = record.files.get(field, ("", ""))
            yield what, f"{count}" + (f", of {name or 'a file'} ({file})" if file else ", with the request")
    yield "Seeds", f"{spec.seed} of the training, {spec.evaluation.seed} of the evaluation's noises"
    run_file = workdir / job_layout.RUN_FILE
    begun = json.loads(run_file.read_text()) if run_file.is_file() else {}
    if precision := spec.precision or begun.get("precision", ""):
        yield "Precision", precision + (f" on {begun['device']}" if begun.get("device") else "")
    peak = max((each["gpu_gib"] for each in updates if each.get("gpu_gib")), default=None)
    if peak is not None:
        yield "GPU memory", f"{peak:.1f} GiB at most"
    if skipped := sum(int(each.get("skipped") or 0) for each in updates):
        groups = len(updates) * spec.prompts_per_step
        yield "Groups skipped", f"{skipped} of {groups}"
    if record.started_at is not None:
        yield "Began", format_time(record.started_at)
        yield "Took", format_duration(record.written_at - record.started_at)
    for key, value in (record.summary.get("metadata") or {}).items():
        yield f"Note: {key}", str(value)
    yield "Versions", ", ".join([f"Python {platform.python_version()}", *_versions()])


def build_request(spec: TrainSpec, record: JobRecord) -> dict[str, Any]:
    """What makes the same job again: `json`, the body of POST /v1/fine_tuning/jobs, and `remark` on what it lacks. Whom
    to notify is left out: a report is handed on, and such a URL may be a secret.
    """
    body = spec.model_dump(
        mode="json",
        exclude_defaults=True,
        exclude={"prompts": True, "evaluation": {"prompts"}, "initial_checkpoint": True, "notify": True},
    )
    model = spec.initial_checkpoint.name if spec.initial_checkpoint is not None else spec.model
    body |= {"model": model, "seed": spec.seed, "steps": spec.steps}
    remark = ""
    body |= {
        field: file for field, (file, _) in record.files.items() if field == "validation_file" or not spec.is_offline
    }
    if "evaluation" in body and not body["evaluation"]:
        del body["evaluation"]
    if spec.evaluation.prompts and "validation_file" not in body:
        whole = spec.model_dump(mode="json", exclude_none=True, include={"evaluation": {"prompts"}})["evaluation"]
        if len(json.dumps(whole)) <= MAX_REQUEST_CHARS:
            body["evaluation"] = {**body.get("evaluation", {}), **whole}
        else:
            remark = "Its held-out prompts came with the request and are too many to stand here: give validation_file."
            body["evaluation"] = {key: value for key, value in body.get("evaluation", {}).items() if key != "every"}
    if suffix := record.summary.get("suffix"):
        body["suffix"] = suffix
    ordered = {name: body[name] for name in sorted(body, key=lambda name: name != "model")}
    return {"json": format_json(ordered), "remark": remark}


# ---- texts ----------------------------------------------------------------------------------------------------------


def cut_text(text: str, chars: int = MAX_TEXT_CHARS) -> str:
    return text if len(text) <= chars else text[: chars - 1].rstrip() + "…"


def format_json(value: Any) -> str:
    """Indented JSON with lists of plain values on a line."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return _PLAIN_LIST.sub(lambda found: "[" + ", ".join(found[1].split()).replace(",,", ",") + "]", text)


def join_names(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names) or "nothing"


def format_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def format_duration(seconds: float) -> str:
    """The two largest units."""
    whole = max(0, round(seconds))
    parts = ((whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s"))
    first = next((index for index, (count, _) in enumerate(parts) if count), 3)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count) or "0 s"


def _mean_of(estimate: str) -> str:
    return estimate.partition(" ")[0]


def _flatten(settings: Mapping[str, Any]) -> str:
    """Settings that are not at their defaults, in a line."""
    told = [
        f"{name} {', '.join(map(str, value)) if isinstance(value, list | tuple) else value}"
        for name, value in settings.items()
    ]
    return "; ".join(told) or "with its defaults"


def _versions() -> Iterator[str]:
    for name in PACKAGES:
        try:
            yield f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
