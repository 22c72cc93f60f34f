"""Configs become JSON and come back equal."""

from __future__ import annotations

import json

import pytest
from tiny import tiny_config

from engine.blip2.config import Blip2Config, mini, vit_g, vit_l


@pytest.mark.parametrize("config", [vit_g(), vit_g(364), vit_l(), mini(), tiny_config()])
def test_configs_survive_json(config: Blip2Config) -> None:
    assert Blip2Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
