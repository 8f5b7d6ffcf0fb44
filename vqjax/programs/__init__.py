"""The commands: `vqjax <command>` or `python -m vqjax <command>`, one module each.

A command's module defines its flags and has `main()`; its docstring is its help. To add one, write
the module and name it here.
"""

import importlib
import sys

from vqjax.errors import did_you_mean

COMMANDS = {
    "train": "train the stages of a config in a workdir, or go on with it",
    "tokenize": "write the tokens of a data set once, for a prior to be trained on",
    "sample": "draw images from a finished run, or edit an image with it",
    "evaluate": "measure a run, or images of whoever made them, by a recorded protocol",
    "report": "write one HTML page of a run",
    "visualize": "show several runs side by side: what they predict, keep and have learned",
    "describe": "say what a config or a run is: stages, parameters, latent grid, steps",
    "locality": "show where an image changes when a region of its codes does",
}


def main() -> None:
    """Runs the command that the first argument names; without one, lists them."""
    name, *_ = [*sys.argv[1:], "--help"]
    if name in ("-h", "--help", "help"):
        print("vqjax <command> [--flags]; vqjax <command> --help lists a command's flags\n")
        width = max(map(len, COMMANDS))
        print("\n".join(f"  {command:{width}}  {what}" for command, what in COMMANDS.items()))
        return
    if name not in COMMANDS:
        print(f"error: vqjax {name}: {did_you_mean(name, COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"{sys.argv[0]} {name}", *sys.argv[2:]]
    run(name)


def run(name: str) -> None:
    """Runs a command with the flags of `sys.argv`, and ends the process."""
    # Flags are global, so a command's module is imported only when it is to run.
    module = importlib.import_module(f"vqjax.programs.{name}")
    command_line = importlib.import_module("vqjax.programs.command_line")
    command_line.run(module.main, module.__doc__)
