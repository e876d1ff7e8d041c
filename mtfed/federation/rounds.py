"""The ServerApp's work: rounds of training, merging and evaluation, and the record that they leave.

A training message contains weights and the settings of its round. If the balancing rule depends on earlier rounds
(``dwa``, ``gradnorm``), it also contains each task's mean training loss over all its sites in the first round and in
the last two; every site gets these.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid

from ..config import Config
from ..errors import MtfedError
from ..learning.balancing import write_history
from ..learning.frozen import first_difference, frozen_arrays, write_projections
from ..learning.losses import task_losses
from ..learning.parts import numpy_parts
from ..models.build import build_model
from ..progress import Progress
from ..record.examples import save_examples
from ..record.run import Run
from ..record.summary import summarise
from ..strategies import SiteCard, TaskStrategy, wire
from .early_stopping import EarlyStopping
from .evaluation import ServerTest, pooled_values
from .round_record import RoundRecord
from .strategy_settings import make_strategy

log = logging.getLogger("mtfed.federation")
GLOBAL = [""]  # keys of a strategy's models if it has one for all sites


@dataclass
class RunState:
    """What changes from round to round; a checkpoint saves it together with the state of the strategy."""

    run: Run
    arrays: ArrayRecord
    early_stopping: EarlyStopping
    frozen: dict[str, np.ndarray]  # the model's frozen tensors, which are not in the arrays
    finished: int = 0  # rounds

    def restore(self, strategy: TaskStrategy) -> None:
        """Go back to the last checkpoint, or to the start if there is none; later lines of the record are deleted."""
        if (saved := self.run.load("last", self.arrays)) is not None:
            if differing := first_difference(self.frozen, self.run.tensors("last", self.frozen)):
                raise MtfedError(
                    f"Config key weights: expected the frozen encoder of the run to resume, got another {differing}; "
                    "restore the file that the run began with."
                )
            self.arrays, state, progress = saved
            strategy.restore(state)
            self.early_stopping.restore(progress["patience"])
            self.finished = progress["round"]
        self.run.delete_rounds_after(self.finished)

    def save(self, server_round: int, strategy: TaskStrategy, *, best: bool) -> None:
        """Write the checkpoints of a round. It counts as finished once "last" is written, which is one atomic step."""
        self.finished = server_round
        progress = {"round": server_round, "patience": self.early_stopping.dump()}
        for name in ("best", "last") if best else ("last",):
            self.run.save(name, self.arrays, strategy.state(), progress, self.frozen)


class Federation:
    """One run. The constructor builds and checks everything that needs no site; :meth:`run` waits for the sites."""

    def __init__(self, grid: Grid, config: Config) -> None:
        self.grid, self.config = grid, config
        # The tasks that choose the best round and stop the training; if there are any with labels, these.
        self.deciding = config.labelled_tasks or config.tasks
        model = build_model(config, pretrained=True)
        self.strategy = make_strategy(config, model)
        task_losses(config)  # imports what losses need: resident workers are forked from this process
        self.initial = wire.pack(numpy_parts(model))
        self.frozen = frozen_arrays(model)
        if self.frozen and not config.weights:
            log.warning("Config key weights: it is empty, so the frozen encoder keeps its random initial weights.")
        self.about_frozen = write_projections(model)  # in every message, for the sites to compare
        self.test = ServerTest(config, model)
        self.resumed = Run.open(config.resume) if config.resume else None
        if self.resumed is not None:
            self.resumed.check_resumable(config)

    def run(self) -> None:
        """Wait for the sites, train until the last round or early stopping, then choose, test and write the record."""
        config = self.config
        sites = self.strategy.roster.refresh(self.grid)
        check_tasks(config, sites)
        if self.resumed is not None:
            check_same_sites(self.resumed, sites)
        state = self._start(sites)
        about = f"{len(sites)} sites, {config.strategy}, {config.rounds} round{'s' * (config.rounds > 1)}"
        print(f"{config.name}: {about} -> {state.run.folder}", flush=True)
        stopped, first_round = "all rounds done", state.finished + 1
        with Progress(config.name, config.strategy, first_round, config.rounds) as progress:
            for server_round in range(first_round, config.rounds + 1):
                tasks = state.early_stopping.active(list(config.tasks))
                if not any(task in self.deciding for task in tasks):
                    stopped = f"no improvement in {config.patience} evaluations"
                    break
                self._round(state, server_round, tasks, progress)
        self._finish(state.run, len(sites), stopped)

    def _start(self, sites: list[SiteCard]) -> RunState:
        """Create the record, or continue that of the run to resume."""
        config = self.config
        run = self.resumed or Run.create(config)
        state = RunState(run, self.initial, EarlyStopping(config.patience, config.stop_per_task), self.frozen)
        if self.resumed is not None:
            state.restore(self.strategy)
            if state.finished:
                run.write_json("config.json", run.read_json("config.json") | {"rounds": config.rounds})
        run.write_json("sites.json", [describe_site(site) for site in sites])
        return state

    def _round(self, state: RunState, server_round: int, tasks: list[str], progress: Progress) -> None:
        """Train, merge, evaluate and record one round."""
        config, start = self.config, time.perf_counter()
        round_record = RoundRecord(server_round, learning_rate(config, server_round))
        self._train(state, round_record, tasks, progress)
        round_record.train_seconds = time.perf_counter() - start

        best = False
        if self._is_due(server_round, config.evaluate_every):
            self._validate(state, round_record, progress)
            judged = [(task, round_record.validation.get(name)) for name, task in self.deciding.items()]
            scores = {task.name: task.score(values[task.metric]) for task, values in judged if values}
            best = state.early_stopping.update(server_round, scores)
        if self._is_due(server_round, config.test_every) and self._has_one_model(state.arrays):
            round_record.test = {task: metrics.compute() for task, metrics in self.test.metrics(state.arrays).items()}
        round_record.seconds = time.perf_counter() - start

        state.run.append("metrics.jsonl", round_record.metric_lines(config))
        state.run.append("rounds.jsonl", [round_record.round_line()])
        state.save(server_round, self.strategy, best=best or not state.early_stopping.best_round)
        losses, metrics = round_record.losses, {task: config.tasks[task].metric for task in round_record.validation}
        shown = {"loss": sum(losses.values()) / len(losses)} if losses else {}
        shown |= {f"{task} {metric}": round_record.validation[task][metric] for task, metric in metrics.items()}
        progress.round_done(server_round, round_record.answered, round_record.asked, round_record.seconds, shown)

    def _train(self, state: RunState, round_record: RoundRecord, tasks: list[str], progress: Progress) -> None:
        """Let the sites train the given tasks, and merge their updates into ``state.arrays``."""
        config, strategy, server_round = self.config, self.strategy, round_record.server_round
        settings = ConfigRecord({"learning-rate": round_record.learning_rate, **self.about_frozen})
        if len(tasks) < len(config.tasks):
            settings["tasks"] = tasks
        settings.update(write_history(config.balancing, lambda: state.run.lines("metrics.jsonl"), tasks))
        messages = strategy.configure_train(server_round, state.arrays, settings, self.grid)
        if not messages:
            names = ", ".join(tasks)
            raise MtfedError(f"Round {server_round}: no site holds any of the tasks {names} that are still trained.")
        round_record.traffic.sent(messages)
        replies = self.grid.send_and_receive(messages, timeout=config.round_timeout)
        replies = round_record.traffic.received(progress.follow(server_round, "training", replies, len(messages)))
        merged, trained = strategy.aggregate_train(server_round, replies)
        assert merged is not None and trained is not None
        state.arrays, round_record.trained = merged, trained
        result = strategy.train_result
        round_record.asked, round_record.answered = result.asked, result.answered
        round_record.failures += result.failures
        round_record.agreement, round_record.weighted_agreement = result.agreement, result.weighted_agreement

    def _validate(self, state: RunState, round_record: RoundRecord, progress: Progress) -> None:
        """Let the sites evaluate, and pool their metrics; if each has a model of its own, take the mean over them."""
        strategy, server_round = self.strategy, round_record.server_round
        messages = strategy.configure_evaluate(server_round, state.arrays, ConfigRecord(self.about_frozen), self.grid)
        replies = self.grid.send_and_receive(messages, timeout=self.config.round_timeout)
        replies = progress.follow(server_round, "validation", replies, len(messages))
        sums = strategy.aggregate_evaluate(server_round, replies)
        round_record.failures += strategy.evaluate_result.failures
        site_metrics = list(strategy.evaluate_result.site_metrics.values())
        models = [sums or MetricRecord()] if self._has_one_model(state.arrays) else site_metrics
        round_record.validation = pooled_values(self.config.tasks, models)

    def _has_one_model(self, arrays: ArrayRecord) -> bool:
        return list(self.strategy.trained_models(arrays)) == GLOBAL

    def _is_due(self, server_round: int, every: int) -> bool:
        return server_round == self.config.rounds or (every > 0 and server_round % every == 0)

    def _finish(self, run: Run, sites: int, stopped: str) -> None:
        """Test the chosen model and the one before training, and write summary and report."""
        config = self.config
        saved = run.load("best", self.initial)
        assert saved is not None
        chosen, state, progress = saved
        self.strategy.restore(state)
        models = self.strategy.trained_models(chosen)
        tested = {key: self.test.metrics(arrays) for key, arrays in models.items()}
        untrained = self.test.metrics(self.initial)
        model = self.test.load(next(iter(models.values())))
        facts = {"chosen_round": progress["round"], "parameters": sum(p.numel() for p in model.parameters())}
        summary = summarise(run, config, tested, untrained, stopped=stopped, sites=sites, **facts)
        run.write_json("summary.json", summary)
        if list(models) == GLOBAL and len(self.test.shard):
            save_examples(run, model, self.test.shard, config)
        # Imported this late because resident workers, which are forked before, need neither charts nor galleries.
        from ..report import write_report
        from ..report.console import print_summary

        if find_spec("matplotlib") is not None:
            print(f"report: {write_report([run.folder])}", flush=True)
        print_summary(run, config, summary, tested=len(self.test.shard) > 0)


def check_tasks(config: Config, sites: Sequence[SiteCard]) -> None:
    """Refuse to train a task that no site has labels for."""
    for task in config.tasks:
        if not any(site.tasks is None or task in site.tasks for site in sites):
            tasks = sorted({name for site in sites for name in site.tasks or ()})
            raise MtfedError(
                f"No site holds task {task!r}; the {len(sites)} sites hold {', '.join(tasks) or 'no task'}; "
                "label it at a site, or remove the task."
            )


def describe_site(site: SiteCard) -> dict[str, object]:
    """Return a site's entry in the record; its kinds of images are included if the model has input parts."""
    card: dict[str, object] = {"key": site.key, "tasks": sorted(site.tasks or ()), "counts": site.counts}
    card["about"] = site.about
    return card if site.inputs is None else card | {"inputs": sorted(site.inputs)}


def check_same_sites(run: Run, sites: Sequence[SiteCard]) -> None:
    """Refuse to continue a run with sites other than those that began it."""
    recorded, keys = [card["key"] for card in run.read_json("sites.json") or []], [site.key for site in sites]
    if recorded and recorded != keys:
        expected = f"the {len(recorded)} sites that began the run ({', '.join(recorded)})"
        raise MtfedError(f"Expected {expected}, got {', '.join(keys)}.")


def learning_rate(config: Config, server_round: int) -> float:
    """Return a round's learning rate: constant, or a half cosine down to a tenth over the rounds."""
    if config.schedule == "constant":
        return config.learning_rate
    progress = (server_round - 1) / max(config.rounds - 1, 1)
    return config.learning_rate * (0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2)
