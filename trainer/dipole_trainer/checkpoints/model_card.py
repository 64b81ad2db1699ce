"""The README.md of an export: what was trained on what, and a snippet that draws an image as it stands."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from huggingface_hub import ModelCardData

from dipole_trainer.ranking.weight_changes import WeightChange, describe_weight
from dipole_trainer.spec import Precision, TrainSpec
from dipole_trainer.storage.job_layout import CURVES_FILE, EMA_FOLDER, EXPORTED_SAMPLES_FILE, MERGED_FOLDER
from dipole_trainer.weights.base_models import PUBLISHED_MODELS
from dipole_trainer.weights.lora_formats import LORA_WEIGHTS_FILE

CARD_TEMPLATE = """---
{head}
---
# {title}, trained with Dipole

{picture}| | |
|---|---|
{facts}

One step, without guidance: that is what it was trained for.

```python
{snippet}
```

## Files

{files}
"""
FILE_DESCRIPTIONS = {
    LORA_WEIGHTS_FILE: "the adapter, for diffusers",
    "_webui.safetensors": "the adapter for ComfyUI and A1111 (sampler Euler, 1 step, CFG scale 1)",
    MERGED_FOLDER: "the whole pipeline in diffusers format, with the trained weights in place",
    EMA_FOLDER: "the same files of the exponential moving average of the trained weights",
    EXPORTED_SAMPLES_FILE: "the base beside the trained model: a row a prompt, a column a noise, the same for both",
    CURVES_FILE: "rewards, diversity, loss and seconds over the updates",
}


def render_model_card(
    spec: TrainSpec,
    *,
    step: int,
    precision: Precision,
    pipeline: str,
    files: Sequence[str],
    schedule_change: str | None = None,
    unverified: Mapping[str, str] | None = None,
    weight_changes: Sequence[WeightChange] = (),
) -> str:
    """The card of a checkpoint at `step`, trained in `precision`, whose pipeline is of the diffusers class `pipeline`.

    `schedule_change` says what the base's scheduler needs to draw in one step; who loads the base has to do it too.
    `unverified` names the rewards whose scores nobody has compared with those of their published implementations, with
    the model and revision of each.
    """
    name = Path(spec.model).name
    is_lora = LORA_WEIGHTS_FILE in files
    what = "LoRA for" if is_lora else "Every weight of the network of"
    return CARD_TEMPLATE.format(
        title=f"{what} `{name}`",
        head=ModelCardData(
            library_name="diffusers",
            pipeline_tag="text-to-image",
            base_model=_hub_id(spec),
            tags=[*(["lora"] if is_lora else []), "text-to-image", "one-step", "dipole"],
        ).to_yaml(),
        picture=f"![The base beside the trained model, on the same prompts and noises]({EXPORTED_SAMPLES_FILE})\n\n"
        if EXPORTED_SAMPLES_FILE in files
        else "",
        facts="\n".join(
            f"| {fact} | {value} |"
            for fact, value in _card_facts(spec, step, precision, is_lora, schedule_change, unverified, weight_changes)
        ),
        snippet=_usage_snippet(spec, pipeline, precision, is_lora=is_lora, trailing=schedule_change is not None),
        files="\n".join(
            f"- `{file}`: {told}" for file in files for end, told in FILE_DESCRIPTIONS.items() if file.endswith(end)
        ),
    )


def _card_facts(
    spec: TrainSpec,
    step: int,
    precision: Precision,
    is_lora: bool,
    schedule_change: str | None,
    unverified: Mapping[str, str] | None,
    weight_changes: Sequence[WeightChange],
) -> Iterator[tuple[str, str]]:
    yield "base", (_hub_id(spec) or Path(spec.model).name) + (f" at {spec.revision}" if spec.revision else "")
    if (initial := spec.initial_checkpoint) is not None:
        holds = "the adapter holds that job's part too: it goes onto the base" if is_lora else "it is merged in"
        yield "started from", f"{initial.name}, step {initial.step} of job {initial.job}; {holds}"
    yield "method", spec.method.type
    if spec.is_offline:
        yield "learned from", "recorded preferences"
    else:
        before = [each for each in weight_changes if each.step is not None and each.step < step]
        yield "rewards", ", ".join(f"{reward.name} ({describe_weight(reward, before)})" for reward in spec.rewards)
    if unverified:
        named = ", ".join(f"{reward} ({_cell(what)})" for reward, what in sorted(unverified.items()))
        yield "unverified", f"{named}: not compared with the scores of the published implementation"
    yield "updates", f"{step} of {spec.prompts_per_step} prompts and {spec.candidates} candidates each"
    if spec.tune == "lora":
        trained = "adapter" if spec.initial_checkpoint is None else "adapter trained here"
        yield trained, f"rank {spec.lora.rank}, alpha {spec.lora.alpha:g}, on {', '.join(spec.lora.target_modules)}"
    if (ema := spec.optimizer.ema) is not None:
        shown = "; the figures and pictures are of it" if ema.evaluated else ""
        yield "moving average", f"decay {ema.decay:g}, in `{EMA_FOLDER}/`{shown}"
    yield "precision, seed", f"{precision}, {spec.seed}"
    if schedule_change:
        yield "scheduler", schedule_change


def _cell(text: str) -> str:
    """What an endpoint said of itself, as it may stand in a table of Markdown."""
    return "".join(char if char.isprintable() and char not in "|<>`[]\\" else " " for char in text)


def _usage_snippet(spec: TrainSpec, pipeline: str, precision: Precision, *, is_lora: bool, trailing: bool) -> str:
    """Python that draws an image, run in the export's folder."""
    imports, base = _base_expression(spec, pipeline, is_lora=is_lora)
    dtype = {"fp32": "torch.float32", "bf16": "torch.bfloat16", "fp16": "torch.float16"}[precision]
    if precision != "fp32":
        dtype += ' if device == "cuda" else torch.float32'
    lines = [
        *imports,
        "",
        'device = "cuda" if torch.cuda.is_available() else "cpu"',
        f"dtype = {dtype}",
        f"base = {base}",
        f"pipe = {pipeline}.from_pretrained(base{_revision_argument(spec, is_lora)}, dtype=dtype).to(device)",
    ]
    if trailing and is_lora:
        lines += [
            "scheduler = pipe.scheduler",
            'pipe.scheduler = type(scheduler).from_config(scheduler.config, timestep_spacing="trailing")',
        ]
    if is_lora:
        lines.append(f'pipe.load_lora_weights(".", weight_name="{LORA_WEIGHTS_FILE}")  # of this folder')
    size = f", height={spec.resolution}, width={spec.resolution}" if spec.resolution else ""
    lines += [
        "seed = torch.Generator().manual_seed(0)",
        f'image = pipe("a prompt", num_inference_steps=1, guidance_scale=0.0, generator=seed{size}).images[0]',
        'image.save("image.png")',
    ]
    return "\n".join(lines)


def _base_expression(spec: TrainSpec, pipeline: str, *, is_lora: bool) -> tuple[list[str], str]:
    """The snippet's imports, and the expression that says what it loads."""
    usual = ["import torch", f"from diffusers import {pipeline}"]
    hub_id, name = _hub_id(spec), Path(spec.model).name
    if not is_lora:
        return usual, '"merged"  # of this folder'
    if hub_id is not None:
        return usual, f'"{hub_id}"'
    if name == "tiny-turbo":
        return [*usual, "from dipole_trainer.generators.one_step import TINY_TURBO"], "TINY_TURBO"
    return [
        "import os",
        "",
        *usual,
    ], f'os.path.join(os.environ["DIPOLE_MODELS_DIR"], {json.dumps(name, ensure_ascii=False)})'


def _revision_argument(spec: TrainSpec, is_lora: bool) -> str:
    return f', revision="{spec.revision}"' if spec.revision and is_lora else ""


def _hub_id(spec: TrainSpec) -> str | None:
    """The base's repository, where it has one."""
    known = PUBLISHED_MODELS.get(spec.model, spec.model)
    return known if "/" in known else None
