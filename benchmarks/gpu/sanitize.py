"""Verify the small cases' kernels once each: what compute-sanitizer watches."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(bundle: Path) -> int:
    """Verify every small candidate; returns 1 where one is wrong."""
    sys.path.insert(0, str(bundle / "site"))
    from wattune.compiler.bundle.manifest import Manifest
    from wattune.compiler.measure.cases import Binder
    from wattune.compiler.measure.ffi import Library
    from wattune.compiler.measure.gpu_device import GpuDevice
    from wattune.compiler.measure.verify import verify
    from wattune.errors import MeasureError
    from wattune.ops import problem_from_json

    device, failed = GpuDevice(), 0
    binder, manifest = Binder(0, "cuda", device), Manifest.read(bundle)
    for case in json.loads((bundle / "cases.json").read_text())["cases"]:
        problem = problem_from_json(case["problem"])
        for result in manifest.of(problem) if case["small"] else ():
            if result.path is None:
                continue
            try:
                with device.current():
                    library = Library(str(result.path))
                    verify(binder, problem, library, result.pack, result.sizes)
                print(f"{case['name']}: {result.candidate.schedule.template}: right")
            except MeasureError as error:
                failed += 1
                print(f"{case['name']}: {result.candidate.schedule}: {error}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
