"""Production: the build bench, its weeks, and the sheets that the builders work from."""

from services.production.service import production

__all__ = ["production"]
