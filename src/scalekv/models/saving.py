"""Configurations that say nothing about the machine they were saved on."""

from __future__ import annotations

import json
from typing import Any

from diffusers.configuration_utils import ConfigMixin


class PlacelessConfig(ConfigMixin):
    """The configuration of a network or pipeline, written without the place that it was loaded from."""

    def to_json_string(self) -> str:
        """The configuration as JSON text, as diffusers writes it but for ``_name_or_path``."""
        told: dict[str, Any] = json.loads(super().to_json_string())
        told.pop("_name_or_path", None)
        return json.dumps(told, indent=2, sort_keys=True) + "\n"
