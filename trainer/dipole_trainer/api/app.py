"""The trainer API: OpenAI's fine-tuning API in shape, so that its clients work, over the jobs database. No torch.

    create_app(settings)      the ASGI app; its routes are in files, jobs, outputs, models, images, rewards and health,
                              and its pages in dashboard/; /docs describes them

Routes write the desired state of a job to SQL and read its events from there; workers train. Only image requests go
through Redis, to samplers. Replicas share these and the artifacts and need nothing else of each other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import httpx
from anyio import CapacityLimiter
from fastapi import FastAPI
from redis import Redis
from sqlalchemy import func, select

from dipole.broker.celery_app import create_celery_app
from dipole.broker.connection import connect_redis
from dipole.broker.endpoint_statistics import EndpointRecord
from dipole.settings import ApiSettings, load_settings
from dipole.web import asgi, auth, body_limit, request_context
from dipole.web.api_reference.routes import add_api_reference
from dipole.web.json_body import JSONBuilder
from dipole_trainer.api import (
    api_keys,
    audit,
    errors,
    files,
    health,
    images,
    job_artifacts,
    job_groups,
    job_metrics,
    jobs,
    models,
    plans,
    rating_queues,
    rewards,
    webhook_sender,
    workers,
)
from dipole_trainer.api.admission import ReadinessProbe
from dipole_trainer.api.auth import AuthenticationMiddleware
from dipole_trainer.api.dependencies import ApiState
from dipole_trainer.api.event_notifier import EventNotifier
from dipole_trainer.api.event_stream import EventReader
from dipole_trainer.api.rate_limit import KeyRateLimiter, RateLimitMiddleware
from dipole_trainer.api.sampler_client import SamplerClient
from dipole_trainer.dashboard import pages
from dipole_trainer.database.engine import Database, upgrade_database
from dipole_trainer.database.tables import EventRow, JobRow
from dipole_trainer.jobs.ranking_ledger import RankingLedger
from dipole_trainer.jobs.store import JobStore
from dipole_trainer.ranking.withdrawable_rankings import WithdrawableRankings
from dipole_trainer.registry.api_keys import ApiKeys
from dipole_trainer.registry.audit_log import AuditLog
from dipole_trainer.registry.files import FileRegistry
from dipole_trainer.registry.rewards import RewardRegistry
from dipole_trainer.registry.workers import WorkerRegistry
from dipole_trainer.storage.artifacts import ArtifactStore

OPENAPI_TAGS = [
    {"name": "files", "description": "Prompts and pairs, kept as JSON lines."},
    {"name": "jobs", "description": "Training jobs, as OpenAI's fine-tuning API has them."},
    {"name": "outputs", "description": "What a job makes: checkpoints, samples, exports."},
    {"name": "models", "description": "Base models and what was made of them, by name."},
    {"name": "images", "description": "Images of base models and of what was made of them, as OpenAI's images API."},
    {"name": "rewards", "description": "Ranking endpoints that jobs may name."},
    {"name": "workers", "description": "Who trains, and what each can load."},
    {"name": "keys", "description": "Callers' keys and what they may do."},
    {"name": "audit", "description": "Who changed what, and when."},
    {"name": "health", "description": "For orchestrators and Prometheus."},
]
API_DESCRIPTION = "Finetunes one-step image generators with rewards as a service."
STREAM_THREADS = 4  # of all event streams, and as many connections to the database
REDIS_TIMEOUT_S = 2.0  # for what a page shows
MAX_FORM_BYTES = 2**16  # what multipart adds around a file


def create_app(settings: ApiSettings | None = None, *, reward_transport: httpx.BaseTransport | None = None) -> FastAPI:
    """Wire the API. `reward_transport` is how /check reaches endpoints.

    Raises ConfigurationError when others could reach it and there is no key, or for what DIPOLE_REWARDS_FILE says.
    """
    settings = settings or load_settings(ApiSettings)
    auth.refuse_open_host(settings.api_host, settings.api_key, "DIPOLE_API_KEY")
    webhook_sender.check_settings(settings)
    database = Database(settings.database_url)
    # one machine: nobody else would run the migrations first
    if database.is_sqlite():
        upgrade_database(settings.database_url)
    state = _build_state(settings, database, reward_transport)
    if settings.rewards_file is not None:
        rewards.apply_rewards_file(state, settings.rewards_file)
    sampler_client = SamplerClient(settings)
    key = settings.api_key.get_secret_value() if settings.api_key else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with (
            state.event_notifier.run_in_background(),
            webhook_sender.run_in_background(settings, database),
            audit.run_in_background(state.audit_log, settings.audit_days),
        ):
            yield
        sampler_client.close()
        state.withdrawable_rankings.close()
        state.readiness.close()
        database.close()

    metrics = health.ApiMetrics(database)
    app = FastAPI(
        title="Dipole trainer",
        version="1",
        description=API_DESCRIPTION,
        openapi_tags=OPENAPI_TAGS,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # such a redirect would leave out a proxy's path prefix
    )
    app.state.api = state
    app.state.json_builder = JSONBuilder()
    errors.install_error_handlers(app)
    for part in (
        files,
        jobs,
        job_metrics,
        job_groups,
        job_artifacts,
        models,
        rewards,
        rating_queues,
        workers,
        api_keys,
        audit,
        health,
    ):
        app.include_router(part.router)
    app.include_router(images.create_router(sampler_client))
    app.include_router(plans.create_router(sampler_client))
    app.include_router(metrics.metrics_router())
    app.include_router(pages.create_router())
    add_api_reference(
        app,
        key_setting="DIPOLE_API_KEY",
        is_keyed=key is not None,
        example_url="http://localhost:8400",
        home=("./", "Dashboard"),
    )
    app.add_middleware(_BodyLimits, settings=settings)
    if settings.api_rate_limit is not None:
        app.add_middleware(
            RateLimitMiddleware, limiter=KeyRateLimiter(settings.api_rate_limit, _connect_redis(settings))
        )
    app.add_middleware(AuthenticationMiddleware, key=key, api_keys=state.api_keys, is_open=key is None)
    app.add_middleware(audit.AuditMiddleware, audit_log=state.audit_log)
    app.add_middleware(health.RequestCountMiddleware, metrics=metrics)
    app.add_middleware(request_context.RequestContext)
    return app


def _build_state(settings: ApiSettings, database: Database, reward_transport: httpx.BaseTransport | None) -> ApiState:
    def events_after(seen: int | None) -> tuple[int, Collection[str]]:
        with database.reading() as session:
            newest = session.scalar(select(func.max(EventRow.id))) or 0
            if seen is None or newest == seen:
                return newest, ()
            return newest, session.scalars(select(EventRow.job_id).where(EventRow.id > seen).distinct()).all()

    def newest_events(jobs: Collection[str]) -> dict[str, int]:
        newest = select(func.max(EventRow.id)).where(EventRow.job_id == JobRow.id).scalar_subquery()
        with database.reading() as session:
            found = session.execute(select(JobRow.id, newest).where(JobRow.id.in_(jobs)))
            return {job_id: event_id or 0 for job_id, event_id in found}

    job_store = JobStore(database)
    redis = _connect_redis(settings)
    return ApiState(
        settings=settings,
        database=database,
        jobs=job_store,
        files=FileRegistry(database),
        rewards=RewardRegistry(database),
        workers=WorkerRegistry(database),
        readiness=ReadinessProbe(settings.tls_dir, reward_transport),
        api_keys=ApiKeys(database),
        audit_log=AuditLog(database),
        ledger=RankingLedger(database),
        endpoint_record=EndpointRecord(redis),
        withdrawable_rankings=WithdrawableRankings(create_celery_app(settings.redis_url), redis),
        artifacts=ArtifactStore(settings.artifacts_url, settings.home / "work"),
        event_notifier=EventNotifier(events_after, newest_events),
        open_streams=CapacityLimiter(settings.api_max_streams),
        event_reader=EventReader(job_store, CapacityLimiter(STREAM_THREADS)),
        reward_transport=reward_transport,
    )


def _connect_redis(settings: ApiSettings) -> Redis:
    """For what a request waits for."""
    return connect_redis(settings.redis_url, connect_timeout_s=REDIS_TIMEOUT_S, timeout_s=REDIS_TIMEOUT_S)


class _BodyLimits:
    """Uploads may be larger than other bodies; both are bounded while they stream in."""

    def __init__(self, app: asgi.ASGIApp, *, settings: ApiSettings) -> None:
        self._files = body_limit.BodyLimit(app, max_bytes=settings.api_max_file_bytes + MAX_FORM_BYTES, timeout_s=600)
        self._others = body_limit.BodyLimit(app, max_bytes=settings.api_max_body_bytes)

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        limit = self._files if scope.get("path") == "/v1/files" else self._others
        await limit(scope, receive, send)
