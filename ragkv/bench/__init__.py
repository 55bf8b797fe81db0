"""What a prefill costs, measured."""
