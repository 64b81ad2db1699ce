"""What leaves a run: files that other people's tools load, a model card that shows how, and a sheet of samples.

    export/
      pytorch_lora_weights.safetensors     the adapter, for diffusers
      <model>-<method>_webui.safetensors   the adapter under kohya's names, for ComfyUI and A1111; of a U-Net alone
      ema/                                 with `optimizer.ema`: these once more, of the moving average
      merged/                              the whole pipeline, with `export_merged`, and always where every weight was
                                           trained, by this job or by one that it started from
      README.md                            the model card
      samples.png  curves.png              base beside final, and how it came to it (evaluation/pictures.py)

The adapter fits the model that `spec.model` names: of a job that started from an earlier one it holds both jobs' parts.
Of a distilled model it holds the job's part alone, which is added to the distilled weights.
Written whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from dipole.errors import NotFinite
from dipole_trainer.checkpoints import model_card
from dipole_trainer.checkpoints.usage_snippet import PipelineUsage
from dipole_trainer.generators.initial_weights import merge_adapter
from dipole_trainer.generators.one_step import DTYPES, OneStepGenerator
from dipole_trainer.ranking.forwarding.unverified import read_found_rewards
from dipole_trainer.ranking.weight_changes import WeightChange
from dipole_trainer.spec import TrainSpec
from dipole_trainer.storage import job_layout
from dipole_trainer.weights.lora_formats import LORA_WEIGHTS_FILE, fold_adapters, to_diffusers_lora, to_webui_lora


def export_checkpoint(
    trained: Path,
    workdir: Path,
    spec: TrainSpec,
    generator: OneStepGenerator,
    draw_pictures: Callable[[Path], None] = lambda folder: None,
    *,
    weight_changes: Sequence[WeightChange] = (),
) -> list[Path]:
    """Write `workdir/export` from the checkpoint `trained` of `generator`; returns what lies in it.

    `draw_pictures` is given the folder to write the run's pictures to, `weight_changes` are for the model card.

    The generator gives the base's weights and the pipeline's other parts; what it has trained since is not looked at.
    """
    folder = workdir / job_layout.EXPORT_FOLDER
    partial = workdir / f".{job_layout.EXPORT_FOLDER}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write_trained(trained, partial, workdir, spec, generator)
    if (trained / job_layout.EMA_FOLDER).is_dir():
        (partial / job_layout.EMA_FOLDER).mkdir()
        _write_trained(trained / job_layout.EMA_FOLDER, partial / job_layout.EMA_FOLDER, workdir, spec, generator)
    draw_pictures(partial)
    written = sorted(path.name for path in partial.iterdir())
    step = int(json.loads((trained / job_layout.TRAINING_STATE_FILE).read_text())["step"])
    card = model_card.render_model_card(
        spec,
        step=step,
        precision=generator.precision,
        usage=PipelineUsage(
            generator.pipeline_class.__name__,
            generator.call_arguments(),
            generator.schedule_change,
            generator.distillation,
        ),
        files=written,
        unverified=read_found_rewards(workdir / job_layout.UNVERIFIED_REWARDS_FILE),
        weight_changes=weight_changes,
    )
    (partial / job_layout.MODEL_CARD_FILE).write_text(card, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return sorted(folder.iterdir())


def _write_trained(trained: Path, folder: Path, workdir: Path, spec: TrainSpec, generator: OneStepGenerator) -> None:
    """The weights in `trained`, laid out as in a checkpoint, as other people's tools load them."""
    adapters = _read_adapters(trained, workdir, spec, generator)
    if adapters:
        _write_loras(adapters, folder, spec, generator)
    if not adapters or spec.export_merged:
        generator.write_pipeline(_load_trained_state(trained, spec, generator), folder / job_layout.MERGED_FOLDER)
        _strip_local_paths(folder / job_layout.MERGED_FOLDER)


def _read_adapters(
    trained: Path, workdir: Path, spec: TrainSpec, generator: OneStepGenerator
) -> list[tuple[bytes, dict[str, Any]]]:
    """The adapters (weights, settings) between the model's own base and the checkpoint, in order; none where every
    weight was trained on the way, so that no adapter alone is the difference.
    """
    initial = workdir / job_layout.INITIAL_FOLDER
    earlier = [initial / name for name in job_layout.initial_folders(job_layout.files_below(initial))]
    component = generator.component
    found = []
    for folder in [*earlier, trained]:
        if not (folder / job_layout.adapter_weights_file(component)).is_file():
            return []
        config = json.loads((folder / job_layout.adapter_config_file(component)).read_text())
        found.append(((folder / job_layout.adapter_weights_file(component)).read_bytes(), config))
    return found


def _write_loras(
    adapters: list[tuple[bytes, dict[str, Any]]], folder: Path, spec: TrainSpec, generator: OneStepGenerator
) -> None:
    component = generator.component
    adapter, config = fold_adapters(adapters)
    (folder / LORA_WEIGHTS_FILE).write_bytes(to_diffusers_lora(adapter, config, component))
    if (known_by := generator.webui_metadata()) is None:
        return
    name = f"{Path(spec.model).name}-{spec.method.type}"
    metadata = {"ss_output_name": name, **known_by}
    (folder / f"{name}_webui.safetensors").write_bytes(to_webui_lora(adapter, config, metadata, component))


# ---- the whole pipeline ---------------------------------------------------------------------------------------------


def _load_trained_state(trained: Path, spec: TrainSpec, generator: OneStepGenerator) -> dict[str, Tensor]:
    """The trained part's state_dict on the CPU, in the precision that the run computed in. Raises NotFinite."""
    dtype, component = DTYPES[generator.precision], generator.component
    if spec.tune == "full":
        state: Mapping[str, Tensor] = load_file(trained / job_layout.full_weights_file(component))
    else:
        base = {name: value.detach().cpu() for name, value in generator.base_state().items()}
        config = json.loads((trained / job_layout.adapter_config_file(component)).read_text())
        adapter = load_file(trained / job_layout.adapter_weights_file(component))
        state = merge_adapter(base, adapter, config["lora_alpha"] / config["r"])
    written = {name: value.to(dtype).contiguous() for name, value in state.items()}
    if broken := [name for name, value in written.items() if not value.isfinite().all()]:
        raise NotFinite(f"{broken[0]} is not finite in {generator.precision}: export with precision bf16 or fp32")
    return written


def _strip_local_paths(folder: Path) -> None:
    """Take this machine's folders out of the configs: diffusers notes where each part was loaded from."""
    for path in folder.rglob("*.json"):
        if path.name in ("model_index.json", "config.json", "scheduler_config.json"):
            config = json.loads(path.read_text())
            if config.pop("_name_or_path", None) is not None:
                path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
