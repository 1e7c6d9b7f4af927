"""How all configuration is read: YAML to typed, frozen models, and one clear sentence for each mistake."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, NamedTuple, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ehrctx.errors import InputError, nearest


class Config(BaseModel):
    """Base of everything that is read from YAML: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


C = TypeVar("C", bound=Config)
LONGEST_VALUE = 60  # characters of a value that a sentence quotes
# What a value should be as a whole, by pydantic's name of the error.
EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number that a computer can hold",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "literal_error": "{expected}",
    "tuple_type": "a list, as in [a, b]",
    "too_short": "at least {min_length} item",
    "too_long": "at most {max_length} items",
    "dict_type": "keys and values, as in {{key: value}}",
    "model_type": "keys and values, as in {{key: value}}",
    "model_attributes_type": "keys and values, as in {{key: value}}",
}


def _models_in(annotation: Any) -> list[type[Config]]:
    """The Config classes that an annotation admits (`Simulation | None` gives Simulation)."""
    if get_origin(annotation) in (Union, UnionType, Annotated, tuple):
        return [model for part in get_args(annotation) for model in _models_in(part)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, Config) else []


def _is_called(model: type[Config], tag: int | str) -> bool:
    """Whether a key of `model` may only say `tag`, as `format: omop` does."""
    return any(tag in get_args(field.annotation) for field in model.model_fields.values())


def _known_keys(model: type[Config], location: tuple[int | str, ...]) -> set[str]:
    """The keys at a location as pydantic tells it: with the tag of the alternative that was chosen on the way."""
    models = [model]
    for part in location:
        fields = [m.model_fields[str(part)].annotation for m in models if str(part) in m.model_fields]
        inner = [found for annotation in fields for found in _models_in(annotation)]
        models = inner or [m for m in models if _is_called(m, part)] or models
    return {name for m in models for name in m.model_fields}


def _place(values: Any, location: Sequence[int | str]) -> tuple[int | str, ...]:
    """The keys and positions that lead to a mistake; pydantic also names the alternatives of a type on the way."""
    place = []
    for part in location:
        listed = isinstance(values, list | tuple) and isinstance(part, int) and part < len(values)
        if listed or (isinstance(values, Mapping) and part in values):
            values = values[part]
            place.append(part)
    return tuple(place)


def _found(value: Any) -> str:
    """A value as its writer knows it."""
    if isinstance(value, Mapping):
        return "keys and values"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if isinstance(value, date):
        return f"the date {value}"
    return "nothing" if value is None else json.dumps(value) if isinstance(value, bool) else repr(value)


def _keys_that_are_no_text(values: Any, place: tuple[str, ...] = ()) -> Iterator[str]:
    """A sentence for each: YAML makes numbers, dates, truth values and nothing of some words."""
    if isinstance(values, list | tuple):
        for position, value in enumerate(values):
            yield from _keys_that_are_no_text(value, (*place, str(position)))
    for key, value in values.items() if isinstance(values, Mapping) else ():
        if isinstance(key, str):
            yield from _keys_that_are_no_text(value, (*place, key))
        else:
            within = f" in `{'.'.join(place)}`" if place else ""
            yield f"a key{within} is {_found(key)}, not text: put it in quotes"


def _sentences(model: type[Config], values: Any, errors: Iterable[Any]) -> Iterator[str]:
    """One for each mistake; what a value should be as a whole is not told where something within it is wrong."""
    places: dict[tuple[int | str, ...], list[Any]] = {}
    for error in errors:
        places.setdefault(_place(values, error["loc"]), []).append(error)
    for place, here in places.items():
        key = ".".join(map(str, place))
        mistakes = [error for error in here if error["type"] not in EXPECTED]
        within = any(other[: len(place)] == place for other in places if other != place)
        if not mistakes and not within:
            expected = " or ".join(EXPECTED[error["type"]].format(**error.get("ctx", {})) for error in here)
            yield f"`{key}`: expected {expected}, found {_found(here[0]['input'])}"
        for error in mistakes:
            if error["type"] == "extra_forbidden":
                yield f"unknown key `{key}`; {nearest(str(place[-1]), _known_keys(model, error['loc'][:-1]))}"
            elif error["type"] == "missing":
                yield f"the key `{'.'.join(map(str, [*place, error['loc'][-1]]))}` is missing"
            elif error["type"].startswith("union_tag"):  # which alternative is meant is told by one key
                tag = error["ctx"]["discriminator"].strip("'")
                if error["type"] == "union_tag_not_found":
                    yield f"the key `{key}.{tag}` is missing"
                else:
                    expected = " or ".join(error["ctx"]["expected_tags"].split(", "))
                    yield f"`{key}.{tag}`: expected {expected}, found {error['ctx']['tag']!r}"
            else:
                message = error["msg"].removeprefix("Value error, ")
                yield f"`{key}`: {message}" if key else message


def validate(model: type[C], values: Any, source: str) -> C:
    """`values` (a mapping from YAML or JSON) as a `model`.

    Raises InputError with a sentence for each mistake, led by `source`: the file or option that the values are from.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{source}: expected keys and values, found {_found(values)}.")
    if wrong := list(_keys_that_are_no_text(values)):
        raise InputError(f"{source}: {'; '.join(wrong)}")
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise InputError(f"{source}: {'; '.join(_sentences(model, values, error.errors()))}") from None


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, as YAML itself does; PyYAML would take the last one."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # not `construct_mapping`: what `<<` merges may by then stand among a mapping's own keys
        node = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if known := first.get((key.tag, key.value)):
                    problem = f"the key `{key.value}` is given twice, first in line {known}"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                first[key.tag, key.value] = key.start_mark.line + 1
        return node


def parsed(text: str, source: str) -> Any:
    """What YAML or JSON text says."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that no calendar has
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark and "\n" in text else ""
        raise InputError(f"{source}{where}: not valid YAML ({getattr(error, 'problem', error)}).") from None


def read_yaml(path: Path) -> Any:
    """What the YAML file at `path` says, unchecked.

    Raises InputError where it is not there, no text or no YAML, or gives a key twice.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no such file: {path}.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text.") from None
    return parsed(text, str(path))


def load(model: type[C], path: Path) -> C:
    """The YAML file at `path` as a `model`. Raises InputError, as `read_yaml` and `validate` do."""
    return validate(model, read_yaml(path), str(path))


def settings(model: type[C], text: str | None, option: str = "--settings") -> C:
    """A section given on the command line as YAML or JSON text, `'{tokens: 2_000_000}'`; the defaults for None.

    Raises InputError that names `option`.
    """
    return model() if text is None else validate(model, parsed(text, option), option)


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes` on top, key by key."""
    found = dict(values)
    for key, change in changes.items():
        inner = found.get(key)
        if isinstance(inner, Mapping) and isinstance(change, Mapping):
            change = merged(inner, change)
        found[key] = change
    return found


class Difference(NamedTuple):
    """One key whose value differs: its names from the outermost on, and both values; None where it is not there."""

    key: tuple[str, ...]
    before: Any
    after: Any

    def sentence(self) -> str:
        """`key: before, now after`; long values are not written out."""
        key = ".".join(self.key)
        texts = [json.dumps(value, default=str) if value is not None else "nothing" for value in self[1:]]
        return f"`{key}`: {texts[0]}, now {texts[1]}" if max(map(len, texts)) <= LONGEST_VALUE else f"`{key}` differs"


def differences(before: Mapping[str, Any], after: Mapping[str, Any], key: tuple[str, ...] = ()) -> Iterator[Difference]:
    """The innermost keys in which two nested mappings differ, in order."""
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name), after.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(old, new, (*key, str(name)))
        elif old != new:
            yield Difference((*key, str(name)), old, new)


def find(name_or_path: str, folder: Path, what: str) -> Path:
    """`clmbr` -> `<folder>/clmbr.yaml`; anything with a suffix or a slash is a path already.

    Raises InputError, with the nearest of the known names, where there is no such `what`.
    """
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
        if not path.is_file():
            raise InputError(f"no such {what} file: {path}.")
        return path
    path = folder / f"{name_or_path}.yaml"
    if not path.is_file():
        known = [p.stem for p in folder.glob("*.yaml")]
        raise InputError(f"no {what} {name_or_path!r} in {folder}; {nearest(name_or_path, known)}")
    return path
