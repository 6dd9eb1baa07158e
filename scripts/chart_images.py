"""Print the images that a release needs, one per line, to mirror them or load them into a cluster.

Usage: python -m scripts.chart_images [--values FILE] [--set KEY=VALUE]
"""

import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

CHART = Path(__file__).parent.parent / "charts" / "prefect-hamilton"


def main(
    values: Annotated[list[Path] | None, typer.Option(help="Values file; may be repeated.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Value as for helm, key=value; may be repeated."),
    ] = None,
) -> None:
    """Print the images of the chart with these values, including those of flow pods."""
    try:
        print("\n".join(images(values or [], set_ or [])))
    except subprocess.CalledProcessError as error:
        typer.echo(error.stderr.strip(), err=True)
        raise typer.Exit(1) from None
    except FileNotFoundError:
        typer.echo("helm is not on PATH: install it from https://helm.sh.", err=True)
        raise typer.Exit(1) from None


def images(values: Iterable[Path] = (), settings: Sequence[str] = ()) -> list[str]:
    """Return the images, sorted. Raises CalledProcessError: helm refuses the values."""
    command = ["helm", "template", "release", str(CHART)]
    command += [f"--values={path}" for path in values] + [f"--set={each}" for each in settings]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return sorted({image for each in yaml.safe_load_all(done.stdout) for image in found(each)})


def found(node: Any) -> Iterator[str]:
    """Yield the images of an object: of its containers, and those that flow pods get."""
    if isinstance(node, list):
        for item in node:
            yield from found(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == "image":
                yield value
            elif key == "name" and str(value).startswith("FLOWS_IMAGE"):
                yield node["value"]
            else:
                yield from found(value)


if __name__ == "__main__":
    typer.run(main)
