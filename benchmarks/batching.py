"""What merging requests is worth: N callers with few images each ask one CLIP, with merging and without.

    OMP_NUM_THREADS=1 python benchmarks/batching.py
    python benchmarks/batching.py --device cuda --size large --clients 1 8 32 --json out/batching.json

Two services of the same network with random weights run side by side, each a process of its own, one with the default
settings and one with DIPOLE_REWARD_BATCH_IMAGES=1. Every caller sends request after request over HTTP, each with a
prompt of its own, as multipart npy. The two take turns, round by round, so that a busy moment hits both; a round counts
from its first request to its last answer, and the median round is printed as images a second, with the ratio, and with
how many groups shared a forward. A single caller shows the cost of waiting for a batch.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from dipole.client.rank_client import RankClient
from dipole_rewards.networks.clip_encoder import ClipEncoder
from dipole_rewards.networks.weight_files import GoldenScore
from dipole_rewards.rewards.clip import Clip
from dipole_rewards.tiny_weights.clip_files import write_clip_tokenizer

SIZES = {  # (widths of the text and the vision tower, layers, patch)
    "small": ((256, 256), 4, 32),
    "large": ((768, 1024), 24, 14),  # the vision tower of ViT-L/14, under a text tower of twice its depth
}


class RandomClip(Clip):
    """`clip` with random weights of the size that BENCHMARK_SIZE names."""

    @classmethod
    def load(cls, device: str) -> Self:
        torch.manual_seed(0)
        (text, vision), layers, patch = SIZES[os.environ["BENCHMARK_SIZE"]]
        with tempfile.TemporaryDirectory() as folder:
            vocabulary = write_clip_tokenizer(Path(folder))
            words = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        both = {"num_hidden_layers": layers, "projection_dim": text}
        config = CLIPConfig(
            text_config={**both, **_tower(text), "vocab_size": vocabulary, "eos_token_id": 2},
            vision_config={**both, **_tower(vision), "image_size": 224, "patch_size": patch},
            projection_dim=text,
        )
        network: Any = CLIPModel(config).eval().requires_grad_(False)
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        golden = GoldenScore(score=0, tolerance=1)  # any cosine
        return cls(ClipEncoder(network.to(device, dtype), words), golden, "random")


def _tower(width: int) -> dict[str, int]:
    return {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 64}


@contextmanager
def service(args: argparse.Namespace, folder: Path, **settings: str) -> Iterator[str]:
    """The URL of a service that is ready."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    own = {"PYTHONPATH": str(Path(__file__).parent), "BENCHMARK_SIZE": args.size}
    command = ["rewards", "serve", "batching:RandomClip", "--port", str(port), "--device", args.device]
    log = folder / f"{port}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "dipole.cli", *command],
            env={**os.environ, **own, **settings},
            stdout=out,
            stderr=out,
        )
    try:
        while not _ready(f"http://127.0.0.1:{port}"):
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def counted(url: str, metric: str) -> float:
    found = re.search(rf"^{metric} (\S+)$", httpx.get(f"{url}/metrics", trust_env=False).text, re.MULTILINE)
    assert found is not None, metric
    return float(found[1])


def load(url: str, clients: list[RankClient], group: list[Any], requests: int) -> float:
    """Seconds until every client has had `requests` answers."""

    def ask(number: int) -> None:
        for turn in range(requests):
            clients[number].rank(f"a photo of a {'red ' * (number % 8)}circle {turn}", group, deadline_s=300)

    with ThreadPoolExecutor(len(clients)) as pool:
        began = time.perf_counter()
        list(pool.map(ask, range(len(clients))))
        return time.perf_counter() - began


def compared(args: argparse.Namespace, urls: dict[str, str], callers: int, images: int) -> dict[str, Any]:
    """Images a second and groups a forward of both services, and the ratio."""
    group = list(np.random.default_rng(0).integers(0, 256, (images, 224, 224, 3), dtype=np.uint8))
    seconds: dict[str, list[float]] = {name: [] for name in urls}
    names = ("dipole_reward_forward_groups_sum", "dipole_reward_forward_groups_count")
    with ExitStack() as stack:
        clients = {url: [stack.enter_context(RankClient(url)) for _ in range(callers)] for url in urls.values()}
        for url in urls.values():
            load(url, clients[url], group, 1)  # a round that is not counted
        before = {name: [counted(url, metric) for metric in names] for name, url in urls.items()}
        for _ in range(args.rounds):
            for name, url in urls.items():
                seconds[name].append(load(url, clients[url], group, args.requests))
        after = {name: [counted(url, metric) for metric in names] for name, url in urls.items()}
    total = callers * args.requests * images
    rate = {name: total / statistics.median(taken) for name, taken in seconds.items()}
    groups, forwards = (new - old for new, old in zip(after["merged"], before["merged"], strict=True))
    row = {
        "clients": callers, "images": images, "alone_images_s": rate["alone"], "merged_images_s": rate["merged"],
        "ratio": rate["merged"] / rate["alone"], "groups_a_forward": groups / forwards,
    }  # fmt: skip
    print(f"{callers:>8} {images:>7} {rate['alone']:>10.1f} {rate['merged']:>10.1f} {row['ratio']:>7.2f} "
          f"{row['groups_a_forward']:>17.1f}")  # fmt: skip
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--images", type=int, nargs="+", default=[1, 4], help="of a request")
    parser.add_argument("--requests", type=int, default=8, help="of a client and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        urls = {
            "alone": stack.enter_context(service(args, Path(folder), DIPOLE_REWARD_BATCH_IMAGES="1")),
            "merged": stack.enter_context(service(args, Path(folder))),
        }
        print("images a second: alone = every group by itself, merged = groups that wait together share a forward")
        print(f"{'clients':>8} {'images':>7} {'alone':>10} {'merged':>10} {'ratio':>7} {'groups a forward':>17}")
        rows = [compared(args, urls, clients, images) for images in args.images for clients in args.clients]
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"settings": {**vars(args), "json": str(args.json)}, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
