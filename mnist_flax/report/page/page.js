// Runs the page of a run: reads its data, draws the curves and the digits, and starts the pad.

const SHOWN_AT_FIRST = 60; // misclassified digits

const data = JSON.parse(document.getElementById("data").textContent);
const arrays = Object.fromEntries(Object.entries(data.arrays).map(([name, array]) => [name, decode(array)]));
const names = data.classNames;
const digits = readDigits(data.digits, arrays.images, arrays.probabilities, names.length);
const byId = (id) => document.getElementById(id);

function showCards(list, chosen) {
  list.replaceChildren(...chosen.map((digit) => createCard(digit, names)));
}

function showMisclassified() {
  const wrong = digits.filter((digit) => !digit.isRight).sort((a, b) => b.confidence - a.confidence);
  showCards(byId("wrong"), wrong.slice(0, SHOWN_AT_FIRST));
  const more = byId("more");
  more.hidden = wrong.length <= SHOWN_AT_FIRST;
  more.addEventListener("click", () => {
    showCards(byId("wrong"), wrong);
    more.hidden = true;
  });
}

function openCells() {
  const cells = [...document.querySelectorAll("#matrix button")];
  function open(cell) {
    const [label, prediction, count] = ["label", "prediction", "count"].map((key) => Number(cell.dataset[key]));
    const isRight = label === prediction;
    const behind = digits
      .filter((digit) => digit.label === label && digit.prediction === prediction)
      .sort((a, b) => (isRight ? 1 : -1) * (a.confidence - b.confidence));
    for (const other of cells) other.setAttribute("aria-pressed", other === cell);
    byId("cell-title").textContent = isRight ? `${names[label]}, recognised` : `${names[label]} taken for ${names[prediction]}`;
    const total = count.toLocaleString("en");
    const shown = behind.length < count ? `${behind.length} of ${total}` : `All ${total}`;
    byId("cell-note").textContent = `${shown}, ${isRight ? "the least sure" : "the surest"} first`;
    showCards(byId("cell-digits"), behind);
  }
  for (const cell of cells) {
    cell.addEventListener("click", () => {
      open(cell);
      byId("behind").scrollIntoView({ block: "nearest" });
    });
  }
  // Open the most frequent error first, if there is one.
  const isError = (cell) => cell.dataset.label !== cell.dataset.prediction;
  const first = cells.filter(isError).sort((a, b) => b.dataset.count - a.dataset.count)[0] ?? cells[0];
  if (first) open(first);
}

function showSheet() {
  const size = data.side ** 2;
  for (let start = 0; start < (arrays.sheet?.length ?? 0); start += size) {
    const canvas = createElement("canvas", { className: "digit" });
    drawPixels(canvas, arrays.sheet.subarray(start, start + size));
    byId("sheet").append(canvas);
  }
}

function startPad() {
  const predict = createNetwork(data.layers, arrays.weights, data.side);
  const rows = [...document.querySelectorAll("#bars li")];
  let image = null;
  let isWaiting = false;
  function show() {
    isWaiting = false;
    drawPixels(byId("seen"), image ?? new Uint8Array(data.side ** 2));
    const probabilities = image ? predict(image) : names.map(() => 0);
    const highest = probabilities.indexOf(Math.max(...probabilities));
    rows.forEach((row, i) => {
      row.style.setProperty("--share", probabilities[i]);
      row.classList.toggle("first", image !== null && i === highest);
      row.querySelector("b").textContent = image ? formatShare(probabilities[i]) : "";
    });
    const answer = image ? `${names[highest]}` : "";
    if (byId("answer").textContent !== answer) byId("answer").textContent = answer;
  }
  const pad = createPad(byId("pad"), byId("pen"), (ink) => {
    image = toMnistForm(ink, PAD_SIDE, PAD_SIDE);
    byId("hint").hidden = image !== null;
    if (!isWaiting) requestAnimationFrame(show);
    isWaiting = true;
  });
  byId("undo").addEventListener("click", pad.undo);
  byId("clear").addEventListener("click", pad.clear);
  byId("save").addEventListener("click", () => {
    createElement("a", { download: "drawing.png", href: byId("pad").toDataURL() }).click();
  });
  let next = 0;
  byId("example").addEventListener("click", () => {
    pad.put(digits[data.examples[next++ % data.examples.length]].pixels);
  });
  checkNetwork(predict);
}

// Compares the page's network with the run's results, one digit at a time so that nothing stalls.
function checkNetwork(predict, done = 0, largest = 0) {
  const note = byId("check");
  if (!note) return;
  if (done === data.examples.length) {
    note.textContent = `Checked just now on ${done} test images: the probabilities differ from the run's by at most ${largest.toExponential(0)}.`;
    return;
  }
  const { pixels, probabilities } = digits[data.examples[done]];
  const differences = predict(pixels).map((share, i) => Math.abs(share - probabilities[i]));
  setTimeout(checkNetwork, 0, predict, done + 1, Math.max(largest, ...differences));
}

document.querySelectorAll(".chart").forEach((container, i) => createChart(container, data.charts[i]));
showMisclassified();
openCells();
showSheet();
if (data.layers) startPad();
