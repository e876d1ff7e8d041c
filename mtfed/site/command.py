"""The ``mtfed site`` commands: ``init`` and ``check``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..arguments import positive_int


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``mtfed site`` to the command line. Each command imports what it needs when it runs."""
    site = commands.add_parser("site", help="draft a hospital's manifest, and check its data")
    subcommands = site.add_subparsers(required=True, metavar="COMMAND")

    init = subcommands.add_parser(
        "init",
        help="draft manifest.csv and site.toml from the files in a folder",
        description="Draft manifest.csv and site.toml from the files in a folder. No other file is changed.",
    )
    init.add_argument("folder", type=Path)
    about_dimensions = "2 for pictures, 3 for volumes (default: whichever most of the files are)"
    init.add_argument("--dimensions", type=int, choices=(2, 3), help=about_dimensions)
    init.add_argument("--force", action="store_true", help="overwrite an existing manifest and site file")
    init.set_defaults(command=_init)

    check = subcommands.add_parser(
        "check",
        help="read every image and label once, and report what is wrong",
        description="Read every image and label of a site once, and write a page about them. No data leaves this "
        "machine. Exit code: 0 no errors were found, 1 errors were found, 2 the check could not run.",
    )
    add = check.add_argument
    add("site", type=Path, metavar="SITE", help="a folder with a manifest and a site.toml, or the site.toml itself")
    add("--app", metavar="NAME", help="use the tasks of this experiment instead of those in site.toml")
    add("--out", type=Path, help="file for the page (default: check.html in the site's folder)")
    add("--json", type=Path, metavar="FILE", help="also write the findings to this file, as JSON")
    add("--jobs", type=positive_int, metavar="N", help="reading processes (default: one per core)")
    check.set_defaults(command=_check)


def _init(arguments: argparse.Namespace) -> int:
    from .draft import draft, refuse_existing, summary, write_draft

    refuse_existing(arguments.folder, arguments.force)  # before minutes are spent on reading
    drafted = draft(arguments.folder, arguments.dimensions)
    print(summary(drafted, write_draft(drafted)))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from .check import check

    return check(arguments.site, arguments.app, arguments.out, arguments.json, arguments.jobs)
