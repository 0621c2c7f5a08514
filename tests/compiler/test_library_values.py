"""Libraries: kernels chosen by several sizes, checks of values, variants, states, on a toy."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.compiler.toy_gather import (
    GATHER,
    PROBLEMS,
    Gather,
    expected,
    exported_gather,
    inputs,
)

from wattune.compiler.library.loader import Kernels, load
from wattune.compiler.library.manifest import CHECKS, Manifest
from wattune.compiler.measure.ffi import Call
from wattune.errors import ArgumentError, UnknownNameError

Arrays = dict[str, NDArray[Any]]
# Those of one variant, an incomplete grid.
BUCKETS = tuple(tuple(problem.sizes.values()) for problem in PROBLEMS[:4])


@pytest.fixture(scope="module")
def path() -> Path:
    return exported_gather()


@pytest.fixture
def kernels(path: Path) -> Kernels:
    return load(path)


@pytest.mark.parametrize(
    ("sizes", "served"),
    [
        ((1, 8, 4), [(1, 8, 4)]),
        ((2, 8, 4), [(4, 8, 4)] * 2),
        ((1, 9, 4), [(4, 64, 4)]),
        ((1, 9, 5), [(4, 64, 16)]),
        # Beyond the last bucket: the largest of what is open-ended; rows are cut.
        ((1, 65, 4), [(4, 64, 4)]),
        ((1, 8, 17), [(4, 64, 16)]),
        ((3, 100, 40), [(4, 64, 16)] * 3),
        ((6, 8, 4), [(4, 8, 4)] * 6),
        ((5, 8, 4), [(4, 8, 4)] * 4 + [(1, 8, 4)]),
    ],
)
def test_kernel_of_several_sizes(kernels: Kernels, sizes: Any, served: Any) -> None:
    rows, length, picks = sizes
    given = inputs(rows, max(length, picks), picks, length=length)
    y, bucket = kernels.gather(**given, factor=1.0, biased=False)
    assert [tuple(row) for row in bucket.tolist()] == served
    np.testing.assert_allclose(y, expected(given), rtol=1e-5)
    assert given["log"][0] == -(-rows // 4)


def test_greatest_length_chooses(kernels: Kernels) -> None:
    given = inputs(4, 40)
    for length, end in ((8, 8), (9, 64), (0, 8)):
        given["lengths"][:] = (0, length, 1, 0)
        y, bucket = kernels.gather(**given, factor=1.0)
        assert (bucket[:, 1] == end).all()
        np.testing.assert_allclose(y, expected(given), rtol=1e-5)


@pytest.mark.parametrize(("rows", "capacity", "picks"), [(2, 0, 0), (2, 5, 0), (2, 0, 3)])
def test_sizes_of_zero(kernels: Kernels, rows: int, capacity: int, picks: int) -> None:
    given = inputs(rows, capacity, picks)
    given["picks"][:] = -1
    y, bucket = kernels.gather(**given, factor=1.0)
    assert (y == 0).all() and (bucket[:, 1] == 8).all() and given["log"][0] == 1


def test_no_rows(kernels: Kernels) -> None:
    given = inputs(0)
    y, bucket = kernels.gather(**given, factor=1.0)
    assert y.shape == (0, 2) and bucket.shape == (0, 3) and given["log"][0] == 0


def changed(name: str, index: Any, value: Any) -> Callable[[Arrays], None]:
    def change(given: Arrays) -> None:
        given[name][index] = value

    return change


def replaced(name: str, make: Callable[[NDArray[Any]], Any]) -> Callable[[Arrays], None]:
    def change(given: Arrays) -> None:
        given[name] = make(given[name])

    return change


def misaligned(array: NDArray[Any]) -> NDArray[Any]:
    memory = np.zeros(array.nbytes + 1, np.uint8)[1:]
    return memory.view(array.dtype).reshape(array.shape)


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array


BAD: dict[str, tuple[Callable[[Arrays], None], str]] = {
    "length": (
        changed("lengths", 1, 7),
        r"gather: lengths\[1\] is 7; allowed: 0 to 6 \(capacity is 6\)",
    ),
    "negative length": (changed("lengths", 0, -1), r"lengths\[0\] is -1; allowed: 0 to 6"),
    "no allowed pick": (
        lambda given: given.update(
            store=np.zeros((2, 0, 2), np.float32),
            lengths=np.zeros(2, np.int32),
            picks=np.array([[-1, -1], [-1, 0]], np.int32),
        ),
        r"picks\[1, 1\] is 0; allowed: -1 to -1 \(capacity is 0\)",
    ),
    "no allowed page": (
        replaced("log", lambda a: a[:0]),
        r"pages\[0, 0\] is 0; allowed: none \(slots is 0\)",
    ),
    "pick": (changed("picks", (1, 2), 6), r"picks\[1, 2\] is 6; allowed: -1 to 5"),
    "pick below": (changed("picks", (0, 0), -2), r"picks\[0, 0\] is -2; allowed: -1 to 5"),
    "least pick": (changed("picks", (0, 0), -(2**31)), r"picks\[0, 0\] is -2147483648;"),
    "greatest pick": (changed("picks", (0, 1), 2**31 - 1), r"picks\[0, 1\] is 2147483647;"),
    "duplicate": (
        changed("picks", 1, (4, -1, 4)),
        r"picks\[1, 2\] is 4, and so is \[1, 0\]; allowed: each value once",
    ),
    "page": (
        changed("pages", (1, 1), 6),
        r"pages\[1, 1\] is 6; allowed: 0 to 5 \(slots is 9\)",
    ),
    "rows that differ": (
        replaced("picks", lambda a: a[:1].copy()),
        r"picks has shape \[1, 3\].*expected \[rows, picks\] int32 with rows 2",
    ),
    "width": (
        replaced("store", lambda a: np.zeros((2, 6, 5), np.float32)),
        r"store has shape \[2, 6, 5\]; expected \[rows, capacity, 2\] float32 or .*3\] float32",
    ),
    "strided store": (
        replaced("store", lambda a: np.concatenate([a, a], 2)[:, :, :2]),
        r"store is not contiguous; .*\(a state is never copied\)",
    ),
    "misaligned store": (
        replaced("store", misaligned),
        r"store is at address .*; expected a multiple of 4 \(a state is never copied\)",
    ),
    "read-only store": (
        replaced("store", frozen),
        "store cannot be passed to a kernel: it is read-only",
    ),
    "read-only log": (replaced("log", frozen), "log cannot be passed to a kernel: it is read-only"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values_and_states(kernels: Kernels, name: str) -> None:
    change, message = BAD[name]
    given = inputs()
    change(given)
    with pytest.raises(ArgumentError, match=message):
        kernels.gather(**given, factor=1.0)


def test_values_that_do_not_count(kernels: Kernels) -> None:
    given = inputs(2, 8)
    given["lengths"][:] = (4, 0)
    given["pages"] = np.array([[0, 99], [-7, 99]], np.int32)
    given["picks"][1] = (-1, 5, -1)
    kernels.gather(**given, factor=1.0)
    given["lengths"][0] = 5
    with pytest.raises(ArgumentError, match=r"pages\[0, 1\] is 99"):
        kernels.gather(**given, factor=1.0)
    # Fewer pages than a length asks for: the next row's are not looked at.
    given["pages"] = np.array([[0], [99]], np.int32)
    kernels.gather(**given, factor=1.0)


def test_duplicates_of_many_lines(kernels: Kernels) -> None:
    """Bits of one line do not stay for the next, nor for the next call."""
    given = inputs(3, 5000, 700)
    given["picks"][:] = np.random.default_rng(0).permutation(5000)[:700]
    for row in (0, 2):
        kernels.gather(**given, factor=1.0)
        given["picks"][row, -1] = given["picks"][row, 0]
        with pytest.raises(ArgumentError, match=rf"\[{row}, 699\].* so is \[{row}, 0\]"):
            kernels.gather(**given, factor=1.0)
        given["picks"][row] = given["picks"][1]


def test_checks_that_are_skipped(path: Path) -> None:
    given = inputs()
    given["picks"][0] = (2, 2, 9)
    for skip in ((), ("ranges",), ("duplicates",)):
        with pytest.raises(ArgumentError, match="picks"):
            load(path, skip_checks=skip).gather(**given, factor=1.0)
    given["store"][0, 2] = 1.5
    y, _ = load(path, skip_checks=CHECKS).gather(**given, factor=1.0)
    assert y[0].tolist() == [3, 3]
    given["lengths"][0] = 7
    with pytest.raises(ArgumentError, match="lengths"):
        load(path, skip_checks=CHECKS).gather(**given, factor=1.0)
    with pytest.raises(UnknownNameError, match="check 'lengths'; allowed: duplicates, ranges"):
        load(path, skip_checks=["lengths"])
    with pytest.raises(ArgumentError, match="picks"):
        load(path).gather(**{**given, "lengths": inputs()["lengths"]}, factor=1.0)


def test_fields_choose_the_variant(kernels: Kernels) -> None:
    given = inputs()
    message = r"2 variants .* say which by name: factor=1 or factor=0\.125"
    with pytest.raises(ArgumentError, match=message):
        kernels.gather(**given)
    for factor in (0.125, 1.0, 0.125):
        y, _ = kernels.gather(**given, factor=factor)
        np.testing.assert_allclose(y, expected(given, factor), rtol=1e-5)
    with pytest.raises(ArgumentError, match=r"factor is 2; expected factor=1 or factor=0\.125"):
        kernels.gather(**given, factor=2)
    with pytest.raises(ArgumentError, match="no field factors; allowed: biased, factor, pages"):
        kernels.gather(**given, factors=1.0)
    with pytest.raises(ArgumentError, match="factor is a float32; allowed: a number"):
        kernels.gather(**given, factor=np.float32(1))
    with pytest.raises(ArgumentError, match="list given"):
        kernels.gather(**given, factor=[1.0])


def test_shapes_choose_the_variant(kernels: Kernels) -> None:
    for width, rows in ((3, 1), (2, 2), (3, 2), (2, 1)):
        given = inputs(rows, width=width)
        y, _ = kernels.gather(**given, factor=1.0)
        np.testing.assert_allclose(y, expected(given), rtol=1e-5)


def test_optional_tensors(kernels: Kernels) -> None:
    given = inputs()
    bias = np.array([10, 20], np.float32)
    y, _ = kernels.gather(*given.values(), bias)
    np.testing.assert_allclose(y, expected(given) + bias, rtol=1e-5)
    pages = given.pop("pages")
    y = kernels.gather(*given.values())
    np.testing.assert_allclose(y, expected(given), rtol=1e-5)
    assert np.array_equal(kernels.gather(*given.values(), None, bias=None), y)
    with pytest.raises(ArgumentError, match=r"pages is missing|bias is given"):
        kernels.gather(**given, bias=bias)
    y, _ = kernels.gather(**given, pages=pages, factor=1.0, biased=False)
    np.testing.assert_allclose(y, expected(given), rtol=1e-5)


def test_outputs_and_overlap(kernels: Kernels) -> None:
    given = inputs()
    y, served = np.empty((2, 2), np.float32), np.empty((2, 3), np.int32)
    out = (y, served)
    assert kernels.gather(**given, factor=1.0, out=out) is out
    np.testing.assert_allclose(y, expected(given), rtol=1e-5)
    with pytest.raises(ArgumentError, match=r"out is ndarray; expected \(y, served\)"):
        kernels.gather(**given, factor=1.0, out=y)
    # What is only read may overlap, what is written may not.
    memory = np.zeros(9, np.int32)
    given["lengths"] = memory[3:5]
    given["pages"] = memory[2:6].reshape(2, 2)
    kernels.gather(**given, factor=1.0)
    with pytest.raises(ArgumentError, match="log overlaps lengths"):
        kernels.gather(**{**given, "log": memory}, factor=1.0)
    with pytest.raises(ArgumentError, match="y overlaps store"):
        kernels.gather(**given, factor=1.0, out=(given["store"][0, :2], served))


def test_covers(kernels: Kernels) -> None:
    entry = kernels.gather
    assert entry.covers(rows=100, length=10**6, picks=10**6, factor=0.125)
    assert not entry.covers(factor=0.5) and not entry.covers(factor=0.125, biased=True)
    assert BUCKETS in entry.buckets.values()


def test_manifest_round_trip(path: Path) -> None:
    text = path.with_suffix(".json").read_text()
    manifest = Manifest.from_json(text, "here")
    assert manifest.to_json() == text
    (table,) = manifest.operators
    assert table.open_ended == ("length", "picks") and table.free == ("capacity", "pages", "slots")
    for variant in table.variants:
        fields = {**variant.problem, **variant.kernels[0].upper}
        assert variant.arguments == GATHER.arguments(Gather.from_json(fields))


def c_call(
    library: ctypes.CDLL, name: str, given: Arrays, y: Any, served: Any, empty: int = 0
) -> int:
    """Call an entry; ``empty`` is the address of tensors without elements."""
    arrays = [*given.values(), y, served]
    places = [(a.ctypes.data if a.size else empty, a.dtype.name, a.shape) for a in arrays]
    call = Call(places)
    slots = [ctypes.c_void_p(call.slot(i)) for i in range(len(arrays))]
    return int(getattr(library, f"wattune_{name}")(*slots[:5], None, *slots[5:]))


def test_entries_for_c(path: Path) -> None:
    library = ctypes.CDLL(str(path))
    library.wattune_last_error.restype = ctypes.c_char_p
    given, y, served = inputs(), np.zeros((2, 2), np.float32), np.zeros((2, 3), np.int32)
    one, eighth = "gather_default", "gather_factor0p125"
    assert c_call(library, "gather", given, y, served) == -1
    assert library.wattune_last_error().decode() == (
        "gather: several variants serve such tensors; call "
        f"wattune_{one} (factor=1) or wattune_{eighth} (factor=0.125)"
    )
    for name, factor in ((one, 1.0), (eighth, 0.125)):
        assert c_call(library, name, given, y, served) == 0
        np.testing.assert_allclose(y, expected(given, factor), rtol=1e-5)
    given["picks"][0] = 1
    assert c_call(library, one, given, y, served) == -1
    assert b"picks[0, 1] is 1, and so is [0, 0]" in library.wattune_last_error()
    assert library.wattune_skip_check(b"duplicates") == 0
    assert c_call(library, one, given, y, served) == 0
    assert library.wattune_skip_check(b"lengths") == -1
    assert library.wattune_last_error() == b"unknown check 'lengths'; allowed: ranges, duplicates"
    load(path)
    assert c_call(library, one, given, y, served) == -1


@pytest.mark.parametrize("address", [0, 3])
def test_nothing_at_a_bad_address(path: Path, address: int) -> None:
    """A tensor without elements may be anywhere."""
    library = ctypes.CDLL(str(path))
    given, y, served = inputs(2, 0, 0), np.ones((2, 2), np.float32), np.zeros((2, 3), np.int32)
    assert c_call(library, "gather_default", given, y, served, address) == 0
    assert (y == 0).all() and given["log"][0] == 1


def test_header(path: Path) -> None:
    header = path.with_suffix(".h").read_text()
    arguments = (
        "const DLTensor *store, DLTensor *log, const DLTensor *lengths, const DLTensor *picks, "
        "const DLTensor *pages, const DLTensor *bias, DLTensor *y, DLTensor *served"
    )
    assert f"int wattune_gather({arguments});" in header
    assert f"int wattune_gather_servedfalse_pagesfalse({arguments});" in header
    for line in (
        "store: float32 [rows, capacity, 2], state, only read, aligned to 4",
        "log: int32 [slots], state, updated, aligned to 4",
        "lengths: int32 [rows], input, 0 to capacity, the greatest is length, aligned to 4",
        "input, -1 to capacity - 1, none but negative ones twice in its row, aligned to 4",
        "input, 0 to ceil(slots * 2 / 3) - 1, the first ceil(lengths / 4) of each row, aligned",
        "rows x length x picks up to 1 x 8 x 4 or 4 x 8 x 4",
        "length and picks may be larger",
    ):
        assert line in header.replace("\n *  ", "")
