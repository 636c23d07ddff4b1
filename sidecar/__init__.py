"""The agent: watches one model-config, makes the engine hold it, and tells the truth about it."""

__version__ = "0.1.0"
