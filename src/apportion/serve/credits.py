"""A credits file: YAML checked key by key, told with file and line; what `econ` plays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from apportion.core.errors import BadInput
from apportion.study.economy import MECHANISMS
from apportion.study.economy_agents import KINDS, Credits
from apportion.worlds.amounts import Limits, Share, instead, wrong
from apportion.worlds.lines import Place, Source, dotted, one_line, read

AT_ONCE = 5  # problems told in one go
HERE = Credits()


def _agents(written: Any) -> Any:
    if not isinstance(written, dict) or not written:
        raise wrong(
            f"it is a mapping of kinds to weights, for example '{{truthful: 3, bursty: 1}}'. {instead('', KINDS)}"
        )
    for kind, weight in written.items():
        if kind not in KINDS:
            raise wrong(f"{kind!r} is no kind of agent. {instead(str(kind), KINDS)}")
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= 1e6:
            raise wrong(f"the weight of {kind} is {weight!r}: a number from 0 to 1000000.")
    if not any(written.values()):
        raise wrong("nobody takes part. Give at least one kind a weight above 0.")
    return {kind: float(weight) for kind, weight in written.items()}


def _mechanism(written: Any) -> Any:
    if written not in MECHANISMS:
        raise wrong(f"it is no mechanism. {instead(str(written), MECHANISMS)}")
    return written


def _some(amounts: dict[str, int]) -> dict[str, int]:
    if empty := [name for name, amount in amounts.items() if not amount]:
        raise wrong(f"{empty[0]} is nothing. Give it an amount, or remove it.")
    return amounts


Number = Annotated[float, Field(strict=True)]
Duty = Annotated[float, Field(strict=True, gt=0, le=1)]


class CreditsFile(BaseModel):
    """Keys are those of `study.economy_agents.Credits`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: Literal[1] = Field(description="Version of this format: 1.")
    name: str = Field("", max_length=100, description="What the economy is called. Default: the file's name.")
    description: str = Field("", description="What it is about. Default: empty.")
    agents: Annotated[dict[str, float], BeforeValidator(_agents)] = Field(
        dict(HERE.agents), description="Kinds of agents and their parts of the population, by weight."
    )
    capacity: Annotated[Limits, Field(min_length=1), AfterValidator(_some)] = Field(
        dict(HERE.capacity), description="What the one pool has of each resource, for example {cpu: 400 cores}."
    )
    mechanism: Annotated[str, BeforeValidator(_mechanism)] = Field(
        HERE.mechanism, description="How the pool is shared: market, drf, maxmin, karma or static."
    )
    load: Number = Field(
        HERE.load, gt=0, le=1000, description="Of all agents on average, of what each wants most, beside what there is."
    )
    noise: Number = Field(HERE.noise, ge=0, le=5, description="How demand varies: sd of its logarithm.")
    duty: tuple[Duty, ...] = Field(
        HERE.duty,
        min_length=1,
        description="Of bursty agents, in turn: the part of rounds in which they want something.",
    )
    shade: Share = Field(HERE.shade, description="Part of its ordinary bid that a shading agent bids.")
    save: Number = Field(
        HERE.save, ge=1, le=1e6, description="A hoarding agent bids nothing until it holds so many times its start."
    )
    identities: int = Field(
        HERE.identities, strict=True, ge=1, le=100, description="As how many accounts a sybil agent comes."
    )
    alpha: Share = Field(HERE.alpha, description="Part of the pool that accounts get free, by entitlement.")
    kappa: Number = Field(
        HERE.kappa, ge=1, le=1e9, description="An account holds at most kappa x its part of the supply."
    )
    half_life: Annotated[Number, Field(gt=0, le=1e6)] | None = Field(
        HERE.half_life, description="Rounds after which past use counts half; null: no memory."
    )
    memory: Literal["total", "bought"] = Field(HERE.memory, description="What counts as use: all, or what was bought.")
    credits_per_round: Number = Field(
        HERE.credits_per_round, ge=1e-3, le=1e9, description="Credits that all may bid in a round."
    )
    supply: Number = Field(HERE.supply, ge=1e-3, le=1e12, description="Credits that there are.")
    gap: Number = Field(
        HERE.gap, gt=0, le=1, description="Certified gap asked of a round without memory; with one, times eta."
    )


def load(path: Path | None) -> tuple[str, Credits]:
    """Give an economy's name and what it is made of; without a file the one that ships. Raises BadInput, up to five lines."""
    if path is None:
        return "default", Credits()
    source, _ = read(path)
    if not isinstance(source.value, dict):
        raise BadInput(
            f"{source.at(())}: a credits file is a mapping of keys. Begin with 'version: 1'; see examples/economy/credits.yaml."
        )
    try:
        file = CreditsFile.model_validate(source.value)
    except ValidationError as e:
        errors = sorted(e.errors(include_url=False), key=lambda error: source.number(_place(error)))
        told = list(dict.fromkeys(_told(source, errors)))
        more = [f"... and {len(told) - AT_ONCE} more."] if len(told) > AT_ONCE else []
        raise BadInput("\n".join(told[:AT_ONCE] + more)) from None
    keys = {key: value for key, value in file.model_dump().items() if key in Credits.__slots__}
    return file.name or Path(source.path).stem, Credits(**keys)


def _told(source: Source, errors: list[Any]) -> Iterator[str]:
    """Say Pydantic's errors in our words, with file and line."""
    for error in errors:
        place = _place(error)
        kind, ctx = error["type"], error.get("ctx", {})
        key = str(place[-1]) if place else ""
        if kind == "extra_forbidden":
            why = f"a credits file has no key '{key}'. {instead(key, CreditsFile.model_fields)}"
        elif kind == "missing":
            why = f"a credits file must say its '{key}'. Write 'version: 1' in its first line."
        elif kind == "world":
            why = ctx["why"]
        else:
            about = CreditsFile.model_fields[str(place[0])].description if place else ""
            why = f"{error['msg'][:1].lower()}{error['msg'][1:]}. {about}"
        shown = source.shown(place)
        yield one_line(f"{source.at(place)}: {dotted(place) or 'the file'}{f' is {shown}' if shown else ''}: {why}")


def _place(error: Any) -> Place:
    """Keep of Pydantic's location what is a place in the file: it also names the branches of unions."""
    return tuple(x for k, x in enumerate(error["loc"]) if k == 0 or isinstance(x, int))


def allowed(credits: Credits, key: str) -> None:
    """Raise BadInput where a credits file could not say what an economy has there. Capacities are base units."""
    name = key.partition(".")[0]
    given = getattr(credits, name)
    try:
        if name == "capacity" and min(given.values()) < 1:
            raise BadInput(f"{key}={min(given.values())}: a pool has at least one base unit of what it has.")
        CreditsFile.model_validate({"version": 1} | ({} if name == "capacity" else {name: given}))
    except ValidationError as e:
        error = e.errors(include_url=False)[0]
        why = error.get("ctx", {}).get("why", f"{error['msg'][:1].lower()}{error['msg'][1:]}.")
        raise BadInput(f"{name}={given}: {why} {CreditsFile.model_fields[name].description}") from None
