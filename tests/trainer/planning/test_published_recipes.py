"""The examples are the published recipes, whole; each is a job that is taken, and a plan that is made."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dipole_trainer.api.job_requests import JobRequest
from dipole_trainer.planning.devices import DEVICES
from dipole_trainer.planning.job_plan import parse_job, plan_job
from dipole_trainer.spec import DrpoSpec

ROOT = Path(__file__).parents[3]
RECIPES = sorted(path.stem for path in (ROOT / "examples").glob("sd*.json"))
SAME = {"radii": (0.02, 0.05, 0.2), "kernel": "laplacian"}
WEIGHTS = ("positive_weight", "negative_weight", "ref_positive_weight", "ref_negative_weight", "ref_lambda")
# of the paper and the release: K, P, N, prompts an update, updates, rate, features, weights and λ
PUBLISHED: dict[str, tuple[Any, ...]] = {
    "sd-turbo": (24, 8, 8, 8, 1000, 1e-4, "latent_mae", (3000, 3000, 3000, 3000, 0.2)),
    "sdxl-turbo": (16, 8, 8, 64, 5000, 1e-5, "vit_mae", (3000, 3000, 3000, 3000, 0.2)),
    "sdxl-turbo-teacher": (24, 12, 12, 32, 5000, 1e-5, "teacher_unet", (3000, 2000, 3500, 5000, 0.25)),
}


def read_recipe(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / f"examples/{name}.json").read_text())
    return found


def test_every_recipe_is_a_published_one() -> None:
    assert sorted(PUBLISHED) == RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_published_values(name: str) -> None:
    spec = parse_job(read_recipe(name))
    own, knobs, lora = spec.method.drpo, spec.optimizer, spec.lora
    assert own is not None
    weights = tuple(getattr(own, weight) for weight in WEIGHTS)
    assert PUBLISHED[name] == (
        spec.candidates, own.positives, own.negatives, spec.prompts_per_step, spec.steps, knobs.lr,
        spec.features.type, weights,
    )  # fmt: skip
    assert {side: getattr(own, side) for side in SAME} == SAME
    assert (knobs.betas, knobs.weight_decay, knobs.max_grad_norm) == ((0.9, 0.999), 1e-2, 1.0)
    assert (lora.rank, lora.alpha, lora.target_modules) == (16, 16, ("to_q", "to_k", "to_v", "to_out.0"))
    assert (spec.model, spec.resolution, spec.precision) == (name.removesuffix("-teacher"), 512, "bf16")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_every_setting_of_its_method(name: str) -> None:
    """So that no default of ours, which may change, stands for a published value; `mask_self` is off in all."""
    given = read_recipe(name)["method"]["drpo"]
    assert given.keys() == DrpoSpec.model_fields.keys() - {"mask_self"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_job_that_the_api_takes(name: str) -> None:
    """With prompts to train and to evaluate on, and a reward, as `dipole jobs create --config` sends them."""
    body = {**read_recipe(name), "prompts": [{"prompt": "a fox"}], "rewards": [{"name": "pickscore"}]}
    body["evaluation"]["prompts"] = [{"prompt": "a hare"}]
    request = JobRequest.model_validate(body)
    request.check_side(512)
    request.check_window(512, limit_gib=3)


def test_a_plan_of_the_teachers_recipe_is_made() -> None:
    """Its features are the base itself; the two others' plans are made in test_plan."""
    (plan,) = plan_job(parse_job(read_recipe("sdxl-turbo-teacher")), models_dir=Path("none"), devices=[DEVICES["h100"]])
    assert plan.images_per_update == 24 * 32
    assert plan.fits


IN_OTHER_WORDS = {  # settings that the table has by the signs that papers use, or not in a row of their own
    "candidates": "K, P, N", "positives": "K, P, N", "negatives": "K, P, N", "radii": "radii, kernel",
    "kernel": "radii, kernel", "positive_weight": "w⁺ w⁻ w_ref w_ref⁻", "negative_weight": "w⁺ w⁻ w_ref w_ref⁻",
    "ref_positive_weight": "w⁺ w⁻ w_ref w_ref⁻", "ref_negative_weight": "w⁺ w⁻ w_ref w_ref⁻", "lora": "LoRA",
    "optimizer": "`optimizer.lr`", "model": "SD-Turbo",
}  # fmt: skip


def test_the_table_of_the_docs_names_every_recipe_and_setting() -> None:
    """And says of each row whose values they are."""
    page = (ROOT / "docs/training.md").read_text()
    assert all(f"`examples/{name}.json`" in page for name in RECIPES)
    named = page[page.index("| value | SD-Turbo") :].split("\n\n")[0]
    table = named.splitlines()[2:]
    recipes = [read_recipe(name) for name in RECIPES]
    given = {key for recipe in recipes for key in (*recipe, *recipe["method"]["drpo"])} - {"method"}
    assert [key for key in sorted(given) if IN_OTHER_WORDS.get(key, f"`{key}`") not in named] == []
    assert all(re.search(r"(paper|release|ours)[^|]*\|$", row) for row in table)
