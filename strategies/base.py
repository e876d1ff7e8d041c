"""The base of all strategies: which parts each site is sent, how replies are merged, and how failures are handled.

The strategies of this package run under Flower's own ``start()`` and under mtfed's server, with packed records
(:mod:`.wire`) and with a plain ``ArrayRecord(model.state_dict())``.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from logging import getLogger
from typing import Any, ClassVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from .agreement import Agreement, split_weight
from .limits import OnFailure, check_settings
from .phase import Failure, FailurePolicy, MetricSums, Phase, RoundResult, finished
from .screening import Memory
from .sites import FederationError, Roster, SiteCard
from .update import Update, read_update
from .wire import decoder_part, input_of, is_decoder, is_packed, part_of, record_in, select

log = getLogger("flwr")
Asked = tuple[SiteCard, frozenset[str] | None]  # a site, and the tasks whose parts it is sent; None: every part
MEMORY = "@memory"  # group of a checkpoint; site keys contain no @


class TaskStrategy(Strategy):
    """Send each site the parts that it can use, and merge each part over the sites that train it.

    A site can use the shared parts, the decoders of its tasks, and the input parts of its kinds of images.

    A subclass implements :meth:`begin_merge`, :meth:`add_to_merge` and :meth:`finish_merge`; everything else is the
    same for all strategies. ``train_result`` and ``evaluate_result`` describe the last training and the last
    evaluation, the former with the agreement of the tasks (:mod:`.agreement`); ``failures`` are those of the whole run.

    Args:
        fraction_train: share of the sites that train in a round, drawn by ``seed`` and round.
        seed: seed of that draw.
        on_failure: ``skip`` a site that fails, ``retry`` it up to ``retries`` times, or ``fail`` the run.
        retries: how often a failed site is asked again in a round, with ``on_failure="retry"``.
        quorum: share of the asked sites whose replies must be usable; otherwise the round raises
            :class:`FederationError`. A round without any reply also raises it. A round whose replies were all refused
            keeps the model, and the run continues, unless a quorum forbids it.
        max_norm_ratio: refuse an update that moved further than this many times the other sites' median (see
            :class:`~.screening.Memory`); 0 never does.
        min_sites: number of sites that must have joined before the first round.
        join_timeout: seconds to wait for them.
        retry_timeout: seconds to wait for the reply to a repeated message; ``None`` waits without limit.
        evaluate: ask sites to evaluate; ``False`` for an app without an evaluate function.
    """

    is_federated: ClassVar[bool] = True  # whether sites learn from each other

    def __init__(
        self,
        *,
        fraction_train: float = 1.0,
        seed: int = 0,
        on_failure: OnFailure = "skip",
        retries: int = 1,
        quorum: float = 0.0,
        max_norm_ratio: float = 0.0,
        min_sites: int = 1,
        join_timeout: float = 600.0,
        retry_timeout: float | None = None,
        evaluate: bool = True,
    ) -> None:
        check_settings(locals())
        self.fraction_train = fraction_train
        self.seed = seed
        self.policy = FailurePolicy(on_failure, retries, quorum, retry_timeout)
        self.evaluate = evaluate
        self.roster = Roster(min_sites, join_timeout)
        self.memory = Memory(max_norm_ratio)
        self.failures: list[Failure] = []
        self._train_result: RoundResult | None = None
        self._evaluate_result: RoundResult | None = None
        self._phase: Phase | None = None
        self.agreement = Agreement(ArrayRecord())  # of the current merge

    # The mathematics of a strategy, one method for each step of a merge.

    @abstractmethod
    def begin_merge(self, arrays: ArrayRecord) -> None:
        """Start a round's merge from the current global arrays."""

    @abstractmethod
    def add_to_merge(self, update: Update) -> None:
        """Add one site's update; updates come in the order of site keys, and their memory is not kept."""

    @abstractmethod
    def finish_merge(self) -> dict[str, np.ndarray]:
        """Return the merged arrays by key; an array whose key is missing stays as it was."""

    # Optional additions to a strategy.

    @classmethod
    def title(cls) -> str:
        """Return the name of the strategy in reports: by default that of the class, without ``Task``."""
        return cls.__name__.removeprefix("Task")

    def merge_metrics(self) -> dict[str, float]:
        """Return metrics of the last merge; their names begin with ``merge.``."""
        return {}

    def task_weights_of(self, update: Update) -> dict[str, float]:
        """Return how much an update counts for each of its site's tasks; one not named counts nothing."""
        return split_weight(update.num_examples, update.counts)

    def measure_agreement(self, update: Update, sent: ArrayRecord) -> None:
        """Add an update to :attr:`agreement`; a strategy that reorders units does so later, in the global order."""
        if self.is_federated:
            self.agreement.add(self.task_weights_of(update), update.arrays, sent)

    def measured_precision(self) -> Mapping[str, np.ndarray]:
        """Return the precision of the merged weights by key, of those keys for which sites sent theirs."""
        return {}

    def arrays_for(self, site: SiteCard, arrays: ArrayRecord, tasks: Iterable[str] | None) -> ArrayRecord:
        """Return the arrays to send to a site: the whole record, or only the parts it can use if it is packed.

        These are the tasks' decoders, the input parts of the kinds of images that the site has, and all other parts,
        even those of other tasks (``cross.TASK``), because all features depend on them.
        """
        if (tasks is None and site.inputs is None) or not is_packed(arrays):
            return arrays
        parts = {part_of(key) for key in arrays}
        if tasks is not None:
            decoders = {decoder_part(task) for task in tasks}
            parts = {part for part in parts if not is_decoder(part) or part in decoders}
        if site.inputs is not None:
            parts = {part for part in parts if input_of(part) in ("", *site.inputs)}
        return select(arrays, parts)

    def extra_records(self, site: SiteCard) -> dict[str, ConfigRecord]:
        """Return further records of a site's training message, by name."""
        return {}

    def trained_models(self, arrays: ArrayRecord) -> dict[str, ArrayRecord]:
        """Return the models that a round results in: the global one under ``""``, or one for each site by its key."""
        return {"": arrays}

    def state(self) -> dict[str, ArrayRecord]:
        """Return what must be saved with the global arrays to resume a run; a subclass adds its own groups."""
        return {MEMORY: self.memory.state()}

    def restore(self, state: dict[str, ArrayRecord]) -> None:
        """Restore what :meth:`state` returned."""
        if MEMORY in state:
            self.memory.restore(state[MEMORY])

    def train_config(self, server_round: int, config: ConfigRecord) -> ConfigRecord:
        """Return the config of a training message."""
        return ConfigRecord({**config, "server-round": server_round})

    # Flower's hooks.

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return one training message for each site that was drawn (Flower's hook).

        ``config["tasks"]`` names the tasks to train, if not all are; sites that have none of them are not drawn.

        Raises:
            FederationError: if no site is connected.
        """
        active: Any = config.get("tasks")
        if not (sites := self.roster.refresh(grid)):
            raise FederationError(
                f"Round {server_round}: expected sites to train, none is connected; start them again, "
                "and resume the run."
            )
        asked: list[Asked] = []
        for site in sites:
            tasks = site.tasks if site.tasks is None or active is None else site.tasks.intersection(active)
            if tasks is None or tasks:
                asked.append((site, tasks))
        drawn, config = self._draw(server_round, asked), self.train_config(server_round, config)
        return self._begin_phase(MessageType.TRAIN, server_round, arrays, config, grid, drawn)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return one evaluation message for each site, or none with ``evaluate=False`` (Flower's hook)."""
        config = ConfigRecord({**config, "server-round": server_round})
        sites = [(site, site.tasks) for site in self.roster.refresh(grid)] if self.evaluate else []
        return self._begin_phase(MessageType.EVALUATE, server_round, arrays, config, grid, sites)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Merge the sites' updates and add up their metrics (Flower's hook)."""
        with self._phase_to_finish() as phase:
            sums, answered = MetricSums(), 0
            self.memory.begin_round(server_round, phase.arrays)
            self.agreement = Agreement(phase.arrays, self.roster.tasks())
            self.begin_merge(phase.arrays)
            for site, reply in phase.replies_in_order(replies, self.roster):
                try:
                    sent = phase.arrays_sent(site.key)
                    update = read_update(site, reply, sent)
                    trace = self.memory.check(update, sent)
                    sums.add(site.key, record_in(reply.content, "metrics", MetricRecord) or MetricRecord())
                except ValueError as error:
                    phase.refuse(site.key, f"its update was refused: {error}")
                    continue
                self.memory.remember(site.key, trace)
                self.add_to_merge(update)
                self.measure_agreement(update, sent)
                answered += 1
            phase.check_quorum(answered)
            for key, reason in sums.drop_other_forms().items():  # its weights are valid even if its metrics are not
                log.warning("Round %d: the training metrics of site %s were left out: %s", server_round, key, reason)
            changed = self.finish_merge() if answered else {}
            self._train_result = phase.result(sums.records, answered, *self.agreement.finish(self.measured_precision()))
            metrics = MetricRecord({**sums.total(), **(self.merge_metrics() if answered else {})})
            return phase.with_changes(changed), metrics

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Add up the sites' metrics, which are sums, so that scores computed from the total are pooled ones.

        ``evaluate_result.site_metrics`` contains them site by site: scores of sites that have models of their own
        cannot be ranked among each other. (Flower's hook.)
        """
        with self._phase_to_finish() as phase:
            sums = MetricSums()
            for site, reply in phase.replies_in_order(replies, self.roster):
                try:
                    metrics = record_in(reply.content, "metrics", MetricRecord)
                    if metrics is None:
                        raise ValueError("expected a record 'metrics' in the reply")
                    sums.add(site.key, metrics)
                except ValueError as error:
                    phase.refuse(site.key, f"its metrics were refused: {error}")
            for key, reason in sums.drop_other_forms().items():
                phase.refuse(key, f"its metrics were refused: {reason}")
            self._evaluate_result = phase.result(sums.records, len(sums.records))
            phase.check_quorum(len(sums.records))
            return MetricRecord(sums.total()) if sums.records else None

    def summary(self) -> None:
        """Log the settings of the strategy (Flower's hook)."""
        log.info("\t├──> Sampling: %g of the sites a round, seed %d", self.fraction_train, self.seed)
        log.info("\t└──> Failures: %s, quorum %g", self.policy.on_failure, self.policy.quorum)

    # The course of a round, the same for all strategies.

    @property
    def train_result(self) -> RoundResult:
        """Return the result of the last training; before the first, raise ``RuntimeError``."""
        return finished(self._train_result, "aggregate_train")

    @property
    def evaluate_result(self) -> RoundResult:
        """Return the result of the last evaluation; before the first, raise ``RuntimeError``."""
        return finished(self._evaluate_result, "aggregate_evaluate")

    @property
    def phase(self) -> Phase:
        """Return the current phase; it begins when Flower asks for the messages of a round."""
        assert self._phase is not None, "configure_train or configure_evaluate comes first"
        return self._phase

    @contextmanager
    def _phase_to_finish(self) -> Iterator[Phase]:
        """Yield the current phase, then add its failures to those of the run, even if it raises."""
        phase = self.phase
        try:
            yield phase
        finally:
            self.failures += phase.failures

    def _draw(self, server_round: int, sites: list[Asked]) -> list[Asked]:
        count = max(1, round(self.fraction_train * len(sites)))
        if count >= len(sites):
            return sites
        drawn = set(random.Random(f"{self.seed}/{server_round}").sample([site.key for site, _ in sites], count))
        return [(site, tasks) for site, tasks in sites if site.key in drawn]

    def _begin_phase(
        self, action: str, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid, sites: list[Asked]
    ) -> list[Message]:
        self._phase = None  # frees the earlier messages, which may contain arrays of every site
        messages = {}
        for site, tasks in sites:
            content = RecordDict({"arrays": self.arrays_for(site, arrays, tasks), "config": config})
            if action == MessageType.TRAIN:
                content.update(self.extra_records(site))
            group = str(server_round)
            messages[site.key] = Message(content, dst_node_id=site.node_id, message_type=action, group_id=group)
        self._phase = Phase(server_round, action, arrays, messages, grid, self.policy)
        return list(messages.values())
