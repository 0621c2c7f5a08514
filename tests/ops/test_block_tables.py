"""FlashInfer's selected pages as our blocks: attention over the compacted sequence is the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from wattune.errors import ArgumentError
from wattune.ops import BlockSparseDecodeAttention, DecodeAttention, operator
from wattune.ops.block_tables import block_indices_of

PAGE, HEADS, BATCH, MOST = 8, 2, 4, 5
LENGTHS = np.array([61, 8, 0, 27], np.int32)


def selected(rng: np.random.Generator) -> dict[str, Any]:
    """Draw page tables, and pages that each head keeps: none, some, all."""
    page_table = rng.permutation(BATCH * 8).astype(np.int32).reshape(BATCH, 8)
    tables = np.full((HEADS, BATCH, MOST), 999, np.int32)
    lens = np.zeros((HEADS, BATCH), np.int32)
    for head in range(HEADS):
        for request, length in enumerate(LENGTHS):
            pages = -(-int(length) // PAGE)
            kept = np.sort(rng.permutation(pages)[: rng.integers(0, MOST + 1)])
            tables[head, request, : len(kept)] = page_table[request, kept]
            lens[head, request] = np.minimum(length - kept * PAGE, PAGE).sum()
    return {
        "block_tables": tables,
        "selected_lens": lens,
        "page_table": page_table,
        "seq_lens": LENGTHS,
    }


@pytest.mark.parametrize("seed", range(4))
def test_attention_equals_that_over_the_compacted_sequence(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tables = selected(rng)
    problem = BlockSparseDecodeAttention(
        BATCH,
        64,
        4,
        HEADS,
        16,
        max_blocks=MOST,
        block_size=PAGE,
        page_size=PAGE,
        dtype="float32",
        return_lse=True,
    )
    op = operator(problem.operator)
    inputs = op.make_inputs(problem, rng)
    inputs.update(page_table=tables["page_table"], seq_lens=LENGTHS)
    inputs["block_indices"] = block_indices_of(**tables, page_size=PAGE)
    found = op.reference(problem, inputs)

    dense = operator("decode_attention")
    for head in range(HEADS):
        for request in range(BATCH):
            tokens = int(tables["selected_lens"][head, request])
            pages = tables["block_tables"][head, request, : -(-tokens // PAGE)]
            alone = DecodeAttention(1, max(tokens, 1), 2, 1, 16, dtype="float32", return_lse=True)
            rows = {"q": inputs["q"][request : request + 1, :, 2 * head : 2 * head + 2]}
            for name in ("k_cache", "v_cache"):
                compact = inputs[name][pages, head].reshape(1, 1, -1, 16)
                rows[name] = compact[:, :, :tokens]
            rows["seq_lens"] = np.array([tokens], np.int32)
            expected = dense.reference(alone, rows)
            for name in ("out", "lse"):
                got = found[name][request, :, 2 * head : 2 * head + 2]
                np.testing.assert_allclose(got, expected[name][0], rtol=1e-6, atol=1e-6)


def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    tables = selected(np.random.default_rng(1))
    tensors = {name: torch.from_numpy(array) for name, array in tables.items()}
    found = block_indices_of(**tensors, page_size=PAGE)
    np.testing.assert_array_equal(found, block_indices_of(**tables, page_size=PAGE))
    assert found.dtype == np.int32


def test_shared_pages() -> None:
    # Two requests share page 7, at different places.
    found = block_indices_of(
        np.array([[[7, 3], [7, 4]]]),
        np.array([[8, 8]]),
        np.array([[3, 7, 0], [9, 4, 7]]),
        np.array([8, 12]),
        4,
    )
    assert found.tolist() == [[[1, 0]], [[2, 1]]]


@pytest.mark.parametrize(
    ("name", "where", "value", "message"),
    [
        ("block_tables", (1, 0, 0), 31, r"block_tables\[1, 0, 0\] is 31; allowed: pages of"),
        ("block_tables", (1, 0, 1), 2, r"block_tables\[1, 0\] names a page twice"),
        ("selected_lens", (0, 1), -1, r"selected_lens\[0, 1\] is -1"),
        ("selected_lens", (0, 1), 17, r"selected_lens\[0, 1\] is 17; allowed: at most 2 pages"),
        ("selected_lens", (0, 1), 6, "the request's selected 2 pages hold 7 tokens"),
        ("seq_lens", (0,), 13, "no more than page_table has pages for"),
    ],
)
def test_wrong_values(name: str, where: tuple[int, ...], value: int, message: str) -> None:
    given = {
        "block_tables": np.array([[[2, 3], [4, 5]], [[2, 3], [4, 5]]]),
        "selected_lens": np.array([[8, 7], [8, 7]]),
        "page_table": np.array([[2, 3, 8], [4, 5, 9]]),
        "seq_lens": np.array([8, 7]),
    }
    assert block_indices_of(**given, page_size=4).tolist() == [[[0, 1], [0, 1]]] * 2
    given[name][where] = value
    with pytest.raises(ArgumentError, match=message):
        block_indices_of(**given, page_size=4)


def test_pages_beyond_a_request_are_not_its_own() -> None:
    tables, lens = np.array([[[8]]]), np.array([[4]])
    with pytest.raises(ArgumentError, match="pages of the request"):
        block_indices_of(tables, lens, np.array([[2, 3, 8]]), np.array([8]), 4)


def test_wrong_shapes() -> None:
    given = selected(np.random.default_rng(0))
    with pytest.raises(ArgumentError, match="expected"):
        block_indices_of(**{**given, "seq_lens": LENGTHS[:2]}, page_size=PAGE)
    with pytest.raises(ArgumentError, match="allowed: integers with 2 dimensions"):
        block_indices_of(**{**given, "page_table": LENGTHS}, page_size=PAGE)
    with pytest.raises(ArgumentError, match="allowed: integers"):
        block_indices_of(**{**given, "seq_lens": LENGTHS.astype(np.float32)}, page_size=PAGE)
    with pytest.raises(ArgumentError, match="page_size is 0"):
        block_indices_of(**given, page_size=0)
