"""What is worked out of a configuration is worked out once."""

from __future__ import annotations

from pathlib import Path

from spoolmta import config
from spoolmta.derived import derived
from spoolmta.here import here
from spoolmta.model import Config


def load(path: Path) -> Config:
    path.write_text(
        'host-name = "mta.test"\n[spool]\ndirectory = "spool"\n[vmta.one]\nsmtp-source-host = ["192.0.2.1 one.test"]\n'
    )
    return config.load(str(path))


def test_the_same_configuration_is_looked_at_once_and_an_equal_one_anew(tmp_path: Path) -> None:
    looked_at: list[Config] = []

    @derived
    def count(configuration: Config) -> int:
        looked_at.append(configuration)
        return len(looked_at)

    first, second = load(tmp_path / "a.toml"), load(tmp_path / "a.toml")
    assert [count(first), count(first), count(second), count(second), count(first)] == [1, 1, 2, 2, 3]


def test_who_we_are_is_worked_out_before_the_forks(tmp_path: Path) -> None:
    found = load(tmp_path / "a.toml")
    assert here(found) is here(found)
    assert "192.0.2.1" in here(found).addresses
