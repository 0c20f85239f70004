"use strict";
// Draws the report's pictures with plotly when they scroll into view, and works its switches.
// All names are hostile text: `t` escapes what plotly would read as markup, the rest is textContent.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const plots = [...document.querySelectorAll(".plot")];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const phone = matchMedia("(max-width: 40rem)");
  const state = { heights: "share", off: new Set(), matrix: new Map() };
  const inView = new Set();
  // In light and in dark: black, or white, has a contrast of 4.5 at least on each of these colours.
  const SCALES = {
    missing: [
      [[0, "#eaf1f8"], [0.5, "#f6c667"], [1, "#f08a24"]],
      [[0, "#1b2a3d"], [0.5, "#6b4a1e"], [1, "#b35900"]],
    ],
    correlation: [
      [[0, "#f08a24"], [0.5, "#ffffff"], [1, "#4ba3e3"]],
      [[0, "#a85200"], [0.5, "#1e2329"], [1, "#1f6fb5"]],
    ],
  };
  const t = (text) =>
    String(text).replace(/[&<>$]/g, (mark) => `&#${mark.charCodeAt(0)};`);  // $ begins formulas
  const colour = (name) =>
    getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const short = (value) => Number(Number(value).toPrecision(4)).toLocaleString("en");
  const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;

  function layout(figure, more) {
    const axis = {
      gridcolor: colour("--line"), zerolinecolor: colour("--line"), automargin: true,
      fixedrange: !matchMedia("(pointer: fine)").matches,
    };
    const both = { ...more };
    both.xaxis = { ...axis, ...(more.xaxis ?? {}) };
    both.yaxis = { ...axis, ...(more.yaxis ?? {}) };
    return {
      height: figure.height, margin: { l: 8, r: 8, t: 12, b: 8 }, hovermode: "closest",
      paper_bgcolor: colour("--page"), plot_bgcolor: colour("--page"), dragmode: "zoom",
      font: { color: colour("--text"), family: "system-ui, sans-serif", size: 13 },
      showlegend: false, bargap: 0.18, bargroupgap: 0.06,
      hoverlabel: {
        bgcolor: colour("--raised"), bordercolor: colour("--line"),
        font: { color: colour("--text") }, namelength: -1,
      },
      ...both,
    };
  }

  const inkOf = (series) => (series.all ? colour("--all") : series.colour);
  const seen = (figure) =>
    figure.series.filter((series) => figure.groups || !state.off.has(series.name));
  const axisTitle = (figure) =>
    state.heights === "count" ? "values" : `share of each ${figure.groups ? "group" : "site"}`;

  function histogram(figure) {
    const shown = seen(figure);
    const unit = Math.min(...figure.series.flatMap(({ edges }) =>
      edges.slice(1).map((edge, bin) => edge - edges[bin]).filter((width) => width > 0)));
    const place = (edge) => (figure.datetime ? new Date(1000 * edge).toISOString() : edge);
    const label = (edge) =>
      figure.datetime ? new Date(1000 * edge).toISOString().slice(0, 16).replace("T", " ") : short(edge);
    const traces = shown.map((series) => {
      const total = series.total;
      const x = [], y = [], text = [];
      const point = (edge, height, said = "") => {
        x.push(place(edge));
        y.push(height);
        text.push(said);
      };
      let isDown = true;  // a line begins and ends on the ground, also beside a withheld bin
      series.counts.forEach((count, bin) => {
        const [low, high] = [series.edges[bin], series.edges[bin + 1]];
        const factor = unit / (high - low || unit);  // not 1 where sites' bins differ in width
        if (count === null) {
          if (!isDown) point(low, 0);
          point(low, null);
          isDown = true;
          return;
        }
        const scaled = count * (Math.abs(factor - 1) < 1e-4 ? 1 : factor);
        const height = state.heights === "count" ? scaled : scaled / (total || 1);
        const words = `${short(Math.round(count))} values, ${percent(Math.max(count, 0) / (total || 1))}`;
        const said = `${t(series.name)}<br>${label(low)} to ${label(high)}: ${words}`;
        if (isDown) point(low, 0);
        isDown = false;
        point(low, height, said);
        point(high, height, said);
      });
      if (!isDown) point(series.edges.at(-1), 0);
      return {
        type: "scatter", mode: "lines", name: t(series.name), x, y, text,
        hovertemplate: "%{text}<extra></extra>",
        line: { color: inkOf(series), dash: series.dash, width: series.all ? 1.5 : 2 },
        ...(series.all ? { fill: "tozeroy", fillcolor: colour("--all-fill") } : {}),
      };
    });
    return [traces, layout(figure, {
      showlegend: Boolean(figure.groups), legend: { orientation: "h" },
      xaxis: { type: figure.datetime ? "date" : "linear" },
      yaxis: {
        title: { text: axisTitle(figure) }, rangemode: "tozero",
        tickformat: state.heights === "count" ? ",d" : ".0%",
      },
    })];
  }

  function bars(figure) {
    // Categories by number, with their names as tick texts: plotly sorts or joins none of them.
    const places = figure.names.map((_, place) => place);
    const traces = seen(figure).map((series) => {
      const total = series.total;
      return {
        type: "bar", orientation: "h", name: t(series.name), y: places,
        x: series.counts.map((count) =>
          count === null || state.heights === "count" ? count : Math.max(count, 0) / (total || 1)),
        text: series.counts.map((count, place) =>
          `${t(series.name)}, ${t(figure.names[place])}: ` +
          (count === null ? "withheld"
            : `${short(Math.round(count))} rows, ${percent(Math.max(count, 0) / (total || 1))}`)),
        hovertemplate: "%{text}<extra></extra>", textposition: "none",
        marker: { color: inkOf(series) },
      };
    });
    return [traces, layout(figure, {
      barmode: "group", showlegend: Boolean(figure.groups), legend: { orientation: "h" },
      xaxis: {
        title: { text: axisTitle(figure) }, side: "bottom", rangemode: "tozero",
        tickformat: state.heights === "count" ? ",d" : ".0%",
      },
      yaxis: {
        tickmode: "array", tickvals: places, ticktext: figure.names.map(t),
        range: [figure.names.length - 0.5, -0.5], showgrid: false,
      },
    })];
  }

  function cells(figure, rows, columns, values, words, more) {
    const [x, y] = [columns.map((_, place) => place), rows.map((_, place) => place)];
    const blank = { x: [], y: [], text: [] };
    const width = (document.documentElement.clientWidth - 150) / columns.length;
    values.forEach((row, r) => row.forEach((value, c) => {
      if (value === null && (figure.texts?.[r][c] ?? "")) {
        blank.x.push(c);
        blank.y.push(r);
        blank.text.push(t(width < 60 ? figure.texts[r][c][0] : figure.texts[r][c]));
      }
    }));
    const shown = values.map((row, r) => row.map((value, c) =>
      value === null ? "" : words(value, rows[r], columns[c], figure.texts?.[r][c])));
    const numbers = values.map((row, r) => row.map((value, c) =>
      value === null ? "" : more.short(value) + (figure.texts?.[r][c] ? "?" : "")));
    const heat = {
      type: "heatmap", x, y, z: values, hoverongaps: false, customdata: shown, text: numbers,
      hovertemplate: "%{customdata}<extra></extra>", xgap: 1, ygap: 1,
      ...(width >= 22 ? { texttemplate: "%{text}" } : {}),
      textfont: { color: dark.matches ? "#fff" : "#000" }, ...more.trace,
    };
    const gaps = {
      type: "scatter", mode: "text", ...blank, hoverinfo: "skip",
      textfont: { color: colour("--quiet"), size: 10 },
    };
    const sparse = (names, most) => {
      const step = Math.ceil(names.length / most);
      const kept = names.map((_, place) => place).filter((place) => place % step === 0);
      return { tickmode: "array", tickvals: kept, ticktext: kept.map((place) => t(names[place])) };
    };
    return [[heat, gaps], layout(figure, {
      margin: { l: 8, r: phone.matches ? 44 : 8, t: 12, b: 8 },
      xaxis: {
        ...sparse(columns, 60), side: "top", tickangle: columns.length > 3 ? -50 : 0,
        showgrid: false, zeroline: false, range: [-0.5, columns.length - 0.5],
      },
      yaxis: {
        ...sparse(rows, 60), showgrid: false, zeroline: false, range: [rows.length - 0.5, -0.5],
      },
    })];
  }

  const missing = (figure) => cells(
    figure, figure.rows, figure.columns, figure.values,
    (value, row, column, known) => `${t(row)}, ${t(column)}: ${known || percent(value)} missing`,
    {
      short: (value) => (value === 0 ? "0" : value > 0 && value < 0.01 ? "<1" : (100 * value).toFixed(0)),
      trace: {
        zmin: 0, zmax: 1, colorscale: SCALES.missing[Number(dark.matches)],
        colorbar: { title: { text: "missing" }, tickformat: ".0%", thickness: 12 },
        ...(phone.matches ? { showscale: false } : {}),
      },
    });

  function correlation(figure, place) {
    const choice = figure.choices[state.matrix.get(place) ?? 0];
    return cells(
      figure, choice.names, choice.names, choice.values,
      (value, row, column) => `${t(row)}, ${t(column)}: ${value.toFixed(2)}`,
      {
        short: (value) => value.toFixed(2).replace(/^(-?)0\./, "$1."),
        trace: {
          zmin: -1, zmax: 1, colorscale: SCALES.correlation[Number(dark.matches)],
          colorbar: { title: { text: "r" }, thickness: 12 },
          ...(phone.matches ? { showscale: false } : {}),
        },
      });
  }

  const draw = { histogram, bars, missing, correlation };

  function show(plot) {
    const figure = figures[plot.dataset.figure];
    const [traces, looks] = draw[figure.type](figure, plot.dataset.figure);
    plot.classList.add("drawn");
    return Plotly.react(plot, traces, looks, { displayModeBar: false, responsive: true });
  }

  const refresh = () => inView.forEach(show);

  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) {
        inView.add(entry.target);
        show(entry.target);
      } else if (inView.delete(entry.target)) {
        Plotly.purge(entry.target);  // so that a page of a thousand pictures stays light
        entry.target.classList.remove("drawn");
      }
    }
  }, { rootMargin: "400px 0px" });

  plots.forEach((plot) => {
    const figure = figures[plot.dataset.figure];
    if (figure.type === "correlation" && figure.choices.length > 1) {
      const label = document.createElement("label");
      const select = document.createElement("select");
      label.className = "choice";
      label.textContent = "Correlations of ";
      figure.choices.forEach((choice, place) => select.add(new Option(choice.name, place)));
      select.addEventListener("change", () => {
        state.matrix.set(plot.dataset.figure, Number(select.value));
        show(plot);
      });
      label.append(select);
      plot.parentElement.before(label);
    }
    observer.observe(plot);
  });

  function showSplit(number) {
    for (const part of document.querySelectorAll(".split")) {
      part.hidden = part.dataset.split !== number;
    }
  }

  const controls = document.getElementById("controls");
  const checked = controls.querySelector("input[name=split]:checked");
  if (checked) showSplit(checked.value);
  controls.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("change", ({ target }) => {
    if (target.name === "split") showSplit(target.value);
    if (target.name === "heights") state.heights = target.value;
    if (target.name === "site") {
      if (target.checked) state.off.delete(target.value);
      else state.off.add(target.value);
    }
    refresh();
  });
  document.getElementById("find")?.addEventListener("input", ({ target }) => {
    const words = target.value.trim().toLowerCase();
    const articles = [...document.querySelectorAll("article")];
    for (const article of articles) {
      article.hidden = !article.dataset.name.toLowerCase().includes(words);
    }
    const left = articles.filter((article) => !article.hidden).length;
    document.getElementById("found").textContent = words ? `${left} of ${articles.length}` : "";
  });
  if (phone.matches) controls.open = false;
  dark.addEventListener("change", refresh);
  addEventListener("beforeprint", () => plots.forEach(show));
})();
