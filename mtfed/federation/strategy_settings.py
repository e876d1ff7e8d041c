"""Make a strategy from the values of a config."""

from __future__ import annotations

import inspect

from ..config import Config
from ..errors import MtfedError, unknown
from ..models.system import MultiTaskModel
from ..strategies import STRATEGIES, TaskStrategy

CONFIG_FIELDS = {"retry_timeout": "round_timeout"}  # parameters of strategies that the config has under another name


def make_strategy(config: Config, model: MultiTaskModel | None = None) -> TaskStrategy:
    """Return the config's strategy, with every parameter of its constructor that the config has a value for.

    A strategy that matches units also gets the axes of the model; without a model, only the settings are checked.
    """
    if config.strategy not in STRATEGIES:
        message = str(unknown("strategy", config.strategy, STRATEGIES))
        if "expected one of" not in message:
            message += f" Expected one of: {', '.join(sorted(STRATEGIES))}."
        raise MtfedError(message)
    strategy = STRATEGIES[config.strategy]
    names = parameters(strategy)
    values = config.model_dump(exclude={"tasks"})
    values |= {name: values[field] for name, field in CONFIG_FIELDS.items()}
    if "axes" in names and config.matching and model is not None:
        from ..models.symmetry import derive_axes

        values["axes"] = derive_axes(model)
    return strategy(**{name: value for name, value in values.items() if name in names})


def parameters(strategy: type[TaskStrategy]) -> set[str]:
    """Return the constructor parameters of a strategy and its bases, except those that a published method fixes."""
    constructors = [vars(base)["__init__"] for base in strategy.__mro__ if "__init__" in vars(base)]
    all_parameters = [p for constructor in constructors for p in inspect.signature(constructor).parameters.values()]
    names = {p.name for p in all_parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    return names - {"self", *getattr(strategy, "fixed", ())}
