// The page: takes an image and questions, asks the server, shows what comes.

import * as api from "./api.js";
import { firstImage, read } from "./image.js";
import { presets, turns } from "./presets.js";
import * as stage from "./stage.js";
import { Exchange, clear } from "./transcript.js";

const element = (id) => document.getElementById(id);
const [mat, select, prompt, send, notice, keyForm] = ["mat", "models", "prompt", "send", "notice", "key"].map(element);

let models = [];
let model = null; // the one that is asked
let image = null;
let conversation = []; // the exchanges about this image
let running = null; // aborts the answer that is coming

// ---- models and key

async function loadModels() {
  try {
    models = await api.models(() => (element("state").textContent = "The model is being loaded …"));
  } catch (error) {
    element("state").textContent = "No model yet";
    return error.status === 401 ? askForKey() : tell(error.message);
  }
  keyForm.hidden = true;
  tell("");
  select.replaceChildren(...models.map(({ id }) => new Option(id, id)));
  select.disabled = models.length < 2;
  select.parentElement.classList.toggle("several", models.length > 1);
  chooseModel();
}

function chooseModel() {
  model = models[select.selectedIndex];
  const offered = presets(model.onnx_vlm);
  element("state").textContent = "Ask about an image";
  element("abilities").replaceChildren(...offered.flatMap(({ does, example }) => [term("dt", does), term("dd", example)]));
  element("turns").textContent = turns(model.onnx_vlm);
  element("presets").replaceChildren(...offered.map(presetButton));
  begin();
}

function term(name, textContent) {
  return Object.assign(document.createElement(name), { textContent });
}

function askForKey() {
  tell(api.hasKey() ? "The server does not take this key." : "");
  keyForm.hidden = false;
  element("secret").focus();
}

keyForm.addEventListener("submit", (event) => {
  event.preventDefault();
  api.useKey(element("secret").value.trim());
  element("secret").value = "";
  loadModels();
});
select.addEventListener("change", chooseModel);

// ---- the image

async function take(file) {
  if (!file) return tell("That is not an image.");
  try {
    image = await read(file);
  } catch (error) {
    return tell(error.message);
  }
  stage.showImage(image);
  begin();
  tell("");
  if (matchMedia("(pointer: fine)").matches) prompt.focus();
}

/** A new conversation. */
function begin() {
  running?.abort();
  conversation = [];
  clear();
  stage.clear();
}

for (const opener of document.querySelectorAll("[data-opens]")) {
  opener.addEventListener("click", () => element(opener.dataset.opens).click());
}
for (const id of ["file", "camera"]) {
  element(id).addEventListener("change", ({ target }) => {
    if (target.files.length) take(firstImage(target.files));
    target.value = "";
  });
}
document.addEventListener("dragover", (event) => {
  if (!event.dataTransfer?.types.includes("Files")) return; // a text, for the field below it
  event.preventDefault();
  mat.classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) mat.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  mat.classList.remove("over");
  take(firstImage(event.dataTransfer.files));
});
document.addEventListener("paste", (event) => {
  const file = firstImage(event.clipboardData.files);
  if (!file) return; // a text, for the field that has the focus
  event.preventDefault();
  take(file);
});

// ---- questions

function presetButton({ label, before, after, hasGap }) {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: label });
  button.addEventListener("click", () => {
    prompt.value = before + after;
    fit();
    prompt.focus();
    prompt.setSelectionRange(before.length, before.length);
    if (!hasGap && image && !running) submit();
  });
  return button;
}

async function submit() {
  const question = prompt.value.trim();
  if (!question || running) return;
  if (!model) return tell("There is no model to ask yet.");
  if (!image && model.onnx_vlm.takes.images[0] > 0) return tell("Drop, paste or choose an image first.");
  tell("");
  prompt.value = "";
  fit();
  const exchange = new Exchange(question, model.onnx_vlm.boxes, image ? image.width / image.sent.width : 1);
  const asked = messages(question);
  conversation.push(exchange);
  await answer(exchange, asked);
}

/** What is sent: the turns so far, or the question alone; the image comes with the first of them. */
function messages(question) {
  const earlier = model.onnx_vlm.takes.conversation ? conversation.filter(({ how, text }) => how !== "failed" && text) : [];
  const sent = earlier.flatMap((exchange) => [
    { role: "user", content: [{ type: "text", text: exchange.question }] },
    { role: "assistant", content: exchange.text },
  ]);
  sent.push({ role: "user", content: [{ type: "text", text: question }] });
  if (image) sent[0].content.unshift({ type: "image_url", image_url: { url: image.sent.data } });
  return sent;
}

async function answer(exchange, asked) {
  const controller = (running = new AbortController());
  setBusy(true);
  const clock = { start: performance.now() };
  try {
    for await (const event of api.ask(model.id, asked, controller.signal)) {
      if (event.text || event.grounding) clock.first ??= performance.now();
      exchange.add(event.text, event.grounding);
      clock.tokens = event.usage?.completion_tokens ?? clock.tokens;
      if (event.finish === "length") clock.note = "cut at the most tokens";
    }
    exchange.end(speed(exchange, clock));
  } catch (error) {
    fail(exchange, error);
  } finally {
    if (running === controller) {
      running = null;
      setBusy(false);
    }
  }
}

function fail(exchange, error) {
  if (error.name === "AbortError") exchange.end("stopped", "stopped");
  else exchange.end("", "failed", error.message || "Something went wrong.");
  if (error.status === 401) askForKey();
}

function speed(exchange, { start, first, tokens, note }) {
  const rate = exchange.grounding.timings?.tokens_per_second;
  const parts = [];
  if (first) parts.push(`${((first - start) / 1000).toFixed(2)} s to first token`);
  if (rate) parts.push(`${rate < 10 ? rate.toFixed(1) : Math.round(rate)} tokens/s`);
  if (tokens) parts.push(`${tokens} token${tokens === 1 ? "" : "s"}`);
  return [...parts, ...(note ? [note] : [])].join("  ·  ");
}

function setBusy(isBusy) {
  send.classList.toggle("busy", isBusy);
  send.setAttribute("aria-label", isBusy ? "Stop" : "Ask");
}

function tell(text) {
  notice.textContent = text;
  notice.hidden = !text;
}

/** As high as the text in the field. */
function fit() {
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

prompt.addEventListener("input", fit);
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
element("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) running.abort();
  else submit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});

loadModels();
