"""The processing pool: jobs, the sandboxed processes that decode, and what limits both."""
