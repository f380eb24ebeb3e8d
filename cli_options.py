"""What the commands share: the form of their help, and options that mean the same everywhere."""

from __future__ import annotations

import errno
import functools
import importlib.metadata
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from .errors import ScalrError, remedy
from .paths import expanded
from .standard_output import results_alone

if TYPE_CHECKING:
    from .extract.plan import Part

logger = logging.getLogger(__name__)

INTERRUPTED = 130  # as shells say of Ctrl-C
TERMINATED = 143  # and of SIGTERM
EVERYTHING_ELSE = "Other"
RESULTS = f"{__name__}.results"  # in a context of click: the stream for a command's JSON


class ExampleLast(click.Command):
    """A command that shows click's `epilog`, an example, as it is written."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.epilog:
            with formatter.section("Example"):
                formatter.write(f"{'':>{formatter.current_indent}}{self.epilog}\n")


class HeadedCommand(ExampleLast):
    """A command whose help has options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        under_heading: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if isinstance(parameter, click.Option) and record is not None:
                heading = getattr(parameter, "heading", EVERYTHING_ELSE)
                under_heading.setdefault(heading, []).append(record)
        last = {EVERYTHING_ELSE: under_heading.pop(EVERYTHING_ELSE)}  # --help is always there
        for heading, records in {**under_heading, **last}.items():
            with formatter.section(heading if under_heading else "Options"):
                formatter.write_dl(records)


class StagedCommands(ExampleLast, click.Group):
    """A group that lists its commands by stage, in the order of use, and shows an error in one line."""

    command_class = HeadedCommand

    def __init__(self, *args: Any, stages: dict[str, tuple[str, ...]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stages = stages

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for names in self.stages.values() for name in names]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for stage, names in self.stages.items():
            with formatter.section(stage):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(limit=200)) for name in names])

    def main(self, *args: Any, **kwargs: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):  # terminals without Unicode show a '?'
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with sigterm_interrupts():
                return super().invoke(ctx)
        except ScalrError as error:
            if error.of_all_processes and not is_first_process():
                raise click.exceptions.Exit(error.exit_code) from None
            raise _shown(error) from error
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] == __package__:
                raise
            raise _shown(_not_installed(error.name)) from error
        except OSError as error:
            # Disks and permissions can fail at any line. A broken pipe is for click: the reader has seen enough.
            if error.errno in (None, errno.EPIPE):
                raise
            raise _shown(_refused_by_the_system(error)) from error
        except KeyboardInterrupt as interrupt:
            raise interrupted(interrupt) from None


def _shown(error: ScalrError) -> click.ClickException:
    shown = click.ClickException(str(error))
    shown.exit_code = error.exit_code
    return shown


def _not_installed(module: str) -> ScalrError:
    return ScalrError(
        "the Python module is not installed",
        where=module,
        fix="Run 'pip install .' in the source folder of scalr, which installs all that the commands need.",
    )


def _refused_by_the_system(error: OSError) -> ScalrError:
    return ScalrError(
        f"the operating system reports an error ({error.strerror})",
        where=error.filename or "a file",
        fix=f"{remedy(error, 'Check the storage there')}, then run the same command again.",
    )


class Terminated(KeyboardInterrupt):
    """SIGTERM, by which schedulers end a job: it is handled as Ctrl-C is."""


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Raise `Terminated` at the first SIGTERM; those that follow wait for what it leads to, or for SIGKILL.

    A training has handlers of its own, for as long as it makes steps.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()  # Python handles signals nowhere else
    is_ours = in_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    process = os.getpid()

    def interrupt(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN if os.getpid() == process else signal.SIG_DFL)
        if os.getpid() != process:  # a worker that was forked
            os.kill(os.getpid(), number)
        raise Terminated

    if is_ours:
        signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def interrupted(by: KeyboardInterrupt, what_stays: str = "") -> Exception:
    """The end of a command after Ctrl-C or SIGTERM; commands that can continue say so in `what_stays`."""
    what, code = ("stopped by SIGTERM", TERMINATED) if isinstance(by, Terminated) else ("interrupted", INTERRUPTED)
    if not is_first_process():
        return click.exceptions.Exit(code)
    shown = click.ClickException(f"{what}{what_stays}.")
    shown.exit_code = code
    return shown


@contextmanager
def going_on_later(what_stays: str, resume: str = "Run the same command again to continue") -> Iterator[None]:
    """Tell whoever presses Ctrl-C, or reads the log of a job that was stopped, what is kept and how to continue."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise interrupted(interrupt, f"; {what_stays}. {resume}") from None


AFTER_A_CHECKPOINT = ("the last checkpoint is kept, if there is one", "Run the same command with --resume to continue")
FROM_THE_BEGINNING = ("no result was written", "Run the same command again")


def is_first_process() -> bool:
    """Whether this is the first of the processes that torchrun started: it prints for all of them."""
    return os.environ.get("RANK", "0") == "0"


def loading_torch() -> None:
    """Say that a command has begun, before its imports, which take seconds."""
    logger.info("scalr %s: loading PyTorch", importlib.metadata.version("scalr-distill"))


class WrittenPath(click.Path):
    """A file or folder, see `expanded`: also --root=~/data, where no shell fills in the home folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        try:
            return expanded(value)
        except ScalrError as error:
            raise error.inside(param.opts[0] if param else self.name) from None


class ImageSize(click.ParamType):
    """HEIGHTxWIDTH in pixels."""

    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        try:
            height, width = (int(side) for side in value.lower().split("x"))
        except ValueError:
            self.fail(f"'{value}' is not HEIGHTxWIDTH, for example 224x448", param, ctx)
        return height, width


class PartOfN(click.ParamType):
    """K/N, one job of a job array."""

    name = "K/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Part:
        from .extract.plan import Part

        return value if isinstance(value, Part) else Part.parse(value)


Decorator = Callable[[Callable], Callable]


def under(heading: str, *options: Decorator) -> Decorator:
    """List options under a heading of the help."""

    def decorate(command: Callable) -> Callable:
        for option in reversed(options):
            option(command)
            command.__click_params__[-1].heading = heading  # where click keeps what a command is made from
        return command

    return decorate


def choice_option(name: str, choices: list[str], text: str) -> Decorator:
    """An option with a few values, the first of them the default."""
    return click.option(name, type=click.Choice(choices), default=choices[0], show_default=True, help=text)


def out_option(default: str | None, text: str = "Folder for the result and the logs.") -> Decorator:
    """The folder of a run's results; without a default it must be given."""
    shown = {"default": default, "show_default": True} if default else {"required": True}
    return click.option("--out", type=path, help=text, **shown)


def split_option(default: str | None, text: str, otherwise: str | None = None) -> Decorator:
    """One split of the dataset, or several as one, in the form `train,val`; `otherwise` says what None means."""
    return click.option(
        "--split",
        multiple=True,
        default=[default] if default else [],
        callback=_joined,
        help=f"{text} Repeat the option for several, or separate them by commas.  [default: {otherwise or default}]",
    )


def _joined(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> str | None:
    return ",".join(values) or None


def dataset_root(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path:
    """--root, or $NUSCENES if the option is left out."""
    if value is not None:
        return value
    is_nuscenes = ctx.params["dataset"] == "nuscenes"
    if is_nuscenes and os.environ.get("NUSCENES"):
        return expanded(os.environ["NUSCENES"])
    or_set = ", or set $NUSCENES to the folder of nuScenes" if is_nuscenes else ""
    raise ScalrError("no dataset folder is given", where="--root", fix=f"Pass --root DIR{or_set}.")


def completed(names: Callable[[], list[str]]) -> dict[str, Any]:
    """For click.option: the shell completes what begins one of `names`, which may be slow to import."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in names() if name.startswith(incomplete)]

    return {"shell_complete": complete}


def teacher_names() -> list[str]:
    """Names of teachers, for completion."""
    from .extract.teachers.registry import TEACHERS

    return list(TEACHERS)


def recipe_names() -> list[str]:
    """Names of recipes, for completion."""
    from .distill.recipes import recipe_names as names

    return names()


def dataset_names() -> list[str]:
    """Names of dataset readers, for completion."""
    from .extract.datasets import READERS

    return list(READERS)


path = WrittenPath()
root_option = click.option(
    "--root", type=path, callback=dataset_root, help="Dataset folder.  [default: $NUSCENES for nuscenes]"
)
dataset_option = click.option(
    "--dataset",
    default="nuscenes",
    show_default=True,
    is_eager=True,  # --root depends on it
    help="Dataset reader: a name, for example nuscenes, or package.module:Class for your own reader.",
    **completed(dataset_names),
)
student_option = click.option(
    "--student", type=path, required=True, help="File student.safetensors of a distillation, or a converted one."
)
model_option = click.option(
    "--model", type=path, required=True, help="File model.safetensors of linear probing or finetuning."
)
classes_option = click.option(
    "--classes",
    help="Class set for domain generalisation: semantic_kitti_10 or semantic_poss_6.  [default: the dataset's classes]",
)
store_argument = click.argument("store", type=path, help="Feature store that 'scalr extract' wrote.")
DEFAULT_RECIPE = "scalr_wi256"
recipe_option = click.option(
    "--recipe",
    default=DEFAULT_RECIPE,
    show_default=True,
    help="Name of a bundled recipe, or a YAML file.",
    **completed(recipe_names),
)


def set_option(example: str) -> Decorator:
    """`--set`, with an example of a value that the command takes."""
    return click.option(
        *("--set", "overrides"),
        multiple=True,
        metavar="KEY=VALUE",
        help=f"Change one value of the recipe, for example {example}. Repeat the option for several values.",
    )


resume_option = click.option(
    "--resume", is_flag=True, help="Continue the interrupted run in --out, or start a new one if there is none."
)
checkpoint_option = click.option(
    "--checkpoint-minutes", default=10.0, show_default=True, help="Minutes between checkpoints."
)
workers_option = click.option(
    "--workers",
    default=0,
    show_default=True,
    help="Worker processes that prepare scans. 0 prepares them in the main process.",
)
seed_option = click.option("--seed", default=0, show_default=True, help="Random seed.")
device_option = click.option(
    "--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 … auto: a GPU if there is one."
)


def precision_option(text: str) -> Decorator:
    """The precision in which a network computes."""
    return choice_option("--precision", ["float32", "bfloat16", "float16"], text)


def json_option(command: Callable) -> Callable:
    """`--json`: standard output holds only what `show_result` prints, whatever libraries print."""

    @click.option("--json", "as_json", is_flag=True, help="Print the result on standard output as JSON, for scripts.")
    @functools.wraps(command)
    def quiet(*args: Any, as_json: bool, **options: Any) -> Any:
        if not as_json:
            return command(*args, as_json=False, **options)
        with results_alone() as results:
            click.get_current_context().meta[RESULTS] = results
            return command(*args, as_json=True, **options)

    return quiet


def show_result(text: str) -> None:
    """Print the result of a command, or its JSON."""
    click.echo(text, file=click.get_current_context().meta.get(RESULTS))
