"""One typed config from Flower's run config: kebab-case keys, every error names its key.

Server and sites read the same keys; what a site knows of itself (its folder) is in its node config instead.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from .data.partition_names import describe_partitions, is_flower, read_partition
from .errors import MtfedError, unknown
from .tasks.specs import KIND_SPECS
from .tasks.task import Task

RunConfigValue = bool | int | float | str
MODELS = {  # what mtfed.models builds
    "mtmedformer": "shared transformer encoder, a decoder a task (Nath, Shukla, Gupta, 2025)",
    "hard-sharing": "shared encoder of any kind, a decoder a task",
    "single-task": "an encoder and a decoder a task, nothing shared",
    "mtan": "shared encoder, a mask on its features for each task (Liu, Johns, Davison, 2019)",
    "ctan": "tasks attend to each other in the encoder and at the bottleneck (Kim, Purdie, McIntosh, 2023)",
    "ctan-encoder": "ctan without the bottleneck's attention",
    "ctan-bottleneck": "ctan without the encoder's attention",
}
Weight = Annotated[float, Field(gt=0)]
Augment = Literal["none", "shift", "mirror", "strong"]


class Config(BaseModel):
    """The settings of a run. Defaults are those of a small model that trains on two cores."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=lambda name: name.replace("_", "-"),
        populate_by_name=True,
        allow_inf_nan=False,
    )

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")  # a run's folder is NAME-TIME
    tasks: dict[str, Task] = Field(min_length=1)  # from the task.NAME.* keys
    seed: int = Field(0, ge=0, lt=2**63)  # initial weights, batches, choice of sites

    # Data
    data: str = "sample"  # "sample" (embedded chest X-rays), a folder of site folders, or one set to be divided
    dimensions: Literal[2, 3] = 2  # pictures or volumes
    image_size: int = Field(64, ge=8, le=4096)  # pixels; images are resized to a square or cube of this side
    channels: Literal[1, 3] = 1  # grey or RGB
    proportions: Literal["millimetres", "pixels"] = "millimetres"  # that images keep, where files tell millimetres
    window: str = ""  # "level, width" of images of more than 8 bits, as in "40, 400"; empty: the file's, or its range
    normalise: Literal["image", "site"] = "image"  # mean 0, deviation 1: of each image, or of the site's
    max_unreadable: float = Field(0.0, ge=0, lt=1)  # share of a site's images that may be left out as unreadable
    validation_share: float = Field(0.2, gt=0, lt=1)  # of a site's patients, where its manifest sets none aside
    partition: str = "tasks + dirichlet"  # how one set is divided among simulated sites: schemes, listed below
    partition_alpha: float = Field(1.0, gt=0)  # Dirichlet concentration of class shares or quantities among sites
    partition_column: str = Field("site", min_length=1)  # the manifest's column that the scheme "column" goes by
    partition_options: str = ""  # arguments of a partitioner "flwr:NAME", as in "alpha=0.5, partition_by=site"
    partition_seed: int = Field(0, ge=0)  # who gets which patients; apart from seed, so that seeds compare
    feature_shift: float = Field(0.0, ge=0, le=1)  # how far simulated sites' images differ as scanners' do; 0: not
    pooled: bool = False  # one site with all simulated sites' images: the ceiling that no federation has

    # Model
    model: str = "mtmedformer"
    encoder: str = "vit_mini_patch8"  # any timm encoder by name; of volumes, one of ours
    weights: str = ""  # its pretrained weights: "timm" for those published under its name, or a file; empty: none
    decoder_width: int = Field(48, ge=4)  # channels of decoders that draw
    balancing: Literal["uncertainty", "equal", "dwa", "gradnorm", "pcgrad"] = "uncertainty"  # of the tasks' losses
    focal_gamma: float = Field(2.0, ge=0)  # focusing of the loss term "focal" of classes and masks

    # Local training
    augment: Augment = "none"  # shift: zoom, contrast, too; mirror: sides, too; strong: turns, blur, noise, too
    local_epochs: int = Field(1, ge=1)  # passes over a site's shard a round
    local_steps: int = Field(0, ge=0)  # if above 0: this many steps a round instead of epochs
    min_steps: int = Field(0, ge=0)  # at least this many steps a round, so that a small shard is passed over again
    batch_size: int = Field(32, ge=1)
    accumulate: int = Field(1, ge=1)  # pieces that a batch is computed in, to save memory
    learning_rate: float = Field(1e-3, gt=0)
    schedule: Literal["constant", "cosine"] = "cosine"  # over the rounds, down to a tenth
    warmup: int = Field(0, ge=0)  # steps of a site's first round over which the learning rate rises from 0
    clip_norm: float = Field(0.0, ge=0)  # largest norm of a step's gradient; 0: any
    weight_decay: float = Field(0.01, ge=0)

    # Federation
    strategy: str = "fedavg"
    weighting: Literal["samples", "uniform", "tasks"] = "samples"  # how averaging counts a site in the encoder
    task_weights: dict[str, Weight] = {}  # with weighting = "tasks": "lungs=4, pneumonia=1"; 1 where not named
    proximal_mu: float = Field(0.01, ge=0)  # pull to the global weights, strategy = "fedprox"
    server_learning_rate: float = Field(0.01, gt=0)  # step of the server's optimiser, "fedadam" and "fedyogi"
    server_beta1: float = Field(0.9, ge=0, lt=1)  # its momentum
    server_beta2: float = Field(0.99, ge=0, lt=1)  # its memory of squared steps
    server_tau: float = Field(1e-3, gt=0)  # its adaptivity: weights that move less a round are moved in proportion
    precision: Literal["fisher", "none"] = "fisher"  # what sites tell of their weights, strategy = "bayesian"
    curvature_samples: int = Field(256, ge=0)  # images a task that a site measures it on; 0: all
    precision_floor: float = Field(0.2, ge=0)  # least precision of a weight, as a share of its row's mean
    prior_strength: float = Field(0.0, ge=0, le=1)  # how much of the last rounds' precision still holds
    cavity: float = Field(1.0, ge=0)  # how much of the other sites' posterior a site trains under; 0: none
    matching: bool = True  # bring units into the global model's order before a merge
    start: Literal["common", "apart"] = "common"  # apart: sites bring models of their own to the first round
    apart_epochs: int = Field(10, ge=1)  # passes that a simulated site has trained such a model for
    inner: Literal["none", "orth", "gl"] = "orth"  # freedom inside heads of models that never shared a start
    gate: float = Field(1e-3, ge=0)  # least relative gain of a new order of units
    gamma: float = Field(1.0, gt=0)  # how readily a unit opens a place of its own, strategy = "growing"
    width_cap: float = Field(1.5, ge=1)  # most units of its global model, in times of the sites' width
    sigma0: float = Field(1.0, gt=0)  # variance of a global weight around 0, in those of a site's, strategy = "pfnm"
    rounds: int = Field(10, ge=1)
    fraction_train: float = Field(1.0, gt=0, le=1)  # share of the sites trained a round
    min_sites: int = Field(1, ge=1)  # sites that must have joined before round 1
    join_timeout: float = Field(600.0, gt=0)  # seconds to wait for them
    round_timeout: float = Field(3600.0, gt=0)  # seconds to wait for the sites' answers
    on_failure: Literal["skip", "retry", "fail"] = "skip"  # a site that fails in a round
    retries: int = Field(1, ge=0)
    quorum: float = Field(0.0, ge=0, le=1)  # share of the asked sites that must answer
    max_norm_ratio: float = Field(0.0, ge=0)  # refuse updates so many times larger than other sites' median; 0: never

    # Evaluation
    evaluate_every: int = Field(1, ge=0)  # rounds between the sites' evaluations; 0: after the last only
    test_every: int = Field(1, ge=0)  # rounds between looks at the server's test images; no choice goes by them
    patience: int = Field(0, ge=0)  # evaluations without improvement before stopping; 0: never
    stop_per_task: bool = False  # patience counts for each task by itself

    # Record
    out: str = "runs"  # folder of the run folders
    resume: str = ""  # a run folder to continue
    share_class_counts: bool = False  # simulated sites tell class counts; a real site's node config decides for it
    share_tracebacks: bool = False  # likewise a failing site's traceback, which may hold file names

    # Machine
    autocast: Literal["auto", "none", "bfloat16", "float16"] = "auto"  # auto: bfloat16 where a CUDA GPU can
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile; auto: for long trainings on a CUDA GPU
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")
    torch_threads: int = Field(1, ge=1)  # per site; figures are bit-equal only at the same count

    @field_validator("task_weights", mode="before")
    @classmethod
    def _read_task_weights(cls, value: object, info: ValidationInfo) -> object:
        """Read ``TASK=NUMBER`` pairs: Flower's run config holds no tables but the tasks' own."""
        if isinstance(value, str):
            pairs = [[word.strip() for word in pair.split("=", 1)] for pair in value.split(",") if pair.strip()]
            if not all(len(pair) == 2 for pair in pairs) or len(dict(pairs)) < len(pairs):
                raise ValueError("expected TASK=NUMBER once a task, as in 'lungs=4, pneumonia=1'")
            value = dict(pairs)
        if value and info.data.get("weighting") != "tasks":
            raise ValueError('expected weighting = "tasks" beside it, as nothing else reads it')
        tasks = info.data.get("tasks", {})
        if isinstance(value, dict) and (strange := sorted(value.keys() - tasks.keys())):
            raise ValueError(f"expected weights of the tasks {', '.join(tasks)}, there is no task {strange[0]!r}")
        return value

    @field_validator("partition")
    @classmethod
    def _check_partition(cls, value: str) -> str:
        read_partition(value)
        return value

    @field_validator("partition_options")
    @classmethod
    def _check_partition_options(cls, value: str, info: ValidationInfo) -> str:
        if value and "partition" in info.data and not is_flower(read_partition(info.data["partition"])):
            raise ValueError("expected partition = 'flwr:NAME' beside it, as nothing else reads it")
        return value

    @field_validator("window")
    @classmethod
    def _check_window(cls, value: str) -> str:
        if value:
            _window_ends(value)
        return value

    @field_validator("start")
    @classmethod
    def _check_start(cls, value: str, info: ValidationInfo) -> str:
        if value == "apart" and info.data.get("weights"):
            raise ValueError("expected 'common' beside weights, which sites that start apart would not read")
        return value

    @property
    def window_ends(self) -> tuple[float, float] | None:
        """Return the low and the high end of the window; None where it is left to the images."""
        return _window_ends(self.window) if self.window else None

    @cached_property
    def key(self) -> str:
        """Return what tells this config from another, for caches."""
        return self.model_dump_json()

    def __hash__(self) -> int:
        return hash(self.key)


def _window_ends(window: str) -> tuple[float, float]:
    try:
        level, width = (float(word) for word in window.split(","))
    except ValueError:
        level, width = 0.0, 0.0
    if not (width > 0 and abs(level) + width < float("inf")):
        raise ValueError("expected a level and a width above 0, as in '40, 400'")
    return level - width / 2, level + width / 2


def read_config(run_config: Mapping[str, RunConfigValue]) -> Config:
    """Build the config from Flower's flat run config; raise :class:`MtfedError` naming the first wrong key."""
    values: dict[str, Any] = {"tasks": {}}
    # In the order of their names: not every engine keeps the order of a run config, and who holds what goes by it.
    for key, value in sorted(run_config.items()):
        if key.startswith("task."):
            _, name, *field = key.split(".")
            if len(field) != 1 or field[0] not in TASK_FIELDS:
                raise unknown("config key", key, [f"task.{name}.{known}" for known in TASK_FIELDS])
            values["tasks"].setdefault(name, {"name": name})[field[0]] = value
        elif key not in KEYS:
            raise unknown("config key", key, KEYS)
        else:
            values[key] = value
    if not values["tasks"]:
        raise MtfedError(
            "The config declares no task; add a table [tool.flwr.app.config.task.NAME] with kind and classes."
        )
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise MtfedError(_sentence(error, values)) from None


TASK_FIELDS = tuple(field for field in Task.model_fields if field != "name")
KEYS = {str(field.alias): name for name, field in Config.model_fields.items() if name != "tasks"}


def flatten(config: Config) -> dict[str, RunConfigValue]:
    """Return the config as a flat run config that :func:`read_config` reads back to the same config."""
    flat = config.model_dump(by_alias=True, exclude={"tasks", "task_weights"})
    flat["task-weights"] = ", ".join(f"{task}={weight}" for task, weight in config.task_weights.items())
    for task in config.tasks.values():
        told = task.model_dump(exclude={"name"})
        told |= {"classes": ", ".join(task.classes), "metrics": ", ".join(task.metrics)}
        told["range"] = ", ".join(repr(value).removesuffix(".0") for value in task.range)
        flat |= {f"task.{task.name}.{field}": value for field, value in told.items()}
    return flat


def defaults() -> dict[str, RunConfigValue]:
    """Return what each key is if nobody sets it, flat."""
    found = {alias: Config.model_fields[name].default for alias, name in KEYS.items()}
    return {alias: "" if default == {} else default for alias, default in found.items()}


def describe_keys() -> str:
    """Return a line a key: name, default, and the comment that stands beside it in this file."""
    lines = []
    for line in inspect.getsource(Config).splitlines():
        found = re.match(r"    (\w+): .*?(?:  # (.*))?$", line)
        if found and found[1] in Config.model_fields and found[1] != "tasks":
            key = str(Config.model_fields[found[1]].alias)
            lines.append(f"{key:20} {json.dumps(defaults()[key]):16} {found[2] or ''}".rstrip())
        elif re.fullmatch(r"    # [A-Z][a-z ]+", line):
            lines.append(f"\n{line.strip(' #')}")
    lines += ["\nPartitions, of which one set's is a sum", describe_partitions()]
    lines += ["\nStrategies", describe_strategies()]
    lines += ["\nModels", describe_models(), "\nTasks", describe_kinds()]
    return "\n".join(lines)


def describe_models() -> str:
    """Return a line a model."""
    return "\n".join(f"{name:20} {what}" for name, what in MODELS.items())


def describe_kinds() -> str:
    """Return what a task declares, and for each kind what can be named."""
    lines = [
        "task.NAME.kind       one of the kinds below",
        "task.NAME.classes    class names, comma-separated; a regression's quantities, a dose's structures",
        "task.NAME.loss       a sum of terms, as in 'dice + 0.5*cross-entropy'; empty: the kind's default",
        "task.NAME.metrics    empty: the kind's; choices of a round go by the first",
        "task.NAME.decoder    empty: the kind's first",
        "task.NAME.range      lowest and highest value of a regression or a dose, as in '0, 80'; all quantities of a",
        "                     regression share it, and so one unit",
    ]
    for name, kind in KIND_SPECS.items():
        default = "" if kind.loss in kind.losses else f" (default {kind.loss})"
        lines += [
            f"\n{name}: a cell holds {kind.label}",
            f"  loss     {', '.join(kind.losses)}{default}",
            f"  decoder  {', '.join(kind.decoders)}",
            f"  metrics  {', '.join(kind.metrics)}",
        ]
    return "\n".join(lines)


def describe_strategies() -> str:
    """Return a line a strategy: its name, and the first line of what its class says of itself."""
    from .strategies import STRATEGIES

    return "\n".join(f"{name:20} {(inspect.getdoc(kind) or name).splitlines()[0]}" for name, kind in STRATEGIES.items())


def _sentence(error: ValidationError, values: dict[str, Any]) -> str:
    """Say the first validation error as: key, what is expected, what came."""
    first = error.errors()[0]
    path = [str(step) for step in first["loc"]]
    key = ".".join(["task", *path[1:]] if path[0] == "tasks" else path)
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    told = f"Config key {key}: {message[0].lower()}{message[1:]}"
    if told[-1] in ".?":  # it says what came
        return told
    return f"{told}, got {'nothing' if first['type'] == 'missing' or first['input'] == () else repr(first['input'])}."
