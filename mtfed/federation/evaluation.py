"""The metrics of a round: pooled over the sites' validation images, and on the server's own test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from flwr.app import ArrayRecord

from ..config import Config
from ..data.loading import load_shard
from ..data.shard import Shard
from ..data.simulated_sites import test_data
from ..learning.evaluate import evaluate
from ..learning.metrics import TaskMetrics, pool
from ..learning.parts import load_parts, numpy_parts
from ..models.normalisation import encoder_normalisation
from ..models.system import MultiTaskModel
from ..record.summary import mean_figures
from ..strategies import wire
from ..tasks.task import Task

MetricValues = dict[str, dict[str, float]]  # task -> metric -> value


def pooled_values(tasks: Mapping[str, Task], sums: Sequence[Mapping[str, object]]) -> MetricValues:
    """Return the values of each task's metrics: the mean over models, given the summed metrics of each."""
    models = [pool(tasks.values(), model_sums) for model_sums in sums]
    figures = {task: [metrics[task].compute() for metrics in models if task in metrics] for task in tasks}
    return {task: mean_figures(of_models) for task, of_models in figures.items() if of_models}


class ServerTest:
    """The server's test images, which no site trains on, and the model that is evaluated on them."""

    def __init__(self, config: Config, model: MultiTaskModel) -> None:
        self.config, self.model = config, model
        self._initial_inputs = {
            part: {name: value.copy() for name, value in tensors.items()}
            for part, tensors in numpy_parts(model).items()
            if wire.input_of(part)
        }
        data = test_data(config)
        if data is not None:  # all of it is for testing, whatever its manifest calls the splits
            data = replace(data, rows=tuple(replace(row, split="test") for row in data.rows))
        # Read at once: an image that cannot be read must not cost a whole run.
        normalisation = encoder_normalisation(config)
        self.shard = Shard.empty() if data is None else load_shard(data, config, normalisation=normalisation)

    def load(self, arrays: ArrayRecord) -> MultiTaskModel:
        """Return the model with the tensors of a record: itself, or a copy of their width if it has another.

        Input parts that are missing in the record, because its site has no such images, are the initial ones.
        """
        parts, own = self._initial_inputs | wire.unpack(arrays), self.model.parts()
        tensors = [(part, name, value) for part, values in parts.items() for name, value in values.items()]
        if all(value.shape == own[part][name].shape for part, name, value in tensors):
            load_parts(self.model, parts)
        else:
            from ..models.width import resize

            whole = {name: tensor.cpu().numpy() for name, tensor in self.model.state_dict().items()}
            self.model = resize(self.model, whole | {name: value.copy() for _, name, value in tensors})
        return self.model

    def metrics(self, arrays: ArrayRecord) -> dict[str, TaskMetrics]:
        """Return the metrics, on the test images, of the tasks whose decoders are in a record."""
        parts = {wire.part_of(key) for key in arrays}
        tasks = [task for task in self.config.tasks if wire.decoder_part(task) in parts]
        return evaluate(self.load(arrays), self.shard, tasks, self.config)
