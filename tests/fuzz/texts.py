"""Damaged JSON records, offset metadata, manifests and rollout ids."""

import base64
import json
import zlib
from functools import cache
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden" / "v1"

_TOKENS = (
    *("null", "true", "0", "-1", "1", "1.5", "1e400", "-0", "NaN", "Infinity", "-Infinity", "9" * 20, "9" * 5000),
    *('""', '"x"', '"\\ud800"', '"\\u0000"', '"x\\n"', '"' + "y" * 3000 + '"', "[]", "{}", "[[0,1]]", '{"a": NaN}'),
    *("[" * 150 + "]" * 150, "[" * 900 + "]" * 900, "[" * 50_000, '{"a":' * 300 + "1" + "}" * 300),
    *('"0001-01-01T00:00:00+14:00"', '"9999-12-31T23:59:59-14:00"', '"2026-01-31T12:00:00"', '"1e9"', "253402300800"),
    *('"demo/0/38/3"', '"demo/\\u0663/1/1"', '"demo/' + "9" * 5000 + '/1/1"', '"step"', '"start"'),
    *('"../x"', '"a/../b"', '"/etc/passwd"', '"a//b"', '".x"'),
)
"""What is put in the place of any value: the ends of every type, and what is no JSON at all."""

MANIFEST = {"files": [{"name": "model.safetensors", "size": 3, "sha256": "0" * 64}], "facts": {"version": 1}}


@cache
def document(name):
    return MANIFEST if name == "manifest" else json.loads((GOLDEN / f"{name}.json").read_text())


def _write(draw, node, chance):
    """JSON text of a document in which some nodes became something else; keys may be missing or double."""
    if draw.random() < chance:
        return draw.choice(_TOKENS)
    if isinstance(node, dict):
        items = [f"{json.dumps(key)}: {_write(draw, value, chance)}" for key, value in node.items()]
        items += [f'"{draw.choice(("new", "kind", "schema"))}": {draw.choice(_TOKENS)}'] * (draw.random() < chance)
        items += draw.sample(items, k=min(len(items), draw.random() < chance))
        return "{" + ", ".join(item for item in items if draw.random() > chance / 2) + "}"
    if isinstance(node, list):
        return "[" + ", ".join(_write(draw, value, chance) for value in node) + "]"
    return json.dumps(node)


def nodes(draw, name):
    """A document in which values became others."""
    return _write(draw, document(name), draw.choice((0.02, 0.1, 0.1, 0.3))).encode("utf-8", "surrogatepass")


def edited(draw, name):
    """The bytes of a document with bits flipped, cut, doubled or in another encoding."""
    value = bytearray(json.dumps(document(name)).encode())
    for _ in range(draw.choice((1, 2, 5))):
        at = draw.randrange(len(value) or 1)
        change = draw.randrange(5)
        if change == 0 and value:
            value[at] ^= 1 << draw.randrange(8)
        elif change == 1:
            del value[at:]
        elif change == 2:
            value[at:at] = draw.choice((b"\xff", b"\0", b"\xed\xa0\x80", b'"', b"{", b"\\", draw.randbytes(3)))
        elif change == 3:
            value += value[at : at + 40]
        elif draw.random() < 0.1:
            value = bytearray(value.decode(errors="replace").encode("utf-16"))
    return bytes(value)


def offsets(draw):
    """Metadata of a committed offset: a bitmap that was cut, flipped, made of anything, or a bomb."""
    kind = draw.randrange(5)
    bitmap = draw.choice((draw.randbytes(draw.randrange(40)), bytes(1000), b"\xff" * 2000, bytes(100_000) + b"\1"))
    text = base64.b64encode(zlib.compress(bitmap)).decode()
    if kind == 0:
        text = text[: draw.randrange(len(text) + 1)]
    elif kind == 1:
        damaged = bytearray(zlib.compress(bitmap))
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        text = base64.b64encode(damaged).decode()
    elif kind == 2:
        text = draw.choice(("", "é", "=", "null", "A" * 4096, "\ud800", text + "=", text + " ", text * 2))
    return draw.choice((0, 5, 2**62)), text
