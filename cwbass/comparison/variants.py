"""What is compared: methods of the registry, or cw_bass with its terms switched off. Names are folders' names."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cwbass.config import Section
from cwbass.errors import ParamsError
from cwbass.methods import METHODS
from cwbass.methods.base import MethodConfig
from cwbass.methods.cw_bass import CwBassConfig
from cwbass.params import AnyMethodConfig, Params, apply_overrides, load_params

SUPERVISED = "supervised"  # the baseline that every comparison has

# Each term of recipe cwbass, and what switches it off.
TERMS: Mapping[str, Sequence[str]] = {
    "soft-labels": ["labels=hard"],
    "threshold": ["threshold.rule=strict", "threshold.strict=0.0"],
    "confidence-weight": ["gamma=0.0"],
    "decay": ["decay.rule=none"],
    "boundary": ["boundary.weight=0.0"],
    "strong-views": ["views=same"],
    "cutmix": ["cutmix=0.0"],
    "classmix": ["classmix=0.0"],
    "feature-drop": ["feature_drop=0.0"],
    "shared-statistics": ["norm=labeled"],
    "fade": ["fade=0.0"],
}
# Other values of terms that cannot be switched off.
CHANGES: Mapping[str, Sequence[str]] = {
    "hard-strict-0.95": ["labels=hard", "threshold.rule=strict", "threshold.strict=0.95"],
    "ema-0.996": ["ema.decay=0.996"],
}
PLAIN = "plain"  # all terms off: a student that learns what a mean teacher says of the same view


class _MethodSection(Section):
    method: AnyMethodConfig


def method_variants(names: Sequence[str], params: Params) -> dict[str, MethodConfig]:
    """Methods by name, the supervised baseline first; the one of ``params`` has its section there, others their defaults.

    Raises:
        ParamsError: There is no such method.
    """
    if unknown := [name for name in names if name not in METHODS]:
        raise ParamsError(f"--methods names {', '.join(unknown)}; choose from {', '.join(METHODS)}.")
    own = params.method
    chosen = {name: own if name == own.name else _section({"name": name}) for name in names if name != SUPERVISED}
    return {SUPERVISED: params.warmup, **chosen}


def own_variants(texts: Sequence[str], params: Params) -> dict[str, MethodConfig]:
    """Methods with settings of their own: ``tau0=unimatch threshold.tau=0`` is UniMatch with that key changed, under that name.

    What is not changed is as :func:`method_variants` has it.

    Args:
        texts: A name, ``=``, a method, and keys of its section as ``--set`` takes them, with spaces between.
        params: Of every cell.

    Raises:
        ParamsError: A text is something else, a key or value is wrong, or a name is another method's or given twice.
    """
    found: dict[str, MethodConfig] = {}
    for text in texts:
        name, _, rest = text.partition("=")
        try:
            method, *changes = shlex.split(rest)
        except ValueError:
            raise ParamsError(
                f"--variant is {text!r}; write NAME=METHOD KEY=VALUE ..., as in 'tau0=unimatch threshold.tau=0'."
            ) from None
        if method not in METHODS:
            raise ParamsError(f"--variant {name} is of method {method}; choose from {', '.join(METHODS)}.")
        if name in found or (name in METHODS and name != method) or name == SUPERVISED:
            raise ParamsError(f"--variant {name}: the name is taken. Give it another, for it stands in every table.")
        try:
            found[name] = _changed(method_variants([method], params).get(method, params.warmup), changes)
        except ParamsError as error:
            raise ParamsError(f"--variant {name}: {error}") from error
    return found


def ablation_variants(params: Params) -> dict[str, MethodConfig]:
    """Recipe cwbass, and paper beside it; each term of cwbass off; none of them, and each alone.

    ``paper`` and what is not switched are those of ``params.method``, where that is cw_bass. A method that names terms of its own
    (``MethodConfig.terms_off``) is taken in place of it: as it is, each term off, none of them, and each alone.
    """
    own = params.method
    if own.terms_off:
        single, plain, alone = _switched_off(own, own.terms_off)
        return {SUPERVISED: params.warmup, own.name: own, **single, **(plain | alone if len(single) > 1 else {})}
    own = own if isinstance(own, CwBassConfig) else CwBassConfig()
    recipe = own.model_copy(update={"recipe": "cwbass"})
    single, plain, alone = _switched_off(recipe, TERMS, "cwbass.")
    return {
        SUPERVISED: params.warmup,
        "cwbass": recipe,
        "paper": own.model_copy(update={"recipe": "paper"}),
        **single,
        **{name: _changed(recipe, changes, "cwbass.") for name, changes in CHANGES.items()},
        **plain,
        **alone,
    }


def _switched_off(
    own: MethodConfig, terms: Mapping[str, Sequence[str]], prefix: str = ""
) -> tuple[dict[str, MethodConfig], dict[str, MethodConfig], dict[str, MethodConfig]]:
    """A method with each of its terms off, with all of them off, and with each alone."""

    def without(names: Iterable[str]) -> MethodConfig:
        return _changed(own, [change for name in names for change in terms[name]], prefix)

    return (
        {f"no-{term}": without([term]) for term in terms},
        {PLAIN: without(terms)},
        {f"only-{term}": without([other for other in terms if other != term]) for term in terms},
    )


def _changed(own: MethodConfig, changes: Iterable[str], prefix: str = "") -> MethodConfig:
    return _section(own.model_dump(mode="json"), [f"{prefix}{change}" for change in changes])


def _section(values: Mapping[str, Any], changes: Sequence[str] = ()) -> MethodConfig:
    """A method's section, with keys of it changed as ``--set`` changes them."""
    merged = apply_overrides({"method": dict(values)}, [f"method.{change}" for change in changes])
    return load_params(merged, _MethodSection).method


def chosen(variants: Mapping[str, MethodConfig], names: Sequence[str]) -> dict[str, MethodConfig]:
    """Some of the variants, and the supervised baseline; all, where none are named.

    Raises:
        ParamsError: There is no such variant.
    """
    if unknown := [name for name in names if name not in variants]:
        raise ParamsError(f"--variants names {', '.join(unknown)}; choose from {', '.join(variants)}.")
    return {name: method for name, method in variants.items() if not names or name in {SUPERVISED, *names}}
