"""`dipole status`: whether a platform answers, what it works on, and whether its rewards are ready."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import typer

from dipole.cli.options import JsonOption, KeyOption, UrlOption
from dipole.cli.tables import out, print_list, printable
from dipole.client.trainer_api import DEFAULT_URL, TrainerApi, TrainerApiError, quote_segment

LATEST_JOBS = 100


def show_status(as_json: JsonOption = False, url: UrlOption = DEFAULT_URL, key: KeyOption = None) -> None:
    """Say whether the platform answers, what its latest jobs do, and whether its rewards are ready.

    Exits with 1 when no API answers, or a reward is not ready.
    """
    with TrainerApi(url, key) as api:
        api.get("/readyz")
        jobs = api.get("/v1/fine_tuning/jobs", limit=LATEST_JOBS)["data"]
        names = [reward["name"] for reward in api.get("/v1/rewards")["data"]]
        with ThreadPoolExecutor(max_workers=8) as pool:
            rewards = list(pool.map(lambda name: _check_reward(api, name), names))
    counts = Counter(job["status"] for job in jobs)
    if as_json:
        print(json.dumps({"api": api.url, "jobs": counts, "rewards": rewards}, ensure_ascii=False))
    else:
        out.print(f"The API at {printable(api.url)} is ready.")
        out.print(f"Jobs, of the latest {LATEST_JOBS}: {_describe_counts(counts)}")
        columns = {
            "reward": lambda reward: reward["name"],
            "ready": lambda reward: "yes" if reward["ok"] else "no",
            "url": lambda reward: reward["url"],
            "problem": lambda reward: reward["problem"] or "",
        }
        print_list(rewards, columns, as_json=False) if rewards else out.print("No reward is registered.")
    if not all(reward["ok"] for reward in rewards):
        raise typer.Exit(1)


def _check_reward(api: TrainerApi, name: str) -> dict[str, Any]:
    try:
        checked: dict[str, Any] = api.post(f"/v1/rewards/{quote_segment(name)}/check")
    except TrainerApiError as error:
        return {"name": name, "url": "", "ok": False, "problem": str(error)}
    return {field: checked[field] for field in ("name", "url", "ok", "problem")}


def _describe_counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {status}" for status, count in counts.most_common()) or "none yet"
