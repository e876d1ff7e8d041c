"""The ``mtfed data`` commands: list, show, get, join."""

from __future__ import annotations

import argparse
import shlex
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import MtfedError

if TYPE_CHECKING:
    from .dataset import DataSet
    from .join import Joined
    from .prepare import Prepared

WIDTH = 110  # columns of text
EXAMPLES = """\
examples:
  mtfed data list                      all data sets: tasks, licence, and how to get each
  mtfed data show busi                 details of one data set, and the folder layout that is expected
  mtfed data get pneumoniamnist        download, verify, and prepare in data/pneumoniamnist
  mtfed data get pathmnist --size 64   the same for a larger version, in data/pathmnist-64
  mtfed data get inbreast --folder /scans/inbreast
                                       prepare files that you have placed there by hand
  mtfed simulate data/pneumoniamnist/experiment
                                       train on it
  mtfed data join data/pathmnist data/pneumoniamnist data/nodulemnist3d --out joint
                                       write an app in joint/ that trains one model on three prepared sets
"""
JOIN_EXAMPLE = """\
example:
  mtfed data get pathmnist --yes
  mtfed data get nodulemnist3d --yes
  mtfed data join data/pathmnist data/nodulemnist3d --out joint
  mtfed simulate joint                 one model of images and volumes
  mtfed simulate joint -c pooled=false as a federation of one hospital per set
"""


Subparsers = argparse._SubParsersAction  # the type that ArgumentParser.add_subparsers returns


def add_commands(commands: Subparsers) -> Subparsers:
    """Add ``mtfed data`` to the command line and return its subparsers; actions import what they need when they run."""
    data = commands.add_parser(
        "data", help="list, download and prepare public data sets", epilog=EXAMPLES,
        description="Public data sets, read in the form that their owners publish.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    actions = data.add_subparsers(required=True, metavar="ACTION")
    _add_list(actions)
    _add_get(actions)
    _add_join(actions)
    return actions


def _add_list(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    add = actions.add_parser("list", help="list the data sets, or show one of them")
    add.add_argument("name", nargs="?", metavar="NAME", help="a data set")
    add.set_defaults(command=_list)
    add = actions.add_parser("show", help="show one data set: licence, tasks, citation, layout")
    add.add_argument("name", metavar="NAME", help="a data set (see: mtfed data list)")
    add.set_defaults(command=_list)


def _add_get(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    add = actions.add_parser(
        "get",
        help="download a data set if that is allowed, and prepare it for training",
        description="Show a data set's licence, download the set if its owners allow that (an interrupted download is "
        "resumed; known checksums are verified), and write manifest.csv, site.toml and experiment/ next to it. If the "
        "set must be obtained by hand, this command shows which files to place where; run it again after that.",
    )
    add.add_argument("name", metavar="NAME", help="a data set (see: mtfed data list)")
    add.add_argument(
        "--size", type=int, metavar="PIXELS",
        help="pixels per side, of a set in several sizes (see: mtfed data show NAME); it goes to data/NAME-PIXELS",
    )  # fmt: skip
    add.add_argument("--folder", type=Path, metavar="DIR", help="folder of the set (default: data/NAME)")
    add.add_argument("--out", type=Path, metavar="DIR", help="folder to write to (default: the set's folder)")
    add.add_argument("--yes", action="store_true", help="accept the licence without being asked")
    add.set_defaults(command=_get)


def _add_join(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    add = actions.add_parser(
        "join",
        help="write an app that trains one model on several prepared sets",
        description="Write an app that trains one model, Medformer, on all tasks of several prepared sets: images and "
        "volumes, grey or RGB. The sets stay in their folders.",
        epilog=JOIN_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a set that `mtfed data get` has prepared")
    add.add_argument("--out", type=Path, required=True, metavar="APP", help="folder of the app, new or empty")
    add.set_defaults(command=_join)


def _list(arguments: argparse.Namespace) -> int:
    from . import all_sets, find_set

    if arguments.name:
        print(describe(find_set(arguments.name), Path("data") / find_set(arguments.name).name))
    else:
        _print_table(list(all_sets().values()))
    return 0


def _get(arguments: argparse.Namespace) -> int:
    from . import find_set
    from .fetch import fetch, files_to_download
    from .meter import Meter
    from .prepare import prepare

    dataset = find_set(arguments.name)
    name, options = dataset.name, ""
    if arguments.size is not None:
        dataset = dataset.version(arguments.size)
        name, options = f"{name}-{arguments.size}", f" --size {arguments.size}"
    folder: Path = arguments.folder or Path("data") / name
    print(f"{dataset.title}\n{_wrapped('licence', f'{dataset.licence}. {dataset.terms}')}")
    if files_to_download(dataset, folder) and not arguments.yes and not _is_licence_accepted(folder):
        raise MtfedError(f"Nothing was downloaded; `mtfed data get {dataset.name}{options} --yes` accepts the licence.")
    fetch(dataset, folder, Meter)
    with Meter("prepare", "images") as on_progress:
        prepared = prepare(dataset, folder, on_progress, arguments.out)
    print(_summary(dataset, prepared))
    return 0


def _join(arguments: argparse.Namespace) -> int:
    from .join import join

    print(_joined_summary(join(arguments.folders, arguments.out)))
    return 0


def _is_licence_accepted(folder: Path) -> bool:
    """Ask whether the licence is accepted; without a terminal it is not."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    return input(f"Download into {folder} under this licence? [y/N] ").strip().lower() in ("y", "yes")


def describe(dataset: DataSet, folder: Path) -> str:
    """Return the details of a data set as text, with the layout expected in a folder."""
    form = f"{'images' if dataset.dimensions == 2 else 'volumes'}, {'grey' if dataset.channels == 1 else 'RGB'}"
    sizes = ", ".join(map(str, dataset.versions))
    lines = [
        f"{dataset.name}: {dataset.title}",
        _wrapped("images", f"{dataset.images} {form}, {dataset.modality}, {dataset.body_part}"),
        *([_wrapped("sizes", f"{sizes} pixels per side, by --size; the first by default")] if sizes else []),
        _wrapped("licence", f"{dataset.licence}. {dataset.terms}"),
        _wrapped("home", dataset.home),
        _wrapped("cite", dataset.citation),
        *([_wrapped("note", dataset.note)] if dataset.note else []),
        _wrapped("get", dataset.access or f"mtfed data get {dataset.name}"),
        "  tasks",
        *(_wrapped(f"  {name}", f"{task['kind']}: {task['classes']}") for name, task in dataset.tasks.items()),
        "  layout",
        textwrap.indent(dataset.layout_tree(folder), "    "),
    ]
    return "\n".join(lines)


def _wrapped(name: str, text: str) -> str:
    head, indent = f"  {name:10} ", " " * 13
    return textwrap.fill(text, WIDTH, initial_indent=head, subsequent_indent=indent, break_long_words=False,
                         break_on_hyphens=False)  # fmt: skip


def _summary(dataset: DataSet, prepared: Prepared) -> str:
    splits = ", ".join(f"{split or 'without a split'} {count}" for split, count in prepared.splits.items())
    labels = ", ".join(f"{task} {count}" for task, count in prepared.labels.items())
    return (
        f"{prepared.folder}: {sum(prepared.splits.values())} images of {prepared.patients} patients ({splits}); "
        f"labels: {labels}.\n"
        f"Check it:     mtfed site check {shlex.quote(str(prepared.folder))}\n"
        f"Train on it:  mtfed simulate {shlex.quote(str(prepared.folder / 'experiment'))}"
    )


def _joined_summary(joined: Joined) -> str:
    sets = {name for names in joined.sets_by_task.values() for name in names}
    tasks = [f"{task} ({', '.join(names)})" for task, names in joined.sets_by_task.items()]
    words = {2: "images", 3: "volumes"}
    forms = [f"{words[form.dimensions]} of side {form.size}" for form in joined.config.forms]
    lines = [f"{joined.file}: {len(sets)} sets, {' and '.join(forms)}; tasks: {', '.join(tasks)}."]
    if joined.has_own_windows:
        lines.append("The sets have different windows, so the app sets none: see `window` in mtfed config.")
    return "\n".join([*lines, f"Train on them:  mtfed simulate {shlex.quote(str(joined.file.parent))}"])


def _print_table(sets: list[DataSet]) -> None:
    """Print one line per data set; on a terminal as a table of rich."""
    header = ("name", "images", "modality", "tasks", "licence", "get")
    rows: list[tuple[str, ...]] = [
        (s.name, f"{s.images}", s.modality, ", ".join(s.tasks), s.licence,
         "download" if s.is_downloadable else "by hand")
        for s in sets
    ]  # fmt: skip
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(*header)
        for row in rows:
            table.add_row(*row)
        Console().print(table)
        return
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
