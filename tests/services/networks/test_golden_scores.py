"""What is known of a reward's golden score, what a service records of its own, and when it refuses to start."""

from __future__ import annotations

import asyncio
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from dipole.errors import ConfigurationError
from dipole_rewards import tiny_weights
from dipole_rewards.networks import golden_scores
from dipole_rewards.networks.golden_scores import GoldenScore, Recipe, ScoreRecord
from dipole_rewards.reward import Golden, RewardFault, check_golden
from dipole_rewards.rewards.clip import Clip

MADE = Recipe("clip", "sha256:0123456789abcdef", "1")
TABLE = """
[[golden]]
reward = "clip"
revision = "{revision}"
recipe = "1"
score = {score}
source = "somebody"
"""


@pytest.fixture
def record(tmp_path: Path) -> ScoreRecord:
    return ScoreRecord(tmp_path / "state/recorded-scores.json", MADE, "bf16", "cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_weights.write_weights(tmp_path_factory.mktemp("weights"), "clip")


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tiny weights of `clip` whose golden score nobody knows, as the settings name them."""
    copied = shutil.copytree(made, tmp_path / "clip")
    (copied / "golden.json").unlink()
    monkeypatch.setenv("DIPOLE_REWARD_WEIGHTS", str(copied))
    monkeypatch.setenv("DIPOLE_REWARD_DTYPE", "fp32")
    return copied


# ---- the record -----------------------------------------------------------------------------------------------------


def test_the_first_score_is_kept_and_later_ones_are_held_against_it(record: ScoreRecord) -> None:
    """Within the tolerance of the first, however many starts drift by a little; the sentence has all that is needed."""
    for score in (0.25, 0.254, 0.246):
        record.compare(score, tolerance=0.005)
    assert [each["score"] for each in json.loads(record.file.read_text())["scores"]] == [0.25]
    for score in (0.2551, 0.2449):
        with pytest.raises(RewardFault) as caught:
            record.compare(score, tolerance=0.005)
        said = str(caught.value)
        assert caught.value.code == "golden_changed"
        assert "\n" not in said
        for part in (f"{score:g}", "0.25 ", str(record.file), "dipole rewards verify clip", "delete"):
            assert part in said


@pytest.mark.parametrize(
    "change", [{"dtype": "fp32"}, {"device": "cuda"}, *({"made": replace(MADE, **{name: "2"})} for name in vars(MADE))]
)
def test_what_rounds_or_computes_otherwise_has_a_record_of_its_own(change: dict[str, Any], record: ScoreRecord) -> None:
    """Another precision, device class, revision, recipe or reward begins anew, in the same file."""
    record.compare(1.0, tolerance=0.1)
    replace(record, **change).compare(5.0, tolerance=0.1)
    with pytest.raises(RewardFault):
        replace(record, **change).compare(1.0, tolerance=0.1)
    record.compare(1.0, tolerance=0.1)


def test_rewards_that_start_together_lose_no_record(record: ScoreRecord) -> None:
    """Replicas and other rewards share a folder."""
    records = [replace(record, made=replace(MADE, reward=f"reward-{number}")) for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda each: each.compare(1.0, tolerance=0.1), records))
    assert len(json.loads(record.file.read_text())["scores"]) == 24


@pytest.mark.parametrize("text", ["", "[]", '{"scores": [{"reward": "clip"}]}', '{"scores": [{"score": "high"}]}'])
def test_a_record_that_cannot_be_read_is_named(text: str, record: ScoreRecord) -> None:
    record.file.parent.mkdir()
    record.file.write_text(text)
    with pytest.raises(ConfigurationError, match="delete it, and the next start records anew") as caught:
        record.compare(1.0, tolerance=0.1)
    assert str(record.file) in str(caught.value)


def test_where_nothing_can_be_written_the_log_says_so(tmp_path: Path) -> None:
    """As in a container whose weights are read-only: it is served, and nobody believes that it is compared."""
    (tmp_path / "file").write_text("")
    record = ScoreRecord(tmp_path / "file/recorded-scores.json", MADE, "bf16", "cpu")
    with capture_logs() as logs:
        record.compare(1.0, tolerance=0.1)
    (said,) = logs
    assert (said["event"], said["log_level"]) == ("golden_score_not_recorded", "warning")
    assert "DIPOLE_REWARD_STATE" in said["fix"]


# ---- a reward with weights ------------------------------------------------------------------------------------------


def test_without_a_golden_score_it_is_unverified_and_recorded(folder: Path) -> None:
    """The first start records, a second agrees, and one that computes otherwise is refused."""
    for _ in range(2):
        reward = Clip.load("cpu")
        check_golden(reward)
        assert reward.verified is False
    file = folder / "recorded-scores.json"
    (recorded,) = json.loads(file.read_text())["scores"]
    assert (recorded["revision"], recorded["dtype"], recorded["device"]) == (reward.model_revision, "fp32", "cpu")
    file.write_text(json.dumps({"scores": [{**recorded, "score": recorded["score"] + 0.1}]}))
    with pytest.raises(RewardFault, match="when it was first started"):
        check_golden(Clip.load("cpu"))


def test_the_record_may_lie_elsewhere(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In DIPOLE_REWARD_STATE, where the weights are mounted read-only."""
    monkeypatch.setenv("DIPOLE_REWARD_STATE", str(tmp_path / "state"))
    check_golden(Clip.load("cpu"))
    assert (tmp_path / "state/recorded-scores.json").is_file()
    assert not (folder / "recorded-scores.json").exists()


def test_a_golden_file_verifies_it_and_nothing_is_recorded(folder: Path, made: Path) -> None:
    shutil.copy(made / "golden.json", folder)
    reward = Clip.load("cpu")
    check_golden(reward)
    assert reward.verified is True
    assert not (folder / "recorded-scores.json").exists()


@pytest.mark.parametrize(("field", "named"), [("revision", "weights 2"), ("recipe", "recipe 2")])
def test_a_golden_file_of_other_weights_is_refused(field: str, named: str, folder: Path, made: Path) -> None:
    """`dipole rewards verify` writes what the score is of: after other weights were put there it says nothing."""
    known = json.loads((made / "golden.json").read_text())
    (folder / "golden.json").write_text(json.dumps({**known, field: "2"}))
    with pytest.raises(ConfigurationError, match=named) as caught:
        Clip.load("cpu")
    assert "dipole rewards verify clip" in str(caught.value)


def test_a_score_in_the_table_verifies_it(folder: Path, made: Path, tmp_path: Path) -> None:
    """Of these very weights and this recipe; another score there is refused, another revision's is none."""
    score = json.loads((made / "golden.json").read_text())["score"]
    revision = Clip.load("cpu").model_revision

    class Listed(Clip):
        goldens_table = tmp_path / "goldens.toml"

    Listed.goldens_table.write_text(TABLE.format(revision=revision, score=score))
    reward = Listed.load("cpu")
    check_golden(reward)
    assert reward.verified is True
    assert golden_scores.is_verified_folder("clip", folder, [revision[7:] + "beef"], Listed.goldens_table)

    class Wrong(Clip):
        goldens_table = tmp_path / "wrong.toml"

    Wrong.goldens_table.write_text(TABLE.format(revision=revision, score=score + 0.1))
    with pytest.raises(RewardFault, match="scores its golden image"):
        check_golden(Wrong.load("cpu"))

    class Other(Clip):
        goldens_table = tmp_path / "other.toml"

    Other.goldens_table.write_text(TABLE.format(revision="sha256:0", score=score))
    assert Other.load("cpu").verified is False
    assert not golden_scores.is_verified_folder("clip", folder, [revision[7:]], Other.goldens_table)


def test_a_wrong_table_names_its_entry(tmp_path: Path) -> None:
    table = tmp_path / "goldens.toml"
    table.write_text(TABLE.format(revision="1", score='"high"'))
    with pytest.raises(ConfigurationError, match="score"):
        golden_scores.read_goldens_table(table)


def test_a_reward_without_a_score_for_its_golden_image_is_not_ready(folder: Path) -> None:
    """Nothing is recorded of it either."""
    reward = Clip.load("cpu")
    reward.scale = float("nan")
    with pytest.raises(RewardFault, match="gives its golden image no score"):
        check_golden(reward)
    assert not (folder / "recorded-scores.json").exists()


def test_a_known_score_is_asked_for_with_its_tolerance(folder: Path) -> None:
    reward = Clip.load("cpu")
    assert (reward.golden().score, reward.golden().tolerance) == (None, Clip.tolerance)
    reward.golden_score = GoldenScore(score=1.5, tolerance=0.25)
    known = reward.golden()
    assert isinstance(known, Golden)
    assert (known.score, known.tolerance) == (1.5, 0.25)


# ---- the service ----------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_service_says_whether_it_is_verified(folder: Path, made: Path, serve: Any) -> None:
    """False and a warning without a golden score, true with one, null for a program; and 503 before it is known."""
    with capture_logs() as logs:
        async with serve(reward="clip") as client:
            assert (await client.get("/v1/info")).json()["verified"] is False
    (warning,) = [each for each in logs if each["event"] == "reward_unverified"]
    assert (warning["log_level"], warning["fix"]) == ("warning", "dipole rewards verify clip")
    shutil.copy(made / "golden.json", folder)
    with capture_logs() as logs:
        async with serve(reward="clip") as client:
            assert (await client.get("/v1/info")).json()["verified"] is True
    assert "reward_unverified" not in [each["event"] for each in logs]
    async with serve(reward="colourfulness") as client:
        assert (await client.get("/v1/info")).json().get("verified") is None


@pytest.mark.anyio
async def test_a_service_that_computes_otherwise_than_before_is_not_ready(folder: Path, serve: Any) -> None:
    """Its /readyz and /v1/info are 503 with the sentence."""
    async with serve(reward="clip"):
        pass
    file = folder / "recorded-scores.json"
    (recorded,) = json.loads(file.read_text())["scores"]
    file.write_text(json.dumps({"scores": [{**recorded, "score": recorded["score"] + 0.1}]}))
    async with serve(reward="clip", ready=False) as client:
        while "still loading" in (answer := await client.get("/readyz")).text:
            await asyncio.sleep(0.01)
        assert answer.status_code == (await client.get("/v1/info")).status_code == 503
    assert "when it was first started" in answer.text
