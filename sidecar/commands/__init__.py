"""The commands, one module each: ``main(arguments, environment)`` returns the exit code.

What they print is safe for terminals: names and messages come from documents, engines and servers.
"""
