"""lookup-mx and queue-to in the resolver and the opener: what the DNS has named is never trusted like what the operator
has, and where a name of the operator's leads nowhere, mail waits."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from spoolmta.here import Here
from spoolmta.model import Config, DomainPolicy, DomainTable, Failure, FailureKind, Host, Secret, Setting, Vmta
from spoolmta.opener import NotOpened, Opened, Opener
from spoolmta.policy import PolicyTable
from spoolmta.resolver import NOWHERE, Resolver, Route, Unroutable
from spoolmta.spool.layout import Layout
from spoolmta.testdns import DnsServer
from tests.support.scripted import Scripted, Talk
from tests.support.tls_scene import MX, Scene

ZONES: dict[str, object] = {
    "two.test": {"MX": ["10 a.two.test.", "20 b.two.test."]},
    "other.test": {"MX": ["5 a.other.test.", "5 b.other.test.", "9 c.other.test."]},
    "signed.test": {"MX": ["10 a.signed.test."], "AD": True},
    "a.two.test": {"A": ["127.0.0.2"]},
    "b.two.test": {"A": ["127.0.0.2"]},
    "us.test": {"MX": ["10 us.us.test."]},
    "us.us.test": {"A": ["192.0.2.77"]},
    "many.test": {"MX": [f"10 m{number}.many.test." for number in range(50)]},
    "null.test": {"MX": ["0 ."]},
    "nx.test": "NXDOMAIN",
    "fails.test": "SERVFAIL",
    "google.test": {"MX": ["10 mx.big.test."]},
    "own.test": {"MX": ["10 mx.own.test."]},
}
HERE = Here(frozenset({"mta.test"}), frozenset({"192.0.2.77"}))


def look(name: str, port: int = 0) -> Host:
    return Host(name, port, lookup_mx=True)


def play(story: Callable[[Resolver, Opener], Awaitable[None]], here: Here = NOWHERE) -> None:
    async def run() -> None:
        server = DnsServer(ZONES)
        address = await server.start()
        try:
            config = Config(host_name="mta.test", spool="/nonexistent", nameservers=("127.0.0.1:9",))
            opener = Opener(Vmta(name="v"), config, random.Random(1), Layout(config.spool))
            opener.resolver = Resolver((address,), random.Random(1), patience=2.0, here=here)
            await story(opener.resolver, opener)
        finally:
            await server.close()

    asyncio.run(run())


def route_of(*levels: tuple[Host, ...], domain: str = "any.test") -> Route:
    routes: list[Route] = []

    async def story(resolver: Resolver, _: Opener) -> None:
        routes.append(await resolver.route(domain, DomainPolicy(smtp_hosts=levels)))

    play(story, HERE)
    return routes[0]


def failure_of(policy: DomainPolicy) -> Failure:
    failures: list[Failure] = []

    async def story(resolver: Resolver, _: Opener) -> None:
        with pytest.raises(Unroutable) as trouble:
            await resolver.route("any.test", policy)
        assert trouble.value.retry_in >= 1
        failures.append(trouble.value.failure)

    play(story, HERE)
    return failures[0]


def test_the_preferences_of_a_look_up_lie_between_its_level_and_the_next_one() -> None:
    route = route_of((look("two.test"), Host("named.test", 25), look("other.test", 26)), (Host("last.test"),))
    assert {*route.hosts[:4]} == {
        Host("named.test", 25), look("a.two.test"), look("a.other.test", 26), look("b.other.test", 26)
    }  # fmt: skip
    assert {*route.hosts[4:6]} == {look("b.two.test"), look("c.other.test", 26)}
    assert route.hosts[6:] == (Host("last.test"),)
    assert route.mx == frozenset()


def test_a_domain_without_mx_is_its_own_host_and_no_more_than_ten_are_taken() -> None:
    assert route_of((look("a.two.test", 26),)).hosts == (look("a.two.test", 26),)
    assert len(route_of((look("many.test"), Host("named.test"))).hosts) == 11


def test_a_look_up_that_fails_counts_as_no_hosts() -> None:
    lost = (look("nx.test"), look("null.test"), look("fails.test"), look("us.test"))
    assert route_of((*lost[:3], Host("named.test"))).hosts == (Host("named.test"),)
    assert route_of(lost[:2], (look("two.test"),)).hosts == (look("a.two.test"), look("b.two.test"))


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (DomainPolicy(smtp_hosts=((look("nx.test"),),)), "lookup-mx:nx.test: domain nx.test does not exist"),
        (
            DomainPolicy(smtp_hosts=((look("null.test"),), (look("fails.test"),))),
            "lookup-mx:null.test: null.test accepts no mail (null MX); lookup-mx:fails.test: DNS look-up of MX",
        ),
        (DomainPolicy(queue_to="nx.test"), "queue-to nx.test: domain nx.test does not exist"),
        (DomainPolicy(queue_to="null.test"), "queue-to null.test: null.test accepts no mail"),
    ],
)
def test_mail_waits_where_a_name_of_the_operators_leads_nowhere(policy: DomainPolicy, text: str) -> None:
    failure = failure_of(policy)
    assert failure.kind is FailureKind.DNS_TEMPORARY
    assert failure.text.startswith(text)


def test_a_route_is_proved_only_if_all_of_it_is_named_or_proved() -> None:
    assert route_of((Host("named.test"), look("signed.test"))).is_secure
    assert not route_of((Host("named.test"), look("signed.test")), (look("two.test"),)).is_secure
    assert route_of((Host("named.test"), look("nx.test"))).is_secure


def test_mail_is_routed_by_the_name_it_is_queued_to() -> None:
    async def story(resolver: Resolver, _: Opener) -> None:
        route = await resolver.route("nx.test", DomainPolicy(queue_to="two.test"))
        assert route.hosts == (Host("a.two.test"), Host("b.two.test"))

    play(story)


def test_a_provider_may_queue_its_domains_elsewhere_also_where_all_others_go_to_another_queue() -> None:
    def table(pattern: str, **settings: object) -> DomainTable:
        return DomainTable(pattern, {field: Setting(value, "f", 1) for field, value in settings.items()})

    tables = (
        table("provider big", queue_to="big.queue"),
        table("big.queue", smtp_hosts=((Host("big.host"),),)),
        table("bulk.queue", smtp_hosts=((Host("bulk.host"),),)),
    )
    everything = table("*", queue_to="bulk.queue")

    async def story(resolver: Resolver, _: Opener) -> None:
        async def found(domain: str, *tables: DomainTable) -> tuple[str, Host]:
            config = Config(host_name="", spool="", domains=tables, providers={"big": ("*.big.test",)})
            located, route = await resolver.locate(PolicyTable(config, "v"), domain)
            return located.site, route.hosts[0]

        assert await found("google.test", *tables) == ("big.queue", Host("big.host"))
        assert await found("own.test", *tables) == ("mx.own.test.rollup", Host("mx.own.test"))
        assert await found("google.test", *tables, everything) == ("big.queue", Host("big.host"))
        for other in ("own.test", "nx.test"):
            assert await found(other, *tables, everything) == ("bulk.queue", Host("bulk.host"))
        with pytest.raises(Unroutable):
            await found("fails.test", *tables, everything)

    play(story)


def lines_of_a_login(host: str, *, lookup: bool) -> list[str]:
    talks: list[Talk] = []

    def serve(talk: Talk) -> None:
        talks.append(talk)
        talk.hello("AUTH PLAIN")
        assert talk.line().startswith("AUTH")
        talk.say("235 come in")
        talk.accept()

    with Scripted(serve) as server:

        async def story(_: Resolver, opener: Opener) -> None:
            policy = DomainPolicy(
                smtp_hosts=((Host(host, server.port, lookup),),),
                auth_username="me",
                auth_password=Secret("it"),
                use_unencrypted_plain_auth=True,
            )
            result = await opener.open("any.test", policy, (), lambda: None)
            assert isinstance(result, Opened)
            result.connection.abort()

        play(story)
    return talks[0].lines


def test_a_password_is_told_to_a_host_that_is_named_and_not_to_one_that_is_looked_up() -> None:
    assert any(line.startswith("AUTH PLAIN") for line in lines_of_a_login("a.two.test", lookup=False))
    assert not any(line.startswith("AUTH") for line in lines_of_a_login("two.test", lookup=True))


@pytest.mark.parametrize("policy", [DomainPolicy(smtp_hosts=((look("us.test"),),)), DomainPolicy(queue_to="us.test")])
def test_a_look_up_that_leads_back_to_this_machine_makes_mail_wait(policy: DomainPolicy) -> None:
    async def story(_: Resolver, opener: Opener) -> None:
        result = await opener.open("any.test", policy, (), lambda: None)
        assert isinstance(result, NotOpened)
        assert "loops back to us: its host us.us.test is this machine" in str(result.failure)

    play(story, HERE)


@pytest.mark.parametrize("is_signed", [True, False])
def test_dane_protects_hosts_that_are_looked_up_where_dnssec_proves_them(tmp_path: Path, is_signed: bool) -> None:
    zones = {
        "a.test": {"MX": [f"10 {MX}"], "AD": is_signed},
        f"_PORT._tcp.{MX}": {"TLSA": ["3 1 1 " + "00" * 32], "AD": True},
    }

    async def story() -> None:
        async with Scene(tmp_path, zones) as scene:
            said = await scene.version(smtp_hosts=((look("a.test"),),), use_dane=True)
            assert ("DANE" in said) is is_signed

    asyncio.run(story())
