"""Spaces: what a search relies on, whatever the template."""

from __future__ import annotations

import numpy as np
import pytest

from wattune.errors import ScheduleError, UnknownNameError
from wattune.schedules.space import Constraint, Knob, Space, Values, powers_of_two

SPACE = Space(
    "toy",
    (
        Knob("rows", powers_of_two(1, 8), 8),
        Knob("unroll", (1, 2, 4), 4),
        Knob("order", ("row", "column"), "row"),
        Knob("wide", (False, True), True),
    ),
    (Constraint("rows * unroll <= 8", lambda v: int(v["rows"]) * int(v["unroll"]) <= 8),),
)


def test_enumerate_is_the_product_less_what_constraints_forbid() -> None:
    points = list(SPACE.enumerate())
    assert SPACE.product() == 4 * 3 * 2 * 2
    # rows x unroll with a product of at most 8: 3 + 3 + 2 + 1 pairs.
    assert len(points) == SPACE.size() == 9 * 4
    assert len({tuple(p.items()) for p in points}) == len(points)


def test_default_is_the_nearest_allowed_point() -> None:
    values = SPACE.default()
    SPACE.check(values)
    # One value has to give way, by two steps in all.
    assert values["order"] == "row"
    assert values["wide"] is True
    assert int(values["rows"]) * int(values["unroll"]) == 8


def test_default_of_an_empty_space_is_an_error() -> None:
    empty = Space("none", SPACE.knobs, (Constraint("never", lambda v: False),))
    with pytest.raises(ScheduleError, match="no point satisfies"):
        empty.default()
    assert empty.sample(np.random.default_rng(0)) is None


def test_samples_are_valid_and_reach_every_point() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(2000):
        values = SPACE.sample(rng)
        assert values is not None
        SPACE.check(values)
        seen.add(tuple(values.items()))
    assert len(seen) == SPACE.size()


def test_neighbours_differ_in_one_step() -> None:
    at: Values = {"rows": 2, "unroll": 2, "order": "row", "wide": True}
    near = list(SPACE.neighbours(at))
    assert {"rows": 1, "unroll": 2, "order": "row", "wide": True} in near
    assert {"rows": 2, "unroll": 4, "order": "row", "wide": True} in near
    assert {"rows": 8, "unroll": 2, "order": "row", "wide": True} not in near
    for values in near:
        assert sum(values[name] != at[name] for name in at) == 1


def test_restrict_fixes_a_knob() -> None:
    space = SPACE.restrict({"rows": 1})
    assert {v["rows"] for v in space.enumerate()} == {1}
    assert space.default()["unroll"] == 4
    with pytest.raises(ScheduleError, match=r"rows is 3; allowed: \[1, 2, 4, 8\]"):
        SPACE.restrict({"rows": 3})


def test_encoding_keeps_the_order_of_numbers_and_separates_words() -> None:
    small = SPACE.encode({"rows": 1, "unroll": 1, "order": "row", "wide": False})
    large = SPACE.encode({"rows": 8, "unroll": 1, "order": "column", "wide": False})
    assert small["rows"] < large["rows"]
    assert (small["order=row"], small["order=column"]) == (1.0, 0.0)
    assert (large["order=row"], large["order=column"]) == (0.0, 1.0)
    assert set(small) == set(large)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rows": 3}, ScheduleError, "rows is 3"),
        ({"rows": 8, "unroll": 4}, ScheduleError, "rows \\* unroll <= 8"),
        ({"depth": 1}, UnknownNameError, "unknown knob of toy 'depth'; allowed: order, rows"),
        # True equals 1 in Python, and 1 is not a flag.
        ({"rows": True}, ScheduleError, "rows is True"),
        ({"wide": 1}, ScheduleError, "wide is 1"),
    ],
)
def test_wrong_values_are_named(
    change: dict[str, int], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        SPACE.check({"rows": 1, "unroll": 1, "order": "row", "wide": True, **change})


def test_a_missing_knob_is_named() -> None:
    with pytest.raises(ScheduleError, match="knob 'wide' is missing"):
        SPACE.check({"rows": 1, "unroll": 1, "order": "row"})


def test_a_default_outside_the_values_is_refused() -> None:
    with pytest.raises(ScheduleError, match="default 5"):
        Knob("rows", (1, 2), 5)
