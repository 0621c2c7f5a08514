"""torch on the same GPU: its attention backends, a matrix product, and its answer to ours.

Reads jobs as JSON from standard input and prints a line of JSON for each figure as it is measured.
Caches are torch's own, contiguous, heads first; calls rotate over copies beyond the cache, captured
into a graph, as ours are.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

BACKENDS = {"flash": "FLASH_ATTENTION", "cudnn": "CUDNN_ATTENTION"}
REPLAYS = 25
DROPPED = 5
GRAPH_SECONDS = 2e-3
MATRIX = 8192
# A 16-bit weight and a 16-bit output, each rounded once, in the Euclidean norm.
TOLERANCE = 0.02


def say(**row: Any) -> None:
    """Print a result at once: the time may be up at any moment."""
    print(json.dumps(row), flush=True)


def main(bundle: Path) -> int:
    """Answer all jobs; returns 1 where torch cannot be used."""
    sys.path.insert(0, str(bundle / "site"))
    try:
        torch: Any = import_module("torch")
    except ImportError as error:
        print(f"torch: {error}", file=sys.stderr)
        return 1
    if not torch.cuda.is_available():
        print("torch sees no GPU", file=sys.stderr)
        return 1
    request = json.load(sys.stdin)
    say(name="bf16 matmul", backend="matmul", tflops=matrix_rate(torch))
    for job in request["jobs"]:
        for row in attention(torch, job, request["footprint"]):
            say(name=job["name"], **row)
        torch.cuda.empty_cache()
    return 0


def timed(torch: Any, calls: list[Callable[[], Any]]) -> float:
    """Return the median seconds of one of the calls, all of them in a graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(REPLAYS + 1)]
    with torch.cuda.stream(stream):
        marks[0].record()
        for mark in marks[1:]:
            graph.replay()
            mark.record()
    stream.synchronize()
    times = sorted(a.elapsed_time(b) for a, b in pairwise(marks[DROPPED:]))
    return float(1e-3 * times[len(times) // 2] / len(calls))


def matrix_rate(torch: Any) -> float:
    """Return 1e12 operations a second of a large bfloat16 product of random values."""
    a, b = (torch.randn(MATRIX, MATRIX, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return float(2e-12 * MATRIX**3 / timed(torch, [lambda: a @ b] * 3))


def attention(torch: Any, job: Mapping[str, Any], footprint: int) -> Iterator[dict[str, Any]]:
    """Yield torch's figures for one problem, and how far ours is from its answer."""
    from wattune.ops import problem_from_json

    problem: Any = problem_from_json(job["problem"])
    if problem.window or problem.sinks or problem.soft_cap:
        yield {"backend": "torch", "reason": "has no windows, sinks or soft caps"}
        return
    shape = (problem.batch, problem.kv_heads, problem.context)
    one = 2 * problem.batch * problem.kv_heads * problem.context
    copies = max(1, footprint // (one * (problem.head_dim + problem.value_dim)))
    kind = getattr(torch, problem.dtype)
    options: dict[str, Any] = {"device": "cuda", "dtype": kind}
    caches = [
        (
            torch.randn(*shape, problem.head_dim, **options),
            torch.randn(*shape, problem.value_dim, **options),
        )
        for _ in range(copies)
    ]
    q = torch.randn(
        problem.batch, problem.query_tokens, problem.query_heads, problem.head_dim, **options
    )
    answers = {}
    for name, backend in BACKENDS.items():
        for folded in (False, True):
            label = f"{name}, folded" if folded else name
            try:
                run = sdpa(torch, problem, q, backend, folded)
                answers[label] = run(*caches[0])
                turns: list[Callable[[], Any]] = [partial(run, *kv) for kv in caches]
                first = timed(torch, turns)
                more = max(1, round(GRAPH_SECONDS / (first * copies)))
                yield {"backend": label, "seconds": timed(torch, turns * more)}
            except RuntimeError as refusal:
                reason = (str(refusal).strip().splitlines() or ["refused"])[0][:200]
                yield {"backend": label, "reason": reason}
    if job["library"] and answers and problem.query_tokens == 1:
        found = ours(torch, problem, job, q, *caches[0])
        wanted = next(iter(answers.values())).float()
        error = float((found.float() - wanted).norm() / wanted.norm())
        yield {"backend": "ours at full size", "error": error, "right": error <= TOLERANCE}


def sdpa(torch: Any, problem: Any, q: Any, backend: str, folded: bool) -> Callable[[Any, Any], Any]:
    """Return torch's attention by one backend; folded: the heads of a group as query tokens.

    Query tokens all see all keys: torch's causal mask begins at the first key. Answers are
    [batch, tokens, heads, dim].
    """
    kernels = import_module("torch.nn.attention")
    allowed = getattr(kernels.SDPBackend, backend)
    function = torch.nn.functional.scaled_dot_product_attention
    queries = q.transpose(1, 2)
    if folded:
        queries = queries.reshape(problem.batch, problem.kv_heads, -1, problem.head_dim)

    def run(k: Any, v: Any) -> Any:
        with kernels.sdpa_kernel(allowed):
            out = function(queries, k, v, scale=problem.scale, enable_gqa=not folded)
        shape = (problem.batch, problem.query_heads, problem.query_tokens, problem.value_dim)
        return out.reshape(shape).transpose(1, 2)

    return run


def ours(torch: Any, problem: Any, job: Mapping[str, Any], q: Any, k: Any, v: Any) -> Any:
    """Return the output of our kernel for torch's tensors, at full size."""
    from wattune.compiler.measure.ffi import Call, Library, stream_of_calls
    from wattune.ops import operator

    out = torch.full_like(q[..., : problem.value_dim], float("nan"))
    tensors = {
        "q": q,
        "k_cache": k,
        "v_cache": v,
        "seq_lens": torch.full((problem.batch,), problem.context, device="cuda", dtype=torch.int32),
        "workspace": torch.empty(
            max(1, job["sizes"].get("workspace_bytes", 1)), device="cuda", dtype=torch.uint8
        ),
        "out": out,
    }
    arguments = operator(problem.operator).arguments(problem)
    sizes = {**problem.extents, **job["sizes"]}
    described = [(tensors[a.name].data_ptr(), a.dtype, a.concrete(sizes)) for a in arguments]
    library = Library(job["library"])
    with stream_of_calls(0, torch.cuda.current_stream().cuda_stream):
        library.call("kernel", Call(described))
    torch.cuda.synchronize()
    return out


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
