"""The configurator: which drive, motor and cable fit, by what the other services made public."""

from services.configurator.service import configurator

__all__ = ["configurator"]
