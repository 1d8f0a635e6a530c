// Draws the plots of the page and its clip viewer from the JSON in #data.
"use strict";
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const touch = matchMedia("(pointer: coarse)").matches;
  const CONFIG = { displayModeBar: false, responsive: true };
  const DENSE = 100; // frames above which a line of attention has no markers
  // ColorBrewer's PRGn, safe for the colour-blind; its middle is the page's panel.
  const DIVERGING = ["#762a83", "#af8dc3", null, "#7fbf7b", "#1b7837"];

  // Escaped text for Plotly, which otherwise interprets tags and entities.
  const plain = (text) =>
    text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function themed(layout) {
    const axis = {
      gridcolor: css("--grid"),
      zerolinecolor: css("--quiet"),
      title: { font: { size: 13 } },
      ticklabelstandoff: 3,
      zeroline: false,
    };
    const template = {
      layout: {
        font: { color: css("--text"), family: getComputedStyle(document.body).fontFamily, size: 13 },
        paper_bgcolor: css("--back"),
        plot_bgcolor: css("--back"),
        hoverlabel: {
          bgcolor: css("--panel"),
          bordercolor: css("--quiet"),
          font: { color: css("--text"), size: 13 },
          align: "left",
        },
        legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 12 } },
        margin: { l: 55, r: 12, t: 28, b: 45 },
        dragmode: touch ? false : "zoom", // on a touch screen, dragging scrolls the page
        xaxis: axis,
        yaxis: axis,
      },
    };
    return { ...layout, template };
  }

  function drawPlots() {
    for (const { id, data, layout } of page.plots) {
      Plotly.react(byId(id), data, themed(layout), CONFIG);
    }
  }

  function viewer({ arms, classes, colours, clips, pool, step }) {
    const modalities = Object.keys(colours);
    const search = byId("search");
    const filter = byId("filter");
    const select = byId("clip");
    const time = byId("clip-time");
    const bars = byId("clip-classes");
    let listed = [];
    let current = null;

    const bytes = (index) => Uint8Array.from(atob(pool[index]), (c) => c.charCodeAt(0));
    const floats = (index) => new Float32Array(bytes(index).buffer);
    const shownArms = () =>
      [...byId("arms").querySelectorAll("input:checked")].map((box) => Number(box.value));
    const predicted = (view) => view.probabilities.indexOf(Math.max(...view.probabilities));
    const armName = (arm) => plain(arms[arm]);
    const known = (clip) => clip.label !== null;
    // The true class, or the predicted one if the true one is unknown.
    const classOf = (clip) => classes[known(clip) ? clip.label : predicted(clip.views[0])];

    // How many of the shown arms predict the clip correctly.
    const rightArms = (clip) =>
      shownArms().filter((arm) => predicted(clip.views[arm]) === clip.label).length;
    const FILTERS = {
      "all clips": () => true,
      right: (clip) => rightArms(clip) === shownArms().length,
      wrong: (clip) => rightArms(clip) === 0,
    };
    if (arms.length > 1) {
      FILTERS["arms differ"] = (clip) => ![0, shownArms().length].includes(rightArms(clip));
    }

    function fillControls() {
      filter.replaceChildren(...Object.keys(FILTERS).map((name) => new Option(name, name)));
      filter.closest("label").hidden = !clips.some(known);
      arms.forEach((name, arm) => {
        const box = Object.assign(document.createElement("input"), {
          type: "checkbox",
          value: arm,
          checked: arm < 3,
        });
        const label = document.createElement("label");
        label.append(box, ` ${name}`);
        byId("arms").append(label);
      });
      byId("arms").hidden = arms.length < 2;
    }

    // Lists the clips that match; draws if the clip has changed or `redraw` is set.
    function list(redraw) {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      listed = clips.filter((clip) => {
        const text = `${clip.clip} ${clip.speaker ?? ""} ${classOf(clip)}`.toLowerCase();
        return words.every((word) => text.includes(word)) && FILTERS[filter.value](clip);
      });
      select.replaceChildren(
        ...listed.map((clip, place) => new Option(`${clip.clip} · ${classOf(clip)}`, place)),
      );
      show(listed.includes(current) ? current : listed[0], redraw);
    }

    function move(by) {
      const place = listed.indexOf(current) + by;
      if (listed[place]) {
        show(listed[place]);
      }
    }

    function show(clip, redraw = false) {
      const draws = redraw || clip !== current;
      current = clip;
      const place = listed.indexOf(clip);
      select.value = place;
      byId("previous").disabled = place <= 0;
      byId("next").disabled = place < 0 || place === listed.length - 1;
      if (!clip || !shownArms().length) {
        byId("clip-title").textContent = clip ? "No arm is selected." : "No such clip.";
        byId("clip-about").textContent = "";
        byId("key").replaceChildren();
        drawFaces([]);
        Plotly.purge(time);
        Plotly.purge(bars);
        return;
      }
      const said = shownArms().map((arm) => {
        const answer = predicted(clip.views[arm]);
        const verdict = answer === clip.label ? "correct" : `predicted ${classes[answer]}`;
        return arms.length > 1 ? `${arms[arm]} ${verdict}` : verdict;
      });
      const truth = known(clip) ? [classOf(clip)] : [];
      byId("clip-title").textContent = `${clip.clip}: ${[...truth, ...said].join(", ")}`;
      const speaker = clip.speaker === null ? "Clip" : `Speaker ${clip.speaker}; clip`;
      const number = `${speaker} ${place + 1} of ${listed.length} in the list`;
      byId("clip-about").textContent = `${[number, ...clip.notes].join("; ")}.`;
      if (draws) {
        drawKey(clip);
        drawFaces(clip.faces);
        drawTime(clip);
        drawBars(clip);
      }
    }

    function drawKey(clip) {
      const views = shownArms().map((arm) => clip.views[arm]);
      const line = (colour, dash = "", width = 2) =>
        `<line x1="0" y1="6" x2="22" y2="6" stroke="${colour}" stroke-width="${width}"` +
        ` stroke-dasharray="${dash}"/>`;
      const entries = [];
      for (const modality of modalities) {
        if (views.some((view) => view.streams[modality])) {
          entries.push([`${modality} attention`, line(colours[modality])]);
        }
      }
      for (const modality of modalities) {
        for (const decoy of [false, true]) {
          if (clip.cues.some((cue) => cue.modality === modality && cue.decoy === decoy)) {
            const mark = line(colours[modality], decoy ? "3 3" : "", decoy ? 1 : 2);
            const upright = `<g transform="rotate(90 11 6)">${mark}</g>`;
            entries.push([`${modality} ${decoy ? "decoy" : "cue"}`, upright]);
          }
        }
      }
      if (clip.faces.length) {
        const style = `fill="none" stroke="${colours.video}" stroke-width="2"`;
        entries.push(["face shown below", `<circle cx="11" cy="6" r="5" ${style}/>`]);
      }
      if (views.some((view) => Object.values(view.streams).some((stream) => stream.gaps.length))) {
        const box = `<rect width="22" height="12" fill="${css("--shade")}"/>`;
        entries.push(["no data", box]);
      }
      byId("key").replaceChildren(
        ...entries.map(([text, mark]) => {
          const entry = document.createElement("span");
          entry.innerHTML = `<svg width="22" height="12" aria-hidden="true">${mark}</svg>`;
          entry.append(text);
          return entry;
        }),
      );
    }

    function drawFaces(faces) {
      byId("faces").hidden = !faces.length;
      byId("faces").replaceChildren(
        ...faces.map((face) => {
          const item = document.createElement("li");
          const said = `${face.time.toFixed(2)} s · ${face.attention.toFixed(2)}×`;
          const alt = `face at ${face.time.toFixed(2)} s`;
          item.append(Object.assign(new Image(), { src: face.image, alt }), said);
          return item;
        }),
      );
    }

    // One column of panels on a common time axis: audio, attention of each arm, features of each
    // modality.
    function drawTime(clip) {
      const shown = shownArms();
      const first = clip.views[shown[0]].streams;
      const panels = [
        ...(clip.audio ? [{ audio: clip.audio, height: 60 }] : []),
        ...shown.map((arm) => ({ arm, height: shown.length > 1 ? 110 : 190 })),
        ...Object.keys(first).map((modality) => ({ modality, height: 130 })),
      ];
      const gap = 30;
      const inner = panels.reduce((sum, panel) => sum + panel.height + gap, 0);
      const margin = { l: 38, r: 58, t: 2, b: 42 };
      const layout = {
        height: inner + margin.t + margin.b,
        margin,
        hovermode: "x",
        showlegend: false,
        annotations: [],
        shapes: [],
        coloraxis: {
          cmin: -3,
          cmax: 3,
          colorscale: DIVERGING.map((colour, i) => [i / 4, colour ?? css("--middle")]),
          colorbar: {
            thickness: 10,
            outlinewidth: 0,
            tickvals: [-3, 0, 3],
            xpad: 8,
            lenmode: "pixels",
            len: 140,
            y: 0,
            yanchor: "bottom",
            ypad: 0,
          },
        },
      };
      const data = [];
      let below = inner;
      let highest = 0;
      const attentionAxes = [];
      // Panels, in paper coordinates, in which the cues of each modality are drawn.
      const spans = Object.fromEntries(modalities.map((modality) => [modality, []]));
      panels.forEach((panel, number) => {
        const top = below - gap + 8;
        below -= panel.height + gap;
        const domain = [below / inner, (below + panel.height) / inner];
        const axis = number ? `yaxis${number + 1}` : "yaxis";
        layout[axis] = { domain, anchor: "x", nticks: 4 };
        if (panel.modality) {
          addFeatures(data, first[panel.modality], panel.modality, axis.replace("axis", ""));
          layout[axis].showgrid = false;
          spans[panel.modality].push(domain);
          addGaps(layout.shapes, first[panel.modality].gaps, domain);
        } else if (panel.audio) {
          addWaveform(data, panel.audio, axis.replace("axis", ""));
          Object.assign(layout[axis], { showgrid: false, showticklabels: false, fixedrange: true });
        } else {
          const { streams } = clip.views[panel.arm];
          highest = Math.max(highest, addAttention(data, streams, axis.replace("axis", "")));
          addFaces(data, clip.faces, axis.replace("axis", ""));
          Object.values(streams).forEach(({ gaps }) => addGaps(layout.shapes, gaps, domain));
          attentionAxes.push(axis);
          modalities.forEach((modality) => spans[modality].push(domain));
        }
        layout.annotations.push({
          text: panelTitle(panel, first),
          x: 0,
          xref: "paper",
          xanchor: "left",
          y: top / inner,
          yref: "paper",
          yanchor: "middle",
          showarrow: false,
          font: { size: 12 },
        });
      });
      for (const axis of attentionAxes) {
        layout[axis].range = [0, Math.max(highest, 1) * 1.08];
        addUniform(layout.shapes, axis.replace("axis", ""));
      }
      layout.xaxis = {
        title: { text: "time (s)", standoff: 6 },
        anchor: `y${panels.length}`,
        range: range([...Object.values(first), clip.audio]),
        hoverformat: ".2f",
        showspikes: true,
        spikemode: "across",
        spikesnap: "cursor",
        spikethickness: 1,
        spikedash: "solid",
        spikecolor: css("--quiet"),
      };
      addCues(layout.shapes, clip.cues, spans);
      Plotly.react(time, data, themed(layout), CONFIG);
    }

    function panelTitle({ arm, modality, audio }, streams) {
      if (audio) {
        return "audio";
      }
      if (modality) {
        return `${modality} features (${streams[modality].count})`;
      }
      return arms.length > 1 ? `attention, <b>${armName(arm)}</b>` : "attention (1 = uniform)";
    }

    // Adds a line for each modality, returns the highest value.
    function addAttention(data, streams, yaxis) {
      let highest = 0;
      for (const [modality, stream] of Object.entries(streams)) {
        const y = floats(stream.attention);
        highest = Math.max(highest, ...y.filter(Number.isFinite));
        data.push({
          type: "scatter",
          mode: y.length > DENSE ? "lines" : "lines+markers",
          name: `${modality} attention`,
          x: floats(stream.times),
          y,
          yaxis,
          line: { color: colours[modality], width: 1.6 },
          marker: { size: 4 },
          hovertemplate: `${modality} attention %{y:.2f}<extra></extra>`,
        });
      }
      return highest;
    }

    // The outline of the waveform: forward along the envelope, back along its mirror image.
    function addWaveform(data, audio, yaxis) {
      const x = Array.from(floats(audio.times));
      const y = Array.from(floats(audio.loudness));
      const line = { color: css("--quiet"), width: 1 };
      const trace = { type: "scatter", mode: "lines", name: "audio", x, yaxis, line };
      const hovertemplate = "loudness %{y:.3f}<extra></extra>";
      data.push({ ...trace, y: y.map((value) => -value), hoverinfo: "skip" });
      data.push({ ...trace, y, fill: "tonexty", fillcolor: css("--quiet"), hovertemplate });
    }

    // Marks the times of the faces below on the attention.
    function addFaces(data, faces, yaxis) {
      if (faces.length) {
        data.push({
          type: "scatter",
          mode: "markers",
          name: "faces",
          x: faces.map((face) => face.time),
          y: faces.map((face) => face.attention),
          yaxis,
          hoverinfo: "skip",
          marker: {
            symbol: "circle-open",
            size: 11,
            color: colours.video,
            line: { width: 2 },
          },
        });
      }
    }

    function addFeatures(data, stream, modality, yaxis) {
      const x = floats(stream.times);
      const valid = bytes(stream.valid);
      const values = new Int8Array(bytes(stream.features).buffer);
      const z = Array.from({ length: stream.count }, (_, feature) =>
        Array.from(x, (_, t) => (valid[t] ? values[feature * x.length + t] * step : null)),
      );
      data.push({
        type: "heatmap",
        name: `${modality} features`,
        x,
        z,
        yaxis,
        coloraxis: "coloraxis",
        hoverongaps: false,
        hovertemplate: `%{x:.2f} s, ${modality} feature %{y}: %{z:.2f}<extra></extra>`,
      });
    }

    function addUniform(shapes, yref) {
      const line = { color: css("--quiet"), width: 1, dash: "dot" };
      shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, yref, y0: 1, y1: 1, line });
    }

    function addGaps(shapes, gaps, [y0, y1]) {
      for (const [x0, x1] of gaps) {
        shapes.push({
          type: "rect",
          name: "no data",
          layer: "below",
          yref: "paper",
          ...{ x0, x1, y0, y1 },
          fillcolor: css("--shade"),
          line: { width: 0 },
        });
      }
    }

    function addCues(shapes, cues, spans) {
      for (const { modality, time, decoy } of cues) {
        for (const [y0, y1] of spans[modality]) {
          shapes.push({
            type: "line",
            name: `${modality} ${decoy ? "decoy" : "cue"}`,
            yref: "paper",
            ...{ x0: time, x1: time, y0, y1 },
            opacity: decoy ? 0.6 : 0.9,
            line: {
              color: colours[modality],
              width: decoy ? 1 : 2,
              dash: decoy ? "4px 4px" : "solid",
            },
          });
        }
      }
    }

    function range(streams) {
      const ends = streams.filter(Boolean).map((stream) => {
        const x = floats(stream.times);
        const half = x.length > 1 ? (x[x.length - 1] - x[0]) / (x.length - 1) / 2 : 0.01;
        return [x[0] - half, x[x.length - 1] + half];
      });
      return [Math.min(...ends.map(([a]) => a)), Math.max(...ends.map(([, b]) => b))];
    }

    function drawBars(clip) {
      const shown = shownArms();
      const bold = known(clip) ? clip.label : predicted(clip.views[0]);
      const names = classes.map((name, row) =>
        row === bold ? `<b>${plain(name)}</b>` : plain(name),
      );
      const data = shown.map((arm) => ({
        type: "bar",
        orientation: "h",
        name: armName(arm),
        x: clip.views[arm].probabilities,
        y: classes.map((_, row) => row),
        customdata: classes.map(plain),
        marker: { color: shown.length > 1 ? page.colours.arms[arm % page.colours.arms.length] : css("--quiet") },
        hovertemplate: "%{customdata}: %{x:.3f}",
      }));
      if (shown.length === 1) {
        data[0].marker.color = classes.map((_, row) =>
          row === bold ? page.colours.right : css("--quiet"),
        );
        data[0].hovertemplate += "<extra></extra>";
      }
      const layout = {
        height: 100 + classes.length * (14 + 14 * shown.length) + 18 * (shown.length - 1),
        margin: { l: 10, r: 12, t: 10, b: 42 },
        showlegend: shown.length > 1,
        bargap: 0.3,
        xaxis: { range: [0, 1], title: { text: "probability", standoff: 6 }, nticks: 5 },
        yaxis: {
          tickvals: data[0].y,
          ticktext: names,
          range: [classes.length - 0.5, -0.5],
          automargin: true,
          showgrid: false,
        },
      };
      Plotly.react(bars, data, themed(layout), CONFIG);
    }

    fillControls();
    search.addEventListener("input", () => list(false));
    filter.addEventListener("change", () => list(false));
    byId("arms").addEventListener("change", () => list(true));
    select.addEventListener("change", () => show(listed[select.value]));
    byId("previous").addEventListener("click", () => move(-1));
    byId("next").addEventListener("click", () => move(1));
    byId("viewer").addEventListener("submit", (event) => event.preventDefault());
    document.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      const elsewhere = event.target.closest("input[type=search], select, .scroll, summary");
      if (by && !elsewhere && !event.ctrlKey && !event.metaKey && !event.altKey) {
        event.preventDefault();
        move(by);
      }
    });
    list(true);
    return () => show(current, true);
  }

  drawPlots();
  const redraw = page.viewer ? viewer(page.viewer) : () => {};
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    drawPlots();
    redraw();
  });
})();
