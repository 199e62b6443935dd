"""What of a changed configuration is taken while the service runs."""

from __future__ import annotations

from typing import Any

from proxy.config import Config
from proxy.serving.reload import reloaded


def config(**sections: Any) -> Config:
    return Config.model_validate(sections)


def with_preset(name: str, **more: Any) -> Config:
    """The default presets, with one that is other or new."""
    given = {"width": 100, "fit": "contain", "quality": 80, **more}
    presets = {key: each.model_dump() for key, each in Config().presets.items()}
    return config(presets={**presets, name: given})


def test_an_equal_configuration_changes_nothing() -> None:
    found = reloaded(Config(), config())
    assert found.config == Config()
    assert (found.taken, found.presets, found.waiting) == ((), (), ())
    assert not found.needs_memory


def test_presets_that_come_go_and_change_are_taken() -> None:
    """Catches a comparison that sees changes alone, and one of names alone."""
    before = with_preset("small", quality=70)
    changed = reloaded(before, with_preset("small", quality=71))
    assert (changed.presets, changed.taken) == (("small",), ("presets.small",))
    assert changed.config.presets["small"].quality == 71
    assert reloaded(Config(), before).presets == ("small",)
    gone = reloaded(before, Config())
    assert gone.presets == ("small",)
    assert gone.config == Config()


def test_what_names_a_preset_is_taken_with_the_presets() -> None:
    """Catches avatars of a preset that is gone, because its new name needs a restart."""
    presets = {"face": {"width": 9, "height": 9, "fit": "cover", "quality": 9}}
    actors = {"avatar_preset": "face", "banner_preset": "face"}
    new = config(presets=presets, actors=actors, video={"preset": "face"})
    found = reloaded(Config(), new)
    table = found.config.preset_table
    assert {table.avatar, table.banner, table.poster} == set(table.by_name) == {"face"}
    assert {"actors.avatar_preset", "actors.banner_preset", "video.preset"} < set(found.taken)
    assert found.waiting == ()


def test_the_effort_of_webp_is_a_part_of_presets() -> None:
    """Catches presets whose results are called changed, and are made as before."""
    found = reloaded(Config(), config(process={"webp_effort": 6}))
    assert found.config.presets["avatar"].webp_effort == 6
    assert found.config == config(process={"webp_effort": 6})
    assert "presets.avatar" in found.taken
    assert "process.webp_effort" in found.taken


def test_every_other_key_that_changed_waits_for_a_restart_and_keeps_its_value() -> None:
    """Catches half of a new section, and a key that is in force and said to wait, or neither."""
    new = config(
        log={"level": "debug", "format": "json"},
        video={"timeout": 30},
        server={"bind": "127.0.0.1:9000", "admin_token": "a-token-of-the-operator"},
        animation={"max_frames": 10},
    )
    found = reloaded(Config(), new)
    assert found.taken == ("log.level",)
    assert found.waiting == (
        "animation.max_frames",
        "log.format",
        "server.admin_token",
        "server.bind",
        "video.timeout",
    )
    assert found.config == config(log={"level": "debug"})
    # They wait also at the next reload.
    assert reloaded(found.config, new).waiting == found.waiting


def test_presets_that_need_more_memory_than_was_set_aside_are_told_of() -> None:
    """Catches a preset whose largest pictures end their workers, and nobody is told why."""
    large = with_preset("large", width=8192, height=8192, fit="cover")
    assert reloaded(Config(), large).needs_memory
    assert not reloaded(large, Config()).needs_memory
