"""LeastBusyTransport: requests go to the least busy copy of an endpoint, over real sockets on loopback addresses."""

from __future__ import annotations

import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
import trustme

from dipole.client.load_balancing import LeastBusyTransport, NameServerUnavailable, resolve_host
from dipole.client.rank_client import RankClient

from .fake_clock import FakeClock


class Copy:
    """One copy: says at which address it was asked, after `gate` opens."""

    def __init__(self, address: str, port: int = 0, context: ssl.SSLContext | None = None) -> None:
        self.gate, self.entered, self.asked, self.hosts = threading.Event(), threading.Event(), 0, set[str]()
        self.gate.set()
        self.address = address
        copy = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                copy.asked += 1
                copy.hosts.add(self.headers["Host"])
                copy.entered.set()
                copy.gate.wait(30)
                body = address.encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer((address, port), Handler)
        if context is not None:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.gate.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def start() -> Iterator[Callable[..., list[Copy]]]:
    """`start(n)`: n copies at 127.0.0.1, 127.0.0.2 … on one port."""
    made: list[Copy] = []

    def make(count: int, context: ssl.SSLContext | None = None) -> list[Copy]:
        made.append(Copy("127.0.0.1", context=context))
        made.extend(Copy(f"127.0.0.{n}", made[0].port, context) for n in range(2, count + 1))
        return made

    yield make
    for copy in made:
        copy.close()


def client(copies: int, **options: object) -> httpx.Client:
    """Asks `reward`, which stands for so many addresses."""
    found = [f"127.0.0.{n}" for n in range(1, copies + 1)]
    transport = LeastBusyTransport(httpx.HTTPTransport(**options), resolve=lambda _: found)  # type: ignore[arg-type]
    return httpx.Client(transport=transport, trust_env=False)


def test_idle_copies_take_turns(start: Callable[..., list[Copy]]) -> None:
    """One request after another reaches every copy equally often, with the name that was asked for as Host."""
    copies = start(3)
    with client(3) as http:
        answers = [http.get(f"http://reward:{copies[0].port}/").text for _ in range(9)]
    assert {answer: answers.count(answer) for answer in answers} == {f"127.0.0.{n}": 3 for n in (1, 2, 3)}
    assert copies[2].hosts == {f"reward:{copies[0].port}"}


def test_a_busy_copy_is_not_asked_while_another_is_free(start: Callable[..., list[Copy]]) -> None:
    """While one copy works, all other requests go to the other; when it is done it is asked again."""
    copies = start(2)
    for copy in copies:
        copy.gate.clear()
    url = f"http://reward:{copies[0].port}/"
    with client(2) as http:
        waiting = threading.Thread(target=http.get, args=(url,), kwargs={"timeout": 30})
        waiting.start()
        while not any(copy.entered.wait(0.05) for copy in copies):  # which one it is asked of is a matter of chance
            assert waiting.is_alive()
        slow, quick = sorted(copies, key=lambda copy: not copy.entered.is_set())
        quick.gate.set()
        assert [http.get(url).text for _ in range(5)] == [quick.address] * 5
        slow.gate.set()
        waiting.join(10)
        assert slow.address in [http.get(url).text for _ in range(6)]
    assert quick.asked >= 5


def test_a_dead_copy_costs_nothing(start: Callable[..., list[Copy]]) -> None:
    """What was meant for an address where nobody listens is answered by another; with none left it is an error."""
    copies = start(2)
    url = f"http://reward:{copies[0].port}/"
    with client(3) as http:  # nobody is at 127.0.0.3
        assert {http.get(url).text for _ in range(6)} == {"127.0.0.1", "127.0.0.2"}
    for copy in copies:
        copy.close()
    with client(3) as http, pytest.raises(httpx.ConnectError):
        http.get(url)


def test_the_certificate_is_of_the_name(start: Callable[..., list[Copy]]) -> None:
    """TLS to an address verifies the certificate of the name that was asked for, and of no other."""
    authority, server = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("reward.example").configure_cert(server)
    copies = start(2, server)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with client(2, verify=trusting) as http:
        assert http.get(f"https://reward.example:{copies[0].port}/").status_code == 200
        with pytest.raises(httpx.ConnectError):
            http.get(f"https://another.example:{copies[0].port}/")


def test_several_clients_begin_with_different_copies() -> None:
    """As rank workers do, which know nothing of each other: all would queue at the first copy while others idle."""
    asked = Counter[str]()

    class Answers(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            asked[request.url.host] += 1
            return httpx.Response(200)

    copies = [f"127.0.0.{n}" for n in range(1, 5)]
    for _ in range(64):
        with httpx.Client(transport=LeastBusyTransport(Answers(), resolve=lambda _: copies)) as http:
            http.get("http://reward/")
    assert asked.keys() == set(copies)  # of 64 clients none misses one but once in twenty million runs


def test_the_ranking_client_uses_them() -> None:
    """A RankClient spreads by itself, and literal addresses stand for themselves."""
    with RankClient("http://127.0.0.1:1") as ranks:
        assert isinstance(ranks._connection.http._transport, LeastBusyTransport)
    assert resolve_host("127.0.0.1") == ["127.0.0.1"]
    assert resolve_host("::1") == ["::1"]


def test_copies_that_do_not_answer_share_one_deadline(clock: FakeClock) -> None:
    """A name of four addresses that swallow what is sent: the request ends when its time is over, not four times so."""
    tried: list[float] = []

    class Swallows(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            tried.append(request.extensions["timeout"]["connect"])
            clock.sleep(tried[-1])
            raise httpx.ConnectTimeout("nobody")

    transport = LeastBusyTransport(Swallows(), resolve=lambda _: [f"127.0.0.{n}" for n in (1, 2, 3, 4)])
    began = clock.now
    with httpx.Client(transport=transport) as http, pytest.raises(httpx.ConnectTimeout):
        http.get("http://reward/", timeout=httpx.Timeout(0.5, connect=0.3))
    assert clock.now - began == pytest.approx(0.5)
    assert tried == pytest.approx([0.3, 0.2])


def test_name_servers_that_are_away_cost_nothing(start: Callable[..., list[Copy]]) -> None:
    """While they are, what a name stood for is asked on; a name that is gone is an error."""
    copies, says = start(1), [NameServerUnavailable("try again"), httpx.ConnectError("no such name")]
    found: list[Exception] = []

    def resolve(_: str) -> list[str]:
        if found:
            raise found[0]
        return ["127.0.0.1"]

    url, transport = (
        f"http://reward:{copies[0].port}/",
        LeastBusyTransport(httpx.HTTPTransport(), resolve=resolve, resolve_interval_s=0),
    )
    with httpx.Client(transport=transport, trust_env=False) as http:
        assert http.get(url).text == "127.0.0.1"
        found.append(says[0])
        assert http.get(url).text == "127.0.0.1"
        found[0] = says[1]
        with pytest.raises(httpx.ConnectError, match="no such name"):
            http.get(url)
