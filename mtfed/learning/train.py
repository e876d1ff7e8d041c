"""Local training and evaluation of one site's shard."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..config import Config
from ..data.shard import Batch, Labels, Shard
from ..errors import MtfedError
from ..models.system import MultiTaskModel
from ..strategies.wire import decoder_part, task_of
from .acceleration import cast_to, forward_of, half_precision, make_scaler
from .augment import augment
from .balancing import BALANCING, ByGradient, History, PieceLosses, backward, backward_by_task
from .losses import task_losses
from .metrics import TaskMetrics
from .optimizer import AdamW

Parts = Mapping[str, Mapping[str, Tensor]]


@dataclass
class Training:
    """What a local training has to tell: sums, so that they add up over sites."""

    steps: int = 0
    seconds: float = 0.0
    loss_sums: dict[str, float] = field(default_factory=dict)  # task -> sum over samples seen
    seen: dict[str, int] = field(default_factory=dict)  # task -> labelled samples seen


def pick_device(name: str) -> torch.device:
    """Return the device of a config: ``auto`` takes a GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    missing = {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available(), "cpu": False}
    if missing[name.partition(":")[0]]:
        raise MtfedError(f"Config key device: {name!r} asks for a GPU, this machine has none; use auto or cpu.")
    return torch.device(name)


def fixed_seed(*parts: object) -> int:
    """Return a seed made of a run's seed, a site's key, a round: the same on every machine and in every process."""
    return zlib.crc32("/".join(map(str, parts)).encode())


def seed_device(seed: int, device: torch.device) -> None:
    """Seed the CPU and the device in use.

    On a CPU the same seed and number of threads give the same bits. On CUDA they give the same batches, dropout and
    initial weights, and convolutions add up in one order; the gradients of interpolation and of some poolings do not,
    so that weights agree to rounding (PyTorch's deterministic mode would refuse those models).

    ``torch.manual_seed`` also queues a call, with its stack trace, for every absent kind of GPU: milliseconds for each
    site, and memory that is never given back.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
        torch.backends.cudnn.deterministic = True


def numpy_parts(model: MultiTaskModel) -> dict[str, dict[str, np.ndarray]]:
    """Return the model's parts as arrays; on a CPU they share its memory."""
    return {part: {name: t.cpu().numpy() for name, t in tensors.items()} for part, tensors in model.parts().items()}


def load_parts(model: MultiTaskModel, parts: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Copy received tensors into the resident model, in place."""
    for part, tensors in parts.items():
        own = model.parts()[part]
        for name, value in tensors.items():
            if own[name].device.type == "cpu":
                np.copyto(own[name].numpy(), value)
            else:
                own[name].copy_(torch.tensor(value))


def load_weights(model: MultiTaskModel, path: Path, parts: Iterable[str] | None = None) -> None:
    """Copy the tensors of a safetensors file into the given parts of the model, by default all; those it lacks stay.

    Raises:
        MtfedError: where the file cannot be read, or holds nothing of this model, or tensors of other shapes.
    """
    chosen = model.parts() if parts is None else {part: model.parts()[part] for part in parts}
    own = {name: tensor for tensors in chosen.values() for name, tensor in tensors.items()}
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise MtfedError(f"Node config weights: cannot read {path} as a safetensors file: {error}.") from None
    if not found.keys() & own.keys():
        raise MtfedError(
            f"Node config weights: {path} holds no tensor of this model; expected names like {next(iter(own))}."
        )
    for name in found.keys() & own.keys():
        if found[name].shape != own[name].shape:
            raise MtfedError(
                f"Node config weights: {name} should be {list(own[name].shape)}, in {path} it is "
                f"{list(found[name].shape)}; use the run's model and image size."
            )
        own[name].copy_(found[name])


@contextmanager
def only(model: MultiTaskModel, tasks: Iterable[str]) -> Iterator[None]:
    """Within, have a model trained by some tasks alone: ``encoder``, and every part KIND.TASK of theirs.

    Other tasks' parts are context, as the streams that they attend to in CTAN: their weights get no gradient, and
    modules made of nothing else are in evaluation mode, so that batch norms keep their statistics too.
    """
    kept: set[str] = set()
    foreign: dict[str, None] = {}
    for part, tensors in model.parts().items():
        if task_of(part) in ("", *tasks):
            kept.update(tensors)
        else:
            foreign.update(dict.fromkeys(tensors))
    named = dict(model.named_parameters()) if foreign else {}
    frozen = [named[name] for name in foreign if name in named and named[name].requires_grad]
    idle = {module for name in foreign for module in _inside(name)} - {m for name in kept for m in _inside(name)}
    # eval() and train() reach down by themselves.
    modules = [model.get_submodule(name) for name in sorted(idle) if name.rpartition(".")[0] not in idle]
    for weight in frozen:
        weight.requires_grad_(False)
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(True)
        for module in modules:
            module.train(model.training)


def _inside(name: str) -> Iterator[str]:
    """Yield the modules that a tensor is in, by name."""
    while name := name.rpartition(".")[0]:
        yield name


def train(
    model: MultiTaskModel,
    shard: Shard,
    tasks: list[str],
    config: Config,
    *,
    seed: int,
    learning_rate: float,
    proximal_mu: float = 0.0,
    pull: Mapping[str, float] | None = None,
    history: History | None = None,
    warmup: int = 0,
) -> Training:
    """Train a model in place on the labels of the given tasks.

    Everything random derives from ``seed``, so that a site's result does not depend on which process trains it; see
    :func:`seed_device` for how equal. ``proximal_mu`` adds FedProx's ``mu / 2 * ||w - w_start||^2``; ``pull`` the same
    with a mu for every tensor by name. ``history`` holds the tasks' losses in earlier rounds, for balancing that looks
    back. Over the first ``warmup`` steps the learning rate rises.

    A batch is computed in ``config.accumulate`` pieces. Losses are means over the labels of the whole batch, so its
    gradients are the same in any number of pieces, but for batch norms, which see a piece.
    """
    device = next(model.parameters()).device
    seed_device(seed, device)
    start = time.perf_counter()
    if not model.training:
        model.train()
    told = Training()
    sums: dict[str, Tensor] = {}
    with only(model, tasks):
        named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        own = {task: [named[name] for name in model.parts()[decoder_part(task)] if name in named] for task in tasks}
        alone = {id(weight) for weights in own.values() for weight in weights}
        shared = [weight for weight in named.values() if id(weight) not in alone]
        held = [
            (weight, weight.detach().clone(), mu)
            for name, weight in named.items()
            if (mu := proximal_mu + (pull or {}).get(name, 0.0))
        ]
        optimizer = AdamW(named.values(), lr=learning_rate, weight_decay=config.weight_decay, fused=True)
        rule = BALANCING[config.balancing](model.balance, history)
        steps = count_steps(shard, tasks, config)
        losses = Losses(model, config, device, steps)
        scaler = losses.scaler
        for step, batch in enumerate(_batches(shard, tasks, config.batch_size, steps)):
            batch = augment(batch, config.tasks, config.augment)
            optimizer.param_groups[0]["lr"] = learning_rate * min(1.0, (step + 1) / (warmup + 1))
            optimizer.zero_grad()
            if isinstance(rule, ByGradient) and shared and len(batch.labels) > 1:
                each = backward_by_task(rule, list(batch.labels), losses(batch), shared, own, scaler.scale)
            else:
                each = backward(rule, losses(batch), scaler.scale)
            scaler.unscale_(optimizer)
            if config.clip_norm:
                torch.nn.utils.clip_grad_norm_(named.values(), config.clip_norm)
            _pull(held)
            scaler.step(optimizer)
            scaler.update()
            for task, value in each.items():
                count = len(batch.labels[task].rows)
                sums[task] = sums.get(task, 0.0) + value * count
                told.seen[task] = told.seen.get(task, 0) + count
    told.steps = steps
    told.loss_sums = {task: float(value) for task, value in sums.items()}
    told.seconds = time.perf_counter() - start
    return told


def count_steps(shard: Shard, tasks: list[str], config: Config) -> int:
    """Return how many steps to train: whole epochs, ``min_steps`` if more, or ``local_steps`` if that is set."""
    epochs = -(-len(shard.labelled(tasks)) // config.batch_size) * config.local_epochs
    return config.local_steps or max(epochs, config.min_steps)


def _batches(shard: Shard, tasks: list[str], size: int, count: int) -> Iterator[Batch]:
    """Yield so many shuffled batches, in passes over the labelled images."""
    rows = shard.labelled(tasks)
    while count:
        for batch in shard.batches(size, rows[torch.randperm(len(rows))], tasks):
            yield batch
            count -= 1
            if not count:
                return


class Losses:
    """A model's losses on a batch, computed as the config says: in pieces, in half precision, compiled."""

    def __init__(self, model: MultiTaskModel, config: Config, device: torch.device, steps: int) -> None:
        self.pieces = config.accumulate
        self.device = device
        self.dtype = half_precision(config.autocast, device)
        self.scaler = make_scaler(self.dtype, device)
        self.of_task = task_losses(config)
        by_task = BALANCING[config.balancing].by_gradient  # which a compiled backward pass, all or nothing, does ill
        self.forward = model if by_task else forward_of(model, config, device, steps * self.pieces)

    def __call__(self, batch: Batch) -> Iterator[PieceLosses]:
        """Yield each task's mean loss in a piece, in single precision, and the share of its labels that are in it."""
        for piece in split(batch, self.pieces):
            piece = to_device(piece, self.device)
            with cast_to(self.dtype, self.device):
                outputs = self.forward(piece.images, {task: labels.rows for task, labels in piece.labels.items()})
            yield {
                task: (
                    self.of_task[task](output if self.dtype is None else output.float(), piece.labels[task].values),
                    len(piece.labels[task].rows) / len(batch.labels[task].rows),
                )
                for task, output in outputs.items()
            }


def split(batch: Batch, pieces: int) -> Iterator[Batch]:
    """Yield a batch in so many pieces, with the labels of their images; in fewer, where it has too few images."""
    size = -(-len(batch.images) // pieces)
    if size >= len(batch.images):
        yield batch
        return
    for start in range(0, len(batch.images), size):
        labels = {}
        for task, whole in batch.labels.items():
            inside = (whole.rows >= start) & (whole.rows < start + size)
            if inside.any():
                labels[task] = Labels(whole.rows[inside] - start, whole.values[inside])
        yield Batch(batch.images[start : start + size], labels)


def _pull(held: Iterable[tuple[Tensor, Tensor, float]]) -> None:
    """Add the gradient of the proximal terms to the weights that the step has gradients for."""
    for weight, anchor, mu in held:
        if weight.grad is not None:
            weight.grad.add_(weight.detach() - anchor, alpha=mu)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on a device."""
    if device.type == "cpu":
        return batch
    labels = {t: Labels(x.rows.to(device), x.values.to(device)) for t, x in batch.labels.items()}
    return Batch(batch.images.to(device), labels)


@torch.inference_mode()
def evaluate(model: MultiTaskModel, shard: Shard, tasks: list[str], config: Config) -> dict[str, TaskMetrics]:
    """Return the metrics of a model on the labels of the given tasks."""
    model.eval()
    device = next(model.parameters()).device
    dtype = half_precision(config.autocast, device)
    metrics = {task: TaskMetrics(config.tasks[task]) for task in tasks if shard.count(task)}
    if not metrics:
        return metrics
    for batch in shard.batches(max(4 * config.batch_size // config.accumulate, 1), tasks=list(metrics)):
        if not batch.labels:
            continue
        batch = to_device(batch, device)
        with cast_to(dtype, device):
            outputs = model(batch.images, {task: labels.rows for task, labels in batch.labels.items()})
        for task, output in outputs.items():
            metrics[task].update(output.float(), batch.labels[task].values)
    return metrics
