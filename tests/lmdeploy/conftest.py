"""These tests need LMDeploy beside this package: `make test-lmdeploy` installs it."""

import os

import pytest

os.environ.setdefault("LMDEPLOY_ENABLE_CHECK_ENV", "0")
pytest.importorskip("lmdeploy", reason="needs lmdeploy: make test-lmdeploy")
