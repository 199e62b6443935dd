"""The sum of what bounds the parts of a service; what it comes to is tested with real pictures."""

from __future__ import annotations

from proxy.config import Config
from proxy.moderation import policy
from proxy.tools.doctor.memory_ceiling import ceiling


def test_the_verdicts_of_a_policy_service_count_where_one_is_asked() -> None:
    """Catches a table that is left out, or that counts where nothing fills it."""
    asks = Config.model_validate({"policy": {"url": "https://policy.example"}})
    verdicts = asks.policy.max_entries * policy.VERDICT
    assert ceiling(asks, cpus=4) == ceiling(Config(), cpus=4) + verdicts
