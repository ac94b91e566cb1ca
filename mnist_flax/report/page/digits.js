// Shows digits with their bars: the true class, what the network took it for, and how sure it was.

// Draws a square image of grey pixels, 0..255, on a canvas.
function drawPixels(canvas, pixels) {
  const side = Math.sqrt(pixels.length);
  const image = new ImageData(side, side);
  for (let i = 0; i < pixels.length; i++) {
    image.data.fill(pixels[i], 4 * i, 4 * i + 3);
    image.data[4 * i + 3] = 255;
  }
  [canvas.width, canvas.height] = [side, side];
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// Returns the digits of the page as objects.
function readDigits({ indices, labels }, images, probabilities, numClasses) {
  const size = images.length / labels.length;
  return labels.map((label, i) => {
    const own = probabilities.subarray(i * numClasses, (i + 1) * numClasses);
    const prediction = own.indexOf(Math.max(...own));
    return {
      index: indices[i],
      label,
      pixels: images.subarray(i * size, (i + 1) * size),
      probabilities: own,
      prediction,
      confidence: own[prediction],
      isRight: prediction === label,
    };
  });
}

function formatShare(share) {
  // Never say 100 %: a network is never completely sure.
  return share > 0.9995 ? "> 99.9 %" : `${(100 * share).toFixed(1)} %`;
}

// Returns a list item that shows a digit: its class and prediction, its pixels, and its bars.
function createCard(digit, names) {
  const canvas = createElement("canvas", { className: "digit" });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `test image ${digit.index}: ${names[digit.label]}`);
  drawPixels(canvas, digit.pixels);
  const right = createElement("span", { className: "right" }, names[digit.label]);
  const taken = createElement("span", { className: "wrong" }, names[digit.prediction]);
  const title = createElement("p", { className: "verdict" }, right);
  if (!digit.isRight) title.append(" → ", taken);
  const note = `${formatShare(digit.confidence)} sure`;
  const card = createElement("li", { className: "card", title: `test image ${digit.index}` });
  card.append(title, canvas, createBars(digit, names), createElement("p", { className: "note" }, note));
  return card;
}

function createBars({ label, prediction, probabilities }, names) {
  const width = 10;
  const height = 34;
  const described = Array.from(probabilities, (share, i) => [share, names[i]])
    .filter(([share]) => share >= 0.005)
    .sort(([a], [b]) => b - a)
    .map(([share, name]) => `${name} ${formatShare(share)}`);
  const svg = createSvg("svg", {
    class: "bars",
    viewBox: `0 0 ${width * names.length} ${height + 10}`,
    role: "img",
    "aria-label": described.join(", "),
  });
  probabilities.forEach((share, i) => {
    const kind = i === label ? "right" : i === prediction ? "wrong" : "other";
    const bar = { x: i * width + 1, width: width - 2, height: share * height };
    svg.append(
      createSvg("rect", { class: kind, y: height - bar.height, ...bar }),
      createSvg("text", { class: kind, x: (i + 0.5) * width, y: height + 9 }, String(i)),
    );
  });
  svg.append(createSvg("path", { d: `M0 ${height}H${width * names.length}` }));
  return svg;
}
