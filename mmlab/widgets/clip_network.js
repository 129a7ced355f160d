// CLIP's forward pass in plain numbers: mmlab.models.clip, one function a layer. A sequence of tokens
// is one Float32Array, row after row; a layer is { weight, bias }, each { data, shape }.

const QUICK_GELU = (x) => x / (1 + Math.exp(-1.702 * x));
const ACTIVATION = {
  quick_gelu: QUICK_GELU,
  gelu: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
  gelu_tanh: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  relu: (x) => Math.max(0, x),
};

// Abramowitz and Stegun 1964, formula 7.1.26: wrong by at most 1.5e-7.
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
  return Math.sign(x) * (1 - series * Math.exp(-x * x));
}

// The tensors under a name: layerOf(weights, "text_encoder.norm") is { weight, bias }.
function layerOf(weights, name) {
  return { weight: weights[name + ".weight"], bias: weights[name + ".bias"] };
}

const added = (a, b) => a.map((v, i) => v + b[i]);

// y = W x + b for each row.
function linear(x, { weight, bias }) {
  const [outputs, inputs] = weight.shape;
  const y = new Float32Array((x.length / inputs) * outputs);
  for (let k = 0; k < y.length; k++) {
    const o = k % outputs;
    const row = ((k - o) / outputs) * inputs;
    let sum = bias ? bias.data[o] : 0;
    for (let i = 0; i < inputs; i++) sum += weight.data[o * inputs + i] * x[row + i];
    y[k] = sum;
  }
  return y;
}

function layerNorm(x, { weight, bias }, eps) {
  const dim = weight.shape[0];
  const y = new Float32Array(x.length);
  for (let start = 0; start < x.length; start += dim) {
    const row = x.subarray(start, start + dim);
    const mean = row.reduce((a, b) => a + b, 0) / dim;
    const variance = row.reduce((a, b) => a + (b - mean) ** 2, 0) / dim;
    row.forEach((v, i) => (y[start + i] = ((v - mean) / Math.sqrt(variance + eps)) * weight.data[i] + bias.data[i]));
  }
  return y;
}

function softmax(scores) {
  const top = Math.max(...scores);
  const powers = scores.map((score) => Math.exp(score - top));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

// Causal: a token looks at itself and at those before it. Of all tokens the first ask, or all.
function attention(x, weights, name, { dim, heads, causal, asking = x.length / dim }) {
  const part = (rows, projection) => linear(rows, layerOf(weights, `${name}.${projection}`));
  const q = part(x.subarray(0, asking * dim), "q_proj");
  const [k, v] = [part(x, "k_proj"), part(x, "v_proj")];
  const tokens = x.length / dim;
  const size = dim / heads;
  const mixed = new Float32Array(asking * dim);
  for (let head = 0; head < heads; head++) {
    for (let i = 0; i < asking; i++) {
      const at = (token) => token * dim + head * size;
      const seen = causal ? i + 1 : tokens;
      const scores = Array.from({ length: seen }, (_, j) => {
        let sum = 0;
        for (let d = 0; d < size; d++) sum += q[at(i) + d] * k[at(j) + d];
        return sum / Math.sqrt(size);
      });
      softmax(scores).forEach((share, j) => {
        for (let d = 0; d < size; d++) mixed[at(i) + d] += share * v[at(j) + d];
      });
    }
  }
  return linear(mixed, layerOf(weights, name + ".out_proj"));
}

function mlp(x, weights, name, activation) {
  const hidden = linear(x, layerOf(weights, name + ".fc1")).map(ACTIVATION[activation]);
  return linear(hidden, layerOf(weights, name + ".fc2"));
}

function block(x, weights, name, sizes) {
  const { eps, activation } = sizes;
  const looked = attention(layerNorm(x, layerOf(weights, name + ".norm1"), eps), weights, name + ".attention", sizes);
  const y = added(x, looked);
  return added(y, mlp(layerNorm(y, layerOf(weights, name + ".norm2"), eps), weights, name + ".mlp", activation));
}

function blocks(x, weights, name, depth, sizes) {
  let y = x;
  for (let i = 0; i < depth; i++) y = block(y, weights, `${name}.blocks.${i}`, sizes);
  return y;
}

function normalised(x) {
  const length = Math.hypot(...x);
  return x.map((v) => v / length);
}

// Numbers of tokens → features of length 1 (CLIP.encode_text).
function encodeText({ config, weights }, ids) {
  const { text_dim: dim, text_num_heads: heads, norm_eps: eps, activation } = config;
  const table = weights["text_encoder.token_embedding.weight"].data;
  const positions = weights["text_encoder.position_embedding"].data;
  const x = new Float32Array(ids.length * dim);
  ids.forEach((id, t) => {
    for (let d = 0; d < dim; d++) x[t * dim + d] = table[id * dim + d] + positions[t * dim + d];
  });
  const y = blocks(x, weights, "text_encoder", config.text_depth, { dim, heads, eps, activation, causal: true });
  // The first end token, or where the vocabulary ends with it the highest number.
  const end = config.end_id === null ? ids.indexOf(Math.max(...ids)) : Math.max(0, ids.indexOf(config.end_id));
  const read = layerNorm(y.slice(end * dim, (end + 1) * dim), layerOf(weights, "text_encoder.norm"), eps);
  return normalised(linear(read, layerOf(weights, "text_projection")));
}

// ---- The image encoder

// A picture is { data, channels, size }: one square map after another.
function convolution({ data, channels, size }, { weight, bias }, stride, padding) {
  const [outputs, , kernel] = weight.shape;
  const side = (size + 2 * padding - kernel) / stride + 1 | 0;
  const y = new Float32Array(outputs * side * side);
  for (let o = 0; o < outputs; o++) {
    for (let r = 0; r < side; r++) {
      for (let c = 0; c < side; c++) {
        let sum = bias ? bias.data[o] : 0;
        for (let i = 0; i < channels; i++) {
          for (let a = 0; a < kernel; a++) {
            const row = r * stride + a - padding;
            if (row < 0 || row >= size) continue;
            for (let b = 0; b < kernel; b++) {
              const column = c * stride + b - padding;
              if (column < 0 || column >= size) continue;
              sum += weight.data[((o * channels + i) * kernel + a) * kernel + b] * data[(i * size + row) * size + column];
            }
          }
        }
        y[(o * side + r) * side + c] = sum;
      }
    }
  }
  return { data: y, channels: outputs, size: side };
}

// With the averages kept from training, as in evaluation.
function batchNorm({ data, channels, size }, weights, name, eps) {
  const { weight, bias } = layerOf(weights, name);
  const [mean, variance] = ["running_mean", "running_var"].map((part) => weights[`${name}.${part}`].data);
  const y = data.map((v, i) => {
    const c = Math.floor(i / (size * size));
    return ((v - mean[c]) / Math.sqrt(variance[c] + eps)) * weight.data[c] + bias.data[c];
  });
  return { data: y, channels, size };
}

// A convolution that keeps the size, but for its stride, and its norm.
function convolutionNorm(map, { weights, batch_norm_eps }, convolutionName, normName, stride = 1) {
  const layer = layerOf(weights, convolutionName);
  const padding = layer.weight.shape[2] >> 1;
  return batchNorm(convolution(map, layer, stride, padding), weights, normName, batch_norm_eps);
}

const activated = (map, name) => ({ ...map, data: map.data.map(ACTIVATION[name]) });

// A vision transformer: a normalised picture → the class token.
function transformerFeatures(tower, picture) {
  const { config, weights } = tower;
  const { dim, num_heads: heads, norm_eps: eps, activation } = config;
  const patches = patchMap(picture, tower);
  const count = patches.size ** 2;
  const x = Float32Array.from(weights["image_encoder.position_embedding"].data);
  for (let d = 0; d < dim; d++) {
    x[d] += weights["image_encoder.class_token"].data[d];
    for (let t = 0; t < count; t++) x[(t + 1) * dim + d] += patches.data[d * count + t];
  }
  const entered = layerNorm(x, layerOf(weights, "image_encoder.norm_pre"), eps);
  const y = blocks(entered, weights, "image_encoder", config.depth, { dim, heads, eps, activation, causal: false });
  const read = layerNorm(y.slice(0, dim), layerOf(weights, "image_encoder.norm"), eps);
  return linear(read, layerOf(weights, "image_projection"));
}

function patchMap(picture, tower) {
  const stem = "image_encoder.patch_embedding";
  const projection = layerOf(tower.weights, stem + ".projection");
  if (tower.config.stem === "linear") return convolution(picture, projection, tower.config.patch_size, 0);
  const map = tower.stem_strides.reduce((x, stride, i) =>
    activated(convolutionNorm(x, tower, `${stem}.layers.${i}.0`, `${stem}.layers.${i}.1`, stride), "gelu"), picture);
  return convolution(map, projection, 1, 0);
}

// CLIP's ResNet (mmlab.models.clip_resnet): a normalised picture → what its pooling makes of it.
function resnetFeatures(tower, picture) {
  let map = picture;
  for (const i of [1, 2, 3]) map = resnetStep(map, tower, "image_encoder.stem", i, i === 1 ? 2 : 1);
  map = averagePool(map, 2);
  tower.config.stages.forEach((count, stage) => {
    for (let i = 0; i < count; i++) map = bottleneck(map, tower, `image_encoder.stages.${stage}.${i}`, stage && !i ? 2 : 1);
  });
  return attentionPool(map, tower);
}

const resnetStep = (map, tower, name, i, stride = 1) =>
  activated(convolutionNorm(map, tower, `${name}.conv${i}`, `${name}.norm${i}`, stride), "relu");

function bottleneck(map, tower, name, stride) {
  const inside = averagePool(resnetStep(resnetStep(map, tower, name, 1), tower, name, 2), stride);
  const inner = convolutionNorm(inside, tower, name + ".conv3", name + ".norm3");
  const changes = `${name}.shortcut.weight` in tower.weights;
  const past = changes ? convolutionNorm(averagePool(map, stride), tower, name + ".shortcut", name + ".shortcut_norm") : map;
  return activated({ ...inner, data: added(inner.data, past.data) }, "relu");
}

function averagePool({ data, channels, size }, by) {
  const side = Math.floor(size / by);
  const y = new Float32Array(channels * side * side).map((_, k) => {
    const [column, row, c] = [k % side, Math.floor(k / side) % side, Math.floor(k / (side * side))];
    let sum = 0;
    for (let a = 0; a < by; a++) {
      for (let b = 0; b < by; b++) sum += data[(c * size + row * by + a) * size + column * by + b];
    }
    return sum / (by * by);
  });
  return { data: y, channels, size: side };
}

// The average of all cells asks them and itself.
function attentionPool({ data, channels: dim, size }, { weights, pool_heads: heads }) {
  const count = size ** 2;
  const x = Float32Array.from(weights["image_encoder.pool.position_embedding"].data);
  for (let d = 0; d < dim; d++) {
    for (let t = 0; t < count; t++) {
      const value = data[d * count + t];
      x[d] += value / count;
      x[(t + 1) * dim + d] += value;
    }
  }
  return attention(x, weights, "image_encoder.pool", { dim, heads, causal: false, asking: 1 });
}

// A normalised picture → features of length 1 (CLIP.encode_image).
function encodeImage(tower, picture) {
  const features = tower.config.stages.length ? resnetFeatures : transformerFeatures;
  return normalised(features(tower, picture));
}
