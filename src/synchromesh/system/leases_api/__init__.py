"""The registry over HTTP: its server, and its clients, which renew their leases."""
