"""The ``mtfed data`` commands: list, get, partition."""

from __future__ import annotations

import argparse


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``mtfed data`` to the command line; what it needs is imported when it runs."""
