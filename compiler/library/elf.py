"""Whether a file is a whole shared library for this machine.

The system's loader kills the process when it maps a file that was cut off, so the tables that say
how long the file must be are read first.
"""

from __future__ import annotations

import platform
import struct
from pathlib import Path

from wattune.errors import LibraryError

# e_machine of the ELF header.
_MACHINES = {"x86_64": 62, "aarch64": 183, "riscv64": 243}
_HEADER = struct.Struct("<16xHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_LOAD = 1


def check_library_file(path: Path) -> None:
    """Raise `LibraryError` for a file that cannot be opened as a library here."""
    with path.open("rb") as file:
        head = file.read(64)
        if head[:6] != b"\x7fELF\x02\x01" or len(head) < _HEADER.size:
            raise LibraryError(f"{path} is not a 64-bit shared library; give the .so of an export")
        (
            _,
            machine,
            _,
            _,
            programs,
            sections,
            _,
            _,
            each,
            count,
            section_bytes,
            section_count,
            _,
        ) = _HEADER.unpack(head[: _HEADER.size])
        here = _MACHINES.get(platform.machine())
        if here is not None and machine != here:
            names = {number: name for name, number in _MACHINES.items()}
            raise LibraryError(
                f"{path} is for {names.get(machine, f'machine {machine}')}, this machine is "
                f"{platform.machine()}; compile for a target of this machine"
            )
        file.seek(programs)
        table = file.read(each * count)
    ends = [programs + each * count, sections + section_bytes * section_count]
    if len(table) == each * count and each == _SEGMENT.size:
        ends += [
            offset + length
            for kind, _, offset, _, _, length, _, _ in _SEGMENT.iter_unpack(table)
            if kind == _LOAD
        ]
    size = path.stat().st_size
    if max(ends) > size:
        raise LibraryError(f"{path} is cut off: {size} bytes of {max(ends)}; copy it again")
