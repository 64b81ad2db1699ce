"""ImageReward v1.0 by the package `image-reward`. Run by `dipole rewards verify imagereward`, in an empty folder.

The package asks the hub for the tokenizer `bert-base-uncased`; a folder of that name, in the folder where it runs, is
taken instead.
"""

import json
import sys
from pathlib import Path

import ImageReward


def write_tokenizer(source: Path, folder: Path) -> None:
    """bert-base-uncased's vocabulary, out of the same tokenizer in its newer form."""
    vocabulary = json.loads(source.read_text(encoding="utf-8"))["model"]["vocab"]
    folder.mkdir()
    words = sorted(vocabulary, key=vocabulary.__getitem__)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))


def score_image(asked: dict[str, str]) -> float:
    folder = Path(asked["weights"])
    write_tokenizer(folder / "tokenizer.json", Path("bert-base-uncased"))
    model = ImageReward.load(
        str(folder / "ImageReward.pt"), device=asked["device"], med_config=str(folder / "med_config.json")
    )
    return float(model.score(asked["prompt"], asked["image"]))


if __name__ == "__main__":
    print(json.dumps({"score": score_image(json.loads(sys.argv[1]))}))
