// Rulers in pixels along two edges of the image; they show how far the lit boxes reach.

const SVG = "http://www.w3.org/2000/svg";
const APART = 64; // CSS pixels between numbers, at least
const across = document.querySelector(".ruler.across");
const down = document.querySelector(".ruler.down");

/** Draw both rulers for an image of `width` x `height` pixels that is shown `scale` times as large. */
export function draw(width, height, scale, lit = []) {
  ruler(across, width, scale, lit.map((box) => [box.xmin, box.xmax, box.colour]), false);
  ruler(down, height, scale, lit.map((box) => [box.ymin, box.ymax, box.colour]), true);
}

function ruler(svg, length, scale, spans, isDown) {
  svg.replaceChildren();
  for (const [from, to, colour] of spans) {
    const size = Math.max(2, (to - from) * scale);
    const span = isDown
      ? { x: 15, y: from * scale, width: 3, height: size, fill: colour }
      : { x: from * scale, y: 15, width: size, height: 3, fill: colour };
    svg.append(element("rect", { class: "span", ...span }));
  }
  const step = niceStep(APART / scale);
  for (let tick = 0; tick <= length; tick += step / 5) {
    const isNumbered = Math.round(tick / step) * step === tick;
    const at = tick * scale;
    const size = isNumbered ? 6 : 3;
    svg.append(element("path", { d: isDown ? `M${18 - size} ${at}h${size}` : `M${at} ${18 - size}v${size}` }));
    if (isNumbered && (tick === 0 ? !isDown : (length - tick) * scale > 12)) {
      const text = element("text", isDown ? { transform: `translate(9 ${at}) rotate(-90)` } : { x: at, y: 9 });
      text.textContent = tick;
      svg.append(text);
    }
  }
}

/** The least of 5, 10, 20, 50, 100, 200 ... that is `least` or more, so that a fifth is an integer. */
function niceStep(least) {
  const power = 10 ** Math.max(0, Math.floor(Math.log10(least / 5)));
  return [5, 10, 20, 50].map((step) => step * power).find((step) => step >= least);
}

function element(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
