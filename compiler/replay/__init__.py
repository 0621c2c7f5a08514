"""Replay of recorded data: strategies and cost models are judged without measuring anything."""

from __future__ import annotations

from wattune.compiler.replay.read import read_recording
from wattune.compiler.replay.recording import Recording
from wattune.compiler.replay.trace import Trace, replay

__all__ = ["Recording", "Trace", "read_recording", "replay"]
