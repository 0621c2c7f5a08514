"""The group of all commands; a command's module is imported when it is used."""

from __future__ import annotations

from importlib import import_module

import click

import wattune as package

# Command -> the module that holds it; the function has the command's name with underscores.
_COMMANDS = {
    "ops": "ops",
    "tune": "tune",
    "compile": "library",
    "bench": "bench",
    "report": "report",
    "inspect": "inspect",
    "replay": "replay",
    "pack": "library",
    "model-cost": "model_cost",
    "evaluate-model": "evaluate",
    "export-records": "records",
    "import-records": "records",
    "bundle": "bundle",
}


class LazyGroup(click.Group):
    """A group that knows its commands' names before it imports them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order that a user meets them."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"wattune.compiler.cli.{_COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package.__version__, prog_name="wattune")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def wattune(debug: bool) -> None:
    """Compile and tune the kernels that LLM decoding spends its time in."""
