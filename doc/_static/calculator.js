/* The calculator: the model of examples/memory_model.py, evaluated in the browser.
 *
 * The first part has no page: the functions of memory_model.py and memory_budget.py, under
 * their names and in their order of statements, so that both can be read side by side. The
 * table of methods comes from the page, as JSON. tests/test_calculator.py compares the two.
 */
"use strict";

(() => {
  const MODEL = JSON.parse(document.getElementById("memory-model").textContent);
  const METHODS = MODEL.methods;
  const REASONS = MODEL.reasons;
  const DTYPES = MODEL.dtypes;

  // -- memory_model.py -------------------------------------------------------------------

  const MIB = 2 ** 20;

  const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
  const isWhole = (number) => Number.isInteger(number);

  /** An error of an entry: the field that it belongs to, and what is wrong. */
  class EntryError extends Error {
    constructor(field, message) {
      super(message);
      this.field = field;
    }
  }

  function check(image, maskVoxels, nJobs) {
    const shape = `(${image.shape.join(", ")})`;
    if (image.shape.length !== 4 || !image.shape.every((n) => isWhole(n) && n > 0)) {
      throw new EntryError("shape", `The shape is ${shape}; four positive whole numbers are needed.`);
    }
    if (!Object.hasOwn(DTYPES, image.dtype)) {
      const known = Object.keys(DTYPES).join(", ");
      throw new EntryError("dtype", `The type is '${image.dtype}'; known are ${known}.`);
    }
    const grid = image.shape[0] * image.shape[1] * image.shape[2];
    // Python's whole numbers have no end; the browser's have.
    if (grid * image.shape[3] > Number.MAX_SAFE_INTEGER) {
      throw new EntryError(
        "shape",
        `The shape is ${shape}; up to ${Number.MAX_SAFE_INTEGER} values can be counted here.`,
      );
    }
    if (!maskVoxels.length) {
      throw new EntryError("voxels", "There is no mask; one at least is needed.");
    }
    for (const voxels of maskVoxels) {
      if (!(isWhole(voxels) && 1 <= voxels && voxels <= grid)) {
        throw new EntryError(
          "voxels",
          `A mask has ${voxels} voxels; from 1 to ${grid}, the voxels of a volume, can be.`,
        );
      }
    }
    if (!(isWhole(nJobs) && nJobs >= 1)) {
      throw new EntryError("workers", `The number of workers is ${nJobs}; 1 or more is needed.`);
    }
  }

  function quantities(image, maskVoxels, mode, active = 0) {
    const [x, y, z, nVolumes] = image.shape;
    const grid = x * y * z;
    const voxels = grid * nVolumes;
    const storedSize = DTYPES[image.dtype];
    const arraySize = image.slope || image.inter ? 8 : storedSize;
    const floats = image.dtype.startsWith("float") || image.slope || image.inter;
    const copySize = floats ? arraySize : 4;
    const masks = mode === "single" ? maskVoxels.slice(0, 1) : maskVoxels;

    const positions = sum(masks);
    const largest = [...masks].sort((a, b) => b - a).slice(0, Math.max(active, 1));
    const atWork = sum(largest); // the others' are done
    const rows = Math.min(
      Math.max(Math.floor((8 * MIB) / (4 * copySize * positions)), 1),
      nVolumes,
    );
    const asStored = image.dtype.startsWith("float") && !(image.slope || image.inter);
    const ofValue = storedSize + (asStored ? 1 : 2 * copySize);
    const streamed = rows * positions * ofValue + 12 * positions + 2 * grid * storedSize;
    const block = Math.min(Math.max(Math.floor((64 * MIB) / (grid * 48)), 1), nVolumes);
    return {
      stored: voxels * storedSize,
      array: voxels * arraySize,
      copy: voxels * copySize,
      finite: voxels,
      volume: grid * arraySize,
      masks: masks.length * grid,
      output: (atWork / Math.max(active, 1)) * nVolumes * copySize,
      results: (positions - atWork) * nVolumes * copySize,
      outputs: positions * nVolumes * copySize,
      streamed,
      blocks: block * grid * (3 * arraySize + copySize + 1),
    };
  }

  function predict(method, image, masks, nJobs, machine) {
    check(image, masks, nJobs);
    const model = METHODS[method];
    const workers = model.mode === "parallel" && model.imports && nJobs > 1 ? nJobs : 0;
    const active = Math.min(workers, masks.length);
    const amounts = quantities(image, masks, model.mode, active);
    const late = model.late[image.compressed ? 0 : 1] * 1e6;
    const size = image.shape.reduce((product, n) => product * n, 1);
    const overlap = model.together * Math.max(0, 1 - late / size);

    const happens = happening(model, image, workers);
    const ends = [1 + Math.max(active - 1, 0) * overlap, 1, Math.max(active, 1)].map((atPeak) => {
      const moments = happens.map(([moment, parts]) => {
        const found = [
          { holder: "caller", mib: machine[`caller ${model.caller}`], reason: "imports" },
          ...(moment.early ? [] : imported(model, machine, workers, active)),
          ...parts.map((part) => held(part, amounts, workers, atPeak)),
        ];
        return { total: sum(found.map((part) => part.mib)), name: moment.name, found };
      });
      return moments.reduce((most, moment) => (moment.total > most.total ? moment : most));
    });
    const [likely, low, most] = ends;
    const [block, file] = ["block", "file"].map((holder) =>
      Math.max(
        ...happens.map(([, parts]) =>
          sum(
            parts
              .filter((part) => part.holder === holder)
              .map((part) => part.times * amounts[part.quantity]),
          ),
        ),
      ),
    );
    return {
      ...{ method, nJobs: workers, peakMib: likely.total, lowMib: low.total, mostMib: most.total },
      ...{ shmMib: block / MIB, fileMib: file / MIB, moment: likely.name, parts: likely.found },
    };
  }

  function happening(model, image, workers) {
    const scaled = image.slope || image.inter;
    const conditions = [
      image.compressed ? "compressed" : "plain",
      scaled ? "scaled" : "unscaled",
      image.compressed || scaled ? "read" : "mapped",
      workers ? "workers" : "alone",
      ...(image.slope && image.inter ? ["twice"] : []),
    ];
    const holds = ({ when }) =>
      when.split(" ").every((one) => one === "" || conditions.includes(one));
    return model.moments.filter(holds).map((moment) => [moment, moment.parts.filter(holds)]);
  }

  function imported(model, machine, workers, active) {
    if (!workers) {
      return [];
    }
    const parts = [
      { holder: "helpers", mib: machine.helpers, reason: "imports" },
      { holder: "worker", mib: active * machine[model.imports], reason: "imports" },
    ];
    if (workers > active) { // these get no task
      parts.push({ holder: "worker", mib: (workers - active) * machine.numpy, reason: "imports" });
    }
    return parts;
  }

  function held({ holder, times, quantity, reason }, amounts, workers, atPeak) {
    const mib = (times * amounts[quantity]) / MIB;
    if (holder === "worker") {
      return { holder: workers ? "worker" : "caller", mib: atPeak * mib, reason };
    }
    return { holder, mib: holder === "file" ? 0 : mib, reason };
  }

  // -- memory_budget.py ------------------------------------------------------------------

  /** As Python's `f"{number:,.0f}"`: half to even. */
  function grouped(number) {
    let whole = Math.round(number);
    if (Math.abs(number % 1) === 0.5 && whole % 2) {
      whole -= 1;
    }
    return whole.toLocaleString("en-US");
  }

  function whyNot(prediction, memoryMib, shmMib) {
    if (prediction.mostMib > memoryMib) {
      return (
        `It may need ${grouped(prediction.mostMib)} MiB, and ` +
        `${grouped(memoryMib)} MiB are available.`
      );
    }
    // With less room than this, joblib writes to the folder for temporary files.
    const joblibAvoids = shmMib <= 2e9 / MIB && !usesBlock(prediction.method);
    if (prediction.shmMib > shmMib && !joblibAvoids) {
      const room = `${grouped(shmMib)} MiB`;
      return `It needs ${grouped(prediction.shmMib)} MiB in /dev/shm, which has ${room} left.`;
    }
    return "";
  }

  function usesBlock(method) {
    return METHODS[method].moments.some((moment) =>
      moment.parts.some((part) => part.reason === "block"),
    );
  }

  function mostWorkers(method, image, masks, memoryMib, shmMib, machine) {
    let [fits, tooMany] = [0, masks.length + 1];
    while (tooMany - fits > 1) {
      const nJobs = Math.floor((fits + tooMany) / 2);
      const prediction = predict(method, image, masks, nJobs, machine);
      if (whyNot(prediction, memoryMib, shmMib)) {
        tooMany = nJobs;
      } else {
        fits = nJobs;
      }
    }
    return fits;
  }

  function budget(image, masks, nJobs, memoryMib, shmMib, machine) {
    check(image, masks, nJobs);
    return Object.keys(METHODS).map((method) => {
      const prediction = predict(method, image, masks, nJobs, machine);
      const reason = whyNot(prediction, memoryMib, shmMib);
      const most = mostWorkers(method, image, masks, memoryMib, shmMib, machine);
      return { prediction, reason, mostWorkers: most };
    });
  }

  function fitsText({ reason, mostWorkers: most }) {
    return !reason ? "yes" : most ? `with ${most} at most` : "no";
  }

  function recommend(rows, memoryMib) {
    const found = Object.fromEntries(rows.map((row) => [row.prediction.method, row]));
    const streaming = found["Streaming, masks, one pass"];
    const least = sum(
      streaming.prediction.parts
        .filter((part) => part.reason !== "results")
        .map((part) => part.mib),
    );
    let text;
    if (!streaming.reason) {
      text = "Recommended: stream_masks(fmri_path, mask_paths), which needs no worker.";
    } else if (least <= memoryMib) {
      text =
        "Recommended: stream_masks(fmri_path, mask_paths, out=names) with the names of .npy " +
        "files: the time series themselves do not fit.";
    } else {
      text =
        "Nothing fits: even without the time series, streaming takes " +
        `${grouped(least)} MiB.`;
    }
    if (!found["NumPy indexing, threads, parallel"].reason) {
      text +=
        "\nTo keep the image in memory: numpy_masker_threads(fmri_path, mask_paths, n).";
    }
    return text;
  }

  /** The recommended call as lines to copy. */
  function recommendedCall(rows) {
    const fits = Object.fromEntries(rows.map((row) => [row.prediction.method, !row.reason]));
    const lines = [
      "from pathlib import Path",
      "",
      "from plot_stream_masks import stream_masks",
      "",
      'fmri_path = "image.nii.gz"  # yours',
      'mask_paths = sorted(Path("masks").glob("*.nii.gz"))',
    ];
    if (fits["Streaming, masks, one pass"]) {
      lines.push("series = stream_masks(fmri_path, mask_paths)");
    } else {
      lines.push(
        'names = [f"region_{i}.npy" for i in range(len(mask_paths))]',
        "series = stream_masks(fmri_path, mask_paths, out=names)",
      );
    }
    return lines.join("\n");
  }

  // -- options.py ------------------------------------------------------------------------

  function parseMemory(size) {
    const found = /^([0-9]+\.?[0-9]*|\.[0-9]+) *(?:([KMGT])(?:i?B)?)?$/i.exec(size.trim());
    const mib = found
      ? Number(found[1]) * 1024.0 ** ("KMGT".indexOf((found[2] || "M").toUpperCase()) - 1)
      : 0;
    if (!(0 < mib && mib < Infinity)) {
      throw new Error(`'${size}' is not a positive size of memory, such as 16G or 500M.`);
    }
    return mib;
  }

  // -- The header: read_header of memory_budget.py, and what nibabel does below it --------

  const DEFLATE_AT_MOST = 1032n; // bytes that come out of one byte of gzip
  const DATA_CODES = {
    2: ["uint8", 1], 4: ["int16", 2], 8: ["int32", 4], 16: ["float32", 4],
    32: ["complex64", 8], 64: ["float64", 8], 128: ["RGB", 3], 256: ["int8", 1],
    512: ["uint16", 2], 768: ["uint32", 4], 1024: ["int64", 8], 1280: ["uint64", 8],
    1536: ["float128", 16], 1792: ["complex128", 16], 2048: ["complex256", 32],
    2304: ["RGBA", 4],
  };
  const HEADER_BYTES = 540;

  /** Give what the bytes of a NIfTI-1 or NIfTI-2 header say; throw what is wrong. */
  function parseHeader(bytes) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const text = (start) => String.fromCharCode(...bytes.subarray(start, start + 4));
    const one = bytes.length >= 348 && ["n+1\0", "ni1\0"].includes(text(344));
    const two =
      bytes.length >= 540 && [view.getInt32(0, true), view.getInt32(0, false)].includes(540);
    if (!one && !two) {
      throw new Error("it does not begin with a NIfTI header");
    }
    if (text(one ? 344 : 4) !== (one ? "n+1\0" : "n+2\0")) {
      throw new Error("it is not a single file with header and data; its magic string is " +
        `'${text(one ? 344 : 4).replace(/\0.*/s, "")}'`);
    }
    const dim = (i, little) =>
      one ? BigInt(view.getInt16(40 + 2 * i, little)) : view.getBigInt64(16 + 8 * i, little);
    // The order of bytes is that in which the number of dimensions makes sense.
    const first = dim(0, true);
    const little =
      first === 0n ? view.getInt32(0, false) !== (one ? 348 : 540) : 1n <= first && first <= 7n;
    const nDims = Number(dim(0, little));
    let shape = [];
    for (let i = 1; i <= Math.min(nDims, 7); i++) {
      shape.push(dim(i, little));
    }
    if (one && shape.slice(0, 3).join() === "-1,1,1") {
      // What FreeSurfer does with dimensions that NIfTI-1 has no room for.
      shape = [BigInt(view.getInt32(140, little)), ...shape.slice(1)];
    } else if (one && shape.slice(0, 3).join() === "27307,1,6") {
      shape = [163842n, 1n, 1n, ...shape.slice(3)];
    }
    const code = view.getInt16(one ? 70 : 12, little);
    if (!Object.hasOwn(DATA_CODES, code)) {
      throw new Error(`data code ${code} not recognized`);
    }
    const [dtype, size] = DATA_CODES[code];
    const single = one ? 352n : 544n;
    // A fractional offset is cut off; one that is not a number cannot be used.
    const found = one ? view.getFloat32(108, little) : view.getBigInt64(168, little);
    if (one && !Number.isFinite(found)) {
      throw new Error(`its data begin at byte ${found}`);
    }
    const offset = one ? BigInt(Math.trunc(found)) : found;
    if (Number(found) !== 0 && offset < single) {
      throw new Error(`vox offset ${offset} too low for single file nifti1`);
    }
    if (two) {
      const eol = [...bytes.subarray(8, 12)].join();
      if (eol !== "13,10,26,10" && eol !== "0,0,0,0") {
        throw new Error(`EOL check not 0 or 13, 10, 26, 10, but ${eol.replaceAll(",", ", ")}`);
      }
      const intent = view.getInt32(504, little);
      if (3000 <= intent && intent < 3100) {
        throw new Error(`it is a CIFTI-2 file, intent ${intent}`);
      }
    }
    let [slope, inter] = one
      ? [view.getFloat32(112, little), view.getFloat32(116, little)]
      : [view.getFloat64(176, little), view.getFloat64(184, little)];
    if (slope === 0 || !Number.isFinite(slope)) {
      [slope, inter] = [1, 0]; // as nibabel: no scale factors at all
    } else if (!Number.isFinite(inter)) {
      throw new Error(`valid slope but invalid intercept ${inter}`);
    }
    return { shape, dtype, size: BigInt(size), offset, slope, inter };
  }

  /** Decompress the beginning of a gzip file: as many bytes as a header has. */
  async function gunzipStart(file) {
    const slice = new Uint8Array(await file.slice(0, 2 ** 16).arrayBuffer());
    if (slice[0] !== 0x1f || slice[1] !== 0x8b) {
      throw new Error("it is not a gzip file");
    }
    const stream = new DecompressionStream("gzip");
    const reader = stream.readable.getReader();
    const writer = stream.writable.getWriter();
    const ignore = () => {}; // the slice ends in the middle of the stream, which is an error
    reader.closed.catch(ignore);
    writer.closed.catch(ignore);
    let bytes = new Uint8Array();
    let next = reader.read(); // before the first byte is written, so that none is lost
    writer.write(slice).then(() => writer.close()).catch(ignore);
    try {
      while (bytes.length < HEADER_BYTES) {
        const { value, done } = await next;
        if (done) {
          break;
        }
        const joined = new Uint8Array(bytes.length + value.length);
        joined.set(bytes);
        joined.set(value, bytes.length);
        bytes = joined;
        next = reader.read();
      }
    } catch (error) {
      if (!bytes.length) {
        throw new Error("its gzip data are damaged");
      }
    }
    next.catch(ignore);
    reader.cancel().catch(ignore);
    return bytes.slice(0, HEADER_BYTES);
  }

  /** How many bytes a gzip file holds, if it can be told without unpacking it. */
  async function unpackedSize(file, promised) {
    const size = BigInt(file.size);
    if (size * DEFLATE_AT_MOST < promised) {
      const most = `no gzip file holds more than ${DEFLATE_AT_MOST} times its size`;
      return [size, `${most}, which is ${size}`];
    }
    const flags = new Uint8Array(await file.slice(0, 4).arrayBuffer())[3];
    const end = new DataView(await file.slice(-4).arrayBuffer());
    const unpackedAtEnd = BigInt(end.getUint32(0, true)); // kept modulo 2 ** 32
    // bgzip writes many parts, with an extra field; browsers unpack the first one only.
    if (unpackedAtEnd === promised % 2n ** 32n || flags & 4) {
      return [promised, ""];
    }
    let unpacked = 0n;
    try {
      const reader = file.stream().pipeThrough(new DecompressionStream("gzip")).getReader();
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        unpacked += BigInt(part.value.length);
      }
    } catch {
      return [0n, "it is damaged, or cut off"];
    }
    return [unpacked, `it unpacks to ${unpacked}`];
  }

  /** Read the header of a File, and nothing else but gzip's trailer. */
  async function readHeader(file) {
    const compressed = /\.gz$/i.test(file.name);
    let header;
    try {
      if (!/\.nii(\.gz)?$/i.test(file.name)) {
        throw new Error("its name ends neither in .nii nor in .nii.gz");
      }
      if (compressed && typeof DecompressionStream === "undefined") {
        throw new Error("this browser cannot decompress; use .nii, or enter the numbers");
      }
      header = parseHeader(
        compressed
          ? await gunzipStart(file)
          : new Uint8Array(await file.slice(0, HEADER_BYTES).arrayBuffer()),
      );
    } catch (error) {
      const why = error.message;
      throw new Error(`${file.name} is not a NIfTI image that can be read (${why}).`);
    }
    const { shape, dtype, size, offset, slope, inter } = header;
    const written = `(${shape.join(", ")})`;
    if (shape.length !== 4 || shape.some((n) => n < 1n)) {
      throw new Error(`${file.name} is of shape ${written}; a 4D NIfTI image is needed.`);
    }
    if (!Object.hasOwn(DTYPES, dtype)) {
      const known = Object.keys(DTYPES).join(", ");
      throw new Error(`${file.name} holds values of type ${dtype}; ${known} are known.`);
    }
    const promised = offset + shape.reduce((product, n) => product * n, 1n) * size;
    const [there, says] = compressed
      ? await unpackedSize(file, promised)
      : [BigInt(file.size), `it has ${file.size}`];
    if (there < promised) {
      throw new Error(
        `${file.name} is incomplete, or its header is wrong: by its header, ${written} of ` +
          `${dtype}, it should hold ${promised} bytes, and ${says}.`,
      );
    }
    return {
      shape: shape.map(Number),
      dtype,
      compressed,
      slope: slope !== 1,
      inter: inter !== 0,
    };
  }

  window.memoryCalculator = {
    ...{ MODEL, check, quantities, predict, whyNot, mostWorkers, budget, fitsText, recommend },
    ...{ parseMemory, parseHeader, readHeader, grouped },
  };

  // -- The page ----------------------------------------------------------------------------

  const MOST_MASKS = 1000;
  const byId = (id) => document.getElementById(`calc-${id}`);
  const SHAPE = { x: "x", y: "y", z: "z", t: "volumes" };
  const IMAGE_FIELDS = [...Object.keys(SHAPE), "dtype", "compressed", "scaling"];
  const FIELDS = [...IMAGE_FIELDS, "masks", "voxels", "workers", "memory", "shm"];
  const SCALING = {
    none: [false, false], slope: [true, false], both: [true, true], intercept: [false, true],
  };
  // An entry's name in the address, and its name in a message.
  const NAMES = {
    dtype: "type", compressed: "file's kind", scaling: "scale factors",
    masks: "number of masks", voxels: "voxels in a mask", workers: "number of workers",
    memory: "memory", shm: "free space in /dev/shm",
  };
  // Workers come early: where a bar is cut off, it is mostly they who go on.
  const KINDS = {
    imports: "Interpreters and imports",
    worker: "Workers",
    caller: "Calling process",
    block: "Shared memory",
  };

  const value = (field) => byId(field).value.trim() || byId(field).dataset.given || "";

  /** Read all entries; give them, or an error for each one that is wrong. */
  function readEntries() {
    const errors = [];
    const attempt = (field, read, group = field) => {
      try {
        return read();
      } catch (error) {
        const at = error.field || group; // `check` says which entry it is
        const control = field || (at === "shape" ? "x" : at);
        errors.push({ field: control, group: at, message: error.message });
        return undefined;
      }
    };
    const wholeNumber = (text, name, highest = Infinity) => {
      const number = /^\+?[0-9]+$/.test(text) ? Number(text) : NaN;
      if (!(number >= 1 && number <= highest && Number.isSafeInteger(number))) {
        const range = highest === Infinity ? "1 or more" : `1 to ${highest}`;
        throw new Error(`The ${name} is '${text}'; allowed: a whole number, ${range}.`);
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
    const shape = Object.entries(SHAPE).map(([field, name]) =>
      attempt(field, () => wholeNumber(value(field), `size along ${name}`.replace(
        "size along volumes", "number of volumes")), "shape"),
    );
    const dtype = attempt("dtype", () => choice("dtype"));
    const compressed = attempt("compressed", () => choice("compressed")) === "yes";
    const scaling = attempt("scaling", () => choice("scaling"));
    const [slope, inter] = SCALING[scaling] || [];
    const nMasks = attempt("masks", () => wholeNumber(value("masks"), NAMES.masks, MOST_MASKS));
    const sizes = attempt("voxels", () =>
      value("voxels").split(",").map((text) => wholeNumber(text.trim(), "number of voxels")),
    );
    const nJobs = attempt("workers", () => wholeNumber(value("workers"), NAMES.workers));
    const size = (field) => {
      try {
        return parseMemory(value(field));
      } catch (error) {
        throw new Error(`The ${NAMES[field]} is '${value(field)}'; allowed: a positive size ` +
          "such as 16G or 500M.");
      }
    };
    const memoryMib = attempt("memory", () => size("memory"));
    const shmMib = attempt("shm", () => (value("shm") ? size("shm") : memoryMib / 2));
    let masks;
    if (sizes && nMasks) {
      if (sizes.length === 1) {
        masks = Array(nMasks).fill(sizes[0]);
      } else if (sizes.length === nMasks) {
        masks = sizes;
      } else {
        errors.push({
          field: "voxels",
          group: "voxels",
          message:
            `There are ${sizes.length} numbers of voxels and ${nMasks} masks; allowed: one ` +
            "number, or one for each mask, without commas inside a number.",
        });
      }
    }
    const image = { shape, dtype, compressed, slope, inter };
    if (!errors.length) {
      attempt("", () => check(image, masks, nJobs));
    }
    return { errors, image, masks, nJobs, memoryMib, shmMib };
  }

  /** Show errors beside their fields, and only those. */
  function showErrors(errors) {
    for (const field of FIELDS) {
      const wrong = errors.some((error) => error.field === field);
      byId(field).toggleAttribute("aria-invalid", false);
      if (wrong) {
        byId(field).setAttribute("aria-invalid", "true");
      }
    }
    for (const group of ["shape", ...Object.keys(NAMES)]) {
      const messages = errors.filter((error) => error.group === group);
      setText(byId(`${group}-error`), messages.map((error) => error.message).join(" "));
    }
  }

  /** Set a text only when it is another, so that it is not announced again. */
  function setText(element, text) {
    if (element.textContent !== text) {
      element.textContent = text;
    }
  }

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, one] of Object.entries(attributes)) {
      made.setAttribute(key, one);
    }
    made.append(...children);
    return made;
  }

  const mib = (number) => `${grouped(number)} MiB`;

  /** MiB of each kind of part, in the order of KINDS. */
  function byKind(prediction) {
    const found = Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, 0]));
    for (const { holder, mib: amount, reason } of prediction.parts) {
      if (holder !== "file") {
        found[reason === "imports" ? "imports" : holder] += amount;
      }
    }
    return found;
  }

  /** Where the scale ends: what is far beyond the memory is cut off, and says so. */
  function scaleEnd(rows, memoryMib) {
    const highest = Math.max(...rows.map(({ prediction }) => prediction.mostMib));
    if (highest < memoryMib / 4) {
      return 1.15 * highest; // the memory is outside
    }
    return Math.min(Math.max(1.05 * highest, 1.15 * memoryMib), 2.5 * memoryMib);
  }

  /** The lowest and the highest possible peak, where they differ. */
  function range({ lowMib, mostMib }) {
    const [low, most] = [lowMib, mostMib].map(grouped);
    return low === most ? "" : `, from ${low} to ${most} MiB`;
  }

  const percent = (part, whole) => `${Math.min(100, (100 * part) / whole).toFixed(3)}%`;

  function drawBar(prediction, memoryMib, end) {
    const kinds = byKind(prediction);
    const list = Object.entries(kinds)
      .filter(([, amount]) => amount > 0)
      .map(([kind, amount]) => `${KINDS[kind].toLowerCase()} ${mib(amount)}`);
    const bar = element("div", {
      class: "calc-bar",
      role: "img",
      "aria-label":
        `Likely peak ${mib(prediction.peakMib)}${range(prediction)}: ${list.join(", ")}. ` +
        `Your memory: ${mib(memoryMib)}.`,
    });
    const stack = element("div", { class: "calc-stack" });
    let from = 0;
    for (const [kind, amount] of Object.entries(kinds)) {
      const shown = Math.max(0, Math.min(from + amount, end) - from);
      if (shown > 0) {
        const segment = element("span", {
          class: `calc-part calc-${kind}`,
          title: `${KINDS[kind]}: ${mib(amount)}`,
        });
        segment.style.width = percent(shown, end);
        stack.append(segment);
      }
      from += amount;
    }
    bar.append(stack);
    if (prediction.peakMib > end) {
      bar.append(element("span", { class: "calc-break" }, `// ${mib(prediction.peakMib)}`));
    }
    if (range(prediction)) {
      const { lowMib, mostMib } = prediction;
      const line = element("span", { class: "calc-range" });
      line.style.left = percent(lowMib, end);
      line.style.width = percent(Math.max(0, Math.min(mostMib, end) - lowMib), end);
      line.classList.toggle("calc-beyond", mostMib > end);
      bar.append(line);
    }
    if (memoryMib <= end) {
      const memory = element("span", { class: "calc-line" });
      memory.style.left = percent(memoryMib, end);
      bar.append(memory);
    }
    return bar;
  }

  function drawAxis(memoryMib, end) {
    const axis = byId("axis");
    const zero = element("span", { class: "calc-zero" }, "0");
    if (memoryMib > end) {
      const text = `memory ${mib(memoryMib)} \u2192`;
      axis.replaceChildren(zero, element("span", { class: "calc-end" }, text));
      return;
    }
    const place = (100 * memoryMib) / end;
    const label = element("span", { class: "calc-at" }, `memory ${mib(memoryMib)}`);
    label.style.setProperty("--at", `${place}%`);
    axis.replaceChildren(zero, label);
    if (place < 60) {
      axis.append(element("span", { class: "calc-end" }, mib(end)));
    }
  }

  function drawParts(prediction) {
    const holders = {
      caller: "calling process", worker: "workers", file: "mapped file", block: "shared memory",
    };
    return prediction.parts.map(({ holder, mib: amount, reason }) => {
      const [why, source] = REASONS[reason];
      const [address, ...rest] = source.split(", ");
      const name = element("code", {}, rest.join(", ") || source.replace(/^https?:\/\//, ""));
      const where = source.startsWith("http") ? element("a", { href: address }, name) : name;
      const counted = element("strong", {}, holder === "file" ? "not counted" : mib(amount));
      return element("li", {}, counted, `, ${holders[holder] || holder}: ${why} (`, where, ")");
    });
  }

  /** One card for each method, made once, so that opened details stay open. */
  const cards = {};
  for (const method of Object.keys(METHODS)) {
    const make = (name, kind) => element(name, { class: `calc-${kind}` });
    const card = { title: element("h3", {}, method) };
    card.verdict = make("p", "verdict");
    card.bar = make("div", "bar-place");
    card.numbers = make("p", "numbers");
    card.reason = make("p", "reason");
    card.summary = make("summary", "details-summary");
    card.parts = make("ul", "parts");
    card.details = element("details", {}, card.summary, card.parts);
    card.item = element(
      "li", { class: "calc-method" },
      card.title, card.verdict, card.bar, card.numbers, card.reason, card.details,
    );
    cards[method] = card;
    byId("methods").append(card.item);
  }
  for (const [kind, name] of Object.entries(KINDS)) {
    byId("legend").append(
      element("li", {}, element("span", { class: `calc-part calc-${kind}` }), name),
    );
  }
  byId("legend").append(
    element("li", {}, element("span", { class: "calc-key-range" }), "Range of the peak"),
    element("li", {}, element("span", { class: "calc-key-line" }), "Your memory"),
  );

  function showResults({ image, masks, nJobs, memoryMib, shmMib }) {
    const rows = budget(image, masks, nJobs, memoryMib, shmMib, MODEL.machine);
    const end = scaleEnd(rows, memoryMib);
    const fitting = rows.filter((row) => !row.reason).length;
    const amounts = quantities(image, masks, "parallel");
    setText(
      byId("summary"),
      `${fitting} of ${rows.length} methods fit. The image has ${mib(amounts.array / MIB)} in ` +
        `memory, the time series ${mib(amounts.outputs / MIB)}. Available: ` +
        `${mib(memoryMib)}; in /dev/shm ${mib(shmMib)}.`,
    );
    drawAxis(memoryMib, end);
    for (const row of rows) {
      const { prediction } = row;
      const card = cards[prediction.method];
      const fits = fitsText(row);
      const words = { yes: "Fits", no: "Does not fit" };
      const workersText = row.mostWorkers === 1 ? "1 worker" : `${row.mostWorkers} workers`;
      card.verdict.textContent = words[fits] || `Does not fit; ${workersText} at most`;
      card.verdict.dataset.fits = fits;
      card.bar.replaceChildren(drawBar(prediction, memoryMib, end));
      const workers = prediction.nJobs ? `${grouped(prediction.nJobs)} workers: ` : "";
      const shm = prediction.shmMib ? `, ${mib(prediction.shmMib)} of it in /dev/shm` : "";
      const file = prediction.fileMib
        ? `; may map up to ${mib(prediction.fileMib)} of a file, which the kernel can drop`
        : "";
      card.numbers.replaceChildren(
        workers, "likely ", element("strong", {}, mib(prediction.peakMib)),
        range(prediction) + shm + file,
      );
      card.reason.textContent = row.reason;
      card.summary.textContent = `What is in memory at the peak, while ${prediction.moment}`;
      card.parts.replaceChildren(...drawParts(prediction));
    }
    byId("recommendation").replaceChildren(
      ...recommend(rows, memoryMib).split("\n").flatMap((line, i) => (i ? [element("br"), line] : [line])),
    );
    setText(byId("snippet"), recommendedCall(rows));
    setText(byId("copied"), "");
  }

  let fileError = "";
  let addressError = "";

  /** Evaluate the entries, and show the results or what is wrong, never both. */
  function update() {
    const entries = readEntries();
    showErrors(entries.errors);
    setText(byId("file-error"), fileError);
    byId("file").toggleAttribute("aria-invalid", false);
    if (fileError) {
      byId("file").setAttribute("aria-invalid", "true");
    }
    setText(byId("address-error"), addressError);
    const wrong = [fileError, addressError, ...entries.errors.map((error) => error.message)];
    const messages = wrong.filter(Boolean);
    byId("results").hidden = messages.length > 0;
    setText(byId("message"), messages.length ? `No result. ${messages.join(" ")}` : "");
    if (!messages.length) {
      showResults(entries);
    }
  }

  // -- The address -------------------------------------------------------------------------

  let timer;

  function writeAddress() {
    const shape = Object.keys(SHAPE).map(value).join("x");
    const given = FIELDS.slice(4).map((field) => [field, value(field)]);
    const text = new URLSearchParams([["shape", shape], ...given]).toString();
    try {
      history.replaceState(null, "", `#${text.replaceAll("%2C", ",")}`);
    } catch (error) {
      // Some browsers allow so many changes in a time: the next one will be written.
    }
  }

  /** Write the address when no key was pressed for a moment: browsers limit how often. */
  function keepAddress() {
    clearTimeout(timer);
    timer = setTimeout(writeAddress, 150);
  }

  const defaults = Object.fromEntries(FIELDS.map((field) => [field, byId(field).value]));

  function fill(field, text) {
    const control = byId(field);
    control.value = text;
    // A choice that there is not leaves the list empty: keep what was given, for the message.
    delete control.dataset.given;
    if (control.value !== text) {
      control.dataset.given = text;
    }
  }

  function readAddress() {
    const text = location.hash.slice(1);
    if (!text.includes("=")) {
      return; // nothing, or a heading of the page
    }
    const given = new URLSearchParams(text);
    const unknown = [...given.keys()].filter((name) => !["shape", ...FIELDS.slice(4)].includes(name));
    const problems = [];
    if (unknown.length) {
      problems.push(
        `The address has ${unknown.map((name) => `'${name}'`).join(", ")}; known are shape, ` +
          `${FIELDS.slice(4).join(", ")}.`,
      );
    }
    for (const field of FIELDS.slice(4)) {
      fill(field, given.has(field) ? given.get(field).trim() : defaults[field]);
    }
    const shape = given.has("shape") ? given.get("shape").split("x") : null;
    Object.keys(SHAPE).forEach((field, i) => fill(field, shape ? shape[i] || "" : defaults[field]));
    if (shape && shape.length !== 4) {
      problems.push(
        `The shape in the address is '${given.get("shape")}'; allowed: four whole numbers, ` +
          "joined by x.",
      );
    }
    addressError = problems.join(" ");
    fileError = "";
    setText(byId("file-status"), "");
  }

  // -- Events ------------------------------------------------------------------------------

  for (const field of FIELDS) {
    byId(field).addEventListener("input", () => {
      delete byId(field).dataset.given;
      addressError = "";
      if (IMAGE_FIELDS.includes(field)) {
        fileError = "";
        setText(byId("file-status"), "");
      }
      update();
      keepAddress();
    });
  }
  byId("form").addEventListener("submit", (event) => event.preventDefault());

  let reads = 0;

  async function take(files) {
    const current = ++reads; // of two files, the one that was given last
    let image = null;
    let problem = "";
    if (files.length !== 1) {
      problem = `${files.length} files were given; allowed: one NIfTI image.`;
    } else {
      try {
        image = await readHeader(files[0]);
      } catch (error) {
        problem = error.message;
      }
    }
    if (current !== reads) {
      return;
    }
    fileError = problem;
    let status = "";
    if (image) {
      addressError = "";
      Object.keys(SHAPE).forEach((field, i) => fill(field, String(image.shape[i])));
      fill("dtype", image.dtype);
      fill("compressed", image.compressed ? "yes" : "no");
      const kind = Object.keys(SCALING).find(
        (name) => SCALING[name].join() === [image.slope, image.inter].join(),
      );
      fill("scaling", kind);
      status = `Filled in from the header of ${files[0].name}.`;
      keepAddress();
    }
    setText(byId("file-status"), status);
    update();
  }

  byId("file").addEventListener("change", (event) => {
    if (event.target.files.length) {
      take([...event.target.files]);
    }
  });
  // The same file can be chosen again, after it was copied anew for instance.
  byId("file").addEventListener("click", () => {
    byId("file").value = "";
  });
  const drop = byId("drop");
  for (const name of ["dragenter", "dragover"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.add("calc-over");
    });
  }
  drop.addEventListener("dragleave", () => drop.classList.remove("calc-over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("calc-over");
    byId("file").value = "";
    take([...event.dataTransfer.files]);
  });

  // A file that misses the frame does not take the place of the page.
  for (const name of ["dragover", "drop"]) {
    window.addEventListener(name, (event) => event.preventDefault());
  }

  byId("copy").addEventListener("click", async () => {
    const text = byId("snippet").textContent;
    let copied = true;
    try {
      await navigator.clipboard.writeText(text);
    } catch (error) {
      // Not allowed, or not there, as on a page that was opened from a file.
      const area = element("textarea", { class: "calc-hidden", readonly: "" });
      area.value = text;
      document.body.append(area);
      area.select();
      copied = document.execCommand("copy");
      area.remove();
      byId("copy").focus();
    }
    setText(byId("copied"), copied ? "Copied." : "Not copied: select the lines above.");
  });

  window.addEventListener("hashchange", () => {
    readAddress();
    update();
  });

  document.getElementById("calculator-form").hidden = false;
  readAddress();
  update();
})();
