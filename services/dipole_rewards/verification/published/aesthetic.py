"""LAION's aesthetic predictor v2, as its simple_inference.py computes it. Run by `dipole rewards verify aesthetic`.

That is a script and no package, and takes CLIP from OpenAI's; here transformers has the same CLIP. The head is the
script's: a linear layer after the other, on a unit vector.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import CLIPImageProcessor, CLIPModel


class Predictor(nn.Module):
    """`MLP` of simple_inference.py: the names of its layers are those of the file of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(768, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2),
            nn.Linear(128, 64), nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1),
        )  # fmt: skip


def score_image(asked: dict[str, str]) -> float:
    folder, device = Path(asked["weights"]), asked["device"]
    model: Any = CLIPModel.from_pretrained(folder).eval().to(device)
    side = model.config.vision_config.image_size
    processor: Any = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    pixels = processor(images=Image.open(asked["image"]), return_tensors="pt").to(device)
    predictor = Predictor()
    head = folder / "sac+logos+ava1-l14-linearMSE.pth"
    predictor.load_state_dict(torch.load(head, map_location="cpu", weights_only=True))
    predictor.eval().to(device)
    with torch.no_grad():
        features = model.get_image_features(**pixels)
        return float(predictor.layers(features / features.norm(dim=-1, keepdim=True))[0, 0])


if __name__ == "__main__":
    print(json.dumps({"score": score_image(json.loads(sys.argv[1]))}))
