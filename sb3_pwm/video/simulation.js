// A Gymnasium MuJoCo environment and a policy in the browser: the same observations, rewards and ends as in Python.
import loadMujoco from "./mujoco.js";
import * as ort from "./ort.wasm.bundle.min.mjs";

const clip = (value, low, high) => Math.min(Math.max(value, low ?? -Infinity), high ?? Infinity);
const squares = values => values.reduce((sum, value) => sum + value * value, 0);
const noise = {
  uniform: () => 2 * Math.random() - 1,
  normal: () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random()),
};

export async function load(task) {
  ort.env.wasm.numThreads = 1;  // more of them need headers that static servers do not send
  const beside = name => new URL(name, import.meta.url).href;
  const [mujoco, session, xml] = await Promise.all([
    loadMujoco({printErr: () => {}}),  // warnings about the XML; what fails throws
    ort.InferenceSession.create(beside("policy.onnx")),
    fetch(beside("robot.xml")).then(response => response.text()),
  ]);
  return new Simulation(mujoco, session, xml, task);
}

export class Simulation {
  constructor(mujoco, session, xml, task) {
    Object.assign(this, {mujoco, session, task});
    this.model = mujoco.MjModel.from_xml_string(xml);
    this.data = new mujoco.MjData(this.model);
    this.timestep = this.model.opt.timestep;
    this.reset();
  }

  // Begin an episode, at random or in a state
  reset(qpos, qvel) {
    const {start} = this.task;
    const near = (values, kind) => values.map(value => value + start.scale * noise[kind]());
    this.mujoco.mj_resetData(this.model, this.data);
    this.data.qpos.set(qpos ?? near(start.qpos, "uniform"));
    this.data.qvel.set(qvel ?? near(start.qvel, start.velocities));
    this.mujoco.mj_forward(this.model, this.data);
    Object.assign(this, {steps: 0, substeps: 0, reward: 0, return: 0, speed: 0, terminated: false, truncated: false});
  }

  get ended() { return this.terminated || this.truncated; }

  observation() {
    return this.task.observation.flatMap(([field, from, low, high]) =>
      Array.from(this.data[field].subarray(from), value => clip(value, low, high)));
  }

  async action(observation) {
    const type = this.session.inputMetadata[0].type;
    const values = (type === "float64" ? Float64Array : Float32Array).from(observation);
    const found = await this.session.run({observation: new ort.Tensor(type, values, [1, values.length])});
    return found.action.data;
  }

  place() {
    const [field, index] = this.task.progress;
    return this.data[field][index];
  }

  healthy() {
    return this.task.healthy.every(([field, from, to, low, high]) => this.data[field].subarray(from, to ?? undefined)
      .every(value => (low ?? -Infinity) <= value && value <= (high ?? Infinity)));
  }

  // One step of MuJoCo; the policy acts before the first of every frameSkip, the reward comes after the last
  async substep() {
    const {task, data} = this;
    if (this.substeps === 0) {
      this.control = await this.action(this.observation());
      this.before = this.place();
      data.ctrl.set(this.control);
    }
    this.mujoco.mj_step(this.model, data);
    this.substeps = (this.substeps + 1) % task.frameSkip;
    if (this.substeps > 0) return;
    this.mujoco.mj_rnePostConstraint(this.model, data);  // the contact forces
    this.speed = (this.place() - this.before) / (this.timestep * task.frameSkip);
    const healthy = this.healthy(), {weights} = task;
    const contacts = weights.contact ? squares(data.cfrc_ext.map(value => clip(value, ...task.contactRange))) : 0;
    this.reward = weights.forward * this.speed + weights.healthy * healthy
      - weights.control * squares(this.control) - weights.contact * contacts;
    this.return += this.reward;
    this.steps += 1;
    this.terminated = task.terminates && !healthy;
    this.truncated = task.maxSteps !== null && this.steps >= task.maxSteps;
  }

  async step() {
    do await this.substep(); while (this.substeps > 0);
  }

  // Let a force act on a body, at a point, during the next step of MuJoCo
  push(body, force, point) {
    const arm = point.map((value, i) => value - this.data.xipos[3 * body + i]);
    const torque = [0, 1, 2].map(i => arm[(i + 1) % 3] * force[(i + 2) % 3] - arm[(i + 2) % 3] * force[(i + 1) % 3]);
    this.data.xfrc_applied.set([...force, ...torque], 6 * body);
  }

  release() { this.data.xfrc_applied.fill(0); }
}
