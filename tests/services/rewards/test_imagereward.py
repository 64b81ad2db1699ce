"""imagereward at toy size: random weights through the real loading code, against BLIP's towers written out in NumPy
from the published names, and Pillow; then the service."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import erf, softmax
from structlog.testing import capture_logs
from tokenizers import Tokenizer
from torch import Tensor

from dipole.errors import ConfigurationError
from dipole_rewards import tiny_weights
from dipole_rewards.networks.blip import crop_center
from dipole_rewards.networks.weight_files import make_golden_image
from dipole_rewards.reward import CandidateImages, Pixels, RewardFault, check_golden
from dipole_rewards.rewards.imagereward import WEIGHTS_FILE, ImageReward
from dipole_rewards.tiny_weights.blip_files import IMAGE_SIDE, LAYERS, PATCH_SIDE

from ..pictures import candidates, noise

MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
PROMPT = "a red circle"
Floats = NDArray[np.float64]


GROUP = [noise(64, 64), noise(48, 65), noise(33, 20), noise(200, 31), make_golden_image()]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_weights.write_weights(tmp_path_factory.mktemp("weights"), "imagereward")


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to break, which the settings name, beside an empty hub cache."""
    from huggingface_hub import constants

    shutil.copytree(made, tmp_path / "weights")
    monkeypatch.setenv("DIPOLE_REWARD_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("DIPOLE_REWARD_DTYPE", "fp32")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "weights"


def scores_of(reward: ImageReward, group: list[Pixels], prompt: str = PROMPT) -> list[Any]:
    return list(reward.score(prompt=prompt, images=group, metadata=None).scores)


def change(path: Path, how: Callable[[dict[str, Tensor]], Any]) -> None:
    """Write the checkpoint again after `how` has changed it."""
    state = torch.load(path, weights_only=True)
    how(state)
    torch.save(state, path)


# ---- images ---------------------------------------------------------------------------------------------------------


def by_pillow(image: Image.Image, side: int) -> Floats:
    """(3, side, side): what torchvision's Resize, CenterCrop and Normalize make of an image, by Pillow and NumPy."""
    short = min(image.size)
    size = [side if edge == short else int(side * edge / short) for edge in image.size]
    left, top = (round((edge - side) / 2.0) for edge in size)
    small = image.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
    return np.asarray((np.asarray(small, np.float64) / 255 - MEAN) / STD).transpose(2, 0, 1)


@pytest.mark.parametrize("side", [224, 32])
@pytest.mark.parametrize("kind", ["odd", "tall", "rgba", "grey", "16-bit", "exif"])
def test_every_pixel_is_where_pillow_puts_it(kind: str, side: int) -> None:
    """From a file's bytes to the network's square, to 1e-5; EXIF's turn is made first."""
    arrived, meant = candidates()[kind]
    np.testing.assert_allclose(crop_center(arrived, side).numpy(), by_pillow(meant, side), atol=1e-5)


@pytest.mark.parametrize(("height", "top"), [(32, 0), (33, 0), (34, 1), (35, 2), (37, 2), (39, 4)])
def test_half_a_pixel_of_the_crop_goes_to_the_even_side(height: int, top: int) -> None:
    """3 pixels too many lose 2 above and 1 below, as torchvision has it; 1 too many is lost below."""
    image = noise(height, 32)
    expected = ((image[top : top + 32] / 255 - MEAN) / STD).transpose(2, 0, 1)
    np.testing.assert_allclose(crop_center(image, 32).numpy(), expected, atol=1e-5)
    across = ((image.transpose(1, 0, 2)[:, top : top + 32] / 255 - MEAN) / STD).transpose(2, 0, 1)
    np.testing.assert_allclose(crop_center(image.transpose(1, 0, 2), 32).numpy(), across, atol=1e-5)


# ---- scores ---------------------------------------------------------------------------------------------------------


class ByHand:
    """The published network in double precision, one image and one prompt at a time, without padding."""

    def __init__(self, folder: Path) -> None:
        stored = torch.load(folder / WEIGHTS_FILE, weights_only=True)
        self.s = {name: value.double().numpy() for name, value in stored.items()}
        self.vocabulary: dict[str, int] = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]

    def score(self, image: Pixels, prompt: str) -> float:
        x = self.read(self.ids(prompt), self.see(by_pillow(Image.fromarray(image), IMAGE_SIDE)))[0]
        for layer in (0, 2, 4, 6, 7):
            x = self.linear(x, f"mlp.layers.{layer}")
        return float((x[0] - 0.16717362830052426) / 1.0333394966054072)

    def ids(self, prompt: str) -> list[int]:
        """Of a prompt of ASCII letters and brackets: the toy's every letter is a token of its own."""
        words = re.findall(r"\w+|[^\w\s]", prompt.lower())
        pieces = [letter if at == 0 else f"##{letter}" for word in words for at, letter in enumerate(word)]
        return [self.vocabulary[token] for token in ("[CLS]", *pieces[:33], "[SEP]")]

    def see(self, pixels: Floats) -> Floats:
        """(3, side, side) → (N, D): pre-norm layers, and a norm at the end."""
        v, n = "blip.visual_encoder.", IMAGE_SIDE // PATCH_SIDE
        patches = pixels.reshape(3, n, PATCH_SIDE, n, PATCH_SIDE).transpose(1, 3, 0, 2, 4).reshape(n * n, -1)
        kernel = self.s[f"{v}patch_embed.proj.weight"]
        patches = patches @ kernel.reshape(len(kernel), -1).T + self.s[f"{v}patch_embed.proj.bias"]
        x = np.concatenate([self.s[f"{v}cls_token"][0], patches]) + self.s[f"{v}pos_embed"][0]
        for layer in range(LAYERS):
            block = f"{v}blocks.{layer}"
            q, k, w = np.split(self.linear(self.norm(x, f"{block}.norm1", 1e-6), f"{block}.attn.qkv"), 3, axis=-1)
            x = x + self.linear(attend(q, k, w, heads=2), f"{block}.attn.proj")
            inner = gelu(self.linear(self.norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1"))
            x = x + self.linear(inner, f"{block}.mlp.fc2")
        return self.norm(x, f"{v}norm", 1e-6)

    def read(self, ids: list[int], seen: Floats) -> Floats:
        """(T), (N, D) → (T, D): BERT's post-norm layers, which attend to all words, then to the image."""
        t = "blip.text_encoder."
        x = self.s[f"{t}embeddings.word_embeddings.weight"][ids]
        x = x + self.s[f"{t}embeddings.position_embeddings.weight"][: len(ids)]
        x = self.norm(x, f"{t}embeddings.LayerNorm", 1e-12)
        for layer in range(LAYERS):
            block = f"{t}encoder.layer.{layer}"
            for kind in ("attention", "crossattention"):
                other = x if kind == "attention" else seen
                q = self.linear(x, f"{block}.{kind}.self.query")
                k, v = (self.linear(other, f"{block}.{kind}.self.{part}") for part in ("key", "value"))
                added = self.linear(attend(q, k, v, heads=4), f"{block}.{kind}.output.dense")
                x = self.norm(x + added, f"{block}.{kind}.output.LayerNorm", 1e-12)
            inner = gelu(self.linear(x, f"{block}.intermediate.dense"))
            x = self.norm(x + self.linear(inner, f"{block}.output.dense"), f"{block}.output.LayerNorm", 1e-12)
        return x

    def linear(self, x: Floats, name: str) -> Floats:
        return np.asarray(x @ self.s[f"{name}.weight"].T + self.s[f"{name}.bias"])

    def norm(self, x: Floats, name: str, epsilon: float) -> Floats:
        centred = x - x.mean(-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
        return np.asarray(centred / spread * self.s[f"{name}.weight"] + self.s[f"{name}.bias"])


def attend(q: Floats, k: Floats, v: Floats, *, heads: int) -> Floats:
    """(T, D), (N, D), (N, D) → (T, D)"""
    q, k, v = (x.reshape(len(x), heads, -1).transpose(1, 0, 2) for x in (q, k, v))
    weights = softmax(q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1]), axis=-1)
    return np.asarray((weights @ v).transpose(1, 0, 2).reshape(q.shape[1], -1))


def gelu(x: Floats) -> Floats:
    return np.asarray(x * (1 + erf(x / np.sqrt(2))) / 2)


def test_scores_are_those_of_an_independent_implementation(folder: Path) -> None:
    """A group of five shapes scores as each image does by hand, in order, and images and prompts differ."""
    reward, by_hand = ImageReward.load("cpu"), ByHand(folder)
    for prompt in (PROMPT, "", "X" * 60):
        expected = [by_hand.score(image, prompt) for image in GROUP]
        assert scores_of(reward, GROUP, prompt) == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert np.ptp(expected) > 0.01
    assert abs(by_hand.score(GROUP[0], PROMPT) - by_hand.score(GROUP[0], "a blue square")) > 0.01


def test_the_epsilons_are_the_published_ones(folder: Path) -> None:
    """Where embeddings are faint, 1e-6 in the vision tower and 1e-12 in the text tower decide the score."""
    faint = {"visual_encoder.cls_token", "visual_encoder.pos_embed", "visual_encoder.patch_embed"}

    def fade(state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            if any(part in name for part in faint) or (
                "visual_encoder.blocks" in name and ("attn.proj" in name or "fc2" in name)
            ):
                value *= 1e-3
            elif "text_encoder.embeddings.word" in name or "text_encoder.embeddings.position_embeddings" in name:
                value *= 1e-5

    change(folder / WEIGHTS_FILE, fade)
    by_hand = ByHand(folder)
    expected = by_hand.score(GROUP[0], PROMPT)
    assert scores_of(ImageReward.load("cpu"), GROUP[:1]) == pytest.approx([expected], abs=1e-3)
    exact = by_hand.norm
    for own, other in ((1e-6, 1e-5), (1e-12, 1e-5)):
        by_hand.norm = lambda x, name, e, own=own, other=other: exact(x, name, other if e == own else e)  # type: ignore
        assert abs(by_hand.score(GROUP[0], PROMPT) - expected) > 0.02


def test_groups_scored_together_are_scored_as_each_alone(folder: Path) -> None:
    """Three prompts share one forward; the same image under two of them gets two scores; order is kept."""
    reward, batches = ImageReward.load("cpu"), []
    groups = [
        CandidateImages("a red circle", GROUP[:3]),
        CandidateImages("a blue square", GROUP),
        CandidateImages("[SEP] " * 40, GROUP[2:3]),
    ]
    alone = [reward.score(prompt=one.prompt, images=one.images, metadata=None).scores for one in groups]
    reward.network.register_forward_hook(lambda _, given, scores: batches.append(len(scores)))
    together = [one.scores for one in reward.score_groups(groups)]
    assert batches == [9]
    assert [len(scores) for scores in together] == [3, 5, 1]
    for one, other in zip(together, alone, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    assert together[0][0] != pytest.approx(together[1][0], abs=1e-3)
    assert reward.score_groups([]) == []


def test_an_image_s_score_is_its_own(folder: Path) -> None:
    """Neither company nor order changes a score."""
    reward = ImageReward.load("cpu")
    scores = scores_of(reward, GROUP)
    assert [scores_of(reward, [image])[0] for image in GROUP] == pytest.approx(scores, rel=1e-4, abs=1e-5)
    assert scores_of(reward, GROUP[::-1]) == pytest.approx(scores[::-1], rel=1e-4, abs=1e-5)


def test_the_same_question_has_the_same_answer(folder: Path) -> None:
    """To the last bit, again and after another start: the dropouts of the configuration do nothing."""
    reward = ImageReward.load("cpu")
    scores = scores_of(reward, GROUP)
    assert scores_of(reward, GROUP) == scores
    assert scores_of(ImageReward.load("cpu"), GROUP) == scores


# ---- words ----------------------------------------------------------------------------------------------------------


def test_a_prompt_is_cut_and_padded_to_35_tokens(folder: Path) -> None:
    """[CLS], 33 tokens, [SEP], whatever the tokenizer's file bakes in; short prompts are padded and masked."""
    reward, by_hand, long = ImageReward.load("cpu"), ByHand(folder), "many words " * 9
    ids, mask = reward.tokenizer([long, "a cat"])
    assert ids.tolist() == [by_hand.ids(long), by_hand.ids("a cat") + [0] * 29]
    assert mask.tolist() == [[1] * 35, [1] * 6 + [0] * 29]
    baked = Tokenizer.from_file(str(folder / "tokenizer.json"))
    baked.enable_truncation(5)
    baked.enable_padding(length=90)
    baked.save(str(folder / "tokenizer.json"))
    again = ImageReward.load("cpu").tokenizer([long, "a cat"])
    assert torch.equal(again[0], ids)
    assert torch.equal(again[1], mask)


def test_what_a_prompt_says_behind_its_35_tokens_is_not_read(folder: Path) -> None:
    """The last token that fits counts, and the one behind it does not."""
    reward, image = ImageReward.load("cpu"), GROUP[:1]
    assert scores_of(reward, image, "x" * 33 + " and so on") == scores_of(reward, image, "x" * 33)
    assert scores_of(reward, image, "x" * 32 + "y") != pytest.approx(scores_of(reward, image, "x" * 33), abs=1e-3)


@pytest.mark.parametrize("special", ["[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]", "[ENC]", "[DEC]"])
def test_a_special_token_within_a_prompt_is_content(special: str, folder: Path) -> None:
    """It is read as a bracket, letters and a bracket; only the first and the last token are special."""
    reward, by_hand = ImageReward.load("cpu"), ByHand(folder)
    prompt = f"x{special} y"
    expected = by_hand.ids(prompt)
    (ids,), _ = reward.tokenizer([prompt])
    assert ids[: len(expected)].tolist() == expected
    specials = set(range(5)) | {len(by_hand.vocabulary), len(by_hand.vocabulary) + 1}
    assert [at for at, token in enumerate(expected) if token in specials] == [0, len(expected) - 1]


# ---- batches --------------------------------------------------------------------------------------------------------


def test_an_image_too_thin_is_null_and_the_others_are_scored(folder: Path) -> None:
    """Beyond 200:1 an image gets a reason instead of a score, in its own group, and moves no other's score."""
    reward = ImageReward.load("cpu")
    groups = [
        CandidateImages(PROMPT, [noise(2, 402), GROUP[0], noise(1, 200)]),
        CandidateImages("x", [noise(402, 2)]),
        CandidateImages("y", GROUP),
    ]
    first, second, third = reward.score_groups(groups)
    assert [score is None for score in first.scores] == [True, False, False]
    assert first.scores[1] == pytest.approx(scores_of(reward, GROUP[:1])[0], rel=1e-4, abs=1e-5)
    assert (second.scores, list(third.errors)) == ([None], [])
    assert third.scores == pytest.approx(scores_of(reward, GROUP, "y"), rel=1e-4, abs=1e-5)
    assert {k: error.code for k, error in [*first.errors.items(), *second.errors.items()]} == {0: "aspect_ratio"}


def test_out_of_memory_halves_the_batch_and_says_so(folder: Path) -> None:
    """Same scores in smaller batches, which cross groups; the next starts with what fitted; one image that never fits
    raises."""
    reward, tried, room = ImageReward.load("cpu"), [], 3
    groups = [CandidateImages(PROMPT, GROUP[:2]), CandidateImages("a blue square", GROUP)]
    expected, roomy = [one.scores for one in reward.score_groups(groups)], reward.network.forward

    def cramped(pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        tried.append(len(pixels))
        if len(pixels) > room:
            raise torch.OutOfMemoryError("no room")
        return roomy(pixels, ids, mask)

    reward.network.forward = cramped  # type: ignore[method-assign]
    with capture_logs() as logs:
        for one, scores in zip(reward.score_groups(groups), expected, strict=True):
            assert one.scores == pytest.approx(scores, rel=1e-4, abs=1e-5)
        assert scores_of(reward, GROUP[:2]) == pytest.approx(expected[0], rel=1e-4, abs=1e-5)
    assert tried == [7, 3, 3, 1, 2]
    assert logs == [{"event": "batch_halved", "reward": "imagereward", "batch": 3, "log_level": "warning"}]
    room = 0
    with pytest.raises(torch.OutOfMemoryError):
        scores_of(reward, GROUP)


def test_bfloat16_is_the_default_and_near(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Towers in bfloat16, the golden score of float32 within its tolerance; the head stays float32."""
    monkeypatch.delenv("DIPOLE_REWARD_DTYPE")
    reward = ImageReward.load("cpu")
    network = reward.network
    assert (network.vision.dtype, network.text.dtype) == (torch.bfloat16, torch.bfloat16)
    assert {value.dtype for value in network.head.parameters()} == {torch.float32}
    check_golden(reward)


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", [WEIGHTS_FILE, "med_config.json", "tokenizer.json"])
def test_a_missing_file_is_named_with_the_command_that_fetches_it(file: str, folder: Path) -> None:
    """Each file that is neither in the folder nor in the hub's cache stops the start with a sentence."""
    (folder / file).unlink()
    with pytest.raises(ConfigurationError, match="is missing") as caught:
        ImageReward.load("cpu")
    assert str(folder / file) in str(caught.value)
    assert f"`dipole rewards prepare imagereward --to {folder}`" in str(caught.value)


def test_without_a_folder_the_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """DIPOLE_REWARD_WEIGHTS has no default."""
    monkeypatch.delenv("DIPOLE_REWARD_WEIGHTS", raising=False)
    with pytest.raises(ConfigurationError, match="DIPOLE_REWARD_WEIGHTS must name"):
        ImageReward.load("cpu")


def test_weights_may_lie_in_the_hub_s_cache(folder: Path) -> None:
    """What the folder lacks is taken from the local snapshots of its repositories."""
    for repository, names in {
        "zai-org--ImageReward": [WEIGHTS_FILE, "med_config.json"],
        "google-bert--bert-base-uncased": ["tokenizer.json"],
    }.items():
        snapshot = folder.parent / f"hub/models--{repository}/snapshots" / ("a" * 40)
        snapshot.mkdir(parents=True)
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs/main").write_text("a" * 40)
        for name in names:
            (folder / name).rename(snapshot / name)
    check_golden(ImageReward.load("cpu"))


def test_the_revision_is_that_of_the_weights(folder: Path) -> None:
    """The start of the SHA-256 of the checkpoint, which the hub shows too."""
    digest = hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()[:16]
    assert ImageReward.load("cpu").model_revision == f"sha256:{digest}"


class Hostile:
    """Unpickled, it would make a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("writer", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))])
def test_a_pickle_is_refused_and_never_run(writer: Any, folder: Path, tmp_path: Path) -> None:
    """A file that holds more than tensors stops the start before anything in it runs."""
    writer({"mlp.layers.0.weight": Hostile(tmp_path / "trace")}, folder / WEIGHTS_FILE)
    with pytest.raises(ConfigurationError, match="refused") as caught:
        ImageReward.load("cpu")
    assert str(folder / WEIGHTS_FILE) in str(caught.value)
    assert not (tmp_path / "trace").exists()


NAMES = [
    "blip.visual_encoder.pos_embed",
    "blip.visual_encoder.blocks.1.attn.proj.bias",
    "blip.text_encoder.encoder.layer.0.crossattention.self.key.weight",
    "mlp.layers.7.weight",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrong", ["missing", "misshapen", "misnamed"])
def test_weights_that_are_not_its_own_are_refused(wrong: str, name: str, folder: Path) -> None:
    """A tensor that is missing, of another shape or left over, of whichever part, stops the start."""

    def spoil(state: dict[str, Tensor]) -> None:
        tensor = state.pop(name)
        if wrong == "misshapen":
            state[name] = torch.zeros(3, 3)
        elif wrong == "misnamed":
            state |= {name: tensor, f"{name}.more": torch.zeros(3)}

    change(folder / WEIGHTS_FILE, spoil)
    with pytest.raises(ConfigurationError, match="is not ImageReward") as caught:
        ImageReward.load("cpu")
    assert str(folder / WEIGHTS_FILE) in str(caught.value)


def test_a_tensor_of_no_part_is_named(folder: Path) -> None:
    """What has no place in the network is not passed over, except what the published file is known to hold."""
    change(folder / WEIGHTS_FILE, lambda state: state.update({"blip.itm_head.weight": torch.zeros(2)}))
    with pytest.raises(ConfigurationError, match=r"unexpected blip\.itm_head\.weight"):
        ImageReward.load("cpu")


def test_what_the_score_does_not_need_may_be_missing(folder: Path) -> None:
    """The two projections and the counter of positions, which a smaller copy of the checkpoint may have dropped."""
    unneeded = ["vision_proj.weight", "vision_proj.bias", "text_proj.weight", "text_proj.bias"]
    unneeded += ["text_encoder.embeddings.position_ids"]
    change(folder / WEIGHTS_FILE, lambda state: [state.pop(f"blip.{name}") for name in unneeded])
    check_golden(ImageReward.load("cpu"))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("med_config.json", "{"),
        ("med_config.json", "{}"),
        ("med_config.json", "[1]"),
        ("tokenizer.json", "{"),
        ("tokenizer.json", '{"version": "1.0"}'),
        ("golden.json", '{"score": NaN}'),
        (WEIGHTS_FILE, "Entry not found"),
        (WEIGHTS_FILE, ""),
    ],
)
def test_a_damaged_file_is_named(file: str, text: str, folder: Path) -> None:
    """One sentence instead of a parser's."""
    (folder / file).write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        ImageReward.load("cpu")
    assert str(folder / file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_cut_short_is_refused(folder: Path) -> None:
    """As a download that broke off leaves it."""
    (folder / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes()[:-1000])
    with pytest.raises(ConfigurationError, match="is not a whole PyTorch file"):
        ImageReward.load("cpu")


def test_another_model_s_tokenizer_is_refused(folder: Path) -> None:
    """A tokenizer with other tokens than the network knows would give every word another meaning; BLIP's own, which
    has [DEC] and [ENC] already, is welcome."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["[DEC]", "[ENC]"])
    tokenizer.save(str(folder / "tokenizer.json"))
    check_golden(ImageReward.load("cpu"))
    tokenizer.add_tokens(["more"])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(ConfigurationError, match="144 tokens"):
        ImageReward.load("cpu")


# ---- the service ----------------------------------------------------------------------------------------------------


def test_a_golden_score_that_differs_is_found(folder: Path) -> None:
    """Readiness fails when the score is off by more than the reward's own tolerance, or than the file's."""
    score = json.loads((folder / "golden.json").read_text())["score"]
    for off, more in ((1.5 * ImageReward.tolerance, {}), (1e-3, {"tolerance": 5e-4})):
        (folder / "golden.json").write_text(json.dumps({"score": score + off, **more}))
        with pytest.raises(RewardFault, match="golden image"):
            check_golden(ImageReward.load("cpu"))
