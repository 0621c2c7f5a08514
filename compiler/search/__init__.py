"""Search: tasks, strategies that propose candidates, and how tasks share a tune's trials."""
