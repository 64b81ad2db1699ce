"""TRL's GRPOTrainer with one of our rewards: a language model learns to write prompts whose images the reward likes.

    dipole rewards serve colourfulness --port 8401
    pip install trl
    python examples/trl_reward.py http://127.0.0.1:8401

It runs on a CPU in a minute: the model is a tiny one with random weights, and `draw_images` paints each word that is a
colour as a stripe. For a real run give a model's name and draw with a pipeline of diffusers.
"""

from __future__ import annotations

import sys
import tempfile

import numpy as np
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from dipole.client import Client
from dipole.client.scores.trl import trl_reward

COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220), "green": (40, 180, 60), "grey": (128, 128, 128)}
PROMPTS = ["a poster", "a flag", "a wall", "a carpet"]


def make_model() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """A random model of a few words, so that nothing is downloaded."""
    words = ["<pad>", "<end>", "a", "poster", "flag", "wall", "carpet", *COLOURS]
    plain = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=words[0]))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token=words[0], eos_token=words[1])
    config = GPT2Config(vocab_size=len(words), n_layer=2, n_head=2, n_embd=32, eos_token_id=1, pad_token_id=0)
    return GPT2LMHeadModel(config), tokenizer


def draw_images(texts: list[str]) -> list[np.ndarray]:
    """Images of the texts, uint8 (H, W, 3): a stripe for each colour that is named. A pipeline's place."""
    drawn = []
    for text in texts:
        image = np.full((64, 64, 3), 128, np.uint8)
        named = [COLOURS[word] for word in text.split() if word in COLOURS]
        for place, colour in enumerate(named):
            image[:, place * 64 // len(named) : (place + 1) * 64 // len(named)] = colour
        drawn.append(image)
    return drawn


def main() -> None:
    model, tokenizer = make_model()
    with Client(sys.argv[1]) as client, tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=model,
            processing_class=tokenizer,
            reward_funcs=[trl_reward(client, draw=draw_images, name=client.info().name)],
            train_dataset=Dataset.from_dict({"prompt": PROMPTS * 8}),
            args=GRPOConfig(
                output_dir=folder, max_steps=100, per_device_train_batch_size=8, num_generations=8,
                max_completion_length=6, learning_rate=3e-3, logging_steps=20, report_to=[], use_cpu=True,
            ),
        )  # fmt: skip
        trainer.train()


if __name__ == "__main__":
    main()
