"""What an evaluation needs before anything is generated: its prompts, its rewards, and a running rank worker.

Each mistake is a sentence that names the option.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import httpx
from pydantic import ValidationError
from redis.exceptions import RedisError

from dipole.broker.connection import connect_redis, describe_redis_error
from dipole.broker.rankings import TaskCoordination
from dipole.client.connection import EndpointError
from dipole.client.rank_client import RankClient, tells_ready
from dipole.errors import ConfigurationError, InvalidInput, NotFound, RewardUnavailable
from dipole.protocol.validation import first_error
from dipole.settings import PlatformSettings
from dipole_trainer.datasets import prompts, uploads
from dipole_trainer.ranking.celery_ranker import ResolvedReward
from dipole_trainer.registry.files import FileRegistry
from dipole_trainer.registry.model_names import explain_database_errors
from dipole_trainer.registry.rewards import RewardRegistry
from dipole_trainer.spec import PromptSpec, RewardSpec
from dipole_trainer.storage.artifacts import ArtifactStore

PROBE_TIMEOUT_S = 5.0
MAX_FILE_BYTES = 2**30


def read_prompts(
    given: str, files: FileRegistry, artifacts: ArtifactStore, limit: int | None = None
) -> list[PromptSpec]:
    """The first `limit` prompts of a file on this machine, as /v1/files takes it, or of an uploaded one by its id."""
    if given.startswith("file-") and not Path(given).exists():
        with explain_database_errors(files.database):
            files.get_file(given)
        with artifacts.open_file(f"files/{given}.jsonl") as source:
            found = list(prompts.read_prompts(source, field="prompts"))
    else:
        try:
            with Path(given).open("rb") as source, tempfile.TemporaryFile() as lines:
                kind, _ = uploads.check_upload(source, lines, filename=given, field="prompts", max_bytes=MAX_FILE_BYTES)
                if kind != "prompts":
                    raise InvalidInput(f"--prompts {given} holds {kind}, and prompts are needed", field="prompts")
                lines.seek(0)
                found = list(prompts.read_prompts(lines, field="prompts"))
        except OSError as error:
            raise InvalidInput(f"--prompts {given}: {error.strerror}", field="prompts") from error
    if not found:
        raise InvalidInput(f"--prompts {given} holds no prompts", field="prompts")
    return found[:limit]


def resolve_rewards(
    given: Sequence[str], settings: PlatformSettings, registry: RewardRegistry, timeout_s: float
) -> list[ResolvedReward]:
    """The endpoints that these mean, NAME of a registered one or NAME=URL. Raises InvalidInput."""
    found = [_resolve_reward(each, settings, registry, timeout_s) for each in given]
    names = [each.spec.name for each in found]
    for name in names:
        if names.count(name) > 1:
            raise InvalidInput(f"--reward {name} is given {names.count(name)} times", field="reward")
    return found


def _resolve_reward(
    given: str, settings: PlatformSettings, registry: RewardRegistry, timeout_s: float
) -> ResolvedReward:
    name, _, url = given.partition("=")
    try:
        spec = RewardSpec(name=name, url=url or None, weight=0, min_valid=1, timeout_s=timeout_s)  # it only watches
    except ValidationError as error:
        raise InvalidInput(
            f"--reward {given!r} is not NAME or NAME=URL: {first_error(error).message}", field="reward"
        ) from error
    try:
        with explain_database_errors(registry.database):
            endpoint = registry.resolve_endpoint(spec, settings.reward_hosts, field=f"--reward {name}")
    except NotFound as error:
        raise InvalidInput(
            f"--reward {name} is not registered: see `dipole rewards register`, or give NAME=URL", field="reward"
        ) from error
    return ResolvedReward(spec, endpoint)


def check_rewards_ready(
    rewards: Sequence[ResolvedReward], transport: httpx.BaseTransport | None = None, *, tls_dir: Path | None = None
) -> None:
    """Raise RewardUnavailable for the first that is not ready; one without /readyz is, when it answers at all.

    Raises ConfigurationError for certificates that are not in `tls_dir`.
    """
    for reward in rewards:
        name, url = reward.spec.name, reward.endpoint.url
        try:
            with RankClient(reward.endpoint, tls_dir=tls_dir, transport=transport) as client:
                status, _ = client.probe_readiness(deadline_s=PROBE_TIMEOUT_S)
                why = "" if tells_ready(status) else f"answers {status}"
        except EndpointError as error:
            why = f"does not answer ({error})"
        if why:
            raise RewardUnavailable(f"reward {name} at {url} {why}: start it, or leave it out", reward=name)


def check_rank_worker(settings: PlatformSettings) -> None:
    """Raise ConfigurationError when nobody would ask the rewards."""
    try:
        with connect_redis(settings.redis_url) as client:
            lives = bool(TaskCoordination(client, settings.candidate_ttl_s).living_hosts())
    except RedisError as error:
        raise ConfigurationError(f"DIPOLE_REDIS_URL: {describe_redis_error(error)}") from error
    if not lives:
        raise ConfigurationError("no rank worker beats in DIPOLE_REDIS_URL: start `dipole serve rank-worker`")
