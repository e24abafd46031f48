"""The 11 variants of MT30, as rewards for (nearly) unchanged tasks of the DeepMind Control Suite.

Target speeds, heights and sizes are those of TD-MPC2 (arXiv 2310.16828, appendix; nicklashansen/tdmpc2). Units are
metres, metres per second and radians per second; all rewards lie in [0, 1].
"""

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from dm_control import suite
from dm_control.rl import control
from dm_control.suite import common, reacher
from dm_control.utils.rewards import tolerance

Reward = Callable[[Any], float]


def above(value: float, target: float, margin: float, value_at_margin: float = 0.5) -> float:
    """Return 1 from ``target`` on, falling linearly to ``value_at_margin`` at ``target - margin`` and on to 0."""
    bounds = (target, math.inf)
    return float(tolerance(value, bounds, margin=margin, value_at_margin=value_at_margin, sigmoid="linear"))


def high(height: float, target: float) -> float:
    """Return 1 from ``target`` on, falling as a Gaussian to 0.1 at half of it."""
    return float(tolerance(height, (target, math.inf), margin=target / 2))


def walk_backwards(speed: float) -> Reward:
    """Reward the walker for standing, six times as much when moving backwards at ``speed``."""

    def reward(physics: Any) -> float:
        standing = (3 * high(physics.torso_height(), 1.2) + (1 + physics.torso_upright()) / 2) / 4
        return float(standing * (1 + 5 * above(-physics.horizontal_velocity(), speed, margin=speed / 2)) / 6)

    return reward


def cheetah_backwards(physics: Any) -> float:
    """Reward the cheetah for running backwards, in proportion to its speed up to 8."""
    return above(-physics.speed(), 8, margin=8, value_at_margin=0)


def cheetah_on_one_foot(lifted: str, speed: float = 6) -> Reward:
    """Reward the cheetah for lifting a foot and its torso to 1.2, six times as much when running at ``speed``."""

    def reward(physics: Any) -> float:
        heights = physics.named.data.xpos[[lifted, "torso"], "z"]
        lift = (3 * high(heights[0], 1.2) + 2 * high(heights[1], 1.2)) / 5
        return lift * (1 + 5 * above(physics.speed(), speed, margin=speed, value_at_margin=0)) / 6

    return reward


def cheetah_jump(physics: Any) -> float:
    """Reward the cheetah for being high above the ground with both feet, and a little for staying in place."""
    back, front, torso = physics.named.data.xpos[["bfoot", "ffoot", "torso"], "z"]
    height = (high((torso + back) / 2, 1.2) + high((torso + front) / 2, 1.2)) / 2
    # Still up to 0.5, then falling to 0 at 1
    still = tolerance(physics.speed(), (-0.5, 0.5), margin=0.5, value_at_margin=0, sigmoid="linear")
    return float((5 * height + still) / 6)


def hop_backwards(physics: Any) -> float:
    """Reward the hopper for moving backwards at 1, half its forward target, while its torso is up."""
    standing = tolerance(physics.height(), (0.6, 2))
    return float(standing * above(-physics.speed(), 1, margin=0.5))


def cup_spin(physics: Any) -> float:
    """Reward a ball that is fast (6) and far from the cup (0.5), outside of it."""
    if physics.in_target():
        return 0.0
    distance = np.linalg.norm(physics.ball_to_target())
    speed = np.linalg.norm(physics.named.data.qvel[["ball_x", "ball_z"]])
    return (above(float(distance), 0.5, margin=0.25) + 2 * above(float(speed), 6, margin=3)) / 3


def pendulum_spin(physics: Any) -> float:
    """Reward a pole that turns at 9, in either direction."""
    return above(float(np.abs(physics.angular_velocity()).item()), 9, margin=4.5)


class Variant:
    """A task of the suite with another reward; all else, seen from ``control.Environment``, is the task's own.

    :param task: the suite's task.
    :param reward: function of the physics.
    """

    def __init__(self, task: Any, reward: Reward) -> None:
        self.task, self.reward = task, reward

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def get_reward(self, physics: Any) -> float:
        """Return the variant's reward."""
        return self.reward(physics)


class StartsInCup(Variant):
    """Nine of ten episodes start with the ball in the cup; the others start anywhere, as the suite's do."""

    def initialize_episode(self, physics: Any) -> None:
        """Draw start states until one is right."""
        anywhere = self.task.random.uniform() < 0.1
        self.task.initialize_episode(physics)
        while not (anywhere or physics.in_target()):
            self.task.initialize_episode(physics)


class Change(NamedTuple):
    """What a variant changes: the suite's domain and task that it starts from, and how to make its own task."""

    domain: str
    task: str
    make_task: Callable[[Any], Any]


def rewarded(reward: Reward, variant: type[Variant] = Variant) -> Callable[[Any], Variant]:
    """Return a function that puts ``reward`` in the place of a task's own."""
    return lambda task: variant(task, reward)


CHANGES = {
    "walker-walk-backwards": Change("walker", "walk", rewarded(walk_backwards(speed=1))),
    "walker-run-backwards": Change("walker", "run", rewarded(walk_backwards(speed=8))),
    "cheetah-run-backwards": Change("cheetah", "run", rewarded(cheetah_backwards)),
    "cheetah-run-front": Change("cheetah", "run", rewarded(cheetah_on_one_foot(lifted="bfoot"))),
    "cheetah-run-back": Change("cheetah", "run", rewarded(cheetah_on_one_foot(lifted="ffoot"))),
    "cheetah-jump": Change("cheetah", "run", rewarded(cheetah_jump)),
    "hopper-hop-backwards": Change("hopper", "hop", rewarded(hop_backwards)),
    "reacher-three-easy": Change("reacher", "easy", lambda task: task),
    "reacher-three-hard": Change("reacher", "hard", lambda task: task),
    "cup-spin": Change("ball_in_cup", "catch", rewarded(cup_spin, StartsInCup)),
    "pendulum-spin": Change("pendulum", "swingup", rewarded(pendulum_spin)),
}


def load_variant(name: str) -> Any:
    """Make a variant.

    :param name: one of the 11 names.
    :return: a ``control.Environment`` with flat observations and without time limit.
    """
    domain, task, make_task = CHANGES[name]
    original = suite.load(domain, task)
    physics = original.physics if domain != "reacher" else reacher.Physics.from_xml_string(*three_link_reacher())
    return control.Environment(
        physics,
        make_task(original.task),
        control_timestep=original.control_timestep(),
        flat_observation=True,
    )


def three_link_reacher() -> tuple[bytes, dict[str, Any]]:
    """Return the reacher's model with a second arm and shorter links, as XML and the files that it includes.

    Links are 0.09 long; the two inner joints turn by at most 80 degrees to either side.
    """
    model = ElementTree.fromstring(common.read_model("reacher.xml"))
    arm, hand, finger = (_find(model, f".//body[@name='{name}']") for name in ("arm", "hand", "finger"))
    arm.remove(hand)
    _find(arm, "geom").set("fromto", "0 0 0 0.09 0 0")
    forearm = copy.deepcopy(arm)
    arm.append(forearm)
    forearm.append(hand)
    forearm.set("name", "forearm")
    _find(forearm, "geom").set("name", "forearm")
    _find(forearm, "joint").set("name", "elbow")
    for body in (forearm, hand, finger):
        body.set("pos", "0.09 0 0")
    for body in (forearm, hand):
        _find(body, "joint").attrib |= {"limited": "true", "range": "-80 80"}
    motor = ElementTree.Element("motor", name="elbow", joint="elbow")
    _find(model, "actuator").insert(1, motor)  # between shoulder and wrist
    return ElementTree.tostring(model), common.ASSETS


def _find(element: ElementTree.Element, path: str) -> ElementTree.Element:
    """Return the first descendant at a path, which must exist."""
    return next(element.iterfind(path))
