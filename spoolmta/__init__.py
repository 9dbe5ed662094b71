"""spoolmta: an outbound mail server with many VirtualMTAs."""

__version__ = "0.1.0"
