// Heat maps over a picture: how much of a model's attention each part of it got.
"use strict";

const HEAT_SIDE = 288; // cells along the longer side in which heat is summed up, before it is drawn smoothly
const HEAT_COLOURS = [[13, 8, 135], [126, 3, 168], [204, 71, 120], [248, 149, 64], [240, 249, 33]];
const HEAT_LEAST = 0.04;

// Rows of shares out of the 16-bit numbers in which they travel.
function unpackLooks({ rows, tokens, scales, data }) {
  const letters = atob(data);
  return Array.from({ length: rows }, (_, row) => Float32Array.from({ length: tokens }, (__, token) => {
    const at = 2 * (row * tokens + token);
    return ((letters.charCodeAt(at) + 256 * letters.charCodeAt(at + 1)) * scales[row]) / 65535;
  }));
}

// Shares of single tokens as heat per area: {width, height, values}, the values from 0 to 1.
function heatOf(picture, shares) {
  const scale = HEAT_SIDE / Math.max(picture.width, picture.height);
  const width = Math.max(1, Math.round(picture.width * scale));
  const height = Math.max(1, Math.round(picture.height * scale));
  const values = new Float32Array(width * height);
  for (const grid of picture.grids) addGrid(values, width, height, scale, grid, shares);
  for (const { token, box } of picture.spots) if (box) addSpot(values, width, height, scale, box, shares[token]);
  const most = values.reduce((one, other) => Math.max(one, other), 0);
  if (most > 0) for (let at = 0; at < values.length; at += 1) values[at] /= most;
  return { width, height, values };
}

function bounds(box, scale, width, height) {
  return {
    left: Math.max(0, Math.floor(box.left * scale)), top: Math.max(0, Math.floor(box.top * scale)),
    right: Math.min(width, Math.ceil(box.right * scale)), bottom: Math.min(height, Math.ceil(box.bottom * scale)),
  };
}

// Between the middles of neighbouring cells the share goes over from one to the other.
function addGrid(values, width, height, scale, { start, rows, columns, stride, box }, shares) {
  const wide = (box.right - box.left) / columns;
  const tall = (box.bottom - box.top) / rows;
  const inside = bounds(box, scale, width, height);
  const share = (row, column) => shares[start + Math.min(rows - 1, Math.max(0, row)) * stride + Math.min(columns - 1, Math.max(0, column))];
  for (let y = inside.top; y < inside.bottom; y += 1) {
    const v = ((y + 0.5) / scale - box.top) / tall - 0.5;
    const row = Math.floor(v);
    for (let x = inside.left; x < inside.right; x += 1) {
      const u = ((x + 0.5) / scale - box.left) / wide - 0.5;
      const column = Math.floor(u);
      const [down, right] = [v - row, u - column];
      const above = share(row, column) * (1 - right) + share(row, column + 1) * right;
      const below = share(row + 1, column) * (1 - right) + share(row + 1, column + 1) * right;
      values[y * width + x] += (above * (1 - down) + below * down) / (wide * tall);
    }
  }
}

// One thing somewhere: most in the middle of its box, nothing at its edge.
function addSpot(values, width, height, scale, box, share) {
  const [wide, tall] = [box.right - box.left, box.bottom - box.top];
  const inside = bounds(box, scale, width, height);
  for (let y = inside.top; y < inside.bottom; y += 1) {
    const v = (2 * ((y + 0.5) / scale - box.top)) / tall - 1;
    for (let x = inside.left; x < inside.right; x += 1) {
      const u = (2 * ((x + 0.5) / scale - box.left)) / wide - 1;
      const near = Math.max(0, 1 - u * u) * Math.max(0, 1 - v * v);
      values[y * width + x] += (share * near * 2.25) / (wide * tall);
    }
  }
}

// Heat as a picture of its own, clear where there is none.
function heatImage({ width, height, values }) {
  const canvas = el("canvas", { width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  values.forEach((value, at) => {
    const place = Math.min(value, 0.9999) * (HEAT_COLOURS.length - 1);
    const [from, to] = [HEAT_COLOURS[Math.floor(place)], HEAT_COLOURS[Math.floor(place) + 1]];
    const part = place - Math.floor(place);
    for (let channel = 0; channel < 3; channel += 1) image.data[4 * at + channel] = from[channel] + (to[channel] - from[channel]) * part;
    image.data[4 * at + 3] = value < HEAT_LEAST ? 255 * 0.35 * (value / HEAT_LEAST) : 255 * (0.35 + 0.43 * value);
  });
  context.putImageData(image, 0, 0);
  return canvas;
}

// The picture with the heat over it, dimmed a little so that colours stand out.
function drawHeat(canvas, image, picture, shares) {
  const context = canvas.getContext("2d");
  context.globalAlpha = 1;
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  context.fillStyle = "rgb(10 10 16 / 28%)";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(heatImage(heatOf(picture, shares)), 0, 0, canvas.width, canvas.height);
}

// The tiles over the picture and the padding around it. What no tile shows is covered.
function drawTiles(canvas, image, picture, tiles, chosen) {
  const context = canvas.getContext("2d");
  const all = tiles.map(({ box }) => box);
  const left = Math.min(0, ...all.map((box) => box.left));
  const top = Math.min(0, ...all.map((box) => box.top));
  const right = Math.max(picture.width, ...all.map((box) => box.right));
  const bottom = Math.max(picture.height, ...all.map((box) => box.bottom));
  const scale = canvas.width / (right - left);
  canvas.height = Math.max(1, Math.round((bottom - top) * scale));
  const place = (box) => [(box.left - left) * scale, (box.top - top) * scale, (box.right - box.left) * scale, (box.bottom - box.top) * scale];
  context.fillStyle = "#26272b";
  context.fillRect(0, 0, canvas.width, canvas.height);
  const whole = place({ left: 0, top: 0, right: picture.width, bottom: picture.height });
  context.drawImage(image, ...whole);
  // Padding is hatched, so that it is not taken for a dark picture.
  context.save();
  context.beginPath();
  context.rect(0, 0, canvas.width, canvas.height);
  context.rect(...whole);
  context.clip("evenodd");
  context.strokeStyle = "#4a4c54";
  context.lineWidth = 1;
  for (let at = -canvas.height; at < canvas.width; at += 9) {
    context.beginPath();
    context.moveTo(at, canvas.height);
    context.lineTo(at + canvas.height, 0);
    context.stroke();
  }
  context.restore();
  // What lies in no tile is not seen at all.
  context.save();
  context.beginPath();
  context.rect(0, 0, canvas.width, canvas.height);
  for (const tile of tiles) context.rect(...place(tile.box));
  context.clip("evenodd");
  context.fillStyle = "rgb(12 12 16 / 72%)";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.restore();
  const line = Math.max(1.5, canvas.width / 360);
  tiles.forEach((tile) => {
    const [x, y, width, height] = place(tile.box);
    for (const [colour, thickness] of [["rgb(0 0 0 / 65%)", 2.4 * line], [tile === chosen ? "#f8c14a" : "#ffffff", tile === chosen ? 2 * line : line]]) {
      context.strokeStyle = colour;
      context.lineWidth = thickness;
      context.strokeRect(x + line, y + line, width - 2 * line, height - 2 * line);
    }
  });
}

// What the vision tower gets of a tile: stretched to its size, padding in grey.
function drawView(canvas, image, picture, tile) {
  const context = canvas.getContext("2d");
  const across = canvas.width / (tile.box.right - tile.box.left);
  const down = canvas.height / (tile.box.bottom - tile.box.top);
  context.fillStyle = "#6b6d75";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, -tile.box.left * across, -tile.box.top * down, picture.width * across, picture.height * down);
}
