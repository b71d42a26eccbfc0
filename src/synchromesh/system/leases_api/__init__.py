"""The registry over HTTP: leases are granted by the server, and kept by its clients."""
