"""Readers: one file per annotation format; each turns annotations into records."""
