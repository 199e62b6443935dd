"""The processing pool: its jobs, the sandboxed processes that decode, and their limits."""
