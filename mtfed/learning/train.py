"""Local training on one site's shard."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice

import torch
from torch import Tensor

from ..config import Config
from ..data.shard import Batch, Shard
from ..models.system import MultiTaskModel
from ..strategies.wire import decoder_part
from .augment import augment
from .backforward import Backforward
from .backward import backward, backward_by_task
from .balancing import BALANCING, ByGradient, Equal, History
from .device import seed_device
from .losses import BatchLosses
from .mixing import mix
from .optimizer import Anchors, adamw, add_proximal_gradients, encoder_rates, set_learning_rate
from .parts import train_only
from .pretext import add_pretext
from .sampling import orders


@dataclass
class TrainingResult:
    """What was done in a local training, as sums that add up over sites."""

    steps: int = 0
    seconds: float = 0.0
    loss_sums: dict[str, float] = field(default_factory=dict)  # task -> sum over the samples trained on
    samples: dict[str, int] = field(default_factory=dict)  # task -> labelled samples trained on, repeats included


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
    span: tuple[float, float] = (0.0, 1.0),
    backforward: bool = False,
) -> TrainingResult:
    """Train the encoder and the parts of the given tasks in place on a shard's labels.

    Everything random derives from ``seed``, so a site's result does not depend on which process trains it (see
    :func:`~.device.seed_device` for the limits). A batch is computed in ``config.accumulate`` pieces. Losses are means
    over the labels of the whole batch, so its gradients do not depend on the number of pieces, except through batch
    norms, which see one piece at a time.

    Args:
        proximal_mu: adds FedProx's ``mu / 2 * ||w - w_start||^2`` to the loss.
        pull: adds the same term with a mu for each tensor by name.
        history: the tasks' losses in earlier rounds, for balancing rules that use them.
        warmup: number of first steps over which the learning rate rises.
        span: the part of the whole run that this training is: the shares of the run at its start and at its end.
        backforward: take the steps of :mod:`.backforward`, never compiled, instead of ordinary ones.
    """
    device = next(model.parameters()).device
    seed_device(seed, device)
    start = time.perf_counter()
    if not model.training:
        model.train()
    sums: dict[str, Tensor] = {}
    with train_only(model, tasks):
        weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        mus = {name: proximal_mu + (pull or {}).get(name, 0.0) for name in weights}
        anchors = [(weight, weight.detach().clone(), mus[name]) for name, weight in weights.items() if mus[name]]
        steps = Backforward(model, config, anchors) if backforward else OrdinarySteps(model, tasks, config, anchors)
        rule = BALANCING[config.balancing](model.balance, history)
        result = TrainingResult(steps=count_steps(shard, tasks, config))
        losses = BatchLosses(model, config, device, result.steps, is_plain=backforward)
        for step, batch in enumerate(_batches(shard, tasks, config, result.steps)):
            batch = _change_images(batch, config, span[0] + (span[1] - span[0]) * step / result.steps)
            rate = learning_rate * min(1.0, (step + 1) / (warmup + 1))
            means = steps.step(rule, losses, batch, rate)
            for task, mean in means.items():
                count = len(batch.labels[task].rows)
                sums[task] = sums.get(task, 0.0) + mean * count
                result.samples[task] = result.samples.get(task, 0) + count
    result.loss_sums = {task: float(value) for task, value in sums.items()}
    result.seconds = time.perf_counter() - start
    return result


def count_steps(shard: Shard, tasks: list[str], config: Config) -> int:
    """Return the number of steps: whole epochs but at least ``min_steps``, or ``local_steps`` if that is set."""
    epoch = shard.count_batches(config.batch_size, shard.labelled(tasks))
    return config.local_steps or max(epoch * config.local_epochs, config.min_steps)


def _batches(shard: Shard, tasks: list[str], config: Config, count: int) -> Iterator[Batch]:
    """Return ``count`` shuffled batches, in passes over the labelled images."""
    passes = (shard.batches(config.batch_size, order, tasks) for order in orders(shard, tasks, config))
    return islice(chain.from_iterable(passes), count)


def _change_images(batch: Batch, config: Config, progress: float) -> Batch:
    """Return a batch as it is trained on when a share of the run is over. Pretext tasks use images before mixing."""
    batch = augment(batch, config.tasks, config.augment)
    batch = add_pretext(batch, config.tasks)
    return mix(batch, config.tasks, config.mix, progress)


class OrdinarySteps:
    """Steps that update all weights at once, from the gradient of a batch in several pieces."""

    def __init__(self, model: MultiTaskModel, tasks: list[str], config: Config, anchors: Anchors) -> None:
        weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.clip_norm, self.anchors = config.clip_norm, anchors
        self.shared, self.own = _by_owner(model, weights, tasks)
        self.weights = list(weights.values())
        self.optimizer = adamw(self.weights, encoder_rates(model, config), config)

    def step(self, rule: Equal, losses: BatchLosses, batch: Batch, learning_rate: float) -> dict[str, Tensor]:
        """Update the weights from a batch; return the tasks' mean losses before the update."""
        set_learning_rate(self.optimizer, learning_rate)
        self.optimizer.zero_grad()
        scale = losses.scaler.scale
        if isinstance(rule, ByGradient) and self.shared and len(batch.labels) > 1:
            means = backward_by_task(rule, list(batch.labels), losses(batch), self.shared, self.own, scale)
        else:
            means = backward(rule, losses(batch), scale)
        self._update(losses.scaler)
        return means

    def _update(self, scaler: torch.amp.GradScaler) -> None:
        """Take an optimizer step from the scaled gradients: unscale and clip them, then add the proximal terms."""
        scaler.unscale_(self.optimizer)
        if self.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.weights, self.clip_norm)
        add_proximal_gradients(self.anchors)
        scaler.step(self.optimizer)
        scaler.update()


def _by_owner(
    model: MultiTaskModel, weights: Mapping[str, Tensor], tasks: Iterable[str]
) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    """Return the weights that several tasks may share, and by task those of its decoder."""
    own = {task: [weights[name] for name in model.parts()[decoder_part(task)] if name in weights] for task in tasks}
    owned = {id(weight) for task_weights in own.values() for weight in task_weights}
    return [weight for weight in weights.values() if id(weight) not in owned], own
