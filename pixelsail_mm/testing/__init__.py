"""Helpers that our tests and users' own tests share."""
