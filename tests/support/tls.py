"""Certificates for a test: one authority, and PEM files with certificate and key for the names asked for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme


class Authority:
    """An authority of its own; `ca` is the file to trust."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.name = folder, name
        self._ca = trustme.CA()
        self.ca = str(folder / f"{name}.pem")
        self._ca.cert_pem.write_to_path(self.ca)

    @property
    def der(self) -> bytes:
        """The authority's own certificate."""
        return der_of(self._ca.cert_pem.bytes())

    def certificate(self, *names: str, is_expired: bool = False) -> str:
        """A PEM file for these host names, its key and its chain in it."""
        path = self.folder / f"{self.name}-{'-'.join(names)}{'-expired' if is_expired else ''}.pem"
        if path.exists():
            return str(path)
        until = datetime.now(UTC) - timedelta(days=1) if is_expired else None
        made = self._ca.issue_cert(*names, not_after=until)
        made.private_key_and_cert_chain_pem.write_to_path(str(path))
        with open(path, "ab") as file:
            file.write(self._ca.cert_pem.bytes())
        return str(path)


def der_of(pem: bytes) -> bytes:
    """The first certificate of a PEM text."""
    import ssl

    start = pem.index(b"-----BEGIN CERTIFICATE-----")
    end = pem.index(b"-----END CERTIFICATE-----", start) + len(b"-----END CERTIFICATE-----")
    return ssl.PEM_cert_to_DER_cert(pem[start:end].decode())


def der_in(path: str) -> bytes:
    """The first certificate of a PEM file."""
    return der_of(Path(path).read_bytes())
