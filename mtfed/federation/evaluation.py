"""The metrics of a round: pooled over the sites' validation images, and on the server's own test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from flwr.app import ArrayRecord

from ..config import Config
from ..data.federation import test_data
from ..data.shard import Shard, load_shard
from ..learning.evaluate import evaluate
from ..learning.metrics import TaskMetrics, pool
from ..learning.parts import load_parts
from ..models.system import MultiTaskModel
from ..record.summary import mean_figures
from ..strategies import wire
from ..tasks.task import Task

MetricValues = dict[str, dict[str, float]]  # task -> metric -> value


def pooled_values(tasks: Mapping[str, Task], sums: Sequence[Mapping[str, object]]) -> MetricValues:
    """Return the values of each task's metrics: the mean over models, given the summed metrics of each."""
    models = [pool(tasks.values(), model_sums) for model_sums in sums]
    return {
        task: mean_figures([metrics[task].compute() for metrics in models if task in metrics])
        for task in tasks
        if any(task in metrics for metrics in models)
    }


class ServerTest:
    """The server's test images, which no site trains on, and the model that is evaluated on them."""

    def __init__(self, config: Config, model: MultiTaskModel) -> None:
        self.config = config
        self.model = model
        data = test_data(config)
        if data is not None:  # all of it is for testing, whatever its manifest calls the splits
            data = replace(data, rows=tuple(replace(row, split="test") for row in data.rows))
        # Read at once: an image that cannot be read must not cost a whole run.
        self.shard = load_shard(data, config) if data is not None else Shard.empty()

    def load(self, arrays: ArrayRecord) -> MultiTaskModel:
        """Return the model with the tensors of a record."""
        self.model = with_arrays(self.model, arrays)
        return self.model

    def metrics(self, arrays: ArrayRecord) -> dict[str, TaskMetrics]:
        """Return the metrics, on the test images, of the tasks whose decoders are in a record."""
        parts = {wire.part_of(key) for key in arrays}
        tasks = [task for task in self.config.tasks if wire.decoder_part(task) in parts]
        return evaluate(self.load(arrays), self.shard, tasks, self.config)


def with_arrays(model: MultiTaskModel, arrays: ArrayRecord) -> MultiTaskModel:
    """Return the model with a record's tensors: itself, or a copy of another width if the tensors have one."""
    parts, own = wire.unpack(arrays), model.parts()
    if any(value.shape != own[part][name].shape for part, tensors in parts.items() for name, value in tensors.items()):
        from ..models.width import resize

        whole = {name: tensor.cpu().numpy() for name, tensor in model.state_dict().items()}
        return resize(model, whole | {name: v.copy() for tensors in parts.values() for name, v in tensors.items()})
    load_parts(model, parts)
    return model
