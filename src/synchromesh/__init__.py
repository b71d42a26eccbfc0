"""Synchromesh."""
