"""The unit that may bind a kernel before memory does, as a row of a benchmark names its share."""

from __future__ import annotations

from wattune.schedules.candidate import Candidate
from wattune.schedules.template import template_of

# Units, by their field in `Limits`, and the name of a kernel's share of one.
SHARES = {"bf16_gflops": "of_dots", "fma_gflops": "of_fma", "words_gops": "of_words"}


def unit_of(candidate: Candidate) -> str:
    """Return the unit that the candidate's template names, or nothing."""
    problem, target, schedule = candidate.problem, candidate.target, candidate.schedule
    return template_of(candidate).unit(problem, target, schedule.values)
