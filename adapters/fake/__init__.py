"""A scriptable engine: for trials without one, and for faults that a real one has not on command.

``FakeEngine`` reads files as the real engines do and answers with the digest of what it read.
``FakeAdapter`` drives one in process; ``vllm_app``, ``triton_app`` and ``sglang_app`` give one the
HTTP face of an engine, and ``FakeServer`` serves a face on a socket (``python -m adapters.fake``).
The contract tests run over all of them and over the real vLLM and Triton alike, so that none of
that can lie; the face of SGLang is held to its documentation alone.
"""

from adapters.fake.adapter import FakeAdapter
from adapters.fake.engine import FakeEngine, Faults
from adapters.fake.server import FakeServer
from adapters.fake.sglang_face import sglang_app
from adapters.fake.triton_face import triton_app
from adapters.fake.vllm_face import vllm_app

__all__ = [
    "FakeAdapter",
    "FakeEngine",
    "FakeServer",
    "Faults",
    "sglang_app",
    "triton_app",
    "vllm_app",
]
