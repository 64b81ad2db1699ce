"""What settings mean together."""

from __future__ import annotations

from pathlib import Path

import pytest

from dipole.errors import ConfigurationError
from dipole.settings import ApiSettings, PlatformSettings, load_settings


def test_a_home_holds_what_is_not_told_to_lie_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """So `dipole eval`, `models fetch` and `serve` with DIPOLE_HOME find what `dipole up` made there."""
    assert load_settings(PlatformSettings).models_dir == Path(".dipole/models")
    monkeypatch.setenv("DIPOLE_HOME", "/srv/mine")
    settings = load_settings(PlatformSettings)
    assert settings.database_url == "sqlite:////srv/mine/dipole.db"
    assert settings.artifacts_url == "/srv/mine/artifacts"
    assert settings.models_dir == Path("/srv/mine/models")
    monkeypatch.setenv("DIPOLE_MODELS_DIR", "/models")
    assert load_settings(ApiSettings, home=Path("other")).models_dir == Path("/models")
    assert load_settings(ApiSettings, home=Path("other")).artifacts_url == "other/artifacts"


def test_a_wrong_variable_is_named_alone() -> None:
    with pytest.raises(ConfigurationError, match=r"^DIPOLE_REDIS_URL: [^;]*$"):
        load_settings(PlatformSettings, redis_url="http://nowhere")
    with pytest.raises(ConfigurationError, match=r"^DIPOLE_HOME: [^;]*$"):
        load_settings(PlatformSettings, home=7)
