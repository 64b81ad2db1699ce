"""Whether a job can run, asked when it is created: by what live workers say they can load, and by its rewards' word.

What no live worker can load, and a reward that does not say it is ready, are told at once and not when the job starts.
Where nobody can know (no worker lives), or the caller says so (`allow_unready`), it is a warning instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx

from dipole.client.connection import EndpointError
from dipole.client.endpoint import Endpoint
from dipole.client.rank_client import RankClient
from dipole.downloads.table import find_model_command
from dipole.errors import ConfigurationError, InvalidInput, NotFound
from dipole_trainer.database.tables import WorkerRow
from dipole_trainer.registry.rewards import RewardRegistry
from dipole_trainer.spec import RewardSpec, TrainSpec
from dipole_trainer.trackers.installed import install_advice
from dipole_trainer.weights import base_models, feature_weights
from dipole_trainer.weights.inventory import weights_names

READY_TIMEOUT_S = 3.0  # for all rewards of a job together
PROBE_THREADS = 32
NO_WORKER = (
    "no worker is alive: the job waits for one, and whether its weights are there is not known until then; start one "
    "with `dipole serve worker`"
)
UNKNOWN_PATH = (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED)  # a server that has no word for readiness


# ---- workers --------------------------------------------------------------------------------------------------------


def check_loadable(spec: TrainSpec, workers: Sequence[WorkerRow], models_dir: Path) -> list[str]:
    """Warnings. Raises InvalidInput, with the command that helps, where no live worker can load what the job needs.

    `models_dir` is this process's own, in which a model is looked for by name where no worker lives.
    """
    if not workers:
        base_models.check_model_name(spec.model, models_dir)
        return [NO_WORKER]
    names = weights_names(spec.model, spec.revision)
    able = [worker for worker in workers if any(name in worker.models for name in names)]
    if not able:
        known = sorted({name for worker in workers for name in worker.models})
        raise _not_loadable("model", spec.model, spec.revision, workers, known)
    wanted = [_wanted_features(spec, worker, names) for worker in able]
    lacking = [
        each for each, worker in zip(wanted, able, strict=True) if each and not _has_features(spec, worker, each)
    ]
    if len(lacking) == len(able):
        space, weights = lacking[0]
        known = sorted({name for worker in able for name in worker.features.get(space, ())})
        raise _not_loadable("features.weights", weights, spec.features.revision, able, known)
    return []


def _wanted_features(spec: TrainSpec, worker: WorkerRow, models: Sequence[str]) -> tuple[str, str] | None:
    """The feature space and its weights, for the kind of model that it is on this worker; None where it loads none."""
    kind = next(worker.models[name] for name in models if name in worker.models)
    space = spec.features.type if spec.features.type != "auto" else feature_weights.PUBLISHED_SPACES.get(kind, "")
    feature_weights.check_space_fits(space, kind)
    published, _ = feature_weights.SPACE_WEIGHTS.get(space, (None, ()))
    name = spec.features.weights or published
    return None if name is None else (space, name)


def _has_features(spec: TrainSpec, worker: WorkerRow, wanted: tuple[str, str]) -> bool:
    space, weights = wanted
    return any(name in worker.features.get(space, ()) for name in weights_names(weights, spec.features.revision))


def _not_loadable(
    field: str, name: str, revision: str | None, workers: Sequence[WorkerRow], known: Sequence[str]
) -> InvalidInput:
    at = f" at revision {revision}" if revision else ""
    if len(workers) == 1:
        lacking, where = f"the live worker does not have {name!r}{at}; it has", "its machine"
    else:
        lacking, where = f"none of {len(workers)} live workers has {name!r}{at}; they have", "a worker's machine"
    return InvalidInput(
        f"{field}: {lacking} {', '.join(known) or 'none'}. {_fetch_advice(name, revision, where)}; it is seen within "
        "seconds, and the job can be created",
        field=field,
    )


def _fetch_advice(name: str, revision: str | None, where: str) -> str:
    """The command that brings weights to a worker's machine, in a sentence's beginning."""
    repository = base_models.PUBLISHED_MODELS.get(name, name)
    if (command := find_model_command(repository, revision=revision)) is not None:
        return f"Run `{command}` on {where}"
    if "/" not in name:
        return f"Put it in DIPOLE_MODELS_DIR of {where}"
    pinned = f" --revision {revision}" if revision else ""
    return f"Run `hf download {name}{pinned} --local-dir $DIPOLE_MODELS_DIR/{name.rpartition('/')[2]}` on {where}"


def find_missing_trackers(spec: TrainSpec, workers: Sequence[WorkerRow]) -> list[str]:
    """Warnings of trackers that none of the live workers has; a run without them is still a run."""
    known = [set(worker.trackers) for worker in workers if worker.trackers is not None]
    if not known:
        return []
    return [
        f"report_to: no live worker has {name}, so nothing will be reported to it; {install_advice(name)}"
        for name in spec.report_to
        if not any(name in each for each in known)
    ]


# ---- rewards --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UnreadyReward:
    """`field` is the reward's place in the request; `sentence` names it, its URL, and what it answered."""

    field: str
    sentence: str


class ReadinessProbe:
    """Asks endpoints whether they are ready, in a few threads of its own, and for READY_TIMEOUT_S at most."""

    def __init__(self, tls_dir: Path | None, transport: httpx.BaseTransport | None) -> None:
        self._tls_dir, self._transport = tls_dir, transport
        self._threads = ThreadPoolExecutor(PROBE_THREADS, thread_name_prefix="readiness")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def find_unready(self, endpoints: Sequence[tuple[str, RewardSpec, Endpoint | str]]) -> list[UnreadyReward]:
        """Of (field, reward, its endpoint or why there is none) those that do not say that they are ready."""
        ends_at = time.monotonic() + READY_TIMEOUT_S
        problems = await asyncio.gather(*(self._probe(endpoint, ends_at) for _, _, endpoint in endpoints))
        return [
            UnreadyReward(field, f"reward {reward.name}{_address(endpoint)} is not ready: {problem}")
            for (field, reward, endpoint), problem in zip(endpoints, problems, strict=True)
            if problem is not None
        ]

    async def _probe(self, endpoint: Endpoint | str, ends_at: float) -> str | None:
        if isinstance(endpoint, str):
            return endpoint
        context = contextvars.copy_context()  # has the request's id, which is sent along
        asked = asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: context.run(self._ask_endpoint, endpoint, ends_at)
        )
        with contextlib.suppress(TimeoutError):
            # a name may take longer to resolve than any deadline of a socket; so may a queue of others
            return await asyncio.wait_for(asked, ends_at - time.monotonic() + 0.2)
        return f"it did not answer within {READY_TIMEOUT_S:g} s"

    def _ask_endpoint(self, endpoint: Endpoint, ends_at: float) -> str | None:
        """What is wrong, in words."""
        try:
            with RankClient(endpoint, tls_dir=self._tls_dir, transport=self._transport) as client:
                status, path = client.probe_readiness(deadline_s=ends_at - time.monotonic())
        except (EndpointError, ConfigurationError, InvalidInput) as error:
            return str(error).removeprefix(f"{endpoint.url}: ")
        if status == httpx.codes.OK or status in UNKNOWN_PATH:
            return None
        return f"GET {path} answered {status}"


def resolve_endpoints(
    spec: TrainSpec, registry: RewardRegistry, hosts: Sequence[str]
) -> list[tuple[str, RewardSpec, Endpoint | str]]:
    """(field, reward, endpoint) of each reward that the job will ask; a sentence where its key does not open.

    Raises InvalidInput for one that may not be asked.
    """
    places = {reward.name: index for index, reward in enumerate(spec.rewards)}
    found: list[tuple[str, RewardSpec, Endpoint | str]] = []
    for reward in spec.asked_rewards:
        field = f"rewards[{places[reward.name]}]"
        try:
            endpoint: Endpoint | str = registry.resolve_endpoint(reward, hosts, field=f"{field}.url")
        except NotFound as error:
            raise InvalidInput(f"{field}: reward {reward.name} is no longer registered", field=field) from error
        except ConfigurationError as error:
            endpoint = str(error)
        found.append((field, reward, endpoint))
    return found


def refuse_unready(unready: Sequence[UnreadyReward]) -> None:
    """Raises InvalidInput that tells of all of them, on the first one's field."""
    if unready:
        said = "; ".join(each.sentence for each in unready)
        raise InvalidInput(
            f"{unready[0].field}: {said}. Start it, or create the job all the same with allow_unready "
            "(`dipole jobs create --allow-unready`)",
            field=unready[0].field,
        )


def _address(endpoint: Endpoint | str) -> str:
    return "" if isinstance(endpoint, str) else f" at {endpoint.url}"
