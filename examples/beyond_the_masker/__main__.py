"""The command line: ``python -m beyond_the_masker COMMAND``, or ``beyond-the-masker COMMAND``."""

import argparse
import os
import sys
from pathlib import Path

COMMANDS = {}
FROM_ENVIRONMENT = "Options of the build, such as N_REGIONS, are read from the environment."


def argument(*names, **how):
    """Describe an argument, as for `argparse.ArgumentParser.add_argument`."""
    return names, how


def command(name, summary, *arguments, **options):
    """Register a function as a command; its return value is the exit status."""

    def register(run):
        COMMANDS[name] = run, summary, arguments, options
        return run

    return register


def make_parser():
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="beyond-the-masker",
        description="Extract time series of regions from large images; predict and measure memory.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (run, summary, arguments, options) in COMMANDS.items():
        one = commands.add_parser(name, help=summary, description=summary, **options)
        for names, how in arguments:
            one.add_argument(*names, **how)
        one.set_defaults(run=run, error=one.error)
    return parser


def main(arguments=None):
    """Run a command; print its error, if there is one, and exit with a status.

    Parameters
    ----------
    arguments : list of str, optional
        By default those of the command line.
    """
    arguments = make_parser().parse_args(arguments)
    try:
        sys.exit(arguments.run(arguments))
    except (ValueError, OSError, EOFError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Interrupted.")


@command(
    "budget",
    "Predict every method's peak memory from the headers of an image and its masks.",
    argument("image", nargs="?", help="4D NIfTI file; by default the image of the build's options"),
    argument("masks", nargs="*", help="3D masks on its grid"),
    argument("--jobs", type=int, metavar="N", help="workers; one for each mask by default"),
    argument("--memory", metavar="SIZE", help="such as 16G; by default the free memory"),
    argument("--shm", metavar="SIZE", help="space in /dev/shm; by default its free space"),
    argument("--explain", action="store_true", help="list what is in memory at each peak, and why"),
    argument("--measure", action="store_true", help="first measure what imports take here"),
)
def run_budget(arguments):
    """Print what each method would need, and whether it fits."""
    from beyond_the_masker.budget import print_budget
    from beyond_the_masker.imports import calibrate

    if arguments.image and not arguments.masks:
        arguments.error("the image needs masks")
    image, masks = arguments.image, arguments.masks
    if not image:
        image, masks = image_of_the_options()
    if arguments.measure:
        calibrate()
    print_budget(image, masks, arguments.jobs, arguments.memory, arguments.shm, arguments.explain)


def image_of_the_options():
    """Prepare the image and the masks that the options of a build choose; return their paths."""
    from beyond_the_masker.data import atlas_to_masks, get_atlas_path, prepare_fmri
    from beyond_the_masker.options import read_options

    options = read_options()
    fmri_path = prepare_fmri(options.n_images)
    _, mask_paths = atlas_to_masks(get_atlas_path(), fmri_path, options.n_regions)
    return fmri_path, mask_paths


def part_of(text):
    """Read ``3/10`` as the third of ten parts."""
    return tuple(int(word) for word in text.split("/"))


@command(
    "study",
    "Extract the voxel time series of several masks from every image of a study.",
    argument("images", nargs="*", help="4D NIfTI files; @FILE reads their paths from FILE's lines"),
    argument("--masks", nargs="+", help="3D masks on one grid"),
    argument("--output", metavar="FOLDER", default="series", help="folder of the results"),
    argument("--jobs", type=int, metavar="N", help="workers; 1 by default"),
    argument("--part", type=part_of, default=(1, 1), metavar="K/N", help="only the Kth of N parts"),
    argument("--relative-to", metavar="FOLDER", help="keep the folders below this one"),
    argument("--resample", action="store_true", help="resample masks to the images' grids"),
    epilog="Run the same command again to continue. The exit status is 1 if an image failed.",
    fromfile_prefix_chars="@",
)
def run_study(arguments):
    """Extract time series of a study and list the images that failed."""
    from beyond_the_masker.study import mask_study

    images = [line for line in arguments.images if line.strip()]
    masks, output = arguments.masks, arguments.output
    if bool(images) != bool(masks):
        arguments.error("images and --masks go together")
    if not images:
        images, masks, output = study_of_the_options()
    try:
        table = mask_study(
            images,
            masks,
            output,
            arguments.jobs,
            relative_to=arguments.relative_to,
            resample=arguments.resample,
            part=arguments.part,
        )
    except KeyboardInterrupt:
        sys.exit("Interrupted. Run the same command again to continue.")
    for row in table[table.status == "failed"].itertuples():
        print(f"{row.image}\n    {row.reason}")
    counts = table.status.value_counts()
    print(*(f"{count} {status}" for status, count in counts.items()), sep=", ")
    print(f"The table is in {output}.")
    return int("failed" in counts)


def study_of_the_options():
    """Prepare a small study from the image of the build's options; return where its parts are."""
    from beyond_the_masker.options import read_options
    from beyond_the_masker.workers import prepare_study

    return *prepare_study(), Path(read_options().measured) / "series"


@command(
    "options",
    "Check the options of a build and print them.",
    epilog=FROM_ENVIRONMENT,
)
def run_options(arguments):
    """Check the options; this needs only the standard library."""
    from beyond_the_masker.options import read_options

    print(read_options())


@command(
    "measure",
    "Measure every method in fresh processes; results that are complete are kept.",
    argument("--prepare", action="store_true", help="only prepare the data and the reference"),
    epilog=FROM_ENVIRONMENT,
)
def run_measure(arguments):
    """Prepare image, masks and reference, and measure what is missing."""
    from nibabel.filebasedimages import ImageFileError

    from beyond_the_masker.experiment import complete_summary, prepare_all

    try:
        (prepare_all if arguments.prepare else complete_summary)()
    except ImageFileError as error:
        raise ValueError(str(error)) from error


@command(
    "experiment",
    "Run all methods one after the other, for mprof to record.",
    argument("--n-images", metavar="N", help="subjects in the image"),
    argument("--n-regions", metavar="N", help="masks, and workers"),
    argument("--pause", metavar="SECONDS", help="rest before each method"),
    argument("--phases", default="whole_experiment_phases.csv", help="output file"),
    epilog=FROM_ENVIRONMENT,
)
def run_experiment(arguments):
    """Run all methods with these options."""
    from beyond_the_masker.options import read_options
    from beyond_the_masker.sequence import run_all

    given = {
        "N_IMAGES": arguments.n_images,
        "N_REGIONS": arguments.n_regions,
        "PAUSE": arguments.pause,
    }
    options = read_options(os.environ | {name: text for name, text in given.items() if text})
    run_all(options.n_images, options.n_regions, options.pause, arguments.phases)


@command("check-model", "Compare the model of memory with repeated measurements.")
def run_check_model(arguments):
    """Measure a few points; fail if a median is outside its prediction."""
    from beyond_the_masker.model_check import check

    if check():
        return (
            "The model is wrong for the marked methods. If a library now makes more or fewer "
            "copies, change the moments of these methods in beyond_the_masker/model.py."
        )
    return 0


@command(
    "record",
    "Measure every method for the model's whole grid of images, which takes half an hour.",
    argument("folder", help="folder of prediction.csv and prediction.json"),
)
def run_record(arguments):
    """Measure the whole grid."""
    from beyond_the_masker.model_check import record

    record(arguments.folder)


FOLDER = argument("folder", nargs="?", help="folder of the results; by default the option MEASURED")


def folder_of(arguments):
    """Return the folder that was given, or that of the options."""
    from beyond_the_masker.options import read_options

    return arguments.folder or read_options().measured


@command(
    "benchmark",
    "Time the methods and compare them with decompression alone.",
    FOLDER,
    argument("--full", action="store_true", help="at full size"),
)
def run_benchmark(arguments):
    """Time the methods with the default data, whatever image the options choose."""
    for name in ("FMRI", "ATLAS", "DATA"):
        os.environ.pop(name, None)
    from beyond_the_masker.benchmark import FULL, QUESTIONS, benchmark

    if arguments.full:
        benchmark(folder_of(arguments), FULL, 5, with_memory=QUESTIONS)
    else:
        benchmark(folder_of(arguments))


@command(
    "overhead",
    "Time empty tasks on each backend.",
    FOLDER,
    argument("--tasks", type=int, default=1000, metavar="N", help="tasks on each; default 1000"),
    argument("--slurm", action="store_true", help="also on this machine's Slurm cluster"),
)
def run_overhead(arguments):
    """Time empty tasks and print the table."""
    from beyond_the_masker.overhead import task_overhead

    table = task_overhead(folder_of(arguments), arguments.tasks, arguments.slurm)
    print(table.iloc[:, :3].to_string())


@command(
    "script",
    "Write the nine ways of the chapter as one script.",
    argument("path", nargs="?", default="script.py", help="file to write; script.py by default"),
)
def run_script(arguments):
    """Write the script."""
    from beyond_the_masker.script import write_script

    write_script(arguments.path)


if __name__ == "__main__":
    main()
