"""What results say that they came about with."""

from importlib.metadata import version

from dirl.evaluation.provenance import LIBRARIES, versions
from dirl.rollout import TorchEngine


class Engine(TorchEngine):
    libraries = ("jinja2", "no-such-library")


def test_results_hold_the_versions_of_the_engines_own_libraries_too() -> None:
    plain, own = versions(TorchEngine()), versions(Engine())
    assert {*plain} == {"dirl", "python", *LIBRARIES}
    assert own == plain | {"jinja2": version("jinja2"), "no-such-library": "none"}
