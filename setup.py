"""Build the ``wattune`` package from the top-level source folders."""

from setuptools import find_packages, setup

PARTS = ("compiler", "cost_models", "ops", "schedules")

setup(
    packages=[
        "wattune",
        *(
            f"wattune.{name}"
            for part in PARTS
            for name in find_packages(include=[part, f"{part}.*"])
        ),
    ],
    package_dir={
        "wattune": "src/wattune",
        **{f"wattune.{part}": part for part in PARTS},
    },
)
