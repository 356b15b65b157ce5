"""All masks in one pass: NiftiMasker's values, damaged files refused, little memory, no litter."""

import ast
import bz2
import contextlib
import gc
import gzip
import importlib.util
import inspect
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor
from nibabel.testing import data_path
from nilearn.maskers import NiftiMasker

from beyond_the_masker import streaming as plot_stream_masks
from beyond_the_masker.meter import MIB, measure
from beyond_the_masker.streaming import stream_masks

SHAPE = (5, 6, 4, 7)
STRAIGHT = np.array([[3.0, 0, 0, -7], [0, 3, 0, -9], [0, 0, 4, -6], [0, 0, 0, 1]])
FLIPPED = STRAIGHT * [[-1], [1], [-1], [1]]
OBLIQUE = np.array([[2.9, 0.4, 0.1, 3], [-0.4, 2.8, 0.7, 5], [0, -0.7, 3.9, 8], [0, 0, 0, 1]])
TYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
HEADERS = {  # of one file, and of a pair of files
    1: (nib.nifti1.Nifti1Header, nib.nifti1.Nifti1PairHeader),
    2: (nib.nifti2.Nifti2Header, nib.nifti2.Nifti2PairHeader),
}
PACK = {"": bytes, ".gz": lambda content: gzip.compress(content, 1, mtime=0), ".bz2": bz2.compress}


# Files, and what NiftiMasker makes of them
# -----------------------------------------


def without_isal():
    """The page, imported anew as if isal were not installed."""
    path = plot_stream_masks.__file__
    spec = importlib.util.spec_from_file_location("stream_masks_without_isal", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "isal", None)
        spec.loader.exec_module(module)
    return module


MODULES = (plot_stream_masks, without_isal())
both = pytest.mark.parametrize("module", MODULES, ids=["as installed", "without isal"])


def by_name(names, ways):
    """Parametrise with the values of a dict, its keys being the names of the tests."""
    return pytest.mark.parametrize(names, ways.values(), ids=ways.keys())


def any_bits(shape, dtype, seed=0):
    """Numbers of any bits: the whole range of integers; NaN, infinite and tiny floats, -0.0.

    float64 is at most 1e300, so that scale factors do not make it overflow, which warns.
    """
    dtype = np.dtype(dtype)
    content = bytearray(np.random.default_rng(seed).bytes(int(np.prod(shape)) * dtype.itemsize))
    data = np.frombuffer(content, dtype).reshape(shape)
    if dtype.kind == "f":
        special = [-0.0, np.inf, -np.inf, np.nan, 1.5, -123.25]
        data.flat[::5] = np.resize(special, len(data.flat[::5]))
        data[np.isnan(data)] = np.nan  # some kinds of NaN make numpy warn where they are scaled
        if dtype.itemsize == 8:
            data[np.isfinite(data) & (np.abs(data) > 1e300)] = 1e300
    return data


def write(path, data, affine=STRAIGHT, scaling=(np.nan, np.nan), version=1, offset=0):
    """Write the bytes of an image; any scale factors; `offset` is where a single file's data begin.

    The type and the byte order in the file are those of the array.
    """
    path = Path(path)
    pack = PACK.get(path.suffix, bytes)
    pair = ".img" in path.suffixes
    order = {">": ">", "<": "<"}.get(
        data.dtype.byteorder, "<" if sys.byteorder == "little" else ">"
    )
    header = HEADERS[version][pair](endianness=order)
    header.set_data_dtype(data.dtype)
    header.set_data_shape(data.shape)
    header.set_sform(affine, 1)
    header.set_qform(affine, 1)
    header["scl_slope"], header["scl_inter"] = scaling
    if not pair:
        header["vox_offset"] = offset = (
            offset or header["vox_offset"] or len(header.binaryblock) + 4
        )
    head = header.binaryblock + bytes(4)
    values = data.tobytes("F")
    if pair:
        path.write_bytes(pack(values))
        Path(str(path).replace(".img", ".hdr")).write_bytes(pack(head))
    else:
        path.write_bytes(pack(head + bytes(int(offset) - len(head)) + values))
    return path


def regions(shape, n_regions=3, seed=1):
    """Boolean arrays that overlap, of one voxel or more; the last two are one voxel and all."""
    rng = np.random.default_rng(seed)
    chance = rng.random((n_regions, *shape[:3])) < rng.random((n_regions, 1, 1, 1))
    one = np.zeros(shape[:3], bool)
    one[tuple(n // 2 for n in shape[:3])] = True
    return [*(region | one for region in chance), one, np.ones_like(one)]


def masks_for(shape, affine=STRAIGHT, n_regions=1):
    """Images of regions."""
    arrays = regions(shape, n_regions)
    return [nib.Nifti1Image(region.astype("u1"), affine) for region in arrays]


def nifti_masker(fmri_path, masks):
    """What nilearn gives, which everything is compared with, in the machine's byte order.

    It warns about types and values that it meets, and that are taken here without a word.
    """
    with warnings.catch_warnings():
        for message, category in (
            ("Data array used to create a new image contains 64-bit ints", UserWarning),
            ("Non-finite values detected", UserWarning),  # in a mask
            ("overflow encountered in (cast|reduce)", RuntimeWarning),  # for its report
            ("overflow encountered in multiply", RuntimeWarning),  # numbers times the slope
        ):
            warnings.filterwarnings("ignore", message, category)
        series = [
            NiftiMasker(mask_img=mask, standardize=None).fit_transform(fmri_path) for mask in masks
        ]
    return [a.astype(a.dtype.newbyteorder("=")) for a in series]


def assert_same(series, reference):
    """Compare shapes, types, byte orders, and every bit of every value."""
    assert [a.shape for a in series] == [a.shape for a in reference]
    assert [a.dtype for a in series] == [a.dtype for a in reference]
    for a, b in zip(series, reference, strict=True):
        assert a.dtype.isnative
        if a.dtype == np.longdouble:  # which has bytes that mean nothing
            np.testing.assert_array_equal(a, b)
        else:
            assert a.tobytes() == b.tobytes()


def assert_like_nifti_masker(fmri_path, masks, same_as=None, **options):
    """Compare with and without isal; `same_as` is a file that NiftiMasker takes instead."""
    reference = nifti_masker(same_as or fmri_path, masks)
    for module in MODULES:
        assert_same(module.stream_masks(fmri_path, masks, **options), reference)


# The same values as NiftiMasker
# ------------------------------


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", TYPES)
def test_any_type_of_numbers(tmp_path, kind, order, version):
    """A type, a byte order or a version of NIfTI gives other values, or is refused."""
    fmri_path = tmp_path / "fmri.nii"
    write(fmri_path, any_bits(SHAPE, order + kind), OBLIQUE, version=version)
    assert_like_nifti_masker(fmri_path, masks_for(SHAPE, OBLIQUE))


SCALINGS = {
    "slope": (2, 0),
    "slope that is not exact": (0.1, 0),
    "slope and intercept": (0.37, -5.1),
    "intercept": (1, 10),
    "negative": (-1.5, 3),
    "tiny": (1e-30, 0),
    "least": (1e-45, 0),
    "large intercept": (0.1, 1e10),
    "one": (1, 0),
    "slope of zero": (0, 7),
    "slope NaN": (np.nan, 3),
    "slope infinite": (np.inf, 3),
}


@by_name("scaling", SCALINGS)
@pytest.mark.parametrize("dtype", ["u1", ">i2", "<i2", "<i8", "u4", "<f4", ">f4", ">f8"])
def test_scale_factors(tmp_path, dtype, scaling):
    """Scale factors are left out, or used in another precision or on another type."""
    fmri_path = write(tmp_path / "fmri.nii.gz", any_bits(SHAPE, dtype), FLIPPED, scaling)
    assert_like_nifti_masker(fmri_path, masks_for(SHAPE, FLIPPED))


def test_scale_factors_beyond_float64(tmp_path):
    """Numbers that nibabel scales in long double come in a type that is not NiftiMasker's."""
    fmri_path = write(tmp_path / "fmri.nii", any_bits(SHAPE, "u8"), scaling=(1e300, 0), version=2)
    assert_like_nifti_masker(fmri_path, masks_for(SHAPE))
    assert stream_masks(fmri_path, masks_for(SHAPE))[0].dtype == np.longdouble


@pytest.mark.parametrize("name", ["f.nii", "f.nii.gz", "f.nii.bz2", "F.NII", "F.NII.GZ"])
@pytest.mark.parametrize(("version", "offset"), [(1, 0), (1, 4000), (2, 0), (2, 1024)])
def test_one_file(tmp_path, name, version, offset):
    """A compression, or a place where the data begin, gives other values."""
    data = any_bits(SHAPE, ">i2")
    fmri_path = tmp_path / name
    content = write(tmp_path / "plain.nii", data, version=version, offset=offset).read_bytes()
    fmri_path.write_bytes(PACK.get(fmri_path.suffix.lower(), bytes)(content))
    assert int(nib.load(fmri_path).dataobj.offset) == (offset or {1: 352, 2: 544}[version])
    assert_like_nifti_masker(fmri_path, masks_for(SHAPE))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_header_without_an_offset(tmp_path, suffix):
    """Where the header does not say where the data begin, another place is taken."""
    content = bytearray(write(tmp_path / "fmri.nii", any_bits(SHAPE, "<i2")).read_bytes())
    content[108:112] = bytes(4)
    fmri_path = tmp_path / f"fmri{suffix}"
    fmri_path.write_bytes(PACK[fmri_path.suffix.replace(".nii", "")](content))
    assert_like_nifti_masker(fmri_path, masks_for(SHAPE))


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", ["f.img", "f.hdr"])
def test_pair_of_files(tmp_path, name, version, suffix):
    """The header is taken for data. (NiftiMasker fails on a pair, so a single file stands in.)"""
    data = any_bits(SHAPE, "<f4")
    write(tmp_path / f"f.img{suffix}", data, version=version)
    same = write(tmp_path / "same.nii", data)
    masks = masks_for(SHAPE)
    assert_like_nifti_masker(tmp_path / (name + suffix), masks, same_as=same)
    for image in (tmp_path / "m.img", tmp_path / "m.hdr"):
        nib.save(nib.Nifti1Pair(masks[0].dataobj, STRAIGHT), image)
        assert_same(stream_masks(same, [image]), nifti_masker(same, masks[:1]))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_header_extensions(tmp_path, suffix):
    """A comment in the header is taken for data."""
    img = nib.Nifti1Image(any_bits(SHAPE, "<i2"), STRAIGHT)
    img.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a comment" * 50))
    nib.save(img, tmp_path / f"fmri{suffix}")
    assert nib.load(tmp_path / f"fmri{suffix}").dataobj.offset > 700
    assert_like_nifti_masker(tmp_path / f"fmri{suffix}", masks_for(SHAPE))


def several_members(content):
    """Compress in several parts, as bgzip and pigz do."""
    return b"".join(gzip.compress(content[i : i + 500]) for i in range(0, len(content), 500))


@by_name(
    "pack",
    {
        "several members": several_members,
        "zeros behind": lambda content: gzip.compress(content) + bytes(1000),
        "more data than volumes": lambda content: gzip.compress(content + bytes(3_000_000)),
        "not compressed, in gzip": lambda content: gzip.compress(content, 0),
        "name in the header": lambda content: (
            b"\x1f\x8b\x08\x08" + bytes(6) + b"name.nii\0" + gzip.compress(content)[10:]
        ),
    },
)
def test_odd_gzip(tmp_path, pack):
    """A file that gzip takes is refused, or read up to the end of its first member."""
    content = write(tmp_path / "fmri.nii", any_bits(SHAPE, "<i4")).read_bytes()
    (tmp_path / "fmri.nii.gz").write_bytes(pack(content))
    assert_like_nifti_masker(tmp_path / "fmri.nii.gz", masks_for(SHAPE))


@pytest.mark.parametrize("shape", [(5, 6, 4, 1), (1, 1, 1, 1), (1, 6, 1, 2), (2, 1, 3, 300)])
def test_odd_shapes(tmp_path, shape):
    """One volume, or one voxel, loses its axis."""
    fmri_path = write(tmp_path / "fmri.nii.gz", any_bits(shape, "<f4"))
    assert_like_nifti_masker(fmri_path, masks_for(shape))


@pytest.mark.parametrize("name", ["example4d.nii.gz", "functional.nii", "example_nifti2.nii.gz"])
@pytest.mark.parametrize("block_size", [None, 1, 3])
def test_real_images(name, block_size):
    """An image of nibabel's own tests gives other values."""
    fmri_path = Path(data_path) / name
    img = nib.load(fmri_path)
    masks = masks_for(img.shape, img.affine, 2)
    assert_like_nifti_masker(fmri_path, masks, block_size=block_size)


def test_hundreds_of_masks(tmp_path):
    """One of many masks gets another's voxels."""
    fmri_path = write(tmp_path / "fmri.nii.gz", any_bits(SHAPE, "<f4"))
    masks = masks_for(SHAPE, n_regions=298)
    assert len(masks) == 300
    assert_like_nifti_masker(fmri_path, masks)


MASKS = {
    **{kind: lambda region, kind=kind: (3 * region).astype(kind) for kind in TYPES},
    "big-endian": lambda region: region.astype(">f8"),
    "negative": lambda region: -2.5 * region,
    "several values": lambda region: region * np.arange(region.size).reshape(region.shape) % 7,
    "NaN around": lambda region: np.where(region, 1, np.nan),
    "infinite and tiny": lambda region: np.where(region, 1e-300, np.inf),
}


@by_name("convert", MASKS)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nii.bz2"])
@pytest.mark.parametrize("load", [str, Path, nib.load], ids=["str", "Path", "image"])
def test_any_mask(tmp_path, convert, suffix, load):
    """A mask of another type, or with NaN around it as SPM writes it, selects other voxels."""
    values = convert(regions(SHAPE)[0])
    values = values if values.dtype.kind == "f" else values.astype(values.dtype.newbyteorder("<"))
    mask = load(write(tmp_path / f"mask{suffix}", values))
    fmri_path = write(tmp_path / "fmri.nii", any_bits(SHAPE, "<i2"))
    assert_same(stream_masks(fmri_path, [mask]), nifti_masker(fmri_path, [mask]))


@pytest.mark.parametrize("scaling", [(0.5, 0), (0.5, -1.5), (1e-6, 0), (-2, 6), (0, 5)])
def test_scaled_mask(tmp_path, scaling):
    """A mask's stored numbers are taken for its values."""
    mask = write(tmp_path / "mask.nii", (3 * regions(SHAPE)[0]).astype("u1"), scaling=scaling)
    fmri_path = write(tmp_path / "fmri.nii", any_bits(SHAPE, "<i2"))
    assert_same(stream_masks(str(fmri_path), [mask]), nifti_masker(fmri_path, [mask]))


def test_any_sequence_of_masks(tmp_path):
    """Masks that come one by one, or as a tuple, are used up before the file is read."""
    fmri_path, masks = write(tmp_path / "fmri.nii", any_bits(SHAPE, "<f4")), masks_for(SHAPE)
    expected = nifti_masker(fmri_path, masks)
    for sequence in (tuple(masks), iter(masks), (mask for mask in masks)):
        assert_same(stream_masks(fmri_path, sequence), expected)


@pytest.mark.parametrize("dtype", ["<f4", ">i2"])
@pytest.mark.parametrize(
    "options",
    [{"block_size": n} for n in (1, 2, 7, 23, 33)]
    + [{"memory_mib": n} for n in (0, 1e-9, 0.01, 0.02, 8, 1e6)]
    + [{"block_size": 5, "memory_mib": 1e-9}],
    ids=str,
)
def test_size_of_blocks_changes_nothing(tmp_path, dtype, options):
    """Volumes at the end of a block, or in the last one, which is smaller, are lost or mixed up."""
    shape = (5, 6, 4, 23)
    fmri_path = write(tmp_path / "fmri.nii.gz", any_bits(shape, dtype), scaling=(0.5, 1))
    assert_like_nifti_masker(fmri_path, masks_for(shape), **options)


def test_the_numbers_in_memory_are_a_few_mib(tmp_path, monkeypatch):
    """`memory_mib` or `block_size` is ignored: the number of volumes in a block is another."""
    fmri_path = write(tmp_path / "fmri.nii", any_bits((8, 8, 8, 40), "<f4"))
    seen, scale = [], plot_stream_masks.apply_read_scaling
    monkeypatch.setattr(
        plot_stream_masks,
        "apply_read_scaling",
        lambda rows, *factors: seen.append(len(rows)) or scale(rows, *factors),
    )
    mask = masks_for((8, 8, 8))[-1]
    for options in ({}, {"memory_mib": 4 * 4 * 512 * 10 / MIB}, {"block_size": 7}):
        stream_masks(fmri_path, [mask], **options)
    asked = [0]  # for the type, before the file is read
    assert seen == [*asked, 40, *asked, *[10] * 4, *asked, *[7] * 5, 5]


def test_without_isal():
    """What is called the version without isal uses it, or the page does not where it could."""
    assert MODULES[1].gzip is gzip
    if importlib.util.find_spec("isal"):
        assert plot_stream_masks.gzip.__name__ == "isal.igzip"


@st.composite
def cases(draw):
    """How to make an image of any type, scaling and shape, masks on its grid, and a call."""
    kind = draw(st.sampled_from(TYPES))
    return SimpleNamespace(
        shape=draw(st.tuples(*[st.integers(1, 5)] * 3, st.integers(1, 9))),
        dtype=draw(st.sampled_from("<>")) + kind,
        seed=draw(st.integers(0, 2**32)),
        scaling=draw(
            st.sampled_from([(np.nan, 0.0), (1.0, 0.0), (2.0, 0.0), (0.0, 3.0)])
            | st.tuples(st.floats(-1e3, 1e3, width=32), st.floats(-1e3, 1e3, width=32))
        ),
        affine=draw(st.sampled_from([STRAIGHT, FLIPPED, OBLIQUE])),
        version=draw(st.sampled_from([1, 2])),
        offset=draw(st.sampled_from([0, 0, 560, 5008])),
        suffix=draw(st.sampled_from([".nii", ".nii.gz", ".nii.bz2", ".img", ".img.gz"])),
        masks=draw(st.lists(st.integers(0, 3), min_size=1, max_size=2)),
        options=draw(
            st.fixed_dictionaries(
                {}, optional={"block_size": st.integers(1, 12), "memory_mib": st.floats(0, 0.01)}
            )
        ),
        out=draw(st.lists(st.sampled_from(["str", "Path", "array"]), min_size=2, max_size=2)),
        give_out=draw(st.booleans()),
        module=draw(st.sampled_from(MODULES)),
    )


@settings(max_examples=500)
@given(cases())
def test_any_image_gives_the_values_of_nifti_masker(case):
    """Some shape, type, value, scaling, mask, block or output is treated in another way."""
    data = any_bits(case.shape, case.dtype, case.seed)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        options = {"affine": case.affine, "scaling": case.scaling, "version": case.version}
        fmri_path = write(folder / f"fmri{case.suffix}", data, offset=case.offset, **options)
        same = fmri_path
        if ".img" in case.suffix:
            same = write(folder / "same.nii", data, **options)
        masks = [masks_for(case.shape, case.affine, 2)[i] for i in case.masks]
        reference = nifti_masker(same, masks)
        out = None
        if case.give_out:
            makers = {"str": str, "Path": Path}
            out = [
                np.empty(a.shape, a.dtype) if kind == "array" else makers[kind](folder / f"{i}.npy")
                for i, (kind, a) in enumerate(zip(case.out, reference, strict=False))
            ]
        series = case.module.stream_masks(fmri_path, masks, out=out, **case.options)
        assert_same(series, reference)
        for path in (o for o in out or [] if isinstance(o, str | Path)):
            assert_same([np.load(path)], [reference[int(Path(path).stem)]])
        assert not list(folder.glob("*.unfinished"))


# Files that are cut off or damaged
# ---------------------------------


@pytest.fixture(scope="module")
def small_files(tmp_path_factory):
    """The bytes of a small image, uncompressed and compressed, and a mask."""
    folder = tmp_path_factory.mktemp("small")
    # Noise that is compressed a bit, so that there is a part of every kind in the stream.
    data = np.random.default_rng(3).normal(100, 9, (5, 6, 4, 5)).astype("<i2")
    content = {}
    for suffix in (".nii", ".nii.gz", ".nii.bz2"):
        content[suffix] = write(folder / f"fmri{suffix}", data).read_bytes()
    return content, masks_for(data.shape)[0]


def assert_all_refused(module, folder, suffix, contents, mask):
    """See that each content gives an error that names the file, and leaves nothing behind."""
    fmri_path, name = folder / f"fmri{suffix}", folder / "series.npy"
    n_refused = 0
    for what, content in contents:
        fmri_path.write_bytes(content)
        out = [name] if n_refused % 2 else None
        with pytest.raises((OSError, ValueError)) as raised:
            pytest.fail(f"{what}: {module.stream_masks(fmri_path, [mask], out=out)}")
        assert str(fmri_path) in str(raised.value), what
        assert [path.name for path in folder.iterdir()] == [fmri_path.name], what
        n_refused += 1
    return n_refused


def cut(content, first, step):
    """Content that ends too early, at many places and at the last ones."""
    places = {*range(first, len(content), step), *range(len(content) - 40, len(content))}
    return [(f"cut at {place}", content[:place]) for place in sorted(places)]


@both
@pytest.mark.parametrize(
    ("suffix", "first", "step"), [(".nii", 352, 3), (".nii.gz", 1, 2), (".nii.bz2", 1, 2)]
)
def test_file_that_is_cut_off(tmp_path, small_files, module, suffix, first, step):
    """The rest of an image that is cut off is made up, or an unfinished result is left."""
    contents, mask = small_files
    todo = cut(contents[suffix], first, step)
    assert assert_all_refused(module, tmp_path, suffix, todo, mask) > 200


def damaged(content, first, n_places):
    """Content with all bits of one byte changed, at places all over it and at its ends."""
    places = {*np.linspace(first, len(content) - 1, n_places).astype(int)}
    places |= {*range(first, first + 30), *range(len(content) - 30, len(content))}
    for place in sorted(places):
        changed = bytearray(content)
        changed[place] ^= 0xFF
        yield f"damaged at {place}", bytes(changed)


@both
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii.bz2"])
def test_file_that_is_damaged(tmp_path, small_files, module, suffix):
    """One wrong byte gives numbers, be it in the data or in the checksum behind them."""
    contents, mask = small_files
    todo = damaged(contents[suffix], 10, 200)
    assert assert_all_refused(module, tmp_path, suffix, todo, mask) > 200


@both
@pytest.mark.parametrize("what", ["data", "checksum", "length", "last byte is missing"])
def test_damage_in_what_is_stored_as_it_is(tmp_path, small_files, module, what):
    """Damage that only the checksum tells goes unnoticed, since no volume is behind it."""
    contents, mask = small_files
    content = bytearray(gzip.compress(contents[".nii"], 0, mtime=0))
    place = {"data": -500, "checksum": -8, "length": -4}.get(what)
    if place:
        content[place] ^= 1
    else:
        del content[-1:]
    assert_all_refused(module, tmp_path, ".nii.gz", [(what, bytes(content))] * 2, mask)


@both
def test_damage_behind_the_volumes(tmp_path, small_files, module):
    """The part of a file that holds no volume is not read, and its checksum not compared."""
    contents, mask = small_files
    noise = np.random.default_rng(0).bytes(3 * MIB)
    content = bytearray(gzip.compress(contents[".nii"] + noise, 1, mtime=0))
    content[-9] ^= 1
    assert_all_refused(module, tmp_path, ".nii.gz", [("damaged", bytes(content))] * 2, mask)


@both
@pytest.mark.parametrize("place", [43, 283, 290], ids=["shape", "affine", "affine a little"])
def test_damage_in_the_header(tmp_path, small_files, module, place):
    """Damage that gives another grid is blamed on the mask: the error does not name the image."""
    contents, mask = small_files
    content = bytearray(gzip.compress(contents[".nii"], 0, mtime=0))  # stored as it is, from 15 on
    content[15 + place] ^= 0x10
    assert_all_refused(module, tmp_path, ".nii.gz", [("damaged", bytes(content))] * 2, mask)


# Input that does not fit
# -----------------------

MOVED = nib.affines.from_matvec(STRAIGHT[:3, :3], [-6, -9, -6])
NO_4D = ["{fmri}", "4D NIfTI"]
GRID = ["{mask}", "resample_to_img", "(5, 6, 4)"]
DAMAGED = ["{fmri}", "incomplete or damaged", "copy it again"]
BAD_MASK = ["{mask}", "incomplete or damaged", "copy it again"]
BAD = {  # name: image, mask, exception, what its message says
    "3D image": ("3d.nii", "mask.nii", ValueError, [*NO_4D, "(5, 6, 4)"]),
    "5D image": ("5d.nii", "mask.nii", ValueError, [*NO_4D, "(5, 6, 4, 7, 2)"]),
    "5D image, one long": ("5d_1.nii", "mask.nii", ValueError, [*NO_4D, "(5, 6, 4, 7, 1)"]),
    "no volumes": ("no_volume.nii", "mask.nii", ValueError, [*NO_4D, "(5, 6, 4, 0)"]),
    "no voxels": ("no_voxel.nii", "mask.nii", ValueError, [*NO_4D, "(5, 0, 4, 7)"]),
    "complex": ("complex.nii", "mask.nii", ValueError, [*NO_4D, "numbers"]),
    "double complex": ("double_complex.nii", "mask.nii", ValueError, [*NO_4D, "numbers"]),
    "colours": ("rgb.nii", "mask.nii", ValueError, [*NO_4D, "numbers"]),
    "long double": ("long_double.nii", "mask.nii", OSError, ["{fmri}", "1536 not supported"]),
    "not NIfTI": ("image.mgz", "mask.nii", ValueError, NO_4D),
    "no image at all": ("garbage.nii", "mask.nii", OSError, DAMAGED),
    "no image at all, compressed": ("garbage.nii.gz", "mask.nii", OSError, DAMAGED),
    "empty file": ("nothing.nii", "mask.nii", OSError, DAMAGED),
    "empty file, compressed": ("nothing.nii.gz", "mask.nii", OSError, DAMAGED),
    "folder": ("folder", "mask.nii", OSError, ["{fmri}"]),
    "huge shape": ("huge.nii", "mask.nii", (OSError, ValueError), ["{fmri}"]),
    "intercept NaN": ("intercept.nii", "mask.nii", OSError, DAMAGED),
    "missing": ("none.nii", "mask.nii", FileNotFoundError, ["{fmri}"]),
    "data missing": ("half.hdr", "mask.nii", FileNotFoundError, ["half.img"]),
    "mask missing": ("fmri.nii", "none.nii", FileNotFoundError, ["{mask}"]),
    "other grid": ("fmri.nii", "small.nii", ValueError, [*GRID, "(5, 5, 4)"]),
    "4D mask": ("fmri.nii", "3d_2.nii", ValueError, [*GRID, "(5, 6, 4, 2)"]),
    "other affine": ("fmri.nii", "moved.nii", ValueError, [*GRID, str(MOVED), str(STRAIGHT)]),
    "empty mask": ("fmri.nii", "empty.nii", ValueError, ["{mask}", "has 0 voxels"]),
    "mask of NaN": ("fmri.nii", "nan.nii", ValueError, ["{mask}", "has 0 voxels"]),
    "mask of colours": ("fmri.nii", "colours.nii", (OSError, TypeError), []),
    "mask is cut off": ("fmri.nii", "cut.nii", OSError, BAD_MASK),
    "compressed mask is cut off": ("fmri.nii", "cut.nii.gz", OSError, BAD_MASK),
    "mask is damaged": ("fmri.nii", "damaged.nii.gz", OSError, BAD_MASK),
    "mask is garbage": ("fmri.nii", "garbage.nii", OSError, BAD_MASK),
    "mask file is empty": ("fmri.nii", "nothing.nii", OSError, BAD_MASK),
    "cut off": ("cut_fmri.nii", "mask.nii", OSError, DAMAGED),
    "compressed, cut off": ("cut_fmri.nii.gz", "mask.nii", OSError, DAMAGED),
}


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    """A good image, a good mask, and a bad one of every kind."""
    folder = tmp_path_factory.mktemp("bad")
    data, region = any_bits(SHAPE, "<f4"), regions(SHAPE)[0]
    rgb = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    for name, values in {
        "fmri": data,
        "3d": data[..., 0],
        "5d": np.stack([data, data], -1),
        "5d_1": data[..., None],
        "complex": np.ones(SHAPE, "<c8"),
        "double_complex": np.ones(SHAPE, "<c16"),
        "rgb": np.ones(SHAPE, rgb),
        "mask": region.astype("u1"),
        "small": region[:, :5].astype("u1"),
        "3d_2": np.stack([region, region], axis=3).astype("u1"),
        "empty": np.zeros(SHAPE[:3], "u1"),
        "nan": np.full(SHAPE[:3], np.nan),
        "colours": np.ones(SHAPE[:3], rgb),
        "no_volume": np.ones((*SHAPE[:3], 0), "<f4"),
        "no_voxel": np.ones((5, 0, 4, 7), "<f4"),
    }.items():
        write(folder / f"{name}.nii", values)
    write(folder / "moved.nii", region.astype("u1"), MOVED)
    write(folder / "intercept.nii", data, scaling=(2, np.nan))
    write(folder / "half.img", data).unlink()
    for name, place, numbers in (
        ("huge", 40, np.array([4, 32767, 32767, 32767, 5], "<i2")),
        ("long_double", 70, np.array([1536, 128], "<i2")),
    ):
        content = bytearray((folder / "fmri.nii").read_bytes())
        content[place : place + numbers.nbytes] = numbers.tobytes()
        (folder / f"{name}.nii").write_bytes(content)
    for source, name in (("mask", "cut"), ("fmri", "cut_fmri")):
        content = (folder / f"{source}.nii").read_bytes()
        (folder / f"{name}.nii").write_bytes(content[:-1])
        (folder / f"{name}.nii.gz").write_bytes(gzip.compress(content)[:-9])
    content = bytearray(gzip.compress((folder / "mask.nii").read_bytes()))
    content[len(content) // 2] ^= 0xFF
    (folder / "damaged.nii.gz").write_bytes(content)
    for suffix in (".nii", ".nii.gz"):
        (folder / f"nothing{suffix}").touch()
        (folder / f"garbage{suffix}").write_bytes(np.random.default_rng(0).bytes(5000))
    nib.save(nib.MGHImage(data, STRAIGHT), folder / "image.mgz")
    (folder / "folder").mkdir()
    return folder


def open_files(folder):
    """Names of the files in a folder that this process has open, also of those removed since."""
    found = [Path(file.path) for file in psutil.Process().open_files()]
    if Path("/proc/self/fd").exists():  # psutil leaves out those removed since
        found = []
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # the listing itself
                found.append(Path(os.readlink(f"/proc/self/fd/{number}")))
    return sorted(path.name for path in found if folder in path.parents)


@both
@by_name("bad", BAD)
def test_bad_input_is_refused(tmp_path, bad_files, module, bad):
    """Bad input gives numbers, an error that does not name it, a result, or a file left open."""
    fmri_name, mask_name, exception, texts = bad
    fmri_path, mask_path = bad_files / fmri_name, bad_files / mask_name
    names = [tmp_path / "0.npy", tmp_path / "1.npy"]
    for out in (None, names):
        with pytest.raises(exception) as raised:
            module.stream_masks(fmri_path, [bad_files / "mask.nii", mask_path], out=out)
        if isinstance(exception, type):
            assert raised.type is exception
        for text in texts:
            assert text.format(fmri=fmri_path, mask=mask_path) in str(raised.value)
        # While the traceback is held: nothing is closed by being forgotten.
        assert open_files(bad_files) == []
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("masks", [[], ()], ids=["list", "tuple"])
def test_no_masks_at_all(bad_files, masks):
    """No masks end in an error from the inside of numpy."""
    with pytest.raises(ValueError, match="mask"):
        stream_masks(bad_files / "fmri.nii", masks)


@pytest.mark.parametrize("load", [str, Path, nib.load], ids=["str", "Path", "image"])
def test_one_mask_that_is_not_in_a_list(bad_files, load):
    """A mask without its list gives numbers: each letter of its path, for example, is a mask."""
    with pytest.raises((TypeError, ValueError, OSError)):
        stream_masks(bad_files / "fmri.nii", load(bad_files / "mask.nii"))


@both
@pytest.mark.parametrize("name", ["fmri.nii", "fmri.nii.gz", "fmri.nii.bz2", "fmri.img"])
def test_files_are_closed(tmp_path, module, name):
    """The image is closed by the call itself, not by the garbage collector."""
    fmri_path = write(tmp_path / name, any_bits(SHAPE, "<f4"))
    mask_path = write(tmp_path / "mask.nii.gz", regions(SHAPE)[0].astype("u1"))
    gc.collect()  # other tests' garbage may warn
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        series = module.stream_masks(fmri_path, [mask_path])
        assert open_files(tmp_path) == []
        maps = module.stream_masks(fmri_path, [mask_path], out=[tmp_path / "series.npy"])
        assert set(open_files(tmp_path)) <= {"series.npy"}  # a map may keep its file open
        assert_same(maps, series)
        del maps
        gc.collect()
    assert open_files(tmp_path) == []
    assert caught == []


# Where the results go
# --------------------


@pytest.fixture
def good(tmp_path):
    """An image, three masks and NiftiMasker's arrays; a folder for results that is empty."""
    fmri_path = write(tmp_path / "fmri.nii.gz", any_bits(SHAPE, ">f4"))
    masks, folder = masks_for(SHAPE), tmp_path / "results"
    folder.mkdir()
    return SimpleNamespace(
        fmri_path=fmri_path, masks=masks, reference=nifti_masker(fmri_path, masks), folder=folder
    )


@pytest.mark.parametrize("block_size", [1, 3, None])
def test_own_arrays_are_filled(good, block_size):
    """An array that was given is not what comes back, or holds something else."""
    own = [np.full(a.shape, 99, a.dtype) for a in good.reference]
    own[0] = np.asfortranarray(own[0])
    own[1] = np.full((7, 2), 99, "f4")[:, ::2]  # every other column of an array
    series = stream_masks(good.fmri_path, good.masks, block_size, out=tuple(own))
    assert [id(a) for a in series] == [id(a) for a in own]
    assert_same(own, good.reference)


@pytest.mark.parametrize("types", [(str,) * 3, (Path,) * 3, (str, Path, None), (None, str, Path)])
@pytest.mark.parametrize("block_size", [1, 3, None])
def test_results_in_files(good, types, block_size):
    """A file holds something else, has another name, or the map that comes back another type."""
    out = [good.folder / f"{i}.npy" for i in range(3)]
    for i, a in enumerate(good.reference):
        out[i] = types[i](out[i]) if types[i] else np.empty(a.shape, a.dtype)
    given = list(out)
    series = stream_masks(good.fmri_path, good.masks, block_size, out=out)
    assert all(a is b for a, b in zip(out, given, strict=True))
    assert isinstance(series, list)
    assert_same(series, good.reference)
    named = [i for i in range(3) if types[i]]
    assert sorted(path.name for path in good.folder.iterdir()) == [f"{i}.npy" for i in named]
    for i in range(3):
        if i in named:
            assert isinstance(series[i], np.memmap)
            assert_same(
                [np.load(given[i]), np.load(given[i], mmap_mode="r")], good.reference[i:][:1] * 2
            )
        else:
            assert series[i] is given[i]


def test_names_in_the_working_folder(good, monkeypatch):
    """A name without a folder is looked for elsewhere."""
    monkeypatch.chdir(good.folder)
    stream_masks(good.fmri_path, good.masks, out=["a.npy", "b.npy", Path("c.npy")])
    assert_same([np.load(f"{name}.npy") for name in "abc"], good.reference)


def test_maps_that_come_back_know_their_file(good):
    """A map tells a file that is gone: joblib sends its name to workers, which do not find it."""
    names = [good.folder / f"{i}.npy" for i in range(3)]
    series = stream_masks(good.fmri_path, good.masks, out=names)
    assert [Path(a.filename) for a in series] == names


def test_maps_that_come_back_can_be_sent_to_workers(good):
    """Workers of joblib cannot use the results."""
    names = [good.folder / f"{i}.npy" for i in range(3)]
    series = stream_masks(good.fmri_path, good.masks, out=names)
    try:
        sums = Parallel(n_jobs=2)(delayed(np.max)(a) for a in series)
    finally:
        get_reusable_executor().shutdown(wait=True)
    assert sums == [a.max() for a in good.reference]


WRONG = {
    "too few": lambda own, name: own[:2],
    "none": lambda own, name: [],
    "too many": lambda own, name: [*own, own[0]],
    "too many names": lambda own, name: [name(i) for i in range(4)],
    "too few names": lambda own, name: [name(i) for i in range(2)],
    "one row more": lambda own, name: [np.empty((8, own[0].shape[1]), "f4"), *own[1:]],
    "one row less": lambda own, name: [own[0][:-1], *own[1:]],
    "one column more": lambda own, name: [*own[:2], np.empty((7, 121), "f4")],
    "transposed": lambda own, name: [own[0], own[1].T, own[2]],
    "float64": lambda own, name: [own[0].astype("f8"), *own[1:]],
    "byte order": lambda own, name: [own[0].astype(own[0].dtype.newbyteorder("S")), *own[1:]],
    "int": lambda own, name: [*own[:2], own[2].astype("i4")],
    "other order": lambda own, name: own[::-1],
    "same name": lambda own, name: [name(0), name(1), name(0)],
    "same name as str and Path": lambda own, name: [name(0), str(name(0)), name(1)],
    "same file, other spelling": lambda own, name: [
        name(0),
        os.path.join(name(0).parent, ".", name(0).name),
        name(1),
    ],
    "a name and a wrong array": lambda own, name: [name(0), own[0], own[2]],
}


@by_name("wrong", WRONG)
def test_out_that_does_not_fit_is_refused(good, monkeypatch, wrong):
    """Output that does not fit is noticed after minutes of reading, or not at all."""

    def fail(*args):
        pytest.fail("the image was read")

    monkeypatch.setattr(plot_stream_masks.gzip, "open", fail)
    own = [np.full(a.shape, 99, a.dtype) for a in good.reference]
    out = wrong(own, lambda i: good.folder / f"{i}.npy")
    with pytest.raises(ValueError, match="out needs"):
        stream_masks(good.fmri_path, good.masks, out=out)
    assert list(good.folder.iterdir()) == []
    assert all((a == 99).all() for a in own)


@pytest.mark.parametrize("out", ["series.npy", [None, None, None], [[0.0], [0.0], [0.0]]], ids=str)
def test_out_that_is_something_else_is_refused(good, monkeypatch, out):
    """A single name without its list makes a file for each letter, and the error says nothing."""
    monkeypatch.chdir(good.folder)
    with pytest.raises((ValueError, TypeError), match="out"):
        stream_masks(good.fmri_path, good.masks, out=out)
    assert list(good.folder.iterdir()) == []


def broken(files, monkeypatch):
    """Cut the image off."""
    files.fmri_path.write_bytes(files.fmri_path.read_bytes()[:-9])


def no_room(files, monkeypatch):
    """Fill the disk up to a byte too few."""
    room = sum(a.nbytes for a in files.reference) - 1
    monkeypatch.setattr(
        plot_stream_masks,
        "shutil",
        SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=room)),
    )


def progress(at_volume=lambda n_volumes: None, at_end=lambda: None):
    """Make a stand-in for tqdm that calls functions at each volume, and when it is closed."""

    class Progress:
        def __init__(self, **options):
            self.n_volumes = 0

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            at_end()

        def update(self):
            self.n_volumes += 1
            at_volume(self.n_volumes)

    return Progress


def ctrl_c(files, monkeypatch):
    """Interrupt after the third volume."""

    def interrupt(n_volumes):
        if n_volumes == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(plot_stream_masks, "tqdm", progress(interrupt))


def another_grid(files, monkeypatch):
    """Give a mask that does not fit."""
    files.masks[2] = masks_for((4, 4, 4))[0]


FAILURES = {
    "image is cut off": (broken, OSError, "fmri.nii.gz is incomplete"),
    "no room": (no_room, OSError, "not enough space for .*[.]npy: .* MiB"),
    "Ctrl-C": (ctrl_c, KeyboardInterrupt, None),
    "mask on another grid": (another_grid, ValueError, "resample_to_img"),
}


@by_name(("prepare", "exception", "message"), FAILURES)
def test_failure_leaves_files_as_they_were(good, monkeypatch, prepare, exception, message):
    """A failed call leaves an unfinished file, or has overwritten one that was there."""
    names = [good.folder / f"{i}.npy" for i in range(3)]
    names[0].write_bytes(b"an earlier result")
    prepare(good, monkeypatch)
    with pytest.raises(exception, match=message) as raised:
        stream_masks(good.fmri_path, good.masks, 1, out=names)
    assert "fmri.nii.gz" not in open_files(good.fmri_path.parent)
    del raised
    gc.collect()
    assert open_files(good.fmri_path.parent) == []
    assert [path.name for path in good.folder.iterdir()] == ["0.npy"]
    assert names[0].read_bytes() == b"an earlier result"


def test_success_replaces_a_file_at_once(good, monkeypatch):
    """An earlier result is overwritten before the new one is whole, or is not replaced."""
    names = [good.folder / f"{i}.npy" for i in range(3)]
    names[0].write_bytes(b"an earlier result")
    seen = []

    def look(n_volumes):
        seen.append(names[0].read_bytes())

    monkeypatch.setattr(plot_stream_masks, "tqdm", progress(look))
    stream_masks(good.fmri_path, good.masks, 2, out=names)
    assert seen == [b"an earlier result"] * len(good.reference[0])
    assert_same([np.load(name) for name in names], good.reference)


def test_calls_at_once_do_not_mix(good, monkeypatch):
    """Two calls that write the same file at the same time leave a mixture of both."""
    name, other = good.folder / "same.npy", good.folder / "other.nii"
    data = np.asanyarray(nib.load(good.fmri_path).dataobj) + 1
    nib.Nifti1Image(data, STRAIGHT).to_filename(other)
    inner = []

    def call_the_other(n_volumes):
        if n_volumes == 3 and not inner:
            inner.append(True)
            stream_masks(other, good.masks[:1], 2, out=[name])
            inner.append(np.load(name))

    expected = stream_masks(other, good.masks[:1])[0]
    monkeypatch.setattr(plot_stream_masks, "tqdm", progress(call_the_other))
    stream_masks(good.fmri_path, good.masks[:1], 2, out=[name])
    np.testing.assert_array_equal(inner[1], expected)
    np.testing.assert_array_equal(np.load(name), good.reference[0])
    assert {path.name for path in good.folder.iterdir()} == {"same.npy", "other.nii"}


def test_more_files_than_may_be_open(good):
    """Hundreds of results in files need no more open files than one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    n_open = psutil.Process().num_fds()
    names = [good.folder / f"{i}.npy" for i in range(60)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (n_open + 70, hard))
    try:
        series = stream_masks(good.fmri_path, good.masks[:1] * 60, out=names)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for one in series:
        np.testing.assert_array_equal(one, good.reference[0])
        assert not one.flags.writeable


def test_mask_with_a_fourth_axis_of_one(good):
    """A mask of shape (x, y, z, 1) is refused, which NiftiMasker takes."""
    masks = [
        nib.Nifti1Image(np.asarray(mask.dataobj)[..., None], mask.affine) for mask in good.masks
    ]
    assert_same(stream_masks(good.fmri_path, masks), good.reference)


def test_just_enough_room(good, monkeypatch):
    """Results that have just enough room are refused, or arrays because the disk is full."""
    room = sum(a.nbytes for a in good.reference)
    usage = SimpleNamespace(free=room)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    stream_masks(good.fmri_path, good.masks, out=[good.folder / f"{i}.npy" for i in range(3)])
    usage.free = 0
    assert_same(stream_masks(good.fmri_path, good.masks), good.reference)


def test_room_is_for_files_alone(good, monkeypatch):
    """One result in a small file is refused, since arrays are counted as if they were files."""
    out = [np.empty(a.shape, a.dtype) for a in good.reference]
    out[1] = good.folder / "1.npy"
    usage = SimpleNamespace(free=good.reference[1].nbytes)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    assert_same(stream_masks(good.fmri_path, good.masks, out=out), good.reference)


def test_missing_folder_is_named(good):
    """A folder that is not there gives an error that does not say which."""
    names = [good.folder / "nowhere" / f"{i}.npy" for i in range(3)]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        stream_masks(good.fmri_path, good.masks, out=names)


# Memory
# ------

GRID_OF_MANY = (64, 64, 40)


def write_volumes(path, n_volumes):
    """Write an image of float32, volume by volume: mostly zeros, so that it is packed quickly."""
    header = nib.Nifti1Header(endianness="<")
    header.set_data_dtype("<f4")
    header.set_data_shape((*GRID_OF_MANY, n_volumes))
    header.set_sform(STRAIGHT, 1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    volume = np.zeros(GRID_OF_MANY, "<f4")
    volume[20:24] = np.random.default_rng(0).normal(size=volume[20:24].shape)
    packed = {".nii": bytes, ".gz": lambda content: gzip.compress(content, 1)}[path.suffix]
    with open(path, "wb") as file:
        file.write(packed(header.binaryblock + bytes(4)))
        content = packed(volume.tobytes("F"))
        for _ in range(n_volumes):  # as members of their own, if compressed
            file.write(content)


@pytest.mark.chance
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_memory_does_not_grow_with_the_image(tmp_path, suffix):
    """The result and some MiB are needed, as many for more volumes."""

    def slowly(fmri_path, masks):
        """Keep everything in memory after the last block until it has been measured."""

        # In the fresh process.
        plot_stream_masks.tqdm = progress(at_end=lambda: time.sleep(0.1))
        return plot_stream_masks.stream_masks(fmri_path, masks)

    chance = np.random.default_rng(0).random((20, *GRID_OF_MANY))
    masks = [nib.Nifti1Image((region < 0.01).astype("u1"), STRAIGHT) for region in chance]
    above = []
    for n_volumes in (40, 400):
        fmri_path = tmp_path / f"fmri{suffix}"
        write_volumes(fmri_path, n_volumes)
        trace = measure(slowly, fmri_path, masks)
        series = trace.result()
        assert [len(a) for a in series] == [n_volumes] * 20
        output_mib = sum(a.nbytes for a in series) / MIB
        above.append(trace.above_mib - output_mib)
        fmri_path.unlink()
    assert max(above) < 48, above
    assert abs(above[1] - above[0]) < 0.1 * max(above) + 5, above


LIMITED = """
import resource, sys
import numpy as np

examples, fmri_path, *masks = sys.argv[1:]
sys.path.insert(0, examples)
from plot_stream_masks import stream_masks

resource.setrlimit(resource.RLIMIT_DATA, (3 * 10**8,) * 2)
try:
    np.ones(4 * 10**8, "u1")
except MemoryError:
    pass
else:
    sys.exit("there is no limit")
names = [f"{i}.npy" for i in range(len(masks))]
series = stream_masks(fmri_path, masks, out=names)
small, whole = np.load(names[0]), np.load(names[1], mmap_mode="r")
assert whole.shape == (400, 64**3), whole.shape
assert whole.dtype == small.dtype == np.float32
assert small.sum() == small[-1, -1] == whole[-1, -1] == 7, (small, whole[-1, -1])
assert whole[::7, ::1000].sum() == 0
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits are those of Linux")
def test_image_that_is_larger_than_the_memory(tmp_path):
    """The image and a result in a file may be larger than the memory."""
    shape = (64, 64, 64, 400)
    fmri_path = write(tmp_path / "fmri.nii", np.zeros((*shape[:3], 0), "<f4"))
    header = nib.load(fmri_path).header.copy()
    header.set_data_shape(shape)
    header["vox_offset"] = 352
    fmri_path.write_bytes(header.binaryblock + bytes(4))
    os.truncate(fmri_path, 352 + 4 * int(np.prod(shape)))  # a hole, which takes no room on disk
    assert fmri_path.stat().st_size > 4e8
    with open(fmri_path, "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(np.array(7, "<f4").tobytes())
    small = np.zeros(shape[:3], "u1")
    small[3, 4, 5] = small[-1, -1, -1] = 1
    masks = [write(tmp_path / "small.nii", small), write(tmp_path / "whole.nii", small * 0 + 1)]
    examples = Path(plot_stream_masks.__file__).parent
    (tmp_path / "script.py").write_text(LIMITED)
    try:
        done = subprocess.run(
            [sys.executable, "script.py", examples, fmri_path, *masks],
            cwd=tmp_path,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        left = sorted(path.name for path in tmp_path.glob("*.npy*"))
    finally:
        for path in [fmri_path, *tmp_path.glob("*.npy*")]:
            path.unlink()
    assert done.returncode == 0, done.stderr
    assert left == ["0.npy", "1.npy"]


# The function on its page
# ------------------------


def test_nothing_is_printed(good, capfd):
    """A short image draws a progress bar, or a problem is printed instead of raised."""
    stream_masks(good.fmri_path, good.masks, 1, out=[good.folder / f"{i}" for i in range(3)])
    assert capfd.readouterr() == ("", "")


def test_function_runs_alone(good):
    """The function needs more of its page than the import statements."""
    page = Path(plot_stream_masks.__file__).read_text()
    script = "\n\n\n".join(
        ast.get_source_segment(page, node)
        for node in ast.parse(page).body
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Try)
        or (isinstance(node, ast.FunctionDef) and node.name == "stream_masks")
    )
    namespace = {}
    exec(compile(script, "script.py", "exec"), namespace)
    assert_same(namespace["stream_masks"](good.fmri_path, good.masks), good.reference)


def test_function_is_short():
    """The function has a hundred lines or more."""
    assert len(inspect.getsource(stream_masks).splitlines()) < 100
