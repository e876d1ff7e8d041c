"""Local training and evaluation of one site's shard."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .config import Config
from .data.shard import Batch, Labels, Shard
from .errors import MtfedError
from .losses import HybridLoss
from .metrics import TaskMetrics
from .models import MTMedFormer
from .startup import make_optimizers_light

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

    ``torch.manual_seed`` also queues a call, with its stack trace, for every absent kind of GPU: milliseconds for each
    site, and memory that is never given back.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def numpy_parts(model: MTMedFormer) -> dict[str, dict[str, np.ndarray]]:
    """Return the model's parts as arrays; on a CPU they share its memory."""
    return {part: {name: t.cpu().numpy() for name, t in tensors.items()} for part, tensors in model.parts().items()}


def load_parts(model: MTMedFormer, parts: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Copy received tensors into the resident model, in place."""
    for part, tensors in parts.items():
        own = model.parts()[part]
        for name, value in tensors.items():
            if own[name].device.type == "cpu":
                np.copyto(own[name].numpy(), value)
            else:
                own[name].copy_(torch.tensor(value))


def load_weights(model: MTMedFormer, path: Path) -> None:
    """Copy the tensors of a safetensors file into the model; those it lacks stay.

    Raises:
        MtfedError: where the file cannot be read, or holds nothing of this model, or tensors of other shapes.
    """
    own = model.state_dict()
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


def train(
    model: MTMedFormer,
    shard: Shard,
    tasks: list[str],
    config: Config,
    *,
    seed: int,
    learning_rate: float,
    proximal_mu: float = 0.0,
    pull: Mapping[str, float] | None = None,
) -> Training:
    """Train a model in place on the labels of the given tasks.

    Everything random derives from ``seed``, so that a site's result does not depend on which process trains it.
    ``proximal_mu`` adds FedProx's ``mu / 2 * ||w - w_start||^2``; ``pull`` the same with a mu for every tensor by name.
    """
    make_optimizers_light()
    device = next(model.parameters()).device
    seed_device(seed, device)
    start = time.perf_counter()
    if not model.training:
        model.train()
    inactive = {f"decoder.{task}" for task in model.decoders} - {f"decoder.{task}" for task in tasks}
    parts = model.parts()
    frozen = {id(tensor) for part in inactive for tensor in parts[part].values()}
    named = {name: weight for name, weight in model.named_parameters() if id(weight) not in frozen}
    weights = list(named.values())
    held = [
        (weight, weight.detach().clone(), mu)
        for name, weight in named.items()
        if (mu := proximal_mu + (pull or {}).get(name, 0.0))
    ]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=config.weight_decay, fused=True)
    hybrid = HybridLoss(config)
    told = Training()
    sums: dict[str, Tensor] = {}
    for batch in _steps(shard, tasks, config):
        batch = to_device(batch, device)
        outputs = model(batch.images, {task: labels.rows for task, labels in batch.labels.items()})
        loss, each = hybrid(outputs, batch.labels, model.log_variance)
        optimizer.zero_grad()
        loss.backward()
        _pull(held)
        optimizer.step()
        told.steps += 1
        for task, value in each.items():
            count = len(batch.labels[task].rows)
            sums[task] = sums.get(task, 0.0) + value * count
            told.seen[task] = told.seen.get(task, 0) + count
    told.loss_sums = {task: float(value) for task, value in sums.items()}
    told.seconds = time.perf_counter() - start
    return told


def _steps(shard: Shard, tasks: list[str], config: Config) -> Iterable[Batch]:
    """Yield shuffled batches: whole epochs, ``min_steps`` if that is more, or ``local_steps`` if that is set."""
    rows = shard.labelled(tasks)
    epochs = -(-len(rows) // config.batch_size) * config.local_epochs
    left = config.local_steps or max(epochs, config.min_steps)
    while left:
        for batch in shard.batches(config.batch_size, rows[torch.randperm(len(rows))], tasks):
            yield batch
            left -= 1
            if not left:
                return


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
def evaluate(model: MTMedFormer, shard: Shard, tasks: list[str], config: Config) -> dict[str, TaskMetrics]:
    """Return the metrics of a model on the labels of the given tasks."""
    model.eval()
    device = next(model.parameters()).device
    metrics = {task: TaskMetrics(config.tasks[task]) for task in tasks if shard.count(task)}
    if not metrics:
        return metrics
    for batch in shard.batches(4 * config.batch_size, tasks=list(metrics)):
        if not batch.labels:
            continue
        batch = to_device(batch, device)
        outputs = model(batch.images, {task: labels.rows for task, labels in batch.labels.items()})
        for task, logits in outputs.items():
            metrics[task].update(logits, batch.labels[task].values)
    return metrics
