"""Float32 scores as uint32 keys that order like them: of equal scores equal keys, NaN as -inf."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.plain import Buffer, Expr

KeyOf = Callable[[Expr], Expr]

SIGN = 0x80000000
INFINITY = 0x7F800000
# The greatest key there is, and those of the infinities; no score has key 0.
NO_KEY_ABOVE = 0xFFFFFFFF
KEY_OF_INFINITY = INFINITY | SIGN
KEY_OF_MINUS_INFINITY = 0x007FFFFF


def key_of(score: Expr) -> Expr:
    """Return the key of a float32."""
    bits = T.bind(T.reinterpret("uint32", score))
    magnitude = T.bind(T.bitwise_and(bits, T.uint32(SIGN - 1)))
    positive = T.Or(bits < T.uint32(SIGN), magnitude == T.uint32(0))
    key = T.Select(positive, T.bitwise_or(magnitude, T.uint32(SIGN)), T.bitwise_not(bits))
    return T.bind(T.Select(magnitude > T.uint32(INFINITY), T.uint32(KEY_OF_MINUS_INFINITY), key))


def score_of(key: Expr) -> Expr:
    """Return the float32 of a key; that of NaN is -inf."""
    positive = key >= T.uint32(SIGN)
    bits = T.Select(positive, T.bitwise_xor(key, T.uint32(SIGN)), T.bitwise_not(key))
    return T.reinterpret("float32", bits)


def keys_of_row(scores: Buffer, row: Expr, shared: Buffer | None, kept: int) -> KeyOf:
    """Return what reads the key of a place in a row: from shared memory below ``kept``.

    ``row`` is where the row starts in ``scores``, an int64.
    """

    def find(place: Expr) -> Any:
        if shared is None:
            return key_of(scores[row + place])
        found = T.alloc_local((1,), "uint32")
        with T.If(place < kept):
            with T.Then():
                ptx.put(found, 0, shared[place])
            with T.Else():
                ptx.put(found, 0, key_of(scores[row + place]))
        return found[0]

    return find
