// The image, and over it the boxes and masks of one answer.

import { forgetRemoved, link, onLight } from "./links.js";
import { drawn } from "./masks.js";
import * as rulers from "./rulers.js";

const [mat, empty, plate, sheet, imageElement, masks, boxes, strip, about, readout] = [
  "mat", "empty", "plate", "sheet", "image", "masks", "boxes", "strip", "about", "readout",
].map((id) => document.getElementById(id));
const LARGEST = 4; // how much an image is enlarged at most
const LABEL = 24; // CSS pixels that a label takes above its box

let image = null;
let shownBoxes = [];
let litBoxes = [];
let scale = 1;

new ResizeObserver(layOut).observe(mat);
onLight((numbers) => {
  litBoxes = shownBoxes.filter((box) => numbers.has(box.number));
  readout.textContent = litBoxes.length === 1 ? measures(litBoxes[0]) : "";
  if (image) rulers.draw(image.width, image.height, scale, litBoxes);
});

/** Show an image as `image.js` reads it. */
export function showImage(newImage) {
  if (image) URL.revokeObjectURL(image.url);
  image = newImage;
  imageElement.src = image.url;
  imageElement.alt = `The image ${image.name}`;
  about.replaceChildren(part("name", image.name), part("size", `${image.width} × ${image.height}`));
  if (image.sent.width !== image.width) {
    const size = `${image.sent.width} × ${image.sent.height}`;
    about.append(part("scaled", `scaled down to ${size} to be sent; boxes are in pixels of your image`));
  }
  empty.hidden = true;
  plate.hidden = strip.hidden = false;
  clear();
  layOut();
}

export function clear() {
  showRegions({ boxes: [], masks: [] });
}

/** Show the boxes and masks of an answer, as `grounding.js` returns them. */
export function showRegions({ boxes: newBoxes, masks: newMasks }) {
  const bySize = [...newBoxes].sort((a, b) => area(b) - area(a));
  newBoxes.forEach((box, index) => {
    const button = boxes.children[index] ?? boxes.appendChild(newBox(box.number));
    button.style.setProperty("--colour", box.colour);
    button.style.zIndex = bySize.indexOf(box) + 1; // a small box stays above one around it
    button.setAttribute("aria-label", `${box.label || "box"}, ${measures(box)}`);
    button.firstChild.textContent = box.label;
  });
  while (boxes.children.length > newBoxes.length) boxes.lastChild.remove();
  masks.replaceChildren(...newMasks.map(newMask));
  forgetRemoved();
  shownBoxes = newBoxes;
  litBoxes = [];
  layBoxes();
}

/** The edges of a box in words. */
export function measures(box) {
  const [left, top, right, bottom] = [box.xmin, box.ymin, box.xmax, box.ymax].map(Math.round);
  return `left ${left}, top ${top}, right ${right}, bottom ${bottom}`;
}

function newBox(number) {
  const button = Object.assign(document.createElement("button"), { type: "button", className: "box" });
  button.append(part("label", ""));
  link(button, [number]);
  return button;
}

function newMask(mask) {
  const canvas = drawn(mask.pixels, mask.colour);
  link(canvas, [mask.number]);
  return canvas;
}

/** Give the image the size that the mat has room for. */
function layOut() {
  if (!image) return;
  const style = getComputedStyle(mat);
  const room = [
    mat.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight),
    mat.clientHeight - parseFloat(style.paddingTop) - parseFloat(style.paddingBottom),
  ];
  scale = Math.max(0, Math.min(room[0] / image.width, room[1] / image.height, LARGEST));
  sheet.style.width = `${image.width * scale}px`;
  sheet.style.height = `${image.height * scale}px`;
  rulers.draw(image.width, image.height, scale, litBoxes);
  layBoxes();
}

/** Boxes are laid in percent of the image; where their labels go depends on its size. */
function layBoxes() {
  if (!image) return;
  shownBoxes.forEach((box, index) => {
    const button = boxes.children[index];
    button.style.left = `${(100 * box.xmin) / image.width}%`;
    button.style.top = `${(100 * box.ymin) / image.height}%`;
    button.style.width = `${(100 * (box.xmax - box.xmin)) / image.width}%`;
    button.style.height = `${(100 * (box.ymax - box.ymin)) / image.height}%`;
    button.classList.toggle("inside", box.ymin * scale < LABEL);
    button.classList.toggle("end", box.xmin > 0.6 * image.width);
  });
}

function area(box) {
  return (box.xmax - box.xmin) * (box.ymax - box.ymin);
}

function part(className, textContent) {
  return Object.assign(document.createElement("span"), { className, textContent });
}
