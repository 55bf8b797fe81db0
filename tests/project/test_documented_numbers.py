"""Numbers in the README and the documentation are those of the recorded runs that stand before them."""

import json
import re

import pandas as pd
import pytest
from helpers import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
RECORDED = ROOT / "outputs/reference"
TASKS = {"tracking": "ruler-vt_3", "two-hop": "longbench-2wikimqa"}


def tables(page):
    """A page's tables: the last recorded run that was linked before each, its header, and its rows."""
    run, table = None, []
    for line in [*page.read_text().splitlines(), ""]:
        if line.startswith("|"):
            table.append([cell.strip() for cell in line.strip("|").split("|")])
        else:
            if table:
                yield run, table[0], table[2:]
            table = []
            run = (re.findall(r"outputs/reference/([\w.-]+)\)", line) or [run])[-1]


def rounded(shown, value):
    """Whether a number, as it is shown, is the value rounded to as many digits."""
    digits = len(shown.partition(".")[2])
    return abs(float(shown) - value) <= 0.5001 * 10**-digits


def numbers_of(check):
    """Every number that a kind of table shows in some page, with what was recorded."""
    return [(page.name, *found) for page in PAGES for table in tables(page) for found in check(*table)]


def scores(run, header, rows):
    if header[1:] != ["`tiny-llama`", "`tiny-mistral`", "`tiny-qwen`"]:
        return
    for label, *cells in rows:
        task, method, ratio = re.fullmatch(r"([\w-]+): `([^`]+)`(?: at (\d+) %)?", label).groups()
        for model, cell in zip(header[1:], cells, strict=True):
            table = pd.read_csv(RECORDED / run / f"{model.strip('`')}-{TASKS[task]}.csv")
            found = table[table["method"] == method]
            found = found if ratio is None else found[(found["ratio"] - float(ratio) / 100).abs() < 1e-9]
            yield label, cell, found["score"].item()


def fidelities(run, header, rows):
    """`method`, or `method` at a ratio; the share recomputed; KL and gap recovered, with their intervals."""
    if header[1:] != ["recomputed", "KL (95 % interval)", "gap recovered (95 % interval)"]:
        return
    table = pd.read_csv(RECORDED / run / "overview-fidelity.csv")
    (name,) = {column.removesuffix(", KL") for column in table if column.endswith("ruler, KL")}
    for label, share, *cells in rows:
        method, ratio = re.fullmatch(r"`([^`]+)`(?: at (\d+) %)?", label).groups()
        found = table[table["method"] == method]
        row = found[(found["ratio"] - float(ratio) / 100).abs() < 1e-9].squeeze() if ratio else found.squeeze()
        yield label, share.removesuffix(" %"), 100 * row["recomputed"]
        for cell, measure, scale in zip(cells, ("KL", "recovered"), (1, 100), strict=True):
            shown = re.findall(r"-?[\d.]+", cell)
            ends = ("", " low", " high")[: len(shown)]
            for number, end in zip(shown, ends, strict=True):
                yield label, number, scale * row[f"{name}, {measure}{end}"]


def by_length(run, header, rows):
    if header[0] != "gap recovered at":
        return
    table = pd.read_csv(RECORDED / "smollm2-gpu/fidelity-by-length.csv")
    lengths = [int(re.sub(r"\D", "", cell)) for cell in header[1:]]
    for label, *cells in rows:
        method, ratio = re.fullmatch(r"`([^`]+)`(?: at (\d+) %)?", label).groups()
        same = table[(table["method"] == method) & ((table["ratio"] - float(ratio or 0) / 100).abs() < 1e-9)]
        for length, cell in zip(lengths, cells, strict=True):
            row = same[same["length"] == length].squeeze()
            for shown, end in zip(re.findall(r"-?\d+", cell), ("", "_low", "_high"), strict=True):
                yield label, shown, 100 * row[f"recovered_kl{end}"]


def times(run, header, rows):
    """The time to first token of SmolLM2's task with the most prompts."""
    if run != "smollm2" or header[1:] != ["TTFT", "speed-up over full prefill"]:
        return
    table = pd.read_csv(RECORDED / run / "smollm2-ruler-times.csv")
    for label, time, speed_up in rows:
        method, ratio = re.fullmatch(r"`([^`]+)`(?: at (\d+) %)?", label).groups()
        found = table[table["method"] == method]
        row = found[(found["ratio"] - float(ratio) / 100).abs() < 1e-9].squeeze() if ratio else found.squeeze()
        yield label, time.removesuffix(" ms"), row["TTFT (ms)"]
        yield label, speed_up, row["speed-up"]


def contexts(run, header, rows):
    if run != "contexts.json" or "chunks behind" not in header:
        return
    recorded = json.loads((RECORDED / run).read_text())
    model = task = ""
    for *place, behind, reuse, a3, first, second in rows:
        if place and place[0]:
            model, task = place[0].strip("`").split("`, ")
        kind = "embedded" if place else "smollm2"
        same = [row for row in recorded[kind]["rows"] if row["behind"] == behind.lower()]
        (row,) = [row for row in same if (row.get("model", ""), row.get("task", "")) == (model, task) or not place]
        for method, cell in zip(header[len(place) + 1 :], (reuse, a3, first, second), strict=True):
            for shown, measure in zip(cell.split(", "), ("kl", "right"), strict=True):
                yield behind, shown, row[method][measure]


def trainings(run, header, rows):
    if run != "contexts-h200.json" or header != ["tokens", "steps", "divergence on held-out texts"]:
        return
    recorded = json.loads((RECORDED / run).read_text())["trainings"]
    assert [row["label"] for row in recorded] == [label for label, *_ in rows]
    for (label, steps, divergence), row in zip(rows, recorded, strict=True):
        yield label, steps, row["steps"]
        yield label, divergence, row["held_out"]


def trained_anew(run, header, rows):
    if run != "contexts-h200.json" or header[0] != "context":
        return
    recorded = json.loads((RECORDED / run).read_text())["contexts"]
    kinds = ("reuse", "reuse behind the prefix too", "probe at 2 % behind the prefix too")
    for label, *cells in rows:
        for cell, kind in zip(cells, kinds, strict=True):
            for shown, value in zip(re.findall(r"[\d.]+", cell), recorded[label][kind]["kl"], strict=True):
                yield label, shown, value


def stored_keys(run, header, rows):
    if run != "contexts-h200.json" or header[0] != "keys of layer":
        return
    recorded = json.loads((RECORDED / run).read_text())["layers"]
    assert header[1:] == list(recorded)
    for layer, cell in zip(header[1:], rows[0][1:], strict=True):
        yield layer, cell.removesuffix(" %"), 100 * recorded[layer]["recovered"][0]


def trained_longer(run, header, rows):
    if run != "contexts-h200.json" or header[0] != "trained longer":
        return
    recorded = json.loads((RECORDED / run).read_text())["longer"]["methods"]
    for label, *cells in rows:
        for cell, kind in zip(cells, header[1:], strict=True):
            for shown, value in zip(re.findall(r"\d+", cell), recorded[label][kind]["recovered"], strict=True):
                yield label, shown, 100 * value


def prefills(run, header, rows):
    if not re.fullmatch(r"bench-h\d+-.*json", run or "") or header[0] != "tokens" or "ms" in rows[0][1]:
        return
    table = pd.DataFrame(json.loads((RECORDED / run).read_text())["rows"])
    for label, *cells in rows:
        name, share = re.match(r"(transformers|`\w+`)(?: at (\d+) %)?", label).groups()
        hops = next((i for i, words in enumerate(("one hop", "two hops", "three hops"), 1) if words in label), 0)
        kept = table[(table["selector"] == name.strip("`")) & (table["hops"].fillna(0) == hops)]
        if "keys" in kept:
            layer = re.search(r"stored keys of layer (\d+)", label)
            kept = kept[kept["layer"] == int(layer[1])] if layer else kept[kept["keys"].isna()]
        if share:
            kept = kept[(kept["ratio"] - float(share) / 100).abs() < 1e-9]
        tier = next((place for place in ("pinned", "page cache", "disk") if place in label), "cuda")
        kept = kept[kept["tier"].isin(["", tier])]
        for length, cell in zip(header[1:], cells, strict=True):
            row = kept[kept["tokens"] == int(length.replace(",", ""))].squeeze()
            time, speed_up = re.fullmatch(r"([\d.]+)(?: \(([\d.]+)\))?", cell).groups()
            yield label, time, row["p50"]
            if speed_up:
                yield label, speed_up, row["speed-up"]


def tracking(run, header, rows):
    if run != "contexts-h200.json" or header[0] != "tracking":
        return
    lengths = json.loads((RECORDED / run).read_text())["tracking"]["by length"]
    for label, *cells in rows:
        for length, cell in zip(header[1:], cells, strict=True):
            recorded = lengths[re.sub(r"\D", "", length)][label.replace("`", "")]
            kl, *shares = re.fullmatch(r"([\d.]+), (-?\d+) % \((-?\d+) to (-?\d+)\)", cell).groups()
            yield label, kl, recorded["kl"][0]
            for share, value in zip(shares, recorded["recovered"], strict=True):
                yield label, share, 100 * value


def batches(run, header, rows):
    if run != "bench-h200-llama-3-8b.json" or header[0] != "batches of":
        return
    table = pd.DataFrame(json.loads((RECORDED / run).read_text())["batches"])
    for label, *cells in rows:
        selector, share = re.match(r"`(\w+)`.*?(\d+) %$", label).groups()
        layer = re.search(r"stored keys of layer (\d+)", label)
        kept = table[(table["selector"] == selector) & ((table["ratio"] - float(share) / 100).abs() < 1e-9)]
        kept = kept[kept["layer"] == int(layer[1])] if layer else kept[kept["keys"].isna()]
        for count, cell in zip(header[1:], cells, strict=True):
            row = kept[kept["prompts"] == int(count)].squeeze()
            per_second, speed_up = re.fullmatch(r"(\d+)(?: \(([\d.]+)\))?", cell).groups()
            yield label, per_second, row["prompts_per_second"]
            if speed_up:
                yield label, speed_up, row["speed-up"]


def equal_fidelity(run, header, rows):
    """Speed-ups, of the fastest method by a search through both records."""
    if run != "bench-h200-llama-3-8b.json" or header[0] != "gap recovered, at least":
        return
    bench = pd.DataFrame(json.loads((RECORDED / run).read_text())["rows"])
    bench = bench[bench["tier"] == "cuda"]
    stored, one_hop = bench["keys"].notna(), bench["hops"].fillna(1) == 1
    overview = pd.read_csv(RECORDED / "smollm2-gpu/overview-fidelity.csv")
    lengths = [int(re.sub(r"\D", "", cell)) for cell in header[3:]]
    for level, behind, fastest, *cells in rows:
        for length, cell in zip(lengths, cells, strict=True):
            speeds = {}
            for _, row in overview[overview["smollm2, ruler, recovered"] >= float(level[:-2]) / 100].iterrows():
                name, _, context = row["method"].partition(" behind ")
                if (context or "BOS") != behind:
                    continue
                same = (bench["selector"] == name.split()[0]) & (stored == ("stored keys" in name)) & one_hop
                same &= (bench["tokens"] == length) & ((bench["ratio"] - row["ratio"]).abs() < 1e-9)
                if same.any():
                    speeds[name, row["ratio"]] = bench[same]["speed-up"].min()
            best, ratio = max(speeds, key=speeds.get)
            assert fastest == f"`{best}`" + (f" at {100 * ratio:.0f} %" if ratio else "")
            yield fastest, cell, speeds[best, ratio]


def attention(run, header, rows):
    if run != "bench-h100-llama-3-8b.json" or header[0] != "tokens" or "ms" not in rows[0][1]:
        return
    table = pd.DataFrame(json.loads((RECORDED / run).read_text())["attention"])
    for label, *cells in rows:
        for length, cell in zip(header[1:], cells, strict=True):
            same = (table["backend"] == label.split("`")[1]) & (table["tokens"] == int(length.replace(",", "")))
            time, speed = re.fullmatch(r"([\d.]+) ms, (\d+) TFLOP/s", cell).groups()
            yield label, time, table[same]["ms"].item()
            yield label, speed, table[same]["tflops"].item()


def on_a_cpu(run, header, rows):
    if run != "bench-cpu.json" or header[1:] != ["TTFT, median", "speed-up"]:
        return
    table = json.loads((RECORDED / run).read_text())["prefill"]
    for label, time, speed_up in rows:
        row = table[label.split(",")[0].strip("`")]
        yield label, time.removesuffix(" ms"), row["p50"]
        yield label, speed_up, row["speed-up"]


def serving(run, header, rows):
    if run != "serving.json" or header[1] != "requests per second":
        return
    recorded = json.loads((RECORDED / run).read_text())["load"]["methods"]
    assert [label for label, *_ in rows] == list(recorded)
    names = ("requests_per_second", "ttft_p50", "ttft_p95", "ttft_p50_to_vllm", "throughput_to_vllm")
    for label, *cells in rows:
        for cell, name in zip(cells, names, strict=True):
            yield label, cell.removesuffix(" s"), recorded[label][name]


def checking(run, header, rows):
    if run != "store.json" or header[1:] != ["plain read of the same files", "`verify`", "ratio"]:
        return
    times = json.loads((RECORDED / run).read_text())["times"]
    for label, *cells in rows:
        plain, verify = (times[label][name]["p50"] for name in ("plain read", "verify"))
        for cell, value in zip(cells, (plain, verify, verify / plain), strict=True):
            yield label, cell.removesuffix(" ms"), value


def segments(run, header, rows):
    if run != "store.json" or header[1:] != ["read", "against a folder", "written", "against a folder"]:
        return
    times = json.loads((RECORDED / run).read_text())["times"]
    for label, *cells in rows:
        place = max((name for name in times["read"] if label.startswith(name)), key=len)
        found = [(times[way][place]["p50"], times[way]["folder"]["p50"]) for way in ("read", "write")]
        values = [value for time, folder in found for value in (time, time / folder)]
        for cell, value in zip(cells, values, strict=True):
            yield label, cell.removesuffix(" ms"), value


# What the table of faults counts, and where the recorded run has it.
FAULTS = {
    "precompute killed": "kills precompute",
    "evaluation killed": "kills evaluate",
    "bits of files flipped: data, headers, length fields": "flips data, flips header, flips length",
    "bits of manifests flipped": "flips manifest",
    "bits of rows so far flipped": "flips rows",
    "files cut short": "truncations files",
    "jobs stopped by a full disk": "full_disks stopped",
    "jobs stopped by permissions taken away": "permissions stopped",
    "jobs stopped by a broken connection": "broken_connections stopped",
    "jobs stopped by a server that never answers": "silent_servers stopped",
    "collections and checks stopped by a folder that cannot be listed": "unlistable_folders stopped",
    "segments kept from a collector that was stopped midway": "stopped_collectors kept",
    "bits of results flipped, and of their checksums": "damaged_results flipped, damaged_results checksum",
    "results cut short, without a checksum, or pipes": "damaged_results cut, damaged_results no checksum, "
    "damaged_results pipe",
    "bits of prompts flipped, prompts cut short": "damaged_prompts flipped, damaged_prompts cut",
    "evaluations killed within the writes of a table, of its summary": "killed_writes table, killed_writes summary",
    "evaluations finished beside others": "evaluations_at_once finished",
    "finished tables kept, replaced by evaluations that were killed": "kills_over_a_finished_table kept, "
    "kills_over_a_finished_table replaced",
}


def faults(run, header, rows):
    if run != "faults.json" or header != ["Caused", "How often"]:
        return
    recorded = json.loads((RECORDED / run).read_text())["faults"]
    for label, shown in rows:
        for count, place in zip(shown.split(", "), FAULTS[label].split(", "), strict=True):
            kind, _, name = place.partition(" ")
            yield label, count, recorded[kind][name]


def formats(run, header, rows):
    """`method` at a ratio, by format: the KL, and how much larger it is than in the model's dtype."""
    if header[0] != "KL from full prefill":
        return
    recorded = json.loads((RECORDED / run).read_text())["rows"]
    for label, *cells in rows:
        method, ratio = re.fullmatch(r"`([^`]+)`(?: at (\d+) %)?", label).groups()
        for format, cell in zip(header[1:], cells, strict=True):
            wanted = (method, float(ratio or 0) / 100, format.strip("`"))
            (row,) = (row for row in recorded if (row["method"], row["ratio"], row["format"]) == wanted)
            expected = [row["kl"][0], *row.get("more than model", [])[1:]]
            yield from ((label, *pair) for pair in zip(re.findall(r"[-+]?[\d.]+", cell), expected, strict=True))


def two_hops(run, header, rows):
    """`method` at a ratio; the KL and the gap recovered, with their intervals."""
    if header[0] != "two-hop questions":
        return
    recorded = json.loads((RECORDED / run).read_text())["multi-hop"]["rows"]
    for (label, kl, gap), row in zip(rows, recorded, strict=True):
        method, ratio = re.fullmatch(r"`([^`]+)`(?: at (\d+) %)?", label).groups()
        assert (method, float(ratio or 0) / 100) == (row["method"], row["ratio"])
        yield from ((label, *pair) for pair in zip(re.findall(r"[\d.]+", kl), row["kl"], strict=True))
        recovered = [100 * value for value in row["recovered"]]
        yield from ((label, *pair) for pair in zip(re.findall(r"\d+", gap), recovered, strict=True))


CHECKS = [
    (faults, 24),
    (scores, 90),
    (fidelities, 300),
    (times, 16),
    (by_length, 90),
    (contexts, 220),
    (trainings, 12),
    (trained_anew, 36),
    (trained_longer, 45),
    (batches, 35),
    (tracking, 100),
    (equal_fidelity, 30),
    (stored_keys, 10),
    (prefills, 70),
    (attention, 24),
    (on_a_cpu, 12),
    (serving, 15),
    (checking, 6),
    (segments, 16),
    (formats, 50),
    (two_hops, 36),
]


@pytest.mark.parametrize(("check", "least"), CHECKS)
def test_tables_are_the_recorded_runs(check, least):
    shown = numbers_of(check)
    assert len(shown) >= least
    assert [wrong for wrong in shown if not rounded(*wrong[2:])] == []


def test_tables_leave_no_method_out():
    """The page has every row of both records, the README every method, at the shares that it chose."""
    recorded = {run: pd.read_csv(RECORDED / run / "overview-fidelity.csv") for run in ("smollm2-gpu", "smollm2")}

    def listed(page):
        return {run: rows for run, header, rows in tables(ROOT / page) if header[1:2] == ["recomputed"]}

    ((run, first_screen),) = listed("README.md").items()
    methods = {re.match(r"`([^`]+)`", row[0])[1] for row in first_screen}
    assert methods | {"full_prefill"} == set(recorded[run]["method"])
    everything = listed("docs/real-model.md")
    assert {run: len(rows) for run, rows in everything.items()} == {run: len(rows) for run, rows in recorded.items()}
    small = pd.read_csv(RECORDED / "tiny/tiny-llama-ruler-vt_3.csv")
    (rows,) = [rows for run, header, rows in tables(ROOT / "docs/selectors.md") if run == "tiny"]
    assert {re.search(r"`([^`]+)`", row[0])[1] for row in rows} == set(small["method"])


def test_readme_says_what_the_figure_shows():
    score = pd.read_csv(RECORDED / "tiny/tiny-llama-longbench-2wikimqa.csv").set_index(["method", "ratio"])["score"]
    time = pd.read_csv(RECORDED / "tiny/tiny-llama-longbench-times.csv").set_index(["method", "ratio"])["speed-up"]
    text = " ".join((ROOT / "README.md").read_text().split())
    share = {method: f"{100 * score[method, 0.15]:.0f} %" for method in ("cacheblend", "epic", "surprisal")}
    assert score["full_prefill", 1.0] == score["a3", 0.05] == 1
    assert f"plain reuse {100 * score['full_reuse', 0.0]:.0f} %." in text
    assert f"CacheBlend answers {share['cacheblend']}, EPIC {share['epic']}, the most surprising tokens" in text
    assert f"tokens {share['surprisal']}." in text
    assert time["a3", 0.15] > 2, "less than half of the full prefill's time"


def test_page_on_contexts_counts_the_right_answers_at_twice_the_length():
    """Of 40 prompts of tracking and 20 two-hop questions per model."""
    table = pd.read_csv(RECORDED / "contexts/overview.csv")
    weights = {"ruler": 40, "longbench": 20}
    columns = [column for column in table if column.split(", ")[-1] in weights]
    assert len(columns) == 6
    right = sum(weights[column.split(", ")[-1]] * table[column] for column in columns).round().astype(int)
    count = dict(zip(zip(table["method"], table["ratio"], strict=True), right, strict=True))
    text = " ".join((ROOT / "docs/contexts.md").read_text().split())
    learned, prefix, bos = (
        count[f"probe{behind}", 0.01]
        for behind in (" behind a learned context", " behind the prefix", " behind a learned context and BOS")
    )
    assert f"answer {learned} of {count['full_prefill', 1.0]} prompts at 1 % behind the context and the prefix" in text
    assert (
        f"{prefix} behind the prefix, {bos} behind the context and BOS, and {count['probe', 0.01]} behind BOS" in text
    )
    assert f"Plain reuse answers {count['full_reuse', 0.0]} of the 180." in text


def test_page_on_contexts_says_what_a_single_chunk_loses():
    rows = json.loads((RECORDED / "contexts.json").read_text())["one chunk"]["rows"]
    kl = {row["behind"]: f"{row['reuse'][0]:.3f}" for row in rows}
    text = " ".join((ROOT / "docs/contexts.md").read_text().split())
    behind_bos = f"a KL of {kl['BOS']} behind BOS, {kl['learned']} behind the context and BOS, "
    behind_prefix = f"{kl['learned+prefix']} behind the context and the prefix, and {kl['prefix']} behind the prefix."
    assert behind_bos + behind_prefix in text


def test_page_on_contexts_says_what_did_not_help():
    recorded = json.loads((RECORDED / "contexts.json").read_text())
    text = " ".join((ROOT / "docs/contexts.md").read_text().split())
    tried, shares, layers, calibrated = (
        {name: f"{value:.4f}" for name, value in recorded[part]["kl"].items()}
        for part in ("tried", "share by chunk", "from a layer on", "calibrated")
    )
    probe = {ratio: tried[f"probe at {ratio} %"] for ratio in (2, 15)}
    root = tried["probe at 15 %, attention times the root of sensitivity"]
    assert f"the probe's KL at 15 % fell from {probe[15]} to {root}, and stayed the same at 2 %" in text
    assert f"A second hop of the probe: from {probe[15]} to {tried['probe at 15 %, two hops']} at 15 %" in text
    low, high = (tried[f"reuse, keys times {factor}"] for factor in ("0.95", "1.05"))
    assert f"plain reuse went from {tried['reuse']} to {low} and {high}" in text

    ape = {
        behind: {setting: f"{value:.4f}" for setting, value in settings.items()}
        for behind, settings in recorded["ape"]["kl"].items()
    }
    bos, prefix, both = (ape[behind] for behind in ("BOS", "prefix", "learned+prefix"))
    assert (
        f"With 0.9 for both, plain reuse went from {bos['1 and 1']} to {bos['0.9 and 0.9']} behind BOS, "
        f"from {prefix['1 and 1']} to {prefix['0.9 and 0.9']} behind the prefix, "
        f"and from {both['1 and 1']} to {both['0.9 and 0.9']} behind the context and the prefix. "
        f"With a scale of 0.95 alone, it fell to {prefix['1 and 0.95']} behind the prefix, "
        f"but rose to {both['1 and 0.95']} behind both. No setting helped there"
    ) in text
    assert not any(low < high < 0 for _, low, high in recorded["ape"]["differences"]["learned+prefix"].values())

    product, alone = (
        [shares[f"at {ratio} %, by {weight}"] for ratio in (2, 15)]
        for weight in ("sensitivity times attention", "sensitivity")
    )
    assert f"attention: from {probe[2]} to {product[0]} at 2 %, and from {probe[15]} to {product[1]} at 15 %" in text
    assert f"By sensitivity alone, {alone[0]} and {alone[1]}" in text
    sixth, fifteenth = ([layers[f"at {ratio} %, from layer {layer}"] for ratio in (2, 15)] for layer in (6, 15))
    assert f"From {probe[2]} to {sixth[0]} at 2 %, and from {probe[15]} to {sixth[1]} at 15 %. From layer 15" in text
    assert f"with twice as many tokens, {fifteenth[0]} and {fifteenth[1]}" in text

    found, default, one_hop = (
        [calibrated[f"{options}, at {ratio} %"] for ratio in (2, 15)]
        for options in ("calibrated behind the context and the prefix", "default options", "one hop")
    )
    assert f"on 4 prompts of tracking: {found[0]} at 2 %, and {found[1]} at 15 %" in text
    assert f"The default options have {default[0]} and {default[1]}, one hop has {one_hop[0]} and {one_hop[1]}" in text


def test_readme_says_what_eight_bits_gain():
    text = " ".join((ROOT / "README.md").read_text().split())
    rows = pd.DataFrame(json.loads((RECORDED / "bench-h200-llama-3-8b-fp8.json").read_text())["rows"])
    rows = rows[(rows["selector"] == "a3") & (rows["layer"] == 8)].sort_values("tokens")
    pinned, cached = (rows[rows["tier"] == tier]["speed-up"] for tier in ("pinned", "page cache"))
    first, last = ("{:.1f}, {:.1f} and {:.1f} times".format(*speeds) for speeds in (pinned, cached))
    assert f"{first} as fast as a full prefill from pinned memory, and {last} from files in the page cache" in text


def test_scaling_page_says_what_decoding_takes():
    text = " ".join((ROOT / "docs/scaling.md").read_text().split())
    shapes = ("llama-3-8b", "mistral-7b", "qwen2.5-7b", "qwen3-8b")
    llama, mistral, *qwen = (
        f"{json.loads((RECORDED / f'bench-h200-{shape}.json').read_text())['decoding']['ratio']:.2f} times"
        for shape in shapes
    )
    assert f"{llama} as long as reading the weights: each of its kernels starts" in text
    assert f"{llama} as long per token as reading the weights" in " ".join((ROOT / "README.md").read_text().split())
    assert f"{mistral} as long as reading the weights with the shape of Mistral-7B, {qwen[0]} with that" in text
    assert f"and {qwen[1]} with that of Qwen3-8B" in text


def test_page_on_contexts_says_what_tokens_behind_the_chunk_do():
    alone, both = json.loads((RECORDED / "contexts.json").read_text())["behind the chunk"]["rows"]
    text = " ".join((ROOT / "docs/contexts.md").read_text().split())
    assert f"a KL of {both['kl']} after 330 seconds, and {alone['kl']} with the context alone" in text


def test_page_on_contexts_says_what_precompute_takes():
    times = json.loads((RECORDED / "contexts.json").read_text())["precompute"]["times"]
    text = " ".join((ROOT / "docs/contexts.md").read_text().split())
    speeds = {chunk: row["precompute"] / row["precompute behind 16 learned tokens"] for chunk, row in times.items()}
    assert (
        f"ran at {speeds['128']:.2f} of the usual speed for chunks of 128 tokens, and at {speeds['512']:.2f} for "
        "chunks of 512"
    ) in text


def test_serving_page_says_what_kills_did():
    found = json.loads((RECORDED / "serving.json").read_text())["kills"]
    text = " ".join((ROOT / "docs/serving.md").read_text().split())
    fused, alone = (int(found["counters"][name]) for name in ("fused", "fallen_back"))
    assert (found["kills"], found["answered"], fused + alone) == (10, found["requests"], found["requests"])
    assert found["other_than_ragkvs_own"] <= alone
    assert f"killed ten times during {found['requests']} requests" in text
    assert f"all were answered, {fused} of them fused and {alone} prefilled by vLLM. Only these {alone} can" in text
    assert f"; {found['other_than_ragkvs_own']} did." in text


def test_cluster_page_says_what_shards_take():
    found = json.loads((RECORDED / "shards.json").read_text())
    text = " ".join((ROOT / "docs/cluster.md").read_text().split())
    whole, shards = (f"{found[name]['seconds']:.1f} s" for name in ("whole", "shards"))
    assert f"{found['parameters']['prompts']} prompts of tracking on `{found['parameters']['model']}`" in text
    assert f"{found['rows']} rows, take {whole} as a whole and {shards} in two shards side by side" in text
    assert f"merge the tables: {found['seconds ratio']:.2f} of the time. These are medians of five runs" in text
    assert (found["parameters"]["shards"], found["parameters"]["repeats"], found["same table"]) == (2, 5, True)
