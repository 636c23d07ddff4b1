"""What an endpoint picker gains when it reads the agents' pages, measured side by side in one run.

`python -m bench.picker` (`make bench-picker`) starts real vLLM engines with their agents, and one
real EPP with a real Envoy after another in front of them. Every router gets the same requests,
turn by turn. Two parts: `scraping` (what a page costs who serves it and who reads it), `routing`
(what a router makes of it). Whether a request found its LoRA in a slot is not asked of any page: a
plugin in the engines writes what their slots hold.
"""
