"""The command line: ``python -m beyond_the_masker COMMAND``, or ``beyond-the-masker COMMAND``."""

import argparse
import os
import signal
import sys
import warnings
from itertools import chain
from pathlib import Path

from beyond_the_masker.pages import check_pages

COMMANDS = {}  # name: function, whether it needs the pages, its arguments, options of its parser
AT_FILE = "; @FILE reads their paths from FILE's lines"
MASKS = f"3D masks on one grid; or one image of labels, or of a mask in each volume{AT_FILE}"
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
    arguments = make_parser().parse_args(arguments)
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores SIGHUP, and so it stays
            signal.signal(number, signal.default_int_handler)  # clean up as after Ctrl-C
    try:
        if arguments.pages:
            check_pages()
        status = arguments.run(arguments)
        sys.stdout.flush()
        sys.exit(status)
    except BrokenPipeError:  # what read the output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, OSError, EOFError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Interrupted.")


@command(
    argument("image", help="4D NIfTI file; only its header is read"),
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
    from beyond_the_masker.budget import print_budget
    from beyond_the_masker.imports import calibrate

    if arguments.measure:
        calibrate()
    names = ("jobs", "memory", "shm", "explain", "threshold")
    options = (getattr(arguments, name) for name in names)
    print_budget(arguments.image, one_or_list(arguments.masks), *options)


def part_of(text):
    """Read ``3/10`` as the third of ten parts."""
    return tuple(int(word) for word in text.split("/"))


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
    argument("--output", metavar="FOLDER", default="series", help="folder of the results"),
    argument("--jobs", type=int, metavar="N", help="workers; 1 by default"),
    argument("--part", type=part_of, default=(1, 1), metavar="K/N", help="only the Kth of N parts"),
    argument("--relative-to", metavar="FOLDER", help="keep the folders below this one"),
    argument("--resample", action="store_true", help="resample masks to the images' grids"),
    argument("--verify", action="store_true", help="read finished files, replace damaged ones"),
    epilog="Run the same command again to continue. The exit status is 1 if an image failed.",
)
def run_study(arguments):
    """Extract the voxel time series of several masks from every image of a study."""
    from beyond_the_masker.study import mask_study

    names = ("relative_to", "resample", "part", "threshold", "verify")
    how = {name: getattr(arguments, name) for name in names}
    images, masks = list(chain(*arguments.images)), one_or_list(arguments.masks)
    try:
        table = mask_study(images, masks, arguments.output, arguments.jobs, **how)
    except KeyboardInterrupt:
        sys.exit("Interrupted. Run the same command again to continue.")
    for row in table[table.status == "failed"].itertuples():
        print(f"{row.image}\n    {row.reason}")
    counts = table.status.value_counts()
    print(*(f"{count} {status}" for status, count in counts.items()), sep=", ")
    print(f"The table is in {arguments.output}.")
    return int("failed" in counts)


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

    from beyond_the_masker.experiment import complete_summary, prepare_all

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
    from beyond_the_masker.options import read_options
    from beyond_the_masker.sequence import run_all

    options = read_options()
    run_all(options.n_images, options.n_regions, options.pause, arguments.phases)


@command(pages=True)
def run_check_model(arguments):
    """Compare the model of memory with repeated measurements."""
    from beyond_the_masker.model_check import check

    if check():
        return (
            "The model is wrong for the marked methods. If a library now makes more or fewer "
            "copies, change the moments of these methods in beyond_the_masker/model.py."
        )
    return 0


@command(argument("folder", help="folder of prediction.csv and prediction.json"), pages=True)
def run_record(arguments):
    """Measure every method for the model's whole grid of images, which takes half an hour."""
    from beyond_the_masker.model_check import record

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
    from beyond_the_masker.benchmark import FULL, QUESTIONS, benchmark

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
    from beyond_the_masker.script import write_script

    write_script(arguments.path)


if __name__ == "__main__":
    main()
