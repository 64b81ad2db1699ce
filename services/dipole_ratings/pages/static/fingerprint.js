// What tells one image from another when it comes again under another name: ids are new with every lease.

const SIDE = 32; // pixels that are looked at, a side

/** A short text of a loaded <img>'s looks, or null where the browser does not let a page read pixels. */
export function fingerprint(image) {
  const canvas = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (!context) return null;
  context.drawImage(image, 0, 0, SIDE, SIDE);
  let hash = 0x811c9dc5; // FNV-1a, twice over for 64 bits
  let second = 0x9e3779b9;
  for (const byte of context.getImageData(0, 0, SIDE, SIDE).data) {
    hash = Math.imul(hash ^ byte, 0x01000193);
    second = Math.imul(second ^ byte ^ (hash >>> 16), 0x85ebca6b);
  }
  return (hash >>> 0).toString(16) + (second >>> 0).toString(16);
}
