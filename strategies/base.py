"""What every strategy here shares: who is sent which parts, how answers are read, and what a failure means.

A strategy of this package works under Flower's own ``start()`` and under mtfed's server alike, with packed records
(:mod:`.wire`) and with a plain ``ArrayRecord(model.state_dict())``.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from logging import getLogger
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from .screening import Failure, Memory, MetricSums, Update, read_failure, read_update
from .settings import OnFailure, check_settings
from .sites import FederationError, Roster, SiteCard
from .wire import MANIFEST, FlatArray, decoder_part, is_decoder, is_packed, part_of, record_in, select

log = getLogger("flwr")
MEMORY = "@memory"  # group of a checkpoint; no site's key holds an @


class TaskStrategy(Strategy):
    """Send each site the shared parts and the decoders of its tasks, and merge part by part over those who hold it.

    Args:
        fraction_train: share of the sites trained in a round, drawn by ``seed`` and round.
        seed: seed of that draw.
        on_failure: ``skip`` a site that fails, ``retry`` it up to ``retries`` times, or ``fail`` the run.
        retries: how often a failed site is asked again in a round, with ``on_failure="retry"``.
        quorum: share of the asked sites whose answers must be usable, else the round raises
            :class:`FederationError`. So does a round that nobody answered; one whose answers were all refused keeps
            the model, and the run goes on, unless a quorum forbids it.
        max_norm_ratio: refuse an update that moved further than so many times the other sites' median (see
            :class:`~.screening.Memory`); 0 never does.
        min_sites: how many sites must have joined before the first round.
        join_timeout: seconds to wait for them.
        retry_timeout: seconds to wait for a repeated message; ``None`` waits as long as it takes.
        evaluate: ask sites to evaluate; ``False`` for an app without an evaluate function.
    """

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
        check_settings(
            fraction_train=fraction_train,
            on_failure=on_failure,
            retries=retries,
            quorum=quorum,
            max_norm_ratio=max_norm_ratio,
            min_sites=min_sites,
        )
        self.fraction_train = fraction_train
        self.seed = seed
        self.on_failure = on_failure
        self.retries = retries
        self.quorum = quorum
        self.retry_timeout = retry_timeout
        self.evaluate = evaluate
        self.answered = 0  # sites whose answers entered the last merge or sum
        self.roster = Roster(min_sites, join_timeout)
        self.failures: list[Failure] = []
        self.evaluated: dict[str, MetricRecord] = {}  # the sites' metrics of the last evaluation
        self.memory = Memory(max_norm_ratio)
        self._grid: Grid | None = None
        self._arrays = ArrayRecord()
        self._asked: dict[str, Message] = {}

    # The mathematics of a strategy, one method a step; the rest of the class is the same for all.

    @abstractmethod
    def begin_merge(self, arrays: ArrayRecord) -> None:
        """Start a round's merge from the current global arrays."""

    @abstractmethod
    def add_to_merge(self, update: Update) -> None:
        """Take in one site's update; updates come in the order of site keys and are not kept."""

    @abstractmethod
    def finish_merge(self) -> dict[str, np.ndarray]:
        """Return the merged arrays by key; a key that is left out stays as it was."""

    def merge_metrics(self) -> dict[str, float]:
        """Return what the last merge has to tell, by names that begin with ``merge.``."""
        return {}

    def arrays_for(self, site: SiteCard, arrays: ArrayRecord, tasks: Iterable[str] | None) -> ArrayRecord:
        """Return what a site is sent: the whole record, or of a packed one the parts it can use."""
        if tasks is None or not is_packed(arrays):
            return arrays
        return select(arrays, self.parts_for(arrays, tasks))

    def more_for(self, site: SiteCard) -> dict[str, ConfigRecord]:
        """Return further records of a site's training message, by name."""
        return {}

    def models(self, arrays: ArrayRecord) -> dict[str, ArrayRecord]:
        """Return the models that a round leaves: the global one under ``""``, or one a site."""
        return {"": arrays}

    def state(self) -> dict[str, ArrayRecord]:
        """Return what must be kept beside the global arrays for a run to be resumed; a subclass adds its own."""
        return {MEMORY: self.memory.state()}

    def restore(self, state: dict[str, ArrayRecord]) -> None:
        """Take back what :meth:`state` gave."""
        if MEMORY in state:
            self.memory.restore(state[MEMORY])

    def train_config(self, server_round: int, config: ConfigRecord) -> ConfigRecord:
        """Return the config that travels with a training message."""
        return ConfigRecord({**config, "server-round": server_round})

    # Flower's hooks.

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Compose one training message a chosen site (Flower's hook).

        ``config["tasks"]`` names the tasks to train, if not all are; sites that hold none of them are not drawn.
        """
        active: Any = config.get("tasks")
        useful = {}
        if not (sites := self.roster.refresh(grid)):
            raise FederationError(
                f"Round {server_round}: expected sites to train, none is connected; start them again, "
                "and resume the run."
            )
        for site in sites:
            tasks = site.tasks if site.tasks is None or active is None else site.tasks.intersection(active)
            if tasks is None or tasks:
                useful[site.key] = site, tasks
        chosen = [useful[site.key] for site in self._choose(server_round, [site for site, _ in useful.values()])]
        config = self.train_config(server_round, config)
        return self._configure(MessageType.TRAIN, server_round, arrays, config, grid, chosen)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Compose one evaluation message a site, or none with ``evaluate=False`` (Flower's hook)."""
        config = ConfigRecord({**config, "server-round": server_round})
        sites = [(site, site.tasks) for site in self.roster.refresh(grid)] if self.evaluate else []
        return self._configure(MessageType.EVALUATE, server_round, arrays, config, grid, sites)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Merge the sites' updates and add up their metrics (Flower's hook)."""
        sums, self.answered, refused = MetricSums(), 0, 0
        self.memory.begin_round(server_round, self._arrays)
        self.begin_merge(self._arrays)
        for site, reply in self._answers(server_round, replies):
            try:
                sent = record_in(self._asked[site.key].content, "arrays", ArrayRecord) or ArrayRecord()
                update = read_update(site, reply, sent)
                trace = self.memory.check(update, sent)
                sums.add(site.key, record_in(reply.content, "metrics", MetricRecord) or MetricRecord())
            except ValueError as error:
                refused += 1
                self._fail(Failure(site.key, server_round, "train", f"its update was refused: {error}"))
                continue
            self.memory.keep(site.key, trace)
            self.add_to_merge(update)
            self.answered += 1
        self._check_quorum(server_round, "train", refused)
        for key, reason in sums.leave_out().items():  # what it learned does not hang on what it measured
            log.warning("Round %d: the training metrics of site %s were left out: %s", server_round, key, reason)
        merged = ArrayRecord()
        changed = self.finish_merge() if self.answered else {}
        for key, array in self._arrays.items():
            if key in changed and not np.isfinite(changed[key]).all():
                log.error("Round %d: the merge of %r is not finite; it stays as it was.", server_round, key)
                del changed[key]
            merged[key] = FlatArray(changed[key]) if key in changed else array
        return merged, MetricRecord({**sums.total(), **(self.merge_metrics() if self.answered else {})})

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Add up the sites' metrics, which are sums: the figure computed of them is the pooled one (Flower's hook).

        ``evaluated`` keeps them apart: where sites have models of their own, scores cannot be ranked among each other.
        """
        sums, refused = MetricSums(), 0
        for site, reply in self._answers(server_round, replies):
            try:
                metrics = record_in(reply.content, "metrics", MetricRecord)
                if metrics is None:
                    raise ValueError("expected a record 'metrics' in the reply")
                sums.add(site.key, metrics)
            except ValueError as error:
                refused += 1
                self._fail(Failure(site.key, server_round, "evaluate", f"its metrics were refused: {error}"))
        for key, reason in sums.leave_out().items():
            refused += 1
            self._fail(Failure(key, server_round, "evaluate", f"its metrics were refused: {reason}"))
        self.evaluated, self.answered = sums.records, len(sums.records)
        self._check_quorum(server_round, "evaluate", refused)
        return MetricRecord(sums.total()) if self.answered else None

    def summary(self) -> None:
        """Log the settings of the strategy (Flower's hook)."""
        log.info("\t├──> Sampling: %g of the sites a round, seed %d", self.fraction_train, self.seed)
        log.info("\t└──> Failures: %s, quorum %g", self.on_failure, self.quorum)

    # How a round goes, the same for all.

    @staticmethod
    def parts_for(arrays: ArrayRecord, tasks: Iterable[str]) -> list[str]:
        """Return the decoders of the given tasks, and every other part: of other tasks' too, what all features need."""
        wanted = {decoder_part(task) for task in tasks}
        parts = dict.fromkeys(part_of(key) for key in arrays if key != MANIFEST)
        return [part for part in parts if not is_decoder(part) or part in wanted]

    def _choose(self, server_round: int, sites: list[SiteCard]) -> list[SiteCard]:
        count = max(1, round(self.fraction_train * len(sites)))
        if count >= len(sites):
            return sites
        drawn = random.Random(f"{self.seed}/{server_round}").sample([site.key for site in sites], count)
        return [site for site in sites if site.key in set(drawn)]

    def _configure(
        self,
        action: str,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
        sites: list[tuple[SiteCard, frozenset[str] | None]],
    ) -> list[Message]:
        self._grid, self._arrays, self._asked = grid, arrays, {}
        for site, tasks in sites:
            content = RecordDict({"arrays": self.arrays_for(site, arrays, tasks), "config": config})
            for name, record in (self.more_for(site) if action == MessageType.TRAIN else {}).items():
                content[name] = record
            self._asked[site.key] = Message(
                content, dst_node_id=site.node_id, message_type=action, group_id=str(server_round)
            )
        return list(self._asked.values())

    def _answers(self, server_round: int, replies: Iterable[Message]) -> Iterator[tuple[SiteCard, Message]]:
        """Yield usable replies in the order of site keys, whatever order they arrive in.

        A reply that is early waits for those before it, so that an engine which delivers replies one by one needs
        no more memory than its own disorder.
        """
        cards = {site.key: site for site in self.roster.sites}
        waiting = dict.fromkeys(self._asked)
        early: dict[str, Message] = {}
        for reply in replies:
            site = self.roster.by_node(reply.metadata.src_node_id)
            if site is None or site.key not in waiting:
                continue  # a dead node's error comes from the SuperLink: its site is found missing below
            early[site.key] = reply
            while waiting and (key := next(iter(waiting))) in early:
                del waiting[key]
                yield from self._usable(server_round, cards[key], early.pop(key))
        for key in waiting:
            yield from self._usable(server_round, cards[key], early.get(key))

    def _usable(self, server_round: int, site: SiteCard, reply: Message | None) -> Iterator[tuple[SiteCard, Message]]:
        message = self._asked[site.key]
        for attempt in range(1 + (self.retries if self.on_failure == "retry" else 0)):
            if attempt:
                log.warning(
                    "Round %d: site %s is asked again (%d of %d).", server_round, site.key, attempt, self.retries
                )
                assert self._grid is not None
                again = Message(
                    message.content,
                    dst_node_id=message.metadata.dst_node_id,
                    message_type=message.metadata.message_type,
                    group_id=message.metadata.group_id,
                )
                reply = next(iter(self._grid.send_and_receive([again], timeout=self.retry_timeout)), None)
            failure = read_failure(site.key, server_round, message.metadata.message_type, reply)
            if failure is None:
                assert reply is not None
                yield site, reply
                return
            self._fail(failure)

    def _fail(self, failure: Failure) -> None:
        self.failures.append(failure)
        log.warning(
            "Round %d: site %s failed to %s: %s", failure.server_round, failure.site, failure.action, failure.reason
        )
        if failure.traceback:
            log.warning("%s", failure.traceback.rstrip())
        if self.on_failure == "fail":
            raise FederationError(
                f"Site {failure.site} failed to {failure.action} in round {failure.server_round}: "
                f"{failure.reason.rstrip('.')}; mend the site, or set on-failure to skip or retry."
            )

    def _check_quorum(self, server_round: int, action: str, refused: int) -> None:
        asked = len(self._asked)
        needed = max(1, self.quorum * asked)
        if not asked or self.answered >= needed:
            return
        if refused and not self.answered and not self.quorum:
            log.warning(
                "Round %d: no answer could be used, %d of %d were refused; the model stays as it was.",
                server_round,
                refused,
                asked,
            )
            return
        raise FederationError(
            f"Expected at least {needed:g} of {asked} sites to {action} in round {server_round}, {self.answered} did; "
            "see the sites' failures above, or lower quorum."
        )
