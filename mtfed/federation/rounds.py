"""The ServerApp: rounds of training, merging and evaluation, and the record that they leave.

Beside weights and settings of the round, a training message holds, where the balancing rule looks back (``dwa``,
``gradnorm``), each task's mean training loss in earlier rounds over all its sites: the first one and the last two. It
goes to every site.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from ..config import Config
from ..data.federation import test_data
from ..data.shard import Shard, load_shard
from ..errors import MtfedError, unknown
from ..learning.balancing import write_history
from ..learning.losses import task_losses
from ..learning.metrics import TaskMetrics, pool
from ..learning.train import evaluate, load_parts, numpy_parts
from ..models import MultiTaskModel, build_model
from ..progress import Progress
from ..record.examples import save_examples
from ..record.run import Run
from ..record.summary import mean_figures, summarise
from ..report.console import print_summary
from ..strategies import STRATEGIES, SiteCard, TaskStrategy, wire
from .early_stopping import EarlyStopping
from .local.shared_memory import array_bytes

Figures = dict[str, dict[str, float]]  # task -> metric -> value


class Federation:
    """One run: what the rounds share."""

    def __init__(self, grid: Grid, config: Config) -> None:
        self.grid = grid
        self.config = config
        self.model = build_model(config, pretrained=True)
        self.strategy = make_strategy(config, self.model)
        task_losses(config)  # what the tasks' losses import, resident workers are forked with
        self.initial = wire.pack(numpy_parts(self.model))
        self.arrays = self.initial
        self.patience = EarlyStopping(config.patience, config.stop_per_task)
        self.first_round = 1
        data = test_data(config)  # read now: an image that cannot be read must not cost a whole run
        if data is not None:  # all of it is for testing, whatever its manifest calls the splits
            data = replace(data, rows=tuple(replace(row, split="test") for row in data.rows))
        self._test = load_shard(data, config) if data is not None else Shard.empty()
        self._run: Run | None = None
        if config.resume:
            self._run = Run.open(config.resume)
            self._run.check_resumable(config)
        self.sites = self.strategy.roster.refresh(grid)
        check_tasks(config, self.sites)
        if self._run is not None:
            check_sites(self._run, self.sites)

    def run(self) -> None:
        """Train until the last round or the end of patience, then choose, test and write the record."""
        config = self.config
        self.record = self._run or Run.create(config)
        if config.resume:
            self._resume()
        self.record.write_json("sites.json", [site_record(site) for site in self.sites])
        print(
            f"{config.name}: {len(self.sites)} sites, {config.strategy}, {config.rounds} rounds",
            f"-> {self.record.folder}",
            flush=True,
        )
        stopped = "all rounds done"
        with Progress(config.name, config.strategy, self.first_round, config.rounds) as progress:
            for server_round in range(self.first_round, config.rounds + 1):
                tasks = self.patience.active(list(config.tasks))
                if not tasks:
                    stopped = f"no improvement in {config.patience} evaluations"
                    break
                self._round(server_round, tasks, progress)
        self._finish(stopped)

    def _round(self, server_round: int, tasks: list[str], progress: Progress) -> None:
        config, strategy = self.config, self.strategy
        start, failed = time.perf_counter(), len(strategy.failures)
        told = ConfigRecord({"learning-rate": learning_rate(config, server_round)})
        if len(tasks) < len(config.tasks):
            told["tasks"] = tasks
        history = write_history(config.balancing, lambda: self.record.lines("metrics.jsonl"), tasks)
        told.update(history)
        messages = strategy.configure_train(server_round, self.arrays, told, self.grid)
        if not messages:
            raise MtfedError(
                f"Round {server_round}: no site holds any of the tasks {', '.join(tasks)} that are still trained."
            )
        traffic = Traffic(messages)
        replies = self.grid.send_and_receive(messages, timeout=config.round_timeout)
        replies = traffic.count(progress.follow(server_round, "training", replies, len(messages)))
        merged, trained = strategy.aggregate_train(server_round, replies)
        assert merged is not None and trained is not None
        answered = strategy.answered
        self.arrays = merged
        trained_seconds = time.perf_counter() - start

        validation, test, best = {}, {}, False
        one_model = list(strategy.models(self.arrays)) == [""]
        if self._due(server_round, config.evaluate_every):
            validation = self._validate(server_round, progress, one_model)
            best = self.patience.update(server_round, {task: self._score(task, f) for task, f in validation.items()})
        if self._due(server_round, config.test_every) and one_model:
            test = {task: metrics.compute() for task, metrics in self._tested(self.arrays).items()}

        seconds = time.perf_counter() - start
        losses = mean_losses(trained)
        self.record.append(
            "metrics.jsonl",
            [
                {
                    "round": server_round,
                    "task": task,
                    "strategy": config.strategy,
                    "loss": losses.get(task),
                    "samples": trained.get(f"num-examples.{task}"),
                    "validation": validation.get(task, {}),
                    "test": test.get(task, {}),
                }
                for task in config.tasks
            ],
        )
        failures = strategy.failures[failed:]
        self.record.append(
            "rounds.jsonl",
            [
                {
                    "round": server_round,
                    "seconds": seconds,
                    "train_seconds": trained_seconds,
                    "asked": len(messages),
                    "answered": answered,
                    "steps": trained.get("steps", 0),
                    "bytes_down": traffic.down,
                    "bytes_up": traffic.up,
                    "learning_rate": told["learning-rate"],
                    "merge": {k.removeprefix("merge."): v for k, v in trained.items() if k.startswith("merge.")},
                    "failures": [vars(failure) for failure in failures],
                }
            ],
        )
        checkpoint = {"round": server_round, "patience": self.patience.dump()}
        if best or not self.patience.best_round:
            self.record.save("best", self.arrays, strategy.state(), checkpoint)
        # Last, and in one step: a round counts as finished once this file stands.
        self.record.save("last", self.arrays, strategy.state(), checkpoint)
        shown = {f"{task} {config.tasks[task].metric}": f[config.tasks[task].metric] for task, f in validation.items()}
        loss = {"loss": sum(losses.values()) / len(losses)} if losses else {}
        progress.round_done(server_round, answered, len(messages), seconds, loss | shown)

    def _validate(self, server_round: int, progress: Progress, one_model: bool) -> Figures:
        """Return the figures of the sites' validation images: pooled, or where sites have their own models, means."""
        messages = self.strategy.configure_evaluate(server_round, self.arrays, ConfigRecord(), self.grid)
        replies = self.grid.send_and_receive(messages, timeout=self.config.round_timeout)
        replies = progress.follow(server_round, "validation", replies, len(messages))
        sums = self.strategy.aggregate_evaluate(server_round, replies)
        each = [sums] if one_model else list(self.strategy.evaluated.values())
        tested = [pool(self.config.tasks.values(), one or {}) for one in each]
        return {
            task: mean_figures([metrics[task].compute() for metrics in tested if task in metrics])
            for task in self.config.tasks
            if any(task in metrics for metrics in tested)
        }

    def _tested(self, arrays: ArrayRecord) -> dict[str, TaskMetrics]:
        """Return the metrics, on the test images, of the tasks whose decoders a record holds."""
        self.model = with_arrays(self.model, arrays)
        held = {wire.part_of(key) for key in arrays}
        tasks = [task for task in self.config.tasks if wire.decoder_part(task) in held]
        return evaluate(self.model, self._test, tasks, self.config)

    def _score(self, task: str, figures: dict[str, float]) -> float:
        return self.config.tasks[task].score(figures[self.config.tasks[task].metric])

    def _due(self, server_round: int, every: int) -> bool:
        return server_round == self.config.rounds or (every > 0 and server_round % every == 0)

    def _resume(self) -> None:
        saved = self.record.load("last", self.initial)
        if saved is None:
            self.record.forget_after(0)
            return
        self.arrays, state, progress = saved
        self.strategy.restore(state)
        self.patience.restore(progress["patience"])
        self.first_round = progress["round"] + 1
        self.record.forget_after(progress["round"])
        self.record.write_json("config.json", self.record.read_json("config.json") | {"rounds": self.config.rounds})

    def _finish(self, stopped: str) -> None:
        """Test the chosen model and the one before training, and write summary and report."""
        config = self.config
        saved = self.record.load("best", self.initial)
        assert saved is not None
        chosen, state, progress = saved
        self.strategy.restore(state)
        models = self.strategy.models(chosen)
        tested = {key: self._tested(arrays) for key, arrays in models.items()}
        untrained = self._tested(self.initial)
        self.model = with_arrays(self.model, next(iter(models.values())))
        summary = summarise(
            self.record,
            config,
            tested,
            untrained,
            stopped=stopped,
            chosen_round=progress["round"],
            sites=len(self.sites),
            parameters=sum(p.numel() for p in self.model.parameters()),
        )
        self.record.write_json("summary.json", summary)
        if list(models) == [""] and len(self._test):
            save_examples(self.record, self.model, self._test, config)
        if find_spec("matplotlib") is not None:
            from ..report import write_report

            print(f"report: {write_report([self.record.folder])}", flush=True)
        print_summary(self.record, config, summary, tested=len(self._test) > 0)


class Traffic:
    """Count the bytes of arrays that a round moves."""

    def __init__(self, messages: Iterable[Message]) -> None:
        self.down = sum(array_bytes(message.content) for message in messages)
        self.up = 0

    def count(self, replies: Iterable[Message]) -> Iterable[Message]:
        """Pass replies on, and count their bytes."""
        for reply in replies:
            self.up += array_bytes(reply.content) if reply.has_content() else 0
            yield reply


def make_strategy(config: Config, model: MultiTaskModel | None = None) -> TaskStrategy:
    """Return the config's strategy, given those of the config's values that its constructor names.

    One that matches units also gets the table of the model's axes; without a model, only the settings are checked.
    """
    if config.strategy not in STRATEGIES:
        told = str(unknown("strategy", config.strategy, STRATEGIES))
        listed = "" if "expected one of" in told else f" Expected one of: {', '.join(sorted(STRATEGIES))}."
        raise MtfedError(told + listed)
    kind = STRATEGIES[config.strategy]
    wanted = {
        name
        for base in kind.__mro__
        if "__init__" in vars(base)
        for name in inspect.signature(vars(base)["__init__"]).parameters
    }
    wanted -= set(getattr(kind, "fixed", ()))  # what a published method has no choice of
    given = config.model_dump(exclude={"tasks"}) | {"retry_timeout": config.round_timeout}
    if "axes" in wanted and config.matching and model is not None:
        from ..models.symmetry import derive_axes

        given["axes"] = derive_axes(model)
    return kind(**{name: value for name, value in given.items() if name in wanted})


def with_arrays(model: MultiTaskModel, arrays: ArrayRecord) -> MultiTaskModel:
    """Return the model with a record's tensors: itself, or, where they are of another width, a copy at that width."""
    parts, own = wire.unpack(arrays), model.parts()
    if any(value.shape != own[part][name].shape for part, held in parts.items() for name, value in held.items()):
        from ..models.width import resize

        whole = {name: tensor.cpu().numpy() for name, tensor in model.state_dict().items()}
        return resize(model, whole | {name: value.copy() for held in parts.values() for name, value in held.items()})
    load_parts(model, parts)
    return model


def check_sites(run: Run, sites: list[SiteCard]) -> None:
    """Refuse to continue a run with other sites than it was begun with."""
    then, now = [card["key"] for card in run.read_json("sites.json") or []], [site.key for site in sites]
    if then and then != now:
        raise MtfedError(
            f"Expected the {len(then)} sites that the run was begun with ({', '.join(then)}), got {', '.join(now)}."
        )


def check_tasks(config: Config, sites: list[SiteCard]) -> None:
    """Refuse to train a task that no site holds."""
    for task in config.tasks:
        if not any(site.tasks is None or task in site.tasks for site in sites):
            held = sorted({t for site in sites for t in site.tasks or ()})
            raise MtfedError(
                f"No site holds task {task!r}; the {len(sites)} sites hold {', '.join(held) or 'no task'}; "
                "label it at a site, or take the task out."
            )


def learning_rate(config: Config, server_round: int) -> float:
    """Return a round's learning rate: constant, or a half cosine down to a tenth over the rounds."""
    if config.schedule == "constant":
        return config.learning_rate
    progress = (server_round - 1) / max(config.rounds - 1, 1)
    return config.learning_rate * (0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2)


def mean_losses(trained: Mapping[str, Any]) -> dict[str, float]:
    """Return each task's mean training loss of a round from the sites' sums."""
    numbers = {name: value for name, value in trained.items() if isinstance(value, (int, float))}  # a site may err
    seen = {name.removeprefix("seen."): count for name, count in numbers.items() if name.startswith("seen.")}
    return {task: numbers.get(f"loss-sum.{task}", math.nan) / count for task, count in seen.items() if count}


def site_record(site: SiteCard) -> dict[str, Any]:
    """Return a site's card for the record."""
    return {"key": site.key, "tasks": sorted(site.tasks or ()), "counts": site.counts, "about": site.about}
