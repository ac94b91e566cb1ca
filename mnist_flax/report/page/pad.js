// A pad to draw on, and the conversion of its ink to MNIST's format.

const PAD_SIDE = 280;
const PEN_RADIUS = 11; // makes strokes two MNIST pixels wide in a digit 200 pixels high
const PEN_STEP = 10; // how far an arrow key moves the pen, in pixels

// Converts ink, 0..255 in a flat array [height, width], to MNIST's format, as `mnist_flax.predict`
// does: crops it to its bounding box, scales the longer side to 20 pixels, and places it in 28x28
// pixels so that its centre of mass is at pixel 14. Returns uint8 [28 * 28]; null without ink.
function toMnistForm(ink, width, height) {
  const box = findBox(ink, width, height);
  if (!box) return null;
  const scale = 20 / Math.max(box.width, box.height);
  const columns = Math.max(1, Math.round(box.width * scale));
  const rows = Math.max(1, Math.round(box.height * scale));
  const narrow = shrinkRows(crop(ink, width, box), box.width, columns);
  const small = transpose(shrinkRows(transpose(narrow, columns), box.height, rows), rows);
  const [top, left] = [centre(transpose(small, columns), rows), centre(small, columns)];
  const image = new Uint8Array(28 * 28);
  small.forEach((value, i) => {
    const [row, column] = [Math.floor(i / columns), i % columns];
    image[(top + row) * 28 + left + column] = Math.floor(value + 0.5);
  });
  return image;
}

function findBox(ink, width, height) {
  let [left, right, top, bottom] = [width, -1, height, -1];
  for (let i = 0; i < width * height; i++) {
    if (ink[i] === 0) continue;
    const [row, column] = [Math.floor(i / width), i % width];
    [left, right] = [Math.min(left, column), Math.max(right, column)];
    [top, bottom] = [Math.min(top, row), Math.max(bottom, row)];
  }
  return right < 0 ? null : { left, top, width: right - left + 1, height: bottom - top + 1 };
}

function crop(ink, width, box) {
  return Float32Array.from({ length: box.width * box.height }, (_, i) => {
    const row = box.top + Math.floor(i / box.width);
    return ink[row * width + box.left + (i % box.width)];
  });
}

// Resamples each row from `from` to `to` pixels, as Pillow's BILINEAR does: an output pixel is the
// mean of the input around its centre, weighted by a triangle two output pixels wide.
function shrinkRows(values, from, to) {
  const scale = from / to;
  const reach = Math.max(scale, 1);
  const result = new Float32Array((values.length / from) * to);
  for (let column = 0; column < to; column++) {
    const middle = (column + 0.5) * scale;
    const first = Math.floor(Math.max(0, middle - reach + 0.5));
    const last = Math.floor(Math.min(from, middle + reach + 0.5));
    const weights = Array.from({ length: last - first }, (_, i) =>
      Math.max(0, 1 - Math.abs(first + i + 0.5 - middle) / reach),
    );
    const total = weights.reduce((a, b) => a + b);
    for (let row = 0; row < values.length / from; row++) {
      const sum = weights.reduce((sum, w, i) => sum + w * values[row * from + first + i], 0);
      result[row * to + column] = sum / total;
    }
  }
  return result;
}

function transpose(values, width) {
  const height = values.length / width;
  return values.map((_, i) => values[(i % height) * width + Math.floor(i / height)]);
}

// Returns where rows of `width` pixels have to start among 28 so that their centre of mass is as
// near as possible to pixel 14, counted from 0, where MNIST's digits have theirs.
function centre(values, width) {
  let [sum, moment] = [0, 0];
  values.forEach((value, i) => {
    sum += value;
    moment += value * (i % width);
  });
  const start = Math.floor(14 - moment / sum + 0.5);
  return Math.min(Math.max(start, 0), 28 - width);
}

// Adds a straight stroke with round ends to the ink; its edges are soft over one pixel.
function addStroke(ink, [x0, y0], [x1, y1]) {
  const [dx, dy] = [x1 - x0, y1 - y0];
  const range = (a, b) => [
    Math.max(0, Math.floor(Math.min(a, b) - PEN_RADIUS - 1)),
    Math.min(PAD_SIDE - 1, Math.ceil(Math.max(a, b) + PEN_RADIUS + 1)),
  ];
  const [[left, right], [top, bottom]] = [range(x0, x1), range(y0, y1)];
  for (let y = top; y <= bottom; y++) {
    for (let x = left; x <= right; x++) {
      const along = ((x + 0.5 - x0) * dx + (y + 0.5 - y0) * dy) / (dx * dx + dy * dy || 1);
      const t = Math.min(Math.max(along, 0), 1);
      const distance = Math.hypot(x + 0.5 - x0 - t * dx, y + 0.5 - y0 - t * dy);
      const cover = Math.min(Math.max(PEN_RADIUS + 0.5 - distance, 0), 1);
      const i = y * PAD_SIDE + x;
      ink[i] = Math.max(ink[i], Math.round(255 * cover));
    }
  }
}

// Turns a canvas into a pad for mouse, finger, pen and keyboard.
//
// The element `pen` marks the position of the keyboard's pen. `onChange` is called after every
// change with the ink, uint8 [PAD_SIDE * PAD_SIDE].
function createPad(canvas, pen, onChange) {
  let ink = new Uint8ClampedArray(PAD_SIDE * PAD_SIDE);
  let last = null; // the end of the current stroke
  const past = []; // the ink before each change
  const keyboard = { at: [PAD_SIDE / 2, PAD_SIDE / 2], isDown: false };

  function show() {
    drawPixels(canvas, ink);
    onChange(ink);
  }
  function remember() {
    past.push(ink.slice());
    if (past.length > 100) past.shift();
  }
  function stroke(to) {
    addStroke(ink, last ?? to, to);
    last = to;
  }
  function place(event) {
    const box = canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    return [(x / box.width) * PAD_SIDE, (y / box.height) * PAD_SIDE];
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    pen.hidden = true;
    keyboard.isDown = false;
    remember();
    last = null;
    stroke(place(event));
    show();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!canvas.hasPointerCapture(event.pointerId)) return;
    const moves = event.getCoalescedEvents?.() ?? [];
    for (const move of moves.length ? moves : [event]) stroke(place(move));
    show();
  });

  function movePen(dx, dy) {
    keyboard.at = [keyboard.at[0] + dx, keyboard.at[1] + dy].map((v) =>
      Math.min(Math.max(v, 0), PAD_SIDE),
    );
    if (keyboard.isDown) {
      stroke(keyboard.at);
      show();
    }
  }
  function togglePen(isDown) {
    keyboard.isDown = isDown;
    if (!isDown) return;
    remember();
    last = null;
    stroke(keyboard.at);
    show();
  }
  const directions = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = event.shiftKey ? PEN_STEP / 5 : PEN_STEP;
    if (event.key in directions) movePen(...directions[event.key].map((d) => d * step));
    else if (event.key === " " && !event.repeat) togglePen(!keyboard.isDown);
    else if (event.key === "Escape") togglePen(false);
    else return;
    event.preventDefault();
    pen.hidden = false;
    pen.classList.toggle("down", keyboard.isDown);
    pen.style.left = `${(keyboard.at[0] / PAD_SIDE) * 100}%`;
    pen.style.top = `${(keyboard.at[1] / PAD_SIDE) * 100}%`;
  });
  canvas.addEventListener("blur", () => {
    togglePen(false);
    pen.hidden = true;
  });

  show();
  return {
    undo() {
      ink = past.pop() ?? ink;
      show();
    },
    clear() {
      if (ink.every((value) => value === 0)) return;
      remember();
      ink = new Uint8ClampedArray(PAD_SIDE * PAD_SIDE);
      show();
    },
    // Enlarges an image of 28x28 pixels, and scales its strongest ink to 255, as `predict` does.
    put(pixels) {
      remember();
      const strongest = Math.max(...pixels);
      const factor = PAD_SIDE / 28;
      ink = ink.map((_, i) => {
        const [row, column] = [Math.floor(i / PAD_SIDE), i % PAD_SIDE];
        const pixel = pixels[Math.floor(row / factor) * 28 + Math.floor(column / factor)];
        return (pixel * 255) / strongest;
      });
      show();
    },
  };
}
