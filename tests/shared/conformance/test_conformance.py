"""`dipole rewards check` finds what is wrong with an endpoint, and nothing wrong with a right one; over real HTTP."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import trustme
from typer.testing import CliRunner

from dipole import conformance
from dipole.cli.rewards import app as rewards_cli
from dipole.conformance.checks import CHECKS, CheckResult
from dipole.errors import InvalidInput

from . import bent_server, right_servers
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
    """Our own service passes every check and skips none: so does each wrong server without its fault."""
    results = check(server, bent_server.straight)
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


def test_an_endpoint_that_hangs_costs_a_few_timeouts(server: Server) -> None:
    """After three checks without any answer the rest is skipped."""

    async def hang(asked: bent_server.Asked, forward: bent_server.Forward) -> bent_server.Answer:
        await asyncio.sleep(1)
        return await forward(asked)

    found = [result.outcome for result in check(server, hang, timeout_s=0.2).values()]
    assert found.count("failed") == conformance.MAX_UNREACHABLE
    assert "passed" not in found


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
