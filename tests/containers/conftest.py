"""The small honest checkpoints of tests/hostile are used here as well."""

from tests.hostile.conftest import honest  # noqa: F401
