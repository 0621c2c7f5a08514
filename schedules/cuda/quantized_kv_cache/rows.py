"""Rows of keys or values that are to be packed: tokens of a head, a stride apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from wattune.ops.dtypes import itemsize
from wattune.schedules.cuda import ptx
from wattune.schedules.cuda.values import WORD, WORDS, store, widened

Expr = Any
Buffer = Any


@dataclass(frozen=True)
class Rows:
    """Rows of ``dtype`` as ``words``: token 0's from ``first`` on, the next ``stride`` further."""

    dtype: str
    words: Buffer
    first: Expr
    stride: Expr

    def load(self, token: Expr, channel: Expr, count: int) -> list[Expr]:
        """Return 2 or 4 channels of a token as fp32; ``channel`` is a multiple of as many."""
        size = itemsize(self.dtype)
        words = count * size // 4
        at = self.word(token) + T.cast(T.shift_right(channel * size, T.int32(2)), "int64")
        found = ptx.registers(words, "uint32")
        if words == 1:
            ptx.put(found, 0, self.words[at])
        else:
            ptx.load_wide(found, 0, self.words, at, words)
        return [T.bind(v) for i in range(words) for v in widened(found[i], self.dtype)]

    def word(self, token: Expr) -> Expr:
        """Return where a token's row begins."""
        return self.first + T.cast(token, "int64") * self.stride


def copy_rows(
    source: Rows, target: Rows, begin: Expr, end: Expr, width: int, thread: Expr, threads: int
) -> None:
    """Emit copies of the rows of tokens begin to end, ``width`` words each; 16 bytes a thread."""
    pieces = width // WORDS
    total = T.max(end - begin, 0) * pieces
    with T.serial(T.bind(T.truncdiv(total + (threads - 1), threads))) as i:
        piece = T.bind(i * threads + thread)
        token = T.bind(begin + T.truncdiv(piece, pieces))
        with T.If(token < end), T.Then():
            within = T.bind(T.cast(T.truncmod(piece, pieces) * WORDS, "int64"))
            words = ptx.registers(WORDS, "uint32")
            ptx.load_wide(words, 0, source.words, source.word(token) + within, WORDS)
            store(target.words, target.word(token) + within, words, 0, WORDS)


def row_words(width: int, dtype: str) -> int:
    """Return the words of a row."""
    return width * itemsize(dtype) // WORD
