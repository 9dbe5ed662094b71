"""The dialogue up to a session that can carry mail, without a socket."""

from __future__ import annotations

from typing import Any

import pytest

from spoolmta.model import Answer, DomainPolicy, Failure, FailureKind, Reply, Stage
from spoolmta.smtp.client import Capabilities, Refused, Step, WireError
from spoolmta.smtp.starttls import PLAIN, Demand, Level, configured, kept_apart, may_retry_plain, open_session

GREETING = Reply(220, ("mx",))
OFFERS = Reply(250, ("mx", "STARTTLS", "PIPELINING", "AUTH LOGIN"))
INSIDE = Reply(250, ("mx", "SIZE"))
MAY, MUST = Demand(Level.OPPORTUNISTIC), Demand(Level.REQUIRED, "require-starttls")
TLS_FAILED = Failure(FailureKind.TLS, "TLS with the host failed: no")


def play(demand: Demand, *answers: list[Reply] | Failure) -> tuple[Any, list[Step]]:
    """The result of the dialogue, and its steps, where it is answered like this."""
    dialogue = open_session("me.test", demand)
    steps = [next(dialogue)]
    try:
        for answer in answers:
            if isinstance(answer, Failure):
                steps.append(dialogue.throw(WireError(answer)))
            else:
                steps.append(dialogue.send(answer))
    except StopIteration as stop:
        return stop.value, steps
    except Refused as refused:
        return refused.answer, steps
    raise AssertionError("the dialogue is not over")


def test_what_was_offered_in_the_clear_is_forgotten_inside_tls() -> None:
    result, steps = play(MAY, [GREETING], [OFFERS], [Reply(220)], [], [INSIDE])
    assert [step.data for step in steps] == [b"", b"EHLO me.test\r\n", b"STARTTLS\r\n", b"", b"EHLO me.test\r\n"]
    assert [step.starts_tls for step in steps] == [False, False, False, True, False]
    assert result == Capabilities("mx", {"SIZE": ""})


@pytest.mark.parametrize("demand", [MAY, PLAIN])
def test_a_host_that_does_not_offer_tls_gets_its_mail_in_the_clear(demand: Demand) -> None:
    result, _ = play(demand, [GREETING], [INSIDE])
    assert result == Capabilities("mx", {"SIZE": ""})


def test_where_tls_is_off_it_is_not_begun() -> None:
    result, steps = play(PLAIN, [GREETING], [OFFERS])
    assert "STARTTLS" in result
    assert len(steps) == 2


@pytest.mark.parametrize("code", [454, 500, 554, 250])
def test_a_refused_starttls_goes_on_in_the_clear_where_nobody_demands_it(code: int) -> None:
    result, steps = play(MAY, [GREETING], [OFFERS], [Reply(code, ("no",))])
    assert "PIPELINING" in result
    assert not any(step.starts_tls for step in steps)


def test_a_demand_that_is_not_met_names_who_demands_it() -> None:
    absent, _ = play(MUST, [GREETING], [INSIDE])
    refused, _ = play(MUST, [GREETING], [OFFERS], [Reply(454, ("4.7.0 later",))])
    failed, _ = play(MUST, [GREETING], [OFFERS], [Reply(220)], TLS_FAILED)
    assert [answer.stage for answer in (absent, refused, failed)] == [Stage.STARTTLS] * 3
    assert str(absent.result) == "the host does not offer STARTTLS, which require-starttls demands"
    assert str(refused.result) == "the host refuses STARTTLS: 454 4.7.0 later, which require-starttls demands"
    assert str(failed.result) == "TLS with the host failed: no (require-starttls demands TLS)"
    assert [answer.result.kind for answer in (absent, refused, failed)] == [
        FailureKind.NO_TLS,
        FailureKind.NO_TLS,
        FailureKind.TLS,
    ]


@pytest.mark.parametrize("demand", [MAY, MUST])
def test_a_421_to_starttls_is_the_end_and_not_a_refusal_of_tls(demand: Demand) -> None:
    answer, _ = play(demand, [GREETING], [OFFERS], [Reply(421, ("bye",))])
    assert answer == Answer(Stage.EHLO, Reply(421, ("bye",)))
    assert not may_retry_plain(demand, answer)


@pytest.mark.parametrize("kind", [FailureKind.LOST, FailureKind.TLS])
def test_a_connection_that_ends_right_after_the_handshake_is_a_failed_handshake(kind: FailureKind) -> None:
    answer, _ = play(MAY, [GREETING], [OFFERS], [Reply(220)], [], Failure(kind, "gone"))
    assert may_retry_plain(MAY, answer)
    answer, _ = play(MAY, [GREETING], [OFFERS], [Reply(220)], [], [Reply(554, ("not you",))])
    assert not may_retry_plain(MAY, answer)


@pytest.mark.parametrize("kind", [FailureKind.LOST, FailureKind.TIMEOUT, FailureKind.TLS])
def test_only_opportunistic_tls_is_tried_again_without(kind: FailureKind) -> None:
    for level in Level:
        demand = Demand(level, "somebody")
        answer, _ = play(demand if level is not Level.NONE else MUST, [GREETING], [OFFERS], Failure(kind, "x"))
        assert may_retry_plain(demand, answer) is (level is Level.OPPORTUNISTIC)


def test_somebody_who_puts_words_behind_the_220_gets_no_mail_in_the_clear() -> None:
    out_of_step = Failure(FailureKind.PROTOCOL, "the server sent more replies than there were commands")
    answer, _ = play(MAY, [GREETING], [OFFERS], out_of_step)
    assert not may_retry_plain(MAY, answer)


def test_the_stricter_of_two_directives_holds() -> None:
    assert configured(DomainPolicy()) == MAY
    assert configured(DomainPolicy(use_starttls=False)) == PLAIN
    assert configured(DomainPolicy(use_starttls=False, require_starttls=True)) == MUST
    assert configured(DomainPolicy(require_starttls=True, smtp_tls_verify=True)).level is Level.VERIFIED


def test_domains_share_sessions_only_where_they_demand_the_same_of_tls() -> None:
    assert kept_apart("a.test", DomainPolicy()) == frozenset()
    assert kept_apart("a.test", DomainPolicy(max_smtp_out=3)) == frozenset()
    for field in ("use_dane", "use_mta_sts"):
        assert kept_apart("a.test", DomainPolicy(**{field: True})) != kept_apart(
            "b.test", DomainPolicy(**{field: True})
        )
    must = kept_apart("a.test", DomainPolicy(require_starttls=True))
    assert must == kept_apart("b.test", DomainPolicy(require_starttls=True))
    assert must not in (frozenset(), kept_apart("a.test", DomainPolicy(smtp_tls_verify=True)))
    assert kept_apart("a.test", DomainPolicy(smtp_client_certificate="x.pem")) != frozenset()
