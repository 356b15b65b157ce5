"""The command line: ``python -m beyond_the_masker COMMAND``, or ``beyond-the-masker COMMAND``."""

import argparse
import json
import os
import re
import shlex
import signal
import sys
import warnings
from itertools import chain
from pathlib import Path

from beyond_the_masker.experiments.pages import check_pages

COMMANDS = {}  # name: function, whether it needs the pages, its arguments, options of its parser
AT_FILE = "; @FILE reads their paths from FILE's lines"
MASKS = f"3D masks on one grid; or one image of labels, or of a mask in each volume{AT_FILE}"
MASKER = {"smoothing_fwhm", "low_pass", "high_pass", "standardize", "detrend"}
FILTERS = ("task", "run", "acq", "dir", "rec", "echo", "space", "res", "desc")
FROM_ENVIRONMENT = "Options of the build, such as N_REGIONS, are read from the environment."


def argument(*names, **how):
    """Describe an argument, as for `argparse.ArgumentParser.add_argument`."""
    return names, how


def paths_in(text):
    """Return a path as a list, or for ``@FILE`` the paths on the lines of a file."""
    if not text.startswith("@"):
        return [text]
    try:
        lines = Path(os.path.expanduser(text[1:])).read_bytes().splitlines()
    except OSError as error:
        raise argparse.ArgumentTypeError(error) from error
    return [os.fsdecode(line) for line in lines if line.strip()]


def one_or_list(masks):
    """Return a mask that is given alone, so that it may be a label image; else a list."""
    masks = list(chain(*masks))
    return masks[0] if len(masks) == 1 else masks


THRESHOLD = argument("--threshold", type=float, help="for probabilities: take values above it")


def command(*arguments, pages=False, **options):
    """Register a function as the command of its name; its return value is the exit status."""

    def register(run):
        name = run.__name__.removeprefix("run_").replace("_", "-")
        COMMANDS[name] = run, pages, arguments, options
        return run

    return register


def make_parser():
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="beyond-the-masker",
        description="Extract time series of regions from large images; predict and measure memory.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (run, pages, arguments, options) in COMMANDS.items():
        one = commands.add_parser(name, help=run.__doc__, description=run.__doc__, **options)
        for names, how in arguments:
            one.add_argument(*names, **how)
        one.set_defaults(run=run, pages=pages)
    return parser


def main(arguments=None):
    """Run a command, by default that of the command line, and exit with its status or error."""
    warnings.formatwarning = lambda message, *_: f"Warning: {message}\n"
    sys.stdout.reconfigure(errors="surrogateescape")  # names of files need not be text
    words = sys.argv[1:] if arguments is None else arguments
    arguments = make_parser().parse_args(words, argparse.Namespace(words=words))
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores SIGHUP, and so it stays
            signal.signal(number, signal.default_int_handler)  # clean up as after Ctrl-C
    is_study = "part" in arguments
    if is_study and "numpy" not in sys.modules:  # its sums are of one thread, so no others start
        os.environ["OPENBLAS_NUM_THREADS"] = "1"  # when NumPy is imported: memory may be short
    try:
        if arguments.pages:
            check_pages()
        status = arguments.run(arguments)
        sys.stdout.flush()
        sys.exit(status)
    except BrokenPipeError:  # what read the output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, OSError, EOFError, MemoryError) as error:
        sys.exit(str(error) or "Not enough memory.")  # Python's own MemoryError has no words
    except ImportError as error:
        if "failed to map" not in str(error):
            raise
        sys.exit("Not enough memory to import packages.")
    except KeyboardInterrupt:
        sys.exit(f"Interrupted.{' Run the same command again to continue.' if is_study else ''}")


@command(
    argument("image", help="4D NIfTI file, or a pattern in quotes; only headers are read"),
    argument("masks", nargs="+", type=paths_in, help=MASKS),
    THRESHOLD,
    argument("--jobs", type=int, metavar="N", help="workers; one for each mask by default"),
    argument("--memory", metavar="SIZE", help="such as 16G; by default the free memory"),
    argument("--shm", metavar="SIZE", help="space in /dev/shm; by default its free space"),
    argument("--explain", action="store_true", help="list what is in memory at each peak, and why"),
    argument("--measure", action="store_true", help="first measure what imports take here"),
)
def run_budget(arguments):
    """Predict every method's peak memory from an image's header and its masks."""
    from beyond_the_masker.predict.budget import print_budget
    from beyond_the_masker.predict.imports import calibrate

    if arguments.measure:
        calibrate()
    names = ("jobs", "memory", "shm", "explain", "threshold")
    options = (getattr(arguments, name) for name in names)
    print_budget(arguments.image, one_or_list(arguments.masks), *options)


def part_of(text):
    """Read ``3/10`` as the third of ten parts."""
    found = re.fullmatch("([0-9]+)/([0-9]+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not K/N, such as 3/10, with a K of 1 to N")
    return int(found[1]), int(found[2])


OF_STUDIES = (
    argument("--jobs", type=int, metavar="N", help="workers; 1 by default"),
    argument("--part", type=part_of, default=(1, 1), metavar="K/N", help="only the Kth of N parts"),
    argument("--verify", action="store_true", help="read finished files, replace damaged ones"),
)
AGAIN = "Run the same command again to continue. The exit status is 1 if an image failed."


@command(
    argument(
        "images",
        nargs="+",
        type=paths_in,
        help=f"4D NIfTI files{AT_FILE}. A pattern in quotes, such as 'sub-01/vol_*.nii', is one "
        "image: its files in the order of their numbers",
    ),
    argument("--masks", nargs="+", type=paths_in, required=True, help=MASKS),
    THRESHOLD,
    argument("--output", metavar="FOLDER", default="series", help="of results; series by default"),
    argument("--relative-to", metavar="FOLDER", help="keep the folders below this one"),
    argument("--resample", action="store_true", help="resample masks to the images' grids"),
    *OF_STUDIES,
    epilog=AGAIN,
)
def run_study(arguments):
    """Extract the voxel time series of several masks from every image of a study."""
    from beyond_the_masker.studies.study import mask_study

    names = ("relative_to", "resample", "part", "threshold", "verify")
    how = {name: getattr(arguments, name) for name in names}
    images, masks = list(chain(*arguments.images)), one_or_list(arguments.masks)
    table = mask_study(images, masks, arguments.output, arguments.jobs, **how)
    return report(table, arguments.output)


def report(table, folder):
    """Print which images failed, and how many rows have which status; return the exit status."""
    failed = table[table.status == "failed"].drop_duplicates(["image", "reason"])
    for row in failed.itertuples():
        print(f"{row.image}\n    {row.reason}")
    counts = table.status.value_counts()
    print(*(f"{count} {status}" for status, count in counts.items()), sep=", ")
    print(f"The table is in {folder}.")
    return int("failed" in counts)


def pair_of(text):
    """Read ``name=value`` as a pair."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} has no =")
    return name, value


def strategy_of(text):
    """Read the name of a strategy, ``none``, or a JSON file with a name and arguments."""
    if not text.endswith(".json"):
        return None if text == "none" else text
    try:
        return json.loads(Path(os.path.expanduser(text)).read_text())
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from error


def several(*names, **how):
    """Describe an option that takes one value or more, and may be repeated."""
    return argument(*names, nargs="+", action="extend", **how)


def of_entity(key, *names, **how):
    """Describe an option that takes labels of an entity, and adds them to those of ``--filter``."""
    how |= {"dest": "filter", "default": [], "metavar": "LABEL"}
    return several(*names, type=lambda label: (key, label), **how)


def of_masker(*names, **how):
    """Describe an option that sets a parameter of maskers, which otherwise is the study's."""
    return argument(*names, default=argparse.SUPPRESS, **how)


@command(
    argument("fmriprep_dir", metavar="FMRIPREP", help="the folder that fMRIPrep wrote"),
    argument("output_dir", metavar="OUTPUT", help="folder of the results"),
    argument("level", metavar="participant", choices=["participant"], help="as BIDS Apps have it"),
    several(
        "--atlas",
        required=True,
        type=pair_of,
        metavar="NAME=FILE",
        help="a 3D image of labels, a 4D image of maps, or for an atlas of each subject the end "
        "of its name, such as aseg=space-T1w_desc-aseg_dseg.nii.gz",
    ),
    several(
        "--participant-label",
        "--participant_label",
        dest="participants",
        metavar="LABEL",
        help="subjects; all by default",
    ),
    of_entity("ses", "--session-label", "--ses", help="sessions"),
    *(of_entity(key, f"--{key}", help=f"only images with {key}-LABEL") for key in FILTERS),
    several(
        "--filter",
        type=pair_of,
        default=[],
        metavar="ENTITY=LABEL",
        help="the same for any other entity; ENTITY= keeps images without it",
    ),
    argument(
        "--strategy",
        type=strategy_of,
        default="simple",
        help="confounds to remove: simple, scrubbing, compcor or ica_aroma, as in nilearn; none; "
        "or a .json file with a name and the arguments of nilearn's load_confounds",
    ),
    argument(
        "--no-brain-mask",
        dest="brain_mask",
        action="store_false",
        help="keep voxels outside the brain mask",
    ),
    of_masker("--smoothing-fwhm", type=float, metavar="MM", help="smooth the image first"),
    of_masker("--low-pass", type=float, metavar="HZ", help="remove what is faster"),
    of_masker("--high-pass", type=float, metavar="HZ", help="remove what is slower"),
    of_masker("--standardize", choices=["zscore_sample", "psc", "none"], help="zscore_sample"),
    of_masker("--no-detrend", dest="detrend", action="store_false", help="keep linear trends"),
    argument(
        "--min-coverage",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="regions of which less is inside the brain mask are n/a; 0.5 by default",
    ),
    argument("--relmat", action="store_true", help="write the correlations of regions, too"),
    *OF_STUDIES,
    argument("--dry-run", action="store_true", help="only say what is there, and what it needs"),
    epilog=AGAIN,
    allow_abbrev=False,
)
def run_fmriprep(arguments):
    """Extract the time series of atlases from all images that fMRIPrep wrote."""
    atlases, filters, masker = dict(arguments.atlas), {}, {}
    if len(atlases) < len(arguments.atlas):
        raise ValueError("--atlas has a name twice; each atlas needs one of its own.")
    for key, label in arguments.filter:
        filters.setdefault(key, []).append(label)
    for name in MASKER & vars(arguments).keys():
        value = getattr(arguments, name)
        masker[name] = None if value == "none" else value
    inputs = arguments.fmriprep_dir, atlases, arguments.output_dir
    how = {"filters": filters, "masker": masker}
    how |= {name: getattr(arguments, name) for name in ("participants", "strategy", "brain_mask")}
    if arguments.dry_run:
        from beyond_the_masker.studies.fmriprep_plan import describe, plan_study

        words = shlex.join(["python", "-m", "beyond_the_masker", *of_every_part(arguments.words)])
        print(describe(plan_study(*inputs, **how), words, arguments.jobs))
        return 0
    from beyond_the_masker.studies.fmriprep import fmriprep_study

    names = ("min_coverage", "relmat", "part", "verify")
    how |= {name: getattr(arguments, name) for name in names}
    table = fmriprep_study(*inputs, arguments.jobs, **how)
    status = report(table, arguments.output_dir)
    if arguments.part == (1, 1):
        from beyond_the_masker.draw.figures import save_study

        for file in save_study(table, arguments.output_dir, arguments.min_coverage):
            print(f"{file.name} shows coverage and head motion.")
    return status


def of_every_part(words):
    """Yield the words of a command, without those that the script of a plan sets itself."""
    words = iter(words)
    for word in words:
        if word in ("--jobs", "--part"):
            next(words)
        elif word != "--dry-run" and not word.startswith(("--jobs=", "--part=")):
            yield word


@command(epilog=FROM_ENVIRONMENT)
def run_options(arguments):
    """Check the options of a build and print them."""
    from beyond_the_masker.options import read_options  # needs only the standard library

    print(read_options())


@command(
    argument("--prepare", action="store_true", help="only prepare the data and the reference"),
    pages=True,
    epilog=FROM_ENVIRONMENT,
)
def run_measure(arguments):
    """Measure every method in fresh processes; results that are complete are kept."""
    from nibabel.filebasedimages import ImageFileError

    from beyond_the_masker.experiments.experiment import complete_summary, prepare_all

    try:
        (prepare_all if arguments.prepare else complete_summary)()
    except ImageFileError as error:
        raise ValueError(str(error)) from error


@command(
    argument("--phases", default="whole_experiment_phases.csv", help="output file"),
    pages=True,
    epilog=FROM_ENVIRONMENT,
)
def run_experiment(arguments):
    """Run all methods one after the other, for mprof to record."""
    from beyond_the_masker.experiments.sequence import run_all
    from beyond_the_masker.options import read_options

    options = read_options()
    run_all(options.n_images, options.n_regions, options.pause, arguments.phases)


@command(pages=True)
def run_check_model(arguments):
    """Compare the model of memory with repeated measurements."""
    from beyond_the_masker.experiments.comparison import check

    if check():
        return (
            "The model is wrong for the marked methods. If a library now makes more or fewer "
            "copies, change the moments of these methods in beyond_the_masker/predict/model.py."
        )
    return 0


@command(argument("folder", help="folder of prediction.csv and prediction.json"), pages=True)
def run_record(arguments):
    """Measure every method for the model's whole grid of images, which takes half an hour."""
    from beyond_the_masker.experiments.comparison import record

    record(arguments.folder)


@command(
    argument("folder", help="folder of the results"),
    argument("--full", action="store_true", help="at full size"),
    pages=True,
)
def run_benchmark(arguments):
    """Time the methods with the default data, and compare them with decompression alone."""
    for name in ("FMRI", "ATLAS", "DATA"):
        os.environ.pop(name, None)
    from beyond_the_masker.experiments.benchmark import FULL, QUESTIONS, benchmark

    if arguments.full:
        benchmark(arguments.folder, FULL, 5, with_memory=QUESTIONS)
    else:
        benchmark(arguments.folder)


@command(
    argument("path", nargs="?", default="script.py", help="file to write; script.py by default"),
    pages=True,
)
def run_script(arguments):
    """Write the nine ways of the chapter as one script."""
    from beyond_the_masker.experiments.script import write_script

    write_script(arguments.path)


if __name__ == "__main__":
    main()
