"""Libraries know arguments, not operators: a made-up one works as it is."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from tests.compiler.toy import BLEND, REFUSING, Blend

from wattune import ops
from wattune.compiler.library.choose import choose
from wattune.compiler.library.entry import Entry
from wattune.compiler.library.loader import load
from wattune.compiler.library.package import Library, build
from wattune.compiler.measure.ffi import Call
from wattune.errors import ArgumentError, LibraryError
from wattune.schedules.target import Target
from wattune.schedules.template import register_module

TARGET = Target.parse("cpu:generic")


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    register_module("cpu", "tests.compiler.toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ops._OPERATORS, "blend", BLEND)
        yield


@pytest.fixture(scope="module")
def blend(registered: None, tmp_path_factory: pytest.TempPathFactory) -> Entry:
    library = library_of([Blend(4, 16), Blend(2, 4)])
    return load(library.export(tmp_path_factory.mktemp("blend") / "kernels.so")).blend


def library_of(problems: Sequence[Blend]) -> Library:
    return build(choose(problems, TARGET, None, "latency", None), TARGET)


@pytest.mark.parametrize(
    ("rows", "context", "buckets"),
    [(1, 3, [2]), (2, 5, [4] * 2), (3, 1, [4] * 3), (9, 2, [4] * 8 + [2]), (9, 16, [4] * 9)],
)
def test_buckets_and_pieces(blend: Entry, rows: int, context: int, buckets: list[int]) -> None:
    x = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    table = np.arange(1, context + 1, dtype=np.float32)
    calls = np.zeros(1, np.int32)
    y, bucket = blend(x, table, calls)
    assert np.array_equal(y, x + table.sum())
    assert bucket.tolist() == buckets
    assert calls == -(-rows // 4)


def test_named_arguments_and_outputs(blend: Entry) -> None:
    x, table, calls = np.ones((2, 3), np.float32), np.ones(4, np.float32), np.zeros(1, np.int32)
    out = np.empty((2, 3), np.float32), np.empty(2, np.int32)
    blend(x, calls=calls, table=table, out=out)
    assert (out[0] == 5).all() and calls == 1


def test_size_beyond_all_buckets(blend: Entry) -> None:
    x, calls = np.ones((2, 3), np.float32), np.zeros(1, np.int32)
    with pytest.raises(ArgumentError, match="no kernel of this library serves context 17"):
        blend(x, np.ones(17, np.float32), calls)
    assert blend.covers(rows=1000, context=16) and not blend.covers(context=17)


def test_state_is_not_copied(blend: Entry) -> None:
    x, table = np.ones((2, 3), np.float32), np.ones(4, np.float32)
    calls = np.zeros(5, np.uint8)[1:].view(np.int32)
    with pytest.raises(ArgumentError, match="calls is at address"):
        blend(x, table, calls)
    calls = np.zeros(1, np.int32)
    y, _ = blend(np.ones((3, 2), np.float32).T, table, calls)
    assert calls == 1 and (y == 5).all()
    with pytest.raises(ArgumentError, match="calls is missing; expected"):
        blend(x, table)


def test_an_error_of_a_kernel(registered: None, tmp_path: Path) -> None:
    path = library_of([Blend(2, 4, columns=REFUSING)]).export(tmp_path / "kernels.so")
    x, table, calls = np.ones((2, REFUSING), np.float32), np.ones(4, np.float32), np.zeros(1, "i4")
    y, bucket = np.empty((2, REFUSING), np.float32), np.empty(2, np.int32)
    with pytest.raises(Exception, match=r"(?i)mismatch|expected") as caught:
        load(path).blend(x, table, calls, out=(y, bucket))
    arrays = (x, table, calls, y, bucket)
    call = Call([(a.ctypes.data, a.dtype.name, a.shape) for a in arrays])
    library = ctypes.CDLL(str(path))
    library.wattune_last_error.restype = ctypes.c_char_p
    assert library.wattune_blend(*(ctypes.c_void_p(call.slot(i)) for i in range(5))) == -1
    assert library.wattune_last_error().decode() == str(caught.value)
    assert library.wattune_blend(*[None] * 5) == -1
    assert library.wattune_last_error() == b"blend: x is missing; expected [rows, 13] float32"


def test_pieces_need_a_leading_dimension() -> None:
    with pytest.raises(LibraryError, match=r"x has shape \[3, 'rows'\].*leading dimension"):
        library_of([Blend(2, 4, transposed=True)])


def test_header(registered: None, tmp_path: Path) -> None:
    header = library_of([Blend(2, 4)]).export(tmp_path / "k.so").with_suffix(".h").read_text()
    assert (
        "int wattune_blend(const DLTensor *x, const DLTensor *table, DLTensor *calls, "
        "DLTensor *y, DLTensor *bucket);"
    ) in header
