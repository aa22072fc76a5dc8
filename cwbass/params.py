"""params.yaml to typed, frozen sections.

A file may hold sections that a step does not need: they are checked all the same by
``load_params(values, Params)`` (``cwbass check``), but a step asks for its own alone. Errors name
the dotted key, what was seen and the nearest key that exists.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, SerializeAsAny, ValidationError
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from cwbass.config import (
    AugmentConfig,
    DataConfig,
    EvalConfig,
    ModelConfig,
    RegistryConfig,
    Section,
    SplitConfig,
    SynthesizeConfig,
    TrainConfig,
    misfits,
)
from cwbass.data import LAYOUTS
from cwbass.errors import ParamsError
from cwbass.evaluation import POSTPROCESS
from cwbass.losses import GIVEN, LABELED_LOSSES
from cwbass.methods import METHODS, OFFLINE, supervised_methods
from cwbass.methods.base import Method, MethodConfig
from cwbass.methods.cw_bass import CwBassConfig
from cwbass.methods.supervised import SupervisedConfig
from cwbass.optimizers import OPTIMIZERS, SCHEDULES
from cwbass.plugins import load_plugins

P = TypeVar("P", bound=Section)
_USER = re.compile(r"://[^/\s]*(@|:(?!\d+(/|$)))")  # before the first slash; a colon is also that of a port
_SCALARS = ("int", "float", "str", "bool")
# Keys that name an entry of a registry.
_REGISTRIES: Mapping[str, Collection[str]] = {
    "data.layout": LAYOUTS,
    "train.loss.name": LABELED_LOSSES,
    "train.optimizer.name": OPTIMIZERS,
    "train.optimizer.schedule": SCHEDULES,
    "eval.postprocess": POSTPROCESS,
}


@dataclass(frozen=True, slots=True)
class _Registered:
    """A section of the method that its ``name`` says, of those that are registered when it is loaded."""

    methods: Callable[[], Mapping[str, type[Method]]]
    name: str | None = None  # where a section gives none

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(self._section, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        choices = {name: kind.__pydantic_core_schema__ for name, kind in self.kinds().items()}
        return handler(core_schema.tagged_union_schema(choices, discriminator="name"))

    def kinds(self) -> dict[str, type[MethodConfig]]:
        """The class of each method's section."""
        return {name: method.config_cls for name, method in self.methods().items()}

    def _section(self, value: Any, plain: Callable[[Any], MethodConfig]) -> MethodConfig:
        if not isinstance(value, dict):
            return plain(value)  # a section as it is, or an error
        kinds, name = self.kinds(), value.get("name", self.name)
        if "name" not in value and self.name is None:
            raise PydanticKnownError("union_tag_not_found", {"discriminator": "'name'"})
        if not isinstance(name, str) or name not in kinds:
            expected = ", ".join(map(repr, kinds))
            raise PydanticKnownError(
                "union_tag_invalid", {"discriminator": "'name'", "tag": str(name), "expected_tags": expected}
            )
        return kinds[name].model_validate_json(json.dumps({**value, "name": name}))


if TYPE_CHECKING:
    AnyMethodConfig = MethodConfig
    SupervisedMethodConfig = MethodConfig
else:
    AnyMethodConfig = Annotated[SerializeAsAny[MethodConfig], _Registered(lambda: METHODS)]
    SupervisedMethodConfig = Annotated[SerializeAsAny[MethodConfig], _Registered(supervised_methods, "supervised")]


class SplitSections(Section):
    """What every step that reads a split has in common."""

    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="Seed of split, weights, views and order.")
    data: DataConfig = DataConfig()
    split: SplitConfig = SplitConfig()


class TrainingSections(SplitSections):
    """What every step that trains has in common."""

    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    warmup: SupervisedMethodConfig = SupervisedConfig()
    train: TrainConfig = TrainConfig(steps=1000)
    eval: EvalConfig = EvalConfig()


class Params(TrainingSections):
    """All of params.yaml; what a step takes is some of these fields under the same names."""

    synthesize: SynthesizeConfig | None = None
    method: AnyMethodConfig = CwBassConfig()
    registry: RegistryConfig = RegistryConfig()


def read_params(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a params file and apply ``dotted.key=value`` overrides; values are YAML.

    Raises:
        ParamsError: The file is missing or no YAML mapping, or an override is malformed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ParamsError(f"{path}: no such file. Name the parameters with --params FILE.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path} cannot be read as text: {error}.") from error
    return apply_overrides(parse_yaml(text, str(path)), overrides)


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply ``dotted.key=value`` overrides in place; values are YAML.

    Raises:
        ParamsError: An override is malformed.
    """
    for override in overrides:
        _override(values, override)
    return values


def parse_yaml(text: str, name: str) -> dict[str, Any]:
    """YAML text to a mapping with string keys.

    Raises:
        ParamsError: It is not YAML, gives a key twice, is no mapping, or holds what JSON cannot say.
    """
    try:
        values = yaml.load(text, Loader=_UniqueKeyLoader)
        if values is None:
            return {}
        if not isinstance(values, dict):
            raise ParamsError(
                f"{name} holds {type(values).__name__}, not a mapping of sections. Write sections of keys and values, as in params.yaml."
            )
        plain: dict[str, Any] = json.loads(json.dumps(values, allow_nan=False, ensure_ascii=False).encode())
    except yaml.YAMLError as error:
        problem = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
        raise ParamsError(f"{name} cannot be read as YAML: {problem}. Mend it there.") from error
    except (TypeError, ValueError, RecursionError, LookupError, AttributeError) as error:  # the last two: `!!bool x`, `!!int ""`
        raise ParamsError(
            f"{name} holds a value that no parameter takes: {error}. Remove it, or write a number, text, list or mapping."
        ) from error
    return plain


def load_params(values: Mapping[str, Any], kind: type[P]) -> P:
    """Check the sections that ``kind`` has, and no others.

    Args:
        values: From :func:`read_params`.
        kind: :class:`Params`, or the smaller class of one step.

    Raises:
        ParamsError: One line for every wrong key; or a plugin cannot be imported.
    """
    load_plugins()
    known = {name: values[name] for name in kind.model_fields if name in values}
    unknown = [name for name in values if name not in Params.model_fields]
    if secrets := [key for key, value in flatten(values).items() if _holds_password(value)]:
        raise ParamsError(
            "\n".join(
                f"{key}: holds a user or password in a URL, and parameters are written into every checkpoint and report. "
                "Remove it; give credentials by the environment, as the AWS_... variables."
                for key in secrets
            )
        )
    try:
        # Through JSON text: strict mode then takes lists for tuples and 1 for 1.0, but no "1" for 1.
        params = kind.model_validate_json(json.dumps(known))
    except ValidationError as error:
        lines = [_explain(dict(item), kind, known) for item in error.errors()]
        lines += [_unknown((name,), Params) for name in unknown]
        raise ParamsError("\n".join(_merged(lines))) from error
    lines = [_unknown((name,), Params) for name in unknown] + (_unregistered(known) or _misfits(params))
    if lines:
        raise ParamsError("\n".join(lines))
    return params


def naming(data: str | None) -> list[str]:
    """The override by which what is recorded of a run names the dataset that it was given; none for None."""
    return [] if data is None else [f"data.root={json.dumps(data)}"]


def load_text(text: str, name: str, kind: type[P], *, data: str | None = None) -> P:
    """Parameters that came as a text.

    Args:
        text: YAML.
        name: Of it, for errors.
        kind: As for :func:`load_params`.
        data: See :func:`naming`.

    Raises:
        ParamsError: As :func:`parse_yaml` and :func:`load_params` do.
    """
    return load_params(apply_overrides(parse_yaml(text, name), naming(data)), kind)


def json_schema() -> dict[str, Any]:
    """The JSON schema of params.yaml, for editors."""
    load_plugins()
    schema = Params.model_json_schema()
    for key, names in _REGISTRIES.items():
        *sections, last = key.split(".")
        place = schema
        for section in sections:
            place = schema["$defs"][place["properties"][section]["$ref"].rpartition("/")[2]]
        values = place["properties"][last]
        values["enum"] = [*names, *([None] if "anyOf" in values else [])]  # null, where it is allowed
    return schema


def dump_params(params: Section) -> str:
    """YAML text with every value resolved; :func:`load_params` reads it back to the same."""
    return yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def dump_origins(params: Section, origins: Mapping[str, Mapping[str, Any]]) -> str:
    """As :func:`dump_params`, with a comment on every line that says where its value is from.

    Args:
        params: Sections that were loaded.
        origins: What gave values, and the values it gave, nested; the last that names a key wins. What none names is a default.
    """
    named = {name: set(flatten(values)) for name, values in origins.items()}

    def origin(key: str) -> str:
        return next((name for name in reversed(named) if key in named[name]), "default")

    def lines(values: Mapping[str, Any], prefix: str, indent: str) -> list[str]:
        found: list[str] = []
        for name, value in values.items():
            if isinstance(value, Mapping) and value:
                found += [f"{indent}{inline(name)}:", *lines(value, f"{prefix}{name}.", f"{indent}  ")]
            else:
                found.append(f"{indent}{inline(name)}: {inline(value)}  # {origin(f'{prefix}{name}')}")
        return found

    def inline(value: Any) -> str:
        return yaml.safe_dump([value], default_flow_style=True, width=math.inf, allow_unicode=True).strip()[1:-1]

    return "\n".join([*lines(params.model_dump(mode="json"), "", ""), ""])


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value})
    return flat


class _UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader that does not let the last of two equal keys win."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} is given twice; keep one", problem_mark=key.start_mark)
            seen.add(key.value)
        return node


def _holds_password(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_holds_password(item) for item in value)
    return isinstance(value, str) and _USER.search(value) is not None


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ParamsError(f"--set {override!r} is not of the form dotted.key=value, e.g. --set train.steps=500.")
    parsed = parse_yaml(f"value: {text}", f"--set {key}")
    if more := [name for name in parsed if name != "value"]:
        raise ParamsError(
            f"--set {key} gives {', '.join(more)} beside its value. Give each key a --set of its own; write a mapping as {{a: 1, b: 2}}."
        )
    *parents, last = key.strip().split(".")
    for part in parents:
        child = values.setdefault(part, {})
        if not isinstance(child, dict):
            raise ParamsError(f"--set {key}: {part} is a value, not a section. Set {part} itself.")
        values = child
    values[last] = parsed["value"]


def _explain(item: dict[str, Any], kind: type[Section], values: Any) -> str:
    place: tuple[Any, ...] = tuple(part for part in item["loc"] if not _is_tag(part))
    name = _dotted(place)
    if item["type"] == "extra_forbidden":
        return _unknown(place, kind, values["method"]["name"] if place[0] == "method" and len(place) > 1 else None)
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{name or 'params'}: {message}"
    if item["type"] == "union_tag_invalid":
        return f"{name}.name is {item['ctx']['tag']!r}; choose one of {item['ctx']['expected_tags']}"
    if item["type"] == "union_tag_not_found":
        return f"{name}.name: is required and not given; choose one of {', '.join(map(repr, METHODS))}"
    if item["type"] == "missing":
        return f"{name}: is required and not given"
    return f"{name}: is {_short(item['input'])}, {message.removeprefix('Input ')}{_text_hint(item['input'], message)}"


def _unknown(place: tuple[Any, ...], kind: type[Section], method: str | None = None) -> str:
    """What to say of a key that does not exist; ``method``: of the section ``method`` that it stands in."""
    *parents, last = place
    names = _fields_at(kind, parents, method)
    near = difflib.get_close_matches(str(last), names, 1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    if not hint and parents == ["method"]:
        hint = f"; {method} takes {', '.join(names)}"
    return f"{_dotted(place)}: unknown key{hint}"


def _unregistered(values: Mapping[str, Any]) -> list[str]:
    given = flatten(values)
    return [
        f"{key}: is {_short(given[key])}, should be one of {', '.join(names) or 'those that a plugin adds, and there is none'}"
        for key, names in _REGISTRIES.items()
        if given.get(key) is not None and given[key] not in names
    ]


def _misfits(params: Section) -> list[str]:
    """What to say of options that do not fit the entries of registries that they are for, and of a second stage that has none."""
    found: dict[str, dict[str, str]] = {}
    if isinstance(params, TrainingSections):
        loss, optimizer = params.train.loss, params.train.optimizer
        entries = {optimizer.name: OPTIMIZERS[optimizer.name], optimizer.schedule: SCHEDULES[optimizer.schedule]}
        found["train.loss.options"] = misfits(loss.options, {loss.name: LABELED_LOSSES[loss.name]}, GIVEN)
        found["train.optimizer.options"] = misfits(optimizer.options, entries)
    if isinstance(own := getattr(params, "eval", None), EvalConfig):
        options = own.postprocess_options
        found["eval.postprocess_options"] = (
            dict.fromkeys(options, "eval.postprocess is null")
            if own.postprocess is None
            else misfits(options, {own.postprocess: POSTPROCESS[own.postprocess]})
        )
    lines = [f"{key}.{name}: {what}" for key, lines in found.items() for name, what in lines.items()]
    method = getattr(params, "method", None)
    if isinstance(method, MethodConfig) and (second := method.retraining) is not None and method.name not in OFFLINE:
        lines.append(
            f"{second.key}: asks for a second stage, and {method.name} has none in cwbass.methods.OFFLINE; "
            f"register one there under that name, or {second.instead}"
        )
    return lines


def _fields_at(kind: type[BaseModel], place: Sequence[Any], method: str | None) -> list[str]:
    """Names of the fields below a dotted place; in the section ``method`` those of this one."""
    kinds: list[type[BaseModel]] = [kind]
    for part in place:
        found: list[type[BaseModel]] = []
        for parent in kinds:
            if (field := parent.model_fields.get(part)) is not None:
                of_methods = [each.kinds() for each in field.metadata if isinstance(each, _Registered)]
                named = [kind for kinds in of_methods for name, kind in kinds.items() if method is None or name == method]
                found += named or _sections(field.annotation)
        kinds = found
    return sorted({name for each in kinds for name in each.model_fields})


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in getattr(annotation, "__args__", ()) for section in _sections(part)]


def _merged(lines: Sequence[str]) -> list[str]:
    """One line for what a union says of a value, once for each of its branches."""
    wanted: dict[str, list[str]] = {}
    for line in lines:
        seen, should, what = line.partition(", should ")
        wanted.setdefault(seen + should, []).append(what)
    return [seen + " or ".join(dict.fromkeys(whats)) for seen, whats in wanted.items()]


def _is_tag(part: Any) -> bool:
    """Pydantic puts the branch of a union that it tried into the place, and says where a key itself is wrong."""
    return isinstance(part, str) and (part.startswith(("constrained-", "list[", "literal[")) or part in (*_SCALARS, "[key]"))


def _dotted(place: Sequence[Any]) -> str:
    names = map(str, place)
    return ".".join(name if name.isprintable() and name.strip() else repr(name) for name in names)


def _text_hint(seen: Any, message: str) -> str:
    """YAML 1.1 takes 1e-3 for text, as it does what is in quotes."""
    try:
        number = float(seen) if isinstance(seen, str) else math.nan
    except ValueError:
        return ""
    if "integer" in message and number.is_integer():
        return f" (YAML reads {seen} as text; write {int(number)})"
    return f" (YAML reads {seen} as text; write {number!r})" if "number" in message and math.isfinite(number) else ""


def _short(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
