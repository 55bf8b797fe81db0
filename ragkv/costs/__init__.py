"""The cost of a prefill by arithmetic alone: operations, bytes, seconds.

`shape` has a model's sizes, `prefill` what a fused prefill needs, `roofline` how long a machine takes for it, `records`
reads a machine's measured rows, `deployment` describes a corpus with its traffic, and `capacity` plans for it.
"""
