// Weights on demand: a packed tower (mmlab.widgets.clip_pack) comes as scripts of the site, since a
// page opened from the disk may load a script but not fetch a file; in Jupyter it comes in a trait.

const BITS = 15; // a character of a script carries so many; its code is their value + FIRST_CODE
const FIRST_CODE = 0x100;

function loadScript(address) {
  return new Promise((resolve, reject) => {
    const node = h("script", { src: address });
    node.onload = () => resolve(node.remove());
    node.onerror = () => {
      node.remove();
      reject(new Error(address));
    };
    document.head.append(node);
  });
}

// The bytes of all parts, one after another; tells the share that has come.
async function loadParts(folder, names, onProgress) {
  const root = new URL(document.documentElement.dataset.content_root ?? "./", document.baseURI);
  let done = 0;
  const parts = await Promise.all(names.map(async (name) => {
    const address = new URL(`${folder}/${name}.js`, root).href;
    await loadScript(address);
    const text = globalThis.mmlabParts?.[name];
    if (text === undefined) throw new Error(address);
    delete globalThis.mmlabParts[name];
    onProgress(++done / names.length);
    return unpackText(text);
  }));
  return new Blob(parts);
}

function unpackText(text) {
  const bytes = new Uint8Array((text.length * BITS) >> 3);
  let held = 0;
  for (let i = 0, count = 0, n = 0; i < text.length; i++) {
    held |= (text.charCodeAt(i) - FIRST_CODE) << count;
    for (count += BITS; count >= 8; count -= 8, held >>>= 8) bytes[n++] = held & 255;
  }
  return bytes;
}

async function inflated(blob) {
  const stream = blob.stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

// A packed tower → { config, …, weights }. Matrices are whole numbers with a scale for each row.
async function unpackTower(blob) {
  const buffer = await inflated(blob);
  const headerEnd = 4 + new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, headerEnd - 4)));
  const { num_codes: total, offset, tensors, ...rest } = header;
  const low = new Uint8Array(buffer, headerEnd, total);
  const high = new Uint8Array(buffer, headerEnd + total, total);
  const plain = new Float32Array(buffer.slice(headerEnd + 2 * total));
  let [code, place] = [0, 0];
  const weights = {};
  for (const { name, shape, coded } of tensors) {
    const count = shape.reduce((a, b) => a * b, 1);
    const kept = coded ? shape[0] : count;
    let data = plain.subarray(place, (place += kept));
    if (coded) {
      const scales = data;
      const inRow = count / shape[0];
      const from = code;
      data = Float32Array.from({ length: count }, (_, i) =>
        (low[from + i] + 256 * high[from + i] - offset) * scales[Math.floor(i / inRow)]);
      code += count;
    }
    weights[name] = { data, shape };
  }
  return { ...rest, weights };
}

// A packed tower of the site, fetched once however many figures of the page ask for it: each figure
// is a module of its own, and what they share lies on the page.
function sharedTower(folder, { files, num_bytes }, onProgress) {
  const towers = (globalThis.mmlabTowers ??= new Map());
  const key = [folder, ...files].join(" ");
  if (!towers.has(key)) {
    const listeners = new Set();
    const tell = (share) => listeners.forEach((listener) => listener(share));
    const tower = loadParts(folder, files, tell).then((blob) => unpackTower(blob.slice(0, num_bytes)));
    towers.set(key, { tower, listeners });
    tower.catch(() => towers.delete(key)); // so that the reader can try again
  }
  const { tower, listeners } = towers.get(key);
  listeners.add(onProgress);
  return tower.finally(() => listeners.delete(onProgress));
}
