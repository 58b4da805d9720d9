from __future__ import annotations

from hypothesis import HealthCheck, settings

# How fast a machine is, and how busy, must not decide whether a test passes.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
