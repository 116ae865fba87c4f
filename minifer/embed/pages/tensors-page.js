// The page of any model: what it takes and gives, and a run on random values.

import { inputs, outputs, settings } from "./demo-model.js";
import { Helper, milliseconds, showError } from "./demo-common.js";
import { rangeOf } from "./demo-values.js";

const byId = (id) => document.getElementById(id);
const helper = new Helper();
let runs = 0;
let fastest = Infinity;

function addRow(table, tensor, cells) {
  const row = byId(table).insertRow();
  const name = document.createElement("th");
  name.scope = "row";
  name.textContent = tensor.name;
  row.append(name);
  const shape = tensor.shape.length ? tensor.shape.join(" × ") : "a single value";
  for (const text of [tensor.dtype, shape, ...cells]) row.insertCell().textContent = text;
  return row;
}

function number(value) {
  if (typeof value === "bigint" || Number.isInteger(value)) return String(value);
  return Number.isFinite(value) ? String(Number(value.toPrecision(4))) : String(value);
}

async function run() {
  const button = byId("run");
  button.disabled = true;
  showError("");
  try {
    const { time, statistics } = await helper.ask({});
    fastest = Math.min(fastest, time);
    byId("time").textContent = milliseconds(time);
    byId("runs").textContent = ++runs > 1 ? `fastest of ${runs} runs: ${milliseconds(fastest)}` : "for one run";
    outputs.forEach((tensor, i) => showStatistics(byId("outputs").rows[i], tensor, statistics[i]));
    document.body.dataset.answers = runs;
  } catch (error) {
    showError(error.message);
  }
  button.disabled = false;
}

function showStatistics(row, tensor, { least, mean, greatest, deviation, strange, first }) {
  const values = [least, mean, greatest, deviation].map(number);
  const more = tensor.size > first.length ? ", …" : "";
  const note = strange ? ` (${strange} not finite)` : "";
  [...values, first.map(number).join(", ") + more + note].forEach((text, i) => {
    row.cells[i + 3].textContent = text;
  });
}

document.title = byId("title").textContent = settings.name;
for (const tensor of inputs) addRow("inputs", tensor, [rangeOf(tensor)]);
for (const tensor of outputs) {
  const row = addRow("outputs", tensor, ["–", "–", "–", "–", "–"]);
  for (let i = 3; i < 7; i++) row.cells[i].className = "number";
}
byId("run").onclick = run;
helper.ready.then(() => (byId("run").disabled = false), () => {});
