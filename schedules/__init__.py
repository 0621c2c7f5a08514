"""Schedules: targets, spaces of typed knobs, candidates, and the templates that lower them."""
