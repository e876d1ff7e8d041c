"""Command-line arguments that several commands share."""

from __future__ import annotations

import argparse


def positive_int(text: str) -> int:
    """Read an argument that must be a whole number above 0."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def add_app(parser: argparse.ArgumentParser) -> None:
    """Add the app folder, a number of sites and config overrides: what describes a simulated federation."""
    parser.add_argument(
        "app", nargs="?", default="pneumonia", help="an app by name, as in experiments/, or a path (default: pneumonia)"
    )
    parser.add_argument(
        "--num-supernodes", "--sites", type=positive_int, metavar="N", help="number of sites (default: set by the data)"
    )
    parser.add_argument(
        "-c",
        "--config",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a config key, can be repeated; `mtfed config` lists all keys",
    )
