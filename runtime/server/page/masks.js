// Masks as tinted shapes with an edge.

const LONGEST = 1024; // pixels of a drawn mask

/** A canvas with a mask, given as COCO's run lengths: {size: [height, width], counts}. */
export function drawn({ size: [height, width], counts }, colour) {
  const scale = Math.min(1, LONGEST / Math.max(height, width));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const inside = unpacked(counts, height, canvas.width, canvas.height, scale);
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  const rgb = [1, 3, 5].map((index) => parseInt(colour.slice(index, index + 2), 16));
  const edge = Math.max(1, Math.round(Math.max(canvas.width, canvas.height) / 340));
  for (let y = 0, at = 0; y < canvas.height; y++) {
    for (let x = 0; x < canvas.width; x++, at++) {
      if (!inside[at]) continue;
      image.data.set(rgb, 4 * at);
      image.data[4 * at + 3] = isEdge(inside, x, y, canvas.width, canvas.height, edge) ? 255 : 105;
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** Whether a pixel is nearer than `edge` to one outside, along rows and columns. */
function isEdge(inside, x, y, width, height, edge) {
  if (x < edge || y < edge || x >= width - edge || y >= height - edge) return true;
  const at = y * width + x;
  return !(inside[at - edge] && inside[at + edge] && inside[at - edge * width] && inside[at + edge * width]);
}

/** Run lengths down the columns as rows of 0 and 1, `scale` times as large. */
function unpacked(counts, height, columns, rows, scale) {
  const inside = new Uint8Array(columns * rows);
  let start = 0;
  counts.forEach((count, index) => {
    const end = start + count;
    while (index % 2 && start < end) {
      const column = Math.floor(start / height);
      const last = Math.min(end, (column + 1) * height);
      const x = Math.min(columns - 1, Math.floor(column * scale));
      const top = Math.floor((start - column * height) * scale);
      const bottom = Math.min(rows, Math.ceil((last - column * height) * scale));
      for (let y = top; y < bottom; y++) inside[y * columns + x] = 1;
      start = last;
    }
    start = end;
  });
  return inside;
}
