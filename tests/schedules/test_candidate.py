"""Candidates and records: plain data that survives JSON, and nothing else passes for it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from wattune.errors import RecordError
from wattune.ops import TernaryGemm
from wattune.schedules.candidate import (
    Candidate,
    Conditions,
    Measurement,
    Provenance,
    Record,
    Schedule,
)
from wattune.schedules.target import Target

CANDIDATE = Candidate(
    TernaryGemm(1, 64, 64),
    Target.parse("cpu:vnni"),
    Schedule.make("vnni_i2", {"groups": 4, "prefetch": 0}),
)


def record(**fields: Any) -> Record:
    given = {"measurement": Measurement((2e-6, 1e-6, 3e-6)), **fields}
    return Record(CANDIDATE, Conditions(), Provenance("abc", "def"), **given)


def test_round_trip_through_json() -> None:
    for original in (
        record(),
        record(facts={"code_bytes": 12.0}),
        record(measurement=Measurement((1e-6,), joules=0.25, energy_source="rapl")),
        record(measurement=None, failure="timeout", message="hung"),
    ):
        line = json.dumps(original.to_json())
        assert Record.from_json(json.loads(line)) == original


def test_keys_do_not_depend_on_the_order_of_knobs() -> None:
    other = Schedule.make("vnni_i2", {"prefetch": 0, "groups": 4})
    assert Candidate(CANDIDATE.problem, CANDIDATE.target, other).key == CANDIDATE.key
    changed = Schedule.make("vnni_i2", {"prefetch": 512, "groups": 4})
    assert Candidate(CANDIDATE.problem, CANDIDATE.target, changed).key != CANDIDATE.key


def test_statistics() -> None:
    measurement = Measurement((5.0, 1.0, 4.0, 2.0))
    assert measurement.latency == 3.0
    assert measurement.best == 1.0
    assert Measurement((5.0, 1.0, 2.0)).latency == 2.0
    assert Measurement((2.0, 2.0, 2.0, 2.0)).noise == 0.0
    assert record(measurement=None, failure="crash").latency == float("inf")


def test_a_record_is_a_measurement_or_a_failure() -> None:
    with pytest.raises(RecordError, match="either a measurement or a failure"):
        record(failure="crash")
    with pytest.raises(RecordError, match="either a measurement or a failure"):
        record(measurement=None)
    with pytest.raises(RecordError, match="failure is 'boom'; allowed: build_error, timeout"):
        record(measurement=None, failure="boom")


@pytest.mark.parametrize("missing", ["problem", "conditions", "measurement", "provenance"])
def test_incomplete_records_are_refused(missing: str) -> None:
    data = record().to_json()
    del data[missing]
    with pytest.raises(RecordError, match=missing):
        Record.from_json(data)


@pytest.mark.parametrize("data", [[], "text", 3, {"problem": {"operator": "none"}}])
def test_other_json_is_refused(data: Any) -> None:
    with pytest.raises(RecordError):
        Record.from_json(data)
