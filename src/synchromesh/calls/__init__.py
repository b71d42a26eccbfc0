"""Calls: contracts, operations, transports, and the stack that one call goes through."""
