"""``wattune compile`` and ``wattune pack``: kernels and weights as files."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from wattune.compiler.cli.options import (
    Workload,
    database_option,
    json_option,
    needed,
    objective_option,
    problem_options,
    target_options,
)
from wattune.compiler.cli.output import print_json, say
from wattune.compiler.cli.progress import Bar, status
from wattune.schedules.target import Target


@click.command("compile")
@problem_options
@database_option
@target_options
@objective_option
@click.option("-o", "--output", required=True, help="The library, for example kernels.so.")
@click.option(
    "--allow-unverified", is_flag=True, help="Compile for a target that cannot be run here."
)
@click.option(
    "--also",
    multiple=True,
    help="Another GPU architecture, such as sm_80, that gets code of the same schedules; "
    "repeatable.",
)
@json_option
def compile_command(
    workload: Workload | None,
    database: str,
    target: str,
    threads: int | None,
    objective: str,
    output: str,
    allow_unverified: bool,
    also: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compile the best known kernels into a library, with a C header and a manifest beside it.

    A problem without records in the database gets its default schedule.
    """
    from wattune.compiler.library import compile as compile_library

    work = needed(workload)
    # The usual database may not be there yet; one that was named must be.
    source = click.get_current_context().get_parameter_source("database")
    found = Path(database).exists() or source is not ParameterSource.DEFAULT
    if not found:
        say(f"{database} does not exist: default schedules")
    with status("compiling"):
        library = compile_library(
            work.problems,
            Target.parse(target, threads),
            database=database if found else None,
            objective=objective,
            allow_unverified=allow_unverified,
            weights=work.weights,
            also=also,
        )
        path = library.export(output)
    files = [path, path.with_suffix(".h"), path.with_suffix(".json")]
    if as_json:
        print_json({"files": [str(p) for p in files], "verified": library.manifest.verified})
    say(f"written: {', '.join(str(p) for p in files)}")
    if not library.manifest.verified:
        say("not verified: the kernels were not run on this machine")


@click.command("pack")
@click.argument("checkpoint")
@click.option("-o", "--output", required=True, help="The packed weights (safetensors).")
@click.option("--library", "library_path", required=True, help="The library that will read them.")
@click.option("--config", required=True, help="The model's config.json.")
@json_option
def pack_command(
    checkpoint: str, output: str, library_path: str, config: str, as_json: bool
) -> None:
    """Pack the ternary layers of a Hugging Face CHECKPOINT into a library's layout.

    Only those layers are written; embeddings and norms stay in the checkpoint.
    """
    from wattune.compiler.checkpoint import count_layers, read_layers
    from wattune.compiler.library import load
    from wattune.compiler.library.packed import save_packed

    entry = load(library_path).ternary_gemm
    layers = {}
    with Bar("packing", count_layers(config)) as bar:
        for layer in read_layers(checkpoint, config):
            layers[layer.name] = entry.pack(layer.weights, scale=layer.scale)
            bar.update(len(layers), layer.name)
    save_packed(output, layers)
    found = {name: {"layout": p.layout, "bytes": p.nbytes} for name, p in layers.items()}
    if as_json:
        print_json({"file": output, "layers": found})
    total = sum(p.nbytes for p in layers.values())
    say(f"{output} written: {len(layers)} layers, {total / 1e6:.1f} MB")
