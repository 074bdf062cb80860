"""The KV cache: storage that executes a plan, attention over head groups, selection of survivors."""

from scalekv.cache.attention import attention
from scalekv.cache.kv_cache import KVCache
from scalekv.cache.opening import CacheFactory, open_cache
from scalekv.cache.report import CacheReport

__all__ = ["CacheFactory", "CacheReport", "KVCache", "attention", "open_cache"]
