"""Strip notebooks for the pipeline and run them with parameters.

    python -m dml notebook strip notebooks .notebooks
    python -m dml notebook run notebooks/03_robust_training.ipynb scratch/anchor.ipynb -p loss triplet -p seed 1

Stages of the pipeline run stripped copies, so that outputs and counters which JupyterLab leaves in a notebook rerun
nothing.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

# JupyterLab installs a checker of internationalised addresses that takes two seconds to import. Notebooks hold no such
# addresses, and the schema library works without the checker.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

import nbformat  # noqa: E402
import yaml  # noqa: E402
import zmq  # noqa: E402
from traitlets.config import Config  # noqa: E402

from dml.common.files import ROOT, atomic  # noqa: E402

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def strip(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return the notebook without outputs, counters or metadata other than tags, and with cell ids by position."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return _plain(notebook)


def _plain(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop what differs between runs of the same notebook: times, paths, random cell ids, and stderr."""
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for place, cell in enumerate(notebook.cells):
        cell.id = f"cell-{place:02d}"
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.outputs = _without_progress(cell.outputs)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def _without_progress(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Drop stderr, where progress and time left go, and join the pieces of stdout that it or the clock split."""
    kept: list[nbformat.NotebookNode] = []
    for output in outputs:
        if output.get("name") == "stderr":
            continue
        if output.get("name") == "stdout" and kept and kept[-1].get("name") == "stdout":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def strip_folder(source: Path, target: Path) -> None:
    """Write a stripped copy of every notebook of a folder to another, or in place if they are the same.

    Raises:
        FileNotFoundError: the folder holds no notebook.
        ValueError: a file is no notebook.
    """
    if not (files := sorted(source.glob("*.ipynb"))):
        raise FileNotFoundError(f"{source} holds no notebook (*.ipynb)")
    for file in files:
        try:
            notebook = nbformat.read(file, as_version=4)
        except (ValueError, TypeError, AttributeError, LookupError, nbformat.ValidationError) as error:
            raise ValueError(f"{file} is no notebook: {' '.join(str(error).split())[:200]}") from error
        with atomic(target / file.name) as partial:
            nbformat.write(strip(notebook), partial)


def run(source: Path, target: Path, parameters: dict[str, Any]) -> None:
    """Execute a notebook from the project root with some of its parameters replaced, and pass its output through.

    Raises:
        ValueError: the notebook declares no such parameter.
        papermill.PapermillExecutionError: a cell failed; the notebook up to that cell is at ``failed(target)``.
    """
    papermill = _papermill()
    known = papermill.inspect_notebook(str(source))
    for name in parameters:
        if name not in known:
            raise ValueError(f"{source.name} has no parameter {name!r}; it has {', '.join(sorted(known))}")
    unfinished = failed(target)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with _sockets() as connection:
        papermill.execute_notebook(
            str(source),
            str(unfinished),
            parameters=parameters,
            kernel_name=KERNEL["name"],
            cwd=str(ROOT),
            progress_bar=False,
            log_output=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            config=connection,
            shutdown_kernel="immediate",  # after its last cell a kernel has nothing left to save
            extra_arguments=["--IPKernelApp.log_level=ERROR"],  # a local kernel warns about its own sockets
        )
    with atomic(target) as partial:
        nbformat.write(_plain(nbformat.read(unfinished, as_version=4)), partial)
    unfinished.unlink()


@contextmanager
def _sockets() -> Iterator[Config]:
    """Settings of a kernel that talks through separate files, where the system can.

    A kernel takes network ports that are free when it is asked to start, and opens them seconds later. Of two that
    start side by side, the second may find its ports taken.
    """
    if not zmq.has("ipc"):
        yield Config()
        return
    with TemporaryDirectory() as folder:
        yield Config({"KernelManager": {"transport": "ipc", "ip": str(Path(folder, "kernel"))}})


def _papermill() -> ModuleType:
    """Import papermill when it is needed: `strip` need not wait for it."""
    import papermill

    return papermill


def failed(target: Path) -> Path:
    """Return where a notebook lies while it runs, and stays when it fails; two targets never share a place."""
    place = (ROOT / target).resolve()
    inside = place.relative_to(ROOT) if place.is_relative_to(ROOT) else Path(*place.parts[1:])
    return ROOT / "artifacts" / "failed" / inside


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m dml notebook", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    stripping = commands.add_parser("strip", help="copy notebooks without outputs")
    stripping.add_argument("source", type=Path)
    stripping.add_argument("target", type=Path)
    running = commands.add_parser("run", help="execute a notebook")
    running.add_argument("source", type=Path)
    running.add_argument("target", type=Path)
    running.add_argument(
        "-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="YAML value"
    )
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "strip":
            strip_folder(chosen.source, chosen.target)
            return 0
        run(chosen.source, chosen.target, {name: yaml.safe_load(value) for name, value in chosen.parameters})
    except _papermill().PapermillExecutionError as error:
        print(f"{error.ename}: {' '.join(error.evalue.split())}", file=sys.stderr)
        print(f"the notebook up to the failed cell: {failed(chosen.target).relative_to(ROOT)}", file=sys.stderr)
        return 1
    except (ValueError, OSError, RuntimeError, yaml.YAMLError, nbformat.ValidationError) as error:
        # RuntimeError: the kernel died; ValidationError: JSON that is no notebook
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0
