"""What ``mtfed config`` prints: every key with its default and meaning, and every name that a key may hold."""

from __future__ import annotations

import inspect
import json
from typing import Literal, get_args, get_origin

from .config.partitions import describe_partitions
from .config.run_config import KEYS, defaults
from .config.settings import Config
from .models.specs import MODEL_SPECS
from .strategies import STRATEGIES
from .tasks.specs import KIND_SPECS


def describe_keys() -> str:
    """Return the whole page: the keys by section, then partition schemes, strategies, models and task kinds."""
    values, lines = defaults(), []
    for key, name in KEYS.items():
        field = Config.model_fields[name]
        if isinstance(extra := field.json_schema_extra, dict):
            lines.append(f"\n{extra['section']}")
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        meaning = f"{field.description} [{'|'.join(map(str, choices))}]" if choices else field.description
        lines.append(f"{key:20} {json.dumps(values[key]):16} {meaning}")
    lines += ["\nPartition schemes; partition is a sum of them", describe_partitions()]
    lines += ["\nStrategies", describe_strategies()]
    lines += ["\nModels", describe_models(), "\nTasks", describe_kinds()]
    return "\n".join(lines)


def describe_models() -> str:
    """Return one line for each model."""
    return "\n".join(f"{name:20} {spec.description}" for name, spec in MODEL_SPECS.items())


def describe_strategies() -> str:
    """Return one line for each strategy: its name and the first line of its class's docstring."""
    return "\n".join(
        f"{name:20} {(inspect.getdoc(strategy) or name).splitlines()[0]}" for name, strategy in STRATEGIES.items()
    )


def describe_kinds() -> str:
    """Return the keys that declare a task, and for each task kind the names that they may hold."""
    lines = [
        "task.NAME.kind       one of the kinds below",
        "task.NAME.classes    class names, separated by commas; quantities of a regression; structures of a dose",
        "task.NAME.loss       a sum of terms, such as 'dice + 0.5*cross-entropy'; empty: the default of the kind",
        "task.NAME.metrics    names, separated by commas; the first chooses the best round; empty: those of the kind",
        "task.NAME.decoder    empty: the first decoder of the kind",
        "task.NAME.range      lowest and highest value of a regression or a dose, such as '0, 80'; all quantities of a",
        "                     regression share it, and therefore one unit",
        "task.NAME.dimensions 2 for images, 3 for volumes; 0: the run's; a run of both needs the model medformer",
    ]
    for name, kind in KIND_SPECS.items():
        default = f" (default {kind.default_loss})" if kind.default_loss else ""
        lines += [
            f"\n{name}: a cell contains {kind.cell}",
            f"  loss     {', '.join(kind.losses)}{default}",
            f"  decoder  {', '.join(kind.decoders)}",
            f"  metrics  {', '.join(kind.metrics)}",
        ]
    return "\n".join(lines)
