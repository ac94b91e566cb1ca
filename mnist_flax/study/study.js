// Runs the page of a study: draws the curves of the chosen metric, a chart per recipe.

const { metrics, recipes } = JSON.parse(document.getElementById("data").textContent);
const seeds = [...new Set(recipes.flatMap((recipe) => recipe.replicas.map(({ seed }) => seed)))];
seeds.sort((a, b) => a - b);

const NUM_COLORS = 10; // color-0 to color-9 in style.css; a study has 10 seeds by default
const MAX_POINTS = 200; // per curve

// Returns the curve of a replica over the epochs that have a finite value.
function createCurve({ seed, records }, metric) {
  const known = records.filter((record) => Number.isFinite(record[metric]));
  const step = Math.ceil(known.length / MAX_POINTS);
  const kept = known.filter((_, i) => i % step === 0 || i === known.length - 1);
  return {
    name: `seed ${seed}`,
    color: `color-${seeds.indexOf(seed) % NUM_COLORS}`,
    isFaint: false,
    x: kept.map((record) => record.epoch),
    y: kept.map((record) => metrics[metric].factor * record[metric]),
  };
}

function showCurves(metric) {
  document.querySelectorAll(".chart").forEach((container, i) => {
    const { name, replicas } = recipes[i];
    const curves = replicas.map((replica) => createCurve(replica, metric));
    const series = curves.filter((curve) => curve.x.length);
    const title = `${name}, ${metric.replace("/", " ")}`;
    container.replaceChildren();
    if (series.length) createChart(container, { ...metrics[metric], title, x: "epoch", series });
    else container.append(createElement("p", { className: "note" }, "No epoch has a finite value."));
  });
}

for (const choice of document.querySelectorAll("[name=metric]")) {
  choice.addEventListener("change", () => showCurves(choice.value));
  if (choice.checked) showCurves(choice.value);
}
