"""Recipes: YAML files of the keys of config.py, read within limits."""

import difflib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from resnet_ffcv.errors import UsageError
from resnet_ffcv.opening import read_file
from resnet_ffcv.schema import brief, shorten

Values = dict[str, Any]  # "section.key" -> value, as a file or the command line gave it

# Of a recipe, which has about a hundred values. Beyond these, reading one could take minutes.
MOST_BYTES = 1 << 20
MOST_VALUES = 10_000  # an alias counts as all that it stands for
LONGEST_VALUE = 4096  # characters, as of a path


class _RefusedError(yaml.MarkedYAMLError):
    """YAML, but no recipe."""


class _RecipeLoader(yaml.SafeLoader):
    """SafeLoader with limits, which refuses a key given twice; PyYAML would take the last.

    A few aliases of aliases stand for billions of values. So each counts as what it stands for.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.values = 0
        self.sizes: dict[int, int] = {}  # of finished nodes, by identity

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        mark, before = event.start_mark, self.values
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        # A node that is not finished stands inside itself, without end.
        self.values += self.sizes.get(id(node), MOST_VALUES) if is_alias else 1
        if self.values > MOST_VALUES:
            self._refuse(f"more than {MOST_VALUES:,} keys and values, aliases spelled out", mark)
        if isinstance(node, yaml.ScalarNode) and len(node.value) > LONGEST_VALUE:
            self._refuse(f"a value of more than {LONGEST_VALUE:,} characters", mark)
        if not is_alias:
            self.sizes[id(node)] = self.values - before
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # While the nodes still are as written: construction adds the keys that <<: merges in.
        node = super().compose_mapping_node(anchor)
        seen = set()
        for name, _ in node.value:
            if isinstance(name, yaml.ScalarNode):
                if name.value in seen:
                    self._refuse(f"{name.value} is given twice", node.start_mark)
                seen.add(name.value)
        return node

    @staticmethod
    def _refuse(problem: str, mark: Any) -> typing.NoReturn:
        raise _RefusedError(None, None, problem, mark)


def read_yaml(path: str | Path, *, is_base: bool = False) -> list[tuple[str, Values]]:
    """Layers of a configuration file: first that of its `base: FILE`, if any, then its own.

    Raises:
        UsageError: no such file, not YAML, too large, not sections of keys, or a base that names a
            base.
    """
    path = Path(path)
    try:
        content = yaml.load(read_file(path, MOST_BYTES).decode(), _RecipeLoader)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        near = difflib.get_close_matches(path.name, _siblings(path), n=1)
        missing = isinstance(error, FileNotFoundError)
        hint = f"; did you mean {path.parent / near[0]}?" if missing and near else ""
        raise UsageError(f"configuration file {path}: {reason}{hint}") from error
    except RecursionError as error:
        raise UsageError(f"{path}: nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: of a date, say
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        kind = "" if isinstance(error, _RefusedError) else "not YAML: "
        if isinstance(error, yaml.constructor.ConstructorError):
            kind = "only plain values are read: "
        problem = shorten(str(getattr(error, "problem", error)))
        raise UsageError(f"{path}{line}: {kind}{problem}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: wants sections with keys, as in rn_configs/")
    base = content.pop("base", None)
    if base is not None and (is_base or not base or not isinstance(base, str)):
        raise UsageError(f"{path}: base names one file, which may name no base itself")
    layers = read_yaml(path.parent / base, is_base=True) if base else []
    return [*layers, (str(path), _flatten(content, path))]


def _siblings(path: Path) -> list[str]:
    return [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []


def _flatten(content: Mapping[Any, Any], path: Path) -> Values:
    values: Values = {}
    for section, keys in content.items():
        if not isinstance(section, str) or not isinstance(keys, dict):
            raise UsageError(
                f"{path}: {shorten(str(section))} is not a section of keys (section:, then "
                "key: value below it)"
            )
        for name, value in keys.items():
            if not isinstance(name, str):
                raise UsageError(f"{path}: {section}: {brief(name)} is not the name of a key")
            values[f"{section}.{name}"] = value
    return values
