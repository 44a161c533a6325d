"""The command line: a file for each command or two, `commands.py` that binds them together."""

from searchr3.cli.commands import app, main

__all__ = ["app", "main"]
