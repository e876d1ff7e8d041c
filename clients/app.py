"""The ClientApp: what runs inside a hospital, in a simulation and on Flower's deployment engine alike.

A message of the server reveals nothing of the site; a reply tells:

* ``query.describe``: the site's key, its tasks, sample counts a task (class counts only with ``share-class-counts``);
* ``train``: the trained parts of the model, sample counts, summed losses, seconds;
* ``evaluate``: the sums of :mod:`mtfed.metrics` over the site's held-out images.

Images, masks, labels of single images and patient identifiers stay.
"""

from __future__ import annotations

import logging
import traceback
from collections import Counter
from collections.abc import Callable
from functools import lru_cache, wraps

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from mtfed.strategies import wire

from mtfed.config import Config, RunConfigValue, read_config
from mtfed.data.shard import class_index
from mtfed.models import MTMedFormer, build_model
from mtfed.training import evaluate, fixed_seed, load_parts, numpy_parts, pick_device, train

from .site import Site, open_site

app = ClientApp()
log = logging.getLogger("mtfed.clients")
Answer = Callable[[Message, Context, Config, Site], RecordDict]


@lru_cache(maxsize=4)
def _config(run_config: tuple[tuple[str, RunConfigValue], ...]) -> Config:
    return read_config(dict(run_config))


@lru_cache(maxsize=2)
def _resident_model(config: Config) -> MTMedFormer:
    """Return the process's model; every message overwrites all the parts that it uses."""
    return build_model(config).to(pick_device(config.device))


def answering(answer: Answer) -> Callable[[Message, Context], Message]:
    """Turn an answer into a handler that tells a failure instead of raising it.

    The server needs the reason, whatever the engine; a traceback may hold file names, so it stays in the site's log
    unless the run's config shares it.
    """

    @wraps(answer)
    def handle(message: Message, context: Context) -> Message:
        config = None
        try:
            config = _config(tuple(sorted(context.run_config.items())))
            torch.set_num_threads(config.torch_threads)
            content = answer(message, context, config, open_site(context, config))
        except Exception as error:
            log.exception("Failed to answer %s", message.metadata.message_type)
            failure: dict[str, str] = {"reason": f"{type(error).__name__} (see the site's log)"}
            if config is None or config.share_tracebacks:
                failure = {"reason": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
            content = RecordDict({"failure": ConfigRecord(failure)})
        return Message(content, reply_to=message)

    return handle


@app.query("describe")
@answering
def describe(message: Message, context: Context, config: Config, site: Site) -> RecordDict:
    """Tell the server which tasks the site holds, and how many samples."""
    card: dict[str, str | int | list[str]] = {"key": site.key, "tasks": site.tasks()}
    if "num-partitions" in context.node_config:
        card["num-partitions"] = int(context.node_config["num-partitions"])
    if "modality" in context.node_config:
        card["modality"] = str(context.node_config["modality"])
    counts: dict[str, int] = {}
    for split, name in (("train", "train"), ("val", "validation")):
        rows = site.data.part(split)
        counts |= {f"{name}.{task}": rows.count(task) for task in site.tasks()}
    if config.share_class_counts:
        train_rows = site.data.part("train").rows
        for task in (config.tasks[name] for name in site.tasks() if config.tasks[name].kind == "classification"):
            found = Counter(
                class_index(site.data, r.labels[task.name], task) for r in train_rows if task.name in r.labels
            )
            counts |= {f"class.{task.name}.{name}": found[i] for i, name in enumerate(task.classes)}
    return RecordDict({"site": ConfigRecord(card), "counts": MetricRecord(counts)})


@app.train()
@answering
def train_round(message: Message, context: Context, config: Config, site: Site) -> RecordDict:
    """Train the received parts on the site's shard, and send them back."""
    arrays, model, tasks = _receive(message, config, site)
    settings = message.content["config"]
    server_round = int(settings["server-round"])
    told = train(
        model,
        site.shard("train"),
        tasks,
        config,
        seed=fixed_seed(config.seed, site.key, server_round),
        learning_rate=float(settings.get("learning-rate", config.learning_rate)),
        proximal_mu=float(settings.get("proximal-mu", 0.0)),
    )
    shard = site.shard("train")
    counts = {f"num-examples.{task}": shard.count(task) for task in tasks}
    losses = {f"loss-sum.{task}": value for task, value in told.loss_sums.items()}
    seen = {f"seen.{task}": count for task, count in told.seen.items()}
    metrics = {"num-examples": len(shard), **counts, **losses, **seen, "steps": told.steps, "seconds": told.seconds}
    return RecordDict({"arrays": wire.repack(arrays, numpy_parts(model)), "metrics": MetricRecord(metrics)})


@app.evaluate()
@answering
def evaluate_round(message: Message, context: Context, config: Config, site: Site) -> RecordDict:
    """Evaluate the received parts on the site's held-out patients."""
    _, model, tasks = _receive(message, config, site)
    sums: dict[str, float | list[float]] = {}
    for metrics in evaluate(model, site.shard("val"), tasks, config).values():
        sums |= metrics.sums()
    return RecordDict({"metrics": MetricRecord(sums)})


def _receive(message: Message, config: Config, site: Site) -> tuple[ArrayRecord, MTMedFormer, list[str]]:
    """Load the received parts into the resident model; return them, the model, and the tasks to work on."""
    arrays = message.content["arrays"]
    parts = wire.unpack(arrays)
    model = _resident_model(config)
    load_parts(model, parts)
    return arrays, model, [task for task in site.tasks() if f"decoder.{task}" in parts]
