"""report.html: what a run chose and why, as one page that opens anywhere.

The page is self-contained: its style, charts (SVG) and pictures (data: URIs) are inside, and it loads nothing. It is
a function of the run's folder and of its input, without a date, so the same run gives the same bytes.
"""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Sequence
from typing import Any

from PIL import Image

from razor_ray import charts, images, sources, survey
from razor_ray.config import InputConfig, PruneConfig, from_dict, to_dict
from razor_ray.headers import ImageError
from razor_ray.markup import Html, percent, tag
from razor_ray.run_store import CONFIG, MANIFEST, RunStore

REPORT = "report.html"

_GALLERY_SIDE = 12  # pictures of the hardest kept, of the easiest, and of the hardest that were set aside
_THUMBNAIL_PIXELS = 112
_MAX_IMAGE_BYTES = 9 * 2**10  # 36 of them in base64 are 432 KiB
_NUM_LISTED = 20  # samples or classes in a list that could be longer
_MAX_CLASSES_SHOWN = 60
_MAX_REASON_LENGTH = 300

_REASONS = {
    "hard": ("kept", "from the harder half of its class, once the tail was set aside"),
    "cluster": ("kept", "from the easier half of its class"),
    "class_floor": ("kept", "the class floor, not its weight, set how many of the class are kept"),
    "over_quota": ("dropped", "too easy or too hard for this budget, or others of its cluster were drawn"),
    "noise": ("dropped", "in the hardest tail of its class: what looks like wrong labels, or as much as was asked for"),
}

_SCORES = {
    "el2n": "EL2N",
    "loss": "loss in nats",
    "margin": "margin",
    "entropy": "entropy in nats",
    "mean_el2n": "EL2N, the mean over the epochs of the proxy",
    "dyn_unc": "standard deviation of the label's probability over the epochs of the proxy",
    "dual": "DUAL, over the epochs of the proxy",
    "aum": "negative area under the margin, over the epochs of the proxy",
    "forgetting": "forgetting events over the epochs of the proxy",
}


def write(store: RunStore, manifest: dict[str, Any], source: sources.Source, given: InputConfig) -> None:
    """Write the report of a finished run into its folder.

    Parameters
    ----------
    store : RunStore
        With the stages scores, weights, quarantine, selection and subset committed.
    manifest : dict
        As `manifest.write` returns it.
    source : Source
        The run's input. Of what cannot be read of it any more there is no picture.
    given : InputConfig
        How it is read.
    """
    begun = store.read_json(CONFIG)
    assert begun is not None, "a finished run has a configuration"
    config = to_dict(from_dict(PruneConfig, begun))  # with what a setting stands at that was not there when it began
    weight = store.read("weights", ["label", "class_weight"])
    class_weight = dict(zip(weight["label"].to_pylist(), weight["class_weight"].to_pylist(), strict=True))
    name_of = {row["label"]: row["name"] for row in manifest["classes"]}
    found = survey.look(store, _GALLERY_SIDE, _NUM_LISTED)
    shown = [sample["sample_id"] for sample in (*found.hardest_kept, *found.easiest_kept)]
    noise = found.hardest_noise
    sections = [
        _header(manifest),
        _notes(manifest["notes"]),
        _counts(manifest),
        _hardness(found.histogram, manifest),
        _gallery(found, name_of, survey.read_kept(store, shown)),
        _reasons(manifest),
        _set_aside(
            manifest,
            noise,
            name_of,
            survey.predicted_names(store, {sample["sample_id"] for sample in noise}, name_of),
            survey.read_input(source, given, [sample["sample_id"] for sample in noise[:_GALLERY_SIDE]]),
        ),
        _classes(manifest["classes"], class_weight),
        _quarantine(manifest, survey.first_quarantined(store, _NUM_LISTED)),
        _configuration(manifest, config),
        _seconds(manifest["seconds"]),
        _next_steps(store.uri, manifest["counts"]["quarantined"]),
        _footer(manifest),
    ]
    store.write_bytes(REPORT, _page(_summary(manifest), sections).encode(errors="replace"))


# --- pictures ---------------------------------------------------------------------------------------------------------


def image_format(encoded: bytes) -> str | None:
    """Name of the format, if it is one that every browser shows, by its first bytes: png, jpeg or webp.

    >>> image_format(b"GIF89a") is None
    True
    """
    if encoded.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if encoded.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    return "webp" if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP" else None


def data_uri(encoded: bytes) -> str | None:
    """A picture for the page: as it is if it is small and a browser shows it, else a thumbnail of its centre.

    None if it cannot be decoded, or is noise that no thumbnail makes small.
    """
    kind = image_format(encoded)
    if kind is None or len(encoded) > _MAX_IMAGE_BYTES:
        try:
            pixels = images.decode(encoded, _THUMBNAIL_PIXELS)
        except ImageError:
            return None
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=75)
        kind, encoded = "jpeg", stream.getvalue()
    if len(encoded) > _MAX_IMAGE_BYTES:
        return None
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"


# --- sections ---------------------------------------------------------------------------------------------------------


def _summary(manifest: dict[str, Any]) -> str:
    counts, budget = manifest["counts"], manifest["budget"]
    met = "met exactly" if budget["met"] == budget["asked"] else f"missed, with {budget['met']:,} kept"
    return (
        f"{counts['input']:,} samples in, {counts['kept']:,} kept, {counts['quarantined']:,} quarantined; "
        f"the budget of {budget['asked']:,} was {met}."
    )


def _header(manifest: dict[str, Any]) -> Html:
    name = "/".join(manifest["input"]["path"].rstrip("/").split("/")[-2:])
    return tag(
        "header",
        tag("p", "razor_ray report", class_="quiet"),
        tag("h1", f"What was kept of {name}"),
        tag("p", _summary(manifest), class_="lead"),
    )


def _counts(manifest: dict[str, Any]) -> Html:
    counts, budget = manifest["counts"], manifest["budget"]
    parts = [(name, counts[name]) for name in ("kept", "dropped", "quarantined")]
    rows = [
        [tag("span", charts.swatch(name), name, class_="line"), f"{count:,}", percent(count, counts["input"])]
        for name, count in parts
    ]
    total = [tag("b", "input"), tag("b", f"{counts['input']:,}"), percent(counts["input"], counts["input"])]
    return _section(
        "Samples",
        charts.stacked_bar([(name, count, name) for name, count in parts]),
        _table(["", "samples", "of the input"], [*rows, total]),
        tag(
            "p",
            f"Scored: {counts['scored']:,} = kept + dropped. The budget is {100 * budget['keep_fraction']:g} % of the "
            f"scored samples, {budget['asked']:,}; {budget['met']:,} were kept.",
            class_="quiet",
        ),
    )


def _hardness(histogram: charts.Histogram, manifest: dict[str, Any]) -> Html:
    score = _SCORES[manifest["scores"]["hardness"]]
    return _section(
        "Hardness",
        tag("p", f"By {score}, as the proxy sees the samples; higher is harder."),
        tag("p", charts.swatch("all"), "all samples", charts.swatch("kept"), "kept", class_="legend"),
        charts.histogram_chart(histogram, score, manifest["budget"]["keep_fraction"]),
    )


def _gallery(found: survey.Survey, name_of: dict[int, str], pictures: dict[int, bytes | None]) -> Html:
    def row(title: str, samples: list[dict[str, Any]]) -> Html:
        figures = [_figure(sample, name_of[sample["label"]], pictures) for sample in samples]
        return tag("div", tag("h3", title), tag("div", *figures, class_="gallery")) if samples else Html("")

    return _section(
        "A look at what was kept",
        row("The hardest that were kept", found.hardest_kept),
        row("The easiest that were kept", found.easiest_kept),
        tag("p", "Large images are shown as thumbnails of their centre.", class_="quiet"),
    )


def _figure(sample: dict[str, Any], class_name: str, pictures: dict[int, bytes | None], seen: str = "") -> Html:
    encoded = pictures.get(sample["sample_id"])
    uri = data_uri(encoded) if encoded else None
    picture = tag("img", src=uri, alt=class_name) if uri else tag("div", "no preview", class_="blank")
    caption = [tag("figcaption", tag("span", class_name), tag("small", f"{sample['hardness']:.3f}"))]
    title = f"{sample['key']}: {class_name}, hardness {sample['hardness']:.4f}"
    if seen:
        caption.append(tag("figcaption", tag("span", f"proxy: {seen}", class_="quiet")))
        title += f", taken for {seen} by the proxy"
    return tag("figure", picture, *caption, title=title)


def _reasons(manifest: dict[str, Any]) -> Html:
    counts = manifest["reasons"]
    rows = [
        [tag("span", charts.swatch(fate), tag("code", reason), class_="line"), fate, f"{counts.get(reason, 0):,}", why]
        for reason, (fate, why) in _REASONS.items()
    ]
    return _section(
        "Reasons",
        charts.stacked_bar([(fate, counts.get(reason, 0), reason) for reason, (fate, _) in _REASONS.items()]),
        _table(["reason", "", "samples", "why"], rows, text_columns=(0, 1, 3)),
    )


def _set_aside(
    manifest: dict[str, Any],
    noise: list[dict[str, Any]],
    name_of: dict[int, str],
    seen: dict[int, str],
    pictures: dict[int, bytes | None],
) -> Html:
    if not noise:
        return Html("")
    contradicted, scored = manifest["ispl"]["contradicted_fraction"], manifest["counts"]["scored"]
    figures, rows = [], []
    for sample in noise:
        class_name, taken_for = name_of[sample["label"]], seen.get(sample["sample_id"], "")
        figures.append(_figure(sample, class_name, pictures, taken_for))
        rows.append([sample["key"], class_name, taken_for, f"{sample['hardness']:.3f}"])
    return _section(
        "A look at what was set aside as noise",
        tag(
            "p",
            f"The hardest of {manifest['reasons']['noise']:,}, with label and what the proxy takes them for in the "
            "end: the first place to look for wrong labels, though hard images with right ones are among them. Of all "
            f"samples the proxy contradicts the labels of {round(contradicted * scored):,} "
            f"({percent(round(contradicted * scored), scored)}): on average over its training, if it was trained in "
            "this run, it preferred another class.",
        ),
        tag("div", *figures[:_GALLERY_SIDE], class_="gallery"),
        tag(
            "details",
            tag("summary", f"The {len(noise)} hardest as a list"),
            _table(["sample", "label", "the proxy takes it for in the end", "hardness"], rows, text_columns=(0, 1, 2)),
        ),
    )


def _classes(classes: Sequence[dict[str, Any]], class_weight: dict[int, float]) -> Html:
    def table(rows: Sequence[dict[str, Any]]) -> Html:
        return _table(
            ["class", "samples", "quota", "kept", "fraction kept", "", "class weight"],
            [_class_row(row, class_weight[row["label"]]) for row in rows],
        )

    note = tag(
        "p",
        "The class weight is the inverse of the effective number of the class's hard samples, 1 on average: each of "
        "them counts for more where they are few.",
        class_="quiet",
    )
    if len(classes) <= _MAX_CLASSES_SHOWN:
        return _section("Classes", table(classes), note)
    by_fraction = sorted(classes, key=lambda row: (-row["kept"] / row["num_samples"], row["label"]))
    hidden = len(classes) - 2 * _NUM_LISTED
    return _section(
        "Classes",
        tag("p", f"{len(classes):,} classes; the {hidden:,} between these are in ", tag("code", MANIFEST), "."),
        tag("h3", f"The {_NUM_LISTED} most kept"),
        table(by_fraction[:_NUM_LISTED]),
        tag("h3", f"The {_NUM_LISTED} least kept"),
        table(by_fraction[-_NUM_LISTED:]),
        note,
    )


def _class_row(row: dict[str, Any], class_weight: float) -> list[object]:
    fraction = row["kept"] / row["num_samples"]
    counts = [f"{row[name]:,}" for name in ("num_samples", "quota", "kept")]
    return [row["name"], *counts, percent(row["kept"], row["num_samples"]), charts.bar(fraction), f"{class_weight:.2f}"]


def _quarantine(manifest: dict[str, Any], samples: list[dict[str, Any]]) -> Html:
    counts = sorted(manifest["quarantine"].items(), key=lambda found: (-found[1], found[0]))
    if not counts:
        return _section("Quarantine", tag("p", "Every sample could be read and scored."))
    rows = [[reason[:_MAX_REASON_LENGTH], f"{count:,}"] for reason, count in counts[:_NUM_LISTED]]
    if rest := sum(count for _, count in counts[_NUM_LISTED:]):
        rows.append(["other reasons", f"{rest:,}"])
    listed = [[row["path"], f"{row['row']:,}", row["reason"][:_MAX_REASON_LENGTH]] for row in samples]
    lost = [f"{row['name']} ({row['num_samples']:,})" for row in manifest["classes_lost"]]
    of_classes = f"No image can be used of {', '.join(lost[:_NUM_LISTED])}{', ...' if len(lost) > _NUM_LISTED else ''}."
    return _section(
        "Quarantine",
        tag("p", "What could not be used, and why; all of it is in ", tag("code", "quarantine/"), "."),
        *([tag("p", of_classes)] if lost else []),
        _table(["reason", "samples"], rows),
        tag("h3", f"The first {len(samples)}"),
        _table(["file", "row", "reason"], listed, text_columns=(0, 2)),
    )


def _notes(notes: list[str]) -> Html:
    """What about the choice is not as one may think."""
    if not notes:
        return Html("")
    return _section("Before you use it", *(tag("p", f"{note[0].upper()}{note[1:]}.") for note in notes))


def _cost(cost: dict[str, Any]) -> str:
    share = f"{100 * cost['fraction']:.1f} % of {cost['full_epochs']} such epochs"
    return f"counted as {cost['epochs']:.1f} epochs of its proxy on all samples, {share}"


def _configuration(manifest: dict[str, Any], config: dict[str, Any]) -> Html:
    ispl, weigh, sample = manifest["ispl"], config["weigh"], config["sample"]
    thresholds = f"λ = {ispl['threshold']:.4g} nats, the {weigh['quantile']:g} quantile of the losses"
    if ispl["scheme"] == "mixture":
        thresholds += f"; second λ = {ispl['second_threshold']:.4g}"
    if ispl["scheme"] == "diversity":
        thresholds += f"; δ = {ispl['diversity_step']:.4g}"
    clusters = f", {sample['num_clusters']} a class" if sample["clustering"] == "kmeans" else ""
    set_aside = percent(manifest["reasons"].get("noise", 0), manifest["counts"]["scored"])
    window = manifest["window"]
    level, auto_focus = (
        f"{percent(window['focus'], 1)} of all samples are easier",
        " (auto)" * (sample["focus"] == "auto"),
    )
    beta = f"β = {ispl['beta']:.6g}{' (auto)' if weigh['beta'] == 'auto' else ''}"
    rows = [
        ["input", f"{config['input']['path']} ({_counted(manifest['input']['num_shards'], 'shard')})"],
        ["keep fraction", f"{config['keep_fraction']:g}"],
        ["to be trained for", f"as many {sample['trained_for']} as everything"],
        ["seed", config["seed"]],
        ["proxy", _proxy(manifest["proxy"], config["proxy"])],
        *([["scores", f"taken from {config['scores_from']}"]] if config.get("scores_from") else []),
        ["cost of scoring", _cost(manifest["scoring_cost"])],
        ["hardness", _SCORES[manifest["scores"]["hardness"]]],
        ["ISPL weights", f"scheme {ispl['scheme']}, {thresholds}"],
        ["class weights", f"inverse effective number of samples, {beta}"],
        ["quotas", f"{weigh['quota']}, at least {weigh['class_floor']} of a class"],
        ["clusters", f"{sample['clustering']}{clusters}"],
        ["tail", f"{sample['tail']}: {set_aside} of the scored were set aside"],
        *([["focus", f"{window['focus']:.2g} ({level}){auto_focus}"]] if window["sharpness"] else []),
        ["sharpness", f"γ = {window['sharpness']:.3g}{' (auto)' if sample['gamma'] == 'auto' else ''}"],
    ]
    return _section("Configuration", _table([], rows, text_columns=(0, 1)))


def _proxy(proxy: dict[str, Any], config: dict[str, Any]) -> str:
    network = f"{proxy['arch']} at {proxy['image_size']} pixels"
    digest = proxy["weights_sha256"][:12]
    if proxy["trained"]:
        return f"{network}, trained on the input for {_counted(config['epochs'], 'epoch')} (weights {digest}…)"
    return f"{network}, given as {config['weights']} (weights {digest}…)"


def _seconds(seconds: dict[str, float | None]) -> Html:
    known = {stage: value for stage, value in seconds.items() if value is not None}
    total = sum(known.values())
    rows = [[stage, f"{value:,.1f}", charts.bar(value / total if total else 0.0)] for stage, value in known.items()]
    return _section(
        "Seconds", _table(["stage", "seconds", ""], [*rows, [tag("b", "total"), tag("b", f"{total:,.1f}"), ""]])
    )


def _next_steps(uri: str, num_quarantined: int) -> Html:
    run = uri.rstrip("/")
    places = [
        ("subset/*.parquet", "the kept images with their labels; opens in Hugging Face datasets and Ray Data"),
        ("selection/*.parquet", "every scored sample: hardness, cluster, rank, kept or not, and the reason"),
        ("scores/*.parquet", "every scored sample: its scores, the class that the proxy takes it for, its embedding"),
        ("weights/*.parquet", "every class: effective number, class weight, quota"),
        *([("quarantine/*.parquet", "what could not be used, and why")] if num_quarantined else []),
        (MANIFEST, "versions, fingerprints, counts, seconds"),
        (CONFIG, "the settings, to repeat the run"),
    ]
    rows = [[tag("code", name, class_="line"), what] for name, what in places]
    train = shlex.join(["razor-ray", "train", "--input", f"{run}/subset", "--output", f"{run}-train"])
    load = f'datasets.load_dataset("parquet", data_files="{run}/subset/*.parquet")'
    return _section(
        "Where to look next",
        tag("p", "In ", tag("code", run), ":"),
        _table([], rows, text_columns=(0, 1)),
        tag("pre", f"{train}\n{load}"),
    )


def _footer(manifest: dict[str, Any]) -> Html:
    doi = tag("a", "doi:10.1109/TCSS.2024.3453600", href="https://doi.org/10.1109/TCSS.2024.3453600")
    return tag(
        "footer",
        tag("p", "γ-Razor is by Liu et al., IEEE TCSS 12(3):957–971, 2025, ", doi, "."),
        tag(
            "p",
            "The reading of the method here (the window over the levels of hardness, its focus and its sharpness γ, "
            f"quotas by ISPL mass) is razor_ray's own. Written by razor_ray {manifest['razor_ray']}.",
        ),
    )


# --- the page ---------------------------------------------------------------------------------------------------------


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _section(title: str, *content: Html) -> Html:
    return tag("section", tag("h2", title), *content)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]], text_columns: tuple[int, ...] = (0,)) -> Html:
    """A table whose columns hold numbers, set to the right, except those in `text_columns`."""

    def line(cells: Sequence[object], kind: str) -> Html:
        return tag(
            "tr",
            *(
                tag(kind, cell, class_="text" if index in text_columns else "number")
                for index, cell in enumerate(cells)
            ),
        )

    top = [tag("thead", line(head, "th"))] if head else []
    body = tag("tbody", *(line(row, "td") for row in rows))
    return tag("div", tag("table", *top, body), class_="scroll")


def _page(title: str, sections: Sequence[Html]) -> str:
    # The policy is a second lock: even if something got past the escaping, no script would run and nothing would load.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("title", f"razor_ray: {title}"),
        tag("style", Html(_STYLE)),
    )
    body = tag("body", tag("main", Html("\n".join(sections))))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


_LIGHT = """
  --page: #fbfbfa; --card: #ffffff; --ink: #22272e; --quiet: #66707c; --rule: #e4e6e9;
  --all: #cdd5de; --kept: #2f7f86; --dropped: #b6bfca; --quarantined: #d08a2e; --track: #edf0f2;"""

_DARK = """
  --page: #15181c; --card: #1c2025; --ink: #dfe3e8; --quiet: #939ca8; --rule: #2e343b;
  --all: #434d59; --kept: #56b3b4; --dropped: #55606d; --quarantined: #d99a4a; --track: #2a3037;"""

_STYLE = f"""
:root {{ color-scheme: light dark; {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }}
main {{ max-width: 880px; margin: 0 auto; padding: 32px 20px 48px; }}
header {{ margin-bottom: 24px; }}
h1 {{ font-size: 26px; line-height: 1.25; font-weight: 600; margin: 2px 0 8px; overflow-wrap: anywhere; }}
h2 {{ font-size: 17px; font-weight: 600; margin: 0 0 12px; }}
h3 {{ font-size: 14px; font-weight: 600; margin: 18px 0 8px; }}
p {{ margin: 8px 0; }}
.lead {{ font-size: 17px; }}
.quiet, footer {{ color: var(--quiet); font-size: 13px; }}
section {{ background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 18px 20px;
  margin: 0 0 18px; }}
footer {{ padding: 8px 4px; }}
a {{ color: var(--kept); }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; margin: 10px 0; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 4px 20px 4px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }}
tr:last-child td {{ border-bottom: 0; }}
th {{ font-weight: 500; color: var(--quiet); font-size: 13px; white-space: nowrap; }}
.number {{ text-align: right; white-space: nowrap; }}
.text {{ text-align: left; overflow-wrap: anywhere; min-width: 84px; }}
.line {{ white-space: nowrap; }}
.legend .swatch:nth-of-type(2) {{ margin-left: 16px; }}
code, pre {{ font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }}
pre {{ background: var(--track); border-radius: 6px; padding: 10px 12px; white-space: pre-wrap;
  overflow-wrap: anywhere; }}
summary {{ cursor: pointer; margin: 8px 0; }}
{charts.STYLE}.gallery {{ display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: 12px; }}
@media (max-width: 600px) {{ .gallery {{ grid-template-columns: repeat(4, minmax(0, 1fr)); }} }}
figure {{ margin: 0; }}
figure img, .blank {{ display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--track);
  border-radius: 6px; }}
.blank {{ display: grid; place-items: center; color: var(--quiet); font-size: 12px; }}
figcaption {{ display: flex; justify-content: space-between; gap: 6px; font-size: 12px; margin-top: 4px; }}
figcaption span {{ overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }}
figcaption small {{ color: var(--quiet); font-size: 12px; }}
@media print {{
  :root {{ color-scheme: light; {_LIGHT} --page: #ffffff; }}
  main {{ max-width: none; padding: 0; }}
  section {{ border: 0; padding: 0; margin: 0 0 22px; }}
  h2, h3 {{ break-after: avoid; }}
  tr, figure, .chart, pre {{ break-inside: avoid; }}
}}
"""
