// An image file, made ready to be shown and sent.

const LONGEST = 2048; // pixels of the longer edge that is sent
const LARGEST = 6e6; // bytes that are sent as they are
const SENDABLE = ["image/jpeg", "image/png", "image/webp"];

/**
 * Read an image file. It is sent as it is if it is small and of a common format, and else scaled down or converted.
 *
 * Returns {name, url, width, height, sent: {data, width, height}}; `url` shows it, `sent.data` is a data URI.
 */
export async function read(file) {
  const url = URL.createObjectURL(file);
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
    if (!image.naturalWidth) throw new Error("a drawing without a size");
  } catch {
    URL.revokeObjectURL(url);
    throw new Error(`${file.name || "The file"} is not an image that this browser can show.`);
  }
  const { naturalWidth: width, naturalHeight: height } = image;
  const scale = Math.min(1, LONGEST / Math.max(width, height));
  const asIs = scale === 1 && file.size <= LARGEST && SENDABLE.includes(file.type);
  const sent = asIs ? { data: await dataUri(file), width, height } : await scaled(image, width, height, scale, file.type);
  return { name: file.name || "image", url, width, height, sent };
}

/** The first image among the files of a drop, a paste or a file field. */
export function firstImage(files) {
  return [...(files ?? [])].find((file) => file.type.startsWith("image/")) ?? null;
}

async function scaled(image, naturalWidth, naturalHeight, scale, type) {
  const [width, height] = [naturalWidth, naturalHeight].map((edge) => Math.max(1, Math.round(edge * scale)));
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  const isPhotograph = type === "image/jpeg" || naturalWidth * naturalHeight > 4e6;
  if (isPhotograph) {
    context.fillStyle = "white";
    context.fillRect(0, 0, width, height);
  }
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, width, height);
  const format = isPhotograph ? "image/jpeg" : "image/png";
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, format, 0.92));
  return { data: await dataUri(blob), width, height };
}

function dataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("The image could not be read."));
    reader.readAsDataURL(blob);
  });
}
