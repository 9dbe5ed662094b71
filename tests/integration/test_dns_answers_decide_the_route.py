"""The resolver, asked for routes against a DNS server that answers as it is told."""

from __future__ import annotations

import asyncio
import gc
import random
import resource
from collections.abc import Awaitable, Callable, Iterator

import pytest

from spoolmta import descriptors
from spoolmta.model import DomainPolicy, Failure, FailureKind, Host
from spoolmta.resolver import Resolver, Route, Unroutable
from spoolmta.testdns import DnsServer

POLICY = DomainPolicy()
BOTH = frozenset((4, 6))
ZONES: dict[str, object] = {
    "good.test": {"MX": ["20 mx2.good.test.", "10 MX1.good.test."], "TTL": 600},
    "mx1.good.test": {"A": ["127.0.0.2", "127.0.0.3"], "AAAA": ["::1"]},
    "equal.test": {"MX": [f"10 mx{number}.good.test." for number in range(4)]},
    "null.test": {"MX": ["0 ."]},
    "plain.test": {"A": ["127.0.0.4"]},
    "literal.test": {"MX": ["10 127.0.0.9."], "A": ["127.0.0.9"]},
    "many.test": {"MX": [f"10 m{number}.good.test." for number in range(150)]},
    "alias.test": {"CNAME": ["good.test."]},
    "half.test": {"MX": "SERVFAIL", "A": ["127.0.0.4"]},
    "nx.test": "NXDOMAIN",
    "sf.test": "SERVFAIL",
    "no.test": "REFUSED",
    "silent.test": "DROP",
    "garbage.test": "GARBAGE",
    "slow.test": {"delay": 0.2, "MX": ["10 mx1.good.test."]},
    "v4only.test": {"A": ["127.0.0.5"]},
    "sick.test": {"A": "SERVFAIL"},
    "api.com": {"A": ["127.0.0.66"]},
    "ip-api.com": {"MX": ["10 mx1.good.test."]},
}

Story = Callable[[DnsServer, Resolver], Awaitable[None]]


def play(story: Story) -> None:
    async def run() -> None:
        server = DnsServer(ZONES)
        address = await server.start()
        try:
            await story(server, Resolver((address,), random.Random(1), patience=1.0))
        finally:
            await server.close()

    asyncio.run(run())


def failure_of(domain: str) -> Unroutable:
    failures: list[Unroutable] = []

    async def story(server: DnsServer, resolver: Resolver) -> None:
        with pytest.raises(Unroutable) as trouble:
            await resolver.route(domain, POLICY)
        failures.append(trouble.value)
        assert server.count(domain, "A") == 0, "the domain's own address must not be asked for"

    play(story)
    return failures[0]


def test_mail_hosts_come_in_the_order_of_their_preference() -> None:
    async def story(_: DnsServer, resolver: Resolver) -> None:
        hosts = (Host("mx1.good.test"), Host("mx2.good.test"))
        assert await resolver.route("good.test", POLICY) == Route(hosts, frozenset(host.name for host in hosts))
        assert (await resolver.route("alias.test", POLICY)).hosts == hosts

    play(story)


def test_equal_preferences_are_shuffled_for_every_connection() -> None:
    async def story(server: DnsServer, resolver: Resolver) -> None:
        first = [(await resolver.route("equal.test", POLICY)).hosts[0].name for _ in range(400)]
        assert all(70 <= first.count(f"mx{number}.good.test") <= 130 for number in range(4))
        assert server.count("equal.test") == 1

    play(story)


def test_a_null_mx_is_final() -> None:
    assert failure_of("null.test").failure.kind is FailureKind.NULL_MX


def test_a_domain_without_mx_is_its_own_host() -> None:
    async def story(_: DnsServer, resolver: Resolver) -> None:
        assert await resolver.route("plain.test", POLICY) == Route((Host("plain.test"),))

    play(story)


@pytest.mark.parametrize("domain", ["sf.test", "half.test", "no.test", "silent.test"])
def test_a_failing_or_silent_server_is_temporary_and_never_means_no_mx(domain: str) -> None:
    trouble = failure_of(domain)
    assert trouble.failure.kind is FailureKind.DNS_TEMPORARY
    assert 1 <= trouble.retry_in <= 30


def test_a_domain_that_does_not_exist_is_final() -> None:
    assert failure_of("nx.test").failure.kind is FailureKind.NO_DOMAIN


def test_mail_hosts_that_cannot_be_used_are_an_error_and_never_the_domain_itself() -> None:
    assert failure_of("literal.test").failure.kind is FailureKind.NO_HOST


def test_a_large_answer_comes_over_tcp_and_only_ten_hosts_are_tried() -> None:
    async def story(server: DnsServer, resolver: Resolver) -> None:
        assert len((await resolver.route("many.test", POLICY)).hosts) == 10
        assert server.tcp_questions == 1

    play(story)


def test_an_answer_is_asked_for_once() -> None:
    async def story(server: DnsServer, resolver: Resolver) -> None:
        for _ in range(3):
            await resolver.route("good.test", POLICY)
        assert server.count("good.test") == 1

    play(story)


def test_a_hundred_look_ups_at_once_are_one_question() -> None:
    async def story(server: DnsServer, resolver: Resolver) -> None:
        routes = await asyncio.gather(*(resolver.route("slow.test", POLICY) for _ in range(100)))
        assert {route.hosts for route in routes} == {(Host("mx1.good.test"),)}
        assert server.count("slow.test") == 1

    play(story)


def test_who_gives_up_waiting_does_not_spoil_it_for_the_others() -> None:
    async def story(server: DnsServer, resolver: Resolver) -> None:
        impatient = asyncio.ensure_future(resolver.route("slow.test", POLICY))
        patient = asyncio.ensure_future(resolver.route("slow.test", POLICY))
        await asyncio.sleep(0.05)
        impatient.cancel()
        assert (await patient).hosts == (Host("mx1.good.test"),)
        assert server.count("slow.test") == 1

    play(story)


def test_a_failure_is_kept_for_a_short_time() -> None:
    async def story(server: DnsServer, resolver: Resolver) -> None:
        for _ in range(2):
            with pytest.raises(Unroutable):
                await resolver.route("sf.test", POLICY)
        asked = server.count("sf.test")
        with pytest.raises(Unroutable):
            await resolver.route("sf.test", POLICY)
        assert server.count("sf.test") == asked == 1

    play(story)


def test_a_name_that_has_no_answer_yet_is_asked_for_again_within_five_minutes() -> None:
    assert failure_of("nx.test").retry_in <= 300


def test_only_addresses_that_we_can_send_from_count() -> None:
    async def story(server: DnsServer, resolver: Resolver) -> None:
        assert set(await both(resolver, "mx1.good.test", BOTH)) == {"::1", "127.0.0.2", "127.0.0.3"}
        assert (await both(resolver, "mx1.good.test", BOTH))[0] == "::1"
        assert await both(resolver, "mx1.good.test", frozenset((6,))) == ["::1"]
        assert await both(resolver, "127.0.0.8", BOTH) == ["127.0.0.8"]
        assert server.count("127.0.0.8") == 0
        no_address = await resolver.addresses("v4only.test", frozenset((6,)))
        assert isinstance(no_address, Failure)
        assert no_address.kind is FailureKind.NO_HOST
        sick = await resolver.addresses("sick.test", BOTH)
        assert isinstance(sick, Failure)
        assert sick.kind is FailureKind.DNS_TEMPORARY
        other = await resolver.addresses("::1", frozenset((4,)))
        assert isinstance(other, Failure)
        assert other.kind is FailureKind.UNREACHABLE

    play(story)


async def both(resolver: Resolver, host: str, families: frozenset[int]) -> list[str]:
    found = await resolver.addresses(host, families)
    assert isinstance(found, list)
    return found


def test_a_fixed_route_and_an_address_literal_ask_nobody() -> None:
    async def story(server: DnsServer, resolver: Resolver) -> None:
        fixed = DomainPolicy(smtp_hosts=((Host("a.test", 2525),), (Host("b.test"),)))
        assert (await resolver.route("good.test", fixed)).hosts == (Host("a.test", 2525), Host("b.test"))
        assert (await resolver.route("ip-127.0.0.9", POLICY)).hosts == (Host("127.0.0.9"),)
        assert (await resolver.route("ip-2001:db8::1", POLICY)).hosts == (Host("2001:db8::1"),)
        assert server.counts.total() == 0

    play(story)


def test_a_domain_that_only_looks_like_the_folder_of_a_literal_is_a_domain() -> None:
    async def story(_: DnsServer, resolver: Resolver) -> None:
        assert await resolver.route("ip-api.com", POLICY) == Route(
            (Host("mx1.good.test"),), frozenset({"mx1.good.test"})
        )

    play(story)


@pytest.fixture
def few_questions() -> Iterator[None]:
    """A process that may ask eight at a time: four new ones, three that keep it waiting."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors.OWN + 8 * descriptors.QUESTIONS, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.usefixtures("few_questions")
def test_a_question_waits_for_silent_name_servers_only_once_and_then_not_at_all() -> None:
    async def story(server: DnsServer, resolver: Resolver) -> None:
        loop = asyncio.get_running_loop()
        silent = [asyncio.ensure_future(resolver.look_up(f"{n}.silent.test", "MX")) for n in range(5)]
        await asyncio.sleep(0)
        began = loop.time()
        assert (await resolver.look_up("good.test", "MX")).records
        assert 0.9 < loop.time() - began < 3, "it is new, as four that went first, and they have a second"
        assert not any(question.done() for question in silent)
        assert {(await question).is_late for question in silent} == {True}
        again = [asyncio.ensure_future(resolver._ask(f"{n}.silent.test", "MX")) for n in range(5)]
        await asyncio.sleep(0)
        began = loop.time()
        assert (await resolver.look_up("plain.test", "A")).records
        assert (await resolver._ask("good.test", "MX")).records
        assert loop.time() - began < 0.5, "those that kept us waiting keep nobody else waiting"
        assert server.count("0.silent.test") == 3
        for question in again:
            question.cancel()

    play(story)


def test_a_question_that_fails_leaves_nothing_for_the_collector() -> None:
    async def story(_: DnsServer, resolver: Resolver) -> None:
        names = [f"{n}.{name}" for n in range(10) for name in ("silent.test", "garbage.test", "sf.test")]
        gc.collect()
        gc.disable()
        try:
            found = await asyncio.gather(*(resolver.look_up(name, "MX") for name in names))
            assert {one.failure for one in found} == {FailureKind.DNS_TEMPORARY}
            assert gc.collect() < 100
        finally:
            gc.enable()

    play(story)
