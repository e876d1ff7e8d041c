"""The ClientApp: what runs inside a hospital, in a simulation and on Flower's deployment engine alike.

A message of the server reveals nothing of the site, and of other sites the global weights; in the record ``pull`` what
their curvatures add up to (:mod:`mtfed.strategies.cavity`); and for balancing that looks back (``dwa``, ``gradnorm``)
the tasks' mean losses over all sites, of which two sites can work out each other's. In CTAN the weights are also those
of ``cross.TASK`` of tasks that the site does not hold: where one hospital alone holds a task, they are that hospital's.
A reply tells:

* ``query.describe``: the site's key, its modality if its node config names one, its tasks, sample counts a task, and
  class counts if its node config says ``share-class-counts``;
* ``train``: the trained parts of the model, sample counts, summed losses, steps, seconds; if the strategy asks for it,
  the curvature of the site's loss in every weight, which is a sum over its images of squared gradients;
* ``evaluate``: the sums of :mod:`mtfed.learning.metrics` over the site's held-out images; sums over a handful of images
  reveal something about each, and a mean error over one image reveals how far the model is from its label;
* a failure: the kind of the error, and all of it if the node config says ``share-tracebacks``.

Images, masks, labels of single images and patient identifiers stay.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    ConfigRecordValues,
    Context,
    Message,
    MetricRecord,
    MetricRecordValues,
    RecordDict,
)
from flwr.clientapp import ClientApp
from mtfed.strategies import wire
from mtfed.strategies.precision import write_precision
from mtfed.strategies.wire import record_in

from mtfed.config import Config, RunConfigValue, read_config
from mtfed.learning.acceleration import lay_out
from mtfed.learning.balancing import read_history
from mtfed.learning.curvature import curvature
from mtfed.learning.train import evaluate, fixed_seed, load_parts, load_weights, numpy_parts, pick_device, train
from mtfed.models.build import build_model
from mtfed.models.system import MultiTaskModel
from mtfed.tasks.kind import kind_of

from .site import Site, open_site

app = ClientApp()
log = logging.getLogger("mtfed.clients")
Answer = Callable[[Message, Context, Config, Site], RecordDict]


@lru_cache(maxsize=4)
def _config(run_config: tuple[tuple[str, RunConfigValue], ...]) -> Config:
    return read_config(dict(run_config))


@lru_cache(maxsize=2)
def _resident_model(config: Config) -> MultiTaskModel:
    """Return the process's model; every message overwrites all the parts that it uses."""
    model = build_model(config).to(pick_device(config.device))
    lay_out(model, config)
    return model


def allows(context: Context, config: Config | None, what: str) -> bool:
    """Say whether a site tells more than it must: ``share-class-counts``, ``share-tracebacks``.

    A real site decides that itself, in its node config. Simulated sites hold the researcher's own data, and go by the
    run's config.
    """
    asked = config is not None and bool(getattr(config, what.replace("-", "_")))
    return bool(context.node_config.get(what, "partition-id" in context.node_config and asked))


def answering(answer: Answer) -> Callable[[Message, Context], Message]:
    """Turn an answer into a handler that tells a failure instead of raising it.

    The server needs the reason, whatever the engine; what it says may hold file names, so unless the site shares it,
    it stays in the site's log.
    """

    @wraps(answer)
    def handle(message: Message, context: Context) -> Message:
        config = None
        try:
            config = _config(tuple(sorted(context.run_config.items())))
            torch.set_num_threads(config.torch_threads)
            content = answer(message, context, config, open_site(context, config))
        except Exception as error:
            failure: dict[str, ConfigRecordValues] = {"reason": f"{type(error).__name__}: {error}"}
            if allows(context, config, "share-tracebacks"):
                failure["traceback"] = traceback.format_exc()
            else:
                log.exception("Failed to answer %s", message.metadata.message_type)
                if config is not None:  # an unreadable config is the server's own, and tells nothing of the site
                    failure = {"reason": f"{type(error).__name__} (see the site's log)"}
            content = RecordDict({"failure": ConfigRecord(failure)})
        return Message(content, reply_to=message)

    return handle


@app.query("describe")
@answering
def describe(message: Message, context: Context, config: Config, site: Site) -> RecordDict:
    """Tell the server which tasks the site holds, and how many samples."""
    card: dict[str, ConfigRecordValues] = {"key": site.key, "tasks": site.tasks()}
    if "num-partitions" in context.node_config:
        card["num-partitions"] = int(context.node_config["num-partitions"])
    if "modality" in context.node_config:
        card["modality"] = str(context.node_config["modality"])
    counts: dict[str, MetricRecordValues] = {}
    for split, name in (("train", "train"), ("val", "validation")):
        rows = site.data.part(split)
        counts |= {f"{name}.{task}": rows.count(task) for task in site.tasks()}
    if allows(context, config, "share-class-counts"):
        train_rows = site.data.part("train").rows
        for task in (config.tasks[name] for name in site.tasks()):
            if (class_of := kind_of(task).class_of) is None:
                continue
            found = Counter(class_of(r.labels[task.name], task) for r in train_rows if task.name in r.labels)
            counts |= {f"class.{task.name}.{name}": found[i] for i, name in enumerate(task.classes)}
    return RecordDict({"site": ConfigRecord(card), "counts": MetricRecord(counts)})


@app.train()
@answering
def train_round(message: Message, context: Context, config: Config, site: Site) -> RecordDict:
    """Train the received parts on the site's shard, and send them back."""
    arrays, model, tasks = _receive(message, config, site)
    settings: Mapping[str, Any] = message.content["config"]
    server_round = int(settings["server-round"])
    if config.start == "apart" and server_round == 1:
        begin_apart(model, site, tasks, config, context)
    pull: dict[str, Any] = dict(record_in(message.content, "pull", ConfigRecord) or {})
    told = train(
        model,
        site.shard("train"),
        tasks,
        config,
        seed=fixed_seed(config.seed, site.key, server_round),
        learning_rate=float(settings.get("learning-rate", config.learning_rate)),
        proximal_mu=float(settings.get("proximal-mu", 0.0)),
        pull=pull,
        history=read_history(settings),
        warmup=config.warmup if server_round == 1 else 0,
    )
    shard = site.shard("train")
    counts = {f"num-examples.{task}": shard.count(task) for task in tasks}
    losses = {f"loss-sum.{task}": value for task, value in told.loss_sums.items()}
    seen = {f"seen.{task}": count for task, count in told.seen.items()}
    metrics: dict[str, MetricRecordValues] = {"num-examples": len(shard.labelled(tasks)), **counts, **losses, **seen}
    metrics |= {"steps": told.steps, "seconds": told.seconds, "pulled": int(bool(pull))}
    trained = wire.select(arrays, [part for part in model.parts() if wire.task_of(part) in ("", *tasks)])
    reply = RecordDict({"arrays": wire.repack(trained, numpy_parts(model)), "metrics": MetricRecord(metrics)})
    if settings.get("precision") == "fisher":
        start = time.perf_counter()
        reply["precision"] = precision_of(trained, model, site, tasks, config, settings)
        metrics["curvature-seconds"] = time.perf_counter() - start
        reply["metrics"] = MetricRecord(metrics)
    return reply


def begin_apart(model: MultiTaskModel, site: Site, tasks: list[str], config: Config, context: Context) -> None:
    """Put the site's own earlier model in the place of the server's, but for what belongs to tasks that it lacks.

    A real site's node config names it (``weights``, a safetensors file with the model's tensor names); a simulated
    site starts from weights of its own and trains them for ``apart-epochs``.
    """
    parts = [part for part in model.parts() if wire.task_of(part) in ("", *tasks)]
    if "weights" in context.node_config:
        load_weights(model, Path(str(context.node_config["weights"])), parts)
        return
    seed = fixed_seed(config.seed, site.key, "apart")
    own = numpy_parts(build_model(config.model_copy(update={"seed": seed})))
    load_parts(model, {part: own[part] for part in parts})
    alone = config.model_copy(update={"local_epochs": config.apart_epochs, "local_steps": 0})
    train(model, site.shard("train"), tasks, alone, seed=seed, learning_rate=config.learning_rate)


def precision_of(
    arrays: ArrayRecord,
    model: MultiTaskModel,
    site: Site,
    tasks: list[str],
    config: Config,
    settings: Mapping[str, Any],
) -> ArrayRecord:
    """Return how sure the site is of what it trained, one byte a weight; buffers count by its samples."""
    shard = site.shard("train")
    found = curvature(
        model,
        shard,
        tasks,
        config,
        seed=fixed_seed(config.seed, site.key, int(settings["server-round"]), "curvature"),
        samples=config.curvature_samples,
        history=read_history(settings),
    )
    samples = {task: float(shard.count(task)) for task in tasks} | {"": float(len(shard.labelled(tasks)))}
    parameters = {name for name, _ in model.named_parameters()}
    parts = {
        part: {
            name: found[name].cpu().numpy() if name in found
            else np.full(tensor.shape, 0.0 if name in parameters else samples[wire.task_of(part)], np.float32)
            for name, tensor in tensors.items()
        }
        for part, tensors in model.parts().items() if wire.task_of(part) in samples
    }  # fmt: skip
    flat = wire.repack(arrays, parts)
    floating = [key for key in flat if key != wire.MANIFEST and flat[key].dtype == arrays[key].dtype]
    return write_precision({key: flat[key].numpy() for key in floating})


@app.evaluate()
@answering
def evaluate_round(message: Message, context: Context, config: Config, site: Site) -> RecordDict:
    """Evaluate the received parts on the site's held-out patients."""
    _, model, tasks = _receive(message, config, site)
    sums: dict[str, MetricRecordValues] = {}
    for metrics in evaluate(model, site.shard("val"), tasks, config).values():
        sums |= metrics.sums()
    return RecordDict({"metrics": MetricRecord(sums)})


def _receive(message: Message, config: Config, site: Site) -> tuple[ArrayRecord, MultiTaskModel, list[str]]:
    """Load the received parts into the resident model; return them, the model, and the tasks to work on."""
    arrays = message.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    parts = wire.unpack(arrays)
    model = _resident_model(config)
    load_parts(model, parts)
    return arrays, model, [task for task in site.tasks() if wire.decoder_part(task) in parts]
