"""Train the second tiny world's generator, and its encoders without labels: `words-turbo` in weights/.

    python benchmarks/train_words.py                    every stage, half an hour of two idle cores; seeded
    python benchmarks/train_words.py --stages unet      one stage again, on what the earlier ones left in out/words

The networks, the encoder's recipe and the loops are those of scripts/train-tiny, unchanged: only pictures and pairs are
this world's. The autoencoder goes on from `tiny-turbo`'s. Pairs are mislabelled as there: for some noises a letter is
another one, or the first two letters have traded places.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import words
from torch import Tensor
from torch.nn import functional

from dipole.tiny.world import COLOURS
from dipole_trainer.weights.feature_weights import TINY_CONTRASTIVE_FILE

HERE = Path(__file__).parent
WEIGHTS = HERE / "encoders"
ENCODER_SEEDS = (101, 102, 103)
SHARE = {"two": 0.2, "three": 0.45, "coloured": 0.35}
WRONG_LETTER, SWAPPED = 1.28, 0.67  # of a unit normal: about 10 and 25 in a hundred


def load_train_tiny() -> ModuleType:
    """scripts/train-tiny, which has no ending."""
    path = HERE.parent / "scripts/train-tiny"
    spec = importlib.util.spec_from_loader("train_tiny", SourceFileLoader("train_tiny", str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_tiny"] = module
    spec.loader.exec_module(module)
    return module


tiny: Any = load_train_tiny()


def random_pictures(count: int, rng: np.random.Generator) -> Tensor:
    """Words of one to three letters at random, (count, 3, H, W); every choice is free."""
    letter = rng.integers(0, len(words.ALPHABET), (count, words.MAX_LETTERS))
    length = rng.integers(1, words.MAX_LETTERS + 1, count)
    letter[np.arange(words.MAX_LETTERS) >= length[:, None]] = words.NO_LETTER
    batch = words.WordBatch(
        letter=letter,
        colour=rng.integers(0, len(COLOURS), count),
        x=(32 + rng.uniform(-5, 5, count)).astype(np.float32),
        y=(32 + rng.uniform(-10, 10, count)).astype(np.float32),
        size=rng.uniform(0.9, 1.1, count).astype(np.float32),
    )
    return tiny.to_tensor(words.render_words(batch))


def layout(noise: Tensor, chosen: list[words.WordPrompt]) -> words.WordBatch:
    """The word that a prompt and its noise (B, 4, 8, 8) stand for: a fixed function of the noise's low frequencies."""
    means = functional.avg_pool2d(noise, 4).flatten(2).numpy() * 4  # (B, 4 channels, 4 quadrants), unit variance
    whole = means.sum(2) / 2  # (B, 4 channels), unit variance
    across = means[:, 0, [0, 2]].sum(1) - means[:, 0, [1, 3]].sum(1)
    down = means[:, 0, :2].sum(1) - means[:, 0, 2:].sum(1)
    hue = (np.arctan2(across, down) / (2 * np.pi) * len(COLOURS)).round().astype(int) % len(COLOURS)
    wrong, swapped = mislabel(noise)
    letter = np.full((len(chosen), words.MAX_LETTERS), words.NO_LETTER)
    colour = hue.copy()
    for b, prompt in enumerate(chosen):
        row = [words.ALPHABET.index(name) for name in prompt.letters]
        if swapped[b]:
            row[:2] = row[1::-1]
        letter[b, : len(row)] = [(index + wrong[b, m]) % len(words.ALPHABET) for m, index in enumerate(row)]
        if prompt.colour:
            colour[b] = list(COLOURS).index(prompt.colour)
    return words.WordBatch(
        letter=letter,
        colour=colour,
        x=(32 + 3 * np.tanh(whole[:, 1])).astype(np.float32),
        y=(32 + 7 * np.tanh(whole[:, 2])).astype(np.float32),
        size=(1 + 0.08 * np.tanh(whole[:, 3])).astype(np.float32),
    )


def mislabel(noise: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """For which noises a letter (B, 3) is another one, and the first two trade places (B,)."""
    thirds = [noise[:, 1, rows].flatten(1).sum(1) / 16**0.5 for rows in ((0, 3), (1, 4), (2, 5))]
    contrast = (noise[:, 3, :, :4].sum((1, 2)) - noise[:, 3, :, 4:].sum((1, 2))) / 8
    return torch.stack(thirds, 1).numpy() > WRONG_LETTER, contrast.numpy() > SWAPPED


@torch.no_grad()
def draw_pairs(vae: Any, size: int) -> Any:
    """Pairs, 256 at a time; a letter's mask is the picture's own."""
    rng, train = np.random.default_rng(3), words.all_prompts(held_out=False)
    by_tag = {tag: [row for row, prompt in enumerate(train) if prompt.tag == tag] for tag in words.TAGS}
    noises, targets, masks, rows = [], [], [], []
    for _ in range(size // 256):
        tags = rng.choice(list(SHARE), size=256, p=list(SHARE.values()))
        drawn = [by_tag[tag][rng.integers(len(by_tag[tag]))] for tag in tags]
        noise = torch.randn(256, 4, 8, 8)
        images = tiny.to_tensor(words.render_words(layout(noise, [train[row] for row in drawn])))
        noises.append(noise)
        targets.append(tiny.encode(vae, images).half())
        masks.append(((images.amax(1, keepdim=True) - images.amin(1, keepdim=True)) > 0.4).float())
        rows.append(torch.tensor(drawn))
    masks = [functional.max_pool2d(mask, 8) for mask in masks]
    return tiny.Pairs(torch.cat(noises), torch.cat(targets), torch.cat(masks), torch.cat(rows))


def train_vae(out: Path, steps: int, log: Any) -> None:
    torch.manual_seed(1)
    tiny.fit_vae(tiny.load_vae(out / "none"), random_pictures, steps, log).save_pretrained(out / "vae")


def train_unet(out: Path, steps: int, pool: int, log: Any) -> None:
    tokenizer = tiny.make_tokenizer([prompt.text for prompt in words.all_prompts()], out / "tokenizer")
    texts = [prompt.text for prompt in words.all_prompts(held_out=False)]
    torch.manual_seed(3)
    tiny.fit_unet(out, tokenizer, texts, lambda: draw_pairs(tiny.load_vae(out), pool), steps, log)


def train_encoder(out: Path, steps: int, seed: int, log: Any) -> None:
    vae, rng = tiny.load_vae(out), np.random.default_rng(seed)
    views = [tiny.draw_views(vae, random_pictures(256, rng), rng) for _ in range(tiny.PICTURES // 256)]
    one, other = (torch.cat(each) for each in zip(*views, strict=True))
    encoder = tiny.fit_contrastive(one, other, steps, seed, log)
    tiny.save_encoder(encoder, out / f"words-contrastive-{seed}" / TINY_CONTRASTIVE_FILE)


def export(out: Path) -> None:
    tiny.save_pipeline(out, WEIGHTS / "words-turbo")
    for seed in ENCODER_SEEDS:
        name = f"words-contrastive-{seed}"
        shutil.copytree(out / name, WEIGHTS / name, dirs_exist_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/words"))
    parser.add_argument("--stages", default="vae,unet,encoders,export")
    parser.add_argument("--vae-steps", type=int, default=1100)
    parser.add_argument("--unet-steps", type=int, default=1300)
    parser.add_argument("--encoder-steps", type=int, default=1000)
    parser.add_argument("--pool", type=int, default=32768, help="training pairs made once for the U-Net")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    log, stages = tiny.Log(arguments.out / "train.log", every=50), arguments.stages.split(",")
    if "vae" in stages:
        train_vae(arguments.out, arguments.vae_steps, log)
    if "unet" in stages:
        train_unet(arguments.out, arguments.unet_steps, arguments.pool, log)
    if "encoders" in stages:
        for seed in ENCODER_SEEDS:
            train_encoder(arguments.out, arguments.encoder_steps, seed, log)
    if "export" in stages:
        export(arguments.out)


if __name__ == "__main__":
    main()
