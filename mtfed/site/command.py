"""The ``mtfed site`` commands: init, check."""

from __future__ import annotations

import argparse


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``mtfed site`` to the command line; what it needs is imported when it runs."""
