"""Every reward can be deployed: its extra brings all that it imports, an image of that set exists, the docs name it.

Nothing is installed here: imports are read from the sources and held against what pyproject.toml names.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

import dipole
import dipole_rewards
from dipole.downloads.table import read_table
from dipole.stack.stack import HUGE_PAGES_ENVIRONMENT
from dipole_rewards import rewards
from dipole_rewards.networks.golden_scores import read_goldens_table
from dipole_rewards.reward import Reward
from dipole_rewards.shipped import SHIPPED_REWARDS
from dipole_rewards.verification import comparison

from .compose import load_services

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMPOSE = load_services()
FOLDERS = {package.__name__: Path(str(package.__file__)).parent for package in (dipole, dipole_rewards)}
DOCKERFILE = (ROOT / "services/Dockerfile").read_text()
INSTALLED = packages_distributions()  # which distributions bring a name that is imported
SERVED_WITH = ("dipole_rewards.app", "dipole.cli.rewards")  # beside the reward's own module


def classes() -> dict[str, type[Reward]]:
    """Every reward that is served as it is, by its name: the concrete classes of dipole_rewards.rewards."""
    modules = [
        importlib.import_module(f"{rewards.__name__}.{each.name}") for each in pkgutil.iter_modules(rewards.__path__)
    ]
    found = [
        kind
        for module in modules
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Reward) and not inspect.isabstract(kind) and kind.__module__ == module.__name__
    ]
    return {kind.name: kind for kind in found}


REWARDS = classes()


@pytest.fixture(params=sorted(REWARDS))
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def plain(requirement: str) -> str:
    """A distribution's name in the form in which names are compared, without extras, versions and markers."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[;<>=!~ ]", requirement)[0]).lower()


def brought(extra: str) -> set[str]:
    """Distributions that `dipole[extra]` names, through extras that it names in turn."""
    found = {plain(each) for each in PROJECT["dependencies"]}
    for each in PROJECT["optional-dependencies"][extra]:
        if own := re.fullmatch(r"dipole\[(.+)\]", each):
            found |= brought(own[1])
        else:
            found.add(plain(each))
    return found


@cache
def imported(module: str) -> frozenset[str]:
    """Names that importing a module of ours imports at once; what waits inside functions is not among them."""
    package, *rest = module.split(".")
    path = FOLDERS[package].joinpath(*rest)
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.exists():  # a class or function of the module before the dot
        return frozenset()
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(file.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{file}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending += ast.iter_child_nodes(node)
    return frozenset(found)


def distributions(*modules: str) -> set[str]:
    """Other people's distributions that these modules of ours import, directly and through others of ours."""
    seen, pending, found = set[str](), list(modules), set[str]()
    while pending:
        module = pending.pop()
        top = module.split(".")[0]
        if module in seen or top in sys.stdlib_module_names:
            continue
        seen.add(module)
        if top in FOLDERS:
            parts = module.split(".")
            pending += [".".join(parts[:length]) for length in range(1, len(parts))]  # packages it lies in
            pending += imported(module)
        else:
            found.add(plain(INSTALLED[top][0]))
    return found


def test_short_names_are_those_of_the_rewards_that_ship() -> None:
    """`dipole rewards serve NAME` means the class of that name."""
    assert {name: f"{kind.__module__}:{kind.__name__}" for name, kind in REWARDS.items()} == SHIPPED_REWARDS


def test_every_published_reward_but_two_can_be_verified() -> None:
    """By a script of its name that imports nothing of ours; GenEval's published detector is not the one here, and
    nobody has published scores of a user's own pictures."""
    packages = comparison.read_packages()
    scripts = {path.stem: path for path in (FOLDERS["dipole_rewards"] / "verification/published").glob("*.py")}
    assert packages.keys() == scripts.keys() == read_table().rewards.keys() - {"geneval", "style"}
    for name, path in scripts.items():
        nodes = list(ast.walk(ast.parse(path.read_text())))
        modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        modules |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        assert not any(str(module).startswith("dipole") for module in modules), name
        assert all("==" in each for each in packages[name].requirements), "a version is pinned"


def test_the_table_of_golden_scores_is_one() -> None:
    """Whatever is committed there can be read, and is of rewards that ship."""
    assert {entry.reward for entry in read_goldens_table()} <= REWARDS.keys()


def test_no_text_installs_what_no_index_has() -> None:
    """Dipole is installed from its repository: `pip install` of its name would bring whatever somebody published."""
    texts = [ROOT / name for name in ("README.md", "CHANGELOG.md", "Makefile", "docker-compose.yml")]
    kinds = {
        "docs": ["*.md"],
        "shared": ["*.py"],
        "services": ["*.py", "Dockerfile"],
        "trainer": ["*.py", "Dockerfile"],
        "scripts": ["*"],
        "examples": ["*.py", "*.md", "*.toml"],
        "k8s": ["*.yaml"],
    }
    for folder, patterns in kinds.items():
        texts += [path for each in patterns for path in (ROOT / folder).rglob(each) if path.is_file()]
    for path in texts:
        if path.name not in ("PLAN.md", "LOG.md") and "node_modules" not in path.parts:
            text = path.read_text(errors="replace")
            assert not re.search(r"pip install[^\n&]*['\" ]dipole\b|dipole\[\w+\]", text), path


def test_an_extra_of_its_name_brings_what_a_reward_imports(name: str) -> None:
    """Installed with the extra of its name, it can be served; Starlette comes with FastAPI."""
    wanted = distributions(REWARDS[name].__module__, *SERVED_WITH) - {"starlette"}
    assert wanted >= {"fastapi", "numpy", "pydantic"}, "imports are read"
    assert wanted <= brought(name)


def test_a_judge_and_programs_need_no_torch() -> None:
    """What computes nothing with weights is installed without gigabytes; the others have torch."""
    without = {each for each in REWARDS if "torch" not in brought(each)}
    assert without >= {"shapes", "colourfulness", "judge"}
    for each in REWARDS:
        assert ("torch" in distributions(REWARDS[each].__module__)) == (each not in without)


def test_dev_brings_what_every_reward_needs() -> None:
    """`make install` is enough to test them all."""
    assert set().union(*map(brought, REWARDS)) <= brought("dev")


def test_a_reward_is_served_in_compose_by_its_name(name: str) -> None:
    """docker-compose.yml has a service of its name and class, from an image with the dependencies of its extra."""
    service, kind = COMPOSE[name], REWARDS[name]
    assert service["environment"]["DIPOLE_REWARD"] == f"{kind.__module__}:{kind.__name__}"
    extra = service["build"].get("args", {}).get("EXTRA", "rewards")
    assert "ARG EXTRA=rewards\n" in DOCKERFILE
    assert brought(extra) == brought(name)
    suffix = "" if extra == "rewards" else f"-{extra}"
    assert service["image"].partition(":")[0] == f"dipole-rewards{suffix}"
    assert f"-t dipole-rewards{suffix} " in DOCKERFILE, "its build is told"


def test_torch_comes_first_where_it_is_needed() -> None:
    """The Dockerfile leaves out torch's own index for those sets alone that have no torch."""
    (left_out,) = re.findall(r'case "\$EXTRA" in (\S+)\) ;; \*\)', DOCKERFILE)
    assert set(left_out.split("|")) == {
        "rewards",
        *(each for each in (*REWARDS, "ratings") if "torch" not in brought(each)),
    }


def test_the_docs_say_how_to_deploy_it(name: str) -> None:
    """docs/rewards.md has a row for it, with its extra and image."""
    image = COMPOSE[name]["image"].partition(":")[0]
    rows = [line for line in (ROOT / "docs/rewards.md").read_text().splitlines() if line.startswith(f"| `{name}` |")]
    assert any(f"`{image}`" in row for row in rows)


def test_images_travel_in_huge_pages_everywhere() -> None:
    """Rewards and rank workers get from image and compose what the embedded stack gives them."""
    (told,) = HUGE_PAGES_ENVIRONMENT.items()
    assert "=".join(told) in DOCKERFILE.split()
    assert told in COMPOSE["rank-worker"]["environment"].items()
    assert {"name": told[0], "value": told[1]} in next(
        each["spec"]["template"]["spec"]["containers"][0]["env"]
        for each in yaml.safe_load_all((ROOT / "k8s/base/rank-worker.yaml").read_text())
    )
