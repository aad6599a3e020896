// What an answer says about regions, ready to be shown: numbered boxes in pixels of the shown image, and colours.

/** Dark enough for white letters; the command's drawings use the same. */
const PALETTE = ["#d6153f", "#0a7d33", "#1f4fd8", "#b35900", "#7a1fa2", "#007a87", "#a3195b", "#4d5d00"];
const EDGES = ["xmin", "ymin", "xmax", "ymax"];
const TAG = /<[^<>]*(>|$)/g;

/**
 * The boxes, masks and phrases of an answer.
 *
 * Boxes are in pixels of the image that was sent; `scale` is how much larger the shown one is. A phrase is
 * {start, end, boxes}, in characters of `caption`; `boxes` are numbers.
 */
export function regions(grounding, scale) {
  const labels = [...new Set([...(grounding.boxes ?? []), ...(grounding.masks ?? [])].map((region) => region.label))];
  const colour = (label) => PALETTE[labels.indexOf(label) % PALETTE.length];
  const boxes = (grounding.boxes ?? []).map((box, number) => ({ ...scaled(box, scale), number, colour: colour(box.label) }));
  const masks = (grounding.masks ?? [])
    .filter((mask) => mask.pixels)
    .map((mask) => {
      const number = grounding.boxes.findIndex((box) => EDGES.every((edge) => box[edge] === mask.box[edge]));
      return { label: mask.label, number, pixels: mask.pixels, colour: colour(mask.label) };
    });
  let number = 0;
  const phrases = (grounding.entities ?? []).map((entity) => {
    const numbers = entity.boxes.map(() => number++); // boxes stand in the order of the entities
    return { start: entity.start, end: entity.end, boxes: numbers, colour: colour(entity.label) };
  });
  return { boxes, masks, phrases, caption: grounding.caption ?? null };
}

/** A text as people read it: without the tags that stand for boxes, one that is still coming included. */
export function withoutTags(text) {
  return text.replace(TAG, "");
}

/** The numbers of boxes by label, in the order of the labels. */
export function byLabel(boxes) {
  const groups = new Map();
  for (const box of boxes) groups.set(box.label, [...(groups.get(box.label) ?? []), box]);
  return [...groups];
}

function scaled(box, scale) {
  const edges = Object.fromEntries(EDGES.map((edge) => [edge, box[edge] * scale]));
  return { label: box.label, ...edges };
}
