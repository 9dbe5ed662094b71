"""The queue on disk: where everything lies (`layout`), how mail gets in (`intake`), how one VMTA's part of it is worked
on (`partition`), and how it is counted and listed without disturbing anybody (`audit`)."""
