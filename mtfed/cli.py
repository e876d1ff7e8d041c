"""The ``mtfed`` command."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from .data.sets.command import add_commands as data_commands
from .errors import MtfedError
from .federation.holdings import add_parser as add_partition
from .site.command import add_commands as site_commands

EXAMPLES = """\
examples:
  mtfed simulate                                 eight hospitals, chest X-rays, FedAvg
  mtfed simulate pneumonia --num-supernodes 4 -c rounds=5 -c strategy=fedprox
  mtfed simulate pneumonia --strategies fedavg fedprox alone --seeds 0 1 2
  mtfed simulate --resume runs/pneumonia-20260101-120000
  mtfed report runs/pneumonia-*                  one page that compares runs
  mtfed site init /data/xray                     draft a hospital's manifest and site file
  mtfed site check /data/xray                    read all of it once, and say what is wrong
  mtfed data list                                public data sets: tasks, licence, how each is got
  mtfed data partition pneumonia --out who.png   which simulated hospital would hold what
  mtfed export sites                             the sample as folders, as a hospital would hold it
  mtfed config                                   every config key, its default and its meaning
"""


class Parser(argparse.ArgumentParser):
    """A command whose help ends with the strategies; they are only looked up when somebody asks for it."""

    def format_help(self) -> str:
        if self.prog.endswith("simulate"):
            from .config.help import describe_strategies

            self.formatter_class = argparse.RawDescriptionHelpFormatter
            self.epilog = f"strategies (-c strategy=NAME):\n{describe_strategies()}"
        return super().format_help()


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 the run failed, 2 it was asked for something wrong."""
    arguments = parser().parse_args(argv)
    # So that being told to end runs what stands in finally: workers and a SuperLink are ended with us.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        return arguments.command(arguments) or 0
    except MtfedError as error:
        print(f"mtfed: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mtfed: interrupted; a run goes on from its last finished round with --resume.", file=sys.stderr)
        return 130
    except RuntimeError as error:
        from .strategies import FederationError

        if not isinstance(error, FederationError):
            raise
        print(f"mtfed: {error}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    top: argparse.ArgumentParser = Parser(
        prog="mtfed",
        description="Federated multi-task medical imaging on Flower.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    add = commands.add_parser(
        "simulate",
        help="run a federation with simulated hospitals",
        description="Run an app folder with simulated hospitals; leave a run folder with figures, weights, report.",
    )
    add.add_argument(
        "app", nargs="?", default="pneumonia", help="a folder of experiments/, or a path (default: pneumonia)"
    )
    add.add_argument(
        "--num-supernodes", "--sites", type=_positive, metavar="N", help="hospitals (default: what the data makes)"
    )
    add.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="worker processes on this machine, or Flower's Ray engine",
    )
    add.add_argument(
        "--workers", type=_positive, metavar="N", help="worker processes of the local engine (default: one per core)"
    )
    add.add_argument(
        "-c",
        "--config",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a config key (see: mtfed config)",
    )
    add.add_argument("--seed", type=int, help="the same as -c seed=N")
    add.add_argument("--out", type=Path, help="the folder of run folders (default: runs)")
    add.add_argument(
        "--strategies",
        nargs="+",
        metavar="NAME",
        help="run each of them from the same start, and write one page that compares them",
    )
    add.add_argument("--seeds", nargs="+", type=int, metavar="N", help="run with each of these seeds, and compare")
    add.add_argument("--resume", type=Path, metavar="RUN", help="continue a run folder at its last finished round")
    add.set_defaults(command=_simulate)

    add = commands.add_parser("report", help="write one page about one or several runs")
    add.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    add.add_argument(
        "--out", type=Path, help="the page (default: report.html in the run, or in the folder of the runs)"
    )
    add.set_defaults(command=_report)

    add = commands.add_parser("export", help="write the sample as site folders, as a hospital would hold its data")
    add.add_argument("folder", type=Path)
    add.add_argument("--num-supernodes", "--sites", type=_positive, default=8, metavar="N")
    add.set_defaults(command=_export)

    site_commands(commands)
    add_partition(data_commands(commands))

    add = commands.add_parser("config", help="list the config keys")
    add.set_defaults(command=_config)
    return top


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def _simulate(arguments: argparse.Namespace) -> int:
    # What a federation costs must not depend on how many threads a library thinks it may start in each worker.
    os.environ["OMP_NUM_THREADS"] = "1"  # torch-threads says how many a site's own work has
    from .federation.app_folder import find_app, override
    from .federation.simulate import compare, simulate

    app, sites = find_app(arguments.app), arguments.num_supernodes
    run_config = app.run_config
    if arguments.resume:
        from .record.run import Run

        run = Run.open(arguments.resume)
        run_config = run.read_json("config.json")  # what it was begun with, whatever the app says today
        sites = sites or len(run.read_json("sites.json")) or None
    given = {"seed": arguments.seed, "out": arguments.out, "resume": arguments.resume}
    given = {key: str(value.resolve()) if isinstance(value, Path) else value for key, value in given.items()}
    run_config = override(run_config, arguments.config)
    run_config |= {key: value for key, value in given.items() if value is not None}
    how = (sites, arguments.engine, arguments.workers)
    if not (arguments.strategies or arguments.seeds):
        return simulate(app, run_config, *how)
    if arguments.resume:
        raise MtfedError("Expected --resume alone: a comparison cannot be resumed, each of its runs can.")
    return compare(app, run_config, arguments.strategies or [], arguments.seeds or [], *how)


def _report(arguments: argparse.Namespace) -> int:
    from .report import write_report

    print(write_report(arguments.runs, arguments.out))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from .config import read_config
    from .data.export import export_sample
    from .federation.app_folder import find_app

    config = read_config(find_app("pneumonia").run_config)
    for folder, rows in export_sample(config, arguments.num_supernodes, arguments.folder):
        print(f"{folder}  {rows} images")
    return 0


def _config(_: argparse.Namespace) -> int:
    from .config.help import describe_keys

    print(describe_keys())
    return 0


if __name__ == "__main__":
    sys.exit(main())
