"""A scriptable engine: for trials without one, and for faults that a real one has not on command.

``FakeEngine`` reads files as the real engines do and answers with the digest of what it read.
``FakeAdapter`` drives one in process; ``vllm_app`` and ``triton_app`` give one the HTTP face of
vLLM or Triton, and ``FakeServer`` serves a face on a socket (``python -m adapters.fake``). The
contract tests run over all of them and over the real engines alike, so that none of it can lie.
"""

from adapters.fake.adapter import FakeAdapter
from adapters.fake.engine import FakeEngine, Faults
from adapters.fake.server import FakeServer
from adapters.fake.triton_face import triton_app
from adapters.fake.vllm_face import vllm_app

__all__ = ["FakeAdapter", "FakeEngine", "FakeServer", "Faults", "triton_app", "vllm_app"]
