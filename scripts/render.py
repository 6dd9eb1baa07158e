"""Write what of kustomize/ follows from the chart: base, and the patches of each component.

    python -m scripts.render            # make render
    python -m scripts.render --check    # writes nothing; exit status 1 if something is out of date

The base is `helm template` with the default values, one object a file, as text, so that the chart's
comments stay. A component's values.yaml says what it switches; the rest of its folder is the
difference that these values make: objects that appear, and patches for those that change or go.

Both are as the chart renders them, but for what only Helm or only Kustomize understands:

- No namespace: an overlay sets it.
- No label that says that Helm manages the object, or which chart it is from.
- Kustomize gives a Job its name's hash: each change of the Job in an overlay makes a new one run.
- What the chart keeps on `helm uninstall`, Argo CD and Flux keep, too.
"""

import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import jsonpatch
import typer
import yaml
from jsonpointer import JsonPointer

Object = dict[str, Any]
Key = tuple[str, str]

ROOT = Path(__file__).parent.parent
CHART = ROOT / "charts" / "prefect-hamilton"
KUSTOMIZE = ROOT / "kustomize"
BASE = KUSTOMIZE / "base"
COMPONENTS = KUSTOMIZE / "components"
SETTINGS = BASE / "settings.yaml"
RELEASE = "prefect-hamilton"
NAMESPACE = "namespace-of-the-overlay"
HEADER = "# Rendered from the chart by `make render`; in a component, from its values.yaml too.\n"

# The component whose pods others change, too: it comes before them in a list.
ADDS_PODS = "high-availability"
# Components that do not go together with it.
ALONE = ("worker-only",)
# Components that change what another one adds, and come after it.
AFTER = {"flows-credential": "flows-repository"}

# Names of fields whose lists Kubernetes merges by a key (patchMergeKey in its API); others are
# replaced as a whole.
MERGE_KEYS = {
    "containers": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "initContainers": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
    "volumes": "name",
}
MERGED = ("ConfigMap", "CronJob", "Deployment", "Job", "StatefulSet")


def main(
    check: Annotated[bool, typer.Option(help="Write nothing; say what is out of date.")] = False,
) -> None:
    """Write kustomize/base and the rendered part of kustomize/components."""
    try:
        wanted = files()
    except subprocess.CalledProcessError as error:
        typer.echo(error.stderr.strip(), err=True)
        raise typer.Exit(1) from None
    except FileNotFoundError:
        typer.echo("helm is not on PATH: install it from https://helm.sh.", err=True)
        raise typer.Exit(1) from None
    stale = {path for path in rendered() if path not in wanted}
    changed = {p for p, text in wanted.items() if not p.is_file() or p.read_text() != text}
    for path in sorted(stale | changed):
        typer.echo(path.relative_to(ROOT))
        if not check and path in stale:
            path.unlink()
        elif not check:
            path.write_text(wanted[path])
    if check and (stale or changed):
        typer.echo("These do not follow from the chart: run `make render`.", err=True)
        raise typer.Exit(1)


def files() -> dict[Path, str]:
    """Return every rendered file with its text. Raises CalledProcessError: helm refuses."""
    base = documents({})
    wanted = {BASE / file_name(key): text for key, text in base.items()}
    names = ["settings.yaml", *sorted(file_name(key) for key in base)]
    wanted[BASE / "kustomization.yaml"] = dump(
        {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "configurations": ["kustomizeconfig.yaml"],
            "resources": names,
        }
    )
    pods = switch(ADDS_PODS)
    with_pods = documents(pods)
    for path in sorted(COMPONENTS.glob("*/values.yaml")):
        name = path.parent.name
        values = switch(name)
        before, after = dict(base), documents(values)
        if first := AFTER.get(name):
            before = documents(switch(first))
        if name not in (ADDS_PODS, *ALONE):
            # What it changes in the pods of the other; nothing happens where there are none.
            after_both = documents(joined(pods, values))
            for key in with_pods.keys() - base.keys():
                before[key] = with_pods[key]
                if key in after_both:
                    after[key] = after_both[key]
        wanted |= component(path.parent, before, after)
    return wanted


def switch(name: str) -> Object:
    """Return the values of a component, with those of the component that it comes after."""
    values: Object = parse((COMPONENTS / name / "values.yaml").read_text())
    return joined(switch(AFTER[name]), values) if name in AFTER else values


def rendered() -> Iterator[Path]:
    """Yield the files that an earlier rendering has written."""
    for path in KUSTOMIZE.rglob("*.yaml"):
        if path.read_text().startswith(HEADER):
            yield path


def documents(values: Object) -> dict[Key, str]:
    """Return the chart's objects with these values as texts for Kustomize, by kind and name."""
    command = ["helm", "template", RELEASE, str(CHART), "--namespace", NAMESPACE]
    done = subprocess.run(
        [*command, "--no-hooks", "--skip-tests", "--values", "-"],
        input=yaml.safe_dump(values),
        capture_output=True,
        text=True,
        check=True,
    )
    texts = [neutral(text) for text in re.split(r"^---\n", done.stdout, flags=re.MULTILINE) if text]
    return {key_of(parse(text)): text for text in texts}


def joined(first: Object, second: Object) -> Object:
    """Return two sets of values as helm joins two files."""
    result = dict(first)
    for key, value in second.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = joined(result[key], value) if both else value
    return result


def neutral(text: str) -> str:
    """Return the text of an object without what only Helm understands."""
    text = re.sub(r"^# Source: .*\n", "", text).strip() + "\n"
    for line in (
        rf" +namespace: {NAMESPACE}",
        r" +app\.kubernetes\.io/managed-by: Helm",
        r" +helm\.sh/chart: .*",
    ):
        text = re.sub(rf"^{line}\n", "", text, flags=re.MULTILINE)
    text = re.sub(
        r"^( +)helm\.sh/resource-policy: keep$",
        r"\1argocd.argoproj.io/sync-options: Delete=false,Prune=false" + "\n"
        r"\1kustomize.toolkit.fluxcd.io/prune: disabled",
        text,
        flags=re.MULTILINE,
    )
    if re.search(r"^kind: Job$", text, re.MULTILINE):
        text = re.sub(
            rf"^  name: ({RELEASE}-\w+)-[0-9a-f]{{8}}$",
            r"  name: \1" + "\n  annotations:\n"
            "    # Kustomize adds a hash of the whole object to the name.\n"
            "    internal.config.kubernetes.io/needsHashSuffix: enabled",
            text,
            flags=re.MULTILINE,
        )
    return HEADER + text


def component(folder: Path, base: Mapping[Key, str], changed: Mapping[Key, str]) -> dict[Path, str]:
    """Return the rendered files of a component: what makes the changed objects of the base."""
    resources: list[str] = []
    patches: list[Object] = []
    replaced: list[tuple[Object, Object | None]] = []
    wanted: dict[Path, str] = {}
    for key, text in changed.items():
        new, old = parse(text), parse(base.get(key, "null"))
        if old is None:
            resources.append(file_name(key))
            wanted[folder / file_name(key)] = text
        elif new != old:
            name = f"patch-{file_name(key)}"
            patches.append({"target": target(key), "path": name})
            wanted[folder / name] = dump(patch(old, new))
        else:
            continue
        replaced.append((new, old))
    for key in base:
        if key not in changed:
            patches.append({"target": target(key), "patch": deletion(key)})
    content: Object = {"apiVersion": "kustomize.config.k8s.io/v1alpha1", "kind": "Component"}
    if resources:
        content["resources"] = sorted(resources)
    if patches:
        content["patches"] = sorted(
            patches, key=lambda p: (p["target"]["kind"], p["target"]["name"])
        )
    if found := replacements(replaced):
        content["replacements"] = found
    wanted[folder / "kustomization.yaml"] = dump(content)
    return wanted


def patch(old: Object, new: Object) -> Object | list[Object]:
    """Return what makes the new object of the old one: a merge where lists have keys."""
    if new["kind"] in MERGED:
        identity = {"apiVersion": new["apiVersion"], "kind": new["kind"]}
        return identity | {"metadata": {"name": new["metadata"]["name"]}} | merge(old, new)
    operations: list[Object] = jsonpatch.make_patch(old, new).patch
    for operation in operations:
        # What is added at a list's end stays there when another component changes its length.
        *parents, last = JsonPointer(operation["path"]).parts
        owner = JsonPointer.from_parts(parents).resolve(old, None)
        if operation["op"] == "add" and isinstance(owner, list) and int(last) >= len(owner):
            operation["path"] = JsonPointer.from_parts([*parents, "-"]).path
    return operations


def merge(old: Object, new: Object) -> Object:
    """Return the strategic merge patch from one mapping to another."""
    result: Object = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if value == before:
            continue
        if isinstance(value, dict) and isinstance(before, dict):
            result[key] = merge(before, value)
        elif isinstance(value, list) and isinstance(before, list) and key in MERGE_KEYS:
            result[key] = merge_lists(before, value, MERGE_KEYS[key])
        else:
            result[key] = value
    return result


def merge_lists(old: list[Object], new: list[Object], key: str) -> list[Object]:
    """Return the strategic merge patch of a list whose items have a key."""
    before = {item[key]: item for item in old}
    after = {item[key]: item for item in new}
    result = [{key: name, "$patch": "delete"} for name in before if name not in after]
    changed = {name: item for name, item in after.items() if item != before.get(name)}
    # Kustomize puts what it merges first: a variable must still come before those that name it.
    named = set(re.findall(r"\$\((\w+)\)", str(list(changed.values()))))
    result += [after[name] for name in after if name in named and name not in changed]
    for name, item in changed.items():
        result.append({key: name} | merge(before.get(name, {}), item))
    return result


def deletion(key: Key) -> str:
    """Return the patch that deletes an object, on one line."""
    kind, name = key
    return f"{{$patch: delete, apiVersion: v1, kind: {kind}, metadata: {{name: {name}}}}}"


def target(key: Key) -> Object:
    """Return the target of a patch: nothing happens when another component has deleted it."""
    kind, name = key
    return {"kind": kind, "name": name}


def replacements(objects: list[tuple[Object, Object | None]]) -> list[Object]:
    """Return what puts an overlay's settings where the values have the defaults of settings.yaml.

    Takes each object with what it was in the base.
    """
    result = []
    for name, default in yaml.safe_load(SETTINGS.read_text())["data"].items():
        targets: list[Object] = []
        for new, old in objects:
            before = set(leaves(old)) if old else set()
            for path, text in leaves(new):
                if (path, text) in before or default not in text:
                    continue
                where = {"select": target(key_of(new))} | place(text, default, name)
                same = next((t for t in targets if t | where == t), None)
                if same is None:
                    targets.append(same := {"select": where["select"], "fieldPaths": []} | where)
                same["fieldPaths"].append(path)
        if targets:
            source = {"kind": "ConfigMap", "name": "settings", "fieldPath": f"data.{name}"}
            result.append({"source": source, "targets": targets})
    return result


def place(text: str, default: str, name: str) -> Object:
    """Return how a replacement finds the default in a text that holds more than it."""
    if text == default:
        return {}
    for delimiter in ("/", ",", ":"):
        if default in (parts := text.split(delimiter)):
            return {"options": {"delimiter": delimiter, "index": parts.index(default)}}
    raise ValueError(f"Setting {name}: a replacement cannot find {default!r} in {text!r}.")


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in an object with its path as a replacement writes it."""
    if isinstance(node, dict):
        for key, value in node.items():
            step = key.replace(".", "\\.")
            yield from leaves(value, f"{path}.{step}" if path else step)
    elif isinstance(node, list):
        for index, item in enumerate(node):
            named = isinstance(item, dict) and "name" in item
            yield from leaves(item, f"{path}.[name={item['name']}]" if named else f"{path}.{index}")
    elif isinstance(node, str):
        yield path, node


def key_of(obj: Object) -> Key:
    """Return kind and name."""
    return obj["kind"], obj["metadata"]["name"]


def file_name(key: Key) -> str:
    """Return the name of an object's file."""
    kind, name = key
    return f"{kind.lower()}-{name.removeprefix(RELEASE).strip('-') or 'all'}.yaml"


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks; no aliases."""

    def ignore_aliases(self, data: object) -> bool:
        """Write everything where it stands."""
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent lists, as the chart does."""
        super().increase_indent(flow, indentless=False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def dump(content: object) -> str:
    """Return the text of a rendered file."""
    return HEADER + yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=100)


def parse(text: str) -> Any:
    """Return what YAML text holds; libyaml is ten times as fast as Python."""
    return yaml.load(text, Loader=yaml.CSafeLoader)


if __name__ == "__main__":
    typer.run(main)
