"""Billing: invoices, charged through a credit provider that is somebody else's."""

from services.billing.service import billing

__all__ = ["billing"]
