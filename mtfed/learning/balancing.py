"""How the tasks' losses are balanced against each other in a step of training.

A rule either weighs losses, and one backward pass of their weighted sum does (:func:`backward`); or it weighs the
tasks' gradients in what they share, which costs a backward pass a task (:func:`backward_by_task`). A batch with labels
of one task only has nothing to balance: by gradient it is trained as plainly as by :class:`Equal`.

A task's learned number ``balance[t]`` travels with its decoder; what the tasks' losses were in earlier rounds, over all
sites, the server tells every site. So sites keep nothing between rounds.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

# Task -> its mean loss over all sites in the first round that trained it, and in the last two of the others.
History = Mapping[str, Sequence[float]]
# Task -> its mean loss in a piece of a batch, and the share of the batch's labels that are in the piece.
PieceLosses = Mapping[str, tuple[Tensor, float]]
Scale = Callable[[Tensor], Tensor]  # that of mixed precision, which keeps small gradients from vanishing
TOLD = "losses."  # prefix of a task's history in a message
LEAST = 1e-12  # a loss of 0 divides by this instead


class Equal:
    """Add the losses up: ``L = sum_t L_t``."""

    learns = False  # whether ``balance[t]`` is trained
    by_gradient = False  # whether every task's gradient is wanted by itself
    remembers = False  # whether the losses of earlier rounds are read

    def __init__(self, balance: Mapping[str, Tensor] | nn.ParameterDict, history: History | None = None) -> None:
        self.balance = balance
        self.history = history or {}

    def weights(self, tasks: Sequence[str]) -> dict[str, float]:
        """Return what the loss of each task counts, where these are trained together."""
        return dict.fromkeys(tasks, 1.0)

    def term(self, task: str, loss: Tensor) -> Tensor:
        """Return what a task's loss contributes to the sum whose gradient is followed."""
        return loss


class Uncertainty(Equal):
    """Weigh a task by its learned uncertainty: ``L = sum_t L_t / (2 exp(s_t)) + s_t / 2``.

    s_t is the log variance of the task's noise (Kendall, Gal, Cipolla, CVPR 2018), in the form that Liu et al.'s MTAN
    code has for every kind of loss. At the least L of a constant L_t, ``exp(s_t) = L_t``.
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
    """Weigh a task the more, the slower its loss sinks: dynamic weight averaging (Liu, Johns, Davison, CVPR 2019).

    ``lambda_t = T exp(w_t / tau) / sum_k exp(w_k / tau)`` with ``w_t = L_t(e - 1) / L_t(e - 2)``, tau = 2, T tasks; 1
    in the first two epochs. Our design for a federation: an epoch is a round, and L_t is the mean over the labels of
    all sites, so that all of them weigh alike. A task that has been trained in fewer than two rounds counts 1.
    """

    remembers = True
    temperature = 2.0

    def __init__(self, balance: Mapping[str, Tensor] | nn.ParameterDict, history: History | None = None) -> None:
        super().__init__(balance, history)
        pace = {task: told[-1] / max(told[-2], LEAST) for task, told in self.history.items() if len(told) > 1}
        highest = max(pace.values(), default=0.0)  # subtracted, so that nothing overflows
        raw = {task: math.exp((w - highest) / self.temperature) for task, w in pace.items()}
        self.multipliers = {task: len(raw) * value / sum(raw.values()) for task, value in raw.items()}

    def weights(self, tasks: Sequence[str]) -> dict[str, float]:
        """Return ``lambda_t``."""
        return {task: self.multipliers.get(task, 1.0) for task in tasks}

    def term(self, task: str, loss: Tensor) -> Tensor:
        """Return ``lambda_t L_t``."""
        return loss * self.multipliers.get(task, 1.0)


class ByGradient(Equal):
    """A rule that says how the tasks' gradients combine."""

    by_gradient = True

    @abstractmethod
    def combine(self, tasks: Sequence[str], losses: Tensor, gram: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return (T,) what each task's gradient counts in shared weights and in its own, and the gradient of balance.

        Args:
            tasks: those of the batch.
            losses: (T,) their mean losses, float64.
            gram: (T, T) products of their gradients in the shared weights, float64.
        """


class GradNorm(ByGradient):
    """Weigh tasks so that they train at one pace (Chen et al., ICML 2018).

    ``w = T softmax(v)`` over the tasks of a batch, v_t learned. With ``G_t = w_t ||grad L_t||``, ``r_t`` the task's
    ``L_t / L_t(0)`` over the tasks' mean of it, v follows the gradient of ``sum_t |G_t - c_t|``, where ``c_t =
    mean(G) r_t^alpha`` is held fixed, alpha = 1.5. As G_t is linear in w_t, that needs no second backward pass.

    The norm is over all that tasks share, as every model has it; the paper's last shared layer would be another one in
    each sharing scheme. v is trained by the model's own optimiser. L_t(0) is the mean of the first round over all
    sites: until it is told, the tasks count equally and v rests.
    """

    learns = True
    remembers = True
    alpha = 1.5

    def weights(self, tasks: Sequence[str]) -> dict[str, float]:
        """Return ``T softmax(v)``, or 1 where the first round's loss of any of the tasks is not known."""
        if not all(self.history.get(task) for task in tasks):
            return dict.fromkeys(tasks, 1.0)
        v = torch.stack([self.balance[task].detach() for task in tasks]).cpu().double()  # MPS has no doubles
        return dict(zip(tasks, (len(tasks) * v.softmax(0)).tolist(), strict=True))

    def combine(self, tasks: Sequence[str], losses: Tensor, gram: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return w twice, and the gradient of v."""
        w = torch.tensor([*self.weights(tasks).values()], dtype=torch.float64)
        if not all(self.history.get(task) for task in tasks):
            return w, w, None
        first = torch.tensor([self.history[task][0] for task in tasks], dtype=torch.float64)
        ratio = losses.clamp_min(LEAST) / first.clamp_min(LEAST)
        norms = gram.diagonal().sqrt()
        aims = (w * norms).mean() * (ratio / ratio.mean()) ** self.alpha
        slope = norms * torch.sign(w * norms - aims)  # in w
        return w, w, w * (slope - (w * slope).mean())


class PCGrad(ByGradient):
    """Project conflicting gradients onto each other's normal plane (Yu et al., NeurIPS 2020).

    For each task i, and the others j in random order: if ``g_i . g_j < 0``, then ``g_i -= (g_i . g_j) / ||g_j||^2
    g_j``, with g_j as it was. Shared weights follow the sum of the projected g_i, a task's own weights its plain
    gradient.
    """

    def combine(self, tasks: Sequence[str], losses: Tensor, gram: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return how often each gradient is in the sum of the projected ones, and ones."""
        orders = [torch.randperm(len(tasks)).tolist() for _ in tasks]
        return project(gram, orders).sum(0), torch.ones(len(tasks), dtype=torch.float64), None


BALANCING: dict[str, type[Equal]] = {
    "uncertainty": Uncertainty,
    "equal": Equal,
    "dwa": DynamicWeights,
    "gradnorm": GradNorm,
    "pcgrad": PCGrad,
}


def project(gram: Tensor, orders: Sequence[Sequence[int]]) -> Tensor:
    """Return PCGrad's projected gradients as combinations (T, T) of the given ones: row i is what becomes of g_i.

    A projected gradient stays in the span of the given ones, so their products are all that has to be known. One whose
    squared norm is 0, as single precision may round it to, projects nothing.

    Args:
        gram: (T, T) products ``g_i . g_j``.
        orders: for each task the order in which it meets the others; itself is passed over.
    """
    rows = torch.eye(len(gram), dtype=gram.dtype)
    for i, order in enumerate(orders):
        for j in order:
            if j != i and gram[j, j] > 0 and (product := rows[i] @ gram[:, j]) < 0:
                rows[i, j] -= product / gram[j, j]
    return rows


def backward(rule: Equal, pieces: Iterable[PieceLosses], scale: Scale) -> dict[str, Tensor]:
    """Add the gradients of a batch to all weights, by one backward pass a piece; return each task's mean loss."""
    each: dict[str, Tensor] = {}
    for losses in pieces:
        total: Tensor | float = 0.0
        for task, (loss, share) in losses.items():
            each[task] = each.get(task, 0.0) + loss.detach() * share
            total = total + rule.term(task, loss) * share
        assert isinstance(total, Tensor)
        scale(total).backward()
    return each


def backward_by_task(
    rule: ByGradient,
    tasks: Sequence[str],
    pieces: Iterable[PieceLosses],
    shared: Sequence[Tensor],
    own: Mapping[str, Sequence[Tensor]],
    scale: Scale,
) -> dict[str, Tensor]:
    """Give all weights the gradients that a rule makes of the tasks'; return each task's mean loss.

    Takes a backward pass a task and piece, a copy of the shared weights a task, and on a GPU one wait a step, as what
    is projected goes by the gradients' products.

    Args:
        rule: says how gradients combine.
        tasks: those of the batch.
        pieces: of the batch, computed as they are asked for.
        shared: weights that several tasks' losses may depend on.
        own: those of one task, by task.
        scale: that of mixed precision; gradients come out scaled.
    """
    sizes = [weight.numel() for weight in shared]
    rows = torch.zeros(len(tasks), sum(sizes), dtype=shared[0].dtype, device=shared[0].device)  # (T, P)
    reached = [False] * len(shared)
    each: dict[str, Tensor] = {}
    for losses in pieces:
        for left, (task, (loss, share)) in zip(range(len(losses) - 1, -1, -1), losses.items(), strict=True):
            each[task] = each.get(task, 0.0) + loss.detach() * share
            found = torch.autograd.grad(
                scale(loss * share), [*shared, *own[task]], retain_graph=left > 0, allow_unused=True
            )
            row = rows[tasks.index(task)].split(sizes)
            for i, gradient in enumerate(found[: len(shared)]):
                if gradient is not None:
                    row[i].view(gradient.shape).add_(gradient)
                    reached[i] = True
            for weight, gradient in zip(own[task], found[len(shared) :], strict=True):
                if gradient is not None:
                    _add(weight, gradient)
    gram = (rows @ rows.T).cpu().double()
    losses_now = torch.stack([each[task] for task in tasks]).cpu().double()
    in_shared, in_own, slope = rule.combine(tasks, losses_now, gram)
    for weight, gradient, is_reached in zip(shared, (in_shared.to(rows) @ rows).split(sizes), reached, strict=True):
        if is_reached:  # the optimiser would let the others decay
            _add(weight, gradient.view(weight.shape))
    for i, task in enumerate(tasks):
        for weight in own[task]:
            if weight.grad is not None:
                weight.grad.mul_(float(in_own[i]))
        if slope is not None:
            _add(rule.balance[task], slope[i].to(rows))
    return each


def _add(weight: Tensor, gradient: Tensor) -> None:
    """Add to a weight's gradient, which must lie in memory as the weight does."""
    if weight.grad is None:
        weight.grad = torch.empty_like(weight).copy_(gradient)
    else:
        weight.grad.add_(gradient)


# What the server tells, and what sites read.


def write_history(
    balancing: str, lines: Callable[[], Iterable[Mapping[str, object]]], tasks: Sequence[str]
) -> dict[str, list[float]]:
    """Return what a training message tells of earlier rounds: nothing, where the rule does not look back.

    As it comes from the record, a run that is resumed tells what it would have told.

    Args:
        balancing: name of the rule.
        lines: returns those of the record's ``metrics.jsonl``, in the order of rounds.
        tasks: those that are still trained.
    """
    if not BALANCING[balancing].remembers:
        return {}
    losses: dict[str, list[float]] = {}
    for line in lines():
        task, loss = str(line["task"]), line.get("loss")
        if task in tasks and isinstance(loss, float) and math.isfinite(loss):
            losses.setdefault(task, []).append(loss)
    return {TOLD + task: [*told[:1], *told[1:][-2:]] for task, told in losses.items()}


def read_history(settings: Mapping[str, object]) -> dict[str, list[float]]:
    """Return what a training message tells of earlier rounds, by task."""
    return {
        key.removeprefix(TOLD): [float(loss) for loss in told]
        for key, told in settings.items()
        if key.startswith(TOLD) and isinstance(told, Sequence)
    }
