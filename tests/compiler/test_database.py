from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

import wattune
from wattune.compiler.database import Database, ImportReport
from wattune.compiler.record_formats import export_t4, record_from_line, record_to_line
from wattune.errors import DatabaseError, RecordError
from wattune.ops import TernaryGemm
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

TARGET = Target(kind="cpu", arch="x86_64", cores=2)
SMALL = TernaryGemm(tokens=1, out_features=64, in_features=64)


def make_record(
    number: int = 0,
    latency: float = 1e-3,
    problem: TernaryGemm = SMALL,
    failure: FailureKind | None = None,
    joules: float | None = None,
    mode: str = "cold",
    source_hash: str = "s1",
) -> Record:
    return Record(
        candidate=Candidate(problem, TARGET, Schedule.make("fake", {"a": number, "b": True})),
        conditions=Conditions(mode=mode),
        provenance=Provenance(source_hash, "machine", {"tvm": "0.27"}, 1700000000.25 + number),
        measurement=None
        if failure
        else Measurement((latency, 2 * latency, latency / 2), joules, "rapl" if joules else "none"),
        failure=failure,
        facts={"compile_seconds": 0.5},
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tuned.sqlite"


def test_records_come_back_as_they_went_in_and_are_found_by_their_properties(path: Path) -> None:
    other = TernaryGemm(tokens=8, out_features=64, in_features=64)
    records = [
        make_record(0, 3e-3),
        make_record(1, 1e-3, joules=0.25),
        make_record(2, failure="crash"),
        make_record(3, 2e-3, problem=other),
        make_record(4, 1e-4, mode="hot"),
        make_record(5, 5e-4, source_hash="s2"),
    ]
    with Database(path) as database:
        assert [database.add(record) for record in records] == [True] * 6
        assert database.add(records[2]) is False
    with Database(path, create=False, read_only=True) as database:
        assert database.records() == records and len(database) == 6
        assert database.records(other) == [records[3]]
        assert database.records(static=other) == records
        assert database.records(mode="hot") == [records[4]]
        assert database.records(valid=False) == [records[2]]
        assert database.records(SMALL, TARGET, "machine", "cold", source_hash="s2") == [records[5]]
        assert database.records(target=TARGET.with_threads(2)) == []
        assert database.best(SMALL) == records[5]
        assert database.best(SMALL, source_hash="s1") == records[1]
        assert database.best(SMALL, mode=None) == records[4]
        assert database.best(fingerprint="elsewhere") is None
        assert database.trials(SMALL, mode="cold") == 4


def test_one_candidate_measured_twice_is_two_records_but_one_trial(path: Path) -> None:
    with Database(path) as database:
        database.add(make_record(1))
        again = record_from_line(record_to_line(make_record(1)).replace("1700000001", "1700000009"))
        assert database.add(again)
        assert (len(database), database.trials()) == (2, 1)


def test_states_and_limits_are_kept_and_replaced(path: Path) -> None:
    with Database(path) as database:
        database.set_state("evolutionary", {"population": [1, 2]})
        database.set_state("evolutionary", {"population": [3]})
        database.set_limits("machine", {"read_gbps": {"1": 12.5}})
    with Database(path, create=False) as database:
        assert database.get_state("evolutionary") == {"population": [3]}
        assert database.limits("machine") == {"read_gbps": {"1": 12.5}}
        assert database.get_state("other") is None and database.limits("other") is None


def test_a_record_that_cannot_be_is_not_added(path: Path) -> None:
    with Database(path) as database:
        with pytest.raises(RecordError, match="seconds"):
            database.add(make_record(latency=float("nan")))
        assert len(database) == 0


# --- several processes, and their deaths ---------------------------------------------------------

_ADD_FOREVER = """
import itertools, sys
sys.path.insert(0, sys.argv[2])
from test_database import Database, make_record
with Database(sys.argv[1]) as database:
    for number in itertools.count():
        database.add(make_record(number))
        print(number, flush=True)
"""


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(wattune.__file__).parents[1])}


@pytest.mark.parametrize("after", [1, 40])
def test_kill_9_loses_no_record_whose_add_returned(path: Path, after: int) -> None:
    command = [sys.executable, "-c", _ADD_FOREVER, str(path), str(Path(__file__).parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=_environment())
    assert process.stdout is not None
    acknowledged = [int(process.stdout.readline()) for _ in range(after)]
    process.send_signal(signal.SIGKILL)
    acknowledged += [int(line) for line in process.stdout.read().split("\n") if line]
    process.wait()
    with Database(path) as database:
        assert database.records()[: len(acknowledged)] == [make_record(n) for n in acknowledged]
        assert database.add(make_record(10**6)), "a killed writer must leave no lock behind"


def _write_many(folder: Path, start: int, barrier: Barrier) -> None:
    for file in range(10):
        barrier.wait()
        with Database(folder / f"{file}.sqlite") as database:
            for number in range(start, start + 10):
                database.add(make_record(number))


def test_processes_create_and_write_one_file_together(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4, timeout=30)
    workers = [
        context.Process(target=_write_many, args=(tmp_path, 100 * number, barrier))
        for number in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    for file in range(10):
        with Database(tmp_path / f"{file}.sqlite") as database:
            assert len(database) == 40


def test_a_lock_held_too_long_is_named(path: Path) -> None:
    Database(path).close()
    holder = sqlite3.connect(path, isolation_level=None)
    with Database(path, timeout=0.05) as database:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseError, match=r"tuned\.sqlite is locked by another process"):
            database.add(make_record())
        holder.execute("ROLLBACK")
        assert database.add(make_record())


# --- files that are not what they should be ------------------------------------------------------


def _filled(path: Path) -> None:
    with Database(path) as database:
        for number in range(60):
            database.add(make_record(number))


def _write_garbage(path: Path) -> None:
    path.write_bytes(b"no database at all" * 100)


def _truncate(path: Path) -> None:
    _filled(path)
    os.truncate(path, path.stat().st_size // 2)


def _overwrite_pages(path: Path) -> None:
    _filled(path)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * 8192)


def _raise_schema(path: Path) -> None:
    Database(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 7")
    connection.close()


def _write_foreign(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()


def _make_directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_write_garbage, "is not a database"),
        (_truncate, "is damaged .*restore a copy"),
        (_overwrite_pages, "is damaged .*restore a copy"),
        (_raise_schema, r"newer Wattune \(schema 7, this program knows 1\)"),
        (_write_foreign, "belongs to another program"),
        (_make_directory, "is a directory"),
    ],
)
def test_a_wrong_file_is_refused_and_left_as_it_is(
    path: Path, damage: Callable[[Path], None], message: str, create: bool
) -> None:
    damage(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(DatabaseError, match=message) as caught:
        Database(path, create=create)
    assert str(path) in str(caught.value)
    assert before is None or path.read_bytes() == before


def test_only_a_tune_creates_a_file(path: Path) -> None:
    with pytest.raises(DatabaseError, match="does not exist"):
        Database(path, create=False)
    with pytest.raises(DatabaseError, match="does not exist"):
        Database(path, read_only=True)
    assert not path.exists()
    path.touch()
    with pytest.raises(DatabaseError, match="is empty"):
        Database(path, create=False)
    with Database(path) as database:
        assert database.add(make_record())
    with pytest.raises(DatabaseError, match=r"directory .*absent does not exist"):
        Database(path.parent / "absent" / "tuned.sqlite")


def test_damage_found_while_reading_is_named(path: Path) -> None:
    with Database(path) as database:
        database.add(make_record())
        connection = sqlite3.connect(path)
        connection.execute("UPDATE records SET record = '{\"problem\": 3'")
        connection.commit()
        connection.close()
        with pytest.raises(DatabaseError, match=r"tuned\.sqlite: record 1 cannot be read"):
            database.records()


def test_a_full_disk_is_named_and_keeps_what_was_added(path: Path) -> None:
    with Database(path) as database:
        pages = database._connection.execute("PRAGMA page_count").fetchone()[0]
        database._connection.execute(f"PRAGMA max_page_count = {pages + 2}")
        added = []
        with pytest.raises(DatabaseError, match=r"tuned\.sqlite could not be written: the disk"):
            for number in range(1000):
                database.add(make_record(number))
                added.append(make_record(number))
        with pytest.raises(DatabaseError, match="disk is full"):
            database.import_lines(record_to_line(make_record(n)) for n in range(5000, 5100))
        assert added and database.records() == added
    with Database(path) as database:
        assert database.records() == added


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """Yield a folder that other users can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def _as_a_stranger(action: Callable[[], None]) -> str:
    """Return what the action raises in a process that may not write root's files."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            action()
            os.write(writer, b"no error")
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        return pipe.read()


def test_what_may_not_be_written_can_still_be_read(shared_folder: Path) -> None:
    path = shared_folder / "tuned.sqlite"
    with Database(path) as database:
        database.add(make_record())
    path.chmod(0o444)
    shared_folder.chmod(0o777)
    assert "read-only; make both writable" in _as_a_stranger(lambda: Database(path).close())
    shared_folder.chmod(0o555)

    def read() -> None:
        with Database(path, read_only=True) as database:
            assert database.records() == [make_record()]

    try:
        assert "read-only; make both writable" in _as_a_stranger(lambda: Database(path).close())
        absent = shared_folder / "new.sqlite"
        assert "cannot be opened: check" in _as_a_stranger(lambda: Database(absent).close())
        assert _as_a_stranger(read) == "no error"
    finally:
        shared_folder.chmod(0o755)


def test_read_only_refuses_to_write(path: Path) -> None:
    Database(path).close()
    with (
        Database(path, read_only=True) as database,
        pytest.raises(DatabaseError, match="cannot be written"),
    ):
        database.add(make_record())


# --- record files --------------------------------------------------------------------------------


def test_lines_merge_databases_without_doubles(path: Path) -> None:
    records = [make_record(0), make_record(1, failure="timeout"), make_record(2, joules=0.5)]
    with Database(path) as mine, Database(path.with_name("theirs.sqlite")) as theirs:
        for record in records[:2]:
            mine.add(record)
        theirs.add(records[1])
        theirs.add(records[2])
        lines = [line + "\n" for line in theirs.export_lines()] + ["\n"]
        assert mine.import_lines(lines) == ImportReport(added=1, skipped=1)
        assert mine.import_lines(lines) == ImportReport(added=0, skipped=2)
        assert mine.records() == records


def test_an_import_that_breaks_off_leaves_nothing(path: Path) -> None:
    with Database(path) as database:
        database._connection.execute(
            "CREATE TRIGGER break_off BEFORE INSERT ON records WHEN NEW.failure IS NOT NULL "
            "BEGIN SELECT RAISE(ABORT, 'broken off'); END"
        )
        records = [make_record(0), make_record(1), make_record(2, failure="crash")]
        with pytest.raises(DatabaseError, match="broken off"):
            database.import_lines(record_to_line(record) for record in records)
        assert len(database) == 0
        assert database.add(records[0]), "no transaction may stay open"


def _changed(**leaves: object) -> str:
    """Return a good record's line with ``a__b=value`` put at ["a"]["b"]."""
    data = make_record(1, joules=0.5).to_json()
    for name, value in leaves.items():
        *parents, leaf = name.split("__")
        at = data
        for parent in parents:
            at = at[parent]
        at[leaf] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"problem": ', "not JSON"),
        ("[1, 2]", "a JSON object is expected, not"),
        ("[" * 100_000, "nested too deeply|not JSON"),
        ("{}", "field 'problem' is missing"),
        (_changed(problem__operator="softmax"), "unknown operator 'softmax'"),
        (_changed(problem__tokens="many"), "tokens is 'many'"),
        (_changed(target__cores=0), "cores is 0"),
        (_changed(schedule__knobs={"a": [1]}), r"knob a is \[1\]"),
        (_changed(schedule__knobs=[1]), "not a record"),
        (_changed(measurement__seconds=[]), "seconds is empty"),
        (_changed(measurement__seconds="fast"), "seconds holds 'f'"),
        (_changed(measurement__seconds=[-1.0]), "seconds holds -1.0"),
        (_changed(measurement__seconds=[float("nan")]), "seconds holds nan"),
        (_changed(measurement__joules=0), "joules holds 0"),
        (_changed(measurement__energy_source="none"), "energy_source is 'none'"),
        (_changed(conditions__threads="2"), "threads is '2'"),
        (_changed(provenance__created=None), "created is None"),
        (_changed(failure="explosion"), "either a measurement or a failure"),
        (_changed(failure="explosion", measurement=None), "failure is 'explosion'; allowed"),
        (_changed(facts={"code_bytes": "big"}), "facts.code_bytes is 'big'"),
        (_changed(surprise=1), "no field 'surprise'"),
    ],
)
def test_a_wrong_line_is_named_and_nothing_is_imported(path: Path, line: str, message: str) -> None:
    good = record_to_line(make_record(0))
    with Database(path) as database:
        with pytest.raises(RecordError, match=f"line 3: .*({message}).*nothing was imported"):
            database.import_lines([good, "", line, record_to_line(make_record(9))])
        assert len(database) == 0
        report = database.import_lines([good, "", line], skip_bad=True)
        assert (report.added, report.skipped, len(report.refused)) == (1, 0, 1)
        assert report.refused[0].startswith("line 3: ")


NASTY: tuple[object, ...] = (
    *(None, True, -1, 0, 1.5, 10**400, float("nan"), float("inf")),
    *("", "x", "1e3", "\ud800", [], [1], [[]], {}, {"x": 1}),
)


def _leaves(data: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of everything inside, branches included."""
    if path:
        yield path
    if isinstance(data, dict):
        for name, value in data.items():
            yield from _leaves(value, (*path, name))


def test_whatever_stands_in_a_record_is_taken_or_refused_and_can_be_read_again(
    path: Path,
) -> None:
    data = make_record(1, joules=0.5).to_json()
    with Database(path) as database:
        for leaf in _leaves(data):
            lines = [_changed(**{"__".join(leaf): value}) for value in NASTY]
            report = database.import_lines(lines, skip_bad=True)
            assert report.added + report.skipped + len(report.refused) == len(NASTY)
        kept = database.records()
        assert json.dumps(export_t4(kept))
        assert database.import_lines(list(database.export_lines())).skipped == len(kept)


def test_t4_holds_what_other_tools_read() -> None:
    other = TernaryGemm(tokens=8, out_features=64, in_features=64)
    records = [
        make_record(1, 2e-3, joules=0.5),
        make_record(2, failure="build_error"),
        make_record(3, failure="wrong_result", problem=other),
    ]
    document = json.loads(json.dumps(export_t4(records)))
    assert document["schema_version"] == "1.0.0"
    first, second, third = document["results"]
    assert first["configuration"] == {"problem.tokens": 1, "template": "fake", "a": 1, "b": True}
    assert first["times"]["runtimes"] == [2.0, 4.0, 1.0]
    assert first["times"]["compilation"] == 500.0
    assert first["measurements"] == [
        {"name": "time", "value": 2.0, "unit": "ms"},
        {"name": "energy", "value": 0.5, "unit": "J"},
    ]
    assert first["timestamp"] == "2023-11-14 22:13:21.250000+00:00"
    assert (first["invalidity"], first["correctness"]) == ("correct", 1)
    assert second["measurements"][0]["value"] == "CompilationFailedConfig"
    assert (second["invalidity"], second["correctness"]) == ("compile", 0)
    assert (third["invalidity"], third["configuration"]["problem.tokens"]) == ("correctness", 8)
