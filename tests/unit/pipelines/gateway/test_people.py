"""Who asks, by cookie, word or proxy."""

import pytest
from fastapi import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from pipelines.gateway.people import COOKIE, HEADER, address_of, set_cookie, user_of
from schemas.gateway import GatewayConfig

SECRET = "0123456789abcdefghijkl"
TRUSTING = GatewayConfig(trusts_user_header=True)


def request(headers=None, host="127.0.0.1", scheme="http"):
    raw = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {"type": "http", "headers": raw, "client": (host, 1), "scheme": scheme, "path": "/", "server": ("x", 80)}
    return Request(scope)


def test_a_browser_is_a_digest_of_its_cookie():
    user = user_of(request({"Cookie": f"{COOKIE}={SECRET}"}), GatewayConfig())
    assert user.startswith("web-")
    assert SECRET not in user
    assert user == user_of(request({"Cookie": f"{COOKIE}={SECRET}"}), GatewayConfig())
    assert user != user_of(request({"Cookie": f"{COOKIE}={SECRET[::-1]}"}), GatewayConfig())


@pytest.mark.parametrize("cookie", ["", "short", "a" * 23, "ä" * 22, "a" * 21 + ";", "<script>aaaaaaaaaaaaaa"])
def test_a_cookie_that_is_none_of_ours_is_nobody(cookie):
    assert user_of(request({"Cookie": f"{COOKIE}={cookie}"}), GatewayConfig()) == "anonymous"


def test_a_program_is_who_it_says():
    assert user_of(request(), GatewayConfig(), "ann") == "ann"
    assert user_of(request(), GatewayConfig()) == "anonymous"


def test_nobody_can_claim_to_be_a_browser():
    own = user_of(request({"Cookie": f"{COOKIE}={SECRET}"}), GatewayConfig())
    with pytest.raises(HTTPException) as refused:
        user_of(request(), GatewayConfig(), own)
    assert refused.value.status_code == 403
    assert user_of(request({"Cookie": f"{COOKIE}={SECRET}"}), GatewayConfig(), own) == own


def test_the_proxys_word_counts_only_where_it_is_trusted():
    headers = {HEADER: "ann", "Cookie": f"{COOKIE}={SECRET}"}
    assert user_of(request(headers), TRUSTING) == "ann"
    assert user_of(request(headers), GatewayConfig()).startswith("web-")
    for given, claimed, status in (({}, None, 401), ({HEADER: "a" * 257}, None, 401), ({HEADER: "ann"}, "bob", 403)):
        with pytest.raises(HTTPException) as refused:
            user_of(request(given), TRUSTING, claimed)
        assert refused.value.status_code == status


def test_a_cookie_is_given_once_and_out_of_reach_of_scripts():
    response = Response()
    set_cookie(request(), response)
    cookie = response.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "secure" not in cookie
    secure = Response()
    set_cookie(request(scheme="https"), secure)
    assert "secure" in secure.headers["set-cookie"].lower()
    kept = Response()
    set_cookie(request({"Cookie": f"{COOKIE}={SECRET}"}), kept)
    assert "set-cookie" not in kept.headers


def test_an_ipv6_customer_is_one_address():
    assert address_of(request(host="2001:db8:1:2:3:4:5:6")) == address_of(request(host="2001:db8:1:2::1"))
    assert address_of(request(host="2001:db8:1:2::1")) != address_of(request(host="2001:db8:1:3::1"))
    assert address_of(request(host="::ffff:10.0.0.1")) == "10.0.0.1"
    assert address_of(request(host="10.0.0.1")) == "10.0.0.1"
