// Links between text and image: what tells of the same boxes lights up together, by pointer and by keyboard.

const members = new Map(); // element -> set of the numbers of its boxes
let listener = () => {};

/** Call back with the numbers of the boxes that are lit, an empty set when none is. */
export function onLight(callback) {
  listener = callback;
}

/** Let an element light up with the boxes of these numbers. */
export function link(element, numbers) {
  members.set(element, new Set(numbers));
  element.addEventListener("pointerenter", () => light(members.get(element)));
  element.addEventListener("pointerleave", () => light(new Set()));
  element.addEventListener("focus", () => light(members.get(element)));
  element.addEventListener("blur", () => light(new Set()));
}

/** Forget the elements that are no longer in the document. */
export function forgetRemoved() {
  for (const element of members.keys()) if (!element.isConnected) members.delete(element);
}

function light(numbers) {
  for (const [element, linked] of members) element.classList.toggle("lit", [...linked].some((number) => numbers.has(number)));
  document.body.classList.toggle("lighting", numbers.size > 0);
  listener(numbers);
}
