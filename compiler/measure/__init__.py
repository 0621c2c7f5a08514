"""Measuring: spawned build workers, one runtime-only measuring process, meters, limits."""
