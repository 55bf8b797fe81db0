"""What a prefill costs, by arithmetic alone: operations, bytes, seconds."""
