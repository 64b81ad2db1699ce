"""CLIP's cosine of image and prompt as transformers' CLIPModel gives it. Run by `dipole rewards verify clip`."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizerFast


def score_image(asked: dict[str, str]) -> float:
    folder, device = Path(asked["weights"]), asked["device"]
    model: Any = CLIPModel.from_pretrained(folder).eval().to(device)
    side = model.config.vision_config.image_size
    processor: Any = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    pixels = processor(images=Image.open(asked["image"]), return_tensors="pt").to(device)
    tokenizer: Any = CLIPTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    words = tokenizer(asked["prompt"], truncation=True, max_length=77, return_tensors="pt").to(device)
    with torch.no_grad():
        return float(model(**pixels, **words).logits_per_image / model.logit_scale.exp())


if __name__ == "__main__":
    print(json.dumps({"score": score_image(json.loads(sys.argv[1]))}))
