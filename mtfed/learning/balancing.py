"""Rules that balance the tasks' losses against each other in a training step.

A rule either weighs the losses, and one backward pass of their weighted sum is enough (:func:`.backward.backward`); or
it weighs the tasks' gradients in the weights that they share, which takes a backward pass for each task
(:func:`.backward.backward_by_task`). If a batch has labels of one task only, there is nothing to balance, and a rule on
gradients then trains as :class:`Equal` does.

A task's learned number ``balance[t]`` is sent with its decoder. Losses of earlier rounds, over all sites, are sent to
the sites by the server (:func:`write_history`), so sites keep no state between rounds. The initial values of
``balance[t]`` are in :data:`mtfed.models.specs.INITIAL_BALANCE`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

# Task -> its mean loss over all sites in the first round that trained it, then in the last two rounds after that.
History = Mapping[str, Sequence[float]]
Lines = Iterable[Mapping[str, object]]  # lines of a run's metrics.jsonl
PREFIX = "losses."  # prefix of a task's history in a training message
EPSILON = 1e-12  # replaces a smaller loss where losses are divided by each other


class Equal:
    """Add the losses up: ``L = sum_t L_t``."""

    learns = False  # whether balance[t] is trained
    by_gradient = False  # whether the rule needs the gradient of each task separately
    uses_history = False  # whether the rule uses losses of earlier rounds

    def __init__(self, balance: Mapping[str, Tensor] | nn.ParameterDict, history: History | None = None) -> None:
        self.balance = balance
        self.history = history or {}

    def weights(self, tasks: Sequence[str]) -> dict[str, float]:
        """Return the weight of each task's loss if these tasks are trained together."""
        return dict.fromkeys(tasks, 1.0)

    def term(self, task: str, loss: Tensor) -> Tensor:
        """Return what a task's loss contributes to the total loss."""
        return loss


class Uncertainty(Equal):
    """Weigh a task by its learned uncertainty: ``L = sum_t L_t / (2 exp(s_t)) + s_t / 2``.

    s_t is the log variance of the task's noise (Kendall, Gal, Cipolla, CVPR 2018), in the form that the MTAN code of
    Liu et al. uses for every type of loss. For a constant L_t, L is minimal at ``exp(s_t) = L_t``.
    """

    learns = True

    def weights(self, tasks: Sequence[str]) -> dict[str, float]:
        """Return ``1 / (2 exp(s_t))``."""
        return {task: 0.5 * math.exp(-float(self.balance[task].detach())) for task in tasks}

    def term(self, task: str, loss: Tensor) -> Tensor:
        """Return ``L_t / (2 exp(s_t)) + s_t / 2``."""
        s = self.balance[task]
        return loss / (2 * torch.exp(s)) + s / 2


class DynamicWeights(Equal):
    """Weigh a task more if its loss falls more slowly: dynamic weight averaging (Liu, Johns, Davison, CVPR 2019).

    ``lambda_t = T exp(w_t / tau) / sum_k exp(w_k / tau)`` with ``w_t = L_t(e - 1) / L_t(e - 2)``, tau = 2, T tasks; 1
    in the first two epochs. Our design for a federation: an epoch is a round, and L_t is the mean over the labels of
    all sites, so all sites use the same weights. A task that was trained in fewer than two rounds has weight 1.
    """

    uses_history = True
    temperature = 2.0

    def __init__(self, balance: Mapping[str, Tensor] | nn.ParameterDict, history: History | None = None) -> None:
        super().__init__(balance, history)
        known = {task: losses for task, losses in self.history.items() if len(losses) > 1}
        ratios = {task: losses[-1] / max(losses[-2], EPSILON) for task, losses in known.items()}
        largest = max(ratios.values(), default=0.0)  # subtracted to prevent overflow
        raw = {task: math.exp((w - largest) / self.temperature) for task, w in ratios.items()}
        self.multipliers = {task: len(raw) * value / sum(raw.values()) for task, value in raw.items()}

    def weights(self, tasks: Sequence[str]) -> dict[str, float]:
        """Return ``lambda_t``."""
        return {task: self.multipliers.get(task, 1.0) for task in tasks}

    def term(self, task: str, loss: Tensor) -> Tensor:
        """Return ``lambda_t L_t``."""
        return loss * self.multipliers.get(task, 1.0)


class ByGradient(Equal):
    """A rule that combines the tasks' gradients."""

    by_gradient = True

    @abstractmethod
    def combine(self, tasks: Sequence[str], losses: Tensor, gram: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return each task's factor in the shared weights (T,) and in its own (T,), and the gradient of balance (T,).

        Args:
            tasks: tasks of the batch.
            losses: (T,) mean losses of the tasks, float64.
            gram: (T, T) inner products of the tasks' gradients in the shared weights, float64.
        """


class GradNorm(ByGradient):
    """Weigh tasks so that they train at the same pace (Chen et al., ICML 2018).

    ``w = T softmax(v)`` over the tasks of a batch, v_t learned. With ``G_t = w_t ||grad L_t||`` and r_t the task's
    ``L_t / L_t(0)`` divided by its mean over tasks, v follows the gradient of ``sum_t |G_t - c_t|``, where ``c_t =
    mean(G) r_t^alpha`` is treated as a constant and alpha = 1.5. As G_t is linear in w_t, this needs no second backward
    pass.

    The norm is over all shared weights, which every model has. (The paper uses the last shared layer, which would be
    another one in each sharing scheme.) v is trained by the model's own optimiser. L_t(0) is the mean of the first
    round over all sites. Until it is known, the tasks have equal weights and v does not change.
    """

    learns = True
    uses_history = True
    alpha = 1.5

    def weights(self, tasks: Sequence[str]) -> dict[str, float]:
        """Return ``T softmax(v)``, or 1 if the first round's loss is unknown for any of the tasks."""
        if not all(self.history.get(task) for task in tasks):
            return dict.fromkeys(tasks, 1.0)
        v = torch.stack([self.balance[task].detach() for task in tasks]).cpu().double()  # MPS has no float64
        return dict(zip(tasks, (len(tasks) * v.softmax(0)).tolist(), strict=True))

    def combine(self, tasks: Sequence[str], losses: Tensor, gram: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return w twice, and the gradient of v."""
        w = torch.tensor([*self.weights(tasks).values()], dtype=torch.float64)
        if not all(self.history.get(task) for task in tasks):
            return w, w, None
        first = torch.tensor([self.history[task][0] for task in tasks], dtype=torch.float64)
        ratio = losses.clamp_min(EPSILON) / first.clamp_min(EPSILON)
        norms = gram.diagonal().sqrt()
        targets = (w * norms).mean() * (ratio / ratio.mean()) ** self.alpha
        slope = norms * torch.sign(w * norms - targets)  # with respect to w
        return w, w, w * (slope - (w * slope).mean())


class PCGrad(ByGradient):
    """Project conflicting gradients onto each other's normal plane (Yu et al., NeurIPS 2020).

    For each task i and the other tasks j in random order: if ``g_i . g_j < 0``, then ``g_i -= (g_i . g_j) / ||g_j||^2
    g_j``, where g_j is the original gradient. Shared weights follow the sum of the projected g_i. A task's own weights
    follow its plain gradient.
    """

    def combine(self, tasks: Sequence[str], losses: Tensor, gram: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the coefficients of the gradients in the sum of the projected gradients, and ones."""
        orders = [torch.randperm(len(tasks)).tolist() for _ in tasks]
        return project(gram, orders).sum(0), torch.ones(len(tasks), dtype=torch.float64), None


def project(gram: Tensor, orders: Sequence[Sequence[int]]) -> Tensor:
    """Return PCGrad's projected gradients as linear combinations (T, T) of the original ones, one in each row.

    A projected gradient stays in the span of the original gradients, so only their inner products are needed. A
    gradient whose squared norm is 0, possibly after rounding to single precision, projects nothing. ``gram`` (T, T) are
    the inner products ``g_i . g_j``; ``orders`` are for each task the order in which it is compared with the others.
    """
    rows = torch.eye(len(gram), dtype=gram.dtype)
    for i, order in enumerate(orders):
        for j in order:
            if j != i and gram[j, j] > 0 and (product := rows[i] @ gram[:, j]) < 0:
                rows[i, j] -= product / gram[j, j]
    return rows


BALANCING: dict[str, type[Equal]] = {
    "uncertainty": Uncertainty, "equal": Equal, "dwa": DynamicWeights, "gradnorm": GradNorm, "pcgrad": PCGrad,
}  # fmt: skip


def write_history(balancing: str, lines: Callable[[], Lines], tasks: Sequence[str]) -> dict[str, list[float]]:
    """Return the settings of a training message that hold the earlier losses of the tasks that are still trained.

    They are computed from the record's ``metrics.jsonl``, whose ``lines`` are ordered by round, so a resumed run sends
    the same history as an uninterrupted one. They are empty if the rule does not use them.
    """
    if not BALANCING[balancing].uses_history:
        return {}
    losses: dict[str, list[float]] = {}
    for line in lines():
        task, loss = str(line["task"]), line.get("loss")
        if task in tasks and isinstance(loss, float) and math.isfinite(loss):
            losses.setdefault(task, []).append(loss)
    return {PREFIX + task: [*values[:1], *values[1:][-2:]] for task, values in losses.items()}


def read_history(settings: Mapping[str, object]) -> dict[str, list[float]]:
    """Return the losses of earlier rounds in a training message, by task."""
    histories = {key: values for key, values in settings.items() if isinstance(values, Sequence)}
    return {key[len(PREFIX) :]: [*map(float, histories[key])] for key in histories if key.startswith(PREFIX)}
