"""A profile run on a model: prompts, precompute, evaluation."""
