"""What a rank worker tells Prometheus: its lanes' requests added up over processes, and its queues."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import httpx
import psutil
import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from dipole.broker.queue_depth import QueueDepth, read_queue_depth
from dipole.stack.ports import reserve_port

from .ranking_harness import Endpoints, Harness, collect, group, reward, running_rank_worker


def samples(port: int) -> dict[tuple[str, str, str], float]:
    """Values by name, reward and outcome."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False, timeout=30).text
    return {
        (each.name, each.labels.get("reward", ""), each.labels.get("outcome", "")): each.value
        for family in text_string_to_metric_families(text)
        for each in family.samples
    }


def test_lanes_are_added_up_and_forgotten_with_their_process(
    redis_url: str, endpoint: Endpoints, harness: Harness, capfd: pytest.CaptureFixture[str]
) -> None:
    """Requests by outcome, latency and circuit; a killed lane counts from nought. Its log has the ids."""
    fine, broken = endpoint(), endpoint(lambda call: (400, {}, "{}"))
    with reserve_port() as port, running_rank_worker(redis_url, DIPOLE_METRICS_PORT=str(port)) as process:
        ranker = harness.ranker(reward(fine, "fine"), reward(broken, "broken", required=False, weight=0), job="job-1")
        for name in ("a", "b"):
            ranker.submit(group(name))
        assert len(collect(ranker, 2)) == 2
        found = samples(port)
        assert found["dipole_rank_requests_total", "fine", "completed"] == 2
        assert found["dipole_rank_requests_total", "broken", "http_status"] == 2
        assert found["dipole_rank_request_seconds_count", "fine", ""] == 2
        assert found["dipole_rank_circuit_open", "fine", ""] == 0
        assert found["dipole_rank_queue_messages", "fine", ""] == 0
        assert found["dipole_rank_redis_up", "", ""] == 1
        request_id = fine.calls[0].headers["x-request-id"]
        assert fine.calls[0].headers["x-job-id"] == "job-1"
        kill_lane_of(process, "fine", capfd.readouterr().err)
        ranker.submit(group("c"))
        assert len(collect(ranker)) == 1
        assert samples(port)["dipole_rank_requests_total", "fine", "completed"] == 1
    assert request_id


def kill_lane_of(process: subprocess.Popen[bytes], name: str, log: str) -> None:
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    (pid,) = [each["pid"] for each in lines if each["event"] == "lane_started" and each["reward"] == name]
    answered = [each for each in lines if each["event"] == "rank_answered"]
    assert {each["job_id"] for each in answered} == {"job-1"}
    assert all(each["request_id"] for each in answered)
    os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + 60
    while psutil.pid_exists(pid) and time.monotonic() < until:
        time.sleep(0.05)


def test_a_queue_tells_its_length_and_how_old_its_oldest_message_is(redis_url: str, harness: Harness) -> None:
    """Messages that no lane has taken, whoever sent them; by Redis's clock."""
    ranker = harness.ranker(reward("http://127.0.0.1:9", "nobody-serves"))
    with redis.Redis.from_url(redis_url) as client:
        assert read_queue_depth(client, "rank.nobody-serves", now=0.0) == QueueDepth(0, 0.0)
        ranker.submit(group("a"))
        ranker.submit(group("b"))
        depth = read_queue_depth(client, "rank.nobody-serves", now=client.time()[0] + 100.0)
    assert depth.messages == 2
    assert 99 <= depth.oldest_s <= 160
    client.close()


def test_a_port_that_is_taken_does_not_stop_the_ranking(redis_url: str, endpoint: Endpoints, harness: Harness) -> None:
    """The metrics server is started again and again, and lanes go on."""
    server = endpoint()
    port = server.server.server_port
    with running_rank_worker(redis_url, DIPOLE_METRICS_PORT=str(port)):
        ranker = harness.ranker(reward(server, "beside"))
        ranker.submit(group("a"))
        assert len(collect(ranker)) == 1
