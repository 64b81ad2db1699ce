"""PickScore as its model card computes it with transformers. Run by `dipole rewards verify pickscore`."""

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
        image = model.get_image_features(**pixels)
        image = image / torch.norm(image, dim=-1, keepdim=True)
        text = model.get_text_features(**words)
        text = text / torch.norm(text, dim=-1, keepdim=True)
        return float((model.logit_scale.exp() * (text @ image.T)[0])[0])


if __name__ == "__main__":
    print(json.dumps({"score": score_image(json.loads(sys.argv[1]))}))
