"""The report: what it says about records, and that the page stands alone."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from wattune.compiler.measure.confirm import marked
from wattune.compiler.report import render
from wattune.compiler.report_data import PREDICTED, Share, collect
from wattune.errors import DatabaseError
from wattune.ops import DecodeAttention, Problem, TernaryGemm, operator
from wattune.schedules.candidate import (
    Candidate,
    Conditions,
    FailureKind,
    Measurement,
    Provenance,
    Record,
    Schedule,
)
from wattune.schedules.target import Target
from wattune.schedules.template import default_candidate

TARGET = Target.parse("cpu:avx2", threads=2)
ONE, MANY = TernaryGemm(1, 64, 128), TernaryGemm(8, 64, 128)


def record(
    problem: Problem,
    time: int,
    seconds: float | None,
    joules: float | None = None,
    failure: FailureKind | None = None,
    mode: str = "cold",
    machine: str = "here",
    predicted: float | None = None,
) -> Record:
    schedule = Schedule.make("vnni", {"groups": time})
    return Record(
        Candidate(problem, TARGET, schedule),
        Conditions(mode, 2),
        Provenance("hash", machine, created=float(time)),
        None if seconds is None else Measurement((seconds,), joules, "rapl" if joules else "none"),
        failure,
        "<b>out & over</b>" if failure else "",
        {} if predicted is None else {PREDICTED: predicted},
    )


RECORDS = [
    record(ONE, 1, 4e-6),
    record(ONE, 2, None, failure="timeout"),
    record(ONE, 3, 8e-6, predicted=7e-6),
    record(ONE, 4, 2e-6),
    record(MANY, 5, 10e-6),
    record(ONE, 6, 1e-9, mode="hot"),
    record(ONE, 7, 1e-9, machine="another"),
    record(MANY, 8, 6e-6),
]


class Tags(HTMLParser):
    """Collects tags and checks that they nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_only_one_target_machine_and_mode() -> None:
    report = collect(RECORDS)
    assert (report.mode, report.fingerprint) == ("cold", "here")
    one, many = report.problems
    assert (one.default.latency, one.best.latency) == (4e-6, 2e-6)
    assert one.speeds == [1.0, 1.0, 2.0]
    assert (len(one.failures), one.trials) == (1, 4)
    assert many.best.latency == 6e-6
    assert collect(RECORDS, mode="hot").problems[0].best.latency == 1e-9


def test_milliseconds_per_token_counts_layers_and_buckets() -> None:
    shares: dict[Problem, Share] = {
        ONE: Share(10, 0.75),
        MANY: Share(10, 0.25),
        TernaryGemm(1, 9, 9): Share(1, 0.75),
    }
    report = collect(RECORDS, shares=shares)
    # Ten layers: 20 us a step of one token, 60 us a step of eight.
    assert report.ms_per_token("best") == pytest.approx((0.75 * 0.02 + 0.25 * 0.06) / (0.75 + 2))
    assert [(str(bucket), bucket.tokens) for bucket in report.buckets] == [
        ("tokens 1", 1),
        ("tokens 8", 8),
    ]
    milliseconds = [bucket["best_ms"] for bucket in report.to_json()["buckets"]]
    assert milliseconds == pytest.approx([0.02, 0.06])
    assert report.unmeasured == (TernaryGemm(1, 9, 9),)
    assert report.to_json()["ms_per_token"]["default"] > report.to_json()["ms_per_token"]["best"]


def test_layers_of_one_step_may_have_other_sizes() -> None:
    attend = DecodeAttention(2, 64, 8, 8, 16, query_tokens=4)
    shares: dict[Problem, Share] = {MANY: Share(10), attend: Share(5)}
    report = collect([*RECORDS, record(attend, 9, 40e-6)], shares=shares)
    # Ten layers of 6 us and five of 40 us, for two requests of four tokens.
    assert report.ms_per_token("best") == pytest.approx((10 * 0.006 + 5 * 0.04) / 8)
    assert {str(bucket): bucket.tokens for bucket in report.buckets} == {
        "batch 2, context 64": 8,
        "tokens 8": 8,
    }
    page = render(report)
    assert "<td>batch 2, context 64</td>" in page
    gbps = f"{operator('decode_attention').work(attend).bytes / 40e-6 / 1e9:.1f}"
    assert f'<td class="number">{gbps}</td>' in page


def test_the_page_stands_alone_and_escapes() -> None:
    page = render(collect(RECORDS, shares={ONE: Share(), MANY: Share()}))
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    links = [v for _, a in tags.seen for k, v in a.items() if k in ("src", "href", "xlink:href")]
    assert all(link and link.startswith("#") for link in links), "only references within the page"
    assert "http" not in page
    assert "@import" not in page
    assert "&lt;b&gt;out &amp; over&lt;/b&gt;" in page
    assert "Energy was not measured" in page
    assert "will not take these records" in page, "no template has made these"
    assert "ternary_gemm 8x64x128" in page
    labels = re.findall(r'aria-label="([^"]*)"', page)
    assert labels == ["Tuning curves", "Predicted against measured latency"]


def test_energy_makes_a_front() -> None:
    points = [(4e-6, 4e-3), (2e-6, 6e-3), (3e-6, 7e-3), (5e-6, 1e-3)]
    records = [record(ONE, i, seconds, joules) for i, (seconds, joules) in enumerate(points)]
    page = render(collect(records))
    assert "Energy against latency" in page
    assert "measured by rapl" in page


def test_confirmed_records_decide() -> None:
    first, lucky, steady = (record(ONE, i, s) for i, s in ((1, 4e-6), (2, 1e-6), (3, 3e-6)))
    again = [
        marked(dataclasses.replace(r, measurement=Measurement((s,))), 9.0)
        for r, s in ((first, 5e-6), (steady, 2e-6))
    ]
    (part,) = collect([first, lucky, steady, *again]).problems
    assert (part.default.latency, part.best.latency) == (5e-6, 2e-6)
    assert part.speeds == [1.0, 4.0, 4.0], "confirmations are no trials"
    assert part.trials == 3


def test_the_default_is_the_default_schedule_whenever_it_came() -> None:
    candidate = default_candidate(ONE, TARGET)
    default = dataclasses.replace(record(ONE, 2, 3e-6), candidate=candidate)
    (part,) = collect([record(ONE, 1, 9e-6), default, record(ONE, 3, 1e-6)]).problems
    assert part.default == default
    assert part.speeds == [3e-6 / 9e-6, 1.0, 3.0]


def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(DatabaseError, match="wattune tune"):
        collect([record(ONE, 1, None, failure="crash")])
