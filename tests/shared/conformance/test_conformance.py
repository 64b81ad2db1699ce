"""`dipole rewards check` finds what is wrong with an endpoint, and nothing wrong with a right one; over real HTTP."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import trustme
from typer.testing import CliRunner

from dipole import conformance
from dipole.cli.rewards import app as rewards_cli
from dipole.conformance.checks import CHECKS, CheckResult
from dipole.errors import InvalidInput
from dipole.protocol import images

from . import bent_server, faults, right_servers
from .bent_server import KEY, Bend, Bent
from .wrong_servers import WRONG, Wrong

Server = tuple[str, Bent]
SLOW = "refuses_huge_bodies"  # two seconds in which our service waits for what else is sent
QUICK = [check.name for check in CHECKS if check.name != SLOW]


@pytest.fixture(scope="module")
def started() -> Iterator[Server]:
    with bent_server.served() as (url, bent):
        yield url, bent


@pytest.fixture
def server(started: Server) -> Iterator[Server]:
    """The right server; what a test bends is straight again afterwards."""
    bent_server.CACHE.clear()
    yield started
    started[1].bend, started[1].patient = bent_server.straight, False


def check(server: Server, bend: Bend, *only: str, strict: bool = True, timeout_s: float = 10) -> dict[str, CheckResult]:
    """The results by name of every check, or `only` of these."""
    server[1].bend = bend
    results = conformance.run_checks(server[0], key=KEY, timeout_s=timeout_s, only=only, strict=strict)
    assert len(results) == (len(only) or len(CHECKS))
    return {result.name: result for result in results}


def named(results: dict[str, CheckResult], outcome: str) -> dict[str, str]:
    """What the checks with this outcome say."""
    return {name: result.message for name, result in results.items() if result.outcome == outcome}


def test_the_right_server_passes(server: Server) -> None:
    """Our own service passes every check and skips none: so does each wrong server without its fault. It wants no
    progress, and is sent none.
    """
    told: list[bool] = []

    def look(asked: bent_server.Asked) -> bent_server.Asked:
        told.append(asked.ranks and b'"progress"' in asked.body)
        return asked

    results = check(server, bent_server.asks(look))
    assert told
    assert not any(told)
    assert named(results, "failed") == named(results, "skipped") == {}
    assert sum(result.seconds for result in results.values()) < 30


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_server_is_found_out(server: Server, wrong: Wrong) -> None:
    """The check that states the broken fact fails, says what it saw and what to do."""
    server[1].patient = wrong.patient
    results = check(server, wrong.bend, *wrong.also, wrong.check, timeout_s=wrong.timeout_s)
    assert results[wrong.check].outcome == "failed"
    assert wrong.said in results[wrong.check].message
    assert results[wrong.check].remedy


def test_every_check_has_a_server_that_breaks_it() -> None:
    """None of the checks passes whatever it is shown, unless the server ignores good requests as a whole."""
    plain = {"ranks_one", "ranks_any_prompt", "ranks_odd_images"}  # `ranks_json` with other requests
    assert {check.name for check in CHECKS} - {wrong.check for wrong in WRONG.values()} == plain


@pytest.mark.parametrize("name", ["ranks_one", "ranks_any_prompt", "ranks_odd_images"])
def test_requests_that_are_rare_are_asked_too(server: Server, name: str) -> None:
    """A server that answers them with 500 fails these checks as well."""
    broken = bent_server.to("/v1/rank", bent_server.reply({}, 500))
    assert "answered 500" in check(server, broken, name)[name].message


@pytest.mark.parametrize("kind", ["only_ranks", "always_later", "in_other_words", "busy"])
def test_right_servers_of_other_kinds_pass(server: Server, kind: str) -> None:
    """Ranks alone where nothing is calibrated, 202 for everything, other words and rate limits are right, strictly."""
    assert named(check(server, getattr(right_servers, kind), *QUICK), "failed") == {}


def test_a_reward_that_needs_metadata_is_given_some(server: Server) -> None:
    """Without metadata its nulls are no failure, and said; with metadata it is tested as any other."""
    assert (
        "give --metadata" in named(check(server, right_servers.needs_metadata, *QUICK), "skipped")["scores_something"]
    )
    results = conformance.run_checks(server[0], key=KEY, metadata={"include": [{"class": "dog"}]}, only=QUICK)
    assert {result.outcome for result in results} == {"passed"}


def test_people_are_not_waited_for(server: Server) -> None:
    """An endpoint that answers 202 and not today fails nothing: what needs an answer is skipped, and cancelled."""
    results = check(server, right_servers.people, *QUICK, timeout_s=1.5)
    assert named(results, "failed") == {}
    assert "had no result" in named(results, "skipped")["ranks_json"]
    assert results["refuses_huge_images"].outcome == "passed"


def test_a_small_server_passes_with_warnings(server: Server) -> None:
    """What twenty lines leave out is warned of, and fails only strictly."""
    lax = named(check(server, right_servers.small, *QUICK, strict=False), "warning")
    assert set(lax) == {"metrics", "idempotent", "refuses_unknown_fields", "problem_json"}
    assert named(check(server, right_servers.small, *lax), "failed").keys() == lax.keys()


def test_a_failed_must_is_no_warning(server: Server) -> None:
    """Without strict a broken promise fails all the same."""
    results = check(server, WRONG["NaN"].bend, "ranks_json", strict=False)
    assert results["ranks_json"].outcome == "failed"


def test_an_endpoint_that_hangs_costs_one_failure(server: Server) -> None:
    """Every answer is late: that is said once, with what to do, and the rest is not tried."""

    async def hang(asked: bent_server.Asked, forward: bent_server.Forward) -> bent_server.Answer:
        await asyncio.sleep(1)
        return await forward(asked)

    results = check(server, hang, timeout_s=0.2)
    assert set(named(results, "failed")) == {"alive"}
    assert results["alive"].remedy == conformance.SLOW_REMEDY
    assert "slow = True" in conformance.SLOW_REMEDY
    assert {result.outcome for name, result in results.items() if name != "alive"} == {"skipped"}
    assert all("too slow" in message for message in named(results, "skipped").values())


def test_one_slow_answer_is_one_failure(server: Server) -> None:
    """A server that is late once, until somebody asks again: what comes after is not blamed for it."""
    asked_again = asyncio.Event()

    async def late_once(asked: bent_server.Asked, forward: bent_server.Forward) -> bent_server.Answer:
        if asked.ranks and bent_server.CACHE.setdefault("late", asked) is asked:
            await asked_again.wait()
        elif asked.ranks:
            asked_again.set()
        return await forward(asked)

    results = check(server, late_once, "ranks_json", "ranks_one", "tells_images_apart", "ranks_multipart", timeout_s=3)
    assert set(named(results, "failed")) == {"ranks_json"}
    assert "no answer within 3 s" in results["ranks_json"].message
    assert results["ranks_json"].remedy == conformance.SLOW_REMEDY
    assert {results[name].outcome for name in ("ranks_one", "tells_images_apart", "ranks_multipart")} == {"passed"}


async def reads_words(asked: bent_server.Asked, forward: bent_server.Forward) -> bent_server.Answer:
    """As OCR: 1 where the image is bright and the prompt names a word in quotes, else 0."""
    answer = await forward(asked)
    if answer.status != 200 or not asked.ranks or not asked.candidates():
        return answer
    wanted = '"hello"' in str(asked.json.get("prompt"))
    scores = [float(wanted and bright(one["image"])) for one in asked.candidates()]
    return bent_server.changed(answer, results=faults.scored(answer.json["results"], scores))


def bright(image: dict[str, str]) -> bool:
    pixels = images.decode_image(images.decode_base64(image["data"]), image["media_type"])
    return bool(pixels.mean() > 240)


def test_a_reward_whose_target_is_in_the_prompt_is_given_one(server: Server, tmp_path: Path) -> None:
    """Our own images all score 0 there, which is a warning; with a prompt and two images it is asked what it judges."""
    server[1].bend = reads_words
    for name, level in (("with", 250), ("without", 10)):
        (tmp_path / f"{name}.png").write_bytes(images.encode_png(np.full((16, 16, 3), level, np.uint8)))
    command = ["check", server[0], "--key", KEY]
    for name in ("scores_something", "tells_images_apart", "deterministic", "order_independent", "ranks_json"):
        command += ["--only", name]
    plain = CliRunner().invoke(rewards_cli, command)
    assert plain.exit_code == 0
    assert "warnings (tells_images_apart)" in plain.output
    pictures = ["--image", str(tmp_path / "with.png"), "--image", str(tmp_path / "without.png")]
    asked = CliRunner().invoke(rewards_cli, [*command, "--prompt", 'a sign that says "hello"', *pictures])
    assert asked.exit_code == 0, asked.output
    assert "5 passed, 0 failed in" in asked.output
    one = CliRunner().invoke(rewards_cli, [*command, "--strict", "--prompt", 'says "hello"', *pictures[:2]])
    assert one.exit_code == 0, one.output  # one image is compared with ours
    blind = CliRunner().invoke(rewards_cli, [*command, "--prompt", "no word", *pictures])
    assert blind.exit_code == 1
    assert "1 failed (tells_images_apart)" in blind.output


def test_the_prompt_reaches_every_request_that_is_right(server: Server) -> None:
    """In JSON and in multipart; requests about prompts keep their own."""
    seen: list[bytes] = []

    async def listen(asked: bent_server.Asked, forward: bent_server.Forward) -> bent_server.Answer:
        seen.append(asked.body)
        return await forward(asked)

    server[1].bend = listen
    only = ["ranks_json", "ranks_multipart", "same_scores_in_every_form", "concurrent"]
    results = conformance.run_checks(server[0], key=KEY, prompt="my own prompt", only=only)
    assert {result.outcome for result in results} == {"passed"}
    sent = [body for body in seen if b"candidates" in body]
    assert sent
    assert all(b"my own prompt" in body for body in sent)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.png", None, "cannot be read: No such file"),
        ("x.gif", b"GIF89a", "must be a .png, .jpg or .webp file"),
        ("x.png", b"no png", "x.png"),
    ],
)
def test_an_image_that_cannot_be_sent_is_told(name: str, content: bytes | None, said: str, tmp_path: Path) -> None:
    """Before anything is asked; two images that are equal are no two."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    outcome = CliRunner().invoke(rewards_cli, ["check", "http://127.0.0.1:9", "--image", str(tmp_path / name)])
    assert said in str(outcome.exception)
    same = tmp_path / "same.png"
    same.write_bytes(images.encode_png(np.zeros((8, 8, 3), np.uint8)))
    twice = ["check", "http://127.0.0.1:9", "--image", str(same), "--image", str(same)]
    assert "give images that differ" in str(CliRunner().invoke(rewards_cli, twice).exception)


def test_the_command_warns_and_exits_with_0(server: Server, tmp_path: Path) -> None:
    """Warnings are printed with what to do, pass in JUnit with their text, and fail with --strict."""
    server[1].bend, junit = right_servers.small, tmp_path / "check.xml"
    words = ["check", server[0], "--key", KEY, "--only", "metrics", "--only", "alive", "--junit", str(junit)]
    outcome = CliRunner().invoke(rewards_cli, words)
    assert outcome.exit_code == 0
    assert "1 passed, 0 failed, 1 warnings (metrics) in" in outcome.output
    assert "Prometheus client library" in " ".join(outcome.output.replace("│", " ").split())
    suite = ElementTree.parse(junit).getroot()
    assert suite.attrib["failures"] == "0"
    assert "warning: /metrics" in (suite.findtext("testcase/system-out") or "")
    strict = CliRunner().invoke(rewards_cli, [*words, "--strict"])
    assert strict.exit_code == 1
    failure = ElementTree.parse(junit).getroot().find("testcase/failure")
    assert failure is not None
    assert failure.attrib["message"] == "/metrics answered 404"


def test_the_key_is_not_told(server: Server) -> None:
    """An endpoint that quotes what it was sent does not bring the key into a report that CI keeps."""
    server[1].bend = bent_server.to("/v1/rank", bent_server.reply(f"Bearer {KEY}".encode(), 500))
    (result,) = conformance.run_checks(server[0], key=KEY, only=["ranks_json"])
    assert "Bearer (the key)" in result.message


def test_an_authority_of_one_s_own_is_believed(tmp_path: Path) -> None:
    """Over TLS `--tls FOLDER` brings the CA, for the connection that announces too much as well; without it none."""
    authority = trustme.CA()
    certificate, folder = tmp_path / "server.pem", tmp_path / "tls"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
    folder.mkdir()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    with bent_server.served(certificate, folder / "ca.pem") as (url, _):
        words = ["check", url, "--key", KEY, "--only", "ranks_json", "--only", SLOW, "--strict"]
        believed = CliRunner().invoke(rewards_cli, [*words, "--tls", str(folder)])
        refused = CliRunner().invoke(rewards_cli, words)
    assert (believed.exit_code, refused.exit_code) == (0, 1), believed.output
    assert "CERTIFICATE_VERIFY_FAILED" in refused.output


def test_what_an_endpoint_says_steers_no_terminal(server: Server, tmp_path: Path) -> None:
    """Escape sequences, NUL and markup from the endpoint are shown as letters; the JUnit file stays XML."""
    server[1].bend, junit = (
        bent_server.to("/v1/rank", bent_server.reply(b"\x1b[2J\x00[red]x", 500)),
        tmp_path / "x.xml",
    )
    words = ["check", server[0], "--key", KEY, "--only", "ranks_json", "--junit", str(junit)]
    outcome = CliRunner().invoke(rewards_cli, words)
    assert outcome.exit_code == 1
    assert "\x1b[2J" not in outcome.output
    assert "[red]x" in outcome.output
    assert len(ElementTree.parse(junit).getroot().findall("testcase/failure")) == 1


def test_the_command_exits_with_1_and_writes_junit(tmp_path: Path) -> None:
    """Nobody listens: the table names each check, the exit code is 1, the JUnit file counts the failures."""
    junit = tmp_path / "check.xml"
    outcome = CliRunner().invoke(rewards_cli, ["check", "http://127.0.0.1:9", "--junit", str(junit), "--timeout", "2"])
    assert outcome.exit_code == 1
    assert "FAILED" in outcome.output
    suite = ElementTree.parse(junit).getroot()
    assert int(suite.attrib["tests"]) == len(CHECKS)
    assert int(suite.attrib["failures"]) == len(suite.findall("testcase/failure")) == conformance.MAX_UNREACHABLE


def test_what_cannot_be_run_is_told_in_a_sentence() -> None:
    """A check that does not exist is answered with those that do; a URL and metadata must be such."""
    with pytest.raises(InvalidInput, match="'rank_json'; the checks are alive, metrics, info"):
        conformance.run_checks("http://127.0.0.1:9", only=["rank_json"])
    with pytest.raises(InvalidInput, match=r"must be http\(s\)"):
        conformance.run_checks("127.0.0.1:9")
    for text, said in (("{", "is not JSON"), ("[1]", "must be a JSON object")):
        outcome = CliRunner().invoke(rewards_cli, ["check", "http://127.0.0.1:9", "--metadata", text])
        assert said in str(outcome.exception)


def test_every_check_states_its_fact_and_what_to_do() -> None:
    """Both come from the docstring. The first check looks whether anybody is there, the last whether still."""
    for one in CHECKS:
        assert re.match(r"\S.*[^.]$", one.fact), one.name
        assert re.match(r"\S.*\.$", one.remedy), one.name
    assert (CHECKS[0].name, CHECKS[-1].name) == ("alive", "still_alive")
