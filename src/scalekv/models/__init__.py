"""Networks, tokenizers and schedules per model family. Subpackages load lazily; this file imports nothing."""
