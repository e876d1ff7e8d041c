"""The ``mtfed site`` commands: init, check."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``mtfed site`` to the command line; what it needs is imported when it runs."""
    site = commands.add_parser("site", help="draft a hospital's manifest, and check its data")
    of_site = site.add_subparsers(required=True, metavar="COMMAND")

    add = of_site.add_parser(
        "init",
        help="draft manifest.csv and site.toml from what lies in a folder",
        description="Draft manifest.csv and site.toml from what lies in a folder; nothing else in it is changed.",
    )
    add.add_argument("folder", type=Path)
    add.add_argument(
        "--dimensions", type=int, choices=(2, 3), help="pictures or volumes (default: what most files are)"
    )
    add.add_argument("--force", action="store_true", help="write over a manifest and a site file that are there")
    add.set_defaults(command=_init)

    add = of_site.add_parser(
        "check",
        help="read every image and label once, and say what is wrong",
        description="Read every image and label of a site once, and write a page about them. Nothing leaves this "
        "machine. Exit code: 0 no errors, 1 errors, 2 asked for something wrong.",
    )
    add.add_argument("site", type=Path, metavar="SITE", help="a folder with a manifest and a site.toml, or that file")
    add.add_argument("--app", metavar="NAME", help="take the tasks from an experiment, not from site.toml")
    add.add_argument("--out", type=Path, help="the page (default: check.html in the site's folder)")
    add.add_argument("--json", type=Path, metavar="FILE", help="write what was found as JSON, too")
    add.add_argument("--jobs", type=_positive, metavar="N", help="processes that read (default: one per core)")
    add.set_defaults(command=_check)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def _init(arguments: argparse.Namespace) -> int:
    from .draft.draft import draft
    from .draft.write import refuse_existing, summary, write_draft

    refuse_existing(arguments.folder, arguments.force)  # before minutes are spent on reading
    found = draft(arguments.folder, arguments.dimensions)
    print(summary(found, write_draft(found)))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from .check.check import check

    return check(arguments.site, arguments.app, arguments.out, arguments.json, arguments.jobs)
