"""The control API of a running system, on loopback: its status, calls, sagas, traces, faults."""
