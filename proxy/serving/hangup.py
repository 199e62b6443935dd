"""Reloads the configuration on SIGHUP, and tells a terminal that has gone from an operator."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog
import trio

from proxy.config import Config, ConfigError, Layer, load_config
from proxy.serving.reload import reloaded

log = structlog.get_logger(__name__)


class Reloader:
    """The configuration in force, and where it comes from.

    Args:
        file, overrides: as for ``load_config``, which is asked again.
        take: called with the configuration that is in force from then on.
    """

    def __init__(
        self, config: Config, file: Path | None, overrides: Layer, take: Callable[[Config], object]
    ) -> None:
        self._config = config
        self._load = partial(load_config, file, overrides=overrides, again=True)
        self._take = take

    async def reload(self) -> None:
        """Check the configuration anew, and take what can be; if it is wrong, take nothing of it.

        Cancellation abandons the thread that reads the file, and changes nothing.
        """
        try:
            new = await trio.to_thread.run_sync(self._load, abandon_on_cancel=True)
        except ConfigError as error:
            told = "the new configuration is wrong; the one before stays in force"
            log.error(told, mistakes=error.mistakes)
            return
        found = reloaded(self._config, new)
        self._config = found.config
        self._take(found.config)
        more = {"then": "print nginx's block and clients' presets anew"} if found.presets else {}
        log.info("configuration reloaded", taken=found.taken, **more)
        if found.waiting:
            log.warning("a change needs a restart", keys=found.waiting)
        if found.needs_memory:
            log.warning("the new presets may need more memory than was set aside: restart")


async def on_hangups(reloader: Reloader, stop: Callable[[], None]) -> None:
    """Reload at each SIGHUP; call ``stop`` when it says that the terminal has gone.

    It does nothing if the parent process set the signal to be ignored, as nohup(1) does.
    """
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return
    terminals = [each for each in range(3) if _is_terminal(each)]
    with trio.open_signal_receiver(signal.SIGHUP) as hangups:
        # The command line holds back what comes during the start.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        async for _ in hangups:
            # A terminal that has gone is none any more (POSIX, "Modem Disconnect").
            if terminals and not any(map(_is_terminal, terminals)):
                stop()
            else:
                await reloader.reload()


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False
