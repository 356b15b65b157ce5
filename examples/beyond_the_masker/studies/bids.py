"""Read and write names as BIDS has them, and find the images that fMRIPrep wrote.

A name consists of entities, such as ``sub-01``, a suffix, such as ``bold``, and an ending. nilearn
finds the images; the files that go with an image are found by the entities that they share.
"""

import glob
import json
import os
import re
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from beyond_the_masker.files import check_folder, file_named, write_bytes

VERSION = "1.11.0"  # of BIDS
ORDER = (
    "sub tpl ses cohort sample task tracksys acq nuc voi ce trc stain rec dir run mod echo flip "
    "inv mt part proc hemi space split recording chunk atlas seg scale res den label"
)
RANK = {key: number for number, key in enumerate(ORDER.split())} | {"desc": 99}
COUNTED = ("run", "echo", "flip", "inv", "split", "chunk")  # run-1 and run-01 are the same
LABEL = re.compile("[0-9A-Za-z+]+")
IMAGES = (".nii.gz", ".nii")
NOT_IN_BIDS = ("*_timeseries.*", "*_relmat.*", "study*.tsv", "*.svg", "*.png", "atlas-*.nii")
OURS = "beyond-the-masker"


class Name(NamedTuple):
    """A file's name, taken apart."""

    entities: dict  # in the order of the name
    suffix: str
    ending: str  # with its dot


def split_name(path):
    """Return a file's name as a `Name`; a ValueError says what is not as BIDS has it."""
    name = os.path.basename(path)
    *pairs, last = name.split("_")
    suffix, dot, ending = last.partition(".")
    pairs = [pair.partition("-")[::2] for pair in pairs]
    entities = dict(pairs)
    are_labels = all(map(LABEL.fullmatch, [*entities, *entities.values(), suffix]))
    if not pairs or not are_labels or len(entities) < len(pairs):
        raise ValueError(
            f"{path} is no name of BIDS, such as sub-01_task-rest_desc-preproc_bold.nii.gz: "
            "entities of letters and digits, each once, then a suffix."
        )
    return Name(entities, suffix, dot + ending)


def entities_of(path):
    """Return the entities of a file's name as a dict, in their order."""
    return split_name(path).entities


def name_of(entities, suffix, ending):
    """Return a name with all entities in the order of BIDS."""
    for key, label in entities.items():
        check_label(key, "The entity")
        check_label(label, f"The label of {key}")
    keys = sorted(entities, key=lambda key: RANK.get(key, 98))  # that BIDS lacks: before desc
    return "_".join([*(f"{key}-{entities[key]}" for key in keys), suffix + ending])


def check_label(label, what):
    """Raise a ValueError unless a text can be a label in a name."""
    if not (isinstance(label, str) and LABEL.fullmatch(label)):
        raise ValueError(f"{what} is {label!r}, but names of BIDS have only letters and digits.")


# -- Images ------------------------------------------------------------------------------------


def find_images(folder, filters=None, participants=None):
    """Return the images in a folder that fMRIPrep wrote, sorted by name.

    Filters have for each entity the labels to keep: one, or a list, where None or an empty text
    stands for images without the entity; ``desc`` is ``preproc`` unless it has a filter.
    Participants are labels of subjects, with or without ``sub-``. A ValueError names what no image
    has.
    """
    folder = Path(folder)
    names = {path: entities_of(path) for path in list_images(folder)}
    names = of_participants(folder, names, participants)
    for key, labels in ({"desc": "preproc"} | (filters or {})).items():
        labels = labels if isinstance(labels, list | tuple | set) else [labels]
        wanted = {comparable(key, label) for label in labels}
        kept = {path: e for path, e in names.items() if comparable(key, e.get(key)) in wanted}
        if not kept:
            given = " or ".join(in_words(key, label) for label in labels)
            raise ValueError(f"No image in {folder} has {given}. {others(key, names)}")
        names = kept
    return list(names)


def list_images(folder):
    """Return all 4D images in the folders ``func``; refuse a folder that fMRIPrep did not write."""
    from nilearn.interfaces.bids import get_bids_files  # here: workers do not need it

    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder.")
    where = {"modality_folder": "func", "file_tag": "bold", "file_type": "nii*"}
    found = get_bids_files(glob.escape(str(folder)), **where)
    images = [Path(path) for path in found if path.endswith(IMAGES)]
    is_raw = images and not any("_desc-" in path.name for path in images)
    if is_raw or read_description(folder).get("DatasetType") == "raw":
        problem = "is a raw BIDS folder"
    elif not images:
        problem = "has no images sub-*/func/*_bold.nii.gz or sub-*/ses-*/func/*_bold.nii.gz"
    else:
        return images
    subjects = [*folder.glob("*/sub-*"), *folder.glob("*/*/sub-*")]
    parents = {subject.parent for subject in subjects if subject.is_dir()}
    below = sorted(str(one) for one in parents if not any(one.glob("study*.tsv")))  # not results
    hint = f" Perhaps it is one of these: {', '.join(below[:5])}." if below else ""
    raise ValueError(f"{folder} {problem}; the folder that fMRIPrep wrote is needed.{hint}")


def of_participants(folder, names, participants):
    """Return the images of some subjects; a ValueError names a subject that has none."""
    if participants is None:
        return names
    if isinstance(participants, str):
        participants = [participants]
    wanted = {str(label).removeprefix("sub-") for label in participants}
    if missing := sorted(wanted - {entities["sub"] for entities in names.values()}):
        raise ValueError(
            f"{folder} has no image of sub-{', sub-'.join(missing)}. {others('sub', names)}"
        )
    return {path: entities for path, entities in names.items() if entities["sub"] in wanted}


def comparable(key, label):
    """Return a label of an entity, with or without its name, such that equal ones are the same."""
    label = "" if label is None else str(label).removeprefix(f"{key}-")
    return label.lstrip("0") or "0" if key in COUNTED and label.isdigit() else label


def in_words(key, label):
    """Return in words that an entity has a label, or is absent."""
    return f"no {key}" if label in (None, "") else f"{key}-{str(label).removeprefix(f'{key}-')}"


def others(key, names):
    """Return in a sentence which labels of an entity there are instead."""
    labels = sorted({entities.get(key, "") for entities in names.values()})
    if labels == [""]:
        known = sorted({key for entities in names.values() for key in entities})
        return f"They have no {key}, but {', '.join(known)}."
    more = f" and {len(labels) - 20} more" if len(labels) > 20 else ""
    return f"There is {', '.join(in_words(key, label) for label in labels[:20])}{more}."


# -- The files that go with an image -----------------------------------------------------------


class Related:
    """Find the files that go with an image; each folder is read once."""

    def __init__(self):
        self.names_in = lru_cache(maxsize=None)(names_in)

    def find(self, image, suffixes, endings, folder=None, **fixed):
        """Return the files whose entities are the image's, or some of them; the most first.

        The `fixed` entities are theirs alone, such as ``desc="brain"``.
        """
        allowed, found = entities_of(image) | fixed, []
        for path, name in self.names_in(folder or image.parent).items():
            fits = fixed.items() <= name.entities.items() <= allowed.items()
            if fits and name.suffix in suffixes and name.ending in endings:
                found.append(path)
        return sorted(found, key=lambda path: -len(entities_of(path)))

    def sidecars(self, image):
        """Return the JSON files of an image: its own, then those for all spaces, or all runs.

        Those in the folders above, up to that of all subjects, come last, as BIDS has it.
        """
        name = split_name(image)
        folders = list(image.parents)[: 4 if "ses" in name.entities else 3]
        found = (self.find(image, [name.suffix], [".json"], folder) for folder in folders)
        return [*chain.from_iterable(found)]

    def brain_mask(self, image):
        """Return the brain mask of an image, on its grid, or None."""
        found = self.find(image, ["mask"], IMAGES, desc="brain")
        n_entities = len(entities_of(image))
        return next((path for path in found if len(entities_of(path)) == n_entities), None)

    def of_subject(self, image, pattern):
        """Return the file of a subject with the entities of a name, or None.

        It is searched beside the image, then among the anatomical images of session and subject.
        """
        name = split_name(pattern)
        folders = [image.parent, *(above / "anat" for above in list(image.parents)[1:3])]
        for folder in folders:
            found = self.find(image, [name.suffix], [name.ending], folder, **name.entities)
            if found:
                return found[0]
        return None


def names_in(folder):
    """Return the files of a folder that have names of BIDS, with these; links may lead nowhere."""
    names = {}
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            with suppress(ValueError):
                names[path] = split_name(path)
    return names


# -- A folder of derivatives -------------------------------------------------------------------


def read_description(folder):
    """Return the content of ``dataset_description.json``; a ValueError names a damaged one."""
    path = Path(folder) / "dataset_description.json"
    return read_json(path) if path.is_file() else {}


def read_json(path):
    """Return the content of a JSON file, which has to be an object."""
    try:
        with file_named(path):
            content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} has no names and values, but a {type(content).__name__}.")
    return content


def check_output(output_dir, source):
    """Raise an error if results would mix with the source or another program's, or for a file."""
    check_folder(Path(output_dir))
    if Path(output_dir).resolve() == Path(source).resolve():
        raise ValueError(f"{output_dir} is the folder of the images. Give another one for results.")
    description = read_description(output_dir)
    programs = [each.get("Name") for each in description.get("GeneratedBy", [])]
    if description and OURS not in programs:
        raise ValueError(
            f"{output_dir} holds the results of {', '.join(map(str, programs)) or 'other programs'}"
            ". Give a folder of their own to these."
        )


def write_dataset(output_dir, source, tables):
    """Write what makes a folder a dataset of BIDS, and tables by their names, unless it is there.

    Parts of a study that start together write the same.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    description = {
        "Name": "Time series of regions",
        "BIDSVersion": VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": OURS, **version_of(OURS)}],
        "SourceDatasets": [{"URL": Path(source).resolve().as_uri()}],
    }
    ignored = output_dir / ".bidsignore"
    with file_named(ignored):
        lines = ignored.read_text().splitlines() if ignored.is_file() else []
    lines += [pattern for pattern in NOT_IN_BIDS if pattern not in lines]
    texts = {"dataset_description.json": json.dumps(description, indent=1)}
    for name, text in {**texts, ".bidsignore": "\n".join(lines), **tables}.items():
        write_bytes(output_dir / name, (text.rstrip("\n") + "\n").encode())


def version_of(package):
    """Return the version of a package as an entry, or none if it runs without installation."""
    try:
        return {"Version": version(package)}
    except PackageNotFoundError:
        return {}
