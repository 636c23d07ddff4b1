"""Decisions. No I/O, no clock, no event loop."""
