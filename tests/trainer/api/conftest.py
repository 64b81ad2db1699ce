"""What tests of the API share: an app in this process, over whichever stores."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from dipole.settings import ApiSettings
from dipole_trainer.api.app import create_app

ADMIN_KEY = "an-admin-key-of-some-length"
AppTest = Callable[[httpx.AsyncClient, Any], Awaitable[None]]


@pytest.fixture
def run_app(tmp_path: Path) -> Callable[..., None]:
    """`run_app(test, **settings)` awaits `test(client, state)`; `client` sends ADMIN_KEY."""

    def run(test: AppTest, **more: Any) -> None:
        stores = {"database_url": f"sqlite:///{tmp_path}/jobs.db", "artifacts_url": f"{tmp_path}/artifacts"}
        settings = ApiSettings(home=tmp_path, **{**stores, **more})

        async def main() -> None:
            app = create_app(settings)
            async with app.router.lifespan_context(app):
                transport = httpx.ASGITransport(app=app)
                async with httpx.AsyncClient(
                    transport=transport, base_url="http://127.0.0.1:8400", timeout=60
                ) as client:
                    client.headers["authorization"] = f"Bearer {ADMIN_KEY}"
                    await test(client, app.state.api)

        asyncio.run(main())

    return run
