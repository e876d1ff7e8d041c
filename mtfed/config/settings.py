"""Every setting of a run with its default, its limits and its meaning; ``mtfed config`` prints them.

The limits and choices of a strategy's settings are those of :mod:`mtfed.strategies.limits`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from ..strategies.axes import Gauge
from ..strategies.limits import LIMITS, OnFailure, PrecisionKind, Start, Weighting
from ..tasks.task import Task
from .conflicts import CONFLICTS
from .form import Form
from .partitions import read_partition
from .window import window_ends

Weight = Annotated[float, Field(gt=0)]
Augment = Literal["none", "shift", "mirror", "strong"]
Mix = Literal["none", "brainfuse", "cascade"]
Autocast = Literal["auto", "none", "bfloat16", "float16"]
Balancing = Literal["uncertainty", "equal", "dwa", "gradnorm", "pcgrad"]


def _setting(default: Any, description: str, section: str = "", **limits: Any) -> Any:
    """Return a field with a description, and its limits in pydantic's words; ``section`` starts a new one there."""
    extra: Any = {"section": section} if section else None
    return Field(default, description=description, json_schema_extra=extra, **limits)


class Config(BaseModel):
    """The settings of a run. The defaults are those of a small model that trains on two cores."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=lambda name: name.replace("_", "-"),
        populate_by_name=True,
        allow_inf_nan=False,
    )

    name: str = _setting("run", "name of the run; its folder is NAME-TIME", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    tasks: dict[str, Task] = Field(min_length=1, description="the task.NAME.* keys")
    seed: int = _setting(0, "seed of the initial weights, the batches and the choice of sites", ge=0, lt=2**63)

    data: str = _setting(
        "sample", '"sample" (chest X-rays), a set to be divided, a folder of site folders, or several: "A, B"', "Data"
    )
    dimensions: Literal[2, 3] = _setting(2, "2 for images, 3 for volumes; task.NAME.dimensions may differ (medformer)")
    image_size: int = _setting(64, "side in pixels of the square or cube that images are resized to", ge=8, le=4096)
    volume_size: int = _setting(0, "side of the cube that volumes are resized to; 0: image-size", ge=0, le=512)
    channels: Literal[1, 3] = _setting(1, "1 for grey, 3 for RGB; with dimensions = 2, volumes are grey")
    proportions: Literal["millimetres", "pixels"] = _setting("millimetres", "unit in which resizing keeps proportions")
    window: str = _setting(
        "", 'level and width of images of more than 8 bits, such as "40, 400"; empty: those of the file, or its range'
    )
    normalise: Literal["image", "site", "encoder"] = _setting(
        "image", "scale each image or each site to mean 0 and deviation 1, or all images as pretrained encoders expect"
    )
    max_unreadable: float = _setting(0.0, "largest share of a site's images that may be unreadable", ge=0, lt=1)
    validation_share: float = _setting(0.2, "share of patients for validation, if a manifest names none", gt=0, lt=1)
    partition: str = _setting("tasks + dirichlet", "how one set is divided among simulated sites; schemes are below")
    partition_alpha: float = _setting(1.0, "Dirichlet concentration of class shares or quantities among sites", gt=0)
    partition_column: str = _setting("site", 'column of the manifest that the scheme "column" divides by', min_length=1)
    partition_options: str = _setting("", 'arguments of "flwr:NAME", such as "alpha=0.5, partition_by=site"')
    partition_seed: int = _setting(0, "seed of the partition; apart from seed, so that seeds can be compared", ge=0)
    label_share: float = _setting(
        1.0, "share of a simulated site's training patients that keep their labels; the images stay", gt=0, le=1
    )
    unlabelled: float = _setting(
        0.0, "share of the simulated sites whose labels are withheld; never all of a task", ge=0, lt=1
    )
    feature_shift: float = _setting(0.0, "scanner-like differences between simulated sites; 0: none", ge=0, le=1)
    pooled: bool = _setting(False, "put all images at one site, as an upper bound for federations")

    model: str = _setting("mtmedformer", "one of the models below", "Model")
    encoder: str = _setting(
        "vit_mini_patch8", "any timm encoder by name; for volumes, one of mtfed's own; medformer: a ViT"
    )
    weights: str = _setting(
        "", "pretrained weights of the encoder: a file, such as a run's checkpoint, or \"timm\" for timm's; empty: none"
    )
    decoder_width: int = _setting(48, "channels of decoders that predict maps", ge=4)
    balancing: Balancing = _setting("uncertainty", "how the losses of tasks are balanced")
    focal_gamma: float = _setting(2.0, 'focusing parameter of the loss term "focal"; detection has its own', ge=0)

    augment: Augment = _setting(
        "none", "shift also zooms and changes contrast; mirror adds flips; strong adds rotations, blur and noise",
        "Local training",
    )  # fmt: skip
    mix: Mix = _setting(
        "none", "brainfuse interpolates between two images, cascade averages up to four; their labels count likewise"
    )
    sampling: float = _setting(
        1.0, "1: every image once in a pass; less: those of rare tasks and modalities more often; 0: all equally often",
        ge=0, le=1,
    )  # fmt: skip
    local_epochs: int = _setting(1, "passes over a site's training images per round", ge=1)
    local_steps: int = _setting(0, "steps per round, instead of epochs; 0: use local-epochs", ge=0)
    min_steps: int = _setting(0, "at least this many steps per round, so that small sites repeat their images", ge=0)
    batch_size: int = _setting(32, "images per step", ge=1)
    accumulate: int = _setting(1, "parts that a batch is computed in, to save memory", ge=1)
    learning_rate: float = _setting(1e-3, "learning rate of AdamW at the sites", gt=0)
    encoder_rate: float = _setting(
        1.0, "learning rate of the encoder, as a multiple of learning-rate; 0: frozen, only the decoders learn", ge=0
    )
    layer_decay: float = _setting(
        1.0, "factor by which the encoder's learning rate falls from each layer to the layer before it", gt=0, le=1
    )
    lora_rank: int = _setting(
        0,
        "rank of updates of the encoder's attention and MLPs that are trained instead of it; 0: train all of it",
        ge=0,
    )
    schedule: Literal["constant", "cosine"] = _setting("cosine", "learning-rate schedule; cosine decays to a tenth")
    warmup: int = _setting(0, "steps of a site's first round over which the learning rate rises from 0", ge=0)
    clip_norm: float = _setting(0.0, "largest norm of a step's gradient; 0: no limit", ge=0)
    weight_decay: float = _setting(0.01, "weight decay of AdamW at the sites", ge=0)
    backforward_rounds: int = _setting(
        0, "first rounds in which layers are updated one after another, each from its new input; 0: never", ge=0
    )

    strategy: str = _setting("fedavg", "one of the strategies below", "Strategy")
    weighting: Weighting = _setting("samples", "weight of a site in the encoder's average")
    task_weights: dict[str, Weight] = _setting({}, 'with weighting = "tasks", such as "lungs=4"; tasks not named: 1')
    proximal_mu: float = _setting(0.01, "pull towards the global weights (fedprox)", **LIMITS["proximal_mu"])
    server_learning_rate: float = _setting(0.01, "step size of fedadam and fedyogi", **LIMITS["server_learning_rate"])
    server_beta1: float = _setting(0.9, "momentum of fedadam and fedyogi", **LIMITS["server_beta1"])
    server_beta2: float = _setting(0.99, "decay of the second moment (fedadam, fedyogi)", **LIMITS["server_beta2"])
    server_tau: float = _setting(
        1e-3, "adaptivity constant tau; steps well below it are not normalised", **LIMITS["server_tau"]
    )
    precision: PrecisionKind = _setting("fisher", "what sites send about the precision of their weights")
    curvature_samples: int = _setting(256, "images per task on which a site measures its curvature; 0: all", ge=0)
    precision_floor: float = _setting(0.2, "lowest precision, as a share of its row", **LIMITS["precision_floor"])
    prior_strength: float = _setting(0.0, "how much earlier rounds' precision counts", **LIMITS["prior_strength"])
    cavity: float = _setting(1.0, "weight of the other sites' posterior in training; 0: none", **LIMITS["cavity"])
    matching: bool = _setting(True, "reorder units to match those of the global model before a merge")
    start: Start = _setting("common", "apart: each site brings a model of its own to round 1")
    apart_epochs: int = _setting(10, "passes for which a simulated site has trained the model that it brings", ge=1)
    inner: Gauge = _setting("orth", "transformations inside attention heads when different starts are matched")
    gate: float = _setting(1e-3, "smallest relative gain for which units are reordered", **LIMITS["gate"])
    gamma: float = _setting(1.0, "how readily unmatched units are added to the model (growing)", **LIMITS["gamma"])
    width_cap: float = _setting(1.5, "largest width, in widths of the sites' models (growing)", **LIMITS["width_cap"])
    sigma0: float = _setting(1.0, "prior variance of a weight, in a site's variances (pfnm)", **LIMITS["sigma0"])

    rounds: int = _setting(10, "rounds of training and merging", "Federation", ge=1)
    fraction_train: float = _setting(1.0, "share of the sites that train in a round", **LIMITS["fraction_train"])
    min_sites: int = _setting(1, "sites that must have joined before round 1", **LIMITS["min_sites"])
    join_timeout: float = _setting(600.0, "seconds to wait for these sites", gt=0)
    round_timeout: float = _setting(3600.0, "seconds to wait for the replies of a round", gt=0)
    on_failure: OnFailure = _setting("skip", "leave out a site that fails in a round, ask it again, or end the run")
    retries: int = _setting(1, 'times to ask a failed site again, with on-failure = "retry"', **LIMITS["retries"])
    quorum: float = _setting(0.0, "share of the asked sites that must send a usable reply", **LIMITS["quorum"])
    max_norm_ratio: float = _setting(
        0.0, "refuse updates this many times larger than their median; 0: never", **LIMITS["max_norm_ratio"]
    )

    evaluate_every: int = _setting(1, "rounds between evaluations at sites; 0: only the last", "Evaluation", ge=0)
    test_every: int = _setting(1, "rounds between evaluations on the server's test images; they choose nothing", ge=0)
    patience: int = _setting(0, "evaluations without improvement before training stops; 0: never stop early", ge=0)
    stop_per_task: bool = _setting(False, "count patience for each task separately")

    out: str = _setting("runs", "folder in which run folders are created", "Record")
    resume: str = _setting("", "a run folder to continue")
    share_class_counts: bool = _setting(False, "simulated sites report class counts; real ones by their node config")
    share_tracebacks: bool = _setting(False, "simulated sites report tracebacks, which may contain file names")

    autocast: Autocast = _setting("auto", "half precision; auto: bfloat16 on CUDA GPUs", "Machine")
    compile: Literal["auto", "on", "off"] = _setting("auto", "torch.compile; auto: for long trainings on a CUDA GPU")
    device: str = _setting("auto", "auto, cpu, cuda, cuda:N or mps", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")
    torch_threads: int = _setting(1, "threads per site; results are bit-equal only for the same number", ge=1)

    @field_validator("task_weights", mode="before")
    @classmethod
    def _read_task_weights(cls, value: object, info: ValidationInfo) -> object:
        """Read ``TASK=NUMBER`` pairs: Flower's run config contains no tables except those of tasks."""
        if isinstance(value, str):
            pairs = [[word.strip() for word in pair.split("=", 1)] for pair in value.split(",") if pair.strip()]
            if not all(len(pair) == 2 for pair in pairs) or len(dict(pairs)) < len(pairs):
                raise ValueError("expected TASK=NUMBER once for each task, such as 'lungs=4, pneumonia=1'")
            value = dict(pairs)
        if value and info.data.get("weighting") != "tasks":
            raise ValueError('expected weighting = "tasks" with it, because nothing else reads task weights')
        tasks = info.data.get("tasks", {})
        if isinstance(value, dict) and (extra := sorted(value.keys() - tasks.keys())):
            raise ValueError(f"expected weights of the tasks {', '.join(tasks)}; there is no task {extra[0]!r}")
        return value

    @field_validator("partition", "window")
    @classmethod
    def _check_text(cls, value: str, info: ValidationInfo) -> str:
        parse: Callable[[str], object] = read_partition if info.field_name == "partition" else window_ends
        parse(value)
        return value

    @field_validator(*CONFLICTS)
    @classmethod
    def _check_conflicts(cls, value: Any, info: ValidationInfo) -> Any:
        if problem := CONFLICTS[str(info.field_name)](value, info.data):
            raise ValueError(problem)
        return value

    @model_validator(mode="after")
    def _complete_tasks(self) -> Config:
        """Fill in the dimensionality of tasks that do not declare one."""
        missing = {
            name: task.model_copy(update={"dimensions": self.dimensions})
            for name, task in self.tasks.items()
            if not task.dimensions
        }
        if missing:
            self.__dict__["tasks"] = {name: missing.get(name, task) for name, task in self.tasks.items()}
        return self

    @property
    def forms(self) -> tuple[Form, ...]:
        """Return the forms that the tasks need: that of images, that of volumes, or both."""
        return tuple(map(self.form, sorted({task.dimensions for task in self.tasks.values()})))

    def form(self, dimensions: int) -> Form:
        """Return the form of images (2) or of volumes (3)."""
        # In a run on images, colour images or not, volumes have one channel.
        channels = self.channels if dimensions in (2, self.dimensions) else 1
        return Form(dimensions, (self.volume_size or self.image_size) if dimensions == 3 else self.image_size, channels)

    def form_of(self, task: str) -> Form:
        """Return the form of the images of a task."""
        return self.form(self.tasks[task].dimensions)

    def with_form(self, form: Form) -> Config:
        """Return the config of the tasks whose images have this form, with the form as its settings."""
        return self if (form,) == self.forms and form.size == self.image_size else _with_form(self, form)

    @property
    def is_encoder_frozen(self) -> bool:
        """Return whether the encoder's own weights stay as they are."""
        return not self.encoder_rate or self.lora_rank > 0

    @property
    def window_ends(self) -> tuple[float, float] | None:
        """Return the lower and the upper end of the window, or None if each image sets its own."""
        return window_ends(self.window)

    @property
    def labelled_tasks(self) -> dict[str, Task]:
        """Return the tasks that need labels, by name."""
        return {name: task for name, task in self.tasks.items() if not task.spec.every_image}

    @property
    def pretext_tasks(self) -> dict[str, Task]:
        """Return the tasks that need no labels and are trained on every image, by name."""
        return {name: task for name, task in self.tasks.items() if task.spec.every_image}

    @cached_property
    def key(self) -> str:
        """Return a string that is the same for equal configs only, as a key of caches."""
        return self.model_dump_json()

    def __hash__(self) -> int:
        return hash(self.key)


@lru_cache(maxsize=16)
def _with_form(config: Config, form: Form) -> Config:
    tasks = {name: task for name, task in config.tasks.items() if task.dimensions == form.dimensions}
    values = {"tasks": tasks, "dimensions": form.dimensions, "image_size": form.size, "channels": form.channels}
    # A copy is not validated again: settings may name tasks of other forms.
    copy = config.model_copy(update=values | {"volume_size": 0})
    copy.__dict__.pop("key", None)
    return copy
