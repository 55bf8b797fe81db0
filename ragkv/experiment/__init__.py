"""A profile run on a model: prompts, precompute, evaluation, one prompt looked at closely, the oracle."""
