"""Clients that mean no good, and others beside them that do."""

import asyncio
import socket
import time

import httpx

from tests.support.gateway import Gateway, events_of, text_of, tokens_of
from tests.support.trajectories import read_all, wait_until

SLOW_CLIENTS = 1000
QUESTION = {"messages": [{"role": "user", "content": "Hi"}]}


async def open_slow_clients(gateway, number):
    """So many connections that send a byte of their header a second."""

    async def creep():
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.config.gateway.port)
        writer.write(b"POST /feedback HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n")
        await writer.drain()
        return writer

    return await asyncio.gather(*(creep() for _ in range(number)))


async def test_a_thousand_slow_clients_are_in_nobodys_way(gateway, engine):
    slow = await open_slow_clients(gateway, SLOW_CLIENTS)
    engine.answers.append(tokens_of("quick"))
    async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:
        for round_ in range(3):
            for writer in slow:
                writer.write(b"X" if round_ else b"\r\n{")
            answer = await client.post("/v1/chat/completions", json=QUESTION)
            assert answer.status_code == 200
    for writer in slow:
        writer.close()


def test_a_body_that_does_not_come_is_waited_for_only_so_long(gateway, monkeypatch):
    monkeypatch.setattr("pipelines.gateway.bodies._LONGEST_S", 0.5)
    with socket.create_connection(("127.0.0.1", gateway.config.gateway.port), timeout=60) as client:
        client.sendall(b"POST /feedback HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert client.recv(100).startswith(b"HTTP/1.1 408")


def test_a_reader_who_does_not_read_holds_up_nothing(make_config, engine):
    """Its answer is generated and written at the engine's speed; its place is free afterwards."""
    engine.answers.extend([tokens_of("a" * 60), tokens_of("fine")])
    with Gateway(make_config(max_in_flight=1)) as gateway:
        body = b'{"stream": true, "messages": [{"role": "user", "content": "Hi"}]}'
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            client.connect(("127.0.0.1", gateway.config.gateway.port))
            client.sendall(head + body)
            wait_until(lambda: read_all(gateway.config, gateway.config.topics.pending), 20)
            assert gateway.ask("Hi").status_code == 200


def test_no_header_can_be_written_from_outside(gateway):
    evil = "ann\r\nX-Evil: 1"
    answer = gateway.ask("Hi", user=evil, task=evil, metadata={evil: evil})
    assert answer.status_code == 200
    assert "x-evil" not in answer.headers
    raw = b"GET /feedback/x%0d%0aX-Evil:%201 HTTP/1.1\r\nHost: x\r\nCookie: asyncflow_person=a%0d%0aX-Evil: 1\r\n\r\n"
    with socket.create_connection(("127.0.0.1", gateway.config.gateway.port), timeout=60) as client:
        client.sendall(raw)
        head = client.recv(65536).split(b"\r\n\r\n")[0]
    assert head.startswith(b"HTTP/1.1 404")
    assert b"\r\nx-evil" not in head.lower()


def test_headers_without_end_are_cut_off(gateway):
    with socket.create_connection(("127.0.0.1", gateway.config.gateway.port), timeout=60) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: ")
        answer = b""
        try:
            for _ in range(300):
                client.sendall(b"a" * 1000)
            answer = client.recv(100)
        except OSError:
            return
    assert not answer or answer.startswith(b"HTTP/1.1 400")


def test_what_a_model_says_comes_as_data_and_never_as_markup(gateway, engine):
    said = "<script>alert(1)</script>"
    engine.answers.append(tokens_of(said))
    with gateway.stream("Hi") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-content-type-options"] == "nosniff"
        assert text_of(events_of(response)) == said


def test_every_answer_forbids_what_the_page_does_not_need(gateway):
    for path in ("/", "/v1/models", "/static/page.js", "/feedback/none", "/nothing"):
        headers = gateway.http.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"


def test_markup_in_names_is_escaped(make_config):
    evil = "<script>alert(1)</script>"
    with Gateway(make_config(title=evil)) as gateway:
        html = gateway.http.get("/").text
        assert evil not in html
        assert html.count("&lt;script&gt;alert(1)") == 2
        judged = {"rollout_id": f"{gateway.config.name}/0/7/1", "kind": "correction", "value": evil, "user": evil}
        told = gateway.http.post("/feedback", json={**judged, "feedback_id": evil}, headers={"HX-Request": "true"})
        assert told.status_code == 202
        assert "<script" not in told.text
        refused = gateway.http.post("/feedback", json={**judged, "rollout_id": evil})
        assert refused.headers["content-type"] == "application/json"


async def test_a_flood_of_one_user_takes_nobodys_place(make_config, engine):
    """How long others wait meanwhile is measured by tests/benchmarks/gateway.py."""
    config = make_config(feedback={"user_rate_per_s": 1.0, "user_burst": 10})
    judged = {"rollout_id": f"{config.name}/0/7/1", "kind": "thumb", "value": 1}
    with Gateway(config) as gateway:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:
            started = time.monotonic()
            flooding = [client.post("/feedback", json={**judged, "user": "mallory"}) for _ in range(300)]
            judging = [client.post("/feedback", json={**judged, "user": f"user {number}"}) for number in range(20)]
            asking = [client.post("/v1/chat/completions", json=QUESTION) for _ in range(20)]
            answers = await asyncio.gather(*flooding, *judging, *asking)
            passed_s = time.monotonic() - started
    statuses = [answer.status_code for answer in answers]
    assert statuses[300:] == [202] * 20 + [200] * 20
    assert set(statuses[:300]) == {202, 429}
    assert 10 <= statuses[:300].count(202) <= 10 + passed_s + 1
    assert len(read_all(config, config.topics.feedback)) == 20 + statuses[:300].count(202)
