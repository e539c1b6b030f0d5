"""Rewards as a user would write them, some of them badly; their own module, so that workers can import it.

What a reward does is read from the response, so that one call mixes good and bad samples.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import time

from dirl.rewards import Accuracy, Reward, RewardSample
from dirl.rewards.accuracy import MathReward


class Obedient(Reward):
    """Does what the response says: a number is returned, a word is acted on."""

    def __call__(self, sample: RewardSample) -> float:
        actions = {
            "hang": lambda: time.sleep(60),
            "raise": lambda: 1 / 0,
            "exit": lambda: os._exit(7),
            "quit": lambda: sys.exit(3),
            "nan": lambda: float("nan"),
            "infinite": lambda: float("inf"),
            "text": lambda: "1.0",
            "nothing": lambda: None,
        }
        return actions[sample.response]() if sample.response in actions else float(sample.response)


class Patient(Reward):
    """Sleeps for as many seconds as the response says; 1."""

    def __call__(self, sample: RewardSample) -> float:
        time.sleep(float(sample.response))
        return 1.0


class SlowToLoad(Reward):
    """Takes long to prepare, and gives 1 once that has happened."""

    ready = False

    def prepare(self) -> None:
        time.sleep(1.2)
        self.ready = True

    def __call__(self, sample: RewardSample) -> float:
        return float(self.ready)


class NeverLoads(Reward):
    def prepare(self) -> None:
        raise OSError("no such model")

    def __call__(self, sample: RewardSample) -> float:
        return 1.0


class DiesAtRest(Reward):
    """Its process ends before it has any work."""

    def prepare(self) -> None:
        os._exit(9)

    def __call__(self, sample: RewardSample) -> float:
        return 1.0


class LeavesAChild(Reward):
    """Starts a process, writes its id to the file that the question names, and hangs."""

    def __call__(self, sample: RewardSample) -> float:
        child = subprocess.Popen(["sleep", "60"])
        with open(sample.question, "w") as file:
            file.write(str(child.pid))
        time.sleep(60)
        return 1.0


class WhereAmI(Reward):
    """The id of the process that evaluates it."""

    def __call__(self, sample: RewardSample) -> float:
        return float(os.getpid())


class HasTorch(Reward):
    """1 if its process has imported torch or lightning."""

    def __call__(self, sample: RewardSample) -> float:
        return float("torch" in sys.modules or "lightning" in sys.modules)


class Forgetful(Reward):
    """Does not call the constructor of its base."""

    def __init__(self) -> None:
        pass

    def __call__(self, sample: RewardSample) -> float:
        return 1.0


class CountsCharacters(Reward):
    """A user's reward with an argument of its own."""

    def __init__(self, letter: str, scale: float = 1.0, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        self.letter, self.scale = letter, scale

    def __call__(self, sample: RewardSample) -> float:
        return self.scale * sample.response.count(self.letter)


class KilledFromOutside(MathReward):
    """Its process is killed, as by a system without memory, as often as the response says; tries go to a file."""

    def value(self, sample: RewardSample, correct: bool) -> float:
        return 1.0 if correct else -1.0

    def __call__(self, sample: RewardSample) -> float:
        with open(sample.question, "a") as file:
            file.write("x")
        if os.path.getsize(sample.question) <= int(sample.response):
            os.kill(os.getpid(), signal.SIGKILL)
        return self.value(sample, correct=True)


class BusyForEver(Reward):
    """A user's reward with a limit of its own and no value for what does not end."""

    cpu_limit_s = 0.5

    def __call__(self, sample: RewardSample) -> float:
        while True:
            pass


class Boxes(Accuracy):
    """Accuracy of a response as if it stood in a box."""

    def __call__(self, sample: RewardSample) -> float:
        return super().__call__(dataclasses.replace(sample, response=rf"\boxed{{{sample.response}}}"))


class LeavesANote(Reward):
    """Makes the file that the question names, so that others see that it has been asked; 1."""

    judges = True

    def __call__(self, sample: RewardSample) -> float:
        open(sample.question, "w").close()
        return 1.0
