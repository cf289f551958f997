"""What happens to a sequence that must give way: its KV is dropped and computed again, or moved to host memory."""
