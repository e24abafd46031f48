// The page: it draws the robot, keeps to real time, and takes pushes.
import {load} from "./simulation.js";

const PLANE = 0, SPHERE = 2;  // MuJoCo's numbers of kinds of geoms; what else is drawn is a capsule
const SKY = "rgb(222,232,240)", CLEAR = "rgba(222,232,240,0)", FLOOR = ["rgb(176,196,178)", "rgb(152,176,158)"];
const SHADOW = "rgb(132,152,137)";
const DISTANCE = 4;  // of the eye, in m
const NEAR = 0.1;  // what is nearer to the eye is not drawn
const REACH = 14;  // of the floor that is drawn, in m
const PUSH_SPEED = 2, PUSH_SECONDS = 0.1;  // a push gives the robot this speed, in this time
const PULL = 40, STRONGEST = 25;  // of a drag, in N per kg and m, and N per kg
const LONGEST = 0.05;  // seconds that are simulated for one picture
const ENDED_SECONDS = 1;  // for which the end of an episode is seen

const find = id => document.getElementById(id);
const task = JSON.parse(find("task").textContent);
const canvas = find("view"), context = canvas.getContext("2d");
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const add = (a, b, scale = 1) => a.map((value, i) => value + scale * b[i]);
const css = color => `rgb(${color.map(Math.round).join(",")})`;
const mixed = (a, b, share) => a.map((value, i) => value + share * (b[i] - value));
const view = {azimuth: -Math.PI / 2, elevation: 0.22, center: [0, 0, 0]};
let simulation, camera, floor = 0, mass = 1;
let paused = false, again = false, grabbed = null, turning = null, pushing = null;
let behind = 0, ended = 0;  // seconds: of the simulation behind the clock, since the episode's end

document.title = `${task.title}: a policy in the browser`;
find("title").textContent = task.title;
const {mujoco, onnxruntime, python} = task.versions;
find("versions").textContent = `Simulated here by MuJoCo ${mujoco} (Apache 2.0; in Python: ${python}), the policy is
  evaluated by onnxruntime-web ${onnxruntime} (MIT).`;

function placeCamera() {
  const {width, height} = canvas.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
  const size = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  const torso = simulation.data.xpos.subarray(3 * task.body, 3 * task.body + 3);
  view.center = [torso[0], torso[1], floor + view.height];
  const [ca, sa, ce, se] = [view.azimuth, view.elevation].flatMap(angle => [Math.cos(angle), Math.sin(angle)]);
  const outward = [ca * ce, sa * ce, se];
  camera = {
    width, height,
    focal: 1.1 * Math.min(height, width),
    eye: add(view.center, outward, DISTANCE),
    right: [-sa, ca, 0], up: [-ca * se, -sa * se, ce], ahead: outward.map(value => -value),
  };
}

// A point on the canvas, in pixels, and its distance along the view
function project(point) {
  const from = add(point, camera.eye, -1), depth = Math.max(dot(from, camera.ahead), NEAR / 2);
  const scale = camera.focal / depth;
  const x = camera.width / 2 + scale * dot(from, camera.right), y = camera.height / 2 - scale * dot(from, camera.up);
  return {x, y, depth, scale};
}

function unproject(x, y, depth) {
  const across = add(camera.eye, camera.ahead, depth), scale = depth / camera.focal;
  return add(add(across, camera.right, (x - camera.width / 2) * scale), camera.up, (camera.height / 2 - y) * scale);
}

// An endless floor: a colour up to the horizon, squares of another one on it, and haze
function drawFloor() {
  const {width, height, focal} = camera, horizon = height / 2 - focal * Math.tan(view.elevation);
  context.fillStyle = SKY;
  context.fillRect(0, 0, width, height);
  context.fillStyle = FLOOR[0];
  context.fillRect(0, horizon, width, height - horizon);
  context.fillStyle = FLOOR[1];
  context.beginPath();
  const [x0, y0] = view.center.map(Math.floor);
  for (let i = x0 - REACH; i <= x0 + REACH; i++) for (let j = y0 - REACH; j <= y0 + REACH; j++) {
    if ((i + j) % 2 !== 0) continue;
    const corners = [[i, j], [i + 1, j], [i + 1, j + 1], [i, j + 1]].map(([x, y]) => project([x, y, floor]));
    if (corners.some(corner => corner.depth < NEAR)) continue;
    context.moveTo(corners[3].x, corners[3].y);
    for (const {x, y} of corners) context.lineTo(x, y);
  }
  context.fill();
  const haze = context.createLinearGradient(0, horizon, 0, horizon + 0.3 * (height - horizon));
  haze.addColorStop(0, SKY);
  haze.addColorStop(1, CLEAR);
  context.fillStyle = haze;
  context.fillRect(0, horizon - 1, width, height);
}

// The geoms that are drawn: their ends, where they are now
function solids() {
  const {model, data} = simulation, found = [], types = model.geom_type, sizes = model.geom_size;
  const positions = data.geom_xpos, axes = data.geom_xmat, bodies = model.geom_bodyid, rgba = model.geom_rgba;
  for (let i = 0; i < model.ngeom; i++) {
    if (types[i] === PLANE) continue;
    const middle = Array.from(positions.subarray(3 * i, 3 * i + 3));
    const half = types[i] === SPHERE ? 0 : sizes[3 * i + 1];
    const axis = [2, 5, 8].map(k => axes[9 * i + k]);
    found.push({
      body: bodies[i], radius: sizes[3 * i], ends: [add(middle, axis, half), add(middle, axis, -half)],
      color: Array.from(rgba.subarray(4 * i, 4 * i + 3), value => 255 * value),
    });
  }
  return found;
}

function stroke(ends, width, style, raise = 0) {
  context.strokeStyle = style;
  context.lineWidth = width;
  context.beginPath();
  context.moveTo(ends[0].x, ends[0].y - raise);
  context.lineTo(ends[1].x + 0.01, ends[1].y - raise);  // a line of no length is not drawn
  context.stroke();
}

function draw() {
  placeCamera();
  drawFloor();
  context.lineCap = "round";
  const shapes = solids().map(solid => ({...solid, drawn: solid.ends.map(project)}));
  context.globalCompositeOperation = "darken";  // shadows that overlap are as dark as one
  for (const {ends, radius} of shapes) {
    const shadow = ends.map(([x, y]) => project([x, y, floor]));
    stroke(shadow, 2 * radius * shadow[0].scale, SHADOW);
  }
  context.globalCompositeOperation = "source-over";
  const depth = ({drawn}) => drawn[0].depth + drawn[1].depth;
  for (const {drawn, radius, color} of shapes.sort((a, b) => depth(b) - depth(a))) {
    const width = radius * (drawn[0].scale + drawn[1].scale);
    stroke(drawn, width, css(mixed(color, [0, 0, 0], 0.4)));
    stroke(drawn, 0.86 * width, css(color), 0.03 * width);
    stroke(drawn, 0.34 * width, css(mixed(color, [255, 255, 255], 0.45)), 0.18 * width);
  }
  if (grabbed) stroke([project(grabbedPoint()), grabbed.pointer], 3, "#c0392b");
}

function show() {
  find("steps").textContent = task.maxSteps === null ? simulation.steps : `${simulation.steps} of ${task.maxSteps}`;
  find("return").textContent = simulation.return.toFixed(1);
  find("reward").textContent = simulation.reward.toFixed(2);
  find("speed").textContent = `${simulation.speed.toFixed(2)} m/s`;
}

// Pushes
function grabbedPoint() {
  const {data} = simulation, {body, local} = grabbed, rotation = data.xmat;
  return [0, 1, 2].map(i => data.xpos[3 * body + i]
    + local.reduce((sum, value, k) => sum + rotation[9 * body + 3 * i + k] * value, 0));
}

function applyForces() {
  simulation.release();
  if (pushing) {
    const {data} = simulation, force = [pushing.direction * mass * PUSH_SPEED / PUSH_SECONDS, 0, 0];
    simulation.push(task.body, force, Array.from(data.xipos.subarray(3 * task.body, 3 * task.body + 3)));
    pushing.seconds -= simulation.timestep;
    if (pushing.seconds <= 0) pushing = null;
  }
  if (grabbed) {
    const point = grabbedPoint(), {x, y} = grabbed.pointer;
    const way = add(unproject(x, y, project(point).depth), point, -1), length = Math.hypot(...way);
    const strength = mass * Math.min(PULL, STRONGEST / Math.max(length, 1e-9));
    simulation.push(grabbed.body, way.map(value => strength * value), point);
  }
}

function pointerOf(event) {
  const box = canvas.getBoundingClientRect();
  return {x: event.clientX - box.left, y: event.clientY - box.top};
}

// The nearest part under a pointer, with the point of it that is grabbed in the part's frame
function grab(pointer) {
  let best = null;
  for (const {body, radius, ends} of solids()) {
    const [a, b] = ends.map(project), along = [b.x - a.x, b.y - a.y];
    const share = ((pointer.x - a.x) * along[0] + (pointer.y - a.y) * along[1]) / Math.max(Math.hypot(...along) ** 2, 1e-9);
    const point = mixed(ends[0], ends[1], Math.min(Math.max(share, 0), 1)), seen = project(point);
    const away = Math.hypot(pointer.x - seen.x, pointer.y - seen.y) - radius * seen.scale;
    if (away < 10 && (!best || seen.depth < best.depth)) best = {body, point, depth: seen.depth};
  }
  if (!best) return null;
  const {data} = simulation, {body, point} = best;
  const arm = point.map((value, i) => value - data.xpos[3 * body + i]);
  const local = [0, 1, 2].map(k => arm.reduce((sum, value, i) => sum + data.xmat[9 * body + 3 * i + k] * value, 0));
  return {body, local, pointer};
}

canvas.addEventListener("pointerdown", event => {
  if (!simulation) return;
  canvas.setPointerCapture(event.pointerId);
  grabbed = grab(pointerOf(event));
  turning = grabbed ? null : pointerOf(event);
});
canvas.addEventListener("pointermove", event => {
  const pointer = pointerOf(event);
  if (grabbed) grabbed.pointer = pointer;
  if (!turning) return;
  view.azimuth -= 0.01 * (pointer.x - turning.x);
  view.elevation = Math.min(Math.max(view.elevation + 0.01 * (pointer.y - turning.y), 0.03), 1.5);
  turning = pointer;
});
for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { grabbed = turning = null; });

function begin() {
  simulation.reset();
  pushing = grabbed = null;
  again = false;
  behind = ended = 0;
}
find("pause").addEventListener("click", () => {
  paused = !paused;
  find("pause").textContent = paused ? "Go on" : "Pause";
});
find("reset").addEventListener("click", () => { again = true; });  // not while the policy thinks
for (const [id, direction] of [["backward", -1], ["forward", 1]]) {
  find(id).addEventListener("click", () => { pushing = {direction, seconds: PUSH_SECONDS}; });
}

// Simulate as much as has passed, but not more than a slow machine can catch up with
async function advance(seconds) {
  if (simulation.ended) {
    ended += seconds;
    if (ended > ENDED_SECONDS) begin();
    return;
  }
  for (behind = Math.min(behind + seconds, LONGEST); behind > 0; behind -= simulation.timestep) {
    applyForces();
    await simulation.substep();
    if (!simulation.ended) continue;
    const how = simulation.terminated ? "The episode ended" : "The time was over";
    find("last").textContent = `${how} after ${simulation.steps} steps: return ${simulation.return.toFixed(1)}.`;
    return;
  }
}

let before = performance.now();
async function frame(now) {
  const seconds = Math.max(0, now - before) / 1000;
  before = now;
  if (again) begin();
  if (!paused) await advance(seconds);
  draw();
  show();
  requestAnimationFrame(next);
}
const next = now => frame(now).catch(fail);
function fail(error) {
  report(`This does not work here: ${error.message ?? error}`);
  throw error;
}

load(task).then(loaded => {
  simulation = loaded;
  const {model, data} = simulation;
  mass = model.body_mass.reduce((sum, value) => sum + value, 0);
  const plane = Array.from(model.geom_type).indexOf(PLANE);
  floor = plane < 0 ? 0 : data.geom_xpos[3 * plane + 2];
  view.height = 0.8 * (data.xpos[3 * task.body + 2] - floor);
  find("last").textContent = "";
  for (const button of document.querySelectorAll("button")) button.disabled = false;
  requestAnimationFrame(next);
}).catch(fail);
