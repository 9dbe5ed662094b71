"""Where a domain's mail goes, as far as the configuration decides it, and whether a reload has changed that.

Domains of a site share sessions (`site.Group`) where they have the same MX hosts and the same `terms`: everything else
that decides where a session goes and how safe it is.

Laws. The same configuration moves nothing. Domains that are queued to one name have the same routing, and it is that
of the name itself but for `queue_to`.
"""

from __future__ import annotations

import msgspec

from spoolmta.model import DomainPolicy
from spoolmta.policy import PolicyTable
from spoolmta.smtp.starttls import kept_apart

_DEFAULTS = DomainPolicy()


class Routing(msgspec.Struct, frozen=True):
    """Whose mail a domain's is (`queue_to`, "" for its own), at which site, on what terms."""

    queue_to: str
    site: str
    terms: frozenset[str]


def routing(table: PolicyTable, domain: str, mx: frozenset[str]) -> Routing:
    """That of a domain whose MX records name these hosts."""
    site = table.site_of(domain, mx)
    policy = table.resolve(site, domain)
    return Routing(policy.queue_to, site, _terms(policy.queue_to or domain, policy))


def _terms(domain: str, policy: DomainPolicy) -> frozenset[str]:
    """Nothing where all is as usual."""
    terms = kept_apart(domain, policy)
    if policy.smtp_hosts:
        terms |= {f"smtp-hosts {policy.smtp_hosts}"}
    if policy.default_smtp_port != _DEFAULTS.default_smtp_port:
        terms |= {f"port {policy.default_smtp_port}"}
    return terms


def is_moved(old: PolicyTable, new: PolicyTable, domain: str, mx: frozenset[str]) -> bool:
    """Whether mail of a domain that was located with these hosts has to find its way anew."""
    if old.fixed_site_of(domain) != new.fixed_site_of(domain):
        return True  # the hosts need not be those of the domain itself
    return routing(old, domain, mx) != routing(new, domain, mx)
