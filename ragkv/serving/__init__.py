"""Serving with vLLM: fused prompts from a ragkv worker enter vLLM's paged memory; vLLM batches and decodes.

Only `ragkv.serving.connector` imports vLLM. See docs/serving.md for a request's way through the modules.
"""
