"""HPSv2.1 by the package `hpsv2`. Run by `dipole rewards verify hpsv2`.

The package begins by fetching CLIP's own 4 GB, of which the checkpoint then replaces every weight: the network is made
here without them, by the package, with the arguments that it gives itself.
"""

import json
import sys
from pathlib import Path

from hpsv2 import img_score


def score_image(asked: dict[str, str]) -> float:
    img_score.device = asked["device"]
    model, _, preprocess = img_score.create_model_and_transforms(
        "ViT-H-14", None, precision="amp", device=asked["device"], light_augmentation=True, output_dict=True
    )
    img_score.model_dict.update(model=model, preprocess_val=preprocess)
    weights = Path(asked["weights"]) / "HPS_v2.1_compressed.pt"
    (score,) = img_score.score(asked["image"], asked["prompt"], cp=str(weights), hps_version="v2.1")
    return float(score)


if __name__ == "__main__":
    print(json.dumps({"score": score_image(json.loads(sys.argv[1]))}))
