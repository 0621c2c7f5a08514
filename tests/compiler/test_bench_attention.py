"""Benchmarks of attention and selection: every peer against the reference, refusals, our rows."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from wattune.compiler.bench import run
from wattune.compiler.bench.case import Case, Setup, Unavailable
from wattune.compiler.bench.data import draw, work_of
from wattune.compiler.bench.implementations import companions, implementations
from wattune.compiler.bench.prepare import export_best, export_companions, with_companions
from wattune.compiler.bench.rows import Ceiling
from wattune.ops import (
    BlockScore,
    BlockSparseDecodeAttention,
    DecodeAttention,
    Problem,
    QuantizedDecodeAttention,
    SelectBlocks,
    TokenSparseDecodeAttention,
)
from wattune.schedules.target import Target

pytestmark = pytest.mark.usefixtures("torch_settings")

DENSE = DecodeAttention(2, 96, 8, 2, 64)
WINDOW = dataclasses.replace(DENSE, window=20)
BLOCKS = BlockSparseDecodeAttention(2, 96, 8, 2, 64, max_blocks=3, block_size=16)
TOKENS = TokenSparseDecodeAttention(2, 96, 8, 2, 64, max_tokens=21)
QUANTIZED = QuantizedDecodeAttention(1, 256, 8, 2, 64)
SELECT = SelectBlocks(2, 1024, 2, block_size=16, method="fraction", fraction=0.25, min_blocks=4)
needs_ggml = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="no llama-cpp-python")


def setup_of(problem: Problem, footprint: int = 0, ragged: bool = False) -> Setup:
    data = draw(problem, 0, ragged)
    moved = work_of(problem, 0, ragged).bytes
    return Setup(problem, data.inputs, data.expected, moved, 1, footprint)


def peer(name: str, setup: Setup) -> Case:
    return implementations(setup.problem.operator)[name](setup)


def check(case: Any, name: str = "expected") -> None:
    """See the case pass, with every copy; then see it fail against another reference."""
    assert case.error() <= case.tolerance
    for copy in range(case.copies):
        case.call(copy)
    holder = case.data if hasattr(case, "data") else case
    object.__setattr__(holder, name, getattr(holder, name) + 1)
    assert case.error() > case.tolerance


def many(problem: Any, **fields: Any) -> Problem:
    found: Problem = dataclasses.replace(problem, **fields)
    return found


DENSE_PEERS = ("torch_sdpa_gqa", "torch_sdpa_folded", "torch_matmul_softmax")


@pytest.mark.parametrize("name", DENSE_PEERS)
@pytest.mark.parametrize(
    "problem",
    [
        DENSE,
        many(WINDOW, query_tokens=3, layout="NHD"),
        many(DENSE, page_size=32, value_dim=32, dtype="float32"),
    ],
    ids=str,
)
def test_dense_peers(name: str, problem: Problem) -> None:
    check(peer(name, setup_of(problem, footprint=1 << 19)))


@pytest.mark.parametrize("name", DENSE_PEERS)
def test_dense_peers_of_ragged_requests(name: str) -> None:
    check(peer(name, setup_of(many(DENSE, batch=4), ragged=True)))


def test_sinks_and_caps_need_the_plain_products() -> None:
    setup = setup_of(many(DENSE, sinks=True, soft_cap=5.0, query_tokens=2))
    check(peer("torch_matmul_softmax", setup))
    for name in DENSE_PEERS[:2]:
        with pytest.raises(Unavailable, match="no sinks"):
            peer(name, setup)


@pytest.mark.parametrize(
    "problem",
    [BLOCKS, TOKENS, many(TOKENS, lists="head"), many(BLOCKS, layout="NHD")],
    ids=str,
)
def test_gathered_peers(problem: Problem) -> None:
    check(peer("torch_gather_sdpa", setup_of(problem, footprint=1 << 19)))


def test_gathering_needs_full_lists() -> None:
    with pytest.raises(Unavailable, match="full list"):
        peer("torch_gather_sdpa", setup_of(many(BLOCKS, max_blocks=9)))
    with pytest.raises(Unavailable, match="one query token"):
        peer("torch_gather_sdpa", setup_of(many(BLOCKS, query_tokens=2)))
    with pytest.raises(Unavailable, match="whole blocks"):
        peer("torch_gather_sdpa", setup_of(many(BLOCKS, context=90)))


def test_flex_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """With dense attention under its block mask: compiling takes ten seconds."""
    torch: Any = pytest.importorskip("torch")

    def attend(q: Any, k: Any, v: Any, block_mask: Any, **options: Any) -> Any:
        mask = block_mask.to_dense().bool().repeat_interleave(BLOCKS.block_size, -1)
        sdpa = torch.nn.functional.scaled_dot_product_attention
        return sdpa(q, k, v, attn_mask=mask, **options)

    monkeypatch.setattr(torch, "compile", lambda function, **options: attend)
    check(peer("torch_flex", setup_of(BLOCKS)))


@pytest.mark.parametrize("key_groups", ["channel", "token"])
@pytest.mark.parametrize("name", ["int8", "int2"])
def test_dequantised_peers(name: str, key_groups: str) -> None:
    problem = many(QUANTIZED, format=name, key_groups=key_groups, group_size=32)
    check(peer("torch_dequantize_sdpa", setup_of(problem, footprint=1 << 18)))
    with pytest.raises(Unavailable, match="whole blocks"):
        peer("torch_dequantize_sdpa", setup_of(many(problem, context=200)))


@needs_ggml
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("ggml_flash_f16", DENSE),
        ("ggml_flash_q8_0", DENSE),
        ("ggml_flash_f16", WINDOW),
        ("ggml_flash_f16", many(DENSE, layout="NHD", soft_cap=20.0)),
        ("ggml_flash_q8_0", many(QUANTIZED, format="int8")),
        ("ggml_flash_f16", QUANTIZED),
        ("ggml_flash_q8_0", many(QUANTIZED, format="int2")),
    ],
    ids=str,
)
def test_flash_attention_of_ggml(name: str, problem: Problem) -> None:
    case = peer(name, setup_of(problem, footprint=1 << 19))
    assert case.copies > 1
    check(case)


@needs_ggml
def test_quantised_blocks_of_ggml_do_not_overlap() -> None:
    with pytest.raises(Unavailable, match="cannot start anywhere"):
        peer("ggml_flash_q8_0", setup_of(WINDOW, footprint=1 << 20))
    with pytest.raises(Unavailable, match="one length"):
        peer("ggml_flash_f16", setup_of(DENSE, ragged=True))


def test_selection_peers() -> None:
    score = peer("torch_score", setup_of(BlockScore(2, 1024, 8, 2, 64), footprint=1 << 19))
    assert score.copies > 1
    check(score)
    topk = peer("torch_topk", setup_of(SELECT))
    assert topk.call(0).shape == (2, 2, 15), "a quarter, without the local block"  # type: ignore[attr-defined]
    check(topk)
    with pytest.raises(Unavailable, match="number of blocks"):
        peer("torch_topk", setup_of(SelectBlocks(2, 1024, 2, method="threshold")))


def test_our_dense_attention_is_beside_what_is_sparser() -> None:
    (name, dense), *others = companions(many(BLOCKS, window=40)).items()
    assert (name, dense) == ("wattune_dense", many(DENSE, window=40)) and not others
    assert not companions(DENSE)
    assert with_companions([BLOCKS, TOKENS]) == [BLOCKS, TOKENS, DENSE], "each once"


@pytest.mark.slow
def test_our_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours, a peer, and our dense attention, each in its process, on overlapping copies."""
    problem = many(BLOCKS, batch=1, context=192, return_lse=True)
    target = Target.native(1)
    monkeypatch.setattr(
        run, "implementations", lambda name: dict.fromkeys(["wattune", "torch_gather_sdpa"])
    )
    paths = export_best([problem], target, {problem: ()}, tmp_path)
    notes: list[str] = []
    records = dict.fromkeys(with_companions([problem]), ())
    export_companions([problem], target, records, tmp_path, paths, notes)
    settings = run.Settings(threads=1, rounds=1, seconds=0.01, footprint=1 << 20)
    rows = run.measure_problem(problem, paths, settings, lambda size: Ceiling(1, 1), notes)
    assert not notes
    assert [row.implementation for row in rows] == [
        "wattune",
        "torch_gather_sdpa",
        "wattune_dense",
    ]
    moved = work_of(problem, 0).bytes
    for row in rows:
        assert row.problem == problem.to_json()
        assert row.gbps * row.seconds["median"] == pytest.approx(moved / 1e9), "the same bytes"
        assert row.limit == pytest.approx(moved / 1e9), "no peak binds floats"
