"""Features: what a cost model sees of a candidate. Generic: no operator or template is known here.

Logarithms are to base 2 and sizes are taken as log2(1 + x), with the sign of x, so that a
doubling is one step everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

from wattune.cost_models.facts import fact_features
from wattune.cost_models.prior import Rates, Roofline, default_rates, imbalance, roofline, workers
from wattune.ops import Problem
from wattune.schedules.candidate import Candidate, canonical
from wattune.schedules.cuda.occupancy import WARP, blocks_per_sm, multiprocessor
from wattune.schedules.space import Space, Value
from wattune.schedules.target import Target
from wattune.schedules.template import BlockUse, Counts, template_of

# Every feature there is, by pattern: what it means, and its unit. Names with "=" are one column a
# value (1 where it holds, absent otherwise).
FEATURES: dict[str, str] = {
    "knob.*": "a knob as its space encodes it: log2(1 + value), or one column a value",
    "align.*": "the largest power of two in a knob's value, where that is not plain: log2",
    "template=*": "the template",
    "mode=*": "cold or hot",
    "problem.*": "a field of the problem: log2(1 + x) of a number, one column a value otherwise",
    "target.*": "threads, cores, cache sizes in bytes: log2(1 + x); kind and arch one column each",
    "bytes.*": "bytes moved at a memory level: log2(1 + x)",
    "operations.*": "instructions of a unit: log2(1 + x)",
    "tiles.*": "a tile count of the template: log2(1 + x)",
    "parallelism": "independent tasks: log2(1 + x)",
    "registers": "vector registers alive in the inner loop: log2(1 + x)",
    "code": "unrolled instructions of the inner loop: log2(1 + x)",
    "footprint/*": "bytes from memory over a cache's size (l1, l2: per worker): log2",
    "traffic/*": "bytes moved at a level over bytes from memory: log2",
    "intensity/*": "instructions of a unit over bytes from memory: log2",
    "tasks/worker": "parallelism over threads (CPU) or SMs (CUDA): log2",
    "imbalance": "the busiest worker's share over the mean one's: log2",
    "occupancy/blocks": "blocks that an SM holds at once, by the template's estimate: log2",
    "occupancy/warps": "warps that an SM holds at once, of those it could: log2",
    "occupancy/waves": "blocks over those that the device holds at once: log2",
    "occupancy/last": "the share of the last wave that has work: log2",
    "facts.*": "of the built candidate's largest kernel, where it is known: log2(1 + x)",
    "prior.seconds": "the roofline's time: log2 of seconds",
    "prior.share.*": "a term of the roofline over the longest one: log2, at least -20",
    "prior.bound=*": "the roofline's longest term",
}
PRIOR = "prior.seconds"

_TARGET_SIZES = ("threads", "cores", "l1", "l2", "l3", "memory")
_LEAST_SHARE = 2.0**-20


def log_size(value: float) -> float:
    """Return log2(1 + |x|) with the sign of x."""
    return math.copysign(math.log2(1 + abs(value)), value)


def features(
    candidate: Candidate,
    mode: str = "cold",
    rates: Rates | None = None,
    space: Space | None = None,
    facts: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Return the features of a candidate measured in this mode, as `FEATURES` lists them.

    ``rates`` are the machine's, guessed where absent; ``space`` saves building it again. ``facts``
    of its build (`Record.facts`) are features where they are given: of all candidates that are
    compared, or of none.
    """
    problem, target, values = candidate.problem, candidate.target, candidate.schedule.values
    template = template_of(candidate)
    space = space or template.space(problem, target)
    counts = template.counts(problem, target, values)
    line = roofline(counts, target, rates or default_rates(target), mode)
    return {
        **{f"knob.{name}": value for name, value in space.encode(values).items()},
        **_alignments(space, values),
        f"template={template.name}": 1.0,
        f"mode={mode}": 1.0,
        **_place_features(problem, target),
        **_count_features(counts),
        **_ratio_features(counts, target),
        **(_occupancy_features(counts.block, target) if counts.block else {}),
        **fact_features(facts or {}),
        **_prior_features(line),
    }


def _alignments(space: Space, values: Mapping[str, Value]) -> dict[str, float]:
    """Encode by which powers of two sizes can be divided: vectors, warps and lines are such."""
    found = {}
    for knob in space.knobs:
        numbers = [v for v in knob.values if isinstance(v, int) and v > 0]
        # Among powers of two the size says as much.
        if any(number & (number - 1) for number in numbers):
            value = int(values[knob.name])
            found[f"align.{knob.name}"] = math.log2(value & -value) if value > 0 else 0.0
    return found


@cache
def _place_features(problem: Problem, target: Target) -> Mapping[str, float]:
    """Encode what all candidates of a task have in common."""
    found: dict[str, float] = {}
    for name, value in problem.to_json().items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            text = value if isinstance(value, str) else canonical(value)
            found[f"problem.{name}={text}"] = 1.0
        else:
            found[f"problem.{name}"] = log_size(value)
    for name in _TARGET_SIZES:
        found[f"target.{name}"] = log_size(getattr(target, name))
    found[f"target.kind={target.kind}"] = 1.0
    found[f"target.arch={target.arch}"] = 1.0
    return found


def _count_features(counts: Counts) -> dict[str, float]:
    found = {f"bytes.{name}": log_size(value) for name, value in counts.bytes.items()}
    found |= {f"operations.{name}": log_size(value) for name, value in counts.operations.items()}
    found |= {f"tiles.{name}": log_size(value) for name, value in counts.tiles.items()}
    found["parallelism"] = log_size(counts.parallelism)
    found["registers"] = log_size(counts.registers)
    found["code"] = log_size(counts.code)
    return found


def _ratio_features(counts: Counts, target: Target) -> dict[str, float]:
    """Encode what one tree split cannot see in two separate sizes."""
    count = workers(target)
    memory = max(counts.bytes.get("memory", 0.0), 1.0)
    caches = {"l1": target.l1 * count, "l2": target.l2 * count, "l3": target.l3}
    found = {f"footprint/{name}": math.log2(memory / size) for name, size in caches.items()}
    for level, amount in counts.bytes.items():
        if level != "memory":
            found[f"traffic/{level}"] = math.log2(max(amount, 1.0) / memory)
    for unit, amount in counts.operations.items():
        found[f"intensity/{unit}"] = math.log2(max(amount, 1.0) / memory)
    found["tasks/worker"] = math.log2(max(counts.parallelism, 1.0) / count)
    found["imbalance"] = math.log2(imbalance(counts.parallelism, target))
    return found


def _occupancy_features(block: BlockUse, target: Target) -> dict[str, float]:
    """Encode how blocks fill the device; nothing of an SM that is not known."""
    sm = multiprocessor(target.arch)
    fits = blocks_per_sm(target.arch, block.threads, block.registers, block.shared)
    if sm is None or fits is None:
        return {}
    fits = max(1, fits)
    warps = fits * -(-block.threads // WARP)
    waves = max(1.0, block.blocks) / (fits * target.cores)
    return {
        "occupancy/blocks": math.log2(fits),
        "occupancy/warps": math.log2(warps * WARP / sm.threads),
        "occupancy/waves": math.log2(waves),
        "occupancy/last": math.log2(waves - math.ceil(waves) + 1),
    }


def _prior_features(line: Roofline) -> dict[str, float]:
    longest = line.terms[line.bound]
    found = {PRIOR: math.log2(line.seconds), f"prior.bound={line.bound}": 1.0}
    for name, seconds in line.terms.items():
        share = seconds / longest if longest else 0.0
        found[f"prior.share.{name}"] = math.log2(max(share, _LEAST_SHARE))
    return found
