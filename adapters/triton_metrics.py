"""Where Triton's page says what the picker wants to know.

The backends that generate text may bring families of their own, and those come first for their
models. For any other model on the same server Triton counts pending requests, and the running ones
follow from its cumulative durations (measured on 2.51, with 8 and 2 busy clients: 7 + 1 pending,
2.00 running). An ensemble counts beside its parts: its running requests are in one of them at the
same time. It has none pending (read: ``ensemble_scheduler.cc`` of triton-core).

The vLLM backend (read: its ``src/utils/metrics.py`` of January 2026) publishes no queue, no KV
usage and nothing of LoRAs: of its families, with labels ``model`` and ``version``, only the sum of
latencies tells how many requests there are. Triton's own durations end where a decoupled backend
takes a request over: measured, 5 requests in flight count as 0.02 there, and as 5.0 by the latency.
"""

from __future__ import annotations

from adapters.base import BusyTime, CacheInfo, MetricMap, Series

_TRTLLM_REQUESTS = "nv_trt_llm_request_metrics"
_TRTLLM_BLOCKS = "nv_trt_llm_kv_cache_block_metrics"

TRITON_METRICS = MetricMap(
    model_label="model",
    queued=(
        Series(name=_TRTLLM_REQUESTS, labels={"request_type": "waiting"}),
        Series(name="nv_inference_pending_request_count"),
    ),
    running=(Series(name=_TRTLLM_REQUESTS, labels={"request_type": "scheduled"}),),
    running_time=BusyTime(
        # Not the request's duration less its queueing: of an ensemble, the queueing of its parts
        # is in the one and not in the other.
        microseconds=(
            Series(name="nv_inference_compute_input_duration_us"),
            Series(name="nv_inference_compute_infer_duration_us"),
            Series(name="nv_inference_compute_output_duration_us"),
        ),
        seconds=(Series(name="vllm:e2e_request_latency_seconds_sum"),),
    ),
    kv_usage=(Series(name=_TRTLLM_BLOCKS, labels={"kv_cache_block_type": "fraction"}),),
    cache=(
        CacheInfo(
            block_size=Series(name=_TRTLLM_BLOCKS, labels={"kv_cache_block_type": "tokens_per"}),
            num_blocks=Series(name=_TRTLLM_BLOCKS, labels={"kv_cache_block_type": "max"}),
        ),
    ),
    present=("nv_cpu_memory_total_bytes", "nv_pinned_memory_pool_total_bytes"),
)
