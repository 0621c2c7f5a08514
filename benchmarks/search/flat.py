"""A recording as other tools know spaces: one list of parameters, whatever the template."""

from __future__ import annotations

from dataclasses import dataclass

from wattune.compiler.replay import Recording
from wattune.schedules.candidate import Schedule
from wattune.schedules.space import Knob

TEMPLATE = "template"


@dataclass(frozen=True)
class Flat:
    """Parameters and their values as integers, and the schedule of every point.

    Numbers stay as they are, other values become their places. Where there are several templates,
    one more parameter tells them apart, and knobs that a template lacks have their first value.
    """

    parameters: dict[str, list[int]]
    schedules: dict[tuple[int, ...], Schedule]

    @classmethod
    def of(cls, recording: Recording) -> Flat:
        """Flatten a recording's space."""
        branches = recording.task.branches
        knobs: dict[str, dict[str, Knob]] = {}
        for branch in branches:
            for knob in branch.space.knobs:
                knobs.setdefault(knob.name, {})[branch.template.name] = knob
        columns: dict[str, list[int]] = {}
        if len(branches) > 1:
            columns[TEMPLATE] = list(range(len(branches)))
        for name, mine in knobs.items():
            columns[name] = sorted({_number(k, v) for k in mine.values() for v in k.values})
        places = {branch.template.name: at for at, branch in enumerate(branches)}
        points = {}
        for schedule in recording.rows:
            values = schedule.values
            point = [
                places[schedule.template]
                if name == TEMPLATE
                else _number(knobs[name][schedule.template], values[name])
                if name in values
                else column[0]
                for name, column in columns.items()
            ]
            points[tuple(point)] = schedule
        return cls(columns, points)


def _number(knob: Knob, value: object) -> int:
    return int(str(value)) if knob.ordered else [str(v) for v in knob.values].index(str(value))
