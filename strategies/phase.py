"""One phase of a round, training or evaluation: its messages, its replies in a fixed order, and its failures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from logging import getLogger

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from .settings import OnFailure
from .sites import FederationError, Roster, SiteCard
from .wire import record_in

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
    """What the server needs to know of a finished phase of a round."""

    server_round: int
    asked: int  # sites that were sent a message
    answered: int  # sites whose replies were used
    failures: tuple[Failure, ...]  # of this phase
    site_metrics: dict[str, MetricRecord]  # by site key


class Phase:
    """The messages, replies and failures of a phase.

    Args:
        server_round: number of the round.
        action: ``train`` or ``evaluate``.
        arrays: the global arrays that the round starts from.
        messages: one message for each site that is asked, by site key, in the order of the keys.
        grid: sends a message again with ``on_failure="retry"``.
        policy: what happens when sites fail.
        failures: those of the run so far; the phase appends its own.
    """

    def __init__(
        self,
        server_round: int,
        action: str,
        arrays: ArrayRecord,
        messages: dict[str, Message],
        grid: Grid,
        policy: FailurePolicy,
        failures: list[Failure],
    ) -> None:
        self.server_round = server_round
        self.action = action
        self.arrays = arrays
        self.messages = messages
        self._failures = failures
        self._earlier = len(failures)
        self._refused = 0
        self._grid = grid
        self._policy = policy

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
        self._fail(Failure(site, self.server_round, self.action, reason))

    def check_quorum(self, answered: int) -> None:
        """Raise :class:`FederationError` if too few of the asked sites answered."""
        asked = len(self.messages)
        needed = max(1, self._policy.quorum * asked)
        if not asked or answered >= needed:
            return
        if self._refused and not answered and not self._policy.quorum:
            log.warning(
                "Round %d: no reply could be used, %d of %d were refused; the model stays as it was.",
                self.server_round,
                self._refused,
                asked,
            )
            return
        raise FederationError(
            f"Expected at least {needed:g} of {asked} sites to {self.action} in round {self.server_round}, "
            f"{answered} did; see the sites' failures above, or lower quorum."
        )

    def result(self, site_metrics: dict[str, MetricRecord], answered: int) -> RoundResult:
        """Return the result of the phase, given the metrics by site and the number of replies that were used."""
        failures = tuple(self._failures[self._earlier :])
        return RoundResult(self.server_round, len(self.messages), answered, failures, site_metrics)

    def _usable_reply(self, site: str, reply: Message | None) -> Message | None:
        """Return a site's reply, or that to a repeated message, or ``None`` if the site failed every time."""
        message, policy = self.messages[site], self._policy
        for attempt in range(1 + (policy.retries if policy.on_failure == "retry" else 0)):
            if attempt:
                log.warning(
                    "Round %d: site %s is asked again (%d of %d).", self.server_round, site, attempt, policy.retries
                )
                again = Message(
                    message.content,
                    dst_node_id=message.metadata.dst_node_id,
                    message_type=message.metadata.message_type,
                    group_id=message.metadata.group_id,
                )
                reply = next(iter(self._grid.send_and_receive([again], timeout=policy.retry_timeout)), None)
            failure = read_failure(site, self.server_round, self.action, reply)
            if failure is None:
                return reply
            self._fail(failure)
        return None

    def _fail(self, failure: Failure) -> None:
        self._failures.append(failure)
        log.warning(
            "Round %d: site %s failed to %s: %s", failure.server_round, failure.site, failure.action, failure.reason
        )
        if failure.traceback:
            log.warning("%s", failure.traceback.rstrip())
        if self._policy.on_failure == "fail":
            raise FederationError(
                f"Site {failure.site} failed to {failure.action} in round {failure.server_round}: "
                f"{failure.reason.rstrip('.')}; repair the site, or set on-failure to skip or retry."
            )


def read_failure(site: str, server_round: int, action: str, reply: Message | None) -> Failure | None:
    """Return why a reply cannot be used, or ``None`` if it can."""
    if reply is None:
        return Failure(site, server_round, action, "no reply in time")
    if reply.has_error():
        reason = (reply.error.reason or f"error code {reply.error.code}").strip()
        first_line, _, traceback = reason.partition("\n")
        return Failure(site, server_round, action, first_line, traceback)
    if record := record_in(reply.content, "failure", ConfigRecord):
        return Failure(site, server_round, action, str(record.get("reason", "")), str(record.get("traceback", "")))
    return None
