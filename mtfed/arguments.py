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
    add = parser.add_argument
    about_app = "an app by name, as in experiments/, or a path (default: pneumonia)"
    add("app", nargs="?", default="pneumonia", help=about_app)
    about_sites = "number of sites (default: set by the data)"
    add("--num-supernodes", "--sites", type=positive_int, metavar="N", help=about_sites)
    about_keys = "override a config key, can be repeated; `mtfed config` lists all keys"
    add("-c", "--config", action="append", default=[], metavar="KEY=VALUE", help=about_keys)
