"""Steps of Gymnasium's MuJoCo environments as functions of state and action, with their derivatives."""

import importlib
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from sb3_pwm.checks import name_of
from sb3_pwm.simulator.mujoco_state import state_layout
from sb3_pwm.simulator.terminations import termination_margin

EPSILON = 1e-8  # of the finite differences, in m, rad, their units per second, and actions
N_CHECKED = 8  # steps, when an environment is looked at


class Outcome(NamedTuple):
    """What N steps lead to."""

    states: np.ndarray
    """(N, nq + nv) positions and velocities."""
    observations: np.ndarray
    """(N, D) observations."""
    rewards: np.ndarray
    """(N,) rewards, in the environment's units."""
    margins: np.ndarray
    """(N,) distances to the end of the episode, see :func:`sb3_pwm.simulator.terminations.termination_margin`."""


class MujocoSteps:
    """An environment's steps from any state.

    A step is the environment's own: its ``frame_skip`` MuJoCo steps, its observation and its reward. All MuJoCo steps
    but the last run through ``mujoco.rollout``, on as many threads as torch has; the environment's own ``step`` takes
    the last.

    When an environment's step begins, MuJoCo's positions of bodies are one MuJoCo step old, or with its Runge-Kutta
    integrator those of the last stage. Here they follow from the velocities, or are the present ones.

    :param spec: the environment's specification, as ``env.spec.to_json()`` gives it.
    :raises ValueError: if it is not a MuJoCo environment, its observation does not show the state, it has state beyond
        positions and velocities, or its steps depend on more than state and action.
    """

    def __init__(self, spec: str) -> None:
        mujoco: Any = importlib.import_module("mujoco")  # which has no types, and is an extra
        rollout: Any = importlib.import_module("mujoco.rollout")

        self.spec = spec
        made = gym.make(EnvSpec.from_json(spec), render_mode=None)
        env: Any = made.unwrapped
        self.name = name_of(made)
        self.layout = state_layout(made)  # refuses what is not MuJoCo's
        self._mujoco, self._env, self._model = mujoco, env, env.model
        model = env.model
        hidden = {"actuators with activations": model.na, "plugins": model.nplugin, "mocap bodies": model.nmocap}
        for what, count in hidden.items():
            if count:
                raise ValueError(f"{self.name} has {count} {what}: state that its observation does not show")
        if mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS) != 1 + model.nq + model.nv:
            raise ValueError(f"{self.name} has state beyond time, positions and velocities")
        if not isinstance(env.action_space, spaces.Box) or env.action_space.shape != (model.nu,):
            raise ValueError(f"the actions of {self.name} are not MuJoCo's controls: {env.action_space}")
        self.nq, self.nv, self.nu = model.nq, model.nv, model.nu
        is_runge_kutta = model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4
        self._age = 0.0 if is_runge_kutta else model.opt.timestep  # of the bodies' positions, in s
        self.observation_dim = env.observation_space.shape[0]
        self.n_steps = 0
        self._low, self._high = (np.asarray(x, np.float64) for x in (env.action_space.low, env.action_space.high))
        n_threads = torch.get_num_threads()
        self._data = [mujoco.MjData(model) for _ in range(n_threads)]
        self._rollout = rollout.Rollout(nthread=n_threads if n_threads > 1 else 0)
        self._last = np.zeros(self.nq + self.nv)
        env.do_simulation = self._do_simulation
        self._check_steps()

    def __reduce__(self) -> tuple[Any, ...]:
        return MujocoSteps, (self.spec,)

    def _check_steps(self) -> None:
        """Refuse an environment that gives another reward or observation for the same state and action."""
        rng = np.random.default_rng(0)
        self._env.reset(seed=0)
        start = np.concatenate([self._env.data.qpos, self._env.data.qvel])
        states = np.tile(start, (N_CHECKED, 1))
        states[:, self.nq :] += 0.1 * rng.standard_normal((N_CHECKED, self.nv))
        actions = rng.uniform(-1, 1, (N_CHECKED, self.nu))
        once = self.step(states, actions)
        again = self.step(states[::-1], actions[::-1])
        for name, first, second in zip(Outcome._fields, once, again, strict=True):
            if not np.allclose(first, second[::-1], rtol=1e-6, atol=1e-8):
                raise ValueError(
                    f"{self.name}: the same state and action led to other {name}; they depend on something else, such "
                    "as noise or a counter"
                )

    def step(self, states: np.ndarray, actions: np.ndarray) -> Outcome:
        """Take one step of the environment from each state.

        :param states: (N, nq + nv) positions and velocities.
        :param actions: (N, nu) actions in [-1, 1].
        """
        env, data, mujoco = self._env, self._env.data, self._mujoco
        states = np.ascontiguousarray(states, np.float64)
        controls = self._low + 0.5 * (np.asarray(actions, np.float64) + 1) * (self._high - self._low)
        before_last = self._all_but_last(states, controls)
        n = len(states)
        outcome = Outcome(np.empty_like(states), np.empty((n, self.observation_dim)), np.empty(n), np.empty(n))
        for i, (state, control) in enumerate(zip(states, controls, strict=True)):
            data.qpos[:], data.qvel[:] = state[: self.nq], state[self.nq :]
            mujoco.mj_integratePos(self._model, data.qpos, data.qvel, -self._age)
            mujoco.mj_kinematics(self._model, data)
            mujoco.mj_comPos(self._model, data)
            data.qpos[:] = state[: self.nq]
            self._last = before_last[i]
            observation, reward, terminated, _, _ = env.step(control)
            outcome.states[i, : self.nq], outcome.states[i, self.nq :] = data.qpos, data.qvel
            outcome.observations[i], outcome.rewards[i] = observation, reward
            outcome.margins[i] = termination_margin(env, bool(terminated))
        self.n_steps += n
        return outcome

    def _all_but_last(self, states: np.ndarray, controls: np.ndarray) -> np.ndarray:
        """Return the (N, nq + nv) states before the last MuJoCo step of a step."""
        count = self._env.frame_skip - 1
        if count == 0:
            return states
        initial = np.concatenate([np.zeros((len(states), 1)), states], 1)
        control = np.repeat(controls[:, None], count, 1)
        visited, _ = self._rollout.rollout(self._model, self._data, initial, control, nstep=count)
        last: np.ndarray = visited[:, -1, 1:]
        return last

    def _do_simulation(self, control: np.ndarray, n_frames: int) -> None:
        """Take the place of the environment's ``do_simulation``: only the last MuJoCo step is left to do."""
        data = self._env.data
        data.qpos[:], data.qvel[:] = self._last[: self.nq], self._last[self.nq :]
        data.qacc_warmstart[:] = 0  # what was simulated before must not matter
        self._env._step_mujoco_simulation(control, 1)

    def jacobian(
        self, states: np.ndarray, actions: np.ndarray, outcome: Outcome, *, of_states: bool = True
    ) -> np.ndarray:
        """Return the derivatives of :meth:`step` by forward differences, positions in MuJoCo's tangent space.

        :param states: (N, nq + nv) states.
        :param actions: (N, nu) actions in [-1, 1]; their differences point inwards.
        :param outcome: of these.
        :param of_states: whether the derivatives by the states are wanted; without them they are 0.
        :return: (N, 2 nv + D + 2, 2 nv + nu) derivatives of next positions and velocities, observation, reward and
            margin by positions, velocities and actions.
        """
        n, n_in = len(states), 2 * self.nv + self.nu
        columns = np.arange(0 if of_states else 2 * self.nv, n_in)
        states, actions = np.asarray(states, np.float64), np.asarray(actions, np.float64)
        moved, acted = (np.repeat(x[:, None], len(columns), 1) for x in (states, actions))
        sizes = np.full((n, len(columns)), EPSILON)
        for i, column in enumerate(columns):
            if column < self.nv:
                moved[:, i, : self.nq] = self._moved(states[:, : self.nq], column)
            elif column < 2 * self.nv:
                moved[:, i, self.nq + column - self.nv] += EPSILON
            else:
                k = column - 2 * self.nv
                sizes[:, i] = np.where(actions[:, k] > 0, -EPSILON, EPSILON)
                acted[:, i, k] += sizes[:, i]
        found = self.step(moved.reshape(-1, self.nq + self.nv), acted.reshape(-1, self.nu))
        base = self._as_rows(Outcome(*(np.repeat(x, len(columns), 0) for x in outcome)), None)
        reference = np.repeat(outcome.states[:, : self.nq], len(columns), 0)
        differences = self._as_rows(found, reference) - base
        result = np.zeros((n, 2 * self.nv + self.observation_dim + 2, n_in))
        result[:, :, columns] = (differences.reshape(n, len(columns), -1) / sizes[:, :, None]).transpose(0, 2, 1)
        return result

    def _moved(self, positions: np.ndarray, column: int) -> np.ndarray:
        """Return (N, nq) positions after a small step along one direction of the tangent space."""
        moved, direction = positions.copy(), np.zeros(self.nv)
        direction[column] = 1.0
        for row in moved:
            self._mujoco.mj_integratePos(self._model, row, direction, EPSILON)
        return moved

    def _as_rows(self, outcome: Outcome, reference: np.ndarray | None) -> np.ndarray:
        """Return an outcome as (N, 2 nv + D + 2) rows; positions as seen from those of ``reference``, which are 0."""
        n = len(outcome.states)
        tangent = np.zeros((n, self.nv))
        if reference is not None:
            for row, origin, state in zip(tangent, reference, outcome.states, strict=True):
                self._mujoco.mj_differentiatePos(self._model, row, 1.0, origin, state[: self.nq])
        velocities = outcome.states[:, self.nq :]
        ends = outcome.rewards[:, None], outcome.margins[:, None]
        return np.concatenate([tangent, velocities, outcome.observations, *ends], 1)
