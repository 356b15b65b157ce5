/* The model of beyond_the_masker/predict/model.py and budget.py in the browser, and NIfTI headers.
 *
 * The functions have the names of Python's and their order of statements, so change both
 * together; tests/site/test_calculator.py compares them. The table of methods is in the page, as JSON.
 * Nothing here touches the page: calculator.js does.
 */
"use strict";

window.memoryCalculator = (() => {
  const MODEL = JSON.parse(document.getElementById("memory-model").textContent);
  const { methods: METHODS, dtypes: DTYPES } = MODEL;
  const MIB = 2 ** 20;
  const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
  const product = (numbers) => numbers.reduce((total, number) => total * number, 1);

  // -- model.py ------------------------------------------------------------------------------

  /** Check what single entries do not show; an error has the field that it belongs to. */
  function check(image, maskVoxels) {
    const grid = product(image.shape.slice(0, 3));
    const reject = (field, message) => {
      throw Object.assign(new Error(message), { field });
    };
    if (grid * image.shape[3] > Number.MAX_SAFE_INTEGER) { // Python's integers have no end
      const most = Number.MAX_SAFE_INTEGER;
      reject("shape", `The shape is (${image.shape.join(", ")}); allowed: up to ${most} values.`);
    }
    const tooLarge = maskVoxels.find((voxels) => voxels > grid);
    if (tooLarge) {
      const allowed = `1 to ${grid}, the voxels of a volume`;
      reject("voxels", `A mask has ${tooLarge} voxels; allowed: ${allowed}.`);
    }
  }

  function quantities(image, maskVoxels, mode, active = 0) {
    const [x, y, z, nVolumes] = image.shape;
    const grid = x * y * z;
    const voxels = grid * nVolumes;
    const storedSize = DTYPES[image.dtype];
    const scaled = image.slope || image.inter;
    const arraySize = scaled ? 8 : storedSize;
    const copySize = image.dtype.startsWith("float") || scaled ? arraySize : 4;
    const masks = mode === "single" ? maskVoxels.slice(0, 1) : maskVoxels;

    const positions = sum(masks);
    const largest = [...masks].sort((a, b) => b - a).slice(0, Math.max(active, 1));
    const atWork = sum(largest); // the other masks are done
    const rows = Math.min(
      Math.max(Math.floor((8 * MIB) / (4 * copySize * positions)), 1),
      nVolumes,
    );
    const asStored = image.dtype.startsWith("float") && !scaled;
    const ofValue = storedSize + (asStored ? 1 : 2 * copySize);
    const streamed = rows * positions * ofValue + 12 * positions + 2 * grid * storedSize;
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
      averages: masks.length * nVolumes * (arraySize === 4 && asStored ? 4 : 8),
      summed: 28 * grid,
      streamed,
    };
  }

  function predict(method, image, masks, nJobs, machine) {
    check(image, masks);
    const model = METHODS[method];
    const workers = model.mode === "parallel" && model.imports && nJobs > 1 ? nJobs : 0;
    const active = Math.min(workers, masks.length);
    const amounts = quantities(image, masks, model.mode, active);
    const late = model.late[image.compressed ? 0 : 1] * 1e6;
    const overlap = model.together * Math.max(0, 1 - late / product(image.shape));

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
    const taken = (holder) =>
      Math.max(
        ...happens.map(([, parts]) =>
          sum(
            parts
              .filter((part) => part.holder === holder)
              .map((part) => part.times * amounts[part.quantity]),
          ),
        ),
      ) / MIB;
    return {
      ...{ method, nJobs: workers, peakMib: likely.total, lowMib: low.total, mostMib: most.total },
      ...{ shmMib: taken("block"), fileMib: taken("file"), moment: likely.name },
      parts: likely.found,
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

  // -- budget.py -----------------------------------------------------------------------------

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
      const [most, memory] = [prediction.mostMib, memoryMib].map(grouped);
      return `It may need ${most} MiB, and ${memory} MiB are available.`;
    }
    // With less free space than this, joblib writes to the folder for temporary files.
    const joblibAvoids = shmMib <= 2e9 / MIB && !usesBlock(prediction.method);
    if (prediction.shmMib > shmMib && !joblibAvoids) {
      const [needed, left] = [prediction.shmMib, shmMib].map(grouped);
      return `It needs ${needed} MiB in /dev/shm, which has ${left} MiB left.`;
    }
    return "";
  }

  function usesBlock(method) {
    const parts = METHODS[method].moments.flatMap((moment) => moment.parts);
    return parts.some((part) => part.reason === "block");
  }

  function mostWorkers(method, image, masks, memoryMib, shmMib, machine) {
    let [fits, tooMany] = [0, masks.length + 1];
    while (tooMany - fits > 1) {
      const nJobs = Math.floor((fits + tooMany) / 2);
      if (whyNot(predict(method, image, masks, nJobs, machine), memoryMib, shmMib)) {
        tooMany = nJobs;
      } else {
        fits = nJobs;
      }
    }
    return fits;
  }

  function budget(image, masks, nJobs, memoryMib, shmMib, machine) {
    return Object.keys(METHODS).map((method) => {
      const prediction = predict(method, image, masks, nJobs, machine);
      const reason = whyNot(prediction, memoryMib, shmMib);
      const most = mostWorkers(method, image, masks, memoryMib, shmMib, machine);
      return { prediction, reason, mostWorkers: most };
    });
  }

  function recommend(rows, memoryMib) {
    const found = Object.fromEntries(rows.map((row) => [row.prediction.method, row]));
    const streaming = found["Streaming, masks, one pass"];
    const others = streaming.prediction.parts.filter((part) => part.reason !== "results");
    const least = sum(others.map((part) => part.mib));
    let text;
    if (!streaming.reason) {
      text = "Recommended: stream_masks(fmri_path, mask_paths), which needs no worker.";
    } else if (least <= memoryMib) {
      text =
        "Recommended: stream_masks(fmri_path, mask_paths, out=names) with the names of .npy " +
        "files: the time series themselves do not fit.";
    } else {
      text = `Nothing fits: even without the time series, streaming takes ${grouped(least)} MiB.`;
    }
    if (!found["Streaming, region averages"].reason) {
      text += "\nTo average each region: stream_masker(NiftiLabelsMasker(labels), fmri_path).";
    }
    if (!found["NumPy indexing, threads, parallel"].reason) {
      text += "\nTo keep the image in memory: numpy_masker_threads(fmri_path, mask_paths, n).";
    }
    return text;
  }

  function sbatchLines(image, prediction) {
    const mib = 50 * Math.ceil((1.5 * prediction.mostMib) / 50);
    const seconds = (product(image.shape) * DTYPES[image.dtype]) / 100e6;
    const minutes = 5 + Math.ceil((3 * seconds) / 60);
    return `#SBATCH --cpus-per-task=1\n#SBATCH --mem=${mib}M\n#SBATCH --time=${minutes}`;
  }

  // -- options.py ----------------------------------------------------------------------------

  function parseMemory(size) {
    const found = /^([0-9]+\.?[0-9]*|\.[0-9]+) *([KMGT])(?:i?B)?$/i.exec(size.trim());
    const mib = found
      ? Number(found[1]) * 1024.0 ** ("KMGT".indexOf(found[2].toUpperCase()) - 1)
      : 0;
    if (!(0 < mib && mib < Infinity)) {
      throw new Error(`'${size}' is not a positive size of memory with a unit, such as 16G or 500M.`);
    }
    return mib;
  }

  // -- The header: read_header of budget.py, and what nibabel does below it ---------------------

  const DEFLATE_AT_MOST = 1032n; // bytes from one byte of gzip
  const DATA_CODES = {
    2: "uint8", 4: "int16", 8: "int32", 16: "float32", 64: "float64", 256: "int8",
    512: "uint16", 768: "uint32", 1024: "int64", 1280: "uint64",
  };
  const HEADER_BYTES = 540;

  /** Return the fields of a NIfTI-1 or NIfTI-2 header. */
  function parseHeader(bytes) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const magic = (start) => String.fromCharCode(...bytes.subarray(start, start + 4));
    const one = bytes.length >= 348 && magic(344) === "n+1\0";
    if (!one && !(bytes.length >= HEADER_BYTES && magic(4) === "n+2\0")) {
      throw new Error("it does not begin with the header of a single NIfTI file");
    }
    const dim = (i, order) =>
      one ? BigInt(view.getInt16(40 + 2 * i, order)) : view.getBigInt64(16 + 8 * i, order);
    const little = 1n <= dim(0, true) && dim(0, true) <= 7n; // the order that makes sense
    const length = Math.min(Number(dim(0, little)), 7);
    const shape = Array.from({ length }, (_, i) => dim(i + 1, little));
    const code = view.getInt16(one ? 70 : 12, little);
    const offset = one
      ? BigInt(Math.trunc(view.getFloat32(108, little)))
      : view.getBigInt64(168, little);
    if (offset !== 0n && offset < (one ? 352n : 544n)) {
      throw new Error(`its data begin at byte ${offset}, within the header`);
    }
    let [slope, inter] = one
      ? [view.getFloat32(112, little), view.getFloat32(116, little)]
      : [view.getFloat64(176, little), view.getFloat64(184, little)];
    if (slope === 0 || !Number.isFinite(slope)) {
      [slope, inter] = [1, 0]; // as nibabel: no scale factors at all
    } else if (!Number.isFinite(inter)) {
      throw new Error(`valid slope but invalid intercept ${inter}`);
    }
    return { shape, code, dtype: DATA_CODES[code], offset, slope, inter };
  }

  /** Decompress the beginning of a gzip file, as many bytes as a header has. */
  async function gunzipStart(file) {
    const slice = file.slice(0, 2 ** 16).stream(); // its end, in the middle of the data, is no matter
    const reader = slice.pipeThrough(new DecompressionStream("gzip")).getReader();
    try {
      return (await reader.read()).value.subarray(0, HEADER_BYTES);
    } catch {
      throw new Error("it is not a gzip file, or damaged");
    }
  }

  /** Return whether the length at the end of a gzip file is that of its content, modulo 2 ** 32. */
  async function endsWithLength(file, length) {
    const end = new DataView(await file.slice(-4).arrayBuffer());
    return BigInt(end.getUint32(0, true)) === length % 2n ** 32n;
  }

  /** Read the header of a File, and of a compressed one the last bytes. */
  async function readHeader(file) {
    const compressed = /\.gz$/i.test(file.name);
    let header;
    try {
      if (!/\.nii(\.gz)?$/i.test(file.name)) {
        throw new Error("its name ends neither in .nii nor in .nii.gz");
      }
      header = parseHeader(
        compressed
          ? await gunzipStart(file)
          : new Uint8Array(await file.slice(0, HEADER_BYTES).arrayBuffer()),
      );
    } catch ({ message }) {
      throw new Error(`${file.name} is not a NIfTI image that can be read (${message}).`);
    }
    const { shape, code, dtype, offset, slope, inter } = header;
    const written = `(${shape.join(", ")})`;
    if (shape.length !== 4 || shape.some((n) => n < 1n)) {
      throw new Error(`${file.name} is of shape ${written}; a 4D NIfTI image is needed.`);
    }
    if (!dtype) {
      const known = Object.keys(DTYPES).join(", ");
      throw new Error(`${file.name} holds values of data code ${code}; ${known} are known.`);
    }
    const values = shape.reduce((total, n) => total * n, 1n);
    const promised = offset + values * BigInt(DTYPES[dtype]);
    if (BigInt(file.size) * (compressed ? DEFLATE_AT_MOST : 1n) < promised) {
      const says = compressed
        ? `no gzip file holds more than ${DEFLATE_AT_MOST} times its size, which is ${file.size}`
        : `it has ${file.size}`;
      throw new Error(
        `${file.name} is incomplete or damaged, or its header is wrong: by its header, ${written} of ` +
          `${dtype}, it should hold ${promised} bytes, but ${says}.`,
      );
    }
    return {
      ...{ shape: shape.map(Number), dtype, compressed },
      ...{ slope: slope !== 1, inter: inter !== 0 },
      mayBeCutOff: compressed && !(await endsWithLength(file, promised)),
    };
  }

  return {
    ...{ MODEL, MIB, check, quantities, predict, whyNot, mostWorkers, budget },
    ...{ recommend, sbatchLines, parseMemory, readHeader, grouped },
  };
})();
