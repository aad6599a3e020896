"""Random damage to bytes and to JSON. Equal seeds do equal damage."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

BYTES = (0x00, 0x01, 0x20, 0x7F, 0x80, 0xFE, 0xFF)
INTEGERS = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0x7FFF_FFFF_FFFF_FFFF)
NUMBERS = (-1, 0, 1, 2, 3, 255, 65536, 2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, 10**40, 0.5, -0.0, 1e-320, 1e308)
TEXTS = ("", " ", "x", "é", "\0", "\ud800", "../x", "/etc/passwd", "{0}", "{", "%s", "[bold]", "<|image|>", "x" * 5000)
VALUES = (None, True, False, *NUMBERS, float("nan"), float("inf"), *TEXTS, [], {}, [None], [[]], {"": {}}, [0] * 1000)


def damage(rng: random.Random, data: bytes) -> bytes:
    """1 to 4 random changes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        start = rng.randrange(len(changed) + 1)
        end = min(len(changed), start + rng.choice((1, 2, 4, 8, 64, 1024)))
        kind = rng.randrange(7)
        if kind == 0 and start < len(changed):
            changed[start] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[start : start + 1] = bytes([rng.choice(BYTES)])
        elif kind == 2:
            size = rng.choice((1, 2, 4, 8))
            value = rng.choice(INTEGERS) % (1 << 8 * size)
            changed[start : start + size] = value.to_bytes(size, rng.choice(("little", "big")))
        elif kind == 3:
            del changed[start:end]
        elif kind == 4:
            changed[start:start] = changed[start:end] * rng.choice((1, 2, 30))
        elif kind == 5:
            changed[start:end] = rng.randbytes(end - start)
        elif rng.random() < 0.3:
            del changed[start:]
    return bytes(changed)


def damage_json(rng: random.Random, data: bytes) -> bytes:
    """JSON with 1 to 3 random values, keys or entries changed; or, seldom, with random bytes changed."""
    if rng.random() < 0.05:
        return damage(rng, data)
    if rng.random() < 0.01:
        return rng.choice((b"", b"null", b"[]", b"{}", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 10_000))
    root = [json.loads(data)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _change(rng, *_node(rng, root))
    return json.dumps(root[0], ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass")


def _node(rng: random.Random, root: list[Any]) -> tuple[Any, Any]:
    """A container somewhere below `root`, and one of its keys."""
    container, key = root, 0
    while isinstance(container[key], (list, dict)) and container[key] and rng.random() < 0.95:
        container = container[key]
        key = rng.choice(list(container)) if isinstance(container, dict) else rng.randrange(len(container))
    return container, key


def _change(rng: random.Random, container: Any, key: Any) -> None:
    value, kind, other = container[key], rng.randrange(6), copy.deepcopy(rng.choice(VALUES))
    if kind == 0 and len(container) > 1:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[rng.choice((*TEXTS, key.upper(), f"{key}s"))] = copy.deepcopy(value)
    elif kind == 1:
        container.insert(key, other if rng.random() < 0.8 else copy.deepcopy(value))
    elif kind == 2 and isinstance(value, (int, float)):
        container[key] = rng.choice((value + 1, value - 1, -value, value * 2, value * 1000, float(value), str(value)))
    elif kind == 3 and isinstance(value, str):
        start = rng.randrange(len(value) + 1)
        container[key] = value[:start] + rng.choice(TEXTS) + value[start + rng.randrange(3) :]
    elif kind == 4 and isinstance(value, (list, dict)):
        container[key] = [*value, *copy.deepcopy(value)] if isinstance(value, list) else [value]
    else:
        container[key] = other
