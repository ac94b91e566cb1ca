// Runs the page of a study: draws the curves of the chosen metric.

const charts = JSON.parse(document.getElementById("data").textContent);

function showCurves(metric) {
  document.querySelectorAll(".chart").forEach((container, i) => {
    const chart = charts[metric][i];
    container.replaceChildren();
    if (chart.series.length) createChart(container, chart);
    else container.append(createElement("p", { className: "note" }, "No epoch has a finite value."));
  });
}

for (const choice of document.querySelectorAll("[name=metric]")) {
  choice.addEventListener("change", () => showCurves(choice.value));
  if (choice.checked) showCurves(choice.value);
}
