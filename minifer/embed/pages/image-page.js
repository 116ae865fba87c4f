// The page that classifies a photograph: from a file, dropped, pasted, or from the camera.

import { settings } from "./demo-model.js";
import { Helper, milliseconds, showError } from "./demo-common.js";

const TOP = 5;
const LIVE_PAUSE = 150; // milliseconds between two pictures of the camera
const byId = (id) => document.getElementById(id);
const stage = byId("stage");
const photo = byId("photo");
const video = byId("video");

const helper = new Helper();
const labels = settings.labels ? fetchLabels() : Promise.resolve(null);
const rows = Array.from({ length: Math.min(TOP, settings.classes) }, makeRow);
let stream = null; // of the camera while it is on
let latest = 0; // number of the last photograph: answers to earlier ones come too late

// ---- photographs in

/** Classifies a file or blob and shows it. */
async function show(blob) {
  stopCamera();
  const number = ++latest;
  showError("");
  const previous = photo.src;
  photo.src = URL.createObjectURL(blob);
  if (previous) URL.revokeObjectURL(previous);
  photo.hidden = false;
  byId("invitation").hidden = true;
  document.body.classList.add("busy");
  try {
    const answer = await helper.ask({ image: blob, top: TOP });
    if (number === latest) await showAnswer(answer, true);
  } catch (error) {
    if (number === latest) {
      forget();
      showError(error.message);
    }
  } finally {
    if (number === latest) document.body.classList.remove("busy");
  }
}

/** Takes the first image among files; says so where there is none. */
function take(files) {
  const file = [...files].find((f) => f.type.startsWith("image/")) ?? files[0];
  if (file) show(file);
  else showError("there is no file in this: save the photograph first, then drop the file");
}

/** Classifies a photograph of this site. */
async function fetchPhoto(address) {
  try {
    const url = new URL(address, location.href);
    if (url.origin !== location.origin) throw new Error(`${url.href} is not of this site`);
    const response = await fetch(url);
    if (!response.ok) throw new Error(`there is no ${url.pathname}: status ${response.status}`);
    await show(await response.blob());
  } catch (error) {
    showError(error.message);
  }
}

byId("choose").onclick = () => byId("file").click();
byId("file").onchange = ({ target }) => {
  if (target.files.length) take(target.files);
  target.value = ""; // the same file may be chosen again
};
byId("sample").onclick = () => fetchPhoto(settings.sample);
byId("sample").hidden = !settings.sample;

let inside = 0; // dragging enters and leaves each element of the page
addEventListener("dragenter", () => document.body.classList.toggle("dragging", ++inside > 0));
addEventListener("dragleave", () => document.body.classList.toggle("dragging", --inside > 0));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  inside = 0;
  document.body.classList.remove("dragging");
  take(event.dataTransfer.files);
});
addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) take(event.clipboardData.files);
});

// ---- camera

byId("camera").hidden = !navigator.mediaDevices?.getUserMedia;
byId("camera").onclick = () => (stream ? keepPicture() : startCamera());
byId("cancel").onclick = stopCamera;

async function startCamera() {
  showError("");
  byId("camera").disabled = true; // while the user is asked
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    showError(error.name === "NotAllowedError" ? "the camera may not be used here" : `no camera: ${error.message}`);
    return;
  } finally {
    byId("camera").disabled = false;
  }
  latest++;
  video.srcObject = stream;
  video.hidden = false;
  byId("invitation").hidden = photo.hidden = true;
  byId("camera").textContent = "Take this picture";
  byId("cancel").hidden = false;
  byId("sample").hidden = true;
  await video.play().catch((error) => showError(error.message));
  follow(stream);
}

/** Classifies what the camera sees for as long as it is on. */
async function follow(current) {
  try {
    while (stream === current) {
      if (video.videoWidth && !document.hidden) {
        const bitmap = await createImageBitmap(video);
        const answer = await helper.ask({ image: bitmap, top: TOP }, [bitmap]);
        if (stream === current) await showAnswer(answer, false);
      }
      await new Promise((resolve) => setTimeout(resolve, LIVE_PAUSE));
    }
  } catch (error) {
    if (stream !== current) return;
    stopCamera();
    showError(error.message);
  }
}

function keepPicture() {
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  if (!canvas.width) return;
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => blob && show(blob), "image/png");
}

function stopCamera() {
  if (!stream) return;
  for (const track of stream.getTracks()) track.stop();
  stream = video.srcObject = null;
  video.hidden = true;
  byId("camera").textContent = "Use the camera";
  byId("cancel").hidden = true;
  byId("sample").hidden = !settings.sample;
  byId("invitation").hidden = !(photo.hidden = !photo.src);
}

// ---- results out

function makeRow() {
  const item = document.createElement("li");
  const [label, share, track, bar] = ["label", "share", "track", "bar"].map((name) => {
    const element = document.createElement(name === "track" || name === "bar" ? "div" : "span");
    element.className = name;
    return element;
  });
  label.textContent = "–";
  track.setAttribute("aria-hidden", "true");
  track.append(bar);
  item.append(label, share, track);
  byId("classes").append(item);
  return { item, label, share, bar };
}

/** Shows an answer; `said` aloud by a screen reader, or not. */
async function showAnswer({ classes, pixels, width, height, preparing, running }, said) {
  const names = await labels;
  const named = classes.map(({ index, probability }) => ({ name: names?.[index] ?? `class ${index}`, probability }));
  rows.forEach(({ item, label, share, bar }, i) => {
    const { name, probability } = named[i];
    label.textContent = name;
    share.textContent = `${(100 * probability).toFixed(1)} %`;
    bar.style.transform = `translateX(${(100 * (probability - 1)).toFixed(2)}%)`;
    item.dataset.probability = probability;
  });
  byId("running").textContent = milliseconds(running);
  byId("preparing").textContent = milliseconds(preparing);
  const { size } = settings.preprocessing;
  byId("sizes").textContent = `${size} × ${size} of ${width} × ${height}`;
  showPixels(pixels, size);
  if (said) {
    const [{ name, probability }] = named;
    byId("summary").textContent = `${name}, ${Math.round(100 * probability)} percent, in ${milliseconds(running)}`;
  }
  document.body.dataset.answers = Number(document.body.dataset.answers ?? 0) + 1;
}

/** Shows the RGB bytes that the model got. */
function showPixels(pixels, size) {
  const canvas = byId("seen");
  canvas.width = canvas.height = size;
  const image = new ImageData(size, size);
  for (let i = 0; i < size * size; i++) {
    for (let channel = 0; channel < 3; channel++) image.data[4 * i + channel] = pixels[3 * i + channel];
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Takes a photograph that could not be read out of the page, and the answer to the one before. */
function forget() {
  URL.revokeObjectURL(photo.src);
  photo.removeAttribute("src");
  photo.hidden = true;
  byId("invitation").hidden = false;
  for (const { item, label, share, bar } of rows) {
    label.textContent = "–";
    share.textContent = bar.style.transform = "";
    delete item.dataset.probability;
  }
  for (const id of ["running", "preparing", "sizes"]) byId(id).textContent = "–";
  byId("seen").width = byId("seen").height = 0;
  byId("summary").textContent = "";
}

async function fetchLabels() {
  const response = await fetch(new URL(settings.labels, import.meta.url));
  if (!response.ok) throw new Error(`there is no ${settings.labels}: status ${response.status}`);
  return response.json();
}

byId("model").textContent = settings.name;
labels.catch((error) => showError(error.message));
const asked = new URLSearchParams(location.search).get("photo");
if (asked) fetchPhoto(asked);
