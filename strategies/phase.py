"""One phase of a round, training or evaluation: its messages, replies in a fixed order, failures and metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from logging import getLogger
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from .agreement import Figures
from .limits import OnFailure
from .sites import FederationError, Roster, SiteCard
from .wire import record_in, record_of

log = getLogger("flwr")


@dataclass(frozen=True)
class Failure:
    """A site without a usable reply: in which round, in which phase, and why."""

    site: str
    server_round: int
    action: str
    reason: str
    traceback: str = ""


@dataclass(frozen=True)
class FailurePolicy:
    """What happens when sites fail; see :class:`~.base.TaskStrategy` for the fields."""

    on_failure: OnFailure = "skip"
    retries: int = 1
    quorum: float = 0.0
    retry_timeout: float | None = None


@dataclass(frozen=True)
class RoundResult:
    """What the server needs to know about a finished phase of a round."""

    server_round: int
    asked: int  # sites that were sent a message
    answered: int  # sites whose replies were used
    failures: tuple[Failure, ...]  # failures of this phase
    site_metrics: dict[str, MetricRecord]  # metrics by site key
    agreement: Figures = field(default_factory=dict)  # of the tasks' updates (:mod:`.agreement`)
    weighted_agreement: Figures = field(default_factory=dict)  # the same, weighted by precision


def finished(result: RoundResult | None, hook: str) -> RoundResult:
    """Return the result of a phase; raise ``RuntimeError`` if the hook that makes it was not called yet."""
    if result is None:
        raise RuntimeError(f"Expected the result of a finished phase, there is none yet; call {hook} first.")
    return result


@dataclass
class Phase:
    """The messages, replies and failures of a phase."""

    server_round: int
    action: str  # ``train`` or ``evaluate``
    arrays: ArrayRecord  # the global arrays that the round starts from
    messages: dict[str, Message]  # messages by key of the site, in the order of the keys
    grid: Grid  # sends a message again with ``on_failure="retry"``
    policy: FailurePolicy
    failures: list[Failure] = field(default_factory=list)
    _refused: int = 0

    def arrays_sent(self, site: str) -> ArrayRecord:
        """Return the arrays that a site was sent."""
        return record_in(self.messages[site].content, "arrays", ArrayRecord) or ArrayRecord()

    def replies_in_order(self, replies: Iterable[Message], roster: Roster) -> Iterator[tuple[SiteCard, Message]]:
        """Yield the usable replies in the order of site keys, whatever order they arrive in.

        A reply that arrives early waits for those before it. An engine that delivers replies one by one therefore
        needs memory only for the replies that are out of order.
        """
        cards = {site.key: site for site in roster.sites}
        waiting = dict.fromkeys(self.messages)
        early: dict[str, Message] = {}
        for reply in replies:
            site = roster.by_node(reply.metadata.src_node_id)
            if site is None or site.key not in waiting:
                continue  # the SuperLink answers for a dead node; its site is reported as missing below
            early[site.key] = reply
            while waiting and (key := next(iter(waiting))) in early:
                del waiting[key]
                if (usable := self._usable_reply(key, early.pop(key))) is not None:
                    yield cards[key], usable
        for key in waiting:
            if (usable := self._usable_reply(key, early.get(key))) is not None:
                yield cards[key], usable

    def refuse(self, site: str, reason: str) -> None:
        """Record that a site's reply came, but was refused."""
        self._refused += 1
        self._fail(site, reason)

    def check_quorum(self, answered: int) -> None:
        """Raise :class:`FederationError` if too few of the asked sites answered."""
        asked = len(self.messages)
        needed = max(1, self.policy.quorum * asked)
        if not asked or answered >= needed:
            return
        if not self._refused or answered or self.policy.quorum:
            raise FederationError(
                f"Expected at least {needed:g} of {asked} sites to {self.action} in round {self.server_round}, "
                f"{answered} did; see the sites' failures above, or lower quorum."
            )
        text = "Round %d: no reply could be used, %d of %d were refused; the model stays as it was."
        log.warning(text, self.server_round, self._refused, asked)

    def with_changes(self, changed: dict[str, np.ndarray]) -> ArrayRecord:
        """Return the global arrays with those that a merge changed, except values that are not finite."""
        for key in [key for key, values in changed.items() if not np.isfinite(values).all()]:
            log.error("Round %d: the merge of %r is not finite; it stays as it was.", self.server_round, key)
            del changed[key]
        return record_of({key: changed.get(key, array) for key, array in self.arrays.items()})

    def result(self, site_metrics: dict[str, MetricRecord], answered: int, *agreement: Figures) -> RoundResult:
        """Return the result of the phase.

        Args:
            site_metrics: the metrics by site.
            answered: the number of replies that were used.
            agreement: that of the tasks, and the same weighted by precision, if this is a training.
        """
        asked, failures = len(self.messages), tuple(self.failures)
        return RoundResult(self.server_round, asked, answered, failures, site_metrics, *agreement)

    def _usable_reply(self, site: str, reply: Message | None) -> Message | None:
        """Return a site's reply to the first or a repeated message, or ``None`` if the site failed every time."""
        content, node = self.messages[site].content, self.messages[site].metadata.dst_node_id
        retries = self.policy.retries if self.policy.on_failure == "retry" else 0
        for attempt in range(1 + retries):
            if attempt:
                log.warning("Round %d: site %s is asked again (%d of %d).", self.server_round, site, attempt, retries)
                again = Message(content, dst_node_id=node, message_type=self.action, group_id=str(self.server_round))
                reply = next(iter(self.grid.send_and_receive([again], timeout=self.policy.retry_timeout)), None)
            if reply is None:
                self._fail(site, "no reply in time")
            elif reply.has_error():
                reason = (reply.error.reason or f"error code {reply.error.code}").strip()
                first_line, _, traceback = reason.partition("\n")
                self._fail(site, first_line, traceback)
            elif record := record_in(reply.content, "failure", ConfigRecord):
                self._fail(site, str(record.get("reason", "")), str(record.get("traceback", "")))
            else:
                return reply
        return None

    def _fail(self, site: str, reason: str, traceback: str = "") -> None:
        self.failures.append(Failure(site, self.server_round, self.action, reason, traceback))
        log.warning("Round %d: site %s failed to %s: %s", self.server_round, site, self.action, reason)
        if traceback:
            log.warning("%s", traceback.rstrip())
        if self.policy.on_failure == "fail":
            raise FederationError(
                f"Site {site} failed to {self.action} in round {self.server_round}: {reason.rstrip('.')}; "
                "repair the site, or set on-failure to skip or retry."
            )


class MetricSums:
    """Metrics of several sites, added number by number and list by list once all of them have arrived.

    A record is added whole or not at all. The form of a metric, a number or a list of a certain length, is the one
    that most sites use; if several are equally frequent, the first by site key. A site with another version of the app
    must not keep the others out.
    """

    def __init__(self) -> None:
        self.records: dict[str, MetricRecord] = {}  # by site

    def add(self, site: str, record: MetricRecord) -> None:
        """Add a site's record; raise ``ValueError`` if its values are not finite."""
        for name, value in record.items():
            if not np.isfinite(value).all():
                raise ValueError(f"its metric {name} is not finite")
        self.records[site] = record

    def drop_other_forms(self) -> dict[str, str]:
        """Drop the records in which the form of a metric differs from most sites'; return the reason by site."""
        forms: dict[str, Counter[tuple[int, ...]]] = {}
        for record in self.records.values():
            for name, value in record.items():
                forms.setdefault(name, Counter())[np.shape(value)] += 1
        usual = {name: counts.most_common(1)[0][0] for name, counts in forms.items()}
        reasons = {
            site: f"its metric {name} has another form than at most sites"
            for site, record in self.records.items() for name, value in record.items() if np.shape(value) != usual[name]
        }  # fmt: skip
        self.records = {site: record for site, record in self.records.items() if site not in reasons}
        return reasons

    def total(self) -> dict[str, int | float | list[int] | list[float]]:
        """Return the sums, added in the order in which the records arrived."""
        total: dict[str, Any] = {}
        for record in self.records.values():
            for name, value in record.items():
                if isinstance(value, list):
                    total[name] = [a + b for a, b in zip(total[name], value, strict=True)] if name in total else value
                else:
                    total[name] = total.get(name, 0) + value
        return total
