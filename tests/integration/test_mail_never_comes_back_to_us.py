"""From a domain to a host that is not this machine, or to none (RFC 5321 section 5.1), with a real name server."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from spoolmta.here import Here
from spoolmta.model import DomainPolicy, Failure, FailureKind, Host, SourceHost, Vmta
from spoolmta.opener import NotOpened, Opened, Opener
from spoolmta.resolver import Resolver, Unroutable
from spoolmta.testdns import DnsServer
from tests.support.scripted import Scripted, Talk

ZONES: dict[str, object] = {
    "us.test": {"MX": ["10 us.us.test.", "20 other.us.test."]},
    "us.us.test": {"A": ["127.0.0.1"]},
    "other.us.test": {"A": ["127.0.0.2"]},
    "better.test": {"MX": ["10 far.test.", "20 us.us.test.", "30 other.us.test."]},
    "far.test": "SERVFAIL",
    "zero.test": {"A": ["0.0.0.0"]},
    "mapped.test": {"AAAA": ["::ffff:127.0.0.1"]},
    "source.test": {"A": ["192.0.2.77"]},
    "name.test": {"MX": ["10 MTA.test.", "20 other.us.test."]},
    "circle.test": {"CNAME": ["circle2.test."]},
    "circle2.test": {"CNAME": ["circle.test."]},
    "many.test": {"MX": [f"10 m{number}.many.test." for number in range(90)]},
    "*.many.test": {"A": ["127.0.0.2"]},
    "short.test": {"MX": ["10 other.us.test."], "TTL": 0},
    "long.test": {"MX": ["10 other.us.test."], "TTL": 2_147_483_647},
}
DOWN = 9  # nobody listens there: refused at once
HERE = Here(frozenset({"mta.test"}), frozenset({"192.0.2.77"}))


def hello(talk: Talk) -> None:
    talk.hello()
    talk.accept()


def play(story: Callable[[DnsServer, Opener], Awaitable[None]], here: Here = HERE) -> None:
    async def run() -> None:
        server = DnsServer(ZONES)
        address = await server.start()
        try:
            resolver = Resolver((address,), random.Random(1), patience=2.0, here=here)
            await story(server, Opener(Vmta(name="v"), "mta.test", resolver))
        finally:
            await server.close()

    asyncio.run(run())


def opened(domain: str, policy: DomainPolicy, here: Here = HERE) -> Opened | NotOpened:
    results: list[Opened | NotOpened] = []

    async def story(_: DnsServer, opener: Opener) -> None:
        result = await opener.open(domain, policy, lambda: None)
        if isinstance(result, Opened):
            result.connection.abort()
        results.append(result)

    play(story, here)
    return results[0]


@pytest.mark.parametrize("domain", ["us.test", "zero.test", "mapped.test", "source.test", "ip-127.0.0.1"])
def test_where_this_machine_is_the_best_host_the_mail_bounces_as_a_loop_and_nothing_is_connected(domain: str) -> None:
    result = opened(domain, DomainPolicy(default_smtp_port=DOWN))
    assert isinstance(result, Opened)
    assert result.refusal is not None
    assert isinstance(result.refusal.result, Failure)
    assert result.refusal.result.kind is FailureKind.LOOP


def test_better_hosts_than_this_machine_are_tried_and_worse_ones_are_not() -> None:
    result = opened("better.test", DomainPolicy(default_smtp_port=DOWN))
    assert isinstance(result, NotOpened)
    assert isinstance(result.failure, Failure)
    assert (result.failure.kind, result.ends.host) == (FailureKind.DNS_TEMPORARY, "far.test")


def test_a_host_that_is_named_in_the_configuration_may_be_this_machine() -> None:
    with Scripted(hello) as server:
        policy = DomainPolicy(smtp_hosts=((Host("127.0.0.2", server.port),),))
        result = opened("us.test", policy)
        assert isinstance(result, Opened)
        assert result.refusal is None


def test_loopback_is_a_host_like_others_where_it_is_allowed() -> None:
    with Scripted(hello) as server:
        policy = DomainPolicy(default_smtp_port=server.port)
        result = opened("better.test", policy, Here(allows_loopback=True))
        assert isinstance(result, Opened)
        assert result.refusal is None


def failure_of(domain: str) -> Failure:
    failures: list[Failure] = []

    async def story(_: DnsServer, opener: Opener) -> None:
        with pytest.raises(Unroutable) as trouble:
            await opener.resolver.route(domain, DomainPolicy())
        failures.append(trouble.value.failure)

    play(story)
    return failures[0]


def test_our_own_name_among_the_mail_hosts_leaves_only_better_ones() -> None:
    assert failure_of("name.test").kind is FailureKind.LOOP


def test_aliases_that_lead_in_a_circle_are_temporary_trouble() -> None:
    assert failure_of("circle.test").kind is FailureKind.DNS_TEMPORARY


def test_ninety_hosts_that_refuse_are_as_many_attempts_as_are_allowed() -> None:
    asked: list[int] = []

    async def story(server: DnsServer, opener: Opener) -> None:
        result = await opener.open("many.test", DomainPolicy(default_smtp_port=DOWN, mx_connection_attempts=3), int)
        assert isinstance(result, NotOpened)
        asked.append(sum(server.count(f"m{number}.many.test", "A") for number in range(90)))

    play(story, Here(allows_loopback=True))
    assert 3 <= asked[0] <= 4


def test_a_ttl_of_nothing_is_kept_for_a_while_and_one_of_a_lifetime_not_for_ever() -> None:
    async def story(server: DnsServer, opener: Opener) -> None:
        for domain in ("short.test", "long.test"):
            for _ in range(3):
                await opener.resolver.route(domain, DomainPolicy())
            assert server.count(domain) == 1
            found = await opener.resolver.look_up(domain, "MX")
            assert 1 < found.expires - asyncio.get_running_loop().time() <= 86_400

    play(story)


def test_sources_of_the_wrong_family_do_not_reach_a_host() -> None:
    async def story(_: DnsServer, opener: Opener) -> None:
        six = Opener(Vmta(name="v", source_hosts=(SourceHost("::1"),)), "mta.test", opener.resolver)
        result = await six.open("better.test", DomainPolicy(default_smtp_port=DOWN), int)
        assert isinstance(result, NotOpened)

    play(story)
