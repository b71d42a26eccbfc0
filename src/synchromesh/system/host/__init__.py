"""Wires a configuration into running parts; nothing else does."""
