"""The ClientApp: what runs at a hospital, both in a simulation and on Flower's deployment engine.

A message from the server reveals nothing about the site it is sent to. About other sites it contains the global
weights; in the record ``pull``, the sum of their curvatures (:mod:`mtfed.strategies.cavity`); and for balancing by
earlier losses (``dwa``, ``gradnorm``), the tasks' mean losses over all sites, from which each of two sites can compute
the other's. In CTAN the weights include ``cross.TASK`` of tasks that the site does not have; if only one hospital has
the task, they are that hospital's. An input part, through which only one kind of images passes, contains the weights of
the sites that have such images, and only these sites receive it; of two such sites, each can compute the other's. A
frozen encoder is not sent; a message contains one number for each of its tensors, with which a site compares its own.
A reply contains:

* ``query.describe``: the site's key, its modality if its node config names one, its tasks, the number of samples of
  each, and class counts if its node config sets ``share-class-counts``; if the model has input parts that are trained,
  also which dimensions, modalities and body parts its labelled images (with a task that needs no labels: all its
  images) have, as words of :mod:`mtfed.data.vocabulary`, without numbers;
* ``train``: the parts of the model that it trained, sample counts, summed losses, steps, seconds; if the strategy asks
  for it, the curvature of the site's loss in every weight, which is a sum of squared gradients over its images;
* ``evaluate``: the sums of :mod:`mtfed.learning.metrics` over the site's held-out images; sums over a handful of images
  reveal something about each, and a mean error over one image reveals how far the model is from its label;
* after a failure: the type of the error, and the whole error if the node config sets ``share-tracebacks``.

Images, masks, labels of single images and patient identifiers never leave the site.
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
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from mtfed.config import Config, RunConfigValue, read_config
from mtfed.errors import MtfedError
from mtfed.learning.acceleration import set_memory_format
from mtfed.learning.balancing import read_history
from mtfed.learning.curvature import curvature
from mtfed.learning.device import derive_seed, pick_device
from mtfed.learning.evaluate import evaluate
from mtfed.learning.frozen import check_frozen
from mtfed.learning.parts import load_parts, load_weights, numpy_parts
from mtfed.learning.train import train
from mtfed.models.build import build_model, scheme_of
from mtfed.models.system import MultiTaskModel
from mtfed.strategies import wire
from mtfed.strategies.precision import write_precision
from mtfed.strategies.wire import record_in
from mtfed.tasks.kind import kind_of

from .site import Site, open_site

app = ClientApp()
log = logging.getLogger("mtfed.clients")
TrainingSettings = Mapping[str, Any]  # the record ``config`` of a training message
Handler = Callable[[Message, Context, Config, Site], RecordDict]


@lru_cache(maxsize=4)
def _config(run_config: tuple[tuple[str, RunConfigValue], ...]) -> Config:
    return read_config(dict(run_config))


@lru_cache(maxsize=2)
def _resident_model(config: Config) -> MultiTaskModel:
    """Return the model of this process; every message overwrites all parts that it uses, except frozen tensors."""
    model = build_model(config).to(pick_device(config.device))
    set_memory_format(model, config)
    return model


def is_shared(context: Context, config: Config | None, setting: str) -> bool:
    """Return whether a site shares more than it must, by ``share-class-counts`` or ``share-tracebacks``.

    A real site decides this in its node config. Simulated sites have the researcher's own data and use the run's
    config.
    """
    in_config = config is not None and bool(getattr(config, setting.replace("-", "_")))
    return bool(context.node_config.get(setting, "partition-id" in context.node_config and in_config))


def reporting_failures(handler: Handler) -> Callable[[Message, Context], Message]:
    """Return a function for Flower that replies with a record ``failure`` instead of raising an error.

    The server needs the reason on every engine. Its text may contain file names, so it stays in the site's log unless
    the site shares it.
    """

    @wraps(handler)
    def handle(message: Message, context: Context) -> Message:
        config = None
        try:
            config = _config(tuple(sorted(context.run_config.items())))
            torch.set_num_threads(config.torch_threads)
            content = handler(message, context, config, open_site(context, config))
        except Exception as error:
            failure: dict[str, Any] = {"reason": f"{type(error).__name__}: {error}"}
            if is_shared(context, config, "share-tracebacks"):
                failure["traceback"] = traceback.format_exc()
            else:
                log.exception("Failed to answer %s", message.metadata.message_type)
                if config is not None:  # an invalid config comes from the server, and reveals nothing about the site
                    failure = {"reason": f"{type(error).__name__} (see the site's log)"}
            content = RecordDict({"failure": ConfigRecord(failure)})
        return Message(content, reply_to=message)

    return handle


@app.query("describe")
@reporting_failures
def describe(message: Message, context: Context, config: Config, site: Site) -> RecordDict:
    """Return the site's card: its key, its tasks and its numbers of samples, and the kinds of its images.

    Only a model whose input parts are trained needs the kinds; for other models they are not sent.
    """
    card: dict[str, Any] = {"key": site.key, "tasks": site.tasks()}
    if wire.INPUT in scheme_of(config.model).owners.values() and not config.is_encoder_frozen:
        card["inputs"] = sorted(site.inputs())
    if "num-partitions" in context.node_config:
        card["num-partitions"] = int(context.node_config["num-partitions"])
    if "modality" in context.node_config:
        card["modality"] = str(context.node_config["modality"])
    counts: dict[str, Any] = {}
    for split, name in (("train", "train"), ("val", "validation")):
        rows = site.data.part(split)
        counts |= {f"{name}.{task}": rows.count(task) for task in site.tasks()}
    if is_shared(context, config, "share-class-counts"):
        train_rows = site.data.part("train").rows
        for task in (config.tasks[name] for name in site.tasks()):
            if (class_of := kind_of(task).class_of) is None:
                continue
            classes = Counter(class_of(r.labels[task.name], task) for r in train_rows if task.name in r.labels)
            counts |= {f"class.{task.name}.{name}": classes[i] for i, name in enumerate(task.classes)}
    return RecordDict({"site": ConfigRecord(card), "counts": MetricRecord(counts)})


@app.train()
@reporting_failures
def train_round(message: Message, context: Context, config: Config, site: Site) -> RecordDict:
    """Train the received parts on the site's images, and return them."""
    arrays, model, tasks = _receive(message, context, config, site)
    settings: TrainingSettings = message.content["config"]
    server_round = int(settings["server-round"])
    if config.start == "apart" and server_round == 1:
        begin_apart(model, site, tasks, config, context)
    pull: dict[str, Any] = dict(record_in(message.content, "pull", ConfigRecord) or {})
    shard = site.shard("train")
    result = train(
        model, shard, tasks, config, seed=derive_seed(config.seed, site.key, server_round),
        learning_rate=float(settings.get("learning-rate", config.learning_rate)),
        proximal_mu=float(settings.get("proximal-mu", 0.0)), pull=pull, history=read_history(settings),
        warmup=config.warmup if server_round == 1 else 0,
        span=((server_round - 1) / config.rounds, server_round / config.rounds),
        backforward=server_round <= config.backforward_rounds,
    )  # fmt: skip
    counts = {f"num-examples.{task}": shard.count(task) for task in tasks}
    losses = {f"loss-sum.{task}": value for task, value in result.loss_sums.items()}
    seen = {f"seen.{task}": count for task, count in result.samples.items()}
    metrics: dict[str, Any] = {"num-examples": len(shard.labelled(tasks)), **counts, **losses, **seen}
    metrics |= {"steps": result.steps, "seconds": result.seconds, "pulled": int(bool(pull))}
    trained = wire.select(arrays, trained_parts(model, site, tasks))
    reply = RecordDict({"arrays": wire.repack(trained, numpy_parts(model)), "metrics": MetricRecord(metrics)})
    if settings.get("precision") == "fisher":
        start = time.perf_counter()
        reply["precision"] = precision_of(trained, model, site, tasks, config, settings)
        metrics["curvature-seconds"] = time.perf_counter() - start
        reply["metrics"] = MetricRecord(metrics)
    return reply


def begin_apart(model: MultiTaskModel, site: Site, tasks: list[str], config: Config, context: Context) -> None:
    """Replace the server's weights by those of the site's own earlier model, except parts that the site cannot train.

    A real site's node config names the model (``weights``, a safetensors file with the model's tensor names); a
    simulated site starts from random weights of its own and trains them for ``apart-epochs``.
    """
    parts = trained_parts(model, site, tasks)
    if "weights" in context.node_config:
        load_weights(model, Path(str(context.node_config["weights"])), parts)
        return
    seed = derive_seed(config.seed, site.key, "apart")
    own = numpy_parts(build_model(config.model_copy(update={"seed": seed, "weights": ""})))
    load_parts(model, {part: own[part] for part in parts})
    alone = config.model_copy(update={"local_epochs": config.apart_epochs, "local_steps": 0})
    train(model, site.shard("train"), tasks, alone, seed=seed, learning_rate=config.learning_rate)


def trained_parts(model: MultiTaskModel, site: Site, tasks: list[str]) -> list[str]:
    """Return the parts that training some tasks can change: not those of other tasks, or of images without labels."""
    parts = [part for part in model.parts() if wire.task_of(part) in ("", *tasks)]
    inputs = site.inputs(tasks) if any(map(wire.input_of, parts)) else set()
    return [part for part in parts if wire.input_of(part) in ("", *inputs)]


def precision_of(
    arrays: ArrayRecord, model: MultiTaskModel, site: Site, tasks: list[str], config: Config, settings: TrainingSettings
) -> ArrayRecord:
    """Return the precision of what the site trained, one byte for each weight; that of buffers is its samples."""
    shard, seed = site.shard("train"), derive_seed(config.seed, site.key, int(settings["server-round"]), "curvature")
    measured = curvature(
        model, shard, tasks, config, seed=seed, samples=config.curvature_samples, history=read_history(settings)
    )
    samples = {task: float(shard.count(task)) for task in tasks} | {"": float(len(shard.labelled(tasks)))}
    parameters = {name for name, _ in model.named_parameters()}
    parts = {
        part: {
            name: measured[name].cpu().numpy() if name in measured
            else np.full(tensor.shape, 0.0 if name in parameters else samples[wire.task_of(part)], np.float32)
            for name, tensor in tensors.items()
        }
        for part, tensors in model.parts().items() if wire.task_of(part) in samples
    }  # fmt: skip
    flat = wire.repack(arrays, parts)
    floating = [key for key in flat if key != wire.MANIFEST and flat[key].dtype == arrays[key].dtype]
    return write_precision({key: flat[key].numpy() for key in floating})


@app.evaluate()
@reporting_failures
def evaluate_round(message: Message, context: Context, config: Config, site: Site) -> RecordDict:
    """Evaluate the received parts on the site's held-out patients."""
    _, model, tasks = _receive(message, context, config, site)
    sums: dict[str, Any] = {}
    for metrics in evaluate(model, site.shard("val"), tasks, config).values():
        sums |= metrics.sums()
    return RecordDict({"metrics": MetricRecord(sums)})


def with_own_weights(config: Config, context: Context) -> Config:
    """Return the config with the ``weights`` from which this site reads a frozen encoder, which it does not receive.

    They are those of the run, or the file that the site's node config names as ``encoder-weights``.

    Raises:
        MtfedError: if there is no such file.
    """
    weights = str(context.node_config.get("encoder-weights", config.weights))
    if weights not in ("", "timm") and not Path(weights).expanduser().is_file():
        raise MtfedError(
            f"Config key weights: expected a file with the server's frozen encoder at this site too, got none at "
            f"{weights}; copy it to the site, and name it in the node config as encoder-weights."
        )
    return config.model_copy(update={"weights": weights})


def _receive(
    message: Message, context: Context, config: Config, site: Site
) -> tuple[ArrayRecord, MultiTaskModel, list[str]]:
    """Load the received parts into the resident model; return them, the model, and the tasks to work on."""
    arrays = message.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    parts = wire.unpack(arrays)
    if config.is_encoder_frozen:
        config = with_own_weights(config, context)
    model = _resident_model(config)
    if model.frozen:
        check_frozen(model, message.content["config"], config.weights)
    load_parts(model, parts)
    return arrays, model, [task for task in site.tasks() if wire.decoder_part(task) in parts]
