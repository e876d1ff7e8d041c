"""Train an app's model without labels, so that a run with labels can start from its weights.

Labels have no influence on the division of a set among sites and on the choice of validation patients here. If a set's
manifest does not name its splits, the training images may therefore include validation images of a later run with
labels. Test images are never trained on.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from ..config import keys_of, read_config
from ..errors import MtfedError, unknown
from ..strategies import STRATEGIES
from ..tasks.specs import KIND_SPECS
from ..tasks.task import TERM
from .app_folder import find_app, only_tasks, override
from .simulate import RunConfig, run_folders, simulate

DEFAULT_KINDS = "reconstruction + orientation + views"


def pretrain(
    name: str,
    pairs: list[str],
    kinds: str,
    sites: int | None,
    engine: str,
    workers: int | None,
    tasks: Sequence[str] = (),
) -> int:
    """Run an app with tasks that need no labels in place of its own, and print how to use the weights.

    Args:
        name: name or path of the app, whose data and model are used.
        pairs: config overrides, ``key=value``; keys of tasks are those of the new tasks. They precede what
            :func:`pretext_config` sets, except the name, which it extends.
        kinds: a sum of kinds that need no labels, such as "reconstruction + 0.5*views".
        sites: number of sites of a federation; None: all images on one machine.
        engine: see :func:`.simulate.simulate`.
        workers: see :func:`.simulate.simulate`.
        tasks: the app's tasks that the model is meant for, whose dimensionalities it is trained on; by default all.

    Returns:
        The exit code.

    Raises:
        MtfedError: if ``kinds`` is wrong, or the strategy gives no common weights.
    """
    app = find_app(name)
    own = [pair for pair in pairs if not pair.strip().startswith("task.")]
    app_config = only_tasks(app.run_config, tasks) if tasks else app.run_config
    run_config = pretext_config(override(app_config, own), kinds, federated=sites is not None)
    run_config = override(run_config, [pair for pair in pairs if pair.partition("=")[0].strip() != "name"])
    config = read_config(run_config)
    if config.strategy in STRATEGIES and not STRATEGIES[config.strategy].is_federated:
        raise MtfedError(
            f"Config key strategy: expected one that trains common weights, from which a run can start, got "
            f"{config.strategy}; use fedavg, or omit --num-supernodes and the strategy."
        )
    if not config.encoder_rate:
        raise MtfedError(
            "Config key encoder-rate: expected above 0 for pre-training, which trains the encoder, got 0; omit it."
        )
    before = run_folders(config)
    if code := simulate(app, run_config, sites, engine, workers):
        return code
    for folder in sorted(run_folders(config) - before)[-1:]:
        weights = folder / "checkpoints" / "best.safetensors"
        print(f"weights: {weights}\nto use them: {command_of_later_run(name, pairs, weights, sites, tasks)}")
    return 0


def command_of_later_run(
    name: str, pairs: list[str], weights: Path, sites: int | None, tasks: Sequence[str] = ()
) -> str:
    """Return the command that trains an app from the weights, on the same data, sites and model as the pre-training.

    Overrides are repeated if their keys are among those of data and model; but the weights are the new ones, and the
    balancing is about the tasks of the pre-training.
    """
    keys = (keys_of("Data") | keys_of("Model")) - {"weights", "balancing"}
    repeated = [pair.strip() for pair in pairs if pair.partition("=")[0].strip() in keys]
    words = ["mtfed", "simulate", name, *(["--num-supernodes", str(sites)] if sites else [])]
    words += ["--tasks", *tasks] if tasks else []
    return shlex.join([*words, *(word for pair in [*repeated, f"weights={weights}"] for word in ("-c", pair))])


def pretext_config(run_config: RunConfig, kinds: str, *, federated: bool) -> RunConfig:
    """Return a run config with tasks that need no labels in place of its own tasks, one set for each dimensionality.

    A weight becomes the weight of the task's loss, and the losses are added up. If not ``federated``, all images are at
    one site.

    Raises:
        MtfedError: if ``kinds`` is not a sum of such kinds.
    """
    terms = read_terms(kinds)
    dimensionalities = sorted({task.dimensions for task in read_config(run_config).tasks.values()})
    changed = {key: value for key, value in run_config.items() if not key.startswith("task.")}
    changed |= {"name": f"{run_config.get('name', 'run')}-pretrain", "balancing": "equal"}
    # What depends on the tasks or their labels.
    changed |= {"weighting": "samples", "task-weights": "", "label-share": 1.0, "unlabelled": 0.0, "resume": ""}
    changed |= {"encoder-rate": 1.0, "lora-rank": 0}  # the encoder is what pre-training is for
    changed["augment"] = "none"  # these tasks change images by themselves, and a mirrored image hides its orientation
    changed["pooled"] = not federated
    if not federated:
        changed |= {"min-sites": 1, "strategy": "fedavg"}  # the other strategies merge several sites
    for dimensions in dimensionalities:
        for kind, weight in terms.items():
            name = kind if dimensions == dimensionalities[0] else f"{kind}-{dimensions}d"
            loss = KIND_SPECS[kind].default_loss or KIND_SPECS[kind].losses[0]
            changed |= {f"task.{name}.kind": kind, f"task.{name}.dimensions": dimensions}
            changed[f"task.{name}.loss"] = loss if weight == 1 else f"{_decimal(weight)}*{loss}"
    return changed


def read_terms(kinds: str) -> dict[str, float]:
    """Return the kinds of a sum such as "reconstruction + 0.5*views" with their weights."""
    options = [kind for kind, spec in KIND_SPECS.items() if spec.every_image]
    terms: dict[str, float] = {}
    for word in kinds.split("+"):
        match = TERM.fullmatch(word.strip())
        weight = float(match[1] or 1) if match else 0.0
        if match is None or not weight or match[2] in terms:
            raise MtfedError(
                f"Expected --kinds to be a sum of different kinds with weights above 0, such as '{options[0]} + "
                f"0.5*{options[-1]}', got {kinds!r}."
            )
        if match[2] not in options:
            raise unknown("kind of task without labels", match[2], options)
        terms[match[2]] = weight
    return terms


def _decimal(number: float) -> str:
    return f"{number:.10f}".rstrip("0").rstrip(".")
