"""HPSv3 by the package `hpsv3`. Run by `dipole rewards verify hpsv3`, in an empty folder; it wants a GPU.

The package loads Qwen2-VL's own 17 GB before HPSv3's checkpoint replaces every weight. It is given a folder instead
that names the checkpoint itself as those weights, and as many tokens as the checkpoint has.
"""

import json
import sys
from pathlib import Path

import torch
from hpsv3 import HPSv3RewardInferencer, inference
from safetensors import safe_open

PROCESSOR = {  # Qwen2-VL's, as transformers has it without a file
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2VLProcessor",
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def write_base(weights: Path, folder: Path) -> None:
    """Qwen2-VL's folder, with HPSv3's checkpoint in the place of its weights."""
    folder.mkdir()
    checkpoint = weights / "HPSv3.safetensors"
    (folder / "model.safetensors").symlink_to(checkpoint)
    with safe_open(checkpoint, framework="pt") as opened:
        tokens = opened.get_slice("model.embed_tokens.weight").get_shape()[0]
    config = json.loads((weights / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": tokens}))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((weights / name).read_bytes())


def score_image(asked: dict[str, str]) -> float:
    weights, base = Path(asked["weights"]), Path("base").absolute()
    write_base(weights, base)
    published = Path(inference.__file__).with_name("config") / "HPSv3_7B.yaml"
    config = Path("HPSv3_7B.yaml").absolute()
    config.write_text(published.read_text().replace('"Qwen/Qwen2-VL-7B-Instruct"', json.dumps(str(base))))
    inferencer = HPSv3RewardInferencer(
        config_path=str(config), checkpoint_path=str(weights / "HPSv3.safetensors"), device=asked["device"]
    )
    with torch.no_grad():
        return float(inferencer.reward([asked["image"]], [asked["prompt"]])[0][0])


if __name__ == "__main__":
    print(json.dumps({"score": score_image(json.loads(sys.argv[1]))}))
