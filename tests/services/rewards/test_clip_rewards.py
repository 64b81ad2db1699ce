"""clip, pickscore, aesthetic and hpsv2 at toy size: random weights through the real loading code, against transformers'
own pipeline, numpy, and open_clip's network written out from its tensors."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dipole.errors import ConfigurationError
from dipole_rewards import tiny_weights
from dipole_rewards.networks.preprocessing import resize_and_crop, resize_and_pad
from dipole_rewards.networks.weight_files import make_golden_image
from dipole_rewards.reward import CandidateImages, Pixels, Reward, RewardFault, check_golden
from dipole_rewards.rewards.aesthetic import HEAD_FILE, Aesthetic
from dipole_rewards.rewards.clip import Clip
from dipole_rewards.rewards.hpsv2 import WEIGHTS_FILE, HPSv2
from dipole_rewards.rewards.hpsv3 import HPSv3
from dipole_rewards.rewards.pickscore import PickScore
from dipole_rewards.settings import WeightSettings
from dipole_rewards.tiny_weights.clip_files import IMAGE_SIDE

from ..pictures import candidates, noise

KINDS = {"clip": Clip, "pickscore": PickScore, "aesthetic": Aesthetic, "hpsv2": HPSv2}
WEIGHTS = {"clip": "model.safetensors", "pickscore": "model.safetensors", "aesthetic": HEAD_FILE, "hpsv2": WEIGHTS_FILE}
MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
PROMPT = "a red circle"
every = pytest.mark.parametrize("name", KINDS)


GROUP = [noise(64, 64), noise(48, 65), noise(33, 20), noise(200, 31), make_golden_image()]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights each."""
    root = tmp_path_factory.mktemp("weights")
    for name in KINDS:
        tiny_weights.write_weights(root / name, name)
    return root


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """`folder(name)`: a copy to break, which the settings name, beside an empty hub cache."""
    from huggingface_hub import constants

    def copied(name: str) -> Path:
        shutil.copytree(made / name, tmp_path / name)
        monkeypatch.setenv("DIPOLE_REWARD_WEIGHTS", str(tmp_path / name))
        return tmp_path / name

    monkeypatch.setenv("DIPOLE_REWARD_DTYPE", "fp32")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return copied


def scores_of(reward: Reward, group: list[Pixels], prompt: str = PROMPT) -> list[Any]:
    return list(reward.score(prompt=prompt, images=group, metadata=None).scores)


# ---- images ---------------------------------------------------------------------------------------------------------


def theirs(image: Any, side: int) -> Tensor:
    """transformers' own processor, (3, side, side)."""
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    pixels: Tensor = processor(np.array(image), input_data_format="channels_last", return_tensors="pt").pixel_values[0]
    return pixels


def with_margins(image: Image.Image, side: int) -> np.ndarray[Any, Any]:
    """HPSv2's image by Pillow alone, (3, side, side)."""
    scale = side / max(image.size)
    small = image.resize([round(edge * scale) for edge in image.size], Image.Resampling.BICUBIC)
    square = Image.new("RGB", (side, side), "black")
    square.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    return ((np.asarray(square, np.float64) / 255 - MEAN) / STD).transpose(2, 0, 1)


@pytest.mark.parametrize("side", [224, 32])
@pytest.mark.parametrize("kind", ["odd", "tall", "rgba", "grey", "16-bit", "exif"])
def test_every_pixel_is_where_pillow_and_transformers_put_it(kind: str, side: int) -> None:
    """From a file's bytes to CLIP's square by a crop, and to HPSv2's by margins, to 1e-5; EXIF's turn is made first."""
    arrived, meant = candidates()[kind]
    np.testing.assert_allclose(resize_and_crop(arrived, side).numpy(), theirs(meant, side).numpy(), atol=1e-5)
    np.testing.assert_allclose(resize_and_pad(arrived, side).numpy(), with_margins(meant, side), atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 150), st.integers(1, 150))
def test_images_of_any_size_are_cropped_as_transformers_does(height: int, width: int) -> None:
    """Rounded sides and odd rests fall on the same pixels."""
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    torch.testing.assert_close(resize_and_crop(image, 21), theirs(image, 21), atol=1e-5, rtol=0)


def test_an_image_of_the_network_s_size_gets_its_margins_too() -> None:
    """Published code pads no image whose longest side needs no resizing, and then cannot score it."""
    image = noise(20, 32)
    assert torch.equal(
        resize_and_pad(image, 32)[:, 6:26], resize_and_crop(np.pad(image, ((6, 6), (0, 0), (0, 0))), 32)[:, 6:26]
    )
    np.testing.assert_allclose(
        resize_and_pad(image, 32)[:, [0, 5, 26, 31]].numpy(),
        (-MEAN / STD)[:, None, None] + np.zeros((3, 4, 32)),
        atol=1e-6,
    )


# ---- scores ---------------------------------------------------------------------------------------------------------


def transformers_outputs(folder: Path, image: Pixels, prompt: str) -> Any:
    """One image and one prompt through transformers' processor, tokenizer and whole CLIPModel."""
    model = CLIPModel(CLIPConfig.from_pretrained(folder)).eval()
    state = load_file(folder / "model.safetensors")
    model.load_state_dict({name: value for name, value in state.items() if "position_ids" not in name})
    ids = AutoTokenizer.from_pretrained(folder)(prompt, padding="max_length", max_length=77, truncation=True)
    with torch.no_grad():
        return model(
            input_ids=torch.tensor([ids.input_ids]),
            attention_mask=torch.tensor([ids.attention_mask]),
            pixel_values=theirs(image, IMAGE_SIDE)[None],
        )


def clip_reference(folder: Path, image: Pixels, prompt: str) -> float:
    out = transformers_outputs(folder, image, prompt)
    return float(out.logits_per_image / 100)  # the toy's logit_scale is ln 100


def pickscore_reference(folder: Path, image: Pixels, prompt: str) -> float:
    return float(transformers_outputs(folder, image, prompt).logits_per_image)


def aesthetic_reference(folder: Path, image: Pixels, prompt: str) -> float:
    x = transformers_outputs(folder, image, prompt).image_embeds[0].double().numpy()
    x = x / np.sqrt((x**2).sum())
    head = torch.load(folder / HEAD_FILE, weights_only=True)
    for layer in (0, 2, 4, 6, 7):
        x = head[f"layers.{layer}.weight"].double().numpy() @ x + head[f"layers.{layer}.bias"].double().numpy()
    return float(x[0])


def hpsv2_reference(folder: Path, image: Pixels, prompt: str) -> float:
    """open_clip's two towers written out from its tensors, in double precision."""
    stored = torch.load(folder / WEIGHTS_FILE, weights_only=True)["state_dict"]
    s = {name: value.double() for name, value in stored.items()}
    letters = sorted(ByteLevel.alphabet())
    words = [[letters.index(letter) for letter in word] for word in prompt.split()]
    ids = [512, *(i + 256 * (at == len(word) - 1) for word in words for at, i in enumerate(word)), 513]
    text = tower(s["token_embedding.weight"][ids] + s["positional_embedding"][: len(ids)], s, "", 2, causal=True)
    text = norm(text[-1], s, "ln_final") @ s["text_projection"]
    pixels = torch.from_numpy(with_margins(Image.fromarray(image), IMAGE_SIDE))
    patches = pixels.unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 0, 3, 4).reshape(16, -1)
    patches = patches @ s["visual.conv1.weight"].flatten(1).T
    seen = torch.cat([s["visual.class_embedding"][None], patches]) + s["visual.positional_embedding"]
    seen = tower(norm(seen, s, "visual.ln_pre"), s, "visual.", 4, causal=False)
    seen = norm(seen[0], s, "visual.ln_post") @ s["visual.proj"]
    return float(seen @ text / (seen.norm() * text.norm()))


def norm(x: Tensor, s: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    spread = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return centred / spread * s[f"{name}.weight"] + s[f"{name}.bias"]


def tower(x: Tensor, s: dict[str, Tensor], prefix: str, heads: int, *, causal: bool) -> Tensor:
    """Two pre-norm layers: attention with queries, keys and values in one tensor, and a GELU of the error function."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]

    for layer in range(2):
        block = f"{prefix}transformer.resblocks.{layer}"
        qkv = norm(x, s, f"{block}.ln_1") @ s[f"{block}.attn.in_proj_weight"].T + s[f"{block}.attn.in_proj_bias"]
        q, k, v = qkv.reshape(len(x), 3, heads, -1).permute(1, 2, 0, 3)
        logits = q @ k.mT / q.shape[-1] ** 0.5
        if causal:
            logits = logits.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -torch.inf)
        x = x + linear((logits.softmax(-1) @ v).transpose(0, 1).reshape(len(x), -1), f"{block}.attn.out_proj")
        inner = linear(norm(x, s, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        x = x + linear(inner * (1 + torch.erf(inner / 2**0.5)) / 2, f"{block}.mlp.c_proj")
    return x


REFERENCES = {
    "clip": clip_reference, "pickscore": pickscore_reference,
    "aesthetic": aesthetic_reference, "hpsv2": hpsv2_reference,
}  # fmt: skip


@every
def test_scores_are_those_of_an_independent_implementation(name: str, folder: Callable[[str], Path]) -> None:
    """A group of five shapes scores as each image does alone outside of our code, in order, and images differ."""
    where = folder(name)
    expected = [REFERENCES[name](where, image, PROMPT) for image in GROUP]
    scores = scores_of(KINDS[name].load("cpu"), GROUP)
    assert scores == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert np.ptp(expected) > 0.01 * (100 if name == "pickscore" else 1)


@every
def test_an_image_s_score_is_its_own(name: str, folder: Callable[[str], Path]) -> None:
    """Neither company nor order changes a score; the prompt changes all but the aesthetic one."""
    folder(name)
    reward = KINDS[name].load("cpu")
    scores = scores_of(reward, GROUP)
    assert [scores_of(reward, [image])[0] for image in GROUP] == pytest.approx(scores, rel=1e-4, abs=1e-5)
    assert scores_of(reward, GROUP[::-1]) == pytest.approx(scores[::-1], rel=1e-4, abs=1e-5)
    other = scores_of(reward, GROUP, "a blue square")
    assert (other == pytest.approx(scores)) == (name == "aesthetic")


@every
def test_several_groups_are_scored_as_each_alone(name: str, folder: Callable[[str], Path]) -> None:
    """Prompts of different lengths, one of them twice, through one text and one image forward; thin ones are null."""
    folder(name)
    reward, forwards = KINDS[name].load("cpu"), []
    groups = [
        CandidateImages(PROMPT, GROUP[:2]),
        CandidateImages("a much longer prompt, about a blue square", [*GROUP[2:], noise(2, 402)]),
        CandidateImages("", [GROUP[0]]),
        CandidateImages(PROMPT, [noise(1, 300)]),
        CandidateImages(PROMPT + "!" * 99, GROUP),
    ]
    whole = reward.encoder.encode_images

    def counted(pixels: Tensor) -> Tensor:
        forwards.append(len(pixels))
        return whole(pixels)

    reward.encoder.encode_images = counted  # type: ignore[method-assign]
    merged = reward.score_groups(groups)
    assert forwards == [11]
    for group, scores in zip(groups, merged, strict=True):
        alone = reward.score(prompt=group.prompt, images=group.images, metadata=None)
        known, expected = ([score for score in each.scores if score is not None] for each in (scores, alone))
        assert known == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert scores.errors == alone.errors
    assert [len(scores.errors) for scores in merged] == [0, 1, 0, 1, 0]


def test_a_prompt_is_cut_at_77_tokens_and_its_special_tokens_are_content(folder: Callable[[str], Path]) -> None:
    """Start, 75 tokens and end, whatever the tokenizer's file bakes in; an end within a prompt ends nothing."""
    where = folder("clip")
    reward, long = Clip.load("cpu"), "x" * 200
    assert reward.encoder.tokenize(long).tolist() == [
        AutoTokenizer.from_pretrained(where)(long, truncation=True, max_length=77).input_ids
    ]
    assert reward.encoder.tokenize(long).shape == (1, 77)
    baked = json.loads((where / "tokenizer.json").read_text())
    baked["truncation"] = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    baked["padding"] = {
        "strategy": {"Fixed": 90}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "!",
    }  # fmt: skip
    (where / "tokenizer.json").write_text(json.dumps(baked))
    again = Clip.load("cpu")
    assert torch.equal(again.encoder.tokenize(long), reward.encoder.tokenize(long))
    assert torch.equal(again.encoder.tokenize("x"), reward.encoder.tokenize("x"))
    hostile = reward.encoder.tokenize("x<|endoftext|> y <|startoftext|>")[0].tolist()
    assert [index for index, token in enumerate(hostile) if token >= 512] == [0, len(hostile) - 1]


def test_an_image_too_thin_is_null_and_the_others_are_scored(folder: Callable[[str], Path]) -> None:
    """Beyond 200:1 a crop would need millions of pixels; such an image gets a reason instead of a score."""
    folder("hpsv2")
    reward = HPSv2.load("cpu")
    scores = reward.score(prompt=PROMPT, images=[noise(2, 402), GROUP[0], noise(1, 200)], metadata=None)
    assert [score is None for score in scores.scores] == [True, False, False]
    assert {k: error.code for k, error in scores.errors.items()} == {0: "aspect_ratio"}


@every
def test_out_of_memory_halves_the_batch_and_says_so(name: str, folder: Callable[[str], Path]) -> None:
    """Same scores in smaller batches; the next group starts with what fitted; one image that never fits raises."""
    folder(name)
    reward, tried, room = KINDS[name].load("cpu"), [], 2
    expected, roomy = scores_of(reward, GROUP), reward.encoder.encode_images

    def cramped(pixels: Tensor) -> Tensor:
        tried.append(len(pixels))
        if len(pixels) > room:
            raise torch.OutOfMemoryError("no room")
        return roomy(pixels)

    reward.encoder.encode_images = cramped  # type: ignore[method-assign]
    with capture_logs() as logs:
        assert scores_of(reward, GROUP) == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert scores_of(reward, GROUP[:2]) == pytest.approx(expected[:2], rel=1e-4, abs=1e-5)
    assert tried == [5, 2, 2, 1, 2]
    assert logs == [{"event": "batch_halved", "reward": name, "batch": 2, "log_level": "warning"}]
    room = 0
    with pytest.raises(torch.OutOfMemoryError):
        scores_of(reward, GROUP)


@every
def test_bfloat16_is_the_default_and_near(
    name: str, folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks in bfloat16, the golden score of float32 within its tolerance; what is small stays float32."""
    folder(name)
    monkeypatch.delenv("DIPOLE_REWARD_DTYPE")
    reward = KINDS[name].load("cpu")
    assert reward.encoder.network.dtype == torch.bfloat16
    check_golden(reward)
    assert reward.encoder.encode_images(torch.zeros(1, 3, IMAGE_SIDE, IMAGE_SIDE)).dtype == torch.float32
    if isinstance(reward, PickScore):
        assert reward.scale == pytest.approx(100, rel=1e-5)  # exp of bfloat16's ln 100 is 101.5
    if isinstance(reward, Aesthetic):
        assert {value.dtype for value in reward.head.parameters()} == {torch.float32}


# ---- files ----------------------------------------------------------------------------------------------------------


@every
def test_a_missing_file_is_named_with_the_command_that_fetches_it(name: str, folder: Callable[[str], Path]) -> None:
    """Each file that is neither in the folder nor in the hub's cache stops the start with a sentence."""
    where = folder(name)
    needed = {
        WEIGHTS[name],
        "config.json",
        *(["tokenizer.json"] if name != "aesthetic" else ["model.safetensors"]),
    }
    for file in needed:
        (where / file).rename(where / "away")
        with pytest.raises(ConfigurationError, match="is missing") as caught:
            KINDS[name].load("cpu")
        assert str(where / file) in str(caught.value)
        assert f"`dipole rewards prepare {name} --to {where}`" in str(caught.value)
        (where / "away").rename(where / file)
    check_golden(KINDS[name].load("cpu"))


@every
def test_without_a_folder_the_setting_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """DIPOLE_REWARD_WEIGHTS has no default."""
    monkeypatch.delenv("DIPOLE_REWARD_WEIGHTS", raising=False)
    with pytest.raises(ConfigurationError, match="DIPOLE_REWARD_WEIGHTS must name"):
        KINDS[name].load("cpu")


def test_weights_may_lie_in_the_hub_s_cache(folder: Callable[[str], Path]) -> None:
    """What the folder lacks is taken from the local snapshots of its repositories."""
    where = folder("pickscore")
    for repository, names in {
        "yuvalkirstain--PickScore_v1": ["model.safetensors", "config.json"],
        "laion--CLIP-ViT-H-14-laion2B-s32B-b79K": ["tokenizer.json"],
    }.items():
        snapshot = where.parent / f"hub/models--{repository}/snapshots" / ("a" * 40)
        snapshot.mkdir(parents=True)
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs/main").write_text("a" * 40)
        for name in names:
            (where / name).rename(snapshot / name)
    (where / "tokenizer_config.json").unlink()
    check_golden(PickScore.load("cpu"))


@every
def test_the_revision_is_that_of_the_weights(name: str, folder: Callable[[str], Path]) -> None:
    """The start of the SHA-256 of each file of weights."""
    where = folder(name)
    files = ["model.safetensors", HEAD_FILE] if name == "aesthetic" else [WEIGHTS[name]]
    digests = [hashlib.sha256((where / file).read_bytes()).hexdigest()[:16] for file in files]
    assert KINDS[name].load("cpu").model_revision == "sha256:" + "+".join(digests)


class Hostile:
    """Unpickled, it would make a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("name", ["aesthetic", "hpsv2"])
@pytest.mark.parametrize("writer", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))])
def test_a_pickle_is_refused_and_never_run(
    name: str, writer: Any, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """A file that holds more than tensors stops the start before anything in it runs."""
    where = folder(name)
    writer({"state_dict": Hostile(tmp_path / "trace")}, where / WEIGHTS[name])
    with pytest.raises(ConfigurationError, match="refused") as caught:
        KINDS[name].load("cpu")
    assert str(where / WEIGHTS[name]) in str(caught.value)
    assert not (tmp_path / "trace").exists()


def broken(name: str, path: Path, change: str) -> None:
    """Write the file of weights again, with something wrong."""
    if change == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
        return
    whole = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    state = whole["state_dict"] if name == "hpsv2" else whole
    first = next(key for key, value in state.items() if value.ndim == 2 and value.is_floating_point())
    if change == "one less":
        del state[first]
    elif change == "one more":
        state["another.weight"] = torch.zeros(3)
    elif change == "another shape":
        state[first] = torch.zeros(3, 3)
    else:
        whole = {"model": state}
    if path.suffix == ".safetensors":
        save_file(whole, path)
    else:
        torch.save(whole, path)


@pytest.mark.parametrize(
    ("name", "change"),
    [(name, change) for name in KINDS for change in ("cut", "one less", "one more", "another shape")]
    + [("hpsv2", "another key"), ("aesthetic", "another key")],
)
def test_weights_that_are_not_its_own_are_refused(name: str, change: str, folder: Callable[[str], Path]) -> None:
    """Damaged, missing, unexpected and misshapen weights stop the start instead of scoring nonsense."""
    where = folder(name)
    broken(name, where / WEIGHTS[name], change)
    with pytest.raises(ConfigurationError) as caught:
        KINDS[name].load("cpu")
    assert str(where / WEIGHTS[name]) in str(caught.value)


def test_another_model_s_tokenizer_is_refused(folder: Callable[[str], Path]) -> None:
    """A tokenizer with other tokens than the network knows would give every word another meaning."""
    where = folder("clip")
    tokenizer = AutoTokenizer.from_pretrained(where)
    tokenizer.add_tokens(["<|more|>"])
    tokenizer.save_pretrained(where)
    with pytest.raises(ConfigurationError, match="515 tokens"):
        Clip.load("cpu")


@pytest.mark.parametrize("text", ["{}", "[1]", "", '{"score": NaN}', '{"score": "high"}'])
def test_a_golden_file_without_a_number_is_refused(text: str, folder: Callable[[str], Path]) -> None:
    """NaN above all: nothing differs from it by more than a tolerance."""
    where = folder("clip")
    (where / "golden.json").write_text(text)
    with pytest.raises(ConfigurationError, match="must read") as caught:
        Clip.load("cpu")
    assert str(where / "golden.json") in str(caught.value)


# ---- the service ----------------------------------------------------------------------------------------------------


@every
def test_a_golden_score_that_differs_is_found(name: str, folder: Callable[[str], Path]) -> None:
    """Readiness fails when the score is off by more than the reward's own tolerance, or than the file's."""
    where = folder(name)
    score = json.loads((where / "golden.json").read_text())["score"]
    for off, more in ((1.5 * KINDS[name].tolerance, {}), (1e-3, {"tolerance": 5e-4})):
        (where / "golden.json").write_text(json.dumps({"score": score + off, **more}))
        with pytest.raises(RewardFault, match="golden image"):
            check_golden(KINDS[name].load("cpu"))


def test_tiny_weights_of_hpsv3_are_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They load in the default precision and give their golden score; HPSv3 itself refuses their instruction."""
    tiny_weights.write_weights(tmp_path, "hpsv3")
    settings = WeightSettings(reward_weights=tmp_path)
    check_golden(tiny_weights.TinyHPSv3.from_settings(settings, "cpu"))
    monkeypatch.setenv("DIPOLE_REWARD_WEIGHTS", str(tmp_path))
    with pytest.raises(ConfigurationError, match="to the last blank"):
        HPSv3.load("cpu")
