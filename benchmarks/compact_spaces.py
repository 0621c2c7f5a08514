"""Make compact tables of other tools' result files: what can be searched, and nothing else.

    python -m benchmarks.compact_spaces FOLDER/convolution_milo_*.json.gz

The tables in `benchmarks/spaces` that came from elsewhere were made by this, see the README there.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from wattune.compiler.replay import read_recording
from wattune.compiler.replay.table import write_table

SPACES = Path(__file__).parent / "spaces"


def main() -> None:
    """Write a table beside this program for every file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--source", default="", help="where the files come from")
    parser.add_argument("--licence", default="", help="under which they may be used")
    parser.add_argument("--device", default="", help="what was measured, where they do not say")
    arguments = parser.parse_args()
    for path in arguments.files:
        found = read_recording(path)
        about = {**found.about, "source": arguments.source, "licence": arguments.licence}
        if arguments.device and not found.target.device:
            target = replace(found.target, device=arguments.device)
            found = replace(found, target=target)
        write_table(replace(found, about=about), SPACES / path.name)


if __name__ == "__main__":
    main()
