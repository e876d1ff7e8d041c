"""The ``mtfed`` command."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from .arguments import add_app, positive_int
from .config.partitions import describe_partitions
from .data.sets.command import add_commands as add_data_commands
from .errors import MtfedError
from .site.command import add_commands as add_site_commands

CHART_FORMATS = (".png", ".svg", ".pdf")
Subparsers = argparse._SubParsersAction

EXAMPLES = """\
examples:
  mtfed simulate                                 eight hospitals, chest X-rays, FedAvg
  mtfed simulate pneumonia --num-supernodes 4 -c rounds=5 -c strategy=fedprox
  mtfed simulate pneumonia --strategies fedavg fedprox alone --seeds 0 1 2
  mtfed simulate --resume runs/pneumonia-20260101-120000
  mtfed pretrain pneumonia                       train its model without labels, and print how to use the weights
  mtfed report runs/pneumonia-*                  one page that compares several runs
  mtfed site init /data/xray                     draft a hospital's manifest and site file
  mtfed site check /data/xray                    read every image and label once, and list what is wrong
  mtfed data list                                public data sets: tasks, licence, how to get them
  mtfed data partition pneumonia --out sites.png which simulated hospital holds which data
  mtfed export sites                             the sample as folders, in the form a hospital would use
  mtfed config                                   every config key with its default and its meaning
"""


PRETRAIN_EXAMPLES = """\
examples:
  mtfed pretrain pneumonia -c rounds=20          prints the path of the weights
  mtfed simulate pneumonia -c label-share=0.1 -c weights=runs/pneumonia-pretrain-.../checkpoints/best.safetensors
  mtfed pretrain pneumonia --num-supernodes 8    as a federation: no image leaves its site
  mtfed pretrain pneumonia --kinds "reconstruction + 0.5*views" -c task.views.loss=vicreg
"""


class Parser(argparse.ArgumentParser):
    """A parser whose help of ``simulate`` ends with the strategies; they are only imported for that help."""

    def format_help(self) -> str:
        if self.prog.endswith("simulate"):
            from .config_help import describe_strategies

            self.formatter_class = argparse.RawDescriptionHelpFormatter
            self.epilog = f"strategies (-c strategy=NAME):\n{describe_strategies()}"
        return super().format_help()


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0 for success, 1 for a failed run, 2 for a mistake in the request."""
    arguments = parser().parse_args(argv)
    # A request to terminate must run the `finally` blocks, which end workers and a SuperLink.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        return arguments.command(arguments) or 0
    except MtfedError as error:
        print(f"mtfed: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mtfed: interrupted; continue a run after its last finished round with --resume.", file=sys.stderr)
        return 130
    except RuntimeError as error:
        from .strategies import FederationError

        if not isinstance(error, FederationError):
            raise
        print(f"mtfed: {error}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top: argparse.ArgumentParser = Parser(
        prog="mtfed",
        description="Federated multi-task medical imaging on Flower.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _add_simulate(commands)
    _add_pretrain(commands)
    _add_report(commands)
    _add_export(commands)
    add_site_commands(commands)
    _add_partition(add_data_commands(commands))
    commands.add_parser("config", help="list every config key").set_defaults(command=_config)
    return top


def _add_simulate(commands: Subparsers) -> None:
    command = commands.add_parser(
        "simulate",
        help="run a federation with simulated hospitals",
        description="Run an app folder with simulated hospitals. Its run folder has metrics, weights and a report.",
    )
    add_app(command)
    _add_run_options(command)
    add = command.add_argument
    about_strategies = "run these strategies from the same initial weights, and write one page that compares them"
    add("--strategies", nargs="+", metavar="NAME", help=about_strategies)
    add("--seeds", nargs="+", type=int, metavar="N", help="run with each of these seeds, and compare the runs")
    add("--tasks", nargs="+", metavar="NAME", help="train only these of the app's tasks")
    add("--resume", type=Path, metavar="RUN", help="continue a run folder after its last finished round")
    command.set_defaults(command=_simulate)


def _add_pretrain(commands: Subparsers) -> None:
    command = commands.add_parser(
        "pretrain",
        help="train an app's model on its images without labels",
        description="Train the model of an app on all its training images, without labels: with tasks that need none "
        "in place of its own. The images are on one machine, or at the sites of a federation (--num-supernodes).",
        epilog=PRETRAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_app(command)
    _add_run_options(command)
    about_kinds = "sum of task kinds without labels, with weights (default: all three); `mtfed config` describes them"
    command.add_argument("--kinds", metavar="SUM", help=about_kinds)
    about_tasks = "the app's tasks that the weights are for: images, volumes, or both (default: all tasks)"
    command.add_argument("--tasks", nargs="+", metavar="NAME", default=[], help=about_tasks)
    command.set_defaults(command=_pretrain)


def _add_run_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    about_engines = "worker processes on this machine, or Flower's Ray engine (default: local)"
    add("--engine", choices=("local", "ray"), default="local", help=about_engines)
    about_workers = "worker processes of the local engine (default: one per core)"
    add("--workers", type=positive_int, metavar="N", help=about_workers)
    add("--seed", type=int, help="the same as -c seed=N")
    add("--out", type=Path, help="folder in which the run folder is created (default: runs)")


def _add_report(commands: Subparsers) -> None:
    command = commands.add_parser("report", help="write one page about one or several runs")
    command.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    about_page = "the page (default: report.html in the run folder, or in the common parent of several)"
    command.add_argument("--out", type=Path, help=about_page)
    command.set_defaults(command=_report)


def _add_export(commands: Subparsers) -> None:
    about = "write the sample as site folders, in the form a hospital would keep its data"
    command = commands.add_parser("export", help=about)
    add = command.add_argument
    add("folder", type=Path, help="a new or empty folder")
    add("--num-supernodes", "--sites", type=positive_int, default=8, metavar="N", help="number of sites (default: 8)")
    command.set_defaults(command=_export)


def _add_partition(commands: Subparsers) -> None:
    command = commands.add_parser(
        "partition",
        help="show which simulated site holds which data",
        description="Show which simulated site of an app holds which data: a table and, with --out, a chart.",
        epilog=f"schemes (-c 'partition=tasks + dirichlet'):\n{describe_partitions()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_app(command)
    command.add_argument("--out", type=Path, metavar="FILE", help=f"also draw a chart ({', '.join(CHART_FORMATS)})")
    command.set_defaults(command=_partition)


def _simulate(arguments: argparse.Namespace) -> int:
    # The cost of a federation must not depend on how many threads a library would start in each worker; the config's
    # torch-threads sets the number for a site's training.
    os.environ["OMP_NUM_THREADS"] = "1"
    from .federation.app_folder import find_app, only_tasks, override
    from .federation.simulate import compare, simulate

    app, sites = find_app(arguments.app), arguments.num_supernodes
    run_config = app.run_config
    if arguments.resume:
        from .record.run import Run

        run = Run.open(arguments.resume)
        run_config = run.read_json("config.json")  # the config that began the run, not the app's present one
        sites = sites or len(run.read_json("sites.json")) or None
    options = {"seed": arguments.seed, "out": arguments.out, "resume": arguments.resume}
    options = {key: str(value.resolve()) if isinstance(value, Path) else value for key, value in options.items()}
    run_config = override(run_config, arguments.config)
    run_config |= {key: value for key, value in options.items() if value is not None}
    if arguments.tasks:
        run_config = only_tasks(run_config, arguments.tasks)
    if not (arguments.strategies or arguments.seeds):
        return simulate(app, run_config, sites, arguments.engine, arguments.workers)
    if arguments.resume:
        raise MtfedError("Expected --resume alone: a comparison cannot be resumed; resume its runs one by one.")
    # A seed's runs share their initial weights.
    seeds = arguments.seeds or [run_config.get("seed", 0)]
    strategies = arguments.strategies or [run_config.get("strategy", "fedavg")]
    variants = [run_config | {"strategy": strategy, "seed": seed} for seed in seeds for strategy in strategies]
    return compare(app, variants, sites, arguments.engine, arguments.workers)


def _pretrain(arguments: argparse.Namespace) -> int:
    os.environ["OMP_NUM_THREADS"] = "1"  # as for simulate
    from .federation.pretrain import DEFAULT_KINDS, pretrain

    given = {"seed": arguments.seed, "out": arguments.out and arguments.out.resolve()}
    pairs = [*arguments.config, *(f"{key}={value}" for key, value in given.items() if value is not None)]
    kinds, sites = arguments.kinds or DEFAULT_KINDS, arguments.num_supernodes
    return pretrain(arguments.app, pairs, kinds, sites, arguments.engine, arguments.workers, arguments.tasks)


def _report(arguments: argparse.Namespace) -> int:
    from .report import write_report

    print(write_report(arguments.runs, arguments.out))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from .config import read_config
    from .data.simulated_sites import export_sample
    from .federation.app_folder import find_app

    config = read_config(find_app("pneumonia").run_config)
    for folder, images in export_sample(config, arguments.num_supernodes, arguments.folder):
        print(f"{folder}  {images} images")
    return 0


def _partition(arguments: argparse.Namespace) -> int:
    from .config import read_config
    from .data.simulated_sites import default_sites, division
    from .federation.app_folder import find_app, override
    from .federation.holdings import holdings, table

    if arguments.out and arguments.out.suffix.lower() not in CHART_FORMATS:
        raise MtfedError(f"Expected --out to end with {', '.join(CHART_FORMATS)}, got {str(arguments.out)!r}.")
    config = read_config(override(find_app(arguments.app).run_config, arguments.config))
    sites = arguments.num_supernodes or default_sites(config)
    of_sites, test = holdings(config, sites)
    shown = config.labelled_tasks or config.tasks
    print(table(of_sites, test, shown))
    if not config.pooled and (divided := division(config, sites)) and (count := len(divided.left_out)):
        print(f"Left out: {count} patient{'s' * (count > 1)} without a label of any task that their sites may hold.")
    if arguments.out:
        from .federation.holdings_chart import draw

        draw(of_sites, shown, arguments.out)
        print(arguments.out)
    return 0


def _config(_: argparse.Namespace) -> int:
    from .config_help import describe_keys

    print(describe_keys())
    return 0


if __name__ == "__main__":
    sys.exit(main())
