"""From FlashInfer's tables of selected pages to lists of blocks.

FlashInfer's block-sparse decode takes ``block_tables`` int32 [kv_heads, batch, max_selected]: the
physical pages that each KV head keeps of each request, ascending in the request, packed at the
front; and ``seq_lens`` int32 [kv_heads, batch]: the tokens on them. Only a request's last page may
be partly filled, and only the last selected one. Ours takes logical blocks and the requests' whole
``page_table``, so kernels know positions: windows and causality hold for any selection.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wattune.errors import ArgumentError

Int32 = NDArray[np.int32]


def block_indices_of(
    block_tables: Any, selected_lens: Any, page_table: Any, seq_lens: Any, page_size: int
) -> Int32:
    """Return ``block_indices`` int32 [batch, kv_heads, max_selected] with ``block_size`` a page.

    ``block_tables`` [kv_heads, batch, max_selected] and ``selected_lens`` [kv_heads, batch] are
    FlashInfer's; ``page_table`` [batch, max_pages] and ``seq_lens`` [batch] describe the whole
    requests. Arrays or tensors on the CPU. Lists end in -1; what lies beyond the selected pages in
    ``block_tables`` is not read. Raises `ArgumentError` for a page that is not the request's, one
    that is selected twice, and a number of tokens that is not that on the pages.

    FlashInfer masks several query tokens by their place among the selected tokens, we by their
    position: the same where the pages that hold the query tokens are selected.
    """
    tables = _integers("block_tables", block_tables, 3)
    lens = _integers("selected_lens", selected_lens, 2)
    pages = _integers("page_table", page_table, 2)
    lengths = _integers("seq_lens", seq_lens, 1)
    heads, batch, most = tables.shape
    _expect("selected_lens", lens, (heads, batch))
    _expect("page_table", pages, (batch, pages.shape[1]))
    _expect("seq_lens", lengths, (batch,))
    if page_size < 1:
        raise ArgumentError(f"page_size is {page_size}; allowed: an integer >= 1")
    counts = -(-lens // page_size)
    _refuse(lens < 0, "selected_lens", lens, "numbers >= 0")
    _refuse(counts > most, "selected_lens", lens, f"at most {most} pages of {page_size} tokens")
    used = -(-lengths // page_size)
    _refuse(used > pages.shape[1], "seq_lens", lengths, "no more than page_table has pages for")
    selected = np.arange(most) < counts[..., None]
    tables = np.where(selected, tables, -1)
    found = _positions(tables, pages, used)
    _check_pages(found, selected, tables)
    _check_lengths(found, counts, lens, lengths, page_size)
    return np.ascontiguousarray(found.transpose(1, 0, 2), np.int32)


def _integers(name: str, values: Any, dimensions: int) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.ndim != dimensions or array.dtype.kind not in "iu":
        raise ArgumentError(
            f"{name} is {array.dtype} with shape {list(array.shape)}; "
            f"allowed: integers with {dimensions} dimensions"
        )
    return array.astype(np.int64)


def _expect(name: str, array: NDArray[np.int64], shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ArgumentError(f"{name} has shape {list(array.shape)}; expected {list(shape)}")


def _refuse(wrong: NDArray[np.bool_], name: str, values: NDArray[np.int64], allowed: str) -> None:
    """Name the first value that is wrong."""
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        at = ", ".join(map(str, where))
        raise ArgumentError(f"{name}[{at}] is {values[where]}; allowed: {allowed}")


def _positions(
    tables: NDArray[np.int64], pages: NDArray[np.int64], used: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return which of its request's pages each entry is; -1 where it is none."""
    most = int(max(tables.max(initial=0), pages.max(initial=0))) + 1
    # A last column that no page is in: there is always something to find.
    pages = np.pad(pages, ((0, 0), (0, 1)), constant_values=-1)
    batch, columns = pages.shape
    mine = (np.arange(columns) < used[:, None]) & (pages >= 0)
    # Requests may share pages, so each has page numbers of its own.
    first = np.arange(batch)[:, None] * most
    keys = np.where(mine, pages + first, -1).ravel()
    order = np.argsort(keys, kind="stable")
    wanted = tables + first
    hit = order[np.minimum(np.searchsorted(keys[order], wanted), keys.size - 1)]
    return np.where((keys[hit] == wanted) & (tables >= 0), hit % columns, -1)


def _check_pages(
    found: NDArray[np.int64], selected: NDArray[np.bool_], tables: NDArray[np.int64]
) -> None:
    """Refuse pages of other requests and repeated ones."""
    _refuse(selected & (found < 0), "block_tables", tables, "pages of the request")
    ranked = np.sort(found, axis=-1)
    repeated = ((ranked[..., 1:] == ranked[..., :-1]) & (ranked[..., 1:] >= 0)).any(-1)
    if repeated.any():
        head, request = (int(i) for i in np.argwhere(repeated)[0])
        raise ArgumentError(f"block_tables[{head}, {request}] names a page twice")


def _check_lengths(
    found: NDArray[np.int64],
    counts: NDArray[np.int64],
    lens: NDArray[np.int64],
    lengths: NDArray[np.int64],
    page_size: int,
) -> None:
    """Refuse numbers of tokens other than those on the selected pages."""
    tokens = np.clip(lengths[None, :, None] - found * page_size, 0, page_size)
    held = np.where(found >= 0, tokens, 0).sum(-1)
    wrong = held != lens
    if wrong.any():
        head, request = (int(i) for i in np.argwhere(wrong)[0])
        raise ArgumentError(
            f"selected_lens[{head}, {request}] is {lens[head, request]}; the request's selected "
            f"{counts[head, request]} pages hold {held[head, request]} tokens"
        )
