"""Every error that Wattune raises on purpose: what was wrong, the value, what is allowed."""

from __future__ import annotations

from collections.abc import Iterable


class WattuneError(Exception):
    """Base of all errors meant for the user; the command line prints the message and exits 2."""


class UnknownNameError(WattuneError, ValueError):
    """A name that is not in the list of allowed ones."""

    def __init__(self, kind: str, value: object, allowed: Iterable[str]) -> None:
        """Say what kind of name was wrong and list the allowed ones."""
        names = ", ".join(sorted(allowed)) or "none"
        super().__init__(f"unknown {kind} {value!r}; allowed: {names}")


class ProblemError(WattuneError, ValueError):
    """A problem whose sizes, dtypes or formats cannot be."""


class ScheduleError(WattuneError, ValueError):
    """A schedule outside its template's space, or a template that does not apply."""


class TargetError(WattuneError, ValueError):
    """A target that cannot be understood, or that this machine cannot serve."""


class ArgumentError(WattuneError, ValueError):
    """A tensor that a kernel cannot take: shape, dtype, layout, device."""


class ModelError(WattuneError, ValueError):
    """A model config or checkpoint that cannot be read or is not supported."""


class DatabaseError(WattuneError):
    """A database that is corrupt, truncated, newer than this program or not writable."""


class RecordError(WattuneError, ValueError):
    """A line of a record file that is not a record."""


class BuildError(WattuneError):
    """A candidate or a library that did not compile."""


class MeasureError(WattuneError):
    """A candidate that crashed, hung or computed a wrong result."""

    def __init__(self, kind: str, message: str) -> None:
        """Keep the failure kind of the record beside the message."""
        super().__init__(message)
        self.kind = kind


class DeviceError(WattuneError):
    """A GPU that is absent, refuses a request or is lost; ``status`` is the driver's number."""

    def __init__(self, message: str, status: int = 0) -> None:
        """Keep the driver's status beside the message."""
        super().__init__(message)
        self.status = status


class LibraryError(WattuneError):
    """A library that cannot be exported, or cannot be loaded here."""


class MissingDependencyError(WattuneError, ImportError):
    """A package of an extra that is not installed."""

    def __init__(self, package: str, purpose: str, extra: str = "tune") -> None:
        """Name the package, and the extra that brings it."""
        super().__init__(
            f"{purpose} needs {package}, which is not installed: pip install 'wattune[{extra}]'"
        )
