"""The README.md of an export: what was trained on what, and a snippet that draws an image as it stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from huggingface_hub import ModelCardData

from dipole_trainer.checkpoints.usage_snippet import PipelineUsage, base_repository, render_snippet
from dipole_trainer.ranking.weight_changes import WeightChange, describe_role
from dipole_trainer.spec import Precision, TrainSpec
from dipole_trainer.storage.job_layout import CURVES_FILE, EMA_FOLDER, EXPORTED_SAMPLES_FILE, MERGED_FOLDER
from dipole_trainer.weights.lora_formats import LORA_WEIGHTS_FILE

CARD_TEMPLATE = """---
{head}
---
# {title}, trained with Dipole

{picture}| | |
|---|---|
{facts}

One step, {guidance}: that is what it was trained for.

```python
{snippet}
```

## Files

{files}
"""
FILE_DESCRIPTIONS = {
    LORA_WEIGHTS_FILE: "the adapter, for diffusers",
    "_webui.safetensors": "the adapter for ComfyUI and A1111 (1 step, CFG scale 1; sampler Euler, or the one above)",
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
    usage: PipelineUsage,
    files: Sequence[str],
    unverified: Mapping[str, str] | None = None,
    weight_changes: Sequence[WeightChange] = (),
) -> str:
    """The card of a checkpoint at `step`, trained in `precision`, whose pipeline is used as `usage` says.

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
            base_model=base_repository(spec),
            tags=[*(["lora"] if is_lora else []), "text-to-image", "one-step", "dipole"],
        ).to_yaml(),
        picture=f"![The base beside the trained model, on the same prompts and noises]({EXPORTED_SAMPLES_FILE})\n\n"
        if EXPORTED_SAMPLES_FILE in files
        else "",
        facts="\n".join(
            f"| {fact} | {value} |"
            for fact, value in _card_facts(spec, step, precision, is_lora, usage, unverified, weight_changes)
        ),
        guidance=f"guidance scale {usage.call['guidance_scale']:g}"
        if usage.call["guidance_scale"]
        else "without guidance",
        snippet=render_snippet(spec, usage, precision, is_lora=is_lora),
        files="\n".join(
            f"- `{file}`: {told}" for file in files for end, told in FILE_DESCRIPTIONS.items() if file.endswith(end)
        ),
    )


def _card_facts(
    spec: TrainSpec,
    step: int,
    precision: Precision,
    is_lora: bool,
    usage: PipelineUsage,
    unverified: Mapping[str, str] | None,
    weight_changes: Sequence[WeightChange],
) -> Iterator[tuple[str, str]]:
    yield "base", (base_repository(spec) or Path(spec.model).name) + (f" at {spec.revision}" if spec.revision else "")
    if (distillation := usage.distillation) is not None:
        use = "load it first, and add this adapter to it" if is_lora else "it is merged in"
        yield "one-step weights", f"{distillation.file} of {distillation.repository}; {use}"
    if (initial := spec.initial_checkpoint) is not None:
        holds = "the adapter holds that job's part too: it goes onto the base" if is_lora else "it is merged in"
        yield "started from", f"{initial.name}, step {initial.step} of job {initial.job}; {holds}"
    yield "method", spec.method.type
    if spec.is_offline:
        yield "learned from", "recorded preferences"
    else:
        before = [each for each in weight_changes if each.step is not None and each.step < step]
        yield "rewards", ", ".join(f"{reward.name} ({describe_role(reward, before)})" for reward in spec.rewards)
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
    if usage.schedule_change:
        yield "scheduler", usage.schedule_change


def _cell(text: str) -> str:
    """What an endpoint said of itself, as it may stand in a table of Markdown."""
    return "".join(char if char.isprintable() and char not in "|<>`[]\\" else " " for char in text)
