"""Makes committed pages and pictures of the documentation: `make reference`, `make pictures`."""
