"""Where Triton's page says what the picker wants to know.

The backends that generate text bring families of their own, and those come first; for any other
model Triton counts pending requests, and running ones follow from its cumulative durations.
"""

from __future__ import annotations

from adapters.base import BusyTime, CacheInfo, MetricMap, Series

TRITON_METRICS = MetricMap(
    queued=(
        Series(name="nv_trt_llm_request_metrics", labels={"request_type": "waiting"}),
        Series(name="vllm:num_requests_waiting"),
        Series(name="nv_inference_pending_request_count"),
    ),
    running=(
        Series(name="nv_trt_llm_request_metrics", labels={"request_type": "scheduled"}),
        Series(name="vllm:num_requests_running"),
    ),
    running_time=BusyTime(
        plus=(Series(name="nv_inference_request_duration_us"),),
        minus=(Series(name="nv_inference_queue_duration_us"),),
    ),
    kv_usage=(
        Series(
            name="nv_trt_llm_kv_cache_block_metrics", labels={"kv_cache_block_type": "fraction"}
        ),
        Series(name="vllm:kv_cache_usage_perc"),
        Series(name="vllm:gpu_cache_usage_perc"),
    ),
    cache=(
        CacheInfo(
            block_size=Series(
                name="nv_trt_llm_kv_cache_block_metrics",
                labels={"kv_cache_block_type": "tokens_per"},
            ),
            num_blocks=Series(
                name="nv_trt_llm_kv_cache_block_metrics", labels={"kv_cache_block_type": "max"}
            ),
        ),
        CacheInfo(info=Series(name="vllm:cache_config_info")),
    ),
    present=("nv_cpu_memory_total_bytes", "nv_pinned_memory_pool_total_bytes"),
)
