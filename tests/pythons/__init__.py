"""The tests on every Python that pyproject.toml names, and on the lowest versions it declares."""
