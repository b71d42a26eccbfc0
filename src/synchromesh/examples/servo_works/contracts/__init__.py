"""The contracts of servo-works: all that one service may know about another."""
