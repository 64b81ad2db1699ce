"""Reward `judge` against an OpenAI-compatible server that is not ours: `transformers serve` with a tiny LLaVA.

The model is random and made here. So that it says something, its vocabulary holds whole answers as single tokens and
its generation config allows no others; which of them it says depends on everything it is shown. The server ignores
logprobs and response_format, so what this proves is the rest: messages, images, answers, usage, and errors as others
write them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from dipole.errors import ConfigurationError
from dipole.settings import load_settings
from dipole_rewards.judging import rubric
from dipole_rewards.judging.pointwise import ZERO_TO_100
from dipole_rewards.judging.settings import JudgeSettings
from dipole_rewards.reward import Pixels, check_golden
from dipole_rewards.rewards.judge import Judge

from ...processes import serving

SIDE, PATCH = 168, 14
CHAT = (
    "<s>{% for message in messages %}{{ message.role }}:\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}\n{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n{% endif %}"
)
ANSWERS = {
    "pointwise": [json.dumps({"score": each}) for each in range(0, 100, 3)],
    "pairwise": [json.dumps({"better": each}) for each in ("A", "B", "tie")],
    "listwise": [json.dumps({"ranking": each}) for each in ([1, 2], [2, 1])],
    "prose": ["What a lovely image!", "I cannot tell."],
}  # fmt: skip


def write(folder: Path, answers: Sequence[str]) -> None:
    """A LLaVA that says one of these answers and then stops, with its processor."""
    torch.manual_seed(0)
    letters = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bpe = Tokenizer(models.BPE(vocab=letters, merges=[]))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    tokenizer.add_tokens(["<s>", "</s>", "<image>"], special_tokens=True)
    tokenizer.add_tokens(list(answers))
    begin, end, image = tokenizer.convert_tokens_to_ids(["<s>", "</s>", "<image>"])
    said = tokenizer.convert_tokens_to_ids(list(answers))
    model: Any = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(
                hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=SIDE,
                patch_size=PATCH,
            ),
            text_config=LlamaConfig(
                vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=8192, bos_token_id=begin,
                eos_token_id=end, pad_token_id=end,
            ),
            image_token_index=image,
        )
    )  # fmt: skip
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim == 2:
                value.mul_(20)  # or attention is so flat that nothing depends on the image
    others = [index for index in range(len(tokenizer)) if index not in said]
    model.generation_config = GenerationConfig(eos_token_id=said, pad_token_id=end, suppress_tokens=others)
    model.save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    LlavaProcessor(
        images, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=CHAT,
    ).save_pretrained(folder)  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder of models named as ANSWERS, and the address of a server that serves each by its path."""
    folder = tmp_path_factory.mktemp("vlm")
    transformers_logging.disable_progress_bar()
    for name, answers in ANSWERS.items():
        write(folder / name, answers)
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    program = str(Path(sys.executable).with_name("transformers"))

    def command(port: int) -> list[str]:
        return [program, "serve", "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]

    with serving(command, folder / "log", ready="/health", env=environment) as (url, _):
        yield folder, f"{url}/v1"


Make = Callable[..., Judge]


@pytest.fixture
def judge(served: tuple[Path, str]) -> Iterator[Make]:
    """`judge("pairwise")` asks the model of that name, until the test ends."""
    made: list[Judge] = []

    def make(name: str, **settings: Any) -> Judge:
        folder, url = served
        asked = {"judge_url": url, "judge_model": str(folder / name), "judge_retries": 0, **settings}
        made.append(Judge(load_settings(JudgeSettings, **asked)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def pictures(count: int) -> list[Pixels]:
    random = np.random.default_rng(1)
    shades = random.integers(0, 256, (count, 1, 1, 3)).astype(np.uint8)
    return [np.where(random.random((60, 50, 1)) < 0.5, shade, 255 - shade).astype(np.uint8) for shade in shades]


def said_by(folder: Path, text: str, prompt: str, image: Pixels) -> str:
    """What the model says, computed here: the same words around the same image, by transformers' own pipeline."""
    processor: Any = AutoProcessor.from_pretrained(folder)
    model: Any = LlavaForConditionalGeneration.from_pretrained(folder)
    system = {"role": "system", "content": [{"type": "text", "text": text}]}
    parts: list[dict[str, Any]] = [{"type": "text", "text": words} for words in (rubric.quote_text(prompt), "Image:")]
    parts.append({"type": "image", "image": Image.fromarray(image)})
    inputs = processor.apply_chat_template(
        [system, {"role": "user", "content": parts}],
        add_generation_prompt=True, return_tensors="pt", return_dict=True, tokenize=True,
    )  # fmt: skip
    told = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return str(processor.decode(told[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def test_scores_are_what_the_model_says_of_each_image(judge: Make, served: tuple[Path, str]) -> None:
    """Equal to the model asked in this process about the same pixels, and not the same for all."""
    reward, images, prompt = judge("pointwise"), pictures(5), 'a "red" <image> on <s>grey'
    check_golden(reward)
    scores = reward.score(prompt=prompt, images=images, metadata=None)
    text = rubric.load_rubric("prompt_alignment").system_message(ZERO_TO_100)["content"]
    expected = [json.loads(said_by(served[0] / "pointwise", text, prompt, image))["score"] / 100 for image in images]
    assert scores.scores == expected
    assert len(set(expected)) > 2
    assert scores.usage["calls"] == scores.usage["completion_tokens"] == 5
    assert scores.usage["prompt_tokens"] > 5 * len(text)  # a token a byte
    assert reward.model == str(served[0] / "pointwise")
    assert reward.model_revision == "unstated"


@pytest.mark.parametrize(("mode", "count", "calls"), [("pairwise", 3, 6), ("listwise", 2, 4)])
def test_comparisons_of_its_images_are_read(mode: str, count: int, calls: int, judge: Make) -> None:
    """Several images in one request; every answer is read."""
    reward = judge(mode, judge_mode=mode)
    scores = reward.score(prompt="a red square", images=pictures(count), metadata=None)
    assert None not in scores.scores
    assert scores.errors == {}
    assert scores.usage["calls"] == calls


def test_a_model_that_only_chats_is_refused_at_start(judge: Make) -> None:
    """The sentence shows what it said."""
    with pytest.raises(ConfigurationError, match=r"the judge answered '(What a lovely image!|I cannot tell.)"):
        judge("prose")


def test_a_model_that_is_not_there_is_refused_at_start(judge: Make) -> None:
    """This server answers 500 without a reason; the sentence names model and address all the same."""
    with pytest.raises(ConfigurationError, match=r"nothing at http://127.0.0.1.* does not judge: .* answered 500"):
        judge("nothing")
