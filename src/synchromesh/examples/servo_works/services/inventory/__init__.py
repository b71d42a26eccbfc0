"""Inventory: event-sourced stock, and the pieces that it holds for orders."""

from services.inventory.service import inventory

__all__ = ["inventory"]
