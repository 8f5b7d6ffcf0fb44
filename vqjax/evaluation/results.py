"""Results of evaluations, and their files: metrics.json for programs, metrics.txt to read."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath
from flax.traverse_util import flatten_dict

from vqjax.errors import InputError
from vqjax.evaluation.protocol import protocol_hash
from vqjax.files import write_whole

FILE = "metrics.json"


@dataclasses.dataclass
class Measurements:
    """Numbers by name, as they go into metrics.json.

    Attributes:
        metrics: the numbers.
        spread: standard errors, or standard deviations over subsets or parts, of some.
        interval: 95 % intervals of some.
        by_count: the Fréchet distance of fewer images, and its limit.
        per_class: by the name of the class.
        notes: sentences on what limits the numbers.
    """

    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    spread: dict[str, float] = dataclasses.field(default_factory=dict)
    interval: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    by_count: dict[str, Any] = dataclasses.field(default_factory=dict)
    per_class: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)


def merge(*parts: Measurements) -> Measurements:
    """All numbers of several."""
    merged = Measurements()
    for part in parts:
        merged.metrics |= part.metrics
        merged.spread |= part.spread
        merged.interval |= part.interval
        merged.by_count |= part.by_count
        merged.per_class |= part.per_class
        merged.notes += part.notes
    return merged


def result(
    measurements: Measurements,
    protocol: Mapping[str, Any],
    throughput: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """An entry of metrics.json: the numbers of one evaluation with everything they depend on.

    Args:
        measurements: the numbers.
        protocol: see `vqjax.evaluation.protocol`.
        throughput: speed of the evaluation, which need not come out the same.
    """
    entry = {
        **dataclasses.asdict(measurements),
        "protocol": dict(protocol),
        "protocol_sha256": protocol_hash(protocol),
    }
    return entry | ({"throughput": dict(throughput)} if throughput else {})


def entry_name(what: str, decoder: str = "", acceptance: float = 1.0) -> str:
    """The name under which an evaluation is kept: none takes the place of one of other images.

    Args:
        what: "reconstruction" or "generation".
        decoder: stage that made the images, where it is not the run's default.
        acceptance: fraction of the candidates that a classifier accepted.
    """
    of_decoder = f", decoder {decoder}" if decoder else ""
    return f"{what}{of_decoder}" + (f", acceptance {acceptance:g}" if acceptance != 1 else "")


def read_results(folder: epath.PathLike) -> dict[str, Any]:
    """Entries of a folder's metrics.json, by the name of the evaluation; none without that file.

    Raises:
        InputError: it is not JSON.
    """
    file = epath.Path(folder) / FILE
    if not file.exists():
        return {}
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON ({error}): delete it") from None


def write_results(folder: epath.PathLike, results: Mapping[str, Any]) -> None:
    """Puts results beside or in the place of those that are there, in both files."""
    before = read_results(folder)
    merged = before | {name: _timed(entry, before.get(name, {})) for name, entry in results.items()}
    for name, text in ((FILE, json.dumps(merged, indent=2)), ("metrics.txt", table(merged))):
        write_whole(epath.Path(folder) / name, f"{text}\n")


def _timed(entry: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """An entry; one that found all its work done has the throughput of when it was done."""
    same = before.get("protocol_sha256") == entry["protocol_sha256"]
    known = {"throughput": before["throughput"]} if same and "throughput" in before else {}
    return known | dict(entry)


def table(results: Mapping[str, Any]) -> str:
    """All results as text: a line a number, with its spread, then the protocol."""
    blocks = []
    for name, entry in results.items():
        width = max(len(metric) for metric in entry["metrics"])
        lines = [f"{name} (protocol {entry['protocol_sha256'][:12]})"]
        for metric, value in entry["metrics"].items():
            line = f"  {metric:{width}}  {value:12.6g}"
            if metric in entry["spread"]:
                line += f"  +- {entry['spread'][metric]:.3g}"
            if metric in entry["interval"]:
                low, high = entry["interval"][metric]
                line += f"  95 % interval {low:.5g} to {high:.5g}"
            lines.append(line)
        by_count = entry["by_count"]
        if by_count:
            pairs = zip(by_count["counts"], by_count["distances"], strict=True)
            lines.append(
                f"  {by_count['metric']} by number of images: "
                + ", ".join(f"{count}: {distance:.5g}" for count, distance in pairs)
            )
        for label, row in entry["per_class"].items():
            values = ", ".join(f"{metric} {value:.5g}" for metric, value in row.items())
            lines.append(f"  class {label}: {values}")
        for metric, value in entry.get("throughput", {}).items():
            lines.append(f"  {metric}: {value:.4g}")
        protocol = flatten_dict(entry["protocol"], sep=".")
        lines += [f"  note: {note}" for note in entry["notes"]]
        lines += [f"  {key}: {value}" for key, value in protocol.items()]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)
