"""Accuracy of Bayesian matching and FedAvg on handwritten digits: ten sites with skewed classes, a small MLP.

python -m benchmarks digits       (some minutes on one core; pip install scikit-learn first)

The strategies are those of the package. Sites and training are plain NumPy, so that a round of ten sites takes
milliseconds: a 64-50-10 perceptron, Adam (AMSGrad) with batches of 32 and a learning rate of 0.01 for 30 epochs if
merged once, and of 0.003 over rounds. Initial weights are drawn from N(0, 0.1), classes are split by Dirichlet(alpha).
This is the setting of PFNM (Yurochkin et al., ICML 2019) on a smaller data set.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from statistics import mean, stdev
from typing import Any, Literal

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from mtfed.strategies import BayesianMatching, TaskFedAvg, TaskStrategy
from mtfed.strategies.axes import Axis, AxisGraph
from mtfed.strategies.precision import write_precision
from mtfed.strategies.wire import FlatArray

Net = dict[str, np.ndarray]
INPUTS, HIDDEN, CLASSES, SITES = 64, 50, 10, 10
SHAPES = {
    "fc1.weight": (HIDDEN, INPUTS), "fc1.bias": (HIDDEN,), "fc2.weight": (CLASSES, HIDDEN), "fc2.bias": (CLASSES,),
}  # fmt: skip
AXES = AxisGraph(
    {"fc1.weight": (None, ("hidden", None)), "fc1.bias": (None, ("hidden",)), "fc2.weight": (None, (None, "hidden"))},
    {"hidden": Axis(HIDDEN)},
)
ROUNDS = (1, 5, 20)  # after which accuracy is reported
Start = Literal["common", "apart"]
STARTS: tuple[Start, ...] = ("common", "apart")
ALPHAS, EPOCHS = (0.5, 0.1), (1, 5, 20)  # concentrations of the division of the classes, and local epochs


@dataclass
class Data:
    """Images (N, 64) in [0, 1] and their digits (N,)."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def load() -> tuple[Data, Data]:
    """Return 1,347 training and 450 test images."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise SystemExit("This benchmark takes its images from scikit-learn; pip install scikit-learn.") from None
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    x, x_test, y, y_test = train_test_split(images, labels, test_size=450, random_state=0, stratify=labels)
    return Data(x, y), Data(x_test, y_test)


def split(data: Data, sites: int, alpha: float, seed: int) -> list[Data]:
    """Divide every class by shares drawn from a Dirichlet; sites with an equal share of the images get no more."""
    generator = np.random.default_rng([seed, 1])
    while True:
        indices: list[list[int]] = [[] for _ in range(sites)]
        for digit in range(CLASSES):
            index = generator.permutation(np.flatnonzero(data.labels == digit))
            shares = generator.dirichlet(np.full(sites, alpha)) * [len(own) < len(data) / sites for own in indices]
            bounds = (np.cumsum(shares / shares.sum()) * len(index)).astype(int)[:-1]
            for own, piece in zip(indices, np.split(index, bounds), strict=True):
                own.extend(piece)
        if min(map(len, indices)) >= 10:
            return [Data(data.images[own], data.labels[own]) for own in indices]


def draw(generator: np.random.Generator) -> Net:
    """Return a network with random weights."""
    return {
        name: (np.full(shape, 0.1) if len(shape) == 1 else generator.normal(0, 0.1, shape)).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def forward(net: Net, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (N, 50) hidden units and (N, 10) probabilities."""
    hidden = np.maximum(images @ net["fc1.weight"].T + net["fc1.bias"], 0)
    logits = hidden @ net["fc2.weight"].T + net["fc2.bias"]
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return hidden, odds / odds.sum(axis=1, keepdims=True)


def accuracy(net: Net, data: Data) -> float:
    """Return the share of images whose digit is predicted correctly."""
    return float((forward(net, data.images)[1].argmax(axis=1) == data.labels).mean())


def train(net: Net, data: Data, epochs: int, generator: np.random.Generator, rate: float) -> Net:
    """Return the network after training with Adam (AMSGrad) on the cross-entropy."""
    flat = np.concatenate([net[name].ravel() for name in SHAPES])
    net, gradient = views(flat), np.empty_like(flat)
    slope = views(gradient)
    first, second, max_second, step = np.zeros_like(flat), np.zeros_like(flat), np.zeros_like(flat), 0
    for _ in range(epochs):
        order = generator.permutation(len(data))
        for start in range(0, len(data), 32):
            index = order[start : start + 32]
            images, step = data.images[index], step + 1
            hidden, error = forward(net, images)
            error[np.arange(len(index)), data.labels[index]] -= 1
            error /= len(index)
            np.matmul(error.T, hidden, out=slope["fc2.weight"])
            error.sum(axis=0, out=slope["fc2.bias"])
            hidden_error = (error @ net["fc2.weight"]) * (hidden > 0)
            np.matmul(hidden_error.T, images, out=slope["fc1.weight"])
            hidden_error.sum(axis=0, out=slope["fc1.bias"])
            first += 0.1 * (gradient - first)
            second += 0.001 * (gradient**2 - second)
            np.maximum(max_second, second, out=max_second)
            root = np.sqrt(max_second / (1 - 0.999**step)) + 1e-8
            flat -= rate / (1 - 0.9**step) * first / root
    return net


def views(flat: np.ndarray) -> Net:
    """Return the tensors of a flat vector as views."""
    ends = np.cumsum([np.prod(shape) for shape in SHAPES.values()])
    parts = zip(SHAPES.items(), np.split(flat, ends[:-1]), strict=True)
    return {name: part.reshape(shape) for (name, shape), part in parts}


def fisher(net: Net, data: Data) -> Net:
    """Return the exact diagonal Fisher information, summed over images; the expectation is over all ten labels."""
    hidden, odds = forward(net, data.images)
    spread = odds * (1 - odds)  # variance of each logit's gradient over the model's label distribution
    weight = net["fc2.weight"]
    hidden_variance = np.maximum(odds @ weight**2 - (odds @ weight) ** 2, 0) * (hidden > 0)
    return {
        "fc1.weight": hidden_variance.T @ data.images**2,
        "fc1.bias": hidden_variance.sum(axis=0),
        "fc2.weight": spread.T @ hidden**2,
        "fc2.bias": spread.sum(axis=0),
    }


@dataclass
class Sites(Grid):
    """A grid of sites in this process, which reply one after the other.

    Args:
        data: data of every site.
        epochs: per round.
        seed: seed of all random draws.
        apart: whether sites replace the network that they receive in the first round by one with random weights.
        rate: learning rate.
    """

    data: list[Data]
    epochs: int
    seed: int
    apart: bool = False
    rate: float = 0.003

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        for message in messages:
            node = message.metadata.dst_node_id
            if message.metadata.message_type == "query.describe":
                content = RecordDict({"site": ConfigRecord({"key": f"site-{node:02d}"})})
            else:
                content = self._train(node - 1, message)
            yield Message(content, reply_to=message)

    def _train(self, number: int, message: Message) -> RecordDict:
        config, data = message.content.config_records["config"], self.data[number]
        server_round = int(str(config["server-round"]))
        generator = np.random.default_rng([self.seed, 2, number, server_round])
        net = {name: array.numpy() for name, array in message.content.array_records["arrays"].items()}
        if self.apart and server_round == 1:
            net = draw(np.random.default_rng([self.seed, 3, number]))
        net = train(net, data, self.epochs, generator, self.rate)
        reply = RecordDict({"arrays": record(net), "metrics": MetricRecord({"num-examples": len(data)})})
        if config.get("precision") == "fisher":
            reply["precision"] = write_precision(fisher(net, data))
        return reply

    def get_node_ids(self) -> list[int]:
        return list(range(1, len(self.data) + 1))

    create_message = push_messages = pull_messages = run = set_run = None  # type: ignore[assignment]


Sites.__abstractmethods__ = frozenset()


def record(net: Net) -> ArrayRecord:
    """Return a network as an array record."""
    return ArrayRecord({name: FlatArray(values) for name, values in net.items()})


def run(strategy: TaskStrategy, grid: Sites, test: Data, rounds: int) -> dict[int, float]:
    """Return test accuracy after each round."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    arrays, curve = record(draw(np.random.default_rng([grid.seed, 4]))), {}
    for number in range(1, rounds + 1):
        messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
        merged, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))
        arrays = merged or arrays
        curve[number] = accuracy({name: array.numpy() for name, array in arrays.items()}, test)
    return curve


def measure() -> dict[str, Any]:
    """Print and return all figures."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    data, test = load()
    figures: dict[str, Any] = {"one-shot, apart": one_shot(data, test)}
    for start, alpha, epochs in product(STARTS, ALPHAS, EPOCHS):
        figures[f"{start}, alpha {alpha:g}, {epochs} epochs"] = cell(data, test, start, alpha, epochs)
    return figures


def one_shot(data: Data, test: Data, seeds: int = 20) -> dict[str, Any]:
    """Return the accuracy of merging once networks that ten sites initialized and trained alone for 30 epochs."""
    grids = [Sites(split(data, SITES, 0.5, seed), 30, seed, apart=True, rate=0.01) for seed in range(seeds)]
    curves = [compare(grid, test, "apart", 1) for grid in grids]
    figures = {name: spread([curve[name][1] for curve in curves]) for name in curves[0]}
    means = ", ".join(f"{name} {values['mean']:.3f}" for name, values in figures.items())
    print(f"one-shot, apart: {means} (target 0.9)")
    return {"seeds": seeds, **figures, "target": 0.9}


def compare(grid: Sites, test: Data, start: Start, rounds: int) -> dict[str, dict[int, float]]:
    """Return test accuracy after each round, by strategy."""
    strategies = {"FedAvg": TaskFedAvg(), "Bayesian matching": BayesianMatching(AXES, start=start)}
    return {name: run(strategy, grid, test, rounds) for name, strategy in strategies.items()}


def cell(data: Data, test: Data, start: Start, alpha: float, epochs: int) -> dict[str, Any]:
    """Return the accuracy of both strategies after some rounds, and their difference, over seeds."""
    seeds = 20 if epochs == 1 else 5  # one epoch is few steps; near chance, seeds differ more than strategies
    grids = [Sites(split(data, SITES, alpha, seed), epochs, seed, apart=start == "apart") for seed in range(seeds)]
    curves = [compare(grid, test, start, ROUNDS[-1]) for grid in grids]
    figures: dict[str, Any] = {"seeds": seeds}
    for number in ROUNDS:
        accuracies = {name: [curve[name][number] for curve in curves] for name in curves[0]}
        gain = [bayesian - fedavg for fedavg, bayesian in zip(*accuracies.values(), strict=True)]
        figures[f"round {number}"] = {name: spread(values) for name, values in (accuracies | {"gain": gain}).items()}
    means = [[figures[f"round {number}"][name]["mean"] for name in curves[0]] for number in ROUNDS]
    rounds = ", ".join(f"{fedavg:.3f} -> {bayesian:.3f}" for fedavg, bayesian in means)
    print(f"{start}, alpha {alpha:g}, {epochs} epochs: FedAvg -> Bayesian after rounds {ROUNDS}: {rounds}", flush=True)
    return figures


def spread(values: list[float]) -> dict[str, float]:
    """Return mean and standard deviation."""
    return {"mean": round(mean(values), 4), "deviation": round(stdev(values), 4)}
