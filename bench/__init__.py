"""Benchmarks: figures for the documentation, measured on whole processes.

`python -m bench` runs them all, `python -m bench NAME...` some. What is measured is real: the agent
is the command that users run, in a process of its own; the engine is the fake one, in vLLM's shape,
in another; `python -m bench.picker` and `sampling` take real vLLM servers. Nothing fails because it
is slow; a run that did not measure is an error. Development only: nothing of the product imports
this package.
"""
