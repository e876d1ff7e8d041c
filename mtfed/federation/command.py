"""The ``mtfed data partition`` command: show which site holds which data, before anything is trained."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..arguments import add_app
from ..data.partition_names import describe_partitions
from ..errors import MtfedError

FORMATS = (".png", ".svg", ".pdf")


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``mtfed data partition`` to the command line."""
    command = commands.add_parser(
        "partition",
        help="show which simulated site holds which data",
        description="Show which simulated site of an app holds which data: a table and, with --out, a chart.",
        epilog=f"schemes (-c 'partition=tasks + dirichlet'):\n{describe_partitions()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_app(command)
    command.add_argument("--out", type=Path, metavar="FILE", help=f"also draw a chart ({', '.join(FORMATS)})")
    command.set_defaults(command=_command)


def _command(arguments: argparse.Namespace) -> int:
    from ..config import read_config
    from ..data.federation import default_sites, division
    from .app_folder import find_app, override
    from .holdings import holdings, table

    if arguments.out and arguments.out.suffix.lower() not in FORMATS:
        raise MtfedError(f"Expected --out to end with {', '.join(FORMATS)}, got {str(arguments.out)!r}.")
    config = read_config(override(find_app(arguments.app).run_config, arguments.config))
    sites = arguments.num_supernodes or default_sites(config)
    of_sites, test = holdings(config, sites)
    print(table(of_sites, test, config.tasks))
    if not config.pooled and (divided := division(config, sites)) and divided.left_out:
        count = len(divided.left_out)
        print(f"Left out: {count} patient{'s' * (count > 1)} without a label of any task that their sites may hold.")
    if arguments.out:
        from .holdings_chart import draw

        draw(of_sites, config.tasks, arguments.out)
        print(arguments.out)
    return 0
