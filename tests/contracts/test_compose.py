"""docker-compose.yml and the Dockerfiles fit each other and the code, and never come up with an empty secret."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from dipole.redis_url import parse_redis_url
from dipole.stack.stack import PEOPLE_TIMEOUT_S

from .compose import DEFAULT, load_services

ROOT = Path(__file__).resolve().parents[2]
SERVICES = load_services()
GPU = load_services("docker-compose.gpu.yml")
REWARDS = {name: each for name, each in SERVICES.items() if "DIPOLE_REWARD" in each.get("environment", {})}
ALWAYS = {"shapes", "colourfulness"}  # rewards without a profile
TLS = load_services("docker-compose.tls.yml")
DOCKERFILE = (ROOT / "services/Dockerfile").read_text()
DOCKERFILES = sorted(ROOT.glob("*/Dockerfile"))


def stages(path: Path) -> dict[str, str]:
    """The text of each build stage by its name."""
    parts = re.split(r"^FROM \S+ AS (\S+)$", path.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture(params=sorted(SERVICES))
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def test_a_service_sets_only_settings_that_exist(name: str, reference: ModuleType) -> None:
    """Every DIPOLE_ variable is a setting of the code."""
    variables = {each for each in SERVICES[name].get("environment", {}) if each.startswith("DIPOLE_")}
    assert variables <= reference.setting_names()


def test_the_dockerfiles_set_only_settings_that_exist(reference: ModuleType) -> None:
    """Every DIPOLE_ variable of an image is a setting of the code."""
    for path in DOCKERFILES:
        assert (
            set(re.findall(r"\b(DIPOLE_[A-Z_]+)=", path.read_text())) - {"DIPOLE_REWARD"} <= reference.setting_names()
        )


def test_what_a_service_sets_is_accepted(name: str, reference: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each settings class loads from the service's environment: lists parse, ports are numbers."""
    given = {variable: value for variable, value in SERVICES[name].get("environment", {}).items() if value is not None}
    for variable, value in given.items():
        monkeypatch.setenv(variable, re.sub(r"\$\{\w+:\?[^}]*\}", "a-key-of-enough-letters", str(value)))
    for owner in reference.settings_classes():
        settings = reference.settings_of(owner).values()
        if {each.variable for each in settings if each.default == "required"} <= given.keys():
            owner()


def test_a_secret_that_is_unset_stops_compose(reference: ModuleType) -> None:
    """Every interpolated variable is required, with a sentence that says what to do, but for those that have a default,
    which are no secrets.
    """
    text = (ROOT / "docker-compose.yml").read_text()
    found = re.findall(r"\$\{(\w+)([^}]*)\}", DEFAULT.sub("", text))
    assert found
    written = (ROOT / "scripts/write-env").read_text()
    files = "".join(path.read_text() for path in ROOT.glob("docker-compose*.yml"))
    assert {name for name, _ in DEFAULT.findall(files)} == {"DIPOLE_ARTIFACTS_URL", *reference.COMPOSE_VARIABLES}
    for variable, rest in found:
        assert rest == ":?is not set. Run scripts/write-env", variable
        assert f"write {variable}" in written


def test_ports_are_published_on_loopback_only(name: str) -> None:
    """Nothing but this machine reaches a published port."""
    assert all(str(port).startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


def test_a_service_runs_a_command_that_exists(name: str, reference: ModuleType) -> None:
    """Ours run `dipole …` with a command of the command line."""
    service = SERVICES[name]
    if service["image"].startswith("dipole-") and service.get("command", ["dipole"])[0] == "dipole" and name != "cli":
        words = service.get("command", [])[1:]
        assert not words or reference.find_command(words)


def test_an_image_starts_a_command_that_exists(reference: ModuleType) -> None:
    """Every CMD of a Dockerfile is a command of the command line."""
    for path in DOCKERFILES:
        for words in re.findall(r'^CMD \["dipole", (.*)\]$', path.read_text(), flags=re.MULTILINE):
            assert reference.find_command(re.findall(r'"([^"]+)"', words))


def test_a_build_names_a_target_that_exists(name: str) -> None:
    """Dockerfile and target of each build exist, and every image of ours has a build somewhere."""
    builds = {each["image"]: each["build"] for each in SERVICES.values() if "build" in each}
    image = SERVICES[name]["image"]
    if image.startswith("dipole-"):
        build = builds[image]
        assert build["target"] in stages(ROOT / build["dockerfile"])


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: str(path.parent.name))
def test_images_are_pinned_and_run_without_root(path: Path) -> None:
    """Installs obey constraints.txt, the user is a number that Kubernetes can check, and no frontend is pulled."""
    text = path.read_text()
    assert "# syntax" not in text
    assert "PIP_CONSTRAINT=/src/constraints.txt" in text
    assert re.findall(r"^USER (\S+)$", text, flags=re.MULTILINE) == ["10001:10001"]
    assert "curl" not in text, "slim images have none"


def test_every_reward_host_is_a_service() -> None:
    """The allow-list of reward hosts names services that listen on the protocol's port."""
    hosts = SERVICES["api"]["environment"]["DIPOLE_REWARD_HOSTS"].split(",")
    assert sorted(hosts) == sorted(
        each for each, told in SERVICES.items() if told["image"].startswith(("dipole-rewards", "dipole-ratings"))
    )


def test_every_reward_is_declared() -> None:
    """The file that the API reads at its start names every reward, at the port of its image, with its key."""
    environment = SERVICES["api"]["environment"]
    binds = [each for each in SERVICES["api"]["volumes"] if isinstance(each, dict)]
    (source,) = [each["source"] for each in binds if each["target"] == environment["DIPOLE_REWARDS_FILE"]]
    told = tomllib.loads((ROOT / source).read_text())["rewards"]
    assert {name: each["url"] for name, each in told.items()} == {
        **{name: f"http://{name}:8401" for name in REWARDS},
        "people": f"http://people:{SERVICES['people']['environment']['DIPOLE_RATINGS_PORT']}",
    }
    assert {each["key_env"] for each in told.values()} == {"DIPOLE_REWARD_KEY"} <= environment.keys()
    assert "DIPOLE_REWARD_PORT=8401" in (ROOT / "services/Dockerfile").read_text()


def test_every_other_reward_has_a_profile_of_its_name() -> None:
    """`docker compose up` runs what needs nothing; a profile adds one reward, and nobody waits for it."""
    assert REWARDS.keys() >= ALWAYS
    for name, service in REWARDS.items():
        assert service.get("profiles") == (None if name in ALWAYS else [name])
    assert not [each for service in SERVICES.values() for each in service.get("depends_on", {}) if each in REWARDS]


def test_a_reward_can_be_scaled() -> None:
    """No reward has a container's name or a port of this machine, of which there can be only one."""
    assert not [name for name, each in REWARDS.items() if each.keys() & {"container_name", "ports", "hostname"}]


def test_weights_are_read_from_a_folder_that_must_exist() -> None:
    """They lie in ./weights/NAME, are never written, and a folder that is missing is an error; they may use a GPU."""
    for name, service in REWARDS.items():
        if volumes := service.get("volumes"):
            weights = {
                "type": "bind",
                "source": f"./weights/{name}",
                "target": "/data/weights",
                "read_only": True,
                "bind": {"create_host_path": False},
            }
            assert volumes == [weights, "reward-state:/data/state"], "and what they record is written elsewhere"
        assert ("volumes" in service) == (GPU.get(name, {}).get("environment") == {"DIPOLE_REWARD_DEVICE": "cuda"})


def test_the_judge_takes_every_setting_from_outside(reference: ModuleType) -> None:
    """Each setting of the judge may be in .env, and none has a value here; where traces go is told to every service."""
    (owner,) = [each for each in reference.settings_classes() if each.__name__ == "JudgeSettings"]
    environment = SERVICES["judge"]["environment"]
    assert {each.variable for each in reference.settings_of(owner).values()} == {
        name for name, value in environment.items() if value is None
    } - {"DIPOLE_OTLP_ENDPOINT"}


def test_people_have_a_profile_a_page_and_a_schema_of_their_own() -> None:
    """Their service runs where it is asked for, is reached at port 8450, and keeps out of the jobs' tables."""
    service = SERVICES["people"]
    assert service["profiles"] == ["people"]
    assert service["ports"] == ["127.0.0.1:8450:8450"]
    assert service["environment"]["DIPOLE_RATINGS_DATABASE_URL"].endswith("?options=-csearch_path%3Dratings")
    told = tomllib.loads((ROOT / "rewards.toml").read_text())["rewards"]["people"]
    assert told["options"] == {"timeout_s": PEOPLE_TIMEOUT_S}
    assert service["build"]["args"]["EXTRA"] in re.findall(r'"\$EXTRA" in ([a-z|]+)\)', DOCKERFILE)[0], "without torch"


def test_images_have_the_version_of_the_package() -> None:
    """Tags of our images say what pyproject.toml says."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    ours = {each["image"] for each in SERVICES.values() if each["image"].startswith("dipole-")}
    assert {image.partition(":")[2] for image in ours} == {version}
    for page in ("README.md", "docs/kubernetes.md"):
        told = re.findall(r"dipole-[a-z0-9-]+:(\S+)", (ROOT / page).read_text())
        assert set(told) == {version}, page
    assert f"DIPOLE_TAG={version}-cu130" in (ROOT / "docs/kubernetes.md").read_text()


def test_our_images_may_come_from_a_registry() -> None:
    """Two variables name where whoever released them has pushed them, and as what; PostgreSQL and Redis stay."""
    pulled = load_services(DIPOLE_REGISTRY="registry.example/team/", DIPOLE_TAG="9")
    for name, service in SERVICES.items():
        image, _, tag = service["image"].partition(":")
        is_ours = image.startswith("dipole-")
        assert pulled[name]["image"] == (f"registry.example/team/{image}:9" if is_ours else f"{image}:{tag}")


def test_every_service_waits_for_what_exists(name: str) -> None:
    """depends_on names services, and service_healthy only those that have a health check."""
    for other, condition in SERVICES[name].get("depends_on", {}).items():
        assert other in SERVICES
        if condition["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[other]


def test_a_service_gets_and_awaits_the_stores_that_it_uses(name: str) -> None:
    """Addresses with passwords are where they are needed and nowhere else; nobody waits for what he does not use."""
    both = {"DATABASE", "REDIS"}
    used = {"migrate": {"DATABASE"}, "api": both, "worker": both, "rank-worker": {"REDIS"}, "sampler": {"REDIS"}}
    used |= {"people": {"RATINGS_DATABASE"}, "backup": {"DATABASE", "RATINGS_DATABASE"}}
    stores = (*both, "RATINGS_DATABASE")
    told = {store for store in stores if f"DIPOLE_{store}_URL" in SERVICES[name].get("environment", {})}
    assert told == used.get(name, set())
    waits = set(SERVICES[name].get("depends_on", {}))
    assert ("redis" in waits) == ("REDIS" in told)
    if not any("DATABASE" in store for store in told) and name != "cli":
        assert not waits & {"postgres", "migrate"}


def test_whoever_handles_endpoints_has_their_secrets_and_hosts(name: str) -> None:
    """API, worker and rank worker: the last opens keys that the worker sealed, and asks allowed hosts alone."""
    told = {"DIPOLE_SECRETS_KEY", "DIPOLE_REWARD_HOSTS"} & set(SERVICES[name].get("environment", {}))
    assert len(told) == (2 if name in {"api", "worker", "rank-worker"} else 0)


def test_the_tls_override_leads_everybody_to_redis_and_the_api_over_tls() -> None:
    """Whoever has Redis's URL gets one of TLS with the authority that it names; Redis and the API have the certificate,
    and their health is asked over TLS; what is not there on the host is an error.
    """
    plain = {name for name, each in SERVICES.items() if "DIPOLE_REDIS_URL" in each.get("environment", {})}
    assert plain | {"redis", "cli"} == TLS.keys()
    for name in plain:
        address = re.sub(r"\$\{[^}]*\}", "a", TLS[name]["environment"]["DIPOLE_REDIS_URL"])
        tls = parse_redis_url(address).tls
        assert tls is not None
        assert tls["ssl_ca_certs"] == "/etc/dipole/tls/ca.crt"
    mounted = {name: each["volumes"][0] for name, each in TLS.items()}
    assert all(each["read_only"] and each["bind"] == {"create_host_path": False} for each in mounted.values())
    whole = {name for name, each in mounted.items() if each["source"] == "./tls/served"}
    assert whole == {"redis", "api"}, "nobody else gets the key"
    assert {each["source"] for name, each in mounted.items() if name not in whole} == {"./tls/served/ca.crt"}
    command = SERVICES["redis"]["command"]
    assert TLS["redis"]["command"][: len(command)] == command, "and what it has without TLS"
    assert "--tls" in TLS["redis"]["healthcheck"]["test"]
    assert TLS["api"]["healthcheck"]["test"][5:] == ["https", "8400", "/readyz"]
    assert TLS["api"]["environment"].keys() >= {"DIPOLE_API_TLS_CERT", "DIPOLE_API_TLS_KEY"}
    found = re.findall(r"\$\{\w+([^}]*)\}", (ROOT / "docker-compose.tls.yml").read_text())
    assert set(found) == {":?is not set. Run scripts/write-env"}


def test_the_gpu_override_changes_services_that_exist() -> None:
    """docker-compose.gpu.yml adds to services of docker-compose.yml."""
    assert GPU.keys() <= SERVICES.keys()
