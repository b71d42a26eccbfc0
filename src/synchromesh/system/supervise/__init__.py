"""Supervises child processes: starts, watches, replaces and stops them."""
