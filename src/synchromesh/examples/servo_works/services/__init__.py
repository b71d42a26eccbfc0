"""The services of servo-works; each owns one database, and no other is ever given it."""
