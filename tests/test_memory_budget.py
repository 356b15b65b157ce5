"""What each method needs, and whether it fits, from headers alone."""

import gzip
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import nibabel.testing
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beyond_the_masker import budget as memory_budget
from beyond_the_masker.budget import (
    guard,
    most_workers,
    predict_peak,
    print_budget,
    uses_block,
    why_not,
)
from beyond_the_masker.headers import count_voxels, read_header
from beyond_the_masker.imports import TYPICAL, calibrate, machine_path, this_machine, versions
from beyond_the_masker.model import (
    DTYPES,
    METHODS,
    REASONS,
    Image,
    as_json,
    check,
    predict,
    quantities,
)
from beyond_the_masker.options import parse_memory
from made_images import make_image, make_masks, save_all

MIB = 2**20
NIBABELS = Path(nibabel.testing.data_path)
SHAPE = (5, 6, 4, 7)
FROM_PATH = [method for method in METHODS if ", path," in method]
# However slow the machine is.
many = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


# --- What a header says


def as_nibabel_says(path):
    """Compare a header with the arrays that nibabel reads."""
    image, img = read_header(path), nib.load(path)
    array = np.asanyarray(img.dataobj)
    assert image.shape == img.shape
    assert np.dtype(image.dtype) == img.get_data_dtype().newbyteorder("=")
    assert (image.slope or image.inter) == (array.dtype == "float64" != img.get_data_dtype())
    found = quantities(image, [1], "single")
    assert found["array"] == array.nbytes
    assert found["stored"] == math.prod(img.shape) * img.get_data_dtype().itemsize
    return image


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nii.bz2"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("dtype", "scaling"),
    [
        *[(t, None) for t in ("<i2", ">i2", "u1", "<f4", ">f4", "<f8", ">f8", "<u2", "<i8")],
        *[("<i2", (2, 0)), ("<i2", (1, 3)), (">i2", (0.25, -3)), ("u1", (1, 0))],
        *[("<f4", (3, 1)), ("<i2", (np.nan, np.nan)), ("<i2", (0.5, 0))],
    ],
)
def test_header_is_what_nibabel_reads(dtype, scaling, version, suffix, tmp_path):
    """The arrays have the predicted size, for any type, byte order and scale factors."""
    data = np.arange(math.prod(SHAPE)).reshape(SHAPE) % 100
    img = make_image(data=data, dtype=dtype, scaling=scaling)
    if version == 2:
        header = nib.Nifti2Header.from_header(img.header)
        img = nib.Nifti2Image(img.dataobj, img.affine, header)
        if scaling:
            img.header.set_slope_inter(*scaling)
    path = tmp_path / f"fmri{suffix}"
    img.to_filename(path)
    image = as_nibabel_says(path)
    assert image.compressed == (suffix != ".nii")
    slope, inter = scaling or (1, 0)
    assert image.slope == (slope not in (1, 0) and not np.isnan(slope))
    assert image.inter == (inter != 0 and not np.isnan(inter))


@pytest.mark.parametrize("name", ["example4d.nii.gz", "example_nifti2.nii.gz", "functional.nii"])
def test_images_that_others_wrote(name):
    """Images that other programs wrote are read as nibabel reads them."""
    as_nibabel_says(NIBABELS / name)


def test_image_in_two_files(tmp_path):
    """Of a header and an image in two files, the image's size counts."""
    nib.Nifti1Pair(make_image().get_fdata(dtype="f4"), np.eye(4)).to_filename(tmp_path / "a.hdr")
    as_nibabel_says(tmp_path / "a.hdr")
    (tmp_path / "a.img").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.img"):
        read_header(tmp_path / "a.hdr")


def test_image_in_several_gzip_members(tmp_path):
    """A file that bgzip wrote, in many parts with an extra field each, is complete."""
    make_image().to_filename(tmp_path / "plain.nii")
    raw = (tmp_path / "plain.nii").read_bytes()

    def member(data):
        deflated = gzip.compress(data, mtime=0)[10:]
        extra = b"BC\x02\x00" + struct.pack("<H", len(deflated) + 17)
        return b"\x1f\x8b\x08\x04" + b"\0" * 5 + b"\xff" + struct.pack("<H", 6) + extra + deflated

    parts = [member(raw[i : i + 1000]) for i in range(0, len(raw), 1000)]
    (tmp_path / "bgzip.nii.gz").write_bytes(b"".join([*parts, member(b"")]))
    as_nibabel_says(tmp_path / "bgzip.nii.gz")


# --- Nothing is read


def sparse_image(path, shape=(100, 100, 100, 2500)):
    """Write the header of a large image, and let the file system promise the rest."""
    header = nib.Nifti1Header()
    header.set_data_dtype("f4")
    header.set_data_shape(shape)
    header["magic"], header["vox_offset"] = b"n+1", 352
    with open(path, "wb") as file:
        file.write(header.binaryblock + b"\0" * 4)
        file.truncate(352 + 4 * math.prod(shape))


def run_command(*arguments, **options):
    """Run the command line."""
    return subprocess.Popen(
        [sys.executable, "-m", "beyond_the_masker", "budget", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.chance
@pytest.mark.skipif(not hasattr(os, "wait4"), reason="needs wait4")
def test_large_image_is_not_read(tmp_path):
    """A budget for 10 GB needs neither the time nor the memory to read them."""
    sparse_image(tmp_path / "large.nii")
    mask = np.zeros((100, 100, 100))
    mask[:10] = 1
    make_image(data=mask, dtype="u1").to_filename(tmp_path / "mask.nii.gz")
    command = run_command(tmp_path / "large.nii", tmp_path / "mask.nii.gz", "--memory", "16G")
    with command as process:
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert "9,537 MiB in memory" in out
    assert usage.ru_utime + usage.ru_stime < 10
    unit = 1 if sys.platform == "darwin" else 1024
    assert usage.ru_maxrss * unit / MIB < 1500, "MiB of an image of 9,537"


def test_image_in_place_of_a_mask_is_not_read(tmp_path):
    """An image among the masks is refused before it is read."""
    sparse_image(tmp_path / "large.nii")
    with pytest.raises(ValueError, match=r"\(100, 100, 100, 2500\)"):
        count_voxels(tmp_path / "large.nii", (100, 100, 100))
    make_image((3, 3, 3)).to_filename(tmp_path / "mask.nii")
    raw = bytearray((tmp_path / "mask.nii").read_bytes())
    raw[42:48] = struct.pack("<3h", 32000, 32000, 32000)  # no machine has room for it
    (tmp_path / "mask.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    with pytest.raises(ValueError, match="32000"):
        count_voxels(tmp_path / "mask.nii.gz", (3, 3, 3))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a named pipe")
def test_named_pipe_is_refused(tmp_path):
    """A pipe is refused; the command does not wait for someone to write into it."""
    os.mkfifo(tmp_path / "pipe.nii")
    with run_command(tmp_path / "pipe.nii", "mask.nii") as process:
        try:
            _, err = process.communicate(timeout=600)
        finally:
            process.kill()
    assert process.returncode == 1
    assert "pipe.nii" in err


# --- Nonsense


@pytest.fixture
def files(tmp_path):
    """An image and masks."""
    fmri_img = make_image()
    return save_all(tmp_path, fmri_img, make_masks(fmri_img))


def cut(path, raw):
    """Leave away the end."""
    path.write_bytes(raw[: len(raw) * 2 // 3])


def more_volumes(path, raw):
    """Let the header promise more volumes than there are."""
    raw = bytearray(gzip.decompress(raw) if path.suffix == ".gz" else raw)
    raw[48:50] = struct.pack("<h", 8)
    path.write_bytes(gzip.compress(bytes(raw)) if path.suffix == ".gz" else raw)


def many_volumes(path, raw):
    """Let the header promise more than any gzip file of this size can hold."""
    raw = bytearray(gzip.decompress(raw) if path.suffix == ".gz" else raw)
    raw[48:50] = struct.pack("<h", 32000)
    path.write_bytes(gzip.compress(bytes(raw)) if path.suffix == ".gz" else raw)


def negative_volumes(path, raw):
    """Let the header promise less than nothing."""
    raw = bytearray(gzip.decompress(raw) if path.suffix == ".gz" else raw)
    raw[48:50] = struct.pack("<h", -7)
    path.write_bytes(gzip.compress(bytes(raw)) if path.suffix == ".gz" else raw)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("spoil", [cut, more_volumes, many_volumes, negative_volumes])
def test_file_that_does_not_hold_what_it_says(spoil, suffix, tmp_path):
    """A file that is damaged, or smaller than its header claims, is refused."""
    path = tmp_path / f"spoiled{suffix}"
    make_image().to_filename(path)
    spoil(path, path.read_bytes())
    with pytest.raises(ValueError, match=f"spoiled{suffix}") as error:
        read_header(path)
    if spoil is not negative_volumes:
        promised = 352 + math.prod(SHAPE[:3]) * 4
        promised = {cut: 352 + 480 * 7, more_volumes: 352 + 480 * 8}.get(spoil, 352 + 480 * 32000)
        assert f"it should hold {promised} bytes" in str(error.value)


def test_what_is_not_an_image_of_four_dimensions(tmp_path):
    """Anything but a 4D NIfTI image of numbers is refused."""
    (tmp_path / "text.nii").write_text("not an image")
    (tmp_path / "text.nii.gz").write_text("not compressed")
    (tmp_path / "empty.nii").touch()
    (tmp_path / "empty.nii.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "folder.nii").mkdir()
    make_image((5, 6, 4)).to_filename(tmp_path / "volume.nii")
    colours = np.zeros(SHAPE, dtype=[(c, "u1") for c in "RGB"])
    nib.Nifti1Image(colours, np.eye(4)).to_filename(tmp_path / "colours.nii")
    complexes = np.zeros(SHAPE, dtype="complex64")
    nib.Nifti1Image(complexes, np.eye(4)).to_filename(tmp_path / "complex.nii")
    nib.AnalyzeImage(np.zeros(SHAPE, "f4"), np.eye(4)).to_filename(tmp_path / "analyze.hdr")
    nib.GiftiImage().to_filename(tmp_path / "surface.gii")
    (tmp_path / "text.gii").write_text("<not xml")
    nib.MGHImage(np.zeros(SHAPE, "f4"), np.eye(4)).to_filename(tmp_path / "freesurfer.mgz")
    names = [p.name for p in tmp_path.iterdir() if p.suffix != ".img"]
    assert len(names) == 12
    for name in names:
        with pytest.raises(ValueError, match=name):
            read_header(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"none\.nii"):
        read_header(tmp_path / "none.nii")


@pytest.mark.parametrize("n_jobs", [0, -1, 1.5, 2.0, math.nan, "2"])
def test_number_of_workers_is_refused(n_jobs, files):
    """A number of workers is a whole number, 1 or more."""
    for call in (
        lambda: print_budget(*files, n_jobs),
        lambda: predict_peak(FROM_PATH[0], *files, n_jobs),
    ):
        with pytest.raises(ValueError, match=f"workers is {n_jobs}"):
            call()


@pytest.mark.parametrize("memory", ["-16G", "0", "nan", "inf", "a lot", "", 0, -5, math.nan])
def test_memory_is_refused(memory, files):
    """Memory is a positive size."""
    with pytest.raises(ValueError, match="is not a positive size of memory") as error:
        print_budget(*files, memory=memory)
    assert repr(memory) in str(error.value)
    with pytest.raises(ValueError, match="is not a positive size of memory"):
        print_budget(*files, shm=memory)


@pytest.mark.parametrize("voxels", [0, -3, 2.5, 121, math.nan, "x" * 0 or None])
def test_numbers_of_voxels_are_refused(voxels, files):
    """A mask has from one voxel to all of a volume."""
    with pytest.raises(ValueError, match=f"A mask has {voxels} voxels; from 1 to 120"):
        print_budget(files[0], [5, voxels])


def test_masks_are_refused(files, tmp_path):
    """There must be masks, readable, on the image's grid and not empty."""
    fmri_path, mask_paths = files
    with pytest.raises(ValueError, match="There is no mask"):
        print_budget(fmri_path, [])
    make_image(data=np.zeros(SHAPE[:3]), dtype="u1").to_filename(tmp_path / "none_inside.nii")
    make_image(data=np.full(SHAPE[:3], np.nan)).to_filename(tmp_path / "nan.nii")
    make_image(data=np.ones((5, 6, 5)), dtype="u1").to_filename(tmp_path / "other.nii")
    (tmp_path / "text.nii").write_text("not an image")
    nib.GiftiImage().to_filename(tmp_path / "surface.gii")
    for name, message in [
        ("surface.gii", r"\(\)"),
        ("none_inside.nii", "0 voxels"),
        ("nan.nii", "0 voxels"),
        ("other.nii", r"\(5, 6, 5\).* \(5, 6, 4\)"),
        ("fmri.nii.gz", r"\(5, 6, 4, 7\).* \(5, 6, 4\)"),
        ("text.nii", "not an image that can be read"),
    ]:
        with pytest.raises(ValueError, match=f"{name} .*{message}"):
            print_budget(fmri_path, [mask_paths[0], tmp_path / name])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        print_budget(fmri_path, [tmp_path / "nowhere.nii"])


def test_voxels_are_counted(files):
    """The voxels of a mask are counted as methods read them."""
    counts = [count_voxels(path, SHAPE[:3]) for path in files[1]]
    assert counts == [np.count_nonzero(nib.load(path).get_fdata()) for path in files[1]]
    assert counts[2:] == [1, 120]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (5, 6, 4)}, "The shape is (5, 6, 4)"),
        ({"shape": (5, 6, 4, 0)}, "The shape is (5, 6, 4, 0)"),
        ({"shape": (5, 6, 4, 2.5)}, "The shape is (5, 6, 4, 2.5)"),
        ({"dtype": "complex64"}, "The type is 'complex64'"),
    ],
)
def test_images_are_refused(change, message):
    """An image of impossible shape or unknown type is refused."""
    with pytest.raises(ValueError) as error:  # noqa: PT011
        check(Image(SHAPE)._replace(**change), [1], 1)
    assert str(error.value).startswith(message)


def test_unknown_method_is_refused():
    """A misspelt method is refused."""
    with pytest.raises(ValueError, match="There is no method 'Magic'; there are: NiftiMasker"):
        predict("Magic", Image(SHAPE), [1], 1, TYPICAL)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["none.nii", "mask_0.nii.gz"], 1, "none.nii"),
        (["mask_0.nii.gz", "mask_0.nii.gz"], 1, "a 4D NIfTI image is needed"),
        (["fmri.nii.gz", "mask_0.nii.gz", "--jobs", "0"], 1, "workers is 0"),
        (["fmri.nii.gz", "mask_0.nii.gz", "--jobs", "1.5"], 2, "--jobs"),
        (["fmri.nii.gz", "mask_0.nii.gz", "--memory", "plenty"], 1, "'plenty'"),
        (["fmri.nii.gz"], 2, "masks"),
    ],
)
def test_command_refuses_without_a_traceback(arguments, status, message, files, tmp_path):
    """The command fails with a message and an exit status, without a traceback."""
    with run_command(*arguments, cwd=tmp_path) as process:
        out, err = process.communicate(timeout=600)
    assert process.returncode == status
    assert message in err
    assert "Traceback" not in err
    assert out == ""


def test_command_line(files, tmp_path):
    """The command prints the table and follows its options."""
    fmri_path, mask_paths = files
    arguments = (fmri_path, *mask_paths, "--jobs", 2, "--memory", "2G", "--shm", "64M", "--explain")
    with run_command(*arguments, cwd=tmp_path) as process:
        out, err = process.communicate(timeout=600)
    assert (process.returncode, err) == (0, "")
    assert "available 2,048 MiB; in /dev/shm 64 MiB" in out
    for method in METHODS:
        assert f"\n{method}" in out
        assert f"\n{method}, while " in out


# --- The model

SIDES = st.integers(1, 80)


@st.composite
def cases(draw):
    """An image, its masks and a number of workers."""
    shape = (draw(SIDES), draw(SIDES), draw(SIDES), draw(st.integers(1, 2000)))
    image = Image(
        shape,
        draw(st.sampled_from(DTYPES)),
        *(draw(st.booleans()) for _ in range(3)),
    )
    grid = math.prod(shape[:3])
    masks = draw(st.lists(st.integers(1, grid), min_size=1, max_size=8))
    return image, masks, draw(st.integers(1, 12))


methods = pytest.mark.parametrize("method", METHODS)


@methods
@many
@given(case=cases())
def test_numbers_are_possible(method, case):
    """Low, likely and most are in this order, and the parts are the likely peak."""
    image, masks, n_jobs = case
    found = predict(method, image, masks, n_jobs, TYPICAL)
    model = METHODS[method]
    assert all(math.isfinite(number) for number in found[2:7])
    assert TYPICAL[f"caller {model.caller}"] <= found.low_mib <= found.peak_mib * (1 + 1e-9)
    assert found.peak_mib <= found.most_mib * (1 + 1e-9)
    assert sum(part.mib for part in found.parts) == pytest.approx(found.peak_mib)
    for part in found.parts:
        assert part.mib >= 0
        assert part.reason in REASONS
        assert part.holder in ("caller", "worker", "helpers", "block", "file")
    parallel = model.mode == "parallel" and model.imports
    assert found.n_jobs == (n_jobs if parallel and n_jobs > 1 else 0)
    if not found.n_jobs:
        assert found.low_mib == found.peak_mib == found.most_mib
        assert {part.holder for part in found.parts} <= {"caller", "block", "file"}
    if not parallel:
        assert found == predict(method, image, masks, n_jobs + 3, TYPICAL)


@methods
@many
@given(case=cases())
def test_shared_memory_counts_in_full_and_mapped_files_do_not(method, case):
    """A block is the whole array, once; a mapped file is named, and no part of any sum."""
    image, masks, n_jobs = case
    found = predict(method, image, masks, n_jobs, TYPICAL)
    array = quantities(image, masks, "parallel")["array"] / MIB
    assert found.shm_mib in (0, array)
    assert uses_block(method) <= (found.shm_mib == array)
    if found.shm_mib:
        imports = sum(part.mib for part in found.parts if part.reason == "imports")
        assert found.low_mib >= (array + imports) * (1 - 1e-9)
    assert sum(part.mib for part in found.parts if part.holder == "file") == 0
    assert 0 <= found.file_mib <= array
    if not image.compressed and ", path," in method:
        assert found.file_mib > 0


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].mode == "loop"])
@many
@given(case=cases())
def test_a_loop_needs_one_call_and_the_results(method, case):
    """All masks one after the other: the peak is that of the largest, plus the others' series."""
    image, masks, n_jobs = case
    masks = sorted(masks, reverse=True)
    loop = predict(method, image, masks, n_jobs, TYPICAL)
    single = predict(method.replace("loop", "single"), image, masks, n_jobs, TYPICAL)
    results = quantities(image, masks, "loop")["results"] / MIB
    assert single.peak_mib <= loop.peak_mib * (1 + 1e-9)
    assert loop.peak_mib <= (single.peak_mib + results) * (1 + 1e-9)
    assert loop.file_mib == single.file_mib


@methods
@many
@given(case=cases(), more=st.integers(1, 2000))
def test_more_volumes_do_not_need_less(method, case, more):
    """A longer image does not need less."""
    image, masks, n_jobs = case
    longer = image._replace(shape=(*image.shape[:3], image.shape[3] + more))
    one, other = (predict(method, i, masks, n_jobs, TYPICAL) for i in (image, longer))
    for before, after in zip(one[2:7], other[2:7], strict=True):
        assert after >= before * (1 - 1e-9)


@methods
@many
@given(case=cases())
def test_more_workers_or_masks_do_not_need_less(method, case):
    """One worker more, or one mask more, does not make room."""
    image, masks, n_jobs = case
    one, other = (predict(method, image, masks, n, TYPICAL) for n in (n_jobs, n_jobs + 1))
    assert other.most_mib >= one.most_mib * (1 - 1e-9)
    if METHODS[method].mode == "single":
        return
    longer = predict(method, image, [*masks, max(masks)], n_jobs, TYPICAL)
    rounded = 8 if METHODS[method].function == "stream_masks" else 0  # a block of whole volumes
    assert longer.most_mib >= one.most_mib * (1 - 1e-9) - rounded


def test_two_copies_for_each_worker():
    """NiftiMasker needs the image twice in each worker; streaming needs less than half of it."""
    image, masks = Image((64, 64, 36, 1680), compressed=True), [2000] * 20
    array = quantities(image, masks, "parallel")["array"] / MIB
    found = predict("NiftiMasker, path, parallel", image, masks, 20, TYPICAL)
    assert 40 * array < found.most_mib < 40 * array + 20 * 150 + 500
    streamed = predict("Streaming, masks, one pass", image, masks, 20, TYPICAL)
    assert streamed.most_mib < 0.5 * array


def test_model_as_json():
    """The calculator gets every method, and all that their parts refer to."""
    model = json.loads(as_json(TYPICAL))
    assert list(model["methods"]) == list(METHODS)
    assert model["machine"] == TYPICAL
    assert model["dtypes"] == {name: np.dtype(name).itemsize for name in DTYPES}
    known = {*quantities(Image(SHAPE), [1], "parallel")}
    for name, method in model["methods"].items():
        moments = METHODS[name].moments
        assert [m["name"] for m in method["moments"]] == [m.name for m in moments]
        for moment in method["moments"]:
            for part in moment["parts"]:
                assert part["quantity"] in known
                assert part["reason"] in model["reasons"]
                assert part["holder"] in ("caller", "worker", "file", "block")


# --- Whether it fits

LARGE = Image((64, 64, 36, 2000), "float32")  # 1,125 MiB


@methods
@settings(many, max_examples=20)
@given(case=cases(), memory=st.floats(150, 40_000), shm=st.floats(1, 40_000))
def test_most_workers_is_the_largest_that_fits(method, case, memory, shm):
    """The recommended number of workers fits, and one more would not."""
    image, masks, _ = case
    most = most_workers(method, image, masks, memory, shm, TYPICAL)
    fits = [
        n
        for n in range(1, len(masks) + 1)
        if not why_not(predict(method, image, masks, n, TYPICAL), memory, shm)
    ]
    assert most == max(fits, default=0)


def test_reason_names_what_is_too_small():
    """The reason names memory or /dev/shm, whichever is too small."""
    shared = predict("NumPy indexing, shared memory, parallel", LARGE, [2000] * 4, 4, TYPICAL)
    assert shared.shm_mib == 1125
    assert why_not(shared, 1e6, 1e6) == ""
    assert why_not(shared, 1e6, shared.shm_mib) == ""
    assert why_not(shared, shared.most_mib, 1e6) == ""
    reason = why_not(shared, 1e6, 1000)
    assert reason == "It needs 1,125 MiB in /dev/shm, which has 1,000 MiB left."
    reason = why_not(shared, 1234, 1000)
    assert reason == f"It may need {shared.most_mib:,.0f} MiB, and 1,234 MiB are available."


def test_joblib_avoids_a_small_folder():
    """joblib writes to /dev/shm only if it is larger than 2 GB."""
    from joblib import _memmapping_reducer

    assert _memmapping_reducer.SYSTEM_SHARED_MEM_FS_MIN_SIZE == 2e9
    longer = LARGE._replace(shape=(64, 64, 36, 6000))
    method = "NiftiMasker, in-memory image, parallel"
    found = predict(method, longer, [2000] * 4, 4, TYPICAL)
    assert not uses_block(method)
    assert found.shm_mib == 3375
    assert why_not(found, 1e6, 2e9 / MIB) == ""
    assert "/dev/shm" in why_not(found, 1e6, 2e9 / MIB + 1)
    assert why_not(found, 1e6, 3375) == ""
    blocks = [name for name in METHODS if uses_block(name)]
    assert blocks == ["NumPy indexing, shared memory, parallel"]


def test_what_is_left_counts_by_default(monkeypatch, files):
    """By default, a method must fit into what the machine has left."""
    found = predict_peak(FROM_PATH[0], *files)
    monkeypatch.setattr(memory_budget, "available_mib", lambda: 100)
    assert "100 MiB are available" in why_not(found)
    monkeypatch.setattr(memory_budget, "available_mib", lambda: 1e6)
    assert why_not(found) == ""


@pytest.mark.parametrize(
    ("memory", "fits"), [("unlimited", True), ("100M", False), ("64G", True), (None, False)]
)
def test_guard_follows_the_option(memory, fits, files, monkeypatch):
    """The option MEMORY decides what a build runs."""
    monkeypatch.setattr(memory_budget, "available_mib", lambda: 100)
    monkeypatch.setattr(memory_budget, "available_shm_mib", lambda: 100)
    monkeypatch.setattr(memory_budget, "reserve_mib", lambda: 30)
    if memory:
        monkeypatch.setenv("MEMORY", memory)
    prediction, reason = guard(FROM_PATH[0], *files, 2)
    assert prediction.method == FROM_PATH[0]
    assert (reason == "") == fits
    if not fits:
        assert f"{100 if memory else 70} MiB are available" in reason


# --- The table


def lines_of(text):
    """The lines of the table, by method."""
    return {m: line for line in text.splitlines() for m in METHODS if line.startswith(f"{m}  ")}


def test_table(files, capsys):
    """The table has a line for each method, which agrees with its row."""
    rows = print_budget(*files, memory="64G", shm="64G")
    out = capsys.readouterr().out
    lines = lines_of(out)
    assert list(lines) == [row.prediction.method for row in rows] == list(METHODS)
    assert all(line.endswith("  yes") for line in lines.values())
    assert "Recommended: stream_masks(fmri_path, mask_paths), which needs no worker." in out
    assert "numpy_masker_threads" in out
    assert "4 masks" in out
    assert all(row.most_workers == 4 for row in rows)


def test_table_honours_memory_and_shared_memory(tmp_path, capsys):
    """The table says what does not fit, and how many workers would."""
    sparse_image(tmp_path / "large.nii", (64, 64, 36, 2000))
    masks = [2000] * 20
    rows = {
        row.prediction.method: row
        for row in print_budget(tmp_path / "large.nii", masks, memory="4G", shm="1G")
    }
    out = capsys.readouterr().out
    lines = lines_of(out)
    row = rows["NiftiMasker, path, parallel"]
    assert row.most_workers == 2
    assert lines["NiftiMasker, path, parallel"].endswith("  with 2 at most")
    assert "4,096 MiB are available" in row.reason
    row = rows["NumPy indexing, shared memory, parallel"]
    assert "/dev/shm" in row.reason
    assert lines["NumPy indexing, shared memory, parallel"].endswith("  no")
    assert "available 4,096 MiB; in /dev/shm 1,024 MiB" in out


def test_time_series_that_do_not_fit(tmp_path, capsys):
    """Time series that do not fit into memory go into files."""
    sparse_image(tmp_path / "large.nii", (64, 64, 36, 2000))
    print_budget(tmp_path / "large.nii", [64 * 64 * 36] * 20, memory="4G")
    out = capsys.readouterr().out
    assert "out=names" in out
    assert "numpy_masker_threads" not in out


def test_parts_are_explained(files, capsys):
    """On request, the parts of each peak are printed."""
    rows = print_budget(*files, explain=True)
    out = capsys.readouterr().out
    for row in rows:
        assert f"\n{row.prediction.method}, while {row.prediction.moment}:" in out
    assert "apply_mask_fmri" in out


# --- The machine


@pytest.mark.chance
def test_imports_are_measured_once(files, tmp_path, capsys):
    """What was measured is kept and used; the more a process imports, the more it takes."""
    assert this_machine() is TYPICAL
    machine = calibrate()
    assert machine_path() == tmp_path / "masker_cache" / "machine.json"
    assert [path.name for path in machine_path().parent.iterdir()] == ["machine.json"]
    assert machine.keys() == TYPICAL.keys()
    assert this_machine() == machine == json.loads(machine_path().read_text())
    assert "numpy" in machine["measured"]
    assert 5 < machine["numpy"] < machine["nibabel"] < machine["nilearn"]
    assert 5 < machine["caller nibabel"] < machine["caller nilearn"]
    assert machine["helpers"] > 0
    print_budget(*files)
    assert "imports: measured here" in capsys.readouterr().out
    found = predict_peak("NumPy indexing, path, single", *files)
    assert found.parts[0].mib == machine["caller nibabel"]
    found = predict_peak("NiftiMasker, path, single", *files)
    assert found.parts[0].mib == machine["caller nilearn"]


@pytest.mark.parametrize(
    "text",
    [
        *["", "{", "[]", "null", "3", '"text"', "{}", '{"measured": "SAME"}', "\ud800"],
        json.dumps(TYPICAL | {"measured": "Python 2.7"}),
    ],
)
def test_damaged_or_foreign_measurement_is_ignored(text, files, capsys):
    """A file that is damaged, or of other versions, is not used."""
    machine_path().parent.mkdir()
    text = text.replace("SAME", versions())
    machine_path().write_bytes(text.encode("utf-8", "surrogatepass"))
    assert this_machine() is TYPICAL
    print_budget(*files)
    assert "imports: typical" in capsys.readouterr().out


# --- Sizes


@many
@given(
    mib=st.floats(0.01, 1e12),
    unit=st.sampled_from(["", "K", "M", "G", "T"]),
    ending=st.sampled_from(["", "B", "iB", "b"]),
    space=st.sampled_from(["", " ", "  "]),
    lower=st.booleans(),
)
def test_sizes_with_units(mib, unit, ending, space, lower):
    """A size may have a unit, in any case."""
    text = f"{mib:.3f}{space}{unit}{ending if unit else ''}"
    factor = {"": 1, "K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2}[unit]
    text = text.lower() if lower else text
    assert parse_memory(f" {text} ") == pytest.approx(float(f"{mib:.3f}") * factor)


@many
@given(st.floats(1e-3, 1e300) | st.integers(1, 10**18))
def test_sizes_as_numbers(mib):
    """A number is a size in MiB."""
    assert parse_memory(mib) == pytest.approx(mib, rel=1e-3)


@many
@given(st.text())
def test_any_text_is_a_size_or_refused(text):
    """Any text is a positive size, or is refused."""
    try:
        mib = parse_memory(text)
    except ValueError as error:
        assert repr(text) in str(error)  # noqa: PT017
    else:
        assert 0 < mib < math.inf


@pytest.mark.parametrize(
    "text", ["16X", "16GiBs", "G", "1.2.3G", "1e3", "+5", "5 0", "1_000", "16 G B", "٣G", "5\u212a"]
)
def test_text_that_is_not_a_size(text):
    """A typing error is refused."""
    with pytest.raises(ValueError, match="is not a positive size of memory"):
        parse_memory(text)
