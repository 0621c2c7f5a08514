"""A ``config.json``, read field by field."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from wattune.errors import ModelError

FLOAT_TYPES = ("bfloat16", "float16", "float32")


class Config:
    """A ``config.json``, read field by field with errors that name the field."""

    def __init__(self, fields: Mapping[str, Any], source: str) -> None:
        """Keep the fields and the name to blame."""
        self.fields = fields
        self.source = source

    @classmethod
    def read(cls, config: str | Path | Mapping[str, Any]) -> Config:
        """Read a file, or take the data as it is; `ModelError` where it is no JSON object."""
        if isinstance(config, Mapping):
            return cls(config, "config")
        try:
            data = json.loads(Path(config).read_text())
        except OSError as error:
            raise ModelError(f"{config}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ModelError(f"{config}: not JSON: {error}") from error
        if not isinstance(data, dict):
            raise ModelError(f"{config}: holds a {type(data).__name__}; allowed: a JSON object")
        return cls(data, str(config))

    def section(self, name: str) -> Config:
        """Return a nested object."""
        return Config(self._get(name, dict, "an object"), f"{self.source}: {name}")

    def size(self, name: str, default: int | None = None) -> int:
        """Return a positive integer."""
        if default is not None and not self.has(name):
            return default
        value: int = self._get(name, int, "an integer >= 1")
        if isinstance(value, bool) or value < 1:
            raise self.error(name, value, "an integer >= 1")
        return value

    def count(self, name: str, default: int = 0) -> int:
        """Return an integer >= 0."""
        if not self.has(name):
            return default
        value: int = self._get(name, int, "an integer >= 0")
        if isinstance(value, bool) or value < 0:
            raise self.error(name, value, "an integer >= 0")
        return value

    def number(self, name: str, default: float) -> float:
        """Return a number > 0; null and a missing field are the default."""
        if not self.has(name):
            return default
        value = self.fields[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise self.error(name, value, "a number > 0")
        return float(value)

    def choice(self, name: str, allowed: tuple[str, ...], default: str | None = None) -> str:
        """Return one of some names."""
        if name not in self.fields and default is not None:
            return default
        value: str = self._get(name, str, ", ".join(allowed))
        if value not in allowed:
            raise self.error(name, value, ", ".join(allowed))
        return value

    def items(self, name: str, allowed: Sequence[Any], count: int | None = None) -> list[Any]:
        """Return a list with so many items, each of them allowed."""
        texts = ", ".join(map(str, allowed))
        expected = f"a list of {texts}" if count is None else f"a list of {count} of {texts}"
        value: list[Any] = self._get(name, list, expected)
        if count not in (None, len(value)) or any(item not in allowed for item in value):
            raise self.error(name, value, expected)
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """Return true or false; null and a missing field are the default."""
        if self.fields.get(name) is None:
            return default
        value: bool = self._get(name, bool, "true, false")
        return value

    def has(self, name: str) -> bool:
        """Say whether a field is there and not null."""
        return self.fields.get(name) is not None

    def architecture(self, known: Collection[str]) -> str:
        """Return the first known architecture that the config names."""
        allowed = f"a list with one of {', '.join(known)}"
        named: list[Any] = self._get("architectures", list, allowed)
        for name in named:
            if name in known:
                return str(name)
        raise self.error("architectures", named, allowed)

    def dtype(self) -> str:
        """Read ``dtype``, called ``torch_dtype`` before transformers 4.56."""
        return self.choice("dtype" if "dtype" in self.fields else "torch_dtype", FLOAT_TYPES)

    def error(self, name: str, value: object, allowed: str) -> ModelError:
        """Say which field is wrong and what it may be."""
        return ModelError(f"{self.source}: field {name!r} is {value!r}; allowed: {allowed}")

    def _get(self, name: str, kind: type, allowed: str) -> Any:
        if name not in self.fields:
            raise ModelError(f"{self.source}: field {name!r} is missing; allowed: {allowed}")
        value = self.fields[name]
        if not isinstance(value, kind):
            raise self.error(name, value, allowed)
        return value
