"""Whether a generator follows the taste of people who rank, and how many answers that takes.

    python benchmarks/people.py
    python benchmarks/people.py --steps 48 --seeds 0 1 2 --json out/people.json

Nothing but the people is made up: the platform's own processes, the rater's own API. Three raters who prefer red look
at the pixels that they are shown and order them; arms differ in what the raters do:

    honest    all three order by redness
    third     one of the three gives a random order
    random    all three do: the control, which goes first

Each task asks one rater, whoever comes first, so that in `third` about every third order is noise that nothing
corrects; `--ratings 3` asks all three. Printed for each arm: answers given, redness (red above the mean of green and
blue, 0 to 255) of held-out prompts that name no colour, before and after on the same noises, the difference, and its
lead over the control's, with 95 % intervals over seeds and prompts (both are resampled; of means over noises).
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import measuring
import numpy as np
from numpy.typing import NDArray

from dipole.client.ratings_api import RatingsApi
from dipole.client.trainer_api import TrainerApi
from dipole.protocol import images
from dipole.protocol.images import Pixels
from dipole.stack.stack import LocalRaters, Stack
from dipole.tiny.job import build_people_job, build_people_prompts

ARMS = {"random": (False, False, False), "third": (True, True, False), "honest": (True, True, True)}
CONTROL = "random"
FIGURES = ("difference", "over_control")
NOISES, FIRST_SEED = 4, 1000
Redness = NDArray[np.float64]  # (prompts, noises)


def measure_redness(pixels: Pixels) -> float:
    red, green, blue = pixels.reshape(-1, 3).mean(0)
    return float(red - (green + blue) / 2)


class Rater:
    """Somebody with a link: takes what comes, looks, and answers, until told to stop."""

    def __init__(self, link: str, is_honest: bool, seed: int) -> None:
        address, _, token = link.partition("/rate#invitation=")
        self.http = httpx.Client(base_url=address, timeout=60, trust_env=False)
        self.http.post("/v1/rater/session", json={"invitation": token}).raise_for_status()
        self.is_honest, self.random, self.answers = is_honest, random.Random(seed), 0

    def rate_until(self, over: threading.Event) -> None:
        while not over.is_set():
            found = self.http.post("/v1/rater/leases")
            found.raise_for_status()
            if found.status_code == httpx.codes.NO_CONTENT:
                time.sleep(0.1)
                continue
            lease = found.json()
            answer = {"tiers": [[label] for label in self.order(lease["images"])], "dwell_ms": 5000}
            self.http.post(f"/v1/rater/leases/{lease['id']}/answer", json=answer).raise_for_status()
            self.answers += 1

    def order(self, shown: Sequence[dict[str, Any]]) -> list[str]:
        """Labels, the reddest first."""
        seen = {each["label"]: measure_redness(self.look(each["url"])) for each in shown}
        labels = sorted(seen, key=lambda label: -seen[label])
        if not self.is_honest:
            self.random.shuffle(labels)
        return labels

    def look(self, url: str) -> Pixels:
        answer = self.http.get(url)
        answer.raise_for_status()
        return images.decode_image(answer.content, "image/png")


@contextmanager
def raters_at_work(ratings: RatingsApi, arm: str, seed: int) -> Iterator[list[Rater]]:
    over = threading.Event()
    raters = [
        Rater(ratings.invite_rater(f"{arm} {number}")["link"], honest, seed * 100 + number)
        for number, honest in enumerate(ARMS[arm])
    ]
    threads = [threading.Thread(target=rater.rate_until, args=(over,), daemon=True) for rater in raters]
    for thread in threads:
        thread.start()
    try:
        yield raters
    finally:
        over.set()
        for thread, rater in zip(threads, raters, strict=True):
            thread.join(60)
            rater.http.close()


def draw_redness(api: TrainerApi, model: str, prompts: Sequence[str]) -> Redness:
    """Of every held-out prompt, on the same noises whatever the model."""
    found = []
    for index, prompt in enumerate(prompts):
        body = {"model": model, "prompt": prompt, "n": NOISES, "seed": FIRST_SEED + index * NOISES}
        answer = api.post("/v1/images/generations", body, timeout=600)
        pngs = [base64.b64decode(each["b64_json"]) for each in answer["data"]]
        found.append([measure_redness(images.decode_image(png, "image/png")) for png in pngs])
    return np.array(found)


def train_arm(api: TrainerApi, ratings: RatingsApi, args: argparse.Namespace, arm: str, seed: int) -> tuple[str, int]:
    """(the trained model's checkpoint, answers given)."""
    body = build_people_job(steps=args.steps, seed=seed)
    body |= {"prompts_per_step": args.prompts_per_step, "max_staleness": args.max_staleness}
    prompts = build_people_prompts(held_out=False, instructions=f"{arm} {seed}")  # so that no answer is used twice
    for line in prompts:
        line["metadata"]["rating"] |= {"min_ratings": args.ratings, "max_ratings": args.ratings}
    with raters_at_work(ratings, arm, seed) as raters:
        job = api.post("/v1/fine_tuning/jobs", {**body, "prompts": prompts})
        for event in api.follow_events(job["id"]):
            if event["kind"] == "step":
                print(f"\r{arm}, seed {seed}: {event['data']['step']} of {args.steps} updates", end="", flush=True)
    path = f"/v1/fine_tuning/jobs/{job['id']}"
    ended = api.get(path)
    if ended["status"] != "succeeded":
        raise SystemExit(f"\n{arm}: the job {ended['status']}: {ended['error']}")
    print()
    return api.get(f"{path}/checkpoints")["data"][0]["id"], sum(rater.answers for rater in raters)


def describe_arm(
    arm: str, base: Redness, tuned: list[Redness], answers: float, control: Redness | None
) -> dict[str, Any]:
    """`tuned` has one of a seed, and `control` the (seeds, prompts) means of the arm that answers at random."""
    gained = np.stack([each - base for each in tuned]).mean(2)
    figures = {"before": float(base.mean()), "after": float(np.mean(tuned)), "by_seed": gained.mean(1).tolist()}
    figures |= {"difference": measuring.interval(gained)}
    figures |= {} if control is None else {"over_control": measuring.interval(gained - control)}
    return {"arm": arm, "answers_per_seed": answers, **figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--prompts-per-step", type=int, default=1)
    parser.add_argument("--max-staleness", type=int, default=1)
    parser.add_argument("--ratings", type=int, default=1, help="Raters asked about each task.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    prompts = [line["prompt"] for line in build_people_prompts(held_out=True)]
    quiet = LocalRaters(port=None, settings={"UNDO_S": "0", "GOLD_SHARE": "0", "REPEAT_SHARE": "0"})
    rows: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory() as home,
        Stack(Path(home), [quiet], sampler=True) as stack,
        TrainerApi(stack.api_url) as api,
        RatingsApi(str(stack.raters_url)) as ratings,
    ):
        base = draw_redness(api, "tiny-turbo", prompts)
        control = None
        for arm in args.arms:
            after, answers = [], 0
            for seed in args.seeds:
                model, given = train_arm(api, ratings, args, arm, seed)
                after.append(draw_redness(api, model, prompts))
                answers += given
            rows.append(describe_arm(arm, base, after, answers / len(args.seeds), control))
            print(json.dumps(rows[-1]), flush=True)
            if arm == CONTROL:
                control = np.stack([each - base for each in after]).mean(2)
    print(
        f"\n{len(prompts)} held-out prompts × {NOISES} noises × {len(args.seeds)} seeds; [95 % over seeds and prompts]"
    )
    print(f"{'raters':10}{'answers':>10}{'before':>10}{'after':>10}{'difference':>24}{'over the control':>24}")
    for row in rows:
        told = ["{:+.1f} [{:.1f}, {:.1f}]".format(*row[name]) if name in row else "" for name in FIGURES]
        figures = f"{row['answers_per_seed']:>10.0f}{row['before']:>10.1f}{row['after']:>10.1f}"
        print(f"{row['arm']:10}{figures}{told[0]:>24}{told[1]:>24}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        settings = {name: value for name, value in vars(args).items() if name != "json"}
        args.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
