"""Profiles of the property tests: a few fixed cases by default, 10,000 new ones with `make properties`."""

import os

import hypothesis

hypothesis.settings.register_profile("short", max_examples=25, deadline=None, derandomize=True)
hypothesis.settings.register_profile("long", max_examples=10_000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))
