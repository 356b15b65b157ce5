/* The page of the calculator: entries, results, the address. calculator_model.js computes. */
"use strict";

(() => {
  const model = window.memoryCalculator;
  const { MODEL: { methods: METHODS, reasons: REASONS }, MIB, grouped } = model;
  const MOST_MASKS = 10000;
  const USUAL = "NiftiMasker, path, parallel";
  const STREAMING = "Streaming, masks, one pass";
  const SHAPE = ["x", "y", "z", "t"];
  const IMAGE_FIELDS = [...SHAPE, "dtype", "compressed", "scaling"];
  const FIELDS = [...IMAGE_FIELDS, "masks", "voxels", "workers", "memory", "shm"];
  const SCALING = {
    none: [false, false], slope: [true, false], both: [true, true], intercept: [false, true],
  };
  const NAMES = { // in messages
    ...{ x: "size along x", y: "size along y", z: "size along z", t: "number of volumes" },
    ...{ dtype: "type", compressed: "file's kind", scaling: "scale factors" },
    ...{ masks: "number of masks", voxels: "number of voxels", workers: "number of workers" },
    ...{ memory: "memory", shm: "free space in /dev/shm" },
  };
  const KINDS = { // of parts of a peak, in the order of a bar
    imports: "Interpreters and imports",
    worker: "Workers",
    caller: "Calling process",
    block: "Shared memory",
  };

  const byId = (id) => document.getElementById(`calc-${id}`);

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  }

  /** Set a text only if it changes, so that it is not announced twice. */
  function setText(id, text) {
    if (byId(id).textContent !== text) {
      byId(id).textContent = text;
    }
  }

  /** Write a size: 63 MiB, 1.5 GiB, 64 GiB. */
  function size(mib) {
    if (Math.round(mib) < 1024) {
      return `${grouped(mib)} MiB`;
    }
    const gib = mib / 1024;
    return `${gib < 99.95 ? Number(gib.toPrecision(3)) : grouped(gib)} GiB`;
  }

  /** Write the sizes of a sentence in GiB where that reads better. */
  const inGib = (text) =>
    text.replace(/([\d,]+) MiB/g, (_, mib) => size(Number(mib.replaceAll(",", ""))));

  const count = (number, one) => `${grouped(number)} ${one}${number === 1 ? "" : "s"}`;

  // -- Entries -------------------------------------------------------------------------------

  const value = (field) => byId(field).value.trim() || byId(field).dataset.given || "";

  const whole = (field, text = value(field), highest = Infinity) => {
    const number = /^\+?[0-9]+$/.test(text) ? Number(text) : NaN;
    if (!(number >= 1 && number <= highest && Number.isSafeInteger(number))) {
      const range = highest === Infinity ? "1 or more" : `1 to ${highest}`;
      throw new Error(`The ${NAMES[field]} is '${text}'; allowed: a whole number, ${range}.`);
    }
    return number;
  };

  const choice = (field) => {
    const allowed = [...byId(field).options].map((option) => option.value);
    if (!allowed.includes(value(field))) {
      const list = allowed.join(", ");
      throw new Error(`The ${NAMES[field]} is '${value(field)}'; allowed: ${list}.`);
    }
    return value(field);
  };

  const memory = (field) => {
    try {
      return model.parseMemory(value(field));
    } catch {
      const example = "a positive size with a unit, such as 16G or 500M";
      throw new Error(`The ${NAMES[field]} is '${value(field)}'; allowed: ${example}.`);
    }
  };

  function maskVoxels(nMasks) {
    const sizes = value("voxels").split(",").map((text) => whole("voxels", text.trim()));
    if (sizes.length === 1) {
      return Array(nMasks).fill(sizes[0]);
    }
    if (sizes.length !== nMasks) {
      throw new Error(
        `There are ${sizes.length} numbers of voxels and ${nMasks} masks; allowed: one number, ` +
          "or one for each mask, without commas inside a number.",
      );
    }
    return sizes;
  }

  /** Read all entries; return them, and an error for each one that is wrong. */
  function readEntries() {
    const errors = [];
    const read = (field, parse, group = field) => {
      try {
        return parse(field);
      } catch ({ field: found, message }) { // `check` names the field
        const at = found || field;
        errors.push({ field: at === "shape" ? "x" : at, group: found || group, message });
        return undefined;
      }
    };
    const shape = SHAPE.map((field) => read(field, (name) => whole(name), "shape"));
    const dtype = read("dtype", choice);
    const compressed = read("compressed", choice) === "yes";
    const [slope, inter] = SCALING[read("scaling", choice)] || [];
    const image = { shape, dtype, compressed, slope, inter };
    const nMasks = read("masks", (name) => whole(name, value(name), MOST_MASKS));
    const masks = nMasks && read("voxels", () => maskVoxels(nMasks));
    const nJobs = read("workers", (name) => whole(name));
    const memoryMib = read("memory", memory);
    const shmMib = value("shm") ? read("shm", memory) : memoryMib / 2;
    if (!errors.length) {
      read("", () => model.check(image, masks));
    }
    return { errors, image, masks, nJobs, memoryMib, shmMib };
  }

  /** Mark the fields with errors, and only those; a group of fields shares a message. */
  function showErrors(errors) {
    for (const field of ["file", ...FIELDS]) {
      const wrong = errors.some((error) => error.field === field);
      byId(field)[wrong ? "setAttribute" : "removeAttribute"]("aria-invalid", "true");
    }
    for (const group of ["file", "address", "shape", ...FIELDS.slice(SHAPE.length)]) {
      const messages = errors.filter((error) => error.group === group);
      setText(`${group}-error`, messages.map((error) => error.message).join(" "));
    }
  }

  // -- Results -------------------------------------------------------------------------------

  /** Answer in a line: does the usual way fit, with how many workers, and does streaming? */
  function answer(rows, nJobs, memoryMib) {
    const row = (method) => rows.find(({ prediction }) => prediction.method === method);
    const { reason, mostWorkers: most } = row(USUAL);
    const fits = most === 1 ? "1 fits" : most ? `${grouped(most)} fit` : "not even 1 fits";
    const streaming = row(STREAMING);
    return (
      `${count(nJobs, "NiftiMasker worker")} in ${size(memoryMib)}: ` +
      `${reason ? `no; ${fits}` : "yes"}. One pass of stream_masks: ` +
      `${streaming.reason ? "no" : "yes"}, ${size(streaming.prediction.mostMib)}.`
    );
  }

  /** Describe what goes in, and warn of masks that cannot be meant. */
  function summary({ image, masks, memoryMib, shmMib }) {
    const amounts = model.quantities(image, masks, "parallel");
    const type = image.slope || image.inter ? "float64, because of the scale factors" : image.dtype;
    const [voxels, grid] = [masks.reduce((a, b) => a + b), amounts.masks / masks.length];
    return (
      `The image takes ${size(amounts.array / MIB)} in memory as ${type}, the time series ` +
      `${size(amounts.outputs / MIB)}. Available: ${size(memoryMib)}; in /dev/shm ${size(shmMib)}.` +
      (voxels > grid
        ? ` The masks have ${grouped(voxels)} voxels together, more than the ${grouped(grid)} of ` +
          "the grid: is this right? It is if they overlap."
        : "")
    );
  }

  /** The recommended call as lines to copy. */
  function call(streams) {
    const lines = [
      "from pathlib import Path",
      "",
      "from beyond_the_masker import stream_masks",
      "",
      'fmri_path = "image.nii.gz"  # yours',
      'mask_paths = sorted(Path("masks").glob("*.nii.gz"))',
      ...(streams ? [] : ['names = [f"region_{i}.npy" for i in range(len(mask_paths))]']),
      `series = stream_masks(fmri_path, mask_paths${streams ? "" : ", out=names"})`,
    ];
    return lines.join("\n");
  }

  /** The lowest and the highest possible peak, where they differ. */
  function range({ lowMib, mostMib }) {
    const same = grouped(lowMib) === grouped(mostMib);
    return same ? "" : `, from ${size(lowMib)} to ${size(mostMib)}`;
  }

  /** MiB of each kind of part, in the order of KINDS. */
  function byKind({ parts }) {
    const found = Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, 0]));
    for (const { holder, mib, reason } of parts) {
      if (holder !== "file") {
        found[reason === "imports" ? "imports" : holder] += mib;
      }
    }
    return Object.entries(found).filter(([, mib]) => mib > 0);
  }

  /** Where the scale ends: bars far beyond the memory are cut off. */
  function scaleEnd(rows, memoryMib) {
    const highest = Math.max(...rows.map(({ prediction }) => prediction.mostMib));
    if (highest < memoryMib / 4) {
      return 1.15 * highest; // the memory is outside
    }
    return Math.min(Math.max(1.05 * highest, 1.15 * memoryMib), 2.5 * memoryMib);
  }

  function drawBar(prediction, memoryMib, end) {
    const percent = (mib) => `${Math.min(100, (100 * mib) / end).toFixed(3)}%`;
    const kinds = byKind(prediction);
    const list = kinds.map(([kind, mib]) => `${KINDS[kind].toLowerCase()} ${size(mib)}`);
    const label =
      `Likely peak ${size(prediction.peakMib)}${range(prediction)}: ${list.join(", ")}. ` +
      `Your memory: ${size(memoryMib)}.`;
    const bar = element("div", { class: "calc-bar", role: "img", "aria-label": label });
    const stack = element("div", { class: "calc-stack" });
    bar.append(stack);
    const add = (kind, left, width, parent = bar) => {
      const span = element("span", { class: kind });
      span.style.left = percent(left);
      span.style.width = width === null ? "" : percent(width);
      parent.append(span);
      return span;
    };
    let from = 0;
    for (const [kind, mib] of kinds) {
      const shown = Math.max(0, Math.min(from + mib, end) - from);
      add(`calc-part calc-${kind}`, from, shown, stack).title = `${KINDS[kind]}: ${size(mib)}`;
      from += mib;
    }
    if (prediction.peakMib > end) {
      bar.append(element("span", { class: "calc-break" }, `// ${size(prediction.peakMib)}`));
    }
    if (range(prediction)) {
      const { lowMib, mostMib } = prediction;
      const line = add("calc-range", lowMib, Math.max(0, Math.min(mostMib, end) - lowMib));
      line.classList.toggle("calc-beyond", mostMib > end);
    }
    if (memoryMib <= end) {
      add("calc-line", memoryMib, null);
    }
    return bar;
  }

  function drawAxis(memoryMib, end) {
    const text = `memory ${size(memoryMib)}`;
    const place = (100 * memoryMib) / end;
    const labels = [element("span", { class: "calc-zero" }, "0")];
    if (place > 100) {
      labels.push(element("span", { class: "calc-end" }, `${text} \u2192`));
    } else {
      labels.push(element("span", { class: "calc-at" }, text));
      labels[1].style.setProperty("--at", `${place}%`);
      labels.push(...(place < 60 ? [element("span", { class: "calc-end" }, size(end))] : []));
    }
    byId("axis").replaceChildren(...labels);
  }

  function drawParts({ parts }) {
    const holders = {
      ...{ caller: "calling process", worker: "workers", file: "mapped file" },
      ...{ block: "shared memory", helpers: "helpers of joblib" },
    };
    return parts.map(({ holder, mib, reason }) => {
      const [why, source] = REASONS[reason];
      const [address, ...rest] = source.split(", ");
      const name = element("code", {}, rest.join(", ") || source.replace(/^https?:\/\//, ""));
      const where = source.startsWith("http") ? element("a", { href: address }, name) : name;
      const counted = element("strong", {}, holder === "file" ? "not counted" : size(mib));
      return element("li", {}, counted, `, ${holders[holder]}: ${why} (`, where, ")");
    });
  }

  /** One card for each method, made once, so that opened details stay open. */
  const cards = Object.keys(METHODS).map((method) => {
    const make = (name, kind) => element(name, { class: `calc-${kind}` });
    const card = {
      ...{ verdict: make("p", "verdict"), bar: make("div", "bar-place") },
      ...{ numbers: make("p", "numbers"), reason: make("p", "reason") },
      ...{ summary: make("summary", "details-summary"), parts: make("ul", "parts") },
    };
    const details = element("details", {}, card.summary, card.parts);
    const shown = [card.verdict, card.bar, card.numbers, card.reason, details];
    const title = element("h3", {}, method);
    byId("methods").append(element("li", { class: "calc-method" }, title, ...shown));
    return card;
  });
  const keys = Object.entries(KINDS).map(([kind, name]) => [`calc-part calc-${kind}`, name]);
  keys.push(["calc-key-range", "Range of the peak"], ["calc-key-line", "Your memory"]);
  for (const [kind, name] of keys) {
    byId("legend").append(element("li", {}, element("span", { class: kind }), name));
  }

  function showCard(card, row, memoryMib, end) {
    const { prediction, reason, mostWorkers: most } = row;
    card.verdict.dataset.fits = reason ? "no" : "yes";
    const workers = METHODS[prediction.method].imports && most;
    const less = workers ? `; ${count(most, "worker")} at most` : "";
    card.verdict.textContent = reason ? `Does not fit${less}` : "Fits";
    card.bar.replaceChildren(drawBar(prediction, memoryMib, end));
    const shm = prediction.shmMib ? `, ${size(prediction.shmMib)} of it in /dev/shm` : "";
    const file = prediction.fileMib
      ? `; may map up to ${size(prediction.fileMib)} of a file, which the kernel can drop`
      : "";
    card.numbers.replaceChildren(
      prediction.nJobs ? `${count(prediction.nJobs, "worker")}: ` : "",
      "likely ", element("strong", {}, size(prediction.peakMib)), range(prediction) + shm + file,
    );
    card.reason.textContent = inGib(reason);
    card.summary.textContent = `What is in memory at the peak, while ${prediction.moment}`;
    card.parts.replaceChildren(...drawParts(prediction));
  }

  function showResults(entries) {
    const { image, masks, nJobs, memoryMib, shmMib } = entries;
    const rows = model.budget(image, masks, nJobs, memoryMib, shmMib, model.MODEL.machine);
    const streaming = rows.find(({ prediction }) => prediction.method === STREAMING);
    setText("answer", `${own ? "" : "Example: "}${answer(rows, nJobs, memoryMib)}`);
    setText("summary", summary(entries));
    setText("recommendation", inGib(model.recommend(rows, memoryMib)));
    setText("snippet", call(!streaming.reason));
    setText("sbatch", model.sbatchLines(image, streaming.prediction));
    const end = scaleEnd(rows, memoryMib);
    drawAxis(memoryMib, end);
    rows.forEach((row, i) => showCard(cards[i], row, memoryMib, end));
  }

  let own = false; // whether an entry is the reader's
  let outside = []; // errors of a file and of the address

  /** Evaluate the entries, and show the results or what is wrong, never both. */
  function update() {
    const entries = readEntries();
    const errors = [...outside, ...entries.errors];
    showErrors(errors);
    byId("results").hidden = errors.length > 0;
    byId("answer").classList.toggle("calc-wrong", errors.length > 0);
    if (errors.length) {
      setText("answer", `No result. ${errors.map((error) => error.message).join(" ")}`);
    } else {
      showResults(entries);
    }
  }

  // -- The address ---------------------------------------------------------------------------

  let timer;

  /** Write the address when no key was pressed for a moment: browsers limit how often. */
  function keepAddress() {
    clearTimeout(timer);
    timer = setTimeout(() => {
      const given = new URLSearchParams(FIELDS.map((field) => [field, value(field)]));
      history.replaceState(null, "", `#${given.toString().replaceAll("%2C", ",")}`);
    }, 150);
  }

  const defaults = Object.fromEntries(FIELDS.map((field) => [field, byId(field).value]));

  function fill(field, text) {
    const control = byId(field);
    control.value = text;
    // A list does not take a value that it lacks: keep it for the message.
    delete control.dataset.given;
    if (control.value !== text) {
      control.dataset.given = text;
    }
  }

  function readAddress(address) {
    const text = new URL(address).hash.slice(1);
    if (!text.includes("=")) {
      return; // nothing, or a heading of the page
    }
    own = true;
    const given = new URLSearchParams(text);
    for (const field of FIELDS) {
      fill(field, given.has(field) ? given.get(field).trim() : defaults[field]);
    }
    const unknown = [...given.keys()].filter((key) => !FIELDS.includes(key));
    outside = unknown.map((key) => ({
      group: "address", message: `The address has '${key}'; known are ${FIELDS.join(", ")}.`,
    }));
    setText("file-status", "");
  }

  // -- Events --------------------------------------------------------------------------------

  for (const field of FIELDS) {
    byId(field).addEventListener("input", () => {
      own = true;
      delete byId(field).dataset.given;
      const ofImage = IMAGE_FIELDS.includes(field); // takes the place of a file
      outside = outside.filter(({ group }) => group === "file" && !ofImage);
      if (ofImage) {
        setText("file-status", "");
      }
      update();
      keepAddress();
    });
  }
  byId("form").addEventListener("submit", (event) => event.preventDefault());

  let reads = 0;

  async function take(chosen) {
    const current = ++reads; // only the last of several files counts
    let [image, problem] = [null, ""];
    try {
      image = await model.readHeader(chosen);
    } catch ({ message }) {
      problem = message;
    }
    if (current !== reads) {
      return;
    }
    own = true;
    outside = problem ? [{ field: "file", group: "file", message: problem }] : [];
    const doubt = image?.mayBeCutOff
      ? " The file may be cut off: it does not end with the length of this image. (Nor does one " +
        "that was compressed in parts; the command line decompresses it to be sure.)"
      : "";
    setText("file-status", image ? `Filled in from the header of ${chosen.name}.${doubt}` : "");
    if (image) {
      SHAPE.forEach((field, i) => fill(field, String(image.shape[i])));
      fill("dtype", image.dtype);
      fill("compressed", image.compressed ? "yes" : "no");
      const factors = [image.slope, image.inter].join();
      fill("scaling", Object.keys(SCALING).find((name) => SCALING[name].join() === factors));
      keepAddress();
    }
    update();
  }

  const file = byId("file"); // browsers let a file be dropped on it
  file.addEventListener("change", () => file.files.length && take(file.files[0]));
  file.addEventListener("click", () => { file.value = ""; }); // the same file may have changed
  for (const name of ["dragover", "drop"]) { // a file that misses it does not replace the page
    window.addEventListener(name, (event) => event.target === file || event.preventDefault());
  }
  window.addEventListener("hashchange", (event) => {
    readAddress(event.newURL); // keepAddress may have replaced it already
    update();
  });

  document.getElementById("calculator-form").hidden = false;
  readAddress(location.href);
  update();
})();
