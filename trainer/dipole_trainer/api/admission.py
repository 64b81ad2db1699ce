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
from dipole_trainer.weights import base_models, feature_weights, reward_decoder
from dipole_trainer.weights.inventory import weights_names

READY_TIMEOUT_S = 3.0  # for all rewards of a job together
PROBE_THREADS = 32
NO_WORKER = (
    "no worker is alive: the job waits for one, and whether its weights are there is not known until then; start one "
    "with `dipole serve worker`"
)
UNKNOWN_PATH = (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED)  # a server that has no word for readiness


# ---- workers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AbleWorker:
    """A worker that has the job's model, which is of `kind`; the job's features there are of `space`."""

    row: WorkerRow
    kind: str
    space: str


def check_loadable(spec: TrainSpec, workers: Sequence[WorkerRow], models_dir: Path) -> list[str]:
    """Warnings. Raises InvalidInput, with the command that helps, where no live worker can load what the job needs.

    `models_dir` is this process's own, in which a model is looked for by name where no worker lives.
    """
    if not workers:
        base_models.check_model_name(spec.model, models_dir)
        reward_decoder.check_decoder_is_used(spec, spec.features.type)
        return [NO_WORKER]
    able = _with_model(spec, workers)
    for each in able:
        feature_weights.check_space_fits(each.space, each.kind)
        reward_decoder.check_decoder_is_used(spec, each.space)
    able = _with_features(spec, able)
    if spec.reward_decoder == "tiny":
        _check_decoder(able)
    return []


def _with_model(spec: TrainSpec, workers: Sequence[WorkerRow]) -> list[AbleWorker]:
    names = weights_names(spec.model, spec.revision)
    able = []
    for worker in workers:
        kind = next((worker.models[name] for name in names if name in worker.models), None)
        if kind is not None:
            able.append(AbleWorker(worker, kind, feature_weights.resolve_space(spec.features, kind)))
    if not able:
        known = sorted({name for worker in workers for name in worker.models})
        raise _not_loadable("model", spec.model, spec.revision, len(workers), known)
    return able


def _with_features(spec: TrainSpec, workers: Sequence[AbleWorker]) -> list[AbleWorker]:
    """Those that have the weights of the job's features too, or need none for them."""
    revision = spec.features.revision
    wanted = [feature_weights.name_weights(spec.features, each.space) for each in workers]
    able = [
        each
        for each, weights in zip(workers, wanted, strict=True)
        if weights is None
        or any(name in each.row.features.get(each.space, ()) for name in weights_names(weights, revision))
    ]
    if not able:
        known = sorted({name for each in workers for name in each.row.features.get(workers[0].space, ())})
        raise _not_loadable("features.weights", str(wanted[0]), revision, len(workers), known)
    return able


def _check_decoder(workers: Sequence[AbleWorker]) -> None:
    """That one of them has its model's tiny decoder too, or may have it, as it does not say."""
    wanted = [reward_decoder.find_tiny_decoder(each.kind) for each in workers]
    if all(
        name is not None and each.row.decoders is not None and each.kind not in each.row.decoders
        for each, name in zip(workers, wanted, strict=True)
    ):
        kinds = {kind for each in workers for kind in each.row.decoders or ()}
        known = sorted(name for kind in kinds if (name := reward_decoder.TINY_DECODERS.get(kind)) is not None)
        raise _not_loadable("reward_decoder", str(wanted[0]), None, len(workers), known)


def _not_loadable(field: str, name: str, revision: str | None, workers: int, known: Sequence[str]) -> InvalidInput:
    at = f" at revision {revision}" if revision else ""
    if workers == 1:
        lacking, where = f"the live worker does not have {name!r}{at}; it has", "its machine"
    else:
        lacking, where = f"none of {workers} live workers has {name!r}{at}; they have", "a worker's machine"
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
