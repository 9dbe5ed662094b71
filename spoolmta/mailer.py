"""Puts alerts, the mail to operators about queues, on their way: into the pickup folder of the source "pickup", as a
batch system would. From there on they are messages like any other, and take the VMTA that the source gives them.

Best effort: nothing is synced, and what cannot be written is lost (the log tells of all events, too). It is said once
for as long as it lasts, and never stops delivery.
"""

from __future__ import annotations

import logging
import os
import time

from spoolmta import alert, disk
from spoolmta.alert import Alert, Gathering, News, Sender
from spoolmta.condition import Event
from spoolmta.model import Config, DomainPolicy

log = logging.getLogger("spoolmta")


class Mailer:
    """The alerts of one VMTA, whose queue the caller holds the lock of."""

    def __init__(self, config: Config, vmta: str) -> None:
        self._vmta = vmta
        self._gathering = Gathering()
        self._number = 0
        self._is_failing = False
        self.reconfigure(config)

    def __repr__(self) -> str:
        return f"Mailer({self._vmta!r}, {self._gathering})"

    def reconfigure(self, config: Config) -> None:
        self._folder = config.sources["pickup"].pickup
        self._sender = Sender(self._vmta, config.host_name, config.custom_dsn_from_header)

    def restore(self, sent: dict[str, float], now: float) -> None:
        """Go on with what the last process left (`sent`)."""
        self._gathering.restore(sent, now)

    def sent(self, now: float) -> dict[str, float]:
        """What the next process has to know."""
        return self._gathering.sent(now)

    @property
    def is_gathering(self) -> bool:
        """Whether there are events that wait for their mail."""
        return bool(self._gathering)

    def hear(self, site: str, event: Event, policy: DomainPolicy) -> None:
        """Something happened to a site; `policy` is the site's."""
        if to := alert.hearers(policy, event.kind):
            self._gathering.hear(to, News(f"{site}/{self._vmta}", event))

    def send(self, now: float, *, is_last: bool = False) -> None:
        """Write the mails that are due."""
        for one in self._gathering.due(now, is_last=is_last) if self._gathering else ():
            try:
                self._write(one)
                self._is_failing = False
            except OSError as error:
                if not self._is_failing:
                    log.error("%s: an alert to %s cannot be written: %s", self._vmta, one.to[0], error.strerror)
                self._is_failing = True

    def _write(self, one: Alert) -> None:
        """Under a name that intake passes over, then by one rename. What a killed process left is written over."""
        self._number += 1
        id_ = f"alert.{time.time_ns()}.{os.getpid()}.{self._number}"
        temporary = f"{self._folder}/.alert.{self._vmta}"
        disk.remove(temporary)
        disk.write_new(temporary, alert.file_of(one, self._sender, id_, time.time()))
        disk.rename(temporary, f"{self._folder}/{id_}.eml")
