"""Orders: takes them, and sees each one through or undoes it."""

from services.orders.sagas import place_order
from services.orders.service import orders

__all__ = ["orders", "place_order"]
