"""Server optimisers, task by task: FedAdam and FedYogi."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from flwr.app import ArrayRecord

from .averaging import TaskFedAvg
from .limits import check_settings
from .product import MEAN, VARIANCE
from .wire import arrays_in, record_of, tensors_in

FIRST, SECOND = "@first-moment", "@second-moment"  # groups of a checkpoint


class TaskFedOpt(TaskFedAvg):
    """FedOpt (Reddi et al., ICLR 2021): the sites' average is a direction, and the server takes a step along it.

    With the pseudo-gradient ``d`` = :class:`TaskFedAvg`'s average minus the global weights, for every weight

        m <- beta1 * m + (1 - beta1) * d
        v <- the optimiser's own rule, from v and d^2
        w <- w + server_learning_rate * m / (sqrt(v) + server_tau)

    from m = 0 and v = tau^2, without bias correction (the paper's Algorithm 2). Weights that no site trained in a
    round keep their m and v. Integers and BatchNorm's running statistics are averaged as in FedAvg.

    Args:
        server_learning_rate: roughly the largest change of a weight in a round. The paper tunes it for every data set
            over powers of ten. 0.01 is the change after ten local AdamW steps of 0.001 in the same direction, and was
            the best of 0.001, 0.003, 0.01, 0.03 and 0.1 on the embedded sample (one seed, 8 rounds).
        server_beta1: share of m that is kept from round to round. The paper fixes 0.9.
        server_beta2: share of v that is kept from round to round. The paper fixes 0.99.
        server_tau: weights whose pseudo-gradient is well below it move in proportion to it, not by its sign. The paper
            finds 1e-3 good throughout.
        settings: see :class:`TaskFedAvg`.
    """

    def __init__(
        self,
        *,
        server_learning_rate: float = 0.01,
        server_beta1: float = 0.9,
        server_beta2: float = 0.99,
        server_tau: float = 1e-3,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        check_settings(locals())
        self.server_learning_rate = server_learning_rate
        self.server_beta1 = server_beta1
        self.server_beta2 = server_beta2
        self.server_tau = server_tau
        self._first: dict[str, np.ndarray] = {}  # key -> m
        self._second: dict[str, np.ndarray] = {}  # key -> v

    @abstractmethod
    def second_moment(self, v: np.ndarray, squared: np.ndarray) -> np.ndarray:
        """Return the new v from the old one and the squared pseudo-gradient."""

    def finish_merge(self) -> dict[str, np.ndarray]:
        average = self.end_average()
        tensors = tensors_in(average.arrays)
        merged: dict[str, np.ndarray] = {}
        for key, mean in average.means():
            array = average.arrays[key]
            if mean.dtype.kind == "f":
                stepped = self._step(key, mean, array.numpy())
                for tensor in tensors[key]:
                    if tensor.name.endswith((MEAN, VARIANCE)):  # measured by BatchNorm, so averaged and not optimised
                        stepped[tensor.place] = mean[tensor.place]
                mean = stepped
            merged[key] = mean.astype(array.dtype)
        return merged

    def _step(self, key: str, average: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the weights after the server's step, in float64, and store m and v in the weights' precision.

        They are stored in float32 at least: the square of a small step underflows in float16.
        """
        stored = np.result_type(weights.dtype, np.float32)
        change = average - weights
        m = self._first.get(key, np.zeros((), stored))
        v = self._second.get(key, np.full((), self.server_tau**2, stored))
        m = (self.server_beta1 * m.astype(np.float64) + (1 - self.server_beta1) * change).astype(stored)
        v = self.second_moment(v.astype(np.float64), change * change).astype(stored)
        self._first[key], self._second[key] = m, v
        step = m.astype(np.float64) / (np.sqrt(v, dtype=np.float64) + self.server_tau)
        return np.asarray(weights + self.server_learning_rate * step)

    def state(self) -> dict[str, ArrayRecord]:
        moments = {FIRST: self._first, SECOND: self._second}
        return super().state() | {group: record_of(arrays) for group, arrays in moments.items() if arrays}

    def restore(self, state: dict[str, ArrayRecord]) -> None:
        super().restore(state)
        self._first, self._second = (arrays_in(state.get(group)) for group in (FIRST, SECOND))


class TaskFedAdam(TaskFedOpt):
    """FedAdam (Reddi et al., ICLR 2021): v is a running mean of the squared pseudo-gradient."""

    def second_moment(self, v: np.ndarray, squared: np.ndarray) -> np.ndarray:
        return self.server_beta2 * v + (1 - self.server_beta2) * squared


class TaskFedYogi(TaskFedOpt):
    """FedYogi (Reddi et al., ICLR 2021): like FedAdam, but v forgets a large pseudo-gradient only additively."""

    def second_moment(self, v: np.ndarray, squared: np.ndarray) -> np.ndarray:
        return v - (1 - self.server_beta2) * squared * np.sign(v - squared)
