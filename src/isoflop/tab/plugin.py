"""The plugin as TensorBoard loads it: its name, whether it is active, its routes. Quick to import."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from tensorboard.plugins import base_plugin

from isoflop.tab.records import RecordStore
from isoflop.tab.routes import roots_of

_logger = logging.getLogger("isoflop.tab")


class ScalingPlugin(base_plugin.TBPlugin):
    """The tab "Scaling". Active where there are records below the log folder; nothing here raises."""

    plugin_name = "isoflop"

    def __init__(self, context: base_plugin.TBContext) -> None:
        flags = context.flags
        roots, self._said = roots_of(
            context.logdir or getattr(flags, "logdir", None), getattr(flags, "logdir_spec", None)
        )
        self.store = RecordStore(roots)

    def get_plugin_apps(self) -> Mapping[str, Callable[..., Any]]:
        """Routes below `data/plugin/isoflop`."""
        from isoflop.tab.routes import Routes

        return Routes(self.store).apps()

    def is_active(self) -> bool:
        """Whether there is a record."""
        for text in self._said:
            _logger.info("isoflop: %s", text)
        self._said = []
        try:
            return self.store.any()
        except Exception:
            _logger.exception("isoflop: the Scaling tab is inactive")
            return False

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """A tab by its ES module; it polls by itself, and is kept while another tab is open."""
        return base_plugin.FrontendMetadata(es_module_path="/index.js", tab_name="Scaling", disable_reload=True)
