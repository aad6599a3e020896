// Questions and answers; each answer keeps its boxes, and shows them on the image when it is chosen.

import { byLabel, regions, withoutTags } from "./grounding.js";
import { forgetRemoved, link } from "./links.js";
import { measures, showRegions } from "./stage.js";

const log = document.getElementById("log");
let shownExchange = null;

/** Remove all questions and answers. */
export function clear() {
  for (const old of log.querySelectorAll(".exchange")) old.remove();
  forgetRemoved();
  shownExchange = null;
}

/** A question and its answer. */
export class Exchange {
  /** `scale`: how much larger the shown image is than the one that was sent. */
  constructor(question, kind, scale) {
    this.question = question;
    this.text = "";
    this.since = ""; // text that came after the caption
    this.grounding = {};
    this.regions = regions({}, scale);
    [this.kind, this.scale] = [kind, scale];
    this.root = node("article", "exchange");
    this.answer = node("div", "answer");
    this.footer = node("p", "speed");
    this.answer.setAttribute("aria-busy", "true");
    this.root.append(node("h2", "question", question), this.answer, this.footer);
    this.root.addEventListener("pointerenter", () => this.show());
    this.root.addEventListener("focusin", () => this.show());
    log.append(this.root);
    this.show();
    this.render();
    log.scrollTop = log.scrollHeight;
  }

  /** Show this answer's boxes on the image. */
  show() {
    if (shownExchange === this) return;
    shownExchange?.root.classList.remove("shown");
    this.root.classList.add("shown");
    shownExchange = this;
    showRegions(this.regions);
  }

  /** Add text, and what can be read of boxes by now. */
  add(text, grounding) {
    this.text += text;
    this.since += text;
    if (grounding) {
      this.since = "";
      this.grounding = grounding;
      this.regions = regions(grounding, this.scale);
      if (shownExchange === this) showRegions(this.regions);
    }
    if (text || grounding) this.render();
  }

  /** The answer is complete, was stopped ("stopped") or has failed ("failed", with the problem as a sentence). */
  end(footer, how = "complete", problem = "") {
    this.how = how;
    this.answer.setAttribute("aria-busy", "false");
    this.footer.textContent = footer;
    this.render(problem);
  }

  render(problem = "") {
    const { boxes, phrases, caption } = this.regions;
    const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80; // not scrolled back by the reader
    const parts = [];
    if (this.kind === "locations" && boxes.length) parts.push(summary(boxes), list(boxes));
    else if (phrases.length) parts.push(this.prose(caption + this.since));
    else {
      const text = this.kind === "locations" ? withoutTags(this.text) : this.text;
      if (text.trim()) parts.push(node("p", "prose", text.trim()));
      else if (this.how === "complete") parts.push(node("p", "prose none", "Nothing: the answer is empty."));
    }
    if (problem) parts.push(node("p", "problem", problem));
    this.answer.replaceChildren(...parts);
    this.answer.classList.toggle("waiting", !this.how && !parts.length);
    forgetRemoved();
    if (isAtEnd) log.scrollTop = log.scrollHeight;
  }

  /** A caption whose phrases are linked to their boxes. */
  prose(caption) {
    const characters = [...caption]; // positions count characters, not UTF-16 units
    const paragraph = node("p", "prose");
    let end = 0;
    for (const phrase of this.regions.phrases) {
      paragraph.append(characters.slice(end, phrase.start).join(""));
      const text = characters.slice(phrase.start, phrase.end).join("");
      paragraph.append(linked(node("button", "phrase", text), phrase.boxes, phrase.colour));
      end = phrase.end;
    }
    paragraph.append(characters.slice(end).join(""));
    return paragraph;
  }
}

/** The labels and how often each is there. */
function summary(boxes) {
  const paragraph = node("p", "prose");
  for (const [label, labelled] of byLabel(boxes)) {
    const phrase = node("button", "phrase", label || "…");
    linked(phrase, labelled.map((box) => box.number), labelled[0].colour);
    if (paragraph.firstChild) paragraph.append(", ");
    paragraph.append(phrase);
    if (labelled.length > 1) paragraph.append(node("span", "times", ` × ${labelled.length}`));
  }
  return paragraph;
}

/** Each box and its edges. */
function list(boxes) {
  const rows = node("ol", "rows");
  const head = node("li", "head");
  head.setAttribute("aria-hidden", "true");
  head.append(...["", "left", "top", "right", "bottom"].map((text) => node("span", "", text)));
  rows.append(head);
  for (const box of boxes) {
    const row = linked(node("button", "row"), [box.number], box.colour);
    row.setAttribute("aria-label", `${box.label}, ${measures(box)}`);
    row.append(node("span", "what", box.label || "…"));
    for (const edge of [box.xmin, box.ymin, box.xmax, box.ymax]) row.append(node("span", "edge", Math.round(edge)));
    rows.appendChild(node("li")).append(row);
  }
  return rows;
}

function linked(button, numbers, colour) {
  button.type = "button";
  button.style.setProperty("--colour", colour);
  link(button, numbers);
  return button;
}

function node(name, className = "", textContent = "") {
  return Object.assign(document.createElement(name), { className, textContent });
}
