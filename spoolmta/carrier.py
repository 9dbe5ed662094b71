"""One message on a session, from the entry to its recipients' answers; and what the answers change.

Every recipient of the entry gets exactly one answer in an attempt, and is settled or deferred by it in the same turn of
the loop. Where a response rule fires, it first has its say about the answer, then about the site.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
from collections.abc import Callable

import msgspec

from spoolmta import dkim, domainkeys, entry, message, rate, reaction
from spoolmta.keyring import Keyring
from spoolmta.lane import Lane
from spoolmta.ledger import Ledger, Way
from spoolmta.model import Answer, Config, DomainPolicy, Failure, Reply, ResponseAction, Stage
from spoolmta.opener import Ends, Opener
from spoolmta.schedule import Scheduler
from spoolmta.shared import Cell, Row
from spoolmta.smtp.allowance import NO_PAUSE, NO_TURN, refuse
from spoolmta.smtp.client import Result
from spoolmta.smtp.transaction import transaction
from spoolmta.spool.partition import Gone, Loaded, NotReady, Partition
from spoolmta.trigger import Fired, Responses

log = logging.getLogger("spoolmta")


class Process(msgspec.Struct, frozen=True):
    """What the carrier needs of the process around it: what holds for a domain and at which site its mail is, the time,
    another turn of the loop, whether it is leaving, and what to do with a session that cannot carry another message."""

    policy: Callable[[str], DomainPolicy]
    site_of: Callable[[str], str]
    now: Callable[[], float]
    request_turn: Callable[[], None]
    is_leaving: Callable[[], bool]
    end: Callable[[Lane], None]


class Carrier:
    """Carries the messages of one VMTA. `opener` and `responses` are those of the configuration in force."""

    def __init__(
        self, process: Process, scheduler: Scheduler, partition: Partition, ledger: Ledger, row: Row, vmta: str
    ) -> None:
        self._process = process
        self._scheduler = scheduler
        self._partition = partition
        self._ledger = ledger
        self._row = row
        self._vmta = vmta
        self._loop = asyncio.get_running_loop()
        self.opener: Opener
        self.responses: Responses
        self._keyring: Keyring

    def __repr__(self) -> str:
        return f"Carrier({self._vmta})"

    def configure(self, config: Config, opener: Opener) -> None:
        """A configuration, at the start and after a reload: rules that are still there go on counting where they
        were, and key files are read anew."""
        self.opener = opener
        responses = Responses(config, self._vmta)
        if hasattr(self, "responses"):
            responses.restore(self.responses.export(), self._process.now())
        self.responses = responses
        self._keyring = Keyring(config, self._vmta)
        if self._keyring.trouble:
            log.error("%s: %s: mail that is to be signed waits", self._vmta, self._keyring.trouble)

    def _load(self, domain: str, name: str) -> Loaded | None:
        """The entry, or None if there is nothing to send now: it was quarantined, is gone, or must wait."""
        try:
            return self._partition.load(domain, name)
        except NotReady:
            now = self._process.now()
            self._scheduler.add(domain, name, now + 1.0, now)
        except Gone as gone:
            if gone.reason:
                log.error("%s/%s/%s: %s; moved to corrupt/", self._vmta, domain, name, gone.reason)
                self._row.add(Cell.QUARANTINED, gone.recipients)
        except OSError as error:
            log.error("%s/%s/%s: %s; trying again in a minute", self._vmta, domain, name, error)
            now = self._process.now()
            self._scheduler.add(domain, name, now + 60.0, now)
        self._process.request_turn()
        return None

    def assign(self, lane: Lane, domain: str, name: str, most: int) -> None:
        """Send an entry on a session, to `most` of its recipients (0: all)."""
        loaded = self._load(domain, name)
        if loaded is not None and not loaded.recipients:
            self._partition.remove(domain, name)
            loaded = None
        if loaded is None or lane.connection is None:
            reusable = lane.connection is not None
            self._scheduler.finished(lane.number, self._process.now(), answered=False, reusable=reusable)
            self._process.request_turn()
            return
        lane.take_on(domain, name, loaded, most, self._process.site_of(domain), self._process.policy(domain))
        self._send(lane)

    def _send(self, lane: Lane) -> None:
        """The next transaction of the lane's message: as many recipients as one may carry."""
        loaded, connection = lane.loaded, lane.connection
        assert loaded is not None
        assert connection is not None
        lane.choose(lane.policy.max_rcpt_per_transaction)
        if lane.refusal is not None:
            self._on_result(lane, refuse(lane.sent, lane.refusal))
            return
        content = message.content(loaded.data, loaded.parsed)
        lane.size = len(content)
        sign = None
        has_options = bool(self._keyring.sources) and (loaded.name.source or "pickup") in self._keyring.sources
        if has_options or (self._keyring.files and (lane.policy.dkim_sign or lane.policy.dk_sign)):
            if self._keyring.trouble:
                self._on_result(lane, refuse(lane.sent, self._keyring.refusal))
                return
            sign = functools.partial(self._sign, lane, has_options)
        envelope = loaded.parsed.envelope
        dialogue = transaction(
            envelope.sender, lane.sent, content, lane.capabilities, ret=envelope.ret, envid=envelope.envid, sign=sign
        )
        connection.run(dialogue, lambda result: self._on_result(lane, result))

    def _sign(self, lane: Lane, has_options: bool, content: bytes) -> bytes:
        """The content as it goes out, with signatures; a message that has not one From goes without, and is counted."""
        keys, policy, options = self._keyring.keys, lane.policy, None
        try:
            if has_options:
                content, options = dkim.take_options(content)
            if policy.dkim_sign is True or (policy.dkim_sign and options is not None):
                content = dkim.signed(content, keys, policy, self._process.now(), options)
            if policy.dk_sign:
                content = domainkeys.signed(content, keys, policy)
        except dkim.Unsigned as reason:
            if reason.content is not None:
                content = reason.content
            if not lane.done:  # once for a message that takes several transactions
                self._row.add(Cell.UNSIGNED, 1)
            what = "a DomainKeys signature" if content.startswith(b"DKIM-Signature:") else "a signature"
            log.info("%s/%s/%s is sent without %s: %s", self._vmta, lane.domain, lane.name, what, reason)
        lane.size = len(content)
        return content

    def _on_result(self, lane: Lane, result: Result) -> None:
        loaded = lane.loaded
        assert loaded is not None
        reusable, answers = lane.take(result)
        self._note(lane, loaded, answers)
        reusable = reusable and not lane.is_skipped and not lane.is_over
        if lane.unsent and reusable and not self._process.is_leaving():
            self._process.request_turn()
            self._loop.call_soon(self._send, lane)  # a result may come at once, and a message may have thousands
            return
        at_once = lane.may_go_at_once
        if lane.unsent and not at_once:
            lane.sent, lane.unsent = lane.unsent, []
            self._note(lane, loaded, [NO_TURN] * len(lane.sent))
        lane.loaded = None
        self._leave_entry(lane, loaded, at_once)
        if not reusable:
            self.opener.heed(lane.ends.host, result, lane.policy)
            self._process.end(lane)
        reason = "" if reusable else str(result.answers[-1].result)
        fresh = self._scheduler.finished(
            lane.number,
            self._process.now(),
            answered=lane.answered,
            delivered=lane.delivered,
            reusable=reusable,
            reason=reason,
        )
        if fresh:
            log.info("%s/%s: %s", lane.domain, self._vmta, reason)
        self._process.request_turn()

    def _note(self, lane: Lane, loaded: Loaded, answers: list[Answer]) -> None:
        """Write down one answer for each recipient of a transaction, in the turn that read it: a message may have
        many transactions, and a crash in a later one must not repeat the earlier ones."""
        fired = self._look_at(lane, answers)
        way = Way(lane.ends, lane.capabilities.listing, lane.size, lane.site, lane.policy)
        done = self._ledger.settle(loaded, lane.sent, answers, way)
        lane.done += done
        # A host that answers for a recipient is up, whatever it says, and whatever becomes of the session after that.
        for answer in answers:
            reply = answer.result
            if isinstance(reply, Reply) and reply.code != 421:
                lane.answered = True
                lane.delivered |= reply.code < 400
        if len(done) < len(answers):
            lane.pause = max([lane.pause, *(reaction.asked_pause(answer.result) for answer in answers)])
        for one in fired:
            self._react(lane.site, one, lane.ends)

    def _look_at(self, lane: Lane, answers: list[Answer]) -> list[Fired]:
        """Whether the answers call up response rules, which then have their say. What a server said once, for all
        recipients, counts once."""
        fired: list[Fired] = []
        seen: dict[int, Fired | None] = {}
        for index, answer in enumerate(answers):
            key = id(answer.result)
            if key not in seen:
                seen[key] = self.responses.note(self._process.now(), lane.site, lane.ends.source, answer)
                self._remember(lane.site, answer.result)
                if (one := seen[key]) is not None:
                    fired.append(one)
                    lane.is_skipped |= ResponseAction.SKIP_MX in one.rule.actions
            if (one := seen[key]) is not None:
                answers[index] = reaction.ruled(answer, one)
        return fired

    def _remember(self, site: str, result: Reply | Failure) -> None:
        """The last thing said that was no success, for whoever looks at the queue."""
        if isinstance(result, Failure) or result.code >= 400:
            self._scheduler.known.condition_of(site).last_reply = str(result)[:500]

    def on_trouble(self, domain: str, answer: Answer, ends: Ends) -> None:
        """A host did not let us in, or a domain could not be looked up."""
        site = self._process.site_of(domain)
        self._remember(site, answer.result)
        fired = self.responses.note(self._process.now(), site, ends.source, answer)
        if fired is not None:
            self._react(site, fired, ends)

    def _react(self, site: str, fired: Fired, ends: Ends) -> None:
        now = self._process.now()
        until = reaction.skip_until(fired)
        if until and ends.host:
            self.opener.shun(ends.host, until - now)
        reaction.react(self._scheduler, site, ends.source, fired, now)
        self._process.request_turn()

    def _leave_entry(self, lane: Lane, loaded: Loaded, at_once: bool = False) -> None:
        """Give the entry its next state: all its recipients have their answers."""
        if len(lane.done) == len(loaded.recipients):
            self._partition.remove(lane.domain, lane.name)
            return
        # Those that a rate kept back go on at once, if none of the others was refused; and so does what another host
        # is to take.
        at_once = at_once or lane.is_skipped or (lane.is_part and len(lane.done) == lane.tried)
        domain, name = lane.domain, lane.name
        policy = self._process.policy(domain)
        now = self._process.now()
        pauses = NO_PAUSE if at_once else (lane.pause,) if lane.pause else policy.retry_recipients_after
        expires = entry.received(name) + policy.bounce_after
        due = rate.next_due(pauses, loaded.name.attempts + 1, now, expires)

        def again(new_name: str) -> None:
            self._scheduler.add(domain, new_name, due, self._process.now())
            self._process.request_turn()

        self._partition.defer(domain, name, math.ceil(due), lane.done, again)

    def settle(self, domain: str, name: str, failure: Failure) -> None:
        """Settle an entry without a connection: its domain takes no mail, its time is over, its queue bounces."""
        loaded = self._load(domain, name)
        if loaded is None:
            return
        lane = Lane(0)
        lane.domain, lane.name, lane.sent = domain, name, loaded.recipients
        way = Way(lane.ends, "", 0, self._process.site_of(domain), self._process.policy(domain))
        lane.done = self._ledger.settle(loaded, lane.sent, [Answer(Stage.RESOLVE, failure)] * len(lane.sent), way)
        self._leave_entry(lane, loaded)
        self._process.request_turn()
