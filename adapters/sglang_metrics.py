"""Where SGLang's pages say what the picker wants to know (read from SGLang 0.5.23; none was run).

``/v1/loads`` has what each data-parallel replica last told of itself: at every prefill and when it
falls idle, and otherwise every 15 decoding steps (``--load-snapshot-publish-interval``). It costs
SGLang a look into shared memory, and is there without ``--enable-metrics``.

``/metrics`` is there with ``--enable-metrics`` only, and tells of every 40 decoding steps
(``--decode-log-interval``). Every scheduler process has series of its own: pipeline stages, and
with ``--enable-metrics-for-all-schedulers`` tensor-parallel ranks, report the same requests and the
same cache, replicas (``dp_rank``) their own. With priorities, the series without a priority is the
total of the others. Many processes write the page (prometheus_client's multi-process mode), so
that it says nothing of when one of them started.

``sglang:lora_pool_slots_used`` counts the LoRAs of the running batch, and nothing names them. So
neither it nor the number of slots tells which LoRAs are in one: they are not read.
"""

from __future__ import annotations

from adapters.base import CacheInfo, MetricMap, Series

QUEUED_NOW = b"sglang_num_waiting_reqs"
"""On a page of loads that has a replica's figures."""

_SAME_REQUESTS = ("tp_rank", "pp_rank", "moe_ep_rank")
_TOTAL = {"priority": ""}

SGLANG_METRICS = MetricMap(
    queued=(
        Series(name="sglang_num_waiting_reqs"),
        Series(name="sglang:num_queue_reqs", labels=_TOTAL, shared_by=_SAME_REQUESTS),
    ),
    running=(
        Series(name="sglang_num_running_reqs"),
        Series(name="sglang:num_running_reqs", labels=_TOTAL, shared_by=_SAME_REQUESTS),
    ),
    kv_usage=(Series(name="sglang_token_usage"), Series(name="sglang:token_usage")),
    cache=(
        CacheInfo(
            block_size=Series(name="sglang:page_size"),
            num_blocks=Series(name="sglang:num_pages", shared_by=_SAME_REQUESTS),
        ),
        # Before 0.5.12.
        CacheInfo(
            info=Series(name="sglang:cache_config_info", shared_by=_SAME_REQUESTS),
            block_size_label="page_size",
            num_blocks_label="num_pages",
        ),
    ),
)
