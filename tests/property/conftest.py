"""Hypothesis profiles: `quick` by default, `ci` where METERGATE_REQUIRE_ALL=1.

HYPOTHESIS_PROFILE=thorough searches longer, such as before a release. CI throws the same dice every time, so that what
is green stays green; everybody's own runs throw new ones. No deadlines: a server in the loop makes single examples slow
for reasons that are not the code's.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]

settings.register_profile("quick", deadline=None, max_examples=50, suppress_health_check=SLOW)
settings.register_profile(
    "ci",
    deadline=None,
    max_examples=200,
    suppress_health_check=SLOW,
    print_blob=True,
    derandomize=True,
    database=None,
)
settings.register_profile(
    "thorough", deadline=None, max_examples=2_000, suppress_health_check=SLOW, print_blob=True
)

REQUIRE_ALL = os.environ.get("METERGATE_REQUIRE_ALL") == "1"
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if REQUIRE_ALL else "quick"))
